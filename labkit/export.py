"""Traces as files: CSV and Parquet, which are read back, and Perfetto's format for ui.perfetto.dev.

A saved trace is its events, one row each, and one JSON header that says what their numbers mean: channels, processes,
locks, what was lost, the machine. Nothing of a file is believed before it has been checked.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from labkit.events import EVENT, FIRST_BYTES, Action, beginning, in_words, messages, of_channels
from labkit.locks import FOREVER, GIVEN, GOT, HELD, IN_VAIN, History

FORMAT = 2
NUMBERS = ("time_ns", "action", "message", "size", "pid", "channel", "endpoint")
COLUMNS = (*NUMBERS, "first", "process", "label")
"""Of a saved trace; format 1 had no `first`. The last two are for the eye: the header knows the names by numbers."""
MARK = "# labkit trace "
WORDS = {action: action.name.lower().replace("_", " ") for action in Action}
PARQUET_NEEDS = "Parquet is written and read by pyarrow, which is not installed: pip install pyarrow, or use to_csv()"


def replace_file(path: str | Path, content: str | bytes) -> Path:
    """Write a file as a whole, so that a reader never sees half of it. Missing folders are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content.encode(errors="replace") if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# ------------------------------------------------------------------------------------------------- CSV and Parquet


def to_csv(path: str | Path, events: np.ndarray, header: dict[str, Any]) -> Path:
    """Write events as CSV under one comment line that holds the header; compressed where the name ends in .gz."""
    text = io.StringIO(newline="")
    text.write(MARK + json.dumps(_complete(header, events)) + "\r\n")
    table = csv.writer(text)
    table.writerow(COLUMNS)
    columns = dict(zip(COLUMNS, _columns(events, header), strict=True))
    columns["first"] = [first and first.hex() for first in columns["first"]]
    table.writerows(zip(*columns.values(), strict=True))
    raw = text.getvalue().encode(errors="replace")
    return replace_file(path, gzip.compress(raw, 9, mtime=0) if str(path).endswith(".gz") else raw)


def to_parquet(path: str | Path, events: np.ndarray, header: dict[str, Any]) -> Path:
    """Write events as Parquet, with the header in its metadata under "labkit". Raises ImportError without pyarrow."""
    pyarrow, parquet = _pyarrow()
    arrays = {}
    for name, column in zip(COLUMNS, _columns(events, header), strict=True):
        if name in NUMBERS and name != "action":
            arrays[name] = pyarrow.array(events[name])
        elif name == "first":
            arrays[name] = pyarrow.array(column, pyarrow.binary())
        else:
            texts = [str(text).encode(errors="replace").decode() for text in column]
            arrays[name] = pyarrow.array(texts, pyarrow.string()).dictionary_encode()
    table = pyarrow.table(arrays).replace_schema_metadata({"labkit": json.dumps(_complete(header, events))})
    out = pyarrow.BufferOutputStream()
    parquet.write_table(table, out, compression="zstd")
    return replace_file(path, out.getvalue().to_pybytes())


def load(path: str | Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Events and header of a file that to_csv or to_parquet wrote; what it is, its content tells, not its name.

    Raises:
        ValueError: it is something else, is damaged, or ends too early.
        ImportError: it is Parquet, and pyarrow is not installed.
        OSError: it cannot be read.
    """
    path = Path(path)
    raw = path.read_bytes()
    try:
        if raw.startswith(b"PAR1"):
            events, header = _from_parquet(raw)
        else:
            if raw.startswith(b"\x1f\x8b"):
                raw = gzip.decompress(raw)
            if not raw.startswith(MARK.encode()):
                raise ValueError(f"is not a trace that labkit saved: {_what(raw)}")
            events, header = _from_csv(raw.decode())
        _check(events, header)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise ValueError(f"{path}: is damaged or ends too early: copy it again from where it was saved") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is damaged: it holds bytes that are no text") from None
    except ValueError as reason:
        raise ValueError(f"{path}: {reason}") from None
    return events, header


def _complete(header: dict[str, Any], events: np.ndarray) -> dict[str, Any]:
    return {"format": FORMAT, "events": len(events)} | header


def _columns(events: np.ndarray, header: dict[str, Any]) -> Iterator[Iterable[Any]]:
    """The columns of a table of events, as Python's own types."""
    names = {process["pid"]: process["name"] for process in header["processes"]}
    recorded = (events["action"] == Action.SEND_BEGINS) & header.get("contents", True)
    labels = {False: [c["label"] for c in header["channels"]], True: [c["label"] for c in header["locks"]]}
    for column in NUMBERS:
        values = events[column].tolist()
        yield [WORDS[value] for value in values] if column == "action" else values
    rows = zip(recorded.tolist(), events["first"].tolist(), events["size"].tolist(), strict=True)
    yield [beginning(first, size) if known else None for known, first, size in rows]
    yield [names.get(pid, "") for pid in events["pid"].tolist()]
    of_lock = (events["action"] >= Action.LOCK_OPENED).tolist()
    yield [labels[kind][number] for kind, number in zip(of_lock, events["channel"].tolist(), strict=True)]


def _from_csv(text: str) -> tuple[np.ndarray, dict[str, Any]]:
    first, _, rest = text.partition("\n")
    header = _header(first.removeprefix(MARK))
    rows = list(csv.reader(io.StringIO(rest, newline="")))
    columns = tuple(name for name in COLUMNS if name != "first" or header["format"] > 1)
    if not rows or tuple(rows[0]) != columns or not text.endswith("\n"):
        raise ValueError("is damaged or ends too early: copy it again from where it was saved")
    numbers = {word: int(action) for action, word in WORDS.items()}
    events = np.zeros(len(rows) - 1, EVENT)
    for name, column in zip(columns[:-2], zip(*rows[1:], strict=False), strict=False):
        try:
            if name == "first":
                events[name] = _firsts(bytes.fromhex(word) for word in column)
                continue
            values = [numbers[word] for word in column] if name == "action" else [int(word) for word in column]
            events[name] = np.array(values, EVENT[name])
        except (KeyError, ValueError, OverflowError) as reason:
            raise ValueError(f"is damaged: its column {name} holds {reason}") from None
    return events, header


def _from_parquet(raw: bytes) -> tuple[np.ndarray, dict[str, Any]]:
    pyarrow, parquet = _pyarrow()
    numbers = {word: int(action) for action, word in WORDS.items()}
    try:
        table = parquet.read_table(pyarrow.BufferReader(raw))
        mark = (table.schema.metadata or {}).get(b"labkit")
        if mark is None:
            raise ValueError(f"is not a trace that labkit saved: a Parquet table of {', '.join(table.column_names)}")
        header = _header(mark.decode())
        events = np.zeros(table.num_rows, EVENT)
        for name in NUMBERS:
            column = table.column(name)
            events[name] = [numbers[word] for word in column.to_pylist()] if name == "action" else column.to_numpy()
        if header["format"] > 1:
            events["first"] = _firsts(first or b"" for first in table.column("first").to_pylist())
    except (pyarrow.ArrowException, OSError, KeyError) as reason:
        raise ValueError(f"is damaged or ends too early ({str(reason).splitlines()[0]})") from None
    return events, header


def _firsts(column: Iterable[bytes]) -> list[bytes]:
    """How messages begin, checked: numpy would cut off what is too much."""
    found = list(column)
    if (longest := max(map(len, found), default=0)) > FIRST_BYTES:
        raise ValueError(f"{longest} bytes where {FIRST_BYTES} is the most")
    return found


def _header(text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError("is damaged: its header cannot be read") from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise ValueError("is damaged: its header is not one of labkit's")
    if header["format"] > FORMAT:
        raise ValueError(f"was saved by a newer labkit (format {header['format']}, this one reads {FORMAT}): update it")
    return {"contents": False} | header


def _check(events: np.ndarray, header: dict[str, Any]) -> None:
    """Nothing of a file becomes an index before it was looked at."""
    for what in ("channels", "locks", "processes"):
        if not isinstance(header.get(what), list):
            raise ValueError(f"is damaged: its header does not list the {what}")
    if header.get("events") != len(events):
        raise ValueError(f"ends too early: {len(events):,} of {header.get('events')} events are in it")
    if len(events) and not (events["action"].min() >= min(Action) and events["action"].max() <= max(Action)):
        raise ValueError("is damaged: it holds an action that labkit does not know")
    for what, chosen in (("channels", of_channels(events)), ("locks", events[events["action"] >= Action.LOCK_OPENED])):
        if len(chosen) and int(chosen["channel"].max()) >= len(header[what]):
            raise ValueError(
                f"is damaged: it has {len(header[what])} {what} and an event of number {chosen['channel'].max()}"
            )


def _what(raw: bytes) -> str:
    """What a file is that is not ours, as far as one sees."""
    for begins, words in (
        (b"", "it is empty") if not raw else (b"\n", "it is a trace for ui.perfetto.dev, which is not read back"),
        (b"<!doctype html", "it is a page; labkit report --compare reads those"),
        (b"{", "it is JSON; notebooks are read by labkit report"),
    ):
        if raw[:20].lower().startswith(begins):
            return words
    return f"it begins with {raw[:16]!r}"


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ImportError(PARQUET_NEEDS) from None
    return pyarrow, pyarrow.parquet


# ------------------------------------------------------------------------------------------------- Perfetto


def to_perfetto(path: str | Path, events: np.ndarray, header: dict[str, Any], history: History) -> Path:
    """Write a trace for ui.perfetto.dev: a slice a call, an arrow a message, a counter a channel, slices for locks.

    The format is protobuf, trace_packet.proto and track_event.proto of Perfetto; times are nanoseconds.
    """
    tracks = _Tracks(header)
    timed = sorted([*_calls(events, header, tracks), *_locks(history, tracks)], key=lambda each: each[0])
    first = _packet(0, _INTERNED, flags=1)  # the state of this sequence begins here
    return replace_file(path, b"".join([first, *tracks.packets, *(_packet(*each) for each in timed)]))


BEGIN, END, INSTANT, COUNTER = 1, 2, 3, 4
_NAMES = ["send", "receive", "received", "gave up: not sent", "no message came", "closed"]
_NAMES += ["waits", "waits in vain", "holds", "gave back"]
_OF_SPAN = {GOT: "waits", IN_VAIN: "waits in vain", HELD: "holds"}
_ANNOTATIONS = ["bytes", "message", "begins"]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def _bytes(field: int, value: bytes | str) -> bytes:
    raw = value.encode(errors="replace") if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(raw)) + raw


def _fixed(field: int, value: int) -> bytes:
    return _varint(field << 3 | 1) + value.to_bytes(8, "little")


def _packet(time: int, content: bytes, flags: int = 2) -> bytes:
    """TracePacket in a Trace: timestamp = 8, trusted_packet_sequence_id = 10, sequence_flags = 13."""
    return _bytes(1, _number(8, time) + _number(10, 1) + _number(13, flags) + content)


# InternedData = 12 of a packet: event_names = 2, debug_annotation_names = 3, of iid = 1 and name = 2
_INTERNED = _bytes(
    12,
    b"".join(
        _bytes(field, _number(1, iid) + _bytes(2, name))
        for field, names in ((2, _NAMES), (3, _ANNOTATIONS))
        for iid, name in enumerate(names, start=1)
    ),
)


def _event(kind: int, track: int, name: str = "", more: bytes = b"") -> bytes:
    """TrackEvent = 11 of a packet: type = 9, track_uuid = 11, name_iid = 10."""
    named = _number(10, _NAMES.index(name) + 1) if name else b""
    return _bytes(11, _number(9, kind) + _number(11, track) + named + more)


class _Tracks:
    """The rows of the picture, described when they are first used: processes, and under them ends and locks."""

    def __init__(self, header: dict[str, Any]):
        self.packets: list[bytes] = []
        self.numbers: dict[Any, int] = {}
        self.names = {process["pid"]: process["name"] for process in header["processes"]}

    def get(self, key: Any, describe: Callable[[], bytes]) -> int:
        """The uuid of a track. TrackDescriptor = 60 of a packet: uuid = 1, name = 2, process = 3, parent_uuid = 5."""
        if key not in self.numbers:
            described = describe()  # its parent comes first
            self.numbers[key] = len(self.numbers) + 1
            self.packets.append(_packet(0, _bytes(60, _number(1, self.numbers[key]) + described)))
        return self.numbers[key]

    def process(self, pid: int) -> int:
        # ProcessDescriptor: pid = 1, process_name = 6
        return self.get(pid, lambda: _bytes(3, _number(1, pid) + _bytes(6, self.names.get(pid) or f"process {pid}")))

    def within(self, pid: int, key: Any, name: str) -> int:
        return self.get((pid, key), lambda: _number(5, self.process(pid)) + _bytes(2, name))

    def counter(self, number: int, label: str) -> int:
        # CounterDescriptor = 8: unit_name = 6
        return self.get(
            ("counter", number), lambda: _bytes(2, f"{label}: on the way") + _bytes(8, _bytes(6, "messages"))
        )


def _calls(events: np.ndarray, header: dict[str, Any], tracks: _Tracks) -> Iterator[tuple[int, bytes]]:
    events = of_channels(events)
    labels = [channel["label"] for channel in header["channels"]]
    found = messages(events)
    arrived = set(found["message"][found["receive_ends"] != 0].tolist())
    on_the_way = [0] * len(labels)
    ended = {Action.DROPPED: "gave up: not sent", Action.GAVE_UP: "no message came"}
    for time, message, size, pid, channel, endpoint, action, first in events.tolist():
        sends = action in (Action.SEND_BEGINS, Action.SEND_ENDS, Action.DROPPED)
        does = "an end of" if action == Action.CLOSED else "send to" if sends else "receive from"
        track = tracks.within(pid, ("end", endpoint), f"{does} {labels[channel]}")
        # DebugAnnotation = 4: name_iid = 1, uint_value = 3
        about = _bytes(4, _number(1, 1) + _number(3, size))
        about += _bytes(4, _number(1, 2) + _number(3, message & (1 << 40) - 1))
        step = 0
        if action == Action.SEND_BEGINS:
            step = int(message in arrived)
            arrow = _fixed(47, message) if step else b""  # flow_ids: it leaves here
            if header.get("contents", True):
                about += _bytes(4, _number(1, 3) + _bytes(6, in_words(beginning(first, size), size)))  # string_value
            yield time, _event(BEGIN, track, "send", about + arrow)
        elif action == Action.RECEIVE_BEGINS:
            yield time, _event(BEGIN, track, "receive")
        elif action == Action.RECEIVE_ENDS:
            # Its receive may have begun before the message was sent: the arrow ends at the moment of arrival.
            step = -int(message in arrived)
            arrow = _fixed(48, message) if step else b""  # terminating_flow_ids
            yield time, _event(INSTANT, track, "received", about + arrow)
            yield time, _event(END, track)
        elif action == Action.CLOSED:
            yield time, _event(INSTANT, track, "closed")
        else:
            if action in ended:
                yield time, _event(INSTANT, track, ended[action])
            yield time, _event(END, track)
        if step:
            on_the_way[channel] += step
            yield time, _event(COUNTER, tracks.counter(channel, labels[channel]), "", _number(30, on_the_way[channel]))


def _locks(history: History, tracks: _Tracks) -> Iterator[tuple[int, bytes]]:
    """Waits and holds, on one row for each lock of each thread: they overlap between locks."""
    for begin, end, thread, pid, lock, kind in history.spans.tolist():
        label = f"{history.infos[lock].label}, {history.names[pid, thread]}"
        track = tracks.within(pid, ("lock", thread, lock), label)
        if kind == GIVEN:
            yield begin, _event(INSTANT, track, "gave back")
            continue
        yield begin, _event(BEGIN, track, _OF_SPAN[kind])
        if end < FOREVER:
            yield end, _event(END, track)
