"""send and receive of the bounded buffer, compiled: labkit.channels.bounded_buffer has the argument."""

from __future__ import annotations

from functools import cache

from numba import cfunc, njit, types

from labkit.lockfree.atomics import copy, load_acquire, load_int, load_relaxed, on_stack, store_relaxed, store_release
from labkit.lockfree.entry import (
    BUFFER_SIZE,
    BUFFER_START,
    BUILTIN,
    METH_NOARGS,
    METH_O,
    MOST,
    OWN,
    RING,
    SOURCES,
    WORD,
    Entry,
    PyBuffer_Release,
    PyBytes_FromStringAndSize,
    PyLong_AsVoidPtr,
    PyLong_FromLongLong,
    PyObject_GetBuffer,
    none,
)

FILLED, FREE, WRITE, READ, DATA = 128, 192, 256, 320, 4096

FREE_SLOTS, FILLED_SLOTS, MUTEX = range(3)
"""The semaphores of a System V set."""

# A builtin's private state: see labkit.lockfree.entry.
SLOTS, STRIDE = OWN, OWN + 8  # the geometry
TOKEN = OWN + 16  # the semaphore has been waited for already
ERRNO = OWN + 24  # of a semop(2) that failed, else 0
SET = OWN + 32  # identifier of the semaphore set
TAKE, GIVE, BACK = OWN + 48, OWN + 64, OWN + 96  # struct sembuf: 2, 4 and 2 of them

REFUSED, FULL, CORRUPT, SENT = range(4)
"""What a sender returns. A receiver returns bytes, None when there is nothing, or CORRUPT."""
EMPTY, WRONG = -1, -2  # of take_message

GETVAL = 12
IPC_NOWAIT, SEM_UNDO = 0o4000, 0x1000

INT = types.int32
sem_trywait = types.ExternalFunction("sem_trywait", INT(WORD))
sem_post = types.ExternalFunction("sem_post", INT(WORD))
semop = types.ExternalFunction("semop", INT(INT, WORD, WORD))
semctl = types.ExternalFunction("semctl", INT(INT, INT, INT))
errno_location = types.ExternalFunction("__errno_location", WORD())


@njit
def put_message(state, source, size):
    """Copy a message into the next slot: SENT, FULL or CORRUPT."""
    memory, slots = load_relaxed(state + RING), load_relaxed(state + SLOTS)
    written = load_relaxed(memory + WRITE)  # only we write it, or the holder of the mutex: us
    there = written - load_acquire(memory + READ)  # edge B: what was received has been copied out
    if there == slots:
        return FULL
    if not 0 <= there < slots:
        return CORRUPT
    slot = memory + DATA + (written % slots) * load_relaxed(state + STRIDE)
    store_relaxed(slot, size)  # the slot is ours
    copy(slot + 8, source, size)
    store_release(memory + WRITE, written + 1)  # edge A: the message is whole before it is seen
    return SENT


@njit
def take_message(state):
    """The next message as a new bytes object, EMPTY, WRONG, or 0 with MemoryError set, and it stays where it is."""
    memory, slots = load_relaxed(state + RING), load_relaxed(state + SLOTS)
    received = load_relaxed(memory + READ)  # only we write it, or the holder of the mutex: us
    there = load_acquire(memory + WRITE) - received  # edge A
    if there == 0:
        return EMPTY
    if not 0 < there <= slots:
        return WRONG
    stride = load_relaxed(state + STRIDE)
    slot = memory + DATA + (received % slots) * stride
    size = load_relaxed(slot)
    if not 0 < size <= stride - 8:
        return WRONG
    message = PyBytes_FromStringAndSize(slot + 8, size)
    if message != 0:
        store_release(memory + READ, received + 1)  # edge B
    return message


@njit
def repair(state, filled):
    """Undo what a killed holder of the mutex did to the positions; whether they agree with the semaphore then."""
    memory = load_relaxed(state + RING)
    written, received = load_acquire(memory + WRITE), load_relaxed(memory + READ)
    if written - received == filled + 1:  # a sender was killed before it announced its message
        store_relaxed(memory + WRITE, written - 1)
    elif written - received == filled - 1:  # a receiver was killed before its slot was free
        store_relaxed(memory + READ, received - 1)
    else:
        return written - received == filled
    return True


def _compile(key: str) -> dict[str, Entry]:
    @cfunc(BUILTIN, cache=True)
    def posix_send(self, message):
        """Send one bytes-like object, or say why not."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(message, buffer, 0) != 0:
            return 0  # TypeError or BufferError is set
        source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        memory, result = load_relaxed(state + RING), REFUSED
        if 0 < size <= load_relaxed(state + MOST):
            result = FULL
            if load_relaxed(state + TOKEN) != 0 or sem_trywait(memory + FREE) == 0:
                store_relaxed(state + TOKEN, 0)
                result = put_message(state, source, size)
                if result == SENT:
                    sem_post(memory + FILLED)
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(result)

    @cfunc(BUILTIN, cache=True)
    def posix_receive(self, ignored):
        """The next message, None when there is none, CORRUPT."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        memory = load_relaxed(state + RING)
        if load_relaxed(state + TOKEN) == 0 and sem_trywait(memory + FILLED) != 0:
            return none(state)
        message = take_message(state)
        if message == 0:
            store_relaxed(state + TOKEN, 1)  # MemoryError is set; next time we need not wait
            return 0
        store_relaxed(state + TOKEN, 0)
        if message == EMPTY:
            return none(state)
        if message == WRONG:
            return PyLong_FromLongLong(CORRUPT)
        sem_post(memory + FREE)
        return message

    @cfunc(BUILTIN, cache=True)
    def sysv_send(self, message):
        """Send one bytes-like object, or say why not."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        buffer = on_stack()
        if PyObject_GetBuffer(message, buffer, 0) != 0:
            return 0  # TypeError or BufferError is set
        source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
        semaphores, result = load_relaxed(state + SET), REFUSED
        store_relaxed(state + ERRNO, 0)
        if 0 < size <= load_relaxed(state + MOST):
            result = FULL
            if semop(semaphores, state + TAKE, 2) != 0:
                store_relaxed(state + ERRNO, load_int(errno_location()))
            else:
                result = CORRUPT
                if repair(state, semctl(semaphores, FILLED_SLOTS, GETVAL)):
                    result = put_message(state, source, size)
                if result == SENT:
                    semop(semaphores, state + GIVE, 4)
                else:
                    semop(semaphores, state + BACK, 2)
        PyBuffer_Release(buffer)
        return PyLong_FromLongLong(result)

    @cfunc(BUILTIN, cache=True)
    def sysv_receive(self, ignored):
        """The next message, None when there is none, CORRUPT."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        semaphores = load_relaxed(state + SET)
        store_relaxed(state + ERRNO, 0)
        if semop(semaphores, state + TAKE, 2) != 0:
            store_relaxed(state + ERRNO, load_int(errno_location()))
            return none(state)
        message = WRONG
        if repair(state, semctl(semaphores, FILLED_SLOTS, GETVAL) + 1):  # the one that we have taken
            message = take_message(state)
        if message > 0:
            semop(semaphores, state + GIVE, 4)
            return message
        semop(semaphores, state + BACK, 2)
        if message == 0:
            return 0  # MemoryError is set
        return PyLong_FromLongLong(CORRUPT)

    entries = {f.__name__: Entry(f, METH_O) for f in (posix_send, sysv_send)}
    return entries | {f.__name__: Entry(f, METH_NOARGS) for f in (posix_receive, sysv_receive)}


@cache
def buffer_entries() -> dict[str, Entry]:
    """The compiled functions, made on first use: some seconds on a machine that has never run them, else at once."""
    return _compile(SOURCES)
