"""Which outcomes of a litmus test each memory model allows: all of them are enumerated, none is looked up.

Two models are small machines, of which every run is tried:
    sc      one memory, one operation at a time in any interleaving. L. Lamport, "How to make a multiprocessor computer
            that correctly executes multiprocess programs" (1979).
    x86     the same, and a queue of stores (the store buffer) before each processor: a store waits in it, its own
            processor's loads look there first, and it reaches memory in order, some time. A fence, or a sequentially
            consistent store (a locked instruction), waits until the queue is empty. P. Sewell, S. Sarkar, S. Owens,
            F. Zappa Nardelli, M. O. Myreen, "x86-TSO: a rigorous and usable programmer's model" (2010).

Two are rules. Every way is tried in which loads may get their values (reads-from, rf) and stores to one place may
follow each other (coherence, co), and those are thrown out in which something would have to come before itself:
    arm     the Armv8 architecture: C. Pulte, S. Flur, W. Deacon, J. French, S. Sarkar, P. Sewell, "Simplifying ARM
            concurrency" (2018), for loads, stores, ldar, stlr, dmb ish, dmb ishld, and dependencies of data.
    c11     the C and C++ standards as repaired by O. Lahav, V. Vafeiadis, J. Kang, C.-K. Hur, D. Dreyer, "Repairing
            sequential consistency in C/C++11" (2017), without their rule against load buffering, which C and C++ allow.
            A plain access that races with another is undefined behaviour: then everything is allowed.
The style of rules is that of J. Alglave, L. Maranget, M. Tautschnig, "Herding cats" (2014). sc, x86 and arm speak of
the instructions as the program has them; a compiler that is free to change their order does so before.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from labkit.litmus.reading import Operation, Program

Outcome = tuple[int, ...]
Pairs = set[tuple[int, int]]

# --- machines ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _State:
    done: tuple[int, int]
    """How many operations each thread has done."""
    buffers: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
    """The stores that wait, (place, value), oldest first."""
    memory: tuple[int, ...]
    loaded: tuple[tuple[int, int, int], ...]
    """(thread, number of the operation, value)"""


def runs(program: Program, buffered: bool) -> dict[Outcome, list[str]]:
    """Every outcome of the machine with or without store buffers, and for each a shortest run that leads to it."""
    first = _State((0, 0), ((), ()), (0, 0), ())
    came: dict[_State, tuple[_State, str] | None] = {first: None}
    found: dict[Outcome, list[str]] = {}
    todo = [first]
    for state in todo:
        steps = list(_steps(program, state, buffered))
        for after, words in steps:
            if after not in came:
                came[after] = state, words
                todo.append(after)
        if not steps:
            found.setdefault(_outcome(program, state), _way(came, state))
    return found


def _steps(program: Program, state: _State, buffered: bool) -> Iterator[tuple[_State, str]]:
    for thread in (0, 1):
        who, waiting = ("left", "right")[thread], state.buffers[thread]
        if waiting:
            place, value = waiting[0]
            memory = _changed(state.memory, place, value)
            words = f"{who}'s {program.places[place]} = {value} reaches memory"
            yield _State(state.done, _changed(state.buffers, thread, waiting[1:]), memory, state.loaded), words
        if state.done[thread] == len(program.threads[thread]):
            continue
        operation = program.threads[thread][state.done[thread]]
        done = _changed(state.done, thread, state.done[thread] + 1)
        place = program.places.index(operation.place) if operation.place else 0
        if operation.kind == "load":
            value = next((v for p, v in reversed(waiting) if p == place), state.memory[place])
            loaded = tuple(sorted((*state.loaded, (thread, state.done[thread], value))))
            yield _State(done, state.buffers, state.memory, loaded), f"{who} reads {operation.place}: {value}"
            continue
        must_be_empty = operation.order == "seq_cst"
        if must_be_empty and waiting:
            continue
        if operation.kind == "fence":
            words = f"{who}'s fence: nothing waits any more" if must_be_empty else f"{who}'s fence: nothing to do"
            yield _State(done, state.buffers, state.memory, state.loaded), words
            continue
        value = operation.value
        if operation.source is not None:
            value = next(v for t, n, v in state.loaded if (t, n) == (thread, operation.source))
        if buffered and not must_be_empty:
            buffers = _changed(state.buffers, thread, (*waiting, (place, value)))
            words = f"{who} writes {operation.place} = {value} into its store buffer"
            yield _State(done, buffers, state.memory, state.loaded), words
        else:
            memory = _changed(state.memory, place, value)
            words = f"{who} writes {operation.place} = {value}"
            yield _State(done, state.buffers, memory, state.loaded), words


def _changed(values: Any, at: int, value: Any) -> Any:
    return (*values[:at], value, *values[at + 1 :])


def _outcome(program: Program, state: _State) -> Outcome:
    loaded = {(thread, number): value for thread, number, value in state.loaded}
    registers = (loaded[one] for one in program.returned)
    return (*registers, *(state.memory[program.places.index(place)] for place in program.finals))


def _way(came: dict[_State, tuple[_State, str] | None], state: _State) -> list[str]:
    words = []
    while (step := came[state]) is not None:
        state, done = step
        words.append(done)
    return words[::-1]


# --- rules -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Execution:
    """One way in which a program may have run. Events are numbered; -1 and -2 wrote the zeros at the start."""

    events: dict[int, Operation]
    before: Pairs
    """Program order."""
    rf: Pairs
    """reads-from: (store, the load that got its value)"""
    co: Pairs
    """coherence: (store, later store to the same place)"""
    data: Pairs
    """(load, the store of what it loaded)"""
    outcome: Outcome

    @property
    def fr(self) -> Pairs:
        """from-read: (load, store that came after the one it got its value from)"""
        return _then({(b, a) for a, b in self.rf}, self.co)

    def which(self, kind: str, *orders: str) -> Pairs:
        """[events of this kind and order], as a relation of each to itself."""
        return {
            (n, n)
            for n, event in self.events.items()
            if (not kind or event.kind == kind) and (not orders or event.order in orders)
        }

    def same_place(self, pairs: Pairs) -> Pairs:
        return {(a, b) for a, b in pairs if self.events[a].place == self.events[b].place != ""}

    def between_threads(self, pairs: Pairs) -> Pairs:
        return {(a, b) for a, b in pairs if self.events[a].thread != self.events[b].thread}


def _then(first: Pairs, *more: Pairs) -> Pairs:
    for second in more:
        after: dict[int, list[int]] = {}
        for a, b in second:
            after.setdefault(a, []).append(b)
        first = {(a, c) for a, b in first for c in after.get(b, ())}
    return first


def _closed(pairs: Pairs) -> Pairs:
    """Transitive closure."""
    while True:
        more = pairs | _then(pairs, pairs)
        if more == pairs:
            return pairs
        pairs = more


def _has_a_circle(pairs: Pairs) -> bool:
    return any(a == b for a, b in _closed(pairs))


def executions(program: Program) -> Iterator[_Execution]:
    """Every way to give each load a store to read from, and each place an order of its stores."""
    events = {-1 - n: Operation(-1, "store", "relaxed", place) for n, place in enumerate(program.places)}
    number_of: dict[tuple[int, int | None], int] = {}
    before: Pairs = set()
    for thread, operations in enumerate(program.threads):
        numbers = [10 * (thread + 1) + n for n in range(len(operations))]
        number_of |= {(thread, n): number for n, number in enumerate(numbers)}
        events |= dict(zip(numbers, operations, strict=True))
        before |= set(itertools.combinations(numbers, 2)) | {(zero, n) for zero in (-1, -2) for n in numbers}
    data = {
        (number_of[operation.thread, operation.source], number)
        for number, operation in events.items()
        if operation.source is not None
    }
    loads = [number for number, event in events.items() if event.kind == "load"]
    stores = {p: [n for n, e in events.items() if e.kind == "store" and e.place == p] for p in program.places}
    orders = [[(mine[0], *rest) for rest in itertools.permutations(mine[1:])] for mine in stores.values()]
    for sources in itertools.product(*(stores[events[load].place] for load in loads)):
        rf = set(zip(sources, loads, strict=True))
        if _has_a_circle(rf | data):
            continue  # a value out of thin air: nobody knows what it would be
        values: dict[int, int] = {}
        while len(values) < sum(event.kind != "fence" for event in events.values()):
            for number, event in events.items():
                origin = {a for a, b in rf | data if b == number}
                if event.kind == "store" and not origin:
                    values[number] = event.value
                elif origin and (source := origin.pop()) in values:
                    values[number] = values[source]
        registers = [values[number_of[one]] for one in program.returned]
        for chosen in itertools.product(*orders):
            co = {pair for order in chosen for pair in itertools.combinations(order, 2)}
            last = {place: order[-1] for place, order in zip(program.places, chosen, strict=True)}
            outcome = (*registers, *(values[last[place]] for place in program.finals))
            yield _Execution(events, before, rf, co, data, outcome)


def arm_allows(x: _Execution) -> bool:
    """The two axioms of the Armv8 model: `internal` (each place by itself is in order) and `external`."""
    po = x.before
    if _has_a_circle(x.same_place(po) | x.rf | x.co | x.fr):
        return False
    stlr = x.which("store", "release", "seq_cst")
    ldar = x.which("load", "acquire", "seq_cst")
    observed = x.between_threads(x.rf | x.co | x.fr)
    depends = x.data | _then(x.data, x.rf - x.between_threads(x.rf))
    dmb, dmb_of_loads = x.which("fence", "seq_cst", "release"), x.which("fence", "acquire")
    barriers = _then(po, dmb, po) | _then(x.which("load"), po, dmb_of_loads, po)
    ordered = _then(stlr, po, ldar) | _then(ldar, po) | _then(po, stlr)
    return not _has_a_circle(observed | depends | barriers | ordered)


def c11_allows(x: _Execution) -> bool:
    """Coherence and SC of RC11; a race of plain accesses is dealt with elsewhere."""
    happens = _happens_before(x)
    nothing = {(n, n) for n in x.events}
    communicates = _closed(x.rf | x.co | x.fr)
    if any(a == b for a, b in _then(happens, communicates | nothing)):
        return False
    elsewhere = x.before - x.same_place(x.before)
    together = x.before | _then(elsewhere, happens, elsewhere) | x.same_place(happens) | x.co | x.fr
    accesses = x.which("load", "seq_cst") | x.which("store", "seq_cst")
    fences = x.which("fence", "seq_cst")
    begins = accesses | _then(fences, happens | nothing)
    ends = accesses | _then(happens | nothing, fences)
    base = _then(begins, together, ends)
    between_fences = _then(fences, happens | _then(happens, communicates, happens), fences)
    return not _has_a_circle(base | between_fences)


def _happens_before(x: _Execution) -> Pairs:
    """Program order, and from each release to the acquire that sees it; a fence does both for what is beside it."""
    atomic = ("relaxed", "acquire", "release", "seq_cst")
    stores, loads = x.which("store", *atomic), x.which("load", *atomic)
    releases = x.which("store", "release", "seq_cst") | _then(x.which("fence", "release", "seq_cst"), x.before, stores)
    acquires = x.which("load", "acquire", "seq_cst") | _then(loads, x.before, x.which("fence", "acquire", "seq_cst"))
    return _closed(x.before | _then(releases, x.rf, acquires))


def races(x: _Execution) -> bool:
    """Whether two accesses to one place, at least one plain and one a store, are in no order."""
    happens = _happens_before(x)
    touching = [n for n, event in x.events.items() if event.kind != "fence"]
    return any(
        x.events[a].place == x.events[b].place
        and "store" in (x.events[a].kind, x.events[b].kind)
        and "plain" in (x.events[a].order, x.events[b].order)
        and (a, b) not in happens
        and (b, a) not in happens
        for a, b in itertools.combinations(touching, 2)
        if x.events[a].thread != x.events[b].thread
    )


# --- the answer ----------------------------------------------------------------------------------------------------


def everything(program: Program) -> set[Outcome]:
    """Every combination of the values that are stored, which no rule of any kind restricts."""
    return {execution.outcome for execution in executions(program)}


def _by_rule(program: Program, rule: Callable[[_Execution], bool]) -> set[Outcome]:
    return {execution.outcome for execution in executions(program) if rule(execution)}


def _c11(program: Program) -> set[Outcome]:
    allowed: Iterable[_Execution] = [execution for execution in executions(program) if c11_allows(execution)]
    if any(races(execution) for execution in allowed):
        return everything(program)
    return {execution.outcome for execution in allowed}


MODELS: dict[str, Callable[[Program], set[Outcome]]] = {
    "sc": lambda program: set(runs(program, buffered=False)),
    "x86": lambda program: set(runs(program, buffered=True)),
    "arm": lambda program: _by_rule(program, arm_allows),
    "c11": _c11,
}


def this_machine() -> str:
    """The model of the processor under us: "x86" or "arm"."""
    return "x86" if os.uname().machine in ("x86_64", "i686") else "arm"


def allowed(program: Program, model: str) -> set[Outcome]:
    """The outcomes that a model allows: "sc", "x86", "arm" or "c11".

    Raises:
        ValueError: there is no such model.
    """
    if model not in MODELS:
        raise ValueError(f"no memory model is called {model!r}; there are: {', '.join(MODELS)}")
    return MODELS[model](program)
