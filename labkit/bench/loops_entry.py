"""The compiled loops of the benchmark of queues: what a reader would write in numba.njit functions of their own."""

from __future__ import annotations

import functools
from typing import Any

from numba import njit, types

from labkit.lockfree import spsc
from labkit.lockfree.atomics import add, copy, load_acquire, load_relaxed, on_stack, pause, store_relaxed, store_release
from labkit.lockfree.entry import SOURCES

CROWD, TURN, OVER = 0, 16, 32  # words of the meeting place, on lines of their own
sched_yield = types.ExternalFunction("sched_yield", types.int32())  # sched_yield(2)


@njit
def patient(looked):
    """Wait a moment; who has looked often lets others run, of whom it may be one that we wait for."""
    pause()
    if looked < 20_000:
        return looked + 1
    sched_yield()
    return 0


def _compile(key: str) -> dict[str, Any]:
    # Without the GIL: what a side has put may have to be carried on by a thread of its own.
    @njit(cache=True, nogil=True)
    def meet(place, number):
        """Come to the meeting place, and wait until `number` have been there."""
        key  # see SOURCES
        add(place + 8 * CROWD, 1)
        looked = 0
        while load_acquire(place + 8 * CROWD) < number:
            looked = patient(looked)

    @njit(cache=True, nogil=True)
    def probe(place, me, rounds):
        """One cache line to and fro: the word is even when it is 0's turn, odd when it is 1's."""
        key  # see SOURCES
        turn = place + 8 * TURN
        start, looked = (load_acquire(turn) + 1 - me) & ~1, 0  # 0's last word may still be on its way to 1
        for n in range(rounds):
            mine = start + 2 * n + me
            while load_acquire(turn) != mine:
                looked = patient(looked)
            store_release(turn, mine + 1)

    @njit(cache=True)
    def produce8(ring, capacity, count):
        key  # see SOURCES
        for n in range(count):
            position = spsc.reserve(ring, capacity, 8)
            while position < 0:
                pause()
                position = spsc.reserve(ring, capacity, 8)
            store_relaxed(ring + spsc.DATA + (position & (capacity - 1)), n)
            spsc.publish(ring, position + 8)

    @njit(cache=True)
    def consume8(ring, capacity, count):
        key  # see SOURCES
        total = 0
        for _ in range(count):
            while spsc.readable(ring, capacity) <= 0:
                pause()
            read = load_relaxed(ring + spsc.READ)
            total += load_relaxed(ring + spsc.DATA + (read & (capacity - 1)))
            spsc.release(ring, read + 8)
        return total

    @njit(cache=True)
    def produce64(ring, capacity, count):
        key  # see SOURCES
        item = on_stack()
        for n in range(count):
            store_relaxed(item, n)
            position = spsc.reserve(ring, capacity, 64)
            while position < 0:
                pause()
                position = spsc.reserve(ring, capacity, 64)
            copy(ring + spsc.DATA + (position & (capacity - 1)), item, 64)
            spsc.publish(ring, position + 64)

    @njit(cache=True)
    def consume64(ring, capacity, count):
        key  # see SOURCES
        total, item = 0, on_stack()
        for _ in range(count):
            while spsc.readable(ring, capacity) <= 0:
                pause()
            read = load_relaxed(ring + spsc.READ)
            copy(item, ring + spsc.DATA + (read & (capacity - 1)), 64)
            spsc.release(ring, read + 64)
            total += load_relaxed(item)
        return total

    @njit(cache=True)
    def produce8_batches(ring, capacity, count):
        key  # see SOURCES
        n = 0
        while n < count:
            many = min(64, count - n)
            position = spsc.reserve(ring, capacity, 8 * many)
            if position < 0:
                pause()
                continue
            for k in range(many):
                store_relaxed(ring + spsc.DATA + ((position + 8 * k) & (capacity - 1)), n + k)
            spsc.publish(ring, position + 8 * many)
            n += many

    @njit(cache=True)
    def consume8_batches(ring, capacity, count):
        key  # see SOURCES
        n, total = 0, 0
        while n < count:
            there = spsc.readable(ring, capacity)
            if there <= 0:
                pause()
                continue
            many = min(64, there // 8)
            read = load_relaxed(ring + spsc.READ)
            for k in range(many):
                total += load_relaxed(ring + spsc.DATA + ((read + 8 * k) & (capacity - 1)))
            spsc.release(ring, read + 8 * many)
            n += many
        return total

    made = (meet, probe, produce8, consume8, produce64, consume64, produce8_batches, consume8_batches)
    return {function.__name__: function for function in made}


@functools.cache
def loops() -> dict[str, Any]:
    return _compile(SOURCES)
