"""The latency view, the table of facts and the dashboard: their figures are those of the trace and the mechanisms."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from labkit import Trace, facts
from labkit.bench.made_up import MadeUp
from labkit.lockfree.least_entry import least
from labkit.page import Page
from labkit.stats import Latency
from labkit.views import VIEWS, _views, latency, recording, watch
from labkit.views.dashboard import Dashboard
from labkit.views.facts import FactsView
from labkit.views.facts import record as facts_record
from labkit.views.latency import LatencyView
from tests.browser import chromium, in_browser, opened, state, until

FLOORS = [["a cache line from core to core", 120.0], ["one system call", 160.0]]


def read(packed):
    return json.loads(gzip.decompress(packed))


def page_of(folder, view, packed):
    page = Page("views")
    buffers = [(["recording"], packed)]
    page.body.append(page.view("view", {"_esm": str(view._esm), "key": "view"}, buffers))
    path = folder / "view.html"
    path.write_text(page.html(), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def known_floors(monkeypatch):
    monkeypatch.setattr(latency, "floors", lambda: FLOORS)


# ------------------------------------------------------------------------------------------- without a browser


def test_the_least_that_a_machine_needs_is_measured():
    found = least()
    assert 5 < found.system_call_ns < 1e6
    assert found.cache_line_ns is None or found.cache_line_ns > 5


def test_a_curve_has_the_figures_and_the_shares_of_its_messages():
    every = MadeUp(40_000, channels=1).messages()
    found = latency.curve(Latency.of(every, "x"))
    samples = np.sort(every["receive_ends"] - every["send_begins"])
    assert found["n"] == 40_000 and sum(found["bars"]) == 40_000
    assert found["figures"]["p99"] == np.percentile(samples, 99) and found["figures"]["longest"] == samples[-1]
    for ns, share in found["points"]:
        assert np.sum(samples < ns) < round(share * 40_000) <= np.sum(samples <= ns)
    assert len(found["points"]) <= latency.POINTS + 1 and found["points"][-1][1] == 1


def test_several_traces_are_compared_curve_by_curve(known_floors):
    table = read(latency.record([MadeUp(400, 2), MadeUp(400, 1)], ["before", "after"]))
    assert [s["label"] for s in table["series"]] == ["before: pipe", "before: unix_seqpacket", "after: pipe"]
    assert table["floors"] == FLOORS


@pytest.mark.parametrize("n", [0, 1, 2, 3, 101])
def test_few_messages_make_a_curve_too(n):
    found = latency.curve(Latency.of(MadeUp(n, channels=1).messages()))
    assert found["n"] == n == sum(found["bars"])
    assert len(found["points"]) == n or n == 101


def test_a_view_of_two_traces_needs_two_names_and_hears_both():
    with Trace() as one, Trace() as two:
        with pytest.raises(ValueError, match="2 traces need as many names, not 1"):
            LatencyView(one, two, names=["before"])
        view = LatencyView(one, two)
        assert one._subscribers and two._subscribers
        view.close()
        assert not one._subscribers and not two._subscribers


def test_watch_chooses_what_fits():
    with Trace() as trace:
        assert _views((trace,), None) == ["flow"] and _views((trace,), "dashboard") == ["dashboard"]
        assert _views((trace, trace), None) == ["latency"] and _views((facts(),), None) == ["facts"]
        with pytest.raises(ValueError, match='"sequence" shows one trace'):
            watch(trace, trace, view="sequence")
    with pytest.raises(TypeError, match="needs a trace"):
        watch()
    assert set(VIEWS) >= {"flow", "sequence", "occupancy", "latency", "dashboard", "locks", "facts"}


# ------------------------------------------------------------------------------------------- in the browser


@in_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_latency_view_shows_curves_figures_and_floors(browser, tmp_path, known_floors, scheme):
    trace = MadeUp(4_000, 3)
    trace.channels[2].label = "<b>bold</b>"
    with opened(browser, page_of(tmp_path, LatencyView, latency.record([trace])), color_scheme=scheme) as page:
        now = until(page, lambda s: len(s["series"]) == 3, "loaded")
        assert now["shown"] == ["pipe", "unix_seqpacket", "<b>bold</b>"] and now["floors"] == FLOORS
        table = page.locator(".labkit-latency table").inner_text()
        assert "half within" in table and "<b>bold</b>" in table
        page.get_by_role("button", name="pipe", exact=True).click()
        assert state(page)["shown"] == ["unix_seqpacket", "<b>bold</b>"]
        box = page.locator(".labkit-latency canvas").bounding_box()
        page.mouse.move(box["x"] + 400, box["y"] + 150)
        assert "took at most" in page.locator(".tip").inner_text()
        assert page.complaints == []


@in_browser
def test_a_trace_without_messages_says_so(browser, tmp_path, known_floors):
    with opened(browser, page_of(tmp_path, LatencyView, latency.record([MadeUp(0)]))) as page:
        until(page, lambda s: s["words"] == "No message has been received yet.", "said so")
        assert page.complaints == []


@in_browser
def test_the_facts_are_sorted_and_searched(browser, tmp_path):
    table = facts()
    with opened(browser, page_of(tmp_path, FactsView, facts_record(table))) as page:
        now = until(page, lambda s: len(s["rows"]) == len(table), "loaded")
        assert [row[0] for row in now["rows"]] == list(table)
        for name, fact in table.items():
            row = next(r for r in now["rows"] if r[0] == name)
            assert dict(zip(now["heads"][1:], row[1:], strict=True))["tells close"] == fact.tells_close
        page.get_by_role("button", name="tells close").click()
        now = state(page)
        column = [row[now["by"]] for row in now["rows"]]
        assert column == sorted(column, reverse=True) and now["down"]
        page.keyboard.press("Enter")  # the heading has kept the focus
        column = [row[now["by"]] for row in state(page)["rows"]]
        assert column == sorted(column)
        page.get_by_role("searchbox").fill("file system")
        assert {row[0] for row in state(page)["rows"]} == {
            name for name, fact in table.items() if fact.persistence == "file system"
        }
        assert page.complaints == []


@in_browser
def test_in_the_dashboard_one_choice_is_that_of_all_views(browser, tmp_path):
    trace = MadeUp(4_000, 2)
    packed = recording.record(trace, None, 250_000, {"floors": FLOORS})
    found = trace.messages()
    with opened(browser, page_of(tmp_path, Dashboard, packed), viewport={"width": 1280, "height": 1500}) as page:
        now = until(page, lambda s: s.get("messages", 0) == 4_000 and s["parts"][2]["series"], "loaded")
        for _ in range(3):
            page.get_by_role("button", name="Zoom in").click()
        sequence = until(page, lambda s: s["parts"][2]["series"][0]["n"] < 1_000, "measured the window")["parts"][0]
        now = state(page)
        sequence, occupancy, latencies, flow = now["parts"]
        assert (sequence["from_ns"], sequence["to_ns"]) == (occupancy["from_ns"], occupancy["to_ns"])
        epoch = trace.events()["time_ns"].min()
        sent, own = found["send_begins"] - epoch, found["channel"] == 0
        inside = own & (sent >= sequence["from_ns"]) & (sent <= sequence["to_ns"])
        took = np.sort((found["receive_ends"] - found["send_begins"])[inside])
        assert latencies["series"][0]["n"] == len(took) and latencies["floors"] == FLOORS
        assert latencies["series"][0]["figures"]["longest"] == took[-1]
        page.get_by_role("button", name="Next message").click()
        now = state(page)
        assert now["parts"][0]["chosen"] == now["parts"][1]["chosen"] is not None
        chosen = now["parts"][0]["chosen"]
        flow = until(page, lambda s: s["parts"][3]["selected"], "chose the same message")["parts"][3]
        assert flow["selected"]["count"] == chosen["id"] % 2**37 and flow["messages"] == 4_000
        page.get_by_role("slider", name="Time in the recording").fill("3000")
        now = until(page, lambda s: not s["parts"][3]["selected"], "let go of it")
        assert now["parts"][3]["time_ns"] == pytest.approx(now["parts"][0]["now_ns"], rel=1e-9)
        totals = [
            np.sum((found["channel"] == n) & (found["receive_ends"] - epoch <= now["parts"][0]["now_ns"]))
            for n in (0, 1)
        ]
        assert [c["received"] for c in now["parts"][3]["channels"]] == totals
        page.get_by_role("button", name="Play").click()
        until(page, lambda s: s["parts"][3]["dots"] and s["parts"][0]["playing"], "lets the dots move along")
        page.get_by_role("button", name="pipe", exact=True).nth(1).click()  # the occupancy's
        until(page, lambda s: s["parts"][0]["hidden"] == [0], "hid the channel in the chart")
        assert page.complaints == []
