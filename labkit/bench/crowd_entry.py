"""The compiled loops of the benchmark for Mpmc and Broadcast, as a reader would write them in njit functions."""

from __future__ import annotations

import functools
from typing import Any

from numba import njit

from labkit.bench.loops_entry import patient
from labkit.lockfree import broadcast, broadcast_entry, mpmc, mpmc_entry
from labkit.lockfree.atomics import load_relaxed, on_stack, pause, store_relaxed
from labkit.lockfree.broadcast_entry import CURSOR
from labkit.lockfree.entry import SOURCES

BATCH = 64

_of_eight_bytes = mpmc_entry.item_operations(8)
send_items, receive_items = _of_eight_bytes["send"], _of_eight_bytes["receive"]


def _compile(key: str) -> dict[str, Any]:
    # As `q.send(item)` and `q.receive()` in a reader's own @njit function, but that who waits does not sleep: the C++
    # peers do not either. Who has paused very often lets others run, here and there; ours pauses several times a look.
    @njit(cache=True, nogil=True)
    def send(q, count):
        key  # see SOURCES
        item, looked = on_stack(), 0
        mpmc_entry.become(q, mpmc.SENDS)
        for n in range(count):
            store_relaxed(item, n)
            while send_items(q, item, 1) == 0:
                while not mpmc_entry.may_send(q):
                    looked = patient(looked + mpmc.FEW_PAUSES)

    @njit(cache=True, nogil=True)
    def receive(q, count):
        key  # see SOURCES
        item, total, looked = on_stack(), 0, 0
        mpmc_entry.become(q, mpmc.RECEIVES)
        for _ in range(count):
            while receive_items(q, item, 1) == 0:
                while not mpmc_entry.may_receive(q):
                    looked = patient(looked + max(0, load_relaxed(q + mpmc_entry.PATIENCE)))
            total += load_relaxed(item)
        return total

    @njit(cache=True, nogil=True)
    def broadcast_all(q, count):
        key  # see SOURCES
        item = on_stack()
        for n in range(count):
            store_relaxed(item, n)
            broadcast_entry.send_items(q, item, 1)

    @njit(cache=True, nogil=True)
    def listen(q, count, room):
        """Until the last item has come; how many did."""
        key  # see SOURCES
        end, came = load_relaxed(q + CURSOR + broadcast.NUMBER) + count, 0
        while load_relaxed(q + CURSOR + broadcast.NUMBER) < end:
            got = broadcast_entry.receive_items(q, room, BATCH)
            if got <= 0:
                pause()
            came += max(0, got)
        return came

    return {function.__name__: function for function in (send, receive, broadcast_all, listen)}


@functools.cache
def loops() -> dict[str, Any]:
    return _compile(SOURCES)
