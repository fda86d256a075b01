"""What the compiler makes of a litmus function: the instructions that touch or order shared memory, for two processors.

The function is compiled by Numba for this machine; LLVM then translates the same optimised code once more, for x86-64
and for AArch64. It is shown without what surrounds it: only instructions that use the address of a place, and fences;
the register that holds the address is replaced by the place's name. Where it has loops, jumps back and what they jump
to are shown too.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import Any

TRIPLES = {"x86-64": "x86_64-unknown-linux-gnu", "AArch64": "aarch64-unknown-linux-gnu"}
# A Numba function gets a place for its result and one for an error first; the arguments are the third and the fourth.
REGISTERS = {"x86-64": ("%rdx", "%rcx"), "AArch64": ("x2", "x3")}
FENCES = re.compile(r"^(mfence|lfence|sfence|dmb|dsb|isb|lock)\b")
JUMPS = re.compile(r"^(?:j[a-z]+|b|b\.[a-z]+|cbn?z|tbn?z)\b.*?(\.L\w+)$")


@dataclass(frozen=True)
class Assembly:
    """The instructions of one function, for each processor."""

    name: str
    instructions: dict[str, tuple[str, ...]]

    def __getitem__(self, processor: str) -> tuple[str, ...]:
        return self.instructions[processor]

    def __repr__(self) -> str:
        columns = [[processor, *lines] for processor, lines in self.instructions.items()]
        height = max(map(len, columns))
        width = max(map(len, columns[0])) + 4
        left, right = (column + [""] * (height - len(column)) for column in columns)
        lines = [f"  {a:{width}}{b}".rstrip() for a, b in zip(left, right, strict=True)]
        return "\n".join([self.name, *lines])

    def _repr_html_(self) -> str:
        return side_by_side([self])


def assembly(function: Callable[..., Any]) -> Assembly:
    """The instructions of f(x, y) that touch x and y, or order what does, on x86-64 and on AArch64.

    Raises:
        TypeError: it does not take two places.
    """
    function = getattr(function, "py_func", function)
    return Assembly(function.__name__, {processor: _instructions(function, processor) for processor in TRIPLES})


def compare(*functions: Callable[..., Any]) -> Any:
    """The assembly of several functions, one below the other."""
    return _Several([assembly(function) for function in functions])


class _Several:
    def __init__(self, parts: list[Assembly]):
        self.parts = parts

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.parts))

    def _repr_html_(self) -> str:
        return side_by_side(self.parts)


def side_by_side(parts: list[Assembly]) -> str:
    """A table: what was written, and both processors' instructions."""
    cell = 'style="text-align:left;vertical-align:top;padding:.3em 1.5em .3em 0"'
    heads = "".join(f"<th {cell}>{escape(word)}</th>" for word in ("function", *TRIPLES))
    rows = "".join(
        f"<tr><td {cell}><b>{escape(part.name)}</b></td>"
        + "".join(
            f"<td {cell}><pre style='margin:0'>{escape(chr(10).join(part[processor]))}</pre></td>"
            for processor in TRIPLES
        )
        + "</tr>"
        for part in parts
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _instructions(function: Callable[..., Any], processor: str) -> tuple[str, ...]:
    places = tuple(inspect.signature(function).parameters)
    if len(places) != 2:
        raise TypeError(f"a litmus function takes two places, as in f(x, y), not {inspect.signature(function)}")
    lines = _body(_emitted(_optimised(function), processor))
    loops = _loops(lines)
    kept = []
    for number, line in enumerate(lines):
        if number in loops:
            kept.append(loops[number])
            continue
        named = line
        for register, place in zip(REGISTERS[processor], places, strict=True):
            address = rf"\({re.escape(register)}\)" if processor == "x86-64" else rf"\[{register}\]"
            named = re.sub(address, f"({place})" if processor == "x86-64" else f"[{place}]", named)
        if named != line or FENCES.match(line):
            kept.append(named)
    return tuple(kept)


def _loops(lines: list[str]) -> dict[int, str]:
    """The lines that make loops: labels that are jumped back to, and the jumps, with a name for each label."""
    labels = {line[:-1]: number for number, line in enumerate(lines) if line.startswith(".L") and line.endswith(":")}
    jumps = {number: found[1] for number, line in enumerate(lines) if (found := JUMPS.match(line))}
    back = {number: label for number, label in jumps.items() if labels.get(label, len(lines)) < number}
    names = {label: f"again{n or ''}" for n, label in enumerate(sorted(set(back.values()), key=labels.__getitem__))}
    shown = {labels[label]: f"{name}:" for label, name in names.items()}
    return shown | {number: lines[number].replace(label, names[label]) for number, label in back.items()}


@lru_cache(64)
def _optimised(function: Callable[..., Any]) -> str:
    """LLVM's intermediate code of the function, after all optimisations that do not depend on the processor."""
    from numba import njit, types

    compiled = njit((types.int64, types.int64))(function)
    text: str = next(iter(compiled.inspect_llvm().values()))
    return text


def _emitted(code: str, processor: str) -> str:
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module = llvm.parse_assembly(code)
    module.triple = TRIPLES[processor]
    target = llvm.Target.from_triple(module.triple)
    machine = target.create_target_machine(opt=3, reloc="pic")
    module.data_layout = str(machine.target_data)
    text: str = machine.emit_assembly(module)
    return text


def _body(text: str) -> list[str]:
    """The instructions of the first function, which is the reader's; after it come Numba's, for calling it."""
    lines = text.splitlines()
    begin = next(number for number, line in enumerate(lines) if re.match(r"_ZN\S+:", line))
    end = next(number for number, line in enumerate(lines) if number > begin and line.startswith(".Lfunc_end"))
    shown = (" ".join(line.split()) for line in lines[begin + 1 : end])
    return [line for line in shown if line and (re.match(r"\.L\w+:$", line) or not re.match(r"[.#/]|//", line))]
