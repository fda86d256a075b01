"""Two implementations side by side, in the same processes on the same processors: A B A B, a probe around each sample.

Between two processes most of what is measured is how far apart their processors are: a cache line's round trip takes
30 ns between two threads of one core, 60 to 100 between two cores that share a cache, and several times that between
others; a virtual machine may move from one to the other at any moment. So every sample is taken between two probes (one
cache line, to and fro, spinning), only the ratio within a pair of samples counts, and ratios are told apart by what the
probes found.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import resource
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from labkit.bench.loops_entry import OVER, loops
from labkit.shared_array import SharedArray

ONE_CORE_NS, NEAR_NS = 48, 250  # a round trip of a cache line that takes less is within a core; between near cores
PROBES, PROBE_ROUNDS = 5, 100  # the best of so many, of so many round trips each
SECONDS, FEWEST = 6.0, 3  # a comparison takes no further pair after so many seconds, if it has a few
PATIENCE = 60.0  # seconds after which something must be stuck
PRELOAD = ["labkit.bench.queue_cost"]

Role = Callable[[Any, int], Any]


@dataclass(frozen=True)
class Side:
    """One implementation.

    Attributes:
        name: as the table calls it.
        make: opens, in the parent, what the processes share; it travels to each of them.
        roles: one process each, all at once: called with what they share, or what `attach` made of it, and the count.
        count: messages (or round trips) of one sample.
        attach: called once in each process with what is shared and the number of the role.
    """

    name: str
    make: Callable[[], AbstractContextManager[Any]]
    roles: tuple[Role, ...]
    count: int
    attach: Callable[[Any, int], Any] | None = None


@dataclass(frozen=True)
class Sample:
    """Nanoseconds per message; the cache line's round trip before and after; how often a process was interrupted."""

    ns: float
    probes_ns: tuple[float, float]
    disturbed: int


Pair = tuple[Sample, ...]


def processors(wanted: int) -> list[int]:
    """The processors to pin `wanted` processes to: two at most, so that placement is one of one pair."""
    allowed = sorted(os.sched_getaffinity(0))
    return [allowed[(n % min(2, len(allowed)))] for n in range(wanted)]


class Meeting:
    """Where the processes of one comparison wait for each other."""

    def __init__(self, place: SharedArray, people: int, me: int):
        self.address, self.people, self.me, self.met = int(place.array.ctypes.data), people, me, 0
        self.keep = place

    def wait(self) -> None:
        """Until all are here. Spins, so that all leave at once."""
        self.met += self.people
        loops()["meet"](self.address, self.met)

    def over(self, now: bool) -> bool:
        """Whether one of us has said that it is enough. All ask at the same point."""
        if now:
            self.keep.array[OVER] = 1
        self.wait()
        return bool(self.keep.array[OVER])

    def probe(self, can: bool) -> float:
        """Nanoseconds of a round trip, 0.0 where there is nobody to play with."""
        if not can:
            return 0.0
        self.wait()
        if self.me > 1:
            return 0.0
        best = 0
        for _ in range(PROBES):
            begun = time.perf_counter_ns()
            loops()["probe"](self.address, self.me, PROBE_ROUNDS)
            took = time.perf_counter_ns() - begun
            best = min(best or took, took)
        return best / PROBE_ROUNDS


def _process(
    answer: Any, place: SharedArray, me: int, people: int, cpu: int, can_probe: bool, pairs: int, sides: list[Any]
) -> None:
    """A process of a comparison: takes part in every sample of every side."""
    try:
        os.sched_setaffinity(0, {cpu})
        meeting, taken = Meeting(place, people, me), []
        made = [(role, attach(shared, me) if attach else shared, count) for role, attach, shared, count in sides]
        for role, shared, count in made:  # compiled code is loaded, memory is touched, caches are warm
            meeting.wait()
            role(shared, max(1, count // 10))
        until = time.monotonic() + SECONDS
        probed = meeting.probe(can_probe)
        for pair in range(pairs):
            if meeting.over(me == 0 and pair >= FEWEST and time.monotonic() > until):
                break
            samples = {}
            for at in range(len(made)) if pair % 2 == 0 else reversed(range(len(made))):
                role, shared, count = made[at]
                interrupted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
                meeting.wait()
                begun = time.monotonic_ns()
                role(shared, count)
                ended = time.monotonic_ns()
                interrupted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - interrupted
                before, probed = probed, meeting.probe(can_probe)
                samples[at] = begun, ended, before, probed, interrupted
            taken.append([samples[at] for at in range(len(made))])
        meeting.wait()  # nobody closes what another still uses
        answer.send(taken)
    except BaseException:
        answer.send(traceback.format_exc())
    finally:
        answer.close()


def compare(
    sides: list[Side], pairs: int, progress: Callable[[], None] = lambda: None, scale: float = 1.0
) -> list[Pair]:
    """Run all sides in turn in one set of processes, which are pinned; returns a tuple of samples a round.

    Args:
        sides: of equally many roles.
        pairs: how many rounds at most. The order within a round alternates.
        progress: called now and then.
        scale: multiplies the counts of the sides, for a quick look.

    Raises:
        RuntimeError: a process failed, with its traceback; or it took longer than PATIENCE.
    """
    people = len(sides[0].roles)
    cpus = processors(people)
    can_probe = len(set(cpus)) > 1
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    loops()  # compiled here, once; the children find it in Numba's cache
    children: list[Any] = []
    answers: list[Any] = []
    with ExitStack() as stack:
        place = SharedArray(64, np.int64)
        stack.callback(place.close)
        shared = [stack.enter_context(side.make()) for side in sides]
        stack.callback(_end, children)
        for me in range(people):
            ours, theirs = context.Pipe(duplex=False)
            stack.enter_context(ours)
            parts = [
                (side.roles[me], side.attach, what, max(1, int(side.count * scale)))
                for side, what in zip(sides, shared, strict=True)
            ]
            child = context.Process(
                target=_process, args=(theirs, place, me, people, cpus[me], can_probe, pairs, parts), daemon=True
            )
            child.start()
            theirs.close()
            children.append(child)
            answers.append(ours)
        taken = _collect(answers, progress)
    rounds = []
    for pair in range(len(taken[0])):
        samples = []
        for at, side in enumerate(sides):
            each = [one[pair][at] for one in taken]
            took = max(ended for _, ended, *_ in each) - min(begun for begun, *_ in each)
            count = max(1, int(side.count * scale))
            probes = each[0][2], each[0][3]
            samples.append(Sample(took / count, probes, sum(interrupted for *_, interrupted in each)))
        rounds.append(tuple(samples))
    return rounds


def _collect(answers: list[Any], progress: Callable[[], None]) -> list[Any]:
    taken: dict[Any, Any] = {}
    one: Any
    until = time.monotonic() + PATIENCE
    while len(taken) < len(answers):
        progress()
        for one in multiprocessing.connection.wait([a for a in answers if a not in taken], 0.2):
            try:
                taken[one] = one.recv()
            except EOFError:
                taken[one] = "a process of the benchmark was killed"
            if isinstance(taken[one], str):
                raise RuntimeError(taken[one])
        if time.monotonic() > until:
            raise RuntimeError(f"a comparison took longer than {PATIENCE:.0f} s: is one of the sides stuck?")
    return [taken[one] for one in answers]


def _end(children: list[Any]) -> None:
    for child in children:
        child.join(1.0)
        if child.is_alive():
            child.kill()
            child.join()
        child.close()


def nothing() -> AbstractContextManager[None]:
    """For a side whose roles share nothing."""
    return nullcontext()


@contextlib.contextmanager
def memory(size: int) -> Iterator[SharedArray]:
    """Zeroed shared memory, of the same kind as labkit's: a memfd."""
    made = SharedArray((size + 7) // 8, np.int64)
    try:
        yield made
    finally:
        made.close()


@dataclass(frozen=True)
class Figures:
    """The ratios of one placement: how many pairs, and minimum, median and maximum of a/b."""

    placement: str
    pairs: int
    low: float
    median: float
    high: float


def placement(samples: Pair) -> str:
    """What the probes around these samples say about the processors."""
    probes = [probe for sample in samples for probe in sample.probes_ns]
    if not all(probes):
        return ""
    found = {"one core" if probe < ONE_CORE_NS else "near" if probe < NEAR_NS else "far" for probe in probes}
    return found.pop() if len(found) == 1 else "moved"


def figures(rounds: list[Pair], value: Callable[[Pair], float]) -> list[Figures]:
    """Values by placement, the most frequent placement first.

    Pairs during which nobody was interrupted are preferred when there are at least three.
    """
    groups: dict[str, list[Pair]] = {}
    for samples in rounds:
        groups.setdefault(placement(samples), []).append(samples)
    found = []
    for where, group in groups.items():
        calm = [samples for samples in group if not any(sample.disturbed for sample in samples)]
        values = [value(samples) for samples in (calm if len(calm) >= 3 else group)]
        found.append(Figures(where, len(values), min(values), statistics.median(values), max(values)))
    order = "near", "one core", "", "far", "moved"
    return sorted(found, key=lambda f: order.index(f.placement))
