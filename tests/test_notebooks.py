"""Every notebook runs from top to bottom, in its folder, with the kernel of this interpreter."""

import re
from pathlib import Path

import nbformat
import pytest

from labkit.report import run

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_top_to_bottom(path):
    notebook = nbformat.read(path, 4)
    assert run(path, notebook, timeout=60) == []
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == [], "a newcomer would see red"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_cells_are_short_and_the_notebook_has_what_every_lab_has(path):
    notebook = nbformat.read(path, 4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert max(source.count("\n") + 1 for source in code) <= 24
    for part in ("# ", "## Exercise", "## What we learnt", "**Manual pages:**"):
        assert part in prose
    assert re.search(r"check_\w+\(", "\n".join(code)), "no exercise is checked"
