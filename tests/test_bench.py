"""The benchmark of the queues: every row runs, with counts so small that the times mean nothing."""

from __future__ import annotations

from multiprocessing import forkserver, resource_tracker

import pytest

from labkit.bench import electron_cost, pairs, peers, queue_cost
from labkit.bench.pairs import Sample, Side, compare, figures, nothing
from labkit.bench.peers import Missing

LINES = queue_cost.lines()


@pytest.fixture(scope="module", autouse=True)
def a_fork_server():
    """The standard library's, which lives as long as these tests, with all that its children need."""
    compare([Side("nothing", nothing, (do_nothing, do_nothing), 1)], pairs=1)
    peers.compiled()
    yield
    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()


def do_nothing(shared: object, count: int) -> None:
    pass


KEEPS = pytest.mark.leaves("descriptors", reason="multiprocessing.heap keeps the memory that faster-fifo allocates")


@pytest.mark.parametrize(
    "line", [pytest.param(line, id=line.what, marks=[KEEPS] * ("faster-fifo" in line.what)) for line in LINES]
)
def test_each_row_runs(line):
    row = queue_cost.row(line, pairs=1, scale=0.002, progress=lambda: None)
    assert row.what and row.measured
    if isinstance(line.peer, Missing):
        assert row.measured == f"skipped: {line.peer.why}"


def fail(shared: object, count: int) -> None:
    raise ValueError("this side is broken")


def test_a_side_that_fails_is_named_with_its_traceback():
    with pytest.raises(RuntimeError, match="this side is broken"):
        compare([Side("broken", nothing, (fail, fail), 1)], pairs=1)


def test_figures_are_told_apart_by_placement():
    within, near, far = (33.0, 34.0), (90.0, 95.0), (600.0, 650.0)
    rounds = [(Sample(1.0, within, 0), Sample(3.0, within, 0))] + [(Sample(1.0, near, 0), Sample(2.0, near, 0))] * 3
    rounds += [(Sample(1.0, far, 0), Sample(5.0, far, 0)), (Sample(1.0, near, 0), Sample(9.0, far, 0))]
    found = [(f.placement, f.pairs, f.median) for f in figures(rounds, lambda pair: pair[1].ns / pair[0].ns)]
    assert found == [("near", 3, 2.0), ("one core", 1, 3.0), ("far", 1, 5.0), ("moved", 1, 9.0)]


def test_pairs_that_were_interrupted_do_not_count_when_there_are_others():
    calm = (Sample(1.0, (90.0, 90.0), 0),)
    disturbed = (Sample(100.0, (90.0, 90.0), 2),)
    assert figures([calm] * 3 + [disturbed] * 5, lambda pair: pair[0].ns)[0].median == 1.0


def test_what_is_not_installed_is_skipped_with_a_reason(monkeypatch):
    monkeypatch.setattr(peers, "compiled", lambda: Missing("C++", "no C++ compiler here"))
    peer = peers.cpp_stream("rigtorp", "spsc8", 10)
    assert peer == Missing("rigtorp", "no C++ compiler here")
    assert pairs.processors(4)[0] == pairs.processors(4)[2]


@pytest.mark.parametrize("name", ["Mpmc", "Broadcast"])
def test_the_row_about_waiting_runs(name):
    row = queue_cost.waiting(name, getattr(queue_cost, name), seconds=0.1)
    assert row.measured.endswith(" ms")


def test_the_benchmark_of_electron_runs(monkeypatch):
    monkeypatch.setattr(electron_cost, "RUNS", 1)
    rows = electron_cost.run(nothing, count=20)
    assert len(rows) == 7
    assert all(row.measured for row in rows)
