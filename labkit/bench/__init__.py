"""Benchmarks: `labkit bench NAME`. Ratios of the two sides of one run, interleaved A B A B, medians of several runs.

Times of a single run mean little on a laptop or a shared machine; the ratio within a pair does.
"""

from __future__ import annotations

import importlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

NAMES = ("import", "launch", "channels", "trace", "events", "view", "report", "queue", "electron", "sweep")


@dataclass(frozen=True)
class Row:
    """One measured figure: what, how much, the goal, whether it is reached, and why not when that is known."""

    what: str
    measured: str
    goal: str
    reached: bool
    why: str = ""


def paired(a: Callable[[], float], b: Callable[[], float], runs: int, progress: Callable[[], None]) -> list[float]:
    """Run a and b in turn; returns the ratios a/b, one a pair. The order within a pair alternates."""
    ratios = []
    for run in range(runs):
        first, second = (a, b) if run % 2 == 0 else (b, a)
        one, two = first(), second()
        ratios.append(one / two if run % 2 == 0 else two / one)
        progress()
    return ratios


def middle(values: list[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)


def main(names: list[str], keep: Path | None = None) -> int:
    """Run the named benchmarks (all when none is named) and print a table.

    Args:
        names: of NAMES.
        keep: a folder for the labs that `report` executes; those that are there already are not run again.

    Returns 0 also when a goal is missed: noise is no failure.

    Raises:
        ValueError: there is no benchmark of that name.
    """
    for name in names:
        if name not in NAMES:
            raise ValueError(f"no benchmark called {name!r}; there are: {', '.join(NAMES)}")
    console = Console()
    table = Table("what", "measured", "goal", "", title="labkit bench: medians of paired runs")
    reasons = []
    columns = *Progress.get_default_columns(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        for name in names or list(NAMES):
            module = importlib.import_module(f"labkit.bench.{name}_cost")
            task = progress.add_task(name, total=getattr(module, "STEPS", None))
            options = {"keep": keep} if name == "report" else {}
            for row in module.run(lambda task=task: progress.advance(task), **options):
                table.add_row(row.what, row.measured, row.goal, "[green]reached" if row.reached else "[yellow]missed")
                reasons += [f"{row.what}: {row.why}"] if row.why else []
            progress.update(task, total=1, completed=1)
    console.print(table)
    for reason in reasons:
        console.print(reason)
    return 0
