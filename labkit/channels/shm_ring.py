"""A lock-free ring in shared memory: memfd_create(2), mmap(2). labkit.lockfree.spsc holds the algorithm.

A message is two copies and no system call. Only a side that finds the ring empty (or full) for longer than a few
microseconds goes to sleep on the lifeline, and only then does the other side make a system call to wake it.

The memory has no name: it is gone when the last process that maps it is gone, however that ends. It is sealed against
shrinking (memfd_create(2)), so that no peer can turn an access into a SIGBUS.
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
import select
from collections.abc import Callable
from typing import Any

import numpy as np

from labkit.channels.base import (
    DEFAULT_TIMEOUT,
    LOOK_AGAIN,
    TAG_BYTES,
    Capacity,
    Closed,
    Facts,
    Lifeline,
    Message,
    Receiver,
    Sender,
    Waiter,
    arrived,
    arrived_lifeline,
    as_bytes,
    travelling,
    unavailable,
)
from labkit.lockfree import spsc
from labkit.lockfree.entry import MOST, new_state
from labkit.lockfree.spsc_entry import BELL, CLOSED, CORRUPT, FLAG, FULL, SENT, SPINS, ring_entries, ring_functions

CAPACITY = 1 << 20
SPIN = 400 if len(os.sched_getaffinity(0)) > 1 else 0  # on one processor the other side cannot move while we look

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
    capacity = max(4096, 1 << (int(capacity) - 1).bit_length())
    memory = os.memfd_create("labkit-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        try:
            os.posix_fallocate(memory, 0, spsc.DATA + capacity)  # all of it now: later a full machine is a SIGBUS
        except OSError as reason:
            advice = f"a ring of {capacity:,} bytes cannot be reserved: ask for a smaller capacity"
            raise unavailable("posix_fallocate", reason.errno or errno.ENOMEM, advice) from reason
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        mapping = mmap.mmap(memory, spsc.DATA + capacity)
        ring_functions()["create"](np.frombuffer(mapping, np.int64).ctypes.data, capacity)
        left, right = Lifeline.pair()
        return RingSender(os.dup(memory), capacity, left), RingReceiver(os.dup(memory), capacity, right)
    finally:
        os.close(memory)


class _RingEnd:
    """What both ends hold: the shared memory, the builtins that work on it, and the lifeline."""

    kind, facts = "shm_ring", FACTS
    flag: int  # where in the ring this side says that it sleeps
    closed: bool
    _words: np.ndarray | None = None
    _must_be_open: Callable[[], None]

    def __init__(self, memory: int, capacity: int, lifeline: Lifeline):
        self.memory = memory
        self.lifeline = lifeline
        self.max_message = self._limit = capacity - spsc.FRAME - TAG_BYTES
        self._bytes = capacity
        if os.fstat(memory).st_size != spsc.DATA + capacity:
            raise _not_a_ring("its size is wrong")
        self._words = np.frombuffer(mmap.mmap(memory, spsc.DATA + capacity), np.int64)
        ring = int(self._words.ctypes.data)
        wrong = ring_functions()["identity"](ring, capacity)
        if wrong:
            raise _not_a_ring(
                ("its magic number", "its version", "its capacity", "its positions")[wrong - 1] + " differ"
            )
        self._state = state = new_state(ring, capacity, self.max_message)
        state[[SPINS // 8, BELL // 8, FLAG // 8]] = SPIN, lifeline.fileno(), self.flag
        made = {name: entry.builtin(state, self._words) for name, entry in ring_entries().items()}
        self._send, self._receive = made["send"], made["receive"]
        self._spin, self._sleeps = made["spin"], made["sleeps"]

    def _sleep(self, waiter: Waiter, doing: str, at_most: float = 3600.0) -> bool:
        """Sleep until the other side rings; True when it has gone."""
        self._must_be_open()
        bell = self.lifeline.fileno()
        ready = waiter.wait({bell: select.POLLIN | select.POLLRDHUP}, doing, at_most)
        self.lifeline.hear()
        return bool(ready.get(bell, 0) & (select.POLLRDHUP | select.POLLHUP))

    def clone(self) -> Any:
        raise io.UnsupportedOperation("this ring has one sender and one receiver; use unix_seqpacket or posix_mq")

    def _let_go(self) -> None:
        def refuse(*_: object) -> None:
            raise ValueError("this end is closed: it was closed here, or given away by launch")

        self._send = self._receive = self._spin = self._sleeps = refuse
        self._words = None  # unmapped when the last builtin that uses it is gone
        os.close(self.memory)
        self.lifeline.close()

    def __reduce__(self) -> Any:
        return _arrives, (type(self), travelling(self.memory), self._bytes, travelling(self.lifeline.fileno()))


class RingSender(_RingEnd, Sender):
    flag = spsc.SENDER_SLEEPS

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        try:
            result = self._send(message)
        except (TypeError, ValueError, BufferError):
            self._must_be_open()
            message = as_bytes(message, self._limit)  # raises what is wrong with it
            result = self._send(message)
        if result != SENT:
            self._retry(result, message, timeout)

    def _allow_tag(self) -> None:
        super()._allow_tag()
        self._state[MOST // 8] = self._limit

    def _retry(self, result: int, message: Message, timeout: float | None) -> None:
        waiter, gone = None, False
        while result != SENT:
            if result == CLOSED or gone:
                raise Closed("the receiver of this ring has gone")
            if result == CORRUPT:
                raise _not_a_ring("its positions contradict each other")
            if result != FULL:
                as_bytes(message, self._limit)  # raises what is wrong with it
            if timeout == 0:
                if self.lifeline.cut():
                    raise Closed("the ring is full and its receiver has gone")
                raise TimeoutError("the ring is full")
            waiter = waiter or Waiter(timeout)
            self._sleeps(1)
            result = self._send(message)
            try:
                if result == FULL:
                    gone = self._sleep(waiter, "the ring stayed full", LOOK_AGAIN)
                    result = self._send(message)
            except TimeoutError:
                result = self._send(message)  # the receiver wakes us only when half of the ring is free
                if result == FULL:
                    raise
            finally:
                self._sleeps(0)

    @property
    def capacity(self) -> Capacity:
        return Capacity(self._bytes, "bytes", spsc.FRAME)


class RingReceiver(_RingEnd, Receiver):
    flag = spsc.RECEIVER_SLEEPS

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        message: bytes = self._receive()
        if message.__class__ is bytes:
            return message
        return self._retry(message, timeout)

    def _retry(self, message: Any, timeout: float | None) -> bytes:
        waiter = None
        while message is None:
            if timeout == 0:
                if not self.lifeline.cut():
                    raise TimeoutError("the ring is empty")
                gone = True
            elif self._spin():
                gone = False
            else:
                waiter = waiter or Waiter(timeout)
                self._sleeps(1)
                try:
                    message = self._receive()
                    if message is not None:
                        break
                    gone = self._sleep(waiter, "nothing came through the ring")
                finally:
                    self._sleeps(0)
            message = self._receive()  # also after the sender has gone: what it published is whole
            if message is None and gone:
                raise Closed("the sender of this ring has gone")
        if message.__class__ is int:
            raise _not_a_ring("its positions contradict each other")
        whole: bytes = message
        return whole

    def _farewell(self) -> None:
        if self._words is not None:
            self._words[spsc.RECEIVER_GONE // 8] = (
                1  # a hint that spares the sender filling the ring; the lifeline is proof
            )


def _not_a_ring(what: str) -> OSError:
    return OSError(errno.EBADMSG, f"this shared memory is not a ring of this version of labkit: {what}")


def _arrives(end: type[_RingEnd], ticket: Any, capacity: int, lifeline: Any) -> _RingEnd:
    return end(arrived(ticket), capacity, arrived_lifeline(lifeline))
