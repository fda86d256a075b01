"""What `import labkit` costs over an interpreter that imports nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from labkit.bench import Row

RUNS = 15


def seconds(code: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begun


def run(progress: Callable[[], None]) -> list[Row]:
    extra = []
    for _ in range(RUNS):
        extra.append((seconds("import labkit") - seconds("pass")) * 1000)
        progress()
    median = statistics.median(extra)
    return [Row("import labkit, over python -c pass", f"{median:.1f} ms", "<= 60 ms", median <= 60)]
