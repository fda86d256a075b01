"""What tracing costs: a pipe message from Python between two processes, with and without a trace."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from labkit.bench import Row, middle, paired
from labkit.channels import channel
from labkit.launch import launch
from labkit.trace import Trace

MESSAGES = 200_000
PAIRS = 9


def consumer(rx: Any) -> float:
    """Receive everything; returns the seconds from the first message to end of file."""
    rx.receive()
    begun = time.perf_counter()
    for _ in rx:
        pass
    return time.perf_counter() - begun


def producer(tx: Any, message: bytes, count: int) -> None:
    for _ in range(count):
        tx.send(message)


def once(kind: str, size: int, traced: bool) -> float:
    """Seconds that MESSAGES messages take."""
    trace = Trace(keep=1_000_000) if traced else None
    tx, rx = channel(kind, trace=trace)
    receiving = launch(consumer, rx)
    sending = launch(producer, tx, b"x" * size, MESSAGES)
    seconds: float = receiving.wait()
    sending.wait()
    if trace:
        trace.close()
    return seconds


def run(progress: Callable[[], None]) -> list[Row]:
    rows = []
    for size in (64, 1024):
        once("pipe", size, True)  # warm up
        traced, untraced = partial(once, "pipe", size, True), partial(once, "pipe", size, False)
        ratios = paired(traced, untraced, PAIRS, progress)
        low, median, high = middle(ratios)
        rows.append(
            Row(
                f"pipe message of {size:,} B, traced / untraced",
                f"{median:.2f}x ({low:.2f} to {high:.2f})",
                "<= 1.15x",
                median <= 1.15,
            )
        )
    return rows
