"""What a window shows and says, kept: a report or a saved notebook shows the page again, and a recording plays main.

A recording is gzip of: the length of what follows as eight bytes, JSON (title, size, page, frames), then the frames.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

from labkit.electron.clone import decode
from labkit.electron.frames import Kind, unpack

WORDS = {
    Kind.SEND: "send",
    Kind.SEND_SYNC: "sendSync",
    Kind.INVOKE: "invoke",
    Kind.POST: "postMessage",
    Kind.SEND_TO_PAGE: "send",
    Kind.POST_TO_PAGE: "postMessage",
    Kind.REPLY: "reply",
    Kind.FAILED: "reply: error",
    Kind.REPLY_SYNC: "reply",
    Kind.EVALUATE: "executeJavaScript",
}
NAMED = (Kind.SEND, Kind.SEND_SYNC, Kind.INVOKE, Kind.POST, Kind.SEND_TO_PAGE, Kind.POST_TO_PAGE)
MOST_FRAMES, MOST_BYTES = 5_000, 1 << 22


class Recording:
    """The page that a window has shown last, and its messages: the first of them, and how many more there were.

    `changed` is called after each change, from the thread that makes it.
    """

    def __init__(self, title: str):
        self.changed: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._title = title
        self._page: dict[str, Any] | None = None
        self._forget()

    def _forget(self) -> None:
        self._begun = time.monotonic_ns()
        self._frames: list[tuple[float, int, bytes]] = []  # milliseconds, 1 to the page or 0 from it
        self._acts: list[tuple[float, dict[str, Any]]] = []
        self._bytes = self._lost = 0

    def loaded(self, page: dict[str, Any]) -> None:
        """A page is shown, in place of the one before."""
        with self._lock:
            self._page = page
            self._forget()
        self.changed()

    def note(self, frame: bytes, to_page: bool) -> None:
        """A frame has crossed."""
        with self._lock:
            if len(self._frames) >= MOST_FRAMES or self._bytes + len(frame) > MOST_BYTES:
                self._lost += 1
                return
            self._bytes += len(frame)
            self._frames.append(((time.monotonic_ns() - self._begun) / 1e6, int(to_page), bytes(frame)))
        self.changed()

    def act(self, what: dict[str, Any]) -> None:
        """Somebody has clicked or typed in the page."""
        with self._lock:
            if len(self._acts) < MOST_FRAMES:
                self._acts.append(((time.monotonic_ns() - self._begun) / 1e6, what))

    def packed(self) -> bytes:
        """The recording as bytes; empty before a page was shown."""
        with self._lock:
            if self._page is None:
                return b""
            header = {
                "title": self._title,
                "page": self._page,
                "frames": [[round(at, 3), to_page, len(frame)] for at, to_page, frame in self._frames],
                "acts": [[round(at, 3), what] for at, what in self._acts],
                "lost": self._lost,
                "text behind": True,  # what is behind this JSON holds text: a report masks what it must not tell
            }
            data = b"".join(frame for _, _, frame in self._frames)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return gzip.compress(len(text).to_bytes(8, "little") + text + data, 6, mtime=0)

    def drawn(self, most: int) -> tuple[str, list[str], list[tuple[str, str, str, str]], int] | None:
        """What a picture shows: the title, the words of the page, its first messages and how many there were."""
        with self._lock:
            if self._page is None:
                return None
            words, frames, lost = _Words(), list(self._frames), self._lost
            words.feed(self._page["html"])
        seen = [(at, to_page, unpack(frame)) for at, to_page, frame in frames if frame[0] in WORDS]
        rows = [
            (f"{at:,.1f} ms", "main → page" if to_page else "page → main", WORDS[Kind(frame.kind)], _channel(frame))
            for at, to_page, frame in seen[:most]
        ]
        return words.title or self._title or "Window", words.lines, rows, len(seen) + lost


def _channel(frame: Any) -> str:
    try:
        return str(decode(frame.clone, ports=[None] * len(frame.ports))[0]) if frame.kind in NAMED else ""
    except (ValueError, TypeError, LookupError):
        return ""


class _Words(HTMLParser):
    """The title of a page, and its words as lines."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title, self._within = "", ""
        self.lines: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in ("script", "style", "title", "template"):
            self._within = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._within:
            self._within = ""

    def handle_data(self, data: str) -> None:
        text = " ".join(data.split())
        if self._within == "title":
            self.title += text
        elif text and not self._within:
            self.lines.append(text)
