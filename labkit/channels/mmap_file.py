"""A file mapped by two processes: mmap(2), msync(2). TLPI ch. 49.

A bounded buffer (labkit.channels.bounded_buffer) in a file, guarded by two unnamed POSIX semaphores in the file itself:
sem_overview(7). One sender and one receiver. The mapping shares the kernel's page cache: nothing is written to the
disk for a message to arrive; that happens some time later, or by msync(2), which close does.

Without a name the file has none either (O_TMPFILE, open(2)) and goes with its last user, however that ends. With a
name it lies in `runtime_dir()/mmap_file` until it is unlinked; what has not been received survives all processes, and
a restart where that folder does. Its size is reserved when it is made, so that a full disk is an error then. Somebody
who truncates it later turns an access into a SIGBUS: unlike a memfd (shm_ring) a file cannot be sealed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path
from typing import Any

from labkit.channels.base import Facts, kind_dir, one_word, runtime_dir
from labkit.channels.bounded_buffer import (
    MAX_MESSAGE,
    MAX_MESSAGES,
    FileEnd,
    FileReceiver,
    FileSender,
    bytes_for,
    file_pair,
    make_in_file,
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
    persistence="file system",
    max_message=MAX_MESSAGE,
    namespaced_by="mount",
    copies=2,
    manual="mmap(2)",
)


class _Synced(FileEnd):
    """What has been sent is on the disk when an end has closed."""

    def _farewell(self) -> None:
        super()._farewell()
        if self._words is not None:
            mapping: Any = self._words.base
            mapping.obj.flush()  # msync(2)


class FileMapSender(_Synced, FileSender):
    kind, facts = "mmap_file", FACTS


class FileMapReceiver(_Synced, FileReceiver):
    kind, facts = "mmap_file", FACTS


def open(*, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES) -> tuple[FileMapSender, FileMapReceiver]:
    """A new buffer in a file without a name, for a process and its children.

    Args:
        max_message: bytes in the largest message.
        max_messages: how many messages the buffer holds before send waits.

    Raises:
        ValueError: an option is out of range.
        OSError: ENOSPC, the file system is full.
    """
    bytes_for(max_message, max_messages)
    fd, temporary = _new_file()
    if temporary:
        os.unlink(temporary)
    try:
        make_in_file(fd, max_message, max_messages)
    except BaseException:
        os.close(fd)
        raise
    ends: tuple[FileMapSender, FileMapReceiver] = file_pair(FileMapSender, FileMapReceiver, fd)
    return ends


def open_named(
    name: str, *, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES
) -> tuple[FileMapSender, FileMapReceiver]:
    """A new buffer that unrelated processes find by its name. It stays until `unlink`; its ends tell nobody of closing.

    Raises:
        FileExistsError: there is a file of this name.
    """
    _make(name, max_message, max_messages)
    with contextlib.ExitStack() as undo:
        undo.callback(unlink, name)
        tx = _open(FileMapSender, name)
        undo.callback(tx.close)
        rx = _open(FileMapReceiver, name)
        undo.pop_all()
        return tx, rx


def open_sender(
    name: str, create: bool = False, *, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES
) -> FileMapSender:
    """The sending end of a buffer with a name. Raises FileNotFoundError, unless it may be created."""
    bytes_for(max_message, max_messages)
    if create:
        with contextlib.suppress(FileExistsError):
            _make(name, max_message, max_messages)
    end: FileMapSender = _open(FileMapSender, name)
    return end


def open_receiver(
    name: str, create: bool = False, *, max_message: int = MAX_MESSAGE, max_messages: int = MAX_MESSAGES
) -> FileMapReceiver:
    """The receiving end of a buffer with a name. Raises FileNotFoundError, unless it may be created."""
    bytes_for(max_message, max_messages)
    if create:
        with contextlib.suppress(FileExistsError):
            _make(name, max_message, max_messages)
    end: FileMapReceiver = _open(FileMapReceiver, name)
    return end


def unlink(name: str) -> None:
    """Remove the file; its memory goes with its last user. Raises FileNotFoundError when there is none."""
    _path(name).unlink()


def _path(name: str) -> Path:
    word = one_word(name)
    return kind_dir("mmap_file") / word


def _make(name: str, max_message: int, max_messages: int) -> None:
    """Make a file with a buffer in it. It gets its name when it is ready: nobody ever sees half a buffer."""
    path = _path(name)
    bytes_for(max_message, max_messages)
    fd, temporary = _new_file()
    try:
        make_in_file(fd, max_message, max_messages)
        # A descriptor given makes it linkat(2), which follows the link in /proc.
        os.link(temporary or f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "there is a file of this name already", str(path)) from None
    finally:
        os.close(fd)
        if temporary:
            os.unlink(temporary)


def _new_file() -> tuple[int, str | None]:
    """A new file on the file system where those with names are: its descriptor, and its path if it must have one."""
    try:
        return os.open(kind_dir("mmap_file"), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), None
    except OSError as reason:
        if reason.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    return tempfile.mkstemp(prefix="labkit-mmap-", dir=runtime_dir())  # this file system has no O_TMPFILE


def _open(end: Any, name: str) -> Any:
    path = _path(name)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        text = 'no mapped file of this name; channel("mmap_file", name=...) makes one'
        raise FileNotFoundError(errno.ENOENT, text, name) from None
    try:
        return end(fd, only_one=True)
    except BaseException:
        os.close(fd)
        raise
