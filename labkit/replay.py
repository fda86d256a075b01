"""Recorded runs: what a lab shows where the kernel refuses to run it.

A trace that was recorded elsewhere takes the place of one that cannot be: `replay`. Or a cell shows what it printed
elsewhere. After

    needs_namespaces("../data/cells/12-isolation.json")

a cell that begins with `%%needs_namespaces` runs where namespaces can be made, and shows its recorded output where they
are refused. `python data/record.py` records both again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labkit.isolation import COMMON, namespace
from labkit.trace import Trace


def recorded_runs() -> list[str]:
    """The names that `replay` knows."""
    return sorted(path.name.removesuffix(".csv.gz") for folder in _folders() for path in folder.glob("*.csv.gz"))


def replay(name: str, refused: BaseException | None = None) -> Trace:
    """A run of a lab that was recorded on another machine, and one printed sentence that says so.

        try:
            tx, rx = channel("posix_mq", trace=trace)
        except OSError as refused:
            trace = replay("03-message-queues", refused)

    Args:
        name: one of `recorded_runs()`.
        refused: what the kernel has said here; it is quoted.

    Raises:
        ValueError: there is no such run.
    """
    for folder in _folders():
        path = folder / f"{name}.csv.gz"
        if path.exists():
            trace = Trace.load(path)
            why = f"This machine refuses it ({refused}). " if refused else ""
            where, when = (trace.machine.get(key, "unknown") for key in ("processor", "written"))
            print(f"{why}What you see was recorded on another machine: {where}, {when}.")
            return trace
    there = ", ".join(recorded_runs()) or "none; they are in data/recorded/ of the repository"
    raise ValueError(f"no recorded run called {name!r}; there are: {there}")


def _folders() -> list[Path]:
    """data/recorded/ beside the package, and beside the notebooks, where the package is installed elsewhere."""
    found = [Path(__file__).parents[1], Path.cwd(), Path.cwd().parent]
    return list(dict.fromkeys(folder for root in found if (folder := root / "data" / "recorded").is_dir()))


# --- cells ------------------------------------------------------------------------------------------------------

MAGIC = "%%needs_namespaces"


def needs_namespaces(path: str | Path) -> None:
    """Make the magic known to this notebook, and say whether what follows runs here or is recorded.

    Args:
        path: of the recording.

    Raises:
        RuntimeError: this is no notebook.
    """
    from IPython import get_ipython
    from IPython.display import display, publish_display_data

    shell = get_ipython()
    if shell is None:
        raise RuntimeError("a recording is shown in a notebook: run this in a cell")
    refused = why_not()
    cells = json.loads(Path(path).read_text()) if refused else {}

    def magic(line: str, cell: str) -> None:
        if not refused:
            shell.run_cell(cell).raise_error()
            return
        print(f"[recorded on another machine: {refused}]")
        for output in cells.get(key(cell), []):
            publish_display_data(output)

    shell.register_magic_function(magic, "cell", MAGIC[2:])
    display(Note(refused))


class Note:
    """Whether namespaces can be made here, in a sentence."""

    def __init__(self, refused: str):
        self.text = "Namespaces can be made on this machine: everything below is run here."
        if refused:
            self.text = (
                f"{refused[0].upper()}{refused[1:]}. So the cells below show what they printed on another machine."
            )

    def __repr__(self) -> str:
        return self.text


def why_not() -> str:
    """Why a process here cannot have namespaces of its own, in one sentence; "" when it can."""
    try:
        with namespace(*COMMON):
            return ""
    except OSError as refused:
        return str(refused.strerror)


def key(cell: str) -> str:
    """By what a recording finds a cell: its text, without white space at the ends of lines."""
    return "\n".join(line.rstrip() for line in cell.strip().splitlines())


def record_cells(notebook: Any, path: str | Path) -> None:
    """Write what the cells with the magic have shown in an executed notebook (nbformat)."""
    cells = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.startswith(MAGIC):
            shown = [_as_display(output) for output in cell.outputs]
            cells[key(cell.source.partition("\n")[2])] = [output for output in shown if output]
    Path(path).write_text(json.dumps(cells, indent=1, ensure_ascii=False) + "\n")


def _as_display(output: Any) -> dict[str, str]:
    """An output as a MIME bundle. A widget cannot be recorded; its picture can."""
    if output.output_type == "stream":
        return {"text/plain": output.text.rstrip("\n")}
    data = output.get("data", {})
    kept = {kind: data[kind] for kind in ("text/html", "image/png", "image/svg+xml", "text/plain") if kind in data}
    if "application/vnd.jupyter.widget-view+json" in data and "image/png" not in data and "image/svg+xml" not in data:
        return {}
    return kept
