"""What the processes of test_broadcast.py do. Children import this file, so it imports little."""

from __future__ import annotations

import contextlib
import random
import select

from labkit.channels.base import Closed
from labkit.lockfree import Broadcast, Missed


def stamped(number: int, size: int) -> bytes:
    """A message that says which it is, as far as it has room, and whose every byte follows from that."""
    return (number.to_bytes(8, "little") + bytes([number % 251]) * size)[:size]


def is_whole(message: bytes, number: int) -> bool:
    return message == stamped(number, len(message))


def listen(q: Broadcast, first: int = 0) -> tuple[int, int]:
    """Receive until the writer has gone, and check everything: how many were received, and missed."""
    received = missed = 0
    while True:
        try:
            for message in q:
                assert is_whole(message, first + received + missed), "torn, or out of order"
                received += 1
        except Missed as gap:
            missed += gap.count
        else:
            assert q.missed == missed
            return received, missed


def listen_in_other_ways(q: Broadcast) -> tuple[int, int]:
    received, missed, turn = 0, 0, 0
    with contextlib.suppress(Closed):
        while True:
            turn += 1
            try:
                if turn % 3:
                    with q.borrow() as slot:
                        whole = is_whole(slot.array.tobytes(), received + missed)
                        assert whole or not slot.is_whole()
                    assert whole, "torn, and not told"
                    received += 1
                else:
                    for message in q.receive_many(10):
                        assert is_whole(message, received + missed)
                        received += 1
            except Missed as gap:
                missed += gap.count
    return received, missed


def listen_to_items(q: Broadcast) -> tuple[int, int]:
    received = missed = 0
    with contextlib.suppress(Closed):
        while True:
            try:
                for row in q.receive_many(50):
                    assert (row == received + missed).all()
                    received += 1
            except Missed as gap:
                missed += gap.count
    return received, missed


def write_from(q: Broadcast, number: int, seed: int) -> None:
    dice = random.Random(seed)
    sizes = [dice.choice([8, 20, 500, 5000, 30_000]) for _ in range(1000)]
    while True:
        q.send(stamped(number, sizes[number % 1000]))
        number += 1


def read_for_ever(q: Broadcast) -> None:
    while True:
        with contextlib.suppress(Missed):
            q.receive(None)


def write_and_leave(q: Broadcast, first: int, count: int) -> None:
    for number in range(first, first + count):
        q.send(stamped(number, 100))
    q.close()


def send_one_and_wait(q: Broadcast, say: Broadcast) -> None:
    q.send(b"one")
    say.receive()
    q.close()


def send_when_asked(q: Broadcast, say: Broadcast) -> None:
    for message in say:
        q.send(message)


def poll_all(q: Broadcast) -> int:
    count = 0
    with contextlib.suppress(Closed):
        while True:
            while (message := q.try_receive()) is not None:
                assert is_whole(message, count)
                count += 1
            if not q.pending():
                select.select([q], [], [], 0.5)
    return count
