"""write(2), read(2), send(2), recv(2) and their like on a descriptor, as builtins: a message costs its system call.

A system call takes some 200 ns, and Python around it (a length packed, two objects joined, one cut, the GIL given away
and taken back) as much again and more. Here the system call, the framing and the one copy into a new bytes object are
compiled together, by the same means as the ring's entries (labkit.lockfree.entry).

All descriptors are set not to block, so that the GIL need not be released: a call ends at once. Whatever is not plain
success is left to Python: the functions then return a code, with errno in their state, and the mechanism waits, raises,
or finishes a message that went only in part.

    framed stream (pipe, FIFO, stream sockets)    | length, 4 bytes | message | length | message | …
    buffer of a receiver                          |  used | START … END: read, not yet asked for | free |

A message larger than the buffer is read straight into the bytes object that becomes it, without another copy.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import cfunc, njit, types

from labkit.lockfree.atomics import copy, load_int, load_relaxed, on_stack, store_relaxed
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
    PyLong_AsVoidPtr,
    PyLong_FromLongLong,
    PyObject_GetBuffer,
    new_state,
    none,
)

FD = OWN  # the descriptor
ERRNO = OWN + 8  # of the last call that failed, 0 after one that did not
OWED = OWN + 16  # bytes of a message that went only in part: nothing else may go before them
START, END = OWN + 24, OWN + 32  # what the buffer holds
PARTIAL, HAVE, NEED = OWN + 40, OWN + 48, OWN + 56  # a large message on its way: the bytes object, how much of it
LENGTH = OWN + 64  # the length that goes before a message
VECTOR = OWN + 72  # two struct iovec, 32 bytes
ENDED = OWN + 104  # end of file has been read

BUFFER_BYTES = 1 << 16
LENGTH_BYTES = 4
DONTWAIT, NOSIGNAL = 0x40, 0x4000  # send(2)

REFUSED, NOTHING = -2, -1
"""What the senders return instead of how many bytes are left: refused (empty, too large), or nothing was sent."""

INT = types.int32
write = types.ExternalFunction("write", WORD(INT, WORD, WORD))
writev = types.ExternalFunction("writev", WORD(INT, WORD, INT))
read = types.ExternalFunction("read", WORD(INT, WORD, WORD))
send = types.ExternalFunction("send", WORD(INT, WORD, WORD, INT))
recv = types.ExternalFunction("recv", WORD(INT, WORD, WORD, INT))
mq_send = types.ExternalFunction("mq_send", INT(INT, WORD, WORD, types.uint32))
mq_receive = types.ExternalFunction("mq_receive", WORD(INT, WORD, WORD, WORD))
errno_location = types.ExternalFunction("__errno_location", WORD())
Py_DecRef = types.ExternalFunction("Py_DecRef", types.void(WORD))


@njit
def note_errno(state):
    store_relaxed(state + ERRNO, load_int(errno_location()))


@njit
def sent(state, size, done):
    """The result of a stream's write that took `done` of `size` bytes."""
    if done < 0:
        note_errno(state)
        return PyLong_FromLongLong(NOTHING)
    store_relaxed(state + OWED, size - done)
    return PyLong_FromLongLong(size - done)


@njit
def room_for(state, size):
    """Whether a message may go now: it has a size that is allowed, and nothing is owed. The reason why not is noted."""
    if not 0 < size <= load_relaxed(state + MOST):
        return REFUSED
    if load_relaxed(state + OWED) != 0:
        store_relaxed(state + ERRNO, 0)
        return NOTHING
    return 0


@njit
def next_size(state):
    """Bytes of the message at START, or -1 when not even its length has come."""
    start = load_relaxed(state + START)
    if load_relaxed(state + END) - start < LENGTH_BYTES:
        return -1
    store_relaxed(state + LENGTH, 0)
    copy(state + LENGTH, load_relaxed(state + RING) + start, LENGTH_BYTES)  # it may not be aligned
    return load_relaxed(state + LENGTH)


@njit
def fill(state, to, most):
    """read(2) up to `most` bytes; how many came, 0 also when none could (ERRNO) or none ever will (ENDED)."""
    came = read(load_relaxed(state + FD), to, most)
    if came > 0:
        return came
    if came == 0:
        store_relaxed(state + ENDED, 1)
        store_relaxed(state + ERRNO, 0)
    else:
        note_errno(state)
    return 0


@njit
def taken(state, size):
    """`size` bytes at START are used up; an empty buffer begins anew."""
    start = load_relaxed(state + START) + size
    if start == load_relaxed(state + END):
        start = 0
        store_relaxed(state + END, 0)
    store_relaxed(state + START, start)


@njit
def receive_large(state):
    """Go on with a message that is read into its own bytes object: the object when it is whole, else 0."""
    message, have, need = load_relaxed(state + PARTIAL), load_relaxed(state + HAVE), load_relaxed(state + NEED)
    while have < need:
        came = fill(state, PyBytes_AsString(message) + have, need - have)
        if came == 0:
            store_relaxed(state + HAVE, have)
            return 0
        have += came
    store_relaxed(state + PARTIAL, 0)
    return message


@njit
def receive_framed(state):
    """The next message of a stream as a new bytes object, None when it has not come, 0 with MemoryError set."""
    buffer, capacity = load_relaxed(state + RING), load_relaxed(state + RING_BYTES)
    while True:
        if load_relaxed(state + PARTIAL) != 0:
            whole = receive_large(state)
            return whole if whole != 0 else none(state)
        size = next_size(state)
        start, end = load_relaxed(state + START), load_relaxed(state + END)
        there = end - start - LENGTH_BYTES
        if 0 <= size <= there:
            message = PyBytes_FromStringAndSize(buffer + start + LENGTH_BYTES, size)
            if message != 0:
                taken(state, LENGTH_BYTES + size)
            return message
        if size > capacity - LENGTH_BYTES:
            message = PyBytes_FromStringAndSize(0, size)
            if message == 0:
                return message
            copy(PyBytes_AsString(message), buffer + start + LENGTH_BYTES, there)
            taken(state, LENGTH_BYTES + there)
            store_relaxed(state + HAVE, there)
            store_relaxed(state + NEED, size)
            store_relaxed(state + PARTIAL, message)
            continue
        if start > 0:  # make room for the rest: to the front with it, a piece at a time since they may overlap
            moved = 0
            while moved < end - start:
                step = min(start, end - start - moved)
                copy(buffer + moved, buffer + start + moved, step)
                moved += step
            end -= start
            store_relaxed(state + START, 0)
            store_relaxed(state + END, end)
        came = fill(state, buffer + end, capacity - end)
        if came == 0:
            return none(state)
        store_relaxed(state + END, end + came)


def _compile(key: str) -> dict[str, Entry]:
    @cfunc(BUILTIN, cache=True)
    def stream_send(self, message):
        """Write a message with its length in front: how many bytes are left, or NOTHING or REFUSED."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(message, buffer, 0) != 0:
            return 0  # TypeError or BufferError is set
        source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        why_not = room_for(state, size)
        if why_not != 0:
            PyBuffer_Release(buffer)
            return PyLong_FromLongLong(why_not)
        store_relaxed(state + LENGTH, size)  # little-endian, as all machines that Numba runs on
        store_relaxed(state + VECTOR, state + LENGTH)
        store_relaxed(state + VECTOR + 8, LENGTH_BYTES)
        store_relaxed(state + VECTOR + 16, source)
        store_relaxed(state + VECTOR + 24, size)
        done = writev(load_relaxed(state + FD), state + VECTOR, 2)
        PyBuffer_Release(buffer)
        return sent(state, LENGTH_BYTES + size, done)

    @cfunc(BUILTIN, cache=True)
    def stream_write(self, framed):
        """Write a bytes object that has its length in front: as stream_send."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(framed, buffer, 0) != 0:
            return 0  # TypeError or BufferError is set
        source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        why_not = room_for(state, size - LENGTH_BYTES)
        if why_not != 0:
            PyBuffer_Release(buffer)
            return PyLong_FromLongLong(why_not)
        done = write(load_relaxed(state + FD), source, size)
        PyBuffer_Release(buffer)
        return sent(state, size, done)

    @cfunc(BUILTIN, cache=True)
    def stream_receive(self, ignored):
        """The next message of a stream, or None."""
        key  # see SOURCES
        return receive_framed(PyLong_AsVoidPtr(self))

    @cfunc(BUILTIN, cache=True)
    def stream_drop(self, ignored):
        """Forget what was read and not asked for."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        message = load_relaxed(state + PARTIAL)
        if message != 0:
            store_relaxed(state + PARTIAL, 0)
            Py_DecRef(message)
        store_relaxed(state + START, 0)
        store_relaxed(state + END, 0)
        return none(state)

    @cfunc(BUILTIN, cache=True)
    def packet_send(self, message):
        """send(2) one message: 0, or NOTHING or REFUSED."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(message, buffer, 0) != 0:
            return 0  # TypeError or BufferError is set
        source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        result = room_for(state, size)
        if result == 0 and send(load_relaxed(state + FD), source, size, DONTWAIT | NOSIGNAL) < 0:
            note_errno(state)
            result = NOTHING
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(result)

    @cfunc(BUILTIN, cache=True)
    def packet_receive(self, ignored):
        """recv(2) one message, or None."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        room = load_relaxed(state + RING)
        size = recv(load_relaxed(state + FD), room, load_relaxed(state + RING_BYTES), DONTWAIT)
        if size > 0:
            return PyBytes_FromStringAndSize(room, size)
        if size == 0:
            store_relaxed(state + ENDED, 1)
            store_relaxed(state + ERRNO, 0)
        else:
            note_errno(state)
        return none(state)

    @cfunc(BUILTIN, cache=True)
    def queue_send(self, message):
        """mq_send(3) one message with priority 0: 0, or NOTHING or REFUSED."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(message, buffer, 0) != 0:
            return 0  # TypeError or BufferError is set
        source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        result = room_for(state, size)
        if result == 0 and mq_send(load_relaxed(state + FD), source, size, 0) != 0:
            note_errno(state)
            result = NOTHING
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(result)

    @cfunc(BUILTIN, cache=True)
    def queue_receive(self, ignored):
        """mq_receive(3) one message, or None."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        room = load_relaxed(state + RING)
        size = mq_receive(load_relaxed(state + FD), room, load_relaxed(state + RING_BYTES), 0)
        if size >= 0:
            return PyBytes_FromStringAndSize(room, size)
        note_errno(state)
        return none(state)

    takers = stream_receive, stream_drop, packet_receive, queue_receive
    entries = {f.__name__: Entry(f, METH_NOARGS) for f in takers}
    return entries | {f.__name__: Entry(f, METH_O) for f in (stream_send, stream_write, packet_send, queue_send)}


@cache
def call_entries() -> dict[str, Entry]:
    """The compiled functions, made on first use: some seconds on a machine that has never run them, else at once."""
    return _compile(SOURCES)


class Calls:
    """The builtins of one end on one descriptor, and the state that they share.

    Args:
        fd: a descriptor that does not block.
        most: bytes in the largest message that is sent.
        room: bytes of the buffer into which is received.
        names: those that are wanted, each becomes an attribute: `calls.stream_send`.
    """

    def __init__(self, fd: int, names: tuple[str, ...], most: int = 0, room: int = 0):
        self._room = np.empty(room, np.uint8)
        self._state = new_state(self._room.ctypes.data, room, most)
        self._state[FD // 8] = fd
        entries = call_entries()
        for name in names:
            setattr(self, name, entries[name].builtin(self._state, self._room))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(name)

    def close(self) -> None:
        """The descriptor is closed, and its number may soon be another's: every further call fails with EBADF."""
        self._state[FD // 8] = -1

    def allow(self, most: int) -> None:
        """From now on messages may have so many bytes."""
        self._state[MOST // 8] = most

    @property
    def errno(self) -> int:
        """Of the last call that failed; 0 when it was no failure."""
        return int(self._state[ERRNO // 8])

    @property
    def ended(self) -> bool:
        """End of file has been read."""
        return bool(self._state[ENDED // 8])

    @property
    def owed(self) -> int:
        """Bytes of the last message that did not go."""
        return int(self._state[OWED // 8])

    @owed.setter
    def owed(self, size: int) -> None:
        self._state[OWED // 8] = size

    def rest(self) -> bytes:
        """What a stream's receiver has read and nobody asked for, as it came: for another process to `feed`."""
        start, end, have = (int(n) for n in self._state[[START // 8, END // 8, HAVE // 8]])
        if self._state[PARTIAL // 8]:  # then the buffer is empty
            begun: bytes = ctypes.cast(int(self._state[PARTIAL // 8]), ctypes.py_object).value
            return len(begun).to_bytes(LENGTH_BYTES, "little") + begun[:have]
        return self._room[start:end].tobytes()

    def feed(self, rest: bytes) -> None:
        """Begin with what another receiver of this stream had read."""
        if len(rest) <= len(self._room):
            self._room[: len(rest)] = np.frombuffer(rest, np.uint8)
            self._state[END // 8] = len(rest)
        else:  # a part of one large message
            size = int.from_bytes(rest[:LENGTH_BYTES], "little")
            message = _new_bytes(None, size)
            begun = rest[LENGTH_BYTES:]
            ctypes.memmove(_start_of_bytes(message), begun, len(begun))
            self._state[[PARTIAL // 8, HAVE // 8, NEED // 8]] = message, len(begun), size


_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.c_void_p, (ctypes.c_char_p, ctypes.c_ssize_t)  # an owned reference
_start_of_bytes = ctypes.pythonapi.PyBytes_AsString
_start_of_bytes.restype, _start_of_bytes.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
