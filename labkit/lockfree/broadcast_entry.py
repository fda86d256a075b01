"""Broadcast's builtins: what is sent and received from Python, at a price near that of list.append."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import cfunc, njit, types

from labkit.lockfree import bells, broadcast
from labkit.lockfree.atomics import load_relaxed, on_stack, pause, store_relaxed
from labkit.lockfree.broadcast import EMPTY, OVERRUN
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

# The private state of one Broadcast object in one process. RING is the body, RING_BYTES the capacity (items: in items).
ITEM_BYTES = OWN  # 0: messages of any length
WRITES = OWN + 8  # 1: this process is the writer
GOES_ON = OWN + 16  # 1: go on after an overrun, without a word
GAP = OWN + 24  # how many messages the last overrun has cost
SPINS = OWN + 32  # how often to look before sleeping is cheaper
BELL, BELL_FD = OWN + 40, OWN + 48  # address of the bell ITEMS, and the descriptor of who polls
BORROWS = OWN + 56  # 1: a message is borrowed, and nothing may be received
LOANS = OWN + 64  # 1: a loan is out, and nothing may be sent
PRIVATE = OWN + 72  # address of what the process knows of the segment: labkit.lockfree.bells
CURSOR = OWN + 80  # four words: labkit.lockfree.broadcast

REFUSED, NOT_WRITER, BAD, SENT = range(4)
"""What `broadcast_send` returns; REFUSED: empty, too large, or no whole number of items."""
MISSED, BUSY = 5, 6
"""What `broadcast_receive` returns instead of bytes, besides BAD and None; BUSY: a message is borrowed."""

PyList_New = types.ExternalFunction("PyList_New", WORD(WORD))
PyList_Append = types.ExternalFunction("PyList_Append", types.int32(WORD, WORD))
PyObject_Size = types.ExternalFunction("PyObject_Size", WORD(WORD))
PyErr_Occurred = types.ExternalFunction("PyErr_Occurred", WORD())
Py_DecRef = types.ExternalFunction("Py_DecRef", types.void(WORD))
SENDER = 0  # the writer's role: labkit.lockfree.segment
WRITABLE = 1  # PyBUF_WRITABLE


@njit
def there(state):
    """EMPTY, CORRUPT, OVERRUN, or greater: something can be received."""
    body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    if load_relaxed(state + ITEM_BYTES):
        return broadcast.items_there(body, capacity, state + CURSOR)
    return broadcast.next_message(body, capacity, state + CURSOR)


@njit
def overrun(state):
    """Catch up. True when nothing need be said about it."""
    body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    if load_relaxed(state + ITEM_BYTES):
        gap = broadcast.catch_up_items(body, capacity, state + CURSOR)
    else:
        gap = broadcast.catch_up(body, capacity, state + CURSOR)
    store_relaxed(state + GAP, gap)
    return gap >= 0 and load_relaxed(state + GOES_ON) != 0


@njit
def trouble(state):
    """What to return after an overrun about which something is to be said."""
    return MISSED if load_relaxed(state + GAP) >= 0 else BAD


@njit
def send_bytes(state, source, size):
    """Send one message, or items; returns SENT or why not."""
    body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    item_bytes = load_relaxed(state + ITEM_BYTES)
    if load_relaxed(state + WRITES) == 0 or load_relaxed(state + LOANS):
        return NOT_WRITER
    if item_bytes:
        if size <= 0 or size % item_bytes:
            return REFUSED
        done = broadcast.write_items(body, capacity, item_bytes, source, size // item_bytes)
    else:
        if size <= 0 or size > load_relaxed(state + MOST):
            return REFUSED
        done = broadcast.write_message(body, capacity, source, size)
    return SENT if done == 0 else BAD


@njit
def take_bytes(state):
    """A new bytes object, 0 with an exception set, or -1 and in GAP why: EMPTY, OVERRUN or CORRUPT."""
    body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    size = broadcast.next_message(body, capacity, state + CURSOR)
    if size > 0:
        message = PyBytes_FromStringAndSize(0, size)
        if message == 0:
            return 0  # MemoryError is set, and the message stays where it is
        size = broadcast.take_message(body, capacity, state + CURSOR, PyBytes_AsString(message), size)
        if size == 0:
            return message
        Py_DecRef(message)
    store_relaxed(state + GAP, size)
    return -1


@njit
def receive_bytes(state):
    """A new bytes object, 0 with an exception set, or why not, negative: -1, there is none; -MISSED; -BAD."""
    while True:
        message = take_bytes(state)
        if message >= 0:
            return message
        why = load_relaxed(state + GAP)
        if why == EMPTY:
            return -1
        if why != OVERRUN:
            return -BAD
        if not overrun(state):
            return -trouble(state)


@njit
def ring(state):
    bells.ring(load_relaxed(state + BELL), load_relaxed(state + BELL_FD))


@cache
def broadcast_entries() -> dict[str, Entry]:
    """The compiled functions, made on first use: some seconds on a machine that has never run them, else at once."""
    return _compile(SOURCES)


def _compile(key: str) -> dict[str, Entry]:
    @cfunc(BUILTIN, cache=True)
    def broadcast_send(self, message):
        """Send one bytes-like object, or items, or say why not."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(message, buffer, 0) != 0:
            return 0  # TypeError or BufferError is set
        sent = send_bytes(state, load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE))
        PyBuffer_Release(buffer)
        if sent == SENT:
            ring(state)
        return PyLong_FromLongLong(sent)

    @cfunc(BUILTIN, cache=True)
    def broadcast_receive(self, ignored):
        """The next message, None when there is none, or MISSED, BAD, BUSY."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        if load_relaxed(state + BORROWS):
            return PyLong_FromLongLong(BUSY)
        message = receive_bytes(state)
        if message >= 0:
            return message
        return none(state) if message == -1 else PyLong_FromLongLong(-message)

    @cfunc(BUILTIN, cache=True)
    def broadcast_receive_many(self, most):
        """A list of the messages that are there, up to so many; empty when there is none; or MISSED, BAD, BUSY."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        number = PyLong_AsLong(most)
        if number == -1 and PyErr_Occurred():
            return 0
        if load_relaxed(state + BORROWS):
            return PyLong_FromLongLong(BUSY)
        messages = PyList_New(0)
        if messages == 0:
            return 0
        for taken in range(number):
            message = take_bytes(state) if taken else receive_bytes(state)
            if message < 0:
                if taken or message == -1:
                    return messages  # the next call will tell of an overrun
                Py_DecRef(messages)
                return PyLong_FromLongLong(-message)
            if message == 0 or PyList_Append(messages, message) != 0:
                Py_DecRef(messages)
                return 0
            Py_DecRef(message)
        return messages

    @cfunc(BUILTIN, cache=True)
    def broadcast_receive_into(self, room):
        """Fill a writable buffer with items, as many as there are and fit: how many; or -MISSED, -BAD, -BUSY."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(room, buffer, WRITABLE) != 0:
            return 0
        body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
        item_bytes = load_relaxed(state + ITEM_BYTES)
        to, most = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        taken = -BUSY
        if load_relaxed(state + BORROWS) == 0 and item_bytes > 0:
            while True:
                taken = broadcast.take_items(body, capacity, item_bytes, state + CURSOR, to, most // item_bytes)
                if taken >= 0:
                    break
                if taken != OVERRUN:
                    taken = -BAD
                    break
                if not overrun(state):
                    taken = -trouble(state)
                    break
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(taken)

    @cfunc(BUILTIN, cache=True)
    def broadcast_spin(self, ignored):
        """Watch for a few microseconds with the GIL released; 1 when there is something to be received or told."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        body = load_relaxed(state + RING)
        thread = PyEval_SaveThread()
        came = 0
        for _ in range(load_relaxed(state + SPINS)):
            if broadcast.anything_new(body, state + CURSOR):
                came = 1
                break
            pause()
        PyEval_RestoreThread(thread)
        return PyLong_FromLongLong(came)

    return {
        "send": Entry(broadcast_send, METH_O),
        "receive": Entry(broadcast_receive, METH_NOARGS),
        "receive_many": Entry(broadcast_receive_many, METH_O),
        "receive_into": Entry(broadcast_receive_into, METH_O),
        "spin": Entry(broadcast_spin, METH_NOARGS),
    }


@cache
def broadcast_functions() -> dict[str, Callable[..., int]]:
    """What is called more seldom, for calling from Python with the address of the state."""

    def compiled(key: str) -> dict[str, Any]:
        @cfunc(WORD(WORD, WORD), cache=True)
        def start(state, newest):
            key  # see SOURCES
            body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
            if load_relaxed(state + ITEM_BYTES):
                return broadcast.start_items(body, state + CURSOR, newest)
            return broadcast.start(body, capacity, state + CURSOR, newest)

        @cfunc(WORD(WORD), cache=True)
        def waiting(state):
            key  # see SOURCES
            body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
            if load_relaxed(state + ITEM_BYTES):
                return broadcast.waiting_items(body, state + CURSOR)
            return broadcast.waiting(body, capacity, state + CURSOR)

        @cfunc(WORD(WORD, WORD), cache=True)
        def claim(state, size):
            key  # see SOURCES
            body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
            if load_relaxed(state + ITEM_BYTES):
                return broadcast.claim_items(body, capacity, load_relaxed(state + ITEM_BYTES), 1)
            return broadcast.claim(body, capacity, size)

        @cfunc(WORD(WORD, WORD), cache=True)
        def offset(state, position):
            key  # see SOURCES
            capacity = load_relaxed(state + RING_BYTES)
            if load_relaxed(state + ITEM_BYTES):
                return broadcast.item_at(0, capacity, load_relaxed(state + ITEM_BYTES), position)
            return broadcast.at(0, capacity, position)

        @cfunc(types.void(WORD, WORD, WORD), cache=True)
        def finish(state, position, size):
            key  # see SOURCES
            broadcast.loaned(size)
            if load_relaxed(state + ITEM_BYTES):
                broadcast.publish(load_relaxed(state + RING), position + 1)
            else:
                broadcast.finish(load_relaxed(state + RING), load_relaxed(state + RING_BYTES), position, size)
            ring(state)

        @cfunc(WORD(WORD), cache=True)
        def look(state):
            key  # see SOURCES
            return there(state)

        @cfunc(WORD(WORD), cache=True)
        def is_whole(state):
            key  # see SOURCES
            position = load_relaxed(state + CURSOR + broadcast.POSITION)
            return WORD(broadcast.is_whole(load_relaxed(state + RING), position))

        @cfunc(WORD(WORD, WORD), cache=True)
        def go_on(state, size):
            key  # see SOURCES
            if load_relaxed(state + ITEM_BYTES):
                return broadcast.pass_items(load_relaxed(state + RING), state + CURSOR, 1)
            return broadcast.pass_message(load_relaxed(state + RING), state + CURSOR, size)

        @cfunc(WORD(WORD), cache=True)
        def catch_up(state):
            key  # see SOURCES
            overrun(state)
            return load_relaxed(state + GAP)

        return {f.__name__: f for f in (start, waiting, claim, offset, finish, look, is_whole, go_on, catch_up)}

    return callables(compiled(SOURCES))


# --- for @njit: labkit.lockfree.compiled --------------------------------------------------------------------


@njit
def send_items(state, source, count):
    """Send items: how many, or trouble."""
    if load_relaxed(state + WRITES) == 0 or load_relaxed(state + LOANS):
        return -NOT_WRITER
    body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    if broadcast.write_items(body, capacity, load_relaxed(state + ITEM_BYTES), source, count) < 0:
        return -BAD
    ring(state)
    return count


@njit
def receive_items(state, to, most):
    """Receive items: how many, or trouble."""
    if load_relaxed(state + BORROWS):
        return -BUSY
    body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    while True:
        taken = broadcast.take_items(body, capacity, load_relaxed(state + ITEM_BYTES), state + CURSOR, to, most)
        if taken >= 0:
            return taken
        if taken != OVERRUN:
            return -BAD
        if not overrun(state):
            return -trouble(state)


@njit
def become_writer(state):
    """After NOT_WRITER: whether we are now."""
    if load_relaxed(state + LOANS) or not bells.take_role(load_relaxed(state + PRIVATE), SENDER):
        return False
    store_relaxed(state + WRITES, 1)
    return True


@njit
def items_bell(state):
    return load_relaxed(state + BELL)


@njit
def is_writer_gone(state):
    if load_relaxed(state + WRITES):
        return False  # it is we
    return bells.is_role_gone(load_relaxed(state + PRIVATE), SENDER)


@njit
def may_receive(state):
    return broadcast.anything_new(load_relaxed(state + RING), state + CURSOR)


@njit
def may_send(state):
    return True


@njit
def readers_gone(state):
    return False


@njit
def spins(state):
    return load_relaxed(state + SPINS)
