"""Checks of notebook 05-semaphores: the learner's functions run in real processes, and the trace says what they did."""

from __future__ import annotations

import collections
import contextlib
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from labkit.channels import channel
from labkit.channels.base import arrived, travelling
from labkit.exercises import Verdict, last_line
from labkit.launch import Job, RemoteError, launch
from labkit.locks import Deadlock
from labkit.sync import PosixSemaphore
from labkit.trace import Trace

PATIENCE = 10.0
"""Seconds that the learner's processes get."""
LOOK = 0.02  # seconds between two looks for a deadlock


@contextlib.contextmanager
def _traced(**values: int) -> Iterator[tuple[Trace, dict[str, Any]]]:
    """A trace and semaphores of these names and values, all of which are gone afterwards."""
    with Trace() as trace:
        locks: dict[str, Any] = {}
        try:
            for name, value in values.items():
                label = name.replace("_", " ")
                locks[label] = trace.lock(PosixSemaphore(value), label)
            yield trace, locks
        finally:
            for lock in locks.values():
                lock.close()


def _finish(trace: Trace, running: list[Job]) -> tuple[str | None, Deadlock | None]:
    """Wait for the processes: what one of them raised, and the deadlock that they came into."""
    deadline, found = time.monotonic() + PATIENCE, None
    while any(job.alive for job in running) and time.monotonic() < deadline and not found:
        if any(job.exitcode for job in running):
            break  # the others may wait for it for ever
        time.sleep(LOOK)
        found = trace.deadlock()
    waits = "; ".join(
        f"{name} waits for {row.label}" for row in trace.locks() for name in row.waited_for_by if "(" not in name
    )
    stuck = [job for job in running if job.alive]
    for job in stuck:
        job.kill()
    for job in running:
        try:
            job.wait()
        except RemoteError as error:
            if job not in stuck:
                return f"{job.name} stopped with “{last_line(error)}”.", found
    if stuck and not found:
        return f"after {PATIENCE:g} seconds {_names(stuck)} had not ended: {waits or 'it runs in circles'}.", None
    return None, found


def _names(running: list[Job]) -> str:
    names = [job.name for job in running]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# --- exercise 1: A, then B, then C -----------------------------------------------------------------------------

ROUNDS = 3


def check_in_turn(f: Callable[..., Any]) -> Verdict:
    """Whether three processes that run f(me, gates, say) say A, B, C, A, B, C, A, B, C.

    Args:
        f: the learner's function. me is 0, 1 or 2; gates are three semaphores, the first at 1, the others at 0;
            say(letter) is heard by the check.
    """
    expected = "ABC" * ROUNDS
    with _traced(gate_A=1, gate_B=0, gate_C=0) as (trace, locks):
        gates = list(locks.values())
        tx, rx = channel("unix_seqpacket")
        running: list[Job] = []
        try:
            running += [  # the last first: who does not wait is heard too early
                launch(_speak, f, me, gates, tx.clone(), name="ABC"[me]) for me in (2, 1, 0)
            ]
            tx.close()
            problem, dead = _finish(trace, running)
            heard = b"".join(rx).decode()
        finally:
            for job in running:
                job.kill()
            tx.close()
            rx.close()
        taken, values = [row.acquired for row in trace.locks()], [gate.value for gate in gates]
    if problem and "stopped with" in problem:
        return Verdict(False, f"{problem} {_heard(heard)}")
    if not heard and not sum(taken) and not problem and not dead:
        return Verdict(False, "nobody said anything: your function does nothing yet.")
    if heard and not sum(taken):
        return Verdict(
            False,
            f"{_heard(heard)} Nobody waited at a gate: processes run in whatever order the scheduler likes, and "
            "a sleep only makes the wrong order rarer. Acquire your own gate before you speak.",
        )
    if dead or problem:
        return Verdict(False, f"{_heard(heard)} Then nobody went on: {_why_stuck(heard, dead, problem)}")
    if heard != expected:
        return Verdict(False, _why_out_of_turn(heard, expected))
    if sum(taken) < len(expected):
        return Verdict(
            False,
            f"{_heard(heard)} That was luck: {len(expected)} times somebody spoke, and only {sum(taken)} times "
            "somebody waited at a gate.",
        )
    return Verdict(
        True,
        f"{_heard(heard)} They were started as C, B, A, and each waited at its gate until the one before it let it go: "
        f"{sum(taken)} times in all. At the end the gates are at {values[0]}, {values[1]}, {values[2]}, as at first: "
        "the next round could begin.",
    )


def _heard(heard: str) -> str:
    return f"I heard {heard}." if heard else "I heard nothing."


def _why_stuck(heard: str, dead: Deadlock | None, problem: str | None) -> str:
    told = f"{dead}." if dead else problem or ""
    if not heard:
        return f"{told} Only gate A is open at first, so A, whose me is 0, must wait there: gates[me]."
    if len(set(heard)) == 1:
        return f"{told} Only {heard[0]} has spoken: does it open its own gate instead of gates[(me + 1) % 3]?"
    if len(heard) < 3:
        return f"{told} Who has spoken must open the gate of the next one: gates[(me + 1) % 3].release()."
    return f"{told} Does C open the gate of A again, and does everybody speak {ROUNDS} times?"


def _why_out_of_turn(heard: str, expected: str) -> str:
    if len(heard) != len(expected) and expected.startswith(heard):
        return f"{_heard(heard)} That is the right order, but each has to speak {ROUNDS} times."
    wrong = next((n for n, (a, b) in enumerate(zip(heard, expected, strict=False)) if a != b), len(expected))
    late = (
        f"“{heard[wrong]}” came where “{expected[wrong]}” should have" if wrong < len(expected) else "that was too much"
    )
    return (
        f"{_heard(heard)} At place {wrong + 1}, {late}. Acquire your own gate before you speak, and open the next "
        "one's only when you have spoken."
    )


def _speak(f: Callable[..., Any], me: int, gates: list[Any], tx: Any) -> None:
    time.sleep(0.05 * (2 - me) if me < 2 else 0)

    def say(letter: str) -> None:
        tx.send(str(letter).encode()[:20])

    f(me, gates, say)


# --- exercise 2: a bounded buffer ------------------------------------------------------------------------------


class Slots:
    """Four places for items in memory that processes share. It guards nothing: that is what semaphores are for.

    `append` writes into the next place and `pop` reads from the oldest, whether or not there is room or an item.
    """

    PLACES, SIZE = 4, 240

    def __init__(self, fd: int | None = None, pause: float = 0.0):
        self.fd = os.memfd_create("labkit-slots") if fd is None else fd
        os.ftruncate(self.fd, 4096)
        self.memory = mmap.mmap(self.fd, 4096)
        self.pause = pause  # seconds between reading a position and writing it back: others may come in between

    def append(self, item: bytes) -> None:
        position = int.from_bytes(self.memory[0:8], "little")
        time.sleep(self.pause)
        start = 16 + position % self.PLACES * self.SIZE
        self.memory[start : start + self.SIZE] = item[: self.SIZE].ljust(self.SIZE, b"\0")
        self.memory[0:8] = (position + 1).to_bytes(8, "little")

    def pop(self) -> bytes:
        position = int.from_bytes(self.memory[8:16], "little")
        time.sleep(self.pause)
        start = 16 + position % self.PLACES * self.SIZE
        item = self.memory[start : start + self.SIZE].rstrip(b"\0")
        self.memory[start : start + self.SIZE] = bytes(self.SIZE)
        self.memory[8:16] = (position + 1).to_bytes(8, "little")
        return item

    def close(self) -> None:
        self.memory.close()
        os.close(self.fd)

    def __reduce__(self) -> Any:
        return _slots_arrive, (travelling(self.fd), self.pause)


def _slots_arrive(ticket: Any, pause: float) -> Slots:
    return Slots(arrived(ticket), pause)


def check_buffer(put: Callable[..., Any], take: Callable[..., Any], rows: list[bytes]) -> Verdict:
    """Whether two producers and two consumers move all rows through a buffer of four places, each once.

    Args:
        put: put(buffer, item, free, items, mutex) waits for room and calls buffer.append(item).
        take: take(buffer, free, items, mutex) waits for an item and returns buffer.pop().
        rows: what is moved, some hundred of them: it takes a few milliseconds each.
    """
    rows = [b"%d,%s" % (number, row) for number, row in enumerate(rows)]  # so that no two are equal
    half = len(rows) // 2
    with _traced(free=Slots.PLACES, items=0, mutex=1) as (trace, locks):
        buffer = Slots(pause=0.0005)
        running: list[Job] = []
        try:
            results = [channel("unix_seqpacket") for _ in range(2)]
            for number, (tx, _) in enumerate(results):
                count = half if number else len(rows) - half
                running.append(launch(_consume, take, buffer, locks, count, tx, name=f"consumer {number + 1}"))
            for number, part in enumerate((rows[:half], rows[half:])):
                running.append(launch(_produce, put, buffer, locks, part, name=f"producer {number + 1}"))
            with contextlib.ExitStack() as undo:
                heard: list[bytes] = []
                for _, rx in results:
                    undo.callback(rx.close)
                problem, dead = _gather(trace, running, [rx for _, rx in results], heard)
        finally:
            for job in running:
                job.kill()
            buffer.close()
        table = {row.label: row for row in trace.locks()}
    return _judge(rows, heard, table, problem, dead)


def _gather(
    trace: Trace, running: list[Job], ends: list[Any], heard: list[bytes]
) -> tuple[str | None, Deadlock | None]:
    """Wait as _finish does, while another thread empties what the consumers send."""
    threads = [threading.Thread(target=lambda rx=rx: heard.extend(rx), daemon=True) for rx in ends]
    for thread in threads:
        thread.start()
    try:
        return _finish(trace, running)
    finally:
        for job in running:
            job.kill()
        for thread in threads:
            thread.join(5)


def _judge(
    rows: list[bytes], heard: list[bytes], table: dict[str, Any], problem: str | None, dead: Deadlock | None
) -> Verdict:
    if problem and "stopped with" in problem:
        return Verdict(False, f"{problem} The items are bytes, and the semaphores have acquire() and release().")
    if dead:
        return Verdict(False, f"deadlock: {dead}. {_why_deadlocked(set(dead.locks))}")
    moved = collections.Counter(heard)
    missing = sum(row not in moved for row in rows)
    twice = sum(count - 1 for row, count in moved.items() if row and count > 1)
    if not any(row.acquired for row in table.values()) and missing == len(rows) and not problem:
        return Verdict(False, "nothing came through: your functions do nothing yet. take has to return the item.")
    tally = f"of {len(rows)} items {missing} were lost and {twice} came twice"
    calls = {"put": "free", "take": "items"}
    for name, wanted in calls.items():
        if not problem and table[wanted].acquired < len(rows):
            return Verdict(
                False,
                f"{tally}. {name} was called {len(rows)} times and waited for {wanted} {table[wanted].acquired} times: "
                f"{'it overwrites what nobody has taken yet' if name == 'put' else 'it takes what is not there yet'}.",
            )
    if not problem and table["mutex"].acquired < 2 * len(rows):
        return Verdict(
            False,
            f"{tally}. free and items see to it that there is room and an item, but two producers can be in append at "
            "the same time and write into the same place: put and take have to hold the mutex meanwhile.",
        )
    if problem:
        return Verdict(False, f"{problem} {_unreleased(table)}")
    if table["mutex"].most_at_once > 1:
        return Verdict(
            False, f"{tally}. Two were inside at the same time: the mutex is given back before it was taken."
        )
    if missing or twice:
        return Verdict(
            False,
            f"{tally}, although everybody waited. Is the buffer used only while the mutex is held, and does take "
            "return the item?",
        )
    return Verdict(
        True,
        f"all {len(rows)} items came through, each once, from two producers to two consumers through {Slots.PLACES} "
        f"places. The mutex was taken {table['mutex'].acquired} times and never by two at once.",
    )


def _why_deadlocked(locks: set[str]) -> str:
    if "mutex" not in locks:
        return "take waits for items before it pops and releases free afterwards; put does it the other way round."
    if locks == {"mutex"}:
        return "Does everybody who takes the mutex give it back?"
    who, what = ("put", "free") if "free" in locks else ("take", "items")
    return (
        f"{who} takes the mutex and then waits for {what}: it keeps everybody out while it waits for them. Wait for "
        "room or an item first, and take the mutex last."
    )


def _unreleased(table: dict[str, Any]) -> str:
    if table["mutex"].held_by:
        return "Somebody took the mutex and did not give it back."
    return "Who has put an item releases items; who has taken one releases free."


def _produce(put: Callable[..., Any], buffer: Slots, locks: dict[str, Any], rows: list[bytes]) -> None:
    for row in rows:
        put(buffer, row, locks["free"], locks["items"], locks["mutex"])


def _consume(take: Callable[..., Any], buffer: Slots, locks: dict[str, Any], count: int, tx: Any) -> None:
    for number in range(count):
        item = take(buffer, locks["free"], locks["items"], locks["mutex"])
        tx.send(item if isinstance(item, bytes) and item else b"nothing %d" % number)
        if number % 8 == 7:
            time.sleep(0.002)  # now and then the buffer gets full
