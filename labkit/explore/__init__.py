"""All interleavings of small processes that share memory: enumerate them, step through them, run them for real.

def increment(s):
    value = s.counter
    yield "has read"                  # another process may run here
    s.counter = value + 1

lost_update = Explorer({"A": increment, "B": increment}, shared={"counter": 0},
                       at_end={"both increments count": lambda s: s.counter == 2})
lost_update                           # in a notebook: choose who runs next
lost_update.shortest()                # the shortest interleaving that breaks it
lost_update.run(["A", "B", "A", "B"]) # the same in real processes, stepped in this order
lost_update.race(1000)                # and freely, as the kernel's scheduler likes
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from labkit.explore.model import MOST_STATES, Model, State, Verdict, deadlock_in_words
from labkit.explore.program import Program, Request, acquire, in_words, release, until

__all__ = ["Explorer", "Run", "acquire", "release", "until"]


@dataclass(frozen=True)
class Run:
    """What one interleaving came to."""

    schedule: tuple[str, ...]
    """Who ran, step by step."""
    kind: str
    """"finished", "unfinished", "broken", "deadlock" or "raised"."""
    why: str
    shared: dict[str, Any]
    semaphores: dict[str, int]
    steps: tuple[str, ...] = field(repr=False)
    """What each step did, in words."""
    pids: dict[str, int] = field(default_factory=dict)
    """The real processes; empty for a run of the model."""

    @property
    def right(self) -> bool:
        return self.kind in ("finished", "unfinished")

    def __repr__(self) -> str:
        width = len(str(len(self.steps)))
        where = f" in real processes ({in_words(self.pids)})" if self.pids else ""
        lines = [f"{len(self.steps)} steps{where}:"]
        lines += [f"  {number:{width}}. {words}" for number, words in enumerate(self.steps, 1)]
        return "\n".join([*lines, f"{'✔' if self.right else '✘'} {self.why}"])


class Explorer:
    """All interleavings of some processes. In a notebook it shows itself: the reader chooses who runs next.

    Args:
        processes: name -> generator function over the shared state, or (function, argument, ...). A step lasts from
            one yield to the next; what comes before the first yield counts as done when it touches nothing shared.
        shared: name -> whole number, or list of them: the shared memory and what is in it at the start.
        semaphores: name -> value at the start.
        always: words -> condition on the shared state that must hold after every step.
        at_end: words -> condition that must hold when all processes have ended.
        most_states: how many states it may look at.

    Every step is tried in this process: one that never comes to its next yield has to be interrupted.

    Raises:
        TypeError: a process is not a generator function, or it yields or holds something the explorer cannot use.
        ValueError: a name does not exist, or there are more than `most_states` states.
    """

    def __init__(
        self,
        processes: dict[str, Any],
        shared: dict[str, Any] | None = None,
        semaphores: dict[str, int] | None = None,
        always: dict[str, Callable[[Any], Any]] | None = None,
        at_end: dict[str, Callable[[Any], Any]] | None = None,
        most_states: int = MOST_STATES,
    ):
        if not processes:
            raise ValueError("an explorer needs at least one process: Explorer({'A': function})")
        for name, value in (semaphores or {}).items():
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"semaphore {name!r} starts at {value!r}: a semaphore is a whole number, 0 or more")
        programs = [Program.of(str(name), given) for name, given in processes.items()]
        self._model = Model(programs, shared or {}, semaphores or {}, always or {}, at_end or {}, most_states)
        self._verdicts = {n: v for n in range(len(self._model.states)) if (v := self._model.verdict(n)).wrong}
        every, wrong = self._model.count(set(self._verdicts))
        self.interleavings = every
        """How many there are; infinity when a process can go round for ever."""
        self.breaking = wrong
        """How many of them break."""
        self.states = len(self._model.states)
        """How many different states they reach."""

    @property
    def names(self) -> list[str]:
        return [program.name for program in self._model.programs]

    # -- in the model

    def shortest(self) -> Run | None:
        """The shortest interleaving that breaks: a condition, a deadlock, an exception. None when there is none."""
        if not self._verdicts:
            return None
        return self.walk([self.names[process] for process in self._model.way_to(min(self._verdicts))])

    def walk(self, schedule: Iterable[str]) -> Run:
        """What the model does when the processes run in this order, one step a name.

        Raises:
            ValueError: a name is unknown, or the process cannot run at that moment; the text says why.
        """
        chosen = tuple(schedule)
        numbers = self.path(chosen)
        state = self._model.states[numbers[-1]]
        verdict = self._verdict(numbers, chosen)
        steps = [self._step_in_words(*step) for step in zip(numbers, numbers[1:], chosen, strict=False)]
        semaphores = dict(zip(self._model.semaphores, state.semaphores, strict=True))
        return Run(chosen, verdict.kind, verdict.why, self._model.shared(state), semaphores, tuple(steps))

    def path(self, schedule: Iterable[str]) -> list[int]:
        """The numbers of the states on the way, the first included."""
        numbers = [0]
        for step, name in enumerate(schedule, 1):
            if name not in self.names:
                raise ValueError(f"step {step}: no process is called {name!r}; there are: {', '.join(self.names)}")
            after = self._model.next[numbers[-1]][self.names.index(name)]
            if after is None:
                raise ValueError(f"step {step}: {self._why_not(self._model.states[numbers[-1]], name)}")
            numbers.append(after)
        return numbers

    def _why_not(self, state: State, name: str) -> str:
        request = self._model.waits_for(state, self.names.index(name))
        if request is None:
            return f"{name} has ended"
        return f"{name} cannot run: it waits {'until' if request.action == 'until' else 'for'} {request.words}"

    def _verdict(self, numbers: list[int], schedule: tuple[str, ...]) -> Verdict:
        for number in numbers:  # what broke on the way stays broken
            verdict = self._verdicts.get(number)
            if verdict and verdict.kind != "deadlock":
                return verdict
        verdict = self._model.verdict(numbers[-1])
        if verdict.kind == "deadlock":
            state = self._model.states[numbers[-1]]
            stuck = {name: self._model.waits_for(state, process) for process, name in enumerate(self.names)}
            return Verdict("deadlock", deadlock_in_words(stuck, self._holders(numbers, schedule)))
        return verdict

    def _holders(self, numbers: list[int], schedule: tuple[str, ...]) -> dict[str, list[str]]:
        """For each semaphore, who has taken it and not given it back, on this way."""
        holders: dict[str, list[str]] = {name: [] for name in self._model.semaphores}
        for number, name in zip(numbers, schedule, strict=False):
            request = self._request(number, name)
            if request and request.action == "acquire":
                holders[request.words].append(name)
            elif request and request.action == "release" and name in holders[request.words]:
                holders[request.words].remove(name)
        return holders

    def _request(self, number: int, name: str) -> Request | None:
        process = self.names.index(name)
        return self._model.places[process][self._model.states[number].places[process]].request

    def _step_in_words(self, before: int, after: int, name: str) -> str:
        """ "A takes mutex: counter = 1; it has ended"."""
        request, process = self._request(before, name), self.names.index(name)
        done = {
            "acquire": lambda words: f"takes {words}",
            "release": lambda words: f"releases {words}",
            "until": lambda words: f"sees that {words}",
            "pass": lambda words: f"goes on after “{words}”" if words else "goes on",
        }
        words = done[request.action](request.words) if request else "begins"
        was, now = (self._model.shared(self._model.states[number]) for number in (before, after))
        changes = in_words({variable: value for variable, value in now.items() if was[variable] != value})
        place = self._model.places[process][self._model.states[after].places[process]]
        own = f" (its own {place.locals})" if place.locals else ""
        end = "" if place.line is not None else " and stops" if place.error else " and ends"
        return f"{name} {words}{f', sets {changes}' if changes else ''}{end}{own}"

    # -- in real processes

    def run(self, schedule: Iterable[str]) -> Run:
        """Run the same functions in real processes, with real shared memory and semaphores, stepped in this order.

        When the schedule ends in a deadlock, each process then really waits, and it is checked that they all sleep.

        Raises:
            ValueError: the schedule is impossible; the text says at which step and why.
            RuntimeError: the real processes did something else than the model (a program that is not deterministic).
        """
        from labkit.explore.processes import Ensemble

        planned = self.walk(schedule)
        with Ensemble(self._model) as ensemble:
            return ensemble.follow(planned, self.path(planned.schedule))

    def race(self, times: int = 200, pause: float = 0.0) -> Any:
        """Let the real processes run freely, again and again, and count how it ends.

        Args:
            times: how often.
            pause: at one yield in four a process is held up for at most so many seconds, as if the scheduler had taken
                its processor away there. With 0 nothing is touched, and what goes wrong is rarer, but no less real.

        Conditions are looked at when all have ended: nobody can watch from outside without disturbing. Deadlocks and
        exceptions are counted too.

        Raises:
            TimeoutError: a run does not come to an end, though its processes do not wait.
            RemoteError: a process died.
        """
        from labkit.explore.processes import Ensemble

        with Ensemble(self._model) as ensemble:
            return ensemble.race(times, pause)

    # -- in a notebook

    def table(self) -> bytes:
        """The whole graph of states for the view, so that it works without a kernel: JSON, gzip."""
        model = self._model
        numbers = {name: n for n, name in enumerate(model.semaphores)}
        actions = {"pass": 0, "acquire": 1, "release": 2, "until": 3}
        sources: dict[tuple[int, str], int] = {}
        processes = []
        for program, places in zip(model.programs, model.places, strict=True):
            source = sources.setdefault(program.source(), len(sources))
            rows = [
                [
                    place.line,
                    actions[place.request.action] if place.request else None,
                    numbers.get(place.request.words, -1) if place.request else -1,
                    place.request.words if place.request else "",
                    place.locals,
                    place.error,
                ]
                for place in places
            ]
            processes.append({"name": program.name, "call": program.call(), "source": source, "places": rows})
        infinite = self.interleavings == float("inf")
        contents = {
            "processes": processes,
            "sources": [{"first": first, "text": text} for first, text in sources],
            "variables": [[name, *where] for name, where in model.layout.items()],
            "semaphores": list(model.semaphores),
            "states": [[*state.cells, *state.semaphores, *state.places] for state in model.states],
            "next": [[-1 if there is None else there for there in row] for row in model.next],
            "wrong": {number: [verdict.kind, verdict.why] for number, verdict in self._verdicts.items()},
            "conditions": [*model.always, *model.at_end],
            "interleavings": None if infinite else f"{self.interleavings:,}",
            "breaking": None if infinite else f"{self.breaking:,}",
            "shortest": model.way_to(min(self._verdicts)) if self._verdicts else None,
        }
        return gzip.compress(json.dumps(contents, separators=(",", ":")).encode(), 9, mtime=0)

    def __repr__(self) -> str:
        if self.interleavings == float("inf"):
            ways = f"{self.states:,} states, and interleavings without end, since a process can go round for ever"
            verdict = "some break" if self._verdicts else "none breaks"
        else:
            plural = "" if self.interleavings == 1 else "s"
            ways = f"{self.interleavings:,} interleaving{plural} through {self.states:,} states"
            verdict = f"{self.breaking:,} break" if self._verdicts else "none breaks"
        return f"<explorer of {', '.join(self.names)}: {ways}; {verdict}>"

    def _ipython_display_(self) -> None:
        from IPython import get_ipython

        from labkit.views.explorer import Steps

        if getattr(get_ipython(), "kernel", None) is None:
            print(self)
        else:
            Steps(self)._ipython_display_()
