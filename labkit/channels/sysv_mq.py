"""System V message queue: sysvipc(7), msgget(2), msgop(2). TLPI ch. 46.

A message has a *type*, a positive number. A receiver takes the first message of any type (0), of one type (n), or of
the lowest type up to n (-n): what a POSIX queue does with priorities, and more.

The package sysv_ipc makes the calls. They have no timeout, and a queue has no descriptor that could be polled; one that
blocks is ended by a timer's signal now and then, to look at the clock (labkit.sync.interrupt).

A queue is not removed with its last user. Without a name labkit does that itself, also after kill -9 (labkit.channels.
notes); with a name it stays until it is unlinked, and its users then learn at once that it is gone.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sysv_ipc

from labkit.channels import notes
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
    arrived_lifeline,
    as_bytes,
    travelling,
    unavailable,
)
from labkit.channels.notes import IPC_CREAT, IPC_EXCL, Note
from labkit.libc import ffi, libc
from labkit.sync.interrupt import interruptible

IPC_NOWAIT = 0o4000
TYPE_BYTES = 8  # a C long in front of each message: struct msgbuf in msgop(2)


def _limit(name: str, usual: int) -> int:
    """A limit of this IPC namespace: msgmax, msgmnb or msgmni, proc_sys_kernel(5)."""
    try:
        return int(Path("/proc/sys/kernel", name).read_text())
    except OSError:
        return usual


MAX_MESSAGE = min(_limit("msgmax", 8192), _limit("msgmnb", 16384)) - TAG_BYTES

FACTS = Facts(
    boundaries=True,
    ordered=True,
    tells_close=False,
    pollable=False,
    duplex=False,
    related_only=False,
    many_senders=True,
    many_receivers=True,
    reliable=True,
    handed_over=True,
    persistence="kernel",
    max_message=MAX_MESSAGE,
    namespaced_by="ipc",
    copies=4,
    manual="sysvipc(7)",
)


def open(*, max_message: int = MAX_MESSAGE, capacity: int | None = None) -> tuple[SysvSender, SysvReceiver]:
    """A new queue without a name, for a process and its children.

    Args:
        max_message: bytes in the largest message, at most kernel.msgmax less 8.
        capacity: bytes of messages that the queue holds before send waits, kernel.msgmnb unless told otherwise; only
            root may ask for more.

    Raises:
        ValueError: an option is out of range.
        OSError: ENOSPC, the machine has no room for another queue; EPERM, the capacity is for root only.
    """
    _check(max_message, capacity)
    note = Note.unnamed("msg")
    second = left = right = None
    try:
        _make(note, capacity)
        second = note.clone()
        left, right = Lifeline.pair()
        return SysvSender(note, max_message, left), SysvReceiver(second, max_message, right)
    except BaseException:
        for thing in (left, right, second, note):
            if thing:
                thing.close()
        raise


def open_named(
    name: str, *, max_message: int = MAX_MESSAGE, capacity: int | None = None
) -> tuple[SysvSender, SysvReceiver]:
    """A new queue that unrelated processes find by its name. It stays until `unlink`; its ends tell nobody of closing.

    Raises:
        FileExistsError: there is a queue of this name.
    """
    _check(max_message, capacity)
    with notes.making("sysv_mq"):
        tx = _named(SysvSender, name, max_message, capacity, only_new=True)
        try:
            return tx, SysvReceiver(tx.note.clone(), max_message)
        except BaseException:
            notes.remove_objects(("msg",), tx.note.key)
            tx.note.path.unlink(missing_ok=True)
            tx.close()
            raise


def open_sender(
    name: str, create: bool = False, *, max_message: int = MAX_MESSAGE, capacity: int | None = None
) -> SysvSender:
    """The sending end of a queue with a name. Raises FileNotFoundError, unless it may be created."""
    _check(max_message, capacity)
    with notes.making("sysv_mq"):
        return _named(SysvSender, name, max_message, capacity, create)


def open_receiver(
    name: str, create: bool = False, *, max_message: int = MAX_MESSAGE, capacity: int | None = None
) -> SysvReceiver:
    """The receiving end of a queue with a name. Raises FileNotFoundError, unless it may be created."""
    _check(max_message, capacity)
    with notes.making("sysv_mq"):
        return _named(SysvReceiver, name, max_message, capacity, create)


def unlink(name: str) -> None:
    """Remove the queue of this name and all that is in it. Who uses it is told that it is gone (EIDRM): Closed.

    Raises:
        FileNotFoundError: there is none.
    """
    notes.unlink("sysv_mq", name, "msg")


def _check(max_message: int, capacity: int | None) -> None:
    most = _limit("msgmax", 8192) - TAG_BYTES
    if not 0 < max_message <= most:
        raise ValueError(
            f"max_message is 1 to {most:,} bytes here (kernel.msgmax less {TAG_BYTES}), not {max_message:,}"
        )
    if capacity is not None and not max_message + TAG_BYTES <= capacity < 1 << 31:
        raise ValueError(
            f"capacity must hold the largest message, {max_message:,} bytes, and {TAG_BYTES} more, not {capacity:,}"
        )


def _named(
    end: Any, name: str, max_message: int, capacity: int | None, create: bool = False, only_new: bool = False
) -> Any:
    there = notes.find("msg", notes.key_of("sysv_mq", name)) is not None
    if there and only_new:
        raise FileExistsError(errno.EEXIST, "there is a System V message queue of this name already", name)
    if not (there or create or only_new):
        text = 'no System V message queue of this name; channel("sysv_mq", name=...) makes one'
        raise FileNotFoundError(errno.ENOENT, text, name)
    note = Note.named("sysv_mq", name, "msg")
    try:
        if not there:
            _make(note, capacity)
        return end(note, max_message)
    except BaseException:
        note.close()
        if not there:
            notes.remove_objects(("msg",), note.key)
            note.path.unlink(missing_ok=True)
        raise


def _make(note: Note, capacity: int | None) -> None:
    # Through libc: sysv_ipc reports some errors in words only, without their numbers.
    if libc.msgget(note.key, IPC_CREAT | IPC_EXCL | 0o600) < 0:
        number = ffi.errno
        advice = {
            errno.ENOSPC: f"the machine is at its limit of {_limit('msgmni', 32000):,} queues (kernel.msgmni): "
            "`ipcs -q` lists them, `labkit clean` removes those that labkit left",
            errno.ENOSYS: "this kernel has no System V IPC (CONFIG_SYSVIPC): use posix_mq instead",
            errno.EPERM: "a sandbox may forbid it: use unix_seqpacket instead",
        }.get(number, "see msgget(2)")
        raise unavailable("msgget", number, advice)
    queue = sysv_ipc.MessageQueue(note.key)
    if capacity is not None and capacity != queue.max_size:
        try:
            queue.max_size = capacity
        except (OSError, sysv_ipc.PermissionsError) as reason:
            most = _limit("msgmnb", 16384)
            advice = f"only root may let a queue hold more than {most:,} bytes (kernel.msgmnb): ask for less capacity"
            raise unavailable("msgctl", errno.EPERM, advice) from reason


class _SysvEnd:
    """What both ends hold: the note, by whose key the queue is found, and the lifeline of a pair."""

    kind, facts = "sysv_mq", FACTS

    @staticmethod
    def aftermath() -> None:
        notes.sweep()

    closed: bool
    _must_be_open: Callable[[], None]
    _queue: sysv_ipc.MessageQueue | None = None

    def __init__(self, note: Note, max_message: int, lifeline: Lifeline | None = None):
        self.note = note
        self.lifeline = lifeline
        try:
            queue = sysv_ipc.MessageQueue(note.key, max_message_size=_limit("msgmax", 8192))
        except sysv_ipc.ExistentialError:
            raise FileNotFoundError(errno.ENOENT, "this System V message queue has been removed") from None
        self.id: int = queue.id
        self._queue = queue
        # A message larger than the whole queue would wait for ever; somebody may have made it smaller than usual.
        self.max_message = self._limit = max(1, min(max_message, queue.max_size - TAG_BYTES))

    def clone(self) -> Any:
        self._must_be_open()
        return type(self)(self.note.clone(), self.max_message, self.lifeline and self.lifeline.clone())

    def _farewell(self) -> None:
        self.note.close()  # who is the last removes the queue

    def _let_go(self) -> None:
        self._queue = None
        self.note.let_go()
        if self.lifeline:
            self.lifeline.close()

    def __reduce__(self) -> Any:
        lifeline = self.lifeline and travelling(self.lifeline.fileno())
        return _arrives, (type(self), self.note, self.max_message, lifeline)

    def _failed(self, reason: BaseException) -> Exception:
        """What to raise when the queue could not be used."""
        self._must_be_open()
        if isinstance(reason, sysv_ipc.ExistentialError) or getattr(reason, "errno", 0) in notes.GONE:
            return Closed("this queue has been removed (EIDRM): unlink, or ipcrm(1)")
        return reason if isinstance(reason, Exception) else RuntimeError(reason)

    def _block(self, name: str, call: Callable[[], int], waiter: Waiter, doing: str) -> int:
        """Block in a system call until it succeeds; -1 when the other side has gone meanwhile."""
        try:
            return interruptible(name, call, waiter, doing, self.lifeline.cut if self.lifeline else None)
        except OSError as reason:
            if reason.errno in notes.GONE:
                raise Closed("this queue has been removed (EIDRM): unlink, or ipcrm(1)") from None
            raise


class SysvSender(_SysvEnd, Sender):
    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT, type: int = 1) -> None:
        """As Sender.send; `type`, 1 to 2,147,483,647, is what a receiver can choose messages by."""
        if message.__class__ is not bytes or not 0 < len(message) <= self._limit:
            message = as_bytes(message, self._limit)
        try:
            self._queue.send(message, False, type)  # type: ignore[union-attr]
        except sysv_ipc.BusyError:
            self._wait(bytes(message), timeout, type)
        except (ValueError, OverflowError):
            raise ValueError(f"a type is 1 to 2,147,483,647, not {type}") from None
        except (sysv_ipc.Error, OSError, AttributeError) as reason:
            raise self._failed(reason) from reason

    def _wait(self, message: bytes, timeout: float | None, type: int) -> None:
        if timeout == 0:
            if self.lifeline and self.lifeline.cut():
                raise Closed("the queue is full and no receiver is left")
            raise TimeoutError("the message queue is full")
        room = ffi.from_buffer(type.to_bytes(TYPE_BYTES, sys.byteorder) + message)
        waiter = Waiter(timeout)
        call = lambda: libc.msgsnd(self.id, room, len(message), 0)  # noqa: E731
        if self._block("msgsnd", call, waiter, "the message queue stayed full") < 0:
            raise Closed("the queue is full and no receiver is left")

    @property
    def capacity(self) -> Capacity:
        self._must_be_open()
        return Capacity(self._queue.max_size, "bytes")  # type: ignore[union-attr]


class SysvReceiver(_SysvEnd, Receiver):
    last_type = 0
    """The type of the message received last."""

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT, type: int = 0) -> bytes:
        """As Receiver.receive; `type` 0 takes the oldest, n the oldest of that type, -n the lowest type up to n.

        The type of the message that came is in `last_type`. Closed means that nothing of these types will come.
        """
        try:
            message, self.last_type = self._queue.receive(False, type)  # type: ignore[union-attr]
            return message
        except sysv_ipc.BusyError:
            return self._wait(timeout, type)
        except OverflowError:
            raise ValueError(f"a type is -2,147,483,647 to 2,147,483,647, not {type}") from None
        except (sysv_ipc.Error, OSError, AttributeError) as reason:
            raise self._failed(reason) from reason

    def _wait(self, timeout: float | None, type: int) -> bytes:
        most = _limit("msgmax", 8192)
        room = ffi.new("char[]", TYPE_BYTES + most)
        size = -1
        if timeout != 0:
            call = lambda: libc.msgrcv(self.id, room, most, type, 0)  # noqa: E731
            size = self._block("msgrcv", call, Waiter(timeout), "nothing came through the message queue")
        elif not (self.lifeline and self.lifeline.cut()):
            raise TimeoutError("the message queue is empty")
        if size < 0:  # every sender has gone: what they left is still to be had
            size = libc.msgrcv(self.id, room, most, type, IPC_NOWAIT)
        if size < 0:
            raise Closed("every sender has closed its end of this queue")
        message: bytes = ffi.buffer(room)[: TYPE_BYTES + size]
        self.last_type = int.from_bytes(message[:TYPE_BYTES], sys.byteorder)
        return message[TYPE_BYTES:]


def _arrives(end: Any, note: Note, max_message: int, lifeline: Any) -> Any:
    return end(note, max_message, lifeline and arrived_lifeline(lifeline))
