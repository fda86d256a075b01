"""Broadcast: against a model, store by store, between processes, under kill and stop, against damage and bad input."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import gc
import itertools
import mmap
import os
import pickle
import random
import re
import select
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roles
from broadcast_roles import (
    is_whole,
    listen,
    listen_in_other_ways,
    listen_to_items,
    poll_all,
    read_for_ever,
    send_one_and_wait,
    send_when_asked,
    stamped,
    write_and_leave,
    write_from,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit import launch
from labkit.channels.base import Closed, kind_dir
from labkit.launch import RemoteError
from labkit.lockfree import Broadcast, Missed, broadcast
from labkit.lockfree.broadcast_entry import (
    BAD,
    CURSOR,
    GOES_ON,
    ITEM_BYTES,
    NOT_WRITER,
    REFUSED,
    SENT,
    WRITES,
    broadcast_entries,
    broadcast_functions,
)
from labkit.lockfree.entry import new_state

pytestmark = pytest.mark.every_python

CAPACITY = 4096
LARGEST = CAPACITY // 2 - broadcast.FRAME


# --- against a model ----------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    operations=st.lists(
        st.one_of(
            st.integers(1, LARGEST),
            st.integers(1, 60),
            st.sampled_from(["receive", "many", "borrow", "loan", "give up", "oldest", "newest"]),
        ),
        max_size=120,
    ),
    many=st.integers(1, 9),
)
def test_a_reader_gets_what_was_sent_in_order_and_knows_exactly_what_it_missed(operations, many):
    with Broadcast(CAPACITY) as q:
        sent, expected, missed = 0, 0, 0

        def take(receive):
            nonlocal expected, missed
            before = q.missed
            try:
                messages = receive()
            except TimeoutError:
                assert expected == sent
            except Missed as gap:
                assert gap.count == q.missed - before > 0
                expected, missed = expected + gap.count, missed + gap.count
            else:
                for message in messages:
                    assert is_whole(message, expected)
                    expected += 1
            assert expected + len(q) == sent

        def borrow():
            with q.borrow(0) as slot:
                return [slot.array.tobytes()]

        for operation in operations:
            if operation == "receive":
                take(lambda: [q.receive(0)])
            elif operation == "many":
                take(lambda: q.receive_many(many, 0))
            elif operation == "borrow":
                take(borrow)
            elif operation == "loan":
                with q.loan(100) as slot:
                    slot.array[:] = np.frombuffer(stamped(sent, 100), np.uint8)
                sent += 1
            elif operation == "give up":
                q.loan(LARGEST).give_up()
            elif isinstance(operation, str):
                q.seek(operation)
                expected = sent - len(q)
            else:
                q.send(stamped(sent, operation))
                sent += 1
        while expected < sent:
            take(lambda: [q.receive(0)])
        assert q.missed == missed


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    capacity=st.sampled_from([1, 2, 3, 7, 8, 13, 64]),
    operations=st.lists(st.one_of(st.integers(-9, -1), st.integers(1, 40)), max_size=80),
)
def test_items_are_like_messages_of_one_size(capacity, operations):
    with Broadcast(capacity, dtype=np.int64) as q:
        sent, expected = 0, 0
        for count in (*operations, *[-9] * 50):
            if count > 0:
                q.send_many(np.arange(sent, sent + count))
                sent += count
                continue
            try:
                items = q.receive_many(-count, 0)
            except TimeoutError:
                assert expected == sent
            except Missed as gap:
                expected += gap.count
            else:
                assert items.tolist() == list(range(expected, expected + len(items)))
                expected += len(items)
            assert expected + len(q) == sent


def test_after_an_overrun_a_reader_goes_on_with_most_of_the_ring_before_it():
    with Broadcast(1 << 16) as q:
        for number in range(10_000):
            q.send(stamped(number, 100))
        with pytest.raises(Missed, match="messages were overwritten") as caught:
            q.receive()
        left = 10_000 - caught.value.count
        assert (1 << 16) // 128 // 2 < left < (1 << 16) // 128
        assert [is_whole(q.receive(0), n) for n in range(caught.value.count, 10_000)] == [True] * left


def test_who_asks_for_it_is_not_told_but_can_count():
    for q in (Broadcast(CAPACITY, on_missed="go on"), Broadcast(64, dtype="V8", on_missed="go on")):

        def number_of(message):
            return int.from_bytes(np.asarray(message).tobytes(), "little")

        for turn in range(2):
            for number in range(1000):
                message = stamped(1000 * turn + number, 8)
                q.send(message if q.max_message > 8 else np.void(message))
            first = number_of(q.receive(0))
            assert q.missed == first - turn * 2 > 0
            with q.borrow(0) as slot:
                assert number_of(slot.array) == first + 1
        assert [number_of(one) for one in q.receive_many(2000, 0)] == list(range(first + 2, 2000))
        q.close()


def test_a_damaged_gap_is_never_silent_for_who_goes_on(raw):
    raw.begin()
    raw.state[GOES_ON // 8] = 1
    for number in range(300):
        assert raw.send(stamped(number, 50)) == SENT
    raw.words[broadcast.OLDEST // 8] = 1 << 40
    assert raw.receive() == BAD


# --- store by store -----------------------------------------------------------------------------------------

HEADS = re.compile(r"from numba import njit\n|from labkit\.lockfree\.atomics import \(.*?\)\n", re.S)


class Killed(Exception):
    pass


class Interpreted:
    """labkit.lockfree.broadcast run by Python, with something done before each access to the ring, as `disturb` says.

    So what the writer and a reader do to each other between any two accesses can be tried out, all of it, and a writer
    can be killed after any store. (What processors do to the order of accesses is not seen here.)
    """

    CURSOR = 1 << 20

    def __init__(self, capacity: int):
        self.memory, self.private, self.capacity = bytearray(broadcast.DATA + capacity), {}, capacity
        self.disturb = lambda: None
        self.disturbed = False
        space: dict[str, Any] = {"njit": lambda f: f, "copy": self.copy}
        space |= dict.fromkeys(("load_acquire", "load_relaxed"), self.load)
        space |= dict.fromkeys(("store_release", "store_relaxed"), self.store)
        space |= dict.fromkeys(("acquire_fence", "release_fence", "fence"), lambda: None)
        exec(compile(HEADS.sub("", Path(broadcast.__file__).read_text()), "broadcast", "exec"), space)
        self.__dict__ |= {name: thing for name, thing in space.items() if callable(thing) and name not in self.__dict__}

    def before(self) -> None:
        if not self.disturbed:
            self.disturbed = True
            try:
                self.disturb()
            finally:
                self.disturbed = False

    def load(self, address: int) -> int:
        if address >= self.CURSOR:
            return self.private.get(address, 0)
        self.before()
        return int.from_bytes(self.memory[address : address + 8], "little", signed=True)

    def store(self, address: int, value: int) -> None:
        if address >= self.CURSOR:
            self.private[address] = value
        else:
            self.before()
            self.memory[address : address + 8] = value.to_bytes(8, "little", signed=True)

    def copy(self, to: Any, source: Any, size: int) -> None:
        """In pieces of 8 bytes. What is not in the ring is a bytes or bytearray object."""
        for start in range(0, size, 8):
            piece = slice(start, min(start + 8, size))
            self.before()
            if isinstance(to, bytearray):
                to[piece] = self.memory[source + piece.start : source + piece.stop]
            else:
                self.memory[to + piece.start : to + piece.stop] = source[piece]

    def send(self, number: int, size: int) -> None:
        message = stamped(number, size)
        position = self.claim(0, self.capacity, size)
        assert position >= 0
        self.copy(self.at(0, self.capacity, position), message, size)
        self.finish(0, self.capacity, position, size)

    def receive(self, reader: int) -> bytes | int | None:
        """A message, how many were missed, or None."""
        cursor = self.CURSOR + 4096 * reader
        size = self.next_message(0, self.capacity, cursor)
        if size > 0:
            room = bytearray(size)
            self.copy(room, self.at(0, self.capacity, self.private.get(cursor + broadcast.POSITION, 0)), size)
            if self.pass_message(0, cursor, size) == 0:
                return bytes(room)
            size = broadcast.OVERRUN
        if size == broadcast.OVERRUN:
            gap = self.catch_up(0, self.capacity, cursor)
            assert gap > 0
            return gap
        assert size == broadcast.EMPTY
        return None


class Reader:
    """Receives, checks, and knows what to expect."""

    def __init__(self, ring: Interpreted, number: int):
        self.ring, self.number, self.expected = ring, number, 0

    def receive(self) -> bool:
        got = self.ring.receive(self.number)
        if isinstance(got, bytes):
            assert is_whole(got, self.expected)
            self.expected += 1
        elif got is not None:
            self.expected += got
        return got is not None


def test_a_writer_killed_before_any_store_leaves_a_stream_that_the_next_one_continues():
    dice = random.Random(3)
    kills = 0
    for _ in range(60):
        ring = Interpreted(512)
        eager, lazy = Reader(ring, 1), Reader(ring, 2)
        sizes = [dice.choice([1, 8, 30, 100, 240]) for _ in range(dice.randrange(12))]
        for number, size in enumerate(sizes):
            ring.send(number, size)
            while eager.receive():
                pass
        victim, after = dice.choice([8, 100, 240]), dice.choice([8, 100, 240])
        before, places = bytes(ring.memory), dict(ring.private)
        for accesses in itertools.count():
            ring.memory[:], ring.private = before, dict(places)
            eager.expected, lazy.expected = len(sizes), 0
            countdown = iter(range(accesses))

            def die(countdown=countdown):
                if next(countdown, None) is None:
                    raise Killed

            ring.disturb = die
            try:
                ring.send(len(sizes), victim)
            except Killed:
                kills += 1
                killed = True
            else:
                killed = False
            ring.disturb = lambda: None
            while eager.receive():
                pass
            there = eager.expected
            assert there in (len(sizes), len(sizes) + 1)
            assert killed or there == len(sizes) + 1
            for number in range(there, there + 7):  # the next writer knows nothing of the last
                ring.send(number, after)
                eager.receive()
            while lazy.receive():
                pass
            late = Reader(ring, 3)
            assert ring.start(0, 512, ring.CURSOR + 3 * 4096, False) == 0
            late.expected = ring.private[ring.CURSOR + 3 * 4096 + broadcast.NUMBER]
            while late.receive():
                pass
            assert eager.expected == lazy.expected == late.expected == there + 7
            if not killed:
                break
    assert kills > 1000


@pytest.mark.parametrize("seed", range(4))
def test_a_reader_that_comes_between_any_two_accesses_of_the_writer_is_never_wrong(seed):
    dice, ring = random.Random(seed), Interpreted(512)
    readers = [Reader(ring, n) for n in range(3)]

    def disturb():
        if dice.random() < 0.3:
            readers[dice.randrange(2)].receive()
        if dice.random() < 0.005:
            readers[2].receive()

    ring.disturb = disturb
    for number in range(1500):
        ring.send(number, dice.choice([1, 8, 9, 40, 100, 240]))
    ring.disturb = lambda: None
    for reader in readers:
        while reader.receive():
            pass
        assert reader.expected == 1500
    missed = [ring.private.get(ring.CURSOR + 4096 * n + broadcast.MISSED, 0) for n in range(3)]
    assert missed[0] < missed[2]


@pytest.mark.parametrize("seed", range(4))
def test_a_writer_that_comes_between_any_two_accesses_of_a_reader_is_never_torn(seed):
    dice, ring = random.Random(seed), Interpreted(512)
    reader, sent = Reader(ring, 1), 0

    def disturb():
        nonlocal sent
        while dice.random() < 0.06:
            for _ in range(dice.choice([1, 1, 3, 12])):
                ring.send(sent, dice.choice([1, 8, 9, 40, 100, 240]))
                sent += 1

    ring.disturb = disturb
    while sent < 3000:
        reader.receive()
    ring.disturb = lambda: None
    while reader.receive():
        pass
    assert reader.expected == sent
    assert 0 < ring.private[ring.CURSOR + 4096 + broadcast.MISSED] < sent


# --- between processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("largest", [60, 3000, 30_000])
def test_many_readers_under_a_writer_that_does_not_wait_get_whole_messages_in_order_and_count_the_rest(largest):
    with Broadcast(1 << 16) as q:
        jobs = [launch(f, q) for f in (listen, listen_in_other_ways, listen, listen_in_other_ways)]
        sizes = roles.sizes(min(60_000, 400_000_000 // largest // 4), largest)
        for number, size in enumerate(sizes):
            q.send(stamped(number, max(8, size if number % 2 else largest)))
        q.close()
        results = [job.wait() for job in jobs]
        assert [sum(result) for result in results] == [len(sizes)] * 4
        assert any(missed for _, missed in results)


def test_many_readers_of_large_items_are_never_given_a_torn_one():
    with Broadcast(40, dtype=np.dtype((np.int64, 300))) as q:
        jobs = [launch(listen_to_items, q) for _ in range(3)]
        rows = np.repeat(np.arange(20_000), 300).reshape(-1, 300)
        for number in range(0, 20_000, 10):
            if number % 100:
                q.send_many(rows[number : number + 10])
            else:
                for row in rows[number : number + 10]:
                    q.send(row)
        q.close()
        results = [job.wait() for job in jobs]
        assert [sum(result) for result in results] == [20_000] * 3
        assert any(missed for _, missed in results)


def test_a_copy_begins_where_its_original_stands_and_loses_nothing_on_the_way():
    with Broadcast(1 << 16) as q:
        for number in range(10):
            q.send(stamped(number, 20))
        assert len(q.receive_many(4)) == 4
        job = launch(listen, q, 4)
        q.send(stamped(10, 20))
        q.close()
        assert job.wait() == (7, 0)


def test_a_forked_child_reads_on_from_the_same_place_and_is_not_the_writer():
    with Broadcast(1 << 16) as q:
        q.send_many([b"first", b"second", b"third"])
        assert q.receive() == b"first"
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                assert q.receive_many() == [b"second", b"third"]
                try:
                    q.send(b"not mine")
                except ValueError as error:
                    assert str(os.getppid()) in str(error)
                    status = 0
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert q.receive() == b"second"
        q.send(b"still the writer")
        assert q.receive_many() == [b"third", b"still the writer"]


def test_strangers_find_it_by_name_and_start_where_they_like(a_name):
    with Broadcast(CAPACITY, name=a_name) as q:
        q.send_many([b"1", b"2"])
        with Broadcast.open(a_name) as old, Broadcast.open(a_name, start="newest") as new:
            q.send(b"3")
            assert old.receive_many() == [b"1", b"2", b"3"]
            assert new.receive_many() == [b"3"]
            assert old.missed == new.missed == 0
            with pytest.raises(FileExistsError):
                Broadcast(CAPACITY, name=a_name)
    Broadcast.unlink(a_name)
    with pytest.raises(FileNotFoundError):
        Broadcast.open(a_name)
    with pytest.raises(FileNotFoundError):
        Broadcast.unlink(a_name)


# --- death and stopping -------------------------------------------------------------------------------------


def drain(q: Broadcast, expected: int) -> int:
    """Receive what is there, checked; the number that comes next."""
    while True:
        try:
            message = q.receive(0)
        except (TimeoutError, Closed):
            return expected
        except Missed as gap:
            expected += gap.count
        else:
            assert is_whole(message, expected)
            expected += 1


def receive_some(q: Broadcast, expected: int, count: int) -> int:
    assert roles.eventually(lambda: len(q), 30)  # before the writer is there, the last one has gone
    for _ in range(count):
        try:
            assert is_whole(q.receive(), expected)
            expected += 1
        except Missed as gap:
            expected += gap.count
    return expected


def test_a_writer_killed_anywhere_leaves_whole_messages_and_the_next_goes_on_from_there(a_name):
    dice, expected, behind = random.Random(11), 0, 0
    with Broadcast(1 << 16, name=a_name) as q, Broadcast.open(a_name) as slow:
        Broadcast.unlink(a_name)
        for seed in range(120):
            job = launch(write_from, q, expected, seed)
            expected = receive_some(q, expected, dice.randrange(1, 60))
            job.kill()
            with pytest.raises(RemoteError):
                job.wait()
            expected = drain(q, expected)
            with pytest.raises(Closed):
                q.receive()
            if seed % 10 == 0:
                behind = drain(slow, behind)
                assert behind == expected
        assert q.missed < expected


def test_a_stopped_writer_is_not_replaced_and_what_it_has_not_published_is_not_seen():
    dice = random.Random(12)
    with Broadcast(1 << 16) as q:
        job = launch(write_from, q, 0, 1)
        expected = 0
        for _ in range(80):
            expected = receive_some(q, expected, dice.randrange(1, 60))
            job.kill(signal.SIGSTOP)
            assert roles.eventually(lambda: stopped(job.pid))
            expected = drain(q, expected)
            with pytest.raises(TimeoutError):
                q.receive(0)
            with pytest.raises(ValueError, match=f"process {job.pid}"):
                q.send(b"mine")
            with pytest.raises(ValueError, match=f"process {job.pid}"):
                q.loan(10)
            job.kill(signal.SIGCONT)
        job.kill()
        with pytest.raises(RemoteError):
            job.wait()
        drain(q, expected)
        q.send(b"mine")
        assert q.receive() == b"mine"


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_readers_that_are_killed_or_stopped_are_nothing_to_the_writer_and_to_other_readers():
    dice, number = random.Random(13), 0
    with Broadcast(1 << 16) as q:
        listener, sleeper = launch(listen, q), launch(listen, q)

        def send(count):
            nonlocal number
            for _ in range(count):
                q.send(stamped(number, dice.choice([8, 20, 500, 5000])))
                number += 1

        sleeper.kill(signal.SIGSTOP)
        for turn in range(80):
            victim = launch(read_for_ever, q)
            send(200)
            if turn % 2:
                victim.kill(signal.SIGSTOP)
                send(500)
            victim.kill()
            with pytest.raises(RemoteError):
                victim.wait()
            if turn % 10 == 5:
                sleeper.kill(signal.SIGCONT)
                send(20)
                sleeper.kill(signal.SIGSTOP)
        sleeper.kill(signal.SIGCONT)
        q.close()
        assert sum(listener.wait()) == sum(sleeper.wait()) == number


def test_writers_may_follow_each_other_in_order():
    with Broadcast(1 << 20) as q:
        with pytest.raises(TimeoutError):
            q.receive(0)  # nobody has come yet: that is not the end
        for turn in range(5):
            launch(write_and_leave, q, turn * 100, 100).wait()
        assert drain(q, 0) == 500
        assert list(q) == []


def test_a_reader_that_waits_learns_that_the_writer_was_killed_and_of_one_that_closed():
    for end in (lambda job, q: job.kill(), lambda job, q: q.send(b"now")):
        with Broadcast(CAPACITY) as q, Broadcast(CAPACITY) as say:
            job = launch(send_one_and_wait, q, say)
            assert q.receive() == b"one"
            thread = threading.Timer(0.1, end, (job, say))
            thread.start()
            with pytest.raises(Closed):
                q.receive()
            thread.join()
            with contextlib.suppress(RemoteError):
                job.wait()


# --- waiting ------------------------------------------------------------------------------------------------


def test_waiting_takes_no_processor_time():
    with Broadcast(CAPACITY) as q:
        before = time.process_time()
        with pytest.raises(TimeoutError, match="0.7 s"):
            q.receive(0.7)
        assert time.process_time() - before < 0.1


def test_every_wait_has_a_timeout_that_makes_sense():
    with Broadcast(CAPACITY) as q:
        for timeout in (-1, float("nan")):
            for wait in (
                q.receive,
                q.borrow,
                lambda t: q.receive_many(5, t),
                lambda t: asyncio.run(q.receive_async(t)),
            ):
                with pytest.raises(ValueError, match="timeout"):
                    wait(timeout)
        q.send(b"x")
        assert q.receive(-1) == b"x"  # it need not wait


def test_ctrl_c_ends_a_wait_and_other_signals_do_not():
    with Broadcast(CAPACITY) as q:
        timer = roles.interrupt_soon()
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            q.receive(None)
        timer.join()
        beats = []
        sender = threading.Thread(target=lambda: roles.eventually(lambda: len(beats) > 3) and q.send(b"at last"))
        before = signal.signal(signal.SIGALRM, lambda *_: beats.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        sender.start()
        try:
            assert q.receive() == b"at last"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            sender.join()


def test_other_threads_run_while_one_waits():
    with Broadcast(CAPACITY) as q:
        got = []
        thread = threading.Thread(target=lambda: got.append(q.receive()))
        thread.start()
        assert roles.eventually(lambda: q._segment._words[16] & 1)  # it sleeps
        q.send(b"woken")
        thread.join()
        assert got == [b"woken"]


def test_who_is_asleep_when_it_is_closed_wakes():
    q = Broadcast(CAPACITY)
    q.send(b"x")
    q.receive()
    caught = []

    def wait():
        try:
            q.receive()
        except ValueError as error:
            caught.append(str(error))

    thread = threading.Thread(target=wait)
    thread.start()
    assert roles.eventually(lambda: q._segment._words[16] & 1)
    q.close()
    thread.join()
    assert "closed" in caught[0]


@pytest.mark.parametrize("named", [False, True])
def test_every_reader_that_polls_is_woken_and_none_takes_the_news_from_another(named, a_name):
    with Broadcast(1 << 16, name=a_name if named else None) as q, Broadcast(CAPACITY) as say:
        job = launch(send_when_asked, q, say)
        jobs = [launch(poll_all, q) for _ in range(2)]
        for number in range(300):
            say.send(stamped(number, 20))
            if q.pending():
                assert len(q)
            else:
                assert select.select([q], [], [], 60)[0]
            assert is_whole(q.receive(), number)
        say.close()
        assert [job.wait() for job in jobs] == [300, 300]
        job.wait()
    if named:
        Broadcast.unlink(a_name)


def test_asyncio_waits_for_it_and_a_cancelled_wait_loses_nothing():
    async def main(q, say):
        assert [await q.receive_async() for _ in range(3)] == [b"0", b"1", b"2"]
        with pytest.raises(TimeoutError):
            await q.receive_async(0.05)
        with pytest.raises(TimeoutError):
            await q.receive_async(0)
        for number in range(100):
            tasks = [asyncio.create_task(q.receive_async()) for _ in range(3)]
            await asyncio.sleep(0)
            tasks[0].cancel()
            say.send_many([b"a%d" % number, b"b%d" % number])
            if number % 2:
                tasks[0].cancel()
            assert sorted(await asyncio.gather(*tasks[1:])) == [b"a%d" % number, b"b%d" % number]
        say.close()
        return [message async for message in q]

    with Broadcast(1 << 16) as q, Broadcast(1 << 16) as say:
        job = launch(send_when_asked, q, say)
        say.send_many([b"0", b"1", b"2"])
        assert asyncio.run(main(q, say)) == []
        job.wait()


# --- damage -------------------------------------------------------------------------------------------------


class Raw:
    """A ring between two pages that nobody may touch, with its builtins."""

    def __init__(self, capacity: int = CAPACITY, item_bytes: int = 0):
        page, size = mmap.PAGESIZE, broadcast.DATA + capacity * (item_bytes or 1)
        self.mapping = mmap.mmap(-1, size + 3 * page)
        whole = np.frombuffer(self.mapping, np.uint8)
        libc, start = ctypes.CDLL(None, use_errno=True), int(whole.ctypes.data)
        end = (start + page + size + page - 1) // page * page
        assert libc.mprotect(ctypes.c_void_p(start), page, 0) == 0
        assert libc.mprotect(ctypes.c_void_p(end), page, 0) == 0
        first = end - start - size if item_bytes else page  # items end where the forbidden page begins
        self.bytes = whole[first : first + size]
        self.words = self.bytes[: size // 8 * 8].view(np.int64)
        self.bell = np.zeros(16, np.int64)
        self.capacity = capacity
        self.state = new_state(int(self.bytes.ctypes.data), capacity, item_bytes or LARGEST)
        self.state[[ITEM_BYTES // 8, broadcast_bell()]] = item_bytes, int(self.bell.ctypes.data)
        self.at = int(self.state.ctypes.data)
        for name, entry in broadcast_entries().items():
            setattr(self, name, entry.builtin(self.state, (self.bytes, self.bell)))
        self.functions = broadcast_functions()

    def begin(self, position: int = 0) -> None:
        """An empty ring whose positions are at `position`, a multiple of 16."""
        self.words[:] = 0
        self.words[[broadcast.OLDEST // 8, broadcast.WRITTEN // 8]] = position
        self.state[CURSOR // 8 : CURSOR // 8 + 4] = position, 0, 0, 0
        self.state[[WRITES // 8, GOES_ON // 8]] = 1, 0


def broadcast_bell() -> int:
    from labkit.lockfree.broadcast_entry import BELL

    return BELL // 8


@pytest.fixture(scope="module")
def raw():
    return Raw()


def test_damage_is_an_error_that_says_so():
    with Broadcast(CAPACITY) as q:
        q.send(b"x")
        q._segment.memory[4096:][: broadcast.DATA].view(np.int64)[broadcast.WRITTEN // 8] = -16
        for use in (
            lambda: q.send(b"x"),
            q.receive,
            q.borrow,
            lambda: len(q),
            lambda: q.loan(5),
            lambda: q.seek("oldest"),
        ):
            with pytest.raises(OSError, match="damaged") as caught:
                use()
            assert caught.value.errno == errno.EBADMSG


# --- bad input, and other manners ---------------------------------------------------------------------------


def test_what_cannot_be_a_broadcast_is_refused():
    with pytest.raises(ValueError, match="on_missed"):
        Broadcast(4096, on_missed="ignore")
    with pytest.raises((OSError, MemoryError)):
        Broadcast(1 << 36)


def test_messages_that_cannot_be_sent_are_refused_and_the_ring_stays_usable():
    with Broadcast(CAPACITY) as q:
        for send in (q.send, q.try_send, lambda m: q.send_many([m])):
            with pytest.raises(ValueError, match="at least 1 byte"):
                send(b"")
            with pytest.raises(ValueError, match=f"takes 1 to {LARGEST:,}"):
                send(bytes(LARGEST + 1))
            for wrong in ("text", 5, None):
                with pytest.raises(TypeError):
                    send(wrong)
        for size in (0, -1, LARGEST + 1):
            with pytest.raises(ValueError, match="bytes"):
                q.loan(size)
        with pytest.raises(TypeError):
            q.loan()
        q.send(bytes(LARGEST))
        assert q.receive() == bytes(LARGEST)
        q.send(memoryview(b"view"))
        q.send(bytearray(b"array"))
        assert q.receive_many() == [b"view", b"array"]
        with pytest.raises(ValueError, match="at least 1"):
            q.receive_many(0)


def test_items_of_another_dtype_or_shape_are_refused():
    with Broadcast(10, dtype=np.dtype((np.float32, (2, 3)))) as q:
        for wrong in (np.zeros((2, 3)), np.zeros((3, 2), np.float32), np.float32(1), [1, 2], np.zeros(24, np.uint8)):
            with pytest.raises(ValueError):
                q.send(wrong)
        with pytest.raises(ValueError):
            q.send_many(np.zeros((2, 3), np.float32))
        q.send(np.ones((2, 3), np.float32))
        q.send([[1, 1, 1], [1, 1, 1]])
        q.send_many(np.ones((4, 2, 3), np.float32)[::2])
        q.send_many(np.ones((0, 2, 3), np.float32))
        assert (q.receive_many() == 1).all()
        with q.loan() as slot:
            slot.array[:] = 5
        assert (q.receive() == 5).all()


def test_records_and_numbers_come_back_as_numpy_has_them():
    point = np.dtype([("x", "f8"), ("tag", "S3")])
    with Broadcast(10, dtype=point) as q:
        q.send(np.array((1.5, b"abc"), point))
        q.send((2.5, b"de"))
        assert q.receive()["tag"] == b"abc"
        assert q.receive_many()["x"].tolist() == [2.5]
    with Broadcast(10, dtype=np.uint8) as q:
        q.send(200)
        got = q.receive()
        assert got == 200
        assert type(got) is np.uint8


def test_a_segment_of_another_kind_dtype_or_version_is_refused(a_name):
    with Broadcast(10, dtype=np.int64, name=a_name):
        with pytest.raises(ValueError, match="8 bytes"):
            Broadcast.open(a_name)
        with pytest.raises(ValueError, match="8 bytes"):
            Broadcast.open(a_name, dtype=np.int32)
        with pytest.raises(ValueError, match="oldest"):
            Broadcast.open(a_name, dtype=np.int64, start="middle")
        path = kind_dir("lockfree") / a_name
        with path.open("r+b") as file:
            file.seek(24)
            file.write((broadcast.LAYOUT + 1).to_bytes(8, "little"))
        with pytest.raises(OSError, match="layout"):
            Broadcast.open(a_name, dtype=np.int64)
    Broadcast.unlink(a_name)


def test_a_closed_one_says_so_and_closing_again_is_nothing():
    q = Broadcast(CAPACITY)
    q.send(b"x")
    loan = q.loan(5)
    q.close()
    q.close()
    for use in (
        lambda: q.send(b"x"),
        lambda: q.try_send(b"x"),
        lambda: q.send_many([b"x"]),
        q.receive,
        q.try_receive,
        q.receive_many,
        q.borrow,
        lambda: q.loan(5),
        lambda: len(q),
        q.fileno,
        q.pending,
        lambda: q.seek("oldest"),
        lambda: asyncio.run(q.receive_async()),
        loan.publish,
    ):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert "closed" in repr(q)
    del loan, use
    with pytest.raises(TypeError, match="launch"), Broadcast(CAPACITY) as another:
        pickle.dumps(another)


# --- zero copy ----------------------------------------------------------------------------------------------


def test_a_loan_is_sent_at_the_end_of_its_with_and_not_after_an_exception():
    with Broadcast(CAPACITY) as q:
        with q.loan(3) as slot:
            slot.array[:] = (1, 2, 3)
            with pytest.raises(ValueError, match="one at a time"):
                q.send(b"x")
            with pytest.raises(ValueError, match="one at a time"):
                q.loan(3)
        with contextlib.suppress(ZeroDivisionError), q.loan(3) as slot:
            slot.array[:] = 1 // 0
        q.loan(10).give_up()
        with q.loan(1) as slot:
            slot.array[0] = 9
            slot.publish()  # and the end of the with does nothing more
        assert q.receive_many() == [b"\1\2\3", b"\t"]


def test_memory_of_the_ring_is_not_taken_back_while_somebody_has_a_view_of_it():
    with Broadcast(10, dtype=np.dtype((np.int64, 4))) as q:
        slot = q.loan()
        view = slot.array[1:]
        with pytest.raises(BufferError, match="view"):
            slot.publish()
        view[:] = 7
        slot.array[0] = 7
        del view
        slot.publish()
        slot = q.borrow()
        view = slot.array[:2]
        assert (view == 7).all()
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        with pytest.raises(BufferError, match="view"):
            slot.release()
        del view
        slot.release()
        slot.release()


def test_views_that_an_exception_keeps_alive_do_not_block_the_ring():
    with Broadcast(CAPACITY) as q:

        def fail():
            with q.loan(5) as slot:
                view = slot.array
                raise KeyError(view.shape)

        def fail_to_read():
            with q.borrow() as slot:
                view = slot.array
                raise KeyError(view.shape)

        with pytest.raises(KeyError) as caught:
            fail()
        with pytest.raises(BufferError):
            q.send(b"not yet")
        del caught
        gc.collect()
        q.send(b"now")
        with pytest.raises(KeyError) as caught:
            fail_to_read()
        del caught
        gc.collect()
        q.send(b"then")
        assert q.receive() == b"then"


def test_a_borrowed_message_that_was_overwritten_says_so_when_it_is_released():
    for q, send in (
        (Broadcast(CAPACITY), lambda q: q.send(bytes(100))),
        (Broadcast(20, dtype=np.int64), lambda q: q.send(1)),
    ):
        send(q)
        slot = q.borrow()
        for _ in range(10):
            send(q)
        assert slot.is_whole()
        with pytest.raises(ValueError, match="borrowed"):
            q.receive()
        with pytest.raises(ValueError, match="borrowed"):
            q.receive_many()
        for _ in range(100):
            send(q)
        assert not slot.is_whole()
        with pytest.raises(Missed, match="while it was used") as caught:
            slot.release()
        assert caught.value.count == q.missed == 111 - len(q)
        q.close()


# --- what the compiled code does ----------------------------------------------------------------------------


def test_builtins_say_what_is_wrong_with_their_arguments(raw):
    raw.begin()
    for ask in (
        lambda: raw.send(),
        lambda: raw.send("text"),
        lambda: raw.receive(1),
        lambda: raw.receive_many("three"),
        lambda: raw.receive_into(b"read-only"),
        lambda: raw.spin(1),
    ):
        with pytest.raises((TypeError, BufferError)):
            ask()
    with pytest.raises(OverflowError):
        raw.receive_many(1 << 80)
    assert raw.send(b"") == REFUSED
    raw.state[WRITES // 8] = 0
    assert raw.send(b"x") == NOT_WRITER
    assert raw.receive_many(-1) == []
