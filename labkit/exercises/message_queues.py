"""Checks of notebook 03-message-queues."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.channels import channel
from labkit.channels.base import Closed
from labkit.exercises import Verdict, last_line
from labkit.launch import Job, RemoteError, launch
from labkit.machine import read

PATIENCE = 5.0
"""Seconds that the learner's function gets."""

ALARM, WARNING, REPORT = 1, 2, 3
"""Types of messages, the most urgent first."""


def check_urgent_first(f: Callable[..., Any]) -> Verdict:
    """Whether f(rx, handle) handles the messages of a System V queue until its end, always the most urgent one first.

    Args:
        f: the learner's function; it runs in a process of its own. While it handles the first warning, an alarm comes.
    """
    waiting = [(REPORT, b"report 1"), (WARNING, b"warning 1"), (REPORT, b"report 2"), (WARNING, b"warning 2")]
    waiting.insert(3, (ALARM, b"alarm 1"))
    ends: tuple[Any, Any] = channel("sysv_mq")
    tx, rx = ends
    busy_tx, busy_rx = channel("pipe")
    done_tx, done_rx = channel("pipe")
    for urgency, message in waiting:
        tx.send(message, type=urgency)
    job = launch(_handles, f, rx, busy_tx, done_rx, name=getattr(f, "__name__", "your function"))
    try:
        try:
            busy_rx.receive(PATIENCE)  # it handles the first warning
            tx.send(b"alarm 2", type=ALARM)
            tx.send(b"report 3", type=REPORT)
            tx.close()
            done_tx.send(b"sent")
        except (EOFError, TimeoutError):
            tx.close()
        handled = job.wait(PATIENCE)
    except RemoteError as error:
        return Verdict(False, _explain(last_line(error)))
    except TimeoutError:
        return Verdict(
            False,
            f"your function did not return within {PATIENCE:g} seconds. When every sender has closed and nothing of "
            "the wanted types is left, receive raises labkit.Closed: that is the end.",
        )
    finally:
        job.kill()
        for end in (tx, busy_rx, done_tx):
            end.close()
    return _judge_order(handled)


def _handles(f: Callable[..., Any], rx: Any, busy: Any, done: Any) -> list[bytes]:
    """Runs in the child: f with a handler that lets an alarm come while it handles the first warning."""
    handled: list[bytes] = []

    def handle(message: bytes) -> None:
        handled.append(message)
        if message == b"warning 1":
            busy.send(b"busy")
            done.receive()

    f(rx, handle)
    return handled


def _judge_order(handled: list[bytes]) -> Verdict:
    names = [message.decode() for message in handled]
    right = ["alarm 1", "warning 1", "alarm 2", "warning 2", "report 1", "report 2", "report 3"]
    got = ", ".join(names) or "nothing"
    if names == right:
        return Verdict(
            True,
            f"handled in this order: {got}. Alarm 2 came while the first warning was being handled, and waited for "
            "nothing but that. Of equal types the oldest came first.",
        )
    if not names:
        why = "nothing was handled: receive each message with rx.receive(type=...), and call handle(message)."
    elif names[0] == "report 1":
        why = (
            "the oldest message came first. type=0, which is also what `for message in rx` uses, takes no notice of "
            "types: a negative type takes the lowest one up to its amount."
        )
    elif "warning 2" in names and "alarm 2" not in names[: names.index("warning 2")]:
        why = (
            "alarm 2 came while warning 1 was being handled, and other messages were handled before it. Decide anew "
            "which is the most urgent message after each one, and let the queue choose it: do not empty it beforehand, "
            "and do not serve one type to its end."
        )
    elif sorted(names) != sorted(right):
        missing = ", ".join(name for name in right if name not in names) or "none"
        twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
        why = f"not handled: {missing}." + (f" Handled twice: {twice}." if twice else "")
        if missing != "none":
            why += (
                " receive raises labkit.Closed when every sender has closed and nothing of the types that you ask for "
                "is left; of others there may be: with a negative type you ask for all up to its amount."
            )
    else:
        why = "the order is another than the most urgent first, and of equal ones the oldest."
    return Verdict(False, f"handled in this order: {got}. {why[0].upper()}{why[1:]}")


def _explain(error: str) -> str:
    if "Closed" in error:
        return (
            f"your function stopped with “{error}”. That is the end of the messages: every sender has closed. Catch "
            "labkit.Closed and return."
        )
    if "TimeoutError" in error:
        return (
            f"your function stopped with “{error}”. It waited for a type that did not come, while others were there: "
            "let one receive accept all three types."
        )
    return f"your function stopped with “{error}”."


def check_station(f: Callable[..., Any]) -> Verdict:
    """Whether f(tx, readings) never waits to send an ordinary reading, always gets an urgent one through, and counts.

    Args:
        f: the learner's function; it runs in a process of its own, on a POSIX queue that holds four messages.
    """
    for trial in (_nobody_receives, _urgent_overtakes, _urgent_waits):
        try:
            why = trial(f)
        except RemoteError as error:
            line = last_line(error)
            why = f"your function stopped with “{line}”."
            if "TimeoutError" in line:
                why += " send(..., timeout=0) raises it when the queue is full: catch it, and count."
        if why:
            return Verdict(False, why)
    return Verdict(
        True,
        "with nobody at the other end the station went on and counted what it had to drop; an urgent reading overtook "
        "those that waited, and when the queue was full it waited for room.",
    )


def _readings(*urgent: bool) -> list[tuple[bool, bytes]]:
    return [(u, b"%s %d" % (b"urgent" if u else b"reading", n)) for n, u in enumerate(urgent)]


def _start(f: Callable[..., Any], readings: list[tuple[bool, bytes]]) -> tuple[Any, Any]:
    tx, rx = channel("posix_mq", max_messages=4, max_message=100)
    return rx, launch(f, tx, readings, name=getattr(f, "__name__", "your function"))


def _nobody_receives(f: Callable[..., Any]) -> str:
    """Ten ordinary readings into a queue for four."""
    rx, job = _start(f, _readings(*[False] * 10))
    try:
        dropped = job.wait(PATIENCE)
    except TimeoutError:
        return (
            f"with nobody at the other end your function did not return within {PATIENCE:g} seconds: the queue was "
            "full, and it waited to send an ordinary reading. timeout=0 never waits."
        )
    finally:
        job.kill()
        there = list(rx)
        rx.close()
    if dropped is None or dropped is ...:
        return "your function returns nothing: return how many readings were dropped."
    if len(there) != 4:
        return (
            f"nobody received, the queue holds 4 messages, and {len(there)} were in it: send every reading that fits."
        )
    if dropped != 6:
        return f"nobody received, 10 readings were to be sent, 4 fitted: 6 were dropped, and you return {dropped!r}."
    return ""


def _urgent_overtakes(f: Callable[..., Any]) -> str:
    rx, job = _start(f, _readings(False, False, True))
    try:
        dropped = job.wait(PATIENCE)
    except TimeoutError:
        return f"three readings, room for four, and your function did not return within {PATIENCE:g} seconds."
    finally:
        job.kill()
        there = list(rx)
        rx.close()
    if sorted(there) != [b"reading 0", b"reading 1", b"urgent 2"] or dropped != 0:
        return f"three readings, room for four: {len(there)} were in the queue, and you return {dropped!r} dropped."
    if there[0] != b"urgent 2":
        return (
            "two readings waited in the queue when an urgent one came, and the receiver got it last. Give it a higher "
            "priority: send(..., priority=1)."
        )
    return ""


def _let_it_work(job: Job) -> None:
    """Wait until a process has ended or keeps sleeping, which on a busy machine may take a while."""
    asleep, deadline = 0, time.monotonic() + PATIENCE
    while job.alive and asleep < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
        sleeps = ") S " in (read(Path(f"/proc/{job.pid}/stat")) or "")
        asleep = asleep + 1 if sleeps else 0


def _urgent_waits(f: Callable[..., Any]) -> str:
    """The queue is full when the urgent one comes, and the receiver is late."""
    rx, job = _start(f, _readings(False, False, False, False, False, True, False))
    there: list[bytes] = []
    try:
        _let_it_work(job)
        with contextlib.suppress(Closed):
            while True:
                there.append(rx.receive(PATIENCE))
        dropped = job.wait(PATIENCE)
    except TimeoutError:
        return f"your function did not return within {PATIENCE:g} seconds, although there was room again."
    finally:
        job.kill()
        rx.close()
    if b"urgent 5" not in there:
        return (
            "the queue was full when an urgent reading came, and that one never arrived: it has to wait for room, "
            "send(..., timeout=None)."
        )
    if dropped != 7 - len(there):
        return f"of 7 readings {len(there)} arrived, and you return {dropped!r} dropped."
    return ""
