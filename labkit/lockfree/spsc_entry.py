"""Spsc's builtins: `send` and `receive` themselves are compiled functions, at a price near that of list.append.

The public ones do the common case, and leave the rest (waiting, large messages, errors, taking a role) to a Python
function, which they call with the arguments that they got. That one uses the plain builtins, which never wait, and say
why not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import cfunc, njit, types

from labkit.lockfree import bells, spsc
from labkit.lockfree.atomics import (
    compiler_fence,
    copy,
    fence,
    load_constant,
    load_relaxed,
    on_stack,
    pause,
    prefetch,
    prefetch_to_write,
    store_relaxed,
)
from labkit.lockfree.entry import (
    APART,
    BUFFER_SIZE,
    BUFFER_START,
    BUILTIN,
    CORRUPT,
    FASTCALL,
    FULL,
    METH_ANY,
    METH_NOARGS,
    METH_O,
    MOST,
    OWN,
    REFUSED,
    RING,
    RING_BYTES,
    SENT,
    SOURCES,
    WORD,
    WRITABLE,
    Entry,
    Py_DecRef,
    Py_IncRef,
    PyBool_FromLong,
    PyBuffer_Release,
    PyBytes_AsString,
    PyBytes_AsStringAndSize,
    PyBytes_FromStringAndSize,
    PyErr_Clear,
    PyErr_Occurred,
    PyEval_RestoreThread,
    PyEval_SaveThread,
    PyList_GetItem,
    PyList_New,
    PyList_SetItem,
    PyList_SetSlice,
    PyList_Size,
    PyLong_AsLong,
    PyLong_AsVoidPtr,
    PyLong_FromLongLong,
    PyObject_GetBuffer,
    PyObject_Vectorcall,
    answer,
    at_most_timeout,
    callables,
    given_bytes,
    none,
    of_object,
)

# The private state of one Spsc object in one process. RING is the body of the segment, RING_BYTES the size of its data,
# a power of two; MOST the bytes of the largest message, or of an item.
SENDS, RECEIVES = OWN, OWN + 8  # 0: we have not the role; READY; BUSY
ITEM_BYTES = OWN + 16  # 0: messages
ROOM = OWN + 24  # bytes that may be in the ring: RING_BYTES, or the capacity in items
READ_SEEN, WRITE_SEEN = OWN + 32, OWN + 40  # see labkit.lockfree.spsc
PRIVATE = OWN + 48  # address of the segment's private words
SPINS = OWN + 56  # how often to look before sleeping is cheaper
ITEMS_BELL, ITEMS_FD, ROOM_BELL, ROOM_FD = OWN + 64, OWN + 72, OWN + 80, OWN + 88
SEND_REST, RECEIVE_REST, TRY_SEND_REST, TRY_RECEIVE_REST = OWN + 96, OWN + 104, OWN + 112, OWN + 120
DONE = OWN + 128  # how far the last batch came
LARGE = OWN + 136  # larger messages are sent in pieces
PIECE = OWN + 144  # bytes in a piece
SENT_BYTES = OWN + 152  # of the large message that is being sent
# The large message that is being received: a bytes object (0: none), where it begins, how far it is, how large it is.
OBJECT, START, NEXT, GOT_BYTES, TOTAL = OWN + 160, OWN + 168, OWN + 176, OWN + 184, OWN + 192
KEEPS = OWN + 200  # 1: it is not released when it is complete
LOAN, LOAN_BYTES = OWN + 208, OWN + 216  # position of the message that is lent to be written, and its size
BORROW, BORROW_BYTES = OWN + 224, OWN + 232  # position of the message that is lent to be read, and what it takes there
WAITED = OWN + 240  # READ when the receiver, in compiled code, last had to wait

READY, BUSY = 1, 2
"""Of a role that we have: BUSY, a loan (or a borrowed message) is out, or a thread is at a large message."""
IN_PIECES, AGAIN, TOO_LARGE, NOT_RECEIVER = 5, 6, 7, 8
"""What is returned besides the words of labkit.lockfree.entry. IN_PIECES: the message is too large to be sent at once,
or was; AGAIN: something else has come to be the next; TOO_LARGE: for the buffer given; NOT_RECEIVER: APART, of a
receiver in compiled code."""
STREAMING = 16384  # from this size on NumPy may use streaming stores, which no release store orders: x86
LONG = 2000  # how often to look for the next piece, at most
PUBLISH_AFTER = 32  # messages of a batch
SMALLEST_FRAME = 16  # bytes
AHEAD = 1024  # bytes: so far ahead of what it does a batch fetches cache lines
BRIEFLY = 200  # how often to look for a message, or for room, with the GIL: some microseconds
A_MOMENT = 16  # pauses: some 200 ns, two round trips of a cache line between near processors
SENDER, RECEIVER = 0, 1  # labkit.lockfree.segment


# --- for builtins, and for the reader's own loops -----------------------------------------------------------


@njit
def tell_receiver(state):
    """Something was published."""
    bells.ring(load_constant(state + ITEMS_BELL), load_constant(state + ITEMS_FD))


@njit
def tell_sender(state):
    """Something was released. A sender that waits is left asleep until half of the ring is free, to wake it seldom."""
    bell = load_constant(state + ROOM_BELL)
    compiler_fence()  # edge S
    if load_relaxed(bell + bells.WAITERS) != 0:
        room = load_relaxed(state + ROOM)
        if load_relaxed(bell + bells.WAITERS) & bells.FENCED or 2 * spsc.used(load_relaxed(state + RING), room) <= room:
            bells.ring(bell, load_relaxed(state + ROOM_FD))


@njit
def copy_bytes(to, source, size):
    """memcpy(3), as one instruction for words."""
    if size == 8:
        copy(to, source, 8)
    else:
        copy(to, source, size)


@njit
def put_bytes(state, source, size):
    """One message, or one item: SENT or why not. `tell_receiver` comes later."""
    if load_relaxed(state + SENDS) != READY:
        return APART
    if size <= 0 or size > load_relaxed(state + MOST):
        return REFUSED
    if size > load_relaxed(state + LARGE) and not fits_at_once_only(state, size):
        return IN_PIECES
    body, ring = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    item_bytes = load_relaxed(state + ITEM_BYTES)
    if item_bytes:
        if size != item_bytes:
            return REFUSED
        sent = spsc.send_items(body, ring, load_relaxed(state + ROOM), state + READ_SEEN, item_bytes, source, 1)
        return SENT if sent == 1 else FULL if sent == 0 else CORRUPT
    position = spsc.reserve(body, ring, state + READ_SEEN, spsc.frame_bytes(size))
    if position < 0:
        return FULL if position == spsc.FULL else CORRUPT
    frame = spsc.frame_at(body, ring, position)
    store_relaxed(frame, size)  # ours until published
    copy_bytes(frame + spsc.FRAME, source, size)
    spsc.publish(body, position + spsc.frame_bytes(size))
    return SENT


@njit
def fits_at_once_only(state, size):
    """Whether a message is so large that it fits in the ring as a whole, but not with the heads of all its pieces."""
    room = load_relaxed(state + ROOM)
    return spsc.frame_bytes(size) <= room and bytes_in_pieces(state, size) > room


@njit
def send_bytes(state, source, size):
    """The same, and tell."""
    sent = put_bytes(state, source, size)
    if sent == SENT:
        tell_receiver(state)
    return sent


@njit
def send_pieces(state, source, size):
    """Go on with a large message, of which SENT_BYTES are sent: SENT, FULL or CORRUPT."""
    body, ring = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    done, looks = load_relaxed(state + SENT_BYTES), 0
    while done < size:
        piece = min(size - done, load_relaxed(state + PIECE))
        sent = spsc.send_piece(body, ring, state + READ_SEEN, source + done, piece, size, done == 0)
        if sent == spsc.CORRUPT:
            return CORRUPT
        if sent == 0:
            done += piece
            looks = 0
            store_relaxed(state + SENT_BYTES, done)
            tell_receiver(state)
        elif looks == LONG:
            return FULL
        else:
            looks += 1
            pause()
    return SENT


@njit
def take_bytes(state):
    """A new bytes object, 0 with an exception set, or -FULL (nothing), -CORRUPT, -APART, -IN_PIECES."""
    if load_relaxed(state + RECEIVES) != READY:
        return -APART
    if load_relaxed(state + OBJECT):
        return -IN_PIECES
    body, ring = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    size = spsc.next_message(body, ring, state + WRITE_SEEN)
    if size < 0:
        return -FULL if size == spsc.EMPTY else -CORRUPT if size == spsc.CORRUPT else -IN_PIECES
    message = PyBytes_FromStringAndSize(0, size)
    if message != 0:  # else MemoryError is set, and the message stays where it is
        read = spsc.read_position(body)
        copy_bytes(PyBytes_AsString(message), spsc.frame_at(body, ring, read) + spsc.FRAME, size)
        spsc.release(body, read + spsc.frame_bytes(size))
    return message


@njit
def receive_bytes(state):
    """The same, and tell."""
    message = take_bytes(state)
    if message > 0:
        tell_sender(state)
    return message


@njit
def drop(state):
    """Forget the large message of which a part has come."""
    message = load_relaxed(state + OBJECT)
    store_relaxed(state + OBJECT, 0)
    if message != 0:
        Py_DecRef(message)


@njit
def take_pieces(state, to, most):
    """The same, of a message in pieces: as far as it has come, and a little longer, without the GIL. Or -AGAIN.

    Args:
        to: address of `most` bytes of the caller's for the message, whose size is returned then; 0: a new object. When
            only a part has come it becomes an object after all, which later calls, without `to`, go on with.
    """
    body, ring, seen = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), state + WRITE_SEEN
    store_relaxed(state + RECEIVES, BUSY)  # for other threads
    thread = PyEval_SaveThread()
    looks, why, passed_over, is_into = 0, WORD(0), False, False
    while why == 0:
        is_open = is_into or load_relaxed(state + OBJECT) != 0
        position = load_relaxed(state + NEXT) if is_open else spsc.read_position(body)
        head = spsc.head_at(body, ring, seen, position)
        if head == spsc.EMPTY:
            if is_open and spsc.is_cut(body, ring, seen, load_relaxed(state + START), position):
                why = 1
            elif is_open and looks < LONG:
                looks += 1
                pause()
            else:
                why = -FULL
            continue
        if head < 0:
            why = -CORRUPT
            continue
        looks, size, kind = 0, head & ~spsc.KIND, head & spsc.KIND
        after, frame = position + spsc.frame_bytes(size), spsc.frame_at(body, ring, position) + spsc.FRAME
        if kind == spsc.MORE and not is_open:  # the rest of a message of which another receiver had a part
            spsc.release(body, after)
            tell_sender(state)
            passed_over = True
        elif kind != spsc.MORE and is_open:
            why = 1
        elif kind == spsc.WHOLE or passed_over:
            why = 2
        else:
            if kind == spsc.FIRST:
                total = load_relaxed(frame)
                frame, size = frame + spsc.FRAME, size - spsc.FRAME
                if size <= 0 or total <= 0 or total > load_relaxed(state + MOST):
                    why = -CORRUPT
                    continue
                if to != 0:
                    if total > most:
                        why = -CORRUPT  # it was asked for before
                        continue
                    is_into = True
                else:
                    PyEval_RestoreThread(thread)
                    made = PyBytes_FromStringAndSize(0, total)
                    thread = PyEval_SaveThread()
                    if made == 0:
                        why = 3
                        continue
                    store_relaxed(state + OBJECT, made)
                store_relaxed(state + START, position)
                store_relaxed(state + TOTAL, total)
                store_relaxed(state + GOT_BYTES, 0)
            got, total = load_relaxed(state + GOT_BYTES), load_relaxed(state + TOTAL)
            if size > total - got:
                why = -CORRUPT
                continue
            copy((to if is_into else PyBytes_AsString(load_relaxed(state + OBJECT))) + got, frame, size)
            store_relaxed(state + NEXT, after)
            store_relaxed(state + GOT_BYTES, got + size)
            # What fits in the ring is released at the end; what does not makes room as soon as it can.
            is_too_large = bytes_in_pieces(state, total) > ring
            if is_too_large or (got + size == total and load_relaxed(state + KEEPS) == 0):
                spsc.release(body, after)
                tell_sender(state)
            if got + size == total:
                why = 4
    PyEval_RestoreThread(thread)
    store_relaxed(state + RECEIVES, READY)
    if why == 1:  # it was cut off: what there is of it goes, and we begin again behind it
        position = load_relaxed(state + NEXT)
        drop(state)
        spsc.release(body, position)
        tell_sender(state)
        return -AGAIN
    if why == 2:
        return -AGAIN
    if why == 3:
        return 0
    if why == 4:
        if is_into:
            return load_relaxed(state + TOTAL)
        message = load_relaxed(state + OBJECT)
        store_relaxed(state + OBJECT, 0)
        return message
    if why == -CORRUPT:
        drop(state)
    elif is_into:
        made = PyBytes_FromStringAndSize(0, load_relaxed(state + TOTAL))
        if made == 0:
            return 0
        copy(PyBytes_AsString(made), to, load_relaxed(state + GOT_BYTES))
        store_relaxed(state + OBJECT, made)
    return why


@njit
def total_of(state):
    """Bytes of the large message that is the next; 0: none, only the rest of one."""
    body, ring = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    read = spsc.read_position(body)
    head = spsc.head_at(body, ring, state + WRITE_SEEN, read)
    return spsc.total_of(body, ring, read) if head > 0 and head & spsc.KIND == spsc.FIRST else 0


@njit
def look(state):
    """Bytes of the next message or item where it lies; 0: there is none; -APART, -CORRUPT or -IN_PIECES."""
    if load_relaxed(state + RECEIVES) != READY:
        return -APART
    body, ring, item_bytes = (
        load_relaxed(state + RING),
        load_relaxed(state + RING_BYTES),
        load_relaxed(state + ITEM_BYTES),
    )
    if item_bytes:
        there = spsc.readable(body, load_relaxed(state + ROOM), state + WRITE_SEEN, spsc.read_position(body))
        if there < 0:
            return -CORRUPT
        return item_bytes if there >= item_bytes else WORD(0)
    if load_relaxed(state + OBJECT):
        return -IN_PIECES
    size = spsc.next_message(body, ring, state + WRITE_SEEN)
    if size == spsc.PIECES:
        return -IN_PIECES
    if size < 0:
        return WORD(0) if size == spsc.EMPTY else -CORRUPT
    return size


@njit
def position_of(state):
    """Where the receiver looks for something to come."""
    if load_relaxed(state + OBJECT):
        return load_relaxed(state + NEXT)
    return spsc.read_position(load_relaxed(state + RING))


@njit
def is_there(state):
    """Whether it is worth while to receive. It changes nothing, so that any thread may ask."""
    return spsc.published(load_relaxed(state + RING)) != position_of(state)


@njit
def comes_soon(state):
    """Watch an empty ring for a moment, with the GIL: to call Python for it costs more than most waits are long."""
    body, position = load_relaxed(state + RING), position_of(state)
    for _ in range(min(load_relaxed(state + SPINS), BRIEFLY)):
        if spsc.published(body) != position:
            return True
        pause()
    return False


@njit
def has_room(state, size):
    """Whether so many bytes fit in now. It changes nothing."""
    room = load_relaxed(state + ROOM)
    there = spsc.used(load_relaxed(state + RING), room)
    return there < 0 or there <= room - size


@njit
def bytes_in_ring(state, size):
    """Bytes that one message, or one item, takes in the ring in one piece."""
    return size if load_relaxed(state + ITEM_BYTES) else spsc.frame_bytes(size)


@njit
def bytes_in_pieces(state, size):
    """Bytes that a large message takes in the ring, at most."""
    return spsc.frame_bytes(size) + (2 + size // load_relaxed(state + PIECE)) * spsc.FRAME


send_one = of_object(send_bytes)
put_one = of_object(put_bytes)


# A batch is published, or released, now and then and not message by message: WRITE and READ are what the two processors
# tell each other, 100 ns each time.


@njit
def put_list(state, messages):
    """Send a list of bytes-like objects, as many as go: SENT or why not; -1 with an exception set. DONE: how many."""
    number, why, done, filled = PyList_Size(messages), WORD(SENT), 0, 0
    body, ring, buffer = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), on_stack()
    is_simple = load_relaxed(state + SENDS) == READY and load_relaxed(state + ITEM_BYTES) == 0
    most, position = load_relaxed(state + LARGE), spsc.write_position(body)
    while done < number and why == SENT:
        message = PyList_GetItem(messages, done)  # borrowed: nothing that Python does happens as long as it is bytes
        if message == 0:  # the list has become shorter meanwhile
            PyErr_Clear()
            break
        if is_simple and PyBytes_AsStringAndSize(message, buffer, buffer + 8) == 0:
            size = load_relaxed(buffer + 8)
            if 0 < size <= most:
                frame_bytes = spsc.frame_bytes(size)
                reserved = spsc.reserve_at(body, ring, state + READ_SEEN, frame_bytes, position)
                if reserved < 0:
                    why = WORD(FULL) if reserved == spsc.FULL else WORD(CORRUPT)
                    break
                prefetch_to_write(spsc.at(body, ring, position + AHEAD))
                frame = spsc.frame_at(body, ring, position)
                store_relaxed(frame, size)  # ours until published
                copy_bytes(frame + spsc.FRAME, load_relaxed(buffer), size)
                position += frame_bytes
                filled += 1
                done += 1
                if filled == PUBLISH_AFTER:
                    spsc.publish(body, position)
                    filled = 0
                continue
        elif is_simple:
            PyErr_Clear()
        if filled:
            spsc.publish(body, position)
            filled = 0
        Py_IncRef(message)
        why = WORD(put_one(state, message))
        Py_DecRef(message)
        if why == SENT:
            done += 1
        is_simple = is_simple and load_relaxed(state + SENDS) == READY  # it may have run Python code
        position = spsc.write_position(body)
    if filled:
        spsc.publish(body, position)
    store_relaxed(state + DONE, done)
    return -1 if number < 0 else why


@njit
def take_list(state, most):
    """A list of the messages that are there, up to so many; 0 with an exception set; or why not, as `take_bytes`."""
    if load_relaxed(state + RECEIVES) != READY:
        return -APART
    if load_relaxed(state + OBJECT):
        return -IN_PIECES
    body, ring, position = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), position_of(state)
    there = spsc.readable(body, ring, state + WRITE_SEEN, position)
    if there < most * SMALLEST_FRAME:
        store_relaxed(state + WRITE_SEEN, position)  # look again
        there = spsc.readable(body, ring, state + WRITE_SEEN, position)
    if there <= 0:
        return -FULL if there == 0 else -CORRUPT
    room = max(1, min(most, there // SMALLEST_FRAME))
    messages = PyList_New(room)
    if messages == 0:
        return 0
    end, taken, why = position + there, 0, 0
    while taken < room and position < end:
        if position + AHEAD < end:  # where a frame begins is told by the one before it: the processor cannot guess
            prefetch(spsc.at(body, ring, position + AHEAD))
        frame = spsc.frame_at(body, ring, position)
        size = load_relaxed(frame)  # the receiver's since edge A
        if size >= spsc.FIRST or size <= 0 or size > end - position - spsc.FRAME:
            why = -CORRUPT if size < spsc.FIRST else -IN_PIECES
            break
        message = PyBytes_FromStringAndSize(frame + spsc.FRAME, size)
        if message == 0:
            break
        PyList_SetItem(messages, taken, message)
        position += spsc.frame_bytes(size)
        taken += 1
        if taken % PUBLISH_AFTER == 0:
            spsc.release(body, position)
    if taken == 0:
        Py_DecRef(messages)
        return why
    spsc.release(body, position)
    if taken < room:
        PyErr_Clear()  # what is wrong will be found again
        PyList_SetSlice(messages, taken, room, 0)
    return messages


# --- builtins -----------------------------------------------------------------------------------------------


@cache
def spsc_entries() -> dict[str, Entry]:
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
            if message == -FULL and count == 0 and names == 0 and comes_soon(state):
                message = receive_bytes(state)
            if message >= 0:
                return message
        return PyObject_Vectorcall(load_relaxed(state + RECEIVE_REST), arguments, count, names)

    @cfunc(FASTCALL, cache=True)
    def try_receive(self, arguments, count, names):
        """try_receive(): the next message, or None."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        if count == 0 and names == 0:
            message = receive_bytes(state)
            if message >= 0:
                return message
        return PyObject_Vectorcall(load_relaxed(state + TRY_RECEIVE_REST), arguments, count, names)

    @cfunc(BUILTIN, cache=True)
    def spsc_send(self, message):
        """Send the bytes of one object, or say why not."""
        key  # see SOURCES
        sent = send_one(PyLong_AsVoidPtr(self), message)
        return PyLong_FromLongLong(sent) if sent >= 0 else 0

    @cfunc(BUILTIN, cache=True)
    def spsc_send_pieces(self, message):
        """Go on sending the bytes of one object in pieces, without the GIL: SENT, FULL or CORRUPT."""
        key  # see SOURCES
        state, buffer = PyLong_AsVoidPtr(self), on_stack()
        if PyObject_GetBuffer(message, buffer, 0) != 0:
            return 0
        thread = PyEval_SaveThread()
        sent = send_pieces(state, load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE))
        PyEval_RestoreThread(thread)
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(sent)

    @cfunc(BUILTIN, cache=True)
    def spsc_receive(self, ignored):
        """The next message, None when there is none, APART, CORRUPT or IN_PIECES."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        return answer(state, receive_bytes(state))

    @cfunc(BUILTIN, cache=True)
    def spsc_receive_pieces(self, ignored):
        """The next message, which is in pieces: None when it is not complete, APART, CORRUPT or AGAIN."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        if load_relaxed(state + RECEIVES) != READY:
            return PyLong_FromLongLong(APART)
        return answer(state, take_pieces(state, 0, 0))

    @cfunc(BUILTIN, cache=True)
    def spsc_send_many(self, messages):
        """Send a list of bytes-like objects, as many as there is room for: SENT or why not; DONE says how many."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        why = put_list(state, messages)
        if load_relaxed(state + DONE) > 0:
            tell_receiver(state)
        return PyLong_FromLongLong(why) if why >= 0 else 0

    @cfunc(BUILTIN, cache=True)
    def spsc_receive_many(self, most):
        """A list of the messages that are there, up to so many; None when there is none, or as spsc_receive."""
        key  # see SOURCES
        state, number = PyLong_AsVoidPtr(self), PyLong_AsLong(most)
        if number == -1 and PyErr_Occurred() != 0:
            return 0
        messages = take_list(state, number)
        if messages > 0:
            tell_sender(state)
        return answer(state, messages)

    @cfunc(BUILTIN, cache=True)
    def spsc_send_items(self, items):
        """Send the items of a contiguous array, as many as there is room for: SENT or why not; DONE says how many."""
        key  # see SOURCES
        state, buffer = PyLong_AsVoidPtr(self), on_stack()
        store_relaxed(state + DONE, 0)
        if PyObject_GetBuffer(items, buffer, 0) != 0:
            return 0
        source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        item_bytes, why = load_relaxed(state + ITEM_BYTES), SENT
        if item_bytes == 0 or size % item_bytes:
            why = REFUSED
        elif load_relaxed(state + SENDS) != READY:
            why = APART
        elif size > 0:
            body, ring, room = load_relaxed(state + RING), load_relaxed(state + RING_BYTES), load_relaxed(state + ROOM)
            sent = spsc.send_items(body, ring, room, state + READ_SEEN, item_bytes, source, size // item_bytes)
            if sent > 0:
                tell_receiver(state)
                store_relaxed(state + DONE, sent)
            if sent != size // item_bytes:
                why = FULL if sent >= 0 else CORRUPT
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(why)

    @cfunc(BUILTIN, cache=True)
    def spsc_receive_into(self, room):
        """Fill a writable buffer with items, as many as there are, or with the next message.

        How many items or bytes it was; 0 when there is nothing; or -APART, -CORRUPT, -TOO_LARGE, -IN_PIECES, -AGAIN.
        DONE says how large the message is when that is why.
        """
        key  # see SOURCES
        state, buffer = PyLong_AsVoidPtr(self), on_stack()
        if PyObject_GetBuffer(room, buffer, WRITABLE) != 0:
            return 0
        to, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        body, ring, item_bytes = (
            load_relaxed(state + RING),
            load_relaxed(state + RING_BYTES),
            load_relaxed(state + ITEM_BYTES),
        )
        done = WORD(0)
        if load_relaxed(state + RECEIVES) != READY:
            done = -APART
        elif load_relaxed(state + OBJECT):
            done = -IN_PIECES
            store_relaxed(state + DONE, load_relaxed(state + TOTAL))
        elif item_bytes:
            limit = load_relaxed(state + ROOM)
            done = spsc.take_items(body, ring, limit, state + WRITE_SEEN, item_bytes, to, size // item_bytes)
            if done < 0:
                done = -CORRUPT
        else:
            done = spsc.next_message(body, ring, state + WRITE_SEEN)
            if done == spsc.EMPTY:
                done = WORD(0)
            elif done < 0:
                total = total_of(state)
                store_relaxed(state + DONE, total)
                if done == spsc.CORRUPT:
                    done = -CORRUPT
                elif total == 0 or total > size:
                    done = -IN_PIECES
                else:
                    done = take_pieces(state, to, size)
                    if done == 0:
                        PyBuffer_Release(buffer)
                        return 0
                    if done == -FULL:
                        done = WORD(0)
            elif done > size:
                store_relaxed(state + DONE, done)
                done = -TOO_LARGE
            else:
                spsc.take_message(body, ring, to, done)
        PyBuffer_Release(buffer)
        if done > 0:
            tell_sender(state)
        return PyLong_FromLongLong(done)

    @cfunc(BUILTIN, cache=True)
    def spsc_loan(self, wanted):
        """Lend room for a message of so many bytes, or for an item: SENT or why not."""
        key  # see SOURCES
        state, size = PyLong_AsVoidPtr(self), PyLong_AsLong(wanted)
        if size == -1 and PyErr_Occurred() != 0:
            return 0
        if load_relaxed(state + SENDS) != READY:
            return PyLong_FromLongLong(APART)
        body, room = load_relaxed(state + RING), load_relaxed(state + ROOM)
        position = spsc.reserve(body, room, state + READ_SEEN, bytes_in_ring(state, size))
        looks = min(load_relaxed(state + SPINS), BRIEFLY)
        while position == spsc.FULL and looks > 0:
            pause()
            looks -= 1
            position = spsc.reserve(body, room, state + READ_SEEN, bytes_in_ring(state, size))
        if position < 0:
            return PyLong_FromLongLong(FULL if position == spsc.FULL else CORRUPT)
        store_relaxed(state + LOAN, position)
        store_relaxed(state + LOAN_BYTES, size)
        store_relaxed(state + SENDS, BUSY)
        return PyLong_FromLongLong(SENT)

    @cfunc(BUILTIN, cache=True)
    def spsc_publish(self, ignored):
        """Send what was lent and is written."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        body, ring = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
        position, size = load_relaxed(state + LOAN), load_relaxed(state + LOAN_BYTES)
        if size >= STREAMING:
            fence()
        if load_relaxed(state + ITEM_BYTES) == 0:
            store_relaxed(spsc.frame_at(body, ring, position), size)  # ours until published
        spsc.leave_no_copy(body)
        spsc.publish(body, position + bytes_in_ring(state, size))
        store_relaxed(state + SENDS, READY)
        tell_receiver(state)
        return none(state)

    @cfunc(BUILTIN, cache=True)
    def spsc_borrow(self, ignored):
        """Lend the next message, or item: its bytes, 0 when there is none; or -APART, -CORRUPT, -IN_PIECES."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        size = look(state)
        if size == 0 and comes_soon(state):
            size = look(state)
        if size > 0:
            store_relaxed(state + BORROW, spsc.read_position(load_relaxed(state + RING)))
            store_relaxed(state + BORROW_BYTES, bytes_in_ring(state, size))
            store_relaxed(state + RECEIVES, BUSY)
        return PyLong_FromLongLong(size)

    @cfunc(BUILTIN, cache=True)
    def spsc_release(self, ignored):
        """The message that was lent is read."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        spsc.release(load_relaxed(state + RING), load_relaxed(state + BORROW) + load_relaxed(state + BORROW_BYTES))
        store_relaxed(state + RECEIVES, READY)
        tell_sender(state)
        return none(state)

    @cfunc(BUILTIN, cache=True)
    def spsc_lent_at(self, role):
        """From the body to the message that is lent to the sender, or to the receiver."""
        key  # see SOURCES
        state, whose = PyLong_AsVoidPtr(self), PyLong_AsLong(role)
        position, ring = load_relaxed(state + (LOAN if whose == SENDER else BORROW)), load_relaxed(state + RING_BYTES)
        if load_relaxed(state + ITEM_BYTES):
            return PyLong_FromLongLong(spsc.at(0, ring, position))
        return PyLong_FromLongLong(spsc.frame_at(0, ring, position) + spsc.FRAME)

    @cfunc(BUILTIN, cache=True)
    def spsc_spin(self, ignored):
        """Watch an empty queue for a few microseconds with the GIL released; 1 when something came."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        body, position, came = load_relaxed(state + RING), position_of(state), 0
        thread = PyEval_SaveThread()
        for _ in range(load_relaxed(state + SPINS)):
            if spsc.published(body) != position:
                came = 1
                break
            pause()
        PyEval_RestoreThread(thread)
        return PyLong_FromLongLong(came)

    @cfunc(BUILTIN, cache=True)
    def spsc_spin_for_room(self, ignored):
        """Watch a full queue for a few microseconds with the GIL released; 1 when a quarter of it is free."""
        key  # see SOURCES
        state, came = PyLong_AsVoidPtr(self), 0
        thread = PyEval_SaveThread()
        for _ in range(load_relaxed(state + SPINS)):
            if has_room(state, load_relaxed(state + ROOM) // 4):
                came = 1
                break
            pause()
        PyEval_RestoreThread(thread)
        return PyLong_FromLongLong(came)

    taking_any = send, try_send, receive, try_receive
    taking_one = (
        spsc_send, spsc_send_pieces, spsc_send_many, spsc_receive_many, spsc_send_items, spsc_receive_into, spsc_loan,
        spsc_lent_at,
    )  # fmt: skip
    taking_none = (
        spsc_receive, spsc_receive_pieces, spsc_publish, spsc_borrow, spsc_release, spsc_spin, spsc_spin_for_room,
    )  # fmt: skip
    entries = {f.__name__: Entry(f, METH_ANY) for f in taking_any}
    entries |= {f.__name__: Entry(f, METH_O) for f in taking_one}
    return entries | {f.__name__: Entry(f, METH_NOARGS) for f in taking_none}


@cache
def spsc_functions() -> dict[str, Callable[..., int]]:
    """What is called more seldom, for calling from Python with the address of the state."""

    def compiled(key: str) -> dict[str, Any]:
        @cfunc(WORD(WORD, WORD), cache=True)
        def fits(state, size):
            """Whether a large message has room: 1 now, 0 not now, -1 never at once."""
            key  # see SOURCES
            needed = bytes_in_pieces(state, size)
            if needed > load_relaxed(state + ROOM):
                return -1
            return 1 if has_room(state, needed) else 0

        @cfunc(types.void(WORD), cache=True)
        def abandon(state):
            key  # see SOURCES
            spsc.abandon(load_relaxed(state + RING))
            tell_receiver(state)

        @cfunc(types.void(WORD), cache=True)
        def forget(state):
            key  # see SOURCES
            drop(state)

        @cfunc(types.void(WORD), cache=True)
        def drop_rest(state):
            """There is nothing new, and the sender of the large message of which we have a part is dead."""
            key  # see SOURCES
            if load_relaxed(state + OBJECT):
                drop(state)
                spsc.release(load_relaxed(state + RING), load_relaxed(state + NEXT))
                tell_sender(state)

        @cfunc(WORD(WORD), cache=True)
        def length(state):
            key  # see SOURCES
            body, room, item_bytes = (
                load_relaxed(state + RING),
                load_relaxed(state + ROOM),
                load_relaxed(state + ITEM_BYTES),
            )
            if item_bytes:
                there = spsc.used(body, room)
                return there // item_bytes if there >= 0 else there
            return spsc.length(body, room)

        @cfunc(WORD(WORD), cache=True)
        def anything(state):
            key  # see SOURCES
            return 1 if is_there(state) else 0

        made = fits, abandon, forget, drop_rest, length, anything
        return {f.__name__: f for f in made}

    return callables(compiled(SOURCES))


# --- for @njit: labkit.lockfree.compiled --------------------------------------------------------------------


@cache
def item_operations(item_bytes: int) -> dict[str, Any]:
    """`send` and `receive` of items of a size that the compiler knows, so that one is a few instructions."""

    @njit(forceinline=True)
    def send(state, source, count):
        """Send items: how many, 0 when it is full, or trouble."""
        if load_relaxed(state + SENDS) != READY:
            return -APART
        body, ring, room = load_constant(state + RING), load_constant(state + RING_BYTES), load_constant(state + ROOM)
        sent = spsc.send_items(body, ring, room, state + READ_SEEN, item_bytes, source, count)
        if sent > 0:
            tell_receiver(state)
            return sent
        return sent if sent == 0 else -CORRUPT

    @njit(forceinline=True)
    def receive(state, to, most):
        """Receive items: how many, 0 when there are none, or trouble."""
        if load_relaxed(state + RECEIVES) != READY:
            return -NOT_RECEIVER
        body, ring, room = load_constant(state + RING), load_constant(state + RING_BYTES), load_constant(state + ROOM)
        came = spsc.take_items(body, ring, room, state + WRITE_SEEN, item_bytes, to, most)
        if came > 0:
            tell_sender(state)
            return came
        return came if came == 0 else -CORRUPT

    return {"send": send, "receive": receive}


@njit
def become_sender(state):
    """After APART: whether we are now."""
    if load_relaxed(state + SENDS) or not bells.take_role(load_relaxed(state + PRIVATE), SENDER):
        return False
    spsc.abandon(load_relaxed(state + RING))
    store_relaxed(state + SENDS, READY)
    return True


@njit
def become_receiver(state):
    """After NOT_RECEIVER: whether we are now."""
    if load_relaxed(state + RECEIVES) or not bells.take_role(load_relaxed(state + PRIVATE), RECEIVER):
        return False
    store_relaxed(state + RECEIVES, READY)
    return True


@njit
def may_receive(state):
    """Look; and wait a moment before, when several items have come since we last had to wait.

    Where many come, some more come in that moment, and each look takes the cache line with WRITE away from the sender.
    Where one is answered by one, there is no moment, and the sender is asked for copies: labkit.lockfree.spsc.
    """
    body = load_relaxed(state + RING)
    read = spsc.read_position(body)
    came = read - load_relaxed(state + WAITED)
    if came != 0:
        store_relaxed(state + WAITED, read)
        several = came != load_relaxed(state + ITEM_BYTES)
        spsc.follow(body, not several)
        if several:
            for _ in range(A_MOMENT):
                pause()
    return is_there(state)


@njit
def may_send(state):
    return has_room(state, load_relaxed(state + ROOM) // 4)


@njit
def items_bell(state):
    return load_relaxed(state + ITEMS_BELL)


@njit
def room_bell(state):
    return load_relaxed(state + ROOM_BELL)


@njit
def sender_gone(state):
    if load_relaxed(state + SENDS):
        return False  # it is we
    return bells.is_role_gone(load_relaxed(state + PRIVATE), SENDER)


@njit
def receiver_gone(state):
    if load_relaxed(state + RECEIVES):
        return False  # it is we
    return bells.is_role_gone(load_relaxed(state + PRIVATE), RECEIVER)


@njit
def spins(state):
    return load_relaxed(state + SPINS)
