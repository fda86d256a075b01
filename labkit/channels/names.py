"""How senders find a receiver's socket by its name: bind(2), connect(2), unix(7), ip(7). TLPI §57.2, ch. 59.

    unix_stream/weather        the socket itself, a special file: connect(2) to it
    tcp/weather                a file in which the port is noted, locked by the receiver as long as it lives: flock(2)

Both lie in `runtime_dir()`, which only their user may enter. A socket's file outlives its process when that is killed.
Whether somebody still has the socket, and so whether the name may be taken over, is found out without disturbing
anybody by connecting to it with a socket of another type: EPROTOTYPE says that somebody is there, ECONNREFUSED that
nobody is. While names are made, found or removed their folder is locked (`making`).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
import weakref
from pathlib import Path
from typing import Any

from labkit.channels.base import LOOK_AGAIN, Waiter, arrived, making, one_word, travelling

LONGEST = 80
"""Bytes in the name of a socket: unix(7) has room for a path of 107, in which the folder is given by its descriptor."""

BACKLOG = 4096  # senders that may wait to be accepted; the kernel takes at most net.core.somaxconn

_names: weakref.WeakSet[Name] = weakref.WeakSet()


class Name:
    """The hold of a receiver on the name that it has made, to be removed when it closes.

    Args:
        kind: of the channel.
        word: the name.
        identity: device and inode of its file; somebody else may have removed it and made another.
        fd: the lock on a note, -1 for a socket's file.
    """

    def __init__(self, kind: str, word: str, identity: tuple[int, int], fd: int = -1):
        self.kind, self.word, self.identity, self.fd = kind, word, identity, fd
        self._pid = os.getpid()
        _names.add(self)

    def remove(self) -> None:
        """Remove the name, if it still is the one that was made. A copy made by fork(2) has no right to."""
        with contextlib.suppress(OSError):
            if self._pid == os.getpid():
                with making(self.kind) as folder:
                    if _identity(self.word, folder) == self.identity:
                        os.unlink(self.word, dir_fd=folder)
        self.let_go()

    def let_go(self) -> None:
        """Another process has the name now."""
        fd, self.fd, self._pid = self.fd, -1, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __reduce__(self) -> Any:
        return _arrives, (self.kind, self.word, self.identity, travelling(self.fd) if self.fd >= 0 else None)


def _arrives(kind: str, word: str, identity: tuple[int, int], ticket: Any) -> Name:
    return Name(kind, word, identity, arrived(ticket) if ticket else -1)


@atexit.register
def _at_exit() -> None:
    """Names of receivers that were forgotten and are still open when the process ends."""
    for name in list(_names):
        name.remove()


def _identity(word: str, folder: int) -> tuple[int, int] | None:
    try:
        found = os.lstat(word, dir_fd=folder)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is(kind: str, word: str, folder: int, right: Any) -> bool:
    """Whether there is a file of this name, of the right type. Raises FileExistsError when it is something else."""
    try:
        found = os.lstat(word, dir_fd=folder)  # links are not followed, devices not opened
    except FileNotFoundError:
        return False
    if not right(found.st_mode) or found.st_uid != os.geteuid():
        raise FileExistsError(
            errno.EEXIST, f"something that is no name of a {kind} of yours is there; it is left alone", word
        )
    return True


def _missing(kind: str, word: str) -> FileNotFoundError:
    return FileNotFoundError(
        errno.ENOENT, f'no {kind} of this name; its receiver makes it: receiver("{kind}", name, create=True)', word
    )


def no_creation(create: bool) -> None:
    """Raises ValueError where a sender is to make a socket's name."""
    if create:
        raise ValueError("the name of a socket is made by its receiver, which others connect to: open that first")


# --- Unix domain: the socket is a file ----------------------------------------------------------------------


def bind(kind: str, type_: socket.SocketKind, name: str, create: bool) -> tuple[socket.socket, Name]:
    """A socket that is bound to the name, and listens where its type does. One of a dead process is taken over.

    Raises:
        FileExistsError: the name has a receiver, or something else has the name.
        FileNotFoundError: there is no such name, and `create` is not given.
        ValueError: the name is not one word of at most 80 bytes.
    """
    word = one_word(name, LONGEST)
    with making(kind) as folder:
        path = f"/proc/self/fd/{folder}/{word}"
        if _is(kind, word, folder, stat.S_ISSOCK):
            if answers(path, type_):
                raise FileExistsError(errno.EEXIST, f"the {kind} of this name has a receiver, which is alive", word)
            os.unlink(word, dir_fd=folder)
        elif not create:
            raise _missing(kind, word)
        end = socket.socket(socket.AF_UNIX, type_)
        try:
            os.fchmod(end.fileno(), 0o600)  # before bind(2): the file is never open to others
            end.bind(path)
            if type_ != socket.SOCK_DGRAM:
                end.listen(BACKLOG)
            identity = _identity(word, folder)
            assert identity
            return end, Name(kind, word, identity)
        except BaseException:
            end.close()
            raise


def answers(path: str | Path, type_: socket.SocketKind) -> bool:
    """Whether a living process has the socket whose file this is."""
    other = socket.SOCK_STREAM if type_ == socket.SOCK_DGRAM else socket.SOCK_DGRAM
    folder, word = os.path.split(path)
    with socket.socket(socket.AF_UNIX, other) as probe, contextlib.ExitStack() as undo:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, fd)
        try:
            probe.connect(f"/proc/self/fd/{fd}/{word}")  # however long the path is
        except ConnectionRefusedError:
            return False
        except OSError:
            pass
        return True


def connect(kind: str, type_: socket.SocketKind, name: str, timeout: float | None) -> socket.socket:
    """A socket that is connected to the name.

    Raises:
        FileNotFoundError: there is no such name.
        ConnectionRefusedError: nobody listens: its receiver has died.
        TimeoutError: its receiver accepts nobody, and no more may wait.
    """
    waiter = Waiter(timeout)
    word = one_word(name, LONGEST)
    end = socket.socket(socket.AF_UNIX, type_)
    try:
        end.setblocking(False)
        while True:
            with making(kind) as folder:
                if not _is(kind, word, folder, stat.S_ISSOCK):
                    raise _missing(kind, word)
                try:
                    end.connect(f"/proc/self/fd/{folder}/{word}")
                    return end
                except ConnectionRefusedError:
                    raise _nobody(kind, word) from None
                except BlockingIOError:  # no more may wait to be accepted, and there is nothing to poll(2) for
                    pass
            left = LOOK_AGAIN if waiter.deadline is None else waiter.deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the receiver of {word!r} accepts nobody, and no more senders may wait")
            time.sleep(min(left, LOOK_AGAIN))
    except BaseException:
        end.close()
        raise


def _nobody(kind: str, word: str) -> ConnectionRefusedError:
    return ConnectionRefusedError(
        errno.ECONNREFUSED, f"nobody listens: the receiver that made this {kind} has died; make it again", word
    )


def same_user(end: socket.socket) -> bool:
    """Whether the peer of a Unix socket is a process of ours or root's: SO_PEERCRED in unix(7)."""
    credentials = end.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    _, uid, _ = struct.unpack("iII", credentials)
    return uid in (os.geteuid(), 0)


def unlink(kind: str, name: str) -> None:
    """Remove the name of a Unix socket. Raises FileNotFoundError, FileExistsError."""
    word = one_word(name, LONGEST)
    with making(kind) as folder:
        if not _is(kind, word, folder, stat.S_ISSOCK):
            raise _missing(kind, word)
        os.unlink(word, dir_fd=folder)


# --- Internet domain: the port is noted in a file, or the name is an address --------------------------------


def address(name: str, type_: socket.SocketKind) -> tuple[socket.AddressFamily, Any] | None:
    """Family and address when the name is "host:port" or "[host]:port"; None when it is one word.

    Raises:
        ValueError: it is neither.
        OSError: there is no such host (socket.gaierror).
    """
    if not isinstance(name, str) or ":" not in name:
        one_word(name)
        return None
    host, _, port = name.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16 or "/" in host:
        raise ValueError(f'a name is one word, or an address "host:port" with a port of 1 to 65535, not {name!r}')
    family, _, _, _, found = socket.getaddrinfo(host.strip("[]"), int(port), type=type_)[0]
    return family, found


def bind_port(
    kind: str, type_: socket.SocketKind, name: str, create: bool, options: dict[int, int]
) -> tuple[socket.socket, Name | None]:
    """A socket that is bound to an address, or to a free port of the loopback interface that is noted for the name.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: as `bind`.
        OSError: EADDRINUSE, somebody has this address.
    """
    where = address(name, type_)
    if where:
        return bound(type_, *where, options), None
    word = one_word(name)
    with contextlib.ExitStack() as undo:
        folder = undo.enter_context(making(kind))
        if not _is(kind, word, folder, stat.S_ISREG) and not create:
            raise _missing(kind, word)
        note = os.open(word, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        held = os.fstat(note)
        end = None
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end = bound(type_, socket.AF_INET, ("127.0.0.1", 0), options)
            os.ftruncate(note, 0)
            os.pwrite(note, b"%d\n" % end.getsockname()[1], 0)
        except BaseException as reason:
            os.close(note)
            if end:
                end.close()
            if isinstance(reason, BlockingIOError):
                raise FileExistsError(
                    errno.EEXIST, f"the {kind} of this name has a receiver, which is alive", word
                ) from None
            os.unlink(word, dir_fd=folder)
            raise
        return end, Name(kind, word, (held.st_dev, held.st_ino), note)


def bound(type_: socket.SocketKind, family: Any, where: Any, options: dict[int, int]) -> socket.socket:
    end = socket.socket(family, type_)
    try:
        for option, value in options.items():
            end.setsockopt(socket.SOL_SOCKET, option, value)
        if type_ == socket.SOCK_STREAM:  # else the address stays taken for a minute after the last connection
            end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end.bind(where)
        if type_ == socket.SOCK_STREAM:
            end.listen(BACKLOG)
        return end
    except BaseException:
        end.close()
        raise


def port_of(kind: str, type_: socket.SocketKind, name: str) -> tuple[socket.AddressFamily, Any]:
    """Family and address of a name's receiver.

    Raises:
        FileNotFoundError: there is no such name.
        ConnectionRefusedError: its receiver has died.
    """
    where = address(name, type_)
    if where:
        return where
    word = one_word(name)
    with making(kind) as folder:
        if not _is(kind, word, folder, stat.S_ISREG):
            raise _missing(kind, word)
        note = os.open(word, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(note, fcntl.LOCK_SH | fcntl.LOCK_NB)
                raise _nobody(kind, word)  # and somebody else may have the port by now
            return socket.AF_INET, ("127.0.0.1", int(os.pread(note, 20, 0)))
        finally:
            os.close(note)


def unlink_port(kind: str, type_: socket.SocketKind, name: str) -> None:
    """Remove the note of a name. Raises FileNotFoundError, FileExistsError."""
    if address(name, type_):
        raise FileNotFoundError(errno.ENOENT, "an address is no name that could be removed: it goes with its receiver")
    word = one_word(name)
    with making(kind) as folder:
        if not _is(kind, word, folder, stat.S_ISREG):
            raise _missing(kind, word)
        os.unlink(word, dir_fd=folder)
