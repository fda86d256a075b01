"""What a channel of signals needs compiled: sending the pieces of a message, and a handler that may run at any moment.

A signal handler interrupts a thread between any two instructions. It may call only what is async-signal-safe
(signal-safety(7)); Python is not, machine code that makes two system calls is.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from numba import cfunc, njit, types

from labkit.libc import SYSCALLS
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
getpid = types.ExternalFunction("getpid", INT())
errno_location = types.ExternalFunction("__errno_location", WORD())


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
        """read(2) signals from a signalfd: 0, or errno."""
        key  # see SOURCES
        state = PyLong_AsVoidPtr(self)
        came = read(load_relaxed(state + FD), load_relaxed(state + RING), load_relaxed(state + RING_BYTES))
        if came < 0:
            return PyLong_FromLongLong(load_int(errno_location()))
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
    the context. If it has taken a message's piece, that goes back into the queue, where it has lost its place.
    """

    def compiled(key: str) -> Any:
        @cfunc(types.void(INT, WORD, WORD), cache=True)
        def on_signal(number, info, context):
            key  # see SOURCES
            mask = context + MASK
            store_relaxed(mask, load_relaxed(mask) | (1 << (number - 1)))
            if load_int(info + SI_CODE) <= PIECES:
                saved = on_stack()
                copy(saved, errno_location(), 4)
                call(RT_SIGQUEUEINFO, getpid(), number, info, 0)
                copy(errno_location(), saved, 4)

        return on_signal

    return compiled(SOURCES)
