"""A lock-free ring in shared memory: memfd_create(2), mmap(2). The ring itself is labkit.lockfree.Spsc.

A message is two copies and no system call. Only a side that finds the ring empty (or full) for longer than a few
microseconds sleeps (futex(2)), and only then does the other side make a system call to wake it.

The memory has no name: it is gone when the last process that maps it is gone, however that ends. It is sealed against
shrinking (memfd_create(2)), so that no peer can turn an access into a SIGBUS. Each end has a lock on a byte of it
(F_OFD_SETLK, fcntl(2)) that travels with its descriptor and goes with the last copy, however that process ends: so the
other side learns that it has gone.
"""

from __future__ import annotations

import io
from typing import Any, ClassVar

from labkit.channels.base import (
    CLOSED_HERE,
    TAG_BYTES,
    Capacity,
    Facts,
    Receiver,
    Sender,
    as_bytes,
)
from labkit.lockfree import spsc
from labkit.lockfree.entry import APART, MOST
from labkit.lockfree.segment import RECEIVER, SENDER
from labkit.lockfree.spsc_queue import Spsc

CAPACITY = 1 << 20

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=False,
    pollable=False,
    duplex=False,
    related_only=True,
    many_senders=False,
    many_receivers=False,
    reliable=True,
    handed_over=True,
    persistence="process",
    max_message=CAPACITY - spsc.FRAME - TAG_BYTES,
    namespaced_by="none",
    copies=2,
    manual="memfd_create(2)",
)


class Ring(Spsc):
    """The ring of one end."""

    def _checked(self, raw: Any) -> Any:
        return as_bytes(raw, int(self._state[MOST // 8]))

    def _must_be_open(self) -> None:
        if self.closed:
            raise ValueError(CLOSED_HERE)


class RingEnd:
    """What both ends have."""

    kind, facts = "shm_ring", FACTS
    role: ClassVar[int]

    def __init__(self, ring: Ring):
        self.ring = ring
        self.max_message = self._limit = ring.max_message - TAG_BYTES
        ring._state[MOST // 8] = self._limit
        ring._settle(APART, self.role)  # from the beginning, so that the other side can tell when we have gone

    def clone(self) -> Any:
        raise io.UnsupportedOperation("this ring has one sender and one receiver; use unix_seqpacket or posix_mq")

    def _farewell(self) -> None:
        self.ring._close(True)

    def _let_go(self) -> None:
        self.ring._close(False)

    def __reduce__(self) -> Any:
        return type(self), (self.ring,)


class RingSender(RingEnd, Sender):
    role = SENDER

    def __init__(self, ring: Ring):
        super().__init__(ring)
        self.send = ring.send  # type: ignore[method-assign]

    def _allow_tag(self) -> None:
        super()._allow_tag()
        self.ring._state[MOST // 8] = self._limit

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.ring.capacity, "bytes", spsc.FRAME)


class RingReceiver(RingEnd, Receiver):
    role = RECEIVER

    def __init__(self, ring: Ring):
        super().__init__(ring)
        self.receive = ring.receive  # type: ignore[method-assign]


def open(*, capacity: int = CAPACITY) -> tuple[RingSender, RingReceiver]:
    """A new ring.

    Args:
        capacity: bytes of data, rounded up to a power of two; at least 4096, at most 1 GiB.

    Raises:
        ValueError: the capacity is out of range.
        OSError: ENOMEM or ENOSPC, the machine cannot reserve so much memory.
    """
    if not 0 < capacity <= 1 << 30:
        raise ValueError(f"capacity must be 1 byte to 1 GiB, not {capacity:,}")
    first = Ring(capacity, hands_on=True)
    try:
        tx = RingSender(first)
        return tx, RingReceiver(first.again())
    except BaseException:
        first.close()
        raise
