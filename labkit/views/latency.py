"""How long messages took, of one trace or of several side by side: ECDF, log histogram and percentiles: latency.js."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.stats import Latency, Picture, plot_latencies
from labkit.views.esm import module
from labkit.views.live import Live

if TYPE_CHECKING:
    from labkit.trace import Trace

POINTS = 400  # of a curve
PER_DECADE = 12  # bars of the histogram
RESTS = 5  # a batch is made of all messages: rest so many times as long as that took


class LatencyView(Live):
    """Shows how long the messages of one or several traces took, while they are recorded and afterwards.

    Args:
        traces: each channel of each of them is a curve.
        names: what the traces are called, when there are several.
    """

    _esm = module("latency")

    def __init__(self, *traces: Trace, names: Sequence[str] = (), **options: Any):
        self._traces = traces
        self._names = list(names) or [f"trace {n}" for n in range(1, len(traces) + 1)]
        if len(self._names) != len(traces):
            raise ValueError(f"{len(traces)} traces need as many names, not {len(self._names)}")
        super().__init__(traces[0], **options)
        self._ends = [trace.subscribe(self._hear) for trace in traces[1:]]

    def close(self) -> None:
        """Stop listening to the traces and remove the view from the page."""
        for end in getattr(self, "_ends", ()):
            end()
        super().close()

    def _record(self) -> bytes:
        return record(self._traces, self._names)

    def picture(self) -> Picture:
        return plot_latencies(latencies(self._traces, self._names))

    def _push(self, events: np.ndarray) -> None:
        began = time.monotonic()
        self.send({"kind": "latency"}, buffers=[self._record()])
        time.sleep(min(2.0, RESTS * (time.monotonic() - began)))  # news gathers meanwhile


def record(traces: Sequence[Trace], names: Sequence[str] = ()) -> bytes:
    """The curves as latency.js draws them, gzip of JSON, with what the machine needs at least. Times in ns."""
    series = [curve(latency) for latency in latencies(traces, names)]
    table = {"series": series, "floors": floors(), "lost": sum(int(trace.lost) for trace in traces)}
    return gzip.compress(json.dumps(table, separators=(",", ":")).encode(), 6, mtime=0)


def latencies(traces: Sequence[Trace], names: Sequence[str] = ()) -> list[Latency]:
    """Those of each channel of each trace."""
    found = []
    for number, trace in enumerate(traces):
        every = trace.messages()
        for channel in trace.channels:
            label = f"{names[number]}: {channel.label}" if len(traces) > 1 else channel.label
            found.append(Latency.of(every[every["channel"] == channel.number], label))
    return found


def curve(latency: Latency) -> dict[str, Any]:
    """One latency: figures, points of its ECDF that crowd towards the tail, and the bars of its histogram."""
    samples, n = latency.samples, latency.n
    found: dict[str, Any] = {"label": latency.label, "n": n, "lost": latency.lost}
    if not n:
        return found | {"points": [], "bars": [], "first": 0, "figures": {}}
    body = np.linspace(0, 0.99, POINTS // 2)
    shares = np.append(np.append(body, 1 - np.geomspace(0.01, 1 / max(n, 101), POINTS // 2)), 1.0)
    places = np.unique(np.minimum((shares * n).astype(int), n - 1))
    bars = np.floor(np.log10(np.maximum(samples, 1)) * PER_DECADE).astype(int)
    p999 = float(np.percentile(samples, 99.9))
    figures = {"p50": latency.p50, "p90": latency.p90, "p99": latency.p99, "p99.9": p999, "longest": latency.longest}
    return found | {
        "points": [[int(samples[place]), (int(place) + 1) / n] for place in places],
        "first": int(bars[0]),
        "bars": np.bincount(bars - bars[0]).tolist(),
        "figures": figures,
    }


def floors() -> list[list[Any]]:
    """What no message can be faster than, on this machine: words and nanoseconds."""
    from labkit.lockfree.least_entry import least

    found: list[list[Any]] = []
    with suppress(OSError):
        measured = least()
        if measured.cache_line_ns is not None:
            found.append(["a cache line from core to core", measured.cache_line_ns])
        found.append(["one system call", measured.system_call_ns])
    return found
