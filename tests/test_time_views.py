"""The sequence chart and the occupancy view: what they show is what the trace holds, at every zoom and moment."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest

from labkit import Trace, channel, launch
from labkit.page import Page
from labkit.report import run
from labkit.views import recording, watch
from labkit.views.occupancy import Occupancy
from labkit.views.sequence import Sequence
from tests.browser import chromium, in_browser, jupyterlab, moves, opened, rests, state, until
from tests.roles import eventually

N = 120


def producer(tx):
    for number in range(N):
        tx.send(b"x" * (1 + number % 90))


def urgent(tx):
    for number in range(40):
        tx.send(b"%d" % number, priority=number % 4)


def consumer(rx):
    return sum(1 for _ in rx)


def page_of(folder, trace, *views):
    """A page of these views of a trace, as a report has them; its address."""
    page, packed = Page("views"), recording.record(trace, limit=250_000)
    for view in views:
        name = view.__name__.lower()
        state = {"_esm": str(view._esm), "key": name}
        page.body.append(page.view(name, state, [(["recording"], packed)]))
    path = folder / "views.html"
    path.write_text(page.html(), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def exported(browser, tmp_path_factory):
    """Pages of real processes: a pipe, a message queue that overtakes, and one message that nobody fetched."""
    with Trace() as trace:
        ends = [channel("pipe", trace=trace), channel("posix_mq", trace=trace), channel("unix_datagram", trace=trace)]
        for number in range(5):
            ends[1][0].send(b"early", priority=number)
        ends[2][0].send(b"nobody will fetch me")
        jobs = [launch(urgent, ends[1][0]), launch(consumer, ends[1][1]), launch(consumer, ends[0][1])]
        jobs.append(launch(producer, ends[0][0]))
        for job in jobs:
            job.wait()
        for end in ends[2]:
            end.close()
        epoch, found = int(trace.events()["time_ns"].min()), trace.messages()
        urls = {view: page_of(tmp_path_factory.mktemp("views"), trace, view) for view in (Sequence, Occupancy)}
        return SimpleNamespace(urls=urls, found=found, epoch=epoch)


def drew(page, number=0):
    """What is shown when the messages have come, and been painted: a view without any may have been painted before."""
    until(page, lambda s: s.get("messages", 0) > 0 and s.get("cost_ms") is not None, "drew", number=number)
    return settled(page, number)


def pixels(page):
    return page.locator(".stage canvas").first.evaluate("canvas => canvas.toDataURL()")


def settled(page, number=0):
    """What is shown after the next two frames: the views paint once a frame."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return state(page, number)


# ------------------------------------------------------------------------------------------- without a browser


def test_watch_names_the_views_there_are():
    with Trace() as trace, pytest.raises(ValueError, match=r'no view called "sequenz".*did you mean "sequence"'):
        watch(trace, view="sequenz")


def test_watch_shows_the_view_that_is_asked_for(tmp_path):
    code = """
from labkit import Trace, channel, watch
trace = Trace()
ends = channel("pipe", trace=trace)
for view in ("sequence", "occupancy", "flow"): watch(trace, view=view)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    assert run(tmp_path / "watch.ipynb", notebook, timeout=60) == []
    models = notebook.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    names = [model["state"].get("_anywidget_id", "").rpartition(".")[2] for model in models.values()]
    assert sorted(name for name in names if name) == ["Flow", "Occupancy", "Sequence"]


# ------------------------------------------------------------------------------------------- the sequence chart


@in_browser
def test_an_arrow_goes_from_the_send_to_the_receipt_of_its_message(browser, exported):
    with opened(browser, exported.urls[Sequence]) as page:
        now = drew(page)
        times = {
            (m["send_begins"] - exported.epoch, m["receive_ends"] - exported.epoch, m["sender"], m["receiver"])
            for m in exported.found
            if m["receive_ends"]
        }
        assert now["messages"] == now["shown"] == len(exported.found)
        hits = [hit for hit in now["hits"] if math.isfinite(hit["received_ns"])]
        assert len(hits) >= 5  # those that were sent too close together for the width of the page are drawn as one
        for hit in hits:
            assert (hit["sent_ns"], hit["received_ns"], hit["sender"], hit["receiver"]) in times
            assert hit["x1"] >= hit["x0"]
        left, right = min(hits, key=lambda h: h["sent_ns"]), max(hits, key=lambda h: h["sent_ns"])
        slope = (right["x0"] - left["x0"]) / (right["sent_ns"] - left["sent_ns"])  # pixels a nanosecond
        for hit in hits:
            assert hit["x1"] - hit["x0"] == pytest.approx((hit["received_ns"] - hit["sent_ns"]) * slope, abs=0.01)
        assert page.complaints == []


@in_browser
def test_lost_and_overtaken_messages_are_counted_as_the_trace_has_them(browser, exported):
    overtaken = 0
    found = exported.found
    for key in {(m["channel"], m["sender"], m["receiver"]) for m in found if m["receive_ends"]}:
        own = found[(found["channel"] == key[0]) & (found["sender"] == key[1]) & (found["receiver"] == key[2])]
        earliest_later = np.minimum.accumulate(own["receive_ends"][::-1])[::-1]
        overtaken += int(np.sum(own["receive_ends"][:-1] > earliest_later[1:]))
    with opened(browser, exported.urls[Sequence]) as page:
        now = drew(page)
        assert (now["lost"], now["overtaken"]) == (1, overtaken) and overtaken > 0
        button = page.locator("button.trouble")
        assert button.inner_text() == f"1 not received, {overtaken} overtaken ›"
        button.click()
        assert any(words in settled(page)["words"] for words in ("not received", "arrived before it"))


@in_browser
def test_it_moves_while_it_plays_and_stands_still_when_paused(browser, exported):
    for view in (Sequence, Occupancy):
        with opened(browser, exported.urls[view]) as page:
            drew(page)
            page.get_by_role("button", name="Play").click()
            until(page, lambda s: s["animating"], "played")
            assert moves(page, pixels)
            page.get_by_role("button", name="Pause").click()
            assert rests(page, pixels) and not state(page)["animating"]
            assert page.complaints == []


@in_browser
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_slider_shows_what_had_happened_by_then(browser, exported, share):
    with opened(browser, exported.urls[Sequence]) as page:
        drew(page)
        page.get_by_role("slider").fill(str(round(10_000 * share)))
        now = settled(page)
        sent = exported.found["send_begins"] - exported.epoch
        assert np.sum(sent <= now["now_ns"] - 1) <= now["shown"] <= np.sum(sent <= now["now_ns"] + 1)


@in_browser
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9, 1])
def test_occupancy_is_what_was_sent_and_not_received_by_then(browser, exported, share):
    with opened(browser, exported.urls[Occupancy]) as page:
        drew(page)
        page.get_by_role("slider").fill(str(round(10_000 * share)))
        now = settled(page)
        own = exported.found[exported.found["channel"] == 1]
        ended = np.where(own["receive_ends"] > 0, own["receive_ends"], np.iinfo(np.int64).max)
        entered = np.minimum(own["send_ends"], ended) - exported.epoch
        inside = np.sum(entered <= now["now_ns"]) - np.sum(ended - exported.epoch <= now["now_ns"])
        shown = next(c for c in now["channels"] if c["label"] == "posix_mq")
        assert shown["inside"] == min(inside, 10) and shown["most"] <= 10
        assert now["whole"] and page.complaints == []


@in_browser
def test_a_channel_that_is_switched_off_is_not_drawn(browser, exported):
    with opened(browser, exported.urls[Sequence]) as page:
        drew(page)
        chip = page.get_by_role("button", name="pipe", exact=True)
        chip.click()
        now = settled(page)
        assert now["shown"] == np.sum(exported.found["channel"] != 0)
        assert page.get_by_role("button", name="pipe").get_attribute("aria-pressed") == "false"
        page.keyboard.press("Enter")  # the focus has stayed where it was
        assert settled(page)["shown"] == len(exported.found)


@in_browser
def test_a_process_can_be_looked_for(browser, exported):
    with opened(browser, exported.urls[Sequence]) as page:
        drew(page)
        page.get_by_role("searchbox").fill("urg")
        now = settled(page)
        of_channel = exported.found[exported.found["channel"] == 1]
        pid = of_channel["sender"][of_channel["size"] < 3][-1]
        assert now["shown"] == np.sum(of_channel["sender"] == pid) and set(now["lanes"]) == {"urgent", "consumer"}


@in_browser
def test_stepping_goes_from_message_to_message_and_back(browser, exported):
    sent = exported.found["send_begins"] - exported.epoch
    with opened(browser, exported.urls[Sequence]) as page:
        drew(page)
        seen = []
        for name in ("Next message",) * 4 + ("One message back",):
            page.get_by_role("button", name=name).click()
            seen.append(state(page)["chosen"]["sent_ns"])
        assert seen == sent[[0, 1, 2, 3, 2]].tolist()
        assert "bytes" in page.locator(".note").inner_text() and "bytes" in page.get_by_role("status").inner_text()


@in_browser
def test_keys_buttons_and_the_wheel_zoom_down_to_nanoseconds_and_back(browser, exported):
    with opened(browser, exported.urls[Sequence]) as page:
        whole = drew(page)
        page.locator(".stage canvas").focus()
        for _ in range(40):
            page.keyboard.press("+")
        now = settled(page)
        assert now["to_ns"] - now["from_ns"] == pytest.approx(20)
        page.keyboard.press("ArrowRight")
        assert settled(page)["from_ns"] == pytest.approx(now["from_ns"] + 2)
        page.get_by_role("button", name="Zoom out").click()
        now = settled(page)
        assert now["to_ns"] - now["from_ns"] == pytest.approx(40)
        page.locator(".stage canvas").click(position={"x": 400, "y": 60})
        page.mouse.wheel(0, 300)
        now = settled(page)
        assert now["to_ns"] - now["from_ns"] > 100
        page.keyboard.press("0")
        now = settled(page)
        assert now["to_ns"] - now["from_ns"] == pytest.approx(whole["to_ns"] - whole["from_ns"])
        page.get_by_role("combobox").select_option("1000000")
        assert state(page)["speed"] == 1_000_000 and page.complaints == []


@in_browser
def test_the_page_scrolls_past_a_view_without_focus(browser, exported):
    with opened(browser, exported.urls[Sequence]) as page:
        before = drew(page)
        page.mouse.move(500, 300)
        page.mouse.wheel(0, 300)
        now = settled(page)
        assert (now["from_ns"], now["to_ns"]) == (before["from_ns"], before["to_ns"])


@in_browser
def test_the_pointer_is_told_about_the_message_under_it(browser, exported):
    with opened(browser, exported.urls[Sequence]) as page:
        drew(page)
        hit = next(h for h in settled(page)["hits"] if h["received_ns"] is not None and h["x1"] > h["x0"] + 3)
        canvas = page.locator(".stage canvas")
        canvas.hover(position={"x": (hit["x0"] + hit["x1"]) / 2, "y": (hit["y0"] + hit["y1"]) / 2})
        tip = page.locator(".tip").inner_text()
        assert "bytes, “" in tip and "received" in tip and "pid" in tip


@in_browser
def test_the_picture_is_saved_as_svg_with_its_words_and_as_png(browser, exported):
    for view in (Sequence, Occupancy):
        with opened(browser, exported.urls[view], accept_downloads=True) as page:
            drew(page)
            with page.expect_download() as download:
                page.get_by_role("button", name="Save this picture as SVG").click()
            root = ElementTree.parse(download.value.path()).getroot()
            words = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
            assert {"consumer", "urgent"} <= words or {"pipe", "posix_mq"} <= words
            with page.expect_download() as download:
                page.get_by_role("button", name="Save this picture as PNG").click()
            assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
            assert page.complaints == []


@in_browser
@pytest.mark.parametrize("width", [320, 700, 1280])
def test_nothing_sticks_out_of_the_view(browser, exported, width):
    for view in (Sequence, Occupancy):
        with opened(browser, exported.urls[view], viewport={"width": width, "height": 900}) as page:
            drew(page)
            outside = page.evaluate("""() => {
                const box = document.querySelector(".labkit-view").getBoundingClientRect();
                return [...document.querySelectorAll(".labkit-view :is(button, select, input, .clock, .note, canvas)")]
                    .filter((e) => e.getClientRects().length)
                    .map((e) => [e.className || e.tagName, e.getBoundingClientRect()])
                    .filter(([, r]) => r.left < box.left - 1 || r.right > box.right + 1).map(([name]) => name);
            }""")
            assert outside == []


@in_browser
def test_the_views_follow_the_page_from_light_to_dark(browser, exported):
    for view in (Sequence, Occupancy):
        with opened(browser, exported.urls[view], color_scheme="light") as page:
            drew(page)
            light = pixels(page)
            page.emulate_media(color_scheme="dark")
            settled(page)
            assert pixels(page) != light


# ------------------------------------------------------------------------------------------- live, in JupyterLab

FIRST_CELL = """
from labkit import Trace, channel, launch, watch
trace = Trace()
tx, rx = channel("pipe", trace=trace)
watch(trace, view="sequence")
watch(trace, view="occupancy")
watch(trace)
"""
SECOND_CELL = """
def consumer(rx):
    return sum(1 for _ in rx)

def producer(tx):
    import os, time
    while not os.path.exists(STOP):
        tx.send(b"x" * 20)
        time.sleep(0.01)

jobs = launch(consumer, rx), launch(producer, tx)
"""


@in_browser
def test_live_in_jupyterlab_and_when_the_kernel_goes(browser, tmp_path: Path):
    new, stop = nbformat.v4, tmp_path / "stop"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new.new_code_cell(FIRST_CELL.strip()), new.new_code_cell(f"STOP = {str(stop)!r}" + SECOND_CELL)]
    nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "live.ipynb")
    with (
        jupyterlab(tmp_path) as address,
        opened(
            browser, address("lab/tree/live.ipynb"), offline=False, viewport={"width": 1280, "height": 2400}
        ) as page,
    ):
        page.locator(".jp-Notebook .jp-CodeCell").nth(1).wait_for(timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()
        until(page, lambda s: s["live"] and s["messages"] > 20, "drew live", seconds=90)
        until(page, lambda s: s["live"] and s["channels"], "drew live", number=1)
        assert moves(page, pixels)

        page.get_by_role("menuitem", name="Kernel", exact=True).click()
        page.get_by_text("Restart Kernel…", exact=True).first.click()
        page.get_by_role("button", name="Confirm Kernel Restart").click()
        for number in (0, 1):
            until(page, lambda s: s["orphaned"], "heard that the kernel has gone", number=number, seconds=60)
        stop.touch()
        assert eventually(lambda: page.get_by_text("The kernel has gone").count() >= 2)
        until(page, lambda s: all(p["state"] == "unknown" for p in s["processes"]), "said so", number=2)
        page.get_by_text("| Idle").wait_for()  # a server that is told to end while a kernel begins takes a minute
