"""POSIX message queue: mq_overview(7), mq_open(3), mq_send(3). TLPI ch. 52.

The package posix_ipc opens and removes queues by name. On Linux a queue is a file descriptor, which can be polled,
duplicated and handed to another process; posix_ipc takes no descriptor, so that mq_send(3) and mq_receive(3) are called
through cffi.

Without a name the queue's own name is removed at once: it lives as long as somebody holds an end, and nothing is
left behind however they die. With a name it stays until it is unlinked (kernel persistence), and unrelated processes
find it.

The kernel does not tell a receiver that the last sender has gone. The ends of a queue without a name therefore have a
lifeline beside it; those of a named queue have none, and time out instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import posix_ipc

from labkit.channels.base import (
    DEFAULT_TIMEOUT,
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
    one_word,
    travelling,
    unavailable,
)
from labkit.channels.call_entry import Calls
from labkit.libc import ffi, libc

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=False,
    pollable=True,
    duplex=False,
    related_only=False,
    many_senders=True,
    many_receivers=True,
    reliable=True,
    handed_over=True,
    persistence="kernel",
    max_message=2048,
    namespaced_by="ipc",
    copies=3,
    manual="mq_overview(7)",
)

MAX_MESSAGES = 10  # the kernel's own limit for users without privileges: /proc/sys/fs/mqueue/msg_max
MAX_MESSAGE = 2048  # small, because every queue is charged to RLIMIT_MSGQUEUE in full when it is made
NO_DESCRIPTOR = "no descriptor is left: close what is not needed, or raise the limit (ulimit -n)"


def open(*, max_messages: int = MAX_MESSAGES, max_message: int = MAX_MESSAGE) -> tuple[MqSender, MqReceiver]:
    """A new queue without a name, for a process and its children.

    Args:
        max_messages: how many messages the queue holds before send waits.
        max_message: bytes in the largest message.

    Raises:
        OSError: the machine's limits do not allow such a queue; the text says which limit.
    """
    path = f"/labkit-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        fd = _create(path, max_messages, max_message)
    finally:  # also when Ctrl-C comes now: a queue without a name goes with its last descriptor
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_message_queue(path)
    return _pair(fd, max_messages, max_message, named=False)


def open_named(
    name: str, *, max_messages: int = MAX_MESSAGES, max_message: int = MAX_MESSAGE
) -> tuple[MqSender, MqReceiver]:
    """Create the queue `name` and open both ends. It stays until `unlink(name)`.

    Raises:
        FileExistsError: there is a queue of that name already.
        OSError, ValueError: as `open`, or the name is not one word of at most 254 bytes.
    """
    fd = _create_named(name, max_messages, max_message)
    try:
        return _pair(fd, max_messages, max_message, named=True)
    except BaseException:
        unlink(name)
        raise


def _pair(fd: int, max_messages: int, max_message: int, named: bool) -> tuple[MqSender, MqReceiver]:
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        other = os.dup(fd)
        undo.callback(os.close, other)
        left, right = (None, None) if named else Lifeline.pair()
        undo.pop_all()
    return MqSender(fd, max_messages, max_message, left), MqReceiver(other, max_messages, max_message, right)


def open_sender(
    name: str, create: bool = False, *, max_messages: int = MAX_MESSAGES, max_message: int = MAX_MESSAGE
) -> MqSender:
    """The sending end of an existing queue, or of a new one (`create`, with the options of `open`)."""
    return MqSender(*_existing(name, create, max_messages, max_message), None)


def open_receiver(
    name: str, create: bool = False, *, max_messages: int = MAX_MESSAGES, max_message: int = MAX_MESSAGE
) -> MqReceiver:
    """The receiving end of an existing queue, or of a new one (`create`, with the options of `open`)."""
    return MqReceiver(*_existing(name, create, max_messages, max_message), None)


def unlink(name: str) -> None:
    """Remove the name; the queue itself goes with its last user: mq_unlink(3). Raises FileNotFoundError."""
    path = _path(name)
    try:
        posix_ipc.unlink_message_queue(path)
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, "this POSIX message queue belongs to somebody else", name) from None
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(errno.ENOENT, "no POSIX message queue of this name", name) from None
    finally:
        _note(path).unlink(missing_ok=True)


def _path(name: str) -> str:
    return "/" + one_word(name)


def _note(path: str) -> Path:
    """Where labkit remembers that it made the queue, for `labkit clean`: the kernel does not say who did."""
    return kind_dir("posix_mq") / path.removeprefix("/")


def _create_named(name: str, max_messages: int, max_message: int) -> int:
    path = _path(name)
    note = _note(path)
    noted = note.exists()
    note.touch(mode=0o600)  # first, so that nothing can be left that is not noted
    try:
        return _create(path, max_messages, max_message)
    except BaseException:
        if not noted:
            note.unlink(missing_ok=True)
        raise


def _create(path: str, max_messages: int, max_message: int) -> int:
    """A new queue's descriptor, which does not block."""
    if not max_messages > 0 or not max_message > 0:
        raise ValueError(f"max_messages and max_message must be at least 1, not {max_messages} and {max_message}")
    try:
        queue = posix_ipc.MessageQueue(
            path,
            posix_ipc.O_CREX,
            mode=0o600,
            max_messages=max_messages,
            max_message_size=max_message + TAG_BYTES,
        )
    except posix_ipc.ExistentialError:
        raise FileExistsError(errno.EEXIST, "there is a POSIX message queue of this name already", path) from None
    except (ValueError, OverflowError):  # EINVAL, which posix_ipc reports without its errno
        raise OSError(
            errno.EINVAL,
            f"mq_open: {max_messages} messages of {max_message + TAG_BYTES} bytes are beyond this machine's limits: "
            f"msg_max is {_limit('msg_max')}, msgsize_max {_limit('msgsize_max')} (/proc/sys/fs/mqueue)",
        ) from None
    except OSError as reason:
        number = _number(reason)
        advice = {
            errno.EMFILE: NO_DESCRIPTOR
            if not _descriptors_are_left()
            else "all queues of this user together are over RLIMIT_MSGQUEUE (ulimit -q, in bytes), which the "
            "kernel reports as too many files: close queues or ask for fewer, smaller messages",
            errno.ENOSPC: f"the machine is at its limit of {_limit('queues_max')} queues "
            "(/proc/sys/fs/mqueue/queues_max): `labkit clean` removes those that labkit left",
            errno.ENOSYS: "this kernel has no POSIX message queues (CONFIG_POSIX_MQUEUE): use unix_seqpacket instead",
            errno.EACCES: "no permission; a sandbox may forbid it: use unix_seqpacket instead",
            errno.EPERM: "no permission; a sandbox may forbid it: use unix_seqpacket instead",
        }.get(number, "see mq_overview(7)")
        raise unavailable("mq_open", number, advice) from reason
    try:
        return _descriptor(queue)
    except BaseException:
        posix_ipc.unlink_message_queue(path)
        raise


def _existing(name: str, create: bool, max_messages: int, max_message: int) -> tuple[int, int, int]:
    """Descriptor, max_messages and max_message of a queue that somebody made, or that is made now."""
    if create:
        with contextlib.suppress(FileExistsError):
            os.close(_create_named(name, max_messages, max_message))
    try:
        queue = posix_ipc.MessageQueue(_path(name))
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(
            errno.ENOENT, 'no POSIX message queue of this name; channel("posix_mq", name=...) makes one', name
        ) from None
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, "this POSIX message queue belongs to somebody else", name) from None
    except OSError as reason:
        raise unavailable("mq_open", _number(reason), NO_DESCRIPTOR) from reason
    largest = queue.max_message_size
    if _is_ours(_path(name)):  # room for a trace's tag; a message of another program's queue may fill it
        largest = max(largest - TAG_BYTES, 1)
    return _descriptor(queue), queue.max_messages, largest


def _is_ours(path: str) -> bool:
    try:
        return _note(path).exists()
    except OSError:  # there is nowhere to note anything
        return False


def _number(reason: OSError) -> int:
    """The errno of what posix_ipc 1.3 reports in words only."""
    words = {"process": errno.EMFILE, "system": errno.ENFILE, "space": errno.ENOSPC}
    return reason.errno or next((number for word, number in words.items() if word in str(reason)), errno.EIO)


def _descriptors_are_left() -> bool:
    try:
        os.close(os.eventfd(0))
        return True
    except OSError:
        return False


def _descriptor(queue: posix_ipc.MessageQueue) -> int:
    """The descriptor alone, set not to block; posix_ipc's object is closed."""
    queue.block = False
    try:
        return os.dup(queue.mqd)
    finally:
        queue.close()


def _limit(name: str) -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/fs/mqueue", name).read_text().strip()
    return "unknown"


class _MqEnd:
    """What both ends hold: the queue's descriptor, the size of its messages, and the lifeline of a pair."""

    kind, facts = "posix_mq", FACTS
    closed: bool
    _must_be_open: Callable[[], None]

    def __init__(self, fd: int, max_messages: int, max_message: int, lifeline: Lifeline | None):
        self.fd = fd
        self.max_messages = max_messages
        self.max_message = self._limit = max_message
        self.lifeline = lifeline
        self._calls = Calls(fd, ("queue_send", "queue_receive"), max_message, max_message + TAG_BYTES)

    def fileno(self) -> int:
        return self.fd

    def clone(self) -> Any:
        self._must_be_open()
        lifeline = self.lifeline and self.lifeline.clone()
        return type(self)(os.dup(self.fd), self.max_messages, self.max_message, lifeline)

    def _let_go(self) -> None:
        fd, self.fd = self.fd, -1
        self._calls.close()
        os.close(fd)
        if self.lifeline:
            self.lifeline.close()

    def __reduce__(self) -> Any:
        lifeline = self.lifeline and travelling(self.lifeline.fileno())
        return _arrives, (type(self), travelling(self.fd), self.max_messages, self.max_message, lifeline)

    def _busy(self, call: str, number: int) -> None:
        """After a call that failed: return when it only would have had to wait, else raise what was wrong."""
        if number not in (errno.EAGAIN, errno.EINTR):
            self._must_be_open()
            raise OSError(number, f"{call}: {os.strerror(number)}")

    def _wait(self, event: int, waiter: Waiter, doing: str) -> bool:
        """Sleep until the queue is ready; True when the other side has gone instead."""
        interest = {self.fd: event}
        if self.lifeline:
            interest[self.lifeline.fileno()] = select.POLLRDHUP
        ready = waiter.wait(interest, doing)
        return bool(ready) and self.fd not in ready


class MqSender(_MqEnd, Sender):
    def __init__(self, *state: Any):
        super().__init__(*state)
        self._send = self._at_once = self._calls.queue_send

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT, priority: int = 0) -> None:
        """As Sender.send; of the waiting messages those of the highest priority (0 to 32767) are received first."""
        try:
            if priority == 0 and self._send(message) == 0:
                return
        except (TypeError, ValueError, BufferError):
            self._must_be_open()
        self._retry(bytes(as_bytes(message, self._limit)), timeout, priority)

    def _later(self, _: int, message: bytes) -> None:
        self._retry(message, DEFAULT_TIMEOUT, 0)

    def _retry(self, message: bytes, timeout: float | None, priority: int) -> None:
        if not 0 <= priority <= 32767:
            raise ValueError(f"a priority is 0 to 32767, not {priority}")
        waiter = None
        while libc.mq_send(self.fd, message, len(message), priority) != 0:
            self._busy("mq_send", ffi.errno)
            if timeout == 0:
                if self.lifeline and self.lifeline.cut():
                    raise Closed("the queue is full and no receiver is left")
                raise TimeoutError("the message queue is full")
            waiter = waiter or Waiter(timeout)
            if self._wait(select.POLLOUT, waiter, "the message queue stayed full"):
                self._must_be_open()
                raise Closed("the queue is full and no receiver is left")

    def _allow_tag(self) -> None:
        super()._allow_tag()
        self._calls.allow(self._limit)

    @property
    def capacity(self) -> Capacity:
        return Capacity(self.max_messages, "messages")


class MqReceiver(_MqEnd, Receiver):
    def __init__(self, *state: Any):
        super().__init__(*state)
        self._receive = self._at_once = self._calls.queue_receive

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT) -> bytes:
        message = self._receive()
        return self._retry(timeout) if message is None else message

    def _retry(self, timeout: float | None) -> bytes:
        waiter = None
        while True:
            self._busy("mq_receive", self._calls.errno)
            if timeout != 0:
                waiter = waiter or Waiter(timeout)
                gone = self._wait(select.POLLIN, waiter, "nothing came through the message queue")
            else:
                gone = bool(self.lifeline and self.lifeline.cut())
            message = self._receive()
            if message is not None:
                return message
            if gone:
                self._must_be_open()
                raise Closed("every sender has closed its end of this queue")
            if timeout == 0:
                raise TimeoutError("the message queue is empty")


def _arrives(end: type[_MqEnd], ticket: Any, max_messages: int, max_message: int, lifeline: Any) -> _MqEnd:
    return end(arrived(ticket), max_messages, max_message, lifeline and arrived_lifeline(lifeline))
