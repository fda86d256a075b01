"""A page in one piece: the files of its folder that it names become data: addresses, for a frame without any origin.

index.html  -->  <script src="data:text/javascript;base64,…">, and likewise style sheets, pictures and modules
app.js           with what they import or name in turn, from the page's folder and nowhere else
"""

from __future__ import annotations

import mimetypes
import re
from base64 import b64encode
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAMING = {
    "script": "src",
    "link": "href",
    "img": "src",
    "source": "src",
    "audio": "src",
    "video": "src",
    "input": "src",
}
"""Elements that name a file, and in which attribute."""


def inlined(html: str, folder: Path | None) -> str:
    """A page in which every file of its folder that it names is data, and that brings no policy and no base of its own.

    Files outside of the folder are left as names, which lead nowhere.
    """
    parser = _Inliner(html, folder)
    parser.feed(html)
    parser.close()
    return "".join(parser.parts) + html[parser.done :]


class _Inliner(HTMLParser):
    def __init__(self, html: str, folder: Path | None):
        super().__init__(convert_charrefs=True)
        self.html, self.folder = html, folder
        self.parts: list[str] = []
        self.done = 0
        lines = html.split("\n")
        self.starts = [0]
        for line in lines:
            self.starts.append(self.starts[-1] + len(line) + 1)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(reversed(attrs))
        policy = tag == "meta" and (given.get("http-equiv") or "").lower() == "content-security-policy"
        name = NAMING.get(tag, "")
        url, is_module = given.get(name) or "", given.get("type") == "module"
        data = as_data(url, self.folder, self.folder, is_module)
        if policy or tag == "base":
            text = ""
        elif data is not None:
            pairs = [(key, data if key == name else value) for key, value in attrs if key not in ("integrity", "nonce")]
            text = "".join(f" {k}" if v is None else f' {k}="{escape(v)}"' for k, v in pairs)
            text = f"<{tag}{text}>"
        else:
            return
        line, column = self.getpos()
        start = self.starts[line - 1] + column
        self.parts += [self.html[self.done : start], text]
        self.done = start + len(self.get_starttag_text() or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)


def as_data(url: str, base: Path | None, root: Path | None, is_module: bool = False, within: Any = ()) -> str | None:
    """A file that is named from `base` and lies in the folder `root`, as a data: address; None for any other."""
    parts = urlsplit(url)
    if base is None or root is None or parts.scheme or parts.netloc or not parts.path:
        return None
    path = (base / unquote(parts.path)).resolve()
    if not path.is_relative_to(root.resolve()) or path in within:
        return None
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    kind = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css"}.get(path.suffix)
    kind = kind or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if kind in ("text/javascript", "text/css"):

        def named(found: re.Match[str]) -> str:
            data = as_data(found[2], path.parent, root, is_module, (*within, path))
            return found[0] if data is None else f"{found[1]}{data}{found[3]}"

        text = raw.decode(errors="replace")
        if kind == "text/css":
            text = re.sub(r"""(url\(\s*["']?)([^"')]+)(["']?\s*\))""", named, text)
        else:
            if is_module:
                text = re.sub(r"""(\b(?:from|import)\s*\(?\s*["'])(\.{1,2}/[^"']+)(["'])""", named, text)
            text += f"\n//# sourceURL={path.name}"
        raw = text.encode()
    return f"data:{kind};base64,{b64encode(raw).decode()}"
