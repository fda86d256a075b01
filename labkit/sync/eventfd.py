"""Eventfd: eventfd(2). TLPI §63.5 (a doorbell that poll(2) hears).

A count in the kernel with a descriptor. `notify` adds to it, `wait` sleeps until it is above 0, takes all of it and
says how much that was; as a semaphore it takes one at a time. Notifications that nobody has waited for are added up,
never lost and never in the way. It has no name: only who is handed the descriptor can use it.
"""

from __future__ import annotations

import errno
import os
import select
from typing import Any

from labkit.channels.base import DEFAULT_TIMEOUT, Waiter, arrived, travelling, unavailable, whole
from labkit.sync.shared import Shared

MOST = 2**64 - 2


class Eventfd(Shared):
    """A count that can be polled. `with Eventfd() as bell:` closes it at the end.

    It has a descriptor, so that asyncio can wait: `loop.add_reader(bell, ...)`.

    Args:
        value: the count at first.
        semaphore: whether `wait` takes one at a time (EFD_SEMAPHORE) instead of all.

    Raises:
        ValueError: the value is not 0 to 4,294,967,295.
    """

    def __init__(self, value: int = 0, semaphore: bool = False):
        self.closed = True  # until it is there
        value = whole(value, "value")
        if not 0 <= value < 2**32:
            raise ValueError(f"an eventfd starts at 0 to 4,294,967,295, not {value}")
        flags = os.EFD_CLOEXEC | os.EFD_NONBLOCK | (os.EFD_SEMAPHORE if semaphore else 0)
        self.fd, self.semaphore = os.eventfd(value, flags), semaphore
        self.closed = False

    def notify(self, count: int = 1) -> None:
        """Add to the count, and wake who waits. It never waits itself.

        Raises:
            ValueError: it is closed, or the count to add is not 1 to 2**64 - 2.
            OSError: EAGAIN, the sum would be above 2**64 - 2.
        """
        self._must_be_open()
        if not 0 < count <= MOST:
            raise ValueError(f"1 to 2**64 - 2 can be added, not {count}")
        try:
            os.eventfd_write(self.fd, count)
        except BlockingIOError:
            raise unavailable("write", errno.EAGAIN, "the eventfd's count would be above 2**64 - 2") from None

    def wait(self, timeout: float | None = DEFAULT_TIMEOUT) -> int:
        """Wait until the count is above 0; returns how much was taken: all of it, or 1 as a semaphore.

        Args:
            timeout: seconds to wait; 0 never waits, None waits for ever.

        Raises:
            TimeoutError: nobody has notified.
            ValueError: it would have to wait a negative time, or it is closed.
        """
        self._must_be_open()
        waiter = None
        while True:
            try:
                return os.eventfd_read(self.fd)
            except BlockingIOError:
                waiter = waiter or Waiter(timeout)
                waiter.wait({self.fd: select.POLLIN}, "nobody notified")
                self._must_be_open()

    def fileno(self) -> int:
        """The descriptor to poll: readable when the count is above 0."""
        self._must_be_open()
        return self.fd

    def _let_go(self) -> None:
        os.close(self.fd)

    def _state(self) -> str:
        return f"{'a semaphore, ' if self.semaphore else ''}fd {self.fd}"

    def __enter__(self) -> Eventfd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        self._must_be_open()
        return _arrives, (travelling(self.fd), self.semaphore)


def _arrives(ticket: Any, semaphore: bool) -> Eventfd:
    self = Eventfd.__new__(Eventfd)
    self.fd, self.semaphore = arrived(ticket), semaphore
    return self
