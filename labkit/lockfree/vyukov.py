"""D. Vyukov's bounded queue for many senders and receivers, as it is in many libraries. It does not survive a kill.

It is here to compare with: what a process leaves behind that dies between `claim` and `publish`, or between `take` and
`release`, stays for ever (notebook 11-crash, and tests/test_crash.py, which kills after each instruction). Use Mpmc.

    offset  holds
    0       WRITE: positions claimed
    128     READ: positions taken
    256     cells of 8 * (1 + words) bytes: a sequence, and the item

    sequence of cell i in lap n     claim                publish               take                release
    n * capacity + i  ------------> (the same) --------> position + 1 -------> (the same) -------> position + capacity

The claim is an exchange of the counter, of which the cell shows nothing: nobody can tell a slot that is being filled
from one that was abandoned, nor whose it is.

After D. Vyukov, "Bounded MPMC queue" (1024cores.net).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from labkit.lockfree.atomics import compare_exchange, copy, load_acquire, load_relaxed, store_relaxed, store_release
from labkit.shared_array import SharedArray

WRITE, READ, CELLS = 0, 128, 256
FULL, EMPTY = -1, -1


@njit
def create(body, capacity, stride):
    """Lay out an empty queue in zeroed memory."""
    for index in range(capacity):
        store_relaxed(body + CELLS + index * stride, index)


@njit
def cell_at(body, capacity, stride, position):
    """Address of the cell of a position."""
    return body + CELLS + position % capacity * stride


@njit
def claim(body, capacity, stride):
    """Claim the next cell: its position, or FULL. Then fill it, and `publish` it."""
    while True:
        position = load_relaxed(body + WRITE)
        ahead = load_acquire(cell_at(body, capacity, stride, position)) - position
        if ahead < 0:
            return FULL
        if ahead == 0 and compare_exchange(body + WRITE, position, position + 1) == position:
            return position


@njit
def publish(body, capacity, stride, position):
    """What the cell holds is a message, complete."""
    store_release(cell_at(body, capacity, stride, position), position + 1)


@njit
def take(body, capacity, stride):
    """Take the oldest message: its position, or EMPTY. Then read it, and `release` it."""
    while True:
        position = load_relaxed(body + READ)
        ahead = load_acquire(cell_at(body, capacity, stride, position)) - position - 1
        if ahead < 0:
            return EMPTY
        if ahead == 0 and compare_exchange(body + READ, position, position + 1) == position:
            return position


@njit
def release(body, capacity, stride, position):
    """The message was read and may be overwritten."""
    store_release(cell_at(body, capacity, stride, position), position + capacity)


@njit
def send(body, capacity, stride, source):
    """Copy one item in: whether there was room."""
    position = claim(body, capacity, stride)
    if position == FULL:
        return False
    copy(cell_at(body, capacity, stride, position) + 8, source, stride - 8)
    publish(body, capacity, stride, position)
    return True


@njit
def receive(body, capacity, stride, to):
    """Copy one item out: whether there was one."""
    position = take(body, capacity, stride)
    if position == EMPTY:
        return False
    copy(to, cell_at(body, capacity, stride, position) + 8, stride - 8)
    release(body, capacity, stride, position)
    return True


class Vyukov:
    """A queue of numbers (int64), for any number of processes, as long as none of them dies in it.

    Args:
        capacity: how many it holds.
    """

    def __init__(self, capacity: int = 8):
        self._begin(capacity, SharedArray(CELLS // 8 + 2 * capacity, np.int64))
        create(*self._place)

    def _begin(self, capacity: int, memory: SharedArray) -> None:
        self.capacity, self.memory = capacity, memory
        self._place = int(memory.array.ctypes.data), capacity, 16

    def claim(self) -> int | None:
        """The position of a slot that is ours to fill, or None: it is full. `publish` it soon."""
        position = int(claim(*self._place))
        return None if position == FULL else position

    def publish(self, position: int, number: int) -> None:
        """Fill the slot of a position that we have claimed, and send it."""
        self.memory.array[CELLS // 8 + 2 * (position % self.capacity) + 1] = number
        publish(*self._place, position)

    def try_send(self, number: int) -> bool:
        """Send a number if there is room; whether there was."""
        position = self.claim()
        if position is not None:
            self.publish(position, number)
        return position is not None

    def take(self) -> int | None:
        """The position of the oldest number, which is ours to read, or None: there is none. `release` it soon."""
        position = int(take(*self._place))
        return None if position == EMPTY else position

    def release(self, position: int) -> int:
        """Read the number at a position that we have taken, and give its slot back."""
        number = int(self.memory.array[CELLS // 8 + 2 * (position % self.capacity) + 1])
        release(*self._place, position)
        return number

    def try_receive(self) -> int | None:
        """The next number, or None when there is none now."""
        position = self.take()
        return None if position is None else self.release(position)

    def close(self) -> None:
        """Give it up."""
        self.memory.close()

    def __reduce__(self) -> Any:
        return _arrives, (self.capacity, self.memory)


def _arrives(capacity: int, memory: SharedArray) -> Vyukov:
    queue = Vyukov.__new__(Vyukov)
    queue._begin(capacity, memory)
    return queue
