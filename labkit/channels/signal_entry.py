"""What a channel of signals needs compiled: sending the pieces of a message, and a handler that may run at any moment.

A signal handler interrupts a thread between any two instructions. It may call only what is async-signal-safe
(signal-safety(7)); Python is not, machine code that makes two system calls is.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from labkit.libc import SYSCALLS
from labkit.lockfree.atomics import (
    add,
    compare_exchange,
    copy,
    load_acquire,
    load_int,
    load_relaxed,
    on_stack,
    store_relaxed,
    store_release,
)
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
    PyLong_AsVoidPtr,
    PyLong_FromLongLong,
    PyObject_GetBuffer,
)

PIDFD, NUMBER = OWN, OWN + 8  # the receiving process and the signal's number
SEEN = OWN + 16  # what the page said of them when we looked
SEQUENCE = OWN + 24  # number of the next piece, below SEQUENCES
DONE = OWN + 32  # bytes of the message in hand that have gone
ERRNO = OWN + 40
PIECE = OWN + 48
UNSURE = OWN + 56  # 8 + bytes of a piece of which nobody knows whether it was still received, else 0
INFO = OWN + 64  # a siginfo_t, 128 bytes: the piece sent last
END = OWN  # of a receiver: bytes that the last read(2) brought
FD = OWN + 8
READS = OWN + 16  # the signal's number

PIECE_BYTES = 7
FIRST, LAST = 8, 16
"""A piece's first byte: how many bytes of it count (1 to 7), and two flags."""
SEQUENCES = 1 << 24
SENT, REFUSED, MOVED, FAILED = range(4)
"""What the senders return. MOVED: the page names another receiver now. FAILED: see ERRNO."""

PIECES = -32  # si_code of piece 0; piece n has n less. The kernel's own codes for what a program sends end above it
SI_CODE, SI_VALUE = 8, 24  # where in a siginfo_t, on all 64-bit machines
INFO_BYTES = 128
MASK = 296 if os.uname().machine == "x86_64" else 40
"""Where uc_sigmask is in a ucontext_t: on x86-64 after the registers (40 + 256 bytes), elsewhere before them."""

PIDFD_SEND_SIGNAL = 424  # the same everywhere: system calls since Linux 5.1 have one list
RT_SIGQUEUEINFO = SYSCALLS["rt_sigqueueinfo"]

INT = types.int32
call = types.ExternalFunction("syscall", WORD(WORD, WORD, WORD, WORD, WORD))
read = types.ExternalFunction("read", WORD(INT, WORD, WORD))
kill = types.ExternalFunction("kill", INT(INT, INT))
getpid = types.ExternalFunction("getpid", INT())
errno_location = types.ExternalFunction("__errno_location", WORD())


# A piece that finds no room in the queue again, since senders have filled it meanwhile, is put on a shelf of the
# process: a count of the pieces on it, then the places, each a word (0: free, TAKEN, or the number of the signal that
# lies there) and a siginfo_t. The signal that then tells of it is one of kill(2), for which there always is room.
PLACES, PLACE_BYTES, TAKEN = 1024, 8 + INFO_BYTES, -1
_shelf = np.zeros(1 + PLACES * PLACE_BYTES // 8, np.int64)
llvm.add_symbol("labkit_signal_shelf", _shelf.ctypes.data)  # for code kept on disk: the address is a process's own


@intrinsic
def shelf_address(typingctx):
    """Where the shelf of this process is."""

    def code(context, builder, signature, arguments):
        word, name = ir.IntType(64), "labkit_signal_shelf"
        there = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, word, name)
        return builder.ptrtoint(there, word)

    return types.int64(), code


@njit
def put_on_shelf(number, info):
    """Keep a piece. With more than PLACES of them it is lost."""
    shelf = shelf_address()
    for place in range(shelf + 8, shelf + 8 + PLACES * PLACE_BYTES, PLACE_BYTES):
        if load_relaxed(place) == 0 and compare_exchange(place, 0, TAKEN) == 0:
            copy(place + 8, info, INFO_BYTES)
            store_release(place, number)
            add(shelf, 1)
            return


@njit
def take_from_shelf(number, room):
    """Move a piece of this signal to where a read(2) of a signalfd would put it: its bytes, 0 when there is none."""
    shelf = shelf_address()
    if load_acquire(shelf) == 0:
        return 0
    for place in range(shelf + 8, shelf + 8 + PLACES * PLACE_BYTES, PLACE_BYTES):
        if load_relaxed(place) == number and compare_exchange(place, number, TAKEN) == number:
            info = place + 8
            copy(room + 4, info + 4, 8)  # si_errno and si_code, si_pid and si_uid, si_value: signalfd(2)
            copy(room + 12, info + 16, 8)
            copy(room + 48, info + SI_VALUE, 8)
            store_release(place, 0)
            add(shelf, -1)
            return INFO_BYTES
    return 0


@njit
def send_piece(state):
    """Send the piece that is in INFO."""
    page, seen = load_relaxed(state + RING), load_relaxed(state + SEEN)
    if load_relaxed(page) != seen:
        return MOVED
    if call(PIDFD_SEND_SIGNAL, load_relaxed(state + PIDFD), load_relaxed(state + NUMBER), state + INFO, 0) != 0:
        store_relaxed(state + ERRNO, load_int(errno_location()))
        return FAILED
    # The receiver sets the page to 0 before it looks a last time. Both go through the kernel's lock on its signals, so
    # that a page that still names it now did so when the signal came: it will be found.
    if load_relaxed(page) != seen:
        return MOVED
    store_relaxed(state + DONE, load_relaxed(state + DONE) + (load_relaxed(state + UNSURE) & 7))
    store_relaxed(state + UNSURE, 0)
    store_relaxed(state + SEQUENCE, (load_relaxed(state + SEQUENCE) + 1) & (SEQUENCES - 1))
    return SENT


@njit
def send_pieces(state, source, size):
    """Send what has not gone yet of a message, seven bytes a signal."""
    if load_relaxed(state + UNSURE) != 0:  # sent again it does no harm, since it has the same number
        result = send_piece(state)
        if result != SENT:
            return result
    while load_relaxed(state + DONE) < size:
        done = load_relaxed(state + DONE)
        count = min(PIECE_BYTES, size - done)
        store_relaxed(state + PIECE, 0)
        copy(state + PIECE, source + done, count)  # little-endian, as all machines that Numba runs on
        header = count
        if done == 0:
            header |= FIRST
        if done + count == size:
            header |= LAST
        store_relaxed(state + INFO + SI_CODE, (PIECES - load_relaxed(state + SEQUENCE)) & 0xFFFFFFFF)
        store_relaxed(state + INFO + SI_VALUE, (load_relaxed(state + PIECE) << 8) | header)
        store_relaxed(state + UNSURE, 8 + count)
        result = send_piece(state)
        if result == FAILED:
            store_relaxed(state + UNSURE, 0)
        if result != SENT:
            return result
    return SENT


@njit
def send_object(state, message, begins):
    buffer = on_stack()
    if PyObject_GetBuffer(message, buffer, 0) != 0:
        return 0  # TypeError or BufferError is set
    source, size = load_relaxed(buffer + BUFFER_START), load_relaxed(buffer + BUFFER_SIZE)
    result = REFUSED
    if 0 < size <= load_relaxed(state + MOST):
        if begins:
            store_relaxed(state + DONE, 0)
            store_relaxed(state + UNSURE, load_relaxed(state + UNSURE) & 8)  # of another message
        result = send_pieces(state, source, size)
    PyBuffer_Release(buffer)
    return PyLong_FromLongLong(result)


def _compile(key: str) -> dict[str, Entry]:
    @cfunc(BUILTIN, cache=True)
    def signal_send(self, message):
        """Send a message, or say why not. The receiver forgets an earlier one that has gone only in part."""
        key  # see SOURCES
        return send_object(PyLong_AsVoidPtr(self), message, True)

    @cfunc(BUILTIN, cache=True)
    def signal_go_on(self, message):
        """Send the rest of the same message."""
        key  # see SOURCES
        return send_object(PyLong_AsVoidPtr(self), message, False)

    @cfunc(BUILTIN, cache=True)
    def signal_read(self, ignored):
        """read(2) signals from a signalfd, or what has no place in the queue any more: 0, or errno."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        room = load_relaxed(state + RING)
        came = read(load_relaxed(state + FD), room, load_relaxed(state + RING_BYTES))
        if came < 0:
            number = load_int(errno_location())
            came = take_from_shelf(load_relaxed(state + READS), room)
            if came == 0:
                return PyLong_FromLongLong(number)
        store_relaxed(state + END, came)
        return PyLong_FromLongLong(0)

    entries = {f.__name__: Entry(f, METH_O) for f in (signal_send, signal_go_on)}
    return entries | {"signal_read": Entry(signal_read, METH_NOARGS)}


@cache
def signal_entries() -> dict[str, Entry]:
    """The compiled functions, made on first use."""
    return _compile(SOURCES)


@cache
def handler() -> Any:
    """The handler of a signal that every thread is to block, a cfunc: `.address` is what sigaction(2) takes.

    Whichever thread it interrupts blocks the signal from its return on: the mask that the kernel then restores is in
    the context. If it has taken a message's piece, that goes back into the queue, where it has lost its place, or onto
    the shelf. Whatever it took may have been what told of a piece there.
    """

    def compiled(key: str) -> Any:
        @cfunc(types.void(INT, WORD, WORD), cache=True)
        def on_signal(number, info, context):
            key  # see SOURCES
            mask = context + MASK
            store_relaxed(mask, load_relaxed(mask) | (1 << (number - 1)))
            saved = on_stack()
            copy(saved, errno_location(), 4)
            if load_int(info + SI_CODE) <= PIECES and call(RT_SIGQUEUEINFO, getpid(), number, info, 0) != 0:
                put_on_shelf(number, info)
            if load_acquire(shelf_address()) != 0:
                kill(getpid(), number)
            copy(errno_location(), saved, 4)

        return on_signal

    return compiled(SOURCES)
