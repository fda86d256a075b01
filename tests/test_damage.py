"""Every queue with damaged memory, and every way to ask for one that cannot be: an error, never a crash or a hang.

A new queue is one row of QUEUES.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import mmap
import os
import random
import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from labkit import launch
from labkit.channels.base import Closed, kind_dir
from labkit.libc import ffi, libc
from labkit.lockfree import Broadcast, Missed, Mpmc, blocks
from labkit.lockfree.blocks import BLOCK
from labkit.lockfree.objects import FEW_BLOCKS, NothingCame, Objects
from labkit.lockfree.segment import BYTES, CHECKSUM, GEOMETRY, KIND, LAYOUT, MAGIC, _checksum


class Queue(NamedTuple):
    """A class, and a small queue of it, whose slots end where a page ends: an access behind them is a signal."""

    kind: Any
    capacity: int
    options: dict[str, Any]

    def new(self, **more: Any) -> Any:
        return self.kind(self.capacity, **self.options, **more)

    def open(self, name: str) -> Any:
        return self.kind.open(name, **{key: value for key, value in self.options.items() if key == "dtype"})

    def item(self, number: int) -> Any:
        dtype = self.options.get("dtype")
        return bytes([number % 256]) * (number * 7 % 900 + 1) if dtype is None else np.full(dtype.shape, number)


BIG = np.dtype((np.int64, 120))  # 960 bytes, and 64 before them in a slot of Mpmc
QUEUES = {
    "mpmc": Queue(Mpmc, 4, {"message_bytes": 1008}),
    "mpmc items": Queue(Mpmc, 4, {"dtype": BIG}),
    "broadcast": Queue(Broadcast, 4096, {}),
    "broadcast items": Queue(Broadcast, 4, {"dtype": np.dtype((np.int64, 128))}),
}
with contextlib.suppress(ImportError):
    from labkit.lockfree import Spsc
    from labkit.lockfree.segment import BODY
    from labkit.lockfree.spsc import FOLLOWS

    class Followed(Spsc):
        """One whose receiver wishes for copies."""

        def _begin(self, segment: Any, item: Any) -> None:
            super()._begin(segment, item)
            segment.memory[BODY + FOLLOWS] = 1

    QUEUES["spsc"] = Queue(Spsc, 4096, {})
    QUEUES["spsc items"] = Queue(Spsc, 4, {"dtype": np.dtype((np.int64, 128))})
    QUEUES["spsc copies"] = Queue(Followed, 128, {"dtype": np.dtype((np.int64, 4))})

every_queue = pytest.mark.parametrize("queue", QUEUES.values(), ids=QUEUES)


@pytest.fixture
def a_name() -> str:
    return f"damage-{os.getpid()}"


# --- bits ---------------------------------------------------------------------------------------------------

ROUNDS = 5000
"""Damages of one queue that is open, in one process; and a quarter as many of its file."""
NONSENSE = [0, 1, 7, 8, 16, -1, -8, -16, 1 << 31, 1 << 62, (1 << 63) - 1, -(1 << 63), 4096, 4112, 4095, 12300]

USES: list[Callable[[Any, Any], Any]] = [
    lambda q, item: q.send(item, 0),
    lambda q, item: q.try_send(item),
    lambda q, item: q.send_many(np.array([item] * 3) if isinstance(item, np.ndarray) else [item] * 3, 0),
    lambda q, item: _write(q.loan(50, 0)),
    lambda q, item: q.receive(0),
    lambda q, item: q.try_receive(),
    lambda q, item: q.receive_many(5, 0),
    lambda q, item: _read(q.borrow(0)),
    lambda q, item: len(q),
    lambda q, item: q.pending(),
]


def _write(loan: Any) -> None:
    with loan as slot:
        slot.array[:] = 1


def _read(borrowed: Any) -> Any:
    with borrowed as slot:
        return slot.array.copy()


def use(q: Any, item: Any, dice: random.Random) -> str:
    """Something that can be done with a queue: how it went."""
    what = dice.choice(USES)
    try:
        came = what(q, item)
    except (TimeoutError, Closed, Missed) as reason:
        return type(reason).__name__
    except OSError as reason:
        assert reason.errno == errno.EBADMSG, reason
        return "damaged"
    if isinstance(came, bytes):
        assert 0 < len(came) <= q.max_message
    elif isinstance(came, np.ndarray):
        assert came.size <= 5 * q.max_message
    return "done"


def forbid_what_is_around(q: Any) -> None:
    """A page before its memory and one behind it that nobody may touch."""
    memory = q._segment.memory
    start = int(memory.ctypes.data)
    MAP_FIXED_NOREPLACE, PROT_NONE = 0x10_0000, 0
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    for at in (start - mmap.PAGESIZE, start + memory.size):
        libc.mmap(ffi.cast("void *", at), mmap.PAGESIZE, PROT_NONE, flags, -1, 0)


def hurt(words: np.ndarray, dice: random.Random) -> None:
    """Flip a bit, anywhere or in a word that says something; or write a word of nonsense."""
    how = dice.random()
    if how < 0.3:
        place = dice.randrange(len(words))
    elif how < 0.4:
        place = dice.randrange(min(48, len(words)))
    else:
        place = int(dice.choice([0, *np.flatnonzero(words)]))
    bits = np.uint64(1 << dice.randrange(64))
    if dice.random() < 0.2:
        words[place] = dice.choice(NONSENSE)
    else:
        words[place : place + 1].view(np.uint64)[:] ^= bits


def damage_open_one(queue: Queue, seed: int, rounds: int) -> dict[str, int]:
    dice, seen = random.Random(seed), Counter[str]()
    with queue.new() as q:
        forbid_what_is_around(q)
        q.send(queue.item(0))
        assert q.receive() is not None
        states = []
        for number in range(20):
            with contextlib.suppress(TimeoutError, Missed):
                q.send(queue.item(number), 0)
                if number % 3:
                    q.try_receive()
            states.append((q._segment.memory.copy(), q._state.copy()))
        for round_ in range(rounds):
            if round_ % 100 == 0:
                faulthandler.dump_traceback_later(60, exit=True)
            q._segment.memory[:], q._state[:] = dice.choice(states)
            for _ in range(dice.choice([1, 1, 1, 2, 5])):
                # Its own header is one place in ten; what says what the segment is has been read already.
                first = 128 if dice.random() < 0.1 else 4096
                hurt(q._segment.memory[first:].view(np.int64), dice)
            if hasattr(q, "_looked"):
                q._looked = -1.0  # look for the dead each time, not ten times a second
            for _ in range(10):
                seen[use(q, queue.item(round_), dice)] += 1
        q._segment.memory[:], q._state[:] = states[-1]
    faulthandler.cancel_dump_traceback_later()
    return dict(seen)


@every_queue
def test_flipped_bits_are_an_error_or_data_and_never_a_crash_or_an_endless_loop(queue):
    seen = launch(damage_open_one, queue, 1, ROUNDS).wait(300)
    assert seen["done"] > ROUNDS
    assert seen["damaged"] > ROUNDS // 10, seen


def damage_file(queue: Queue, name: str, seed: int, rounds: int) -> dict[str, int]:
    dice, seen = random.Random(seed), Counter[str]()
    path = kind_dir("lockfree") / name
    with queue.new(name=name) as q:
        for number in range(3):
            q.send(queue.item(number))
        q.receive()
        whole = np.frombuffer(path.read_bytes(), np.int64)
    for round_ in range(rounds):
        if round_ % 100 == 0:
            faulthandler.dump_traceback_later(60, exit=True)
        words = whole.copy()
        for _ in range(dice.choice([1, 1, 3])):
            if dice.random() < 0.2:
                hurt(words[:16], dice)
            else:
                hurt(words[16:], dice)
        content = words.tobytes()
        if dice.random() < 0.1:
            content = content[: dice.randrange(len(content))]
        path.write_bytes(content)
        try:
            q = queue.open(name)
        except OSError as reason:
            assert reason.errno == errno.EBADMSG, reason
            seen["refused"] += 1
            continue
        with q:
            for _ in range(10):
                seen[use(q, queue.item(round_), dice)] += 1
    queue.kind.unlink(name)
    faulthandler.cancel_dump_traceback_later()
    return dict(seen)


@every_queue
def test_a_damaged_or_truncated_file_is_refused_or_used_and_never_crashes(queue, a_name):
    seen = launch(damage_file, queue, a_name, 1, ROUNDS // 4).wait(300)
    assert min(seen["refused"], seen["done"]) > ROUNDS // 40, seen


# --- objects, which lie in blocks -------------------------------------------------------------------------------

SMALL = {"number": 12345, "name": "message", "value": 1.5}
THINGS: list[Any] = [SMALL, "text" * 2000, np.arange(9000), b"bytes" * 100, None]


def put_together(q: Objects) -> None:
    q.put_together([dict(SMALL, number=n) for n in range(9)])


PUTS: list[Callable[[Objects, random.Random], Any]] = [
    lambda q, dice: q._put(dice.choice(THINGS), 0),
    lambda q, dice: put_together(q),
    lambda q, dice: q.put_list([SMALL] * 3),
    lambda q, dice: q.throw_away(q.pack(THINGS[1])),
    lambda q, dice: q._give_back(),
    lambda q, dice: q._sweep(dice.randrange(1, 255)),
]
GETS: list[Callable[[Objects, random.Random], Any]] = [
    lambda q, dice: q._get(0),
    lambda q, dice: q.get_many(dice.choice([1, 5, 100]), 0),
    lambda q, dice: (q.number(), q.has_room(), q.holds_message(), q.runs_in_use()),
]


def use_objects(q: Objects, dice: random.Random) -> str:
    """Something that can be done with a queue of objects: how it went. A damaged pickle is anything, or an error."""
    what = dice.choice([*PUTS, *GETS, *GETS])
    try:
        what(q, dice)
    except NothingCame:
        return "nothing"
    except TimeoutError:
        return "full"
    except OSError as reason:
        assert reason.errno in (errno.EBADMSG, errno.ENOMEM), reason
        return "damaged"
    except Exception:
        if what in PUTS:
            raise
        return "no pickle"
    return "done"


def damage_objects(seed: int, rounds: int) -> dict[str, int]:
    dice, seen = random.Random(seed), Counter[str]()
    # A damaged pickle may ask for any memory: it is not to be had. And fewer addresses make a pool that can be copied.
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, resource.RLIM_INFINITY))
    q = Objects(16)
    forbid_what_is_around(q)
    memory, states = q._segment.memory, []
    words = memory[4096 : q._pool + blocks.WORDS + 8 * FEW_BLOCKS]
    content = memory[q._first_block : q._first_block + BLOCK * FEW_BLOCKS]
    for number in range(40):
        with contextlib.suppress(TimeoutError):
            dice.choice(PUTS[:3])(q, dice)
            if number % 2:
                q._get(0)
        states.append((words.copy(), content.copy(), q._state.copy()))
    for round_ in range(rounds):
        if round_ % 100 == 0:
            faulthandler.dump_traceback_later(60, exit=True)
        before = dice.choice(states)
        words[:], content[:], q._state[:] = before
        q._spoilt.clear()
        for _ in range(dice.choice([1, 1, 1, 2, 5])):
            part = dice.random()
            slots = q._pool - 4096
            hurt((words[:slots] if part < 0.4 else words[slots:] if part < 0.8 else content).view(np.int64), dice)
        q._looked = -1.0
        for _ in range(10):
            seen[use_objects(q, dice)] += 1
    faulthandler.cancel_dump_traceback_later()
    words[:], content[:], q._state[:] = states[-1]
    return dict(seen)


def test_flipped_bits_of_a_queue_of_objects_and_its_blocks_are_an_error_or_data_and_never_a_crash():
    seen = launch(damage_objects, 1, 2 * ROUNDS).wait(300)
    assert seen["done"] > 2 * ROUNDS
    assert min(seen["damaged"], seen["no pickle"]) > ROUNDS // 20, seen


def test_nobody_can_truncate_the_memory_of_a_queue():
    with Objects(4) as q:
        for size in (0, q._segment.memory.size - 1, q._segment.memory.size + 1):
            with pytest.raises(PermissionError):
                os.ftruncate(q._segment.fd, size)
        q.put(SMALL)
        assert q.get() == SMALL


# --- what cannot be attached --------------------------------------------------------------------------------


def _rewrite(path: Path, change: Callable[[np.ndarray], None], keep: int | None = None) -> None:
    words = np.frombuffer(path.read_bytes(), np.int64).copy()
    change(words)
    path.write_bytes(words.tobytes()[:keep])


def _newer(words: np.ndarray) -> None:
    words[LAYOUT // 8] += 1
    words[CHECKSUM // 8] = _checksum(words)


def _foreign(words: np.ndarray) -> None:
    words[KIND // 8 : KIND // 8 + 2] = np.frombuffer(b"rendezvous".ljust(16, b"\0"), np.int64)
    words[CHECKSUM // 8] = _checksum(words)


def _impossible(words: np.ndarray) -> None:
    words[GEOMETRY // 8] = 1 << 40
    words[CHECKSUM // 8] = _checksum(words)


def _nothing(words: np.ndarray) -> None:
    pass


WRONG = {
    "somebody else's": (lambda words: words.fill(7), None, "does not begin as one"),
    "unfinished": (lambda words: words.__setitem__(MAGIC // 8, 0), None, "unfinished"),
    "foreign": (_foreign, None, "it is a 'rendezvous'"),
    "newer": (_newer, None, "use one version"),
    "damaged": (lambda words: words.__setitem__(BYTES // 8, 4096), None, "its checksum is wrong"),
    "impossible": (_impossible, None, "its geometry cannot be|its capacity is not its size"),
    "empty": (_nothing, 0, "it has 0 bytes only"),
    "truncated": (_nothing, -4096, "truncated"),
}


@every_queue
@pytest.mark.parametrize(("change", "keep", "says"), WRONG.values(), ids=WRONG)
def test_what_is_no_queue_of_ours_is_refused_in_words(queue, a_name, change, keep, says):
    with queue.new(name=a_name):
        pass
    try:
        _rewrite(kind_dir("lockfree") / a_name, change, keep)
        with pytest.raises(OSError, match=says) as refused:
            queue.open(a_name)
        assert refused.value.errno == errno.EBADMSG
    finally:
        queue.kind.unlink(a_name)


@every_queue
def test_a_missing_one_and_one_of_another_kind_of_item_are_refused(queue, a_name):
    with pytest.raises(FileNotFoundError, match="no queue of this name"):
        queue.open(a_name)
    with queue.new(name=a_name) as q:
        for dtype in (np.dtype("V13"), np.dtype(np.int32), None if "dtype" in queue.options else np.dtype(np.int64)):
            with pytest.raises(ValueError, match="use its dtype"):
                queue.kind.open(a_name, dtype=dtype)
        q.send(queue.item(1))  # and nobody has hurt it
        queue.kind.unlink(a_name)
    with pytest.raises(FileNotFoundError, match="no queue of this name"):
        queue.open(a_name)


@every_queue
def test_a_closed_one_is_refused(queue):
    q = queue.new()
    send, receive = q.send, q.receive
    q.close()
    q.close()
    item = queue.item(1)
    for what in (*USES, lambda *_: send(item), lambda *_: receive(), lambda *_: next(iter(q)), lambda *_: q.fileno()):
        with pytest.raises(ValueError, match="closed"):
            what(q, item)
    with pytest.raises(Exception, match="closed"):
        launch(print, q)


@every_queue
@pytest.mark.parametrize("capacity", [0, -1, 1 << 40, 1 << 80])
def test_a_capacity_that_cannot_be_is_refused(queue, capacity):
    with pytest.raises(ValueError, match="1 "):
        queue.kind(capacity, **queue.options)


@every_queue
@pytest.mark.parametrize("capacity", ["1000", 10.5, None])
def test_a_capacity_that_is_no_number_is_refused(queue, capacity):
    with pytest.raises(TypeError, match="a capacity is a whole number"):
        queue.kind(capacity, **queue.options)


@every_queue
def test_a_dtype_that_cannot_be_is_refused(queue):
    with pytest.raises(TypeError, match="objects"):
        queue.kind(8, dtype=object)
    with pytest.raises(ValueError, match="no bytes"):
        queue.kind(8, dtype="V0")


@every_queue
def test_what_is_wrong_with_a_message_is_said_and_the_queue_stays_usable(queue):
    with queue.new() as q:
        wrong: list[Any] = [b"", "text", 5, None]
        if "dtype" in queue.options:
            shape = queue.options["dtype"].shape
            wrong = [np.zeros(shape), np.zeros(7, np.int64), np.int64(1), np.zeros((1, *shape), np.int64)]
        for item in wrong:
            for send in (q.send, q.try_send):
                with pytest.raises((ValueError, TypeError)):
                    send(item)
            with pytest.raises((ValueError, TypeError)):
                q.send_many(np.array([item]) if isinstance(item, np.ndarray) else [item])
        assert len(q) == 0
        q.send(queue.item(3))
        assert np.array_equal(q.receive(), queue.item(3))
