"""Killed after any machine instruction: what each queue promises then, looked at by who survives."""

from __future__ import annotations

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
from labkit.lockfree import Broadcast
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
