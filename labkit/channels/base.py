"""The two ends of a channel, the facts a mechanism states about itself, and waiting.

Data flows left to right: a Sender sends messages, a Receiver receives them. An endpoint has one owner; `clone()` makes
a second one, as dup(2) does. Every mechanism is one file beside this one and never uses another.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import select
import socket
import stat
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleBuffer
from typing import Any, ClassVar, Literal, Self

DEFAULT_TIMEOUT = 30.0
"""Seconds that a blocking call waits unless told otherwise, so that no lab hangs for ever."""

TAG_BYTES = 8
"""Room that every mechanism leaves beyond max_message for the message id of a trace."""

CLOSED_HERE = "this end is closed: it was closed here, or given away by launch"

Message = bytes | bytearray | memoryview


class Closed(EOFError):
    """The other side has closed its end (or died): nothing more will come, or nobody would receive it."""


@dataclass(frozen=True)
class Facts:
    """What is true of a mechanism. The shared test suite checks every field both ways (TLPI, table 43-1)."""

    boundaries: bool
    """The kernel itself keeps messages apart; False for a byte stream, which labkit frames."""
    ordered: bool
    """Messages of equal priority from one sender arrive in the order in which they were sent."""
    tells_close: bool
    """The kernel itself tells the receiver that the last sender has gone, and the sender that no receiver is left."""
    pollable: bool
    """fileno() works with poll(2), epoll(7) and asyncio."""
    duplex: bool
    """The kernel object carries data both ways (labkit's ends use one)."""
    related_only: bool
    """Only processes that are handed the descriptor can use it: there is no name to find it by."""
    many_senders: bool
    """Messages of every size stay whole when several processes send."""
    many_receivers: bool
    """Several processes may receive; each message goes to one of them."""
    reliable: bool
    """Whatever send has accepted is received while the receiver lives; False where a full buffer drops messages."""
    handed_over: bool
    """When send returns the message has left the sender's process: it arrives also when that is killed next."""
    persistence: Literal["process", "kernel", "file system"]
    """How long unread messages survive: TLPI §43.2."""
    max_message: int | None
    """Bytes in the largest message with default options, None when there is no limit."""
    namespaced_by: str
    """The kind of Linux namespace that isolates it: namespaces(7)."""
    copies: int
    """Times a small message is copied between the sender's object and the receiver's: by the kernel, and around it."""
    manual: str
    """Where the kernel's own documentation is."""


@dataclass(frozen=True)
class Capacity:
    """How much a channel holds before its sender has to wait."""

    amount: int
    unit: Literal["bytes", "messages"]
    overhead: int = 0
    """Bytes that each message takes beyond its payload, at least."""


class Endpoint:
    """One end of a channel. Closing is idempotent; a closed end raises ValueError when used.

    So does a call that waits when another thread closes its end, a tenth of a second later at most.

    After a plain fork(2) the child has copies of its parent's ends, as it has of descriptors. They work, ZeroMQ's
    excepted, but they remain the parent's: closing one in the child tells the other side and removes nothing. A trace
    records nothing of what they do.
    """

    kind: ClassVar[str]
    facts: ClassVar[Facts]
    closed = False
    _pid: int  # of the process whose end this is

    def __new__(cls, *_: Any, **__: Any) -> Self:
        end = super().__new__(cls)
        end._pid = os.getpid()
        return end

    def close(self) -> None:
        """Give up this end. The other side sees end of file when the last clone has closed."""
        if self._pid != os.getpid():  # a copy made by fork(2)
            self.given_away()
        elif not self.closed:
            self.closed = True
            try:
                self._farewell()
            finally:
                self._let_go()

    def given_away(self) -> None:
        """Another process has this end now: let go of our copy without a word to the other side."""
        if not self.closed:
            self.closed = True
            self._let_go()

    def _farewell(self) -> None:
        """What is to be said to the other side before closing, beyond what the kernel says."""

    def _let_go(self) -> None:
        """Close descriptors and mappings."""
        raise NotImplementedError

    def _must_be_open(self) -> None:
        if self.closed:
            raise ValueError(CLOSED_HERE)

    @staticmethod
    def aftermath() -> None:
        """Remove what a killed process has left of such ends where the kernel does not: called when a job has ended."""

    def fileno(self) -> int:
        """The descriptor to poll, where `facts.pollable`: poll(2), selectors, asyncio.

        With asyncio, receive all that is there whenever it is readable, since one read(2) may have brought several
        messages and the descriptor is quiet about those that have been read:

            loop = asyncio.get_running_loop()

            def ready():
                try:
                    while True:
                        handle(rx.receive(timeout=0))
                except TimeoutError:                        # that was all, for now
                    pass
                except Closed:                              # else it is called again and again
                    loop.remove_reader(rx.fileno())

            loop.add_reader(rx.fileno(), ready)

        The descriptor tells of the end only where `facts.tells_close`: elsewhere agree on a last message.

        Raises:
            io.UnsupportedOperation: the mechanism has none.
        """
        raise io.UnsupportedOperation(f"{self.kind} has no descriptor that could be polled")

    def clone(self) -> Self:
        """A second end of the same kind on the same channel: dup(2)."""
        raise NotImplementedError

    def __reduce_ex__(self, protocol: Any) -> Any:
        must_be_starting()  # first of all: who is refused has to find this end as it was
        return super().__reduce_ex__(protocol)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self, _finalizing: Any = sys.is_finalizing) -> None:
        # A default argument, and no contextlib: at exit a module's names may be gone before its objects.
        if not _finalizing():
            try:  # noqa: SIM105
                self.close()
            except Exception:
                pass

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{self.kind} {type(self).__name__.lower()}, {state}>"


class Sender(Endpoint):
    """The end that sends."""

    max_message: int
    """Bytes in the largest message."""
    _limit: int  # what send itself allows: max_message, or a tag more on a traced channel

    header_bytes: ClassVar[int] = 0
    """Bytes of length that go before each message: 4 for a byte stream, whose `_write` takes messages with them."""

    _at_once: Callable[[bytes], Any] | None = None
    """Compiled: sends a message, with such a length, if it can without waiting; returns 0 when it has gone."""
    _later: Callable[[Any, bytes], None] | None = None
    """Sends the rest after that: takes what `_at_once` has returned, and the message."""

    def _allow_tag(self) -> None:
        """Take messages that a trace has made longer by its tag."""
        self._limit = self.max_message + TAG_BYTES

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Send one message.

        Args:
            message: 1 to `max_message` bytes, any contiguous bytes-like object.
            timeout: seconds to wait while the channel is full; 0 never waits, None waits for ever.

        Raises:
            TypeError: the message is not bytes-like.
            ValueError: the message is empty, it would have to wait a negative time, or this end is closed.
            OSError: EMSGSIZE, the message is larger than `max_message`. Nothing was sent, the channel stays usable.
            TimeoutError: the channel stayed full.
            Closed: nobody is left who could receive.
        """
        raise NotImplementedError

    @property
    def capacity(self) -> Capacity:
        """How much fits in before send has to wait."""
        raise NotImplementedError


class Receiver(Endpoint):
    """The end that receives. Iterating over it yields messages until the last sender has closed."""

    _at_once: Callable[[], bytes | None] | None = None
    """Compiled: the next message if there is one now, else None."""

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        """Receive the next message.

        Args:
            timeout: seconds to wait while the channel is empty; 0 never waits, None waits for ever.

        Raises:
            ValueError: it would have to wait a negative time, or this end is closed.
            TimeoutError: nothing came.
            Closed: the last sender has closed or died, and everything it sent has been received.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[bytes]:
        receive = self.receive
        with contextlib.suppress(Closed):
            while True:
                yield receive()


def as_bytes(message: Any, max_message: int) -> Message:
    """The message as something whose len() is its bytes, or the error that says what is wrong with it."""
    if not isinstance(message, bytes | bytearray):
        try:
            view = memoryview(message)
            if not view.c_contiguous:
                raise TypeError("its bytes do not lie one after the other: copy it first")
            message = PickleBuffer(view).raw()  # one byte an item, whatever the items were
        except (TypeError, ValueError) as reason:
            hint = "; encode text first: text.encode()" if isinstance(message, str) else ""
            raise TypeError(f"a message is bytes, not {type(message).__name__}{hint} ({reason})") from None
    size = len(message)
    if size == 0:
        raise ValueError("a message has at least 1 byte: an empty one could not be told from end of file")
    if size > max_message:
        raise OSError(
            errno.EMSGSIZE, f"message of {size:,} bytes is too large: this channel takes 1 to {max_message:,}"
        )
    return message


LOOK_AGAIN = 0.02
"""Seconds after which a sender looks for room by itself. Some mechanisms wake a sender only when a good part of the
buffer is free (the kernel's sockets at three quarters, unix_writable() in net/unix/af_unix.c; our ring at one half)."""

LOOK_SECONDS = 0.1
"""Seconds after which who waits looks whether another thread has closed its end meanwhile: poll(2) does not tell."""


class Waiter:
    """Waits for descriptors until a deadline: poll(2) on the monotonic clock. EINTR is retried (PEP 475)."""

    def __init__(self, timeout: float | None):
        check_timeout(timeout)
        self.timeout = None if timeout is None else float(timeout)  # a number of numpy's or a fraction does, too
        self.deadline = None if timeout is None else time.monotonic() + float(timeout)

    def wait(self, interest: dict[int, int], doing: str, at_most: float = LOOK_SECONDS) -> dict[int, int]:
        """Sleep until one of the descriptors (with the poll events of interest) is ready; returns fd -> events.

        After `at_most` seconds it returns an empty dictionary, for the caller to look again.

        Raises:
            TimeoutError: the deadline has passed; `doing` says what was being waited for.
        """
        poll = _polling(interest)
        if self.deadline is not None:
            at_most = min(at_most, max(0.0, self.deadline - time.monotonic()))
        ready = poll.poll(at_most * 1000)
        if not ready and self.deadline is not None and time.monotonic() >= self.deadline:
            raise TimeoutError(f"{doing} for {self.timeout:g} s")
        return dict(ready)


def _polling(interest: dict[int, int]) -> Any:
    """What poll(2) is to look at. Raises ValueError when another thread has closed one of the descriptors."""
    poll = select.poll()
    for fd, events in interest.items():
        if fd < 0:
            raise ValueError(CLOSED_HERE)
        poll.register(fd, events)
    return poll


class Lifeline:
    """A socket pair that lies beside a mechanism whose kernel object does not say when the other side is gone.

    Each side holds one end. The kernel closes it however the holder ends, kill -9 included, and the other side's
    poll(2) then reports a hang-up. A byte sent through it wakes the other side (a doorbell).
    """

    def __init__(self, end: socket.socket):
        self.socket = end
        end.setblocking(False)

    @classmethod
    def pair(cls) -> tuple[Lifeline, Lifeline]:
        left, right = socket.socketpair()
        return cls(left), cls(right)

    def cut(self) -> bool:
        """Whether nobody holds the other end any more."""
        return bool(_polling({self.fileno(): select.POLLRDHUP}).poll(0))

    def hear(self) -> None:
        """Take all rings that have come, so that the next wait sleeps."""
        with contextlib.suppress(OSError):
            while self.socket.recv(4096):
                pass

    def fileno(self) -> int:
        return self.socket.fileno()

    def clone(self) -> Lifeline:
        return Lifeline(self.socket.dup())

    def close(self) -> None:
        self.socket.close()


def travelling(fd: int, *, for_good: bool = False) -> Any:
    """A descriptor on its way into a child process that is being started, to be taken out with `arrived`.

    Args:
        fd: ours.
        for_good: it is meant for the child alone, and ours is closed when the child has it. `launch` knows when that
            is; other ways to start a process do not say, so that it stays open as long as their Process object.

    Raises:
        TypeError: no process is being started.
    """
    name, popen = must_be_starting()
    if for_good:
        _on_their_way.setdefault(popen, []).append(weakref.finalize(popen, os.close, fd))
    return sys.modules[f"{name}.reduction"].DupFd(fd)


def must_be_starting() -> tuple[str, Any]:
    """As `starting`, for what goes into a new process only: TypeError where none is being started."""
    start = starting()
    if start is None:
        raise TypeError(
            "what processes talk through (an end, a queue, a lock) cannot be pickled, copied or reached through a "
            "global variable of the function: hand it over as an argument, launch(f, tx)"
        )
    return start


def starting() -> tuple[str, Any] | None:
    """The process that this thread is starting: by multiprocess or multiprocessing, and its Popen object."""
    for name in ("multiprocess", "multiprocessing"):
        context = sys.modules.get(f"{name}.context")
        if context is not None and (popen := context.get_spawning_popen()) is not None:
            return name, popen
    return None


_on_their_way: weakref.WeakKeyDictionary[Any, list[Callable[[], Any]]] = weakref.WeakKeyDictionary()
"""Of each process that is being started: what closes our descriptors that are meant for it."""


def all_have_arrived(start: Any) -> None:
    """The process whose start this is, a Popen of multiprocess, has all that travelled to it."""
    for close in _on_their_way.pop(start, ()):
        close()


def _not_for_us() -> None:
    """In a child made by fork(2): what is on its way is not meant for us."""
    for start in list(_on_their_way):
        all_have_arrived(start)


os.register_at_fork(after_in_child=_not_for_us)


def arrived(ticket: Any) -> int:
    """The descriptor behind a ticket made by `travelling`, now in this process."""
    fd: int = ticket.detach()
    return fd


def arrived_lifeline(ticket: Any) -> Lifeline:
    return Lifeline(socket.socket(fileno=arrived(ticket)))


def unavailable(call: str, number: int, advice: str) -> OSError:
    """The kernel's own error with its errno, and what to do about it."""
    return OSError(number, f"{call}: {os.strerror(number)}; {advice}")


def runtime_dir() -> Path:
    """The private directory (mode 0700, ours) in which labkit notes which named kernel objects it made.

    Raises:
        PermissionError: a directory of that name is somebody else's or open to others.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")  # inherited through su or by a container, it may not exist here
    path = (
        Path(base, "labkit") if base and os.path.isdir(base) else Path(tempfile.gettempdir(), f"labkit-{os.getuid()}")
    )
    try:
        path.mkdir(mode=0o700, parents=False)
    except FileExistsError:
        pass
    except OSError as reason:
        raise _no_folder(reason.errno, path) from None
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(
            errno.EPERM, "not a private directory of yours; move it away or set XDG_RUNTIME_DIR", str(path)
        )
    return path


def kind_dir(kind: str) -> Path:
    """The private directory for what a mechanism keeps in the file system: FIFOs, sockets, files, notes.

    Raises:
        OSError: it cannot be made or written to; the text says where it would be, and how to have it elsewhere.
    """
    path = runtime_dir() / kind
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise _no_folder(errno.ENOTDIR, path) from None
        if not os.access(path, os.W_OK | os.X_OK):
            raise _no_folder(errno.EACCES, path) from None
    except OSError as reason:
        raise _no_folder(reason.errno, path) from None
    return path


def _no_folder(number: int | None, path: Path) -> OSError:
    number = number or errno.EACCES
    text = f"{os.strerror(number)}: labkit keeps names there; put it right, or set XDG_RUNTIME_DIR to a folder of yours"
    return OSError(number, text, str(path))


@contextlib.contextmanager
def making(kind: str) -> Iterator[int]:
    """While names of this kind are made or removed nobody else does: an exclusive flock on their folder.

    Yields a descriptor of the folder, for calls that take one (dir_fd).
    """
    fd = os.open(kind_dir(kind), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def whole(number: Any, what: str) -> int:
    """A whole number, or TypeError that says what should have been one."""
    if isinstance(number, bool) or not hasattr(number, "__index__"):  # True is one, and is meant as none
        raise TypeError(f"{what} is a whole number, not {number!r}")
    return int(number.__index__())


def check_timeout(timeout: float | None) -> None:
    """Raise what is wrong with a timeout: TypeError, ValueError."""
    try:
        good = timeout is None or timeout >= 0
    except TypeError:
        raise TypeError(f"timeout is seconds, or None to wait for ever, not {timeout!r}") from None
    if not good:
        raise ValueError(f"timeout must be at least 0 seconds, or None to wait for ever, not {timeout}")


def one_word(name: str, longest: int = 254) -> str:
    """The name of a channel, checked: one word, so that it can be a file name. A leading slash, as POSIX wants, goes.

    Raises:
        TypeError: it is no text.
        ValueError: it is empty, longer than `longest` bytes, or contains a slash or a NUL.
    """
    if not isinstance(name, str):
        raise TypeError(f"a name is text, not {type(name).__name__}")
    bare = name.removeprefix("/")
    if not bare or "/" in bare or "\0" in bare or bare in (".", "..") or len(os.fsencode(bare)) > longest:
        raise ValueError(f"a name is one word of 1 to {longest} bytes without a slash, not {name!r}")
    return bare
