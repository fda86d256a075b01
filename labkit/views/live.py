"""What the views have in common: fed while something is recorded, sent whole when it is quiet."""

from __future__ import annotations

import base64
import contextlib
import queue
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

from labkit.stats import PIXELS, STANDS_IN, Picture

if TYPE_CHECKING:
    from labkit.trace import Trace

FIRST = 0.3  # seconds until the front end has loaded; batches before that would fall on deaf ears
IDLE = 0.7  # seconds without an event after which the whole recording is sent

live: weakref.WeakSet[Live] = weakref.WeakSet()
"""The views that are not closed."""


class Shown(anywidget.AnyWidget):
    """A view, and behind it what is seen where it is not alive: on GitHub, in mail, in a notebook of another day."""

    # While the view is alive, what stands in for it is not seen.
    _css = """
.jp-OutputArea-child:has([class^="labkit-"])
  + .jp-OutputArea-child:has(img.jp-needs-light-background, pre:empty, .labkit-stands-in) {
  display: none;
}"""

    _displayed = False

    def _ipython_display_(self) -> None:
        from IPython.display import display

        data, metadata = self._repr_mimebundle_() or ({}, {})
        display(data, metadata=metadata, raw=True)
        display(self.stands_in(), metadata={STANDS_IN: True}, raw=True, display_id=self._place)
        self._displayed = True

    @property
    def _place(self) -> str:
        return f"labkit-{self.model_id}"

    def stands_in(self) -> dict[str, str]:
        """A MIME bundle: what is seen instead of the view."""
        return {"text/plain": ""}

    def as_page(self, content: str) -> dict[str, str]:
        """HTML that stands in for the view, as a MIME bundle."""
        return {"text/html": f'<div class="labkit-stands-in">{content}</div>', "text/plain": repr(self)}


class Live(Shown):
    """Shows a trace while it is recorded, and afterwards. A view says how: `_begin`, `_push`, `_record`, `picture`.

    Without a trace the view itself tells what is new, by `_hear`.
    """

    key = traitlets.Unicode().tag(sync=True)
    recording = traitlets.Bytes().tag(sync=True)

    def __init__(self, trace: Trace | None, **options: Any):
        self._news: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self._working, self._made = threading.Lock(), time.monotonic()
        self._worker: threading.Thread | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        if trace is not None:
            self._trace = trace
            with trace._lock:  # nothing may slip through between the past and the news
                self._begin(trace.events())
                self._unsubscribe = trace.subscribe(self._hear)
        super().__init__(key=uuid.uuid4().hex, recording=self._record(), **options)
        live.add(self)

    def __repr__(self) -> str:
        return type(self).__name__ + (f" of {self._trace!r}" if hasattr(self, "_trace") else "")

    def picture(self) -> Picture | None:
        """What the view shows, drawn once and without JavaScript; None where there is no such drawing."""
        return None

    def _show_picture(self) -> None:
        """Put the picture, as things are now, into its place in the notebook."""
        from IPython.display import update_display

        picture = self.picture() if self._displayed else None
        if picture is None:
            return
        data = {"image/png": base64.b64encode(picture.png()).decode(), "text/plain": f"A picture of {self!r}"}
        width = int(picture.axes.figure.get_figwidth() * PIXELS)
        metadata = {STANDS_IN: True, "needs_background": "light", "image/png": {"width": width}}
        update_display(data, metadata=metadata, raw=True, display_id=self._place)

    def _begin(self, events: np.ndarray) -> None:
        """Take what was recorded before the view was made."""

    def _push(self, events: np.ndarray) -> None:
        """Send a batch of news."""
        raise NotImplementedError

    def _record(self) -> bytes:
        """Everything, as the drawing reads it."""
        raise NotImplementedError

    def settle(self) -> None:
        """Send the recording now, from this thread, also when the browser should have it already."""
        self.recording = self._record()
        self.send_state("recording")
        self._show_picture()

    def close(self) -> None:
        """Stop listening to the trace and remove the view from the page."""
        live.discard(self)
        if hasattr(self, "_unsubscribe"):
            self._unsubscribe()
            self._hear(None)
        super().close()

    def _over(self) -> bool:
        """Whether all processes of the trace have ended, beside the one that made it."""
        if not hasattr(self, "_trace"):
            return True
        return all(process.ended for pid, process in dict(self._trace.processes).items() if pid != self._trace.pid)

    def _hear(self, events: np.ndarray | None) -> None:
        """Take news, None at the end. A thread of our own sends it: no front end can hold up whoever tells it."""
        with self._working:
            self._news.put(events)
            if self._worker is None:
                wait = FIRST if time.monotonic() - self._made < FIRST else 0.0
                self._worker = threading.Thread(target=self._work, args=(wait,), name="labkit-view", daemon=True)
                self._worker.start()

    def _work(self, wait: float) -> None:
        """Send batches until nothing has come for a while, then the whole recording."""
        time.sleep(wait)
        while True:
            try:
                news = [self._news.get(timeout=IDLE)]
            except queue.Empty:
                with contextlib.suppress(Exception):
                    self.recording = self._record()
                    if self._over():  # not while somebody measures: drawing takes the interpreter for a while
                        self._show_picture()
                with self._working:
                    if self._news.empty():
                        self._worker = None
                        return
                continue
            with contextlib.suppress(queue.Empty):
                while True:
                    news.append(self._news.get_nowait())
            if any(part is None for part in news) or self.comm is None:
                self._unsubscribe()
                return
            with contextlib.suppress(Exception):  # a front end that went away never breaks the run
                self._push(np.concatenate([part for part in news if part is not None]))
