"""The checks of notebook 16-outgrowing-one-machine accept what is right and refuse what is wrong with the reason."""

import json
from pathlib import Path

import nbformat
import pytest

from labkit.exercises.outgrowing_one_machine import check_collect, check_crosses
from labkit.replay import MAGIC, key

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.leaves("descriptors", "threads", reason="ipyparallel keeps event loops, tqdm a thread")


def test_every_cell_that_needs_namespaces_is_recorded():
    notebook = nbformat.read(ROOT / "notebooks" / "16-outgrowing-one-machine.ipynb", 4)
    cells = [cell.source.partition("\n")[2] for cell in notebook.cells if cell.source.startswith(MAGIC)]
    recording = json.loads((ROOT / "data" / "cells" / "16-outgrowing-one-machine.json").read_text())
    assert cells and {key(cell) for cell in cells} == set(recording), "record it again: python data/record.py"


def test_what_the_network_names_crosses():
    assert check_crosses(lambda fact: fact.namespaced_by == "net" and not fact.related_only).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda fact: None, "returns nothing yet"),
        (lambda fact: not fact.related_only, "fifo does not cross: it is found by a path"),
        (lambda fact: fact.related_only, "pipe does not cross: it has no name"),
        (lambda fact: fact.namespaced_by in ("net", "ipc"), "posix_mq does not cross"),
        (lambda fact: False, "tcp crosses"),
        (lambda fact: fact.name, "AttributeError"),
    ],
)
def test_what_does_not_cross_is_explained(wrong, says):
    verdict = check_crosses(wrong)
    assert not verdict.right and says in verdict.why


def collect(c, f, points):
    def careful(point):
        try:
            return f(point)
        except Exception:
            return None

    return dict(zip(points, c.map(careful, points, progress=False), strict=True))


def does_not_catch(c, f, points):
    return dict(zip(points, c.map(f, points, progress=False), strict=True))


def does_it_here(c, f, points):
    found = {}
    for point in points:
        try:
            found[point] = f(point)
        except ArithmeticError:
            found[point] = None
    return found


def leaves_bad_points_out(c, f, points):
    return {point: result for point, result in collect(c, f, points).items() if result}


def sorts(c, f, points):
    return dict(zip(sorted(points), collect(c, f, points).values(), strict=True))


def test_a_sweep_that_survives_is_accepted():
    assert check_collect(collect).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (does_not_catch, "all other results were lost"),
        (does_it_here, "was computed in this kernel"),
        (leaves_bad_points_out, "7 is not in your dictionary"),
        (sorts, "f(7) raised, and you have"),
    ],
)
def test_a_sweep_that_does_not_is_refused_with_the_reason(wrong, says):
    verdict = check_collect(wrong)
    assert not verdict.right and says in verdict.why
