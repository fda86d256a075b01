"""Notes about System V objects, so that somebody removes them: sysvipc(7), flock(2). TLPI ch. 45.

A System V queue, segment or semaphore set has no descriptor: the kernel does not notice when its last user dies, and
keeps it until somebody removes it or the machine is restarted. So each object is noted in a file of `runtime_dir()`:

    sysv/msg-5f0c21aa          objects without a name; the file's name says which calls and which key find them
    sysv_mq/weather            objects with a name, which stay until they are unlinked (kernel persistence)

Why this survives kill -9, at any point:

- The note is there before the object is made, and goes after the object is removed. The object's key is chosen
  beforehand and stands in the note's name (with a name: it follows from user, kind and name). No object exists without
  a note.
- Every user of the object (each end, in each process) holds a shared flock on the note, through an open file
  description of its own, which travels with the end. The kernel drops it when the last descriptor of it has closed,
  whatever its process died of.
- Whoever gets the exclusive lock therefore proves that nobody uses the object. Each user tries when it closes; one
  that was killed cannot, and `sweep` does it instead: at the next opening of a System V object, when a job ends that
  held one, when the forkserver ends because who started it has gone, or when `labkit clean` is run. Only objects
  without a name are removed like this.
- A note just made and not yet locked may be swept. Its maker sees that its file has no name any more, and makes
  another.

Keys are 31 bits of a hash, as those of ftok(3) are, which has 24: an object of somebody else may have ours. It is then
refused, or another key is chosen; it is never used or removed, because its creator is another user.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import sys
import weakref
from pathlib import Path
from typing import Any

from labkit.channels.base import arrived, kind_dir, one_word, travelling
from labkit.channels.base import making as making  # also for those who use notes
from labkit.libc import failed, ffi, libc

UNNAMED = "sysv"
"""The folder, in `runtime_dir()`, of the notes about objects without a name."""

NAMED = {"sysv_mq": ("msg",), "sysv_shm": ("shm", "sem"), "sysv_semaphore": ("sem",)}
"""The folders of the notes about objects with a name, and which objects those are."""

IPC_CREAT, IPC_EXCL = 0o1000, 0o2000
IPC_RMID, IPC_STAT = 0, 2

CALLS = {
    "msg": (libc.msgget, (), libc.msgctl),
    "shm": (libc.shmget, (0,), libc.shmctl),
    "sem": (libc.semget, (0,), lambda sem, command, room: libc.semctl(sem, 0, command, room)),
}
"""The three kinds of objects: the call that finds one, what goes between key and flags, the call that controls it."""

GONE = (errno.EINVAL, errno.EIDRM)
"""What the calls say of an identifier whose object has been removed."""

_held: weakref.WeakSet[Note] = weakref.WeakSet()


class Note:
    """One user's hold on a noted object, or on several that belong together and have the same key.

    Args:
        path: the note.
        objects: which objects it is about, keys of `CALLS`.
        key: the key of all of them.
        fd: a descriptor of the note with a shared lock.
    """

    def __init__(self, path: Path, objects: tuple[str, ...], key: int, fd: int):
        self.path, self.objects, self.key, self.fd = path, objects, key, fd
        self._pid = os.getpid()
        _held.add(self)

    @classmethod
    def unnamed(cls, *objects: str) -> Note:
        """A note about objects that are going to be made, with a key that nothing has yet."""
        sweep()
        while True:
            key = secrets.randbelow(0x7FFFFFFF) + 1
            path = kind_dir(UNNAMED) / f"{'+'.join(objects)}-{key:08x}"
            if any(find(kind, key) is not None for kind in objects):
                continue
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                return cls(path, objects, key, _locked(path, os.O_CREAT | os.O_EXCL))

    @classmethod
    def named(cls, kind: str, name: str, *objects: str) -> Note:
        """A note about objects with a name, made when there is none. Hold `making(kind)` meanwhile."""
        sweep()
        path = kind_dir(kind) / one_word(name)
        while True:
            with contextlib.suppress(FileNotFoundError):
                return cls(path, objects, key_of(kind, name), _locked(path, os.O_CREAT))

    def clone(self) -> Note:
        """Another user's hold: a second open file description."""
        fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return Note(self.path, self.objects, self.key, fd)

    def let_go(self) -> None:
        """Another process has this hold now, or we have given the object up: nothing is removed."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Give up the hold. Who is the last one removes the objects, unless they have a name."""
        fd, self.fd = self.fd, -1
        if fd < 0:
            return
        try:
            # After a plain fork(2) parent and child share the lock, so that the child cannot tell: it leaves it.
            if self.path.parent.name == UNNAMED and os.getpid() == self._pid and _nobody_else(fd):
                _remove(self.path, self.objects, self.key)
        finally:
            os.close(fd)

    def __del__(self, _finalizing: Any = sys.is_finalizing) -> None:
        if not _finalizing():  # then _at_exit has done it
            try:  # noqa: SIM105
                self.close()
            except Exception:
                pass

    def __reduce__(self) -> Any:
        return _arrives, (str(self.path), self.objects, self.key, travelling(self.fd))


def _arrives(path: str, objects: tuple[str, ...], key: int, ticket: Any) -> Note:
    return Note(Path(path), objects, key, arrived(ticket))


def key_of(kind: str, name: str) -> int:
    """The key of what has this name: the same in all processes of one user."""
    text = f"labkit {os.geteuid()} {kind} {one_word(name)}"
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=4).digest()) >> 1 or 1


def find(kind: str, key: int) -> int | None:
    """The identifier of the object with this key, None when there is none.

    Raises:
        PermissionError: it belongs to another user.
    """
    get, between, control = CALLS[kind]
    id = int(get(key, *between, 0))
    if id < 0:
        if ffi.errno == errno.ENOENT:
            return None
        raise failed(f"{kind}get", "it belongs to somebody else" if ffi.errno == errno.EACCES else "")
    room = ffi.new("unsigned int[]", 64)  # struct ipc_perm comes first in all three: key, uid, gid, cuid, cgid, mode
    if control(id, IPC_STAT, room) != 0 and ffi.errno in GONE:
        return None  # it has just been removed
    if room[3] != os.geteuid():
        raise PermissionError(errno.EACCES, f"the System V object with key {key:#x} belongs to somebody else")
    return id


def remove_objects(objects: tuple[str, ...], key: int) -> bool:
    """Remove the objects with this key; whether there was one.

    Raises:
        PermissionError: one belongs to another user; it is not touched.
    """
    found = [(kind, find(kind, key)) for kind in objects]
    for kind, id in found:
        if id is not None and CALLS[kind][2](id, IPC_RMID, ffi.NULL) != 0 and ffi.errno not in GONE:
            raise failed(f"{kind}ctl(IPC_RMID)")
    return any(id is not None for _, id in found)


def unlink(kind: str, name: str, *objects: str) -> None:
    """Remove the objects of this name, and its note.

    Raises:
        FileNotFoundError: there are none.
        PermissionError: they belong to somebody else.
    """
    key = key_of(kind, name)
    with making(kind):
        removed = remove_objects(objects, key)
        (kind_dir(kind) / one_word(name)).unlink(missing_ok=True)
    if not removed:
        raise FileNotFoundError(errno.ENOENT, f"no {kind} of this name", name)


def sweep() -> int:
    """Remove all objects without a name whose users were all killed; returns how many others there are."""
    paths, removed = list(kind_dir(UNNAMED).iterdir()), 0
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            removed += remove_if_unused(path)
    return len(paths) - removed


def remove_if_unused(path: Path) -> bool:
    """Remove a note and its objects, with a name or without, when nobody holds it; returns whether they are gone."""
    objects, key = read(path)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        if not _nobody_else(fd):
            return False
        _remove(path, objects, key)
        return True
    finally:
        os.close(fd)


def read(path: Path) -> tuple[tuple[str, ...], int]:
    """Which objects a note is about, and their key. Raises ValueError when it is no note."""
    folder, name = path.parent.name, path.name
    if folder in NAMED:
        return NAMED[folder], key_of(folder, name)
    kinds, _, key = name.partition("-")
    objects = tuple(kinds.split("+"))
    if folder != UNNAMED or not set(objects) <= CALLS.keys():
        raise ValueError(f"not a note about System V objects: {path}")
    return objects, int(key, 16)


def _remove(path: Path, objects: tuple[str, ...], key: int) -> None:
    remove_objects(objects, key)
    path.unlink(missing_ok=True)


def _locked(path: Path, flags: int) -> int:
    """A descriptor of a note with a shared lock. Raises FileNotFoundError when it was swept before it was locked."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        if os.fstat(fd).st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, "swept before it was locked", str(path))
        return fd
    except BaseException:
        os.close(fd)
        raise


def _nobody_else(fd: int) -> bool:
    """Whether nobody else holds the note: we have the exclusive lock then, and have lost our shared one in any case."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0


@atexit.register
def _at_exit() -> None:
    """Ends that were forgotten and are still open when the process ends."""
    for note in list(_held):
        with contextlib.suppress(OSError):
            note.close()
