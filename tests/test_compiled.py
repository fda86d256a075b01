"""Queues in the reader's own @njit functions."""

from __future__ import annotations

import gc
import signal
import threading
import time
import tracemalloc

import numba
import numpy as np
import pytest
import roles
from compiled_roles import count_up, counts_up, send_range
from numba import njit

from labkit import launch
from labkit.channels.base import Closed
from labkit.lockfree import Broadcast, Missed, Mpmc, Spsc

pytestmark = pytest.mark.every_python

QUEUES = [Broadcast, Mpmc, Spsc]
ROW = np.dtype((np.float32, (2, 3)))
"""Seconds of compiling go into each combination of a queue, a dtype and a function above: tests share what they can.
How an item gets from Numba to a queue depends on its dtype alone, so that one queue shows each; how a queue moves it
depends on its size: every queue has items of 1, 8 and 24 bytes."""


@pytest.fixture(params=QUEUES, ids=lambda q: q.__name__)
def make(request):
    made = []

    def make(*args, **options):
        made.append(request.param(*args, **options))
        return made[-1]

    yield make
    for q in made:
        q.close()


@njit
def receive_within(q, timeout):
    return q.receive(timeout)


def receive(q, timeout=60.0):
    """With and without a timeout the same compiled function: to Numba a default is another type."""
    return receive_within(q, timeout)


@njit
def receive_for_ever(q):
    return q.receive(None)


@njit(nogil=True)
def receive_without_gil(q):
    return q.receive()


@njit
def try_both(q, item):
    return q.try_send(item), q.try_receive(), q.try_receive()


@njit
def send(q, item):
    q.send(item)


@njit
def send_many(q, items):
    q.send_many(items)


@njit
def receive_many(q, most):
    return q.receive_many(most)


def test_python_and_compiled_code_take_turns(make):
    q = make(64, dtype=np.int64)
    q.send(1)
    send(q, 2)
    assert q.receive() == 1
    assert receive(q) == 2
    send_many(q, np.arange(5))
    assert receive(q) == 0
    assert q.receive_many(2).tolist() == [1, 2]
    assert receive_many(q, 10).tolist() == [3, 4]
    assert try_both(q, 7) == (True, (True, 7), (False, 0))


@pytest.mark.parametrize(
    ("make", "dtype"),
    [(Broadcast, "u1"), (Mpmc, "u1"), (Spsc, "u1"), (Broadcast, "M8[s]"), (Spsc, "c16")],
    ids=lambda value: getattr(value, "__name__", value),
    indirect=["make"],
)
def test_numbers_of_every_kind_pass(make, dtype):
    q = make(16, dtype=dtype)
    items = np.array([0, 1, 1], "i8").astype(dtype)
    send_many(q, items)
    assert [receive(q) for _ in range(3)] == items.tolist()
    send(q, items[1])
    assert q.receive() == items[1]


def test_records_pass():
    record = np.dtype([("x", "f8"), ("n", "i4")])
    with Mpmc(16, dtype=record) as q:
        send(q, np.array([(1.5, 3)], record)[0])
        assert q.receive()["n"] == 3
        q.send((2.5, 4))
        assert receive(q)["x"] == 2.5


def test_arrays_pass():
    with Broadcast(16, dtype=ROW) as q:
        send(q, np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2])
        assert receive(q).tolist() == [[0, 2, 4], [6, 8, 10]]
        send_many(q, np.ones((3, 2, 3), np.float32))
        assert receive_many(q, 9).shape == (3, 2, 3)


def test_what_is_wrong_is_said_when_it_is_compiled_or_when_it_runs(make):
    q = make(16, dtype=np.int64)
    with pytest.raises(numba.TypingError, match="dtype int64"):
        send_many(q, np.zeros(3))
    with pytest.raises(numba.TypingError):
        send(q, "text")
    for timeout in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            receive(q, timeout)
    for timeout in (0.0, 0.05):
        with pytest.raises(TimeoutError):
            receive(q, timeout)
    with pytest.raises(ValueError, match="at least 1"):
        receive_many(q, 0)
    rows = make(16, dtype=ROW)
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        send(rows, np.zeros((3, 2), np.float32))
    q.close()
    with pytest.raises(ValueError, match="closed"):
        receive(q)


def test_a_queue_of_bytes_stays_in_python():
    with Broadcast(4096) as q, pytest.raises(TypeError, match="dtype"):
        receive(q)


def test_compiled_processes_talk_to_each_other(make):
    q = make(1 << 16, dtype=np.int64)
    job = launch(counts_up, q)
    send_range(q, 0, 50_000)
    send(q, -1)
    assert job.wait() == 50_000


def test_it_sleeps_and_is_woken_with_and_without_the_gil(make):
    for wait in (receive, receive_without_gil):
        q = make(16, dtype=np.int64)
        wait_compiled(wait, make)
        got = []
        thread = threading.Thread(target=lambda q=q, wait=wait, got=got: got.append(wait(q)))
        thread.start()
        assert roles.eventually(lambda q=q: q._segment._words[16] & 1)  # it sleeps, and this thread runs
        q.send(5)
        thread.join()
        assert got == [5]


def wait_compiled(wait, make):
    q = make(16, dtype=np.int64)
    q.send(1)
    wait(q)


def test_waiting_takes_no_processor_time_and_ctrl_c_ends_it(make):
    q = make(16, dtype=np.int64)
    wait_compiled(receive_for_ever, make)
    with pytest.raises(TimeoutError):
        receive(q, 0.0)  # compiled
    before = time.process_time()
    with pytest.raises(TimeoutError):
        receive(q, 0.7)
    assert time.process_time() - before < 0.1
    timer = roles.interrupt_soon()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        receive_for_ever(q)
    timer.join()


def test_what_a_signals_handler_raises_comes_out_and_what_it_does_not_does_not_matter(make):
    q = make(16, dtype=np.int64)
    wait_compiled(receive, make)
    beats = []

    def handle(number, frame):
        beats.append(number)
        if len(beats) == 4:
            raise LookupError("from the handler")

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
    try:
        with pytest.raises(LookupError, match="from the handler"):
            receive(q, 20.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(beats) == 4


def test_closed_is_told_when_the_sender_has_gone(make):
    q = make(1024, dtype=np.int64)
    launch(roles.send_all, q, list(range(100))).wait()
    with pytest.raises(Closed):
        count_up(q, 30.0)


def test_sending_and_receiving_leave_no_memory_behind(make):
    q = make(64, dtype=ROW)
    row = np.zeros((2, 3), np.float32)

    def use(times):
        for _ in range(times):
            send(q, row)
            receive(q)

    use(10)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    numba.core.runtime._nrt_python.memsys_enable_stats()
    resident = numba.core.runtime.rtsys.get_allocation_stats()
    use(2000)
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    after = numba.core.runtime.rtsys.get_allocation_stats()
    numba.core.runtime._nrt_python.memsys_disable_stats()
    assert grown < 100_000
    assert (after.alloc - resident.alloc) - (after.free - resident.free) < 10


def test_missed_comes_out_of_compiled_code_with_its_count():
    with Broadcast(64, dtype=np.int64) as q:
        send_range(q, 0, 1000)
        with pytest.raises(Missed) as caught:
            receive(q)
        assert receive(q) == caught.value.count == q.missed


def test_a_writer_in_compiled_code_is_refused_while_there_is_another(a_name):
    with Broadcast(64, dtype=np.int64, name=a_name) as q, Broadcast.open(a_name, dtype=np.int64) as other:
        send(q, 1)
        with pytest.raises(ValueError, match="another living process"):
            send(other, 1)
        with q.loan() as slot:
            slot.array[()] = 5
            with pytest.raises(ValueError, match="loan"):
                send(q, 1)
        slot = q.borrow()
        with pytest.raises(ValueError, match="borrowed"):
            receive(q)
        slot.release()
        q.close()
        send(other, 6)
        assert [receive(other) for _ in range(3)] == [1, 5, 6]
    Broadcast.unlink(a_name)
