"""System V semaphore set: sysvipc(7), semget(2), semop(2), semctl(2). TLPI ch. 47.

A set of counts. One `ops` call does several operations on them at once: all or none, so that two things can be taken
without the deadlock of taking one after the other. Each operation adds to a count (never below 0: it waits), or, with
a delta of 0, waits until the count is 0.

With `undo` (SEM_UNDO) the kernel keeps book for each process, and takes back what it did when it ends, whatever it died
of: a killed holder's semaphores come back. That is right for locks and wrong for counting messages, which do not come
back with their sender.

A set is not a file. Without a name it is removed by its last user in labkit, or, when that was killed, by the next use
of System V objects (labkit.channels.notes). With a name it stays until it is unlinked.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from labkit.channels import notes
from labkit.channels.base import DEFAULT_TIMEOUT, Waiter, one_word, whole
from labkit.libc import failed, ffi, libc, timespec
from labkit.sync.interrupt import patiently
from labkit.sync.shared import Held, Shared

KIND = "sysv_semaphore"
LARGEST = 32767  # SEMVMX
IPC_NOWAIT, SEM_UNDO = 0o4000, 0x1000
GETPID, GETVAL, GETALL, GETNCNT, GETZCNT, SETVAL, SETALL = range(11, 18)

# struct semid_ds as 64-bit words: when somebody last used the set, and how many semaphores it has.
_OTIME, _COUNT = 6, 10 if os.uname().machine == "x86_64" else 8

Operation = tuple[int, int, bool]
"""Index in the set, what to add (0: wait for zero), and whether it is undone when the process ends."""


class SysvSemaphores(Held, Shared):
    """A set of counts that processes wait for. `with semaphores:` takes one of the first and gives it back.

    Args:
        values: the counts at first, each 0 to 32,767.
        name: one word, to create a set that unrelated processes open with `SysvSemaphores.open(name)`.
        undo: whether what a process took or gave comes back when it ends.

    Raises:
        ValueError: the values or the name are not allowed.
        FileExistsError: there is a set of this name already.
        OSError: the machine's limits do not allow it; the text says which.
    """

    def __init__(self, values: Sequence[int] = (1,), name: str | None = None, undo: bool = True):
        self.closed = True  # until it is there
        self._spare: notes.Note | None = None
        values = _checked(values)
        self.name, self.undo = None if name is None else one_word(name), undo
        if self.name:
            with notes.making(KIND):
                self._note = notes.Note.named(KIND, self.name, "sem")
                try:
                    if _find(self._note.key) is not None:
                        raise FileExistsError(errno.EEXIST, "there is a System V semaphore set of this name", name)
                    self.id = create(self._note.key, values)
                except BaseException as reason:
                    if not isinstance(reason, FileExistsError | PermissionError):
                        self._note.path.unlink(missing_ok=True)
                    self._note.let_go()
                    raise
        else:
            self._note = notes.Note.unnamed("sem")
            try:
                self.id = create(self._note.key, values)
            except BaseException:
                self._note.close()
                raise
        self.count = len(values)
        self.closed = False

    @classmethod
    def open(cls, name: str, undo: bool = True) -> Self:
        """The set of this name that somebody has created.

        Raises:
            FileNotFoundError: there is none.
            PermissionError: it belongs to somebody else.
        """
        name = one_word(name)
        with notes.making(KIND):
            semid = _find(notes.key_of(KIND, name))
            if semid is None:
                raise FileNotFoundError(
                    errno.ENOENT,
                    "no System V semaphore set of this name; SysvSemaphores(values, name=...) makes one",
                    name,
                )
            return cls._of(semid, notes.Note.named(KIND, name, "sem"), name, undo)

    @classmethod
    def _of(cls, semid: int, note: notes.Note, name: str | None, undo: bool) -> Self:
        self = cls.__new__(cls)
        self.closed = False
        self.id, self.name, self.undo, self._note, self._spare = semid, name, undo, note, None
        self.count = _status(semid)[_COUNT]
        return self

    def ops(self, operations: Iterable[Operation], timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Do several operations at once, waiting until all of them can be done: semop(2).

        Args:
            operations: (index, what to add, whether to undo it at the process's end); to add 0 waits for zero.
            timeout: seconds to wait; 0 never waits, None waits for ever.

        Raises:
            TimeoutError: they could not be done; none of them was.
            ValueError: an index or an amount is out of range, or it would have to wait a negative time.
            OSError: ERANGE, a count would be above 32,767; EIDRM, somebody has removed the set.
        """
        self._must_be_open()
        operations = list(operations)
        for index, _, _ in operations:
            self._must_have(index)
        if operations:
            try:
                semop(self.id, operations, timeout, "the semaphores stayed taken", gone=self._must_be_open)
            except OSError:
                self._must_be_open()  # the last to close it removes the set
                raise

    def acquire(self, index: int = 0, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Take one of the semaphore at `index`, waiting while there is none. Raises as `ops`."""
        self.ops([(index, -1, self.undo)], timeout)

    def release(self, index: int = 0) -> None:
        """Give one back to the semaphore at `index`, or put one there, and wake who waits."""
        self.ops([(index, +1, self.undo)], 0)

    @property
    def values(self) -> tuple[int, ...]:
        """How many there are to take at this moment, of each."""
        self._must_be_open()
        room = ffi.new("unsigned short[]", self.count)
        if libc.semctl(self.id, 0, GETALL, room) == -1:
            raise _failed("semctl(GETALL)")
        return tuple(room)

    @property
    def pids(self) -> tuple[int, ...]:
        """The process that was last to operate on each semaphore, 0 when none was."""
        return self._each(GETPID)

    @property
    def waiting(self) -> tuple[int, ...]:
        """How many processes wait for each semaphore to rise."""
        return self._each(GETNCNT)

    @staticmethod
    def unlink(name: str) -> None:
        """Remove the set of this name; who waits for it gets EIDRM, who uses it EINVAL.

        Raises:
            FileNotFoundError: there is none.
            PermissionError: it belongs to somebody else.
        """
        notes.unlink(KIND, name, "sem")

    def _each(self, command: int) -> tuple[int, ...]:
        self._must_be_open()
        found = [libc.semctl(self.id, index, command) for index in range(self.count)]
        if -1 in found:
            raise _failed("semctl")
        return tuple(found)

    def _must_have(self, index: int) -> None:
        if not 0 <= index < self.count:
            raise ValueError(f"this set has {self.count} semaphores, 0 to {self.count - 1}: there is no {index}")

    def _let_go(self) -> None:
        if self._spare:
            self._spare.let_go()
        self._note.close()

    def _state(self) -> str:
        return (f"{self.name!r}, " if self.name else "") + f"values {', '.join(map(str, self.values))}"

    def __reduce__(self) -> Any:
        # The lock that says "in use" must be one that we do not hold ourselves: the child takes over a spare one.
        self._must_be_open()
        self._spare = self._spare or self._note.clone()
        return _arrives, (self.id, self._spare, self.name, self.undo)


def _arrives(semid: int, note: notes.Note, name: str | None, undo: bool) -> SysvSemaphores:
    own = note.clone()  # the one that came is shared with others that came from the same process
    note.let_go()
    semaphores = SysvSemaphores._of(semid, own, name, undo)
    # A child of multiprocess ends without Python's own exit handlers, but not without these.
    for package in ("multiprocess", "multiprocessing"):
        if util := sys.modules.get(f"{package}.util"):
            util.Finalize(semaphores, own.close, exitpriority=0)
    return semaphores


def semop(
    semid: int,
    operations: Sequence[Operation],
    timeout: float | None,
    doing: str,
    gone: Callable[[], object] | None = None,
) -> bool:
    """Do operations on the set of this identifier, all at once; False when `gone()` came true while waiting.

    Raises:
        TimeoutError: they could not be done; `doing` says what was waited for.
        ValueError, OSError: as SysvSemaphores.ops.
    """
    array = ffi.new("struct sembuf[]", len(operations))
    for place, (index, delta, undo) in zip(array, operations, strict=True):
        if not -LARGEST <= delta <= LARGEST:
            raise ValueError(f"a System V semaphore changes by at most {LARGEST:,}, not by {delta}")
        place.sem_num, place.sem_op, place.sem_flg = index, delta, IPC_NOWAIT | (SEM_UNDO if undo else 0)
    if libc.semop(semid, array, len(operations)) == 0:
        return True
    if ffi.errno != errno.EAGAIN:
        raise _failed("semop")
    waiter = Waiter(timeout)
    for place in array:
        place.sem_flg &= ~IPC_NOWAIT
    count = len(operations)
    try:
        return (
            patiently("semop", lambda left: libc.semtimedop(semid, array, count, timespec(left)), waiter, doing, gone)
            == 0
        )
    except TimeoutError:
        raise
    except OSError as reason:
        raise _failed("semop", reason.errno) from None


def create(key: int, values: Sequence[int]) -> int:
    """The identifier of a new set with this key and these counts. Raises OSError; nothing is left then."""
    semid = int(libc.semget(key, len(values), notes.IPC_CREAT | notes.IPC_EXCL | 0o600))
    if semid == -1:
        raise _failed("semget")
    try:
        if libc.semctl(semid, 0, SETALL, ffi.new("unsigned short[]", list(values))) == -1:
            raise _failed("semctl(SETALL)")
        # A set that has been used is a complete one (TLPI §47.5): use it, without a change.
        there_and_back = (-1, +1) if values[0] else (+1, -1)
        semop(semid, [(0, delta, False) for delta in there_and_back], 0, "the new semaphores")
    except BaseException:
        libc.semctl(semid, 0, notes.IPC_RMID)
        raise
    return semid


def _find(key: int) -> int | None:
    """The set with this key; one whose maker was killed before it had its values is removed."""
    semid = notes.find("sem", key)
    if semid is not None and _status(semid)[_OTIME] == 0:
        notes.remove_objects(("sem",), key)
        return None
    return semid


def _status(semid: int) -> Any:
    room = ffi.new("unsigned long[]", 16)
    if libc.semctl(semid, 0, notes.IPC_STAT, room) == -1:
        raise _failed("semctl(IPC_STAT)")
    return room


def _checked(values: Sequence[int]) -> list[int]:
    try:
        values = [whole(value, "each value") for value in values]
    except TypeError as reason:
        raise TypeError(f"values is a sequence of whole numbers, as (1,), not {values!r} ({reason})") from None
    if not values or not all(0 <= value <= LARGEST for value in values):
        raise ValueError(f"a set has at least one semaphore, and each is 0 to {LARGEST:,}, not {values}")
    return values


def _failed(call: str, number: int | None = None) -> OSError:
    number = ffi.errno if number is None else number
    msl, mns, opm, mni = _limits()
    advice = {
        errno.EIDRM: "somebody has removed these semaphores",
        errno.ENOSPC: f"the machine is at its limit of {mni} sets or {mns} semaphores (/proc/sys/kernel/sem), or of "
        "undo records: `labkit clean` removes those that labkit left",
        errno.E2BIG: f"at most {opm} operations can be done at once (/proc/sys/kernel/sem)",
        errno.EFBIG: "the set has no semaphore of that index",
        errno.ERANGE: f"a count would be above {LARGEST:,}",
        errno.EINVAL: f"somebody has removed these semaphores, or more than {msl} were asked for in one set",
        errno.EACCES: "they belong to somebody else",
        errno.EPERM: "they belong to somebody else",
        errno.ENOSYS: "this kernel or sandbox has no System V semaphores: use PosixSemaphore",
    }.get(number, "see semop(2)")
    return failed(call, advice, number)


def _limits() -> list[str]:
    """SEMMSL, SEMMNS, SEMOPM and SEMMNI of this machine: proc_sys_kernel(5)."""
    try:
        with open("/proc/sys/kernel/sem") as file:
            return file.read().split()
    except OSError:
        return ["unknown"] * 4
