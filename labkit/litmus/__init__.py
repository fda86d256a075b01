"""Litmus tests: two short functions that share two places in memory, and every outcome that they can have.

    def left(x, y):
        store_relaxed(x, 1)
        return load_relaxed(y)

    def right(x, y):
        store_relaxed(y, 1)
        return load_relaxed(x)

    test = Litmus("store buffering", left, right)     # in a notebook: drawn as two columns
    test.allowed("sc"), test.allowed("x86")           # the outcomes that a memory model allows, by trying all ways
    test.run()                                        # the same functions, compiled, raced by two processes

A litmus test asks whether one outcome can be seen (H.-J. Boehm, S. V. Adve, "Foundations of the C++ concurrency memory
model", 2008, tells what for). The processors may do less than a model allows, never more.
"""

from __future__ import annotations

import collections
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from labkit.litmus import models
from labkit.litmus.hardware import processors, race
from labkit.litmus.models import MODELS, Outcome
from labkit.litmus.reading import Program, read

__all__ = ["Litmus", "Seen", "classics", "compare", "plot_seen", "run_all", "table"]


class Litmus:
    """A litmus test of two functions.

    Args:
        name: what it is called in tables and plots.
        left: f(x, y), of loads, stores and fences of labkit.lockfree.atomics, without branches; returns what it loaded.
        right: the same for the other process.

    Raises:
        TypeError: a function does more than load, store, fence and return.
        ValueError: it stores or returns something that cannot be an outcome.
    """

    def __init__(self, name: str, left: Callable[..., Any], right: Callable[..., Any]):
        self.name = name
        self.functions = left, right
        self.program: Program = read(left, right)

    @cached_property
    def models(self) -> dict[str, set[Outcome]]:
        """Model -> the outcomes that it allows."""
        return {model: models.allowed(self.program, model) for model in MODELS}

    def allowed(self, model: str) -> set[Outcome]:
        """The outcomes that "sc", "x86", "arm" or "c11" allows, as tuples in the order of `names`."""
        return set(self.models[model]) if model in self.models else models.allowed(self.program, model)

    @property
    def names(self) -> tuple[str, ...]:
        """What the numbers of an outcome are: what each return gave (r1, r2, ...), what is left in a place."""
        return self.program.names

    @property
    def outcomes(self) -> list[Outcome]:
        """All combinations of values, allowed by any model or not."""
        return sorted(models.everything(self.program))

    @property
    def weak(self) -> list[Outcome]:
        """The outcomes that no order of the operations, one after the other, can have."""
        return [outcome for outcome in self.outcomes if outcome not in self.models["sc"]]

    def in_words(self, outcome: Outcome) -> str:
        return "  ".join(f"{name}={value}" for name, value in zip(self.names, outcome, strict=True))

    def how(self, outcome: Outcome, model: str = "x86") -> list[str] | None:
        """A shortest run of the machine "sc" or "x86" that ends so, step by step; None when there is none."""
        if model not in ("sc", "x86"):
            raise ValueError(f'only "sc" and "x86" are machines that run step by step, {model!r} is not')
        return models.runs(self.program, buffered=model == "x86").get(tuple(outcome))

    def run(self, times: int = 1_000_000, seconds: float = 0.3, patience: float = 60.0) -> Seen:
        """Race the two functions in two processes, and count the outcomes.

        Args:
            times: how many races; on two idle processors a million takes a hundredth of a second.
            seconds: stop racing after so many, on a busy machine.
            patience: seconds that all of it may take, starting processes and compiling included.

        Raises:
            TimeoutError: it took longer.
            ValueError: times is not positive.
        """
        return run_all([self], times, seconds, patience)[0]

    def __repr__(self) -> str:
        columns = [[str(one) for one in thread] for thread in self.program.threads]
        width = max(map(len, (*columns[0], "left"))) + 3
        height = max(map(len, columns))
        left, right = (column + [""] * (height - len(column)) for column in columns)
        lines = [f"{a:{width}}{b}".rstrip() for a, b in zip(["left", *left], ["right", *right], strict=True)]
        return "\n".join([self.name, *(f"  {line}" for line in lines)])

    def _repr_html_(self) -> str:
        from labkit.litmus.pictures import two_columns

        return two_columns(self)


def run_all(
    tests: Iterable[Litmus], times: int = 1_000_000, seconds: float = 0.3, patience: float = 60.0
) -> list[Seen]:
    """Race several tests in the same two processes, which is quicker than one by one; arguments as for Litmus.run.

    Raises:
        TimeoutError: it took longer than `patience` seconds.
        ValueError: times is not positive.
    """
    tests = list(tests)
    if times < 1:
        raise ValueError(f"a litmus test is run at least once, not {times} times")
    seen = []
    outcomes = race([(*test.functions, test.program) for test in tests], times, seconds, patience)
    for test, rows in zip(tests, outcomes, strict=True):
        packed = sum(row.astype(np.int64) << 16 * number for number, row in enumerate(rows))  # quick to count
        found, counts = np.unique(packed, return_counts=True)
        outcomes_found = zip(*(found >> 16 * number & 0xFFFF for number in range(len(rows))), strict=True)
        counted = {tuple(map(int, one)): int(n) for one, n in zip(outcomes_found, counts, strict=True)}
        seen.append(Seen(test, collections.Counter(counted), len(set(processors()))))
    return seen


@dataclass(frozen=True)
class Seen:
    """What came out when a litmus test was run on this machine."""

    test: Litmus
    counts: collections.Counter[Outcome]
    processors: int
    """How many it ran on: 2, or 1 when there is only one."""

    @property
    def times(self) -> int:
        return sum(self.counts.values())

    @property
    def weak(self) -> int:
        """How often an outcome came up that the operations cannot have one after the other."""
        return sum(self.counts[outcome] for outcome in self.test.weak)

    def forbidden(self, model: str) -> list[Outcome]:
        """The outcomes that came up although the model forbids them."""
        return sorted(outcome for outcome in self.counts if outcome not in self.test.models[model])

    def __repr__(self) -> str:
        width = max(len(self.test.in_words(outcome)) for outcome in self.test.outcomes)
        lines = [f"{self.test.name}: {self.times:,} races"]
        for outcome in self.test.outcomes:
            words = "" if outcome in self.test.models["sc"] else "   not one after the other"
            lines.append(f"  {self.test.in_words(outcome):{width}}  {self.counts[outcome]:>11,}{words}")
        if self.processors == 1:
            lines.append(f"  {ONE_PROCESSOR}")
        return "\n".join(lines)


ONE_PROCESSOR = (
    "There is one processor here: the two processes take turns on it, and a processor always sees its own stores in "
    "order, so that no reordering can be seen."
)


_LATER = {"classics": "well_known", "compare": "assembly", "plot_seen": "pictures", "table": "pictures"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"labkit.litmus.{_LATER[name]}"), name)
