"""The checks of lab 09 accept right solutions and refuse typical wrong ones with the right reason."""

import pytest

from labkit.exercises import lock_free_queue
from labkit.exercises.lock_free_queue import (
    CAPACITY,
    FIRST_SLOT,
    READ_POSITION,
    WRITE_POSITION,
    check_capacities,
    check_edges,
    check_receive_many,
)
from labkit.lockfree.atomics import (
    acquire_fence,
    fence,
    load_acquire,
    load_plain,
    load_relaxed,
    release_fence,
    store_relaxed,
    store_release,
    store_seq_cst,
)
from labkit.rings import NOTHING


@pytest.fixture(autouse=True)
def few_items(monkeypatch):
    monkeypatch.setattr(lock_free_queue, "ITEMS", 5_000)


# --- the edges ---------------------------------------------------------------------------------------------------


def send(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_acquire(ring + READ_POSITION) == CAPACITY:
        return False
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    store_release(ring + WRITE_POSITION, write + 1)
    return True


def receive(ring):
    read = load_relaxed(ring + READ_POSITION)
    if read == load_acquire(ring + WRITE_POSITION):
        return NOTHING
    item = load_relaxed(ring + FIRST_SLOT + read % CAPACITY * 8)
    store_release(ring + READ_POSITION, read + 1)
    return item


def send_with_fence(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_acquire(ring + READ_POSITION) == CAPACITY:
        return False
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    release_fence()
    store_relaxed(ring + WRITE_POSITION, write + 1)
    return True


def send_without_release(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_acquire(ring + READ_POSITION) == CAPACITY:
        return False
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    store_relaxed(ring + WRITE_POSITION, write + 1)
    return True


def send_without_acquire(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_relaxed(ring + READ_POSITION) == CAPACITY:
        return False
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    store_release(ring + WRITE_POSITION, write + 1)
    return True


def send_publishes_first(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_acquire(ring + READ_POSITION) == CAPACITY:
        return False
    store_release(ring + WRITE_POSITION, write + 1)
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    return True


def send_plain(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_plain(ring + READ_POSITION) == CAPACITY:
        return False
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    store_release(ring + WRITE_POSITION, write + 1)
    return True


def send_seq_cst(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_acquire(ring + READ_POSITION) == CAPACITY:
        return False
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    store_seq_cst(ring + WRITE_POSITION, write + 1)
    return True


def send_full_fence(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_acquire(ring + READ_POSITION) == CAPACITY:
        return False
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    fence()
    store_relaxed(ring + WRITE_POSITION, write + 1)
    return True


def send_orders_everything(ring, item):
    write = load_acquire(ring + WRITE_POSITION)
    if write - load_acquire(ring + READ_POSITION) == CAPACITY:
        return False
    store_release(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    store_release(ring + WRITE_POSITION, write + 1)
    return True


def send_overwrites(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    store_release(ring + WRITE_POSITION, write + 1)
    return True


def send_wraps_the_position(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    if write - load_acquire(ring + READ_POSITION) == CAPACITY:
        return False
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    store_release(ring + WRITE_POSITION, (write + 1) % CAPACITY)
    return True


def send_waits(ring, item):
    write = load_relaxed(ring + WRITE_POSITION)
    while write - load_acquire(ring + READ_POSITION) == CAPACITY:
        pass
    store_relaxed(ring + FIRST_SLOT + write % CAPACITY * 8, item)
    store_release(ring + WRITE_POSITION, write + 1)
    return True


def receive_without_acquire(ring):
    read = load_relaxed(ring + READ_POSITION)
    if read == load_relaxed(ring + WRITE_POSITION):
        return NOTHING
    item = load_relaxed(ring + FIRST_SLOT + read % CAPACITY * 8)
    store_release(ring + READ_POSITION, read + 1)
    return item


def receive_without_release(ring):
    read = load_relaxed(ring + READ_POSITION)
    if read == load_acquire(ring + WRITE_POSITION):
        return NOTHING
    item = load_relaxed(ring + FIRST_SLOT + read % CAPACITY * 8)
    store_relaxed(ring + READ_POSITION, read + 1)
    return item


def receive_says_nothing(ring):
    receive(ring)


def receive_stops(ring):
    return [][0]


@pytest.mark.parametrize("sender", [send, send_with_fence])
def test_two_edges_are_right(sender):
    verdict = check_edges(sender, receive)
    assert verdict.right, verdict
    assert "stlr and ldar" in verdict.why


@pytest.mark.parametrize(
    "sender, receiver, reason",
    [
        (send_without_release, receive, "edge A begins in send, and send does not release"),
        (send_without_acquire, receive, "edge B ends in send, and send does not acquire"),
        (send, receive_without_acquire, "edge A ends in receive, and receive does not acquire"),
        (send, receive_without_release, "edge B begins in receive, and receive does not release"),
        (send_publishes_first, receive, "moves write_position before it has written the slot"),
        (send_plain, receive, "touches read_position by a plain access"),
        (send_seq_cst, receive, "an order that nobody needs"),
        (send_full_fence, receive, "an order that nobody needs"),
        (send_orders_everything, receive, "the load of write_position needs no order, only you write it"),
        (send_overwrites, receive, "the ring is full (64 items), and send writes all the same"),
        (send_wraps_the_position, receive, "it is a count, not an index"),
        (send_waits, receive, "it does not come to an end"),
        (send, receive_says_nothing, "receive returned None"),
        (send, receive_stops, "IndexError"),
    ],
)
def test_a_ring_that_is_wrong_is_refused_with_its_reason(sender, receiver, reason):
    verdict = check_edges(sender, receiver)
    assert not verdict.right
    assert reason in verdict.why


# --- a batch -----------------------------------------------------------------------------------------------------


def take_many(ring, to, most):
    read = load_relaxed(ring + READ_POSITION)
    count = min(most, load_acquire(ring + WRITE_POSITION) - read)
    for n in range(count):
        store_relaxed(to + 8 * n, load_relaxed(ring + FIRST_SLOT + (read + n) % CAPACITY * 8))
    if count > 0:
        store_release(ring + READ_POSITION, read + count)
    return count


def take_one_by_one(ring, to, most):
    for n in range(most):
        item = receive(ring)
        if item == NOTHING:
            return n
        store_relaxed(to + 8 * n, item)
    return most


def take_past_the_end(ring, to, most):
    read = load_relaxed(ring + READ_POSITION)
    count = min(most, load_acquire(ring + WRITE_POSITION) - read)
    for n in range(count):
        store_relaxed(to + 8 * n, load_relaxed(ring + FIRST_SLOT + (read % CAPACITY + n) * 8))
    store_release(ring + READ_POSITION, read + count)
    return count


def take_too_many(ring, to, most):
    read = load_relaxed(ring + READ_POSITION)
    count = load_acquire(ring + WRITE_POSITION) - read
    for n in range(count):
        store_relaxed(to + 8 * n, load_relaxed(ring + FIRST_SLOT + (read + n) % CAPACITY * 8))
    store_release(ring + READ_POSITION, read + count)
    return count


def take_releases_first(ring, to, most):
    read = load_relaxed(ring + READ_POSITION)
    count = min(most, load_acquire(ring + WRITE_POSITION) - read)
    store_release(ring + READ_POSITION, read + count)
    for n in range(count):
        store_relaxed(to + 8 * n, load_relaxed(ring + FIRST_SLOT + (read + n) % CAPACITY * 8))
    return count


def take_relaxed(ring, to, most):
    read = load_relaxed(ring + READ_POSITION)
    count = min(most, load_relaxed(ring + WRITE_POSITION) - read)
    for n in range(count):
        store_relaxed(to + 8 * n, load_relaxed(ring + FIRST_SLOT + (read + n) % CAPACITY * 8))
    store_release(ring + READ_POSITION, read + count)
    return count


def take_with_fences(ring, to, most):
    read = load_relaxed(ring + READ_POSITION)
    count = min(most, load_relaxed(ring + WRITE_POSITION) - read)
    acquire_fence()
    for n in range(count):
        store_relaxed(to + 8 * n, load_relaxed(ring + FIRST_SLOT + (read + n) % CAPACITY * 8))
    if count > 0:
        release_fence()
        store_relaxed(ring + READ_POSITION, read + count)
    return count


def take_before_looking(ring, to, most):
    read = load_relaxed(ring + READ_POSITION)
    first = load_relaxed(ring + FIRST_SLOT + read % CAPACITY * 8)
    count = min(most, load_acquire(ring + WRITE_POSITION) - read)
    if count == 0:
        return 0
    store_relaxed(to, first)
    for n in range(1, count):
        store_relaxed(to + 8 * n, load_relaxed(ring + FIRST_SLOT + (read + n) % CAPACITY * 8))
    store_release(ring + READ_POSITION, read + count)
    return count


def take_nothing(ring, to, most):
    return 0


@pytest.mark.parametrize("function", [take_many, take_with_fences])
def test_a_batch_with_one_acquire_and_one_release_is_right(function):
    verdict = check_receive_many(function)
    assert verdict.right, verdict
    assert "looks at write_position once and moves read_position once" in verdict.why


@pytest.mark.parametrize(
    "function, reason",
    [
        (take_one_by_one, "moves read_position 3 times"),
        (take_past_the_end, "across the end of the ring"),
        (take_too_many, "it has to return 8, not 18"),
        (take_releases_first, "before it has read the last slot"),
        (take_relaxed, "has to acquire"),
        (take_before_looking, "before it has looked at write_position"),
        (take_nothing, "it has to return 3, not 0"),
        (lambda ring, to, most: None, "it returns nothing"),
    ],
)
def test_a_batch_that_is_wrong_is_refused_with_its_reason(function, reason):
    verdict = check_receive_many(function)
    assert not verdict.right
    assert reason in verdict.why


# --- capacities --------------------------------------------------------------------------------------------------


def test_the_powers_of_two_are_right():
    verdict = check_capacities(lambda: {1, 2, 4, 8, 16})
    assert verdict.right


@pytest.mark.parametrize(
    "said, reason",
    [
        (set(range(1, 17)), "with 3 slots position 255 is in slot 0. The next is position 0 again, in slot 0"),
        ({2, 4, 8, 16}, "1 slots would do as well"),
        ({1, 2, 4, 8, 16, 32}, "the question was about 1 to 16"),
        (None, "return a set of numbers"),
    ],
)
def test_wrong_capacities_are_refused_with_their_reason(said, reason):
    verdict = check_capacities(lambda: said)
    assert not verdict.right
    assert reason in verdict.why
