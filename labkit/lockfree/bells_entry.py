"""labkit.lockfree.bells for calling from Python: integers in and out, half a microsecond a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import cfunc, types

from labkit.lockfree import atomics, bells
from labkit.lockfree.entry import SOURCES, WORD, callables

NOTHING = types.void


@cache
def bell_functions() -> dict[str, Callable[..., int]]:
    """By their names in labkit.lockfree.bells; `sleep` releases the GIL. Of atomics, `set_bits`."""
    return callables(_compile(SOURCES), without_gil=("sleep",))


def _compile(key: str) -> dict[str, Any]:
    @cfunc(NOTHING(WORD, WORD), cache=True)
    def ring(bell, descriptor):
        key  # see SOURCES
        bells.ring(bell, descriptor)

    @cfunc(WORD(WORD), cache=True)
    def seen(bell):
        key  # see SOURCES
        return bells.seen(bell)

    @cfunc(NOTHING(WORD, WORD), cache=True)
    def arm(bell, bit):
        key  # see SOURCES
        bells.arm(bell, bit)

    @cfunc(NOTHING(WORD, WORD, WORD), cache=True)
    def sleep(bell, ticket, nanoseconds):
        key  # see SOURCES
        bells.sleep(bell, ticket, nanoseconds)

    @cfunc(NOTHING(WORD, WORD), cache=True)
    def set_bits(address, bits):
        key  # see SOURCES
        atomics.set_bits(address, bits)

    @cfunc(WORD(), cache=True)
    def can_fence_others():
        key  # see SOURCES
        return bells.can_fence_others()

    @cfunc(WORD(WORD, WORD), cache=True)
    def is_dead(private, number):
        key  # see SOURCES
        return bells.is_dead(private, number)

    return {f.__name__: f for f in (ring, seen, arm, sleep, set_bits, can_fence_others, is_dead)}
