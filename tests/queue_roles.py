"""What the processes of the tests of labkit.Queue do. Children import this file, so it imports next to nothing."""

from __future__ import annotations

import os
import struct
import time

import numpy as np

SIZES = [0, 10, 3000, 9000, 80_000]
RECEIPT = struct.Struct("4q")
"""Who got it, who had put it, its number there, and whether it was whole."""


def put_numbers(q, count, who, large=0):
    for number in range(count):
        q.put((who, number, np.full(large, number)) if large and number % 7 == 0 else (who, number))


def put_numbers_together(q, count, who):
    for start in range(0, count, 50):
        q.put_many([(who, number) for number in range(start, start + 50)])


def get_numbers(q, out):
    got = []
    while (thing := q.get()) is not None:
        who, number, *array = thing
        assert not array or (array[0] == number).all()
        got.append((who, number))
    out.put(got)


def add_up(q, out):
    out.put(sum(iter(q.get, None)))


def put_what_comes(get, put):
    put([get()])


def hold_first(q):
    thing = q.get()
    time.sleep(600)
    return thing


def produce(q, log, who):
    """Puts objects, and says after each how many it has put."""
    for number in range(10**9):
        q.put((who, number, np.full(SIZES[number % 5], number & 255, np.uint8)), True, 600)
        log[who] = number + 1


def is_whole(number, array):
    return array.size == SIZES[number % 5] and bool((array == (number & 255)).all())


def consume(q, out, who):
    """Gets objects, and writes down which, a `RECEIPT` each.

    SIGKILL cuts a write(2) to a file short where it comes to another page; no receipt lies across two.
    """
    while True:
        sender, number, array = q.get()
        os.write(out, RECEIPT.pack(who, sender, number, is_whole(number, array)))
