"""The queue for many senders and receivers: its algorithm, the class, what a kill leaves, damage, what was compiled."""

from __future__ import annotations

from collections import deque

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba import njit

from labkit.lockfree import mpmc
from labkit.lockfree.atomics import load_relaxed, store_relaxed
from labkit.lockfree.segment import Segment

STRIDE = 16


@njit
def _send(body, capacity, me, value):
    position = mpmc.claim(body, capacity, STRIDE, me)
    if position >= 0:
        slot = mpmc.slot_at(body, capacity, STRIDE, position)
        store_relaxed(slot + 8, value)
        mpmc.publish(slot, mpmc.lap_of(capacity, position))
    return position


@njit
def _receive(body, capacity, me):
    position = mpmc.take(body, capacity, STRIDE, me)
    if position < 0:
        return position
    slot = mpmc.slot_at(body, capacity, STRIDE, position)
    value = load_relaxed(slot + 8)
    mpmc.release(slot, mpmc.lap_of(capacity, position))
    return value


class Slots:
    """A queue of words in a segment, and as many participants of it, all in this process, as are asked for."""

    def __init__(self, capacity: int, people: int = 2):
        self.capacity = capacity
        first = Segment.new("mpmc", mpmc.LAYOUT, [capacity, STRIDE], mpmc.body_bytes(capacity, STRIDE))
        self.people = [first] + [self._another(first) for _ in range(people - 1)]
        self.body = first.body
        self.words = first.memory[4096:].view(np.int64)
        for person in self.people:
            person.enter(lambda number: mpmc.sweep(self.body, capacity, STRIDE, number))

    @staticmethod
    def _another(segment: Segment) -> Segment:
        import os

        from labkit.lockfree.segment import _own

        return Segment(_own(segment.fd), tuple(os.dup(fd) for fd in segment.bell_fds), "mpmc", mpmc.LAYOUT)

    def begin(self, position: int = 0) -> None:
        """An empty queue whose next position this is."""
        self.words[:] = 0
        self.words[mpmc.WRITE // 8] = self.words[mpmc.READ // 8] = position
        lap, index = mpmc.lap_of(self.capacity, position), mpmc.index_of(self.capacity, position)
        for slot in range(self.capacity):
            value = (lap + (slot < index)) << 16 & (1 << 64) - 1
            self.words[(mpmc.SLOTS + slot * STRIDE) // 8] = value - (1 << 64) if value >> 63 else value

    def send(self, value: int, who: int = 0) -> int:
        return _send(self.body, self.capacity, self.people[who].me, value)

    def receive(self, who: int = 0) -> int:
        return _receive(self.body, self.capacity, self.people[who].me)

    def close(self) -> None:
        for person in self.people:
            person.close()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    capacity=st.integers(1, 9),
    lap=st.sampled_from([0, 1, 5, (1 << 47) - 1, (1 << 48) - 1, 1 << 48, (1 << 56) - 2]),
    index=st.integers(0, 8),
    behind=st.integers(0, 40),
    operations=st.lists(st.sampled_from(["send", "receive", "old write hint", "old read hint"]), max_size=80),
)
def test_the_queue_behaves_like_a_deque_with_limited_room_whatever_the_hints_lag(
    capacity, lap, index, behind, operations
):
    queue = Slots(capacity)
    try:
        start = lap << (capacity - 1).bit_length()
        start += index % capacity
        queue.begin(start)
        model: deque[int] = deque()
        hints = {"write": [start], "read": [start]}
        for number, operation in enumerate(operations):
            hints["write"].append(int(queue.words[mpmc.WRITE // 8]))
            hints["read"].append(int(queue.words[mpmc.READ // 8]))
            if operation == "send":
                sent = queue.send(number, number % 2)
                assert (sent >= 0) == (len(model) < capacity)
                if sent >= 0:
                    model.append(number)
                else:
                    assert sent == mpmc.FULL
            elif operation == "receive":
                assert queue.receive(number % 2) == (model.popleft() if model else mpmc.EMPTY)
            else:
                word, old = (mpmc.WRITE, hints["write"]) if "write" in operation else (mpmc.READ, hints["read"])
                queue.words[word // 8] = old[max(0, len(old) - 1 - behind)]
        for value in model:
            assert queue.receive() == value
        assert queue.receive() == mpmc.EMPTY
    finally:
        queue.close()
