"""System V shared memory: shmget(2), shmop(2), guarded by a semaphore set: semget(2), semop(2). TLPI ch. 47, 48.

A bounded buffer (labkit.channels.bounded_buffer) in a segment, with three semaphores in a set: free slots, filled
slots, and a mutex. Many senders and many receivers. A sender that is killed with the mutex in its hand gives it
back: the kernel keeps an undo value of each semaphore for each process (SEM_UNDO). One that is only stopped
(SIGSTOP) keeps it, and all others wait.

The segment has the same key as the set. Neither goes with its last user: labkit removes them when they have no name,
also after kill -9 (labkit.channels.notes), and `unlink` does when they have one. Blocked users then learn at once
that the set is gone (EIDRM); the memory itself goes when the last process has detached it.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from labkit.channels import notes
from labkit.channels.base import Closed, Facts, Lifeline, arrived_lifeline, travelling, unavailable
from labkit.channels.bounded_buffer import (
    MAX_MESSAGE,
    MAX_MESSAGES,
    SYSV,
    BufferEnd,
    BufferReceiver,
    BufferSender,
    bytes_for,
    half_made,
    lay_out,
)
from labkit.channels.buffer_entry import (
    BACK,
    ERRNO,
    FILLED_SLOTS,
    FREE_SLOTS,
    GIVE,
    IPC_NOWAIT,
    MUTEX,
    SEM_UNDO,
    SET,
    TAKE,
)
from labkit.channels.notes import IPC_CREAT, IPC_EXCL, IPC_STAT, Note
from labkit.libc import failed, ffi, libc, timespec

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=False,
    pollable=False,
    duplex=False,
    related_only=False,
    many_senders=True,
    many_receivers=True,
    reliable=True,
    handed_over=True,
    persistence="kernel",
    max_message=MAX_MESSAGE,
    namespaced_by="ipc",
    copies=2,
    manual="shmget(2)",
)

OBJECTS = ("shm", "sem")
SETALL = 17


def open(*, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES) -> tuple[SegmentSender, SegmentReceiver]:
    """A new buffer without a name, for a process and its children.

    Args:
        max_message: bytes in the largest message.
        max_messages: how many messages the buffer holds before send waits, at most 32,767.

    Raises:
        ValueError: an option is out of range.
        OSError: ENOSPC or ENOMEM, the machine has no room for another segment or semaphore set.
    """
    bytes_for(max_message, max_messages)
    note = Note.unnamed(*OBJECTS)
    things: list[Any] = [note]
    try:
        _make(note, max_message, max_messages)
        things.append(note.clone())
        things += Lifeline.pair()
        return SegmentSender(note, things[2]), SegmentReceiver(things[1], things[3])
    except BaseException:
        for thing in reversed(things):
            thing.close()
        raise


def open_named(
    name: str, *, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES
) -> tuple[SegmentSender, SegmentReceiver]:
    """A new buffer that unrelated processes find by its name. It stays until `unlink`; its ends tell nobody of closing.

    Raises:
        FileExistsError: there is a buffer of this name.
    """
    bytes_for(max_message, max_messages)
    with notes.making("sysv_shm"):
        tx = _named(SegmentSender, name, max_message, max_messages, only_new=True)
        second = None
        try:
            second = tx.note.clone()
            return tx, SegmentReceiver(second)
        except BaseException:
            if second:
                second.close()
            notes.remove_objects(OBJECTS, tx.note.key)
            tx.note.path.unlink(missing_ok=True)
            tx.close()
            raise


def open_sender(
    name: str, create: bool = False, *, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES
) -> SegmentSender:
    """The sending end of a buffer with a name. Raises FileNotFoundError, unless it may be created."""
    bytes_for(max_message, max_messages)
    with notes.making("sysv_shm"):
        end: SegmentSender = _named(SegmentSender, name, max_message, max_messages, create)
        return end


def open_receiver(
    name: str, create: bool = False, *, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES
) -> SegmentReceiver:
    """The receiving end of a buffer with a name. Raises FileNotFoundError, unless it may be created."""
    bytes_for(max_message, max_messages)
    with notes.making("sysv_shm"):
        end: SegmentReceiver = _named(SegmentReceiver, name, max_message, max_messages, create)
        return end


def unlink(name: str) -> None:
    """Remove the segment and the semaphore set of this name. Who waits is told at once (EIDRM), and sees Closed.

    Raises:
        FileNotFoundError: there is none.
    """
    notes.unlink("sysv_shm", name, *OBJECTS)


def _named(
    end: Any, name: str, max_message: int, max_messages: int, create: bool = False, only_new: bool = False
) -> Any:
    key = notes.key_of("sysv_shm", name)
    found = [notes.find(kind, key) is not None for kind in OBJECTS]
    there = all(found) and not half_made(attach(notes.find("shm", key)))
    if there and only_new:
        raise FileExistsError(errno.EEXIST, "there is a System V segment of this name already", name)
    if not (there or create or only_new):
        text = 'no System V segment of this name; channel("sysv_shm", name=...) makes one'
        raise FileNotFoundError(errno.ENOENT, text, name)
    note = Note.named("sysv_shm", name, *OBJECTS)
    try:
        if not there:
            notes.remove_objects(OBJECTS, key)  # what a killed maker left half made: nobody else makes one just now
            _make(note, max_message, max_messages)
        return end(note)
    except BaseException:
        note.close()
        if not there:
            notes.remove_objects(OBJECTS, key)
            note.path.unlink(missing_ok=True)
        raise


def _make(note: Note, max_message: int, max_messages: int) -> None:
    """Make the segment and the set, ready last."""
    flags = IPC_CREAT | IPC_EXCL | 0o600
    segment = libc.shmget(note.key, bytes_for(max_message, max_messages), flags)
    if segment < 0:
        raise _unavailable("shmget", "segments or their bytes (kernel.shmmni, shmmax, shmall)")
    semaphores = libc.semget(note.key, 3, flags)
    if semaphores < 0:
        raise _unavailable("semget", "semaphore sets or semaphores (kernel.sem)")
    values = ffi.new("unsigned short[3]")
    values[FREE_SLOTS], values[FILLED_SLOTS], values[MUTEX] = max_messages, 0, 1
    if libc.semctl(semaphores, 0, SETALL, values) != 0:
        raise failed("semctl(SETALL)")
    lay_out(attach(segment), SYSV, max_message, max_messages)


def _unavailable(call: str, limit: str) -> OSError:
    number = ffi.errno
    advice = {
        errno.ENOSPC: f"the machine is at its limit of {limit}: `ipcs` lists them, `labkit clean` removes labkit's own",
        errno.EINVAL: f"that is beyond the machine's limit of {limit}: ask for fewer or smaller messages",
        errno.ENOMEM: "there is no memory for it: ask for fewer or smaller messages",
        errno.ENOSYS: "this kernel has no System V IPC (CONFIG_SYSVIPC): use posix_shm instead",
        errno.EPERM: "a sandbox may forbid it: use posix_shm instead",
    }.get(number, f"see {call}(2)")
    return unavailable(call, number, advice)


def attach(segment: int | None) -> np.ndarray:
    """A segment as 64-bit words; it is detached when nobody refers to them any more.

    Raises:
        FileNotFoundError: it has been removed.
        OSError: it cannot be attached.
    """
    state = ffi.new("unsigned long[]", 64)  # struct shmid_ds: 48 bytes of struct ipc_perm, then the size
    address = libc.shmat(segment, ffi.NULL, 0) if segment is not None else ffi.cast("void *", -1)
    if address == ffi.cast("void *", -1):
        if segment is None or ffi.errno in notes.GONE:
            raise FileNotFoundError(errno.ENOENT, "this System V segment has been removed")
        raise failed("shmat")
    memory = ffi.gc(ffi.cast("char *", address), libc.shmdt)
    if libc.shmctl(segment, IPC_STAT, state) != 0:
        raise failed("shmctl(IPC_STAT)")
    size = int(state[6]) // 8 * 8
    return np.frombuffer(ffi.buffer(memory, size), np.int64) if size else np.zeros(0, np.int64)


def _operations(*operations: tuple[int, int, int]) -> np.ndarray:
    """Of struct sembuf: number, operation, flags."""
    return np.array(operations, np.int16).view(np.uint8).reshape(-1)


def _take(one: int, flags: int) -> np.ndarray:
    return _operations((one, -1, flags), (MUTEX, -1, flags))


def _give(one: int, other: int) -> np.ndarray:
    """What has been taken is not given back but turned into the other; the kernel has nothing left to undo then."""
    return _operations((one, 1, SEM_UNDO), (one, -1, 0), (MUTEX, 1, SEM_UNDO), (other, 1, 0))


class _SegmentEnd(BufferEnd):
    """What both ends hold: the note, by whose key segment and set are found, and what BufferEnd holds."""

    kind, facts = "sysv_shm", FACTS
    guard = SYSV

    @staticmethod
    def aftermath() -> None:
        notes.sweep()

    entry: str
    takes: int
    gives: int

    def __init__(self, note: Note, lifeline: Lifeline | None = None):
        self.note = note
        words = attach(notes.find("shm", note.key))
        semaphores = notes.find("sem", note.key)
        if semaphores is None:
            raise FileNotFoundError(errno.ENOENT, "this System V semaphore set has been removed")
        self._semaphores = semaphores
        self._begin(words, lifeline, self.entry)
        self._state[SET // 8] = semaphores
        private = self._state.view(np.uint8)
        for at, operations in (
            (TAKE, _take(self.takes, SEM_UNDO | IPC_NOWAIT)),
            (GIVE, _give(self.takes, self.gives)),
            (BACK, _operations((self.takes, 1, SEM_UNDO), (MUTEX, 1, SEM_UNDO))),
        ):
            private[at : at + len(operations)] = operations
        # To wait until one could take: down and up again at once, so that whoever is interrupted holds nothing.
        waits = _operations((self.takes, -1, 0), (self.takes, 1, 0), (MUTEX, -1, 0), (MUTEX, 1, 0))
        self._waits = ffi.from_buffer("struct sembuf[]", waits)

    def clone(self) -> Any:
        self._must_be_open()
        return type(self)(self.note.clone(), self.lifeline and self.lifeline.clone())

    def _farewell(self) -> None:
        self.note.close()  # who is the last removes segment and set

    def _let_go(self) -> None:
        self.note.let_go()
        self._end()

    def __reduce__(self) -> Any:
        lifeline = self.lifeline and travelling(self.lifeline.fileno())
        return _arrives, (type(self), self.note, lifeline)

    def _sleep(self, seconds: float) -> None:
        number = int(self._state[ERRNO // 8])
        if number in (0, errno.EAGAIN):  # 0: another thread has used this end meanwhile
            if libc.semtimedop(self._semaphores, self._waits, len(self._waits), timespec(seconds)) == 0:
                return
            number = ffi.errno
        if number in notes.GONE:
            raise Closed("this buffer has been removed (EIDRM): unlink, or ipcrm(1)")
        if number not in (errno.EAGAIN, errno.EINTR):
            raise failed("semop", number=number)


class SegmentSender(_SegmentEnd, BufferSender):
    entry, takes, gives = "sysv_send", FREE_SLOTS, FILLED_SLOTS


class SegmentReceiver(_SegmentEnd, BufferReceiver):
    entry, takes, gives = "sysv_receive", FILLED_SLOTS, FREE_SLOTS


def _arrives(end: Any, note: Note, lifeline: Any) -> Any:
    return end(note, lifeline and arrived_lifeline(lifeline))
