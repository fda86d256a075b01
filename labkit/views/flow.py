"""The flow view: processes as nodes, channels as edges, one moving dot a message. The drawing is flow.js."""

from __future__ import annotations

from typing import Any

import numpy as np

from labkit.events import messages, of_channels
from labkit.stats import Picture
from labkit.views import pictures, recording
from labkit.views.esm import module
from labkit.views.live import Live

LIVE_ROWS = 250  # messages in a batch; 20 batches a second are plenty for 300 dots and far below Jupyter's limits
PENDING = 50_000  # events of messages that have not arrived yet


class Flow(Live):
    """Shows the messages of a trace while it is recorded, and replays them afterwards."""

    _esm = module("flow")
    most = 100_000  # messages in a recording

    def _begin(self, events: np.ndarray) -> None:
        self._tally, self._pending = recording.Tally(), recording.NOTHING
        self._every = np.ones(0, int)
        self._median: float | None = None
        self._tally.add(events)

    def _record(self) -> bytes:
        return recording.record(self._trace, self._tally.epoch, self.most, self._more())

    def _more(self) -> dict[str, Any]:
        """What a view needs beyond the messages."""
        return {}

    def picture(self) -> Picture:
        return pictures.flow(self._trace)

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
        batch = recording.describe(self._trace, tally) | self._more()
        batch |= {"every": self._every.tolist(), "median": self._median}
        matrix = recording.rows(moved, tally.epoch or 0, self._trace.contents)
        self.send({"kind": "batch", **batch}, buffers=[matrix.tobytes(), tally.checkpoint().tobytes()])
