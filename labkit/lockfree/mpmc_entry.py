"""Mpmc's builtins: `send` and `receive` themselves are compiled functions, at a price near that of list.append.

The public ones do the common case, and leave the rest (waiting, errors, an object that has not joined yet) to a Python
function, which they call with the arguments that they got. That one uses the plain builtins, which never wait, and say
why not.

A slot holds, behind the algorithm's word, the size of the message and the message; or, where a dtype fixes the size,
the item alone, at `offset`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import cfunc, njit, types

from labkit.lockfree import bells, mpmc
from labkit.lockfree.atomics import (
    compiler_fence,
    copy,
    load_acquire,
    load_constant,
    load_relaxed,
    on_stack,
    prefetch_to_write,
    store_relaxed,
)
from labkit.lockfree.bells import ME
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
    PyBytes_FromStringAndSize,
    PyEval_RestoreThread,
    PyEval_SaveThread,
    PyLong_AsLong,
    PyLong_AsVoidPtr,
    PyLong_FromLongLong,
    PyObject_GetBuffer,
    at_most_timeout,
    callables,
    given_bytes,
    none,
)

# The private state of one Mpmc object in one process. RING is the body of the segment, RING_BYTES the capacity in
# slots, MOST the bytes of the largest message, or of an item.
ITEM_BYTES = OWN  # 0: messages
STRIDE, OFFSET = OWN + 8, OWN + 16  # bytes from slot to slot; where in a slot the message or item is
PRIVATE = OWN + 24  # address of the segment's private words
SENDS, RECEIVES = OWN + 32, OWN + 40  # our number, when we have joined under it
SPINS = OWN + 48  # how often to look before sleeping is cheaper
ITEMS_BELL, ITEMS_FD, ROOM_BELL, ROOM_FD = OWN + 56, OWN + 64, OWN + 72, OWN + 80
SEND_REST, RECEIVE_REST, TRY_SEND_REST, TRY_RECEIVE_REST = OWN + 88, OWN + 96, OWN + 104, OWN + 112
DONE = OWN + 120  # how far the last batch came
THOROUGHLY = OWN + 128  # 1: the next to receive looks for what the dead have left
PATIENCE, CAME = OWN + 136, OWN + 144  # of compiled loops: see mpmc.patience_after
EMPTIES = OWN + 152  # how often a compiled loop has found nothing
SEEN = OWN + 160  # WRITE, as it was when we last looked
LOOK_SELDOM = 1 << 14
SHORT_LIST = 16

REFUSED, APART, FULL, CORRUPT, SENT, NOT_RECEIVER = range(6)
"""What a sender returns. REFUSED: empty, too large, of the wrong size; APART: we have not joined. A receiver returns
what came, None when there is nothing, APART or CORRUPT. NOT_RECEIVER: APART, of a receiver in compiled code."""

ALIGNED = 256
"""Items from so many bytes on begin at a multiple of 64 bytes, the cache line."""


INT = types.int32
METH_FASTCALL, METH_KEYWORDS = 0x0080, 0x0002
FASTCALL = WORD(WORD, WORD, WORD, WORD)  # PyObject *f(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *kw)
WRITABLE = 1  # PyBUF_WRITABLE

PyBytes_AsStringAndSize = types.ExternalFunction("PyBytes_AsStringAndSize", INT(WORD, WORD, WORD))
PyObject_Vectorcall = types.ExternalFunction("PyObject_Vectorcall", WORD(WORD, WORD, WORD, WORD))
PySequence_Size = types.ExternalFunction("PySequence_Size", WORD(WORD))
PySequence_GetItem = types.ExternalFunction("PySequence_GetItem", WORD(WORD, WORD))
PyList_New = types.ExternalFunction("PyList_New", WORD(WORD))
PyList_SetItem = types.ExternalFunction("PyList_SetItem", INT(WORD, WORD, WORD))
PyList_SetSlice = types.ExternalFunction("PyList_SetSlice", INT(WORD, WORD, WORD, WORD))
PyList_Append = types.ExternalFunction("PyList_Append", INT(WORD, WORD))
PyBool_FromLong = types.ExternalFunction("PyBool_FromLong", WORD(WORD))
PyErr_Clear = types.ExternalFunction("PyErr_Clear", types.void())
PyErr_Occurred = types.ExternalFunction("PyErr_Occurred", WORD())
Py_DecRef = types.ExternalFunction("Py_DecRef", types.void(WORD))


def layout(size: int, of_items: bool) -> tuple[int, int]:
    """Bytes from slot to slot, and where in a slot the message is. Small ones lie close together: four in a line."""
    if not of_items:
        return (16 + size + 7) & ~7, 16
    if size < ALIGNED:
        return (8 + size + 7) & ~7, 8
    return (64 + size + 63) & ~63, 64


# --- for builtins, and for the reader's own loops -----------------------------------------------------------


@njit(forceinline=True)
def tell_receivers(state):
    """Something was published."""
    bells.ring(load_constant(state + ITEMS_BELL), load_constant(state + ITEMS_FD))


@njit(forceinline=True)
def tell_senders(state):
    """Something was released. Who waits for room is left asleep until half of the queue is free, to wake it seldom."""
    bell = load_constant(state + ROOM_BELL)
    compiler_fence()  # edge S
    if load_relaxed(bell + bells.WAITERS) != 0:
        capacity = load_relaxed(state + RING_BYTES)
        there = mpmc.length(load_relaxed(state + RING), capacity, load_relaxed(state + STRIDE))
        if load_relaxed(bell + bells.WAITERS) & bells.FENCED or 2 * there <= capacity:
            bells.ring(bell, load_relaxed(state + ROOM_FD))


@njit(forceinline=True)
def sender(state):
    """Our number, when we have joined as a sender under it; else 0."""
    me = load_relaxed(load_constant(state + PRIVATE) + ME)
    return me if load_relaxed(state + SENDS) == me else 0


@njit(forceinline=True)
def receiver(state):
    """Our number, when we have joined as a receiver under it; else 0."""
    me = load_relaxed(load_constant(state + PRIVATE) + ME)
    return me if load_relaxed(state + RECEIVES) == me else 0


@njit
def claim(state):
    """Position of a slot to fill, -FULL, -CORRUPT or -APART."""
    me = sender(state)
    if me == 0:
        return -APART
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    position = mpmc.claim(body, capacity, stride, me)
    if position >= 0:
        return position
    return -FULL if position == mpmc.FULL else -CORRUPT


@njit(forceinline=True)
def slot_of(state, position):
    """Address of the slot of a position that `claim` or `take` has returned."""
    body, capacity = load_constant(state + RING), load_constant(state + RING_BYTES)
    stride = load_constant(state + STRIDE)
    return mpmc.slot_at(body, capacity, stride, position)


@njit
def publish(state, position):
    """The slot is filled. `tell_receivers` comes later."""
    mpmc.publish(slot_of(state, position), mpmc.lap_of(load_relaxed(state + RING_BYTES), position))


@njit
def take(state):
    """Position of a slot to read, -FULL (there is none), -CORRUPT or -APART."""
    private, me = load_relaxed(state + PRIVATE), receiver(state)
    if me == 0:
        return -APART
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    position = mpmc.take(body, capacity, stride, me)
    if position == mpmc.EMPTY and load_relaxed(state + THOROUGHLY):
        store_relaxed(state + THOROUGHLY, 0)
        if mpmc.bury(body, capacity, stride, private) < 0:
            return -CORRUPT
        position = mpmc.take(body, capacity, stride, me)
        if position == mpmc.EMPTY:
            position = mpmc.retake(body, capacity, stride, me)
    if position >= 0:
        return position
    return -FULL if position == mpmc.EMPTY else -CORRUPT


@njit(forceinline=True)
def size_of(state, slot):
    """Bytes of the message in a slot that we have taken, or 0: they cannot be right."""
    if load_constant(state + ITEM_BYTES):
        return load_constant(state + ITEM_BYTES)
    size = load_relaxed(slot + 8)  # ours since edge A
    return size if 0 < size <= load_constant(state + MOST) else 0


@njit
def release(state, position):
    """The slot is read. `tell_senders` comes later."""
    mpmc.release(slot_of(state, position), mpmc.lap_of(load_relaxed(state + RING_BYTES), position))


@njit
def copy_bytes(to, source, size):
    """memcpy(3), as one instruction for words."""
    if size == 8:
        copy(to, source, 8)
    else:
        copy(to, source, size)


@njit
def put_bytes(state, source, size):
    """One message, or one item: SENT or why not. `tell_receivers` comes later."""
    item_bytes = load_relaxed(state + ITEM_BYTES)
    if size <= 0 or size > load_relaxed(state + MOST) or (item_bytes and size != item_bytes):
        return REFUSED
    me = sender(state)
    if me == 0:
        return APART
    body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    position = put_at(state, me, load_acquire(body + mpmc.WRITE), source, size)  # edge H
    if position < 0:
        return -position
    mpmc.help_on(body + mpmc.WRITE, mpmc.after(capacity, position))
    return SENT


@njit
def receive_first(state, to):
    """One item, also of those that the dead have left when THOROUGHLY says so: 1, 0 when there is none, or trouble."""
    position = take(state)
    if position < 0:
        return 0 if position == -FULL else position
    copy_bytes(to, slot_of(state, position) + load_relaxed(state + OFFSET), load_relaxed(state + ITEM_BYTES))
    release(state, position)
    tell_senders(state)
    return 1


# A batch claims (or takes) from slot to slot, and tells others only now and then how far it has come.


@njit(forceinline=True)
def put_at(state, me, position, source, size):
    """One message, or one item, that fits, into the first free slot from `position` on: where, -FULL or -CORRUPT."""
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    position = mpmc.claim_at(body, capacity, stride, me, position)
    if position < 0:
        return -FULL if position == mpmc.FULL else -CORRUPT
    slot = mpmc.slot_at(body, capacity, stride, position)
    if load_relaxed(state + ITEM_BYTES) == 0:
        store_relaxed(slot + 8, size)  # ours until published
    copy_bytes(slot + load_relaxed(state + OFFSET), source, size)
    mpmc.publish(slot, mpmc.lap_of(capacity, position))
    prefetch_to_write(slot + mpmc.AHEAD * stride)
    return position


@njit
def put_items(state, me, source, count):
    """Items, as many as there is room for: how many, or mpmc.CORRUPT when that is why there are none."""
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    offset, item_bytes = load_relaxed(state + OFFSET), load_relaxed(state + ITEM_BYTES)
    if item_bytes == 8:  # so that the compiler knows
        done = mpmc.put_items(body, capacity, stride, offset, 8, me, source, count)
    else:
        done = mpmc.put_items(body, capacity, stride, offset, item_bytes, me, source, count)
    if done > 0:
        tell_receivers(state)
    return done


@njit
def take_items(state, me, to, most):
    """Items, as many as are there: how many, or mpmc.CORRUPT when that is why there are none."""
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    offset, item_bytes, looks = load_relaxed(state + OFFSET), load_relaxed(state + ITEM_BYTES), most > 1
    if item_bytes == 8:
        done = mpmc.take_items(body, capacity, stride, offset, 8, me, state + SEEN, looks, to, most)
    else:
        done = mpmc.take_items(body, capacity, stride, offset, item_bytes, me, state + SEEN, looks, to, most)
    if done > 0:
        tell_senders(state)
    return done


@njit
def send_bytes(state, source, size):
    """The same, and tell."""
    sent = put_bytes(state, source, size)
    if sent == SENT:
        tell_receivers(state)
    return sent


@njit
def receive_bytes(state):
    """A new bytes object, 0 with an exception set, or -FULL (nothing), -CORRUPT, -APART. `tell_senders` comes later."""
    position = take(state)
    if position < 0:
        return position
    return bytes_at(state, position)


@njit(forceinline=True)
def bytes_at(state, position):
    """The same, of a slot that we have taken."""
    body, slot = load_constant(state + RING), slot_of(state, position)
    size = size_of(state, slot)
    message = PyBytes_FromStringAndSize(slot + load_constant(state + OFFSET), size) if size else -CORRUPT
    if message == 0:  # MemoryError is set; somebody else may have the message
        mpmc.hand_back(body, slot)
    else:
        mpmc.release(slot, mpmc.lap_of(load_constant(state + RING_BYTES), position))
    return message


@njit
def take_list(state, most):
    """A list of the messages that are there, up to so many; 0 with an exception set; or why not, as `take`."""
    position = take(state)
    if position < 0:
        return position
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    me, sent = receiver(state), load_relaxed(body + mpmc.WRITE)
    room = min(most, max(SHORT_LIST, mpmc.between(capacity, position, sent)))  # a guess: more are appended
    messages, taken, failed = PyList_New(room), 0, False
    if messages == 0:
        mpmc.hand_back(body, mpmc.slot_at(body, capacity, stride, position))
        return 0
    while True:
        message = bytes_at(state, position)
        if message <= 0:
            break
        if taken < room:
            PyList_SetItem(messages, taken, message)
        else:
            failed = PyList_Append(messages, message) != 0
            Py_DecRef(message)
            if failed:
                break
        taken += 1
        if taken % mpmc.HINT_AFTER == 0:
            mpmc.help_on(body + mpmc.READ, position)
        if taken >= most:
            break
        at = mpmc.take_at(body, capacity, stride, me, mpmc.after(capacity, position), sent)
        if at < 0:
            break
        position = at
        if position + mpmc.AHEAD < sent:
            prefetch_to_write(mpmc.slot_at(body, capacity, stride, position) + mpmc.AHEAD * stride)
    mpmc.help_on(body + mpmc.READ, mpmc.after(capacity, position))
    if failed or taken == 0:
        Py_DecRef(messages)
        return min(message, 0)
    tell_senders(state)
    if message <= 0:
        PyErr_Clear()  # what is wrong will be found again
    if taken < room:
        PyList_SetSlice(messages, taken, room, 0)
    return messages


@njit
def watch_for_room(state):
    """Look for a few microseconds whether there is room."""
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    return mpmc.wait_for_room(body, capacity, stride, load_relaxed(state + SPINS))


# --- builtins -----------------------------------------------------------------------------------------------


@cache
def mpmc_entries() -> dict[str, Entry]:
    """The compiled functions, made on first use: some seconds on a machine that has never run them, else at once."""
    return _compile(SOURCES)


def _compile(key: str) -> dict[str, Entry]:
    @cfunc(FASTCALL, cache=True)
    def send(self, arguments, count, names):
        """send(message, timeout=30): send one message."""
        key  # see SOURCES
        state, buffer = PyLong_AsVoidPtr(self), on_stack()
        if at_most_timeout(state, count - 1, names) and given_bytes(arguments, count, buffer):
            sent = send_bytes(state, load_relaxed(buffer), load_relaxed(buffer + 8))
            if sent == SENT:
                return none(state)
        return PyObject_Vectorcall(load_relaxed(state + SEND_REST), arguments, count, names)

    @cfunc(FASTCALL, cache=True)
    def try_send(self, arguments, count, names):
        """try_send(message): send one message if there is room for it now; whether it was."""
        key  # see SOURCES
        state, buffer = PyLong_AsVoidPtr(self), on_stack()
        if count == 1 and names == 0 and given_bytes(arguments, count, buffer):
            sent = send_bytes(state, load_relaxed(buffer), load_relaxed(buffer + 8))
            if sent == SENT:
                return PyBool_FromLong(1)
        return PyObject_Vectorcall(load_relaxed(state + TRY_SEND_REST), arguments, count, names)

    @cfunc(FASTCALL, cache=True)
    def receive(self, arguments, count, names):
        """receive(timeout=30): the next message."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        if at_most_timeout(state, count, names):
            message = receive_bytes(state)
            if message > 0:
                tell_senders(state)
                return message
            if message == 0:
                return 0
        return PyObject_Vectorcall(load_relaxed(state + RECEIVE_REST), arguments, count, names)

    @cfunc(FASTCALL, cache=True)
    def try_receive(self, arguments, count, names):
        """try_receive(): the next message, or None."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        if count == 0 and names == 0:
            message = receive_bytes(state)
            if message > 0:
                tell_senders(state)
                return message
            if message == 0:
                return 0
        return PyObject_Vectorcall(load_relaxed(state + TRY_RECEIVE_REST), arguments, count, names)

    @cfunc(BUILTIN, cache=True)
    def mpmc_send(self, message):
        """Send the bytes of one object, or say why not."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(message, buffer, 0) != 0:
            return 0
        sent = send_bytes(state, load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE))
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(sent)

    @cfunc(BUILTIN, cache=True)
    def mpmc_receive(self, ignored):
        """The next message, None when there is none, APART or CORRUPT."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        message = receive_bytes(state)
        if message > 0:
            tell_senders(state)
        if message >= 0:
            return message
        return none(state) if message == -FULL else PyLong_FromLongLong(-message)

    @cfunc(BUILTIN, cache=True)
    def mpmc_send_many(self, messages):
        """Send a list of bytes-like objects, as many as there is room for: SENT or why not; DONE says how many."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        number = PySequence_Size(messages)
        if number < 0:
            return 0
        me, body, capacity = sender(state), load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
        buffer, why, done, most = on_stack(), SENT if me else APART, 0, load_relaxed(state + MOST)
        position = load_acquire(body + mpmc.WRITE)  # edge H
        while done < number and why == SENT:
            message = PySequence_GetItem(messages, done)
            if message == 0:
                break
            is_bytes = PyBytes_AsStringAndSize(message, buffer, buffer + 8) == 0
            if is_bytes:
                start, size = load_relaxed(buffer), load_relaxed(buffer + 8)
            else:
                PyErr_Clear()
                if PyObject_GetBuffer(message, buffer, 0) != 0:
                    Py_DecRef(message)
                    break
                start, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
            if size <= 0 or size > most:
                why = REFUSED
            else:
                at = put_at(state, me, position, start, size)
                if at < 0:
                    why = -at
                else:
                    position = mpmc.after(capacity, at)
                    done += 1
                    if done % mpmc.HINT_AFTER == 0:
                        mpmc.help_on(body + mpmc.WRITE, position)
            if not is_bytes:
                PyBuffer_Release(buffer)
            Py_DecRef(message)
        if done > 0:
            mpmc.help_on(body + mpmc.WRITE, position)
            tell_receivers(state)
        store_relaxed(state + DONE, done)
        if why == SENT and done < number:
            return 0  # what GetItem or GetBuffer has set
        return PyLong_FromLongLong(why)

    @cfunc(BUILTIN, cache=True)
    def mpmc_receive_many(self, most):
        """A list of the messages that are there, up to so many; None when there is none, APART or CORRUPT."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        number = PyLong_AsLong(most)
        if number == -1 and PyErr_Occurred() != 0:
            return 0
        messages = take_list(state, number)
        if messages >= 0:
            return messages
        return none(state) if messages == -FULL else PyLong_FromLongLong(-messages)

    @cfunc(BUILTIN, cache=True)
    def mpmc_send_items(self, items):
        """Send the items of a contiguous array, as many as there is room for: SENT or why not; DONE says how many."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        store_relaxed(state + DONE, 0)
        if PyObject_GetBuffer(items, buffer, 0) != 0:
            return 0
        source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        item_bytes, why, me = load_relaxed(state + ITEM_BYTES), SENT, sender(state)
        if item_bytes == 0 or size % item_bytes:
            why = REFUSED
        elif me == 0:
            why = APART
        else:
            done = put_items(state, me, source, size // item_bytes)
            store_relaxed(state + DONE, max(0, done))
            if done * item_bytes < size:
                why = CORRUPT if done < 0 else FULL
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(why)

    @cfunc(BUILTIN, cache=True)
    def mpmc_receive_items(self, room):
        """Fill a writable array with items, as many as are there: how many, or -APART, -CORRUPT."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(room, buffer, WRITABLE) != 0:
            return 0
        to, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        done, most, me = WORD(0), size // max(1, load_relaxed(state + ITEM_BYTES)), receiver(state)
        if me == 0:
            done = -APART
        elif most > 0:
            done = take_items(state, me, to, most)
            if done <= 0:
                done = receive_first(state, to)  # it looks for what the dead have left, when that is asked for
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(done)

    @cfunc(BUILTIN, cache=True)
    def mpmc_spin(self, ignored):
        """Watch an empty queue for a few microseconds with the GIL released; 1 when something came."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
        stride, spins = load_relaxed(state + STRIDE), load_relaxed(state + SPINS)
        thread = PyEval_SaveThread()
        came = 1 if mpmc.wait_for_message(body, capacity, stride, 1, spins) else 0
        PyEval_RestoreThread(thread)
        return PyLong_FromLongLong(came)

    @cfunc(BUILTIN, cache=True)
    def mpmc_spin_for_room(self, ignored):
        """Watch a full queue for a few microseconds with the GIL released; 1 when there is room."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        thread = PyEval_SaveThread()
        came = 1 if watch_for_room(state) else 0
        PyEval_RestoreThread(thread)
        return PyLong_FromLongLong(came)

    taking_any = send, try_send, receive, try_receive
    taking_one = mpmc_send, mpmc_send_many, mpmc_receive_many, mpmc_send_items, mpmc_receive_items
    taking_none = mpmc_receive, mpmc_spin, mpmc_spin_for_room
    entries = {f.__name__: Entry(f, METH_FASTCALL | METH_KEYWORDS) for f in taking_any}
    entries |= {f.__name__: Entry(f, METH_O) for f in taking_one}
    return entries | {f.__name__: Entry(f, METH_NOARGS) for f in taking_none}


@cache
def mpmc_functions() -> dict[str, Callable[..., int]]:
    """What is called more seldom, for calling from Python with the address of the state."""

    def compiled(key: str) -> dict[str, Any]:
        @cfunc(WORD(WORD), cache=True)
        def claim_slot(state):
            key  # see SOURCES
            return claim(state)

        @cfunc(types.void(WORD, WORD, WORD), cache=True)
        def publish_slot(state, position, size):
            """A size of 0 gives it up."""
            key  # see SOURCES
            slot = slot_of(state, position)
            if size == 0:
                mpmc.give_up(slot, mpmc.lap_of(load_relaxed(state + RING_BYTES), position))
            else:
                if load_relaxed(state + ITEM_BYTES) == 0:
                    store_relaxed(slot + 8, size)
                publish(state, position)
            tell_receivers(state)

        @cfunc(WORD(WORD), cache=True)
        def take_slot(state):
            key  # see SOURCES
            return take(state)

        @cfunc(WORD(WORD, WORD), cache=True)
        def size_in(state, position):
            key  # see SOURCES
            return size_of(state, slot_of(state, position))

        @cfunc(WORD(WORD, WORD), cache=True)
        def times(state, position):
            key  # see SOURCES
            return mpmc.times(slot_of(state, position))

        @cfunc(types.void(WORD, WORD), cache=True)
        def release_slot(state, position):
            key  # see SOURCES
            release(state, position)
            tell_senders(state)

        @cfunc(types.void(WORD, WORD), cache=True)
        def hand_back(state, position):
            key  # see SOURCES
            mpmc.hand_back(load_relaxed(state + RING), slot_of(state, position))
            tell_receivers(state)

        @cfunc(WORD(WORD, WORD), cache=True)
        def offset(state, position):
            """From the body to the message in the slot."""
            key  # see SOURCES
            return slot_of(state, position) - load_relaxed(state + RING) + load_relaxed(state + OFFSET)

        @cfunc(types.void(WORD, WORD), cache=True)
        def sweep(state, number):
            key  # see SOURCES
            mpmc.sweep(
                load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE), number
            )

        @cfunc(types.void(WORD, WORD), cache=True)
        def arrive(state, number):
            key  # see SOURCES
            mpmc.arrive(load_relaxed(state + RING), number)

        @cfunc(types.void(WORD, WORD, WORD), cache=True)
        def join(state, number, part):
            key  # see SOURCES
            mpmc.join(load_relaxed(state + RING), number, part)
            store_relaxed(state + (SENDS if part == mpmc.SENDS else RECEIVES), number)

        @cfunc(types.void(WORD, WORD), cache=True)
        def leave(state, number):
            key  # see SOURCES
            mpmc.leave(load_relaxed(state + RING), number)

        @cfunc(WORD(WORD, WORD), cache=True)
        def anybody(state, part):
            key  # see SOURCES
            return mpmc.anybody(load_relaxed(state + RING), load_relaxed(state + PRIVATE), part)

        @cfunc(WORD(WORD), cache=True)
        def length(state):
            key  # see SOURCES
            body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
            return mpmc.length(body, capacity, load_relaxed(state + STRIDE))

        @cfunc(WORD(WORD), cache=True)
        def is_there(state):
            key  # see SOURCES
            body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
            return 1 if mpmc.is_there(body, capacity, load_relaxed(state + STRIDE)) else 0

        made = (
            claim_slot, publish_slot, take_slot, size_in, times, release_slot, hand_back, offset, sweep, arrive, join,
            leave, anybody, length, is_there,
        )  # fmt: skip
        return {f.__name__: f for f in made}

    return callables(compiled(SOURCES))


# --- for @njit: labkit.lockfree.compiled --------------------------------------------------------------------


@cache
def item_operations(item_bytes: int) -> dict[str, Any]:
    """`send` and `receive` of items of a size that the compiler knows, so that one is a few instructions."""
    stride, offset = layout(item_bytes, True)

    @njit(forceinline=True)
    def send(state, source, count):
        """Send items: how many, 0 when it is full, or trouble."""
        me = sender(state)
        if me == 0:
            return -APART
        body, capacity = load_constant(state + RING), load_constant(state + RING_BYTES)
        done = mpmc.put_items(body, capacity, stride, offset, item_bytes, me, source, count)
        if done > 0:
            tell_receivers(state)
            return done
        return done if done == 0 else -CORRUPT

    @njit(forceinline=True)
    def receive(state, to, most):
        """Receive items: how many, 0 when there are none, or trouble."""
        me, came = receiver(state), load_relaxed(state + CAME)
        if me == 0:
            return -NOT_RECEIVER
        body, capacity = load_constant(state + RING), load_constant(state + RING_BYTES)
        seen, looks = state + SEEN, came > 0 or most > 1
        done = mpmc.take_items(body, capacity, stride, offset, item_bytes, me, seen, looks, to, most)
        if done > 0:
            store_relaxed(state + CAME, came + done)
            tell_senders(state)
            return done
        return nothing_came(state, to) if done == 0 else -CORRUPT

    return {"send": send, "receive": receive}


@njit
def nothing_came(state, to):
    """Look now and then for an item that the dead have left: 1 when there is one, 0, or trouble."""
    store_relaxed(state + PATIENCE, mpmc.patience_after(load_relaxed(state + PATIENCE), load_relaxed(state + CAME)))
    store_relaxed(state + CAME, 0)
    empty = load_relaxed(state + EMPTIES) + 1
    store_relaxed(state + EMPTIES, empty)
    if empty % LOOK_SELDOM == 0 or load_relaxed(state + THOROUGHLY):
        store_relaxed(state + THOROUGHLY, 1)
        return receive_first(state, to)
    return 0


@njit
def become(state, part):
    """After APART or NOT_RECEIVER: join; whether we are one of the participants."""
    me = load_relaxed(load_relaxed(state + PRIVATE) + ME)
    if me == 0:
        return False
    mpmc.join(load_relaxed(state + RING), me, part)
    store_relaxed(state + (SENDS if part == mpmc.SENDS else RECEIVES), me)
    return True


@njit
def may_receive(state):
    """Wait a moment, and look."""
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    return mpmc.wait_for_message(body, capacity, stride, load_relaxed(state + PATIENCE), 1)


@njit
def may_send(state):
    """Wait a moment, and look."""
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    return mpmc.wait_for_room(body, capacity, stride, 1)


@njit
def items_bell(state):
    return load_relaxed(state + ITEMS_BELL)


@njit
def room_bell(state):
    return load_relaxed(state + ROOM_BELL)


@njit
def senders_gone(state):
    """Whether they are; and whoever asks that looks for what the dead have left."""
    store_relaxed(state + THOROUGHLY, 1)
    return mpmc.anybody(load_relaxed(state + RING), load_relaxed(state + PRIVATE), mpmc.SENDS) == mpmc.GONE


@njit
def receivers_gone(state):
    return mpmc.anybody(load_relaxed(state + RING), load_relaxed(state + PRIVATE), mpmc.RECEIVES) == mpmc.GONE


@njit
def spins(state):
    return load_relaxed(state + SPINS)
