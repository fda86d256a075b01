"""The checks of notebook 16-outgrowing-one-machine accept what is right and refuse what is wrong with the reason."""

import concurrent.futures
import contextlib
import json
import os
from pathlib import Path

import nbformat
import pytest

from labkit import facts, launch
from labkit.exercises.outgrowing_one_machine import check_collect, check_crosses
from labkit.replay import MAGIC, key

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.leaves("descriptors", "threads", reason="ipyparallel keeps event loops, tqdm a thread")


def test_every_cell_that_needs_namespaces_is_recorded():
    notebook = nbformat.read(ROOT / "notebooks" / "16-outgrowing-one-machine.ipynb", 4)
    cells = [cell.source.partition("\n")[2] for cell in notebook.cells if cell.source.startswith(MAGIC)]
    recording = json.loads((ROOT / "data" / "cells" / "16-outgrowing-one-machine.json").read_text())
    assert cells and {key(cell) for cell in cells} == set(recording), "record it again: python data/record.py"


@pytest.mark.parametrize(
    "right",
    [
        lambda fact: fact.namespaced_by == "net" and not fact.related_only,
        lambda fact: fact in (facts()["tcp"], facts()["udp"]),
        lambda fact: int("net" in fact.namespaced_by),
    ],
)
def test_what_the_network_names_crosses(right):
    assert check_crosses(right).right


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda fact: None, "returns nothing yet"),
        (lambda fact: not fact.related_only, "fifo does not cross: it is found by a path"),
        (lambda fact: fact.related_only, "pipe does not cross: it has no name"),
        (lambda fact: fact.namespaced_by in ("net", "ipc"), "posix_mq does not cross"),
        (lambda fact: False, "tcp crosses"),
        (lambda fact: fact.name, "AttributeError"),
        (lambda fact: next(iter(())), "for pipe your function raised StopIteration"),
    ],
)
def test_what_does_not_cross_is_explained(wrong, says):
    verdict = check_crosses(wrong)
    assert not verdict.right and says in verdict.why


def careful(f):
    def calls(point):
        try:
            return f(point)
        except Exception:
            return None

    return calls


def collect(c, f, points):
    return dict(zip(points, c.map(careful(f), points, progress=False), strict=True))


def one_after_the_other(c, f, points):
    found = dict.fromkeys(points)
    for point in sorted(points):
        with contextlib.suppress(Exception):
            [found[point]] = c.map(f, [point], progress=False)
    return found


def with_their_own_client(c, f, points):
    view = c.client.load_balanced_view()
    asked = {view.apply_async(f, point): point for point in points}
    return {asked[answer]: result_of(answer) for answer in concurrent.futures.as_completed(asked)}


def result_of(answer):
    try:
        return answer.result()
    except Exception:
        return None


def sorts_the_list_and_stops_the_engines(c, f, points):
    points.sort()
    with c:
        return collect(c, f, points)


def does_not_catch(c, f, points):
    return dict(zip(points, c.map(f, points, progress=False), strict=True))


def catches_too_late(c, f, points):
    found = dict.fromkeys(points)
    with contextlib.suppress(Exception):
        found.update(does_not_catch(c, f, points))
    return found


def does_it_here(c, f, points):
    return {point: careful(f)(point) for point in points}


def does_not_catch_here(c, f, points):
    return {point: f(point) for point in points}


def launches(c, f, points):
    return {point: launch(careful(f), point).wait() for point in points}


def leaves_bad_points_out(c, f, points):
    return {point: result for point, result in collect(c, f, points).items() if result}


def sorts(c, f, points):
    return dict(zip(sorted(points), collect(c, f, points).values(), strict=True))


def empties_the_list(c, f, points):
    found = {}
    while points:
        found[points.pop()] = None
    return found


def squares(c, f, points):
    return {point: result and result[0] for point, result in collect(c, f, points).items()}


def says_nothing(c, f, points):
    raise AssertionError


def ends_the_engines(c, f, points):
    return c.map(lambda point: os._exit(1), points, progress=False)


@pytest.mark.parametrize(
    "right", [collect, one_after_the_other, with_their_own_client, sorts_the_list_and_stops_the_engines]
)
def test_a_sweep_that_survives_is_accepted(right):
    verdict = check_collect(right)
    assert verdict.right, verdict


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (does_not_catch, "all other results were lost"),
        (catches_too_late, "f(3) did not raise, and you have None"),
        (does_it_here, "was computed in this kernel"),
        (does_not_catch_here, "was called in this kernel"),
        (launches, "is no engine of c"),
        (leaves_bad_points_out, "7 is not in your dictionary"),
        (sorts, "are they in order?"),
        (empties_the_list, "f(3) did not raise, and you have None"),
        (squares, "you have 9: keep all of it"),
        (says_nothing, "your function raised AssertionError"),
        (ends_the_engines, "no engine is left"),
    ],
)
def test_a_sweep_that_does_not_is_refused_with_the_reason(wrong, says):
    verdict = check_collect(wrong)
    assert not verdict.right and says in verdict.why, verdict
