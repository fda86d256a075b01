"""Reports: one self-contained HTML page of a trace or of notebooks, and its PDF.

Stock nbconvert fetches require.js, MathJax and the widget manager from the network; a page of ours fetches nothing. The
views' ES modules are inlined once, each view's state beside them, and a stand-in of thirty lines plays the widget model.
A Content-Security-Policy in the page forbids the network, so that "works offline" cannot rot.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.trace import Trace

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
CELL_SECONDS = 600
SETTLE = "import sys; 'labkit.views' in sys.modules and sys.modules['labkit.views'].settle()"
BROWSER_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage"
).split()


# ------------------------------------------------------------------------------------------------- what one calls


def report(trace: Trace, path: str | Path = "report.html") -> Path:
    """Write what a trace recorded as one HTML page that works offline: the flow view, latency, throughput, the machine.

    Args:
        trace: may still be recording; the page holds what is known now.
        path: where to write; an existing file is replaced.

    Raises:
        OSError: the file cannot be written.
    """
    from labkit.views.flow import Flow

    page = Page("What the trace recorded")
    channels = list(trace.channels)
    page.body.append("<h1>What the trace recorded</h1>")
    page.body.append(machine_facts())
    state = {"_esm": str(Flow._esm), "key": "trace"}
    page.body.append(page.view("trace", state, [{"path": ["recording"], "data": _base64(_recording(trace))}]))
    page.body.append(_figures(trace, channels))
    page.body.append("<h2>Channels</h2>" + _channel_table(trace, channels))
    return _write(Path(path), page.html())


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
    return 1 if failures else 0


def print_pdf(page: str, output: Path, browser: str) -> Path:
    """Print a page with a Chromium. Raises OSError when it does not write a PDF."""
    with tempfile.TemporaryDirectory(prefix="labkit-print-") as folder:
        source, target = Path(folder, "page.html"), Path(folder, "page.pdf")
        source.write_text(page, encoding="utf-8")
        command = [browser, *BROWSER_FLAGS, f"--user-data-dir={folder}/profile", "--virtual-time-budget=4000"]
        command += ["--no-pdf-header-footer", f"--print-to-pdf={target}", source.as_uri()]
        own = {name: folder for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
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
    if not os.access(output if output.exists() else folder, os.W_OK):
        raise OSError(f"{output}: cannot be written, no permission")


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
            task = progress.add_task(path.stem, total=len(notebook.cells))
            failures += run(path, notebook, timeout, lambda *_, task=task, **__: progress.advance(task))
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

    class Client(NotebookClient):
        def create_kernel_manager(self) -> Any:
            argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            self.km = AsyncKernelManager(config=self.config, transport="ipc")  # Unix sockets: nobody else can connect
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
        interrupt_on_timeout=False,
        resources={"metadata": {"path": str(path.resolve().parent)}},
        on_cell_complete=tick,
    )
    trouble = []
    try:
        client.execute()
    except DeadKernelError:
        trouble.append(f"{path.name}: its kernel died, so the rest of the notebook did not run")
    except CellTimeoutError:
        trouble.append(f"{path.name}: a cell took longer than {timeout:g} s, so the rest of the notebook did not run")
    except RuntimeError as reason:  # the kernel never came up
        trouble.append(f"{path.name}: its kernel did not start ({reason})")
    finally:
        notebook.cells.remove(last)
        client.set_widgets_metadata()
    return trouble + [f"{path.name}: cell {number} failed with {error}" for number, error in failed_cells(notebook)]


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


# ------------------------------------------------------------------------------------------------- secrets


def scrub(text: str) -> str:
    """Take out what a report must not tell: the home folder, connection files, tokens and the environment's secrets."""
    secret = re.compile("TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL", re.IGNORECASE)
    for name, value in os.environ.items():
        if secret.search(name) and len(value) >= 8:
            text = text.replace(value, "…")
    text = re.sub(r"[^\s'\"]*kernel-[0-9a-f-]{8,}\.json", "(connection file)", text)
    text = re.sub(r"(\btoken=)[0-9A-Za-z._~-]{8,}", r"\1…", text)
    for home in {str(Path.home()), os.environ.get("HOME", ""), os.path.realpath(Path.home())}:
        if len(home) > 1:
            text = re.sub(rf"(?<![\w.-]){re.escape(home)}(?![\w.-])", "~", text)
    return text


def _scrubbed(value: Any) -> Any:
    """A copy of an output or a state with all its text scrubbed. Pictures and buffers are data, not text."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key in ("image/png", "image/jpeg", "_esm") else _scrubbed(item) for key, item in value.items()}
    return value


# ------------------------------------------------------------------------------------------------- rendering


def render(notebooks: list[tuple[str, Any]], failures: Iterable[str] = (), title: str | None = None) -> str:
    """One page of executed notebooks, given as (name, notebook)."""
    page = Page(title or "")
    body = page.body
    body.append(machine_facts())
    failures = [html.escape(scrub(failure)) for failure in failures]
    if failures:
        body.append(f'<ul class="failures" role="alert">{"".join(f"<li>{f}</li>" for f in failures)}</ul>')
    for number, (name, notebook) in enumerate(notebooks, start=1):
        prefix = f"n{number}"
        before = len(page.contents)
        inner = NotebookRenderer(page, notebook, prefix).html()
        if not any(level == 1 for level, *_ in page.contents[before:]):
            page.contents.insert(before, (1, prefix, name))
            inner = f"<h1>{html.escape(name)}</h1>{inner}"
        body.append(f'<article id="{prefix}">{inner}</article>')
    page.title = page.title or (page.contents[0][2] if page.contents else "Report")
    return page.html()


class Page:
    """Collects a page: its body, its table of contents, and the views with the modules they need."""

    def __init__(self, title: str):
        self.title = title
        self.body: list[str] = []
        self.contents: list[tuple[int, str, str]] = []  # level, anchor, text
        self.views: dict[str, Any] = {"modules": {}, "models": {}, "views": []}

    def view(self, model: str, state: dict[str, Any], buffers: list[dict[str, Any]]) -> str:
        """The place of a view in the page; its module goes in once, its state once."""
        source = state["_esm"]
        module = hashlib.sha256(source.encode()).hexdigest()[:16]
        self.views["modules"][module] = source
        shown = {key: value for key, value in state.items() if not key.startswith("_")}
        self.views["models"].setdefault(model, {"state": shown, "buffers": buffers})
        place = f"view-{len(self.views['views']) + 1}"
        self.views["views"].append({"place": place, "module": module, "model": model})
        return f'<div class="view" id="{place}"></div>'

    def html(self) -> str:
        from pygments.formatters import HtmlFormatter

        def colours(style: str) -> str:
            return HtmlFormatter(style=style).get_style_defs(".highlight")

        data = json.dumps(self.views).replace("<", "\\u003c")
        entries = [
            f'<li class="l{level}"><a href="#{anchor}">{html.escape(text)}</a></li>'
            for level, anchor, text in self.contents
            if level <= 2
        ]
        contents = f'<nav aria-label="Contents"><ul>{"".join(entries)}</ul></nav>' if len(entries) > 1 else ""
        script = f'<script type="application/json" id="labkit-views">{data}</script><script type="module">{STAND_IN}</script>'
        return PAGE.format(
            title=html.escape(self.title),
            css=CSS + colours("default") + "@media (prefers-color-scheme: dark) {" + colours("github-dark") + "}",
            wide=" with-contents" if contents else "",
            contents=contents,
            body="\n".join(self.body),
            script=script if self.views["views"] else "",
        )


class NotebookRenderer:
    """Turns the cells of one executed notebook into HTML."""

    def __init__(self, page: Page, notebook: Any, prefix: str):
        self.page, self.notebook, self.prefix = page, notebook, prefix
        self.models = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
        self.markdown = _markdown(page, prefix)

    def html(self) -> str:
        return "\n".join(self.cell(cell) for cell in self.notebook.cells if str(cell.source).strip() or cell.get("outputs"))

    def cell(self, cell: Any) -> str:
        source = scrub(cell.source)
        if cell.cell_type == "markdown":
            return f'<div class="prose">{self.markdown(source, cell.get("attachments", {}))}</div>'
        if cell.cell_type != "code":
            return f"<pre>{html.escape(source)}</pre>"
        outputs = "".join(self.output(_scrubbed(output)) for output in cell.outputs)
        failed = any(output.output_type == "error" for output in cell.outputs)
        code = f"<details open><summary>code</summary>{_highlight(source)}</details>" if source.strip() else ""
        return f'<div class="cell{" failed" if failed else ""}">{code}<div class="outputs">{outputs}</div></div>'

    def output(self, output: Any) -> str:
        if output["output_type"] == "stream":
            return f'<pre class="{output["name"]}">{_ansi(output["text"])}</pre>'
        if output["output_type"] == "error":
            return f'<pre class="error">{_ansi(chr(10).join(output["traceback"]))}</pre>'
        return self.data(output["data"])

    def data(self, data: dict[str, Any]) -> str:
        """The richest form that works on paper and offline."""
        if WIDGET_VIEW in data:
            return self.widget(data)
        if "text/html" in data:
            return f'<div class="rich">{_text(data["text/html"])}</div>'
        if "image/svg+xml" in data:
            return f'<img alt="" src="data:image/svg+xml;base64,{_base64(_text(data["image/svg+xml"]).encode())}">'
        for kind in ("image/png", "image/jpeg"):
            if kind in data:
                return f'<img alt="" src="data:{kind};base64,{_text(data[kind]).strip()}">'
        for kind in ("text/markdown", "text/latex"):
            if kind in data:
                return f'<div class="prose">{self.markdown(_text(data[kind]), {})}</div>'
        return f"<pre>{_ansi(_text(data.get('text/plain', '')))}</pre>"

    def widget(self, data: dict[str, Any]) -> str:
        model = data[WIDGET_VIEW].get("model_id", "")
        found = self.models.get(model, {})
        state = found.get("state", {})
        if state.get("_anywidget_id", "").startswith("labkit."):
            buffers = [{"path": b["path"], "data": b["data"]} for b in found.get("buffers", [])]
            return self.page.view(f"{self.prefix}-{model}", _scrubbed(state), buffers)
        text = _text(data.get("text/plain", "a widget"))
        return f'<p class="note">This control needs a running kernel: <code>{html.escape(text)}</code></p>'


def _text(value: Any) -> str:
    return "".join(value) if isinstance(value, list) else str(value)


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _ansi(text: str) -> str:
    from nbconvert.filters.ansi import ansi2html

    return str(ansi2html(_text(text)))


def _highlight(source: str) -> str:
    from IPython.lib.lexers import IPython3Lexer
    from pygments import highlight
    from pygments.formatters import HtmlFormatter

    return str(highlight(source, IPython3Lexer(), HtmlFormatter()))


def _markdown(page: Page, prefix: str) -> Callable[[str, dict[str, Any]], str]:
    """Markdown as Jupyter reads it, with anchors for the contents and formulas as pictures."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def heading(self, text: str, level: int, **_: Any) -> str:
            plain = html.unescape(re.sub("<[^>]+>", "", text)).strip()
            anchor = f"{prefix}-{re.sub(r'[^a-z0-9]+', '-', plain.lower()).strip('-') or len(page.contents)}"
            if any(anchor == used for _, used, _ in page.contents):
                anchor += f"-{len(page.contents)}"
            page.contents.append((level, anchor, plain))
            return f'<h{level} id="{anchor}">{text}</h{level}>\n'

        def block_math(self, body: str) -> str:
            return f'<div class="formula">{formula(body, 13)}</div>'

        def inline_math(self, body: str) -> str:
            return formula(body, 11)

        def latex_environment(self, name: str, body: str) -> str:
            return self.block_math(body.replace("&", ""))

    def convert(source: str, attachments: dict[str, Any]) -> str:
        with suppress(Exception):  # a missing picture must not cost the reader the text
            return str(MarkdownWithMath(renderer=Renderer(escape=False, attachments=attachments)).render(source))
        return f"<pre>{html.escape(source)}</pre>"

    return convert


def formula(tex: str, size: float) -> str:
    """A formula as an inline SVG set by matplotlib, or as its source where matplotlib does not know a command."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import math_to_image

    out = io.BytesIO()
    try:
        text = " ".join(tex.split())
        depth = math_to_image(f"${text}$", out, prop=FontProperties(size=size, family="serif"), dpi=72, format="svg")
    except (ValueError, RuntimeError):
        return f"<code>{html.escape(tex)}</code>"
    picture = f"data:image/svg+xml;base64,{_base64(out.getvalue())}"
    return f'<img class="math" alt="{html.escape(tex, quote=True)}" style="vertical-align:-{depth:.1f}pt" src="{picture}">'


# ------------------------------------------------------------------------------------------------- facts and figures


def machine_facts() -> str:
    """The machine in one table, so that two people can compare their figures. It names no host and no user."""
    from labkit import __version__

    facts = {
        "processor": _processor(),
        "Linux": platform.release(),
        "Python": platform.python_version(),
        "labkit": __version__,
        "written": time.strftime("%Y-%m-%d %H:%M %Z"),
    }
    cells = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{cells}</dl>'


def _processor() -> str:
    cores = len(os.sched_getaffinity(0))
    with suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if found:
            return f"{found[1]}, {cores} cores"
    return f"{platform.machine()}, {cores} cores"


def _recording(trace: Trace) -> bytes:
    from labkit.views.recording import record

    return record(trace)


def _figures(trace: Trace, channels: list[Any]) -> str:
    from labkit.stats import plot_latencies, plot_throughputs

    pictures = [
        ("Latency", "How long messages took, from the call of send to the return of receive.", plot_latencies, "latency"),
        ("Throughput", "From a channel's first send to its last receive.", plot_throughputs, "throughput"),
    ]
    parts = []
    for title, words, plot, method in pictures:
        values = [getattr(trace, method)(channel.number) for channel in channels]
        if values:
            svg = plot(values)._repr_svg_()
            picture = f"data:image/svg+xml;base64,{_base64(svg.encode())}"
            parts.append(f'<h2>{title}</h2><p>{words}</p><img alt="{title} of each channel" src="{picture}">')
    return "".join(parts)


def _channel_table(trace: Trace, channels: list[Any]) -> str:
    from labkit.stats import amount, duration

    head = "<tr><th>channel<th>mechanism<th>sent<th>received<th>dropped<th>p50<th>p90<th>p99<th>longest<th>messages/s</tr>"
    found, rows = trace.messages(), []
    for channel in channels:
        own = found[found["channel"] == channel.number]
        latency, through = trace.latency(channel.number), trace.throughput(channel.number)
        counts = (~own["dropped"] & (own["send_begins"] > 0), own["receive_ends"] > 0, own["dropped"])
        numbers = [f"{int(count.sum()):,}" for count in counts]
        times = [duration(t) if latency.n else "–" for t in (latency.p50, latency.p90, latency.p99, latency.longest)]
        cells = [html.escape(channel.label), channel.kind, *numbers, *times, amount(through.messages_per_second)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="rich"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


# ------------------------------------------------------------------------------------------------- the page

STAND_IN = """
const { modules, models, views } = JSON.parse(document.getElementById("labkit-views").textContent);
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
/** What a widget's JavaScript needs of a model when there is no kernel: state, and nothing ever changes from outside. */
class Model {
  constructor({ state, buffers }) {
    this.state = state;
    this.listeners = {};
    for (const { path, data } of buffers) {
      const last = path.pop();
      path.reduce((object, key) => object[key], state)[last] = bytes(data);
    }
  }
  get(key) { return this.state[key]; }
  set(key, value) {
    this.state[key] = value;
    for (const listener of this.listeners[`change:${key}`] ?? []) listener();
  }
  on(event, listener) { (this.listeners[event] ??= new Set()).add(listener); }
  off(event, listener) { this.listeners[event]?.delete(listener); }
  save_changes() {}
  send() {}
}
const load = (source) => import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
const loaded = Object.fromEntries(Object.entries(modules).map(([name, source]) => [name, load(source)]));
const standing = {};
for (const { place, module, model } of views) {
  const widget = (await loaded[module]).default;
  if (!standing[model]) {
    standing[model] = new Model(models[model]);
    await widget.initialize?.({ model: standing[model] });
  }
  await widget.render({ model: standing[model], el: document.getElementById(place) });
}
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data: blob:; font-src data:; media-src data:">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
{contents}
<main class="page{wide}">
{body}
</main>
{script}
</body>
</html>
"""

CSS = """
:root { color-scheme: light dark; --text: #1f242b; --weak: #5b6470; --line: #dfe3e8; --ground: #fff; --code: #f6f7f9; --link: #0067a3; --bad: #a3263a; --badground: #fdf1f2; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ee; --weak: #a3adba; --line: #323a45; --ground: #14171c; --code: #1c2129; --link: #6fbdf0; --bad: #ff8d9c; --badground: #2b1a1e; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; color: var(--text); background: var(--ground); font: 16px/1.6 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "Noto Color Emoji", sans-serif; }
.page { max-width: 980px; margin: 0 auto; padding: 28px 24px 80px; min-width: 0; }
a { color: var(--link); }
h1 { font-size: 2rem; line-height: 1.2; margin: 1.6em 0 .6em; } article:first-of-type h1:first-child, .page > h1:first-child { margin-top: .3em; }
h2 { font-size: 1.4rem; line-height: 1.3; margin: 2em 0 .5em; padding-top: .6em; border-top: 1px solid var(--line); } h3 { font-size: 1.12rem; margin: 1.6em 0 .4em; }
.prose { max-width: 760px; } .prose > :first-child { margin-top: .5em; }
code, pre { font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Noto Sans Mono CJK SC", monospace; }
:not(pre) > code { background: var(--code); padding: .1em .3em; border-radius: 4px; }
pre { margin: 0; padding: 10px 14px; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
.cell { margin: 14px 0 18px; } .cell .highlight, .prose pre { background: var(--code); border-radius: 8px; }
.cell.failed { border-left: 4px solid var(--bad); padding-left: 10px; }
details > summary { color: var(--weak); font-size: 12px; cursor: pointer; list-style: none; } details > summary::before { content: "▸ "; } details[open] > summary::before { content: "▾ "; }
.outputs > * { margin-top: 8px; } .stderr { background: var(--badground); border-radius: 8px; } .error { background: var(--badground); border-radius: 8px; }
img { max-width: 100%; height: auto; } .outputs > img, .page > img { background: #fff; border-radius: 8px; padding: 6px; display: block; }
.formula { text-align: center; margin: 1em 0; } @media (prefers-color-scheme: dark) { img.math { filter: invert(.9); } }
.rich { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; } th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { color: var(--weak); font-weight: 600; } .prose td, .prose th { text-align: left; white-space: normal; }
blockquote { margin: 1em 0; padding: 0 1em; border-left: 3px solid var(--line); color: var(--weak); }
.facts { display: flex; flex-wrap: wrap; gap: 4px 28px; margin: 0 0 22px; padding: 10px 0; border-bottom: 1px solid var(--line); font-size: 13px; } .facts dt { color: var(--weak); } .facts dd { margin: 0; }
.failures { background: var(--badground); color: var(--bad); border-radius: 8px; padding: 12px 12px 12px 32px; } .note { color: var(--weak); } .view { margin: 14px 0; }
nav { font-size: 14px; } nav ul { list-style: none; margin: 0; padding: 0; } nav a { display: block; padding: 3px 8px; color: var(--weak); text-decoration: none; border-radius: 5px; } nav a:hover { background: var(--code); color: var(--text); }
nav .l1 > a { font-weight: 600; color: var(--text); } nav .l2 > a { padding-left: 20px; }
@media screen and (min-width: 1180px) { body:has(nav) { display: grid; grid-template-columns: 250px minmax(0, 1fr); } nav { position: sticky; top: 0; height: 100vh; overflow: auto; padding: 28px 10px 28px 18px; border-right: 1px solid var(--line); } .page { width: 100%; } }
@media (max-width: 1179px) { nav { max-width: 980px; margin: 0 auto; padding: 20px 24px 0; } }
.ansi-black-fg { color: #3e424d; } .ansi-red-fg { color: #c0392b; } .ansi-green-fg { color: #128a4e; } .ansi-yellow-fg { color: #9a6b00; } .ansi-blue-fg { color: #2a6fc9; } .ansi-magenta-fg { color: #a14fb5; } .ansi-cyan-fg { color: #1b8296; } .ansi-white-fg { color: #8a919c; }
.ansi-red-intense-fg { color: #e0564a; } .ansi-green-intense-fg { color: #27a567; } .ansi-yellow-intense-fg { color: #b98a1a; } .ansi-blue-intense-fg { color: #4a8ee6; } .ansi-bold { font-weight: bold; } .ansi-underline { text-decoration: underline; }
@media (prefers-color-scheme: dark) { .ansi-black-fg { color: #8a919c; } .ansi-red-fg { color: #ff8d80; } .ansi-green-fg { color: #59d097; } .ansi-yellow-fg { color: #e3bd62; } .ansi-blue-fg { color: #84b8ff; } .ansi-magenta-fg { color: #dca0ea; } .ansi-cyan-fg { color: #6fd2e4; } }
@page { margin: 16mm 14mm; }
@media print { :root { color-scheme: light; } body { font-size: 11pt; display: block; } nav { break-after: page; } .page { padding: 0; max-width: none; } article { break-before: page; } article:first-of-type { break-before: auto; } pre { white-space: pre-wrap; }
  details > summary { display: none; } h1, h2, h3 { break-after: avoid; } .outputs img, tr, .view { break-inside: avoid; } a { color: inherit; text-decoration: none; } }
"""
