"""Traces in files: saved and loaded again, opened by other tools, and refused in one sentence when not ours."""

from __future__ import annotations

import csv
import gzip
import json
import os
import time

import numpy as np
import pytest

from labkit import Trace, channel, launch, report
from labkit.events import Action
from labkit.sync import PosixSemaphore
from labkit.views import recording

LABELS = ["pipe", 'naïve, "队列"\n🎉 <b>', "\udcff\x00 binary"]


@pytest.fixture(scope="module")
def trace():
    """Three channels, one with a message that nobody receives, two processes, a lock; recorded for real."""

    def consumer(rx, lock):
        for _ in rx:
            with lock:
                pass

    with Trace() as made:
        lock = made.lock(PosixSemaphore(), "the lock 锁")
        for number, label in enumerate(LABELS):
            tx, rx = channel("pipe", trace=made)
            made.channels[-1] = type(made.channels[-1])(**vars(made.channels[-1]) | {"label": label})
            job = launch(consumer, rx, lock)
            for size in range(1, 20 * (number + 1)):
                tx.send(b"\xff\x00" * size)
            tx.close()
            job.wait()
        tx, rx = channel("posix_mq", trace=made)
        tx.send(b"nobody reads this")
        with pytest.raises(TimeoutError):
            [rx.receive(timeout=0.01) for _ in range(2)]
        tx.send(b"nor this")
        tx.close(), rx.close(), lock.close()
    return made


def same(one: Trace, other: Trace) -> None:
    assert np.array_equal(one.events(), other.events())
    assert np.array_equal(one.messages(), other.messages())
    assert one.channels == other.channels and one.traced_locks == other.traced_locks
    assert one.processes == other.processes and one.lost == other.lost


@pytest.mark.parametrize("name", ["run.csv", "run.csv.gz", "run.parquet"])
def test_what_was_saved_is_loaded_again_with_all_that_a_trace_tells(trace, tmp_path, name):
    path = getattr(trace, f"to_{name.split('.')[1]}")(tmp_path / "new folder" / name)
    assert [p.name for p in path.parent.iterdir()] == [name]
    loaded = Trace.load(path)
    same(trace, loaded)
    assert loaded.latency() == trace.latency() and repr(loaded.compare()) == repr(trace.compare())
    assert repr(loaded.locks()) == repr(trace.locks())
    assert loaded.machine["Python"] and loaded.pid == os.getpid()
    assert loaded.saved_ns <= time.monotonic_ns()


def test_a_loaded_trace_is_watched_and_reported_like_the_one_that_was_recorded(trace, tmp_path):
    loaded = Trace.load(trace.to_csv(tmp_path / "run.csv"))
    assert recording.record(loaded) == recording.record(trace)
    page = report(loaded, tmp_path / "run.html").read_text()
    assert "<td>pipe</td><td>19</td>" in page and "锁" in page
    with pytest.raises(ValueError, match="this trace is closed"):
        channel("pipe", trace=loaded)


def test_a_loaded_trace_can_be_saved_again_and_stays_the_same(trace, tmp_path):
    first = trace.to_csv(tmp_path / "a.csv")
    second = Trace.load(Trace.load(first).to_parquet(tmp_path / "b.parquet")).to_csv(tmp_path / "c.csv")
    assert first.read_text().splitlines()[1:] == second.read_text().splitlines()[1:]


def test_how_messages_begin_is_saved_and_opened_by_other_tools(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    contents = [b"text", b"ends in zeros\0\0", bytes(16), bytes(2), b"longer than sixteen bytes"]
    with Trace() as made:
        tx, rx = channel("unix_datagram", trace=made)
        for content in contents:
            tx.send(content)
        tx.close(), rx.close()
    table = parquet.read_table(made.to_parquet(tmp_path / "run.parquet"))
    firsts = [first for first in table.column("first").to_pylist() if first is not None]
    assert firsts == [content[:16] for content in contents]
    rows = made.to_csv(tmp_path / "run.csv").read_text().splitlines()[1:]
    assert [row["first"] for row in csv.DictReader(rows) if row["first"]] == [first.hex() for first in firsts]
    same(made, Trace.load(tmp_path / "run.csv"))


def test_a_file_of_the_first_format_is_read_and_says_nothing_of_contents(trace, tmp_path):
    path = trace.to_csv(tmp_path / "run.csv")
    with open(path, newline="", encoding="utf-8") as file:
        header, rows = json.loads(file.readline().removeprefix("# labkit trace ")), list(csv.reader(file))
    del header["contents"]
    place = rows[0].index("first")
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(f"# labkit trace {json.dumps(header | {'format': 1})}\r\n")
        csv.writer(file).writerows(row[:place] + row[place + 1 :] for row in rows)
    loaded = Trace.load(path)
    assert not loaded.contents and not any(loaded.events()["first"])
    assert loaded.events()["time_ns"].tolist() == trace.events()["time_ns"].tolist()
    again = Trace.load(loaded.to_csv(tmp_path / "again.csv"))
    assert not again.contents and ",5b," not in (tmp_path / "again.csv").read_text()


def test_an_empty_trace_survives(tmp_path):
    with Trace() as empty:
        for path in (empty.to_csv(tmp_path / "run.csv"), empty.to_parquet(tmp_path / "run.parquet")):
            assert len(Trace.load(path).events()) == 0
        assert empty.to_perfetto(tmp_path / "run.pftrace").stat().st_size > 0


def test_the_csv_can_be_read_without_labkit(trace, tmp_path):
    path = trace.to_csv(tmp_path / "run.csv")
    with open(path, newline="", encoding="utf-8") as file:
        header = json.loads(file.readline().removeprefix("# labkit trace "))
        rows = list(csv.DictReader(file))
    assert header["events"] == len(rows) == len(trace.events())
    assert {row["label"] for row in rows if row["process"] == "consumer"} >= {LABELS[0], LABELS[1]}
    assert sum(row["action"] == "send ends" for row in rows) == sum(trace.events()["action"] == Action.SEND_ENDS)


def test_the_parquet_file_can_be_read_without_labkit(trace, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(trace.to_parquet(tmp_path / "run.parquet"))
    assert table.column("time_ns").to_pylist() == trace.events()["time_ns"].tolist()
    assert LABELS[1] in table.column("label").to_pylist() and "receive ends" in table.column("action").to_pylist()


def test_without_pyarrow_one_sentence_says_what_to_install(trace, tmp_path, monkeypatch):
    path = trace.to_parquet(tmp_path / "run.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    for attempt in (lambda: trace.to_parquet(tmp_path / "new.parquet"), lambda: Trace.load(path)):
        with pytest.raises(ImportError, match="pip install pyarrow, or use to_csv"):
            attempt()


@pytest.mark.parametrize("name", ["run.csv", "run.csv.gz", "run.parquet"])
def test_a_truncated_file_is_refused_wherever_it_was_cut(trace, tmp_path, name):
    path = getattr(trace, f"to_{name.split('.')[1]}")(tmp_path / name)
    whole = path.read_bytes()
    line = whole.rindex(b"\n", 0, len(whole) - 2) + 1 if name == "run.csv" else 77
    for cut in (0, 1, 4, 20, line, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"ends too early|not a trace that labkit saved|is damaged") as refused:
            Trace.load(path)
        assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is empty"),
        (b"hello, world", "it begins with b'hello, world'"),
        (b"<!DOCTYPE html><p>", "it is a page"),
        (b'{"cells": []}', "it is JSON"),
        (gzip.compress(b"something else"), "it begins with b'something else'"),
        (b"PAR1 nonsense", "is damaged or ends too early"),
        (b"# labkit trace {\r\n", "its header cannot be read"),
        (b"# labkit trace []\r\n", "its header is not one of labkit's"),
        (b'# labkit trace {"format": 1}\r\n' + b"a,b\r\n", "is damaged or ends too early"),
        (b'# labkit trace {"format": 99}\r\n', "was saved by a newer labkit (format 99"),
        (b"# labkit trace \xff\r\n", "it holds bytes that are no text"),
    ],
)
def test_what_is_not_ours_is_named_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "thing"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refused:
        Trace.load(path)
    assert sentence in str(refused.value) and str(path) in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (b",send ends,", b",ends sending,", "its column action holds"),
        (b'"channels": [', b'"canals": [', "does not list the channels"),
        (b'"capacity"', b'"volume"', "its header lacks or adds something"),
        (b'"recorder"', b'"reporter"', "its header lacks or adds something"),
        (b",send begins,", b",send begins,-", "its column message holds"),
        (b",ff00,", b",fg00,", "its column first holds"),
        (b",ff00,", b"," + b"ff" * 17 + b",", "its column first holds 17 bytes where 16 is the most"),
        (b'"events": ', b'"events": 1', "ends too early"),
    ],
)
def test_a_damaged_file_is_refused(trace, tmp_path, old, new, sentence):
    path = trace.to_csv(tmp_path / "run.csv")
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(ValueError, match=sentence):
        Trace.load(path)


def test_an_event_of_a_channel_that_does_not_exist_is_refused(trace, tmp_path):
    path = trace.to_csv(tmp_path / "run.csv")
    head, *lines = path.read_bytes().split(b"\r\n")
    header = json.loads(head.decode().removeprefix("# labkit trace "))
    header["channels"] = header["channels"][:1]
    path.write_bytes(b"\r\n".join([b"# labkit trace " + json.dumps(header).encode(), *lines]))
    with pytest.raises(ValueError, match="it has 1 channels and an event of number 3"):
        Trace.load(path)


# ------------------------------------------------------------------------------------------------- Perfetto


@pytest.fixture(scope="module")
def perfetto(trace, tmp_path_factory):
    """The trace as Perfetto's own protobuf classes read it."""
    pb2 = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")
    path = trace.to_perfetto(tmp_path_factory.mktemp("perfetto") / "run.pftrace")
    read = pb2.Trace.FromString(path.read_bytes())
    read.DiscardUnknownFields()
    assert read.ByteSize() == path.stat().st_size, "a field that the schema does not know, or of another type"
    return pb2, read.packet


def events_of(packets, kind):
    return [packet for packet in packets if packet.HasField("track_event") and packet.track_event.type == kind]


def test_perfetto_reads_one_arrow_a_received_message_from_its_send_to_its_arrival(trace, perfetto):
    pb2, packets = perfetto
    event = pb2.TrackEvent
    leave = {p.track_event.flow_ids[0]: p for p in events_of(packets, event.TYPE_SLICE_BEGIN) if p.track_event.flow_ids}
    arrive = {
        p.track_event.terminating_flow_ids[0]: p
        for p in events_of(packets, event.TYPE_INSTANT)
        if p.track_event.terminating_flow_ids
    }
    found = trace.messages()
    found = found[found["receive_ends"] > 0]
    assert {m: (p.timestamp, arrive[m].timestamp) for m, p in leave.items()} == {
        m["message"]: (m["send_begins"], m["receive_ends"]) for m in found
    }
    order = [p.track_event.flow_ids or p.track_event.terminating_flow_ids for p in packets if p.HasField("track_event")]
    assert len([ids for ids in order if ids]) == 2 * len(found)


def test_perfetto_sees_every_track_described_before_it_is_used_and_under_its_process(trace, perfetto):
    _, packets = perfetto
    described = {}
    for packet in packets:
        if packet.HasField("track_descriptor"):
            track = packet.track_descriptor
            assert track.parent_uuid in described or not track.HasField("parent_uuid")
            described[track.uuid] = track
        elif packet.HasField("track_event"):
            assert packet.track_event.track_uuid in described
    named = {t.process.pid: t.process.process_name for t in described.values() if t.HasField("process")}
    assert set(named) == set(trace.events()["pid"].tolist()) and "consumer" in named.values()
    names = [track.name for track in described.values()]
    assert f"send to {LABELS[1]}" in names and f"receive from {LABELS[1]}" in names
    assert sum(t.HasField("counter") for t in described.values()) == 4
    assert any(name.startswith("the lock 锁, ") for name in names)


def test_perfetto_sees_slices_that_end_in_their_track_and_counters_that_return_to_nothing(perfetto):
    pb2, packets = perfetto
    event, depth, counted = pb2.TrackEvent, {}, {}
    times = [packet.timestamp for packet in packets if packet.HasField("track_event")]
    assert times == sorted(times)
    for packet in packets:
        if not packet.HasField("track_event"):
            continue
        track = packet.track_event.track_uuid
        if packet.track_event.type in (event.TYPE_SLICE_BEGIN, event.TYPE_SLICE_END):
            depth[track] = depth.get(track, 0) + (1 if packet.track_event.type == event.TYPE_SLICE_BEGIN else -1)
            assert depth[track] >= 0
        elif packet.track_event.type == event.TYPE_COUNTER:
            counted[track] = packet.track_event.counter_value
            assert counted[track] >= 0
    assert set(depth.values()) == {0} and set(counted.values()) == {0}


def test_perfetto_finds_every_name_in_the_first_packet(perfetto):
    pb2, packets = perfetto
    first = packets[0]
    assert first.sequence_flags == pb2.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
    names = {each.iid: each.name for each in first.interned_data.event_names}
    words = {each.iid: each.name for each in first.interned_data.debug_annotation_names}
    assert {names[p.track_event.name_iid] for p in packets if p.track_event.name_iid} >= {
        *("send", "receive", "received", "no message came", "closed", "waits", "holds")
    }
    sends = [p.track_event for p in packets if names.get(p.track_event.name_iid) == "send"]
    notes = [{words[a.name_iid]: a.string_value or a.uint_value for a in s.debug_annotations} for s in sends]
    assert notes[:2] == [
        {"bytes": 2, "message": 0, "begins": "ff 00"},
        {"bytes": 4, "message": 1, "begins": "ff 00 ff 00"},
    ]
    assert notes[-1] == {"bytes": 8, "message": 1, "begins": "“nor this”"}
