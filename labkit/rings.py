"""A ring of the reader's own, run by two real processes: how long an item took, and what came out wrong.

    streamed = stream({"one line": Ends(send, receive), "128 bytes apart": Ends(send_apart, receive_apart)})

Both processes compile what they are given, each for its part, and then take turns through the rings: A B A B. So the
rings are compared in one run, on the same processors, and what disturbs one of them disturbs the others too.

The numbers 1, 2, 3, ... are sent. A number that is not the one that was to come is counted as wrong.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.launch import launch
from labkit.shared_array import SharedArray

NOTHING = -1
"""What `receive` returns when there is nothing."""

ITEMS, ROUNDS = 50_000, 9
RING_BYTES = 1 << 16
SECONDS = 1.5  # after which no further round begins: on a busy machine each takes long
PATIENCE = 60.0
COMPILING = 240.0  # seconds, of a busy machine
LOOKS = 1_000_000  # before the processor is offered to others: to do it early would mean to wait for all of these

# In the memory before the rings: how often the processes have met; whether all has to end now, or after this round.
MET, STOP, OVER = 0, 128, 256
CONTROL = 4096


@dataclass(frozen=True)
class Ends:
    """The two ends of a ring, functions that Numba compiles.

    Attributes:
        send: send(ring, item), at the address of zeroed memory: whether there was room.
        receive: receive(ring): the item, or NOTHING.
        batch: more than 1 when they are send(ring, address, count) and receive(ring, address, most), which return how
            many items they have taken from the array at this address, or put into it.
    """

    send: Callable[..., Any]
    receive: Callable[..., Any]
    batch: int = 1


@dataclass(frozen=True)
class Streamed:
    """What came out of one ring.

    Attributes:
        ns: nanoseconds an item, in each round.
        count: how many items were sent in all rounds.
        came: how many have been received, those that were wrong too.
        wrong: how many of them were not the one that was to come.
        first: the first of these, as (what was to come, what came); None when there is none.
    """

    ns: tuple[float, ...]
    count: int
    came: int
    wrong: int
    first: tuple[int, int] | None

    @property
    def median(self) -> float:
        return statistics.median(self.ns)

    def __repr__(self) -> str:
        stuck = f", and then nothing came any more: {self.count - self.came:,} are missing" * (self.came < self.count)
        first = f"; the first: {self.first[1]:,} came in the place of {self.first[0]:,}" if self.first else ""
        return f"{self.came:,} items came, {self.wrong:,} of them wrong{first}{stuck}"


def stream(
    rings: Mapping[str, Ends], items: int = ITEMS, rounds: int = ROUNDS, patience: float = PATIENCE
) -> dict[str, Streamed]:
    """Have two processes send numbers through each ring, one after the other, again and again.

    Args:
        rings: name -> Ends, each in 64 KiB of zeroed memory of its own.
        items: numbers in a round; a tenth of them where both processes share one processor.
        rounds: how often each ring has its turn; less often when the machine is busy.
        patience: seconds after which a ring that is stuck is given up, and with it what would come after it.

    Raises:
        RemoteError: Numba cannot compile a function, or a process ended.
    """
    if len(os.sched_getaffinity(0)) == 1:
        items //= 10
    memory = SharedArray((CONTROL + RING_BYTES * len(rings)) // 8, np.int64)
    jobs = [
        launch(_side, role, list(rings.values()), memory, items, rounds, name=("producer", "consumer")[role])
        for role in (0, 1)
    ]
    try:
        for seconds, over in ((COMPILING, lambda: memory.array[MET // 8] >= 2), (patience, lambda: False)):
            end = time.monotonic() + seconds
            while all(job.alive for job in jobs) and not over() and time.monotonic() < end:
                time.sleep(0.01)
        memory.array[STOP // 8] = 1
        _, found = [job.wait() for job in jobs]
    finally:
        for job in jobs:
            job.kill()
        memory.close()
    return {name: _streamed(samples, items) for name, samples in zip(rings, found, strict=True)}


def _streamed(samples: list[tuple[float, int, int, int, int]], items: int) -> Streamed:
    wrong = [sample for sample in samples if sample[2]]
    return Streamed(
        ns=tuple(seconds * 1e9 / max(came, 1) for seconds, came, *_ in samples),
        count=items * len(samples),
        came=sum(came for _, came, *_ in samples),
        wrong=sum(count for _, _, count, *_ in samples),
        first=wrong[0][3:] if wrong else None,
    )


def _side(role: int, rings: list[Ends], memory: SharedArray, items: int, rounds: int) -> list[list[Any]]:
    """What each of the two processes does: for each ring, what came of each round."""
    mine = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {mine[-role]})
    looks = LOOKS if len(mine) > 1 else 1  # with one processor for both, nobody moves while we look
    control = int(memory.array.ctypes.data)
    places, loops = [], []
    for number, ring in enumerate(rings):
        places.append(control + CONTROL + number * RING_BYTES)
        loops.append(_loops(ring.send, ring.receive, ring.batch, looks)[role])
        loops[-1](places[-1], 0, control, 0)  # compiles it
    meet, _ = _waiting(looks)
    meet(control, 0)
    found: list[list[Any]] = [[] for _ in rings]
    turn, begin = 0, time.monotonic()
    for _ in range(rounds):
        for number, loop in enumerate(loops):
            turn += 2
            found[number].append(loop(places[number], items, control, turn))
            if memory.array[STOP // 8]:
                return found
        if role == 0 and time.monotonic() - begin > SECONDS:
            memory.array[OVER // 8] = 1
        turn += 2
        meet(control, turn)  # both read the same
        if memory.array[OVER // 8]:
            break
    return found


def _loops(send: Any, receive: Any, batch: int, looks: int) -> tuple[Any, Any]:
    """The loops around the two ends."""
    from numba import njit

    from labkit.lockfree.atomics import load_relaxed
    from labkit.lockfree.compiled import now

    meet, rest = _waiting(looks)
    send, receive = (getattr(end, "py_func", end) for end in (send, receive))
    send, receive = njit(send), njit(receive)

    @njit
    def produce(ring, items, control, turn):
        meet(control, turn)
        for item in range(1, items + 1):
            tries = 0
            while not send(ring, item):
                tries += 1
                rest(tries)
                if load_relaxed(control + STOP):
                    return item - 1
        return items

    @njit
    def consume(ring, items, control, turn):
        meet(control, turn)
        begin, wrong, first, came = now(), 0, (0, 0), 0
        for expected in range(1, items + 1):
            tries, item = 0, receive(ring)
            while item == NOTHING:
                tries += 1
                rest(tries)
                if load_relaxed(control + STOP):
                    return now() - begin, came, wrong, first[0], first[1]
                item = receive(ring)
            came += 1
            if item != expected:
                first = first if wrong else (expected, item)
                wrong += 1
        return now() - begin, came, wrong, first[0], first[1]

    @njit
    def produce_many(ring, items, control, turn):
        array = np.empty(batch, np.int64)
        meet(control, turn)
        for start in range(1, items + 1, batch):
            many, sent, tries = min(batch, items + 1 - start), 0, 0
            for number in range(many):
                array[number] = start + number
            while sent < many:
                done = send(ring, array.ctypes.data + 8 * sent, many - sent)
                sent += done
                if done == 0:
                    tries += 1
                    rest(tries)
                    if load_relaxed(control + STOP):
                        return start + sent - 1
        return items

    @njit
    def consume_many(ring, items, control, turn):
        array = np.empty(batch, np.int64)
        meet(control, turn)
        begin, wrong, first, came, tries = now(), 0, (0, 0), 0, 0
        while came < items:
            done = receive(ring, array.ctypes.data, min(batch, items - came))
            if done <= 0:
                tries += 1
                rest(tries)
                if load_relaxed(control + STOP):
                    break
                continue
            tries = 0
            for number in range(min(done, batch)):
                came += 1
                if array[number] != came:
                    first = first if wrong else (came, array[number])
                    wrong += 1
        return now() - begin, came, wrong, first[0], first[1]

    return (produce_many, consume_many) if batch > 1 else (produce, consume)


def _waiting(looks: int) -> tuple[Any, Any]:
    """How to meet, and how to wait: after so many looks the processor is offered to others."""
    from numba import njit, types

    from labkit.lockfree.atomics import add, load_acquire, load_relaxed, pause

    sched_yield = types.ExternalFunction("sched_yield", types.int32())

    @njit
    def rest(tries):
        if tries % looks == 0:
            sched_yield()
        pause()

    @njit
    def meet(control, turn):
        if turn == 0:
            return
        add(control + MET, 1)
        tries = 0
        while load_acquire(control + MET) < turn and not load_relaxed(control + STOP):
            tries += 1
            rest(tries)

    return meet, rest
