"""A bounded buffer in shared memory: the classic of producers and consumers (TLPI ch. 53, exercise; Dijkstra 1965).

    memory   0        128         192         256              320             4096
             | header | filled    | free      | write_position | read_position | slot 0 | slot 1 | …
                        sem_t       sem_t       messages sent    received        each: size (8 bytes), message

Two semaphores count the slots that are filled and those that are free: a sender takes a free one, fills it, and makes
`filled` one more; a receiver the other way round. The slots are used in a circle: slot = position % slots.

**Killed at any point** (kill -9). The positions decide what is in the buffer, the semaphores who may go on:

- A message is in the buffer from the store of write_position on, which comes after its bytes (edge A), and is received
  from the store of read_position on, which comes after they have been copied out (edge B). A sender killed before A has
  sent nothing; a receiver killed before B has received nothing. No third state can be seen.
- With POSIX semaphores, one sender and one receiver: each position has one writer. A process killed between position
  and semaphore leaves a count that is one too low, or took one that it never used. So nobody waits for a semaphore for
  longer than a slice (0.05 s) before it looks at the positions, and goes by them. A count that is too high is found out
  in the same way: whoever was let in and finds the buffer empty (full) waits again.
- With a System V semaphore set, many senders and many receivers: a third semaphore, a mutex, guards both positions.
  semop(2) does several operations at once or none, and with SEM_UNDO the kernel takes back what a killed process did.
  Before use, whoever has the mutex compares the positions with the count of filled slots, which the kernel keeps right:
  one message too many was never announced by a killed sender, one too few was not finished by a killed receiver.

      take   (free −1, undo) (mutex −1, undo)
      give   (free +1, undo) (free −1) (mutex +1, undo) (filled +1)       the net effect, with nothing left to undo

**Nothing read from the memory is trusted** for a copy or an index: the positions and each size are checked against the
geometry, which was read once and checked, each time they are used.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import mmap
import os
import struct
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from labkit.channels.base import (
    CLOSED_HERE,
    DEFAULT_TIMEOUT,
    TAG_BYTES,
    Capacity,
    Closed,
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
from labkit.channels.buffer_entry import (
    CORRUPT,
    DATA,
    FILLED,
    FREE,
    FULL,
    REFUSED,
    SENT,
    SLOTS,
    STRIDE,
    TOKEN,
    buffer_entries,
)
from labkit.libc import HAS_SEM_CLOCKWAIT, failed, ffi, libc, timespec
from labkit.lockfree.entry import MOST, new_state

MAX_MESSAGE, MAX_MESSAGES = 1 << 16, 16
"""Of a buffer unless told otherwise: one megabyte, which fits a /dev/shm of 64 MB many times."""
MOST_MESSAGES = 32767  # SEMVMX, the largest value of a System V semaphore
MOST_BYTES = 1 << 40

MAGIC, VERSION, READY = int.from_bytes(b"labkitBB", "little"), 1, 0x59444145
# The header: magic, version, guard, slots, bytes of the largest message, READY, which is written last.
SLICE = 0.05
"""Seconds that a wait lasts before one looks at the positions and at the other side."""

POSIX, SYSV = 1, 2
"""What guards a buffer."""


# --- the memory ---------------------------------------------------------------------------------------------


def stride(max_message: int) -> int:
    """Bytes of a slot: its size, the message, the tag of a trace; a multiple of eight."""
    return -(-(8 + max_message + TAG_BYTES) // 8) * 8


def bytes_for(max_message: int, max_messages: int) -> int:
    """Bytes of a whole buffer.

    Raises:
        ValueError: an option is out of range.
    """
    if not 0 < max_message < 1 << 31:
        raise ValueError(f"max_message must be 1 byte to 2 GiB, not {max_message:,}")
    if not 0 < max_messages <= MOST_MESSAGES:
        raise ValueError(f"max_messages must be 1 to {MOST_MESSAGES:,}, not {max_messages:,}")
    return DATA + max_messages * stride(max_message)


def lay_out(words: np.ndarray, guard: int, max_message: int, max_messages: int) -> None:
    """Make an empty buffer in new memory, all zeros. Whoever looks meanwhile sees that it is not ready."""
    start = int(words.ctypes.data)
    if guard == POSIX:
        for offset, value in ((FILLED, 0), (FREE, max_messages)):
            if libc.sem_init(ffi.cast("sem_t *", start + offset), 1, value) != 0:
                raise failed("sem_init")
    words[:5] = MAGIC, VERSION, guard, max_messages, max_message
    words[5] = READY


def half_made(words: np.ndarray) -> bool:
    """Whether this is a buffer whose maker was killed before it was ready."""
    return len(words) < DATA // 8 or int(words[5]) == 0


def geometry(words: np.ndarray, guard: int, kind: str) -> tuple[int, int]:
    """max_message and max_messages of a buffer.

    Raises:
        OSError: EBADMSG, it is no buffer, not one of this version, or has been truncated.
    """
    if len(words) < DATA // 8:
        raise not_a_buffer(kind, f"it has {8 * len(words):,} bytes only")
    magic, version, its_guard, slots, max_message, ready = map(int, words[:6])
    if magic != MAGIC:
        raise not_a_buffer(kind, "its magic number differs")
    if version != VERSION:
        raise not_a_buffer(kind, f"its version is {version}, ours {VERSION}")
    if ready != READY:
        raise not_a_buffer(kind, "its maker did not finish it")
    if its_guard != guard:
        raise not_a_buffer(kind, "another kind of semaphore guards it")
    try:
        needed = bytes_for(max_message, slots)
    except ValueError as reason:
        raise not_a_buffer(kind, str(reason)) from None
    if len(words) * 8 < needed:
        raise not_a_buffer(kind, f"{needed:,} bytes are needed, and it has {8 * len(words):,}: it has been truncated")
    return max_message, slots


def not_a_buffer(kind: str, what: str) -> OSError:
    return OSError(
        errno.EBADMSG, f"this is not a {kind} buffer that can be used: {what}; unlink it, and make a new one"
    )


# --- the ends -----------------------------------------------------------------------------------------------


class BufferEnd:
    """What both ends of every buffer hold: its memory, the builtin that works on it, and the lifeline of a pair."""

    kind: ClassVar[str]
    guard: ClassVar[int]
    closed: bool
    _must_be_open: Callable[[], None]
    _words: np.ndarray | None = None

    def _begin(self, words: np.ndarray, lifeline: Lifeline | None, entry: str) -> None:
        self.max_message, self.max_messages = geometry(words, self.guard, self.kind)
        self._limit = self.max_message
        self.lifeline = lifeline
        self._words = words
        self._state = state = new_state(words.ctypes.data, 0, self.max_message)
        state[[SLOTS // 8, STRIDE // 8]] = self.max_messages, stride(self.max_message)
        self._call = buffer_entries()[entry].builtin(state, words)

    def _end(self) -> None:
        def refuse(*_: object) -> None:
            raise ValueError(CLOSED_HERE)

        self._call = refuse
        self._words = None  # unmapped when the last builtin that uses it is gone
        if self.lifeline:
            self.lifeline.close()

    def _cut(self) -> bool:
        return bool(self.lifeline and self.lifeline.cut())

    def _looks(self) -> None:
        """Have the next try decided by the positions, whatever the semaphores say."""

    def _sleep(self, seconds: float) -> None:
        """Wait for the semaphore, at most so long."""
        raise NotImplementedError

    def _wait(self, waiter: Waiter, doing: str) -> bool:
        """Sleep for a slice at most; True when the other side has gone."""
        self._must_be_open()
        slice = SLICE
        if waiter.deadline is not None:
            slice = min(SLICE, waiter.deadline - time.monotonic())
            if slice <= 0:
                raise TimeoutError(f"{doing} for {waiter.timeout:g} s")
        if not self._cut():  # a side that goes cuts the lifeline first, then wakes us: one of the two we see
            self._sleep(slice)
        return self._cut()


class BufferSender(BufferEnd, Sender):
    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        try:
            result = self._call(message)
        except (TypeError, ValueError, BufferError):
            self._must_be_open()
            result = REFUSED
        if result != SENT:
            self._retry(result, message, timeout)

    def _retry(self, result: int, message: Message, timeout: float | None) -> None:
        waiter, gone = None, False
        while result != SENT:
            if result == CORRUPT:
                raise not_a_buffer(self.kind, "its positions contradict each other")
            if result == REFUSED:
                message = as_bytes(message, self._limit)  # raises what is wrong with it
            elif gone:
                raise Closed("the buffer is full and no receiver is left")
            elif timeout == 0:
                gone = self._cut()
                self._looks()
                result = self._call(message)
                if result == FULL and not gone:
                    raise TimeoutError("the buffer is full")
                continue
            else:
                waiter = waiter or Waiter(timeout)
                gone = self._wait(waiter, "the buffer stayed full")
            result = self._call(message)

    def _allow_tag(self) -> None:
        super()._allow_tag()
        self._state[MOST // 8] = self._limit

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.max_messages, "messages")


class BufferReceiver(BufferEnd, Receiver):
    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        message: bytes = self._call()
        if message.__class__ is bytes:
            return message
        return self._retry(message, timeout)

    def _retry(self, message: Any, timeout: float | None) -> bytes:
        waiter, gone = None, False
        while message is None:
            if gone:
                raise Closed("every sender of this buffer has gone")
            if timeout == 0:
                gone = self._cut()
                self._looks()
                message = self._call()
                if message is None and not gone:
                    raise TimeoutError("the buffer is empty")
                continue
            waiter = waiter or Waiter(timeout)
            gone = self._wait(waiter, "nothing came through the buffer")
            message = self._call()
        if message.__class__ is int:
            raise not_a_buffer(self.kind, "its positions contradict each other")
        whole: bytes = message
        return whole


# --- in a file, guarded by POSIX semaphores: posix_shm and mmap_file ----------------------------------------


def reserve(fd: int, size: int) -> None:
    """Give a new file all of its bytes now: later a full file system would be a SIGBUS, not an error.

    Raises:
        OSError: ENOSPC or ENOMEM, there is no room.
    """
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as reason:
        advice = f"a buffer of {size:,} bytes does not fit there: ask for fewer or smaller messages"
        raise unavailable("posix_fallocate", reason.errno or errno.ENOSPC, advice) from reason


def map_words(fd: int) -> np.ndarray:
    """The whole file as 64-bit words."""
    size = os.fstat(fd).st_size // 8 * 8
    return np.frombuffer(mmap.mmap(fd, size), np.int64) if size else np.zeros(0, np.int64)


def make_in_file(fd: int, max_message: int, max_messages: int) -> None:
    """Make a buffer in a new file."""
    reserve(fd, bytes_for(max_message, max_messages))
    lay_out(map_words(fd), POSIX, max_message, max_messages)


def file_pair(sender: Any, receiver: Any, fd: int) -> tuple[Any, Any]:
    """The two ends of a buffer in a file that has no name. The descriptor is theirs, or closed after an error."""
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        left, right = Lifeline.pair()
        undo.callback(left.close)
        undo.callback(right.close)
        second = os.dup(fd)
        undo.callback(os.close, second)
        tx = sender(fd, left)
        try:
            rx = receiver(second, right)
        except BaseException:
            tx.closed = True  # what it holds is closed here
            raise
        undo.pop_all()
        return tx, rx


class FileEnd(BufferEnd):
    """What both ends of a buffer in a file hold.

    Each end of a buffer with a name has locked one byte of the file (F_OFD_SETLK, fcntl(2)), so that there is one
    sender and one receiver. The lock belongs to the open file description: it travels with the descriptor, and goes
    with its last copy, however that process ends.
    """

    guard = POSIX
    role: ClassVar[int]
    semaphore: ClassVar[int]
    entry: ClassVar[str]

    def __init__(self, fd: int, lifeline: Lifeline | None = None, only_one: bool = False):
        """
        Args:
            fd: the file; it belongs to this end from now on, when there is no error.
            lifeline: of a pair.
            only_one: refuse to be a second sender or receiver.

        Raises:
            OSError: EBADMSG, it holds no buffer; EBUSY, there is a sender (receiver) already.
        """
        if only_one:
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, self.role, 1, 0)
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
            except OSError as reason:
                if reason.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                who = ("sender", "receiver")[self.role]
                text = f"this {self.kind} has its {who} already, and takes one only: use sysv_shm for several"
                raise OSError(errno.EBUSY, text) from None
        self._begin(map_words(fd), lifeline, self.entry)
        self.fd = fd

    def clone(self) -> Any:
        raise io.UnsupportedOperation(f"a {self.kind} has one sender and one receiver; use sysv_shm for several")

    def _let_go(self) -> None:
        fd, self.fd = self.fd, -1
        self._end()
        os.close(fd)

    def __reduce__(self) -> Any:
        lifeline = self.lifeline and travelling(self.lifeline.fileno())
        return file_arrives, (type(self), travelling(self.fd), lifeline)

    def _looks(self) -> None:
        self._state[TOKEN // 8] = 1

    def _sleep(self, seconds: float) -> None:
        words = self._words  # it stays mapped while we sleep, should another thread close this end
        if words is None:
            return
        semaphore = ffi.cast("sem_t *", int(words.ctypes.data) + self.semaphore)
        if HAS_SEM_CLOCKWAIT:
            libc.sem_clockwait(semaphore, time.CLOCK_MONOTONIC, timespec(time.monotonic() + seconds))
        else:  # a slice is short enough for a clock that may be set
            libc.sem_timedwait(semaphore, timespec(time.time() + seconds))
        self._state[TOKEN // 8] = 1  # also when the slice is over: then the positions alone decide

    def _farewell(self) -> None:
        """Wake the other side, so that it looks at the lifeline now and not at the end of its slice."""
        if self.lifeline and self._words is not None:
            self.lifeline.close()
            other = FILLED if self.semaphore == FREE else FREE
            libc.sem_post(ffi.cast("sem_t *", int(self._words.ctypes.data) + other))


def file_arrives(end: type, ticket: Any, lifeline: Any) -> Any:
    return end(arrived(ticket), lifeline and arrived_lifeline(lifeline))


class FileSender(FileEnd, BufferSender):
    role, semaphore, entry = 0, FREE, "posix_send"


class FileReceiver(FileEnd, BufferReceiver):
    role, semaphore, entry = 1, FILLED, "posix_receive"
