"""What the processes of test_compiled.py do, in Numba-compiled code."""

from __future__ import annotations

from typing import Any

from numba import njit


@njit
def send_range(q, first, last):
    for number in range(first, last):
        q.send(number)


@njit
def count_up(q, timeout):
    """Receive numbers that count up, and stop at -1: how many came, -1 when one was out of order."""
    count = 0
    while True:
        number = q.receive(timeout)
        if number == -1:
            return count
        if number != count:
            return -1
        count += 1


def counts_up(q: Any) -> int:
    return int(count_up(q, 30.0))
