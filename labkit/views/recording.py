"""What the browser gets to see of a trace: exact totals of everything, and an honest sample of the messages.

Everything here is numpy on EVENT arrays. A sample is taken by message id, so that the receipt of a chosen message is
chosen as well; the totals are sums over all events and never depend on the sample.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.events import EVENT, FIRST_BYTES, MESSAGE, Action, messages, of_channels

if TYPE_CHECKING:
    from labkit.trace import Trace

COUNT = (1 << 40) - 1  # the low bits of a message id count the messages of one sender
CALLS = ((Action.SEND_BEGINS, (Action.SEND_ENDS, Action.DROPPED)), (Action.RECEIVE_BEGINS, (4, 6)))
MOMENTS = 512  # how finely the totals are recorded when messages had to be left out
PERCENTILES = (*range(100), 99.9, 100)
WAITS = 2000  # newest receives that came back empty
FIRST_COLUMNS = 3  # numbers that a message's first bytes are, up to six in each: 48 bits are exact in a float64


class Tally:
    """Exact sums over all events of a trace so far, and who uses which channel."""

    def __init__(self, channels: int = 0, pids: Iterable[int] = (), epoch: int | None = None) -> None:
        self.epoch = epoch  # all times for the browser count from here: the time_ns of the first event
        self.newest = 0
        self.channels = np.zeros((channels, 5))  # messages sent, received, dropped; bytes sent, received
        self.pids = {int(pid): row for row, pid in enumerate(pids)}
        self.calls = np.zeros((len(self.pids), 4))  # ns in send, in receive (short of open calls); open sends, receives
        self.seen: dict[int, list[int]] = {}  # pid -> time of its first and last event
        self.links: set[tuple[int, int, int]] = set()  # channel, pid, 0 sends | 1 receives

    def add(self, events: np.ndarray) -> None:
        """Add events; each event must come exactly once. Those about locks are passed over."""
        events = of_channels(events)
        if not len(events):
            return
        if self.epoch is None:
            self.epoch = int(events["time_ns"].min())
        time, action, channel = events["time_ns"] - self.epoch, events["action"], events["channel"].astype(int)
        self.newest = max(self.newest, int(time.max()))
        self._add_channels(action, channel, events["size"])
        pids, row = np.unique(events["pid"], return_inverse=True)
        row = np.array([self.pids.setdefault(int(pid), len(self.pids)) for pid in pids])[row]
        self._add_calls(time, action, row)
        last = np.full(len(self.pids), -(1 << 62))
        first = -last
        np.maximum.at(last, row, time)
        np.minimum.at(first, row, time)
        for pid in pids.tolist():
            old = self.seen.setdefault(pid, [int(first[self.pids[pid]]), 0])
            old[1] = max(old[1], int(last[self.pids[pid]]))
        sends, receives = np.isin(action, (1, 2, 5)), np.isin(action, (3, 4, 6))
        for chosen, role in ((sends, 0), (receives, 1)):
            pairs = np.unique(channel[chosen] << 32 | events["pid"][chosen].astype(int))
            self.links.update((int(pair) >> 32, int(pair) & 0xFFFFFFFF, role) for pair in pairs)

    def _add_channels(self, action: np.ndarray, channel: np.ndarray, size: np.ndarray) -> None:
        count = max(int(channel.max()) + 1, len(self.channels))
        self.channels = np.pad(self.channels, ((0, count - len(self.channels)), (0, 0)))
        sent, received, dropped = (action == a for a in (Action.SEND_ENDS, Action.RECEIVE_ENDS, Action.DROPPED))
        for column, chosen, weight in (
            (0, sent, None),
            (1, received, None),
            (2, dropped, None),
            (3, sent, size),
            (4, received, size),
        ):
            weights = None if weight is None else weight[chosen]
            self.channels[:, column] += np.bincount(channel[chosen], weights, minlength=count)

    def _add_calls(self, time: np.ndarray, action: np.ndarray, row: np.ndarray) -> None:
        """Time in calls is the sum of the times they ended less the sum of the times they began."""
        count = len(self.pids)
        self.calls = np.pad(self.calls, ((0, count - len(self.calls)), (0, 0)))
        for column, (begin, ends) in enumerate(CALLS):
            for chosen, sign in ((action == begin, -1), (np.isin(action, ends), 1)):
                self.calls[:, column] += sign * np.bincount(row[chosen], time[chosen], minlength=count)
                self.calls[:, column + 2] -= sign * np.bincount(row[chosen], minlength=count)

    def checkpoint(self) -> np.ndarray:
        """One row of float64: the time, five totals a channel, ns in send and in receive a process."""
        inside = self.calls[:, :2] + self.calls[:, 2:] * self.newest
        return np.concatenate([[self.newest], self.channels.ravel(), inside.ravel()])


def describe(trace: Trace, tally: Tally) -> dict[str, Any]:
    """Channels, processes and how they are linked, ready for JSON. Times are ns since the first event."""
    ended = dict(trace.processes)
    known = list(tally.pids) + [pid for pid in ended if pid not in tally.pids and pid != trace.pid]
    processes = [
        {
            "pid": pid,
            "name": ended[pid].name if pid in ended else "",
            "ended": ended[pid].ended if pid in ended else None,
            "wall": ended[pid].wall if pid in ended else "",
            "seen": tally.seen.get(pid),
        }
        for pid in known
    ]
    channels = [dict(vars(channel)) for channel in list(trace.channels)]
    return {
        "channels": channels,
        "processes": processes,
        "links": sorted(tally.links),
        "lost": int(trace.lost),
        "over": trace.saved_ns is not None or all(p.ended for p in ended.values() if p.pid != trace.pid),
        "columns": len(tally.channels),  # channels in a checkpoint; what follows them is the processes
        "newest": tally.newest,
    }


def round_up(factor: float) -> int:
    """The next of 1, 2, 10, 20, 100, 200 …: each divides the next, so a thinner sample is part of a denser one."""
    step = 1
    while step < factor:
        step *= 2 if str(step)[0] == "1" else 5
    return step


def select(events: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The chosen events, the beginnings of chosen receives, and the receives that have not ended yet."""
    keep = chosen & (events["message"] != 0)
    order = np.argsort(events["endpoint"], kind="stable")
    begins = events["action"][order] == Action.RECEIVE_BEGINS
    followed = np.append(events["endpoint"][order][1:] == events["endpoint"][order][:-1], False)
    next_kept = np.append((keep & (events["action"] == Action.RECEIVE_ENDS))[order][1:], False)
    keep[order[begins & (next_kept | ~followed)]] = True
    return events[keep]


def sample(events: np.ndarray, every: np.ndarray) -> np.ndarray:
    """The events of every n-th message of each sender; `every` holds n by channel number. Events sorted by time."""
    return select(events, (events["message"] & COUNT) % every[events["channel"]].astype("u8") == 0)


def sparsity(events: np.ndarray, channels: int, limit: int) -> np.ndarray:
    """Of how many messages one may be shown, by channel number, so that about `limit` are shown in all."""
    sends = events["channel"][events["action"] == Action.SEND_BEGINS]
    counts = np.bincount(sends, minlength=channels)
    if counts.sum() <= limit:
        return np.ones(len(counts), int)
    share = limit / max(1, int(np.count_nonzero(counts)))
    return np.array([round_up(count / share) for count in counts])


def rows(found: np.ndarray, epoch: int, contents: bool) -> np.ndarray:
    """Messages as a float64 matrix, one column a message, infinity for a time unknown; messages.js names its lines."""
    matrix = np.empty((10 + FIRST_COLUMNS, len(found)))
    # 16 bits of endpoint and 37 of count are exact in a float64 (2**53)
    matrix[0] = (found["message"] >> 40) * 2.0**37 + (found["message"] & ((1 << 37) - 1))
    for line, name in enumerate(("channel", "sender", "receiver", "size"), start=1):
        matrix[line] = found[name]
    for line, name in enumerate(("send_begins", "send_ends", "receive_begins", "receive_ends"), start=5):
        matrix[line] = np.where(found[name] == 0, np.inf, found[name] - epoch)
    matrix[9] = found["dropped"]
    matrix[10:] = _firsts(found, contents).T
    return matrix


def _firsts(found: np.ndarray, contents: bool) -> np.ndarray:
    """The first bytes of messages as FIRST_COLUMNS int64 each, -1 where they are not known."""
    if not contents:
        return np.full((len(found), FIRST_COLUMNS), -1)
    padded = np.zeros((len(found), FIRST_COLUMNS, 8), "u1")
    first = np.ascontiguousarray(found["first"]).view("u1").reshape(-1, FIRST_BYTES)
    for place in range(FIRST_COLUMNS):
        piece = first[:, 6 * place : 6 * place + 6]
        padded[:, place, : piece.shape[1]] = piece
    return padded.view("<i8")[:, :, 0]


def median_latency(found: np.ndarray) -> float | None:
    """Median ns from the beginning of send to the end of receive, None when nothing was received."""
    received = found[found["receive_ends"] != 0]
    return float(np.median(received["receive_ends"] - received["send_begins"])) if len(received) else None


def record(trace: Trace, epoch: int | None = None, limit: int = 100_000, more: dict[str, Any] | None = None) -> bytes:
    """All of a trace as flow.js replays it: gzip of a JSON header and byte planes; at most about `limit` messages."""
    events = of_channels(trace.events())
    every = sparsity(events, max([c.number for c in trace.channels], default=-1) + 1, limit)
    tally = Tally(len(every), np.unique(events["pid"]), epoch)
    whole = len(every) == 0 or every.max() == 1
    moments = []
    for part in np.array_split(events, 1 if whole else MOMENTS):
        tally.add(part)
        moments.append(tally.checkpoint())
    found = messages(sample(events, every)) if len(events) else np.zeros(0, MESSAGE)
    found = found[np.argsort(found["channel"], kind="stable")]  # neighbours alike: it compresses far better
    header = (
        describe(trace, tally)
        | (more or {})
        | {
            "every": every.tolist(),
            "median": median_latency(found),
            "rows": len(found),
            "contents": trace.contents,
            "moments": len(moments),
            "waits": _empty_receives(events, tally),
            "figures": figures(trace, tally, found),
        }
    )
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    planes = _planes(found, tally, trace.contents)
    body = np.array([len(text)], "<i8").tobytes() + text + np.stack(moments).tobytes() + planes
    return gzip.compress(body, 6, mtime=0)


def figures(trace: Trace, tally: Tally, found: np.ndarray) -> list[dict[str, Any]]:
    """Each channel in figures, for reports that are laid side by side: exact sums, latencies of the sample, in ns."""
    table = []
    for channel, sums in zip(trace.channels, tally.channels, strict=False):
        own = found[(found["channel"] == channel.number) & (found["receive_ends"] != 0)]
        latencies = own["receive_ends"] - own["send_begins"]
        span = int(own["receive_ends"].max() - own["send_begins"].min()) if len(own) else 0
        table.append(
            {
                "label": channel.label,
                "kind": channel.kind,
                "received": int(sums[1]),
                "lost": int(sums[0] - sums[1]),
                "bytes": int(sums[4]),
                "seconds": span / 1e9,
                "percentiles": np.percentile(latencies, PERCENTILES).astype(int).tolist() if len(own) else [],
            }
        )
    return table


def _planes(found: np.ndarray, tally: Tally, contents: bool) -> bytes:
    """Thirteen int64 columns, each as its eight byte planes; times as differences, -1 for what is not known."""
    epoch = tally.epoch or 0
    begins = found["send_begins"] - epoch
    waited = np.where(found["receive_begins"] == 0, 0, found["receive_ends"] - found["receive_begins"])
    columns = [
        np.diff((found["message"] & COUNT).astype("i8"), prepend=0),
        (found["message"] >> 40).astype("i8"),
        found["channel"],
        found["sender"],
        found["receiver"],
        found["size"],
        np.diff(begins, prepend=0),
        np.where(found["send_ends"] == 0, -1, found["send_ends"] - found["send_begins"]),
        np.where(found["receive_ends"] == 0, -1, found["receive_ends"] - found["send_begins"]),
        np.where(found["receive_ends"] == 0, 0, waited) * 2 + found["dropped"],
        *_firsts(found, contents).T,
    ]
    return b"".join(np.ascontiguousarray(c, "<i8").view("u1").reshape(-1, 8).T.tobytes() for c in columns)


def without_secrets(planes: bytes, count: int, secret: re.Pattern[bytes]) -> bytes:
    """What follows the header of a recording of `count` messages, without the first bytes in which this is found."""
    if not count:
        return planes
    data = np.frombuffer(planes, "u1").copy()
    own = data[len(data) - 8 * FIRST_COLUMNS * count :].reshape(FIRST_COLUMNS, 8, count)
    first = np.ascontiguousarray(own[:, :6].reshape(-1, count)[:FIRST_BYTES].T).view(f"S{FIRST_BYTES}")[:, 0]
    texts, which = np.unique(first, return_inverse=True)
    gone = np.array([bool(secret.search(text)) for text in texts.tolist()], bool)[which]
    own[:, :, gone] = 255  # -1: not known
    return data.tobytes()


def _empty_receives(events: np.ndarray, tally: Tally) -> list[list[int]]:
    """The newest receives that brought no message: pid, began, ended (-1: still waiting)."""
    if not len(events) or tally.epoch is None:
        return []
    calls = events[np.isin(events["action"], (Action.RECEIVE_BEGINS, Action.RECEIVE_ENDS, Action.GAVE_UP))]
    calls = calls[np.argsort(calls["endpoint"], kind="stable")]
    if not len(calls):
        return []
    same = np.append(calls["endpoint"][1:] == calls["endpoint"][:-1], False)
    begins = calls["action"] == Action.RECEIVE_BEGINS
    given_up = np.append(calls["action"][1:] == Action.GAVE_UP, False) & same & begins
    still_open = begins & ~same
    ended = np.append(calls["time_ns"][1:], 0)
    pick = np.flatnonzero(given_up | still_open)
    pick = pick[np.argsort(calls["time_ns"][pick])][-WAITS:]
    return [
        [
            int(calls["pid"][i]),
            int(calls["time_ns"][i] - tally.epoch),
            int(ended[i] - tally.epoch) if given_up[i] else -1,
        ]
        for i in pick
    ]


NOTHING = np.zeros(0, EVENT)
