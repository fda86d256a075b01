"""The views elsewhere than in JupyterLab: in Notebook 7, in Voila, and by the rules of VS Code's notebooks."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from labkit.electron.node import find_node
from labkit.views import esm
from tests.browser import chromium, in_browser, jupyterlab, opened, state, until
from tests.roles import eventually

CELLS = (
    """
from labkit import Trace, channel, facts, launch, watch
trace = Trace()
tx, rx = channel("pipe", trace=trace)
watch(trace)
watch(trace, view="sequence")
""",
    """
def consumer(rx):
    return sum(1 for _ in rx)

def producer(tx):
    import time
    for number in range(200):
        tx.send(b"hello %d" % number)
        time.sleep(0.01)

jobs = launch(consumer, rx), launch(producer, tx)
print([job.wait() for job in jobs])
""",
    """
for view in ("occupancy", "latency", "dashboard"): watch(trace, view=view)
watch(facts())
""",
)
SHOWN = [None, "sequence", "occupancy", "latency", "dashboard"]  # flow does not say its name; facts are last


VIEWS = ("flow", "sequence", "occupancy", "latency", "dashboard", "locks", "facts", "ring", "explorer")


@pytest.mark.parametrize("name", VIEWS)
def test_a_module_is_one_that_vs_code_takes(name, tmp_path):
    """VS Code loads the text alone, from no folder: it imports nothing, and render is a property of its default."""
    text = esm.module(name)
    code = re.sub(r"//.*|/\*.*?\*/", "", text)
    assert not re.search(
        r"^\s*import\b|\bimport\s*\(|\bimport\.meta|\brequire\(|^export (?!default)", code, re.MULTILINE
    )
    (tmp_path / "view.mjs").write_text(text)
    look = "const { default: d, ...rest } = await import(process.argv[1]);"
    look += "console.log(typeof d.render, Object.keys(rest).length)"
    # Without a page: loading it touches no document.
    command = [find_node(), "--input-type=module", "-e", look, (tmp_path / "view.mjs").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr) == ("function 0", "")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def lab(tmp_path):
    """A notebook with all views of a trace."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(code.strip()) for code in CELLS]
    path = tmp_path / "lab.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def all_are_there(page) -> None:
    """Flow and sequence have heard of all messages, and the others show them too."""
    until(page, lambda s: s.get("mode") and s["messages"] == 200, "has all messages", seconds=120)
    for number, name in enumerate(SHOWN):
        until(page, lambda s, name=name: s.get("view") == name, "is there", number=number, seconds=60)
    for number in (1, 2, 4):
        until(page, lambda s: s["messages"] == 200, "has all messages", number=number)
    page.locator(".labkit-facts th", has_text="unix_seqpacket").wait_for(state="attached")
    before = state(page, 1)
    page.locator(".labkit-sequence").first.get_by_role("button", name="Zoom in").click()
    until(page, lambda s: s["to_ns"] - s["from_ns"] < before["to_ns"] - before["from_ns"], "zoomed", number=1)


@pytest.mark.skipif(not find_spec("notebook"), reason="NOT TESTED: pip install notebook")
@in_browser
def test_the_views_work_in_notebook_7(browser, lab: Path):
    with (
        jupyterlab(lab.parent, "--JupyterNotebookApp.expose_app_in_browser=True", app="notebook") as address,
        opened(browser, address("notebooks/lab.ipynb"), offline=False) as page,
    ):
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext", timeout=60_000)
        page.evaluate("""async () => {
            const { context, sessionContext } = jupyterapp.shell.currentWidget;
            await Promise.all([context.ready, sessionContext.ready]);
            jupyterapp.commands.execute("notebook:run-all-cells");
        }""")
        all_are_there(page)


@pytest.mark.skipif(not find_spec("voila"), reason="NOT TESTED: pip install voila")
@in_browser
def test_the_views_work_in_voila(browser, lab: Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="labkit-voila-") as home, tempfile.TemporaryFile() as log:
        own = {f"JUPYTER_{name}": home for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")} | {"TMPDIR": home}
        command = [sys.executable, "-m", "voila", "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1", str(lab)]
        environment = os.environ | own | {"IPYTHONDIR": home}
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            assert eventually(lambda: answers(f"http://127.0.0.1:{port}/voila/static/voila.js"), 60)
            with opened(browser, "about:blank", offline=False) as page:
                page.goto(
                    f"http://127.0.0.1:{port}/", wait_until="commit", timeout=120_000
                )  # it runs the notebook first
                all_are_there(page)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
