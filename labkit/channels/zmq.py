"""ZeroMQ's PUSH and PULL sockets over ipc://, the message library people know: zmq_socket(3), zmq_ipc(7), unix(7).

    send()  -->  queue (SNDHWM)  -->  I/O thread  -->  Unix socket  -->  I/O thread  -->  queue (RCVHWM)  -->  receive()

`send` returns when the message is in the queue of its own process: what the I/O thread has not yet written is lost when
that process is killed. close() waits until the receiver's side has all of it.

A ZeroMQ socket cannot be handed to another process. What travels is the Unix socket under it: the receiver's listens
(ZMQ_USE_FD), and a sender holds its place in the file system, so that a new ZeroMQ socket is made on either where it
arrives. What has come to a receiver goes along with it; let it travel before others send, since what is under way in
that moment may be lost: PUSH and PULL confirm nothing.

Without a name the place is one that no path leads to, so that nothing stays when everybody is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import io
import os
import secrets
import socket
import stat
import termios
import threading
import time
import weakref
from collections import deque
from typing import Any, NoReturn

import zmq
from zmq.utils.monitor import parse_monitor_message

from labkit.channels.base import (
    DEFAULT_TIMEOUT,
    LOOK_SECONDS,
    TAG_BYTES,
    Capacity,
    Closed,
    Facts,
    Lifeline,
    Message,
    Receiver,
    Sender,
    Waiter,
    arrived,
    arrived_lifeline,
    as_bytes,
    kind_dir,
    making,
    one_word,
    travelling,
)

MAX_MESSAGE = 1 << 20
MAX_MESSAGES = 1000
NOBLOCK = int(zmq.NOBLOCK)
LONGEST_NAME = 80  # a Unix socket's path has 107 bytes
FLUSH_SECONDS = 30.0
"""How long a sender that closes or travels waits until its receiver has taken everything."""
QUIET_SECONDS = 0.5  # a receiver that travels, and has senders, waits so long for messages on their way
DESCRIPTORS = 16  # that a ZeroMQ context and a socket with a monitor need; libzmq aborts the process without them

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=False,
    pollable=False,
    duplex=False,
    related_only=False,
    many_senders=True,
    many_receivers=False,
    reliable=True,
    handed_over=False,
    persistence="process",
    max_message=MAX_MESSAGE,
    namespaced_by="mount",
    copies=5,
    manual="zmq_socket(3)",
)


def open(*, max_messages: int = MAX_MESSAGES) -> tuple[ZmqSender, ZmqReceiver]:
    """A receiver and a sender that is connected to it.

    Args:
        max_messages: the high-water mark, messages that may wait on each side (zmq_setsockopt(3), ZMQ_SNDHWM).

    Raises:
        ValueError: max_messages is not positive, or more than an int.
    """
    _check(max_messages)
    name = f"labkit-{os.getpid()}-{secrets.token_hex(8)}"
    with contextlib.ExitStack() as undo:
        listener = undo.enter_context(_bound(name))
        try:
            place = _place(name)
        finally:  # its path goes at once
            (kind_dir("zmq") / name).unlink()
        undo.callback(os.close, place)
        left, right = Lifeline.pair()
        undo.callback(left.close)
        undo.callback(right.close)
        rx = ZmqReceiver(listener, max_messages, right)
        undo.pop_all()
    return ZmqSender(place, max_messages, left), rx


def open_named(name: str, *, max_messages: int = MAX_MESSAGES) -> tuple[ZmqSender, ZmqReceiver]:
    """Make the name, with its receiver in this process, and a sender. The name goes when the receiver closes.

    Raises:
        FileExistsError: there is a receiver of this name already.
        ValueError: as `open`, or the name is not one word of at most 80 bytes.
    """
    rx = open_receiver(name, create=True, max_messages=max_messages)
    try:
        return open_sender(name, max_messages=max_messages), rx
    except BaseException:
        rx.close()
        raise


def open_sender(name: str, create: bool = False, *, max_messages: int = MAX_MESSAGES) -> ZmqSender:
    """A sender to the receiver of this name.

    Raises:
        FileNotFoundError: no living process receives under this name.
        ValueError: `create`: a socket's name is made by its receiver.
    """
    name = one_word(name, LONGEST_NAME)
    _check(max_messages)
    if create:
        raise ValueError("a socket's name is made by its receiver: receiver(kind, name, create=True)")
    try:
        place = _place(name)
    except FileNotFoundError:
        place = -1
    if place < 0 or not _listens(place):
        if place >= 0:
            os.close(place)
        raise FileNotFoundError(
            errno.ENOENT, 'nobody receives under this name; receiver("zmq", name, create=True)', name
        )
    return ZmqSender(place, max_messages, None)


def open_receiver(name: str, create: bool = False, *, max_messages: int = MAX_MESSAGES) -> ZmqReceiver:
    """The receiver of this name (`create`: it makes the name, or takes over that of a dead process).

    Raises:
        FileExistsError: another process receives under this name.
        FileNotFoundError: nobody does, and `create` is not set.
    """
    name = one_word(name, LONGEST_NAME)
    _check(max_messages)
    path = kind_dir("zmq") / name
    with making("zmq"), contextlib.ExitStack() as undo:
        if os.path.lexists(path):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise FileExistsError(errno.EEXIST, "what has this name is no socket", str(path))
            old = _place(name)
            try:
                if _listens(old):
                    raise FileExistsError(errno.EEXIST, "a process receives under this name already", name)
            finally:
                os.close(old)
            if create:
                path.unlink()
        if not create:
            raise FileNotFoundError(errno.ENOENT, "nobody has made this name: create=True does", name)
        listener = undo.enter_context(_bound(name))
        undo.callback(path.unlink)
        rx = ZmqReceiver(listener, max_messages, None, str(path), path.lstat().st_ino)
        undo.pop_all()
    return rx


def unlink(name: str) -> None:
    """Remove the name; who is connected stays connected. Raises FileNotFoundError."""
    try:
        (kind_dir("zmq") / one_word(name, LONGEST_NAME)).unlink()
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no zmq channel of this name", name) from None


def _check(max_messages: int) -> None:
    if not 0 < max_messages < 1 << 31:
        raise ValueError(f"max_messages must be at least 1 and less than 2**31, not {max_messages:,}")


def _bound(name: str) -> socket.socket:
    """A Unix socket that listens under this name. The folder is named by its descriptor, to keep the path short."""
    folder = os.open(kind_dir("zmq"), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, folder)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{name}")
            os.chmod(f"/proc/self/fd/{folder}/{name}", 0o600)
            listener.listen(128)
            return listener
        except BaseException:
            listener.close()
            raise


def _place(name: str) -> int:
    """A descriptor of a socket's place in the file system, good for connecting also when its path is gone: open(2)."""
    return os.open(kind_dir("zmq") / name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)


def _listens(place: int) -> bool:
    """Whether somebody listens there still, found out with a socket of another type, which disturbs nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        return probe.connect_ex(f"/proc/self/fd/{place}") == errno.EPROTOTYPE


def _context() -> zmq.Context[Any]:
    """A context of its own for each end: zmq_ctx_term(3) then waits for this end's messages and no others."""
    spare: list[int] = []
    try:
        spare.extend(os.eventfd(0) for _ in range(DESCRIPTORS))  # EMFILE here is an exception, there it is the end
    finally:
        for fd in spare:
            os.close(fd)
    return zmq.Context()


_in_use: set[Any] = set()
"""What ends need for closing. The collector of cycles calls finalizers in any order; from here none of these is garbage
before its end is. A context's own finalizer would wait for ever for a socket that is still open."""

_here = os.getpid()  # getpid(2) for each message takes as long as sending it


def _after_fork() -> None:
    global _here
    _here = os.getpid()


os.register_at_fork(after_in_child=_after_fork)


def _refuse(end: Any) -> NoReturn:
    """To an end in a process made by fork(2): the threads that move the messages are not there."""
    end._must_be_open()
    raise RuntimeError(
        "ZeroMQ does not work in a copy of a process made by os.fork(): hand this end over with launch, "
        "or open one in the child by name"
    )


class ZmqSender(Sender):
    kind, facts = "zmq", FACTS

    def __init__(self, place: int, max_messages: int, lifeline: Lifeline | None):
        self.place, self.max_messages, self.lifeline = place, max_messages, lifeline
        self.max_message = self._limit = MAX_MESSAGE
        self.socket: Any = None  # made when it is first used: until then this end can travel at no cost
        self._send: Any = None
        self._lock = threading.Lock()

    def _connect(self) -> None:
        self._must_be_open()
        self._own_place = os.dup(self.place)  # the context connects again and again until it is terminated
        try:
            context = _context()
        except BaseException:
            os.close(self._own_place)
            raise
        self.socket = context.socket(zmq.PUSH)
        self.socket.sndhwm = self.max_messages
        self.socket.reconnect_ivl = 10  # ms
        self._monitor = self.socket.get_monitor_socket(zmq.EVENT_CONNECTED | zmq.EVENT_DISCONNECTED)
        _in_use.update((self.socket, self._monitor, self.lifeline))
        self._connection = -1
        self.socket.connect(f"ipc:///proc/self/fd/{self._own_place}")
        # The class below checks arguments that we never give, which takes as long as a send.
        self._send = super(zmq.Socket, self.socket).send  # type: ignore[misc]

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        if type(message) is not bytes or not 0 < len(message) <= self._limit:
            message = as_bytes(message, self._limit)
        if self._pid != _here:
            _refuse(self)
        with self._lock:  # two threads in one ZeroMQ socket are the end of the process
            if self._send is None:
                self._connect()
            try:
                self._send(message, NOBLOCK)
                return
            except zmq.Again:
                pass
        self._retry(message, timeout)

    def _retry(self, message: Message, timeout: float | None) -> None:
        waiter = None
        while True:
            if self.lifeline and self.lifeline.cut():
                raise Closed("no receiver is left")
            if timeout == 0:
                raise TimeoutError("the sender's queue is full (its high-water mark)")
            waiter = waiter or Waiter(timeout)
            with self._lock, contextlib.suppress(zmq.Again):
                self._must_be_open()
                _wait(self.socket, zmq.POLLOUT, self.lifeline, waiter, "the sender's queue stayed full")
                self._send(message, NOBLOCK)
                return

    @property
    def capacity(self) -> Capacity:
        """At least so much: beside the two queues the kernel holds some messages too."""
        return Capacity(2 * self.max_messages, "messages")

    def clone(self) -> ZmqSender:
        self._must_be_open()
        place = os.dup(self.place)
        try:
            return ZmqSender(place, self.max_messages, self.lifeline and self.lifeline.clone())
        except BaseException:
            os.close(place)
            raise

    def _flush(self) -> bool:
        """Give up the ZeroMQ socket when all is written, or the receiver has gone; False when it took too long."""
        if self._pid != os.getpid():
            return True  # it is our parent's
        with self._lock:
            return self.socket is None or self._end()

    def _end(self) -> bool:
        """Close when the receiver has read all from the kernel.

        libzmq's own lingering is not enough: it stops reading at its high-water mark, and when it then sees the
        connection end, it forgets what is still in the kernel.
        """
        deadline, idle = time.monotonic() + FLUSH_SECONDS, 0
        while not (gone := self._is_alone()) and idle < 2 and time.monotonic() < deadline:
            idle = idle + 1 if self._is_idle() else 0
            time.sleep(0.001)
        taken, self.socket, self._send = self.socket, None, None
        taken.disable_monitor()
        self._monitor.close(linger=0)
        taken.close(linger=0 if gone else 1000)
        taken.context.term()
        _in_use.difference_update((taken, self._monitor, self.lifeline))
        os.close(self._own_place)
        return gone or idle == 2

    def _is_alone(self) -> bool:
        return self.lifeline.cut() if self.lifeline else self._connection < 0 and not _listens(self.place)

    def _is_idle(self) -> bool:
        """Whether the kernel holds nothing of ours that the receiver has not read: SIOCOUTQ, unix(7)."""
        with contextlib.suppress(zmq.Again):
            while True:
                news = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
                self._connection = news["value"] if news["event"] == zmq.EVENT_CONNECTED else -1
        if self._connection < 0:
            return False
        try:
            waiting = fcntl.ioctl(self._connection, termios.TIOCOUTQ, bytes(4))
        except OSError:  # it has just ended
            return False
        return waiting == bytes(4)

    def _farewell(self) -> None:
        self._flush()

    def _let_go(self) -> None:
        self._flush()  # launched: nothing is left, or __reduce__ would have refused
        os.close(self.place)
        if self.lifeline:
            self.lifeline.close()

    def __reduce__(self) -> Any:
        if not self._flush():
            raise BlockingIOError(
                errno.EAGAIN, "messages that nobody receives are still in this process: hand it on before sending"
            )
        lifeline = self.lifeline and travelling(self.lifeline.fileno())
        return _sender_arrives, (travelling(self.place), self.max_messages, lifeline)


class ZmqReceiver(Receiver):
    kind, facts = "zmq", FACTS

    def __init__(
        self,
        listener: socket.socket,
        max_messages: int,
        lifeline: Lifeline | None,
        path: str | None = None,
        inode: int = 0,
        rest: tuple[bytes, ...] = (),
    ):
        self.listener, self.max_messages, self.lifeline = listener, max_messages, lifeline
        self.path, self.inode = path, inode
        self.max_message = MAX_MESSAGE
        self._rest = deque(rest)
        self.socket: Any = None
        self._lock = threading.Lock()
        if path:
            _with_names.add(self)
        self._listen()

    def _listen(self) -> None:
        context = _context()
        self.socket = context.socket(zmq.PULL)
        self.socket.rcvhwm = self.max_messages
        self.socket.maxmsgsize = MAX_MESSAGE + TAG_BYTES
        events = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
        self._monitor = self.socket.get_monitor_socket(events)
        _in_use.update((self.socket, self._monitor, self.lifeline))
        self._connected, self._accepts = 0, True
        self.socket.use_fd = os.dup(self.listener.fileno())  # libzmq closes it
        self.socket.bind("ipc:///labkit")  # any name: it is bound already
        self._receive = self.socket.recv

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        if self._pid != _here:
            _refuse(self)
        if self._rest:
            return self._rest.popleft()
        waiter = None
        while True:
            with self._lock:  # two threads in one ZeroMQ socket are the end of the process
                if self.socket is None:  # a launch that failed has taken it
                    self._must_be_open()
                    self._listen()
                try:
                    message: bytes = self._receive(NOBLOCK)
                    return message
                except zmq.Again:
                    pass
                if self.lifeline and self.lifeline.cut():
                    if not self._is_more():
                        raise Closed("every sender has closed")
                    continue
                if timeout == 0:
                    raise TimeoutError("no message has come")
                waiter = waiter or Waiter(timeout)
                _wait(self.socket, zmq.POLLIN, self.lifeline, waiter, "no message came")

    def _is_more(self) -> bool:
        """Every sender has gone: whether what it wrote is still coming, which the I/O thread may be about to read.

        It tells of a connection's end a moment before it hands over that connection's last messages. When it has also
        told of the end of listening, for which we ask it then, it has handed them over.
        """
        patience = time.monotonic() + 1
        while self._connections() > 0 and time.monotonic() < patience:
            if self.socket.poll(5):
                return True
        self._accept_no_more()
        return bool(self.socket.poll(0))

    def _connections(self) -> int:
        """How many senders are connected, as far as the I/O thread has told."""
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))["event"]
                if event == zmq.EVENT_CLOSED:  # of the listening socket
                    self._accepts = False
                else:
                    self._connected += 1 if event == zmq.EVENT_ACCEPTED else -1
        return self._connected

    def _accept_no_more(self) -> None:
        """From here on all who were accepted are counted; who comes now is accepted where this end goes."""
        if not self._accepts:
            return
        self.socket.unbind(self.socket.last_endpoint)
        while self._connections() >= 0 and self._accepts and self._monitor.poll(1000):
            pass

    def clone(self) -> ZmqReceiver:
        raise io.UnsupportedOperation("one process listens at the socket: a second receiver needs a name of its own")

    def _stop(self) -> None:
        if self._pid != os.getpid():
            return  # the ZeroMQ socket is our parent's
        with self._lock:
            taken, self.socket = self.socket, None
        if taken is not None:
            taken.disable_monitor()
            self._monitor.close(linger=0)
            taken.close(linger=0)
            taken.context.term()
            _in_use.difference_update((taken, self._monitor, self.lifeline))

    def _farewell(self) -> None:
        if self.path:
            with making("zmq"), contextlib.suppress(FileNotFoundError):
                if os.lstat(self.path).st_ino == self.inode:
                    os.unlink(self.path)

    def _let_go(self) -> None:
        self._stop()
        self._rest.clear()
        self.listener.close()
        if self.lifeline:
            self.lifeline.close()

    def __reduce__(self) -> Any:
        """Leave: what has come goes along, and who is connected will connect again."""
        if self.socket is not None:
            self._accept_no_more()
            while self.socket.poll(int(QUIET_SECONDS * 1000) if self._connections() else 0):
                self._rest.append(self._receive(NOBLOCK))
            self._stop()
        lifeline = self.lifeline and travelling(self.lifeline.fileno())
        rest = tuple(self._rest)
        return _receiver_arrives, (
            travelling(self.listener.fileno()), self.max_messages, lifeline, self.path, self.inode, rest
        )  # fmt: skip


_with_names: weakref.WeakSet[ZmqReceiver] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    for receiver in list(_with_names):
        receiver.close()


def _wait(end: Any, event: int, lifeline: Lifeline | None, waiter: Waiter, doing: str) -> None:
    """zmq_poll(3) until the end is ready, or nobody is at the other end of the lifeline, or for a moment.

    The descriptor of a ZeroMQ socket is good for nothing else: it tells of changes once only (ZMQ_FD).
    """
    waiter.wait({}, doing, 0.0)  # the deadline has passed?
    poller = zmq.Poller()
    poller.register(end, event)
    if lifeline:
        poller.register(lifeline.fileno(), zmq.POLLIN)
    left = LOOK_SECONDS if waiter.deadline is None else min(LOOK_SECONDS, waiter.deadline - time.monotonic())
    poller.poll(int(max(0.0, left) * 1000))


def _sender_arrives(place: Any, max_messages: int, lifeline: Any) -> ZmqSender:
    return ZmqSender(arrived(place), max_messages, lifeline and arrived_lifeline(lifeline))


def _receiver_arrives(
    listener: Any, max_messages: int, lifeline: Any, path: str | None, inode: int, rest: tuple[bytes, ...]
) -> ZmqReceiver:
    here = socket.socket(fileno=arrived(listener))
    return ZmqReceiver(here, max_messages, lifeline and arrived_lifeline(lifeline), path, inode, rest)
