"""The page of a report: HTML that fetches nothing, from executed notebooks and from views.

Stock nbconvert fetches require.js, MathJax and the widget manager from the network. Here the views' ES modules are
inlined once, each view's state beside them, and page.js, a stand-in, plays the widget model. A Content-Security-Policy
in the page forbids the network, so that "works offline" cannot rot.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from labkit.machine import facts
from labkit.stats import STANDS_IN
from labkit.views.recording import without_secrets

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
REPORT_FORMAT = 1


# ------------------------------------------------------------------------------------------------- secrets


SECRET = re.compile("TOKEN|SECRET|PASSW|API_?KEY|CREDENTIAL|PRIVATE|COOKIE|AUTH", re.IGNORECASE)
"""Names of variables whose values are nobody's business."""
BEFORE, AFTER = r"(?:(?<![\w.-])|(?<=\x1b\[\dm)|(?<=\x1b\[\d\dm)|(?<=;\dm)|(?<=;\d\dm))", r"(?![\w.-])"
"""A path begins and ends here; IPython colours paths, and the code of a colour ends with a letter."""


def scrub(text: str) -> str:
    """Take out what a report must not tell: home folders, connection files, tokens and the environment's secrets."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "…")
    text = re.sub(r"[^\s'\"]*(?:kernel|jpserver|nbserver)-[0-9a-f-]+\.json", "(connection file)", text)
    text = re.sub(r"(\btoken=|\b(?:Bearer|token) +)[0-9A-Za-z._~+/-]{16,}=*", r"\1…", text)
    text = re.sub(r"(\btoken=)[0-9A-Za-z._~-]{8,}", r"\1…", text)
    for home in _homes():
        text = re.sub(f"{BEFORE}{re.escape(home)}{AFTER}", "~", text)
    return re.sub(rf"{BEFORE}/(?:home|Users)/[\w.-]+", "~", text)  # a notebook that somebody else has run


def _scrubbed(value: Any) -> Any:
    """A copy of an output or a state with all its text scrubbed. Pictures are data, not text."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list):
        return [_scrubbed(item) for item in value]
    if isinstance(value, dict):
        return {key: item if key in ("image/png", "image/jpeg") else _scrubbed(item) for key, item in value.items()}
    return value


def _tells() -> re.Pattern[bytes]:
    """Finds in the first bytes of a message what a report must not tell, also where only its beginning is there."""
    secrets = [value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 8]
    begin = [re.escape(hidden.encode()[:5]) for hidden in (*secrets, *_homes())]
    return re.compile(
        rb"token=|Bearer |token |/(?:home|Users)/|(?:kernel|jpserver|nbserver)-[0-9a-f]|" + b"|".join(begin)
    )


def _homes() -> set[str]:
    return {home for home in (str(Path.home()), os.environ.get("HOME", ""), os.path.realpath(Path.home())) if home[1:]}


def _opened(raw: bytes) -> tuple[Any, bytes, bool] | None:
    """A recording's JSON, the data behind it, and whether its length stands before it; None for anything else."""
    try:
        plain = gzip.decompress(raw)
        if plain[:1] in (b"{", b"["):
            return json.loads(plain), b"", False
        end = 8 + int.from_bytes(plain[:8], "little")
        return json.loads(plain[8:end]), plain[end:], True
    except (OSError, EOFError, zlib.error, ValueError):
        return None


def _scrubbed_recording(raw: bytes) -> bytes:
    """What a view draws, with the names in it scrubbed, and messages that begin with what a report must not tell."""
    found = _opened(raw)
    if found is None:
        return raw
    header, data, measured = found
    scrubbed, kept = _scrubbed(header), data
    if measured and header.get("contents"):
        kept = without_secrets(data, header["rows"], _tells())
    elif measured and header.get("text behind"):
        kept = _masked(data)
    if (scrubbed, kept) == (header, data):
        return raw
    text, data = json.dumps(scrubbed).encode(), kept
    if measured:
        text += b" " * (-len(text) % 8)
        text = len(text).to_bytes(8, "little") + text
    return gzip.compress(text + data, 6, mtime=0)


def _masked(data: bytes) -> bytes:
    """Text within binary data with the same taken out, and as long as before: what is around it counts bytes."""
    text = data.decode("latin-1")
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8:
            raw = value.encode(errors="surrogateescape").decode("latin-1")
            text = text.replace(raw, "*" * len(raw))
    for path in [re.escape(home) for home in _homes()] + [r"/(?:home|Users)/[\w.-]+"]:
        text = re.sub(rf"(?<![\w.-]){path}(?![\w.-])", lambda found: "~" + "_" * (len(found[0]) - 1), text)
    return text.encode("latin-1")


# ------------------------------------------------------------------------------------------------- rendering


def render(notebooks: list[tuple[str, Any]], failures: Iterable[str] = (), title: str | None = None) -> str:
    """One page of executed notebooks, given as (name, notebook)."""
    page = Page(title or "")
    body = page.body
    body.append(machine_facts(page.machine))
    failures = [html.escape(scrub(failure)) for failure in failures]
    if failures:
        body.append(f'<ul class="failures" role="alert">{"".join(f"<li>{f}</li>" for f in failures)}</ul>')
    page.places = {f"{name}.ipynb": f"#n{number}" for number, (name, _) in enumerate(notebooks, start=1)}
    for number, (name, notebook) in enumerate(notebooks, start=1):
        prefix = f"n{number}"
        before = len(page.contents)
        inner = NotebookRenderer(page, notebook, prefix, name).html()
        if not any(level == 1 for level, *_ in page.contents[before:]):
            page.contents.insert(before, (1, prefix, name))
            inner = f"<h1>{html.escape(name)}</h1>{inner}"
        body.append(f'<article id="{prefix}">{inner}</article>')
    page.title = page.title or (page.contents[0][2] if page.contents else "Report")
    return page.html()


class Page:
    """Collects a page: its body, its table of contents, and the views with the modules and data they need, once."""

    def __init__(self, title: str, machine: dict[str, str] | None = None):
        self.title = title
        self.machine = machine or facts()
        self.body: list[str] = []
        self.contents: list[tuple[int, str, str]] = []  # level, anchor, text
        self.places: dict[str, str] = {}  # notebooks that are in this page, and where
        self.views: dict[str, Any] = {"modules": {}, "models": {}, "data": {}, "views": []}
        self.runs: list[dict[str, Any]] = []

    def view(self, model: str, state: dict[str, Any], buffers: Iterable[tuple[list[str], bytes]], of: str = "") -> str:
        """The place of a view in the page. Several views of one recording share it; `of` names the notebook."""
        source = state["_esm"]
        module = _key(source.encode())
        self.views["modules"][module] = source
        if model not in self.views["models"]:
            shown = {key: _scrubbed(value) for key, value in state.items() if not key.startswith("_")}
            placed = [{"path": path, "data": self._data(raw, of)} for path, raw in buffers]
            self.views["models"][model] = {"state": shown, "buffers": placed}
        place = f"view-{len(self.views['views']) + 1}"
        self.views["views"].append({"place": place, "module": module, "model": model})
        return f'<div class="view" id="{place}"></div>'

    def _data(self, raw: bytes, of: str) -> str:
        raw = _scrubbed_recording(raw)
        key = _key(raw)
        if key not in self.views["data"]:
            self.views["data"][key] = in_base64(raw)
            if found := figures_of(raw):
                heading = self.contents[-1][2] if self.contents else ""
                self.runs.append({"notebook": of, "heading": heading, "channels": found})
        return key

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
        # What `labkit report --compare` reads.
        about = json.dumps({"format": REPORT_FORMAT, "title": self.title, "machine": self.machine, "runs": self.runs})
        about = about.replace("<", "\\u003c")
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
            about=about,
            script=script if self.views["views"] else "",
        )


def _key(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def figures_of(raw: bytes) -> list[dict[str, Any]]:
    """The figures of each channel in a view's recording (labkit.views.recording), or none."""
    found = _opened(raw)
    return list(found[0].get("figures", [])) if found and isinstance(found[0], dict) else []


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


class NotebookRenderer:
    """Turns the cells of one executed notebook into HTML."""

    def __init__(self, page: Page, notebook: Any, prefix: str, name: str):
        self.page, self.notebook, self.prefix, self.name = page, notebook, prefix, name
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
        outputs = "".join(self.outputs(cell.outputs))
        failed = any(output.output_type == "error" for output in cell.outputs)
        code = f"<details open><summary>code</summary>{_highlight(source)}</details>" if source.strip() else ""
        return f'<div class="cell{" failed" if failed else ""}">{code}<div class="outputs">{outputs}</div></div>'

    def outputs(self, outputs: Iterable[Any]) -> Iterator[str]:
        """What was printed bit by bit is one piece; the picture that stands in for a view gives way to it."""
        alive = False
        for (kind, name), group in itertools.groupby(outputs, lambda o: (o["output_type"], o.get("name"))):
            if kind == "stream":
                text = "".join(_text(output["text"]) for output in group)
                yield self.output({"output_type": kind, "name": name, "text": scrub(text)})
                continue
            these = list(group)
            for output, following in zip(these, [*these[1:], {}], strict=True):
                view = output.get("data", {}).get(WIDGET_VIEW)
                lost = view and view.get("model_id") not in self.models
                gives_way = alive and STANDS_IN in output.get("metadata", {})
                behind = following["data"] if STANDS_IN in following.get("metadata", {}) else {}
                if not (gives_way or (lost and ("image/png" in behind or "text/html" in behind))):
                    yield self.output(_scrubbed(output))
                alive = bool(view) and not lost

    def output(self, output: Any) -> str:
        if output["output_type"] == "stream":
            return f'<pre class="{output["name"]}">{_ansi(output["text"])}</pre>'
        if output["output_type"] == "error":
            return f'<pre class="error">{_ansi(chr(10).join(output["traceback"]))}</pre>'
        return self.data(output["data"])

    def data(self, data: dict[str, Any]) -> str:
        """The richest form that works on paper and offline."""
        if WIDGET_VIEW in data:
            shown = self.widget(data)
            if shown:
                return shown
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
        plain = _text(data.get("text/plain", ""))
        if WIDGET_VIEW in data:
            return f'<p class="note">This control needs a running kernel: <code>{html.escape(plain)}</code></p>'
        return f"<pre>{_ansi(plain)}</pre>" if plain else ""

    def widget(self, data: dict[str, Any]) -> str:
        """A view of labkit whose state was saved with the notebook; of everything else nothing."""
        model = data[WIDGET_VIEW].get("model_id", "")
        found = self.models.get(model, {})
        state = found.get("state", {})
        if not state.get("_anywidget_id", "").startswith("labkit."):
            return ""
        buffers = [(b["path"], base64.b64decode(b["data"])) for b in found.get("buffers", [])]
        return self.page.view(f"{self.prefix}-{model}", state, buffers, self.name)


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
            anchor = f"{prefix}-{_slug(plain) or len(page.contents)}"
            if any(anchor == used for _, used, _ in page.contents):
                anchor += f"-{len(page.contents)}"
            page.contents.append((level, anchor, plain))
            return f'<h{level} id="{anchor}">{text}</h{level}>\n'

        def link(self, text: str, url: str, title: str | None = None) -> str:
            """To a notebook of this page within it; to a file beside the notebook it would lead nowhere."""
            name, _, anchor = url.partition("#")
            if name in page.places:
                url = page.places[name]
            elif not name:
                url = f"#{prefix}-{_slug(anchor)}"
            elif "://" not in url and not url.startswith("mailto:"):
                return f'<span title="{html.escape(url, quote=True)}, beside the notebook">{text}</span>'
            return str(super().link(text, url, title))

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


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


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


def machine_facts(machine: dict[str, str]) -> str:
    """What labkit.machine.facts tells, in one line of a page, so that two people can compare their figures."""
    cells = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in machine.items())
    return f'<dl class="facts">{cells}</dl>'


# ------------------------------------------------------------------------------------------------- the page


# The frames of windows (labkit.electron) inherit it: their pages bring scripts and styles as data:, and evaluate.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob: data:; style-src 'unsafe-inline' data:; "
    "img-src data: blob:; font-src data:; media-src data: blob:"
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
<script type="application/json" id="labkit-report">{about}</script>
{script}
</body>
</html>
"""
