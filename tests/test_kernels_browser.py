"""%%kernel in a real JupyterLab: output comes under its cell while it runs, and two kernels run side by side."""

from pathlib import Path

import nbformat
import pytest
from browser import chromium, in_browser, jupyterlab, opened, state, until


@pytest.fixture(scope="module")
def browser():
    with chromium() as one:
        yield one


CELLS = [
    """%load_ext labkit
from labkit import Trace, channel, kernel, kernels, watch
trace = Trace()
tx, rx = channel("fifo", trace=trace)
watch(trace)""",
    """%%kernel bob rx &
for ball in rx:
    print("bob has", ball.decode(), flush=True)""",
    """%%kernel alice tx
import os, time
for n in range(100_000):
    tx.send(b"ball %d" % n)
    if n < 3:
        print("alice served", n, flush=True)
    time.sleep(0.05)
    if os.path.exists(STOP):
        break
tx.close()""",
    """await kernel("bob")
kernels()""",
]


@in_browser
def test_kernels_show_what_they_do_under_their_cells_while_they_run(browser, tmp_path: Path):
    new, stop = nbformat.v4, tmp_path / "stop"
    spec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new.new_code_cell(source.replace("STOP", repr(str(stop)))) for source in CELLS]
    nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": spec}), tmp_path / "kernels.ipynb")
    with (
        jupyterlab(tmp_path) as address,
        opened(
            browser, address("lab/tree/kernels.ipynb"), offline=False, viewport={"width": 1280, "height": 1500}
        ) as page,
    ):
        page.locator(".jp-Notebook .jp-CodeCell").nth(3).wait_for(timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).first.click()

        under = page.locator(".jp-Notebook .jp-CodeCell .jp-Cell-outputWrapper")
        under.nth(2).get_by_text("alice served 2").wait_for(timeout=90_000)
        under.nth(1).get_by_text("bob has ball 20").wait_for(timeout=60_000)  # after its cell has ended
        assert not stop.exists(), "the cell still runs"
        moving = until(page, lambda s: s["mode"] == "live" and s["dots"] > 0, "drew a dot live")
        assert {"bob", "alice"} <= {process["name"] for process in moving["processes"]}

        stop.touch()
        under.nth(3).get_by_text("idle").first.wait_for(timeout=60_000)
        until(page, lambda s: s["messages"] == s["channels"][0]["received"] > 20, "showed that all had arrived")
        assert state(page)["channels"][0]["sent"] == state(page)["messages"]
        assert page.complaints == []
