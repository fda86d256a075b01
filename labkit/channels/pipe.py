"""Anonymous pipe: pipe(2), pipe(7). TLPI ch. 44.

A byte stream: four bytes of length go before each message. Writes of up to PIPE_BUF bytes are atomic, larger ones are
not (pipe(7)), so that a sender which has been cloned takes no message that others could be mixed into.
"""

from __future__ import annotations

import errno
import fcntl
import os

from labkit.channels.base import Capacity, Facts
from labkit.channels.call_entry import LENGTH_BYTES
from labkit.channels.stream import ATOMIC, LARGEST, StreamReceiver, StreamSender

FACTS = Facts(
    boundaries=False,
    ordered=True,
    tells_close=True,
    pollable=True,
    duplex=False,
    related_only=True,
    many_senders=False,
    many_receivers=False,
    reliable=True,
    handed_over=True,
    persistence="process",
    max_message=LARGEST,
    namespaced_by="none",
    copies=3,
    manual="pipe(7)",
)


def open(*, capacity: int | None = None) -> tuple[PipeSender, PipeReceiver]:
    """A new pipe.

    Args:
        capacity: bytes the kernel should hold (F_SETPIPE_SZ; rounded up to a power of two of pages).

    Raises:
        ValueError: the capacity is not positive, or 2 GiB or more.
        OSError: EPERM, the capacity is above /proc/sys/fs/pipe-max-size.
    """
    if capacity is not None and not 0 < capacity < 1 << 31:
        raise ValueError(f"capacity must be at least 1 byte and less than 2 GiB, not {capacity:,}")
    read_fd, write_fd = os.pipe()
    try:
        if capacity is not None:
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, capacity)
    except BaseException:
        os.close(read_fd)
        os.close(write_fd)
        raise
    return PipeSender(write_fd), PipeReceiver(read_fd)


class PipeSender(StreamSender):
    kind, facts = "pipe", FACTS

    @property
    def capacity(self) -> Capacity:
        return Capacity(fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ), "bytes", LENGTH_BYTES)

    def clone(self) -> PipeSender:
        """A second sender: dup(2). From then on both take only messages that are atomic: up to PIPE_BUF - 4 bytes."""
        self._must_be_open()
        if self._calls.owed:
            raise BlockingIOError(errno.EAGAIN, "a message is still half-sent; send it to the end before cloning")
        clone = PipeSender(os.dup(self.fd), ATOMIC)
        self._limit += ATOMIC - self.max_message
        self.max_message = ATOMIC
        self._calls.allow(self._limit)
        return clone


class PipeReceiver(StreamReceiver):
    kind, facts = "pipe", FACTS
