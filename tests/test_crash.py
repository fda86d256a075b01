"""Killed after any machine instruction: what each queue promises then, looked at by who survives."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import roles
import stepper
from numba import njit, typeof, types
from stepper import call_marked, mark, sweep

from labkit.channels.base import Closed
from labkit.lockfree import Broadcast, Missed, blocks, vyukov
from labkit.lockfree.atomics import compiler_fence
from labkit.lockfree.bells import POLLS, SLEEPS
from labkit.lockfree.mpmc import RECEIVES
from labkit.lockfree.mpmc_entry import APART
from labkit.lockfree.objects import NothingCame, Objects
from labkit.lockfree.segment import BODY, ITEMS, ROOM

needs_ptrace = pytest.mark.skipif(bool(stepper.why_not()), reason=stepper.why_not() or "it can")


# --- the control: a queue that does not survive -------------------------------------------------------------
# labkit/lockfree/vyukov.py, with items of eight words.

CELLS = 8
WORDS = 8
STRIDE = 8 * (1 + WORDS)


@njit
def vyukov_send_marked(body, item):
    mark()
    vyukov.send(body, CELLS, STRIDE, item)
    mark()


@njit
def vyukov_receive_marked(body, item):
    mark()
    vyukov.receive(body, CELLS, STRIDE, item)
    mark()


class Vyukov:
    """Three items lie in it, 0, 1 and 2."""

    def __init__(self):
        self.words, self.item = stepper.shared(4096), stepper.shared(8 * WORDS)
        self.body, self.at = int(self.words.ctypes.data), int(self.item.ctypes.data)
        vyukov.create(self.body, CELLS, STRIDE)
        for number in range(3):
            assert self.send(number)
        self.item[:] = 3

    def close(self) -> None:
        pass

    def send(self, number: int) -> bool:
        self.item[:] = number
        return bool(vyukov.send(self.body, CELLS, STRIDE, self.at))

    def receive(self) -> int | None:
        if not vyukov.receive(self.body, CELLS, STRIDE, self.at):
            return None
        assert len(set(self.item[:WORDS])) == 1, "torn"
        return int(self.item[0])

    def check(self) -> None:
        came = list(iter(self.receive, None))
        assert came in ([0, 1, 2], [0, 1, 2, 3], [1, 2]), f"lost: {came} came"
        sent = 0
        while self.send(10 + sent):
            sent += 1
        came = list(iter(self.receive, None))
        assert came == [10 + n for n in range(sent)], f"blocked: of {sent} items sent afterwards {len(came)} came"
        assert sent == CELLS, f"lost a slot: {sent} of {CELLS} are left"


@needs_ptrace
@pytest.mark.parametrize(
    ("marked", "says"), [(vyukov_send_marked, "blocked"), (vyukov_receive_marked, "lost a slot|blocked")]
)
def test_the_stepper_finds_where_a_plain_vyukov_queue_hangs_for_ever(marked, says):
    report = sweep(marked.__name__, Vyukov, lambda q: marked(q.body, q.at), Vyukov.check, lambda q: q.words, every=True)
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


def numeral(n: int) -> int:
    return n * 1_000_003


def numeral_of(item: Any) -> int:
    assert int(item) % 1_000_003 == 0, f"not what was sent: {item!r}"
    return int(item) // 1_000_003


@dataclass
class Kind:
    """A queue, and what of the promises differs between queues.

    Attributes:
        make: a new one.
        items: of numbers; else of messages.
        late: redelivered messages may come after later ones.
        forgets: a receiver's death leaves no trace, everybody else has everything anyway.
        keeps: how many messages it holds when it is full; None: it never is.
        most: how many of the messages that are there come together: one in pieces comes alone.
    """

    make: Callable[[], Any]
    items: bool = False
    late: bool = False
    forgets: bool = False
    keeps: int | None = None
    most: int = 1000

    def item(self, n: int) -> Any:
        return numeral(n) if self.items else message(n)

    def several(self, first: int, count: int) -> Any:
        some = [self.item(first + n) for n in range(count)]
        return np.array(some) if self.items else some

    def number(self, came: Any) -> int:
        return numeral_of(came) if self.items else number(came)

    def size(self, n: int) -> int | None:
        """What `loan` wants to know."""
        return None if self.items else len(message(n))

    def loan(self, queue: Any, n: int) -> Any:
        """A slot with message n in it, not yet published."""
        slot = queue.loan(self.size(n))
        slot.array[...] = numeral(n) if self.items else np.frombuffer(message(n), np.uint8)
        return slot


def fitting(capacity: int, header: int) -> int:
    """How many messages fit in a ring of so many bytes."""
    used = itertools.accumulate(header + -(-len(message(n)) // 8) * 8 for n in itertools.count())
    return sum(1 for _ in itertools.takewhile(lambda bytes_: bytes_ <= capacity, used))


KINDS = {
    "broadcast": Kind(lambda: Broadcast(4096), forgets=True),
    "broadcast items": Kind(lambda: Broadcast(16, dtype=np.int64), items=True, forgets=True),
}
with contextlib.suppress(ImportError):
    from labkit.lockfree import Spsc
    from labkit.lockfree.spsc import FOLLOWS
    from labkit.lockfree.spsc_entry import LARGE, PIECE

    def in_pieces(ring: Spsc) -> Spsc:
        """Have it send messages in pieces that are much smaller than those that pay."""
        ring._state[[LARGE // 8, PIECE // 8]] = 24, 16
        return ring

    def followed(ring: Spsc, follows: bool = True) -> Spsc:
        """As its receiver does it: wish for a copy of each item, or for none."""
        ring._segment.memory[BODY + FOLLOWS] = follows
        return ring

    def fitting_in_pieces(capacity: int) -> int:
        """How many messages fit, when one that is in pieces is begun only if there is room for a head more."""
        used = 0
        for n in itertools.count():
            size = len(message(n))
            whole = 8 + -(-size // 8) * 8
            pieces = 8 + whole + (size - 1) // 16 * 8 if size > 24 else whole
            if used + (whole + (2 + size // 16) * 8 if size > 24 else whole) > capacity:
                return n
            used += pieces
        raise AssertionError

    KINDS["spsc"] = Kind(lambda: Spsc(4096), keeps=fitting(4096, 8))
    KINDS["spsc items"] = Kind(lambda: Spsc(40, dtype=np.int64), items=True, keeps=40)
    KINDS["spsc copies"] = Kind(lambda: followed(Spsc(40, dtype=np.int64)), items=True, keeps=40)
    KINDS["spsc pieces"] = Kind(lambda: in_pieces(Spsc(4096)), keeps=fitting_in_pieces(4096), most=2)
with contextlib.suppress(ImportError):
    from labkit.lockfree import Mpmc

    KINDS["mpmc"] = Kind(lambda: Mpmc(7, message_bytes=100), late=True, keeps=7)
    KINDS["mpmc items"] = Kind(lambda: Mpmc(8, dtype=np.int64), items=True, late=True, keeps=8)

BEFORE = 4  # messages that are there before the operation begins
BATCH = 3

Operation = Callable[[Any, Kind, int], object]
"""What is done to a queue of this kind, where the next message is number so and so."""


@njit
def compiled_send(q, item):
    mark()
    q.send(item)
    mark()


@njit
def compiled_send_many(q, items):
    mark()
    q.send_many(items)
    mark()


@njit
def compiled_receive(q):
    mark()
    q.receive(0.0)
    mark()


@njit
def compiled_receive_many(q):
    mark()
    q.receive_many(BATCH, 0.0)
    mark()


SENDING: dict[str, tuple[int, Operation]] = {
    "send": (1, lambda q, kind, n: call_marked(q.send, kind.item(n))),
    "try_send": (1, lambda q, kind, n: call_marked(q.try_send, kind.item(n))),
    "send_many": (BATCH, lambda q, kind, n: call_marked(q.send_many, kind.several(n, BATCH))),
    "loan": (0, lambda q, kind, n: call_marked(q.loan, kind.size(n))),
    "publish": (1, lambda q, kind, n: call_marked(lambda slot: slot.publish(), kind.loan(q, n))),
    "give_up": (0, lambda q, kind, n: call_marked(lambda slot: slot.give_up(), kind.loan(q, n))),
    "compiled send": (1, lambda q, kind, n: compiled_send(q, kind.item(n))),
    "compiled send_many": (BATCH, lambda q, kind, n: compiled_send_many(q, kind.several(n, BATCH))),
}
RECEIVING: dict[str, tuple[int, Operation]] = {
    "receive": (1, lambda q, kind, n: call_marked(q.receive, 0)),
    "try_receive": (1, lambda q, kind, n: call_marked(lambda _: q.try_receive(), None)),
    "receive_many": (BATCH, lambda q, kind, n: call_marked(q.receive_many, BATCH)),
    "borrow": (0, lambda q, kind, n: call_marked(q.borrow, 0)),
    "release": (1, lambda q, kind, n: call_marked(lambda slot: slot.release(), q.borrow(0))),
    "compiled receive": (1, lambda q, kind, n: compiled_receive(q)),
    "compiled receive_many": (BATCH, lambda q, kind, n: compiled_receive_many(q)),
}
"""How many messages are sent, or received, at the end; and what a child does to get there, between two marks."""

COMPILED = {name for name in (*SENDING, *RECEIVING) if name.startswith("compiled")}
"""In a reader's own @njit function, which takes queues of items."""
BRIEFLY = {"send", "send_many", "publish", "receive", "receive_many", "release", *COMPILED}
"""What is stepped when not everything is; the others call the same compiled functions."""


class Scene:
    """A queue, with messages in it when it is not `bare`, and the child that is killed at it: a sender or a receiver.

    Args:
        after_deaths: others have died here before, in the middle of sending and of receiving; and somebody seems to
            sleep, whom the child has to wake.
    """

    def __init__(self, kind: Kind, sends: bool, after_deaths: bool):
        self.kind, self.sends, self.after_deaths = kind, sends, after_deaths
        self.queue = kind.make()
        self.told = stepper.shared(8)
        self.before = BEFORE if not after_deaths else 0 if sends else 1
        if after_deaths:
            self.bury_two()
            for bell in (ITEMS, ROOM):
                self.queue._segment.bell(bell).arm(SLEEPS | POLLS)
        elif not sends:
            self.fill()

    def fill(self) -> None:
        for n in range(self.before):
            self.queue.send(self.kind.item(n))

    def bury_two(self) -> None:
        """One that had received a message and not released it; one that was about to send another."""
        if not self.sends:
            self.do(self.fill)
            self.do(lambda: self.queue.borrow(0))
        self.do(lambda: self.kind.loan(self.queue, 99))

    def do(self, work: Callable[[], object]) -> None:
        """In a process that dies without closing anything."""
        assert os.waitpid(stepper.forked(work), 0)[1] == 0

    def work(self, operation: Operation) -> Any:
        if self.sends:
            self.fill()
        return operation(self.queue, self.kind, self.before)

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
            except (Closed, ValueError):  # or another is the receiver, and lives
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
            done = len(came) - self.before
            assert came == list(range(len(came))), f"{came} came"
            if self.before:
                with pytest.raises(Closed):
                    self.queue.receive(0)
        else:
            done = self.before - len(came)
            expected = list(range(done, self.before))
            assert (sorted(came) if self.kind.late else came) == expected, f"{came} came"
            on_time = [n for n in came if n >= max(count, 1)]  # one may have been borrowed
            assert on_time == sorted(on_time), f"{came} came"
        assert 0 <= done <= count, f"{came} came"
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


def swept() -> list[tuple[str, str, bool]]:
    return [
        (name, operation, after_deaths)
        for after_deaths in (False, True)
        for name, kind in KINDS.items()
        for operation in (*SENDING, *RECEIVING)
        if (kind.items or operation not in COMPILED)
        and (
            stepper.everywhere()
            or operation
            in (("send", "receive") if after_deaths or (kind.forgets and operation in RECEIVING) else BRIEFLY)
        )
    ]


@needs_ptrace
@pytest.mark.parametrize(("name", "operation", "after_deaths"), swept())
def test_whoever_is_killed_after_any_instruction_the_others_go_on(name, operation, after_deaths):
    kind, sends = KINDS[name], operation in SENDING
    count, work = (SENDING | RECEIVING)[operation]
    if operation in COMPILED:  # here, once, and not in each child
        with contextlib.closing(Scene(kind, sends, after_deaths=False)) as scene:
            scene.work(work)
    report = sweep(
        f"{name}.{operation}{' after deaths' * after_deaths}",
        lambda: Scene(kind, sends, after_deaths),
        lambda scene: scene.work(work),
        lambda scene: scene.check(count),
        lambda scene: scene.words(),
    )
    print(report)
    assert not report.violations, str(report)
    answers = [report.answers[point] for point in report.points]
    assert answers == sorted(answers), "what was done once was undone later"
    if not kind.forgets or sends:
        there = count if sends else min(kind.most, 1 if after_deaths else BEFORE)
        assert answers[-1] == min(count, there), "the operation did nothing"


# --- a copy of an item, which a dead sender has left --------------------------------------------------------

HEIRS: dict[str, tuple[bool, Callable[[Any, int], object]]] = {
    "copies": (True, lambda q, item: q.send(item)),
    "copies nothing": (False, lambda q, item: q.send(item)),
    "sends what was lent": (True, lambda q, item: KINDS["spsc copies"].loan(q, numeral_of(item)).publish()),
    "sends two": (True, lambda q, item: q.send_many(np.array([item, numeral(9)]))),
}
"""Whether the receiver wishes for copies when the next sender sends, and how that does it."""


class CopyScene:
    """An empty ring, and a child that is killed while it sends an item, and a copy of it."""

    def __init__(self, heir: str):
        self.queue, self.heir = followed(Spsc(8, dtype=np.int64)), HEIRS[heir]

    def words(self) -> np.ndarray:
        return self.queue._segment.memory.view(np.int64)

    def close(self) -> None:
        self.queue.close()

    def check(self) -> int:
        """Whether the item came."""
        queue, (follows, send), first = self.queue, self.heir, None
        with contextlib.suppress(Closed):  # there is no sender now
            first = queue.try_receive()
        assert first is None or numeral_of(first) == 1
        send(followed(queue, follows), numeral(2))
        assert numeral_of(queue.receive(0)) == 2
        return int(first is not None)


@needs_ptrace
@pytest.mark.parametrize("heir", HEIRS)
@pytest.mark.parametrize("operation", ["send", "compiled send"])
def test_the_copy_that_a_killed_sender_leaves_is_never_taken_for_what_the_next_one_sends(operation, heir):
    _, work = SENDING[operation]
    kind = KINDS["spsc copies"]
    with contextlib.closing(CopyScene(heir)) as scene:  # compiled here, once, and not in each child
        work(scene.queue, kind, 1)
    report = sweep(
        f"spsc copies.{operation}, and the next one {heir}",
        lambda: CopyScene(heir),
        lambda scene: work(scene.queue, kind, 1),
        lambda scene: scene.check(),
        lambda scene: scene.words(),
    )
    print(report)
    assert not report.violations, str(report)
    answers = [report.answers[point] for point in report.points]
    assert answers == sorted(answers) and (answers[0], answers[-1]) == (0, 1)


# --- objects, which lie in slots and in runs of blocks ------------------------------------------------------

LARGE_THING = "large" * 2000
FEW_THINGS = [{"number": n, "all have": "this"} for n in range(9)]


def put_together(q: Objects, things: list) -> None:
    """As `Objects.put_together` does it when there are blocks that have memory."""
    q.put(None)  # so that it has joined
    q.throw_away(q._claim(64 * blocks.BLOCK))
    call_marked(q._put_trees, things)


def put_large(q: Objects, thing: str) -> None:
    q.put(None)
    call_marked(q.offer, q.pack(thing))


def get_many(q: Objects) -> None:
    assert q._get_list(1) == APART  # so it joins
    q._settle(APART, RECEIVES)
    call_marked(q._get_list, 4)


OF_OBJECTS: dict[str, tuple[list, list, Callable[[Objects], object]]] = {
    "claim and free": ([], [], lambda q: call_marked(lambda size: q.throw_away(q._claim(size)), 9000)),
    "put large": ([], [None, LARGE_THING], lambda q: put_large(q, LARGE_THING)),
    "put together": ([], [None, *FEW_THINGS], lambda q: put_together(q, FEW_THINGS)),
    "get large": ([LARGE_THING, 1], [], lambda q: call_marked(q._get, 0)),
    "get one of many": ([*FEW_THINGS, 1], [], lambda q: call_marked(q._get, 0)),
    "get many": ([*FEW_THINGS, LARGE_THING], [], get_many),
}
"""What is there before, what is put, and what a child does."""


class ObjectsScene:
    """A queue of objects, and the child that is killed at it."""

    def __init__(self, before: list, put: list):
        self.before, self.put = before, put
        self.queue = Objects(16)
        if before:
            together = before[:-1]
            if len(together) < 8 or not self.queue.put_together(together):
                for thing in together:
                    self.queue.put(thing)
            self.queue.put(before[-1])

    def words(self) -> np.ndarray:
        """The slots, and the words of some blocks."""
        end = self.queue._pool + blocks.WORDS + 8 * 64
        return self.queue._segment.memory[:end].view(np.int64)

    def close(self) -> None:
        self.queue.close()

    def drain(self) -> list:
        came: list = []
        looks = 0
        while looks < 3:
            try:
                came.append(self.queue._get(0))
            except NothingCame:
                looks += 1
            assert len(came) < 100, "it never ends"
        return came

    def check(self) -> int:
        """How many objects the child has put, or got for good."""
        came = self.drain()
        if self.before:
            done = len(self.before) - len(came)
            assert [one for one in self.before if one in came] == sorted(came, key=self.before.index)
            assert done <= 4, f"{came} came"
        else:
            done = len(came)
            assert came == self.put[:done], f"{came} came"
        assert self.queue.runs_in_use() == 0, "blocks are lost"
        for _ in range(2):
            for n in range(16):
                self.queue.put(n if n % 5 else LARGE_THING)
            assert self.queue.put_together(FEW_THINGS) == 0
            with pytest.raises(TimeoutError):
                self.queue._put(0, 0)
            assert self.drain() == [n if n % 5 else LARGE_THING for n in range(16)]
        return done


@needs_ptrace
@pytest.mark.parametrize("operation", OF_OBJECTS)
def test_whoever_is_killed_over_a_run_of_blocks_leaves_it_to_others_or_whole(operation):
    before, put, work = OF_OBJECTS[operation]
    report = sweep(
        f"objects.{operation}",
        lambda: ObjectsScene(before, put),
        lambda scene: work(scene.queue),
        lambda scene: scene.check(),
        lambda scene: scene.words(),
    )
    print(report)
    assert not report.violations, str(report)
    answers = [report.answers[point] for point in report.points]
    assert answers == sorted(answers), "what was done once was undone later"


@needs_ptrace
@pytest.mark.parametrize("operation", ["send", "receive"])
@pytest.mark.parametrize("name", KINDS)
def test_whoever_is_stopped_after_any_instruction_goes_on_later_as_if_nothing_had_been(name, operation):
    """Only a death is a death: nobody takes anything from a process that is stopped, however long."""
    kind, sends = KINDS[name], operation in SENDING
    _, work = (SENDING | RECEIVING)[operation]

    def work_and_tell(scene: Scene) -> None:
        # Somebody else may have received everything meanwhile, and be the receiver where there is only one.
        with contextlib.suppress(TimeoutError, Closed, *([] if sends or kind.late else [ValueError])):
            came = scene.work(work)
            if not sends:
                scene.told[0] = 1 + kind.number(came)

    with contextlib.closing(Scene(kind, sends, False)) as scene:
        work_and_tell(scene)
    with contextlib.closing(Scene(kind, sends, False)) as scene:
        found = stepper.record(lambda: work_and_tell(scene), scene.words(), 400_000)
    for point in stepper.spread(found.changes, 30 if stepper.everywhere() else 8):
        with contextlib.closing(Scene(kind, sends, False)) as scene:
            with stepper.Stepped(lambda scene=scene: work_and_tell(scene)) as child:
                child.go(found.point(point), scene.words())
                child.stop()
                came = scene.drain()
                with contextlib.suppress(TimeoutError, Closed, ValueError):  # when another is the receiver, and lives
                    came.append(kind.number(scene.queue.receive(0.12)))
                assert child.resume() == 0
            came += scene.drain()
            if sends or kind.forgets:
                assert came == list(range(BEFORE + sends)), f"stopped after {point}: {came} came"
            else:
                told = [int(scene.told[0]) - 1] if scene.told[0] else []
                assert sorted(came + told) == list(range(BEFORE)), f"stopped after {point}: {came} came, and {told}"
            scene.use_up()


# --- at random points, running free -------------------------------------------------------------------------

SEVERAL = 3


class Storm:
    """Processes that send and receive all the time, each of which is killed, or stopped for a while, at any time.

    What a sender has begun to send, and has sent, and what a receiver has got, they write down in shared memory.
    """

    CATCHES = 0.3  # of the strokes begin with SIGSTOP; the others are SIGKILL at any time
    TRIES = 1  # to stop somebody in the middle of a message

    def __init__(self, queue: Any, most_workers: int):
        self.queue = queue
        self.begun, self.got = stepper.shared(16 * most_workers)[: 2 * most_workers].reshape(2, -1)  # how many
        self.over = stepper.shared(8)
        self.workers: dict[int, tuple[int, str]] = {}  # pid -> number and part
        self.parts: list[str] = []  # of each worker there ever was
        if isinstance(queue, Mpmc):
            assert queue.try_receive() is None  # this process sends nothing: its receivers need not wait for it
        self.killed: list[int] = []  # workers
        self.strokes: Counter[str] = Counter()

    def send(self, me: int) -> None:
        """What a sender does until it is over."""
        raise NotImplementedError

    def receive(self, me: int) -> None:
        """What a receiver does until there is no sender any more, and it is over."""
        raise NotImplementedError

    def check(self) -> None:
        """After the end: everything that was sent has come, once, but for what the killed have taken along."""
        raise NotImplementedError

    def is_inside(self, worker: int) -> bool:
        """Whether this worker, who is stopped, is in the middle of a message, as far as one can see."""
        return False

    def start(self, part: str) -> None:
        number = len(self.parts)
        self.parts.append(part)
        work = self.send if part == "send" else self.receive

        def work_and_let_others_go_first() -> None:
            os.nice(10)  # whoever kills would wait for its turn behind all that never rest
            signal.alarm(10 * stepper.DEADLINE)  # who hangs is found by `goes_on`
            work(number)

        self.workers[stepper.forked(work_and_let_others_go_first)] = number, part

    def goes_on(self) -> None:
        """Somebody receives something. Who has written down as much as there is room for, is relieved."""

        def something_came() -> bool:
            for pid in list(self.workers):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.relieve(pid, status)
            return bool(self.got.sum() > before)

        before = self.got.sum()
        assert roles.eventually(something_came, 120, 0.001), "nobody receives any more"

    def relieve(self, pid: int, status: int) -> None:
        """Another one for who has ended by itself."""
        _, part = self.workers.pop(pid)
        assert os.waitstatus_to_exitcode(status) == 0
        self.start(part)

    def kill(self, pid: int) -> str:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        number, part = self.workers.pop(pid)
        assert os.waitstatus_to_exitcode(status) in (0, -signal.SIGKILL)  # it may just have ended by itself
        self.killed.append(number)
        self.strokes[f"{part}: killed"] += 1
        return part

    def catch(self, pid: int) -> bool:
        """SIGSTOP, and again if it is not in the middle of a message, TRIES at most. False: it has ended by itself."""
        worker, part = self.workers[pid]
        for n in range(self.TRIES):
            if n:
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.0001)
            os.kill(pid, signal.SIGSTOP)
            _, status = os.waitpid(pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                self.relieve(pid, status)
                return False
            if self.is_inside(worker):
                self.strokes[f"{part}: stopped in the middle of a message"] += 1
                break
        self.strokes[f"{part}: stopped"] += 1
        return True

    def rage(self, senders: int, receivers: int, times: int) -> None:
        dice = random.Random(1)
        for part in ["send"] * senders + ["receive"] * receivers:
            self.start(part)
        self.goes_on()
        for turn in range(times):
            time.sleep(dice.random() * 0.002)  # where it hits is left to chance
            victim = ("send", "receive")[turn % 2]
            pid = dice.choice([pid for pid, (_, part) in self.workers.items() if part == victim])
            chance = dice.random()
            if chance >= self.CATCHES:
                self.start(self.kill(pid))
            elif self.catch(pid):
                if chance < 0.3:
                    time.sleep(dice.random() * 0.002)
                    os.kill(pid, signal.SIGCONT)
                if chance >= 0.15:
                    self.start(self.kill(pid))
            self.goes_on()
        self.over[0] = 1  # senders stop, and receivers end by themselves, once everything is received
        for pid in list(self.workers):
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            del self.workers[pid]

    def most_lost(self) -> int:
        """Who is killed after it has released messages, and before it has written that down, takes them along."""
        return SEVERAL * sum(self.parts[worker] == "receive" for worker in self.killed)

    def close(self) -> None:
        for pid in self.workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.queue.close()


STORMS: dict[str, tuple[Callable[[], Any], bool, int, int]] = {
    "broadcast": (lambda: Broadcast(1 << 16), False, 1, 2),
    "broadcast items": (lambda: Broadcast(1000, dtype=np.int64), True, 1, 2),
}
"""A queue, whether it takes items, how many senders, how many receivers."""
if "spsc" in KINDS:
    STORMS["spsc"] = lambda: Spsc(1 << 14), False, 1, 1
    STORMS["spsc copies"] = lambda: followed(Spsc(200, dtype=np.int64)), True, 1, 1
    STORMS["spsc pieces"] = lambda: in_pieces(Spsc(1 << 14)), False, 1, 1
    STORMS["spsc items"] = lambda: Spsc(200, dtype=np.int64), True, 1, 1
if "mpmc" in KINDS:
    STORMS["mpmc"] = lambda: Mpmc(50, message_bytes=128), False, 2, 2
    STORMS["mpmc items"] = lambda: Mpmc(64, dtype=np.int64), True, 2, 2

LOG = 1 << 13  # messages that a worker of a storm sends, or receives, at most


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


class PythonStorm(Storm):
    """Of calls from Python. They write down each message."""

    def __init__(self, queue: Any, items: bool, most_workers: int):
        super().__init__(queue, most_workers)
        self.items = items
        self.sent, self.log = stepper.shared(16 * LOG * most_workers)[: 2 * LOG * most_workers].reshape(2, -1, LOG)

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

    def check(self) -> None:
        came = [list(self.log[n, : self.got[n]]) for n in range(len(self.parts))]
        received = [one for numbers in came for one in numbers]
        print(f"{len(received)} messages, {dict(self.strokes)}")
        for one in received:
            assert one % (1 << 20) < self.begun[one >> 20], "what nobody has sent"
        if isinstance(self.queue, Broadcast):
            for numbers in came:
                assert numbers == sorted(set(numbers))
            return
        assert len(received) == len(set(received)), "twice"
        sent = {int(worker) << 20 | int(n) for worker, n in np.argwhere(self.sent)}
        assert len(sent - set(received)) <= self.most_lost(), "lost"
        late = sum(
            first > second
            for numbers in came
            for first, second in itertools.pairwise(numbers)
            if first >> 20 == second >> 20
        )
        assert late <= (self.most_lost() if isinstance(self.queue, Mpmc) else 0), "not in the order of sending"
        assert len(self.queue) == 0


@pytest.mark.parametrize("name", STORMS)
def test_killed_or_stopped_at_any_time_nothing_that_was_sent_is_lost_or_comes_twice(name):
    make, items, senders, receivers = STORMS[name]
    times = 1200 if stepper.everywhere() else 60 if items else 150
    with contextlib.closing(PythonStorm(make(), items, 4 * times + 100)) as storm:
        storm.rage(senders, receivers, times)
        storm.check()


# --- the same of compiled loops -----------------------------------------------------------------------------

LONG_LOG = 1 << 16
LARGE_ITEM = np.dtype((np.int64, 4096))
"""To copy it takes most of the time, so that many are killed in the middle of one."""
LOOKED_AT = 64  # the last one of so many words says what all say
TELLTALE = 1 << 40  # no word of a queue's own is as large


@njit
def compiled_sender(q, me, begun, sent, over):
    several = np.zeros((SEVERAL, 4096), np.int64)
    while begun[me] + SEVERAL < sent.shape[1] and over[0] == 0:
        n = begun[me]
        count = SEVERAL if n % 5 == 0 else 1
        for ahead in range(count):
            for word in range(LOOKED_AT - 1, 4096, LOOKED_AT):
                several[ahead, word] = TELLTALE | me << 20 | (n + ahead)
        begun[me] = n + count
        compiler_fence()  # written down before it is sent, and after it was
        q.send_many(several[:count], None)
        compiler_fence()
        for ahead in range(count):
            sent[me, n + ahead] = 1


@njit
def compiled_receiver(q, me, begun, got, came, late, last, several):
    """Counts how often each message comes, and which come after later ones of the same sender."""
    while True:
        count = q.receive_into(several[: 1 + got[me] % SEVERAL], None)
        for one in range(count):
            number = several[one, 4095]
            for word in range(LOOKED_AT - 1, 4096, LOOKED_AT):
                if several[one, word] != number:
                    raise ValueError("torn")
            worker, n = (number ^ TELLTALE) >> 20, number & 0xFFFFF
            if not 0 <= worker < len(begun) or n >= begun[worker]:
                raise ValueError("what nobody has sent")
            came[worker, n] += 1
            late[me] += n <= last[worker]
            last[worker] = max(n, last[worker])
        compiler_fence()
        got[me] += count


class CompiledStorm(Storm):
    """Of loops that are compiled before anybody is forked. Python is back when one raises Closed or Missed."""

    CATCHES = 0.8
    TRIES = 20

    def __init__(self, queue: Any, most_workers: int):
        super().__init__(queue, most_workers)
        flags = stepper.shared(2 * LONG_LOG * most_workers).view(np.uint8)[: 2 * LONG_LOG * most_workers]
        self.sent, self.came = flags.reshape(2, -1, LONG_LOG)
        self.late = stepper.shared(8 * most_workers)
        size = LARGE_ITEM.itemsize * SEVERAL * most_workers
        self.places = stepper.shared(size)[: size // 8].reshape(-1, SEVERAL, 4096)  # where receivers receive into
        worker, words = types.int64, types.int64[::1]
        compiled_sender.compile((typeof(queue), worker, words, types.uint8[:, ::1], words))
        compiled_receiver.compile(
            (typeof(queue), worker, words, words, types.uint8[:, ::1], words, words, typeof(self.places[0]))
        )

    def is_inside(self, worker: int) -> bool:
        """Whether there are some of a message's words in its slot, or in the receiver's array, and not all."""
        if self.parts[worker] == "receive":
            words = self.places[worker, :, LOOKED_AT - 1 :: LOOKED_AT]
            return bool((words != words[:, :1]).any())
        begun = int(self.begun[worker])
        numbers = np.arange(max(begun - SEVERAL, 0), begun)
        unsent = TELLTALE | worker << 20 | numbers[self.sent[worker, numbers] == 0]
        memory = self.queue._segment.memory.view(np.int64).copy()  # the others go on
        return any(0 < np.count_nonzero(memory == one) < 4096 // LOOKED_AT for one in unsent)

    def send(self, me: int) -> None:
        while self.begun[me] + SEVERAL < LONG_LOG and not self.over[0]:
            with contextlib.suppress(Closed):  # the only receiver was killed; another comes
                compiled_sender(self.queue, me, self.begun, self.sent, self.over)

    def receive(self, me: int) -> None:
        last = np.full(len(self.begun), -1)
        while True:
            try:
                compiled_receiver(self.queue, me, self.begun, self.got, self.came, self.late, last, self.places[me])
            except Missed:
                continue
            except Closed:  # the only sender was killed; another comes
                if self.over[0]:
                    return

    def check(self) -> None:
        print(f"{self.got.sum()} messages, {dict(self.strokes)}")
        lost = 0
        for sent, came, begun in zip(self.sent, self.came, self.begun.tolist(), strict=True):
            if not isinstance(self.queue, Broadcast):
                assert came[:begun].max(initial=0) <= 1, "twice"
            lost += np.count_nonzero(sent[:begun] > came[:begun])
        if isinstance(self.queue, Broadcast):
            assert not self.late.any(), "not in the order of sending"
            return
        assert lost <= self.most_lost(), "lost"
        assert self.late.sum() <= (self.most_lost() if isinstance(self.queue, Mpmc) else 0), "not in order"
        assert len(self.queue) == 0


COMPILED_STORMS: dict[str, tuple[Callable[[], Any], int, int]] = {
    "broadcast": (lambda: Broadcast(64, dtype=LARGE_ITEM), 1, 2)
}
"""A queue, how many senders, how many receivers."""
if "spsc" in KINDS:
    COMPILED_STORMS["spsc"] = lambda: Spsc(16, dtype=LARGE_ITEM), 1, 1
if "mpmc" in KINDS:
    COMPILED_STORMS["mpmc"] = lambda: Mpmc(16, dtype=LARGE_ITEM), 2, 2


@pytest.mark.parametrize("name", COMPILED_STORMS)
def test_compiled_loops_killed_or_stopped_at_any_time_lose_and_invent_nothing(name):
    make, senders, receivers = COMPILED_STORMS[name]
    times = 1200 if stepper.everywhere() else 100
    with contextlib.closing(CompiledStorm(make(), 4 * times + 100)) as storm:
        storm.rage(senders, receivers, times)
        storm.check()
