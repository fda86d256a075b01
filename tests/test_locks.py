"""Traced locks: who held and awaited what is recorded in every process, and a deadlock has a name."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import roles

from labkit import RemoteError, Trace, launch
from labkit.events import EVENT, Action
from labkit.locks import HELD, History, LockInfo, most_at_once
from labkit.sync import PosixSemaphore, SysvSemaphores


@pytest.fixture
def trace():
    with Trace() as trace:
        yield trace


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)
    return found


def actions(trace) -> list[Action]:
    return [Action(number) for number in trace.events()["action"]]


# --- recording -----------------------------------------------------------------------------------------------


def test_every_call_is_recorded_and_the_semaphore_works_as_before(trace):
    with trace.lock(PosixSemaphore(1), "mutex") as mutex:
        assert mutex.value == 0
        with pytest.raises(TimeoutError):
            mutex.acquire(timeout=0)
    assert mutex.value == 1 and mutex.name is None
    mutex.close()
    assert actions(trace) == [
        *(Action.LOCK_OPENED, Action.LOCK_WAITS, Action.LOCK_ACQUIRED),
        *(Action.LOCK_WAITS, Action.LOCK_GAVE_UP, Action.LOCK_RELEASED, Action.LOCK_CLOSED),
    ]
    assert len(trace.messages()) == 0


def test_several_processes_share_a_lock_and_each_records(trace):
    mutex = trace.lock(PosixSemaphore(1), "mutex")
    running = [launch(roles.take_often, mutex, 200, name=f"worker {n}") for n in range(3)]
    for job in running:
        job.wait()
    (row,) = trace.locks()
    assert (row.acquired, row.gave_up, row.most_at_once, row.held_by, row.waited_for_by) == (600, 0, 1, (), ())
    history = trace._history()
    assert {pid for pid, _ in history.actors} == {job.pid for job in running}
    assert sorted(history.names.values()) == ["worker 0", "worker 1", "worker 2"]
    assert trace.lost == 0
    mutex.acquire(timeout=0)  # still ours as well
    mutex.close()


def test_how_many_are_inside_at_once_is_known(trace):
    places = trace.lock(PosixSemaphore(2), "places")
    with places, places:  # two for certain; how often the others meet is up to the scheduler
        running = [launch(roles.take_often, places, 20, 0.001) for _ in range(4)]
    for job in running:
        job.wait()
    assert trace.locks()[0].most_at_once == 2
    places.close()


def test_each_semaphore_of_a_system_v_set_is_a_lock_of_its_own(trace):
    forks = trace.lock(SysvSemaphores([1, 1]), "fork")
    forks.acquire(1, timeout=0)
    forks.ops([(0, -1, True), (1, 1, True)], timeout=0)
    assert [(row.label, row.acquired) for row in trace.locks()] == [("fork 0", 1), ("fork 1", 1)]
    assert [row.held_by for row in trace.locks()] == [("notebook",), ()]
    with pytest.raises(ValueError, match="0 to 1"):
        forks.acquire(2)
    forks.close()


def test_equal_labels_are_told_apart(trace):
    locks = [trace.lock(PosixSemaphore(), "fork") for _ in range(3)]
    assert [info.label for info in trace.traced_locks] == ["fork", "fork 2", "fork 3"]
    for lock in locks:
        lock.close()


def test_only_what_is_a_lock_can_be_traced(trace):
    with pytest.raises(TypeError, match="acquire"):
        trace.lock(3)
    mutex = trace.lock(PosixSemaphore())
    with pytest.raises(TypeError, match="not traced yet"):
        trace.lock(mutex)
    mutex.close()
    with pytest.raises(ValueError, match="closed"):
        mutex.acquire()


def test_after_the_trace_is_closed_the_lock_still_works_and_travels(trace):
    mutex = trace.lock(PosixSemaphore(1))
    trace.close()
    with mutex:
        pass
    launch(roles.take_often, mutex, 3).wait()
    assert mutex.value == 1
    mutex.close()


def test_a_child_cannot_hand_a_traced_lock_on(trace):
    mutex = trace.lock(PosixSemaphore(1))
    with pytest.raises(RemoteError, match="hand a traced lock on from the process that made the trace"):
        launch(roles.hand_on, mutex).wait()
    mutex.close()


def test_the_collector_rests_when_all_locks_are_closed(trace):
    mutex = trace.lock(PosixSemaphore(1))
    launch(roles.take_often, mutex, 3).wait()
    mutex.close()
    until(lambda: not trace._memory)


def test_the_ring_of_a_killed_process_is_given_up(trace):
    mutex, ready = trace.lock(PosixSemaphore(1)), PosixSemaphore(0)
    holder = launch(roles.take_and_sleep, mutex, ready)
    ready.acquire()
    holder.kill()
    mutex.close()
    until(lambda: not trace._memory)
    assert trace.locks()[0].held_by == ("take_and_sleep (killed by SIGKILL)",)
    ready.close()


# --- deadlocks -----------------------------------------------------------------------------------------------


def test_a_deadlock_of_two_processes_is_named(trace):
    forks = [trace.lock(PosixSemaphore(1), f"fork {n}") for n in (1, 2)]
    here, there = PosixSemaphore(0), PosixSemaphore(0)
    running = [
        launch(roles.take_both, *forks, here, there, name="A"),
        launch(roles.take_both, *forks[::-1], there, here, name="B"),
    ]
    found = until(trace.deadlock)
    assert str(found) == (
        "A holds fork 1 and waits for fork 2, which B holds; B holds fork 2 and waits for fork 1, which A holds"
    )
    assert (found.processes, found.locks, found.until_ns) == (("A", "B"), ("fork 2", "fork 1"), None)
    running[1].kill()
    until(lambda: not running[1].alive)
    assert trace.deadlock() is None
    rows = trace.locks()
    assert rows[1].held_by == ("B (killed by SIGKILL)",) and rows[1].waited_for_by == ("A",)
    (past,) = trace._history().deadlocks()
    assert past.sentence == found.sentence and past.until_ns is not None
    running[0].kill()
    until(lambda: not running[0].alive)
    for lock in (*forks, here, there):
        lock.close()


def test_the_right_order_makes_no_deadlock(trace):
    forks = [trace.lock(PosixSemaphore(1), f"fork {n}") for n in (1, 2)]
    running = [launch(roles.take_both_often, *forks, 300) for _ in range(2)]
    while any(job.alive for job in running):
        assert trace.deadlock() is None
    for job in running:
        job.wait()
    assert trace._history().deadlocks() == []
    for fork in forks:
        fork.close()


@pytest.mark.parametrize("places", [1, 3])
def test_a_bounded_buffer_is_never_called_a_deadlock(trace, places):
    free, items = trace.lock(PosixSemaphore(places), "free"), trace.lock(PosixSemaphore(0), "items")
    running = [
        launch(roles.move_tokens, free, items, 300, name="producer"),
        launch(roles.move_tokens, items, free, 300, name="consumer"),
    ]
    while any(job.alive for job in running):
        assert trace.deadlock() is None
    assert trace._history().deadlocks() == []
    assert [row.most_at_once for row in trace.locks()] == [0, 0], "nobody holds what others give back"
    free.close()
    items.close()


def test_semaphores_that_order_processes_can_deadlock_too(trace):
    """Each waits for what the other would release after its own wait."""
    first, second = trace.lock(PosixSemaphore(0), "first"), trace.lock(PosixSemaphore(0), "second")
    running = [
        launch(roles.move_tokens, first, second, 1, name="A"),
        launch(roles.move_tokens, second, first, 1, name="B"),
    ]
    found = until(trace.deadlock)
    assert str(found) == "A waits for first, which B has not released; B waits for second, which A has not released"
    first.release()  # the notebook can help
    for job in running:
        job.wait()
    assert trace.deadlock() is None
    first.close()
    second.close()


def test_a_killed_holder_keeps_a_posix_semaphore_and_loses_one_with_undo(trace):
    for kind, name in ((PosixSemaphore, "posix"), (SysvSemaphores, "sysv")):
        lock, ready = trace.lock(kind(), name), PosixSemaphore(0)
        holder = launch(roles.take_and_sleep, lock, ready, name="holder")
        ready.acquire()
        os.kill(holder.pid, signal.SIGKILL)
        until(lambda: not holder.alive)  # noqa: B023
        row = trace.locks()[-1]
        if kind is PosixSemaphore:
            assert row.held_by == ("holder (killed by SIGKILL)",)
            with pytest.raises(TimeoutError):
                lock.acquire(timeout=0)
        else:
            assert row.held_by == ()
            lock.acquire(timeout=60)
            assert trace.locks()[-1].most_at_once == 1
            lock.release()
        ready.close()
        lock.close()


def test_threads_of_one_process_are_told_apart(trace):
    """Else a process whose one thread waits for the other would seem to wait for itself."""
    mutex = trace.lock(PosixSemaphore(1), "mutex")
    mutex.acquire()
    other = threading.Thread(target=mutex.acquire, kwargs={"timeout": 20})
    other.start()
    until(lambda: trace.locks()[0].waited_for_by)
    assert trace.deadlock() is None
    assert trace.locks()[0].held_by == ("notebook, thread 1",)
    mutex.release()
    other.join()
    mutex.close()


# --- what events add up to -----------------------------------------------------------------------------------


def made_up(*steps) -> np.ndarray:
    """Events from (pid, lock, action), one a microsecond."""
    events = np.zeros(len(steps), EVENT)
    for place, (pid, lock, action) in enumerate(steps):
        events[place] = (1000 * (place + 1), 7, 0, pid, lock, pid * 8 + lock, action, b"")
    return events


W, A, R, G, O = (  # noqa: E741
    Action.LOCK_WAITS,
    Action.LOCK_ACQUIRED,
    Action.LOCK_RELEASED,
    Action.LOCK_GAVE_UP,
    Action.LOCK_OPENED,
)


def history(*steps, counts=(1, 1), owned=False) -> History:
    infos = [LockInfo(n, "made up", "abc"[n], count, owned, False) for n, count in enumerate(counts)]
    return History(made_up(*steps), infos, {}, 0)


CIRCLE = ((1, 0, W), (1, 0, A), (2, 1, W), (2, 1, A), (1, 1, W), (2, 0, W))


def test_a_circle_is_a_deadlock_from_the_last_wait_on():
    found = history(*CIRCLE)
    assert found.deadlock(5999) is None
    assert found.deadlock(6000).since_ns == 6000
    ended = history(*CIRCLE, (1, 1, G), (1, 0, R), (2, 0, A))
    assert ended.deadlock() is None
    assert [(dead.since_ns, dead.until_ns) for dead in ended.deadlocks()] == [(6000, 7000)]


def test_a_wait_that_could_end_at_once_is_no_part_of_a_circle():
    """What was given back is there, although nobody has been seen to take it."""
    assert history(*CIRCLE, (2, 1, R)).deadlock() is None
    assert history(*CIRCLE, counts=(1, 2)).deadlock() is None


def test_one_of_several_holders_who_runs_is_enough():
    steps = ((3, 1, W), (3, 1, A), *CIRCLE)
    assert history(*steps, counts=(1, 2)).deadlock() is None
    assert history(*steps, (3, 0, W), counts=(1, 2)).deadlock() is not None


def test_who_takes_a_mutex_twice_waits_for_itself():
    found = history((1, 0, W), (1, 0, A), (1, 0, W), owned=True).deadlock()
    assert str(found) == "process 1 holds a and waits for a, which it itself holds"


def test_nothing_is_claimed_of_a_semaphore_that_nobody_else_is_known_to_have():
    assert history((1, 0, O), (1, 0, W), counts=(0,)).deadlock() is None


def test_consumers_that_wait_for_a_producer_still_to_be_launched_are_no_deadlock():
    consumers = ((1, 0, O), (2, 0, O), (1, 0, W), (2, 0, W))
    assert history(*consumers, counts=(0,)).deadlock() is None
    producer = ((3, 0, O), (3, 0, R), (1, 0, A))
    assert history(*consumers, *producer, (1, 0, W), counts=(0,)).deadlock() is None


def test_the_collector_works_while_a_deadlock_is_looked_for(trace, monkeypatch):
    """Else the rings run over meanwhile."""
    free = []

    def look(*_):
        other = threading.Thread(target=lambda: free.append(trace._lock.acquire(timeout=60) and trace._lock.release()))
        other.start()
        other.join()

    monkeypatch.setattr("labkit.trace.History", lambda *_: look() or SimpleNamespace(deadlock=lambda: None))
    assert trace.deadlock() is None
    assert free == [None], "the lock of the trace was held"


def test_nothing_is_claimed_while_a_copy_is_on_its_way_to_a_process():
    steps = [(pid, lock, O) for pid in (1, 2) for lock in (0, 1)] + [(1, 0, W), (2, 1, W)]
    infos = [LockInfo(n, "made up", "ab"[n], 0, False, False) for n in range(2)]
    assert History(made_up(*steps), infos, {}, 0).deadlock() is not None
    assert History(made_up(*steps), infos, {}, 0, unheard={1}).deadlock() is None


def test_holds_are_matched_first_taken_first_given_back():
    spans = history((1, 0, W), (1, 0, A), (1, 0, W), (1, 0, A), (1, 0, R), (1, 0, R), counts=(2,)).spans
    held = spans[spans["kind"] == HELD]
    assert (held["begin"].tolist(), held["end"].tolist()) == ([2000, 4000], [5000, 6000])
    assert most_at_once(held) == 2


def test_a_full_buffer_whose_producer_keeps_the_mutex_is_a_deadlock_with_the_consumer():
    """Two producers have filled two places; one waits for a third with the mutex held, all others for the mutex."""
    filled = [step for pid in (1, 2) for step in ((pid, 0, W), (pid, 0, A))]
    opened = [(pid, lock, O) for pid in (1, 2, 3) for lock in (0, 1)]
    steps = (*opened, *filled, (1, 1, W), (1, 1, A), (1, 0, W), (2, 1, W))
    assert history(*steps, counts=(2, 1)).deadlock() is None, "the consumer has not been seen yet"
    found = history(*steps, (3, 1, W), counts=(2, 1)).deadlock()
    assert str(found) == (
        "process 1 holds b and waits for a, which process 3 has not released; "
        "process 3 waits for b, which process 1 holds"
    )
