"""The atomic instructions of labkit.lockfree.atomics, for calling from Python, and a mutex made of them.

What a mutex does when nobody is in the way are builtins, 50 ns each; the instructions take half a microsecond.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import cfunc

from labkit.libc import FUTEX_TID_MASK
from labkit.lockfree import atomics
from labkit.lockfree.atomics import load_relaxed
from labkit.lockfree.entry import (
    BUILTIN,
    METH_O,
    RING,
    SOURCES,
    WORD,
    Entry,
    PyLong_AsLong,
    PyLong_AsVoidPtr,
    PyLong_FromLongLong,
    callables,
    new_state,
)

NOT_OURS = -1


def compiled_atomics() -> dict[str, Callable[..., int]]:
    """By the names that they have in labkit.lockfree.atomics: addresses and integers in, an integer out."""
    return callables(_compile(SOURCES))


class MutexWord:
    """The two builtins of one mutex.

    Args:
        address: of the word.
        memory: what holds it, kept as long as they can be called.
    """

    def __init__(self, address: int, memory: Any):
        state = new_state(address, 0, 0)
        entries = _mutex_entries(SOURCES)
        self.take = entries["mutex_take"].builtin(state, memory)
        self.give = entries["mutex_give"].builtin(state, memory)


@cache
def _mutex_entries(key: str) -> dict[str, Entry]:
    @cfunc(BUILTIN, cache=True)
    def mutex_take(self, tid):
        """Take a free mutex for a thread: 0, or the word that was found."""
        key  # see SOURCES
        state, me = PyLong_AsVoidPtr(self), PyLong_AsLong(tid)
        if me == -1:
            return 0  # TypeError or OverflowError is set
        return PyLong_FromLongLong(atomics.compare_exchange_int(load_relaxed(state + RING), 0, me))

    @cfunc(BUILTIN, cache=True)
    def mutex_give(self, tid):
        """Free the mutex of a thread: the word as it was, or NOT_OURS."""
        key  # see SOURCES
        state, me = PyLong_AsVoidPtr(self), PyLong_AsLong(tid)
        if me == -1:
            return 0  # TypeError or OverflowError is set
        address = load_relaxed(state + RING)
        if atomics.load_int_acquire(address) & FUTEX_TID_MASK != me:
            return PyLong_FromLongLong(NOT_OURS)
        return PyLong_FromLongLong(atomics.exchange_int(address, 0))

    return {f.__name__: Entry(f, METH_O) for f in (mutex_take, mutex_give)}


def _compile(key: str) -> dict[str, Any]:
    @cfunc(WORD(WORD), cache=True)
    def load_int_acquire(address):
        key  # see SOURCES
        return atomics.load_int_acquire(address)

    @cfunc(WORD(WORD, WORD), cache=True)
    def exchange_int(address, value):
        key  # see SOURCES
        return atomics.exchange_int(address, value)

    @cfunc(WORD(WORD, WORD), cache=True)
    def add_int(address, amount):
        key  # see SOURCES
        return atomics.add_int(address, amount)

    @cfunc(WORD(WORD, WORD, WORD), cache=True)
    def compare_exchange(address, expected, value):
        key  # see SOURCES
        return atomics.compare_exchange(address, expected, value)

    @cfunc(WORD(WORD, WORD, WORD), cache=True)
    def compare_exchange_int(address, expected, value):
        key  # see SOURCES
        return atomics.compare_exchange_int(address, expected, value)

    return {f.__name__: f for f in (load_int_acquire, exchange_int, add_int, compare_exchange, compare_exchange_int)}
