"""From the call of launch to the running child, after the first one has started the forkserver."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from labkit.bench import Row
from labkit.launch import launch

RUNS = 30


def run(progress: Callable[[], None]) -> list[Row]:
    times = []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        job = launch(lambda: None)
        times.append((time.perf_counter() - begun) * 1000)
        job.wait()
        progress()
    median = statistics.median(times[1:])
    return [
        Row("first launch to running child", f"{times[0]:.0f} ms", "", True),
        Row("each further launch to running child", f"{median:.1f} ms", "<= 30 ms", median <= 30),
    ]
