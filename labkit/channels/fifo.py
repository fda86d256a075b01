"""FIFO, a pipe with a name: mkfifo(3), fifo(7). TLPI §44.7.

The name is a file of a special type in `runtime_dir()/fifo`; the bytes never touch the disk. It has one receiver, which
holds a lock on it, flock(2): a second one would get parts of messages. Senders may be many, and so a message is never
larger than what the kernel takes whole: PIPE_BUF bytes (4096), less its length and the room for a trace's tag.

open(2) of the writing end fails while nobody reads (ENXIO); `open_sender` then waits. read(2) gives nothing before the
first sender has come, as it does after the last has gone; poll(2) tells the two apart, since it reports a hang-up only
after there has been a sender. A receiver that raised Closed may go on with the next sender.

The file stays until it is unlinked. One that was left behind by dead processes is empty, and is used as if it were new.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import stat
import tempfile
import time

from labkit.channels.base import DEFAULT_TIMEOUT, LOOK_AGAIN, Capacity, Facts, Waiter, making, one_word
from labkit.channels.call_entry import LENGTH_BYTES
from labkit.channels.stream import ATOMIC, StreamReceiver, StreamSender

FACTS = Facts(
    boundaries=False,
    ordered=True,
    tells_close=True,
    pollable=True,
    duplex=False,
    related_only=False,
    many_senders=True,
    many_receivers=False,
    reliable=True,
    handed_over=True,
    persistence="process",
    max_message=ATOMIC,
    namespaced_by="mount",
    copies=3,
    manual="fifo(7)",
)

FLAGS = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def open() -> tuple[FifoSender, FifoReceiver]:
    """A new FIFO whose name is gone already: its two ends, for a process and its children."""
    folder = tempfile.mkdtemp(prefix="labkit-fifo-")
    path = f"{folder}/fifo"
    with contextlib.ExitStack() as undo:
        try:
            os.mkfifo(path, 0o600)
            reading = os.open(path, os.O_RDONLY | FLAGS)
            undo.callback(os.close, reading)
            writing = os.open(path, os.O_WRONLY | FLAGS)
            undo.callback(os.close, writing)
        finally:  # two plain calls: to look through the folder would take descriptors, which may have run out
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.rmdir(folder)
        undo.pop_all()
    return FifoSender(writing), FifoReceiver(reading)


def open_named(name: str) -> tuple[FifoSender, FifoReceiver]:
    """Make the FIFO `name` and open both ends; one that no living process uses is taken over.

    Raises:
        FileExistsError: a FIFO of that name is in use, or something else has the name.
        ValueError: the name is not one word of at most 254 bytes.
    """
    rx = _receiver(name, create=True, alone=True)
    try:
        return open_sender(name, timeout=0), rx
    except BaseException:
        rx.close()
        raise


def open_sender(name: str, create: bool = False, timeout: float | None = DEFAULT_TIMEOUT) -> FifoSender:
    """The sending end, as soon as somebody receives.

    Args:
        name: of the FIFO.
        create: make it when it is not there.
        timeout: seconds to wait for a receiver; 0 never waits, None waits for ever.

    Raises:
        TimeoutError: nobody receives.
        FileNotFoundError: there is no FIFO of this name.
        FileExistsError: something else has this name.
    """
    waiter = Waiter(timeout)
    word = one_word(name)
    with making("fifo") as folder:
        if create:
            _make(word, folder)
    while True:
        with making("fifo") as folder:
            try:
                return FifoSender(_opened(word, folder, os.O_WRONLY))
            except OSError as reason:
                if reason.errno != errno.ENXIO:
                    raise
        left = None if waiter.deadline is None else waiter.deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(f"nobody has opened the FIFO {word!r} for receiving (ENXIO) for {timeout:g} s")
        time.sleep(LOOK_AGAIN if left is None else min(left, LOOK_AGAIN))


def open_receiver(name: str, create: bool = False) -> FifoReceiver:
    """The receiving end; `create` makes the FIFO when it is not there.

    Raises:
        FileNotFoundError: there is no FIFO of this name.
        FileExistsError: the FIFO has a receiver already, or something else has this name.
    """
    return _receiver(name, create, alone=False)


def unlink(name: str) -> None:
    """Remove the name; the FIFO itself goes with its last user. Raises FileNotFoundError, FileExistsError."""
    word = one_word(name)
    with making("fifo") as folder:
        if not _is_fifo(word, folder):
            raise FileNotFoundError(errno.ENOENT, "no FIFO of this name", name)
        os.unlink(word, dir_fd=folder)


def _receiver(name: str, create: bool, alone: bool) -> FifoReceiver:
    word = one_word(name)
    with making("fifo") as folder:
        if create:
            _make(word, folder)
        fd = _opened(word, folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if alone and _has_sender(fd):
                raise FileExistsError(errno.EEXIST, "a process still sends to the FIFO of this name", word)
            return FifoReceiver(fd)
        except BlockingIOError:
            os.close(fd)
            raise FileExistsError(
                errno.EEXIST, "the FIFO of this name has a receiver already, and two would tear its messages", word
            ) from None
        except BaseException:
            os.close(fd)
            raise


def _make(word: str, folder: int) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkfifo(word, 0o600, dir_fd=folder)


def _is_fifo(word: str, folder: int) -> bool:
    """Whether there is a FIFO of this name. Raises FileExistsError when it is something else."""
    try:
        found = os.lstat(word, dir_fd=folder)  # never followed, never opened: that may have effects on a device
    except FileNotFoundError:
        return False
    if not stat.S_ISFIFO(found.st_mode) or found.st_uid != os.geteuid():
        raise FileExistsError(errno.EEXIST, "something that is no FIFO of yours has this name; it is left alone", word)
    return True


def _opened(word: str, folder: int, way: int) -> int:
    if not _is_fifo(word, folder):
        raise FileNotFoundError(errno.ENOENT, 'no FIFO of this name; channel("fifo", name=...) makes one', word)
    return os.open(word, way | FLAGS, dir_fd=folder)


def _has_sender(fd: int) -> bool:
    """Whether somebody has this FIFO open for writing, or has left something. Nothing is read: it is the receiver's."""
    # poll(2) tells of a hang-up only after there has been a sender: be one for a moment.
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    return _events(fd) != select.POLLHUP  # with POLLIN something is unread, which goes with the last user


def _events(fd: int) -> int:
    """What poll(2) says of the receiving end just now."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return sum(events for _, events in poll.poll(0))


class FifoSender(StreamSender):
    kind, facts = "fifo", FACTS

    def __init__(self, fd: int, max_message: int = ATOMIC, owed: bytes = b""):
        super().__init__(fd, max_message, owed)

    @property
    def capacity(self) -> Capacity:
        return Capacity(fcntl.fcntl(self.fd, fcntl.F_GETPIPE_SZ), "bytes", LENGTH_BYTES)

    def clone(self) -> FifoSender:
        """A second sender: dup(2)."""
        self._must_be_open()
        return FifoSender(os.dup(self.fd))


class FifoReceiver(StreamReceiver):
    kind, facts = "fifo", FACTS

    def _ended(self) -> None:
        """read(2) gave nothing: nobody is there any more, or yet."""
        if _events(self.fd) & select.POLLHUP:
            super()._ended()
