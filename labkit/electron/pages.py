"""Pages as renderers get them: what load_file and load_url read, and what is in it."""

from __future__ import annotations

import base64
import binascii
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())


class LoadError(Exception):
    """A page that cannot be loaded, as Electron words it: "ERR_FILE_NOT_FOUND (-6) loading 'file:///…'"."""

    def __init__(self, name: str, number: int, url: str):
        super().__init__(f"{name} ({number}) loading '{url[:2048]}'")
        self.name, self.number, self.url = name, number, url


def read(url: str) -> tuple[str, Path | None]:
    """The text of a page, and the folder that it is in; None for a data: page.

    Raises:
        LoadError: there is no such page, or it is neither a file: nor a data: page. There is no network.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise LoadError("ERR_INVALID_URL", -300, url) from None
    if parts.scheme == "file":
        path = Path(unquote(parts.path))
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            raise LoadError("ERR_FILE_NOT_FOUND", -6, url) from None
        except PermissionError:
            raise LoadError("ERR_ACCESS_DENIED", -10, url) from None
        except (OSError, ValueError):  # a zero byte is a ValueError
            raise LoadError("ERR_FAILED", -2, url) from None
        if path.suffix in (".js", ".mjs"):  # a script alone is a page, too: handy, and not Electron's
            kind = "module" if path.suffix == ".mjs" else "text/javascript"
            text = f'<script type="{kind}" src="{path.name}"></script>'
        return text, path.parent
    if url == "about:blank":
        return "", None
    if parts.scheme == "data":
        header, comma, body = url[len("data:") :].partition(",")
        if not comma:
            raise LoadError("ERR_INVALID_URL", -300, url)
        raw = unquote_to_bytes(body)
        if header.endswith(";base64"):
            try:
                raw = base64.b64decode(raw)
            except binascii.Error:
                raise LoadError("ERR_INVALID_URL", -300, url) from None
        if not header.startswith("text/html"):
            return "", None
        return raw.decode("utf-8", errors="replace"), None
    if parts.scheme in ("http", "https"):
        raise LoadError("ERR_BLOCKED_BY_CLIENT", -20, url)
    raise LoadError(*(("ERR_UNKNOWN_URL_SCHEME", -302) if parts.scheme else ("ERR_INVALID_URL", -300)), url)


def elements(html: str) -> list[dict[str, Any]]:
    """The elements of a page in their order, each with its tag, attributes, text, and the number of its parent (-1).

    For a renderer that has no parser of its own.
    """
    parser = _Parser()
    parser.feed(html)
    parser.close()
    return parser.found


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[dict[str, Any]] = []
        self.open: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in reversed(attrs)}
        parent = self.open[-1] if self.open else -1
        self.found.append({"tag": tag, "attributes": attributes, "text": "", "parent": parent})
        if tag not in VOID:
            self.open.append(len(self.found) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        for depth in reversed(range(len(self.open))):
            if self.found[self.open[depth]]["tag"] == tag:
                del self.open[depth:]
                return

    def handle_data(self, data: str) -> None:
        if self.open:
            self.found[self.open[-1]]["text"] += data
