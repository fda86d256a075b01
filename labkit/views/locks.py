"""The locks view: one lane a process, what it holds and awaits over time, and the deadlock by name: locks.js."""

from __future__ import annotations

import gzip
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.locks import FOREVER, GIVEN, History
from labkit.stats import Picture
from labkit.views import pictures
from labkit.views.esm import module
from labkit.views.live import Live

if TYPE_CHECKING:
    from labkit.trace import Trace

MOST = 20_000  # spans in a recording: the longest; a picture is some thousand pixels wide
LIVE_MOST = 2_000
RESTS = 5  # a batch is made of the whole history: rest so many times as long as that took


class LocksView(Live):
    """Shows who holds and awaits the locks of a trace while it is recorded, and afterwards."""

    _esm = module("locks")

    def _record(self) -> bytes:
        return record(self._trace)

    def picture(self) -> Picture:
        return pictures.locks(self._trace)

    def _push(self, events: np.ndarray) -> None:
        began = time.monotonic()
        self.send({"kind": "locks"}, buffers=[record(self._trace, LIVE_MOST)])
        time.sleep(min(2.0, RESTS * (time.monotonic() - began)))  # news gathers meanwhile


def record(trace: Trace, limit: int = MOST) -> bytes:
    """All that is known of a trace's locks as locks.js draws it: gzip of JSON. Times are ns since the first wait."""
    history = trace._history()
    spans = history.spans
    epoch = int(spans["begin"][0]) if len(spans) else 0
    every = len(spans)
    if every > limit:
        longest = np.argsort(np.where(spans["kind"] == GIVEN, 0, spans["end"] - spans["begin"]), kind="stable")
        spans = spans[np.sort(longest[-limit:])]
    numbers = {actor: number for number, actor in enumerate(history.actors)}
    table = {
        "locks": [{"label": i.label, "kind": i.kind, "count": i.count} for i in history.infos],
        "actors": [_actor(history, actor, epoch) for actor in history.actors],
        # actor, lock, kind, begin, end (-1: not yet)
        "spans": [
            [numbers[s["pid"], s["thread"]], s["lock"], s["kind"], s["begin"] - epoch, _since(s["end"], epoch)]
            for s in _plain(spans)
        ],
        "every": every,
        "deadlocks": [
            {
                "sentence": dead.sentence,
                "actors": [numbers[actor] for actor in dead.actors],
                "locks": [[i.label for i in history.infos].index(label) for label in dead.locks],
                "begin": dead.since_ns - epoch,
                "end": -1 if dead.until_ns is None else dead.until_ns - epoch,
            }
            for dead in history.deadlocks()
        ],
        "newest": max([history.newest - epoch, *(_ends(history, epoch))]) if len(spans) else 0,
        "now": (trace.saved_ns or time.monotonic_ns()) - epoch if len(spans) else 0,
        "over": trace.saved_ns is not None
        or all(history.died(pid) < FOREVER for pid, _ in history.actors if pid != history.own_pid),
        "lost": int(trace.lost),
    }
    return gzip.compress(json.dumps(table, separators=(",", ":")).encode(), 6, mtime=0)


def _actor(history: History, actor: tuple[int, int], epoch: int) -> dict[str, Any]:
    process = history.processes.get(actor[0])
    ended = history.died(actor[0])
    return {
        "name": history.names[actor],
        "pid": actor[0],
        "ended": process.ended if process is not None else None,
        "end": _since(ended, epoch),
    }


def _plain(spans: np.ndarray) -> list[dict[str, int]]:
    names = spans.dtype.names or ()
    return [dict(zip(names, row, strict=True)) for row in spans.tolist()]


def _ends(history: History, epoch: int) -> list[int]:
    return [end - epoch for pid, _ in history.actors if (end := history.died(pid)) < FOREVER]


def _since(moment: int, epoch: int) -> int:
    return -1 if moment >= FOREVER else moment - epoch
