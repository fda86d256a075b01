"""The compiled loops of the benchmark of queues: what a reader would write in numba.njit functions of their own."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import njit, types

from labkit.lockfree.atomics import add, load_acquire, pause, store_release
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

    # These are not cached: Numba's cache does not know the queues' types.
    @njit
    def produce8(q, count):
        for n in range(count):
            q.send(n)

    @njit
    def consume8(q, count):
        total = 0
        for _ in range(count):
            total += q.receive()
        return total

    @njit
    def produce64(q, count):
        item = np.zeros(8, np.int64)
        for n in range(count):
            item[0] = n
            q.send(item)

    @njit
    def consume64(q, count):
        total, room = 0, np.zeros((1, 8), np.int64)
        for _ in range(count):
            q.receive_into(room)
            total += room[0, 0]
        return total

    @njit
    def produce8_batches(q, count):
        items, n = np.arange(64), 0
        while n < count:
            many = min(64, count - n)
            for k in range(many):
                items[k] = n + k
            q.send_many(items[:many])
            n += many

    @njit
    def consume8_batches(q, count):
        room, n, total = np.zeros(64, np.int64), 0, 0
        while n < count:
            many = q.receive_into(room)
            for k in range(many):
                total += room[k]
            n += many
        return total

    @njit
    def ping(there, back, count):
        for n in range(count):
            there.send(n)
            back.receive()

    @njit
    def pong(there, back, count):
        for _ in range(count):
            back.send(there.receive())

    made = (
        meet, probe, produce8, consume8, produce64, consume64, produce8_batches, consume8_batches, ping, pong,
    )  # fmt: skip
    return {function.__name__: function for function in made}


@functools.cache
def loops() -> dict[str, Any]:
    return _compile(SOURCES)
