"""POSIX shared memory: shm_overview(7), shm_open(3), mmap(2), guarded by semaphores: sem_overview(7). TLPI ch. 53, 54.

A bounded buffer (labkit.channels.bounded_buffer) in an object of /dev/shm, a file system in memory, with two unnamed
POSIX semaphores in the memory itself. One sender and one receiver.

Without a name the object's own name is removed at once: the memory goes with its last user, however that ends. With a
name it stays until it is unlinked or the machine is restarted (kernel persistence). Its size is reserved when it is
made, so that a full /dev/shm is an error then. Somebody who truncates it later turns an access into a SIGBUS: unlike a
memfd (shm_ring) it cannot be sealed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from typing import Any

import posix_ipc

from labkit.channels import notes
from labkit.channels.base import Facts, kind_dir, one_word, unavailable
from labkit.channels.bounded_buffer import (
    MAX_MESSAGE,
    MAX_MESSAGES,
    FileReceiver,
    FileSender,
    bytes_for,
    file_pair,
    half_made,
    make_in_file,
    map_words,
)

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=False,
    pollable=False,
    duplex=False,
    related_only=False,
    many_senders=False,
    many_receivers=False,
    reliable=True,
    handed_over=True,
    persistence="kernel",
    max_message=MAX_MESSAGE,
    namespaced_by="mount",
    copies=2,
    manual="shm_overview(7)",
)


class ShmSender(FileSender):
    kind, facts = "posix_shm", FACTS


class ShmReceiver(FileReceiver):
    kind, facts = "posix_shm", FACTS


def open(*, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES) -> tuple[ShmSender, ShmReceiver]:
    """A new buffer without a name, for a process and its children.

    Args:
        max_message: bytes in the largest message.
        max_messages: how many messages the buffer holds before send waits.

    Raises:
        ValueError: an option is out of range.
        OSError: ENOSPC, there is not so much room in /dev/shm.
    """
    bytes_for(max_message, max_messages)
    path = f"/labkit-{os.getpid()}-{secrets.token_hex(8)}"
    fd = _create(path, max_message, max_messages)
    posix_ipc.unlink_shared_memory(path)
    ends: tuple[ShmSender, ShmReceiver] = file_pair(ShmSender, ShmReceiver, fd)
    return ends


def open_named(
    name: str, *, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES
) -> tuple[ShmSender, ShmReceiver]:
    """A new buffer that unrelated processes find by its name. It stays until `unlink`; its ends tell nobody of closing.

    Raises:
        FileExistsError: there is an object of this name.
    """
    bytes_for(max_message, max_messages)
    with notes.making("posix_shm"):
        _make(name, max_message, max_messages)
        with contextlib.ExitStack() as undo:
            undo.callback(_unlink, name)
            tx = _open(ShmSender, name)
            undo.callback(tx.close)
            rx = _open(ShmReceiver, name)
            undo.pop_all()
            return tx, rx


def open_sender(
    name: str, create: bool = False, *, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES
) -> ShmSender:
    """The sending end of a buffer with a name. Raises FileNotFoundError, unless it may be created."""
    end: ShmSender = _found_or_made(ShmSender, name, create, max_message, max_messages)
    return end


def open_receiver(
    name: str, create: bool = False, *, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES
) -> ShmReceiver:
    """The receiving end of a buffer with a name. Raises FileNotFoundError, unless it may be created."""
    end: ShmReceiver = _found_or_made(ShmReceiver, name, create, max_message, max_messages)
    return end


def unlink(name: str) -> None:
    """Remove the buffer's name; the memory goes with its last user. Raises FileNotFoundError when there is none."""
    with notes.making("posix_shm"):
        _unlink(name)


def _unlink(name: str) -> None:
    path = f"/{one_word(name)}"
    (kind_dir("posix_shm") / path[1:]).unlink(missing_ok=True)
    try:
        posix_ipc.unlink_shared_memory(path)
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(errno.ENOENT, "no POSIX shared memory of this name", name) from None
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, "this POSIX shared memory belongs to somebody else", name) from None


def _found_or_made(end: Any, name: str, create: bool, max_message: int, max_messages: int) -> Any:
    bytes_for(max_message, max_messages)
    with notes.making("posix_shm"):
        if create:
            with contextlib.suppress(FileExistsError):
                _make(name, max_message, max_messages)
        return _open(end, name)


def _make(name: str, max_message: int, max_messages: int) -> None:
    """Make a buffer with a name. One that its maker's death left half made is made again; others are left alone."""
    path = f"/{one_word(name)}"
    note = kind_dir("posix_shm") / path[1:]
    if note.exists():  # made by labkit, and nobody makes one just now
        with contextlib.suppress(FileNotFoundError):
            fd = _descriptor(name)
            try:
                if half_made(map_words(fd)):
                    posix_ipc.unlink_shared_memory(path)
            finally:
                os.close(fd)
    new = not note.exists()
    note.touch(mode=0o600)  # first, so that nothing is ever made without a note
    try:
        os.close(_create(path, max_message, max_messages))
    except BaseException:
        if new:
            note.unlink(missing_ok=True)
        raise


def _create(path: str, max_message: int, max_messages: int) -> int:
    """A descriptor of a new object with a buffer in it."""
    try:
        fd: int = posix_ipc.SharedMemory(path, posix_ipc.O_CREX, mode=0o600).fd
    except posix_ipc.ExistentialError:
        if not os.path.isdir("/dev/shm"):
            raise unavailable("shm_open", errno.ENOENT, "there is no /dev/shm: use mmap_file or shm_ring") from None
        raise FileExistsError(errno.EEXIST, "there is POSIX shared memory of this name already", path) from None
    except posix_ipc.PermissionsError:
        raise unavailable("shm_open", errno.EACCES, "may we write in /dev/shm? ls -ld /dev/shm tells") from None
    except OSError as reason:
        raise _refused(reason) from reason
    try:
        make_in_file(fd, max_message, max_messages)
        return fd
    except BaseException:
        posix_ipc.unlink_shared_memory(path)
        os.close(fd)
        raise


def _open(end: Any, name: str) -> Any:
    fd = _descriptor(name)
    try:
        return end(fd, only_one=True)
    except BaseException:
        os.close(fd)
        raise


def _descriptor(name: str) -> int:
    """A descriptor of an existing object of ours."""
    try:
        fd: int = posix_ipc.SharedMemory(f"/{one_word(name)}").fd
    except posix_ipc.ExistentialError:
        text = 'no POSIX shared memory of this name; channel("posix_shm", name=...) makes it'
        raise FileNotFoundError(errno.ENOENT, text, name) from None
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, "this POSIX shared memory belongs to somebody else", name) from None
    except OSError as reason:
        raise _refused(reason) from reason
    if os.fstat(fd).st_uid != os.geteuid():
        os.close(fd)
        raise PermissionError(errno.EACCES, "this POSIX shared memory belongs to somebody else", name)
    return fd


def _refused(reason: OSError) -> OSError:
    if reason.errno:
        return unavailable("shm_open", reason.errno, "is /dev/shm mounted, and may we write there?")
    number = errno.EMFILE if "process" in str(reason) else errno.ENFILE  # posix_ipc says these two in words only
    return unavailable("shm_open", number, "close what is not needed, or raise the limit: ulimit -n")
