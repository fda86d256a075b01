"""Makes the pictures of the README: `make pictures`. Real processes, real messages, a real Chromium."""

import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from labkit import Trace, channel, launch, report
from labkit.doctor import find_browser
from labkit.page import Page
from labkit.report import BROWSER_FLAGS
from labkit.views import latency, recording
from labkit.views.latency import LatencyView
from labkit.views.occupancy import Occupancy
from labkit.views.sequence import Sequence

HERE = Path(__file__).parent
ROWS = (HERE.parent / "data" / "weather-jfk-2013.csv").read_bytes().splitlines()[1:]


def producer(tx, rows, start, pause):
    time.sleep(max(0.0, start - time.monotonic()))
    for row in rows:
        tx.send(row)
        time.sleep(pause)


def consumer(rx):
    return sum(1 for _ in rx)


def record() -> Trace:
    """The same records through all four mechanisms at the same time."""
    trace, jobs = Trace(), []
    start = time.monotonic() + 1.0
    for number, kind in enumerate(("pipe", "unix_seqpacket", "posix_mq", "shm_ring")):
        tx, rx = channel(kind, trace=trace)
        jobs += [launch(consumer, rx), launch(producer, tx, ROWS[:1000], start, 0.0002 * (number + 1))]
    for job in jobs:
        job.wait()
    return trace


def urgent_and_slow() -> Trace:
    """Messages with priorities, which overtake each other, for a reader that is too slow, beside one in time."""
    trace, start = Trace(), time.monotonic() + 2.0
    ends = [channel("posix_mq", trace=trace), channel("unix_seqpacket", trace=trace)]
    jobs = [launch(slow, ends[0][1], start, 0.006, name="slow reader")]
    jobs += [launch(slow, ends[1][1], start, 0.0, name="reader in time")]
    jobs += [launch(urgent, ends[0][0], start, name="hurried writer")]
    jobs += [launch(producer, ends[1][0], ROWS[:40], start, 0.005, name="steady writer")]
    for job in jobs:
        job.wait()
    return trace


def urgent(tx, start):
    time.sleep(max(0.0, start - time.monotonic()))
    for number in range(32):
        tx.send(ROWS[number], priority=int(number % 6 == 5))
        time.sleep(0.0015)


def slow(rx, start, pause):
    time.sleep(max(0.0, start - time.monotonic()))
    for _ in rx:
        time.sleep(pause)


def page_of(path: Path, view, packed: bytes) -> str:
    """A page with nothing but a view; its address."""
    page = Page(view.__name__)
    buffers = [(["recording"], packed)]
    page.body.append(page.view("view", {"_esm": str(view._esm), "key": "view"}, buffers))
    path.write_text(page.html(), encoding="utf-8")
    return path.as_uri()


def main() -> int:
    browser = find_browser()
    if browser is None:
        print("pictures are taken with Chromium: install the package chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        race, hurried = record(), urgent_and_slow()
        page_path = report(race, Path(folder, "run.html"))
        chromium = playwright.chromium.launch(executable_path=browser, args=BROWSER_FLAGS)
        page = chromium.new_page(viewport={"width": 1100, "height": 900}, device_scale_factor=1.5)
        page.goto(page_path.as_uri())
        page.wait_for_timeout(2500)  # into the replay, so that messages are on their way
        page.locator(".view").first.screenshot(path=HERE / "flow.png")
        packed = recording.record(hurried)
        for view, recorded in ((Sequence, packed), (Occupancy, packed), (LatencyView, latency.record([race]))):
            page.goto(page_of(Path(folder, "view.html"), view, recorded))
            page.wait_for_timeout(1000)
            name = view.__name__.removesuffix("View").lower()
            page.locator(".view").first.screenshot(path=HERE / f"{name}.png")
        chromium.close()
    print(f"wrote flow.png, sequence.png, occupancy.png and latency.png in {HERE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
