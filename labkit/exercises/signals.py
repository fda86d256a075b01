"""Checks of notebook 07-signals-and-events."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.channels import channel
from labkit.channels.base import Closed
from labkit.exercises import Verdict, last_line, let_sleep
from labkit.launch import Job, RemoteError, launch

PATIENCE = 5.0
"""Seconds that the learner's function gets."""

# --- graceful shutdown --------------------------------------------------------------------------------------

WORK = 0.15
"""Seconds that one message takes."""


def check_shutdown(f: Callable[..., Any]) -> Verdict:
    """Whether f(rx, work) finishes the message in hand on SIGTERM, takes no other one, and returns.

    Args:
        f: the learner's function. It is to call work(message) for every message of rx until SIGTERM comes.
    """
    for check in (_all_done, _busy, _idle):
        wrong = check(f)
        if wrong:
            return Verdict(False, wrong)
    return Verdict(
        True,
        "SIGTERM came in the middle of a message: it was finished, the next was left alone, and the process exited 0. "
        "When it came while nothing was to be done your function returned as well.",
    )


class _Worker:
    """The learner's function in a process of its own, and what it reports."""

    def __init__(self, f: Callable[..., Any], messages: int, held: int = 0):
        self.tx, rx = channel("unix_seqpacket")  # who selects has one message each time: a pipe may bring several
        self.go_on, go = channel("pipe")
        for number in range(1, messages + 1):
            self.tx.send(b"%d" % number)
        report, self.news = channel("pipe")
        self.log: list[str] = []
        self.job: Job = launch(_serve, f, rx, report, go, held, name=getattr(f, "__name__", "your function"))
        self.hears_until("up")

    def hears_until(self, line: str) -> bool:
        """Listen until the process reports this; False when it ends before, or takes too long."""
        with contextlib.suppress(Closed, TimeoutError):
            while line not in self.log:
                self.log.append(self.news.receive(PATIENCE).decode())
        return line in self.log

    def ends(self) -> str:
        """Wait for the end; returns what is wrong with it."""
        try:
            self.job.wait(PATIENCE)
        except TimeoutError:
            return "still runs"
        except RemoteError as error:
            return self.job.status if self.job.status.startswith("killed") else last_line(error)
        finally:
            self.job.kill()
            with contextlib.suppress(Closed, TimeoutError):
                while True:
                    self.log.append(self.news.receive(1.0).decode())
            for end in (self.tx, self.go_on, self.news):
                end.close()
        return ""


def _serve(f: Callable[..., Any], rx: Any, report: Any, go: Any, held: int) -> None:
    def work(message: bytes) -> None:
        report.send(b"begun " + message)
        if message == b"%d" % held:  # the signal comes meanwhile, however busy the machine is
            go.receive()
        time.sleep(WORK)
        report.send(b"done " + message)

    report.send(b"up")
    f(rx, work)


def _all_done(f: Callable[..., Any]) -> str:
    worker = _Worker(f, 2)
    came = worker.hears_until("done 2")
    worker.tx.close()
    how = worker.ends()
    if not came:
        if how and how != "still runs":
            return f"before any signal came your function stopped with “{how}”."
        return "two messages were sent, no signal came, and your function has not called work(message) for both."
    if how == "still runs":
        return "the sender has closed, and your function does not return: stop at end of file too (labkit.Closed)."
    return f"all messages were done, and then your function stopped with “{how}”." if how else ""


def _busy(f: Callable[..., Any]) -> str:
    worker = _Worker(f, 6, held=2)
    worker.hears_until("begun 2")
    worker.job.kill(signal.SIGTERM)
    with contextlib.suppress(Closed):  # it may have ended
        worker.go_on.send(b"signalled")
    how = worker.ends()
    if how == "killed by SIGTERM":
        return (
            "SIGTERM has killed your process in the middle of message 2. That is its default action: install a handler "
            "with signal.signal(signal.SIGTERM, …)."
        )
    if "done 2" not in worker.log:
        return (
            f"message 2 was begun and is not done ({how or 'exited 0'}). An exception out of the handler, SystemExit "
            "too, breaks off whatever is being done: let the handler only note that the signal came."
        )
    if how == "still runs" or "begun 6" in worker.log:
        return "SIGTERM came during message 2, and your function went on as if nothing had happened."
    if "begun 3" in worker.log:
        return "SIGTERM came during message 2, and your function took message 3: look at the note before the next one."
    if how:
        return (
            f"message 2 was finished, but the process ended with “{how}”. It has done what it was asked to do: return, "
            "and it exits 0."
        )
    return ""


def _idle(f: Callable[..., Any]) -> str:
    worker = _Worker(f, 1)
    worker.hears_until("done 1")
    let_sleep(worker.job.pid, WORK)
    worker.job.kill(signal.SIGTERM)
    how = worker.ends()
    if how == "still runs":
        return (
            "SIGTERM came while your function waited for a message, and it still waits. Python goes on waiting after a "
            "handler has returned (PEP 475), so that nobody looks at your note: wait with receive(timeout=0.1), and "
            "look after each TimeoutError."
        )
    return f"SIGTERM came while nothing was to be done, and your function ended with “{how}”." if how else ""


# --- children -----------------------------------------------------------------------------------------------

CHILDREN = 20
LIFE = 0.4
"""Seconds that the children live, at least."""
KILLED = 7
"""Which of them dies of SIGKILL; the others exit with their numbers."""


def check_collect(f: Callable[..., Any]) -> Verdict:
    """Whether f(start) calls start(), which starts 20 children, and returns {pid: exit status} of all of them.

    Args:
        f: the learner's function.
    """
    tell, told = channel("pipe")
    lifeline, waits = channel("pipe")
    job = launch(_collect, f, tell, waits, name=getattr(f, "__name__", "your function"))
    try:
        with contextlib.suppress(Closed, TimeoutError):
            told.receive(PATIENCE)
            _die_at_once(job, lifeline)
        found, expected, busy = job.wait(PATIENCE)
    except TimeoutError:
        zombies = _children(job.pid).count("Z")
        if zombies:
            return Verdict(
                False,
                f"your function still waits, and {zombies} of its {CHILDREN} children are zombies that nobody reaps. "
                "They ended at the same time, and a pending SIGCHLD swallows the next one: reap in a loop, "
                "until os.waitpid(-1, os.WNOHANG) has no more.",
            )
        return Verdict(
            False, f"your function did not return within {PATIENCE:g} seconds, and no child is left to reap."
        )
    except RemoteError as error:
        line = last_line(error)
        hint = (
            " There is no child (any more) to wait for. With SIG_IGN for SIGCHLD the kernel reaps them itself, and "
            "nobody learns their exit status; in a loop it says that you are done."
            if "ChildProcessError" in line
            else ""
        )
        return Verdict(False, f"your function stopped with “{line}”.{hint}")
    finally:
        job.kill()
        told.close()
        lifeline.close()
    wrong = _wrong_statuses(found, expected)
    if wrong:
        return Verdict(False, wrong)
    if busy > LIFE / 2:
        return Verdict(
            False,
            f"all are there, but your function used {busy:.1f} s of processor time to wait {LIFE:g} s: it asks over "
            "and over. Sleep until the kernel tells you: waitpid without WNOHANG, signal.sigwait, or signal.pause.",
        )
    return Verdict(
        True,
        f"{CHILDREN} children, {CHILDREN} exit statuses, one of them killed by SIGKILL, and no zombie left. "
        f"Waiting took {busy * 1e3:.0f} ms of processor time.",
    )


def _die_at_once(job: Job, lifeline: Any) -> None:
    """Let the children end while their parent is stopped, so that it hears of all of them in one moment."""
    let_sleep(job.pid, LIFE)
    job.kill(signal.SIGSTOP)
    lifeline.close()
    deadline = time.monotonic() + PATIENCE
    while set(_children(job.pid)) - {"Z"} and time.monotonic() < deadline:
        time.sleep(0.01)
    job.kill(signal.SIGCONT)


def _children(pid: int) -> list[str]:
    """The states of a process's children, Z of those that wait to be reaped: proc_pid_stat(5)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            found += [state] if int(parent) == pid else []
    return found


def _collect(f: Callable[..., Any], tell: Any, waits: Any) -> tuple[Any, dict[int, int], float]:
    expected: dict[int, int] = {}

    def start() -> list[int]:
        for number in range(CHILDREN):
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                select.select([waits], [], [])  # until its other end is closed
                if number == KILLED:
                    os.kill(os.getpid(), signal.SIGKILL)
                os._exit(number)
            expected[pid] = -signal.SIGKILL if number == KILLED else number
        tell.send(b"started")
        return list(expected)

    begin = time.process_time()
    found = f(start)
    return found, expected, time.process_time() - begin


def _wrong_statuses(found: Any, expected: dict[int, int]) -> str:
    if found is None or found is ...:
        return "your function returns nothing yet: a dictionary, {pid: exit status}."
    if isinstance(found, int):
        return (
            f"you return {found}, one number. Did you count signals? SIGCHLD says that there is something to reap, not "
            "how much: return {pid: exit status}."
        )
    if not isinstance(found, dict):
        return f"you return a {type(found).__name__}; wanted is a dictionary, {{pid: exit status}}."
    if not expected:
        return "your function has not called start(): that is what starts the children."
    if 0 in found:
        return "you have a child with pid 0. That is waitpid's way to say that none is ready now (WNOHANG)."
    missing = expected.keys() - found.keys()
    if missing:
        return (
            f"{len(missing)} of {len(expected)} children are missing. They ended at the same time, and a pending "
            "SIGCHLD swallows the next one: reap in a loop, until os.waitpid(-1, os.WNOHANG) has no more."
        )
    if found == expected:
        return ""
    pid = next(pid for pid in expected if found[pid] != expected[pid])
    if any(found[pid] == expected[pid] << 8 and expected[pid] > 0 for pid in expected):
        return (
            f"you have {max(found.values())} as an exit status. That is what waitpid reports, status and signal "
            "together: os.waitstatus_to_exitcode makes an exit status of it."
        )
    killed = next(pid for pid, status in expected.items() if status < 0)
    if pid == killed:
        return (
            f"process {pid} was killed by SIGKILL, and you report {found[pid]}: who is killed has no exit status. "
            "os.waitstatus_to_exitcode says -9."
        )
    return f"process {pid} exited with {expected[pid]}, and you report {found[pid]}."
