"""Killed after any machine instruction: what each queue promises then, looked at by who survives."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import roles
import stepper
from numba import njit
from stepper import call_marked, mark, sweep

from labkit.channels.base import Closed
from labkit.lockfree import Broadcast, Missed
from labkit.lockfree.atomics import compare_exchange, load_acquire, load_relaxed, store_relaxed, store_release

needs_ptrace = pytest.mark.skipif(bool(stepper.why_not()), reason=stepper.why_not() or "it can")


# --- the control: a queue that does not survive -------------------------------------------------------------
# D. Vyukov's bounded MPMC queue, as it is in many libraries. A cell is a sequence number and eight words.

CELLS = 8
WORDS = 8
WRITE, READ, FIRST = 0, 128, 256


@njit
def vyukov_create(body):
    for n in range(CELLS):
        store_relaxed(body + FIRST + n * 8 * (1 + WORDS), n)


@njit
def vyukov_send(body, item):
    while True:
        position = load_relaxed(body + WRITE)
        cell = body + FIRST + position % CELLS * 8 * (1 + WORDS)
        ahead = load_acquire(cell) - position
        if ahead < 0:
            return False
        if ahead == 0 and compare_exchange(body + WRITE, position, position + 1) == position:
            for word in range(WORDS):
                store_relaxed(cell + 8 + 8 * word, item)
            store_release(cell, position + 1)
            return True


@njit
def vyukov_receive(body, to):
    while True:
        position = load_relaxed(body + READ)
        cell = body + FIRST + position % CELLS * 8 * (1 + WORDS)
        ahead = load_acquire(cell) - position - 1
        if ahead < 0:
            return False
        if ahead == 0 and compare_exchange(body + READ, position, position + 1) == position:
            for word in range(WORDS):
                store_relaxed(to + 8 * word, load_relaxed(cell + 8 + 8 * word))
            store_release(cell, position + CELLS)
            return True


@njit
def vyukov_send_marked(body, to):
    mark()
    vyukov_send(body, 3)
    mark()


@njit
def vyukov_receive_marked(body, to):
    mark()
    vyukov_receive(body, to)
    mark()


class Vyukov:
    """Three items lie in it, 0, 1 and 2."""

    def __init__(self):
        self.words, self.out = stepper.shared(4096), stepper.shared(8 * WORDS)
        self.body, self.to = int(self.words.ctypes.data), int(self.out.ctypes.data)
        vyukov_create(self.body)
        for item in range(3):
            assert vyukov_send(self.body, item)

    def receive(self) -> int | None:
        if not vyukov_receive(self.body, self.to):
            return None
        assert len(set(self.out[:WORDS])) == 1, "torn"
        return int(self.out[0])

    def check(self) -> None:
        came = list(iter(self.receive, None))
        assert came in ([0, 1, 2], [0, 1, 2, 3], [1, 2]), f"lost: {came} came"
        sent = 0
        while vyukov_send(self.body, 10 + sent):
            sent += 1
        came = list(iter(self.receive, None))
        assert came == [10 + n for n in range(sent)], f"blocked: of {sent} items sent afterwards {len(came)} came"
        assert sent == CELLS, f"lost a slot: {sent} of {CELLS} are left"


@needs_ptrace
@pytest.mark.parametrize(
    ("marked", "says"), [(vyukov_send_marked, "blocked"), (vyukov_receive_marked, "lost a slot|blocked")]
)
def test_the_stepper_finds_where_a_plain_vyukov_queue_hangs_for_ever(marked, says):
    report = sweep(marked.__name__, Vyukov, lambda q: marked(q.body, q.to), Vyukov.check, lambda q: q.words, every=True)
    print(report)
    assert len(report.violations) >= WORDS
    assert report.instructions not in report.violations


# --- ours ---------------------------------------------------------------------------------------------------

SIZES = (24, 8, 60, 9, 33, 100, 64, 17)  # at least the eight digits that tell messages apart


def message(n: int) -> bytes:
    return roles.numbered(n, SIZES[n % len(SIZES)])


def number(content: bytes) -> int:
    assert content == message(int(content[:8])), f"not what was sent: {content!r}"
    return int(content[:8])


@dataclass
class Kind:
    """A queue, and what of the promises differs between queues.

    Attributes:
        make: a new one.
        item: message number n.
        number: of a message that came; raises when it is not one of ours.
        late: redelivered messages may come after later ones.
        forgets: a receiver's death leaves no trace, everybody else has everything anyway.
        keeps: how many items of any size it holds when it is full; None: it never is.
    """

    make: Callable[[], Any]
    item: Callable[[int], Any] = message
    number: Callable[[Any], int] = number
    late: bool = False
    forgets: bool = False
    keeps: int | None = None


KINDS = {
    "broadcast": Kind(lambda: Broadcast(4096), forgets=True),
}

BEFORE = 4  # messages that are there before the operation begins
BATCH = 3


def loan_and(q: Any, kind: Kind) -> Any:
    content = kind.item(BEFORE)
    slot = q.loan(len(content))
    slot.array[:] = np.frombuffer(content, np.uint8)
    return slot


SENDING: dict[str, tuple[int, Callable[[Any, Kind], object]]] = {
    "send": (1, lambda q, kind: call_marked(q.send, kind.item(BEFORE))),
    "try_send": (1, lambda q, kind: call_marked(q.try_send, kind.item(BEFORE))),
    "send_many": (BATCH, lambda q, kind: call_marked(q.send_many, [kind.item(BEFORE + n) for n in range(BATCH)])),
    "loan": (0, lambda q, kind: call_marked(q.loan, len(kind.item(BEFORE)))),
    "publish": (1, lambda q, kind: call_marked(type(loan := loan_and(q, kind)).publish, loan)),
    "give_up": (0, lambda q, kind: call_marked(type(loan := loan_and(q, kind)).give_up, loan)),
}
RECEIVING: dict[str, tuple[int, Callable[[Any, Kind], object]]] = {
    "receive": (1, lambda q, kind: call_marked(q.receive, 0)),
    "try_receive": (1, lambda q, kind: call_marked(lambda _: q.try_receive(), None)),
    "receive_many": (BATCH, lambda q, kind: call_marked(q.receive_many, BATCH)),
    "borrow": (0, lambda q, kind: call_marked(q.borrow, 0)),
    "release": (1, lambda q, kind: call_marked(type(slot := q.borrow(0)).release, slot)),
}


BRIEFLY = {"send", "send_many", "publish", "receive", "receive_many", "release"}
"""What is stepped when not everything is; the others call the same compiled functions."""


class Scene:
    """A queue with four messages in it; the child that is killed is their sender, or the next receiver."""

    def __init__(self, kind: Kind, sends: bool):
        self.kind, self.sends = kind, sends
        self.queue = kind.make()
        if not sends:
            self.fill()

    def fill(self) -> None:
        for n in range(BEFORE):
            self.queue.send(self.kind.item(n))

    def work(self, operation: Callable[[Any, Kind], object]) -> None:
        if self.sends:
            self.fill()
        operation(self.queue, self.kind)

    def words(self) -> np.ndarray:
        return self.queue._segment.memory.view(np.int64)

    def close(self) -> None:
        self.queue.close()

    def drain(self) -> list[int]:
        """The numbers of all messages that come, until it says that there are no more, three times."""
        came: list[int] = []
        looks = 0
        while looks < 3:
            try:
                found = self.queue.try_receive()
            except Closed:
                break
            if found is None:
                looks += 1
            else:
                came.append(self.kind.number(found))
                assert len(came) < 1000, "it never ends"
        return came

    def check(self, count: int) -> int:
        """Returns how many messages of the operation were sent, or received for good."""
        came = self.drain()
        if self.sends:
            done = len(came) - BEFORE
            assert came == list(range(BEFORE + done)), f"{came} came"
            assert 0 <= done <= count, f"{came} came"
            with pytest.raises(Closed):
                self.queue.receive(0)
        elif self.kind.forgets:
            done = 0
            assert came == list(range(BEFORE)), f"{came} came"
        else:
            done = BEFORE - len(came)
            assert 0 <= done <= count, f"{came} came"
            expected = list(range(done, BEFORE))
            assert (sorted(came) if self.kind.late else came) == expected, f"{came} came"
            on_time = [n for n in came if n >= count]
            assert on_time == sorted(on_time), f"{came} came"
        self.use_up()
        return done

    def use_up(self) -> None:
        """Nothing is lost for ever: as much fits in as ever did, and comes out."""
        if self.kind.keeps is None:
            for n in range(200):
                self.queue.send(self.kind.item(n), 0)
                assert self.kind.number(self.queue.receive(0)) == n
            return
        for _ in range(2):
            sent = 0
            while self.queue.try_send(self.kind.item(sent)):
                sent += 1
            assert sent == self.kind.keeps, f"{sent} of {self.kind.keeps} fit in afterwards"
            assert self.drain() == list(range(sent)), "what was sent afterwards did not come"


def kill_everywhere(name: str, operation: str) -> stepper.Report:
    kind, sends = KINDS[name], operation in SENDING
    count, work = (SENDING if sends else RECEIVING)[operation]
    report = sweep(
        f"{name}.{operation}",
        lambda: Scene(kind, sends),
        lambda scene: scene.work(work),
        lambda scene: scene.check(count),
        lambda scene: scene.words(),
    )
    print(report)
    return report


def swept() -> list[tuple[str, str]]:
    return [
        (name, operation)
        for name, kind in KINDS.items()
        for operation in (*SENDING, *RECEIVING)
        if stepper.everywhere()
        or (operation in BRIEFLY and not (kind.forgets and operation in RECEIVING and operation != "receive"))
    ]


@needs_ptrace
@pytest.mark.parametrize(("name", "operation"), swept())
def test_whoever_is_killed_after_any_instruction_the_others_go_on(name, operation):
    report = kill_everywhere(name, operation)
    assert not report.violations, str(report)
    answers = [report.answers[point] for point in report.points]
    assert answers == sorted(answers), "what was done once was undone later"
    if not KINDS[name].forgets or operation in SENDING:
        assert answers[-1] == (SENDING | RECEIVING)[operation][0], "the operation did nothing"


STORMS: dict[str, tuple[Callable[[], Any], bool, int, int]] = {
    "broadcast": (lambda: Broadcast(1 << 16), False, 1, 2),
    "broadcast items": (lambda: Broadcast(1000, dtype=np.int64), True, 1, 2),
}
"""A queue, whether it takes items, how many senders, how many receivers."""

# --- at random points, running free -------------------------------------------------------------------------

LOG = 1 << 13  # messages that a worker of a storm sends, or receives, at most
SEVERAL = 3


def worker_message(worker: int, n: int) -> bytes:
    body = b"%06d %06d " % (worker, n) + b"x" * (n * 7 % 90)
    return b"%08x " % zlib.crc32(body) + body


def worker_item(worker: int, n: int) -> int:
    return (worker << 20 | n) * 1_000_003


def read_message(message: bytes) -> int:
    assert zlib.crc32(message[9:]) == int(message[:8], 16), f"torn: {message!r}"
    return int(message[9:15]) << 20 | int(message[16:22])


def read_item(item: Any) -> int:
    number, rest = divmod(int(item), 1_000_003)
    assert not rest, f"torn: {item}"
    return number


class Storm:
    """Processes that send and receive all the time, each of which is killed, or stopped for a while, at any time.

    What a sender has begun to send, and has sent, and what a receiver has got, they write down in shared memory.
    """

    def __init__(self, queue: Any, items: bool, most_workers: int):
        self.queue, self.items = queue, items
        self.begun, self.got = stepper.shared(16 * most_workers)[: 2 * most_workers].reshape(2, -1)
        self.sent, self.log = stepper.shared(16 * LOG * most_workers)[: 2 * LOG * most_workers].reshape(2, -1, LOG)
        self.over = stepper.shared(8)
        self.workers: dict[int, tuple[int, str]] = {}  # pid -> number and part
        self.parts: list[str] = []  # of each worker there ever was
        self.killed: list[int] = []  # workers

    def start(self, part: str) -> None:
        number = len(self.parts)
        self.parts.append(part)
        work = self.send if part == "send" else self.receive
        self.workers[stepper.forked(lambda: work(number))] = number, part

    def send(self, me: int) -> None:
        make = worker_item if self.items else worker_message
        n = 0
        while n + SEVERAL < LOG and not self.over[0]:
            several = SEVERAL if n % 5 == 0 else 1
            messages = [make(me, n + ahead) for ahead in range(several)]
            n += several
            self.begun[me] = n
            try:
                if several > 1:
                    self.queue.send_many(np.array(messages) if self.items else messages, None)
                else:
                    self.queue.send(messages[0], None)
            except Closed:  # the only receiver was killed; another comes. Some of several may have been sent
                continue
            self.sent[me, n - several : n] = 1

    def receive(self, me: int) -> None:
        read = read_item if self.items else read_message
        while self.got[me] + SEVERAL < LOG:
            try:
                came = self.queue.receive_many(SEVERAL, None) if self.got[me] % 5 == 0 else [self.queue.receive(None)]
            except Missed:
                continue
            except Closed:  # the only sender was killed; another comes
                if self.over[0]:
                    return
                continue
            for message in came:
                self.log[me, self.got[me]] = read(message)
                self.got[me] += 1

    def goes_on(self) -> None:
        """Somebody receives something. Who has written down as much as there is room for, is relieved."""

        def something_came() -> bool:
            for pid, (_, part) in list(self.workers.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    assert os.waitstatus_to_exitcode(status) == 0
                    del self.workers[pid]
                    self.start(part)
            return bool(self.got.sum() > before)

        before = self.got.sum()
        assert roles.eventually(something_came, 60), "nobody receives any more"

    def kill(self, pid: int) -> str:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        number, part = self.workers.pop(pid)
        self.killed.append(number)
        return part

    def rage(self, times: int, seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(times):
            time.sleep(dice.random() * 0.002)  # where it hits is left to chance
            pid = dice.choice(list(self.workers))
            if dice.random() < 0.3:
                os.kill(pid, signal.SIGSTOP)
                time.sleep(dice.random() * 0.002)
                os.kill(pid, signal.SIGCONT)
                if dice.random() < 0.5:
                    self.start(self.kill(pid))
            else:
                self.start(self.kill(pid))
            self.goes_on()

    def end(self) -> None:
        """Senders stop; receivers end by themselves, once everything is received."""
        self.over[0] = 1
        for pid in list(self.workers):
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            del self.workers[pid]

    def close(self) -> None:
        for pid in list(self.workers):
            self.kill(pid)
        self.queue.close()


@pytest.mark.parametrize("name", STORMS)
def test_killed_or_stopped_at_any_time_nothing_that_was_sent_is_lost_or_comes_twice(name):
    make, items, senders, receivers = STORMS[name]
    times = 1000 if stepper.everywhere() else 150
    storm = Storm(make(), items, 4 * times + 100)
    with contextlib.closing(storm):
        for part in ["send"] * senders + ["receive"] * receivers:
            storm.start(part)
        storm.goes_on()
        storm.rage(times, 1)
        storm.end()
        came = [list(storm.log[n, : storm.got[n]]) for n in range(len(storm.parts))]
        for numbers in came:
            for one in numbers:
                assert one % (1 << 20) < storm.begun[one >> 20], "what nobody has sent"
        received = [one for numbers in came for one in numbers]
        killed = [n for n in storm.killed if storm.parts[n] == "receive"]
        print(f"{name}: {len(storm.killed)} killed, {len(received)} messages")
        if name.startswith("broadcast"):
            for numbers in came:
                assert numbers == sorted(set(numbers))
            return
        assert len(received) == len(set(received)), "twice"
        sent = {int(worker) << 20 | int(n) for worker, n in np.argwhere(storm.sent)}
        # Who is killed after it has released a message, and before it has written that down, takes it along.
        assert len(sent - set(received)) <= SEVERAL * len(killed)
        late = sum(
            first > second
            for numbers in came
            for first, second in itertools.pairwise(numbers)
            if first >> 20 == second >> 20
        )
        assert late <= (0 if name.startswith("spsc") else SEVERAL * len(killed)), "not in the order of sending"
        assert len(storm.queue) == 0
