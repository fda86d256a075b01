"""What the processes of test_mpmc.py do. Children import this file instead of that, so it imports next to nothing."""

from __future__ import annotations

from labkit.lockfree import Mpmc


class Unpacked:
    """Among the arguments of a process: it does not come further until somebody writes to this FIFO."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return wait_for, (str(self.path),)


def wait_for(path: str) -> bytes:
    with open(path, "rb") as fifo:
        return fifo.read(1)


def send_one(q: Mpmc, message: bytes, gate: object = None) -> None:
    if gate is not None:
        wait_for(str(gate))
    q.send(message)


def receive_one(q: Mpmc, gate: object = None) -> bytes:
    if gate is not None:
        wait_for(str(gate))
    return q.receive()


def send_many_of(q: Mpmc, who: int, count: int) -> None:
    for number in range(count):
        q.send(b"%d %d %s" % (who, number, b"x" * (number % 40)))
    q.close()


def receive_all(q: Mpmc) -> list[tuple[int, int]]:
    got = []
    for message in q:
        who, number, rest = message.split(b" ")
        assert rest == b"x" * (int(number) % 40)
        got.append((int(who), int(number)))
    return got
