"""The IPC of a window as a trace has it: two channels, one each way, whose events are of two processes.

    renderer                              main
    SEND_BEGINS, SEND_ENDS  -- frame -->  RECEIVE_BEGINS (read), RECEIVE_ENDS (dispatched)
    RECEIVE_ENDS          <-- frame ----  SEND_BEGINS, SEND_ENDS
                          -- RECEIVED ->

A renderer has no ring of the trace. It writes its times into its frames, on the same clock, and says when one of ours
has come; what it does not tell until it is dead is not recorded.
"""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

import numpy as np

from labkit.electron.frames import HEADER, Frame, Kind
from labkit.events import EVENT, FIRST_BYTES, Action
from labkit.trace import Trace

_UNWRITTEN = 1 << 17  # events that wait for the collector at most; it comes every 10 ms


class Record:
    """Writes down the messages of one window. Called by the window, and by the trace, which takes what is written."""

    def __init__(self, trace: Trace, name: str, most_messages: int, most_bytes: int):
        self._trace, self._name = trace, name
        self._pid, self._main = 0, os.getpid()
        self._events: deque[tuple[Any, ...]] = deque(maxlen=_UNWRITTEN)
        header = HEADER.size + 4
        there, back = f"{name} → main", f"main → {name}"
        self._in, self._page_sends, self._main_receives = trace.foreign(
            "electron", there, most_messages, "messages", header
        )
        self._out, self._main_sends, self._page_receives = trace.foreign("electron", back, most_bytes, "bytes", header)
        self._on_the_way: dict[tuple[int, int], deque[tuple[int, int]]] = {}  # messages to the page, and their sizes
        self._asked: dict[int, bytes] = {}  # how what is to be answered began
        self._sent = self._received = 0
        self._end: Any = trace.add_source(self._take)

    def opened(self, pid: int) -> None:
        """The renderer runs."""
        self._pid = pid
        self._trace.add_process(pid, self._name)

    def close(self, how: str) -> None:
        """The renderer has ended. Idempotent."""
        end, self._end = self._end, None
        if end:
            now = time.monotonic_ns()
            for pid, channel, endpoint in (
                (self._pid, self._in, self._page_sends),
                (self._main, self._in, self._main_receives),
                (self._main, self._out, self._main_sends),
                (self._pid, self._out, self._page_receives),
            ):
                self._write(now, 0, 0, pid, channel, endpoint, Action.CLOSED)
            end()
            self._trace.process_ended(self._pid, how)

    def _write(
        self, at: int, message: int, size: int, pid: int, channel: int, endpoint: int, action: int, first: bytes = b""
    ) -> None:
        self._events.append((at, message, size, pid, channel, endpoint, action, first))

    # From the page

    def received(self, frame: Frame, came: int) -> None:
        """A frame, read at `came`, is being dispatched: a message, or the news that one of ours is there."""
        if frame.kind == Kind.RECEIVED:
            self._delivered(frame)
            return
        self._received += 1
        message, size = (self._page_sends + 1) << 40 | self._received, len(frame.clone)
        begun = min(frame.time_ns or came, came)  # whatever the page says
        sender = message, size, self._pid, self._in, self._page_sends
        receiver = self._main, self._in, self._main_receives
        first = self._first(frame.kind, frame.clone)
        if frame.kind in (Kind.INVOKE, Kind.SEND_SYNC):
            self._asked[frame.number] = first
        self._write(begun, *sender, Action.SEND_BEGINS, first)
        self._write(min(begun + frame.took_ns, came), *sender, Action.SEND_ENDS)
        self._write(came, 0, 0, *receiver, Action.RECEIVE_BEGINS)
        self._write(time.monotonic_ns(), message, size, *receiver, Action.RECEIVE_ENDS)

    # To the page

    def sends(self, kind: int, number: int, clone: bytes) -> tuple[int, int]:
        """A message is about to be sent; give what is returned to `sent`."""
        self._sent += 1
        message = (self._main_sends + 1) << 40 | self._sent, len(clone)
        answers = kind in (Kind.REPLY, Kind.FAILED, Kind.REPLY_SYNC)
        first = self._asked.pop(number, b"(answer)") if answers else self._first(kind, clone)
        self._on_the_way.setdefault((kind, number), deque()).append(message)
        self._write(time.monotonic_ns(), *message, self._main, self._out, self._main_sends, Action.SEND_BEGINS, first)
        return message

    def sent(self, message: tuple[int, int]) -> None:
        self._write(time.monotonic_ns(), *message, self._main, self._out, self._main_sends, Action.SEND_ENDS)

    def _delivered(self, frame: Frame) -> None:
        key = (frame.clone[0] if frame.clone else 0), frame.number
        waiting = self._on_the_way.get(key)
        if waiting:
            message, size = waiting.popleft()
            if not waiting:
                del self._on_the_way[key]
            now = time.monotonic_ns()
            at = min(frame.time_ns or now, now)
            receiver = self._pid, self._out, self._page_receives
            self._write(at, 0, 0, *receiver, Action.RECEIVE_BEGINS)
            self._write(at, message, size, *receiver, Action.RECEIVE_ENDS)

    def _first(self, kind: int, clone: bytes) -> bytes:
        """What the views show of a message: its channel, of an answer that of the question."""
        if not self._trace.contents:
            return b""
        # The clone of a list whose first item is a string: two bytes, "a", how many items, "s", length, UTF-8.
        channel = clone[12 : 12 + int.from_bytes(clone[8:12], "little")][:FIRST_BYTES] if clone[7:8] == b"s" else b""
        if kind == Kind.PORT_MESSAGE:
            channel = b"(port)"
        return channel.ljust(min(len(clone), FIRST_BYTES))

    def _take(self) -> np.ndarray:
        """What has been written since the last time."""
        taken = [self._events.popleft() for _ in range(len(self._events))]
        return np.array(taken, EVENT) if taken else np.empty(0, EVENT)
