"""Every notebook runs from top to bottom, in its folder, with the kernel of this interpreter."""

import re
from pathlib import Path

import nbformat
import pytest

from labkit.report import run

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


CHECK = re.compile(r"^check_\w+\(.*\)$", re.MULTILINE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_top_to_bottom_and_its_folded_solutions_are_right(path):
    """As a newcomer runs it who, after each check of what is not yet done, unfolds the solution and checks that."""
    notebook = nbformat.read(path, 4)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    folded = {
        function: solution
        for solution in re.findall(r"<details>.*?```python\n(.*?)```", prose, re.DOTALL)
        for function in re.findall(r"^(?:async )?def (\w+)", solution, re.MULTILINE)
    }
    solved, unfolded = {}, set()
    for cell in [cell for cell in notebook.cells if cell.cell_type == "code"]:
        for call in CHECK.findall(cell.source):
            solutions = dict.fromkeys(folded[name] for name in re.findall(r"\w+", call) if name in folded)
            assert solutions, f"no solution for {call}"
            unfolded |= solutions.keys()
            solved[call] = nbformat.v4.new_code_cell("\n".join([*solutions, call]))
            notebook.cells.insert(notebook.cells.index(cell) + 1, solved[call])
    assert solved and unfolded == set(folded.values())

    assert run(path, notebook, timeout=150) == []
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == [], "a newcomer would see red"
    for call, cell in solved.items():
        verdict = "".join(output.get("data", {}).get("text/plain", "") for output in cell.outputs)
        assert verdict.startswith("✔ Right"), f"{call}: {verdict}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_cells_are_short_and_the_notebook_has_what_every_lab_has(path):
    notebook = nbformat.read(path, 4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert max(source.count("\n") + 1 for source in code) <= 24
    for part in ("# ", "## Exercise", "## What we learnt", "**Manual pages:**"):
        assert part in prose
    assert re.search(r"check_\w+\(", "\n".join(code)), "no exercise is checked"
