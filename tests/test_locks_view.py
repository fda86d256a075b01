"""The locks view: what is sent to the browser is what the trace knows, and a deadlock is visible and named."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import roles

from labkit import Trace, channel, launch
from labkit.report import report, run
from labkit.sync import PosixSemaphore
from labkit.views.locks import record
from tests.browser import chromium, in_browser, jupyterlab, opened, state, until

SENTENCE = "A holds fork 1 and waits for fork 2, which B holds; B holds fork 2 and waits for fork 1, which A holds"


def deadlocked(trace, names=("fork 1", "fork 2")):
    """Two real processes that wait for each other, and are killed one after the other."""
    forks = [trace.lock(PosixSemaphore(1), name) for name in names]
    here, there = PosixSemaphore(0), PosixSemaphore(0)
    running = [
        launch(roles.take_both, *forks, here, there, name="A"),
        launch(roles.take_both, *forks[::-1], there, here, name="B"),
    ]
    deadline = time.monotonic() + 20
    while not trace.deadlock():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for job in reversed(running):
        job.kill()
        assert roles.eventually(lambda: not job.alive)  # noqa: B023
    for lock in (*forks, here, there):
        lock.close()


def table_of(packed):
    return json.loads(gzip.decompress(packed))


# --- without a browser ---------------------------------------------------------------------------------------


def test_a_recording_has_every_wait_and_hold_and_the_deadlock():
    with Trace() as trace:
        deadlocked(trace)
        table = table_of(record(trace))
    (dead,) = table["deadlocks"]
    assert dead["sentence"] == SENTENCE and dead["end"] > dead["begin"] >= 0
    assert [lock["label"] for lock in table["locks"]] == ["fork 1", "fork 2"]
    assert {(a["name"], a["ended"]) for a in table["actors"]} == {
        ("A", "killed by SIGKILL"),
        ("B", "killed by SIGKILL"),
    }
    assert len(table["spans"]) == table["every"] == 6 and table["over"]
    assert min(begin for *_, begin, _ in table["spans"]) == 0


def test_a_long_recording_keeps_the_longest_spans_and_says_of_how_many():
    with Trace() as trace:
        mutex = trace.lock(PosixSemaphore(1), "mutex")
        roles.take_often(mutex, 200)
        with mutex:
            time.sleep(0.05)
        table = table_of(record(trace, 10))
        mutex.close()
    assert (len(table["spans"]), table["every"]) == (10, 402)
    assert max(end - begin for *_, begin, end in table["spans"]) >= 50e6


def test_an_empty_trace_makes_a_recording():
    with Trace() as trace:
        mutex = trace.lock(PosixSemaphore(1))
        assert table_of(record(trace))["spans"] == []
        mutex.close()


def test_watch_shows_locks_or_messages_or_both(tmp_path):
    code = """
from labkit import Trace, channel, watch
from labkit.sync import PosixSemaphore
locks, both, neither = Trace(), Trace(), Trace()
mutexes = [trace.lock(PosixSemaphore(1), "mutex") for trace in (locks, both)]
ends = channel("pipe", trace=both)
for trace in (locks, both, neither): watch(trace)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    assert run(tmp_path / "watch.ipynb", notebook, timeout=60) == []
    models = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    shown = [
        models[output["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]]["state"]["_esm"]
        for output in notebook.cells[0].outputs
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    assert ["locks" if "labkit-locks" in source else "flow" for source in shown] == ["locks", "flow", "locks", "flow"]


def test_batches_are_small_however_much_was_recorded(monkeypatch):
    from labkit.views.locks import LocksView

    sent = []
    monkeypatch.setattr(LocksView, "send", lambda self, content, buffers: sent.append(buffers[0]))
    with Trace() as trace:
        mutex = trace.lock(PosixSemaphore(1), "mutex")
        roles.take_often(mutex, 20_000)
        view = LocksView(trace)
        view._push(trace.events())
        view.close()
        mutex.close()
    assert len(sent[0]) < 100_000


# --- the exported view ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def exported(browser, tmp_path_factory):
    with Trace() as trace:
        deadlocked(trace)
        path = report(trace, tmp_path_factory.mktemp("locks") / "run.html")
        return SimpleNamespace(url=path.as_uri(), path=path)


def loaded(page, number=0):
    return until(page, lambda s: s.get("spans", 0) > 0, "loaded its recording", number=number)


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_opens_at_the_deadlock_and_names_it(browser, exported, scheme):
    with opened(browser, exported.url, color_scheme=scheme) as page:
        now = loaded(page)
        assert now["wrong"] and SENTENCE in now["sentence"]
        assert page.get_by_role("status").inner_text().startswith("Deadlock: A holds fork 1")
        graph = page.locator(".labkit-locks .graph svg").get_attribute("aria-label")
        for part in ("A waits for fork 2", "B holds fork 2", "B waits for fork 1", "A holds fork 1"):
            assert part in graph
        assert {lane["status"] for lane in now["lanes"]} == {
            "holds fork 1, waits for fork 2",
            "holds fork 2, waits for fork 1",
        }
        assert page.complaints == []


@in_browser
def test_the_slider_goes_to_other_moments_and_a_button_back_to_the_deadlock(browser, exported):
    with opened(browser, exported.url) as page:
        loaded(page)
        page.get_by_role("slider").fill("0")
        now = state(page)
        assert not now["wrong"] and "There was a deadlock at another time" in now["sentence"]
        page.get_by_role("slider").fill("10000")
        assert {lane["status"].split(",")[0] for lane in state(page)["lanes"]} == {"killed by SIGKILL"}
        page.get_by_role("button", name="Show the deadlock").click()
        assert SENTENCE in state(page)["sentence"]
        page.get_by_role("button", name="Zoom in").click()
        now = state(page)
        assert now["from_ns"] < now["now_ns"] < now["to_ns"] and page.complaints == []


@in_browser
def test_hovering_tells_who_held_what_for_how_long(browser, exported):
    with opened(browser, exported.url) as page:
        hit = next(h for h in loaded(page)["hits"] if h["text"].startswith("A waits for fork 2"))
        canvas = page.locator(".labkit-locks canvas")
        canvas.hover(position={"x": hit["x"] + min(3, hit["w"] / 2), "y": hit["y"] + 4})
        tip = page.locator(".labkit-locks .tip")
        tip.wait_for()
        assert tip.inner_text().startswith("A waits for fork 2") and "in vain" in tip.inner_text()


@in_browser
def test_names_are_text_and_never_html(browser, tmp_path):
    evil = "<img src=x onerror=document.title='pwned'>"
    with Trace() as trace:
        deadlocked(trace, (evil, "b"))
        path = report(trace, tmp_path / "run.html")
    with opened(browser, path.as_uri()) as page:
        assert evil in loaded(page)["sentence"]
        assert page.locator(".labkit-locks img").count() == 0 and page.title() != "pwned"
        assert page.complaints == []


@in_browser
def test_a_wait_for_what_a_killed_process_held_is_told(browser, tmp_path):
    with Trace() as trace:
        mutex, ready = trace.lock(PosixSemaphore(1), "mutex"), PosixSemaphore(0)
        holder = launch(roles.take_and_sleep, mutex, ready, name="holder")
        ready.acquire()
        holder.kill()
        assert roles.eventually(lambda: not holder.alive)
        heir = launch(roles.take_often, mutex, 1, name="heir")
        assert roles.eventually(lambda: trace.locks()[0].waited_for_by == ("heir",))
        heir.kill()
        assert roles.eventually(lambda: not heir.alive)
        path = report(trace, tmp_path / "run.html")
        mutex.close()
        ready.close()
    with opened(browser, path.as_uri()) as page:
        now = loaded(page)
        assert now["sentence"].startswith("heir waits for mutex, which holder held when it was killed") and now["wrong"]


@in_browser
def test_a_trace_with_both_shows_messages_and_locks(browser, tmp_path):
    with Trace() as trace:
        mutex = trace.lock(PosixSemaphore(1), "mutex")
        tx, rx = channel("pipe", trace=trace)
        with mutex:
            tx.send(b"x")
            rx.receive()
        path = report(trace, tmp_path / "run.html")
        for thing in (tx, rx, mutex):
            thing.close()
    with opened(browser, path.as_uri()) as page:
        assert loaded(page, 1)["locks"] == ["mutex"]
        until(page, lambda s: s["messages"] == 1, "loaded the message")
        assert page.complaints == []


# --- live ----------------------------------------------------------------------------------------------------

FIRST_CELL = """
from labkit import Trace, launch, watch
from labkit.sync import PosixSemaphore
trace = Trace()
forks = [trace.lock(PosixSemaphore(1), f"fork {n}") for n in (1, 2)]
def philosopher(first, second, go):
    with first:
        go.acquire()
        with second:
            pass
gates = [PosixSemaphore(0), PosixSemaphore(0)]
watch(trace)
"""
SECOND_CELL = """
jobs = [launch(philosopher, *order, gate, name=name)
        for name, order, gate in zip("AB", (forks, forks[::-1]), gates)]
import asyncio
from pathlib import Path
while sum(bool(row.held_by) for row in trace.locks()) < 2: await asyncio.sleep(0.05)
[gate.release() for gate in gates]
while not Path(STOP).exists(): await asyncio.sleep(0.05)
[job.kill() for job in jobs]
"""


@in_browser
def test_a_deadlock_is_named_live_in_jupyterlab(browser, tmp_path: Path):
    new, stop = nbformat.v4, tmp_path / "stop"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new.new_code_cell(FIRST_CELL.strip()), new.new_code_cell(f"STOP = {str(stop)!r}" + SECOND_CELL)]
    nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "live.ipynb")
    with (
        jupyterlab(tmp_path) as address,
        opened(
            browser, address("lab/tree/live.ipynb"), offline=False, viewport={"width": 1280, "height": 1400}
        ) as page,
    ):
        page.locator(".jp-Notebook .jp-CodeCell").nth(1).wait_for(timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        now = until(page, lambda s: s["wrong"], "named the deadlock", seconds=90)
        assert SENTENCE in now["sentence"] and not now["over"]
        until(page, lambda s: s["now_ns"] > now["now_ns"], "went on: time does not stand still in a deadlock")
        stop.touch()
        now = until(page, lambda s: s["over"], "came to its end", seconds=60)
        assert now["deadlocks"] == [SENTENCE] and SENTENCE in now["sentence"]
        assert page.complaints == []
