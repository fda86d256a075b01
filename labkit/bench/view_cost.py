"""How fast the views draw in headless Chromium: flow with 100,000 messages, the sequence chart with 1,000,000 events.

Frames are counted in the page from requestAnimationFrame times while the view plays or is panned; a headless Chromium
offers at most 60 a second. A view is open when it has drawn everything, counted from when the browser is sent there.
The messages are made up, because only their number matters here. What live views cost is measured in streaming.py.
Needs playwright and a Chromium.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from labkit.bench import Row, streaming
from labkit.bench.made_up import MadeUp

MESSAGES = 100_000
SECONDS = 5.0
COUNT_FRAMES = """(seconds) => new Promise((done) => {
    const times = [];
    const tick = (now) => {
        times.push(now);
        if (now - times[0] < seconds * 1000) requestAnimationFrame(tick);
        else done(times);
    };
    requestAnimationFrame(tick);
})"""
EVENTS = 1_000_000
PAN = """() => {
    const canvas = document.querySelector(".stage canvas");
    let frame = 0;
    const pan = () => {
        frame += 1;
        const deltaX = frame % 120 < 60 ? 25 : -25;
        canvas.dispatchEvent(new WheelEvent("wheel", { deltaX, bubbles: true, cancelable: true }));
        requestAnimationFrame(pan);
    };
    pan();
}"""


def run(progress: Callable[[], None]) -> list[Row]:
    """Median and slowest-percentile frames a second while the report of MESSAGES plays, and the report's size."""
    from playwright.sync_api import sync_playwright

    from labkit.doctor import find_browser
    from labkit.report import BROWSER_FLAGS, report

    browser = find_browser()
    if not browser:
        return [Row("the flow view", "not measured: install the package chromium", ">= 30 fps", False)]
    with tempfile.TemporaryDirectory(prefix="labkit-bench-") as folder, sync_playwright() as playwright:
        page_file = report(MadeUp(MESSAGES), Path(folder, "report.html"))  # type: ignore[arg-type]
        progress()
        chromium = playwright.chromium.launch(executable_path=browser, args=BROWSER_FLAGS[1:])
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.goto(page_file.as_uri())
        page.wait_for_function("document.querySelector('.view').labkitView?.state().animating")
        frames = np.diff(page.evaluate(COUNT_FRAMES, SECONDS))
        megabytes = page_file.stat().st_size / 1e6
        page.close()
        progress()
        opened, panned = _sequence(chromium, Path(folder, "sequence.html"))
        progress()
        streamed = streaming.rows(chromium, Path(folder), progress)
        chromium.close()
    fps, slowest = 1000 / float(np.median(frames)), 1000 / float(np.percentile(frames, 99))
    what = f"flow view of {MESSAGES:,} messages"
    return [
        Row(what, f"{fps:.0f} fps, {slowest:.0f} in the slowest hundredth", ">= 30 fps", fps >= 30),
        Row(f"{what}, exported report", f"{megabytes:.1f} MB", "<= 5 MB", megabytes <= 5),
        Row(f"sequence chart of {EVENTS:,} events, open", f"{opened:.2f} s", "<= 2 s", opened <= 2),
        *(
            Row(
                f"panned over {shown:,} messages",
                f"{fps:.0f} fps, {slowest:.0f} in the slowest hundredth",
                ">= 30 fps",
                fps >= 30,
            )
            for shown, fps, slowest in panned
        ),
        *streamed,
    ]


def _sequence(chromium: Any, path: Path) -> tuple[float, list[tuple[int, float, float]]]:
    """Seconds until the chart is drawn; and messages in the window, frames a second, those of the slowest hundredth."""
    from labkit.page import Page
    from labkit.views import recording
    from labkit.views.sequence import Sequence

    packed = recording.record(MadeUp(EVENTS // 4), limit=EVENTS)  # type: ignore[arg-type]
    page = Page("sequence")
    state = {"_esm": str(Sequence._esm), "key": "sequence"}
    page.body.append(page.view("sequence", state, [(["recording"], packed)]))
    path.write_text(page.html(), encoding="utf-8")
    shown = chromium.new_page(viewport={"width": 1280, "height": 900})
    shown.goto(path.as_uri(), wait_until="commit")
    drawn = f"document.querySelector('.view')?.labkitView?.state().shown === {EVENTS // 4} && performance.now()"
    look = f"const look = () => {{ const now = {drawn}; now ? done(now) : setTimeout(look, 20); }}; look();"
    opened = shown.evaluate(f"() => new Promise((done) => {{ {look} }})") / 1000
    panned = []
    shown.evaluate(PAN)
    for zooms in (1, 6, 6):
        for _ in range(zooms):
            shown.get_by_role("button", name="Zoom in").click()
        frames = np.diff(shown.evaluate(COUNT_FRAMES, SECONDS / 2))
        inside = shown.evaluate("document.querySelector('.view').labkitView.state().shown")
        panned.append((inside, 1000 / float(np.median(frames)), 1000 / float(np.percentile(frames, 99))))
    return opened, panned
