"""Reports: one self-contained HTML page of a trace or of notebooks, and its PDF. labkit.page makes the page."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.export import replace_file
from labkit.folders import own_folder
from labkit.page import Page, machine_facts, render

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
        TypeError: trace is no Trace.
    """
    from labkit.trace import must_be_a_trace

    must_be_a_trace(trace)
    page = Page("What the trace recorded", trace.machine)
    page.body.append("<h1>What the trace recorded</h1>")
    page.body.append(machine_facts(page.machine))
    if trace.channels or not trace.traced_locks:
        from labkit.views import flow, recording

        page.body.append(_view(page, "trace", flow.Flow, recording.record(trace)))
        page.body.append(f'<h2>Channels</h2><div class="rich">{trace.compare()._repr_html_()}</div>')
    if trace.traced_locks:
        from labkit.views import locks

        page.body.append(_view(page, "locks", locks.LocksView, locks.record(trace)))
        page.body.append(f'<h2>Locks</h2><div class="rich">{trace.locks()._repr_html_()}</div>')
    return replace_file(path, page.html())


def _view(page: Page, key: str, view: Any, recording: bytes) -> str:
    return page.view(key, {"_esm": str(view._esm), "key": key}, [(["recording"], recording)])


def report_notebooks(
    paths: Sequence[str | Path],
    output: str | Path = "report.html",
    to: str = "html",
    timeout: float = CELL_SECONDS,
    browser: str | None = None,
    title: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    saved: bool = False,
) -> int:
    """Run notebooks from top to bottom, each in a kernel of its own, and write one page of all of them.

    Args:
        paths: the notebooks, in the order in which they appear.
        output: the file to write.
        to: "html" or "pdf".
        timeout: seconds that one cell may take.
        browser: the Chromium that prints the PDF; found by labkit.doctor.find_browser unless given.
        title: the page's title, the first notebook's heading unless given.
        parameters: values for names that the notebooks set in their cell with the tag "parameters".
        saved: take the notebooks as they were saved, with their outputs, and run nothing.

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
        if parameters:
            if saved:
                raise ValueError("parameters are for notebooks that are run, not for saved ones")
            set_parameters([notebook for _, notebook in notebooks], parameters)
        failures = _failures_of(notebooks) if saved else _run_all(notebooks, timeout)
        page = render([(path.stem, notebook) for path, notebook in notebooks], failures, title)
        write_page(page, output, printer)
    except (OSError, ValueError) as reason:
        print(f"labkit report: {_sentence(reason)}", file=sys.stderr)
        return 2
    for failure in failures:
        print(f"labkit report: {failure}", file=sys.stderr)
    return 1 if failures else 0


def report_comparison(
    one: str | Path,
    other: str | Path,
    output: str | Path = "report.html",
    to: str = "html",
    browser: str | None = None,
) -> int:
    """Write one page of two reports or saved traces side by side: machines, latency, throughput.

    Args:
        one: a report (.html) that labkit wrote, or a trace that was saved as CSV or Parquet.
        other: the same.
        output: the file to write.
        to: "html" or "pdf".
        browser: the Chromium that prints the PDF; found by labkit.doctor.find_browser unless given.

    Returns:
        0, or 2 when there is nothing to write; what was wrong then is one sentence on standard error.
    """
    from labkit.compare import compare, read_run

    output = Path(output)
    try:
        printer = _printer(to, browser)
        _must_be_writable(output)
        write_page(compare(read_run(Path(one)), read_run(Path(other))), output, printer)
    except (OSError, ValueError, ImportError) as reason:
        print(f"labkit report: {_sentence(reason)}", file=sys.stderr)
        return 2
    return 0


def write_page(page: str, output: Path, printer: str) -> None:
    """Write a page as it is, or as a PDF that this Chromium prints."""
    if printer:
        print_pdf(page, output, printer)
        for sample, package in missing_fonts(page):
            print(f"labkit report: no font of this machine has {sample}: install {package}", file=sys.stderr)
    else:
        replace_file(output, page)
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")


def print_pdf(page: str, output: Path, browser: str) -> Path:
    """Print a page with a Chromium. Raises OSError when it does not write a PDF."""
    with own_folder("print") as folder:
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
        return replace_file(output, target.read_bytes())


def set_parameters(notebooks: Sequence[Any], values: Mapping[str, Any]) -> None:
    """Put a cell that sets values behind the cell with the tag "parameters", as papermill does.

    Raises:
        ValueError: no notebook has a parameter of that name.
    """
    import nbformat

    known: dict[str, Any] = {}
    for notebook in notebooks:
        for place, cell in enumerate(notebook.cells):
            if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
                names = [name for name in _assigned(cell.source) if name in values]
                known |= dict.fromkeys(_assigned(cell.source))
                if names:
                    lines = "\n".join(f"{name} = {values[name]!r}" for name in names)
                    made = nbformat.v4.new_code_cell(f"# Given on the command line\n{lines}")
                    made.metadata.tags = ["injected-parameters"]
                    notebook.cells.insert(place + 1, made)
                break
    if unknown := [name for name in values if name not in known]:
        there = f"there are: {', '.join(known)}" if known else 'none has a cell with the tag "parameters"'
        raise ValueError(f"no parameter called {', '.join(unknown)} in these notebooks; {there}")


def _assigned(source: str) -> list[str]:
    """The names that a cell sets, one a line; it may hold what only IPython understands."""
    return re.findall(r"^(\w+)\s*(?::[^=\n]+)?=(?!=)", source, re.MULTILINE)


def _failures_of(notebooks: list[tuple[Path, Any]]) -> list[str]:
    return [
        f"{path.name}: cell {number} failed with {error}"
        for path, notebook in notebooks
        for number, error in failed_cells(notebook)
    ]


def missing_fonts(page: str) -> list[tuple[str, str]]:
    """Letters of a page that this machine would print as empty boxes: a sample of them, and Debian's package."""
    missing = []
    for first, last, package in ((0x2E80, 0xFFDC, "fonts-noto-cjk"), (0x1F300, 0x1FAFF, "fonts-noto-color-emoji")):
        # Private use and halves of characters are nobody's letters.
        found = [c for c in sorted(set(page)) if first <= ord(c) <= last and not 0xD800 <= ord(c) < 0xF900]
        lister = shutil.which("fc-list")
        if found and lister:
            command = [lister, f":charset={ord(found[0]):x}", "family"]
            if not subprocess.run(command, capture_output=True, timeout=60, check=False).stdout.strip():
                missing.append(("".join(found[:3]), package))
    return missing


def _printer(to: str, browser: str | None) -> str:
    if to not in ("html", "pdf"):
        raise ValueError(f'a report is "html" or "pdf", not "{to}"')
    if to == "html":
        return ""
    from labkit.doctor import find_browser

    found = shutil.which(browser) if browser else find_browser()
    if not found:
        missing = f"there is no program {browser}" if browser else "none was found"
        raise OSError(
            f"a PDF is printed by Chromium, and {missing}: install it (Debian: apt-get install chromium), name one "
            "with --browser or LABKIT_BROWSER, or write HTML"
        )
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
    from nbclient.client import CellExecutionComplete, ensure_async
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    folder = ""
    places: dict[str, Any] = {}
    """The cells that have run, by what asked for it."""

    shown: dict[str, list[Any]] = {}  # outputs by their display_id

    class Client(NotebookClient):
        def create_kernel_manager(self) -> Any:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            # Unix sockets in a private folder: nobody else can connect. Without ip they lie in the current folder.
            self.km = AsyncKernelManager(config=self.config, transport="ipc", ip=f"{folder}/kernel")
            self.km._kernel_spec = KernelSpec(argv=argv, display_name="Python", language="python")
            return self.km

        async def _async_poll_output_msg(self, parent_msg_id: str, cell: Any, cell_index: int) -> None:
            """As nbclient's own, which drops what an earlier cell shows while another runs: threads, other kernels."""
            assert self.kc is not None
            places[parent_msg_id] = cell, cell_index
            while True:
                message = await ensure_async(self.kc.iopub_channel.get_msg(timeout=None))
                place = places.get(message["parent_header"].get("msg_id"))
                try:
                    if place:
                        self.process_message(message, *place)
                except CellExecutionComplete:
                    if place and place[0] is cell:
                        return

        def output(self, outs: Any, msg: Any, display_id: Any, cell_index: int) -> Any:
            made = super().output(outs, msg, display_id, cell_index)
            if made and display_id:
                shown.setdefault(display_id, []).append(made)
            return made

        def _update_display_id(self, display_id: str, msg: dict[str, Any]) -> None:
            """nbclient's own counts outputs, and those of a cell that has ended are fewer: streams were joined."""
            for made in shown.get(display_id, ()):
                made["data"], made["metadata"] = nbformat.from_dict(
                    [msg["content"]["data"], msg["content"]["metadata"]]
                )

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
        with own_folder("kernel") as folder:
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
    return trouble + _failures_of([(path, notebook)])


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
