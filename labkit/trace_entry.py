"""The trace's builtins: one event is written in some 30 ns, clock included, with no lock and no system call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import cfunc, njit, types

from labkit.lockfree import spsc
from labkit.lockfree.atomics import copy, load_relaxed, on_stack, store_relaxed
from labkit.lockfree.entry import (
    BUFFER_SIZE,
    BUFFER_START,
    BUILTIN,
    FASTCALL,
    METH_ANY,
    METH_NOARGS,
    METH_O,
    MOST,
    NONE,
    OWN,
    RING,
    RING_BYTES,
    SOURCES,
    WORD,
    Entry,
    Py_DecRef,
    PyBuffer_Release,
    PyBytes_AsString,
    PyBytes_FromStringAndSize,
    PyBytes_Size,
    PyErr_Clear,
    PyLong_AsLong,
    PyLong_AsVoidPtr,
    PyObject_GetBuffer,
    PyObject_Vectorcall,
    callables,
    none,
)

TAG = OWN  # id of the next message
PID = OWN + 8
ORIGIN = OWN + 16  # channel | endpoint << 16
CLOCK = OWN + 24  # a struct timespec, 16 bytes
HEADER = OWN + 40  # bytes of length that the mechanism wants in front: 0, or 4 on a byte stream
SCRATCH = OWN + 48  # a word that is copied to or from where a message is not aligned
READ_SEEN = OWN + 56  # see labkit.lockfree.spsc
CONTENTS = OWN + 64  # 1: behind its slots the ring has room for the first bytes of each message, 0: it has not
# What `send` and `receive` call, as addresses of Python objects:
CALL = OWN + 72  # sends or receives at once what it can, of the wrapped end; 0: this end is closed
LATER = OWN + 80  # does the rest when that could not: of a sender with what CALL returned and the message
REST = OWN + 88  # is called in place of the builtin, with its arguments, when they are not the usual ones
FOREIGN = OWN + 96  # raises what is wrong with a message without id

SEND_BEGINS, SEND_ENDS, RECEIVE_BEGINS, RECEIVE_ENDS, DROPPED, GAVE_UP, CLOSED = range(1, 8)
LOCK_OPENED, LOCK_WAITS, LOCK_ACQUIRED, LOCK_GAVE_UP, LOCK_RELEASED, LOCK_CLOSED = range(8, 14)
"""labkit.events.Action as constants for compiled code; a test holds the two together."""
SLOT_BYTES = 32
"""An event in a ring: what labkit.events.EVENT has before `first`, two to a cache line."""
FIRST_BYTES = 16
"""Those are in a second array behind the slots, which only a sender's ring has."""
EVENT_BYTES = SLOT_BYTES + FIRST_BYTES
ENDPOINTS = 512
"""Endpoints that one trace has room for."""
TAG_BYTES = 8

clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, WORD))
PyThread_get_thread_ident = types.ExternalFunction("PyThread_get_thread_ident", WORD())
CLOCK_MONOTONIC = 1


@njit
def record(state, message, size, action, source=0):
    """Write one event, and the first bytes of the message at `source`. When the ring is full, count it as lost."""
    ring, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    position = spsc.reserve(ring, capacity, state + READ_SEEN, SLOT_BYTES)
    if position < 0:
        store_relaxed(ring + spsc.LOST, load_relaxed(ring + spsc.LOST) + 1)  # only the sender writes it
        return
    clock_gettime(CLOCK_MONOTONIC, state + CLOCK)
    # Ours until published. Positions are multiples of 32; the mask holds also when somebody has made them others.
    offset = position & (capacity - SLOT_BYTES)
    slot = ring + spsc.DATA + offset
    store_relaxed(slot, load_relaxed(state + CLOCK) * 1_000_000_000 + load_relaxed(state + CLOCK + 8))
    store_relaxed(slot + 8, message)
    store_relaxed(slot + 16, size | (load_relaxed(state + PID) << 32))
    store_relaxed(slot + 24, load_relaxed(state + ORIGIN) | (action << 32))
    if source != 0 and load_relaxed(state + CONTENTS) != 0:
        first = first_at(ring, capacity, offset)
        store_relaxed(first, 0)
        store_relaxed(first + 8, 0)
        copy(first, source, min(size, FIRST_BYTES))
    spsc.publish(ring, position + SLOT_BYTES)


@njit
def first_at(ring, capacity, offset):
    """Where the first bytes belong of the message whose event is at this offset."""
    return ring + spsc.DATA + capacity + offset // SLOT_BYTES * FIRST_BYTES


@njit
def begin(state, message):
    """The message with its id in front (and its length in front of that), None when empty or too large, or 0."""
    buffer = on_stack()
    if PyObject_GetBuffer(message, buffer, 0) != 0:
        return 0  # TypeError or BufferError is set
    source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
    if size == 0 or size > load_relaxed(state + MOST):
        PyBuffer_Release(buffer)
        return none(state)
    header = load_relaxed(state + HEADER)
    framed = PyBytes_FromStringAndSize(0, header + TAG_BYTES + size)
    if framed != 0:  # else MemoryError is set
        start = PyBytes_AsString(framed)
        store_relaxed(state + SCRATCH, TAG_BYTES + size)
        copy(start, state + SCRATCH, header)  # little-endian, as all machines that Numba runs on
        copy(start + header, state + TAG, TAG_BYTES)
        copy(start + header + TAG_BYTES, source, size)
        tag = load_relaxed(state + TAG)
        store_relaxed(state + TAG, tag + 1)
        record(state, tag, size, SEND_BEGINS, source)
    PyBuffer_Release(buffer)
    return framed


@njit
def finish(state, tagged):
    """The message without its id, None when it has none, which a sender that is not traced has sent, or 0."""
    start = PyBytes_AsString(tagged)
    if start == 0:
        return start
    size = PyBytes_Size(tagged) - TAG_BYTES
    if size <= 0:
        return none(state)
    copy(state + SCRATCH, start, TAG_BYTES)
    tag = load_relaxed(state + SCRATCH)
    if not 1 <= tag >> 40 <= ENDPOINTS:
        return none(state)
    message = PyBytes_FromStringAndSize(start + TAG_BYTES, size)
    if message != 0:  # else MemoryError is set
        record(state, tag, size, RECEIVE_ENDS)
    return message


@njit
def has_gone(state, framed):
    """Send with what the wrapped end has for that. Whether the message has gone; if not, an exception is set."""
    buffer = on_stack()
    store_relaxed(buffer, framed)
    left = PyObject_Vectorcall(load_relaxed(state + CALL), buffer, 1, 0)
    if left == 0:
        return False
    if left != load_relaxed(state + NONE) and PyLong_AsLong(left) != 0:
        store_relaxed(buffer, left)
        store_relaxed(buffer + 8, framed)
        done = PyObject_Vectorcall(load_relaxed(state + LATER), buffer, 2, 0)
        if done == 0:
            Py_DecRef(left)
            return False
        Py_DecRef(done)
    Py_DecRef(left)
    return True


@njit
def record_sent(state, framed, action):
    """The event of a message as `send_begins` made it; a new reference to None, or 0 with TypeError set."""
    start, header = PyBytes_AsString(framed), load_relaxed(state + HEADER)
    if start == 0:
        return start
    copy(state + SCRATCH, start + header, TAG_BYTES)
    record(state, load_relaxed(state + SCRATCH), PyBytes_Size(framed) - header - TAG_BYTES, action)
    return none(state)


@njit
def record_bare(state, action):
    record(state, 0, 0, action)
    return none(state)


@njit
def record_lock(state, action):
    record(state, PyThread_get_thread_ident(), 0, action)
    return none(state)


@cache
def trace_functions() -> dict[str, Callable[..., int]]:
    """`take_events`, for calling from Python."""

    def compiled(key: str) -> dict[str, Any]:
        @cfunc(WORD(WORD, WORD, WORD, WORD, WORD), cache=True)
        def take_events(ring, size, contents, to, most):
            """Copy up to `most` events out of a ring, laid out as labkit.events.EVENT: how many, or CORRUPT."""
            key  # see SOURCES
            read = spsc.read_position(ring)
            there = spsc.published(ring) - read
            if there < 0 or there > size:
                return spsc.CORRUPT
            many = min(there // SLOT_BYTES, most)
            for n in range(many):
                offset = (read + n * SLOT_BYTES) & (size - SLOT_BYTES)
                slot = ring + spsc.DATA + offset
                copy(to, slot, SLOT_BYTES)
                if contents != 0 and load_relaxed(slot + 24) >> 32 == SEND_BEGINS:
                    copy(to + SLOT_BYTES, first_at(ring, size, offset), FIRST_BYTES)
                else:
                    store_relaxed(to + SLOT_BYTES, 0)
                    store_relaxed(to + SLOT_BYTES + 8, 0)
                to += EVENT_BYTES
            spsc.release(ring, read + many * SLOT_BYTES)
            return many

        return {"take_events": take_events}

    return callables(compiled(SOURCES))


def _compile(key: str) -> dict[str, Entry]:
    @cfunc(FASTCALL, cache=True)
    def send(self, arguments, count, names):
        """send(message, timeout=30): send one message, and record it."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        framed = 0
        if count == 1 and names == 0 and load_relaxed(state + CALL) != 0:
            framed = begin(state, load_relaxed(arguments))
        if framed == 0 or framed == load_relaxed(state + NONE):  # REST says what is wrong with it
            if framed != 0:
                Py_DecRef(framed)
            PyErr_Clear()
            return PyObject_Vectorcall(load_relaxed(state + REST), arguments, count, names)
        gone = has_gone(state, framed)
        if load_relaxed(state + CALL) != 0:  # else it was closed meanwhile, and another process may have our ring
            header = load_relaxed(state + HEADER)
            copy(state + SCRATCH, PyBytes_AsString(framed) + header, TAG_BYTES)
            size = PyBytes_Size(framed) - header - TAG_BYTES
            record(state, load_relaxed(state + SCRATCH), size, SEND_ENDS if gone else DROPPED)
        Py_DecRef(framed)
        return none(state) if gone else 0

    @cfunc(FASTCALL, cache=True)
    def receive(self, arguments, count, names):
        """receive(timeout=30): the next message, which is recorded."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        if count != 0 or names != 0 or load_relaxed(state + CALL) == 0:
            return PyObject_Vectorcall(load_relaxed(state + REST), arguments, count, names)
        record(state, 0, 0, RECEIVE_BEGINS)
        tagged = PyObject_Vectorcall(load_relaxed(state + CALL), arguments, 0, 0)
        if tagged == load_relaxed(state + NONE):
            Py_DecRef(tagged)
            tagged = PyObject_Vectorcall(load_relaxed(state + LATER), arguments, 0, 0)
        if load_relaxed(state + CALL) == 0:  # it was closed meanwhile, and another process may have our ring
            if tagged != 0:
                Py_DecRef(tagged)
            PyErr_Clear()
            return PyObject_Vectorcall(load_relaxed(state + REST), arguments, count, names)
        if tagged == 0:
            record(state, 0, 0, GAVE_UP)
            return 0
        message = finish(state, tagged)
        if message == load_relaxed(state + NONE):
            Py_DecRef(message)
            buffer = on_stack()
            store_relaxed(buffer, tagged)
            message = PyObject_Vectorcall(load_relaxed(state + FOREIGN), buffer, 1, 0)
        Py_DecRef(tagged)
        return message

    @cfunc(BUILTIN, cache=True)
    def send_begins(self, message):
        """The message with its id in front (and its length in front of that), or None when empty or too large."""
        key  # see SOURCES
        return begin(PyLong_AsVoidPtr(self), message)

    @cfunc(BUILTIN, cache=True)
    def send_ends(self, framed):
        """The message has entered the channel."""
        key  # see SOURCES
        return record_sent(PyLong_AsVoidPtr(self), framed, SEND_ENDS)

    @cfunc(BUILTIN, cache=True)
    def dropped(self, framed):
        """The message did not enter the channel."""
        key  # see SOURCES
        return record_sent(PyLong_AsVoidPtr(self), framed, DROPPED)

    @cfunc(BUILTIN, cache=True)
    def receive_ends(self, tagged):
        """The message without its id, or None when it has none: a sender that is not traced."""
        key  # see SOURCES
        return finish(PyLong_AsVoidPtr(self), tagged)

    @cfunc(BUILTIN, cache=True)
    def receive_begins(self, ignored):
        """The receiver asks for a message."""
        key  # see SOURCES
        return record_bare(PyLong_AsVoidPtr(self), RECEIVE_BEGINS)

    @cfunc(BUILTIN, cache=True)
    def gave_up(self, ignored):
        """The receiver came back without a message."""
        key  # see SOURCES
        return record_bare(PyLong_AsVoidPtr(self), GAVE_UP)

    @cfunc(BUILTIN, cache=True)
    def closed(self, ignored):
        """This end was closed."""
        key  # see SOURCES
        return record_bare(PyLong_AsVoidPtr(self), CLOSED)

    @cfunc(BUILTIN, cache=True)
    def lock_opened(self, ignored):
        """This process can use the lock now."""
        key  # see SOURCES
        return record_lock(PyLong_AsVoidPtr(self), LOCK_OPENED)

    @cfunc(BUILTIN, cache=True)
    def lock_waits(self, ignored):
        """This thread asks for the lock."""
        key  # see SOURCES
        return record_lock(PyLong_AsVoidPtr(self), LOCK_WAITS)

    @cfunc(BUILTIN, cache=True)
    def lock_acquired(self, ignored):
        """This thread has the lock."""
        key  # see SOURCES
        return record_lock(PyLong_AsVoidPtr(self), LOCK_ACQUIRED)

    @cfunc(BUILTIN, cache=True)
    def lock_released(self, ignored):
        """This thread gives the lock back."""
        key  # see SOURCES
        return record_lock(PyLong_AsVoidPtr(self), LOCK_RELEASED)

    @cfunc(BUILTIN, cache=True)
    def lock_gave_up(self, ignored):
        """This thread came back without the lock."""
        key  # see SOURCES
        return record_lock(PyLong_AsVoidPtr(self), LOCK_GAVE_UP)

    @cfunc(BUILTIN, cache=True)
    def lock_closed(self, ignored):
        """This process uses the lock no longer."""
        key  # see SOURCES
        return record_lock(PyLong_AsVoidPtr(self), LOCK_CLOSED)

    entries = dict.fromkeys((send_begins, send_ends, dropped, receive_ends), METH_O)
    entries |= dict.fromkeys((receive_begins, gave_up, closed), METH_NOARGS)
    entries |= dict.fromkeys((send, receive), METH_ANY)
    of_locks = (lock_opened, lock_waits, lock_acquired, lock_gave_up, lock_released, lock_closed)
    entries |= dict.fromkeys(of_locks, METH_NOARGS)
    return {f.__name__: Entry(f, flags) for f, flags in entries.items()}


@cache
def trace_entries() -> dict[str, Entry]:
    """The compiled functions, made on first use."""
    return _compile(SOURCES)
