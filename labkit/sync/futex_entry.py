"""The atomic instructions of labkit.lockfree.atomics, for calling from Python.

They go through ctypes, half a microsecond each, and are cached on disk, where a dispatcher would compile in each
process. They keep the GIL: to get it back in a busy process takes longer than they do.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from numba import cfunc

from labkit.lockfree import atomics
from labkit.lockfree.entry import SOURCES, WORD


def compiled_atomics() -> dict[str, Callable[..., int]]:
    """By the names that they have in labkit.lockfree.atomics: addresses and integers in, an integer out."""
    functions = _compile(SOURCES)
    _keep.extend(functions.values())
    kinds = {name: (function.ctypes.restype, *function.ctypes.argtypes) for name, function in functions.items()}
    return {name: ctypes.PYFUNCTYPE(*kinds[name])(function.address) for name, function in functions.items()}


_keep: list[Any] = []  # the owners of the machine code


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

    @cfunc(WORD(WORD, WORD), cache=True)
    def add(address, amount):
        key  # see SOURCES
        return atomics.add(address, amount)

    @cfunc(WORD(WORD, WORD, WORD), cache=True)
    def compare_exchange_int(address, expected, value):
        key  # see SOURCES
        return atomics.compare_exchange_int(address, expected, value)

    return {f.__name__: f for f in (load_int_acquire, exchange_int, add_int, add, compare_exchange_int)}
