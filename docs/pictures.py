"""Makes the pictures of the README: `make pictures`. Real processes, real messages, a real Chromium."""

import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from labkit import Trace, channel, launch, report
from labkit.doctor import find_browser
from labkit.report import BROWSER_FLAGS

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


def main() -> int:
    browser = find_browser()
    if browser is None:
        print("pictures are taken with Chromium: install the package chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page_path = report(record(), Path(folder, "run.html"))
        chromium = playwright.chromium.launch(executable_path=browser, args=BROWSER_FLAGS)
        page = chromium.new_page(viewport={"width": 1100, "height": 900}, device_scale_factor=1.5)
        page.goto(page_path.as_uri())
        page.wait_for_timeout(2500)  # into the replay, so that messages are on their way
        page.locator(".view").first.screenshot(path=HERE / "flow.png")
        chromium.close()
    print(f"wrote {HERE / 'flow.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
