"""Descriptors on their way to a process that runs already, pickled as multiprocess does for one that it starts.

baggage = Baggage()                                 with unpacking(descriptors):
with baggage.packing():                                 ends = dill.loads(payload)
    payload = dill.dumps(ends)
socket.send_fds(sock, [payload], baggage.descriptors)
baggage.arrived()
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

from multiprocess import context

from labkit.channels.base import all_have_arrived


class Ticket:
    """Stands for a descriptor on its way; what multiprocess calls DupFd."""

    def __init__(self, number: int):
        self.number = number

    def detach(self) -> int:
        """The descriptor, in the process where it has arrived."""
        fd, _arrived[self.number] = _arrived[self.number], None
        assert fd is not None
        return fd


_arrived: list[int | None] = []


class Baggage:
    """What multiprocess gives descriptors to while it pickles for a process that it would start."""

    DupFd = Ticket

    def __init__(self) -> None:
        self.descriptors: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.descriptors.append(fd)
        return len(self.descriptors) - 1

    @contextlib.contextmanager
    def packing(self) -> Iterator[None]:
        """What this thread pickles now has its descriptors here."""
        context.set_spawning_popen(self)
        try:
            yield
        finally:
            context.set_spawning_popen(None)

    def arrived(self) -> None:
        """They are sent: those that were made for the journey are closed here."""
        all_have_arrived(self)


@contextlib.contextmanager
def unpacking(descriptors: Sequence[int]) -> Iterator[None]:
    """What is unpickled now takes its descriptors from these; those that nothing takes are closed."""
    _arrived[:] = descriptors
    try:
        yield
    finally:
        for fd in _arrived:
            if fd is not None:
                os.close(fd)
        _arrived.clear()
