"""What a litmus test does, found by calling its functions: each load, store and fence with its memory order.

A test is two ordinary Python functions over two places in shared memory, written with labkit.lockfree.atomics:

    def left(x, y):
        store_relaxed(x, 1)
        return load_relaxed(y)

The same functions are compiled and run by two processes, and called here, with stand-ins for the atomics that write
down what is asked of them: what the models judge, and what is drawn, is what runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import CellType, FunctionType, SimpleNamespace
from typing import Any

from labkit.lockfree import atomics

LOADS = {"load_plain": "plain", "load_relaxed": "relaxed", "load_acquire": "acquire", "load_seq_cst": "seq_cst"}
STORES = {"store_plain": "plain", "store_relaxed": "relaxed", "store_release": "release", "store_seq_cst": "seq_cst"}
FENCES = {"fence": "seq_cst", "acquire_fence": "acquire", "release_fence": "release", "compiler_fence": "compiler"}


@dataclass(frozen=True)
class Operation:
    """One touch of shared memory, or a fence."""

    thread: int
    kind: str
    """"load", "store" or "fence"."""
    order: str
    """"plain", "relaxed", "acquire", "release" or "seq_cst"; of a fence also "compiler", which no processor sees."""
    place: str = ""
    value: int = 0
    """What is stored, unless `source` says that it was loaded before."""
    source: int | None = None
    """The number of the thread's operation that loaded the value."""
    register: str = ""
    """What the loaded value is called when the function returns it."""

    def __str__(self) -> str:
        if self.kind == "fence":
            return "fence" if self.order == "seq_cst" else f"fence  ({self.order})"
        order = f"  ({self.order})" if self.order != "relaxed" else ""
        if self.kind == "store":
            return f"{self.place} = {self.register or self.value}{order}"
        return f"{self.register or '_'} = {self.place}{order}"


@dataclass(frozen=True)
class Program:
    """A litmus test as its operations."""

    threads: tuple[tuple[Operation, ...], tuple[Operation, ...]]
    places: tuple[str, str]
    returned: tuple[tuple[int, int], ...]
    """Of each value that is returned, the thread and the number of the operation that loaded it."""
    names: tuple[str, ...]
    """What an outcome lists: the registers r1, r2, ...; then the places that both threads write, as they are left."""

    @property
    def finals(self) -> tuple[str, ...]:
        return self.names[len(self.returned) :]


class _Place:
    """A place in memory while a test is read."""

    def __init__(self, name: str):
        self.name = name


class _Loaded:
    """A value that was loaded while a test is read: it can be stored and returned, nothing else."""

    def __init__(self, number: int):
        self.number = number

    def _refuse(self, *ignored: Any) -> Any:
        raise TypeError(
            "a litmus test is a straight line: a loaded value may be stored or returned, not compared or computed with"
        )

    __bool__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __sub__ = __rsub__ = _refuse
    __mul__ = __rmul__ = __and__ = __or__ = __xor__ = __neg__ = __index__ = __int__ = _refuse
    __hash__ = None  # type: ignore[assignment]


def read(left: Callable[..., Any], right: Callable[..., Any]) -> Program:
    """The operations of both functions.

    Raises:
        TypeError: it is no function of two places, or it does something other than loads, stores and fences.
        ValueError: it returns something other than what it has loaded, or stores no small number.
    """
    places = tuple(inspect.signature(left).parameters)
    if len(places) != 2 or tuple(inspect.signature(right).parameters) != places:
        raise TypeError(
            f"both functions of a litmus test take the same two places, as in left(x, y) and right(x, y), not "
            f"{left.__name__}{inspect.signature(left)} and {right.__name__}{inspect.signature(right)}"
        )
    threads: list[tuple[Operation, ...]] = []
    returned: list[tuple[int, int]] = []
    for thread, function in enumerate((left, right)):
        done: list[Operation] = []
        try:
            value = with_stand_ins(function, _stand_ins(thread, done))(*map(_Place, places))
        except NotImplementedError as reason:  # Numba's: an intrinsic was called that has no stand-in
            known = ", ".join((*LOADS, *STORES, *FENCES))
            raise TypeError(f"a litmus test is made of loads, stores and fences: {known} ({reason})") from None
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        registers = {}
        for one in values:
            if not isinstance(one, _Loaded):
                raise ValueError(f"{function.__name__} returns {one!r}: return what was loaded, or nothing")
            registers[one.number] = f"r{len(returned) + 1}"
            returned.append((thread, one.number))
        threads.append(tuple(_named(operation, number, registers) for number, operation in enumerate(done)))
    writers = [{one.place for one in thread if one.kind == "store"} for thread in threads]
    finals = [place for place in places if all(place in written for written in writers)]
    names = (*(f"r{n + 1}" for n in range(len(returned))), *finals)
    if not names:
        raise ValueError("nothing is observed: let a function return what it has loaded")
    return Program((threads[0], threads[1]), (places[0], places[1]), tuple(returned), names)


def _named(operation: Operation, number: int, registers: dict[int, str]) -> Operation:
    origin = operation.source if operation.kind == "store" else number
    name = "" if origin is None else registers.get(origin, "_" if operation.kind == "store" else "")
    return Operation(**(vars(operation) | {"register": name}))


def _stand_ins(thread: int, done: list[Operation]) -> dict[str, Callable[..., Any]]:
    """What is called instead of each atomic, and notes in `done` what it was asked for."""

    def place_of(place: Any) -> str:
        if not isinstance(place, _Place):
            raise TypeError(f"the address is one of the two places that the function is given, not {place!r}")
        return place.name

    def load(order: str) -> Callable[..., Any]:
        def note(address: Any) -> _Loaded:
            done.append(Operation(thread, "load", order, place_of(address)))
            return _Loaded(len(done) - 1)

        return note

    def store(order: str) -> Callable[..., Any]:
        def note(address: Any, value: Any) -> None:
            if isinstance(value, _Loaded):
                done.append(Operation(thread, "store", order, place_of(address), source=value.number))
            elif isinstance(value, int) and 0 <= value < 2**15:
                done.append(Operation(thread, "store", order, place_of(address), value))
            else:
                raise ValueError(f"a litmus test stores small whole numbers, or what it has loaded, not {value!r}")

        return note

    def fence(order: str) -> Callable[..., Any]:
        return lambda: done.append(Operation(thread, "fence", order))

    made = {name: load(order) for name, order in LOADS.items()}
    made |= {name: store(order) for name, order in STORES.items()}
    return made | {name: fence(order) for name, order in FENCES.items()}


def with_stand_ins(function: Callable[..., Any], stand_ins: dict[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The function, and those of the reader's own that it calls, with stand-ins in the place of the atomics."""
    known = {id(getattr(atomics, name)): stand_in for name, stand_in in stand_ins.items()}
    made: dict[int, Any] = {}

    def replaced(thing: Any) -> Any:
        thing = getattr(thing, "py_func", thing)  # what njit made of a function
        if id(thing) in known:
            return known[id(thing)]
        if thing is atomics:
            return SimpleNamespace(**stand_ins)
        if not isinstance(thing, FunctionType):
            return thing
        if id(thing) not in made:
            names = {name: thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__}
            scope: dict[str, Any] = {"__builtins__": __builtins__}
            cells = tuple(CellType(replaced(cell.cell_contents)) for cell in thing.__closure__ or ())
            made[id(thing)] = FunctionType(thing.__code__, scope, thing.__name__, thing.__defaults__, cells)
            scope.update({name: replaced(value) for name, value in names.items()})
        return made[id(thing)]

    again: Callable[..., Any] = replaced(function)
    return again
