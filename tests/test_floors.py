"""Imports go down the floors only (CONTRIBUTING.md): what is low knows nothing of what is high."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The longest name that fits decides. A module imports what is on a lower floor; a package may also use its own parts.
FLOORS = {
    "labkit": 6,
    "labkit.__main__": 6,
    "labkit.report": 5,
    "labkit.replay": 4,
    "labkit.compare": 4.5,  # reads what the page holds
    "labkit.page": 4.2,  # takes secrets out of what the views record
    "labkit.clean": 5,
    "labkit.bench": 5.5,  # measures everything below, the report too
    "labkit.exercises": 5,
    "labkit.litmus": 4.5,  # runs processes and draws what came out
    "labkit.explore": 4.5,  # runs processes and shows itself in a view
    "labkit.views": 4,
    "labkit.electron": 4.2,  # a window in a notebook is a view
    "labkit.doctor": 4,  # the report asks it for the browser
    "labkit.draw": 4,
    "labkit.holders": 1,
    "labkit.table": 0,
    "labkit.preload": 4,  # what the fork server loads: floor 3 and all below it
    "labkit.rings": 3.5,  # runs a ring in processes
    "labkit.services": 3.5,  # processes in a line, launched and joined
    "labkit.rpc": 3.5,
    "labkit.webserver": 3.6,  # is heard by a wiretap
    "labkit.wiretap": 3.5,  # records what Jupyter says in a trace
    "labkit.baggage": 2.5,  # ends for a process that runs already
    "labkit.trace": 3,
    "labkit.traced": 2.9,  # the ends that record there
    "labkit.comms": 3.1,  # what it hears goes into a trace
    "labkit.launch": 3,
    "labkit.cluster": 3.1,  # sends functions as launch does
    "labkit.leash": 0,
    "labkit.folders": 0,
    "labkit.handing": 3.1,  # hands ends over as launch does
    "labkit.kernels": 3.2,
    "labkit.kernel_cells": 3.3,
    "labkit.isolation": 3.2,
    "labkit.boundary": 3.4,
    "labkit.objects": 1.1,
    "labkit.trace_entry": 2,
    "labkit.export": 2,  # reads and writes what the trace above it gives
    "labkit.queue": 2,
    "labkit.locks": 1.5,
    "labkit.channels": 2,
    "labkit.channels.call_entry": 1.5,
    "labkit.channels.signal_entry": 1.5,
    "labkit.channels.blocked_signal": 1.6,
    "labkit.channels.bounded_buffer": 1.6,
    "labkit.channels.buffer_entry": 1.5,
    "labkit.lockfree": 1,
    "labkit.sync": 1.2,  # a mutex is compiled by the ring's lockfree.entry
    "labkit.stats": 1,
    "labkit.shared_array": 0.9,  # the queue that does not survive a crash lives in one
    "labkit.channels.notes": 0.5,
    "labkit.channels.base": 0,
    "labkit.channels.stream": 1.7,
    "labkit.channels.packet": 1.7,
    "labkit.channels.listening": 1.7,
    "labkit.channels.names": 0.5,
    "labkit.lockfree.atomics": 0,
    "labkit.events": 0,
    "labkit.libc": 0,
    "labkit.machine": 0,
}
PACKAGES = tuple(f"labkit.{name}" for name in "bench electron exercises explore litmus lockfree sync views".split())

MODULES = sorted((ROOT / "labkit").rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> float | None:
    """The floor of a module; a file directly in labkit/ needs a row of its own."""
    while module not in FLOORS:
        module = module.rpartition(".")[0]
        if module in ("labkit", ""):
            return None
    return FLOORS[module]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every labkit module that a file imports, also inside functions, with its line; not those under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in block.body
        for node in ast.walk(statement)
    }
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name.split(".")[0] == "labkit")
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if base.split(".")[0] == "labkit":
                for alias in node.names:
                    part = f"{base}.{alias.name}"
                    yield (part if is_module(part) else base), node.lineno


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def allowed(importer: str, imported: str) -> bool:
    here, there = floor_of(importer), floor_of(imported)
    if here is None or there is None:
        return False
    package = importer.rpartition(".")[0]
    same_package = package in PACKAGES and f"{imported}.".startswith(f"{package}.")
    parts_of_itself = importer != "labkit" and imported.startswith(f"{importer}.")
    return there < here or same_package or parts_of_itself


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_has_a_floor_and_imports_only_from_below(path):
    importer = name_of(path)
    assert floor_of(importer) is not None, f"{importer} has no floor: give it one in {Path(__file__).name}"
    wrong = [
        f"{path.name}:{line}: floor {floor_of(importer)} imports {imported}, which is on floor {floor_of(imported)}"
        for imported, line in imports(path)
        if not allowed(importer, imported)
    ]
    assert not wrong, "\n".join(wrong)


# In the folder of the mechanisms, and used by them.
BESIDE = [
    *"base stream packet listening names notes bounded_buffer blocked_signal".split(),
    *"call_entry signal_entry buffer_entry".split(),
]


def test_a_mechanism_uses_what_is_below_and_never_another_mechanism():
    for path in (ROOT / "labkit/channels").glob("*.py"):
        if path.stem in ("__init__", *BESIDE):
            continue
        beside = tuple(f"labkit.channels.{name}" for name in BESIDE)
        known = (*beside, "labkit.lockfree", "labkit.libc", "labkit.sync")
        strange = [imported for imported, _ in imports(path) if not imported.startswith(known)]
        assert not strange, f"{path.name} imports {strange}"


def test_base_imports_nothing_of_labkit():
    assert list(imports(ROOT / "labkit/channels/base.py")) == []


def test_importing_labkit_loads_nothing_heavy():
    heavy = "numba numpy anywidget IPython typer rich matplotlib multiprocess ipywidgets cffi".split()
    program = f"import sys, labkit; print(*sorted(set({heavy}) & set(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert child.stdout.split() == []


def test_the_command_line_help_loads_nothing_heavy():
    heavy = "numba numpy anywidget IPython matplotlib multiprocess ipywidgets nbformat".split()
    program = f"import sys, labkit.__main__; print(*sorted(set({heavy}) & set(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert child.stdout.split() == []


def test_parts_of_labkit_are_found_without_importing_them_first():
    program = (
        "import labkit; print(labkit.sync.Barrier.__name__, labkit.explore.Explorer.__name__, 'draw' in dir(labkit),"
        " labkit.lockfree.Mpmc.__name__)"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert child.stdout.split() == ["Barrier", "Explorer", "True", "Mpmc"]
