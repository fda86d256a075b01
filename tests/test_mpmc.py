"""The queue for many senders and receivers: its algorithm, the class, what a kill leaves, damage, what was compiled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import mmap
import multiprocessing
import os
import random
import select
import signal
import sys
import threading
import time
from collections import Counter, deque

import numpy as np
import pytest
import roles
import stepper
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpmc_roles import Unpacked, receive_all, receive_one, send_many_of, send_one
from numba import njit

from labkit import RemoteError, launch
from labkit.channels.base import Closed
from labkit.lockfree import Broadcast, Mpmc, Spsc, mpmc
from labkit.lockfree.atomics import load_relaxed, store_relaxed
from labkit.lockfree.mpmc_entry import SENT
from labkit.lockfree.segment import Segment, _own

pytestmark = pytest.mark.every_python

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


# --- what the dead leave ------------------------------------------------------------------------------------


@pytest.fixture
def queue():
    with Mpmc(8, 64) as q:
        yield q


@pytest.fixture
def other(queue):
    """The same queue as another participant has it."""
    with _attached(queue) as q:
        yield q


def _attached(queue: Mpmc) -> Mpmc:
    segment = queue._segment
    again = Segment(_own(segment.fd), tuple(os.dup(fd) for fd in segment.bell_fds), "mpmc", mpmc.LAYOUT)
    q = Mpmc.__new__(Mpmc)
    q.closed = True
    q._begin(again, queue._item)
    return q


def _die(queue: Mpmc) -> None:
    """As kill -9 would leave it: locks are gone, and nothing else has been done."""
    queue.closed = True
    me = queue._segment.me
    queue._segment.close()
    queue._segment.memory[2048:4096].view(np.int64)[me] = 99999


def test_what_a_dead_sender_had_claimed_is_passed_over(queue, other):
    other.send(b"before")
    loan = other.loan()
    queue.send(b"after")
    assert queue.receive() == b"before"
    assert queue.try_receive() is None  # somebody is at it
    loan._done = True
    _die(other)
    assert queue.receive(5) == b"after"
    assert len(queue) == 0


def test_what_a_dead_receiver_had_not_released_is_received_by_another_once(queue, other):
    for message in (b"one", b"two"):
        queue.send(message)
    slot = other.borrow()
    assert bytes(slot.array) == b"one"
    assert queue.receive() == b"two"
    slot._done = True
    _die(other)
    with queue.borrow(5) as again:
        assert bytes(again.array) == b"one"
        assert again.times == 1
    queue._looked = -1.0
    assert queue.try_receive() is None


def test_whoever_gets_the_number_of_a_dead_participant_first_clears_what_it_had(queue, other):
    queue.send(b"one")
    slot, loan = other.borrow(), other.loan()
    number = other._segment.me
    slot._done = loan._done = True
    _die(other)
    with _attached(queue) as newcomer:
        newcomer.send(b"two")
        assert newcomer._segment.me == number
        assert newcomer.receive(0) == b"two"  # the loan is poison, not the newcomer's
        assert newcomer.receive(0) == b"one"


def test_a_sender_that_is_stuck_behind_a_dead_receivers_slot_goes_on_when_somebody_has_received_it(queue, other):
    queue.send(b"x")
    queue.receive()
    for number in range(8):
        queue.send(b"%d" % number)
    slot = other.borrow()
    slot._done = True
    _die(other)
    assert not queue.try_send(b"x")
    got = [queue.receive(5) for _ in range(8)]
    assert sorted(got) == [b"%d" % number for number in range(8)]
    assert queue.try_send(b"x")


def test_iteration_ends_when_the_last_sender_has_died_and_everything_is_received(queue, other):
    other.send_many([b"a", b"b"])
    _die(other)
    assert list(queue) == [b"a", b"b"]


def test_a_full_queue_whose_receivers_have_gone_is_closed_to_its_senders(queue, other):
    other.send(b"x")
    assert other.receive() == b"x"
    other.close()
    queue.send_many([b"y"] * 8)
    with pytest.raises(Closed):
        queue.send(b"z", 5)


def test_a_queue_that_nobody_receives_from_is_merely_full(queue):
    queue.send_many([b"y"] * 8)
    with pytest.raises(TimeoutError, match="stayed full"):
        queue.send(b"z", 0.05)
    assert not queue.try_send(b"z")


# --- who still may send -------------------------------------------------------------------------------------


def _let_go_on(path) -> None:
    with open(path, "wb") as fifo:
        fifo.write(b"!")


@pytest.fixture
def gate(tmp_path):
    os.mkfifo(tmp_path / "gate")
    return tmp_path / "gate"


def test_a_process_that_has_not_sent_yet_keeps_the_queue_open(queue, gate):
    late = launch(send_one, queue, b"late", gate)
    launch(send_one, queue, b"early").wait()
    assert queue.receive() == b"early"
    assert queue.try_receive() is None  # the only one who ever sent has gone
    _let_go_on(gate)
    assert list(queue) == [b"late"]
    late.wait()


def test_a_process_on_its_way_keeps_the_queue_open(queue, gate):
    late = launch(lambda _, q: q.send(b"late"), Unpacked(gate), queue)
    launch(send_one, queue, b"early").wait()
    assert queue.receive() == b"early"
    assert queue.try_receive() is None  # the other has not even opened the queue
    _let_go_on(gate)
    assert list(queue) == [b"late"]
    late.wait()


@pytest.mark.parametrize("where", ["on its way", "before it sends"])
def test_who_is_killed_before_it_has_sent_keeps_nothing_open(queue, gate, where):
    if where == "on its way":
        late = launch(lambda _, q: q.send(b"late"), Unpacked(gate), queue)
    else:
        late = launch(send_one, queue, b"late", gate)
    launch(send_one, queue, b"early").wait()
    assert queue.receive() == b"early"
    assert queue.try_receive() is None
    late.kill()
    assert list(queue) == []
    with pytest.raises(RemoteError):
        late.wait()


def test_a_child_made_by_fork_may_send_and_who_has_ended_may_not(queue, gate):
    late = forked(send_one, queue, b"late", gate)
    early = forked(send_one, queue, b"early")
    assert os.waitpid(early, 0)[1] == 0
    assert queue.receive() == b"early"
    assert queue.try_receive() is None
    _let_go_on(gate)
    assert list(queue) == [b"late"]
    assert os.waitpid(late, 0)[1] == 0


def test_who_has_only_handed_the_queue_on_closes_it_and_is_told_so(queue):
    def receive_both(q):
        got = q.receive()
        try:
            q.receive(0.2)
        except TimeoutError as error:
            return got, str(error)

    launch(send_one, queue, b"one").wait()
    got, text = launch(receive_both, queue).wait()
    assert got == b"one"
    assert f"process {os.getpid()} has it open and may still send" in text
    rest = launch(list, queue)
    queue.close()
    assert rest.wait() == []


def test_receivers_that_came_first_wait_for_senders_that_are_launched_one_after_the_other():
    with Mpmc(8, 64) as q:
        job = launch(list, q)
        for message in (b"one", b"two", b"three"):
            launch(send_one, q, message).wait()
    assert job.wait() == [b"one", b"two", b"three"]


def test_a_process_that_has_not_received_yet_keeps_the_queue_open_to_senders(queue, gate):
    late = launch(receive_one, queue, gate)
    queue.send(b"one")
    assert launch(receive_one, queue).wait() == b"one"
    queue.send_many([b"y"] * 8)
    assert not queue.try_send(b"z")  # full, and not closed: the only one who ever received has gone
    _let_go_on(gate)
    assert late.wait() == b"y"
    queue.send(b"z")
    with pytest.raises(Closed):
        queue.send(b"nobody is left")


def test_launching_leaves_no_descriptor_and_no_number_behind(queue):
    def descriptors():
        return len(os.listdir("/proc/self/fd"))

    launch(send_one, queue, b"x").wait()
    before = descriptors()
    for _ in range(5):
        launch(send_one, queue, b"x").wait()
        queue.receive()
    assert roles.eventually(lambda: descriptors() == before)
    assert max(queue._segment.people()) <= 4


# --- between processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("senders", "receivers", "capacity"), [(2, 2, 16), (4, 4, 3), (1, 3, 1), (3, 1, 1024)])
def test_each_message_comes_to_one_of_many_receivers_in_its_senders_order(senders, receivers, capacity):
    count = 3000
    with Mpmc(capacity, 64) as q:
        sending = [launch(send_many_of, q, who, count) for who in range(senders)]
        receiving = [launch(receive_all, q) for _ in range(receivers)]
    got = [job.wait() for job in receiving]
    for job in sending:
        job.wait()
    assert Counter(pair for one in got for pair in one) == Counter((w, n) for w in range(senders) for n in range(count))
    for one in got:
        for who in range(senders):
            numbers = [number for w, number in one if w == who]
            assert numbers == sorted(numbers)


def forked(function, *arguments) -> int:
    """A process that has everything of this one, for tests of a kill: forkserver's children take longer to start."""
    return stepper.forked(lambda: function(*arguments))


def _shared(words: int) -> np.ndarray:
    return np.frombuffer(mmap.mmap(-1, words * 8), np.int64)


def _send_for_ever(q: Mpmc, who: int, sent: np.ndarray) -> None:
    """`sent` says how far we are: [begun, done]."""
    os.nice(10)  # whoever kills would wait for its turn behind all that never rest
    number = int(sent[0])  # of the last life: what was begun may have been sent, or not
    while True:
        number += 1
        sent[0] = number
        if number % 3 == 0:
            with q.loan(24) as slot:
                slot.array.view(np.int64)[:] = who, number, who ^ number
        else:
            q.send(np.array([who, number, who ^ number]), 60)
        sent[1] = number


def _receive_for_ever(q: Mpmc, log: np.ndarray) -> None:
    """What came, noted before it is released: log[0] says how many words."""
    os.nice(10)
    while True:
        with q.borrow(60) as slot:
            words = slot.array.view(np.int64)
            at = int(log[0])
            log[at + 1 : at + 3] = words[0], words[1]
            assert words[2] == words[0] ^ words[1]
            log[0] = at + 2
            del words


def test_hundreds_of_kills_of_senders_and_receivers_lose_and_invent_nothing():
    kills, senders, receivers = 200, 2, 2
    chance = random.Random(4)
    sent = _shared(64).reshape(-1, 16)
    logs = [_shared(1 << 22) for _ in range(receivers)]
    with Mpmc(7, 24) as q:
        q.send(b"x" * 24)  # this process takes part, so that for nobody the other side has gone
        q.receive()
        jobs = {
            **{("sender", n): (_send_for_ever, q, n, sent[n]) for n in range(senders)},
            **{("receiver", n): (_receive_for_ever, q, logs[n]) for n in range(receivers)},
        }
        pids = {job: forked(*what) for job, what in jobs.items()}
        try:
            killed = Counter()
            for _ in range(kills):
                job = chance.choice(list(jobs))
                progress = sent[job[1]] if job[0] == "sender" else logs[job[1]]
                start, end = int(progress[0]), time.monotonic() + 60
                while progress[0] - start < 4:
                    assert time.monotonic() < end, f"nothing moves after {killed}"
                    time.sleep(0.0001)
                for _ in range(chance.randrange(2000)):
                    pass
                os.kill(pids[job], signal.SIGKILL)
                os.waitpid(pids.pop(job), 0)
                killed[job[0]] += 1
                pids[job] = forked(*jobs[job])
        finally:
            for pid in pids.values():
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        rest = [np.frombuffer(message, np.int64)[:2] for message in _drained(q)]
    got = Counter()
    for log in logs:
        got.update(map(tuple, log[1 : 1 + log[0]].reshape(-1, 2).tolist()))
    got.update(tuple(int(word) for word in words) for words in rest)
    for who in range(senders):
        numbers = {number for w, number in got if w == who}
        assert numbers <= set(range(1, int(sent[who][0]) + 1))
        missing = int(sent[who][0]) - len(numbers)
        assert missing <= killed["sender"] + senders  # begun, and never published: at most one a kill
    again = sum(times - 1 for times in got.values())
    assert again <= killed["receiver"] + receivers  # noted, and killed before the release: at most one a kill


def _drained(q: Mpmc) -> list[bytes]:
    messages = []
    with contextlib.suppress(TimeoutError):
        while True:
            q._looked = -1.0  # look for what the dead have left each time, not ten times a second
            messages.append(q.receive(0))
    return messages


def test_a_stopped_process_is_not_taken_for_dead():
    with Mpmc(4, 64) as q:
        q.send(b"stopped with it")
        ready = _shared(1)

        def work():
            with q.borrow() as slot:
                ready[0] = 1
                os.kill(os.getpid(), signal.SIGSTOP)
                ready[0] = 2 + (bytes(slot.array) == b"stopped with it")

        pid = forked(work)
        try:
            assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
            q.send_many([b"a", b"b", b"c"])
            assert [q.receive() for _ in range(3)] == [b"a", b"b", b"c"]
            with pytest.raises(TimeoutError):
                q.receive(0.25)
            assert not q.try_send(b"d")  # the slot is the stopped process's
        finally:
            os.kill(pid, signal.SIGCONT)
            os.waitpid(pid, 0)
        assert ready[0] == 3
        assert q.try_send(b"d")
        assert q.receive() == b"d"


def test_a_child_made_by_fork_takes_part_under_a_number_of_its_own(queue):
    queue.send(b"from the parent")

    def child():
        assert queue.receive() == b"from the parent"
        queue.send(b"from the child")
        queue.close()

    pid = forked(child)
    assert os.waitpid(pid, 0)[1] == 0
    assert queue.receive() == b"from the child"


@pytest.mark.leaves("descriptors", reason="multiprocessing's tracker and forkserver live as long as the session")
@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_it_travels_to_the_processes_of_multiprocessing(method):
    context = multiprocessing.get_context(method)
    with Mpmc(8, 64) as q:
        process = context.Process(target=send_many_of, args=(q, 7, 3))
        process.start()
        try:
            assert receive_all(q) == [(7, 0), (7, 1), (7, 2)]
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


# --- the class ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", [np.int64(-5), np.float32(1.5), np.complex128(1 + 2j), np.bool_(True), np.uint8(7)])
def test_items_are_numpy_scalars(item):
    with Mpmc(4, dtype=item.dtype) as q:
        q.send(item)
        q.send(item.item())
        got = [q.receive(), q.try_receive()]
        assert got == [item, item]
        assert got[0].dtype == item.dtype
        assert q.try_receive() is None


def test_items_are_records_and_arrays():
    point = np.dtype([("x", "f8"), ("name", "S3")])
    with Mpmc(3, dtype=point) as q:
        q.send(np.array((1.5, b"abc"), point)[()])
        assert q.receive()["name"] == b"abc"
    with Mpmc(3, dtype=np.dtype((np.float64, (20, 30)))) as q:
        picture = np.random.default_rng(1).random((20, 30))
        q.send(picture)
        with q.borrow() as slot:
            assert np.array_equal(slot.array, picture)
            assert not slot.array.flags.writeable
            assert slot.array.ctypes.data % 64 == 0
        q.send_many(np.array([picture, picture + 1]))
        assert np.array_equal(q.receive_many(), [picture, picture + 1])


@pytest.mark.parametrize("item", [np.zeros(2), np.float32(1), "text", np.zeros((2, 2), np.int64)])
def test_items_of_another_dtype_or_shape_are_refused(item):
    with Mpmc(3, dtype=np.int64) as q:
        with pytest.raises(ValueError):
            q.send(item)
        with pytest.raises(ValueError):
            q.send_many(item if isinstance(item, np.ndarray) and item.ndim > 1 else [[item]])
        assert len(q) == 0


@pytest.mark.parametrize("queue", [Spsc, Mpmc, Broadcast])
def test_what_is_no_item_is_refused_with_what_the_queue_takes(queue):
    with queue(1024, dtype=np.float64) as q:
        for wrong in (None, "12", "text", b"12", {"n": 1}, object(), 1j):
            with pytest.raises(ValueError, match="cannot be sent here, this queue takes float64"):
                q.send(wrong)
            with pytest.raises(ValueError, match="this queue takes several items of float64"):
                q.send_many(wrong)
        with pytest.raises(ValueError, match=r"shape \(any number\), not \(\)"):
            q.send_many(5)
        with pytest.raises(ValueError, match="several items to send_many"):
            q.send([1, 2])
        q.send_many(n / 2 for n in range(3))
        assert q.receive_many().tolist() == [0, 0.5, 1]
    with queue(1024, dtype=[("n", np.int32), ("x", np.float64)]) as q:
        for wrong in ("12", {"n": 1, "x": 2.0}, (1, "text"), (1 << 40, 2.0)):
            with pytest.raises(ValueError, match="this queue takes .*, as a tuple"):
                q.send(wrong)
        with pytest.raises(ValueError, match="give a record as a tuple"):
            q.send([1, 2.0])
        q.send((1, 2.0))
        assert q.receive().tolist() == (1, 2.0)
    with queue(1024, dtype="M8[D]") as q:
        q.send("2026-11-28")
        assert str(q.receive()) == "2026-11-28"


def test_batches_larger_than_the_queue_go_through_it(queue):
    thread = threading.Thread(target=queue.send_many, args=([b"%d" % n for n in range(100)],))
    thread.start()
    got = []
    while len(got) < 100:
        got += queue.receive_many(7)
    thread.join()
    assert got == [b"%d" % n for n in range(100)]


def test_a_wrong_message_in_a_batch_is_told_and_what_is_before_it_is_sent(queue):
    for wrong in (b"", bytes(65), "text", 5):
        with pytest.raises((ValueError, TypeError)):
            queue.send_many([b"a", memoryview(b"b"), wrong, b"c"])
        assert queue.receive_many() == [b"a", b"b"]


def test_a_loan_is_published_at_its_end_and_given_up_by_an_exception(queue):
    with queue.loan(3) as slot:
        slot.array[:] = list(b"abc")
    with pytest.raises(KeyError), queue.loan() as slot:
        raise KeyError
    slot = queue.loan(2)
    slot.array[:] = 65
    slot.publish()
    slot.publish()
    with queue.loan() as slot:
        slot.give_up()
    assert queue.receive_many() == [b"abc", b"AA"]
    assert queue.try_receive() is None


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
    view = loan.array.view(np.int64)
    with pytest.raises(BufferError):
        loan.publish()
    del view
    loan.publish()
    assert len(queue.receive()) == 64


def test_what_was_borrowed_may_be_handed_back(queue):
    queue.send(b"again")
    slot = queue.borrow()
    slot.hand_back()
    queue._looked = -1.0
    assert queue.receive() == b"again"


def test_closing_gives_others_what_was_borrowed(queue, other):
    queue.send(b"message")
    slot = other.borrow()
    view = slot.array
    other.close()
    assert bytes(view) == b"message"
    assert queue.receive(5) == b"message"


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


def test_its_descriptor_is_readable_when_something_may_be_there(queue):
    assert not queue.pending()
    assert select.select([queue], [], [], 0) == ([], [], [])
    queue.send(b"x")
    assert select.select([queue], [], [], 5)[0] == [queue]
    assert queue.pending()
    assert queue.receive() == b"x"
    assert not queue.pending()


def test_who_polls_is_not_told_again_and_again_of_what_others_have_received(queue):
    hints = queue._segment.memory[4096:].view(np.int64)
    for message in (b"a", b"b", b"c"):
        queue.send(message)
        queue.receive()
    hints[mpmc.READ // 8] = 0  # whoever received them was killed before it told how far it had come
    assert not queue.pending()
    queue.send(b"d")
    assert queue.pending()
    assert queue.receive() == b"d"


def test_a_named_queue_is_found_opened_and_removed():
    name = f"mpmc-{os.getpid()}"
    with Mpmc(4, 32, name=name) as q:
        with pytest.raises(FileExistsError):
            Mpmc(4, 32, name=name)
        with pytest.raises(ValueError, match="messages of up to 32 bytes"):
            Mpmc.open(name, dtype=np.int64)
        with Mpmc.open(name) as again:
            again.send(b"hello")
            assert q.receive() == b"hello"
            assert again.capacity == 4
        Mpmc.unlink(name)
    with pytest.raises(FileNotFoundError):
        Mpmc.open(name)
    with pytest.raises(FileNotFoundError):
        Mpmc.unlink(name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity": 1 << 30, "message_bytes": 1 << 30}, {"message_bytes": 0}, {"message_bytes": -5},
        {"dtype": np.dtype([])},
    ],
)  # fmt: skip
def test_a_queue_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError):
        Mpmc(**wrong)


def test_a_size_that_is_no_number_is_refused():
    with pytest.raises(TypeError):
        Mpmc(8, message_bytes=None)


def test_a_message_that_cannot_be_sent_says_why_and_the_queue_stays_usable(queue):
    for wrong, error in ((b"", ValueError), (bytes(65), ValueError), ("text", TypeError), (None, TypeError)):
        with pytest.raises(error):
            queue.send(wrong)
        with pytest.raises(error):
            queue.try_send(wrong)
    with pytest.raises(TypeError):
        queue.send()
    for timeout in (-1, float("nan")):
        with pytest.raises(ValueError):
            queue.receive(timeout)
    queue.send(bytes(64), timeout=1)
    assert queue.receive(timeout=1) == bytes(64)


# --- in the reader's own compiled code ----------------------------------------------------------------------


@njit(nogil=True)
def _send_numbers(q, first, count):
    for number in range(first, first + count):
        q.send(number)


@njit(nogil=True)
def _sum_of(q, count):
    total = 0
    for _ in range(count):
        total += q.receive()
    return total


def test_compiled_loops_send_and_receive_with_the_same_names():
    count, sums = 20_000, []
    with Mpmc(16, dtype=np.int64) as q:
        _send_numbers(q, 0, 0), _sum_of(q, 0)  # compiled here: nobody's timeout runs while the other is compiled
        sending = [threading.Thread(target=_send_numbers, args=(q, n * count, count)) for n in range(2)]
        receiving = [threading.Thread(target=lambda: sums.append(_sum_of(q, count))) for _ in range(2)]
        for thread in sending + receiving:
            thread.start()
        for thread in sending + receiving:
            thread.join(60)
    assert sum(sums) == 2 * count * (2 * count - 1) // 2


def test_compiled_code_finds_what_the_dead_have_left():
    @njit
    def receive(q):
        return q.receive(5.0)

    with Mpmc(4, dtype=np.int64) as q, _attached(q) as other:
        q.send(1)
        slot = other.borrow()
        slot._done = True
        _die(other)
        assert receive(q) == 1


# --- damage -------------------------------------------------------------------------------------------------


def test_a_hint_that_is_ahead_of_the_truth_is_found_out_by_who_waits(queue):
    words = queue._segment.memory[4096:].view(np.int64)
    queue.send(b"x")
    queue.receive()
    for hint in (mpmc.WRITE, mpmc.READ):
        was = int(words[hint // 8])
        words[hint // 8] = was + 1
        queue._looked = -1.0
        with pytest.raises(OSError) as raised:
            queue.receive(0)
        assert raised.value.errno == errno.EBADMSG
        words[hint // 8] = was


# --- what was compiled --------------------------------------------------------------------------------------


def test_builtins_say_which_arguments_they_take(queue):
    """What Jupyter shows at Shift-Tab: the same as the methods to which they leave what is rare."""
    for name in ("send", "receive", "try_send", "try_receive"):
        shown, meant = (inspect.signature(getattr(queue, prefix + name)).parameters for prefix in ("", "_"))
        assert [(p.name, p.default) for p in shown.values()] == [(p.name, p.default) for p in meant.values()]


def test_builtins_own_every_reference_they_return_and_no_more(queue):
    message = b"x" * 50

    def counts():
        return sys.getrefcount(message), sys.getrefcount(None), sys.getrefcount(SENT), sys.getrefcount(True)

    def use(times):
        for _ in range(times):
            queue.send(message)
            queue.try_send(message)
            queue.receive()
            queue.try_receive()
            queue._mpmc_receive()  # None
            queue.send_many([message, message])
            queue.receive_many()

    use(100)
    before = counts()
    use(10_000)
    assert all(abs(now - then) < 50 for now, then in zip(counts(), before, strict=True))
