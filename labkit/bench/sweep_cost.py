"""Round trips by mechanism and size of message: a parameter sweep that the engines of a cluster run.

Engines on one machine share its processors, and so disturb each other: for figures to quote have one engine a machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from itertools import product
from typing import Any

from labkit.bench import Row
from labkit.channels import channel
from labkit.cluster import cluster
from labkit.launch import launch

KINDS = ("pipe", "unix_stream", "posix_mq", "tcp", "shm_ring")
SIZES = (8, 128, 2048)
TRIPS = 200


def give_back(rx: Any, tx: Any) -> None:
    for message in rx:
        tx.send(message)


def round_trip(kind: str, size: int, trips: int = TRIPS) -> float:
    """Microseconds until a message of `size` bytes has come back from another process, the median of many trips."""
    (tx, there), (back, rx) = channel(kind), channel(kind)
    job = launch(give_back, there, back)
    times = []
    for _ in range(trips):
        begin = time.perf_counter()
        tx.send(bytes(size))
        rx.receive()
        times.append(time.perf_counter() - begin)
    tx.close()
    job.wait()
    rx.close()
    return statistics.median(times) * 1e6


def run(progress: Callable[[], None]) -> list[Row]:
    points = list(product(KINDS, SIZES))
    with cluster(n=2) as engines:
        progress()
        times = engines.map(round_trip, *zip(*points, strict=True), progress=False)
    return [
        Row(f"{kind}, {size:,} bytes there and back, on one of 2 engines", f"{microseconds:,.0f} µs", "", True)
        for (kind, size), microseconds in zip(points, times, strict=True)
    ]
