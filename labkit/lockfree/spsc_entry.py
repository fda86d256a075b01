"""The ring's builtins: `ring_send`, `ring_receive` and `ring_spin`, called from Python at the price of list.append."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import cfunc, njit, types

from labkit.lockfree import spsc
from labkit.lockfree.atomics import load_relaxed, on_stack, pause
from labkit.lockfree.entry import (
    BUFFER_SIZE,
    BUFFER_START,
    BUILTIN,
    METH_NOARGS,
    METH_O,
    MOST,
    OWN,
    RING,
    RING_BYTES,
    SOURCES,
    WORD,
    Entry,
    PyBuffer_Release,
    PyBytes_AsString,
    PyBytes_FromStringAndSize,
    PyEval_RestoreThread,
    PyEval_SaveThread,
    PyLong_AsLong,
    PyLong_AsVoidPtr,
    PyLong_FromLongLong,
    PyObject_GetBuffer,
    callables,
    none,
)

SPINS = OWN  # how often to look before sleeping is cheaper
BELL = OWN + 8  # descriptor of the lifeline: one byte through it wakes the other side
FLAG = OWN + 16  # offset in the ring at which this side says that it sleeps

REFUSED, FULL, CLOSED, CORRUPT, SENT = range(5)
"""What `ring_send` returns; REFUSED: empty or too large. `ring_receive` returns bytes, None when empty, or CORRUPT."""

send = types.ExternalFunction("send", WORD(types.int32, WORD, WORD, types.int32))  # send(2)
MSG_DONTWAIT_NOSIGNAL = 0x40 | 0x4000


@njit
def ring_bell(state):
    """Wake the other side. A full socket already holds a ring, and a dead peer is found out when we wait for it."""
    send(load_relaxed(state + BELL), state, 1, MSG_DONTWAIT_NOSIGNAL)


def _compile(key: str) -> dict[str, Entry]:
    @cfunc(BUILTIN, cache=True)
    def ring_send(self, message):
        """Send one bytes-like object, or say why not."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(message, buffer, 0) != 0:
            return 0  # TypeError or BufferError is set
        source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        ring, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
        result = REFUSED
        if 0 < size <= load_relaxed(state + MOST):
            if load_relaxed(ring + spsc.RECEIVER_GONE):
                result = CLOSED
            else:
                sent = spsc.send_message(ring, capacity, source, size)
                if sent == spsc.FULL:
                    result = FULL
                elif sent == spsc.CORRUPT:
                    result = CORRUPT
                else:
                    result = SENT
                    if spsc.must_wake(ring, spsc.RECEIVER_SLEEPS):
                        ring_bell(state)
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(result)

    @cfunc(BUILTIN, cache=True)
    def ring_receive(self, ignored):
        """The next message, None when the ring is empty, CORRUPT."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        ring, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
        size = spsc.next_message(ring, capacity)
        if size == spsc.EMPTY:
            return none(state)
        if size == spsc.CORRUPT:
            return PyLong_FromLongLong(CORRUPT)
        message = PyBytes_FromStringAndSize(0, size)
        if message != 0:  # else MemoryError is set, and the message stays where it is
            spsc.take_message(ring, capacity, PyBytes_AsString(message), size)
            # A sender that waits for room is left asleep until half of the ring is free, to wake it seldom.
            if spsc.readable(ring, capacity) <= capacity // 2 and spsc.must_wake(ring, spsc.SENDER_SLEEPS):
                ring_bell(state)
        return message

    @cfunc(BUILTIN, cache=True)
    def ring_spin(self, ignored):
        """Watch an empty ring for a few microseconds with the GIL released; 1 when something came."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        ring, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
        thread = PyEval_SaveThread()
        came = 0
        for _ in range(load_relaxed(state + SPINS)):
            if spsc.readable(ring, capacity) != 0:
                came = 1
                break
            pause()
        PyEval_RestoreThread(thread)
        return PyLong_FromLongLong(came)

    @cfunc(BUILTIN, cache=True)
    def ring_sleeps(self, value):
        """Say that this side is about to sleep (1) or has woken (0)."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        number = PyLong_AsLong(value)
        if number == -1:
            return 0  # TypeError or OverflowError is set
        spsc.set_sleeps(load_relaxed(state + RING), load_relaxed(state + FLAG), number)
        return none(state)

    return {
        "sleeps": Entry(ring_sleeps, METH_O),
        "send": Entry(ring_send, METH_O),
        "receive": Entry(ring_receive, METH_NOARGS),
        "spin": Entry(ring_spin, METH_NOARGS),
    }


@cache
def ring_functions() -> dict[str, Any]:
    """`create`, `identity` and `take_bytes` of labkit.lockfree.spsc, for calling from Python."""

    def compiled(key: str) -> dict[str, Any]:
        @cfunc(types.void(WORD, WORD), cache=True)
        def create(ring, capacity):
            key  # see SOURCES
            spsc.create(ring, capacity)

        @cfunc(WORD(WORD, WORD), cache=True)
        def identity(ring, capacity):
            key  # see SOURCES
            return spsc.identity(ring, capacity)

        @cfunc(WORD(WORD, WORD, WORD, WORD), cache=True)
        def take_bytes(ring, capacity, to, most):
            key  # see SOURCES
            return spsc.take_bytes(ring, capacity, to, most)

        return {f.__name__: f for f in (create, identity, take_bytes)}

    return callables(compiled(SOURCES))


@cache
def ring_entries() -> dict[str, Entry]:
    """The compiled functions, made on first use: some seconds on a machine that has never run them, else at once."""
    return _compile(SOURCES)
