"""A ring of the reader's own between two processes: what is right comes out right, and what is wrong is counted."""

import pytest
from numba import njit

from labkit.launch import RemoteError
from labkit.lockfree.atomics import load_acquire, load_relaxed, store_relaxed, store_release
from labkit.rings import NOTHING, Ends, stream

CAPACITY = 1024
ITEMS = 20_000


@njit
def send(ring, item):
    write = load_relaxed(ring)
    if write - load_acquire(ring + 128) == CAPACITY:
        return False
    store_relaxed(ring + 256 + write % CAPACITY * 8, item)
    store_release(ring, write + 1)
    return True


@njit
def receive(ring):
    read = load_relaxed(ring + 128)
    if read == load_acquire(ring):
        return NOTHING
    item = load_relaxed(ring + 256 + read % CAPACITY * 8)
    store_release(ring + 128, read + 1)
    return item


@njit
def receive_every_second_twice(ring):
    item = receive(ring)
    return item if item == NOTHING or item % 2 else item - 1


@njit
def send_and_forget(ring, item):
    return True


@njit
def send_many(ring, items, count):
    return 1 if send(ring, load_relaxed(items)) else 0


@njit
def receive_many(ring, to, most):
    item = receive(ring)
    if item == NOTHING:
        return 0
    store_relaxed(to, item)
    return 1


def test_a_ring_that_is_right_loses_nothing_and_each_round_is_timed():
    """On a busy machine there are fewer rounds."""
    found = stream({"one": Ends(send, receive), "many": Ends(send_many, receive_many, batch=8)}, ITEMS, 3)
    for streamed in found.values():
        assert 1 <= len(streamed.ns) <= 3 and min(streamed.ns) <= streamed.median <= max(streamed.ns)
        assert streamed.came == streamed.count and streamed.wrong == 0 and streamed.first is None
        assert repr(streamed).endswith("0 of them wrong")


def test_plain_functions_are_compiled_by_the_processes():
    found = stream({"plain": Ends(send.py_func, receive.py_func)}, ITEMS, 1)["plain"]
    assert found.came == found.count and found.wrong == 0


def test_what_is_not_what_was_to_come_is_counted_and_the_first_is_told():
    found = stream({"wrong": Ends(send, receive_every_second_twice)}, ITEMS, 1)["wrong"]
    assert found.wrong == found.count // 2 and found.first == (2, 1)
    assert "the first: 1 came in the place of 2" in repr(found)


def test_a_ring_that_is_stuck_is_given_up():
    found = stream({"stuck": Ends(send_and_forget, receive)}, ITEMS, 2, patience=0.5)["stuck"]
    assert found.came == 0 and found.count >= ITEMS // 10 and "then nothing came any more" in repr(found)


def test_what_cannot_be_compiled_is_an_error_that_says_why():
    with pytest.raises(RemoteError, match=r"untyped|nowhere"):
        stream({"no": Ends(lambda ring, item: nowhere(ring), receive)}, ITEMS, 1)  # noqa: F821
