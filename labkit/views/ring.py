"""The ring view: a queue in shared memory, slot by slot, as its memory was at each moment: ring.js.

    ring = Ring(q)          # an Mpmc of at most 64 messages, an Spsc of 4,096 bytes, or a Layout of one's own ring
    display(ring)
    ring.snapshot("nothing has happened yet")
    with ring.watching():   # a snapshot whenever something has changed
        job.wait()

A snapshot is a copy of memory that other processes may be writing to meanwhile. Each word of it is whole; two words may
be some hundred nanoseconds apart. Nothing is ever made up: what the memory does not say (who has claimed a slot of a
queue that keeps no owner, for example) is shown as a question mark.

An Spsc has no slots: its positions count bytes. It is drawn by cache line. What is lent (`loan`, `borrow`) is in no
memory but that of the process that has it: it is shown when that is ours.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.launch import jobs
from labkit.stats import Picture
from labkit.views.esm import module
from labkit.views.live import Live

if TYPE_CHECKING:
    from labkit.lockfree.mpmc_queue import Mpmc
    from labkit.lockfree.spsc_queue import Spsc

MOST_SLOTS = 64
MOST_FRAMES = 2_000
"""Snapshots in a history; those that come later are counted."""
PAUSE = 0.05  # seconds in which news gathers before it is sent
SHOWN_BYTES = 12

FREE, FILLING, FULL, TAKING, POISON = STATES = ("free", "filling", "full", "taking", "poison")
PRODUCER, CONSUMER = "producer", "consumer"
UNKNOWN = -1
"""Somebody owns the slot, and the memory does not say who."""


class Layout:
    """Where things are in a ring of the reader's own, so that it can be drawn.

        Layout(memory.array, capacity=8, slots=512, producer={"write_position": 0}, consumer={"read_position": 128})

    All places are byte offsets. Without sequences a slot's state follows from the positions: what lies between
    read_position and write_position is full, the others are free. With `sequences=True` each slot begins with the
    sequence of D. Vyukov's bounded queue, and the state follows from that: a slot that was claimed and not published
    is filling, and who claimed it is not known.

    Args:
        memory: array of int64 that is shared.
        capacity: number of slots, 64 at most.
        slots: where the first is.
        stride: bytes from slot to slot.
        producer: the words that producers write, by name; write_position must be among them.
        consumer: the words that consumers write, by name; read_position must be among them.
        sequences: whether each slot begins with a sequence.

    Raises:
        ValueError: a place that is outside of the memory or no multiple of 8, or more slots than can be drawn.
    """

    title = "your ring"
    unit = 1
    """How much a position grows from one slot to the next."""
    parts: Mapping[int, str] = {}
    """What is said of a participant with this number."""

    def __init__(
        self,
        memory: np.ndarray,
        *,
        capacity: int,
        slots: int,
        stride: int = 8,
        producer: Mapping[str, int],
        consumer: Mapping[str, int],
        sequences: bool = False,
    ):
        self._words = memory.reshape(-1).view(np.int64)
        self.capacity, self.slots, self.stride, self._sequences = capacity, slots, stride, sequences
        self.fields = [(name, at, PRODUCER) for name, at in producer.items()]
        self.fields += [(name, at, CONSUMER) for name, at in consumer.items()]
        _check_capacity(capacity)
        for name in ("write_position", "read_position"):
            if name not in {**producer, **consumer}:
                raise ValueError(f"a ring has a {name}: say where it is, as in producer={{'write_position': 0}}")
        for name, at in [(name, at) for name, at, _ in self.fields] + [("slots", slots), ("stride", stride)]:
            if at < 0 or at % 8:
                raise ValueError(f"{name} is at a multiple of 8 bytes, not {at}")
        end = max(slots + capacity * stride, *(at + 8 for _, at, _ in self.fields))
        if end > self._words.nbytes:
            raise ValueError(f"the ring takes {end:,} bytes, and the memory has {self._words.nbytes:,}")

    def look(self) -> tuple[list[int], list[list[Any]], dict[int, int], list[int]]:
        """The positions, the slots, who the owners are (number -> pid), and which of them are dead."""
        words = self._words.copy()
        values = [int(words[at // 8]) for _, at, _ in self.fields]
        named = {name: value for (name, _, _), value in zip(self.fields, values, strict=True)}
        write, read = named["write_position"], named["read_position"]
        slots = []
        for index in range(self.capacity):
            at = (self.slots + index * self.stride) // 8
            slots.append((self._of_sequence if self._sequences else self._of_positions)(words, at, index, write, read))
        return values, slots, {}, []

    def _of_positions(self, words: np.ndarray, at: int, index: int, write: int, read: int) -> list[Any]:
        position = read + (index - read) % self.capacity  # the first position of this slot that is not yet read
        full = position < write
        lap = position // self.capacity
        return [FULL if full else FREE, lap, None, 0, str(words[at]) if full else ""]

    def _of_sequence(self, words: np.ndarray, at: int, index: int, write: int, read: int) -> list[Any]:
        sequence = int(words[at])
        lap, published = divmod(sequence - index, self.capacity)
        position = lap * self.capacity + index
        if published == 0:
            return [FILLING, lap, UNKNOWN, 0, ""] if write > position else [FREE, lap, None, 0, ""]
        return [TAKING, lap, UNKNOWN, 0, ""] if read > position else [FULL, lap, None, 0, str(words[at + 1])]


class MpmcLayout:
    """The library's Mpmc, whose slots say themselves who owns them."""

    unit = 1
    parts: Mapping[int, str] = {}

    def __init__(self, queue: Mpmc):
        from labkit.lockfree import mpmc, mpmc_entry

        _check_capacity(queue.capacity)
        self._queue, self._segment = queue, queue._segment
        self._memory, self.capacity = queue._segment.memory, queue.capacity
        self.slots, self.stride = mpmc.SLOTS, int(queue._state[mpmc_entry.STRIDE // 8])
        self._offset = int(queue._state[mpmc_entry.OFFSET // 8])
        self._item, self._most = queue._item, queue.max_message
        self.fields = [("write_position", mpmc.WRITE, PRODUCER), ("read_position", mpmc.READ, CONSUMER)]
        self.title = repr(queue).split(",")[0].strip("<")
        self._dead: list[int] = []

    def look(self) -> tuple[list[int], list[list[Any]], dict[int, int], list[int]]:
        from labkit.lockfree import mpmc
        from labkit.lockfree.segment import BODY

        words = self._memory[BODY : BODY + self.slots + self.capacity * self.stride].copy()
        shift = (self.capacity - 1).bit_length()

        def count(hint: int) -> int:  # a position is a lap and an index
            return (hint >> shift) * self.capacity + (hint & ((1 << shift) - 1))

        values = [count(int(words[at : at + 8].view(np.int64)[0])) for _, at, _ in self.fields]
        slots = []
        for index in range(self.capacity):
            slot = words[self.slots + index * self.stride :][: self.stride]
            word = int(slot[:8].view(np.int64)[0])
            state, owner = word & mpmc.STATE, word >> 8 & 255
            name = STATES[state] if state < len(STATES) else "?"
            owned = name in (FILLING, TAKING)
            slots.append([
                name, word >> 16, (owner or None) if owned else None, word >> 3 & 31 if name == TAKING else 0,
                self._content(slot) if name in (FULL, TAKING) else "",
            ])  # fmt: skip
        people = self._segment.people()
        if not self._queue.closed:
            self._dead = [number for number in people if not self._segment.alive(number)]
        return values, slots, people, self._dead

    def _content(self, slot: np.ndarray) -> str:
        if self._item is not None:
            return str(slot[self._offset :][: self._item.itemsize].view(self._item.base)[:1].tolist()[0])
        size = int(slot[8:16].view(np.int64)[0])  # it may change while we look
        return _text(slot[self._offset :][: max(0, min(size, self._most))].tobytes())


class SpscLayout:
    """The library's Spsc: a slot is a cache line of its ring."""

    unit = stride = 64

    def __init__(self, queue: Spsc):
        from labkit.lockfree import spsc, spsc_entry
        from labkit.lockfree.segment import RECEIVER, SENDER

        self.parts = {SENDER: ", sender", RECEIVER: ", receiver"}
        self._size, self._item = int(queue._state[spsc_entry.RING_BYTES // 8]), queue._item
        if self._size > MOST_SLOTS * self.stride:
            raise ValueError(
                f"this queue has a ring of {self._size:,} bytes, and the ring view draws every cache line: make it "
                f"with {MOST_SLOTS * self.stride:,} bytes at most"
            )
        self._queue, self._segment = queue, queue._segment
        self.capacity, self.slots = self._size // self.stride, spsc.DATA
        self.fields = [("write_position", spsc.WRITE, PRODUCER), ("read_position", spsc.READ, CONSUMER)]
        self.title = f"{repr(queue).split(', ')[0].strip('<')}, by cache line"

    def look(self) -> tuple[list[int], list[list[Any]], dict[int, int], list[int]]:
        from labkit.lockfree import spsc
        from labkit.lockfree.segment import BODY, RECEIVER, SENDER

        body = self._segment.memory[BODY : BODY + self.slots + self._size].copy()
        write, read = (int(body[at : at + 8].view(np.int64)[0]) for at in (spsc.WRITE, spsc.READ))
        texts = self._texts(body[self.slots :], write, read)
        slots = [self._line(index, write, read, texts.get(index, "")) for index in range(self.capacity)]
        for role, state, start, end in self._lent():
            for line in range(start // self.stride, -(-end // self.stride)):
                slots[line % self.capacity][:3] = state, line // self.capacity, role
        people = {role: pid for role in (SENDER, RECEIVER) if (pid := self._segment.role_pid(role))}
        return (
            [write, read],
            slots,
            people,
            [role for role, pid in people.items() if not os.path.exists(f"/proc/{pid}")],
        )

    def _line(self, index: int, write: int, read: int, text: str) -> list[Any]:
        position = read // self._size * self._size + index * self.stride
        if position + self.stride <= read:  # it was read in this lap
            position += self._size
        full = max(position, read) < min(position + self.stride, write)
        return [FULL if full else FREE, position // self._size, None, 0, text]

    def _lent(self) -> Iterator[tuple[int, str, int, int]]:
        """What is lent in this process: to whom, the state of its lines, and from where to where it is."""
        from labkit.lockfree import spsc, spsc_entry
        from labkit.lockfree.segment import RECEIVER, SENDER

        words = {
            name: int(self._queue._state[getattr(spsc_entry, name) // 8])
            for name in ("SENDS", "LOAN", "LOAN_BYTES", "RECEIVES", "BORROW", "BORROW_BYTES")
        }
        if words["SENDS"] == spsc_entry.BUSY:
            size = words["LOAN_BYTES"] if self._item is not None else spsc.frame_bytes(words["LOAN_BYTES"])
            yield SENDER, FILLING, words["LOAN"], words["LOAN"] + size
        if words["RECEIVES"] == spsc_entry.BUSY:
            yield RECEIVER, TAKING, words["BORROW"], words["BORROW"] + words["BORROW_BYTES"]

    def _texts(self, ring: np.ndarray, write: int, read: int) -> dict[int, str]:
        """What begins in each line, of what is there to be received."""
        from labkit.lockfree import spsc

        twice, texts, at = np.concatenate([ring, ring]), dict[int, str](), read
        while at < write <= read + self._size:
            start = at % self._size
            if self._item is not None:
                size = self._item.itemsize
                text = str(twice[start:][:size].view(self._item.base)[:1].tolist()[0])
            else:
                length = int(twice[start:][:8].view(np.int64)[0]) & ~spsc.KIND
                if not 0 < length <= self._size:  # it was overwritten while we looked
                    break
                size = spsc.FRAME + -(-length // 8) * 8
                text = _text(twice[start + spsc.FRAME :][:length].tobytes())
            line = start // self.stride
            texts[line] = f"{texts[line].removesuffix(' …')} …" if line in texts else text
            at += size
        return texts


def _check_capacity(capacity: int) -> None:
    if not 0 < capacity <= MOST_SLOTS:
        raise ValueError(
            f"this queue has {capacity:,} slots, and the ring view draws every one: make it with a capacity of 1 to "
            f"{MOST_SLOTS}"
        )


def _text(content: bytes) -> str:
    """The first bytes of a message as a person reads them."""
    shown = content[:SHOWN_BYTES]
    text = shown.decode("utf-8", "replace") if shown.isascii() and shown.decode().isprintable() else shown.hex(" ")
    return text + ("…" if len(content) > len(shown) else "")


class Ring(Live):
    """Shows a queue slot by slot, and its history to step through.

    Args:
        queue: an Mpmc with a capacity of at most 64, an Spsc of 4,096 bytes, or a Layout of a ring of the reader's own.

    Raises:
        ValueError: it has more slots than can be drawn.
        TypeError: it is no such queue.
    """

    _esm = module("ring")

    def __init__(self, queue: Mpmc | Spsc | Layout, **options: Any):
        self._seen = queue if isinstance(queue, Layout) else _layout_of(queue)
        self._lock = threading.Lock()
        self._frames: list[dict[str, Any]] = []
        self._owners: list[str] = []
        self._numbers: dict[tuple[int, int], int] = {}  # participant and pid -> number of the owner in the picture
        self._left_out, self._began = 0, time.monotonic_ns()
        self._newest: Any = None
        super().__init__(None, **options)

    def snapshot(self, label: str = "") -> None:
        """Add what is in memory now to the history, and say what has happened."""
        self._take(label, always=True)

    @contextlib.contextmanager
    def watching(self, label: str = "", every: float = 0.002) -> Iterator[None]:
        """Look again and again while the block runs, and add what has changed.

        Args:
            label: what is said of these snapshots.
            every: seconds between two looks.
        """
        over = threading.Event()

        def look() -> None:
            while not over.wait(every):
                self._take(label, always=False)

        thread = threading.Thread(target=look, name="labkit ring", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._take(label, always=False)

    @property
    def history(self) -> list[list[str]]:
        """The states of all slots in each snapshot, as words."""
        return [[slot[0] for slot in frame["slots"]] for frame in list(self._frames)]

    def _take(self, label: str, always: bool) -> None:
        with self._lock:
            values, slots, people, dead = self._seen.look()
            busy = {slot[2] for slot in slots}
            owners = {  # who died before and has left nothing here is not told of
                number: self._owner(number, pid)
                for number, pid in people.items()
                if number not in dead or number in busy or (number, pid) in self._numbers
            }
            for slot in slots:
                if slot[2] is not None and slot[2] != UNKNOWN:
                    slot[2] = owners.get(slot[2], UNKNOWN)
            gone = sorted(owners[number] for number in dead if number in owners)
            newest = (values, slots, gone)
            if not always and newest == self._newest:
                return
            if len(self._frames) >= MOST_FRAMES:
                self._left_out += 1
                return
            self._newest = newest
            frame: dict[str, Any] = {"label": label, "time": time.monotonic_ns() - self._began}
            frame |= {"values": values, "slots": slots, "dead": gone}
            self._frames.append(frame)
            news = {"from": len(self._frames) - 1, "owners": self._owners, "frames": [frame]}
        self._hear(np.frombuffer(json.dumps(news).encode() + b"\n", np.uint8))

    def _owner(self, number: int, pid: int) -> int:
        """The number in the picture of a participant: one number may have had several processes, one after another."""
        if (number, pid) not in self._numbers:
            named = {job.pid: job.name for job in jobs()}
            name = "this notebook" if pid == os.getpid() else named.get(pid, "process")
            self._numbers[number, pid] = len(self._owners)
            self._owners = [*self._owners, f"{name}{self._seen.parts.get(number, '')} ({pid})"]
        return self._numbers[number, pid]

    def _push(self, events: np.ndarray) -> None:
        self.send({"kind": "ring"}, buffers=[gzip.compress(events.tobytes(), 6, mtime=0)])
        time.sleep(PAUSE)

    def picture(self) -> Picture:
        from labkit.views import pictures

        with self._lock:
            newest = self._frames[-1] if self._frames else {"slots": [], "values": [], "dead": [], "label": ""}
        fields = {name: value for (name, _, _), value in zip(self._seen.fields, newest["values"], strict=False)}
        return pictures.ring(self._seen.title, newest, fields, self._owners)

    def _record(self) -> bytes:
        layout = self._seen
        with self._lock:
            table = {
                "title": layout.title,
                "capacity": layout.capacity,
                "slots": layout.slots,
                "stride": layout.stride,
                "unit": layout.unit,
                "fields": layout.fields,
                "owners": self._owners,
                "frames": self._frames,
                "left_out": self._left_out,
            }
            text = json.dumps(table, separators=(",", ":"))
        return gzip.compress(text.encode(), 6, mtime=0)


def _layout_of(queue: Any) -> MpmcLayout | SpscLayout:
    from labkit.lockfree.mpmc_queue import Mpmc
    from labkit.lockfree.spsc_queue import Spsc

    if isinstance(queue, Mpmc):
        return MpmcLayout(queue)
    if isinstance(queue, Spsc):
        return SpscLayout(queue)
    raise TypeError(f"the ring view shows an Mpmc, an Spsc, or a Layout of your own ring, not {type(queue).__name__}")
