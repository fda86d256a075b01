"""The queue for one sender and one receiver: a model, processes, what a kill leaves, damage, what was compiled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import inspect
import mmap
import multiprocessing
import os
import random
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import deque
from pathlib import Path

import numpy as np
import pytest
import roles
import stepper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llvmlite import binding
from numba import int64, njit

from labkit import launch
from labkit.channels.base import Closed
from labkit.lockfree import Spsc, spsc, spsc_entry
from labkit.lockfree.entry import SENT
from labkit.lockfree.segment import BODY, Segment
from labkit.lockfree.spsc_entry import LARGE, PIECE, READ_SEEN, WAITED, WRITE_SEEN

pytestmark = pytest.mark.every_python

ROOT = Path(__file__).parents[1]
CAPACITY = 4096


@pytest.fixture
def queue():
    with Spsc(CAPACITY) as q:
        yield q


@pytest.fixture
def other(queue):
    """The same ring as another process has it, with roles of its own."""
    with queue.again() as q:
        yield q


def words_of(q: Spsc) -> np.ndarray:
    """The body, as words."""
    return q._segment.memory[BODY:].view(np.int64)


def begin_at(q: Spsc, position: int) -> None:
    """Make it an empty ring that has come this far."""
    words_of(q)[[spsc.WRITE // 8, spsc.BEGUN // 8, spsc.READ // 8]] = position
    q._state[[READ_SEEN // 8, WRITE_SEEN // 8]] = position


def in_small_pieces(q: Spsc, large: int = 256, piece: int = 64) -> Spsc:
    """Have it send messages in pieces that are much smaller than those that pay."""
    q._state[[LARGE // 8, PIECE // 8]] = large, piece
    return q


def die(q: Spsc) -> None:
    """As kill -9 would leave it: locks are gone, and nothing else has been done."""
    q.closed = True
    q._segment.close()


# --- against a model ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_ring():
    with Spsc(CAPACITY) as q:
        yield in_small_pieces(q)


def frame(size: int) -> int:
    """What a message takes in the ring of the model."""
    if size <= 256:
        return 8 + -(-size // 8) * 8
    return 8 + frame(size % 64) * (size % 64 > 0) + size // 64 * 72


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    start=st.sampled_from([0, 8, CAPACITY - 8, CAPACITY * 5 + 1000, (1 << 62) + 16]),
    operations=st.lists(st.one_of(st.none(), st.integers(1, CAPACITY // 2)), max_size=60),
)
def test_the_ring_behaves_like_a_deque_with_limited_room(model_ring, start, operations):
    ring, model = model_ring, deque()
    begin_at(ring, start)
    for number, size in enumerate(operations):
        if size is None:
            assert ring.try_receive() == (model.popleft() if model else None)
        else:
            message = roles.numbered(number, size)
            free = CAPACITY - sum(frame(len(one)) for one in model)
            sent = ring.try_send(message)
            if size <= 256 or sent or frame(size) + 16 <= free:
                assert sent == (frame(size) <= free)
            if sent:
                model.append(message)
        assert len(ring) == len(model)
    while model:
        assert ring.try_receive() == model.popleft()
    assert ring.try_receive() is None


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    item=st.sampled_from(["u1", "i8", "f4", np.dtype((np.uint8, 7)), np.dtype((np.float64, (3, 5)))]),
    capacity=st.integers(1, 50),
    laps=st.integers(0, 3000),
    operations=st.lists(st.integers(-60, 60), max_size=40),
)
def test_items_of_any_size_come_in_order_and_as_many_fit_as_were_asked_for(item, capacity, laps, operations):
    item = np.dtype(item)
    with Spsc(capacity, dtype=item) as ring:
        begin_at(ring, laps * item.itemsize)
        model, number = deque(), 0
        for many in operations:
            if many < 0:
                if not model:
                    assert ring.try_receive() is None
                    continue
                got = ring.receive_many(-many, 0)
                expected = [model.popleft() for _ in range(min(-many, len(model)))]
                assert np.array_equal(got, np.array(expected, item.base).reshape(-1, *item.shape))
                continue
            for _ in range(many):
                value = np.full(item.shape, number % 251, item.base)[()]
                number += 1
                sent = ring.try_send(value)
                assert sent == (len(model) < capacity)
                if sent:
                    model.append(value)
            assert len(ring) == len(model)


SMALL_ITEMS = ["u1", "i8", np.dtype((np.uint8, 7)), np.dtype((np.int64, 4)), np.dtype((np.uint8, 33))]
"""All but the last are so small that there are copies of them."""


def wish(q: Spsc, follows: bool) -> None:
    """As its receiver does it: for copies, or for none."""
    words_of(q)[spsc.FOLLOWS // 8] = follows


def die_over_a_copy(q: Spsc, item: np.dtype) -> None:
    """Leave what a sender leaves that is killed before it publishes."""
    words = words_of(q)
    words[spsc.COPY_OF // 8] = words[spsc.WRITE // 8] + item.itemsize
    words[spsc.COPY // 8 :][:4] = -1


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    item=st.sampled_from(SMALL_ITEMS),
    laps=st.integers(0, 3000),
    operations=st.lists(
        st.tuples(
            st.sampled_from(["send", "batch", "loan", "death", "receive", "receive", "some", "into", "borrow"]),
            st.booleans(),
            st.integers(1, 4),
        ),
        max_size=60,
    ),
)
def test_items_come_right_with_copies_and_without(item, laps, operations):
    item, capacity = np.dtype(item), 9
    with Spsc(capacity, dtype=item) as ring:
        begin_at(ring, laps * item.itemsize)
        model, number = deque(), 0

        def made(many: int) -> np.ndarray:
            return np.array([np.full(item.shape, (number + ahead) % 251, item.base) for ahead in range(many)])

        def came(items: np.ndarray, many: int) -> None:
            """So many must have come, and these must be them."""
            expected = [model.popleft() for _ in range(min(many, len(model)))]
            assert np.array_equal(items, np.array(expected, item.base).reshape(-1, *item.shape))

        for what, follows, many in operations:
            wish(ring, follows)
            before = len(model)
            if what == "send" and before < capacity:
                assert ring.try_send(made(1)[0])
                model.extend(made(1))
            elif what == "batch" and before + many <= capacity:
                ring.send_many(made(many), 0)
                model.extend(made(many))
            elif what == "loan" and before < capacity:
                with ring.loan() as slot:
                    slot.array[...] = made(1)[0]
                model.extend(made(1))
            elif what == "death":
                die_over_a_copy(ring, item)
            elif what == "receive":
                one = ring.try_receive()
                assert (one is None) == (before == 0)
                came(np.array([] if one is None else [one], item.base).reshape(-1, *item.shape), 1)
            elif what == "some" and before:
                came(ring.receive_many(many, 0), many)
            elif what == "into" and before:
                room = np.full((many, *item.shape), 255, item.base)
                count = ring.receive_into(room, 0)
                came(room[:count], many)
                assert (room[count:] == 255).all()
            elif what == "borrow" and before:
                with ring.borrow(0) as slot:
                    came(slot.array.reshape(1, *item.shape).copy(), 1)
            number += max(0, len(model) - before)
            assert len(ring) == len(model)


@njit
def _send_one(q, item):
    q.send(item)


def test_a_lone_item_comes_by_its_copy_if_that_is_wished_for_and_all_others_by_their_slots():
    with Spsc(8, dtype=np.int64) as ring:
        slots = words_of(ring)[spsc.DATA // 8 :]

        def came_although_slots_were_overwritten(send, *arguments) -> int:
            send(*arguments)
            slots[:] = -1
            return int(ring.receive(0))

        for send, *arguments in ((ring.send, 5), (_send_one, ring, 5), (ring.send_many, np.array([5]))):
            wish(ring, True)
            assert came_although_slots_were_overwritten(send, *arguments) == 5
            wish(ring, False)
            assert came_although_slots_were_overwritten(send, *arguments) == -1
        wish(ring, True)
        assert came_although_slots_were_overwritten(ring.send_many, np.array([5, 6])) == -1
        assert ring.receive(0) == -1
        die_over_a_copy(ring, np.dtype(np.int64))
        with ring.loan() as slot:
            slot.array[...] = 7
        assert ring.receive(0) == 7


def test_copies_are_wished_for_where_one_item_came_since_the_last_wait_and_not_where_several_did():
    with Spsc(8, dtype=np.int64) as ring:
        words, state = words_of(ring), ring._state
        for came, wished in ((0, 0), (1, 1), (0, 1), (2, 0), (0, 0), (1, 1), (1, 1), (100, 0)):
            words[[spsc.READ // 8, spsc.WRITE // 8]] += 8 * came
            assert not spsc_entry.may_receive(ring._at)
            assert words[spsc.FOLLOWS // 8] == wished and state[WAITED // 8] == words[spsc.READ // 8]


@njit(nogil=True)
def _count_up(q, count):
    for n in range(count):
        q.send(n, None)


@njit(nogil=True)
def _wrong_ones(q, count):
    wrong = 0
    for n in range(count):
        wrong += q.receive(None) != n
    return wrong


def test_copies_that_are_wished_for_now_and_then_are_right_or_not_taken():
    count, got, dice = 1_000_000, [], random.Random(1)
    with Spsc(64, dtype=np.int64) as ring:
        _count_up(ring, 0), _wrong_ones(ring, 0)  # compiled here: the threads hold no GIL
        sender = threading.Thread(target=_count_up, args=(ring, count))
        receiver = threading.Thread(target=lambda: got.append(_wrong_ones(ring, count)))
        sender.start(), receiver.start()
        while sender.is_alive() and receiver.is_alive():
            wish(ring, dice.random() < 0.5)
        receiver.join(), sender.join()
        assert got == [0]


def test_messages_pass_the_end_of_the_ring_at_every_alignment(queue):
    for start in range(0, CAPACITY, 8):
        begin_at(queue, CAPACITY * 5 + start)
        for size in (1, 7, 8, 9, 100, CAPACITY - 8):
            message = roles.numbered(start, size)
            assert queue.try_send(message)
            assert queue.try_receive() == message


def test_what_is_lent_lies_in_one_piece_wherever_it_is(queue):
    for start in range(0, CAPACITY, 1000):
        begin_at(queue, start)
        with queue.loan() as slot:
            slot.array[:] = np.arange(CAPACITY - 8) % 251
        with queue.borrow() as slot:
            assert np.array_equal(slot.array, np.arange(CAPACITY - 8) % 251)


def test_the_memory_behind_the_ring_is_the_ring_once_more(queue):
    memory = queue._segment.memory
    data = BODY + spsc.DATA
    assert memory.size == data + 2 * CAPACITY
    memory[data + CAPACITY + 5] = 77
    assert memory[data + 5] == 77


def test_no_room_in_the_address_space_is_said_and_nothing_is_left():
    def without():
        Spsc(4096).close()  # everything is loaded
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * mmap.PAGESIZE
        before = os.listdir("/proc/self/fd")
        resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), resource.RLIM_INFINITY))
        try:
            Spsc(32 << 20)
        except OSError as reason:
            return reason.errno, str(reason), len(os.listdir("/proc/self/fd")) - len(before)

    number, text, leaked = launch(without).wait()
    assert (number, leaked) == (errno.ENOMEM, 0)
    assert "no room in this process" in text


# --- large messages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [257, 1000, CAPACITY - 100, CAPACITY, 3 * CAPACITY + 1, 50_000])
def test_large_messages_go_through_in_pieces_whatever_their_size(queue, size):
    in_small_pieces(queue)
    messages = [roles.numbered(n, size + n) for n in range(5)]
    thread = threading.Thread(target=lambda: [queue.send(message) for message in messages])
    thread.start()
    assert [queue.receive() for _ in messages] == messages
    thread.join()
    assert len(queue) == 0


def test_a_message_that_cannot_be_sent_without_waiting_is_refused_or_full(queue):
    in_small_pieces(queue)
    with pytest.raises(ValueError, match="larger than this ring"):
        queue.try_send(bytes(CAPACITY * 2))
    assert queue.try_send(bytes(CAPACITY // 2))
    assert not queue.try_send(bytes(CAPACITY * 3 // 4))
    with pytest.raises(TimeoutError):
        queue.send(bytes(CAPACITY * 3 // 4), 0)
    assert queue.receive() == bytes(CAPACITY // 2)
    assert queue.try_receive() is None


def test_a_sender_that_gives_up_in_the_middle_has_sent_nothing_and_the_next_message_passes(queue):
    in_small_pieces(queue)
    queue.send(b"before")
    for _ in range(3):
        with pytest.raises(TimeoutError):
            queue.send(bytes(CAPACITY * 2), 0.02)
    assert queue.receive() == b"before"
    assert queue.try_receive() is None
    with queue.loan() as slot:  # all of the ring is free again
        slot.array[:] = 1
    assert queue.receive() == bytes([1]) * (CAPACITY - 8)


def test_what_a_dead_sender_had_sent_of_a_message_never_was(queue, other):
    in_small_pieces(other)
    other.send(b"whole")
    with pytest.raises(TimeoutError):
        other.send(bytes(CAPACITY * 2), 0.02)
    words_of(queue)[spsc.BEGUN // 8] = 16  # where it began: other has not given up, it is killed
    die(other)
    assert queue.receive() == b"whole"
    with pytest.raises(Closed):
        queue.receive(5)
    assert len(queue) == 0
    with queue.again() as third:
        third.send(b"next")
        assert queue.receive() == b"next"


def test_the_next_receiver_gets_a_large_message_that_fits_once_more(queue):
    in_small_pieces(queue)
    message = roles.numbered(1, 1000)
    queue.send(message)
    with queue.again() as second:
        first = queue.again()
        slot = first.borrow()
        assert bytes(slot.array) == message
        die(first)
        assert second.receive() == message


def test_the_next_receiver_passes_over_the_rest_of_a_message_larger_than_the_ring(queue, other):
    in_small_pieces(queue)
    message, after = roles.numbered(1, 3 * CAPACITY), roles.numbered(2, 700)
    thread = threading.Thread(target=lambda: [queue.send(message), queue.send(after)])
    thread.start()
    words = words_of(queue)
    assert roles.eventually(lambda: words[spsc.WRITE // 8] > CAPACITY // 2)
    words[spsc.READ // 8] = frame(8 + 64)  # as it is left by a receiver that was killed when it had the first piece
    assert other.receive() == after
    thread.join()


def test_large_messages_between_processes_keep_their_content():
    with Spsc(1 << 18) as q:
        job = launch(check_large, q, 40)
        for n in range(40):
            q.send(np.random.default_rng(n).bytes(1 + n * 60_000))
        assert job.wait() == 40


def check_large(q: Spsc, count: int) -> int:
    for n in range(count):
        assert q.receive() == np.random.default_rng(n).bytes(1 + n * 60_000)
    return count


def test_ctrl_c_in_a_large_message_loses_that_message_only(queue):
    timer = roles.interrupt_soon(0.1)
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        queue.send(bytes(CAPACITY * 100))
    timer.join()
    assert queue.try_receive() is None
    queue.send(b"usable")
    assert queue.receive() == b"usable"


# --- between processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [4096, 1 << 20])
@pytest.mark.parametrize("top", [8, 3000])
def test_two_processes_hammer_a_ring_and_every_byte_is_right(capacity, top):
    count = 60_000
    with Spsc(capacity) as q:
        jobs = launch(roles.check_numbered, q, top), launch(send_numbered_and_close, q, count, top)
        assert jobs[0].wait() == count
        jobs[1].wait()


def send_numbered_and_close(q: Spsc, count: int, top: int) -> None:
    roles.send_numbered(q, count, top)
    q.close()


def test_no_wake_up_is_lost_when_both_sides_sleep_again_and_again():
    """A ping-pong with messages that fill the ring: each side sleeps for almost every message."""
    with Spsc(4096) as there, Spsc(4096) as back:
        job = launch(roles.echo, there, back)
        for number in range(2000):
            message = roles.numbered(number, 1 + number * 37 % 5000)
            there.send(message)
            assert back.receive() == message
        there.close()
        job.wait()


def test_a_second_living_sender_or_receiver_is_refused(queue, other):
    queue.send(b"x")
    for use in (lambda: other.send(b"y"), lambda: other.try_send(b"y"), other.loan, lambda: other.send_many([b"y"])):
        with pytest.raises(ValueError, match=f"has a sender already, process {os.getpid()}"):
            use()
    assert queue.receive() == b"x"
    for use in (other.receive, other.try_receive, other.borrow, other.receive_many):
        with pytest.raises(ValueError, match="has a receiver already"):
            use()
    die(queue)
    other.send(b"z")
    assert other.receive() == b"z"


def forked(function, *arguments) -> int:
    """A process that has everything of this one, for tests of a kill: forkserver's children take longer to start."""
    return stepper.forked(lambda: function(*arguments))


SIZES = (8, 24, 100, 300, 5000)


def _numbered(number: int) -> bytes:
    return number.to_bytes(8, "little") * (SIZES[number % len(SIZES)] // 8)


def _send_for_ever(q: Spsc, sent: np.ndarray) -> None:
    """`sent` says how far we are: [begun, done]."""
    os.nice(10)  # whoever kills would wait for its turn behind those that never rest
    while True:
        number = int(sent[0]) + 1  # what the last life had begun may have been sent, or not
        sent[0] = number
        message = _numbered(number)
        while True:
            with contextlib.suppress(Closed):  # the receiver was killed, and this was not sent; another comes
                if number % 3 == 0 and len(message) < 4000:
                    with q.loan(len(message)) as slot:
                        slot.array[:] = np.frombuffer(message, np.uint8)
                else:
                    q.send(message, 60)
                break
        sent[1] = number


def _receive_for_ever(q: Spsc, log: np.ndarray) -> None:
    """What came, noted before it is released: log[0] says how many."""
    os.nice(10)
    while True:
        with contextlib.suppress(Closed), q.borrow(60) as slot:
            message = bytes(slot.array)
            number = int.from_bytes(message[:8], "little")
            assert message == _numbered(number)
            log[1 + int(log[0])] = number
            log[0] += 1


def test_hundreds_of_kills_of_both_sides_lose_and_invent_nothing():
    kills, chance = 200, random.Random(4)
    sent, log = stepper.shared(8 * 16), stepper.shared(8 << 20)
    with in_small_pieces(Spsc(4096)) as q:
        jobs = {"sender": (_send_for_ever, q, sent), "receiver": (_receive_for_ever, q, log)}
        pids = {job: forked(*what) for job, what in jobs.items()}
        killed = {"sender": 0, "receiver": 0}
        try:
            for _ in range(kills):
                job = chance.choice(list(jobs))
                start, end = int(log[0]), time.monotonic() + 60
                while log[0] - start < 4:
                    assert time.monotonic() < end, f"nothing moves after {killed}"
                    time.sleep(0.0001)
                for _ in range(chance.randrange(2000)):
                    pass
                os.kill(pids[job], signal.SIGKILL)
                os.waitpid(pids.pop(job), 0)
                killed[job] += 1
                pids[job] = forked(*jobs[job])
        finally:
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        rest = []
        with contextlib.suppress(Closed):
            while True:
                rest.append(int.from_bytes(q.receive(5)[:8], "little"))
        assert len(q) in (0, 1)  # a message whose sender was killed over it
    got = [*log[1 : 1 + int(log[0])].tolist(), *rest]
    assert got == sorted(got), "not in order"
    again = len(got) - len(set(got))
    assert again <= killed["receiver"] + 1  # noted, and killed before the release: at most one a kill
    assert set(got) <= set(range(1, int(sent[0]) + 1))
    # Begun, and never sent: at most one a kill. And what is larger than the ring dies with its receiver.
    assert int(sent[0]) - len(set(got)) <= killed["sender"] + killed["receiver"] + 2


def test_a_child_made_by_fork_has_no_role_of_its_parent(queue):
    queue.send(b"from the parent")

    def child():
        with pytest.raises(ValueError, match="has a sender already"):
            queue.send(b"x")
        assert queue.receive() == b"from the parent"
        queue.close()

    pid = forked(child)
    assert os.waitpid(pid, 0)[1] == 0
    queue.send(b"again")
    assert queue.receive() == b"again"


def test_roles_that_are_handed_on_travel_and_go_with_the_last_copy():
    with Spsc(4096, hands_on=True) as q, q.again() as other:
        q.send(b"x")
        job = launch(roles.send_all, q, [b"y"])
        q._close(False)
        assert [other.receive(), other.receive()] == [b"x", b"y"]
        job.wait()
        with pytest.raises(Closed):
            other.receive()


@pytest.mark.leaves("descriptors", reason="multiprocessing's tracker and forkserver live as long as the session")
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_it_travels_to_the_processes_of_multiprocessing(method):
    context = multiprocessing.get_context(method)
    with Spsc(4096) as q:
        process = context.Process(target=send_numbered_and_close, args=(q, 3, 8))
        process.start()
        try:
            assert list(q) == [roles.numbered(n, size) for n, size in enumerate(roles.sizes(3, 8))]
        finally:
            process.join(60)
            process.close()


def test_a_blocked_receiver_wakes_for_each_message_and_uses_no_processor(queue):
    got: list[bytes] = []
    used: list[float] = []

    def work():
        start = time.thread_time()
        got.extend(queue.receive() for _ in range(20))
        used.append(time.thread_time() - start)

    thread = threading.Thread(target=work)
    thread.start()
    for number in range(20):
        time.sleep(0.02)
        queue.send(b"%d" % number)
    thread.join(60)
    assert got == [b"%d" % number for number in range(20)]
    assert used[0] < 0.2


def test_ctrl_c_ends_a_wait(queue):
    timer = roles.interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        queue.receive(30)
    timer.join()
    queue.send(b"usable")
    assert queue.receive() == b"usable"


def test_iteration_ends_when_the_sender_has_died_and_everything_is_received(queue, other):
    other.send_many([b"a", b"b"])
    die(other)
    assert list(queue) == [b"a", b"b"]


def test_a_full_ring_whose_receiver_has_gone_is_closed_to_its_sender(queue, other):
    queue.send(b"x")
    assert other.receive() == b"x"
    other.close()
    with pytest.raises(Closed):
        while True:
            queue.send(b"y" * 1000, 5)
    with pytest.raises(Closed):
        queue.try_send(b"y" * 1000)


def test_a_ring_that_nobody_receives_from_is_merely_full(queue):
    while queue.try_send(b"y" * 1000):
        pass
    with pytest.raises(TimeoutError, match="stayed full"):
        queue.send(b"z" * 1000, 0.05)


# --- the class ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [np.int64(-5), np.float32(1.5), np.complex128(1 + 2j), np.bool_(True), np.uint8(7)])
def test_items_are_numpy_scalars(item):
    with Spsc(4, dtype=item.dtype) as q:
        q.send(item)
        q.send(item.item())
        got = [q.receive(), q.try_receive()]
        assert got == [item, item]
        assert got[0].dtype == item.dtype
        assert q.try_receive() is None


def test_items_are_records_and_arrays():
    point = np.dtype([("x", "f8"), ("name", "S3")])
    with Spsc(3, dtype=point) as q:
        q.send(np.array((1.5, b"abc"), point)[()])
        assert q.receive()["name"] == b"abc"
    with Spsc(3, dtype=np.dtype((np.float64, (20, 30)))) as q:
        picture = np.random.default_rng(1).random((20, 30))
        q.send(picture)
        with q.borrow() as slot:
            assert np.array_equal(slot.array, picture)
            assert not slot.array.flags.writeable
        q.send_many(np.array([picture, picture + 1]))
        assert np.array_equal(q.receive_many(), [picture, picture + 1])


@pytest.mark.parametrize("item", [np.zeros(2), np.float32(1), "text", np.zeros((2, 2), np.int64)])
def test_items_of_another_dtype_or_shape_are_refused(item):
    with Spsc(3, dtype=np.int64) as q:
        with pytest.raises(ValueError):
            q.send(item)
        with pytest.raises(ValueError):
            q.send_many(item if isinstance(item, np.ndarray) and item.ndim > 1 else [[item]])
        assert len(q) == 0


def test_batches_larger_than_the_ring_go_through_it(queue):
    in_small_pieces(queue)
    many = [roles.numbered(n, 1 + n * 13 % 600) for n in range(200)]
    thread = threading.Thread(target=queue.send_many, args=(many,))
    thread.start()
    got = []
    while len(got) < 200:
        got += queue.receive_many(7)
    thread.join()
    assert got == many
    with Spsc(5, dtype=np.int64) as q:
        thread = threading.Thread(target=q.send_many, args=(np.arange(1000),))
        thread.start()
        got = []
        while len(got) < 1000:
            got += q.receive_many(7).tolist()
        thread.join()
        assert got == list(range(1000))


def test_a_wrong_message_in_a_batch_is_told_and_what_is_before_it_is_sent(queue):
    for wrong in (b"", "text", 5):
        with pytest.raises((ValueError, TypeError)):
            queue.send_many([b"a", memoryview(b"b"), wrong, b"c"])
        assert queue.receive_many() == [b"a", b"b"]


def test_a_loan_is_published_at_its_end_and_given_up_by_an_exception(queue):
    with queue.loan(3) as slot:
        slot.array[:] = list(b"abc")
    with pytest.raises(KeyError), queue.loan(9) as slot:
        raise KeyError
    slot = queue.loan(2)
    slot.array[:] = 65
    with pytest.raises(ValueError, match="loan is out"):
        queue.send(b"x")
    with pytest.raises(ValueError, match="loan is out"):
        queue.loan(1)
    slot.publish()
    slot.publish()
    with queue.loan(9) as slot:
        slot.give_up()
    assert queue.receive_many() == [b"abc", b"AA"]
    assert queue.try_receive() is None


def test_a_borrowed_message_is_received_when_it_is_released(queue):
    queue.send_many([b"one", b"two"])
    slot = queue.borrow()
    assert bytes(slot.array) == b"one"
    assert len(queue) == 2
    for use in (queue.receive, queue.try_receive, queue.borrow, queue.receive_many):
        with pytest.raises(ValueError, match="borrowed message is out"):
            use()
    slot.release()
    slot.release()
    assert len(queue) == 1
    assert queue.receive() == b"two"


def test_memory_that_somebody_still_looks_at_is_not_given_back(queue):
    queue.send(b"12345678")
    slot = queue.borrow()
    view = slot.array[2:]
    with pytest.raises(BufferError):
        slot.release()
    assert bytes(view) == b"345678"
    del view
    slot.release()
    loan = queue.loan()
    view = loan.array.view(np.uint8)
    with pytest.raises(BufferError):
        loan.publish()
    del view
    loan.publish()
    assert len(queue.receive()) == CAPACITY - 8


def test_what_an_exception_left_out_is_taken_back_by_the_next(queue):
    queue.send(b"12345678")
    with pytest.raises(KeyError), queue.borrow() as slot:
        view = slot.array
        raise KeyError
    with pytest.raises(BufferError):
        queue.receive(0)
    assert bytes(view) == b"12345678"
    del view, slot
    queue.send(b"next")
    assert queue.receive() == b"next"


def test_a_message_is_received_into_memory_of_the_readers_own(queue):
    in_small_pieces(queue)
    room = bytearray(1000)
    for size in (5, 900):
        queue.send(roles.numbered(1, size))
        assert queue.receive_into(room) == size
        assert room[:size] == roles.numbered(1, size)
    for size in (200, 700):
        queue.send(roles.numbered(2, size))
        with pytest.raises(ValueError, match=f"{size} bytes, for 100 is room"):
            queue.receive_into(memoryview(room)[:100])
        assert queue.receive() == roles.numbered(2, size)
    with pytest.raises(TimeoutError):
        queue.receive_into(room, 0)
    with pytest.raises((TypeError, BufferError)):
        queue.receive_into(b"cannot be written to", 0)
    with Spsc(10, dtype=np.int32) as q:
        q.send_many(np.arange(6, dtype=np.int32))
        array = np.zeros(4, np.int32)
        assert [q.receive_into(array), q.receive_into(array)] == [4, 2]
        assert array.tolist() == [4, 5, 2, 3]
        for wrong in (np.zeros(4), np.zeros((2, 2), np.int32), np.zeros(8, np.int32)[::2], bytearray(8)):
            with pytest.raises((ValueError, TypeError)):
                q.receive_into(wrong)


def test_asyncio_receives_without_blocking_and_cancelling_loses_nothing(queue):
    async def main():
        waiting = asyncio.create_task(queue.receive_async())
        other = asyncio.create_task(queue.receive_async())
        await asyncio.sleep(0)
        other.cancel()
        queue.send(b"first")
        assert await waiting == b"first"
        with pytest.raises(asyncio.CancelledError):
            await other
        with pytest.raises(TimeoutError):
            await queue.receive_async(0.01)
        queue.send(b"second")
        assert await queue.receive_async() == b"second"

    asyncio.run(main())


def test_asyncio_iterates_until_the_sender_has_gone(queue, other):
    async def main():
        return [message async for message in queue]

    other.send_many([b"a", b"b"])
    other.close()
    assert asyncio.run(main()) == [b"a", b"b"]


def test_its_descriptor_is_readable_when_something_may_be_there(queue):
    assert not queue.pending()
    assert select.select([queue], [], [], 0) == ([], [], [])
    queue.send(b"x")
    assert select.select([queue], [], [], 5)[0] == [queue]
    assert queue.pending()
    assert queue.receive() == b"x"
    assert not queue.pending()


def test_a_named_ring_is_found_opened_and_removed(a_name):
    with Spsc(4096, name=a_name) as q:
        with pytest.raises(FileExistsError):
            Spsc(name=a_name)
        with pytest.raises(ValueError, match="messages of any length"):
            Spsc.open(a_name, dtype=np.int64)
        with Spsc.open(a_name) as again:
            again.send(b"hello")
            assert q.receive() == b"hello"
            assert again.capacity == 4096
        Spsc.unlink(a_name)
    with pytest.raises(FileNotFoundError):
        Spsc.open(a_name)
    with pytest.raises(FileNotFoundError):
        Spsc.unlink(a_name)


@pytest.mark.parametrize(
    "wrong",
    [{"capacity": 0}, {"capacity": -1}, {"capacity": 1 << 40}, {"dtype": np.dtype([])}, {"capacity": 0, "dtype": "i8"}],
)
def test_a_ring_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError):
        Spsc(**wrong)


@pytest.mark.parametrize("wrong", [{"capacity": 1.5}, {"capacity": "4"}, {"capacity": None}, {"dtype": object}])
def test_a_ring_of_the_wrong_type_is_refused(wrong):
    with pytest.raises(TypeError):
        Spsc(**wrong)


def test_a_message_that_cannot_be_sent_says_why_and_the_ring_stays_usable(queue):
    for wrong, error in ((b"", ValueError), ("text", TypeError), (None, TypeError), (np.zeros(8)[::2], TypeError)):
        with pytest.raises(error):
            queue.send(wrong)
        with pytest.raises(error):
            queue.try_send(wrong)
    with pytest.raises(TypeError):
        queue.send()
    for timeout in (-1, float("nan")):
        with pytest.raises(ValueError):
            queue.receive(timeout)
    queue.send(bytearray(64), timeout=1)
    assert queue.receive(timeout=1) == bytes(64)


def test_a_closed_ring_says_so():
    q = Spsc()
    q.send(b"x")
    send, receive = q.send, q.receive
    q.close()
    q.close()
    for use in (
        lambda: q.send(b"x"), q.receive, q.try_receive, lambda: q.try_send(b"x"), lambda: len(q), q.fileno,
        lambda: q.send_many([b"x"]), q.receive_many, q.borrow, q.loan, lambda: next(iter(q)), q.again,
        lambda: q.receive_into(bytearray(8)), lambda: send(b"x"), receive,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="closed"):
            use()


# --- damage -------------------------------------------------------------------------------------------------

DAMAGE = """
import faulthandler, random, sys
import numpy as np
from labkit.lockfree import Spsc, spsc
from labkit.lockfree.spsc_entry import LARGE, PIECE

faulthandler.dump_traceback_later(150, exit=True)
dice = random.Random(int(sys.argv[1]))
outcomes = {}
nonsense = [0, 1, 7, -1, -8, 1 << 31, 1 << 62, (1 << 63) - 1, -(1 << 63), 4096, 4097, 4096 * 3 + 4, 1 << 60, 2 << 60]
rings = [Spsc(4096), Spsc(100, dtype=np.uint8), Spsc(7, dtype=np.dtype((np.int64, 9)))]
rings[0]._state[[LARGE // 8, PIECE // 8]] = 512, 128
for q in rings:
    q.send(b"x" * 8 if q._item is None else np.zeros(q._item.shape, q._item.base)[()])
    q.receive()
for flip in range(int(sys.argv[2])):
    q = dice.choice(rings)
    items = q._item is not None
    memory = q._segment.memory[: 8192 + 4096]
    memory[4096:] = 0
    words = memory[4096:].view(np.int64)
    start = dice.randrange(0, 50000, 8) if not items else dice.randrange(900) * q._item.itemsize
    words[[spsc.WRITE // 8, spsc.READ // 8, spsc.BEGUN // 8]] = start
    for _ in range(dice.randrange(4)):
        if items:
            q.send_many(np.zeros((dice.randrange(1, 3), *q._item.shape), q._item.base), 0)
        else:
            q.try_send(bytes(dice.randrange(1, 900)))
    for _ in range(dice.randrange(1, 4)):
        chance = dice.random()
        if chance < 0.4:
            words[dice.choice([spsc.WRITE, spsc.READ, spsc.BEGUN]) // 8] = dice.choice(nonsense)
        elif chance < 0.7:
            words[(4096 + ((start + 8 * dice.randrange(20)) & 4088)) // 8] = dice.choice(nonsense)
        else:
            first = dice.choice([128, 2048, 4096, 4224, 8192, 8192 + start % 3900])
            memory[first + dice.randrange(100)] ^= 1 << dice.randrange(8)
    for _ in range(6):
        what = dice.choice(["send", "receive", "many", "len", "borrow", "loan", "into"])
        try:
            if what == "send":
                q.send(bytes(dice.randrange(1, 2000)) if not items else np.zeros(q._item.shape, q._item.base)[()], 0)
            elif what == "receive":
                got = q.receive(0)
                assert items or 0 < len(got) <= 4096
            elif what == "many":
                q.receive_many(9, 0)
            elif what == "len":
                assert 0 <= len(q) <= 4096
            elif what == "borrow":
                with q.borrow(0) as slot:
                    slot.array.sum()
            elif what == "loan":
                with q.loan(dice.randrange(1, 4000), 0) as slot:
                    slot.array[...] = 1
            elif items:
                q.receive_into(np.zeros((3, *q._item.shape), q._item.base), 0)
            else:
                q.receive_into(bytearray(4096), 0)
            outcome = "done"
        except (OSError, EOFError, ValueError) as error:
            assert "out" not in str(error).split(), error
            outcome = type(error).__name__
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
print(outcomes)
"""


def test_ten_thousand_times_damaged_it_gives_errors_or_bytes_and_never_crashes_or_loops():
    command = [sys.executable, "-c", DAMAGE, "1", "10000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "'OSError'" in done.stdout, done.stdout


def test_a_truncated_ring_is_not_opened(a_name):
    with Spsc(4096, name=a_name) as q:
        path = f"/proc/self/fd/{q._segment.fd}"
        size = os.stat(path).st_size
        for left in (0, 100, 4096, 8192, size - 1, size - 4096):
            with open(path, "r+b") as file:
                whole = file.read()
                file.truncate(left)
                with pytest.raises(OSError) as raised:
                    Spsc.open(a_name)
                assert raised.value.errno == errno.EBADMSG
                file.seek(0)
                file.write(whole)
        Spsc.open(a_name).close()
        Spsc.unlink(a_name)


@pytest.mark.parametrize("geometry", [(4096, -1), (8192, 0), (100, 0), (4096, 8), (0, 8), (-1, 0), (1 << 62, 8)])
def test_a_geometry_that_cannot_be_is_refused(geometry, a_name):
    segment = Segment.new(
        "spsc", spsc.LAYOUT, geometry, spsc.DATA + 4096, name=a_name, twice=BODY + spsc.DATA
    )  # fmt: skip
    with pytest.raises(OSError) as raised:
        Spsc.open(a_name, dtype=np.int64 if geometry[1] == 8 else None)
    assert raised.value.errno == errno.EBADMSG
    segment.close()
    Spsc.unlink(a_name)


def test_nobody_can_shrink_the_memory_of_a_ring(queue):
    for size in (0, 4096, 1 << 24):
        with pytest.raises(PermissionError):
            os.ftruncate(queue._segment.fd, size)


# --- what the compiled code does ----------------------------------------------------------------------------

STORE, LOAD = r"store atomic i64 .* monotonic", r"load atomic i64, .* monotonic"
SOON = r".*\n(.*\n){0,40}?.*"
ORDERS = [
    (spsc.publish, 2, r"store atomic i64 .* release", "A, publish"),
    (spsc.readable, 4, r"load atomic i64, .* acquire", "A, readable"),
    (spsc.send_items, 7, r"store atomic i64 .* release", "A, publish items"),
    (spsc.take_items, 7, r"load atomic i64, .* acquire", "A, take items"),
    (spsc.release, 2, r"store atomic i64 .* release", "B, release"),
    (spsc.reserve, 4, r"load atomic i64, .* acquire", "B, reserve"),
    (spsc.take_items, 7, r"store atomic i64 .* release", "B, release items"),
    (spsc.send_items, 7, r"load atomic i64, .* acquire", "B, reserve for items"),
    (spsc.begin, 1, r"store atomic i64 .* release", "C, begin"),
    (spsc.abandon, 1, r"store atomic i64 .* release", "C, abandon"),
    (spsc.is_cut, 5, r"load atomic i64, .* acquire", "C, is_cut"),
    (spsc.leave_copy, 4, f"{STORE}{SOON}fence release{SOON}memcpy", "D, leave_copy"),
    (spsc.send_items, 7, f"{STORE}{SOON}fence release{SOON}memcpy", "D, send_items"),
    (spsc.has_copy, 4, f"memcpy{SOON}fence acquire{SOON}{LOAD}", "D, has_copy"),
    (spsc.take_items, 7, f"load atomic i64, .* acquire{SOON}memcpy{SOON}fence acquire{SOON}{LOAD}", "D, take_items"),
]


def llvm_of(function, arguments: int) -> str:
    function.compile((int64,) * arguments)
    return function.inspect_llvm((int64,) * arguments)  # it may have been compiled for other arguments, too


@pytest.mark.parametrize(("function", "arguments", "pattern", "edge"), ORDERS, ids=[edge for *_, edge in ORDERS])
def test_the_memory_order_of_each_edge_is_in_the_compiled_code(function, arguments, pattern, edge):
    assert re.search(pattern, llvm_of(function, arguments)), edge


def test_nothing_that_is_sent_or_received_costs_a_fence():
    for function, arguments in (
        (spsc.send_message, 5),
        (spsc.send_items, 7),
        (spsc.take_items, 7),
        (spsc.next_message, 3),
    ):
        assert not re.search(r"fence seq_cst|atomicrmw|cmpxchg", llvm_of(function, arguments)), function


@pytest.mark.parametrize(
    ("function", "arguments", "instruction"),
    [
        (spsc.publish, 2, r"\bstlr\b"),
        (spsc.release, 2, r"\bstlr\b"),
        (spsc.readable, 4, r"\bldap?r\b"),
        (spsc.reserve, 4, r"\bldap?r\b"),
        (spsc.send_items, 7, r"\bstlr\b"),
        (spsc.take_items, 7, r"\bldap?r\b"),
        (spsc.abandon, 1, r"\bstlr\b"),
        (spsc.is_cut, 5, r"\bldap?r\b"),
        (spsc.leave_copy, 4, rf"\bstr\b{SOON}dmb\s+ish\b{SOON}memcpy"),
        (spsc.has_copy, 4, rf"memcpy{SOON}dmb\s+ishld{SOON}\bldr\b"),
    ],
)
def test_on_aarch64_the_edges_are_its_acquire_and_release_instructions(function, arguments, instruction):
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    try:
        machine = binding.Target.from_triple(triple).create_target_machine()
    except RuntimeError:
        pytest.skip("this llvmlite knows no AArch64")
    text = re.sub(r"^target (triple|datalayout) .*$", "", llvm_of(function, arguments), flags=re.M)
    text = re.sub(r'"(target-cpu|target-features|tune-cpu)"="[^"]*"', "", text)
    assembly = machine.emit_assembly(binding.parse_assembly(f'target triple = "{triple}"\n{text}'))
    assert re.search(instruction, assembly)


def test_builtins_own_every_reference_they_return_and_no_more(queue):
    in_small_pieces(queue)
    message, large = b"x" * 50, b"y" * 1000

    def counts():
        return [sys.getrefcount(one) for one in (message, large, None, SENT, True)]

    def use(times):
        for _ in range(times):
            queue.send(message)
            queue.try_send(message)
            queue.receive()
            queue.try_receive()
            queue._spsc_receive()  # None
            queue.send_many([message, large, message])
            queue.receive_many()
            queue.receive_many()

    use(100)
    before = counts()
    tracemalloc.start()
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0]
    use(10_000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - memory
    tracemalloc.stop()
    assert all(abs(now - then) < 50 for now, then in zip(counts(), before, strict=True))
    assert grown < 100_000  # a few bytes a call; other threads may have some


def test_builtins_say_what_is_wrong_with_their_arguments(queue):
    for ask in (
        lambda: queue._spsc_send(),
        lambda: queue._spsc_send("text"),
        lambda: queue._spsc_send(None),
        lambda: queue._spsc_receive(1),
        lambda: queue._spsc_receive_many("no"),
        lambda: queue._spsc_spin(1),
        lambda: queue.receive(1, 2),
        lambda: queue.send(b"x", wrong=1),
    ):
        with pytest.raises(TypeError):
            ask()
    with pytest.raises(OverflowError):
        queue._spsc_receive_many(1 << 80)
    with pytest.raises(SystemError):  # Python gives it nothing but lists
        queue._spsc_send_many(5)
    assert queue.send.__name__ == "send"
    assert queue.send.__doc__ == "Send one message."


def test_builtins_say_which_arguments_they_take(queue):
    """What Jupyter shows at Shift-Tab: the same as the methods to which they leave what is rare."""
    for name in ("send", "receive", "try_send", "try_receive"):
        shown, meant = (inspect.signature(getattr(queue, prefix + name)).parameters for prefix in ("", "_"))
        assert [(p.name, p.default) for p in shown.values()] == [(p.name, p.default) for p in meant.values()]


@pytest.mark.parametrize("size", [3000, 20_000], ids=["fits in the ring", "larger than the ring"])
def test_a_large_message_comes_into_memory_bit_by_bit(queue, other, size):
    message, room, came = random.Random(size).randbytes(size), bytearray(size + 1), 0
    thread = threading.Thread(target=in_small_pieces(queue).send, args=(message,))
    thread.start()
    while not came:
        try:
            came = other.receive_into(room, 0)
        except TimeoutError:  # what has come of it is kept, wherever that was
            room[:] = bytes(size + 1)
    thread.join()
    assert (came, room) == (size, message + bytes(1))
    queue.send(b"next")
    assert other.receive() == b"next"


def test_a_batch_goes_on_behind_what_is_no_bytes_object_and_stops_at_what_is_wrong(queue, other):
    wanted = [b"1", bytearray(b"2"), memoryview(b"3"), b"4", np.frombuffer(b"5", np.uint8), b"6"]
    with pytest.raises(TypeError):
        queue.send_many([*wanted, "7", b"8"])
    assert other.receive_many(100) == [b"1", b"2", b"3", b"4", b"5", b"6"]
    with pytest.raises(ValueError, match="empty"):
        queue.send_many([b"1", b"", b"2"])
    assert other.receive_many(100) == [b"1"]


def test_a_message_that_sends_another_while_a_batch_is_sent_comes_behind_it(queue, other):
    class Sends(bytearray):
        def __buffer__(self, flags):
            queue.send(b"sent by 2")
            return memoryview(b"2")

    if sys.version_info < (3, 12):
        pytest.skip("Python code gives no buffer before 3.12 (PEP 688)")
    queue.send_many([b"1", Sends(), b"3"])
    assert other.receive_many(100) == [b"1", b"sent by 2", b"2", b"3"]


def test_a_batch_is_received_whole_although_a_part_of_it_was_seen_before(queue, other):
    queue.send_many([b"1", b"2"])
    assert other.receive() == b"1"
    queue.send_many([b"3"] * 50)
    assert other.receive_many(100) == [b"2", *[b"3"] * 50]


def test_an_exported_buffer_is_released_again(queue):
    message = bytearray(b"12345678")
    queue.send(message)
    message.extend(b"9")  # BufferError while somebody holds it
    queue._state[LARGE // 8] = 4
    thread = threading.Thread(target=queue.send, args=(message,))
    thread.start()
    assert [queue.receive(), queue.receive()] == [b"12345678", message]
    thread.join()
    message.extend(b"0")


@njit
def _move(there, back, count):
    total = 0
    for n in range(count):
        there.send(n)
        total += back.receive()
    return total


@njit(nogil=True)
def _return(there, back, count):
    for _ in range(count):
        back.send(there.receive())


def test_compiled_loops_of_two_threads_take_turns():
    with Spsc(4, dtype=np.int64) as there, Spsc(4, dtype=np.int64) as back:
        _move(there, back, 0), _return(there, back, 0)  # compiled here: no timeout runs while the other is compiled
        thread = threading.Thread(target=_return, args=(there, back, 1000))
        thread.start()
        assert _move(there, back, 1000) == sum(range(1000))
        thread.join()


def test_an_edited_source_makes_another_key_of_the_compiled_code(tmp_path):
    shutil.copytree(ROOT / "labkit", tmp_path / "labkit", ignore=shutil.ignore_patterns("__pycache__"))

    def key():
        code = "from labkit.lockfree.entry import SOURCES; print(SOURCES)"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True).stdout

    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    before = key()
    assert len(before) > 16
    assert key() == before
    for edited in ("atomics.py", "spsc.py"):
        with (tmp_path / "labkit" / "lockfree" / edited).open("a") as file:
            file.write("# edited\n")
        assert key() not in ("", before)
        before = key()


def test_traces_compiled_code_has_another_key_when_its_own_source_is_edited():
    """numba keys by a function's file; what `record` does is in the same file as what is cached."""
    from labkit import trace_entry

    for name in ("record", "record_sent", "record_bare"):
        function = getattr(trace_entry, name)
        assert Path(function.py_func.__code__.co_filename) == Path(trace_entry.__file__)
