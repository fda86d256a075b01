"""Real-time signals that queue with a payload: sigqueue(3), signalfd(2), signal(7). TLPI ch. 20 to 22.

One signal carries eight bytes. A message is cut into pieces of seven, each behind a byte that says how many of them
count, and whether it is the first or the last. The pieces of a sender are numbered, in si_code. Signals of one number
stay in order, unless a thread takes one that was not for it; the receiver puts the pieces together for each sender.

Signals go to a process, so the ends must know which. They share a page of memory (with a name, a file):

    word 0   signal number << 32 | pid of who receives; 0: nobody just now; -1: closed
    word 1   start time of that process, word 2 its pid namespace: whether the pid still means what it meant
    word 3   number of the channel, which every signal carries as si_errno, beside the number of its sender,
             of which the part that finds no room there is in si_uid

A receiver that travels sets word 0 to 0, takes what has come along, and writes itself in where it arrives; meanwhile
senders wait. They send through a pidfd, pidfd_send_signal(2), which can never hit a process that got the same pid.

The receiver reads its signals from a descriptor, signalfd(2), while every thread of its process blocks them
(labkit.channels.blocked_signal).
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import io
import itertools
import mmap
import os
import resource
import secrets
import select
import signal
import struct
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from labkit.channels.base import (
    CLOSED_HERE,
    DEFAULT_TIMEOUT,
    LOOK_AGAIN,
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
from labkit.channels.blocked_signal import listen, release
from labkit.channels.signal_entry import (
    DONE,
    END,
    ERRNO,
    FAILED,
    FD,
    FIRST,
    INFO,
    INFO_BYTES,
    LAST,
    NUMBER,
    PIDFD,
    PIECE_BYTES,
    PIECES,
    READS,
    REFUSED,
    SEEN,
    SENT,
    SEQUENCE,
    SEQUENCES,
    UNSURE,
    signal_entries,
)
from labkit.lockfree.entry import MOST, new_state

MAX_MESSAGE = 1024
SIGNALS_AT_ONCE = 64  # that one read(2) brings
NOBODY, CLOSED, NEVER = 0, -1, -2
WHO, STARTED, NAMESPACE, CHANNEL = range(4)  # the words of the page
SENDER_BITS = 15
FULL = "the queue of signals (RLIMIT_SIGPENDING, ulimit -i: one for all processes of a user) stayed full"
FIELDS = struct.Struct("=4xiiII28xQ")  # of a signalfd_siginfo: ssi_errno, ssi_code, ssi_pid, ssi_uid, ssi_ptr
GAP_PATIENCE, BEGUN_PATIENCE, LAST_PATIENCE = 5.0, 0.5, 0.002
"""Seconds for a piece that is missing when every sender has gone: one before others that are here was sent for
certain, the rest of a message unless its sender was killed, and after a whole message there may have been no other."""

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=False,
    pollable=True,
    duplex=False,
    related_only=False,
    many_senders=True,
    many_receivers=False,
    reliable=True,
    handed_over=True,
    persistence="process",
    max_message=MAX_MESSAGE,
    namespaced_by="mount, pid",
    copies=4,
    manual="sigqueue(3)",
)


def open() -> tuple[SignalSender, SignalReceiver]:
    """A receiver in this process, and a sender to it.

    Raises:
        OSError: every real-time signal of this process is in use.
    """
    with contextlib.ExitStack() as undo:
        memory = os.memfd_create("labkit-signal", os.MFD_CLOEXEC)
        undo.callback(os.close, memory)
        page = _new_page(memory)
        other = os.dup(memory)
        undo.callback(os.close, other)
        second = _page(other)
        left, right = Lifeline.pair()
        undo.callback(left.close)
        undo.callback(right.close)
        listening = _listen()
        undo.pop_all()
    return SignalSender(other, second, left), SignalReceiver(memory, page, right, listening)


def open_named(name: str) -> tuple[SignalSender, SignalReceiver]:
    """Make the name, with its receiver in this process, and open a sender. The name goes when the receiver closes.

    Raises:
        FileExistsError: there is a receiver of this name already.
        OSError, ValueError: as `open`, or the name is not one word of at most 254 bytes.
    """
    rx = open_receiver(name, create=True)
    try:
        return open_sender(name), rx
    except BaseException:
        rx.close()
        raise


def open_sender(name: str, create: bool = False) -> SignalSender:
    """A sender to the receiver of this name.

    Raises:
        FileNotFoundError: no living process receives under this name.
        ValueError: `create`: only a receiver can make a name.
        OSError: the receiver lives in another pid namespace.
    """
    path = _path(name)
    if create:
        raise ValueError("the name of a signal channel is made by its receiver: it says which process gets the signals")
    missing = FileNotFoundError(
        errno.ENOENT, 'nobody receives signals under this name; receiver("signal", name, create=True) does', name
    )
    try:
        memory = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise missing from None
    try:
        if _locked(memory, fcntl.LOCK_SH):
            raise missing
        tx = SignalSender(memory, _page(memory), None)
    except BaseException:
        os.close(memory)
        raise
    try:
        tx._meet()
        return tx
    except BaseException:
        tx.close()
        raise


def open_receiver(name: str, create: bool = False) -> SignalReceiver:
    """The receiver of this name, in this process (`create`: it makes the name).

    Raises:
        FileExistsError: another process receives under this name.
        FileNotFoundError: nobody does, and `create` is not set.
    """
    path = _path(name)
    with making("signal"), contextlib.ExitStack() as undo:
        try:
            old = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            undo.callback(os.close, old)
            if not _locked(old, fcntl.LOCK_EX):  # the receiver holds it as long as it lives, wherever it travels
                raise FileExistsError(errno.EEXIST, "a process receives signals under this name already", name)
            if create:
                path.unlink()  # its receiver was killed; senders that still hold this file will learn of it
        except FileNotFoundError:
            pass
        if not create:
            raise FileNotFoundError(errno.ENOENT, "nobody has made this name: create=True does", name)
        memory = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with contextlib.ExitStack() as failing:
            failing.callback(os.close, memory)
            failing.callback(path.unlink)
            _locked(memory, fcntl.LOCK_EX)
            page, listening = _new_page(memory), _listen()
            failing.pop_all()
        return SignalReceiver(memory, page, None, listening, str(path))


def unlink(name: str) -> None:
    """Remove the name; who has an end of the channel keeps it. Raises FileNotFoundError."""
    try:
        _path(name).unlink()
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no signal channel of this name", name) from None


def _path(name: str) -> Path:
    return kind_dir("signal") / one_word(name)


def _locked(fd: int, how: int) -> bool:
    """Whether we have this lock now: flock(2)."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _new_page(memory: int) -> np.ndarray:
    os.posix_fallocate(memory, 0, mmap.PAGESIZE)
    page = _page(memory)
    page[NAMESPACE], page[CHANNEL] = _namespace(), 1 + secrets.randbelow((1 << 16) - 1)
    return page


def _page(memory: int) -> np.ndarray:
    if os.fstat(memory).st_size != mmap.PAGESIZE:
        raise OSError(errno.EBADMSG, "this file is not a signal channel of this version of labkit: its size is wrong")
    return np.frombuffer(mmap.mmap(memory, mmap.PAGESIZE), np.int64)


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _start_time(pid: int) -> int:
    """When a process was started, in ticks since the machine was: proc_pid_stat(5). Raises OSError when it is gone."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def _is_dying(pid: int) -> bool:
    """Whether a process is past its end, or on the way there: PF_EXITING, or SIGKILL is pending (proc_pid_stat(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return True
    return fields[0] in "ZX" or bool(int(fields[6]) & 4) or bool(int(fields[28]) >> (signal.SIGKILL - 1) & 1)


_next_sender = itertools.count(secrets.randbits(SENDER_BITS))


class SignalSender(Sender):
    kind, facts = "signal", FACTS

    def __init__(self, memory: int, page: np.ndarray, lifeline: Lifeline | None):
        self.memory, self._page, self.lifeline = memory, page, lifeline
        self.max_message = self._limit = MAX_MESSAGE
        self._pidfd = -1
        self._adopting = threading.Lock()  # two threads must not both open a pidfd of which one is forgotten
        self._state = state = new_state(page.ctypes.data, 0, MAX_MESSAGE)
        self._info = state[INFO // 8 :].view(np.int32)
        state[[SEEN // 8, PIDFD // 8]] = NEVER, -1
        self._introduce()
        _senders.add(self)
        made = {name: entry.builtin(state, page) for name, entry in signal_entries().items()}
        self._send, self._go_on = made["signal_send"], made["signal_go_on"]

    def _introduce(self) -> None:
        """Be a sender of whom no receiver has heard: what tells it from others, the number of its next piece."""
        rest, number = divmod(next(_next_sender), 1 << SENDER_BITS)
        number |= int(self._page[CHANNEL]) << SENDER_BITS
        # si_uid has room for the rest. In another user namespace the kernel may write there what it has for strangers.
        self._info[[1, 4, 5]] = number, os.getpid(), rest
        self._state[[SEQUENCE // 8, UNSURE // 8, DONE // 8]] = 0

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        try:
            result = self._send(message)
        except (TypeError, ValueError, BufferError):
            self._must_be_open()
            message = as_bytes(message, self._limit)
            result = self._send(message)
        if result != SENT:
            self._retry(result, message, timeout)

    def _retry(self, result: int, message: Message, timeout: float | None) -> None:
        """Send what did not go at once. A message that has gone in part when this raises is never received."""
        self._must_be_open()
        if result == REFUSED:
            as_bytes(message, self._limit)  # raises what is wrong with it
        waiter, pause, waited = Waiter(timeout), 0.001, False
        while result != SENT:
            if not self._has_moved(result):
                if self._abandoned():
                    raise Closed("no receiver of these signals is left")
                if timeout == 0:
                    raise TimeoutError("the queue of signals is full")
                interest = {self.lifeline.fileno(): select.POLLRDHUP} if self.lifeline else {}
                if self._page[WHO] == self._state[SEEN // 8]:
                    interest[self._pidfd] = select.POLLIN
                ready = waiter.wait(interest, FULL, pause)  # nothing tells of room
                if self._pidfd in ready and self._page[WHO] == self._state[SEEN // 8]:
                    raise Closed("the process that received these signals has ended")
                pause, waited = min(2 * pause, LOOK_AGAIN), True
            result = self._go_on(message)
        # A process that is being killed accepts every signal and drops it (prepare_signal() in kernel/signal.c): the
        # room for which we have waited may be none.
        if waited and _is_dying(int(self._state[SEEN // 8]) & 0xFFFFFFFF):
            raise Closed("the process that received these signals has ended")

    def _abandoned(self) -> bool:
        """Whether the receiver has died, on its way perhaps. With a name, a lock that it held says so."""
        if self.lifeline:
            return self.lifeline.cut()
        if self._page[WHO] != NOBODY:
            return False  # the process itself tells
        with contextlib.ExitStack() as undo:
            fd = os.open(f"/proc/self/fd/{self.memory}", os.O_RDWR | os.O_CLOEXEC)  # with locks of its own
            undo.callback(os.close, fd)
            return _locked(fd, fcntl.LOCK_SH)

    def _has_moved(self, result: int) -> bool:
        """After a send that failed: whether there is a new receiver, so that it can be tried again at once."""
        if result == FAILED and self._page[WHO] == self._state[SEEN // 8]:
            number = int(self._state[ERRNO // 8])
            if number == errno.EAGAIN:  # RLIMIT_SIGPENDING
                return False
            if number == errno.ESRCH:
                raise Closed("the process that received these signals has ended")
            self._must_be_open()
            raise OSError(number, f"pidfd_send_signal: {os.strerror(number)}; signals go to processes of the same user")
        return self._meet()

    def _meet(self) -> bool:
        """Find out who receives; whether there is somebody just now.

        Raises:
            Closed: the receiver has closed or died.
            ProcessLookupError: it lives in another pid namespace, where its pid means another process.
        """
        for _ in range(3):  # the words of the page may be written while we read them
            word = int(self._page[WHO])
            if word == CLOSED:
                raise Closed("the receiver of these signals has closed")
            if word == NOBODY:
                return False
            if self._page[NAMESPACE] != _namespace():
                raise ProcessLookupError(
                    errno.ESRCH, "the receiver lives in another pid namespace: its pid means nothing here"
                )
            pid, number = word & 0xFFFFFFFF, word >> 32
            with contextlib.ExitStack() as undo, contextlib.suppress(ProcessLookupError, FileNotFoundError):
                pidfd = os.pidfd_open(pid)
                undo.callback(os.close, pidfd)
                if _start_time(pid) == self._page[STARTED]:
                    with self._adopting:
                        self._must_be_open()
                        undo.pop_all()
                        self._forget_pidfd()
                        self._pidfd = pidfd
                        self._info[0] = number
                        self._state[[SEEN // 8, PIDFD // 8, NUMBER // 8]] = word, pidfd, number
                    return True
        raise Closed("the process that received these signals has ended")

    def _forget_pidfd(self) -> None:
        pidfd, self._pidfd = self._pidfd, -1
        self._state[[SEEN // 8, PIDFD // 8]] = NEVER, -1
        if pidfd >= 0:
            os.close(pidfd)

    @property
    def capacity(self) -> Capacity:
        """What this user's limit allows, for all processes together: RLIMIT_SIGPENDING, getrlimit(2)."""
        pid = max(0, int(self._page[WHO])) & 0xFFFFFFFF
        try:
            limit = resource.prlimit(pid, resource.RLIMIT_SIGPENDING)[0]
        except OSError:
            limit = resource.getrlimit(resource.RLIMIT_SIGPENDING)[0]
        return Capacity((limit if limit >= 0 else 1 << 32) * PIECE_BYTES, "bytes")

    def _allow_tag(self) -> None:
        super()._allow_tag()
        self._state[MOST // 8] = self._limit

    def clone(self) -> SignalSender:
        self._must_be_open()
        with contextlib.ExitStack() as undo:
            memory = os.dup(self.memory)
            undo.callback(os.close, memory)
            page = _page(memory)
            lifeline = self.lifeline and self.lifeline.clone()
            undo.pop_all()
        return SignalSender(memory, page, lifeline)

    def _let_go(self) -> None:
        with self._adopting:
            self._forget_pidfd()
        self._send = self._go_on = _refuse
        self._page = _no_page  # unmapped, now that nothing refers to it
        os.close(self.memory)
        if self.lifeline:
            self.lifeline.close()

    def __reduce__(self) -> Any:
        lifeline = self.lifeline and travelling(self.lifeline.fileno())
        return _sender_arrives, (travelling(self.memory), lifeline)


_senders: weakref.WeakSet[SignalSender] = weakref.WeakSet()


def _after_fork() -> None:
    """A copy made by fork(2) is one more sender: the receiver would take its pieces for its parent's, sent twice."""
    for end in list(_senders):
        if not end.closed:
            end._introduce()


os.register_at_fork(after_in_child=_after_fork)

_no_page = np.zeros(4, np.int64)


def _refuse(*_: object) -> int:
    raise ValueError(CLOSED_HERE)


class SignalReceiver(Receiver):
    kind, facts = "signal", FACTS

    def __init__(
        self,
        memory: int,
        page: np.ndarray,
        lifeline: Lifeline | None,
        listening: tuple[int, int, int],
        path: str | None = None,
        ready: tuple[bytes, ...] = (),
        senders: dict[tuple[int, int, int], Flow] | None = None,
    ):
        self.memory, self._page, self.lifeline, self.path = memory, page, lifeline, path
        self._ready = deque(ready)
        self._senders = senders or {}
        self._channel = int(page[CHANNEL])
        room = np.empty(SIGNALS_AT_ONCE * INFO_BYTES, np.uint8)
        self._room = room.data
        self._state = new_state(room.ctypes.data, len(room), 0)
        self._read = signal_entries()["signal_read"].builtin(self._state, room)
        self._at = 0  # where in the room the next signal is that has not been looked at
        self._started, self.number, self.fd = listening
        if path:
            _with_names.add(self)
        self._state[[FD // 8, READS // 8]] = self.fd, self.number
        while self._read() == 0:  # what is left from an earlier channel with this number
            pass
        self._state[END // 8] = 0
        self._publish()

    def _publish(self) -> None:
        """Tell the senders to send to us. The number and the pid are one word, so that they read both or neither."""
        self._page[STARTED], self._page[NAMESPACE] = self._started, _namespace()
        self._who = self.number << 32 | os.getpid()
        self._page[WHO] = self._who

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        if self._ready:
            return self._ready.popleft()
        waiter, last_look = None, False
        while True:
            self._take()
            if self._ready:
                return self._ready.popleft()
            number = self._read()
            if number == 0:
                self._at = 0
                continue
            if number not in (errno.EAGAIN, errno.EINTR):
                self._must_be_open()
                raise OSError(number, f"read of a signalfd: {os.strerror(number)}")
            if last_look:
                if self._comes_late():
                    continue
                raise Closed("every sender of these signals has closed")
            if self._pid != os.getpid() and not self.closed:
                raise RuntimeError(
                    "signals go to the process that opened this end, and this one is a copy made by os.fork(): "
                    "hand the end over with launch"
                )
            if self._page[WHO] != self._who:  # a launch that failed has made us leave
                self._publish()
            if timeout == 0:
                last_look = self.lifeline is not None and self.lifeline.cut()
                if not last_look:
                    raise TimeoutError("no signal is pending")
                continue
            waiter = waiter or Waiter(timeout)
            interest = {self.fd: select.POLLIN}
            if self.lifeline:
                interest[self.lifeline.fileno()] = select.POLLRDHUP
            ready = waiter.wait(interest, "no signal came")
            last_look = bool(ready) and self.fd not in ready

    def _comes_late(self) -> bool:
        """Every sender has gone: whether a piece comes that a thread has taken and is about to give back."""
        flows = self._senders.values()
        gap, begun = any(flow.early for flow in flows), any(flow.begun for flow in flows)
        patience = GAP_PATIENCE if gap else BEGUN_PATIENCE if begun else LAST_PATIENCE
        poller = select.poll()
        poller.register(self.fd, select.POLLIN)
        return bool(poller.poll(patience * 1000) or poller.poll(0))  # who gives it back may have had the interpreter

    def _take(self) -> None:
        """Put together what the last read brought.

        Ctrl-C may come after any call: the count of what was taken goes up last, and a piece that is then looked at
        again is known by its number.
        """
        end, senders, channel, room = int(self._state[END // 8]), self._senders, self._channel, self._room
        for at in range(self._at, end, INFO_BYTES):
            number, code, pid, rest, value = FIELDS.unpack_from(room, at)
            if number >> SENDER_BITS == channel and code <= PIECES:
                flow = senders.get((pid, number, rest))
                if flow is None:
                    flow = senders[pid, number, rest] = Flow()
                if PIECES - code == flow.expected and not flow.early:
                    self._add(flow, value)
                else:
                    self._sort_in(flow, PIECES - code, value)
            self._at = at + INFO_BYTES

    def _add(self, flow: Flow, value: int) -> None:
        """The next piece of a sender."""
        piece = value.to_bytes(8, "little")[1 : 1 + (value & 7)]
        expected = flow.expected + 1 & SEQUENCES - 1
        if not value & FIRST:
            piece = flow.begun + piece
        if value & LAST:
            flow.expected, flow.begun = expected, b""
            self._ready.append(piece)
        else:
            flow.expected, flow.begun = expected, piece

    def _sort_in(self, flow: Flow, number: int, value: int) -> None:
        """A piece that came twice, when we travelled, or not in its place, when a thread did not block the signal."""
        if (number - flow.expected) % SEQUENCES < SEQUENCES // 2:
            flow.early[number] = value
        while flow.expected in flow.early:
            self._add(flow, flow.early[flow.expected])
            flow.early.pop(flow.expected - 1 & SEQUENCES - 1)

    def fileno(self) -> int:
        return self.fd

    def clone(self) -> SignalReceiver:
        raise io.UnsupportedOperation("signals go to one process, which puts the pieces together; use posix_mq")

    def _farewell(self) -> None:
        self._page[WHO] = CLOSED
        if self.path:
            with making("signal"), contextlib.suppress(FileNotFoundError):
                if os.stat(self.path, follow_symlinks=False).st_ino == os.fstat(self.memory).st_ino:
                    os.unlink(self.path)

    def _let_go(self) -> None:
        while self._read() == 0:  # what nobody will receive counts against the limit as long as it is pending
            pass
        fd, self.fd = self.fd, -1
        os.close(fd)
        os.close(self.memory)
        self._read, self._page = _refuse, _no_page
        self._ready.clear()
        release(self.number)
        if self.lifeline:
            self.lifeline.close()

    def __reduce__(self) -> Any:
        """Leave: from now on nobody sends here. What has come goes along."""
        self._page[WHO] = NOBODY
        self._take()
        while self._read() == 0:
            self._at = 0
            self._take()
        lifeline = self.lifeline and travelling(self.lifeline.fileno())
        return _receiver_arrives, (travelling(self.memory), lifeline, self.path, tuple(self._ready), self._senders)


def _listen() -> tuple[int, int, int]:
    """When this process was started, and its signal and descriptor: all that a receiver needs that may fail."""
    return _start_time(os.getpid()), *listen()


_with_names: weakref.WeakSet[SignalReceiver] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    for receiver in list(_with_names):
        receiver.close()


class Flow:
    """What has come from one sender."""

    def __init__(self) -> None:
        self.expected = 0  # number of the next piece
        self.begun = b""  # what has come of a message that is not whole yet
        self.early: dict[int, int] = {}  # pieces that came before the expected one, by their numbers


def _sender_arrives(memory: Any, lifeline: Any) -> SignalSender:
    fd = arrived(memory)
    return SignalSender(fd, _page(fd), lifeline and arrived_lifeline(lifeline))


def _receiver_arrives(memory: Any, lifeline: Any, path: str | None, ready: tuple[bytes, ...], senders: Any) -> Any:
    fd = arrived(memory)
    here = lifeline and arrived_lifeline(lifeline)
    return SignalReceiver(fd, _page(fd), here, _listen(), path, ready, senders)
