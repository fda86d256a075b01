"""What a live view costs while it streams: the kernel's processor and memory, the page's memory.

The kernel's share is measured in a real kernel that sends its batches to a client, with and without a view in turn.
Memory is measured with all batches that a page gets in an hour, made up and fed faster.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np

from labkit.bench import Row

SECONDS, RATE, PAIRS = 5, 2_000, 5
# Batches fed before the first look, when all that is bounded is full, and before the second: at 20 a second a page is
# fed for an hour, the kernel, which takes longer, for twenty minutes.
IN_PAGE, IN_KERNEL = (12_000, 72_000), (4_000, 24_000)
EACH = 20  # messages in a batch

CELL = """
import json, time
from labkit import Trace, channel, launch
from labkit.views.flow import Flow
from labkit.views.sequence import Sequence

def consumer(rx):
    return sum(1 for _ in rx)

def producer(tx, rate, seconds):
    begun = time.monotonic()
    for number in range(rate * seconds // 20):
        for _ in range(20):
            tx.send(b"measured while it is shown")
        time.sleep(max(0, begun + 20 * (number + 1) / rate - time.monotonic()))

def share(view, rate, seconds):
    sent = []
    class Counted(view or object):
        def send(self, content, buffers=None):
            sent.append(sum(map(len, buffers)))
            super().send(content, buffers)
    with Trace() as trace:
        tx, rx = channel("unix_seqpacket", trace=trace)
        shown = view and Counted(trace)
        jobs = launch(consumer, rx), launch(producer, tx, rate, seconds)
        time.sleep(0.5)
        cpu, wall, before = time.process_time(), time.monotonic(), len(sent)
        time.sleep(seconds - 1.5)
        used, passed, batches = time.process_time() - cpu, time.monotonic() - wall, len(sent) - before
        for job in jobs:
            job.wait()
        if view:
            shown.close()
    return used / passed, batches / passed, sum(sent[before:][:batches]) / passed

share(Flow, 2000, 3)
"""
MEASURE = "print(json.dumps([[share(None, {0}, {1}), share({2}, {0}, {1})] for _ in range({3})]))"

FEED = """async ([from, to, each]) => {
    if (!window.labkitFed) {
        const { modules } = JSON.parse(document.getElementById("labkit-views").textContent);
        const source = new Blob([Object.values(modules)[0]], { type: "text/javascript" });
        const { default: widget } = await import(URL.createObjectURL(source));
        const heard = {}, traits = { key: "fed" }, el = document.createElement("div");
        const model = { get: (key) => traits[key], on: (event, f) => (heard[event] ??= []).push(f), off() {} };
        const say = (event, ...news) => heard[event].forEach((f) => f(...news));
        document.querySelector("main").replaceChildren(el);
        await widget.initialize({ model });
        await widget.render({ model, el });
        const record = (recording) => (Object.assign(traits, { recording }), say("change:recording"));
        window.labkitFed = { el, tell: (...news) => say("msg:custom", ...news), record };
    }
    const { el, tell } = window.labkitFed, lines = 13;
    const channels = [{ number: 0, kind: "pipe", label: "pipe", capacity: 65536, unit: "bytes", overhead: 12 }];
    for (let n = from; n < to; n++) {
        const rows = new Float64Array(lines * each), now = (n + 1) * 50e6;
        for (let i = 0; i < each; i++) {
            const sent = n * 50e6 + (i * 50e6) / each;
            const row = [2 ** 37 + n * each + i, 0, 10, 11, 26, sent, sent + 2e3, sent - 1e3, sent + 2e4, 0, 7, 7, 7];
            row.forEach((value, line) => (rows[line * each + i] = value));
        }
        const total = (n + 1) * each;
        const sums = Float64Array.from([now, total, total, 0, 26 * total, 26 * total, 0, 0, 0, 0]);
        const processes = [10, 11].map((pid) => ({ pid, name: "process", ended: null, wall: "", seen: [0, now] }));
        const links = [[0, 10, 0], [0, 11, 1]];
        const known = { channels, processes, links, lost: 0, over: false, columns: 1, newest: now };
        const buffers = [rows, sums].map(({ buffer }) => new DataView(buffer));
        tell({ kind: "batch", ...known, every: [1], median: 2e4 }, buffers);
        if (n % 100 === 0) await new Promise(requestAnimationFrame);
    }
    await new Promise(requestAnimationFrame);
    return el.labkitView.state().messages;
}"""


def kernel_rows(folder: Path, progress: Callable[[], None]) -> list[Row]:
    """A kernel's processor time with a view less that without, while RATE messages a second are sent."""
    from labkit.report import run as execute

    views = ("Flow", "Sequence")
    codes = [CELL, *(MEASURE.format(RATE, SECONDS, view, PAIRS) for view in views)]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes])
    if failures := execute(folder / "streaming.ipynb", notebook):
        return [Row("live streaming", f"not measured: {failures[0]}", "<= 5 %", False)]
    rows = []
    for view, cell in zip(views, notebook.cells[1:3], strict=True):
        pairs = np.array(json.loads("".join(output["text"] for output in cell.outputs if "text" in output)))
        extra = statistics.median(pairs[:, 1, 0] - pairs[:, 0, 0])
        batches, kilobytes = np.median(pairs[:, 1, 1]), np.median(pairs[:, 1, 2]) / 1000
        measured = f"{100 * extra:.1f} % of a core, {batches:.0f} batches/s, {kilobytes:.0f} kB/s"
        what = f"live {view.lower()} view of {RATE:,} messages/s, the kernel"
        rows.append(Row(what, measured, "<= 5 %, <= 20 batches/s", bool(extra <= 0.05 and batches <= 21)))
        progress()
    return rows


def memory_row() -> Row:
    """What the kernel's memory grows by while a view is fed."""
    from labkit.bench.made_up import MadeUp
    from labkit.trace import Trace
    from labkit.views.flow import Flow

    class Mute(Flow):
        def send(self, *_: Any, **__: Any) -> None:
            pass

    pieces = np.array_split(MadeUp(EACH * 100, channels=2).events(), 100)
    with Trace() as trace:
        view = Mute(trace)
        sizes = []
        for begin, end in ((0, IN_KERNEL[0]), IN_KERNEL):
            for number in range(begin, end):
                events = pieces[number % 100].copy()
                events["time_ns"] += number // 100 * 10**9
                events["message"][events["message"] > 0] += np.uint64(number // 100 * EACH * 100)
                view._push(events)
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6)
        view.close()
    grown = sizes[1] - sizes[0]
    what = f"batches {IN_KERNEL[0]:,} to {IN_KERNEL[1]:,} of a live view, the kernel's memory"
    return Row(what, f"{grown:+.1f} MB of {sizes[0]:.0f} MB", "<= 2 MB", grown <= 2)


def feed(page: Any, begin: int, end: int, each: int = EACH) -> int:
    """Give the view of a page (the first module in it) made-up batches; how many messages it has then."""
    return int(page.evaluate(FEED, [begin, end, each]))


def page_to_feed(folder: Path, view: Any) -> str:
    """The address of a page with the module of a view in it."""
    from labkit.page import Page

    made = Page("fed")
    made.body.append(made.view("fed", {"_esm": str(view._esm), "key": "fed"}, []))
    path = folder / "fed.html"
    path.write_text(made.html(), encoding="utf-8")
    return path.as_uri()


def page_row(chromium: Any, folder: Path, view: Any) -> Row:
    """What the page's memory grows by while a view is fed."""
    name = view.__name__.lower()
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    page.goto(page_to_feed(folder, view))
    session, sizes = page.context.new_cdp_session(page), []
    for begin, end in ((0, IN_PAGE[0]), IN_PAGE):
        feed(page, begin, end)
        session.send("HeapProfiler.collectGarbage")
        usage = session.send("Runtime.getHeapUsage")
        sizes.append((usage["usedSize"] + usage.get("backingStorageSize", 0)) / 1e6)
    page.close()
    grown = sizes[1] - sizes[0]
    what = f"batches {IN_PAGE[0]:,} to {IN_PAGE[1]:,} of a live {name} view, the page's memory"
    return Row(what, f"{grown:+.1f} MB of {sizes[0]:.0f} MB", "<= 2 MB", grown <= 2)


def rows(chromium: Any, folder: Path, progress: Callable[[], None]) -> list[Row]:
    """All rows of this module."""
    from labkit.views.flow import Flow
    from labkit.views.sequence import Sequence

    found = kernel_rows(folder, progress)
    found.append(memory_row())
    progress()
    for view in (Flow, Sequence):
        found.append(page_row(chromium, folder, view))
        progress()
    return found
