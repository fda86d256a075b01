"""The ends of a traced channel, and traced locks: they record what they do while they do it.

A process that holds one writes into a ring of its own in the memory of the trace (labkit.trace): an SPSC ring of events
(labkit.lockfree.spsc), and behind it, for a sender, the first bytes of its messages. What records is compiled, and
takes the place of the methods `send` and `receive` (labkit.trace_entry). The id of a message travels as eight bytes in
front of its payload. Mechanisms know nothing of all this.
"""

from __future__ import annotations

import errno
import functools
import mmap
import os
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from labkit import machine
from labkit.channels.base import (
    CLOSED_HERE,
    DEFAULT_TIMEOUT,
    Capacity,
    Message,
    Receiver,
    Sender,
    arrived,
    as_bytes,
    travelling,
)
from labkit.lockfree import spsc
from labkit.lockfree.entry import MOST, RING, new_state
from labkit.sync.shared import Held, Shared
from labkit.trace_entry import (
    CALL,
    CONTENTS,
    FIRST_BYTES,
    FOREIGN,
    HEADER,
    LATER,
    ORIGIN,
    PID,
    READ_SEEN,
    REST,
    SLOT_BYTES,
    TAG,
    trace_entries,
)

if TYPE_CHECKING:
    from labkit.trace import Trace

RING_EVENTS = 1 << 17
"""Events that an endpoint records while the collector is busy elsewhere."""
RING_BYTES = RING_EVENTS * SLOT_BYTES
CONTENTS_BYTES = RING_EVENTS * FIRST_BYTES  # behind the slots of a sender's ring
# A ring's place, whole pages; what a small ring leaves of it is a hole that takes no memory.
STRIDE = -(-(spsc.DATA + RING_BYTES + CONTENTS_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
LOCK_RING_BYTES = RING_BYTES >> 2  # a lock has a ring in every process that it is handed to


def map_ring(memory: int, number: int, ring_bytes: int) -> np.ndarray:
    mapping = mmap.mmap(memory, spsc.DATA + ring_bytes, offset=number * STRIDE)
    return np.frombuffer(mapping, np.int64)  # keeps the mapping alive


def counts_of(semaphore: Any) -> list[int]:
    """How many there are to take at first, of each semaphore in it."""
    if hasattr(semaphore, "values"):
        return [int(value) for value in semaphore.values]
    return [int(getattr(semaphore, "value", 1))]


class _Traced:
    """What a traced sender and receiver have in common: the wrapped end and the ring they record in."""

    trace: Trace | None = None  # only in the process that made it
    closed: bool
    _is_copy = False  # made by fork(2)
    _method: ClassVar[str]
    _ring: np.ndarray | None

    def __init__(self, inner: Any, memory: int, channel: int, number: int, tag: int, contents: bool):
        self._inner = inner
        self._memory = memory
        self._channel, self._number, self._contents = channel, number, contents
        self.kind, self.facts = inner.kind, inner.facts
        self.aftermath = inner.aftermath
        ring = self._ring = map_ring(memory, number, RING_BYTES + CONTENTS_BYTES * contents)
        self._state = state = new_state(ring.ctypes.data, RING_BYTES, getattr(inner, "max_message", 0))
        state[[TAG // 8, PID // 8, ORIGIN // 8]] = tag, machine.known_pid(), channel | number << 16
        state[CONTENTS // 8] = contents
        self._record = {name: entry.builtin(state, ring) for name, entry in trace_entries().items()}
        _recorders.add(self)

    def _compiled(self, call: Callable[..., Any], later: Callable[..., Any] | None) -> Any:
        """What takes the place of our method `_method`: the compiled one. It makes these calls, see trace_entry."""
        rest = functools.partial(_rest, weakref.ref(self))
        calls = {CALL: call, LATER: later, REST: rest, FOREIGN: _foreign}
        for word, called in calls.items():
            self._state[word // 8] = id(called) if called else 0
        return trace_entries()[self._method].builtin(self._state, (self._ring, calls))

    def fileno(self) -> int:
        return int(self._inner.fileno())

    def clone(self) -> Any:
        """A second end on the same channel. Raises ValueError in another process than the trace's own."""
        self._must_be_open()
        if self.trace is None:
            raise ValueError("clone a traced end in the process that made the trace, before it is handed on")
        inner = self._inner.clone()
        self._state[MOST // 8] = getattr(self._inner, "max_message", 0)
        return self.trace._attach(type(self), inner, self._channel)

    def _farewell(self) -> None:
        self._record["closed"]()
        self._inner._farewell()

    def _let_go(self) -> None:
        def refuse(*_: object) -> None:  # another process may write to our ring now, and only one can
            raise ValueError(CLOSED_HERE)

        self._begins = self._ends = refuse
        if vars(self).pop(self._method, None):  # it maps our ring, and somebody may have kept it
            self._state[CALL // 8] = 0
        self._ring = None
        self._record = dict.fromkeys(self._record, refuse)
        self._inner.given_away()
        os.close(self._memory)

    def _record_nothing(self) -> None:
        self.trace, self._is_copy = None, True
        _to_nowhere(self._state)
        self._state[TAG // 8] |= 1 << 39  # ids that its parent never comes to

    _must_be_open: Callable[[], None]
    _begins: Callable[..., Any]
    _ends: Callable[..., Any]
    _record: dict[str, Callable[..., Any]] = {}  # noqa: RUF012

    def __reduce__(self) -> Any:
        if self._is_copy:
            raise ValueError("this traced end is a copy made by fork(2): hand it on from its own process")
        tag = int(self._state[TAG // 8])
        ticket = travelling(self._memory)
        return _arrives, (type(self), self._inner, ticket, self._channel, self._number, tag, self._contents)


class TracedSender(_Traced, Sender):
    """A sender that records. Every message carries its id in front, which the TracedReceiver takes off."""

    _method = "send"

    def __init__(self, inner: Sender, memory: int, channel: int, number: int, tag: int, contents: bool):
        super().__init__(inner, memory, channel, number, tag, contents)
        inner._allow_tag()
        self._begins, self._ends = self._record["send_begins"], self._record["send_ends"]
        self._state[HEADER // 8] = inner.header_bytes
        self._send: Callable[..., None] = inner._write if inner.header_bytes else inner.send  # type: ignore[attr-defined]
        self.send = self._compiled(inner._at_once or self._send, inner._later)  # type: ignore[method-assign]

    def send(self, message: Message, timeout: float | None = DEFAULT_TIMEOUT, **extra: Any) -> None:
        """As Sender.send; what a mechanism takes beyond that (priority=, type=) is passed on."""
        try:
            framed = self._begins(message)
        except (TypeError, ValueError, BufferError):
            framed = None
        if framed is None:
            self._must_be_open()
            as_bytes(message, self.max_message)  # raises what is wrong with it
        try:
            self._send(framed, timeout, **extra)
        except BaseException:
            self._record["dropped"](framed)
            raise
        self._ends(framed)

    @property
    def max_message(self) -> int:  # type: ignore[override]
        return self._inner.max_message

    @property
    def capacity(self) -> Capacity:
        return self._inner.capacity


class TracedReceiver(_Traced, Receiver):
    """A receiver that records."""

    _method = "receive"

    def __init__(self, inner: Receiver, memory: int, channel: int, number: int, tag: int, contents: bool):
        super().__init__(inner, memory, channel, number, tag, contents)
        self._begins, self._ends = self._record["receive_begins"], self._record["receive_ends"]
        self._receive = inner.receive
        self.receive = self._compiled(inner._at_once or inner.receive, inner.receive)  # type: ignore[method-assign]

    def receive(self, timeout: float | None = DEFAULT_TIMEOUT, **extra: Any) -> bytes:
        """As Receiver.receive; what a mechanism takes beyond that (type=) is passed on."""
        self._begins()
        try:
            tagged = self._receive(timeout, **extra)
        except BaseException:
            self._record["gave_up"]()
            raise
        message: bytes | None = self._ends(tagged)
        return _foreign(tagged) if message is None else message


def _rest(me: weakref.ref[Any], *arguments: Any, **named: Any) -> Any:
    """What the compiled `send` and `receive` leave to our own."""
    end = me()
    if end is None:
        raise ValueError("this end is closed: it is no longer there")
    return getattr(type(end), end._method)(end, *arguments, **named)


def _foreign(tagged: bytes) -> Any:
    raise OSError(errno.EBADMSG, f"a message of {len(tagged)} bytes came from a sender that is not traced")


def _arrives(wrapper: Any, inner: Any, ticket: Any, channel: int, number: int, tag: int, contents: bool) -> Any:
    return wrapper(inner, arrived(ticket), channel, number, tag, contents)


class TracedLock(Held, Shared):
    """A lock or semaphore that records. It has the methods and attributes of the one inside it.

    Every process that it is handed to has a ring of its own, reserved here when it is pickled for that process.
    """

    trace: Trace | None = None  # only in the process that made it

    def __init__(self, inner: Any, memory: int, first: int, number: int):
        self._inner, self._first, self._number = inner, first, number
        ring = map_ring(memory, number, LOCK_RING_BYTES)
        self._records = []  # one dictionary for each semaphore in it
        self._states = []
        for lock in range(first, first + len(counts_of(inner))):
            state = new_state(ring.ctypes.data, LOCK_RING_BYTES, 0)
            state[[PID // 8, ORIGIN // 8]] = machine.known_pid(), lock | number << 16
            entries = trace_entries().items()
            self._records.append({name: e.builtin(state, ring) for name, e in entries if name.startswith("lock_")})
            self._states.append(state)
            self._records[-1]["lock_opened"]()
        self._only = self._records[0] if len(self._records) == 1 else None
        self._acquire, self._release = inner.acquire, inner.release
        _recorders.add(self)

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        """As the lock's own acquire."""
        if self.closed:
            self._must_be_open()
        record = self._only or self._records[self._index(args, kwargs)]
        record["lock_waits"]()
        try:
            result = self._acquire(*args, **kwargs)
        except BaseException:
            record["lock_gave_up"]()
            raise
        record["lock_acquired"]()
        return result

    def release(self, *args: Any, **kwargs: Any) -> Any:
        """As the lock's own release."""
        if self.closed:
            self._must_be_open()
        record = self._only or self._records[self._index(args, kwargs)]
        record["lock_released"]()
        return self._release(*args, **kwargs)

    def ops(self, operations: Iterable[tuple[int, int, bool]], timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """As SysvSemaphores.ops; taking several at once is recorded as waiting for each of them."""
        self._must_be_open()
        operations = list(operations)
        taken = [self._records[index] for index, delta, _ in operations for _ in range(-delta)]
        given = [self._records[index] for index, delta, _ in operations for _ in range(delta)]
        for record in taken:
            record["lock_waits"]()
        if not taken:  # who gives does not wait: before, as in release
            for record in given:
                record["lock_released"]()
        try:
            self._inner.ops(operations, timeout)
        except BaseException:
            for record in taken:
                record["lock_gave_up"]()
            raise
        for record in taken:
            record["lock_acquired"]()
        if taken:
            for record in given:
                record["lock_released"]()

    def recover(self, *args: Any, **kwargs: Any) -> Any:
        """As Mutex.recover: take over what a dead process held."""
        self._must_be_open()
        result = self._inner.recover(*args, **kwargs)
        self._records[0]["lock_acquired"]()
        return result

    def _record_nothing(self) -> None:
        self.trace = None
        _to_nowhere(*self._states)

    def _index(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Which semaphore of a set of several is meant."""
        index = args[0] if args else kwargs.get("index", 0)
        if index not in range(len(self._records)):
            raise ValueError(
                f"this set has {len(self._records)} semaphores, 0 to {len(self._records) - 1}, not {index}"
            )
        return int(index)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    def _let_go(self) -> None:
        for record in self._records:
            record["lock_closed"]()
        self._inner.close()

    def _state(self) -> str:
        return f"traced {self._inner!r}"

    def __reduce__(self) -> Any:
        self._must_be_open()
        trace = self.trace
        if trace is None:
            raise ValueError("hand a traced lock on from the process that made the trace")
        handed = trace._hand(range(self._first, self._first + len(self._records)))
        if handed is None:
            return _itself, (self._inner,)
        ticket, number = handed
        return _lock_arrives, (self._inner, ticket, self._first, number)


def _lock_arrives(inner: Any, ticket: Any, first: int, number: int) -> TracedLock:
    memory = arrived(ticket)
    try:
        return TracedLock(inner, memory, first, number)
    finally:
        os.close(memory)


def _itself(inner: Any) -> Any:
    return inner


# --- copies made by fork(2) ---------------------------------------------------------------------------------

_recorders: weakref.WeakSet[_Traced | TracedLock] = weakref.WeakSet()
_nowhere: np.ndarray | None = None


def _to_nowhere(*states: np.ndarray) -> None:
    """From now on these record in memory that nobody reads."""
    for state in states:
        state[[RING // 8, READ_SEEN // 8]] = _nowhere.ctypes.data, 0  # type: ignore[union-attr]


def _after_fork() -> None:
    """A copy records nothing: a ring has one writer, and the next ids of messages are its parent's."""
    global _nowhere
    recorders = list(_recorders)
    if recorders:
        _nowhere = np.zeros(STRIDE // 8, np.int64)
        for recorder in recorders:
            recorder._record_nothing()


os.register_at_fork(after_in_child=_after_fork)
