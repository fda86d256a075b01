"""Every interleaving of some programs: all states that any order of their steps can reach.

A state is the shared cells, the semaphores' values and where each process stands. Generators cannot be copied; but what
a process does next depends only on where it stands and on the shared cells, so each such pair is run once, by a
generator that is brought there again through the cells it met on its way.
"""

from __future__ import annotations

import contextlib
import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, CodeType, FunctionType, GeneratorType, ModuleType
from typing import Any, NamedTuple

from labkit.explore.program import Program, Request, Row, Shared, asked, in_words, lay_out, values

MOST_STATES = 50_000


class State(NamedTuple):
    """One moment of all processes together."""

    cells: tuple[int, ...]
    semaphores: tuple[int, ...]
    places: tuple[int, ...]
    """For each process the number of its place."""


@dataclass(frozen=True)
class Place:
    """Where one process stands: its line, what it waits for, and the way there."""

    line: int | None
    """None when it has ended."""
    request: Request | None
    locals: str = ""
    """Its own variables, in words."""
    error: str = ""
    """What it raised."""
    way: tuple[tuple[int, ...], ...] = ()
    """The shared cells it met before each of its steps."""


@dataclass(frozen=True)
class Verdict:
    """How a state is to be judged."""

    kind: str
    """"unfinished", "finished", "broken", "deadlock" or "raised"."""
    why: str

    @property
    def wrong(self) -> bool:
        return self.kind in ("broken", "deadlock", "raised")


class Model:
    """All states of these programs, found in order of their distance from the start."""

    def __init__(
        self,
        programs: Sequence[Program],
        shared: dict[str, Any],
        semaphores: dict[str, int],
        always: dict[str, Callable[[Any], Any]],
        at_end: dict[str, Callable[[Any], Any]],
        most_states: int = MOST_STATES,
    ):
        self.programs, self.semaphores = list(programs), dict(semaphores)
        self.always, self.at_end = dict(always), dict(at_end)
        self.layout, self.cells = lay_out(shared)
        self._number = {name: n for n, name in enumerate(semaphores)}
        self.places: list[list[Place]] = [[] for _ in self.programs]
        self._known: list[dict[Any, int]] = [{} for _ in self.programs]
        self._moves: dict[tuple[int, int, tuple[int, ...]], tuple[tuple[int, ...], int]] = {}
        # For each process: whether it stands at its first yield before anything has happened.
        self.primed = [self._begins_without_touching(program) for program in self.programs]
        first = tuple(self._first_place(n) for n in range(len(self.programs)))
        self.states: list[State] = [State(self.cells, tuple(semaphores.values()), first)]
        self.next: list[list[int | None]] = []
        """For each state and process the number of the state after its step, None where it cannot move."""
        self.came: list[tuple[int, int] | None] = [None]
        """For each state the state and the process from which it was first reached."""
        self._search(most_states)

    # -- finding all states

    def _search(self, most: int) -> None:
        numbers = {self.states[0]: 0}
        todo = deque([0])
        while todo:
            at = todo.popleft()
            row: list[int | None] = []
            for process in range(len(self.programs)):
                after = self.after(self.states[at], process)
                if after is not None and after not in numbers:
                    if len(self.states) >= most:
                        raise ValueError(
                            f"these processes can reach more than {most:,} states: let fewer of them run, or shorten "
                            "their loops, or leave out a yield; most_states=... allows more"
                        )
                    numbers[after] = len(self.states)
                    self.states.append(after)
                    self.came.append((at, process))
                    todo.append(numbers[after])
                row.append(None if after is None else numbers[after])
            self.next.append(row)

    def after(self, state: State, process: int) -> State | None:
        """The state after one step of a process, None when it waits or has ended."""
        place = self.places[process][state.places[process]]
        if place.line is None or self.waits_for(state, process) is not None:
            return None
        semaphores = list(state.semaphores)
        if place.request and place.request.action in ("acquire", "release"):
            semaphores[self._number[place.request.words]] += 1 if place.request.action == "release" else -1
        key = process, state.places[process], state.cells
        if key not in self._moves:
            self._moves[key] = self._step(*key)
        cells, there = self._moves[key]
        places = (*state.places[:process], there, *state.places[process + 1 :])
        return State(cells, tuple(semaphores), places)

    def waits_for(self, state: State, process: int) -> Request | None:
        """What the process waits for in vain, None when it could go on or has ended."""
        place = self.places[process][state.places[process]]
        request = place.request
        if place.line is None or request is None:
            return None
        if request.action == "acquire" and state.semaphores[self._number[request.words]] == 0:
            return request
        if request.condition is not None:
            cells = list(state.cells)
            met = request.condition(Shared(self.layout, cells))
            if cells != list(state.cells):
                raise ValueError(
                    f"the condition “{request.words}” of {self.programs[process].name} changes what is shared"
                )
            return None if met else request
        return None

    # -- running one process

    def _begins_without_touching(self, program: Program) -> bool:
        """Whether what comes before the first yield is the process's own affair, so that it may count as done."""
        shared = Shared(self.layout, list(self.cells))
        try:
            next(program.start(shared))
        except Exception:
            return False
        return not shared._touched

    def _first_place(self, process: int) -> int:
        program = self.programs[process]
        if self.primed[process]:
            generator = program.start(Shared(self.layout, list(self.cells)))
            return self._stands(process, generator, next(generator), ())
        return self._place(process, "start", Place(program.first_line, None))

    def _step(self, process: int, place: int, cells: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        way = self.places[process][place].way
        memory = list(self.cells)
        generator = self.programs[process].start(Shared(self.layout, memory))
        if self.primed[process]:
            next(generator)
        for met in way:
            memory[:] = met
            next(generator)
        memory[:] = cells
        way = (*way, cells)
        try:
            value = next(generator)
        except StopIteration:
            there = self._place(process, "end", Place(None, None, way=way))
        except Exception as error:
            text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            there = self._place(process, ("error", text), Place(None, None, error=text, way=way))
        else:
            there = self._stands(process, generator, value, way)
        return tuple(memory), there

    def _stands(self, process: int, generator: Any, value: Any, way: Any) -> int:
        request = asked(value, self.programs[process].name, self.semaphores)
        key = _fingerprint(generator), request.action, request.words
        code = generator.gi_code
        given = code.co_varnames[: code.co_argcount]
        own = {
            name: repr(held)
            for name, held in generator.gi_frame.f_locals.items()
            if name not in given and not name.startswith("_") and isinstance(held, int | str)
        }
        place = Place(generator.gi_frame.f_lineno, request, in_words(own), "", way)
        return self._place(process, key, place)

    def _place(self, process: int, key: Any, place: Place) -> int:
        known = self._known[process]
        if key not in known:
            known[key] = len(self.places[process])
            self.places[process].append(place)
        return known[key]

    # -- judging

    def shared(self, state: State) -> dict[str, Any]:
        return values(self.layout, state.cells)

    def verdict(self, number: int) -> Verdict:
        """How a state is to be judged; a deadlock without saying who holds what, which depends on the way there."""
        state = self.states[number]
        standing = [self.places[p][at] for p, at in enumerate(state.places)]
        return judge(
            Shared(self.layout, list(state.cells)),
            self.shared(state),
            {program.name: place.error for program, place in zip(self.programs, standing, strict=True) if place.error},
            self.always,
            self.at_end,
            ended=all(place.line is None for place in standing),
            stuck={program.name: self.waits_for(state, p) for p, program in enumerate(self.programs)}
            if all(after is None for after in self.next[number])
            else {},
            holders={},
        )

    def way_to(self, number: int) -> list[int]:
        """The shortest schedule that leads to a state, as numbers of processes."""
        way = []
        while (step := self.came[number]) is not None:
            number, process = step
            way.append(process)
        return way[::-1]

    def count(self, wrong: set[int]) -> tuple[float, float]:
        """How many interleavings there are, and how many of them are wrong; infinity when there are loops."""
        order = self._children_first()
        if order is None:
            return float("inf"), float("inf") if wrong else 0
        every, good = [0] * len(self.states), [0] * len(self.states)
        for at in order:
            after = [there for there in self.next[at] if there is not None]
            every[at] = sum(every[there] for there in after) if after else 1
            good[at] = 0 if at in wrong else sum(good[there] for there in after) if after else 1
        return every[0], every[0] - good[0]

    def _children_first(self) -> list[int] | None:
        """The states so that each comes after all that follow it, None when some lead back to themselves."""
        order: list[int] = []
        entered, left = {0}, set()
        path: list[tuple[int, Iterator[int | None]]] = [(0, iter(self.next[0]))]
        while path:
            at, rest = path[-1]
            for there in rest:
                if there is None or there in left:
                    continue
                if there in entered:
                    return None
                entered.add(there)
                path.append((there, iter(self.next[there])))
                break
            else:
                path.pop()
                left.add(at)
                order.append(at)
        return order


def judge(
    shared: Shared,
    state: dict[str, Any],
    errors: dict[str, str],
    always: dict[str, Callable[[Any], Any]],
    at_end: dict[str, Callable[[Any], Any]],
    ended: bool,
    stuck: dict[str, Request | None],
    holders: dict[str, list[str]],
) -> Verdict:
    """The verdict on one moment, of the model or of real processes."""
    for name, error in errors.items():
        return Verdict("raised", f"{name} raised {error}")
    for words, condition in always.items():
        if not condition(shared):
            return Verdict("broken", f"“{words}” does not hold: {in_words(state)}")
    if ended:
        for words, condition in at_end.items():
            if not condition(shared):
                return Verdict("broken", f"“{words}” does not hold at the end: {in_words(state)}")
        return Verdict("finished", f"all have ended{': ' if state else ''}{in_words(state)}")
    if stuck:
        return Verdict("deadlock", deadlock_in_words(stuck, holders))
    return Verdict("unfinished", "some have not ended yet")


def deadlock_in_words(stuck: dict[str, Request | None], holders: dict[str, list[str]]) -> str:
    parts = []
    for name, request in stuck.items():
        if request is None:
            continue
        if request.action == "until":
            parts.append(f"{name} waits until {request.words}")
            continue
        held = [holder if holder != name else "itself" for holder in holders.get(request.words, [])]
        whose = f", which {' and '.join(held)} hold{'s' if len(held) == 1 else ''}" if held else ""
        parts.append(f"{name} waits for {request.words}{whose}")
    return f"deadlock: {'; '.join(parts)}"


def _fingerprint(thing: Any) -> Any:
    """What a process holds, so that two places with equal fingerprints go on in the same way.

    A generator holds its position, its variables, and on CPython's evaluation stack the iterators of its loops, which
    gc.get_referents shows.

    Raises:
        TypeError: it holds something that cannot be compared.
    """
    if thing is None or isinstance(thing, int | float | str | bytes | CodeType | Request):
        return type(thing), thing
    if isinstance(thing, Shared):
        return "shared"
    if isinstance(thing, GeneratorType):
        if thing.gi_frame is None:
            return "exhausted"
        names = tuple((name, _fingerprint(value)) for name, value in thing.gi_frame.f_locals.items())
        stack = tuple(_fingerprint(held) for held in gc.get_referents(thing) if hasattr(held, "__next__"))
        return thing.gi_code, thing.gi_frame.f_lasti, names, stack
    if isinstance(thing, FunctionType):
        return thing.__code__, tuple(_fingerprint(cell.cell_contents) for cell in thing.__closure__ or ())
    if isinstance(thing, list | tuple):
        return type(thing), tuple(map(_fingerprint, thing))
    if isinstance(thing, dict):
        return dict, tuple((_fingerprint(key), _fingerprint(value)) for key, value in thing.items())
    if isinstance(thing, set | frozenset):
        return set, frozenset(map(_fingerprint, thing))
    if isinstance(thing, Row):
        return Row, thing._at
    if isinstance(thing, type | range | BuiltinFunctionType | ModuleType):
        return type(thing), thing
    if hasattr(thing, "__next__"):  # an iterator tells how to make one like it
        with contextlib.suppress(TypeError):
            return _fingerprint(thing.__reduce__())
    raise TypeError(
        f"a process holds “{type(thing).__name__}” across a yield: the explorer can compare numbers, text, lists, "
        "tuples, dictionaries, sets and the iterators of loops over them"
    )
