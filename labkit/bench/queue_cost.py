"""What the lock-free queues cost, beside C++ and the packages of others: the table of the queue's first issue.

Both sides of a row run in the same processes, in turn, with a probe around each sample (labkit.bench.pairs); the
figure is the median of the ratios within pairs. A row has a goal that must be reached and one to aim at. Where a peer
is faster the row says why, as far as it is known.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.bench import Row, crowd, peers
from labkit.bench.loops_entry import loops
from labkit.bench.pairs import Pair, Side, compare, figures
from labkit.bench.peers import Missing
from labkit.lockfree import Broadcast, Mpmc, Spsc
from labkit.queue import Queue

PAIRS = 40
MB = 1 << 20

PICKLE = "pickle alone, of a hundred at once, takes some 90 ns to take one apart; 145 ns to put it together and free it"
HANDED_OVER = "a hand-over makes a Python object at each side, and moves three cache lines between the processors"
CLAIMS = (
    "one locked instruction a message at each side, as in Vyukov's queue; but ours exchanges the slot's own word, so "
    "that a death can be proved; its cache line comes from the other side, Vyukov's counter stays at its own"
)
RUNS = (
    "64 slots take 64 locked instructions at each side, 5 to 6 ns each: alone, a side takes some 9 ns to send an item "
    "and some 12 to receive it, calls included; when both work at once, they wait for each other's cache lines besides"
)


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        what: is compared.
        ours: the side of labkit.
        peer: what it is compared with; None for a row that is a rate.
        must, aim: how many times faster than the peer, or millions a second.
        takes: the ratio is ours over the peer's, and small is good: for a goal of "at most".
        why: printed below the table when the peer wins.
    """

    what: str
    ours: Side
    peer: Side | Missing | None
    must: float | None = None
    aim: float | None = None
    takes: bool = False
    why: str = ""


# --- compiled ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def rings(number: int = 1, capacity: int = MB, dtype: Any = None) -> Iterator[list[Spsc]]:
    made = [Spsc(capacity, dtype=dtype) for _ in range(number)]
    try:
        yield made
    finally:
        for ring in made:
            ring.close()


def run_loop(name: str, shared: list[Spsc], count: int) -> None:
    found = loops()[name](*shared, count)
    if name.startswith("consume"):
        assert found == count * (count - 1) // 2, "labkit's queue lost something"


def compiled(roles: str, dtype: Any, count: int, number: int = 1) -> Side:
    both = tuple(functools.partial(run_loop, role) for role in roles.split())
    return Side("labkit", functools.partial(rings, number, peers.SLOTS, dtype), both, count)


# --- called from Python ---------------------------------------------------------------------------------------


def send_all(rings: list[Spsc], count: int) -> None:
    send = rings[0].send
    for _ in itertools.repeat(None, count):
        send(b"8 bytes.")


def receive_all(rings: list[Spsc], count: int) -> None:
    receive = rings[0].receive
    for _ in itertools.repeat(None, count):
        receive()


def send_and_receive(rings: list[Spsc], count: int) -> None:
    send, receive = rings[0].send, rings[0].receive
    for _ in itertools.repeat(None, count):
        send(b"8 bytes.")
        receive()


def send_batches(rings: list[Spsc], count: int) -> None:
    send_many, batch = rings[0].send_many, [b"8 bytes."] * 64
    for _ in itertools.repeat(None, count // 64):
        send_many(batch)


def receive_batches(rings: list[Spsc], count: int) -> None:
    receive_many, left = rings[0].receive_many, count // 64 * 64
    while left:
        left -= len(receive_many(min(64, left)))


def send_items(rings: list[Spsc], count: int) -> None:
    send_many, batch = rings[0].send_many, np.arange(64)
    for _ in itertools.repeat(None, count // 64):
        send_many(batch)


def receive_items(rings: list[Spsc], count: int) -> None:
    receive_into, room, left = rings[0].receive_into, np.empty(64, np.int64), count // 64 * 64
    while left:
        left -= receive_into(room if left >= 64 else room[:left])


def ping(rings: list[Spsc], count: int) -> None:
    send, receive = rings[0].send, rings[1].receive
    for _ in itertools.repeat(None, count):
        send(b"8 bytes.")
        receive()


def pong(rings: list[Spsc], count: int) -> None:
    send, receive = rings[1].send, rings[0].receive
    for _ in itertools.repeat(None, count):
        receive()
        send(b"8 bytes.")


def send_arrays(size: int, rings: list[Spsc], count: int) -> None:
    send, array = rings[0].send, np.ones(size // 8)
    for _ in itertools.repeat(None, count):
        send(array)


def receive_arrays(size: int, rings: list[Spsc], count: int) -> None:
    receive_into = rings[0].receive_into
    for _ in itertools.repeat(None, count):
        receive_into(np.empty(size // 8))


def lend(size: int, rings: list[Spsc], count: int) -> None:
    loan = rings[0].loan
    for _ in itertools.repeat(None, count):
        loan(size).publish()


def borrow(size: int, rings: list[Spsc], count: int) -> None:
    take = rings[0].borrow
    for _ in itertools.repeat(None, count):
        take().release()


# --- objects --------------------------------------------------------------------------------------------------

SMALL = {"number": 12345, "name": "message", "value": 1.5}
BATCH = 100


@contextlib.contextmanager
def one_queue() -> Iterator[Any]:
    made = Queue()
    try:
        yield made
    finally:
        made.close()


def put_objects(queue: Any, count: int, thing: Any = SMALL) -> None:
    put = queue.put
    for _ in itertools.repeat(None, count):
        put(thing)


def get_objects(queue: Any, count: int) -> None:
    get = queue.get
    for _ in itertools.repeat(None, count):
        get()


def put_batches(queue: Any, count: int) -> None:
    batch = [dict(SMALL) for _ in range(BATCH)]
    for _ in range(max(1, count // BATCH)):
        queue.put_many(batch)


def get_batches(queue: Any, count: int) -> None:
    left = max(1, count // BATCH) * BATCH
    while left:
        left -= len(queue.get_many(min(left, BATCH)))


def put_arrays(size: int, queue: Any, count: int) -> None:
    put_objects(queue, count, np.ones(size // 8))


# --- the table ------------------------------------------------------------------------------------------------


def lines() -> list[Line]:
    """The rows, in the order of the issue."""
    between = functools.partial(Side, "labkit", rings, (send_all, receive_all), 20_000)
    stream8 = compiled("produce8 consume8", np.int64, 400_000)
    rigtorp8 = peers.cpp_stream("rigtorp", "spsc8", 400_000)
    ping_pong = peers.ping_queues, peers.pong_queues
    return [
        Line("compiled SPSC, 8 B / rigtorp", stream8, rigtorp8, 0.95, 1.5),
        Line("compiled SPSC, 8 B / boost", stream8, peers.cpp_stream("boost", "boost_spsc8", 400_000)),
        Line(
            "compiled SPSC, 64 B / rigtorp",
            compiled("produce64 consume64", np.dtype((np.int64, 8)), 100_000),
            peers.cpp_stream("rigtorp", "spsc64", 100_000),
            1.0,
            1.3,
        ),
        Line(
            "compiled SPSC, batches of 64 / one by one",
            compiled("produce8_batches consume8_batches", np.int64, 1_000_000),
            rigtorp8,
            4.5,
            5,
        ),
        Line(
            "compiled SPSC, round trip / rigtorp",
            compiled("ping pong", np.int64, 20_000, 2),
            peers.cpp_round_trip("rigtorp", "spsc8", 20_000),
            1.05,
            0.7,
            takes=True,
        ),
        Line(
            "Python send + receive, 8 B, in one process / list.append + pop",
            Side("labkit", rings, (send_and_receive,), 10_000),
            peers.plain_list(30_000),
            2,
            1.5,
            takes=True,
        ),
        Line("Python, 8 B / multiprocessing.Queue", between(), peers.mp_queue(1_000), 50, 80),
        Line("Python, 8 B / faster-fifo, raw bytes", between(), peers.faster_fifo(2_000), 35, 60),
        Line("Python, 8 B / membridge", between(), peers.membridge(20_000), 1.7, 3),
        Line(
            "Python round trip / multiprocessing.Queue",
            Side("labkit", functools.partial(rings, 2), (ping, pong), 3_000),
            peers.mp_queue(100, ping_pong, queues=2),
            200,
            300,
        ),
        Line(
            "Python, send_many and receive_many of 64, lists of 8 B",
            Side("labkit", rings, (send_batches, receive_batches), 128_000),
            None,
            35,
            60,
            why="the receiver makes and frees a bytes object for each message, which takes 14 ns without any queue",
        ),
        Line(
            "Python, send_many and receive_into of 64, arrays of 8 B",
            Side("labkit", functools.partial(rings, 1, MB, np.int64), (send_items, receive_items), 256_000),
            None,
            35,
            60,
        ),
        Line(
            "Queue, small dicts / multiprocessing.Queue",
            Side("labkit", one_queue, (put_objects, get_objects), 8_000),
            peers.mp_queue(1_000, (put_objects, get_objects)),
            5,
            8,
        ),
        Line(
            "Queue, small dicts, put_many + get_many / multiprocessing.Queue",
            Side("labkit", one_queue, (put_batches, get_batches), 20_000),
            peers.mp_queue(1_000, (put_objects, get_objects)),
            20,
            30,
            why=PICKLE,
        ),
        Line(
            "Queue, 1 MB array / multiprocessing.Queue",
            Side("labkit", one_queue, (functools.partial(put_arrays, MB), get_objects), 50),
            peers.mp_arrays(3, MB),
        ),
        Line("1 MB array copied / iceoryx2", copied(MB, 50), peers.iceoryx(50, MB), 1.1, 1.4),
        Line("1 MB array copied / multiprocessing.Queue", copied(MB, 50), peers.mp_arrays(3, MB), 50, 80),
        Line("16 MB array copied / socketpair", copied(16 * MB, 3), peers.socketpair(3, 16 * MB), 1.0, 2),
        Line("1 MB handed over without a copy", lent(MB), None, 1, 1.4, why=HANDED_OVER),
        Line("16 MB handed over without a copy", lent(16 * MB), None, 1, 1.4, why=HANDED_OVER),
        *crowds(),
    ]


def crowds() -> list[Line]:
    """Mpmc and Broadcast. The peers in C++: D. Vyukov's bounded queue (a twin of our own), boost::lockfree::queue."""
    made = []
    for many, count in ((1, 200_000), (2, 200_000), (4, 100_000)):
        name, ours = f"compiled MPMC, 8 B, {many}x{many}", crowd.compiled_crowd(many, count)
        vyukov = peers.cpp_stream("Vyukov", "vyukov8", count, many)
        boost = peers.cpp_stream("boost", "boost_mpmc8", count, many)
        made += [Line(f"{name} / Vyukov", ours, vyukov, 0.95, 1.3, why=CLAIMS), Line(f"{name} / boost", ours, boost)]
    return [
        *made,
        Line("compiled Broadcast, 8 B, one reader", crowd.compiled_broadcast(1, 400_000), None),
        Line("compiled Broadcast, 8 B, three readers", crowd.compiled_broadcast(3, 400_000), None),
        Line(
            "Python MPMC send + receive, 8 B, in one process / list.append + pop",
            crowd.in_one_process(10_000),
            peers.plain_list(30_000),
            2,
            1.5,
            takes=True,
        ),
        Line("Python MPMC, 8 B / multiprocessing.Queue", crowd.python_crowd(1, 20_000), peers.mp_queue(1_000), 50, 80),
        Line("Python MPMC, lists of 64", crowd.python_batches(64_000), None, 35, 60, why=RUNS),
        Line("Python MPMC, arrays of 64", crowd.python_batches(256_000, items=True), None, 35, 60, why=RUNS),
    ]


def copied(size: int, count: int) -> Side:
    """Arrays, into new memory of the receiver's, as the peers do it."""
    roles = functools.partial(send_arrays, size), functools.partial(receive_arrays, size)
    return Side("labkit", functools.partial(rings, 1, 4 * size), roles, count)


def lent(size: int) -> Side:
    roles = functools.partial(lend, size), functools.partial(borrow, size)
    return Side("labkit", functools.partial(rings, 1, 4 * size), roles, 20_000)


def run(progress: Callable[[], None], pairs: int = PAIRS, scale: float = 1.0) -> list[Row]:
    rows = [row(line, pairs, scale, progress) for line in lines()]
    return [*rows, waiting("Mpmc", Mpmc), waiting("Broadcast", Broadcast)]


def waiting(name: str, kind: type, seconds: float = 1.0) -> Row:
    """What a receiver costs that has nothing to do."""
    used = crowd.processor_ms_of_waiting(lambda: kind(4096), seconds)
    return Row(f"processor time of a {name} that is waited for, a second", f"{used:.2f} ms", "<= 10 ms", used <= 10)


def row(line: Line, pairs: int, scale: float, progress: Callable[[], None]) -> Row:
    """Measure one line of the table."""
    if isinstance(line.peer, Missing):
        return Row(line.what, f"skipped: {line.peer.why}", "", True)
    rounds = compare([line.ours, line.peer] if line.peer else [line.ours], pairs, progress, scale)
    unit, value = "x", faster
    if line.takes:
        value = slower
    elif line.peer is None:
        unit, value = " M/s", rate
    found = figures(rounds, value)
    measured = "; ".join(
        f"{f.placement} {f.median:.3g}{unit} ({f.low:.3g} to {f.high:.3g}, {f.pairs} pairs)".strip() for f in found
    )
    best = min(pair[0].ns for pair in rounds), min(pair[-1].ns for pair in rounds)
    measured += f"; best {best[0]:,.3g} ns" + (f" / {best[1]:,.3g} ns" if line.peer else "")
    if line.must is None:
        slow = line.peer is not None and found[0].median < 1
        return Row(line.what, measured, "", True, line.why if slow else "")
    sign, reached = ("<=", found[0].median <= line.must) if line.takes else (">=", found[0].median >= line.must)
    goal = f"{sign} {line.must}{unit}, aim {line.aim}{unit}"
    return Row(line.what, measured, goal, reached, "" if reached else line.why)


def faster(pair: Pair) -> float:
    return pair[1].ns / pair[0].ns


def slower(pair: Pair) -> float:
    return pair[0].ns / pair[1].ns


def rate(pair: Pair) -> float:
    """Millions a second."""
    return 1000 / pair[0].ns
