"""Reports: one self-contained HTML page of a trace or of notebooks, and its PDF. labkit.page makes the page."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.page import Page, in_base64, machine_facts, render

if TYPE_CHECKING:
    from labkit.trace import Trace

CELL_SECONDS = 600
SETTLE = "import sys; 'labkit.views' in sys.modules and sys.modules['labkit.views'].settle()"
BROWSER_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()


# ------------------------------------------------------------------------------------------------- what one calls


def report(trace: Trace, path: str | Path = "report.html") -> Path:
    """Write what a trace recorded as one HTML page that works offline: the views, figures, the machine.

    Args:
        trace: may still be recording; the page holds what is known now.
        path: where to write; missing folders are made, an existing file is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    page = Page("What the trace recorded")
    page.body.append("<h1>What the trace recorded</h1>")
    page.body.append(machine_facts())
    if trace.channels or not trace.traced_locks:
        from labkit.views import flow, recording

        page.body.append(_view(page, "trace", flow.Flow, recording.record(trace)))
        page.body.append(f'<h2>Channels</h2><div class="rich">{trace.compare()._repr_html_()}</div>')
    if trace.traced_locks:
        from labkit.views import locks

        page.body.append(_view(page, "locks", locks.LocksView, locks.record(trace)))
        page.body.append(f'<h2>Locks</h2><div class="rich">{trace.locks()._repr_html_()}</div>')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _write(path, page.html())


def _view(page: Page, key: str, view: Any, recording: bytes) -> str:
    state = {"_esm": str(view._esm), "key": key}
    return page.view(key, state, [{"path": ["recording"], "data": in_base64(recording)}])


def report_notebooks(
    paths: Sequence[str | Path],
    output: str | Path = "report.html",
    to: str = "html",
    timeout: float = CELL_SECONDS,
    browser: str | None = None,
    title: str | None = None,
) -> int:
    """Run notebooks from top to bottom, each in a kernel of its own, and write one page of all of them.

    Args:
        paths: the notebooks, in the order in which they appear.
        output: the file to write.
        to: "html" or "pdf".
        timeout: seconds that one cell may take.
        browser: the Chromium that prints the PDF; found by labkit.doctor.find_browser unless given.
        title: the page's title, the first notebook's heading unless given.

    Returns:
        0, or 1 when a cell failed (the report is written all the same), or 2 when there is nothing to write; what was
        wrong then is one sentence on standard error.
    """
    output = Path(output)
    try:
        printer = _printer(to, browser)
        _must_be_writable(output)
        notebooks = [_read(Path(path)) for path in paths]
        if not notebooks:
            raise ValueError("no notebook given")
        failures = _run_all(notebooks, timeout)
        page = render([(path.stem, notebook) for path, notebook in notebooks], failures, title)
        if to == "pdf":
            print_pdf(page, output, printer)
        else:
            _write(output, page)
    except (OSError, ValueError) as reason:
        print(f"labkit report: {_sentence(reason)}", file=sys.stderr)
        return 2
    for failure in failures:
        print(f"labkit report: {failure}", file=sys.stderr)
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")
    return 1 if failures else 0


def print_pdf(page: str, output: Path, browser: str) -> Path:
    """Print a page with a Chromium. Raises OSError when it does not write a PDF."""
    with tempfile.TemporaryDirectory(prefix="labkit-print-") as folder:
        source, target = Path(folder, "page.html"), Path(folder, "page.pdf")
        source.write_text(page, encoding="utf-8")
        command = [browser, *BROWSER_FLAGS, f"--user-data-dir={folder}/profile", "--virtual-time-budget=4000"]
        command += ["--no-pdf-header-footer", f"--print-to-pdf={target}", source.as_uri()]
        own = dict.fromkeys(("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), folder)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | own)
        except subprocess.TimeoutExpired:
            raise OSError(f"{browser} did not finish printing within 120 seconds") from None
        if not target.exists():
            raise OSError(f"{browser} did not write a PDF: {done.stderr.strip()[-300:]}")
        return _write(output, target.read_bytes())


def _printer(to: str, browser: str | None) -> str:
    if to not in ("html", "pdf"):
        raise ValueError(f'a report is "html" or "pdf", not "{to}"')
    if to == "html":
        return ""
    from labkit.doctor import find_browser

    found = browser or find_browser()
    if not found:
        raise OSError("a PDF is printed by Chromium and none was found: install the package chromium, or write HTML")
    return found


def _sentence(reason: Exception) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        return f"{reason.filename}: {reason.strerror}" if reason.filename else reason.strerror
    return str(reason)


def _must_be_writable(output: Path) -> None:
    """Find out before the notebooks run for minutes."""
    folder = output.parent
    if output.is_dir():
        raise OSError(f"{output}: cannot be written, it is a folder")
    if not folder.is_dir():
        raise OSError(f"{output}: cannot be written, there is no folder {folder}")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as reason:
        raise OSError(f"{output}: cannot be written, {reason.strerror}") from None


def _write(path: Path, content: str | bytes) -> Path:
    """Replace the file as a whole: a reader never sees half a report."""
    raw = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(raw)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# ------------------------------------------------------------------------------------------------- running notebooks


def _read(path: Path) -> tuple[Path, Any]:
    import nbformat

    try:
        return path, nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such notebook") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder, not a notebook") from None
    except (nbformat.reader.NotJSONError, UnicodeDecodeError, AttributeError, KeyError, nbformat.ValidationError):
        raise ValueError(f"{path}: is not a Jupyter notebook") from None


def _run_all(notebooks: list[tuple[Path, Any]], timeout: float) -> list[str]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} cells"))
    failures = []
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        for path, notebook in notebooks:
            total = len(notebook.cells)
            task = progress.add_task(path.stem, total=total)

            def tick(cell: Any, cell_index: int, task: Any = task, total: int = total) -> None:
                progress.update(task, completed=min(cell_index + 1, total))

            failures += run(path, notebook, timeout, tick)
            progress.update(task, completed=total)
    return failures


def run(path: Path, notebook: Any, timeout: float = CELL_SECONDS, tick: Callable[..., None] | None = None) -> list[str]:
    """Execute a notebook in place, in its own folder, with the interpreter that runs this.

    Cells after a failing one run as well. Returns one sentence for each cell that failed and does not carry the tag
    raises-exception; views have put their whole recording into the notebook's widget state.
    """
    import nbformat
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    sockets = tempfile.TemporaryDirectory(prefix="labkit-kernel-")

    class Client(NotebookClient):
        def create_kernel_manager(self) -> Any:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            # Unix sockets in a private folder: nobody else can connect. Without ip they lie in the current folder.
            self.km = AsyncKernelManager(config=self.config, transport="ipc", ip=f"{sockets.name}/kernel")
            self.km._kernel_spec = KernelSpec(argv=argv, display_name="Python", language="python")
            return self.km

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    last = nbformat.v4.new_code_cell(SETTLE)
    notebook.cells.append(last)
    client = Client(
        notebook,
        timeout=timeout,
        allow_errors=True,
        store_widget_state=True,
        iopub_timeout=10,
        coalesce_streams=True,
        interrupt_on_timeout=False,
        resources={"metadata": {"path": str(path.resolve().parent)}},
        on_cell_complete=tick,
    )
    trouble = []
    try:
        with sockets:
            _complete(client.async_execute())
    except DeadKernelError:
        _mark_unfinished(notebook, "DeadKernelError", "its kernel died, so the rest of the notebook did not run")
    except CellTimeoutError:
        trouble.append(f"{path.name}: a cell took longer than {timeout:g} s, so the rest of the notebook did not run")
    except RuntimeError as reason:  # the kernel never came up
        trouble.append(f"{path.name}: its kernel did not start ({reason})")
    finally:
        notebook.cells.remove(last)
        client.set_widgets_metadata()
    return trouble + [f"{path.name}: cell {number} failed with {error}" for number, error in failed_cells(notebook)]


def _complete(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end on an event loop of its own, also where one is running already: in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _mark_unfinished(notebook: Any, name: str, words: str) -> None:
    """Give the cell that was running an error output of its own."""
    import nbformat

    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source != SETTLE]
    running = [cell for cell in code if "execution" in cell.metadata][-1:] or code[:1]
    for cell in running:
        cell.outputs.append(nbformat.v4.new_output("error", ename=name, evalue=words, traceback=[f"{name}: {words}"]))


def failed_cells(notebook: Any) -> list[tuple[int, str]]:
    """Number and error of each code cell (from 1) that raised and was not meant to."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        (number, f"{output.ename}: {_plain(output.evalue)[:200]}")
        for number, cell in enumerate(code, start=1)
        for output in cell.outputs
        if output.output_type == "error" and "raises-exception" not in cell.metadata.get("tags", [])
    ]


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
