"""Sides of the benchmark of queues: Mpmc and Broadcast, from compiled loops and from Python."""

from __future__ import annotations

import contextlib
import functools
import itertools
import resource
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from labkit.bench.crowd_entry import BATCH, loops
from labkit.bench.pairs import Side
from labkit.bench.peers import SLOTS
from labkit.lockfree import Broadcast, Mpmc

# --- Mpmc -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def queue(**options: Any) -> Iterator[Mpmc]:
    with Mpmc(SLOTS, **options) as made:
        yield made


def send(q: Mpmc, count: int) -> None:
    loops()["send"](q._at, count)


def receive(q: Mpmc, count: int) -> None:
    assert loops()["receive"](q._at, count) == count * (count - 1) // 2, "labkit's queue lost something"


def receive_some(q: Mpmc, count: int) -> None:
    loops()["receive"](q._at, count)


def compiled_crowd(many: int, count: int) -> Side:
    """`many` senders and as many receivers, of 8 bytes each time."""
    roles = (send, receive if many == 1 else receive_some) * many
    return Side("labkit", functools.partial(queue, dtype=np.int64), roles, count)


def send_all(q: Mpmc, count: int) -> None:
    send = q.send
    for _ in itertools.repeat(None, count):
        send(b"8 bytes.")


def receive_all(q: Mpmc, count: int) -> None:
    receive = q.receive
    for _ in itertools.repeat(None, count):
        receive()


def send_batches(q: Mpmc, count: int) -> None:
    send_many, batch = q.send_many, [b"8 bytes."] * BATCH
    for _ in range(count // BATCH):
        send_many(batch)


def receive_batches(q: Mpmc, count: int) -> None:
    left, receive_many = count // BATCH * BATCH, q.receive_many
    while left > 0:
        left -= len(receive_many(min(left, BATCH)))


def send_arrays(q: Mpmc, count: int) -> None:
    send_many, batch = q.send_many, np.arange(BATCH)
    for _ in range(count // BATCH):
        send_many(batch)


def send_and_receive(q: Mpmc, count: int) -> None:
    send, receive = q.send, q.receive
    for _ in itertools.repeat(None, count):
        send(b"8 bytes.")
        receive()


def python_crowd(many: int, count: int) -> Side:
    return Side("labkit", functools.partial(queue, message_bytes=8), (send_all, receive_all) * many, count)


def in_one_process(count: int) -> Side:
    return Side("labkit", functools.partial(queue, message_bytes=8), (send_and_receive,), count)


def python_batches(count: int, *, items: bool = False) -> Side:
    """Lists of bytes, or arrays of numbers, 64 at a time."""
    options: dict[str, Any] = {"dtype": np.int64} if items else {"message_bytes": 8}
    roles = (send_arrays if items else send_batches), receive_batches
    return Side("labkit", functools.partial(queue, **options), roles, count)


# --- Broadcast --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def ring() -> Iterator[Broadcast]:
    with Broadcast(SLOTS, dtype=np.int64, on_missed="go on") as made:
        yield made


def take_role(q: Broadcast, me: int) -> Broadcast:
    if me == 0:
        q.send(0)
    else:
        q.receive()
    return q


def broadcast_all(q: Broadcast, count: int) -> None:
    loops()["broadcast_all"](q._at, count)


def listen(q: Broadcast, count: int) -> None:
    room = np.empty(BATCH, np.int64)
    assert 0 < loops()["listen"](q._at, count, room.ctypes.data) <= count


def compiled_broadcast(readers: int, count: int) -> Side:
    return Side("labkit", ring, (broadcast_all, *[listen] * readers), count, take_role)


# --- waiting ----------------------------------------------------------------------------------------------------


def processor_ms_of_waiting(make: Callable[[], Any], seconds: float = 1.0) -> float:
    """Milliseconds of processor time that a thread uses which waits so long for a message."""
    used: list[float] = []
    with make() as q:

        def wait() -> None:
            before = resource.getrusage(resource.RUSAGE_THREAD)
            q.receive(60)
            after = resource.getrusage(resource.RUSAGE_THREAD)
            used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(seconds)
        q.send(b"8 bytes." if q._item is None else 0)
        thread.join()
    return 1000 * used[0]
