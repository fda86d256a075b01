"""The flow view: processes as nodes, channels as edges, one moving dot a message. The drawing is flow.js."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import uuid
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

from labkit.events import messages, of_channels
from labkit.views import recording

if TYPE_CHECKING:
    from labkit.trace import Trace

LIVE_ROWS = 250  # messages in a batch; 20 batches a second are plenty for 300 dots and far below Jupyter's limits
PENDING = 50_000  # events of messages that have not arrived yet
FIRST = 0.3  # seconds until the front end has loaded; batches before that would fall on deaf ears
IDLE = 0.7  # seconds without an event after which the whole recording is sent

live: weakref.WeakSet[Flow] = weakref.WeakSet()


class Flow(anywidget.AnyWidget):
    """Shows a trace while it is recorded, and replays it afterwards."""

    _esm = Path(__file__).with_name("flow.js")
    key = traitlets.Unicode().tag(sync=True)
    recording = traitlets.Bytes().tag(sync=True)

    def __init__(self, trace: Trace, **options: Any):
        self._trace, self._tally, self._pending = trace, recording.Tally(), recording.NOTHING
        self._news: queue.SimpleQueue[np.ndarray | None] = queue.SimpleQueue()
        self._working, self._made = threading.Lock(), time.monotonic()
        self._worker: threading.Thread | None = None
        with trace._lock:  # nothing may slip through between the past and the news
            self._tally.add(trace.events())
            self._unsubscribe = trace.subscribe(self._hear)
        super().__init__(key=uuid.uuid4().hex, recording=recording.record(trace, self._tally.epoch), **options)
        self._every = np.ones(0, int)
        self._median: float | None = None
        live.add(self)

    def settle(self) -> None:
        """Send the recording now, from this thread, also when the browser should have it already."""
        self.recording = recording.record(self._trace, self._tally.epoch)
        self.send_state("recording")

    def close(self) -> None:
        """Stop listening to the trace and remove the view from the page."""
        live.discard(self)
        if hasattr(self, "_unsubscribe"):
            self._unsubscribe()
            self._hear(None)
        super().close()

    def _hear(self, events: np.ndarray | None) -> None:
        """Take news from the collector. A thread of our own sends it: no front end can hold the collector up."""
        with self._working:
            self._news.put(events)
            if self._worker is None:
                wait = FIRST if time.monotonic() - self._made < FIRST else 0.0
                self._worker = threading.Thread(target=self._work, args=(wait,), name="labkit-flow", daemon=True)
                self._worker.start()

    def _work(self, wait: float) -> None:
        """Send batches until nothing has come for a while, then the whole recording."""
        time.sleep(wait)
        while True:
            try:
                news = [self._news.get(timeout=IDLE)]
            except queue.Empty:
                with contextlib.suppress(Exception):
                    self.recording = recording.record(self._trace, self._tally.epoch)
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

    def _push(self, events: np.ndarray) -> None:
        """Send one batch: exact totals of everything, and a sample of the messages that something happened to."""
        tally, events = self._tally, of_channels(events)
        tally.add(events)
        wanted = recording.sparsity(events, len(tally.channels), LIVE_ROWS)
        held = np.pad(self._every, (0, len(wanted) - len(self._every)), constant_values=1)
        self._every = np.where((wanted > held) | (wanted * 10 < held), wanted, held)
        events = recording.sample(events, self._every)
        both = np.concatenate([self._pending, events])
        both = both[np.argsort(both["time_ns"], kind="stable")]
        found = messages(both)
        done = found["dropped"] | ((found["receive_ends"] != 0) & (found["send_ends"] != 0))
        self._pending = recording.select(both, ~np.isin(both["message"], found["message"][done]))[-PENDING:]
        moved = found[np.isin(found["message"], events["message"])]
        median = recording.median_latency(moved)
        self._median = median if median is not None else self._median
        batch = recording.describe(self._trace, tally) | {"every": self._every.tolist(), "median": self._median}
        matrix = recording.rows(moved, tally.epoch or 0)
        self.send({"kind": "batch", **batch}, buffers=[matrix.tobytes(), tally.checkpoint().tobytes()])
