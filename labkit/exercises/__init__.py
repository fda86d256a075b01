"""Checks for the exercises of the labs: they run the learner's function in real processes and say why it is wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from labkit.channels import channel
from labkit.launch import Job, RemoteError, launch
from labkit.machine import read


@dataclass(frozen=True)
class Verdict:
    """Right or not, and why."""

    right: bool
    why: str

    def __repr__(self) -> str:
        return f"{'✔ Right' if self.right else '✘ Not yet'}: {self.why}"

    def _repr_html_(self) -> str:
        colour, word = ("#009E73", "✔ Right.") if self.right else ("#D55E00", "✘ Not yet.")
        why = escape(self.why).replace("\n", "<br>")
        return f'<div style="border-left:4px solid {colour};padding:.4em .8em"><b>{word}</b> {why}</div>'


def outcome(f: Callable[..., Any], messages: Iterable[bytes], kind: str = "pipe", patience: float = 10.0) -> Any:
    """What f(rx) returns, in a process of its own, when another process sends these messages and closes.

    Raises:
        RemoteError: f raised or was killed.
        TimeoutError: f had not returned after `patience` seconds.
    """
    tx, rx = channel(kind)
    listening: Job = launch(f, rx, name=getattr(f, "__name__", "your function"))
    sending = launch(_send, tx, list(messages), name="sender")
    try:
        return listening.wait(patience)
    finally:
        for job in (listening, sending):
            job.kill()


def _send(tx: Any, messages: list[bytes]) -> None:
    for message in messages:
        tx.send(message)


def let_sleep(pid: int, seconds: float, ended: Callable[[], bool] = lambda: False) -> None:
    """Wait, so that a process can show that it sleeps. One that does not, on a busy machine, gets time to show that.

    Args:
        pid: of the process.
        seconds: to wait, at least.
        ended: when this is true there is no more to wait for.
    """
    begin, before = time.monotonic(), _processor_seconds(pid)[1]
    while not ended():
        waited = time.monotonic() - begin
        state, spent = _processor_seconds(pid)
        if waited >= seconds and (state != "R" or spent - before >= seconds or waited > 20 * seconds):
            return
        time.sleep(0.02)


def _processor_seconds(pid: int) -> tuple[str, float]:
    """A process's state, and how long it has run: proc_pid_stat(5)."""
    fields = (read(Path(f"/proc/{pid}/stat")) or ") X" + 50 * " 0").rpartition(")")[2].split()
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def said(error: BaseException) -> str:
    """What was raised, in one line: its type, and the last line of its text if it has any."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[-1:]])


def last_line(error: RemoteError) -> str:
    """The last line of a child's traceback: the exception itself."""
    return (error.traceback or str(error)).strip().splitlines()[-1]
