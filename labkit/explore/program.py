"""What small programs that share memory are written in: generator functions over a shared state.

    def increment(s):
        value = s.counter
        yield "has read"
        s.counter = value + 1

Each `yield` is a place where another process may run; what lies between two yields is one step. What is yielded says
what the process needs before it goes on: `acquire("mutex")`, `release("mutex")`, `until("it is awake", condition)`, or
a few words, or nothing. The same function runs in the model and in a real process.
"""

from __future__ import annotations

import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterator, MutableSequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Request:
    """What a process that stands at a yield needs before it goes on."""

    action: str
    """"pass", "acquire", "release" or "until"."""
    words: str = ""
    """The semaphore's name, the condition in words, or the label."""
    condition: Callable[[Any], Any] | None = None


def acquire(semaphore: str) -> Request:
    """Yield this to wait until the semaphore is above 0 and take one from it: sem_wait(3)."""
    return Request("acquire", semaphore)


def release(semaphore: str) -> Request:
    """Yield this to give the semaphore one back: sem_post(3). It never waits."""
    return Request("release", semaphore)


def until(words: str, condition: Callable[[Any], Any]) -> Request:
    """Yield this to wait until a condition on the shared state holds, by looking again and again.

    Args:
        words: the condition in words, as it ends a sentence: "the barber waits until ...".
        condition: called with the shared state; it must not change it.
    """
    return Request("until", words, condition)


def asked(value: Any, process: str, semaphores: dict[str, int]) -> Request:
    """What a yielded value asks for.

    Raises:
        TypeError: it is neither a request, nor words, nor None.
        ValueError: there is no semaphore of that name.
    """
    if value is None:
        return Request("pass")
    if isinstance(value, str):
        return Request("pass", value)
    if not isinstance(value, Request):
        raise TypeError(
            f"{process} yields {value!r}; a process yields nothing, a few words, acquire(name), release(name) or "
            "until(words, condition)"
        )
    if value.action in ("acquire", "release") and value.words not in semaphores:
        known = ", ".join(repr(name) for name in semaphores) or "none"
        raise ValueError(f"{process} wants to {value.action} {value.words!r}; the semaphores are: {known}")
    return value


# --- the shared state: whole numbers that lie one after the other --------------------------------------------

Cells = MutableSequence[int] | memoryview
Layout = dict[str, tuple[int, int | None]]
"""Where each variable lies: its first cell, and how many it has when it is a list."""


def lay_out(shared: dict[str, int | list[int]]) -> tuple[Layout, tuple[int, ...]]:
    """Give each variable its place; returns the places and the cells' first values.

    Raises:
        TypeError: a value is neither a whole number nor a list of them.
        ValueError: a name is not a Python name.
    """
    layout: Layout = {}
    cells: list[int] = []
    for name, value in shared.items():
        if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
            raise ValueError(f"a shared variable's name is a Python name without a leading underscore, not {name!r}")
        several = isinstance(value, list | tuple)
        values = list(value) if isinstance(value, list | tuple) else [value]
        for number in values:
            whole_number(name, number)
        layout[name] = len(cells), len(values) if several else None
        cells += [int(number) for number in values]
    return layout, tuple(cells)


def whole_number(name: str, value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}: shared memory holds whole numbers here, or lists of them")
    if not -(2**63) <= value < 2**63:
        raise OverflowError(f"{name} is {value}: a cell of shared memory here has 64 bits")
    return int(value)


class Shared:
    """The shared state as programs see it: `s.counter`, `s.page[0]`. It cannot get new variables."""

    __slots__ = ("_cells", "_layout", "_touched")

    def __init__(self, layout: Layout, cells: Cells):
        object.__setattr__(self, "_layout", layout)
        object.__setattr__(self, "_cells", cells)
        object.__setattr__(self, "_touched", False)

    def _where(self, name: str) -> tuple[int, int | None]:
        object.__setattr__(self, "_touched", True)
        try:
            return self._layout[name]
        except KeyError:
            known = ", ".join(self._layout) or "nothing"
            raise AttributeError(f"nothing shared is called {name!r}; there is: {known}") from None

    def __getattr__(self, name: str) -> Any:
        at, length = self._where(name)
        return self._cells[at] if length is None else Row(name, self._cells, at, length)

    def __setattr__(self, name: str, value: Any) -> None:
        at, length = self._where(name)
        if length is not None:
            raise TypeError(f"{name} is a list of {length}: set its items, s.{name}[0] = ...")
        self._cells[at] = whole_number(name, value)


class Row:
    """A list of the shared state. Its length is fixed."""

    __slots__ = ("_at", "_cells", "_length", "_name")

    def __init__(self, name: str, cells: Cells, at: int, length: int):
        self._name, self._cells, self._at, self._length = name, cells, at, length

    def __len__(self) -> int:
        return self._length

    def _index(self, index: int) -> int:
        if not isinstance(index, int) or not -self._length <= index < self._length:
            raise IndexError(f"{self._name} has the items 0 to {self._length - 1}, not {index!r}")
        return self._at + index % self._length

    def __getitem__(self, index: int) -> int:
        return self._cells[self._index(index)]

    def __setitem__(self, index: int, value: int) -> None:
        self._cells[self._index(index)] = whole_number(self._name, value)

    def __iter__(self) -> Iterator[int]:
        return iter([self._cells[self._at + n] for n in range(self._length)])

    def __repr__(self) -> str:
        return repr(list(self))


def values(layout: Layout, cells: Any) -> dict[str, int | list[int]]:
    """The shared state as a dictionary."""
    return {
        name: cells[at] if length is None else [cells[at + n] for n in range(length)]
        for name, (at, length) in layout.items()
    }


def in_words(state: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in state.items())


# --- a process of the model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """One process: a generator function and its arguments after the shared state."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()

    @classmethod
    def of(cls, name: str, given: Any) -> Program:
        """From a generator function, or a tuple of one and its arguments.

        Raises:
            TypeError: it is something else.
        """
        function, *args = given if isinstance(given, tuple) and given else (given,)
        if not inspect.isgeneratorfunction(function):
            what = getattr(function, "__name__", repr(function))
            raise TypeError(
                f"{name}: {what} is not a generator function. A process is a function with a `yield` wherever another "
                "process may run, or a tuple of one and its arguments after the shared state"
            )
        return cls(name, function, tuple(args))

    def start(self, shared: Shared) -> Any:
        return self.function(shared, *self.args)

    @property
    def first_line(self) -> int:
        """The line on which the function's body begins."""
        code = self.function.__code__
        lines = [line for _, _, line in code.co_lines() if line and line > code.co_firstlineno]
        return min(lines, default=code.co_firstlineno)

    def source(self) -> tuple[int, str]:
        """The number of its first line, and its text."""
        linecache.checkcache(self.function.__code__.co_filename)
        try:
            lines, first = inspect.getsourcelines(self.function)
        except (OSError, TypeError):
            return self.function.__code__.co_firstlineno, f"def {self.function.__name__}(...):\n    ..."
        return first, textwrap.dedent("".join(lines)).rstrip()

    def call(self) -> str:
        """As it would be written: philosopher(s, 'fork 0')."""
        return f"{self.function.__name__}({', '.join(['s', *map(repr, self.args)])})"
