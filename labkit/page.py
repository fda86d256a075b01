"""The page of a report: HTML that fetches nothing, from executed notebooks and from views.

Stock nbconvert fetches require.js, MathJax and the widget manager from the network. Here the views' ES modules are
inlined once, each view's state beside them, and page.js, a stand-in, plays the widget model. A Content-Security-Policy
in the page forbids the network, so that "works offline" cannot rot.
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
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


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
        return {
            key: item if key in ("image/png", "image/jpeg", "_esm") else _scrubbed(item) for key, item in value.items()
        }
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
    places = {f"{name}.ipynb": f"#n{number}" for number, (name, _) in enumerate(notebooks, start=1)}
    for number, (name, notebook) in enumerate(notebooks, start=1):
        prefix = f"n{number}"
        before = len(page.contents)
        inner = NotebookRenderer(page, notebook, prefix).html()
        if not any(level == 1 for level, *_ in page.contents[before:]):
            page.contents.insert(before, (1, prefix, name))
            inner = f"<h1>{html.escape(name)}</h1>{inner}"
        # From one lab to another: within this page, where that one is in it.
        inner = re.sub(r'<a href="([^"#]+[.]ipynb)"', lambda link: f'<a href="{places.get(link[1], link[1])}"', inner)
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
        script = f'<script type="application/json" id="labkit-views">{data}</script>'
        script += f'<script type="module">{_beside("page.js")}</script>'
        return PAGE.format(
            policy=CONTENT_POLICY,
            title=html.escape(self.title),
            css=_beside("page.css")
            + colours("default")
            + "@media (prefers-color-scheme: dark) {"
            + colours("github-dark")
            + "}",
            wide=" with-contents" if contents else "",
            contents=contents,
            body="\n".join(self.body),
            script=script if self.views["views"] else "",
        )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


class NotebookRenderer:
    """Turns the cells of one executed notebook into HTML."""

    def __init__(self, page: Page, notebook: Any, prefix: str):
        self.page, self.notebook, self.prefix = page, notebook, prefix
        self.models = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
        self.markdown = _markdown(page, prefix)

    def html(self) -> str:
        return "\n".join(
            self.cell(cell) for cell in self.notebook.cells if str(cell.source).strip() or cell.get("outputs")
        )

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
            return f'<img alt="" src="data:image/svg+xml;base64,{in_base64(_text(data["image/svg+xml"]).encode())}">'
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


def in_base64(raw: bytes) -> str:
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
    picture = f"data:image/svg+xml;base64,{in_base64(out.getvalue())}"
    return (
        f'<img class="math" alt="{html.escape(tex, quote=True)}" style="vertical-align:-{depth:.1f}pt" src="{picture}">'
    )


# ------------------------------------------------------------------------------------------------- the machine


def machine_facts() -> str:
    """The machine in one table, so that two people can compare their figures. It names no host and no user."""
    facts = {
        "processor": _processor(),
        "Linux": platform.release(),
        "Python": platform.python_version(),
        "labkit": sys.modules["labkit"].__version__,  # not imported: it is the floor above
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


# ------------------------------------------------------------------------------------------------- the page


CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; media-src data:"
)

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
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
