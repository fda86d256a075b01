"""The transport in a notebook: a window is a widget in the cell's output, its renderer a sandboxed frame in it.

    kernel ── comm messages, frames in their buffers ── jupyter.js ── MessagePort ── jupyter-page.js in the frame

The frame is `sandbox="allow-scripts"` without allow-same-origin: its origin is "null", it reaches neither the notebook
nor the kernel nor storage, its Content-Security-Policy allows no network, and a page that navigates is ended. So
everything a page names, in the folder that it is in, is put into it as data: scripts, styles, pictures, fonts. Chromium
gives the frame a process of its own: a page that spins stops neither the notebook nor other windows.

What is *not* as in Electron: page and preload script share one realm. A page cannot see the preload script's variables,
nor `ipcRenderer`, but it can replace prototypes that they share (a method of Array.prototype), and so see what the
preload script passes through them after that. And `sendSync` is an error: nothing in a browser may wait for a kernel.
What no policy covers is WebRTC, which is taken away from the page; a frame that it makes inside of itself has it.

Comm messages reach the kernel's main thread only between cells, or in a cell that awaits. ipykernel 7.4 has subshells,
threads that take them at any time, and sends each message to the one that last wrote to the comm. We give the comms of
windows a subshell of their own (`_subshell_of_windows`), through parts of ipykernel that are private: every use is
guarded, the first message of a window tells whether it has worked (`answers_while_busy`), and where it has not the
window says that a cell must await. Sending from a page is bounded: 4096 messages or 64 MB that main has not read.

On a machine with two processors an invocation takes 5 ms, and 400 at once take 0.25 s; lab 18 measures yours.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import traitlets

from labkit.electron.inlined import inlined
from labkit.electron.loop import app, main_loop
from labkit.electron.recording import Recording
from labkit.electron.transport import Page, Transport
from labkit.stats import Picture
from labkit.views import pictures
from labkit.views.esm import module, script
from labkit.views.live import Live
from labkit.views.recording import NOTHING

HERE = Path(__file__).parent
MOST_FRAMES, MOST_BYTES = 256, 1 << 22  # in one message
SENT_A_SECOND = 20_000  # bytes of recordings, at most, on average
PAUSE = 0.004  # seconds between messages: Jupyter's server drops everything beyond 1000 a second
_process_ids = itertools.count((1 << 22) + 1)  # a browser tells nobody the pid of a frame; Linux's own end here
LINGER = 0.02  # seconds that "read so far" waits for something to travel with


class WindowWidget(Live):
    """What is seen of a window: its page, live or as it was recorded."""

    _esm = f"const PAGE_SCRIPT = {json.dumps(script('jupyter-page', HERE))};\n" + module("jupyter", HERE)
    title = traitlets.Unicode().tag(sync=True)
    width = traitlets.Int(640).tag(sync=True)
    height = traitlets.Int(320).tag(sync=True)
    closed = traitlets.Bool(False).tag(sync=True)
    live = traitlets.Bool(True).tag(sync=True)
    note = traitlets.Unicode().tag(sync=True)

    def __init__(self, kept: Recording, **options: Any):
        self._kept, self._next = kept, 0.0
        super().__init__(None, **options)
        kept.changed = self._heard_of

    def __repr__(self) -> str:
        return f"a window{self.title and f' called {self.title}'}"

    def _record(self) -> bytes:
        return self._kept.packed()

    def _heard_of(self) -> None:
        """When all is quiet the recording is sent, for a notebook that is saved; a large one rarely."""
        now = time.monotonic()
        if now >= self._next:
            pause = max(0.5, min(len(self.recording) / SENT_A_SECOND, 60))
            self._next = now + pause
            later = threading.Timer(pause, self._hear, [NOTHING])
            later.daemon = True
            later.start()

    def _push(self, events: Any) -> None:
        """A live page shows itself."""

    def picture(self) -> Picture | None:
        drawn = self._kept.drawn(pictures.MOST_ROWS)
        return drawn and pictures.window(*drawn)


class JupyterTransport(Transport):
    """A frame in the output of the cell that runs. See the module.

    Args:
        title: shown until the page has one.
        width, height: pixels of the page, at first.
    """

    max_bytes = 8 << 20  # a websocket of Jupyter's server takes 10 MB
    most_unread = 1 << 26

    def __init__(self, title: str = "", width: int = 640, height: int = 320):
        self._options = {"title": title, "width": width, "height": height}
        self.process_id = next(_process_ids)
        self.answers_while_busy: bool | None = None
        """Whether messages of the page come while a cell runs; None until the first has come."""
        self._view: str | None = None  # the key of the view that has the page
        self._changed = threading.Condition()
        self._out: deque[tuple[dict[str, Any], bytes | None]] = deque()
        self._unread: deque[int] = deque()  # sizes of the frames that the page has not read
        self._unread_bytes = self._posted_bytes = self._page_read = 0
        self._in: deque[bytes] = deque()
        self._reading = threading.Lock()
        self._accepted = self._told = 0
        self._resumed = self._closed = False
        self._kept = Recording(title)

    def open(self, on_message: Callable[[bytes], bool], on_closed: Callable[[str], None]) -> None:
        from IPython.core.getipython import get_ipython
        from IPython.display import display

        shell = get_ipython()
        if shell is None or getattr(shell, "kernel", None) is None:
            raise OSError('a window of this kind needs a notebook: take BrowserWindow(transport="node") elsewhere')
        self._on_message, self._on_closed = on_message, on_closed
        self._cell = getattr(shell.display_pub, "parent_header", {})
        self.widget = WindowWidget(self._kept, **self._options)
        _give_a_thread_of_its_own(self.widget.comm)
        self.widget.on_msg(self._heard)
        display(self.widget)
        threading.Thread(target=self._work, name="labkit-window", daemon=True).start()

    def load(self, page: Page) -> None:
        shown = as_shown(page, self.max_bytes)
        with self._changed:
            self._kept.loaded(shown)
            self._out.append(({"kind": "load", **shown}, None))
            self._changed.notify()

    def post(self, frame: bytes) -> None:
        with self._changed:
            if self._closed:
                return
            if self._posted_bytes + self._unread_bytes + len(frame) > self.most_unread:
                waiting = self._posted_bytes + self._unread_bytes
                raise BufferError(f"the window does not read: {waiting:,} bytes wait for it already")
            self._posted_bytes += len(frame)
            self._kept.note(frame, True)
            self._out.append(({"kind": "frames"}, frame))
            self._changed.notify()

    def resume(self) -> None:
        with self._changed:
            self._resumed = True
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    # The browser

    def _heard(self, _: Any, content: dict[str, Any], buffers: list[memoryview]) -> None:
        """A message of the browser, in the thread of the windows' subshell, or the main thread where there is none."""
        kind, view = content.get("kind"), content.get("view")
        if kind == "hello":
            self.answers_while_busy = threading.current_thread() is not threading.main_thread()
            _take_messages_beside_a_cell()
            why = "the notebook was opened anew, and a frame does not survive that"
            with self._changed:
                first, self._view = self._view is None, view
                if not first:
                    self._out.append(({"kind": "over", "why": why}, None))
                self._changed.notify()
            if not first:
                self._on_closed(why)
        elif view != self._view or self._closed:
            return
        elif kind == "frames":
            with self._changed:
                for frame in map(bytes, buffers):
                    self._in.append(frame)
                    self._kept.note(frame, False)
                for _ in range(min(content["read"] - self._page_read, len(self._unread))):
                    self._unread_bytes -= self._unread.popleft()
                self._page_read = content["read"]
            self._pass_on()
        elif kind == "act":
            self._kept.act(content["act"])
        elif kind == "close":  # somebody asks; a listener of "close" may be against it
            with _under(self._cell):
                if window := self._window():
                    main_loop.call(window.close)
        elif kind == "gone":
            self._gone(content["why"])

    def _pass_on(self) -> None:
        """Give main what has come, until it wants no more."""
        with self._reading, _under(self._cell):
            while self._in and not self._closed:
                more = self._on_message(self._in.popleft())
                self._accepted += 1
                if not more:
                    break
        with self._changed:
            self._changed.notify()

    def _window(self) -> Any:
        found = (window for window in list(app._windows.values()) if window.web_contents._transport is self)
        return next(found, None)

    def _gone(self, why: str) -> None:
        window = self._window() if why == "closed" else None
        if window is None:
            self._on_closed(why)
        else:
            main_loop.call(window.destroy)

    def _work(self) -> None:
        """The only thread that sends: batches, one after another."""
        while True:
            with self._changed:
                self._changed.wait_for(self._something_to_do)
                if self._closed:
                    break
                resumed, self._resumed = self._resumed, False
                if not self._out:
                    self._changed.wait_for(lambda: self._out or self._closed, LINGER)
                content, frames = self._batch()
            if resumed:
                self._pass_on()
            if content:
                self.widget.send(content, frames)
                time.sleep(PAUSE)
        self.widget.closed = True

    def _something_to_do(self) -> bool:
        sendable = self._view is not None and (bool(self._out) or self._accepted > self._told)
        return self._closed or self._resumed or sendable

    def _batch(self) -> tuple[dict[str, Any], list[bytes]]:
        """What to send next: a page, or frames and how many have been read; nothing before there is a view."""
        if self._view is None or not (self._out or self._accepted > self._told):
            return {}, []
        if self._out and self._out[0][1] is None:
            content, _ = self._out.popleft()
            note = "" if self.answers_while_busy else "this kernel answers between cells and in cells that await"
            return {**content, "view": self._view, "note": note}, []
        frames: list[bytes] = []
        size = 0
        while self._out and len(frames) < MOST_FRAMES:
            frame = self._out[0][1]
            if frame is None or (frames and size + len(frame) > MOST_BYTES):
                break
            self._out.popleft()
            frames.append(frame)
            size += len(frame)
        self._posted_bytes -= size
        self._unread_bytes += size
        self._unread.extend(len(frame) for frame in frames)
        self._told = self._accepted
        return {"kind": "frames", "view": self._view, "read": self._accepted}, frames


class Shown(Transport):
    """Another transport, whose window is shown in the notebook as it was recorded: its page and its messages.

    Args:
        inner: where the renderer runs.
        note: where that is, in words.
        title, width, height: as for JupyterTransport.
    """

    def __init__(self, inner: Transport, note: str, title: str = "", width: int = 640, height: int = 320):
        self._inner, self._kept = inner, Recording(title)
        self._options = {"title": title, "width": width, "height": height, "note": note, "live": False}
        self.supports_sync, self.max_bytes, self.most_unread = inner.supports_sync, inner.max_bytes, inner.most_unread

    def open(self, on_message: Callable[[bytes], bool], on_closed: Callable[[str], None]) -> None:
        from IPython.display import display

        def noted(frame: bytes) -> bool:
            self._kept.note(frame, False)
            return on_message(frame)

        self._inner.open(noted, on_closed)
        self.process_id = self._inner.process_id
        display(WindowWidget(self._kept, **self._options))

    def load(self, page: Page) -> None:
        self._kept.loaded(as_shown(page, self.max_bytes))
        self._inner.load(page)

    def post(self, frame: bytes) -> None:
        self._kept.note(frame, True)
        self._inner.post(frame)

    def resume(self) -> None:
        self._inner.resume()

    def close(self) -> None:
        self._inner.close()


# -------------------------------------------------------------------------------------------------------- the kernel


@contextlib.contextmanager
def _under(cell: Any) -> Iterator[None]:
    """What is shown and printed from here, and in the main loop what is called from here, is output of this cell.

    A message of a page is no cell: its output would go nowhere.
    """
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    there = sys.stdout, sys.stderr, shell and shell.display_pub
    places: list[Any] = [place for place in there if hasattr(place, "set_thread_parent")]
    tokens = [place.set_thread_parent(cell) for place in places] if cell else []
    try:
        yield
    finally:
        for place, token in zip(places, tokens, strict=False):
            place.reset_thread_parent(token)


_lock = threading.Lock()
_subshell: str | None = None
_held: tuple[str | None, Any] = None, None  # the subshell that seems to run a cell


def _give_a_thread_of_its_own(comm: Any) -> None:
    """Have messages of this comm handled by the windows' own subshell. Where ipykernel has none nothing changes."""
    route = getattr(comm, "_reply_subshell_for", None)
    if route is not None:
        comm._reply_subshell_for = lambda data, default: _subshell_of_windows() or default


def _subshell_of_windows() -> str | None:
    """The subshell in which windows hear their pages, made when the first message comes; None where none can be made.

    ipykernel asks in its shell channel thread, the only one that may make a subshell.
    """
    global _subshell
    from ipykernel.kernelbase import Kernel

    try:
        manager = Kernel.instance().shell_channel_thread.manager
        with _lock:
            if _subshell is None or _subshell not in manager.list_subshell():
                _subshell = manager._create_subshell()
            return _subshell
    except Exception:  # private parts of ipykernel that have changed: between cells, then
        return None


def _take_messages_beside_a_cell() -> None:
    """In the windows' subshell: have it seem to run a cell, for ever.

    Then ipykernel takes messages of comms beside it, and does not publish "busy" and "idle" round each. They cost more
    than two messages: Jupyter's websocket waits with what follows a small message until the browser's TCP has
    acknowledged that, 40 ms later (Nagle's algorithm and delayed acknowledgements).
    """
    global _held
    from ipykernel.kernelbase import Kernel

    with contextlib.suppress(Exception):  # private parts of ipykernel: as slow as any widget, then
        if _subshell is not None and _held[0] != _subshell:
            lock = Kernel.instance().shell_channel_thread.manager.get_subshell_asyncio_lock(_subshell)
            _held = _subshell, asyncio.get_running_loop().create_task(lock.acquire())


# -------------------------------------------------------------------------------------------------------- the page


def as_shown(page: Page, max_bytes: int) -> dict[str, Any]:
    """A page as jupyter.js puts it into a frame: its text with all files in it, and what jupyter-page.js is told."""
    preload, name = None, ""
    if page.preload is not None:
        name = Path(page.preload).name
        try:
            preload = Path(page.preload).read_text(encoding="utf-8")
        except OSError as reason:  # the page is shown all the same, as in Electron
            preload = f"throw new Error({json.dumps(str(reason))})"
    config = {
        "document": page.document,
        "preload": preload,
        "preloadName": name,
        "contextIsolation": page.context_isolation,
        "nodeIntegration": page.node_integration,
        "traced": page.traced,
        "maxBytes": max_bytes,
        "clock": str(time.monotonic_ns() - time.time_ns()),
        "versions": {"electron": "labkit"},
    }
    return {"config": config, "html": inlined(page.html, page.folder)}
