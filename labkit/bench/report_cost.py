"""How long the report of all labs takes, without running them, and how big it is; the labs run once before, untimed.

So this takes some minutes. What is timed is what `labkit report --saved` does. `labkit bench report --keep FOLDER`
keeps the executed labs there, and next time runs only those that have changed since.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nbformat

from labkit.bench import Row
from labkit.doctor import find_browser
from labkit.page import render
from labkit.report import print_pdf
from labkit.report import run as execute

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


LABS = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
STEPS = len(LABS)


def run_all(progress: Callable[[], None], keep: Path | None = None) -> list[tuple[str, nbformat.NotebookNode]]:
    """Every lab, executed."""
    executed = []
    for path in LABS:
        kept = keep and keep / path.name
        if kept and kept.exists() and kept.stat().st_mtime > path.stat().st_mtime:
            notebook = nbformat.read(kept, as_version=4)
        else:
            notebook = nbformat.read(path, as_version=4)
            execute(path, notebook)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                nbformat.write(notebook, kept)
        executed.append((path.stem, notebook))
        progress()
    return executed


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def rows(executed: list[tuple[str, nbformat.NotebookNode]]) -> list[Row]:
    """The rows for these notebooks."""
    page = render(copy.deepcopy(executed))
    took = seconds(lambda: render(executed))
    size = len(page.encode()) / 1e6
    what = f"report of {len(executed)} executed labs"
    found = [
        Row(what, f"{took:.1f} s", "<= 60 s", took <= 60),
        Row(f"{what}, its size", f"{size:.1f} MB", "<= 10 MB", size <= 10),
    ]
    if browser := find_browser():
        with tempfile.TemporaryDirectory(prefix="labkit-bench-") as folder:
            took = seconds(lambda: print_pdf(page, Path(folder, "all.pdf"), browser))
        found.append(Row(f"{what}, as PDF", f"{took:.1f} s", "<= 60 s", took <= 60))
    return found


def run(progress: Callable[[], None], keep: Path | None = None) -> list[Row]:
    """Seconds and megabytes of the report of all labs."""
    return rows(run_all(progress, keep))
