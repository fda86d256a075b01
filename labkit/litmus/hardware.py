"""A litmus test run for real: two processes, each in a compiled loop over cells of memory that both have.

As litmus7 does (J. Alglave, L. Maranget, S. Sarkar, P. Sewell, "Litmus: running tests against hardware", 2011): a run
is many small races in a row, each on a cell of its own, so that nobody has to wait for the other between two of them.
The two meet before each batch only, and set off a few instructions apart, differently each time. The cells are visited
in a random order, and each place of a cell has cache lines of its own: a store to a line that the other processor has
had last takes a while to reach memory, and that is when reorderings show.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from labkit.launch import Job, launch
from labkit.litmus.reading import Program
from labkit.shared_array import SharedArray

Function = Callable[..., Any]
Test = tuple[Function, Function, Program]

BATCH = 512
"""Cells, and races in a batch."""
APART = 128  # bytes between two places: processors fetch cache lines in pairs
CONTROL = 4096  # bytes before the cells, for the counter at which the processes meet
STOP = 128  # where, among these, the left process says that the time is up
MOST_DELAY = 40  # pauses, of some ten nanoseconds each, that one process may set off later than the other
SPINS = 2000  # looks at the counter before the processor is offered to others: there may be one for both


def processors() -> list[int]:
    """Two processors for the two processes, or the only one twice."""
    mine = sorted(os.sched_getaffinity(0))
    return [mine[0], mine[-1]]


def race(tests: list[Test], times: int, seconds: float, patience: float) -> list[np.ndarray]:
    """What came out of each race of each test: a row for each name of an outcome (see Program.names), a column a race.

    Each test is run so many times, or as often as it can in so many seconds: where the processes have to share their
    processors with others, they wait for each other most of the time.

    Raises:
        TimeoutError: the processes had not ended after `patience` seconds.
        RemoteError: Numba cannot compile a function, or a process was killed.
    """
    times = -(-times // BATCH) * BATCH
    memory = SharedArray((len(tests), (CONTROL + BATCH * 2 * APART) // 8), np.int64)
    rows = SharedArray((sum(len(program.names) for _, _, program in tests), times), np.int16)
    jobs: list[Job] = []
    try:
        for thread, processor in enumerate(processors()):
            sides = [(test[thread], test[2]) for test in tests]
            jobs.append(launch(_side, thread, sides, memory, rows, processor, seconds, name=("left", "right")[thread]))
        deadline = time.monotonic() + patience
        done, _ = [job.wait(max(0.0, deadline - time.monotonic())) for job in jobs]
        parts = _parts(rows.array, [program for _, _, program in tests])
        return [part[:, :races].copy() for part, races in zip(parts, done, strict=True)]
    finally:
        for job in jobs:  # one alone would wait for the other for ever
            job.kill()
        rows.close()
        memory.close()


def _parts(rows: np.ndarray, programs: list[Program]) -> list[np.ndarray]:
    """The rows of each test."""
    ends = np.cumsum([len(program.names) for program in programs])
    return np.split(rows, ends[:-1])


def _side(
    thread: int,
    sides: list[tuple[Function, Program]],
    memory: SharedArray,
    rows: SharedArray,
    processor: int,
    seconds: float,
) -> list[int]:
    """What each of the two processes does, one test after the other; returns how many races there were of each."""
    done = []
    os.sched_setaffinity(0, {processor})
    order = np.random.default_rng(2011).permutation(BATCH) * 2 * APART
    parts = _parts(rows.array, [program for _, program in sides])
    for (function, program), shared, part in zip(sides, memory.array, parts, strict=True):
        own = [row for row, (whose, _) in enumerate(program.returned) if whose == thread]
        results = part[own[0] : own[-1] + 1] if own else part[:0]
        finals = part[len(program.returned) :]
        offsets = np.array([APART * program.places.index(place) for place in program.finals], np.int64)
        delays = np.random.default_rng().integers(0, MOST_DELAY, part.shape[1] // BATCH)
        body, duration = _body(function, len(own)), int(seconds * 1e9)
        batches = _loop()(shared.ctypes.data, thread, body, order, delays, results, finals, offsets, duration)
        done.append(batches * BATCH)
    return done


def _body(function: Function, values: int) -> Any:
    """The function compiled, its results packed into one word of 16 bits each: a cfunc of two addresses."""
    from numba import cfunc, njit, types

    inner = njit(function)

    def none(x, y):
        inner(x, y)
        return 0

    def one(x, y):
        return inner(x, y)

    def two(x, y):
        first, second = inner(x, y)
        return first | second << 16

    def three(x, y):
        first, second, third = inner(x, y)
        return first | second << 16 | third << 32

    return cfunc(types.int64(types.int64, types.int64))((none, one, two, three)[values])


@cache
def _loop() -> Any:
    """The loop around it, compiled once and cached on disk."""
    from numba import njit, types

    from labkit.lockfree.atomics import add, load_acquire, load_relaxed, on_stack, pause, store_relaxed
    from labkit.lockfree.entry import SOURCES

    sched_yield = types.ExternalFunction("sched_yield", types.int32())
    clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
    word, words, small = types.int64, types.int64[::1], types.int16[:, ::1]
    body_type = types.FunctionType(word(word, word))

    @njit
    def meet(counter, wanted):
        add(counter, 1)
        spins = 0
        while load_acquire(counter) < wanted:
            spins += 1
            if spins > SPINS:
                sched_yield()
            pause()

    def compiled(key):
        @njit(word(word, word, body_type, words, words, small, small, words, word), cache=True)
        def loop(memory, thread, body, order, delays, results, finals, offsets, nanoseconds):
            key  # noqa: B018  (see SOURCES)
            cells, met = memory + CONTROL, 0
            clock = on_stack()
            deadline = 0
            for batch in range(len(delays)):
                for number in range(thread, len(order), 2):  # each half of the cells, both places
                    store_relaxed(cells + order[number], 0)
                    store_relaxed(cells + order[number] + APART, 0)
                met += 2
                meet(memory, met)
                for _ in range(delays[batch]):
                    pause()
                for number in range(len(order)):
                    cell = cells + order[number]
                    packed = body(cell, cell + APART)
                    for row in range(len(results)):
                        results[row, batch * len(order) + number] = packed >> 16 * row & 0xFFFF
                clock_gettime(time.CLOCK_MONOTONIC, clock)
                now = load_relaxed(clock) * 1_000_000_000 + load_relaxed(clock + 8)  # a struct timespec
                if batch == 0:
                    deadline = now + nanoseconds
                if thread == 0 and now > deadline:
                    store_relaxed(memory + STOP, 1)
                met += 2
                meet(memory, met)
                for number in range(thread, len(order), 2):  # the same half, before it is made zero again
                    for row in range(len(offsets)):
                        finals[row, batch * len(order) + number] = load_relaxed(cells + order[number] + offsets[row])
                if load_relaxed(memory + STOP):
                    return batch + 1
            return len(delays)

        return loop

    return compiled(SOURCES)
