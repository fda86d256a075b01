"""Pictures in the place of views: what a saved notebook shows where no JavaScript runs, or no kernel."""

from __future__ import annotations

import base64
import copy
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import numpy as np
import pytest

from labkit import Trace, channel, launch
from labkit.bench.made_up import MadeUp
from labkit.page import render
from labkit.report import run
from labkit.stats import STANDS_IN
from labkit.sync import PosixSemaphore
from labkit.views import pictures
from tests.browser import chromium, in_browser, jupyterlab, opened, until


def words(picture) -> str:
    """All that is written in a picture."""
    return " | ".join(text.get_text() for text in picture.axes.texts)


def consumer(rx):
    for message in rx:
        if message == b"bye":
            raise SystemExit(3)


def test_a_picture_has_the_exact_figures_of_the_trace():
    with Trace() as trace:
        tx, rx = channel("pipe", trace=trace, label="a $b$ 你好")
        job = launch(consumer, rx)
        for _ in range(50):
            tx.send(b"x")
        tx.close()
        job.wait()
        udp, far = channel("udp", trace=trace)
        for _ in range(3):
            udp.send(b"never received")
        udp.close(), far.close()
    shown = words(pictures.flow(trace))
    assert "50 sent" in shown and "50 received" in shown and r"a \$b\$ 你好" in shown and "consumer" in shown
    assert "3 sent" in shown and "0 received" in shown and "3 not received" in shown and "nobody yet" in shown


def test_a_picture_says_how_a_process_has_died():
    with Trace() as trace:
        tx, rx = channel("pipe", trace=trace)
        job = launch(consumer, rx)
        tx.send(b"bye")
        with pytest.raises(Exception, match="3"):
            job.wait()
        tx.close()
    assert "consumer\nexited 3" in words(pictures.flow(trace))


def test_a_sample_of_many_messages_still_counts_all_of_them():
    shown = words(pictures.flow(MadeUp(100_000)))
    assert shown.count("25,000 sent") == shown.count("25,000 received") == 4 and "not received" not in shown


def test_more_channels_than_there_is_room_for_are_counted():
    assert "and 5 more channels" in words(pictures.flow(MadeUp(17 * 4, channels=17)))


@pytest.mark.parametrize("draw", [pictures.flow, pictures.locks])
def test_an_empty_trace_has_a_picture_too(draw):
    with Trace() as trace:
        assert draw(trace).png().startswith(b"\x89PNG")
        tx, rx = channel("pipe", trace=trace)
        lock = trace.lock(PosixSemaphore())
        assert draw(trace).png().startswith(b"\x89PNG")
        tx.close(), rx.close(), lock.close()


def test_the_picture_of_locks_has_a_bar_for_every_hold():
    with Trace() as trace:
        one, two = (trace.lock(PosixSemaphore(), f"fork {n}") for n in (1, 2))
        for _ in range(3):
            with one, two:
                pass
        one.close(), two.close()
    picture = pictures.locks(trace)
    bars = [len(each.get_paths()) for each in picture.axes.collections]
    assert sum(bars) == 2 * 3 * 2  # a wait and a hold, each
    legend = [text.get_text() for text in picture.axes.get_legend().get_texts()]
    assert legend == ["holds fork 1", "holds fork 2", "waits for it"]


VIEWS = """
from labkit import Trace, channel, facts, watch
from labkit.explore import Explorer
from labkit.lockfree import Mpmc
from labkit.sync import PosixSemaphore
from labkit.views.ring import Ring
def increment(s):
    value = s.counter
    yield
    s.counter = value + 1
trace = Trace()
tx, rx = channel("pipe", trace=trace)
fork = trace.lock(PosixSemaphore(), "fork <1>")
for number in range(30):
    tx.send(b"hello")
    rx.receive()
    with fork: pass
tx.close(), rx.close(), fork.close()
---
both = {"both <i>count</i>": lambda s: s.counter == 2}
Explorer({"A": increment, "B": increment}, shared={"counter": 0}, at_end=both)
---
watch(facts())
---
queue = Mpmc(4, message_bytes=32)
ring = Ring(queue)
queue.send(b"<b>one</b>")
loan = queue.loan(20)
ring.snapshot("one is in it, one is claimed")
ring
---
watch(trace)
---
for view in ("sequence", "occupancy", "latency", "dashboard"): watch(trace, view=view)
"""
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook with every view there is."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in VIEWS.split("---")])
    assert run(tmp_path_factory.mktemp("views") / "views.ipynb", notebook, timeout=120) == []
    return notebook


def test_every_view_leaves_behind_it_what_is_seen_where_it_is_not_alive(executed):
    outputs = [output for cell in executed.cells for output in cell.outputs if output.output_type == "display_data"]
    views = [n for n, output in enumerate(outputs) if VIEW in output["data"]]
    assert len(views) == 9
    for n in views:
        behind = outputs[n + 1]
        assert STANDS_IN in behind.metadata
        if "text/html" not in behind["data"]:
            assert loud(base64.b64decode(behind["data"]["image/png"]))
    alive = render([("views", executed)])
    assert "The shortest that breaks" not in alive and "<table" not in alive and alive.count('class="view"') == 9
    dead = copy.deepcopy(executed)
    del dead.metadata["widgets"]
    page = render([("views", dead)])
    assert "The shortest that breaks: 4 steps" in page and "both &lt;i&gt;count&lt;/i&gt;" in page
    assert ">unix_seqpacket</th>" in page and page.count("data:image/png") == 7


@in_browser
def test_every_view_is_saved_as_svg_with_its_words_and_as_png(browser, executed, tmp_path):
    path = tmp_path / "views.html"
    path.write_text(render([("views", executed)]))
    expected = [
        ("facts", {"unix_seqpacket", "pipe(7)", "mechanism"}),
        ("ring", {"<b>one</b>", "write_position", "byte 0", "write_position (producer)"}),
        ("flow", {"notebook", "pipe"}),
        ("locks", {"fork <1>"}),
        ("sequence", {"notebook", "pipe"}),
        ("occupancy", {"pipe"}),
        ("latency", {"pipe"}),
    ]
    with opened(browser, path.as_uri(), accept_downloads=True) as page:
        until(page, lambda s: s.get("messages", 0) == 30, "drew", number=3)
        until(page, lambda s: s.get("messages", 0) == 30 and s["parts"][2]["series"], "drew", number=8)
        for name, some in expected:
            view = page.locator(f".labkit-{name}").first
            view.scroll_into_view_if_needed()
            with page.expect_download() as download:
                view.get_by_role("button", name="Save this picture as SVG").click()
            root = ElementTree.parse(download.value.path()).getroot()
            written = {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
            assert download.value.suggested_filename == f"{name}.svg" and some <= written, written
            with page.expect_download() as download:
                view.get_by_role("button", name="Save this picture as PNG").click()
            assert loud(Path(download.value.path()).read_bytes())
        assert page.complaints == []


CELL = """
from labkit import Trace, channel, watch
trace = Trace()
tx, rx = channel("pipe", trace=trace)
watch(trace)
for _ in range(30):
    tx.send(b"hello")
    rx.receive()
tx.close(), rx.close()
"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def loud(png: bytes) -> bool:
    """Whether there is something to see in a PNG."""
    from io import BytesIO

    from matplotlib.image import imread

    return float(np.std(imread(BytesIO(png)))) > 0.02


@pytest.mark.leaves("threads", reason="the loop of the browser's driver keeps a worker")
@in_browser
def test_jupyterlab_shows_the_view_while_it_is_alive_and_its_picture_another_day(browser, tmp_path: Path):
    new, path = nbformat.v4, tmp_path / "lab.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new.new_notebook(cells=[new.new_code_cell(CELL)], metadata={"kernelspec": kernel}), path)
    with jupyterlab(tmp_path) as address:
        with opened(browser, address("lab/tree/lab.ipynb"), offline=False) as page:
            page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
            page.get_by_text("| Idle").wait_for(timeout=60_000)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_text("Run All Cells", exact=True).first.click()
            until(page, lambda s: s["mode"] == "replay", "settled", seconds=60)
            picture = page.locator(".jp-OutputArea img")
            picture.wait_for(state="attached", timeout=60_000)
            assert not picture.is_visible() and page.locator(".labkit-flow").is_visible()
            page.keyboard.press("Escape")
            page.keyboard.press("Control+s")
            while "image/png" not in path.read_text():
                page.wait_for_timeout(200)
        outputs = json.loads(path.read_text())["cells"][0]["outputs"]
        (png,) = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        assert loud(base64.b64decode(png))

        shutil.copy(path, tmp_path / "another-day.ipynb")
        with opened(browser, address("lab/tree/another-day.ipynb") + "&reset", offline=False) as page:
            page.get_by_text("model not found").wait_for(timeout=60_000)
            page.locator(".jp-OutputArea img").wait_for()
            assert page.locator(".labkit-flow").count() == 0
