"""Every view of every kind of trace: nothing in it, far too much, no sense: a picture or a sentence, and no error."""

from __future__ import annotations

import gzip
import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from labkit.bench.made_up import MadeUp
from labkit.events import EVENT, Action, messages
from labkit.page import Page
from labkit.trace import ProcessInfo
from labkit.views import latency, recording
from labkit.views.dashboard import Dashboard
from labkit.views.explorer import Steps
from labkit.views.facts import FactsView
from labkit.views.flow import Flow
from labkit.views.latency import LatencyView
from labkit.views.locks import LocksView
from labkit.views.occupancy import Occupancy
from labkit.views.ring import Ring
from labkit.views.sequence import Sequence
from tests.browser import chromium, in_browser, opened, state, until
from tests.test_events import BEGINNINGS

OF_A_TRACE = (Flow, Sequence, Occupancy, LatencyView, Dashboard)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def page_of(folder, recorded):
    """A page of views, given with what each is fed; its address."""
    page = Page("views")
    for number, (view, packed) in enumerate(recorded):
        trait = "table" if view is Steps else "recording"
        state = {"_esm": str(view._esm), "key": f"view {number}"}
        page.body.append(page.view(f"view {number}", state, [([trait], packed)]))
    path = folder / "views.html"
    path.write_text(page.html(), encoding="utf-8")
    return path.as_uri()


def recorded(trace, *views):
    """What each of these views of a trace is fed with."""
    floors = {"floors": [["a cache line from core to core", 120.0], ["one system call", 160.0]]}
    packed = recording.record(trace, None, 250_000, floors)
    return [(view, latency.record([trace]) if view is LatencyView else packed) for view in views]


def settled(page):
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


# ------------------------------------------------------------------------------------------- kinds of traces


def events_of(trace, change):
    trace._events = trace._events.copy()
    change(trace._events)
    return trace


def standing(events):
    events["time_ns"] = 10**12


def crowded(events):
    events["time_ns"] = 10**12 + (events["time_ns"] - events["time_ns"].min()) * 10**6 // np.ptp(events["time_ns"])


def named(trace):
    trace.channels[0].label = "<img src=x onerror=alert(1)> 管道 \U0001f600"
    trace.processes[1000].name = "<script>alert(2)</script> \u202e\x00"
    trace.processes[1001].name = "bell \x07 \ud83d"  # half an emoji
    trace.processes[7] = ProcessInfo(7, "never speaks")
    return trace


def unheard(trace):
    """Nobody receives anything, and one only begins to send."""
    trace._events = trace._events[np.isin(trace._events["action"], (Action.SEND_BEGINS, Action.SEND_ENDS))][:-1]
    return trace


def one_event(trace):
    trace._events = trace._events[:1]
    return trace


def nothing():
    trace = MadeUp(0)
    trace.channels, trace.processes, trace._events = [], {}, np.zeros(0, EVENT)
    return trace


def telling(trace):
    """Messages that begin with all sorts of things: text in every script, pictures, numbers, markup."""

    def change(events):
        sends = np.flatnonzero(events["action"] == Action.SEND_BEGINS)
        for event, (begins, size, _) in zip(sends, BEGINNINGS, strict=True):
            events["first"][event], events["size"][event] = begins, size

    return events_of(trace, change)


@in_browser
def test_a_message_is_told_by_how_it_begins_as_text_or_as_bytes(browser, tmp_path):
    trace = telling(MadeUp(len(BEGINNINGS), channels=1))
    with opened(browser, page_of(tmp_path, recorded(trace, Sequence, Flow))) as page:
        for number in (0, 1):
            until(page, lambda s: s["mode"] != "live" and s["messages"], "has its recording", number=number)
        for number in (0, 1):
            view = page.locator(".labkit-view").nth(number)
            for place in ("9999", "0"):
                view.get_by_role("slider").fill(place)
            for _, size, words in BEGINNINGS:
                view.get_by_role("button", name="Next message").click()
                settled(page)
                assert f"{size} bytes, {words}," in view.locator(".note").text_content()
        assert page.locator(".labkit-view img").count() == 0 and page.complaints == []


@in_browser
def test_of_a_trace_without_contents_nothing_is_told(browser, tmp_path):
    trace = MadeUp(4, channels=1)
    trace.contents = False
    with opened(browser, page_of(tmp_path, recorded(trace, Sequence))) as page:
        until(page, lambda s: s["messages"], "has its recording")
        page.get_by_role("button", name="Next message").click()
        settled(page)
        assert "bytes, sent at" in page.locator(".note").text_content()


STRANGE = {
    "no channel": nothing,
    "nothing sent": lambda: MadeUp(0),
    "one event": lambda: one_event(MadeUp(40, channels=1)),
    "a clock that stands still": lambda: events_of(MadeUp(400), standing),
    "a million in one millisecond": lambda: events_of(MadeUp(250_000), crowded),
    "text and bytes": lambda: telling(MadeUp(len(BEGINNINGS))),
    "nothing received": lambda: unheard(MadeUp(2_000)),
    "200 processes": lambda: MadeUp(20_000, channels=100),
    "strange names": lambda: named(MadeUp(40)),
    "thinned": lambda: MadeUp(600_000, channels=2),
}


@in_browser
@pytest.mark.parametrize("kind", STRANGE)
def test_every_trace_makes_a_picture_or_a_sentence_in_every_view(browser, kind, tmp_path):
    trace = STRANGE[kind]()
    found = messages(trace.events())
    url = page_of(tmp_path, recorded(trace, *OF_A_TRACE))
    with opened(browser, url, color_scheme="dark", reduced_motion="reduce") as page:
        for number in range(len(OF_A_TRACE)):
            now = until(page, has_loaded, "loaded its recording", number=number)
            if "messages" in now:
                until(page, lambda s: (s["messages"] > 0) == (len(found) > 0), "has the messages", number=number)
        for width in (1280, 700):
            page.set_viewport_size({"width": width, "height": 900})
            settled(page)
            assert page.evaluate(STICKS_OUT) == []
            now = state(page)
            assert all(process["h"] >= 56 for process in now["processes"]), "room for three lines"
            for box, other in pairs(boxes(now)):
                assert not overlap(box, other), f"{box} and {other}, {width} pixels wide"
        names = ["Next message", "Zoom in", "Zoom out", "Show the whole time", "Play"]
        if len(trace.channels) < 50:  # a file of a hundred channels takes long
            names += ["as SVG", "as PNG"]
        for name in names:
            for button in page.get_by_role("button", name=name).element_handles():
                if button.is_enabled():
                    button.click()
        settled(page)
        assert page.locator(".labkit-view img, .labkit-view script").count() == 0
        assert page.complaints == []


def has_loaded(now) -> bool:
    """Whether a view has painted its recording, also when there is nothing in it."""
    if now.get("view") == "latency":
        return bool(now["series"] or now["words"])
    if now.get("view") == "dashboard":
        return all(has_loaded(part) for part in now["parts"])
    return now.get("cost_ms") is not None and not now["live"] if "view" in now else "channels" in now


STICKS_OUT = """() => [...document.querySelectorAll(".labkit-view *")]
    .filter((e) => e.matches("button, select, input, .clock, .note, canvas, td"))
    .filter((e) => e.getClientRects().length && !e.closest(".scrolls, .legend"))
    .filter((e) => {
        const box = e.closest(".labkit-view").getBoundingClientRect(), own = e.getBoundingClientRect();
        return own.left < box.left - 1 || own.right > box.right + 1;
    }).map((e) => e.className || e.tagName)"""


def boxes(flow):
    """Where the processes and the channels of a flow view stand, with the words above and below a channel."""
    found = [
        (p["x"] - p["w"] / 2, p["x"] + p["w"] / 2, p["y"] - p["h"] / 2, p["y"] + p["h"] / 2) for p in flow["processes"]
    ]
    return found + [(c["x"] - c["w"] / 2, c["x"] + c["w"] / 2, c["y"] - 33, c["y"] + 46) for c in flow["channels"]]


def pairs(found):
    """Each box with those that begin above its end."""
    found = sorted(found, key=lambda box: box[2])
    for place, box in enumerate(found):
        for other in found[place + 1 :]:
            if other[2] >= box[3]:
                break
            yield box, other


def overlap(box, other) -> bool:
    return box[0] < other[1] and other[0] < box[1]


@in_browser
def test_the_file_of_a_long_picture_has_what_is_scrolled_away(browser, tmp_path):
    trace = MadeUp(4_000, channels=40)
    with opened(browser, page_of(tmp_path, recorded(trace, Sequence, Occupancy, Dashboard))) as page:
        for number in range(3):
            until(page, lambda s: has_loaded(s) and s["messages"], "loaded its recording", number=number)
        for number, name in ((0, "Save this picture"), (1, "Save this picture"), (2, "Save the whole dashboard")):
            before = state(page, number)
            with page.expect_download() as download:
                page.locator(".view").nth(number).get_by_role("button", name=f"{name} as SVG").click()
            root = ElementTree.parse(download.value.path()).getroot()
            words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
            assert words.count("producer") >= 40 or {channel.label for channel in trace.channels} <= set(words)
            if number < 2:
                assert float(root.get("height")) > 1200 and state(page, number)["messages"] == before["messages"]
        names = [own.get("id") for own in root.iter() if own.get("id")]
        assert len(names) == len(set(names)) > 40, "clips of one part are not those of another"
        assert page.complaints == []


# ------------------------------------------------------------------------------------------- locks


def locks(actors, names, spans, **more):
    """What the locks view draws; spans are (actor, lock, kind, begin, end), all times in ns."""
    table = {
        "locks": [{"label": name, "kind": "mutex", "count": 1} for name in names],
        "actors": [{"name": name, "pid": 100 + n, "ended": None, "end": -1} for n, name in enumerate(actors)],
        "spans": spans,
        "every": len(spans),
        "deadlocks": [],
        "newest": 10**7,
        "now": 11 * 10**6,
        "over": True,
        "lost": 0,
    }
    return gzip.compress(json.dumps(table | more).encode())


CROWD = [f"worker {n}" for n in range(200)]
STRANGE_LOCKS = {
    "none": locks([], [], []),
    "one moment": locks(["A", "B"], ["a", "b"], [(0, 0, 2, 0, 0), (1, 0, 0, 0, -1), (1, 1, 2, 0, -1)], newest=0, now=0),
    "strange names": locks(
        ["\0 \u202e 管道 " + 20 * "long "], ["<img src=x onerror=alert(1)> \ud83d"], [(0, 0, 2, 0, 9)]
    ),
    "200 processes": locks(CROWD, "abc", [(a, k, 2, a * 1000, a * 1000 + 900) for a in range(200) for k in range(3)]),
    "200 wait": locks(CROWD, ["a"], [(0, 0, 2, 0, -1)] + [(a, 0, 0, a, -1) for a in range(1, 200)], over=False),
}


@in_browser
@pytest.mark.parametrize("kind", STRANGE_LOCKS)
def test_every_trace_of_locks_makes_a_picture_or_a_sentence(browser, kind, tmp_path):
    with opened(browser, page_of(tmp_path, [(LocksView, STRANGE_LOCKS[kind])])) as page:
        now = until(page, lambda s: s["spans"] or kind == "none", "loaded its recording")
        assert now["sentence"] and page.locator(".labkit-locks canvas").evaluate("c => c.clientHeight") <= 600
        buttons = [b for b in page.get_by_role("button").element_handles() if b.is_visible() and b.is_enabled()]
        for button in buttons:
            button.click()
        assert len(buttons) >= 5 or kind == "none"
        settled(page)
        assert page.evaluate(STICKS_OUT) == []
        assert page.locator(".labkit-view img, .labkit-view script").count() == 0
        assert page.complaints == []


@in_browser
def test_the_file_of_many_lanes_has_what_is_scrolled_away(browser, tmp_path):
    with opened(browser, page_of(tmp_path, [(LocksView, STRANGE_LOCKS["200 processes"])])) as page:
        until(page, lambda s: s["spans"], "loaded its recording")
        with page.expect_download() as download:
            page.get_by_role("button", name="as SVG").click()
        words = {text.text for text in ElementTree.parse(download.value.path()).getroot().iter() if text.text}
        assert set(CROWD) <= words and page.locator(".labkit-locks canvas").evaluate("c => c.clientHeight") == 600
        page.locator(".labkit-locks .lanes").evaluate("lanes => (lanes.scrollTop = 1e6)")
        until(page, lambda s: any("worker 199" in hit["text"] for hit in s["hits"]), "shows the last")


# ------------------------------------------------------------------------------------------- no recordings

EVERY = (*OF_A_TRACE, LocksView, FactsView, Ring, Steps)
PACKED = recording.record(MadeUp(400))
BROKEN = {
    "cut in the middle": PACKED[: len(PACKED) // 2],
    "cut behind its header": gzip.compress(gzip.decompress(PACKED)[:3000]),
    "of something else": gzip.compress(b"hello"),
    "no recording": b"\x89PNG\r\n",
    "other JSON": gzip.compress(json.dumps([1, 2, 3]).encode()),
}


@in_browser
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_recording_is_a_sentence_in_every_view(browser, kind, tmp_path):
    with opened(browser, page_of(tmp_path, [(view, BROKEN[kind]) for view in EVERY])) as page:
        for number in range(len(EVERY)):
            page.locator(".view").nth(number).get_by_text("cannot be read").first.wait_for()
        assert page.complaints == []
