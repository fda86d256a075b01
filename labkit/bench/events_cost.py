"""One million events through a trace, and how many of them were lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from labkit.bench import Row
from labkit.channels import channel
from labkit.launch import launch
from labkit.trace import Trace

MESSAGES = 250_000  # four events each


def producer(tx: Any) -> None:
    for _ in range(MESSAGES):
        tx.send(b"12345678")


def consumer(rx: Any) -> int:
    return sum(1 for _ in rx)


def run(progress: Callable[[], None]) -> list[Row]:
    rows = []
    for kind in ("pipe", "shm_ring"):
        with Trace() as trace:
            tx, rx = channel(kind, trace=trace)
            jobs = launch(consumer, rx), launch(producer, tx)
            for job in jobs:
                job.wait()
            recorded, lost = len(trace.events()), trace.lost
            speed = trace.throughput().messages_per_second * 4 / 1e6
        measured = f"{recorded:,} recorded, {lost:,} lost, {speed:.1f} M events/s"
        rows.append(Row(f"a million events, {kind}", measured, "0 lost", lost == 0))
        progress()
    return rows
