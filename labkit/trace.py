"""A trace: what every endpoint did and when, recorded in shared memory while it happens.

    trace memory (memfd)   | ring of endpoint 0 | ring of endpoint 1 | …
    written by             | its own process    | its own process    |   labkit.traced
    read by                  the collector, a thread of the process that made the trace

Each endpoint writes fixed-size events into a ring of its own, so that nobody waits for anybody: a full ring counts what
it loses. `channel(kind, trace=trace)` returns ends that record, and `trace.lock` such a lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labkit import export
from labkit.channels.base import TAG_BYTES, Receiver, Sender, travelling, unavailable
from labkit.events import EVENT, Action, messages
from labkit.lockfree import spsc
from labkit.locks import Deadlock, History, LockInfo, Locks
from labkit.machine import facts
from labkit.stats import Comparison, Latency, Throughput
from labkit.trace_entry import ENDPOINTS, SLOT_BYTES, trace_functions
from labkit.traced import (
    CONTENTS_BYTES,
    LOCK_RING_BYTES,
    RING_BYTES,
    RING_EVENTS,
    STRIDE,
    TracedLock,
    TracedReceiver,
    TracedSender,
    counts_of,
    map_ring,
)

COLLECT_SECONDS = 0.01
NOTIFY_SECONDS = 0.05


@dataclass(frozen=True)
class ChannelInfo:
    """A traced channel."""

    number: int
    kind: str
    label: str
    capacity: int
    unit: str
    overhead: int
    """Bytes that a message takes in the channel beyond its payload, the tag of the trace included."""


@dataclass
class ProcessInfo:
    """A process that holds or held a traced end."""

    pid: int
    name: str
    ended: str | None = None
    """How it ended, for example "exited 0" or "killed by SIGKILL"; None while it runs."""
    ended_ns: int | None = None
    """When the trace was told so, CLOCK_MONOTONIC."""
    wall: str = ""
    """The kinds of namespaces that it runs in, "ipc, net"; "" when it runs in those of who launched it."""


class Trace:
    """Records the messages of the channels that are opened with it, channel(kind, trace=trace), and who takes and
    gives back the locks that are handed to it, trace.lock(semaphore, "fork 1").

    A trace stays in the process that made it; the ends of its channels and its locks may travel. In a copy made by
    fork(2) it is closed: the ends and locks work there, and what they do is not recorded.

    Args:
        keep: events kept in memory (48 bytes each); beyond that the oldest are forgotten, and counted.
        contents: whether the first 16 bytes of each message are recorded too. Views show them, and reports and saved
            traces hold them: say False when the messages are nobody else's business.

    Raises:
        OSError: the machine cannot reserve the memory.
    """

    def __init__(self, keep: int = 5_000_000, contents: bool = True):
        self.channels: list[ChannelInfo] = []
        self.traced_locks: list[LockInfo] = []
        self.processes: dict[int, ProcessInfo] = {}
        self.pid = os.getpid()
        """The process that made the trace; of a loaded one, the process that recorded it."""
        self.saved_ns: int | None = None
        """When a loaded trace was saved, on the clock of its events; None for one that was recorded here."""
        self.machine: dict[str, str] = {}
        """Where a loaded trace was recorded, as labkit.machine.facts tells it."""
        self.keep, self.contents = keep, contents
        self.forgotten = 0
        """Events that were recorded, and forgotten because there were more than `keep`."""
        self._memory: list[int] = []  # the memfd, while there are endpoints to record
        self._endpoints = 0
        self._owners: dict[int, int] = {}  # pids by endpoint, of locks
        self._handed: dict[int, range] = {}  # locks by endpoint, of copies that children have not opened yet
        self._rings: dict[int, np.ndarray] = {}  # by endpoint, those that are not closed
        self._lost = 0  # as counted when a ring was given up
        self._block = np.empty(0, EVENT)  # what is free of the memory that the last events are in
        self._chunks: list[np.ndarray] = []
        self._kept = 0
        self._news: list[np.ndarray] = []
        self._changed = False
        self._subscribers: list[Callable[[np.ndarray], None]] = []
        self._sources: list[Callable[[], np.ndarray]] = []
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self.processes[self.pid] = ProcessInfo(self.pid, "notebook")
        self._finalizer = weakref.finalize(self, _close, self._memory, self._stop)
        self._collector: threading.Thread | None = None
        _traces.add(self)

    def traced(self, tx: Sender, rx: Receiver, label: str) -> tuple[TracedSender, TracedReceiver]:
        """The two ends of a new channel, recording here from now on."""
        capacity = tx.capacity
        with self._lock:
            self._must_be_open()
            unique = _unique(label, {c.label for c in self.channels})
            number = len(self.channels)
            ends = self._attach(TracedSender, tx, number), self._attach(TracedReceiver, rx, number)
            overhead = capacity.overhead + TAG_BYTES
            self.channels.append(ChannelInfo(number, tx.kind, unique, capacity.amount, capacity.unit, overhead))
            self._changed = True
        return ends

    def lock(self, semaphore: Any, label: str | None = None) -> TracedLock:
        """The same lock or semaphore, recording here from now on who waits for it, takes it and gives it back.

        Hand the result to `launch` as you would the semaphore itself: it is shared with the child, and records there as
        well. What is done through the semaphore itself is not recorded.

        Args:
            semaphore: anything of labkit.sync with acquire and release.
            label: what views and sentences call it, "fork 1"; the kind of lock unless given. The semaphores of a
                System V set are numbered from 0 behind it.

        Raises:
            TypeError: it has no acquire and release, or is traced already.
            ValueError: the trace is closed.
            OSError: the machine cannot reserve the memory.
        """
        if isinstance(semaphore, TracedLock) or not (hasattr(semaphore, "acquire") and hasattr(semaphore, "release")):
            raise TypeError(f"a lock with acquire and release that is not traced yet can be, not {semaphore!r}")
        kind = type(semaphore).__name__
        with self._lock:
            self._must_be_open()
            first, counts = len(self.traced_locks), counts_of(semaphore)
            owned = not hasattr(semaphore, "value") and not hasattr(semaphore, "values")
            gives_back = kind == "FileLock" or bool(getattr(semaphore, "undo", False))
            for index, count in enumerate(counts):
                text = f"{label or kind}{f' {index}' if len(counts) > 1 else ''}"
                text = _unique(text, {known.label for known in self.traced_locks})
                self.traced_locks.append(LockInfo(first + index, kind, text, count, owned, gives_back))
            try:
                number = self._reserve(LOCK_RING_BYTES)
            except BaseException:
                del self.traced_locks[first:]
                raise
            made = TracedLock(semaphore, self._memory[0], first, number)
            made.trace = self
            self._changed = True
            self._wake()
        return made

    def _attach(self, wrapper: Any, inner: Any, channel: int) -> Any:
        """A new endpoint, with a ring of its own."""
        with self._lock:
            contents = self.contents and wrapper is TracedSender
            number = self._reserve(RING_BYTES + CONTENTS_BYTES * contents)
            try:
                end = wrapper(inner, os.dup(self._memory[0]), channel, number, (number + 1) << 40, contents)
            except BaseException:
                del self._rings[number]
                self._rest()
                raise
            end.trace = self
            self._wake()
        return end

    def _reserve(self, ring_bytes: int) -> int:
        """The number of a new ring in the shared memory."""
        with self._lock:
            self._must_be_open()
            number = self._endpoints
            self._must_have_room(1)
            if not self._memory:
                self._memory.append(os.memfd_create("labkit-trace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
                # Else a peer could make us die of SIGBUS.
                fcntl.fcntl(self._memory[0], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            memory = self._memory[0]
            try:
                os.posix_fallocate(memory, number * STRIDE, spsc.DATA + ring_bytes)
            except OSError as reason:
                self._rest()
                advice = f"no memory for the trace of one more endpoint ({spsc.DATA + ring_bytes:,} bytes)"
                raise unavailable("posix_fallocate", reason.errno or errno.ENOMEM, advice) from reason
            ring = map_ring(memory, number, ring_bytes)
            self._rings[number] = ring
            self._endpoints += 1
            return number

    def _hand(self, locks: range) -> tuple[Any, int] | None:
        """The memory, and the number of a new ring in it, for a copy of a traced lock that a child will open.

        None when nothing more is recorded.
        """
        with self._lock:
            if not self._finalizer.alive:
                return None
            ticket = travelling(self._memory[0])
            number = self._reserve(LOCK_RING_BYTES)
            self._handed[number] = locks
            return ticket, number

    def _must_have_room(self, endpoints: int) -> None:
        if self._endpoints + endpoints > ENDPOINTS:
            raise OSError(errno.ENOSPC, f"a trace has room for {ENDPOINTS} endpoints; begin a new Trace()")

    def foreign(self, kind: str, label: str, capacity: int, unit: str, overhead: int) -> tuple[int, int, int]:
        """A channel that is none of labkit's, whose events somebody else writes: see `add_source`.

        Returns:
            its number, and those of the endpoints that send and that receive. The message ids of an endpoint are
            (endpoint + 1) << 40 | count.
        """
        with self._lock:
            self._must_be_open()
            self._must_have_room(2)
            sends, self._endpoints = self._endpoints, self._endpoints + 2
            number, unique = len(self.channels), _unique(label, {channel.label for channel in self.channels})
            self.channels.append(ChannelInfo(number, kind, unique, capacity, unit, overhead))
            self._changed = True
            return number, sends, sends + 1

    def add_source(self, take: Callable[[], np.ndarray]) -> Callable[[], None]:
        """Collect events from somebody else, too: `take()` returns those since it was last called, of dtype EVENT.

        It is called 100 times a second by the collector's thread, and whenever the trace is read. Returns a function
        that takes once more and ends it.
        """
        with self._lock:
            self._must_be_open()
            self._sources.append(take)
            self._wake()

        def end() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self.collect()
                self._sources.remove(take)

        return end

    def _wake(self) -> None:
        """Have the collector's thread run, which ends when there is nothing left to collect and to tell."""
        if self._collector is None and self._finalizer.alive:
            arguments = weakref.ref(self), self._stop
            self._collector = threading.Thread(target=_collect, args=arguments, name="labkit trace", daemon=True)
            self._collector.start()

    def _rest(self) -> bool:
        """Whether everything has been collected and told for good; gives the shared memory back then."""
        with self._lock:
            if self._rings or self._sources or self._news or (self._changed and self._subscribers):
                return False
            while self._memory:
                os.close(self._memory.pop())
            self._collector = None
            return True

    def add_process(self, pid: int, name: str, wall: str = "") -> None:
        """Tell the trace what a process is called, and which namespaces it is inside."""
        with self._lock:
            self.processes[pid] = ProcessInfo(pid, name, wall=wall)
            self._changed = True
            self._wake()

    def process_ended(self, pid: int, how: str) -> None:
        """Tell the trace that a process has ended, and how."""
        with self._lock:
            if pid in self.processes:
                self.processes[pid].ended_ns = time.monotonic_ns()
                self.processes[pid].ended = how
                self.collect()
                for number in [number for number, owner in self._owners.items() if owner == pid]:
                    self._give_up(number)  # it was killed, and could not say that it closes its locks
                self._changed = True
                self._wake()

    def subscribe(self, callback: Callable[[np.ndarray], None]) -> Callable[[], None]:
        """Have `callback(new events)` called at most 20 times a second, from the collector's thread.

        It is also called, with no events, when channels or processes have changed. What `events()` returns under the
        same hold of the lock is the past, everything later comes to the callback once. Returns a function that ends it.
        """
        with self._lock:
            self._notify()  # what is waiting is for those who were here before
            self._subscribers.append(callback)

        def unsubscribe() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._subscribers.remove(callback)

        return unsubscribe

    def collect(self) -> None:
        """Take everything that has been recorded out of the rings. The collector does this 100 times a second."""
        with self._lock:
            for number, ring in list(self._rings.items()):
                there = int(ring[spsc.WRITE // 8] - ring[spsc.READ // 8]) // SLOT_BYTES  # a hint, for its size
                if there < 1:
                    continue
                # No numpy copy: it would let go of the GIL, and to get that back takes milliseconds in a busy process.
                chunk = self._room(min(there, RING_EVENTS))
                if _take(ring, chunk) != len(chunk):
                    continue
                self._add(chunk)
                if chunk["action"][-1] in (Action.CLOSED, Action.LOCK_CLOSED):  # not used again: give its memory back
                    self._give_up(number)
                elif chunk["action"][0] == Action.LOCK_OPENED:
                    self._owners[number] = int(chunk["pid"][0])
            for take in self._sources:
                self._add(take())
            while self._kept > self.keep:
                gone = min(self._kept - self.keep, len(self._chunks[0]))
                self._chunks[0] = self._chunks[0][gone:]
                if not len(self._chunks[0]):
                    self._chunks.pop(0)
                self._kept -= gone
                self.forgotten += gone

    def _room(self, events: int) -> np.ndarray:
        """Where to put so many events. New memory for each few of them would cost five times as much as they do."""
        if len(self._block) < events:
            self._block = np.empty(RING_EVENTS, EVENT)
        room, self._block = self._block[:events], self._block[events:]
        return room

    def _add(self, chunk: np.ndarray) -> None:
        if len(chunk):
            self._chunks.append(chunk)
            self._kept += len(chunk)
            if self._subscribers:
                self._news.append(chunk)

    def _give_up(self, number: int) -> None:
        """A ring that will not be used again."""
        ring = self._rings.pop(number)
        self._owners.pop(number, None)
        self._lost += int(ring[spsc.LOST // 8])
        ring.base.obj.madvise(mmap.MADV_REMOVE, spsc.DATA, ring.nbytes - spsc.DATA)  # type: ignore[union-attr]

    def _notify(self) -> None:
        with self._lock:
            news, self._news = self._news, []
            changed, self._changed = self._changed, False
            subscribers = list(self._subscribers)
        if subscribers and (news or changed):
            events = np.concatenate(news) if news else np.empty(0, EVENT)
            for callback in subscribers:
                try:
                    callback(events)
                except Exception as reason:  # a view that fails must not end the trace
                    with self._lock, contextlib.suppress(ValueError):
                        self._subscribers.remove(callback)
                    print(f"a view of this trace stopped: {type(reason).__name__}: {reason}")

    def events(self) -> np.ndarray:
        """Everything recorded so far, an array of dtype labkit.events.EVENT sorted by time."""
        self.collect()
        with self._lock:
            self._chunks = [np.concatenate(self._chunks)] if self._chunks else []
            every = self._chunks[0] if self._chunks else np.empty(0, EVENT)
        return every[np.argsort(every["time_ns"], kind="stable")]

    def messages(self) -> np.ndarray:
        """The messages these events add up to, an array of dtype labkit.events.MESSAGE sorted by send_begins."""
        return messages(self.events())

    @property
    def lost(self) -> int:
        """Events that were not recorded because the collector could not keep up."""
        with self._lock:
            return self._lost + int(sum(ring[spsc.LOST // 8] for ring in self._rings.values()))

    def latency(self, channel: str | int | None = None) -> Latency:
        """How long messages took, of one channel (label or number) or of all."""
        return Latency.of(*self._of(channel))

    def throughput(self, channel: str | int | None = None) -> Throughput:
        """How much went through, one channel (label or number) or all together."""
        return Throughput.of(*self._of(channel))

    def _of(self, channel: str | int | None) -> tuple[np.ndarray, str]:
        every = self.messages()
        if channel is None:
            return every, self.channels[0].label if len(self.channels) == 1 else ""
        for info in self.channels:
            if channel in (info.label, info.number):
                return every[every["channel"] == info.number], info.label
        raise ValueError(
            f"no channel {channel!r} in this trace; there are: {', '.join(c.label for c in self.channels)}"
        )

    def compare(self) -> Comparison:
        """Latency and throughput of every channel, side by side."""
        every = self.messages()
        return Comparison.of([(c.label, every[every["channel"] == c.number]) for c in self.channels], self.lost)

    def locks(self) -> Locks:
        """Each traced lock in figures: how often it was taken, how long that took, who has it, who waits."""
        return self._history().rows()

    def deadlock(self) -> Deadlock | None:
        """The processes that wait for each other in a circle at this moment, or None.

        "A holds fork 1 and waits for fork 2, which B holds; B holds fork 2 and waits for fork 1, which A holds". It is
        concluded from what was recorded: somebody who uses an untraced copy of a semaphore could still end it, and so
        does a wait that gives up. While `lost` is not 0 it may be wrong.
        """
        found = self._history().deadlock()
        # The rings are read one after another, not at one moment: what holds in two readings holds in between.
        return found if found and found == self._history().deadlock() else None

    def _history(self, events: np.ndarray | None = None) -> History:
        with self._lock:
            events = self.events() if events is None else events
            for endpoint in np.unique(events["endpoint"][events["action"] == Action.LOCK_OPENED]):
                self._handed.pop(int(endpoint), None)
            unheard = {lock for locks in self._handed.values() for lock in locks}
            known = list(self.traced_locks), dict(self.processes), self.pid, unheard
        return History(events, *known)  # without the lock: the collector must not wait for it, or events are lost

    def to_csv(self, path: str | Path) -> Path:
        """Save as CSV, an event a row, which `Trace.load` reads back; compressed where the name ends in .gz.

        The first line is a comment, "# labkit trace", with a header in JSON. Raises OSError when it cannot be written.
        """
        return export.to_csv(path, self.events(), self._header())

    def to_parquet(self, path: str | Path) -> Path:
        """Save as Parquet, an event a row, which `Trace.load` reads back and every data tool opens.

        Raises:
            ImportError: pyarrow is not installed.
            OSError: the file cannot be written.
        """
        return export.to_parquet(path, self.events(), self._header())

    def to_perfetto(self, path: str | Path) -> Path:
        """Write for ui.perfetto.dev: a slice a call, an arrow a message, a counter a channel. It is not read back."""
        events = self.events()
        return export.to_perfetto(path, events, self._header(), self._history(events))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """A trace that `to_csv` or `to_parquet` saved, for watch(), report() and all that a trace can tell.

        Raises:
            ValueError: the file is something else, is damaged, or ends too early.
            ImportError: it is Parquet and pyarrow is not installed.
            OSError: it cannot be read.
        """
        events, header = export.load(path)
        trace = cls(keep=max(1, len(events)))
        trace.close()
        try:
            trace.channels = [ChannelInfo(**channel) for channel in header["channels"]]
            trace.traced_locks = [LockInfo(**lock) for lock in header["locks"]]
            trace.processes = {process["pid"]: ProcessInfo(**process) for process in header["processes"]}
            trace.pid, trace.saved_ns, trace.machine = header["recorder"], header["saved_ns"], header["machine"]
            trace.contents = header["contents"]
            trace._lost, trace.forgotten = header["lost"], header["forgotten"]
        except (KeyError, TypeError) as reason:
            raise ValueError(f"{path}: is damaged: its header lacks or adds something ({reason})") from None
        trace._chunks, trace._kept = [events], len(events)
        return trace

    def _header(self) -> dict[str, Any]:
        with self._lock:
            return {
                "machine": self.machine or facts(),
                "recorder": self.pid,
                "saved_ns": self.saved_ns or time.monotonic_ns(),
                "lost": self.lost,
                "forgotten": self.forgotten,
                "contents": self.contents,
                "channels": [vars(channel) for channel in self.channels],
                "locks": [vars(lock) for lock in self.traced_locks],
                "processes": [vars(process) for process in self.processes.values()],
            }

    def close(self) -> None:
        """Stop collecting and give the shared memory back. What has been recorded stays; nothing more is recorded."""
        if not self._finalizer.alive:
            return
        self._stop.set()
        collector = self._collector
        if collector and collector is not threading.current_thread():  # a subscriber may close the trace
            collector.join(5)
        self.collect()
        self._notify()
        with self._lock:
            self._lost = self.lost
            self._rings.clear()
            self._sources.clear()
            self._finalizer()

    def _after_fork(self) -> None:
        """In a copy made by fork(2): the rings are our parent's to read, and its lock may be held by a thread of it."""
        self._lock = threading.RLock()
        self._rings, self._sources, self._subscribers, self._collector = {}, [], [], None
        if self._finalizer.detach():
            while self._memory:
                os.close(self._memory.pop())

    def _must_be_open(self) -> None:
        if not self._finalizer.alive:
            raise ValueError("this trace is closed: begin a new Trace()")

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a trace stays in the process that made it; hand the ends of its channels to the child instead")

    def __repr__(self) -> str:
        self.collect()
        lost = f", {self.lost:,} lost" if self.lost else ""
        locks = f" and {len(self.traced_locks)} locks" if self.traced_locks else ""
        return f"<trace of {len(self.channels)} channels{locks}, {self._kept:,} events{lost}>"


def _unique(label: str, taken: set[str]) -> str:
    if label not in taken:
        return label
    return next(f"{label} {n}" for n in range(2, 1 << 16) if f"{label} {n}" not in taken)


def _take(ring: np.ndarray, room: np.ndarray) -> int:
    behind = ring.nbytes - spsc.DATA
    size = 1 << (behind.bit_length() - 1)  # the slots are a power of two, and more than what is behind them
    contents = int(behind > size)
    return int(trace_functions()["take_events"](ring.ctypes.data, size, contents, room.ctypes.data, len(room)))


def _collect(trace: weakref.ref[Trace], stop: threading.Event) -> None:
    """The collector's thread. It holds the trace only while it works, so that a forgotten trace ends."""
    notified = 0.0
    while not stop.wait(COLLECT_SECONDS):
        alive = trace()
        if alive is None:
            return
        alive.collect()
        if time.monotonic() - notified >= NOTIFY_SECONDS:
            notified = time.monotonic()
            alive._notify()
            if alive._rest():
                return
        del alive


def _close(memory: list[int], stop: threading.Event) -> None:
    stop.set()
    while memory:
        os.close(memory.pop())


_traces: weakref.WeakSet[Trace] = weakref.WeakSet()


def _after_fork() -> None:
    for trace in list(_traces):
        trace._after_fork()


os.register_at_fork(after_in_child=_after_fork)


def must_be_a_trace(thing: Any) -> None:
    """Raises TypeError, and says what would do, where a Trace belongs and something else was given."""
    if isinstance(thing, type) or not hasattr(thing, "channels"):
        name = type(thing).__name__
        raise TypeError(f"what is shown is a labkit.Trace, not {name}: channel(kind, trace=trace) records in it")
