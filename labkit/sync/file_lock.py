"""File locks: flock(2), fcntl(2) "Advisory record locking" and "Open file description locks". TLPI ch. 55.

Three kinds that lock the whole file, all advisory, all released by the kernel when their holder dies, kill -9 included:

    how       belongs to                 so that
    "flock"   an open file description   dup(2) and fork(2) share it; who opens the file anew contends, threads too
    "ofd"     an open file description   the same; record locks, and known to "fcntl", which "flock" is not
    "fcntl"   a process (and file)       not inherited by fork(2); threads do not contend; lost as soon as the process
                                         closes *any* descriptor of the file, even one that a library had opened

"fcntl" is the POSIX one, and the one that databases use; the trap with closing is why Linux got "ofd".

A lock that is handed to `launch` opens the same file anew in the child: the two contend. What fork(2) and dup(2) do is
to be seen with `os.fork` and `os.dup(lock.fileno())`.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from labkit.channels.base import DEFAULT_TIMEOUT, Waiter, arrived, travelling
from labkit.libc import failed, ffi, libc
from labkit.sync.interrupt import interruptible
from labkit.sync.shared import Held, Shared

How = Literal["flock", "fcntl", "ofd"]
_COMMANDS = {  # try, wait, ask
    "fcntl": (fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_GETLK),
    "ofd": (fcntl.F_OFD_SETLK, fcntl.F_OFD_SETLKW, fcntl.F_OFD_GETLK),
}
_BUSY = (errno.EAGAIN, errno.EACCES, errno.EINTR)


class FileLock(Held, Shared):
    """A lock on a file, which is made when it is not there. `with lock:` takes it exclusively and gives it back.

    To acquire what one holds already changes its kind, exclusive or shared: the kernel counts nothing. When that fails
    because others hold it too, "flock" has lost what it held, flock(2); "fcntl" and "ofd" keep it.

    Args:
        path: the file. It is never written to and never removed.
        how: "flock", "fcntl" or "ofd".

    Raises:
        ValueError: there is no such kind.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], how: How = "flock"):
        self.closed = True  # until it is there
        if how not in ("flock", *_COMMANDS):
            raise ValueError(f'a file lock is "flock", "fcntl" or "ofd", not {how!r}')
        self.path, self.how = os.path.abspath(path), how
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as reason:
            if reason.errno not in (errno.EACCES, errno.EROFS):
                raise
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # enough for flock, and for shared locks
        self.closed = False

    def acquire(self, timeout: float | None = DEFAULT_TIMEOUT, shared: bool = False) -> None:
        """Take the lock, waiting while others hold one that excludes it.

        Args:
            timeout: seconds to wait; 0 never waits, None waits for ever.
            shared: take it together with others that share it, for reading; nobody has it exclusively meanwhile.

        Raises:
            TimeoutError: others kept it.
            ValueError: it would have to wait a negative time, or it is closed.
            OSError: EDEADLK, the other waits for us (the kernel sees this for "fcntl" only); EBADF, an exclusive
                "fcntl" or "ofd" lock needs a file that we may write.
        """
        self._must_be_open()
        attempt, wait = self._calls(shared)
        if attempt() == 0:
            return
        if ffi.errno not in _BUSY:
            raise self._failed(ffi.errno)
        waiter = Waiter(timeout)
        try:
            interruptible(self.how, wait, waiter, f"somebody kept {self.path} locked", gone=self._must_be_open)
        except TimeoutError:
            raise
        except OSError as reason:
            self._must_be_open()
            raise self._failed(reason.errno or 0) from None

    def release(self) -> None:
        """Give the lock back. Nothing happens when it is not held."""
        self._must_be_open()
        if self.how == "flock":
            result = libc.flock(self.fd, fcntl.LOCK_UN)
        else:
            result = libc.fcntl(self.fd, _int(_COMMANDS[self.how][0]), _record(fcntl.F_UNLCK))
        if result != 0:
            raise self._failed(ffi.errno)

    def holder(self) -> int | None:
        """Pid of one who holds a lock that would exclude ours, as far as the kernel tells; None when it does not.

        It tells for "fcntl" (F_GETLK) and "flock" (/proc/locks), not for "ofd", which belongs to no process.
        """
        self._must_be_open()
        if self.how == "flock":
            return _flock_holder(self.fd)
        record = _record(fcntl.F_WRLCK)
        if libc.fcntl(self.fd, _int(_COMMANDS[self.how][2]), record) != 0:
            raise self._failed(ffi.errno)
        return record.l_pid if record.l_type != fcntl.F_UNLCK and record.l_pid > 0 else None

    def fileno(self) -> int:
        """The descriptor of the locked file."""
        self._must_be_open()
        return self.fd

    def _calls(self, shared: bool) -> tuple[Callable[[], int], Callable[[], int]]:
        """The call that never waits, and the one that does."""
        fd = self.fd
        if self.how == "flock":
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            return (lambda: libc.flock(fd, kind | fcntl.LOCK_NB)), (lambda: libc.flock(fd, kind))
        attempt, wait, _ = map(_int, _COMMANDS[self.how])
        record = _record(fcntl.F_RDLCK if shared else fcntl.F_WRLCK)
        return (lambda: libc.fcntl(fd, attempt, record)), (lambda: libc.fcntl(fd, wait, record))

    def _failed(self, number: int) -> OSError:
        advice = {
            errno.EDEADLK: "the holder of this lock waits for one of ours: give that back first",
            errno.EBADF: 'an exclusive lock of this kind needs a file that we may write: use how="flock"',
            errno.ENOLCK: "the kernel has no room for more locks, or the file system has none",
            errno.ENOSYS: "this kernel or sandbox does not have such locks",
            errno.EINVAL: "this kernel or sandbox does not have such locks",
        }.get(number, "see flock(2), fcntl(2)")
        return failed(self.how, advice, number)

    def _let_go(self) -> None:
        os.close(self.fd)

    def _state(self) -> str:
        return f"{self.how} of {self.path}"

    def __reduce__(self) -> Any:
        self._must_be_open()
        return _arrives, (travelling(self.fd), self.path, self.how)


def _arrives(ticket: Any, path: str, how: How) -> FileLock:
    fd = arrived(ticket)
    try:  # a descriptor that was sent shares its lock; the same file opened anew contends
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        self = FileLock.__new__(FileLock)
        self.closed = True
        self.fd = os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC)
    finally:
        os.close(fd)
    self.path, self.how, self.closed = path, how, False
    return self


def _int(number: int) -> Any:
    return ffi.cast("int", number)


def _record(kind: int) -> Any:
    """A lock of this kind on the whole file."""
    return ffi.new("struct flock *", {"l_type": kind, "l_whence": os.SEEK_SET})


def _flock_holder(fd: int) -> int | None:
    """Who holds a flock on this file: proc_locks(5)."""
    found = os.fstat(fd)
    file = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()  # 1: FLOCK ADVISORY WRITE pid device:inode start end; a waiter has -> after its number
        if fields[1] == "FLOCK" and fields[5] == file and int(fields[4]) > 0:
            return int(fields[4])
    return None
