"""The checks of notebook 07-signals-and-events accept right solutions and refuse typical wrong ones with the reason."""

import asyncio
import contextlib
import os
import select
import signal
import sys
import time

import pytest
import roles

from labkit import Closed
from labkit.exercises import signals
from labkit.exercises.signals import check_collect, check_shutdown


@pytest.fixture(autouse=True)
def less_patience(monkeypatch):
    monkeypatch.setattr(signals, "PATIENCE", roles.patience(2.0))


# --- graceful shutdown --------------------------------------------------------------------------------------


def right(rx, work):
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    while not stop:
        try:
            work(rx.receive(timeout=0.1))
        except TimeoutError:
            pass
        except Closed:
            return


def an_event_loop(rx, work):
    async def served():
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        # loop.add_signal_handler() might call us after the next message
        signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(done.set))

        def ready():
            try:
                done.is_set() or work(rx.receive(timeout=0))
            except Closed:
                done.set()

        loop.add_reader(rx, ready)
        await done.wait()

    asyncio.run(served())


def a_pipe_to_himself(rx, work):
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writes)
    try:
        while reads not in select.select([rx, reads], [], [])[0]:
            work(rx.receive(timeout=0))
    except Closed:
        pass


def not_written(rx, work): ...


def no_handler(rx, work):
    for message in rx:
        work(message)


def exits_at_once(rx, work):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for message in rx:
        work(message)


def ignores_it(rx, work):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for message in rx:
        work(message)


def one_too_many(rx, work):
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    while True:
        try:
            message = rx.receive(timeout=0.1)
        except TimeoutError:
            if stop:
                return
            continue
        except Closed:
            return
        work(message)
        if len(stop) > 0:
            stop.append(True)
        if len(stop) > 2:
            return


def only_when_busy(rx, work):
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    for message in rx:
        work(message)
        if stop:
            return


def exits_143(rx, work):
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    while True:
        try:
            work(rx.receive(timeout=0.1))
        except TimeoutError:
            pass
        except Closed:
            return
        if stop:
            sys.exit(143)


def misses_end_of_file(rx, work):
    while True:
        work(rx.receive())


@pytest.mark.parametrize("right", [right, an_event_loop, a_pipe_to_himself])
def test_a_graceful_shutdown_is_accepted(right):
    verdict = check_shutdown(right)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        (not_written, "has not called work"),
        (no_handler, "default action"),
        (exits_at_once, "only note"),
        (ignores_it, "as if nothing had happened"),
        (one_too_many, "took message 3"),
        (only_when_busy, "still waits"),
        (exits_143, "exits 0"),
        (misses_end_of_file, "Closed"),
    ],
)
def test_another_shutdown_is_refused_with_its_reason(solution, reason):
    verdict = check_shutdown(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why


# --- children -----------------------------------------------------------------------------------------------


def reaps_in_a_loop(start):
    found = {}

    def reap(*_):
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            found[pid] = os.waitstatus_to_exitcode(status)

    signal.signal(signal.SIGCHLD, reap)
    pids = start()
    while len(found) < len(pids):
        time.sleep(0.01)
    return found


def waits_for_each(start):
    return {pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in start()}


def one_a_signal(start):
    found = {}

    def reap(*_):
        pid, status = os.waitpid(-1, 0)
        found[pid] = os.waitstatus_to_exitcode(status)

    signal.signal(signal.SIGCHLD, reap)
    pids = start()
    while len(found) < len(pids):
        time.sleep(0.01)
    return found


def until_all_have_ended(pids):
    """And reap none of them."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def one_a_signal_and_then_home(start):
    found = {}

    def reap(*_):
        pid, status = os.waitpid(-1, 0)
        found[pid] = os.waitstatus_to_exitcode(status)

    signal.signal(signal.SIGCHLD, reap)
    until_all_have_ended(start())
    return found


def counts_signals(start):
    count = 0

    def one_more(*_):
        nonlocal count
        count += 1

    signal.signal(signal.SIGCHLD, one_more)
    pids = start()
    until_all_have_ended(pids)
    for pid in pids:
        os.waitpid(pid, 0)
    return count


def raw_status(start):
    return {pid: os.waitpid(pid, 0)[1] for pid in start()}


def ignores_signals_of_death(start):
    return {pid: os.WEXITSTATUS(os.waitpid(pid, 0)[1]) for pid in start()}


def ignores_children(start):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    return {pid: os.waitpid(pid, 0)[1] for pid in start()}


def asks_all_the_time(start):
    pids, found = start(), {}
    while len(found) < len(pids):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            found[pid] = os.waitstatus_to_exitcode(status)
    return found


@pytest.mark.parametrize("solution", [reaps_in_a_loop, waits_for_each])
def test_whoever_reaps_all_children_is_accepted(solution):
    verdict = check_collect(solution)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        (not_written, "stopped with"),
        (one_a_signal, "zombies"),
        (one_a_signal_and_then_home, "swallows"),
        (counts_signals, "count signals"),
        (raw_status, "waitstatus_to_exitcode"),
        (ignores_signals_of_death, "killed by SIGKILL"),
        (ignores_children, "SIG_IGN"),
        (asks_all_the_time, "over and over"),
    ],
)
def test_whoever_does_not_is_refused_with_the_reason(solution, reason):
    verdict = check_collect(solution)
    assert not verdict.right
    assert reason in verdict.why, verdict.why
