"""Checks of notebook 11-crash: the learner's functions meet processes that live, are stopped, and are killed."""

from __future__ import annotations

import fcntl
import inspect
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from labkit.exercises import Verdict, last_line
from labkit.launch import RemoteError, launch
from labkit.lockfree import Mpmc
from labkit.shared_array import SharedArray

# --- exercise 1: a proof of death ------------------------------------------------------------------------------

PATIENCE = 10.0
STOPPED_FOR = 0.5  # seconds

HOLDER = """
import fcntl, os, struct, sys, time
os.set_inheritable(0, False)
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, int(sys.argv[2]), 1, 0))
print("locked", flush=True)
time.sleep(600)
"""


def check_is_dead(is_dead: Callable[[int, int, int], Any]) -> Verdict:
    """Whether is_dead(fd, byte, pid) is True of processes that have died, and of no other.

    Args:
        is_dead: fd is an open file on which the process of this pid has locked this byte (F_OFD_SETLK) when it began.
    """
    with tempfile.NamedTemporaryFile(prefix="labkit-") as file:
        holders = [_holder(file.name, byte) for byte in range(4)]
        living, stopped, killed, unreaped = holders
        fd = os.open(file.name, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.kill(stopped.pid, signal.SIGSTOP)
            for one in (killed, unreaped):
                one.kill()
            killed.wait()
            os.waitid(os.P_PID, unreaped.pid, os.WEXITED | os.WNOWAIT)  # it has died, and stays a zombie
            time.sleep(STOPPED_FOR)
            cases: list[tuple[int, int, bool, str, str]] = [
                (0, living.pid, False, "a process that lives", "It is at work, and you would take its slot away"),
                (
                    1,
                    stopped.pid,
                    False,
                    f"a process that was stopped {STOPPED_FOR} s ago (SIGSTOP)",
                    "It will go on, in the middle of the slot that you have given to another: silence is no proof",
                ),
                (
                    2,
                    killed.pid,
                    True,
                    "a process that was killed",
                    "Its slot would be blocked for ever",
                ),
                (
                    3,
                    unreaped.pid,
                    True,
                    "a process that was killed, and whose parent has not yet called wait (a zombie)",
                    "kill(2) with signal 0 finds it, /proc shows it, and it will never run again: its locks are gone",
                ),
                (
                    2,
                    os.getpid(),
                    True,
                    "a process that was killed, and whose pid is now another process's",
                    "A pid is used again; what lives there is somebody else. Who had the lock?",
                ),
            ]
            for byte, pid, dead, what, why in cases:
                problem = _judge_death(is_dead, fd, byte, pid, dead, what, why)
                if problem:
                    return Verdict(False, problem)
        finally:
            os.close(fd)
            for one in holders:
                one.kill()
                one.wait()
                assert one.stdout is not None
                one.stdout.close()
    return Verdict(
        True,
        "the Linux kernel drops a lock when its holder ends, whatever it died of, and never before: not while it is "
        "stopped, and not because somebody else gets its number.",
    )


def _holder(path: str, byte: int) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path, str(byte)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    return holder


def _judge_death(
    is_dead: Callable[[int, int, int], Any], fd: int, byte: int, pid: int, dead: bool, what: str, why: str
) -> str | None:
    try:
        said = is_dead(fd, byte, pid)
    except Exception as reason:
        return f"of {what}, your function stopped with “{type(reason).__name__}: {reason}”."
    if said is None:
        return "your function returns nothing yet: it has to return True or False."
    if bool(said) == dead and _is_free(fd, byte) == dead:
        return None
    if _is_free(fd, byte) != dead:
        return "your function has locked the byte itself: ask with F_OFD_GETLK, which changes nothing."
    return f"{what} {'is dead' if dead else 'is not dead'}, and your function says {said!r}. {why}."


def _is_free(fd: int, byte: int) -> bool:
    """What another open file description finds."""
    other = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    try:
        asked = struct.pack("hhqqi", fcntl.F_WRLCK, 0, byte, 1, 0)
        return bool(struct.unpack_from("h", fcntl.fcntl(other, fcntl.F_OFD_GETLK, asked))[0] == fcntl.F_UNLCK)
    finally:
        os.close(other)


# --- exercise 2: booked exactly once ---------------------------------------------------------------------------

ENTRY = np.dtype([("number", np.int64), ("amount", np.int64)])
AMOUNTS = (500, 70, 3)
MOST_STEPS = 200
NEVER = -1


def check_book(book: Callable[[Any, SharedArray], Any]) -> Verdict:
    """Whether book(queue, ledger) books each entry exactly once, wherever it is killed.

    A process books three entries and is killed before the first line of `book` that it comes to; another one takes
    over. Then the same before the second line, and so on.

    Args:
        book: receives one entry (a record with `number` and `amount`) and books it in the array of the ledger, so that
            the sum of the array is the sum of all amounts. With an empty queue it raises TimeoutError.
    """
    kills = 0
    for step in (NEVER, *range(MOST_STEPS)):
        with Mpmc(8, dtype=ENTRY) as queue:
            ledger = SharedArray(8, np.int64)
            try:
                problem, over = _killed_at(book, queue, ledger, step)
            except RemoteError as error:
                return Verdict(False, f"your function stopped with “{last_line(error)}”.")
            except TimeoutError:
                return Verdict(False, f"your function had not come to an end after {PATIENCE:g} s.")
            finally:
                ledger.close()
        if problem:
            return Verdict(False, problem)
        if over and step != NEVER:
            break
        kills += not over
    return Verdict(
        True,
        f"killed at {kills} places, and each entry was booked exactly once. To book is repeatable (the same entry "
        "in the same place), and it is done before the message is released: at least once, and twice does no harm.",
    )


def _killed_at(book: Callable[..., Any], queue: Mpmc, ledger: SharedArray, step: int) -> tuple[str | None, bool]:
    """What is wrong after a kill before the step-th line; and whether there was no such line any more."""
    for number, amount in enumerate(AMOUNTS):
        queue.send(np.array((number, amount), ENTRY)[()])
    where = SharedArray(1, np.int64)
    try:
        first = launch(_book_and_die, book, queue, ledger, where, step, name="book")
        over = True
        try:
            first.wait(PATIENCE)
        except RemoteError as error:
            if error.exitcode != -signal.SIGKILL:
                raise
            over = False
        finally:
            first.kill()
        second = launch(_book_all, book, queue, ledger, name="book again")
        try:
            second.wait(PATIENCE)
        finally:
            second.kill()
        booked, due = int(ledger.array.sum()), sum(AMOUNTS)
        if booked == due:
            return None, over
        if over:
            return f"nobody was killed, and the sum of the ledger is {booked} instead of {due}.", True
        return f"killed before {_line(book, int(where.array[0]))} {_difference(booked, due)}", False
    finally:
        where.close()


def _difference(booked: int, due: int) -> str:
    sums = f"the sum is {booked} instead of {due}"
    for amount in AMOUNTS:
        if booked - due == amount:
            return (
                f"an entry of {amount} was booked twice: {sums}. It was booked and not yet released, so it came again. "
                "Book so that twice is the same as once: each number has a place of its own."
            )
        if due - booked == amount:
            return (
                f"an entry of {amount} was lost: {sums}. It was received for good, and not yet booked. `borrow` it, "
                "and let it be released only when it is booked."
            )
    return f"{sums}."


def _line(function: Callable[..., Any], line: int) -> str:
    """The line of a function, as it is written."""
    try:
        lines, first = inspect.getsourcelines(function)
        return f"“{lines[line - first].strip()}”"
    except (OSError, IndexError, TypeError):
        return f"line {line}"


def _book_and_die(book: Callable[..., Any], queue: Any, ledger: Any, where: Any, step: int) -> None:
    """Book everything, and be killed before the step-th line of `book`, counted from 0."""
    left = step

    def each_line(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code is not book.__code__:
            return None
        if event == "line":
            if left == 0:
                where.array[0] = frame.f_lineno
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return each_line

    sys.settrace(each_line)
    _book_all(book, queue, ledger)


def _book_all(book: Callable[..., Any], queue: Any, ledger: Any) -> None:
    for _ in range(2 * len(AMOUNTS)):
        try:
            book(queue, ledger)
        except TimeoutError:
            return
        except Exception as error:
            if type(error).__name__ == "Closed":  # the one that sent is this notebook, and it may have gone
                return
            raise
