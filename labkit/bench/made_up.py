"""A trace of messages that are made up, where only their number matters: for benchmarks and tests of views."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

from labkit.events import EVENT, Action, messages
from labkit.trace import ProcessInfo, Trace


class MadeUp:
    """A trace of n messages over four channels, as a view or a report sees one."""

    pid, saved_ns = 0, None  # nobody's, and recorded here

    def __init__(self, n: int = 100_000, channels: int = 4):
        kinds = ("pipe", "unix_seqpacket", "posix_mq", "shm_ring")
        names = [kinds[i % 4] if i < 4 else f"{kinds[i % 4]} {i}" for i in range(channels)]
        self.channels = [
            SimpleNamespace(number=i, kind=kinds[i % 4], label=name, capacity=1024, unit="messages", overhead=0)
            for i, name in enumerate(names)
        ]
        self.processes = {
            pid: ProcessInfo(pid, ("producer", "consumer")[pid % 2], "exited 0")
            for pid in range(1000, 1000 + 2 * channels)
        }
        self.traced_locks: list[Any] = []
        self.machine: dict[str, str] = {}
        self.lost, self.contents = 0, True
        self._lock = threading.RLock()
        self._events = np.sort(
            np.concatenate([self._channel(i, n // channels) for i in range(channels)]), order="time_ns", kind="stable"
        )

    def _channel(self, number: int, n: int) -> np.ndarray:
        random = np.random.default_rng(number)
        sent = 10**12 + np.cumsum(random.exponential(20_000, n)).astype("i8")
        entered = sent + random.integers(1_000, 6_000, n)
        received = np.maximum.accumulate(entered + random.integers(4_000, 200_000, n)) + np.arange(n)
        asked = np.concatenate([sent[:1] - 1000, received[:-1] + 1])
        events = np.zeros((4, n), EVENT)
        events["channel"] = number
        events["message"] = ((2 * number + 1) << 40) + np.arange(n)
        events["size"] = random.integers(16, 300, n)
        events["first"][0] = [b"%08d,JFK,%02d.%d," % (n, n % 24, n % 10) for n in range(n)]
        for line, (action, time) in enumerate(
            zip(
                (Action.SEND_BEGINS, Action.SEND_ENDS, Action.RECEIVE_BEGINS, Action.RECEIVE_ENDS),
                (sent, entered, asked, received),
                strict=True,
            )
        ):
            events["action"][line], events["time_ns"][line] = action, time
            events["pid"][line] = 1000 + 2 * number + (line > 1)
            events["endpoint"][line] = 2 * number + (line > 1)
        events["message"][2] = 0
        return events.ravel()

    def events(self) -> np.ndarray:
        return self._events

    def messages(self) -> np.ndarray:
        return messages(self._events)

    compare = Trace.compare
