"""POSIX semaphore: sem_overview(7), sem_wait(3), sem_post(3). TLPI ch. 53.

A count that is never negative: `acquire` waits until it is above 0 and takes one, `release` gives one back. Anybody may
release, so that it counts things and orders processes as well as it excludes them.

Without a name it is a `sem_t` in shared memory (sem_init(3) with pshared) that is gone with its last user. With a name
it is the file /dev/shm/sem.NAME, which unrelated processes find, and which stays until it is unlinked.

The count does not know who took what: a holder that is killed leaves it taken, for ever. SysvSemaphores and FileLock
give back what a dead process held.
"""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from pathlib import Path
from typing import Any, Self

from labkit.channels.base import DEFAULT_TIMEOUT, Waiter, kind_dir, one_word, whole
from labkit.libc import HAS_SEM_CLOCKWAIT, failed, ffi, libc, timespec
from labkit.sync.interrupt import patiently
from labkit.sync.shared import Held, Page, Shared

KIND = "posix_semaphore"
LARGEST = 2**31 - 1  # SEM_VALUE_MAX
LONGEST_NAME = 250  # bytes: the file is called sem.NAME, and glibc counts the slash too


class PosixSemaphore(Held, Shared):
    """A count that processes wait for. `with semaphore:` takes one and gives it back.

    Args:
        value: how many there are to take at first, 0 to 2,147,483,647.
        name: one word, to create a semaphore that unrelated processes open with `PosixSemaphore.open(name)`.

    Raises:
        ValueError: the value or the name is not allowed.
        FileExistsError: there is a semaphore of this name already.
        OSError: the machine has no room for it; the text says what to do.
    """

    def __init__(self, value: int = 1, name: str | None = None):
        self.closed = True  # until it is there
        value = whole(value, "value")
        if not 0 <= value <= LARGEST:
            raise ValueError(f"a semaphore's value is 0 to {LARGEST:,}, not {value}")
        self.name = None if name is None else one_word(name, LONGEST_NAME)
        self._page: Page | None = None
        if self.name:
            self._semaphore = _create(self.name, value)
        else:
            self._page = Page.new()
            self._semaphore = self._page.pointer("sem_t *")
            if libc.sem_init(self._semaphore, 1, value) != 0:
                raise failed("sem_init")
        self.closed = False

    @classmethod
    def open(cls, name: str) -> Self:
        """The semaphore of this name that somebody has created.

        Raises:
            FileNotFoundError: there is none.
            PermissionError: it belongs to somebody else.
        """
        self = cls.__new__(cls)
        self.closed, self._page = True, None
        self.name = one_word(name, LONGEST_NAME)
        self._semaphore = _sem_open(self.name, 0)
        self.closed = False
        return self

    def acquire(self, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Take one, waiting while there is none.

        Args:
            timeout: seconds to wait; 0 never waits, None waits for ever.

        Raises:
            TimeoutError: there was none to take.
            ValueError: it would have to wait a negative time, or it is closed.
        """
        self._must_be_open()
        semaphore = self._semaphore  # one with a name stays mapped while we sleep
        if libc.sem_trywait(semaphore) == 0:
            return
        if ffi.errno not in (errno.EAGAIN, errno.EINTR):
            raise failed("sem_trywait")
        wait = partial(_wait, semaphore)
        patiently("sem_clockwait", wait, Waiter(timeout), "the semaphore stayed at 0", gone=self._must_be_open)

    def release(self) -> None:
        """Give one back, or put one there, and wake one that waits.

        Raises:
            OSError: EOVERFLOW, the count is at its largest.
        """
        self._must_be_open()
        if libc.sem_post(self._semaphore) != 0:
            raise failed("sem_post", f"the count is at its largest, {LARGEST:,}")

    @property
    def value(self) -> int:
        """How many there are to take at this moment."""
        self._must_be_open()
        found = ffi.new("int *")
        if libc.sem_getvalue(self._semaphore, found) != 0:
            raise failed("sem_getvalue")
        return int(found[0])

    @staticmethod
    def unlink(name: str) -> None:
        """Remove the name; who has it open goes on: sem_unlink(3).

        Raises:
            FileNotFoundError: there is no semaphore of this name.
            PermissionError: it belongs to somebody else.
        """
        bare = one_word(name, LONGEST_NAME)
        if libc.sem_unlink(_path(bare)) != 0:
            if ffi.errno in (errno.EPERM, errno.EACCES):
                raise PermissionError(errno.EACCES, "this POSIX semaphore belongs to somebody else", name)
            _note(bare).unlink(missing_ok=True)
            raise FileNotFoundError(errno.ENOENT, "no POSIX semaphore of this name", name)
        _note(bare).unlink(missing_ok=True)

    def _let_go(self) -> None:
        # Unmapped when this object is forgotten: another thread may be asleep on it.
        if self._page:
            self._page.close()
        else:
            del self._semaphore

    def _state(self) -> str:
        return (f"{self.name!r}, " if self.name else "") + f"value {self.value}"

    def __reduce__(self) -> Any:
        self._must_be_open()
        if self.name:
            return _opened, (self.name,)
        return _arrives, (self._page,)


def _opened(name: str) -> PosixSemaphore:
    return PosixSemaphore.open(name)


def _arrives(page: Page) -> PosixSemaphore:
    self = PosixSemaphore.__new__(PosixSemaphore)
    self.name, self._page, self._semaphore, self.closed = None, page, page.pointer("sem_t *"), False
    return self


def _wait(semaphore: Any, seconds: float) -> int:
    if HAS_SEM_CLOCKWAIT:
        deadline = timespec(time.monotonic() + seconds)
        return int(libc.sem_clockwait(semaphore, time.CLOCK_MONOTONIC, deadline))
    # This clock can be set: then this turn is shorter or longer, and the next one is right again.
    return int(libc.sem_timedwait(semaphore, timespec(time.time() + seconds)))


def _create(name: str, value: int) -> Any:
    note = _note(name)
    noted = note.exists()
    note.touch(mode=0o600)  # first, so that nothing can be left that is not noted
    try:
        ffi.release(_sem_open(name, os.O_CREAT | os.O_EXCL, value))
        # The C library makes it under another name first, which is what /proc/<pid>/maps goes on to say: opened again
        # by its own name, `labkit clean` sees that we use it.
        return _sem_open(name, 0)
    except BaseException:
        if not noted:
            note.unlink(missing_ok=True)
        raise


def _sem_open(name: str, flags: int, value: int = 0) -> Any:
    """A pointer to the semaphore, closed when it is forgotten."""
    semaphore = libc.sem_open(_path(name), flags, ffi.cast("mode_t", 0o600), ffi.cast("unsigned int", value))
    if semaphore != ffi.NULL:
        return ffi.gc(semaphore, libc.sem_close)
    number = ffi.errno
    if number == errno.EEXIST:
        raise FileExistsError(number, "there is a POSIX semaphore of this name already", name)
    if number == errno.ENOENT and not flags:
        raise FileNotFoundError(
            number, "no POSIX semaphore of this name; PosixSemaphore(value, name=...) makes one", name
        )
    if number == errno.EACCES and not flags:
        raise PermissionError(number, "this POSIX semaphore belongs to somebody else", name)
    advice = {
        errno.ENOSPC: "/dev/shm is full: `labkit clean` removes what labkit left there",
        errno.EMFILE: "this process has too many files open (ulimit -n)",
        errno.EACCES: "may we write in /dev/shm? ls -ld /dev/shm tells",
        errno.EROFS: "nobody may write in /dev/shm: use a semaphore without a name",
        errno.ENOENT: "/dev/shm is not there: use a semaphore without a name",
        errno.ENOSYS: "/dev/shm is not there: use a semaphore without a name",
        errno.EINVAL: "this file is not a semaphore of this C library",
    }.get(number, "see sem_open(3)")
    raise failed("sem_open", advice, number)


def _path(name: str) -> bytes:
    return b"/" + os.fsencode(name)


def _note(name: str) -> Path:
    """Where labkit remembers that it made the semaphore, for `labkit clean`."""
    return kind_dir(KIND) / name
