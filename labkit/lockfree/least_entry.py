"""What this machine needs at least: the travel of one cache line between two cores, and one system call. Measured.

No message between processes can be faster than a cache line that one core wrote and another reads, and none that goes
through the kernel faster than a system call that does nothing (getppid(2)).
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, types

from labkit.lockfree.atomics import load_acquire, pause, store_release
from labkit.lockfree.entry import SOURCES

ROUNDS = 50
REPEATS, PATIENCE = 100, 0.5  # so often, so many seconds; the best counts: a disturbed one tells nothing

getppid = types.ExternalFunction("getppid", types.int32())


@dataclass(frozen=True)
class Least:
    """In nanoseconds; cache_line_ns is None where there is only one processor."""

    cache_line_ns: float | None
    system_call_ns: float


def _compile(key: str) -> dict[str, Any]:
    @njit(cache=True, nogil=True)
    def volley(turn, me, rounds):
        """To and fro: the word is even when it is 0's turn, odd when it is 1's."""
        key  # see entry.SOURCES
        for n in range(rounds):
            while load_acquire(turn) != 2 * n + me:
                pause()
            store_release(turn, 2 * n + me + 1)

    @njit(cache=True)
    def calls(rounds):
        key  # see entry.SOURCES
        for _ in range(rounds):
            getppid()

    return {"volley": volley, "calls": calls}


@functools.cache
def least() -> Least:
    """Measured when first asked for, which takes some hundredths of a second, and a second where nothing is cached."""
    made = _compile(SOURCES)
    made["calls"](1)
    call = min(_took(made["calls"], ROUNDS) for _ in range(REPEATS)) / ROUNDS
    processors = sorted(os.sched_getaffinity(0))[:2]
    if len(processors) < 2:
        return Least(None, call)
    place = np.zeros(64, np.int64)
    turn = (place.ctypes.data + 127) & ~127
    word = place[(turn - place.ctypes.data) // 8 :]
    made["volley"](turn, 0, 0)

    def play(me: int, times: list[tuple[int, int]]) -> None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {processors[me]})  # this thread's alone
        begun = time.perf_counter_ns()
        made["volley"](turn, me, ROUNDS)
        times.append((begun, time.perf_counter_ns()))

    def game() -> int:
        word[0], times = 0, []  # type: ignore[var-annotated]
        players = [threading.Thread(target=play, args=(me, times)) for me in (0, 1)]
        for player in players:
            player.start()
        for player in players:
            player.join()
        return max(ended for _, ended in times) - max(begun for begun, _ in times)

    best, until = game(), time.monotonic() + PATIENCE
    while time.monotonic() < until:
        best = min(best, game())
    return Least(best / ROUNDS / 2, call)


def _took(function: Any, *arguments: Any) -> int:
    begun = time.perf_counter_ns()
    function(*arguments)
    return time.perf_counter_ns() - begun
