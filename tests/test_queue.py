"""labkit.Queue: a drop-in for multiprocessing.Queue, from one object to gigabytes, whoever is killed."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import inspect
import mmap
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import pickle
import queue
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections import Counter, deque
from pathlib import Path

import multiprocess
import numpy as np
import pytest
import roles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from queue_roles import (
    RECEIPT,
    add_up,
    consume,
    get_numbers,
    hold_first,
    is_whole,
    produce,
    put_numbers,
    put_numbers_together,
    put_what_comes,
)

import labkit.queue
from labkit import JoinableQueue, Queue, SimpleQueue, launch, machine
from labkit.lockfree import blocks, objects
from labkit.queue import SLOTS
from labkit.shared_array import SharedArray

pytestmark = pytest.mark.every_python

CONTEXTS = [
    pytest.param(package.get_context(method), id=f"{package.__name__}-{method}")
    for package in (multiprocessing, multiprocess)
    for method in ("fork", "forkserver", "spawn")
]
MAP_NORESERVE = 0x4000
SOON = 300
"""Seconds in which it comes on a very busy machine."""


@pytest.fixture(scope="module", autouse=True)
def with_multiprocessings_forkserver(forkserver):
    """Its processes and descriptors are there before the first test."""


@pytest.fixture
def q():
    made = Queue()
    yield made
    made.close()
    made.join_thread()


def in_use(q: Queue) -> int:
    """Blocks that hold something."""
    return q._ring.runs_in_use()


# --- what it carries ----------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    maxsize=st.integers(0, 5),
    sizes=st.lists(st.sampled_from([0, 1, 200, 230, 4000, 5000, 70_000, 300_000]), max_size=40),
    operations=st.lists(st.sampled_from("put put put put_many get get get_many task_done".split()), max_size=40),
)
def test_it_behaves_like_a_deque(maxsize, sizes, operations):
    q = JoinableQueue(maxsize)
    model: deque[bytes] = deque()
    undone = done = 0
    room = maxsize or SLOTS
    for number, operation in enumerate(operations):
        thing = b"%04d" % number * (sizes[number % len(sizes)] // 4 if sizes else 0)
        if operation == "put":
            if len(model) < room:
                q.put_nowait(thing)
                model.append(thing)
                undone += 1
            else:
                assert q.full()
                with pytest.raises(queue.Full):
                    q.put_nowait(thing)
        elif operation == "put_many":
            fit = min(3, room - len(model))
            with contextlib.nullcontext() if fit == 3 else pytest.raises(queue.Full):
                q.put_many([thing] * 3, block=False)
            model.extend([thing] * fit)
            undone += fit
        elif operation == "get":
            if model:
                assert q.get_nowait() == model.popleft()
                done += 1
            else:
                with pytest.raises(queue.Empty):
                    q.get_nowait()
        elif operation == "get_many":
            if model:
                most = min(len(model), 4)
                assert q.get_many(4, block=False) == [model.popleft() for _ in range(most)]
                done += most
            else:
                with pytest.raises(queue.Empty):
                    q.get_many(4, block=False)
        elif undone:
            q.task_done()
            undone -= 1
        else:
            with pytest.raises(ValueError, match="too many"):
                q.task_done()
        assert q.qsize() == len(model)
        assert q.empty() == (not model)
        assert q.full() == (len(model) == maxsize > 0)
    while model:
        assert q.get() == model.popleft()
    for _ in range(undone):
        q.task_done()
    q.join()
    assert in_use(q) == 0
    q.close()


class Custom:
    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return self.value == other.value

    def __repr__(self):
        return f"Custom({self.value})"


@pytest.mark.parametrize(
    "thing",
    [None, True, 0, -1, 1 << 200, 1.5, float("inf"), "", "é\ud800", b"", (), [], {}, set(), Custom([1]), len, 3 + 4j],
    ids=repr,
)
def test_objects_arrive_as_they_were(q, thing):
    q.put(thing)
    got = q.get()
    assert got == thing and type(got) is type(thing)


def test_an_object_that_refers_to_itself_arrives_so(q):
    thing: list = [1]
    thing.append(thing)
    q.put([thing, thing])
    first, second = q.get()
    assert first is second is first[1]


@pytest.mark.parametrize("size", [0, 1, 200, 224, 225, 4_000, 4_096, 65_535, 65_536, 1_000_000, 50_000_000])
def test_messages_of_any_size(q, size):
    for thing in (os.urandom(size), bytearray(os.urandom(size)), np.frombuffer(os.urandom(size), np.uint8)):
        q.put(thing)
        got = q.get()
        assert type(got) is type(thing) and bytes(got) == bytes(thing)
    del got
    assert in_use(q) == 0


def test_arrays_of_every_make_arrive_writable_and_our_own(q):
    big = np.arange(200_000.0).reshape(100, 20, 100)
    many = [big, big.T, big[::2], big[3:7], np.asfortranarray(big), big.astype(">f4"), big.view(np.int64), np.array(3)]
    q.put(many)
    for got, sent in zip(q.get(), many, strict=True):
        assert got.dtype == sent.dtype and np.array_equal(got, sent) and got.flags.writeable
        got[...] = 0
    assert big[1, 1, 1] == 2101
    assert in_use(q) == 0


def test_an_array_that_cannot_be_written_to_arrives_so(q):
    sent = np.ones(100_000)
    sent.flags.writeable = False
    q.put(sent)
    got = q.get()
    assert not got.flags.writeable and got.sum() == 100_000
    got = None


def test_views_outlive_the_message_the_queue_and_the_sender(q):
    q.put({"a": np.arange(100_000), "b": np.ones(100_000)})
    got = q.get()
    view = got["b"][5:10]
    del got
    used = in_use(q)
    for _ in range(20):
        q.put(np.zeros(300_000))
        q.get()
    assert view.sum() == 5 and in_use(q) == used > 0
    q.close()
    gc.collect()
    assert view.sum() == 5
    view += 1
    assert view.sum() == 10
    del view
    assert q._ring._segment.closed


def test_a_child_made_by_fork_keeps_what_it_saw(q):
    """The parent gives the memory up and others overwrite it; the child's array is its own."""
    q.put(np.full(500_000, 7.0))
    array = q.get()
    ask = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            os.read(ask[0], 1)
            fine = bool((array == 7).all())
            array[:] = 1
            del array
            q.put(np.full(500_000, 9.0))  # the queue is the child's too
            fine = fine and bool((q.get() == 8).all())
            status = 0 if fine else 1
        os._exit(status)
    assert (array == 7).all()
    del array
    q.put(np.full(500_000, 8.0))  # into the memory that was the array's
    os.write(ask[1], b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (q.get() == 9).all()
    assert in_use(q) == 0
    for fd in ask:
        os.close(fd)


def test_a_connection_and_a_function_travel_as_in_the_original(q):
    ours, theirs = multiprocessing.Pipe()
    q.put((theirs, os.path.join))
    got, function = q.get()
    ours.send("hello")
    assert got.recv() == "hello" and function is os.path.join
    for end in (ours, theirs, got):
        end.close()
    multiprocessing.resource_sharer.stop(5)


# --- errors -------------------------------------------------------------------------------------------------


class Bad:
    def __reduce__(self):
        raise ZeroDivisionError("no")


class BadThere:
    def __reduce__(self):
        return int, ("no number",)


class Late:
    def __reduce__(self):
        return fail, ()


def fail():
    raise TimeoutError("mine")


@pytest.mark.parametrize(
    "thing, error",
    [
        (Bad(), ZeroDivisionError),
        ([np.ones(100_000), Bad()], ZeroDivisionError),
        ([*range(100_000), Bad()], ZeroDivisionError),
        (threading.Lock(), TypeError),
        ((n for n in "abc"), TypeError),
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_what_cannot_be_pickled_is_the_callers_error_and_nothing_is_put(q, thing, error):
    q.put("before")
    for put in (q.put, lambda thing: q.put(thing, True, 1), lambda thing: q.put_many([1, thing, 2])):
        with pytest.raises(error):
            put(thing)
    q.put("after")
    assert [q.get() for _ in range(q.qsize())] == ["before", 1, "after"]
    assert in_use(q) == 0


def test_what_cannot_be_put_together_is_an_error_of_get_and_others_come(q):
    for thing in (1, BadThere(), 2, Late(), [np.ones(100_000), BadThere()], 3):
        q.put(thing)
    assert q.get() == 1
    with pytest.raises(ValueError, match="no number"):
        q.get()
    assert q.get(timeout=SOON) == 2
    with pytest.raises(TimeoutError, match="mine"):
        q.get(timeout=SOON)
    with pytest.raises(ValueError, match="no number"):
        q.get()
    assert q.get() == 3
    gc.collect()
    assert in_use(q) == 0


def test_a_batch_keeps_what_came_before_an_error_and_tells_the_error_next(q):
    q.put_many([1, 2, BadThere(), 3])
    assert q.get_many() == [1, 2]
    with pytest.raises(ValueError, match="no number"):
        q.get_many()
    assert q.get_many() == [3]


def test_an_object_may_put_and_get_while_it_is_pickled(q):
    q.put(Recursive(q))
    assert [q.get(), q.get()] == ["inner", "outer"]


class Recursive:
    def __init__(self, q):
        self.q = q

    def __reduce__(self):
        self.q.put("inner")
        return str, ("outer",)


def test_closed_is_closed(q):
    with pytest.raises(ValueError, match="not closed"):
        q.join_thread()
    q.put(1)
    q.close()
    q.close()
    for use in (lambda: q.put(1), lambda: q.put(1, False), lambda: q.put_many([1]), q.get, q.get_nowait, q.get_many):
        with pytest.raises(ValueError, match="is closed"):
            use()
    assert q.qsize() == 1 and not q.full()
    with pytest.raises(OSError, match="is closed"):
        q.empty()
    q.join_thread()
    unused = Queue()
    unused.close()
    assert unused.empty()
    simple = SimpleQueue()
    simple.close()
    for use in (lambda: simple.put(1), simple.get, simple.empty):
        with pytest.raises(OSError, match="is closed"):
            use()


@pytest.mark.parametrize("wrong", ["3", 1.5, None])
def test_a_maxsize_is_a_whole_number(wrong):
    with pytest.raises(TypeError, match="maxsize"):
        Queue(wrong)


@pytest.mark.parametrize("kind", [Queue, JoinableQueue, SimpleQueue])
@pytest.mark.parametrize("take_apart", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_queue_travels_only_to_a_process_that_is_being_started(kind, take_apart):
    made = kind()
    with pytest.raises(RuntimeError, match=f"^{kind.__name__} objects should only be shared .* through inheritance"):
        take_apart(made)
    with pytest.raises(RuntimeError, match="through inheritance"):
        made.put(made)
    made.put(1)
    assert made.get() == 1
    made.close()


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_a_program_that_asks_is_told_that_it_is_multiprocessings(kind):
    made = getattr(labkit, kind)()
    assert isinstance(made, getattr(multiprocessing.queues, kind))
    assert getattr(labkit, kind)[int].__origin__ is type(made)
    made.close()


# --- its methods, alone -------------------------------------------------------------------------------------


def given_on(method):
    made = Queue(1)
    return getattr(made, method)


def test_its_methods_say_which_arguments_they_take(q):
    """What Jupyter shows at Shift-Tab."""
    for name in ("put", "get"):
        shown = inspect.signature(getattr(q, name)).parameters
        _, *meant = inspect.signature(getattr(multiprocessing.queues.Queue, name)).parameters.values()
        assert [(p.name, p.default) for p in shown.values()] == [(p.name, p.default) for p in meant]
        assert "queue" in inspect.getdoc(getattr(q, name))


def test_a_method_keeps_what_it_puts_into_and_gets_from():
    with pytest.raises(queue.Empty):
        Queue().get(timeout=0)
    put, get = given_on("put"), given_on("get")
    put("alone")
    with pytest.raises(queue.Full):
        put("too many", False)
    with pytest.raises(queue.Empty):
        get(True, 0.01)
    made = JoinableQueue()
    put, get = made.put, made.get
    del made
    put([bytes(100_000)])
    assert get(timeout=SOON) == [bytes(100_000)]


def test_nothing_is_kept_longer_than_the_last_method():
    made = Queue()
    ring = weakref.ref(made._ring)
    get = made.get
    made.put(1)
    del made
    assert get() == 1 and ring() is not None
    del get
    assert ring() is None


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_method_is_handed_to_a_process(q, context):
    echo = context.Process(target=put_what_comes, args=(q.get,), kwargs={"put": q.put})
    direct = context.Process(target=q.put, args=("direct",))
    for process in (direct, echo):
        process.start()
        process.join(SOON)
        assert process.exitcode == 0
        process.close()
    assert q.get(timeout=SOON) == ["direct"]


# --- waiting ------------------------------------------------------------------------------------------------


def test_times_out(q):
    for get in (q.get, q.get_many):
        with pytest.raises(queue.Empty):
            get(timeout=0.05)
        with pytest.raises(queue.Empty):
            get(block=False)
        with pytest.raises(queue.Empty):
            get(timeout=-1)
    full = Queue(2)
    full.put_many([1, 2])
    for timeout in (0.05, 0, -1):
        with pytest.raises(queue.Full):
            full.put(3, True, timeout)
    full.close()


def test_maxsize_is_exact_and_full_says_so():
    for maxsize in (1, 2, 3, 7, 100):
        q = Queue(maxsize)
        for lap in range(3):
            for number in range(maxsize):
                assert not q.full()
                q.put_nowait(number)
            assert q.full() and q.qsize() == maxsize
            with pytest.raises(queue.Full):
                q.put_nowait("more")
            assert [q.get() for _ in range(maxsize)] == list(range(maxsize)), lap
        q.close()


def test_without_a_maxsize_put_never_waits_and_the_order_is_kept(q):
    count = 3 * SLOTS
    for number in range(count):
        q.put(number)
    assert q.qsize() == count and not q.full()
    assert [q.get() for _ in range(count)] == list(range(count))
    assert roles.eventually(lambda: q._thread is None)
    q.put("fast again")
    assert q._thread is None and q.get() == "fast again"


def test_a_consumer_that_never_comes_stops_nobody(tmp_path):
    """The process ends if it has said that it will not wait, and what was put before the queue was full is there."""
    program = """
        from labkit import Queue
        if __name__ == "__main__":
            q = Queue()
            q.put_many(range(20_000))
            q.cancel_join_thread()
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(program))
    assert subprocess.run([sys.executable, script], timeout=SOON, check=False).returncode == 0


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_process_waits_at_its_end_until_all_is_in_the_queue(context):
    q = Queue()
    process = context.Process(target=put_numbers, args=(q, 2 * SLOTS, 0))
    process.start()
    time.sleep(0.3)
    assert [q.get(timeout=SOON) for _ in range(2 * SLOTS)] == [(0, n) for n in range(2 * SLOTS)]
    process.join(SOON)
    assert process.exitcode == 0
    process.close()
    q.close()


def test_ctrl_c_interrupts_get_and_put():
    q = Queue(1)
    for wait in (q.get, lambda: [q.put(1) for _ in range(3)]):
        timer = roles.interrupt_soon()
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            wait()
        timer.join()
    q.close()


def test_join_waits_for_the_last_task():
    q = JoinableQueue()
    done = []

    def work():
        for _ in range(100):
            done.append(q.get())
            q.task_done()

    q.put_many(range(100))
    thread = threading.Thread(target=work)
    thread.start()
    q.join()
    assert len(done) == 100
    thread.join()
    q.join()
    q.close()


def test_join_counts_what_waits_for_room():
    q = JoinableQueue()
    count = SLOTS + 100
    q.put_many([0] * count)
    for _ in range(count):
        q.get()
        q.task_done()
    assert roles.eventually(lambda: q._thread is None)
    q.join()
    with pytest.raises(ValueError, match="too many"):
        q.task_done()
    q.close()


# --- how it is called ---------------------------------------------------------------------------------------

LATER = {"tim" + "eout": 5}  # a word that is not the one of a call

PUTS = [
    lambda q, thing: q.put(thing, True),
    lambda q, thing: q.put(thing, True, 5),
    lambda q, thing: q.put(thing, False),
    lambda q, thing: q.put(thing, block=False),
    lambda q, thing: q.put(thing, timeout=5),
    lambda q, thing: q.put(thing, True, timeout=5),
    lambda q, thing: q.put(thing, block=True, timeout=5),
    lambda q, thing: q.put(thing, timeout=5, block=True),
    lambda q, thing: q.put(thing, **LATER),
    lambda q, thing: q.put(obj=thing),
    lambda q, thing: q.put(timeout=5, obj=thing),
    lambda q, thing: q.put_nowait(thing),
]
GETS = [
    lambda q: q.get(True),
    lambda q: q.get(True, 5),
    lambda q: q.get(False),
    lambda q: q.get(block=False),
    lambda q: q.get(timeout=5),
    lambda q: q.get(True, timeout=5),
    lambda q: q.get(block=True, timeout=5),
    lambda q: q.get(timeout=5, block=True),
    lambda q: q.get(**LATER),
    lambda q: q.get_nowait(),
]
NO_CALLS = [
    lambda q: q.put(),
    lambda q: q.put(1, True, 5, 6),
    lambda q: q.put(1, True, block=True),
    lambda q: q.put(1, True, 5, timeout=5),
    lambda q: q.put(1, wait=5),
    lambda q: q.put(1, obj=2),
    lambda q: q.put(1, timeout=5, wait=5),
    lambda q: q.put(1, **LATER, block=True, wait=5),
    lambda q: q.get(True, 5, 6),
    lambda q: q.get(True, block=True),
    lambda q: q.get(True, 5, timeout=5),
    lambda q: q.get(wait=5),
    lambda q: q.get(timeout=5, wait=5),
]


@pytest.mark.parametrize("put", PUTS)
@pytest.mark.parametrize("size", [1, 100_000])
def test_an_object_is_put_however_put_is_called(q, put, size):
    put(q, b"x" * size)
    assert q.get() == b"x" * size and q.empty()


@pytest.mark.parametrize("get", GETS)
def test_an_object_is_got_however_get_is_called(q, get):
    q.put("x")
    assert get(q) == "x" and q.empty()


@pytest.mark.parametrize("call", NO_CALLS)
def test_what_is_no_call_of_put_or_get_puts_and_gets_nothing(q, call):
    q.put("there")
    with pytest.raises(TypeError):
        call(q)
    assert q.qsize() == 1 and q.get() == "there"


def test_a_full_queue_hears_how_long_to_wait():
    full = Queue(1)
    full.put(1)
    for put in (
        lambda thing: full.put(thing, False),
        lambda thing: full.put(thing, block=False),
        lambda thing: full.put(thing, True, 0.01),
        lambda thing: full.put(thing, timeout=0.01),
        lambda thing: full.put(thing, timeout=0.01, block=True),
        lambda thing: full.put(thing, True, timeout=0.01),
    ):
        for thing in ("small", b"large" * 30_000):
            with pytest.raises(queue.Full):
                put(thing)
    assert full.get(True, 0) == 1
    for get in (lambda: full.get(False), lambda: full.get(True, 0.01), lambda: full.get(timeout=0.01)):
        with pytest.raises(queue.Empty):
            get()
    assert in_use(full) == 0
    full.close()


# --- descriptors --------------------------------------------------------------------------------------------


def test_its_reader_can_be_waited_for(q):
    wait = multiprocessing.connection.wait
    assert wait([q._reader], 0) == [] and not q._reader.poll() and not q._reader.poll(0.01)
    q.put(1)
    q.put(2)
    for expected in (1, 2):
        assert wait([q._reader], SOON) == [q._reader] and q._reader.poll() and q._reader.poll(None)
        assert q.get() == expected
    assert wait([q._reader], 0.01) == []
    timer = threading.Timer(0.1, q.put, ["late"])
    timer.start()
    assert wait([q._reader], SOON) == [q._reader]
    timer.join()
    assert q.get() == "late"


def in_a_thread(work) -> list:
    """What it returns, if it ends soon enough."""
    came: list = []
    thread = threading.Thread(target=lambda: came.append(work()), daemon=True)
    thread.start()
    thread.join(SOON)
    return came


def test_one_thread_gets_while_another_begins_to_wait(q, monkeypatch):
    """multiprocessing.Pool does: one of its threads waits for results, which another takes."""
    real, got = os.eventfd, []

    def eventfd(*arguments):
        monkeypatch.undo()
        got.extend(in_a_thread(q.get))
        return real(*arguments)

    q.put("early")
    q.put("late")
    monkeypatch.setattr(labkit.queue.os, "eventfd", eventfd)
    q._reader.fileno()
    assert got == ["early"]
    assert multiprocessing.connection.wait([q._reader], SOON) == [q._reader]
    assert q.get() == "late"
    assert multiprocessing.connection.wait([q._reader], 0) == []


def test_one_thread_closes_while_another_gets(q, monkeypatch):
    real, closers = labkit.queue.Watch.arm, []

    def arm(watch):
        if not closers:
            closers.append(threading.Thread(target=q.close))
            closers[0].start()
            closers[0].join(0.1)  # it waits for us, or has closed what we are about to use
        real(watch)

    q._reader.fileno()
    q.put("whole")
    monkeypatch.setattr(labkit.queue.Watch, "arm", arm)
    assert in_a_thread(q.get) == ["whole"]
    closers[0].join()
    assert q._reader.closed


def test_two_threads_that_ask_for_the_descriptor_get_the_same(q, monkeypatch):
    """What one of them polls would be closed, if the other made another."""
    ring, real, others = q._ring, labkit.lockfree.face.Watch.__init__, []

    def make(watch, *arguments):
        if not others:
            others.append(threading.Thread(target=lambda: others.append(ring.fileno())))
            others[0].start()
            others[0].join(0.1)  # it waits for us, or has one of its own
        real(watch, *arguments)

    monkeypatch.setattr(labkit.lockfree.face.Watch, "__init__", make)
    found = ring.fileno()
    others[0].join()
    assert others[1] == found == ring.fileno()


def test_a_descriptor_that_is_registered_once_is_readable_whenever_there_is_something(q):
    loop = asyncio.new_event_loop()
    got: list[int] = []

    def ready():
        with contextlib.suppress(queue.Empty):
            got.append(q.get_nowait())
        if len(got) == 300:
            loop.stop()

    loop.add_reader(q.fileno(), ready)
    process = multiprocessing.get_context("fork").Process(target=put_numbers, args=(q, 300, 5))
    process.start()
    loop.call_later(SOON, loop.stop)
    loop.run_forever()
    loop.remove_reader(q.fileno())
    loop.close()
    process.join()
    process.close()
    assert got == [(5, n) for n in range(300)]


def test_asyncio_waits_for_it(q):
    async def main():
        timer = threading.Timer(0.1, q.put, ["hello"])
        timer.start()
        first = await q.get_async()
        timer.join()
        with pytest.raises(queue.Empty):
            await q.get_async(0.05)
        task = asyncio.ensure_future(q.get_async())
        await asyncio.sleep(0.05)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        q.put("kept")
        return first, await q.get_async()

    assert asyncio.run(main()) == ("hello", "kept")


# --- small plain data that are put together ------------------------------------------------------------------


class Alone:
    """What pickle does not know by itself."""

    def __eq__(self, other):
        return isinstance(other, Alone)

    __hash__ = None


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("not me")


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(things=st.lists(PLAIN, min_size=8, max_size=60), most=st.integers(1, 20))
def test_whatever_is_put_together_comes_out_one_by_one_and_in_order(things, most):
    q = Queue()
    q.put_many(things)
    assert q.qsize() == len(things)
    got = [q.get()]
    while len(got) < len(things):
        got += q.get_many(most)
        assert q.qsize() == len(things) - len(got)
    assert [(type(one), one) for one in got] == [(type(one), one) for one in things]
    assert in_use(q) == 0
    q.close()


def together(q: Queue, things: list) -> int:
    """How many are pickled together, if they are put now."""
    q._ring._alone = 0
    done = q._ring.put_together(things)
    for _ in range(done):
        q.get()
    return done


def test_what_is_put_together_is_as_separate_as_when_it_is_put_one_by_one(q):
    thing = {"a": 1}
    q.put_many([thing] * 20)
    got = q.get_many(20)
    got[0]["a"] = 2
    assert got == [{"a": 2}, *[{"a": 1}] * 19]
    q.put_many([{"number": n, "all have": thing} for n in range(20)])
    got = q.get_many(20)
    got[0]["all have"]["a"] = 3
    assert got[1] == {"number": 1, "all have": {"a": 1}}
    both = [thing, thing]  # and what is one inside an object stays one
    q.put_many([both] * 20)
    first, second = q.get_many(20)[:2]
    assert first[0] is first[1] and first[0] is not second[0]
    round_and_round: list = []
    round_and_round.append(round_and_round)
    q.put_many([round_and_round] * 20)
    assert all(one[0] is one for one in q.get_many(20))


@pytest.mark.parametrize(
    ("things", "are"),
    [
        ([{"a": n, "b": [n, (n, b"bytes")]} for n in range(20)], 20),
        ([{"a": 1}] * 20, 20),
        ([[]] * 20, 20),
        (["text"] * 20, 20),
        ([[n, n] for n in range(300)], 128),
        ([[n] for n in range(7)], 0),
        ([Alone() for _ in range(20)], 0),
        ([{"one is": Alone(), "number": n} for n in range(20)], 0),
        ([bytearray(b"changes")] * 20, 0),
        ([np.float64(1)] * 20, 0),
        ([bytes(5000)] * 20 + [bytes(4999 + n) for n in range(20)], 0),
    ],
    ids="nested|same|same list|text|many|few|class|class inside|bytearray|numpy|much".split("|"),
)
def test_small_plain_data_are_pickled_together_and_nothing_else(q, things, are):
    assert together(q, things) == are
    q.put_many(things)
    assert q.get_many(len(things)) == things
    assert in_use(q) == 0


def test_what_cannot_be_pickled_keeps_only_what_comes_after_it_out(q):
    things = [{"a": n} for n in range(10)]
    with pytest.raises(RuntimeError, match="not me"):
        q.put_many([*things, Unpicklable(), *things])
    assert q.get_many(100) == things


def test_only_as_many_are_put_together_as_there_is_room_for():
    q = JoinableQueue(20)
    things = [[n] for n in range(50)]
    with pytest.raises(queue.Full):
        q.put_many(things, block=False)
    assert q.full() and q.qsize() == 20
    assert q.get_many(5) == things[:5]
    thread = threading.Thread(target=q.put_many, args=(things[20:],))
    thread.start()
    got = things[:5]
    while len(got) < 50:
        got += q.get_many(7)
    thread.join()
    assert got == things
    for _ in range(50):
        q.task_done()
    q.join()
    q.close()


def test_consumers_share_what_was_put_together_and_the_rest_of_who_dies_is_anothers(q):
    q.put_many([[n] for n in range(100)])
    assert q.get() == [0]
    process = multiprocessing.get_context("fork").Process(target=hold_first, args=(q,))
    process.start()
    assert roles.eventually(lambda: q.qsize() == 98, SOON)
    process.kill()
    process.join()
    process.close()
    assert q.get_many(100) == [[n] for n in range(2, 100)]
    assert in_use(q) == 0


def test_many_put_together_and_several_get_each_its_own():
    context = multiprocessing.get_context("fork")
    q, out = Queue(300), Queue()
    consumers = [context.Process(target=get_numbers, args=(q, out)) for _ in range(3)]
    producers = [context.Process(target=put_numbers_together, args=(q, 3000, who)) for who in range(2)]
    for process in (*consumers, *producers):
        process.start()
    for process in producers:
        process.join(SOON)
    q.put_many([None] * len(consumers))
    each = [out.get(timeout=SOON) for _ in consumers]
    for process in (*consumers, *producers):
        process.join(SOON)
        assert process.exitcode == 0
        process.close()
    assert Counter(pair for got in each for pair in got) == Counter((w, n) for w in range(2) for n in range(3000))
    for got in each:
        for who in range(2):
            assert [n for w, n in got if w == who] == sorted(n for w, n in got if w == who)
    assert in_use(q) == 0
    q.close()
    out.close()


# --- many producers, many consumers ------------------------------------------------------------------------


@pytest.mark.parametrize("maxsize", [0, 5])
@pytest.mark.parametrize("context", CONTEXTS)
def test_many_producers_and_consumers(context, maxsize):
    q, out = Queue(maxsize), Queue()
    consumers = [context.Process(target=get_numbers, args=(q, out)) for _ in range(2)]
    producers = [context.Process(target=put_numbers, args=(q, 500, who, 10_000)) for who in range(3)]
    for process in (*consumers, *producers):
        process.start()
    for process in producers:
        process.join(SOON)
    q.put_many([None] * len(consumers))
    each = [out.get(timeout=SOON) for _ in consumers]
    for process in (*consumers, *producers):
        process.join(SOON)
        assert process.exitcode == 0
        process.close()
    assert Counter(pair for got in each for pair in got) == Counter((w, n) for w in range(3) for n in range(500))
    for got in each:  # each consumer sees each producer's objects in their order
        for who in range(3):
            assert [n for w, n in got if w == who] == sorted(n for w, n in got if w == who)
    assert in_use(q) == 0
    q.close()
    out.close()


def test_threads_share_it(q):
    out: list = []
    consumers = [threading.Thread(target=lambda: out.append(list(iter(q.get, None)))) for _ in range(3)]
    producers = [threading.Thread(target=put_numbers, args=(q, 3000, who)) for who in range(3)]
    for thread in (*consumers, *producers):
        thread.start()
    for thread in producers:
        thread.join()
    q.put_many([None] * 3)
    for thread in consumers:
        thread.join()
    assert Counter(pair for got in out for pair in got) == Counter((w, n) for w in range(3) for n in range(3000))


def test_it_is_handed_to_launch(q):
    q.put_many([1, 2, None])
    out = Queue()
    job = launch(add_up, q, out)
    job.wait()
    assert out.get() == 3
    out.close()


def test_a_process_that_inherits_a_queue_with_a_thread_starts_afresh():
    q = Queue()
    q.put_many(range(SLOTS + 50))  # a thread has the rest
    process = multiprocessing.get_context("fork").Process(target=q.put, args=("child",))
    process.start()
    got = [q.get(timeout=SOON) for _ in range(SLOTS + 51)]
    process.join()
    process.close()
    assert sorted(got, key=str) == sorted([*range(SLOTS + 50), "child"], key=str)
    q.close()


# --- kill -9 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds, maxsize", [(60, 0), (60, 4)])
def test_whoever_is_killed_at_any_time_loses_nothing_that_was_put_and_leaks_no_block(tmp_path, rounds, maxsize):
    context = multiprocessing.get_context("fork")
    chance = random.Random(maxsize)
    q = Queue(maxsize or 200)
    told = SharedArray(1000, np.int64)
    out = os.open(tmp_path / "got", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    numbers = iter(range(1000))
    dead_consumers = 0

    def start(role):
        who = next(numbers)
        process = context.Process(target=role, args=(q, told.array if role is produce else out, who), daemon=True)
        process.start()
        return role, process

    running = [start(role) for role in (produce, produce, consume, consume)]
    for _ in range(rounds):
        time.sleep(chance.random() * 0.03)
        role, process = running.pop(chance.randrange(len(running)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        process.close()
        dead_consumers += role is consume
        running.append(start(role))
    for role, process in running:
        process.kill()
        process.join()
        process.close()
        dead_consumers += role is consume
    rest, array = Counter(), None
    with contextlib.suppress(queue.Empty):
        while True:
            q._ring._looked = -1.0  # look for what the dead have left each time, not ten times a second
            sender, number, array = q.get(timeout=0.5)
            assert is_whole(number, array)
            rest[sender, number] += 1
    del array
    os.close(out)
    receipts = list(RECEIPT.iter_unpack(Path(tmp_path, "got").read_bytes()))
    assert all(whole for *_, whole in receipts)
    got = rest + Counter((sender, number) for _, sender, number, _ in receipts)
    put = {(who, number) for who in range(1000) for number in range(told.array[who])}
    # What a consumer had released when it was killed, and not yet written down, is lost to us, one for each.
    assert len(put - got.keys()) <= dead_consumers
    # What it had written down and not released comes twice; that cannot be here, since it releases before it writes.
    assert max(got.values()) == 1
    # Of each producer one object more may have been put than it has told.
    assert all(number <= told.array[who] for who, number in got)
    assert in_use(q) == 0
    q.close()
    told.close()


def test_a_consumer_that_dies_with_views_gives_them_up(q):
    q.put(np.ones(100_000))
    process = multiprocessing.get_context("fork").Process(target=hold_first, args=(q,))
    process.start()
    assert roles.eventually(q.empty, SOON)
    assert in_use(q) > 0
    process.kill()
    process.join()
    process.close()
    assert in_use(q) == 0


def test_numbers_of_the_dead_are_used_again_and_their_blocks_too(q):
    """A newcomer gets the number of one that died with views: what that one had is swept."""
    for _ in range(5):
        q.put(np.ones(100_000))
        process = multiprocessing.get_context("fork").Process(target=hold_first, args=(q,))
        process.start()
        assert roles.eventually(q.empty, SOON)
        process.kill()
        process.join()
        process.close()
    process = multiprocessing.get_context("fork").Process(target=put_numbers, args=(q, 1, 0))
    process.start()
    process.join()
    process.close()
    assert q.get() == (0, 0)
    assert in_use(q) == 0


# --- memory -------------------------------------------------------------------------------------------------


def test_an_object_for_which_there_is_no_memory_is_an_error_and_the_queue_goes_on(q):
    """Two arrays of which no page is there: larger than the machine, and than what is left of it."""
    machines = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    for size in (machines + (1 << 30), min(machines, objects.MOST_MEMORY) - (64 << 20)):
        if size < machines and size < machine.memory_left() + (64 << 20):
            continue  # it would fit, nearly
        addresses = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        array = np.frombuffer(addresses, np.uint8)
        with pytest.raises(OSError, match="no room in the memory"):
            q.put(array)
        q.put("small")
        assert q.get() == "small" and in_use(q) == 0
        del array
        addresses.close()
    q.put(bytes(5_000_000))
    assert len(q.get()) == 5_000_000 and in_use(q) == 0


def test_more_blocks_than_there_are_is_an_error(q):
    """Of a pool that is made small: the run has no room, and what was claimed on the way is given back."""
    q._ring._blocks = 100
    q._ring._state[objects.BLOCKS // 8] = 100
    for _ in range(3):
        q.put(bytes(30 * blocks.BLOCK))
    with pytest.raises(OSError, match="no room"):
        q.put(bytes(30 * blocks.BLOCK))
    assert in_use(q) == 93
    assert [len(q.get()) for _ in range(3)] == [30 * blocks.BLOCK] * 3
    assert in_use(q) == 0
    q.put(bytes(90 * blocks.BLOCK))
    assert len(q.get()) == 90 * blocks.BLOCK


def test_memory_that_lies_idle_is_given_back_and_can_be_had_again(q):
    def held():
        return os.fstat(q._ring._segment.fd).st_blocks * 512

    def waits_and_gives_back():
        with pytest.raises(queue.Empty):
            q.get(timeout=objects.TIDY_AFTER / 4)
        return held() < 30_000_000

    for _ in range(2):
        q.put_many([bytes(40_000_000)] * 3)
        assert held() > 120_000_000
        assert [len(thing) for thing in q.get_many(3)] == [40_000_000] * 3
        assert roles.eventually(waits_and_gives_back, SOON)
        assert in_use(q) == 0


def test_an_object_of_another_thread_that_is_being_pickled_is_left_alone(q):
    """A thread is in the middle of its object, of which a large part is written; another one puts a batch."""
    begun, go_on = threading.Event(), threading.Event()

    class Slow:
        def __reduce__(self):
            begun.set()
            go_on.wait(SOON)
            return str, ("slow",)

    thread = threading.Thread(target=q.put, args=([bytes(200_000), Slow()],))
    thread.start()
    begun.wait(SOON)
    q.put_many([1, 2, 3])
    go_on.set()
    thread.join()
    assert [q.get() for _ in range(4)] == [1, 2, 3, [bytes(200_000), "slow"]]


def test_descriptors_are_given_back():
    before = set(os.listdir("/proc/self/fd"))
    for kind in (Queue, JoinableQueue, SimpleQueue):
        made = kind()
        made.put(1)
        made.fileno()
        assert made.get() == 1
        del made
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_it_says_what_it_is():
    assert labkit.Queue is labkit.queue.Queue
