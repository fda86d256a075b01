"""Builtins of the queue of objects: `put` and `get` themselves are compiled, and leave to Python what is rare.

A slot holds, behind the algorithm's word, a word that says what follows (KIND) and how many bytes (below it), and then

    INLINE    the object's pickle
    RUN       two words: the first block and the number of blocks of the run that holds the message
              (labkit.lockfree.blocks; what is in it is for Python: labkit.lockfree.objects)
    SHARED    three words: the first block of a run that holds the pickle of a list of objects, of which the message is
              one; the first position of them all, which no other batch has; which one it is << 32 | how many there are

Whoever takes the first of a batch puts the whole list together, which for small objects costs a third of doing it one
by one, and keeps it for those that it takes afterwards. Another receiver puts the list together once more. So each
object has its own slot, is taken by one receiver, and comes again if that one dies before it releases the slot.

One pickler is used again and again, which saves making one. While it is BUSY (an object's `__reduce__` may put another
into this very queue, and threads take turns) Python makes another one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import cfunc, njit, types

from labkit.lockfree import blocks, mpmc, plain_pickle
from labkit.lockfree.atomics import add, copy, load_acquire, load_relaxed, on_stack, store_relaxed
from labkit.lockfree.bells import ME
from labkit.lockfree.entry import (
    BUILTIN,
    METH_O,
    MOST,
    OWN,
    RING,
    RING_BYTES,
    SOURCES,
    WORD,
    Entry,
    Py_IncRef,
    PyBool_FromLong,
    PyBytes_AsString,
    PyBytes_FromStringAndSize,
    PyErr_Clear,
    PyList_GetItem,
    PyList_SetItem,
    PyList_SetSlice,
    PyList_Size,
    PyLong_AsLong,
    PyLong_AsVoidPtr,
    PyLong_FromLongLong,
    at_most_block_and_timeout,
    callables,
    none,
)
from labkit.lockfree.mpmc_entry import (
    APART,
    CORRUPT,
    FASTCALL,
    FULL,
    INT,
    METH_FASTCALL,
    METH_KEYWORDS,
    PRIVATE,
    RECEIVES,
    SENDS,
    SENT,
    STRIDE,
    Py_DecRef,
    PyBytes_AsStringAndSize,
    PyErr_Occurred,
    PyList_Append,
    PyList_New,
    PyObject_Vectorcall,
    PySequence_GetItem,
    PySequence_Size,
    claim,
    publish,
    release,
    slot_of,
    take,
    tell_receivers,
    tell_senders,
)

# Words of the private state beside those of labkit.lockfree.mpmc_entry, up to OWN + 152.
POOL, BLOCKS = OWN + 160, OWN + 168  # address of the pool, its blocks
DUMP, CLEAR_MEMO, CHUNKS, BUFFERS = OWN + 176, OWN + 184, OWN + 192, OWN + 200  # the pickler and what it has written
LOADS, OPEN_RUN, SPOILT = OWN + 208, OWN + 216, OWN + 224  # pickle.loads; opens a run; a list of exceptions
PUT_REST, PACKED_REST, GET_REST = OWN + 232, OWN + 240, OWN + 248
BUSY = OWN + 256  # IDLE, IN_USE or BROKEN
ASIDE_PUT, ASIDE_GET = OWN + 264, OWN + 272  # not 0: leave it to Python
COUNT = OWN + 280  # address of a counter of what is put, or 0
RUNS = OWN + 288  # address of the first block
PLACES = OWN + 296  # address of PLACES_BYTES to work in
LIST, LIST_OF = OWN + 304, OWN + 312  # a list of objects that came together; their first position + 1, or 0
DUMP_ALL, CLEAR_ALL, CHUNKS_ALL = OWN + 320, OWN + 328, OWN + 336  # the pickler of many objects
BUSY_ALL = OWN + 344

IDLE, IN_USE, BROKEN = range(3)
ALWAYS, SOME_SPOILT = 1, 2  # why `get` stands aside

KIND = 32  # bits up, in a slot's second word
INLINE, RUN, SHARED = 1, 2, 3
SLOT_BYTES = 40  # of a slot, of such an object
MOST_AT_ONCE = 128  # objects of a batch that are pickled together
FEW_TOGETHER = 8  # objects that are worth while to be pickled together
PLACES_BYTES = max(8 * MOST_AT_ONCE, plain_pickle.MOST_SHARED)
AHEAD = 8  # slots: so far ahead of what it does a batch fetches cache lines
HEAD = 16  # bytes of a slot before the pickle
TELL_AFTER = 64  # messages of a batch

PyObject_CallOneArg = types.ExternalFunction("PyObject_CallOneArg", WORD(WORD, WORD))
PyObject_CallNoArgs = types.ExternalFunction("PyObject_CallNoArgs", WORD(WORD))
PyErr_Fetch = types.ExternalFunction("PyErr_Fetch", types.void(WORD, WORD, WORD))
PyErr_NormalizeException = types.ExternalFunction("PyErr_NormalizeException", types.void(WORD, WORD, WORD))
PyException_SetTraceback = types.ExternalFunction("PyException_SetTraceback", INT(WORD, WORD))

PICKLED, PACKED = 0, 1


# --- putting ------------------------------------------------------------------------------------------------


@njit
def _fill(state, position, kind, size):
    """What a slot that we have claimed holds: address of the bytes."""
    slot = slot_of(state, position)
    store_relaxed(slot + 8, kind << KIND | size)  # ours until published
    if load_relaxed(state + COUNT):
        add(load_relaxed(state + COUNT), 1)  # before somebody can have done it
    return slot + HEAD


@njit
def put_inline(state, source, size):
    """A small pickle: SENT or why not. `tell_receivers` comes later."""
    position = claim(state)
    if position < 0:
        return -position
    copy(_fill(state, position, INLINE, size), source, size)
    publish(state, position)
    return SENT


@njit
def put_run(state, first, number, size):
    """A run that we have claimed and filled: SENT or why not. `tell_receivers` comes later."""
    position = claim(state)
    if position < 0:
        return -position
    at = _fill(state, position, RUN, size)
    store_relaxed(at, first)
    store_relaxed(at + 8, number)
    blocks.mark_sent(load_relaxed(state + POOL), first, number, position)
    publish(state, position)
    return SENT


@njit
def put_shared(state, source, size, number, first):
    """Objects that are pickled together, each into a slot of its own, as many as there is room for: how many.

    Args:
        source, size: the pickle of their list.
        first: of a run of blocks that is ours, with memory for the pickle.
    """
    me = load_relaxed(load_relaxed(state + PRIVATE) + ME)
    if me == 0 or load_relaxed(state + SENDS) != me:
        return -APART
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    copy(load_relaxed(state + RUNS) + first * blocks.BLOCK, source, size)
    places = load_relaxed(state + PLACES)
    position = load_acquire(body + mpmc.WRITE)  # edge H
    start, at, done = position, position, 0
    for ahead in range(min(number, AHEAD)):
        mpmc.fetch_to_write(body, capacity, stride, position + ahead, SLOT_BYTES)
    while done < number:
        mpmc.fetch_to_write(body, capacity, stride, position + AHEAD, SLOT_BYTES)
        at = mpmc.claim_at(body, capacity, stride, me, position)
        if at < 0:
            break
        if done == 0:
            start = at
        position = mpmc.after(capacity, at)
        if mpmc.between(capacity, start, position) > blocks.MOST_SHARED:  # many others were quicker
            mpmc.give_up(mpmc.slot_at(body, capacity, stride, at), mpmc.lap_of(capacity, at))
            break
        store_relaxed(places + 8 * done, at)
        done += 1
        if done % mpmc.HINT_AFTER == 0:
            mpmc.help_on(body + mpmc.WRITE, position)
    if done == 0:
        return 0 if at == mpmc.FULL else -CORRUPT if at < 0 else 0
    last = load_relaxed(places + 8 * (done - 1))
    positions = mpmc.between(capacity, start, last) + 1
    used = (size + blocks.BLOCK - 1) // blocks.BLOCK
    blocks.mark_shared(load_relaxed(state + POOL), first, used, last, positions)
    if load_relaxed(state + COUNT):
        add(load_relaxed(state + COUNT), done)  # before somebody can have done one
    for which in range(done):
        at = load_relaxed(places + 8 * which)
        slot = mpmc.slot_at(body, capacity, stride, at)
        store_relaxed(slot + 8, SHARED << KIND | size)  # ours until published
        store_relaxed(slot + HEAD, first)
        store_relaxed(slot + HEAD + 8, start)
        store_relaxed(slot + HEAD + 16, which << 32 | number)
        mpmc.publish(slot, mpmc.lap_of(capacity, at))
    mpmc.help_on(body + mpmc.WRITE, position)
    tell_receivers(state)
    return done


@njit
def _dump(thing, dump, clear_memo):
    """Have a pickler pickle something: 0 with an exception set, or None."""
    done = PyObject_CallOneArg(dump, thing)
    if done != 0:
        Py_DecRef(done)
        done = PyObject_CallNoArgs(clear_memo)
    return done


@njit
def put_trees_of(state, things, buffer):
    """Pickle a list of objects together and put them: a new reference to the number of those that are put, perhaps 0.

    Or, when it is for Python to do: -1 - how many there is room for, or the pickle of all of them. 0: an exception is
    set, and the pickler is to be replaced.
    """
    number, body, capacity = PyList_Size(things), load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    if number < 0:
        return 0
    stride, private = load_relaxed(state + STRIDE), load_relaxed(state + PRIVATE)
    room = min(number, MOST_AT_ONCE, capacity - mpmc.length(body, capacity, stride))
    if room < FEW_TOGETHER or load_relaxed(state + ASIDE_PUT) or load_relaxed(state + BUSY_ALL) != IDLE:
        return PyLong_FromLongLong(0)
    me = load_relaxed(private + ME)
    if room < number or me == 0:
        return PyLong_FromLongLong(-1 - room)
    store_relaxed(state + BUSY_ALL, IN_USE)
    done = _dump(things, load_relaxed(state + DUMP_ALL), load_relaxed(state + CLEAR_ALL))
    if done == 0:
        return 0
    Py_DecRef(done)
    chunks = load_relaxed(state + CHUNKS_ALL)
    many, pickled = PyList_Size(chunks), PyList_GetItem(chunks, 0)
    if many != 1 or PyBytes_AsStringAndSize(pickled, buffer, buffer + 8) != 0:  # of much: Python will see
        PyErr_Clear()
        PyList_SetSlice(chunks, 0, many, 0)
        store_relaxed(state + BUSY_ALL, IDLE)
        return PyLong_FromLongLong(-1 - room)
    Py_IncRef(pickled)
    PyList_SetSlice(chunks, 0, 1, 0)
    store_relaxed(state + BUSY_ALL, IDLE)
    start, size, pool = load_relaxed(buffer), load_relaxed(buffer + 8), load_relaxed(state + POOL)
    if not plain_pickle.is_of_trees(start, size, load_relaxed(state + PLACES)):
        return pickled
    wanted = (size + blocks.BLOCK - 1) // blocks.BLOCK
    first = blocks.claim(pool, load_relaxed(state + BLOCKS), body, capacity, stride, private, me, wanted)
    if first < 0:
        if first <= blocks.AND_MEMORY:
            blocks.unclaim_last(pool, blocks.AND_MEMORY - first, wanted)
        return pickled
    sent = put_shared(state, start, size, room, first)
    if sent <= 0:
        blocks.free(pool, first, wanted)
        if sent < 0:
            return pickled
    Py_DecRef(pickled)
    return PyLong_FromLongLong(sent)


@njit
def pickle_it(state, thing):
    """Pickle an object: 0 with an exception set, or the only chunk, borrowed, when it is small; else 1."""
    store_relaxed(state + BUSY, IN_USE)
    done = _dump(thing, load_relaxed(state + DUMP), load_relaxed(state + CLEAR_MEMO))
    if done == 0:
        store_relaxed(state + BUSY, BROKEN)
        return 0
    Py_DecRef(done)
    chunks = load_relaxed(state + CHUNKS)
    if PyList_Size(chunks) == 1 and PyList_Size(load_relaxed(state + BUFFERS)) == 0:
        return PyList_GetItem(chunks, 0)
    return 1


@njit
def put_object(state, thing, buffer):
    """PICKLED (0) with an exception set, PACKED when Python has to go on, or SENT."""
    chunk = pickle_it(state, thing)
    if chunk <= 1:
        return chunk
    if PyBytes_AsStringAndSize(chunk, buffer, buffer + 8) != 0:
        store_relaxed(state + BUSY, BROKEN)
        return PICKLED
    size = load_relaxed(buffer + 8)
    if size > load_relaxed(state + MOST) or put_inline(state, load_relaxed(buffer), size) != SENT:
        return PACKED
    PyList_SetSlice(load_relaxed(state + CHUNKS), 0, 1, 0)
    store_relaxed(state + BUSY, IDLE)
    return SENT


# --- getting ------------------------------------------------------------------------------------------------


@njit
def one_of_list(state, which):
    """An object of the list that we keep, which it leaves, or -CORRUPT."""
    things = load_relaxed(state + LIST)
    thing = PyList_GetItem(things, which)
    if thing == 0:
        PyErr_Clear()
        return -CORRUPT
    Py_IncRef(thing)
    PyList_SetItem(things, which, none(state))
    return thing


@njit
def get_shared(state, position, slot, size):
    """The same as `get_object`, of an object that was pickled together with others."""
    first, batch = load_relaxed(slot + HEAD), load_relaxed(slot + HEAD + 8)  # ours since edge A
    which, number = load_relaxed(slot + HEAD + 16) >> 32, load_relaxed(slot + HEAD + 16) & 0xFFFF_FFFF
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    if position + AHEAD < load_relaxed(body + mpmc.WRITE):
        mpmc.fetch_to_write(body, capacity, stride, position + AHEAD, SLOT_BYTES)
    if load_relaxed(state + LIST_OF) == batch + 1:
        thing = one_of_list(state, which)
        release(state, position)
        return thing
    used = (size + blocks.BLOCK - 1) // blocks.BLOCK
    if first < 0 or used <= 0 or used > load_relaxed(state + BLOCKS) - first or which < 0 or which >= number:
        release(state, position)
        return -CORRUPT
    pickled = PyBytes_FromStringAndSize(load_relaxed(state + RUNS) + first * blocks.BLOCK, size)
    if pickled == 0:  # MemoryError is set; somebody else may have the message
        mpmc.hand_back(body, slot)
        return 0
    release(state, position)
    things = PyObject_CallOneArg(load_relaxed(state + LOADS), pickled)
    Py_DecRef(pickled)
    if things == 0:
        return 0
    if PyList_Size(things) != number:
        PyErr_Clear()
        Py_DecRef(things)
        return -CORRUPT
    kept = load_relaxed(state + LIST)
    store_relaxed(state + LIST_OF, 0)
    failed = PyList_SetSlice(kept, 0, PyList_Size(kept), things) != 0
    Py_DecRef(things)
    if failed:
        return 0
    store_relaxed(state + LIST_OF, batch + 1)
    return one_of_list(state, which)


@njit
def get_object(state):
    """A new reference, 0 with an exception set, or -FULL (nothing), -CORRUPT, -APART. `tell_senders` comes later."""
    position = take(state)
    return position if position < 0 else object_at(state, position)


@njit
def object_at(state, position):
    """The same, of a slot that we have taken."""
    slot = slot_of(state, position)
    word = load_relaxed(slot + 8)  # ours since edge A
    kind, size = word >> KIND, word & 0xFFFF_FFFF
    if kind == INLINE and size <= load_relaxed(state + MOST):
        pickled = PyBytes_FromStringAndSize(0, size)
        if pickled == 0:  # MemoryError is set; somebody else may have the message
            mpmc.hand_back(load_relaxed(state + RING), slot)
            return 0
        copy(PyBytes_AsString(pickled), slot + HEAD, size)
        release(state, position)
        thing = PyObject_CallOneArg(load_relaxed(state + LOADS), pickled)
        Py_DecRef(pickled)
        return thing
    if kind == SHARED:
        return get_shared(state, position, slot, size)
    first, number = load_relaxed(slot + HEAD), load_relaxed(slot + HEAD + 8)
    if kind != RUN or first < 0 or number <= 0 or number > load_relaxed(state + BLOCKS) - first:
        release(state, position)
        return -CORRUPT
    me = load_relaxed(load_relaxed(state + PRIVATE) + ME)
    blocks.mark_read(load_relaxed(state + POOL), first, number, position, me)
    release(state, position)
    argument = PyLong_FromLongLong(first << 32 | number)
    if argument == 0:
        blocks.free(load_relaxed(state + POOL), first, number)
        return 0
    thing = PyObject_CallOneArg(load_relaxed(state + OPEN_RUN), argument)
    Py_DecRef(argument)
    return thing


@njit
def take_list(state, things, most):
    """Append the objects that are there to a list, up to so many. Why there are no more: as `get_object`, or SENT."""
    private, taken = load_relaxed(state + PRIVATE), 1
    body, capacity, stride = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE)
    thing = get_object(state)
    position = load_acquire(body + mpmc.READ)  # edge H
    while thing > 0:
        failed = PyList_Append(things, thing) != 0
        Py_DecRef(thing)
        if failed:
            thing = WORD(0)
            break
        if taken % TELL_AFTER == 0:
            tell_senders(state)
        if taken == most:
            thing = WORD(SENT)
            break
        me = load_relaxed(private + ME)
        if me == 0 or load_relaxed(state + RECEIVES) != me:  # an object has closed us
            break
        at = mpmc.take_at(body, capacity, stride, me, position)
        if at < 0:
            thing = WORD(-FULL)
            break
        position = mpmc.after(capacity, at)
        if taken % mpmc.HINT_AFTER == 0:
            mpmc.help_on(body + mpmc.READ, position)
        thing = object_at(state, at)
        taken += 1
    mpmc.help_on(body + mpmc.READ, position)
    tell_senders(state)
    return thing


@njit
def keep_exception(state, room):
    """What was raised, for who gets next."""
    PyErr_Fetch(room, room + 8, room + 16)
    PyErr_NormalizeException(room, room + 8, room + 16)
    error, traceback = load_relaxed(room + 8), load_relaxed(room + 16)
    if error != 0:
        if traceback != 0:
            PyException_SetTraceback(error, traceback)
        PyList_Append(load_relaxed(state + SPOILT), error)
        Py_DecRef(error)
    if traceback != 0:
        Py_DecRef(traceback)
    if load_relaxed(room) != 0:
        Py_DecRef(load_relaxed(room))
    store_relaxed(state + ASIDE_GET, load_relaxed(state + ASIDE_GET) | SOME_SPOILT)


# --- builtins -----------------------------------------------------------------------------------------------


@cache
def objects_entries() -> dict[str, Entry]:
    """The compiled functions, made on first use."""
    return _compile(SOURCES)


def _compile(key: str) -> dict[str, Entry]:
    @cfunc(FASTCALL, cache=True)
    def put(self, arguments, count, names):
        """put(obj, block=True, timeout=None): put an object into the queue."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        is_plain = at_most_block_and_timeout(state, count - 1, names)
        if is_plain and load_relaxed(state + ASIDE_PUT) == 0 and load_relaxed(state + BUSY) == IDLE:
            sent = put_object(state, load_relaxed(arguments), on_stack())
            if sent == SENT:
                tell_receivers(state)
                return none(state)
            if sent == PICKLED:
                return 0
            return PyObject_Vectorcall(load_relaxed(state + PACKED_REST), arguments + 8, count - 1, names)
        return PyObject_Vectorcall(load_relaxed(state + PUT_REST), arguments, count, names)

    @cfunc(FASTCALL, cache=True)
    def get(self, arguments, count, names):
        """get(block=True, timeout=None): remove the oldest object from the queue and return it."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        if at_most_block_and_timeout(state, count, names) and load_relaxed(state + ASIDE_GET) == 0:
            thing = get_object(state)
            if thing >= 0:
                tell_senders(state)
                return thing
        return PyObject_Vectorcall(load_relaxed(state + GET_REST), arguments, count, names)

    @cfunc(BUILTIN, cache=True)
    def put_pickled(self, pickled):
        """Put a small pickle: SENT or why not."""
        key  # see SOURCES
        state, buffer = PyLong_AsVoidPtr(self), on_stack()
        if PyBytes_AsStringAndSize(pickled, buffer, buffer + 8) != 0:
            return 0
        sent = put_inline(state, load_relaxed(buffer), load_relaxed(buffer + 8))
        if sent == SENT:
            tell_receivers(state)
        return PyLong_FromLongLong(sent)

    @cfunc(FASTCALL, cache=True)
    def put_together(self, arguments, count, names):
        """Put objects whose list is pickled: the pickle, how many, the first block for it. How many were, or -APART."""
        key  # see SOURCES
        state, buffer = PyLong_AsVoidPtr(self), on_stack()
        if count != 3 or PyBytes_AsStringAndSize(load_relaxed(arguments), buffer, buffer + 8) != 0:
            return PyLong_FromLongLong(-CORRUPT)
        number, first = PyLong_AsLong(load_relaxed(arguments + 8)), PyLong_AsLong(load_relaxed(arguments + 16))
        return PyLong_FromLongLong(
            put_shared(state, load_relaxed(buffer), load_relaxed(buffer + 8), min(number, MOST_AT_ONCE), first)
        )

    @cfunc(BUILTIN, cache=True)
    def put_trees(self, things):
        """Put a list of objects that are small plain data: see `put_trees_of`."""
        key  # see SOURCES
        return put_trees_of(PyLong_AsVoidPtr(self), things, on_stack())

    @cfunc(BUILTIN, cache=True)
    def is_of_trees(self, pickled):
        """Whether a pickle holds nothing but plain data, of which no container is found in two places."""
        key  # see SOURCES
        buffer = on_stack()
        if PyBytes_AsStringAndSize(pickled, buffer, buffer + 8) != 0:
            return 0
        room = load_relaxed(PyLong_AsVoidPtr(self) + PLACES)
        yes = plain_pickle.is_of_trees(load_relaxed(buffer), load_relaxed(buffer + 8), room)
        return PyBool_FromLong(1 if yes else 0)

    @cfunc(BUILTIN, cache=True)
    def put_list(self, things):
        """Put objects until one must be left to Python: how many; or -1 - how many when the next is pickled already."""
        key  # see SOURCES
        state, buffer = PyLong_AsVoidPtr(self), on_stack()
        number, done, sent = PySequence_Size(things), 0, SENT
        if number < 0:
            return 0
        while done < number and load_relaxed(state + ASIDE_PUT) == 0 and load_relaxed(state + BUSY) == IDLE:
            thing = PySequence_GetItem(things, done)
            if thing == 0:
                return 0
            sent = put_object(state, thing, buffer)
            Py_DecRef(thing)
            if sent != SENT:
                break
            done += 1
            if done % TELL_AFTER == 0:
                tell_receivers(state)
        tell_receivers(state)
        if sent == PICKLED:
            return 0
        return PyLong_FromLongLong(-1 - done if sent == PACKED else done)

    @cfunc(BUILTIN, cache=True)
    def get_one(self, box):
        """Append the next object to a list: SENT, or why not."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        thing = get_object(state)
        if thing == 0:
            tell_senders(state)
            return 0
        if thing < 0:
            return PyLong_FromLongLong(-thing)
        tell_senders(state)
        failed = PyList_Append(box, thing) != 0
        Py_DecRef(thing)
        return 0 if failed else PyLong_FromLongLong(SENT)

    @cfunc(BUILTIN, cache=True)
    def get_list(self, most):
        """A list of the objects that are there, up to so many; None when there is none, APART or CORRUPT."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        number = PyLong_AsLong(most)
        if number == -1 and PyErr_Occurred() != 0:
            return 0
        things = PyList_New(0)
        if things == 0:
            return 0
        why = take_list(state, things, number)
        if PyList_Size(things) > 0:
            if why == 0:
                keep_exception(state, on_stack())
            return things
        Py_DecRef(things)
        if why == 0:
            return 0
        return none(state) if why == -FULL else PyLong_FromLongLong(-why)

    entries = {f.__name__: Entry(f, METH_FASTCALL | METH_KEYWORDS) for f in (put, get, put_together)}
    return entries | {
        f.__name__: Entry(f, METH_O) for f in (put_pickled, put_list, put_trees, is_of_trees, get_one, get_list)
    }


@cache
def objects_functions() -> dict[str, Callable[..., int]]:
    """What is called more seldom, for calling from Python with the address of the state."""

    def compiled(key: str) -> dict[str, Any]:
        @cfunc(WORD(WORD, WORD), cache=True)
        def claim_run(state, wanted):
            key  # see SOURCES
            private = load_relaxed(state + PRIVATE)
            me = load_relaxed(private + ME)
            if me == 0:
                return blocks.NO_RUN
            body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
            return blocks.claim(
                load_relaxed(state + POOL), load_relaxed(state + BLOCKS), body, capacity,
                load_relaxed(state + STRIDE), private, me, wanted,
            )  # fmt: skip

        @cfunc(WORD(WORD, WORD, WORD), cache=True)
        def claim_spare(state, start, most):
            """first << 32 | number."""
            key  # see SOURCES
            me = load_relaxed(load_relaxed(state + PRIVATE) + ME)
            if me == 0:
                return blocks.NO_RUN
            pool = load_relaxed(state + POOL)
            first, number = blocks.claim_spare(
                pool, load_relaxed(state + BLOCKS), load_relaxed(state + RING), load_relaxed(state + RING_BYTES),
                load_relaxed(state + STRIDE), load_relaxed(state + PRIVATE), me, start, most,
            )  # fmt: skip
            return first << 32 | number if number else blocks.NO_RUN

        @cfunc(types.void(WORD, WORD, WORD), cache=True)
        def free_run(state, first, number):
            key  # see SOURCES
            blocks.free(load_relaxed(state + POOL), first, number)

        @cfunc(types.void(WORD, WORD, WORD), cache=True)
        def unclaim_run(state, first, number):
            key  # see SOURCES
            blocks.unclaim(load_relaxed(state + POOL), first, number, False)

        @cfunc(WORD(WORD, WORD, WORD, WORD), cache=True)
        def send_run(state, first, number, size):
            key  # see SOURCES
            sent = put_run(state, first, number, size)
            if sent == SENT:
                tell_receivers(state)
            return sent

        @cfunc(types.void(WORD, WORD), cache=True)
        def sweep_runs(state, number):
            key  # see SOURCES
            blocks.sweep(
                load_relaxed(state + POOL), load_relaxed(state + BLOCKS), load_relaxed(state + RING),
                load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE), number,
            )  # fmt: skip

        @cfunc(WORD(WORD), cache=True)
        def runs_in_use(state):
            key  # see SOURCES
            return blocks.in_use(
                load_relaxed(state + POOL), load_relaxed(state + BLOCKS), load_relaxed(state + RING),
                load_relaxed(state + RING_BYTES), load_relaxed(state + STRIDE), load_relaxed(state + PRIVATE),
            )  # fmt: skip

        @cfunc(WORD(WORD), cache=True)
        def holds_message(state):
            key  # see SOURCES
            body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
            return 1 if mpmc.holds_message(body, capacity, load_relaxed(state + STRIDE)) else 0

        @cfunc(WORD(WORD), cache=True)
        def has_room(state):
            key  # see SOURCES
            body, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
            return 1 if mpmc.has_room(body, capacity, load_relaxed(state + STRIDE)) else 0

        @cfunc(WORD(WORD, WORD), cache=True)
        def add_to(address, amount):
            """What it is afterwards."""
            key  # see SOURCES
            return add(address, amount) + amount

        @cfunc(WORD(WORD), cache=True)
        def limit(state):
            key  # see SOURCES
            return blocks.limit_of(load_relaxed(state + POOL), load_relaxed(state + BLOCKS))

        @cfunc(types.void(WORD, WORD), cache=True)
        def raise_limit(state, limit):
            key  # see SOURCES
            blocks.raise_limit(load_relaxed(state + POOL), limit)

        made = (
            limit, raise_limit, claim_run, claim_spare, free_run, unclaim_run, send_run, sweep_runs, runs_in_use,
            holds_message, has_room, add_to,
        )  # fmt: skip
        return {f.__name__: f for f in made}

    return callables(compiled(SOURCES))
