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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_folded_solutions_are_right(path):
    """Each solution takes the place of the learner's cell that defines the same function, and its check agrees."""
    notebook = nbformat.read(path, 4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    solutions = re.findall(r"<details>.*?```python\n(.*?)```", prose, re.DOTALL)
    assert solutions
    for solution in solutions:
        for function in re.findall(r"^def (\w+)", solution, re.MULTILINE):
            stubs = [cell for cell in code if f"def {function}(" in cell.source and "your turn" in cell.source]
            for stub in stubs:
                stub.source = solution
    run(path, notebook, timeout=60)
    verdicts = [
        "".join(output.get("data", {}).get("text/plain", "") for output in cell.outputs)
        for cell in code
        if re.search(r"^check_\w+\(", cell.source, re.MULTILINE)
    ]
    assert verdicts
    assert [verdict for verdict in verdicts if not verdict.startswith("✔ Right")] == []
