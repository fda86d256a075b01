"""Help for tests that look at pages in a real Chromium, driven through Playwright, and at a real JupyterLab."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()


def in_browser(test: Any) -> Any:
    """Marks a test that uses the browser of its module."""
    reason = "the browser belongs to the whole module, and keeps spare processes and a connection until its end"
    return pytest.mark.browser(pytest.mark.leaves("processes", "descriptors", reason=reason)(test))


def find_or_skip() -> str:
    """The path of a Chromium; skips the test loudly, naming what to install, when there is none."""
    from labkit.doctor import find_browser

    pytest.importorskip("playwright.sync_api", reason="NOT TESTED: pip install playwright")
    path = find_browser()
    if not path:
        pytest.skip("NOT TESTED: no browser; install the Debian package chromium (apt-get install chromium)")
    return path


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium of Playwright, closed at the end together with all its processes."""
    path = find_or_skip()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, tempfile.TemporaryDirectory(prefix="labkit-chromium-") as home:
        own = dict.fromkeys(("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), home)
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, env=os.environ | own)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser: Any, url: str, offline: bool = True, clock: bool = False, **options: Any) -> Iterator[Any]:
    """A page in a context of its own; `page.complaints` collects console errors and, offline, requests to a network.

    With `clock` the page has one that `stop_time()` can stop.
    """
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
    context.set_default_timeout(60_000)
    if offline:
        context.set_offline(True)
    page = context.new_page()
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    if offline:
        page.on(
            "request", lambda r: page.complaints.append(r.url) if not re.match("file:|data:|blob:", r.url) else None
        )
    if clock:
        page.clock.install()
    try:
        page.goto(url)
        yield page
    finally:
        context.close()


def stop_time(page: Any) -> None:
    """From now on time passes in this page only when the test says page.clock.run_for(milliseconds)."""
    page.clock.pause_at(page.evaluate("Date.now()") + 3_600_000)


def state(page: Any, number: int = 0) -> dict[str, Any]:
    """What a flow view shows, read through its hook `element.labkitView.state()`."""
    return dict(
        page.evaluate(
            """(n) => {
        const found = [...document.querySelectorAll("*")].filter((e) => e.labkitView);
        return found[n]?.labkitView.state() ?? {};
    }""",
            number,
        )
    )


def until(page: Any, condition: Any, what: str, seconds: float = 60, number: int = 0) -> dict[str, Any]:
    """Wait until condition(state of the view) holds, and return that state."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        now = state(page, number)
        if now and condition(now):
            return now
        page.wait_for_timeout(50)
    raise AssertionError(f"the view never {what}; it shows {now}")


def picture(page: Any, number: int = 0) -> str:
    """The pixels of a flow view's canvas."""
    return str(page.locator(".labkit-flow .stage canvas").nth(number).evaluate("canvas => canvas.toDataURL()"))


def moves(page: Any, look: Callable[[Any], str], first: str = "", seconds: float = 60) -> bool:
    """Whether a page comes to look otherwise than now, or than it did first."""
    first, deadline = first or look(page), time.monotonic() + seconds
    while look(page) == first:
        if time.monotonic() > deadline:
            return False
        page.wait_for_timeout(50)
    return True


FRAMES = """() => new Promise((done) => {
    let left = 25;
    const next = () => (left-- ? requestAnimationFrame(next) : done());
    next();
})"""


def rests(page: Any, look: Callable[[Any], str], seconds: float = 60) -> bool:
    """Whether a page comes to look the same for a while: what was on its way may arrive first.

    The while is one of frames: in so many milliseconds a page that is busy may not have painted once.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        first = look(page)
        page.evaluate(FRAMES)
        if look(page) == first:
            return True
    return False


@contextlib.contextmanager
def jupyterlab(folder: Path, *options: str, app: str = "jupyterlab") -> Iterator[Callable[[str], str]]:
    """A JupyterLab, or a Notebook 7, that serves a folder, with its own settings; yields path -> address with token."""
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="labkit-jupyter-") as home, tempfile.TemporaryFile() as log:
        own = {f"JUPYTER_{name}": home for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
        own |= {"IPYTHONDIR": home, "JUPYTERLAB_SETTINGS_DIR": f"{home}/s", "JUPYTERLAB_WORKSPACES_DIR": f"{home}/w"}
        command = [sys.executable, "-m", app, "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
        command += ["--ServerApp.port=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
        command += ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        command += options
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | own, cwd=folder, start_new_session=True
        )
        try:
            address = _address(server, Path(home), log)
            yield lambda path: f"{address}{path}?token={token}"
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
            _all_gone(home)


class Notebook:
    """A notebook of its own in a JupyterLab, in which a test runs one cell after another."""

    def __init__(self, page: Any):
        self.page = page
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=60_000)
        page.get_by_text("| Idle").wait_for(timeout=60_000)

    def start(self, code: str) -> None:
        """Put a cell at the end and run it, without waiting for it."""
        self.page.evaluate(
            """async (source) => {
                const panel = jupyterapp.shell.currentWidget, notebook = panel.content;
                notebook.model.sharedModel.addCell({ cell_type: "code", source });
                notebook.activeCellIndex = notebook.widgets.length - 1;
                window.ran = jupyterapp.commands.execute("notebook:run-cell");
            }""",
            textwrap.dedent(code).strip(),
        )

    def run(self, code: str) -> str:
        """Run a cell to its end. Returns what it has printed, and the error that has ended it."""
        self.start(code)
        return self.end()

    def end(self) -> str:
        """Wait for the cell that runs. Returns what it has printed, and the error that has ended it."""
        return str(
            self.page.evaluate(
                """async () => {
                    await window.ran;
                    const outputs = jupyterapp.shell.currentWidget.content.activeCell.model.outputs.toJSON();
                    const text = (o) => o.text ?? (o.ename ? `${o.ename}: ${o.evalue}` : "");
                    return outputs.map((o) => [text(o)].flat().join("")).join("");
                }"""
            )
        )


@contextlib.contextmanager
def notebook(browser: Any, folder: Path, **options: Any) -> Iterator[Notebook]:
    """An empty notebook in a JupyterLab of its own."""
    import nbformat

    new = nbformat.v4
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new.new_notebook(cells=[new.new_code_cell("")], metadata={"kernelspec": kernel}), folder / "a.ipynb")
    with (
        jupyterlab(folder, "--LabApp.expose_app_in_browser=True") as address,
        opened(browser, address("lab/tree/a.ipynb"), offline=False, **options) as page,
    ):
        yield Notebook(page)


def _all_gone(home: str, seconds: float = 60) -> None:
    """Every process of a JupyterLab, kernels and their children too, carries its runtime folder in the environment."""
    deadline = time.monotonic() + seconds
    while True:
        left = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"JUPYTER_RUNTIME_DIR={home}".encode() in path.read_bytes():
                    left.append(path.parent.name)
        if not left:
            return
        assert time.monotonic() < deadline, f"JupyterLab left processes behind: {left}"
        time.sleep(0.1)


def _address(server: Any, home: Path, log: Any, seconds: float = 120) -> str:
    """The server writes its address into a file of its runtime folder when it is up."""
    import json

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.poll() is None:
        for path in home.glob("jpserver-*.json"):
            with contextlib.suppress(ValueError):
                return str(json.loads(path.read_text())["url"])
        time.sleep(0.1)
    log.seek(0)
    raise AssertionError(f"JupyterLab did not start:\n{log.read().decode()[-3000:]}")
