"""Traces: every message is found again, times are in order, losses are counted, and nothing is disturbed."""

from __future__ import annotations

import gc
import os
import pickle
import threading
import time
import traceback
import weakref
from pathlib import Path

import numpy as np
import pytest
import roles

import labkit.trace
import labkit.traced
from labkit import KINDS, Closed, RemoteError, Trace, channel, launch, sender
from labkit.events import EVENT, Action, beginning
from labkit.lockfree import spsc
from labkit.sync import PosixSemaphore
from labkit.trace_entry import ENDPOINTS, EVENT_BYTES, FIRST_BYTES, SLOT_BYTES

pytestmark = pytest.mark.every_python


@pytest.fixture
def trace():
    with Trace() as trace:
        yield trace


def actions(trace, endpoint=None) -> list[Action]:
    events = trace.events()
    if endpoint is not None:
        events = events[events["endpoint"] == endpoint]
    return [Action(number) for number in events["action"]]


def test_the_layout_and_the_actions_are_those_of_the_compiled_code():
    from labkit import trace_entry

    for action in Action:
        assert getattr(trace_entry, action.name) == action
    assert EVENT.itemsize == EVENT_BYTES and EVENT.fields["first"] == (f"S{FIRST_BYTES}", SLOT_BYTES)
    with Trace() as trace:
        tx, rx = channel("pipe", trace=trace)
        tx.send(b"12345")
        rx.receive()
        event = trace.events()[0]
        assert event["time_ns"] <= time.monotonic_ns()
        assert time.monotonic_ns() - event["time_ns"] < 60e9
        assert (event["message"], event["size"], event["pid"]) == (1 << 40, 5, os.getpid())
        assert (event["channel"], event["endpoint"], event["action"]) == (0, 0, Action.SEND_BEGINS)
        tx.close()
        rx.close()


CONTENTS = (
    b"x",
    b"sixteen bytes...",
    b"seventeen bytes.!",
    bytes(3),
    b"a\0\0",
    bytes(range(200, 256)),
    "über 管道 🎉".encode(),
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_bytes_of_each_message_are_recorded(trace, kind):
    tx, rx = channel(kind, trace=trace)
    contents = [content[: tx.max_message] for content in CONTENTS]
    for content in contents:
        tx.send(content)
        assert rx.receive() == content
    found = trace.messages()
    assert [beginning(m["first"], m["size"]) for m in found] == [content[:16] for content in contents]
    tx.close()
    rx.close()


def test_the_first_bytes_go_round_with_the_ring_and_are_those_of_their_own_message(trace):
    """Batches that are no divisor of the ring, so that they begin and end anywhere in it; a child sends them."""
    tx, rx = channel("pipe", trace=trace)
    jobs = launch(roles.count_all, rx), launch(roles.send_numbered, tx, 150_000, 20)
    assert jobs[0].wait() == 150_000
    jobs[1].wait()
    found = trace.messages()
    numbers = (found["message"] & ((1 << 40) - 1)).tolist()
    sent = [roles.numbered(number, size)[:16] for number, size in zip(numbers, found["size"].tolist(), strict=True)]
    assert len(sent) + trace.lost >= 150_000 > labkit.traced.RING_EVENTS
    assert found["first"].tolist() == sent


def test_a_trace_without_contents_records_none_and_needs_no_room_for_them():
    with Trace(contents=False) as trace:
        tx, rx = channel("pipe", trace=trace)
        tx.send(b"nobody else's business")
        rx.receive()
        assert launch(roles.send_all, tx, [b"nor this"]).wait() is None
        assert not any(trace.events()["first"]) and len(trace.messages()) == 2
        assert {ring.nbytes for ring in trace._rings.values()} == {labkit.traced.RING_BYTES + spsc.DATA}
        rx.close()


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_is_a_pair_of_events(trace, kind):
    tx, rx = channel(kind, trace=trace)
    tx.send(b"one")
    rx.receive()
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0)
    tx.close()
    with pytest.raises(Closed):
        rx.receive()
    rx.close()
    assert actions(trace, 0) == [Action.SEND_BEGINS, Action.SEND_ENDS, Action.CLOSED]
    assert actions(trace, 1) == [
        *(Action.RECEIVE_BEGINS, Action.RECEIVE_ENDS),
        *(Action.RECEIVE_BEGINS, Action.GAVE_UP) * 2,
        Action.CLOSED,
    ]
    (message,) = trace.messages()
    assert message["send_begins"] <= message["send_ends"] <= message["receive_ends"]
    assert message["receive_begins"] <= message["receive_ends"]


def test_events_are_sorted_by_time_whoever_recorded_them(trace):
    pairs = [channel(kind, trace=trace) for kind in KINDS]
    running = [launch(roles.count_all, rx) for _, rx in pairs]
    running += [launch(roles.send_numbered, tx, 500, 100) for tx, _ in pairs]
    assert [job.wait() for job in running[: len(KINDS)]] == [500] * len(KINDS)
    times = trace.events()["time_ns"].astype(np.int64)
    assert (np.diff(times) >= 0).all()
    messages = trace.messages()
    assert len(messages) == 500 * len(KINDS)
    assert (messages["receive_ends"] > messages["send_begins"]).all()
    assert len(np.unique(messages["message"])) == 500 * len(KINDS)
    assert {int(pid) for pid in messages["sender"]} == {job.pid for job in running[len(KINDS) :]}
    assert {int(pid) for pid in messages["receiver"]} == {job.pid for job in running[: len(KINDS)]}


def test_messages_are_matched_although_the_queue_reorders_them(trace):
    tx, rx = channel("posix_mq", trace=trace)
    for priority in range(10):
        tx.send(b"x" * (priority + 1), priority=priority)
    assert [len(rx.receive()) for _ in range(10)] == list(range(10, 0, -1))
    messages = trace.messages()
    assert list(messages["size"]) == list(range(1, 11))
    assert (np.diff(messages["receive_ends"]) < 0).all()
    tx.close()
    rx.close()


def test_messages_of_clones_in_several_processes_are_told_apart(trace):
    tx, rx = channel("unix_seqpacket", trace=trace)
    ends = [tx.clone(), tx.clone(), tx]
    receiving = [launch(roles.count_all, rx.clone()), launch(roles.count_all, rx)]
    sending = [launch(roles.send_numbered, end, 200, 50) for end in ends]
    assert sum(job.wait() for job in receiving) == 600
    for job in sending:
        job.wait()
    messages = trace.messages()
    assert len(messages) == 600
    assert (messages["receive_ends"] > 0).all()
    assert {int(pid) for pid in messages["sender"]} == {job.pid for job in sending}
    assert len(trace.channels) == 1


def test_ids_go_on_when_a_sender_moves_to_another_process(trace):
    tx, rx = channel("pipe", trace=trace)
    tx.send(b"here")
    launch(roles.send_all, tx, [b"there"]).wait()
    assert list(rx) == [b"here", b"there"]
    assert list(trace.messages()["message"] - (1 << 40)) == [0, 1]
    rx.close()


def test_a_given_away_end_records_nothing_here(trace):
    """Its ring has one writer, and that is the child now."""
    tx, rx = channel("pipe", trace=trace)
    job = launch(roles.hold, tx)
    before = len(trace.events())
    for misuse in (lambda: tx.send(b"x"), tx.clone):
        with pytest.raises(ValueError, match="closed"):
            misuse()
    assert len(trace.events()) == before
    job.kill()
    rx.close()


def test_what_was_given_up_is_marked_dropped_and_is_not_lost(trace):
    tx, rx = channel("posix_mq", trace=trace, max_messages=2)
    for _ in range(2):
        tx.send(b"x")
    with pytest.raises(TimeoutError):
        tx.send(b"y", timeout=0)
    rx.receive()
    messages = trace.messages()
    assert list(messages["dropped"]) == [False, False, True]
    latency = trace.latency()
    assert (latency.n, latency.lost) == (1, 1)
    tx.close()
    rx.close()


def test_the_rest_of_a_half_sent_message_makes_it_a_received_one(trace):
    tx, rx = channel("pipe", trace=trace)
    with pytest.raises(TimeoutError):
        tx.send(bytes(100_000), timeout=0)
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0)
    tx.send(b"next")
    assert len(rx.receive()) == 100_000
    assert rx.receive() == b"next"
    assert not trace.messages()["dropped"].any()
    tx.close()
    rx.close()


def test_messages_that_are_refused_leave_no_event(trace):
    tx, rx = channel("shm_ring", trace=trace)
    for bad in (b"", "text", bytes(tx.max_message + 1)):
        with pytest.raises((ValueError, TypeError, OSError)):
            tx.send(bad)
    assert len(trace.events()) == 0
    tx.close()
    rx.close()


@pytest.mark.parametrize(
    "foreign", [b"short", b"12345678", b"a longer message of somebody else's", bytes(40), b"\xff" * 40]
)
def test_a_message_of_a_sender_that_is_not_traced_is_told(trace, a_name, foreign):
    tx, rx = channel("posix_mq", name=a_name, trace=trace)
    with sender("posix_mq", a_name) as stranger:
        stranger.send(foreign)
    with pytest.raises(OSError, match="not traced"):
        rx.receive()
    tx.send(b"ours")
    assert rx.receive() == b"ours"
    tx.close()
    rx.close()


def test_a_million_events_are_recorded_without_loss_when_the_collector_keeps_up(trace):
    tx, rx = channel("shm_ring", trace=trace)
    for batch in range(1, 11):
        for _ in range(25_000):
            tx.send(b"12345678")
            rx.receive()
        assert roles.eventually(lambda batch=batch: trace._kept == batch * 100_000, 30)  # by itself, in its thread
    tx.close()
    rx.close()
    assert trace.lost == 0
    assert len(trace.events()) == 1_000_000 + 2  # two ends closed
    messages = trace.messages()
    assert len(messages) == 250_000
    assert (messages["receive_ends"] > 0).all()


def test_of_a_million_events_at_full_speed_everyone_is_recorded_or_counted_as_lost(trace):
    tx, rx = channel("shm_ring", trace=trace)

    def send(tx):
        for _ in range(250_000):
            tx.send(b"12345678")

    jobs = launch(roles.count_all, rx), launch(send, tx)
    assert jobs[0].wait() == 250_000
    jobs[1].wait()
    assert len(trace.events()) + trace.lost == 1_000_000 + 4  # the receive at end of file, and two ends closed


def test_loss_is_counted_when_the_collector_is_held(trace, monkeypatch):
    tx, rx = channel("pipe", trace=trace)
    rounds = labkit.traced.RING_EVENTS // 2 + 5000
    with trace._lock:  # the collector waits for it
        for _ in range(rounds):
            tx.send(b"x")
            rx.receive()
        lost = trace.lost
    assert lost == 2 * 2 * rounds - 2 * labkit.traced.RING_EVENTS
    assert len(trace.events()) == 2 * labkit.traced.RING_EVENTS
    assert "lost" in repr(trace)
    assert trace.lost == lost
    tx.close()
    rx.close()
    trace.close()
    assert trace.lost == lost


def test_only_the_newest_events_are_kept_and_the_forgotten_are_counted():
    with Trace(keep=1000) as trace:
        tx, rx = channel("pipe", trace=trace)
        for round_ in range(1, 6):
            for _ in range(200):
                tx.send(b"x")
                rx.receive()
            events = trace.events()  # which must not make the next round forget all of these
            assert len(events) == min(1000, round_ * 800)
            assert trace.forgotten == max(0, round_ * 800 - 1000)
        tx.close()
        rx.close()


def test_processes_are_named_and_their_ends_noted(trace):
    tx, rx = channel("pipe", trace=trace)
    jobs = launch(roles.hold, tx, name="sleeper"), launch(roles.count_all, rx)
    assert trace.processes[os.getpid()].ended is None
    assert trace.processes[jobs[0].pid] == labkit.trace.ProcessInfo(jobs[0].pid, "sleeper")
    jobs[0].kill()
    with pytest.raises(RemoteError):
        jobs[0].wait()
    jobs[1].wait()
    assert trace.processes[jobs[0].pid].ended == "killed by SIGKILL"  # at once when wait returns
    assert trace.processes[jobs[1].pid].ended == "exited 0"


def test_events_of_a_killed_process_are_kept(trace):
    tx, rx = channel("shm_ring", trace=trace)
    job = launch(roles.send_forever, tx, b"x" * 1000)
    for _ in range(100):
        rx.receive()
    job.kill()
    rest = roles.count_all(rx)
    messages = trace.messages()
    assert (messages["receive_ends"] > 0).sum() == 100 + rest


def test_channels_have_labels_that_tell_them_apart(trace):
    ends = [channel("pipe", trace=trace), channel("pipe", trace=trace), channel("pipe", trace=trace, label="orders")]
    ends += [channel("posix_mq", trace=trace)]
    assert [info.label for info in trace.channels] == ["pipe", "pipe 2", "orders", "posix_mq"]
    assert [info.unit for info in trace.channels] == ["bytes", "bytes", "bytes", "messages"]
    ends[2][0].send(b"x")
    ends[2][1].receive()
    assert trace.latency("orders").n == trace.latency(2).n == trace.latency().n == 1
    assert trace.throughput("orders").messages == 1
    assert trace.latency("pipe").n == 0
    with pytest.raises(ValueError, match="no channel 'order'.*orders"):
        trace.latency("order")
    for end in sum(ends, ()):
        end.close()


def test_subscribers_get_every_event_once_at_most_twenty_times_a_second(trace):
    calls, events = [], []

    def subscriber(new):
        calls.append(time.monotonic())
        events.append(new)

    begun = time.monotonic()
    unsubscribe = trace.subscribe(subscriber)
    tx, rx = channel("pipe", trace=trace)
    while len(calls) < 10 and time.monotonic() - begun < 60:
        tx.send(b"x")
        rx.receive()
    tx.close()
    rx.close()
    assert roles.eventually(lambda: sum(map(len, events)) == len(trace.events()))
    assert 10 <= len(calls) <= 20 * (calls[-1] - begun) + 2
    assert {call.dtype for call in events} == {EVENT}
    unsubscribe()
    unsubscribe()
    count = len(calls)
    trace.add_process(1, "init")
    time.sleep(0.2)
    assert len(calls) == count


def test_subscribers_hear_of_new_channels_and_processes_without_events(trace):
    heard = []
    trace.subscribe(heard.append)
    trace.add_process(1, "init")
    assert roles.eventually(lambda: heard)
    assert len(heard[0]) == 0
    assert heard[0].dtype == EVENT


def test_a_subscriber_that_fails_is_dropped_and_the_others_go_on(trace, capsys):
    heard = []

    def fails(_):
        raise KeyError("oops")

    trace.subscribe(fails)
    trace.subscribe(heard.append)
    trace.add_process(1, "init")
    assert roles.eventually(lambda: heard)
    trace.add_process(2, "second")
    assert roles.eventually(lambda: len(heard) > 1)
    assert capsys.readouterr().out.count("KeyError") == 1


def test_a_subscriber_may_close_the_trace():
    trace = Trace()
    trace.subscribe(lambda _: trace.close())
    trace.add_process(1, "init")
    assert roles.eventually(lambda: trace._collector is None)
    with pytest.raises(ValueError, match="closed"):
        channel("pipe", trace=trace)


def test_a_closed_trace_keeps_what_it_has_and_takes_nothing_new():
    trace = Trace()
    tx, rx = channel("pipe", trace=trace)
    tx.send(b"x")
    rx.receive()
    trace.close()
    trace.close()
    assert not trace._collector.is_alive()
    assert len(trace.events()) == 4
    tx.send(b"y")  # the channel goes on
    assert rx.receive() == b"y"
    assert len(trace.events()) == 4
    with pytest.raises(ValueError, match="closed"):
        channel("pipe", trace=trace)
    with pytest.raises(ValueError, match="closed"):
        tx.clone()
    tx.close()
    rx.close()


def test_a_forgotten_trace_ends_its_thread_and_frees_its_memory():
    def mapped():
        return Path("/proc/self/maps").read_text().count("labkit-trace")

    before = mapped()
    trace = Trace()
    tx, rx = channel("pipe", trace=trace)
    tx.send(b"x")
    tx.close()
    rx.close()
    collector, reference = trace._collector, weakref.ref(trace)
    del trace, tx, rx
    gc.collect()
    assert roles.eventually(lambda: reference() is None)
    assert roles.eventually(lambda: not collector.is_alive())
    assert roles.eventually(lambda: mapped() == before)


def test_a_trace_with_every_endpoint_taken_says_so_and_leaves_nothing(trace, monkeypatch):
    assert labkit.trace.ENDPOINTS == ENDPOINTS
    monkeypatch.setattr(labkit.trace, "ENDPOINTS", 5)
    ends = [end for _ in range(2) for end in channel("pipe", trace=trace)]
    with pytest.raises(OSError, match="5 endpoints"):
        channel("pipe", trace=trace)
    assert len(trace.channels) == 2
    for end in ends:
        end.close()


def test_a_traced_end_is_not_cloned_where_its_trace_is_not(trace):
    tx, rx = channel("unix_seqpacket", trace=trace)
    with pytest.raises(RemoteError, match="clone a traced end in the process that made the trace"):
        launch(lambda tx: tx.clone(), tx).wait()
    rx.close()


def test_a_trace_stays_in_its_process(trace):
    with pytest.raises(TypeError, match="stays in the process"):
        pickle.dumps(trace)
    with pytest.raises(TypeError, match="a trace stays"):
        launch(lambda: trace)


def test_tracing_from_several_threads_of_one_process_loses_nothing(trace):
    pairs = [channel("unix_seqpacket", trace=trace) for _ in range(4)]
    users = [threading.Thread(target=roles.send_numbered, args=(tx, 2000, 100)) for tx, _ in pairs]
    users += [threading.Thread(target=lambda rx=rx: [rx.receive() for _ in range(2000)]) for _, rx in pairs]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert (trace.messages()["receive_ends"] > 0).sum() == 8000
    assert trace.lost == 0
    for end in sum(pairs, ()):
        end.close()


def test_no_memory_for_a_trace_is_explained_and_the_rest_is_unharmed():
    def without_memory():
        import resource
        import signal

        from labkit import Trace, channel

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Trace() as trace:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
            before = len(os.listdir("/proc/self/fd"))
            try:
                channel("pipe", trace=trace)
            except OSError as reason:
                return str(reason), len(os.listdir("/proc/self/fd")) - before

    text, leaked = launch(without_memory).wait()
    assert "no memory for the trace" in text
    assert leaked == 0


def test_the_second_subscriber_gets_nothing_that_was_there_before_it():
    with Trace() as trace:
        trace.subscribe(lambda _: None)
        tx, rx = channel("pipe", trace=trace)
        for _ in range(50):
            tx.send(b"x")
        heard = []
        with trace._lock:
            past = len(trace.events())
            trace.subscribe(heard.append)
        tx.send(b"y")
        assert roles.eventually(lambda: sum(map(len, heard)) >= 2)
        assert past + sum(map(len, heard)) == len(trace.events())
        tx.close()
        rx.close()


def test_a_trace_whose_channels_are_closed_rests_and_wakes_again():
    with Trace() as trace:
        descriptors = len(os.listdir("/proc/self/fd"))
        for round_number in (1, 2):
            tx, rx = channel("pipe", trace=trace)
            tx.send(b"x")
            assert rx.receive() == b"x"
            assert trace._collector is not None
            tx.close()
            rx.close()
            assert roles.eventually(lambda: trace._collector is None)
            assert roles.eventually(lambda: len(os.listdir("/proc/self/fd")) == descriptors)
            assert trace.latency().n == round_number


@pytest.mark.parametrize("kind", ["pipe", "unix_seqpacket", "posix_shm"])
def test_what_was_kept_of_a_closed_end_records_and_sends_nothing(kind):
    with Trace() as trace:
        tx, rx = channel(kind, trace=trace)
        send, receive = tx.send, rx.receive
        tx.close()
        rx.close()
        for call, arguments in ((send, (b"x",)), (receive, ()), (send, (b"x", 0)), (receive, (0,))):
            with pytest.raises(ValueError, match="closed"):
                call(*arguments)
        assert {Action(event["action"]) for event in trace.events()} == {Action.CLOSED}


@pytest.mark.parametrize("kind", ["pipe", "unix_stream", "unix_seqpacket", "posix_mq", "posix_shm", "shm_ring"])
def test_a_send_that_waits_for_room_is_one_message_and_its_end_is_when_it_went(kind):
    with Trace() as trace:
        tx, rx = channel(kind, trace=trace)
        job = launch(receive_slowly, rx)
        sent = [bytes([n]) * min(tx.max_message, 30_000) for n in range(40)]
        for message in sent:
            tx.send(message)
        tx.close()
        assert job.wait() == [message[:1] for message in sent]
        messages = trace.messages()
        assert len(messages) == 40 and not messages["dropped"].any()
        assert (messages["send_begins"] < messages["send_ends"]).all() and messages["receive_ends"].all()


def receive_slowly(rx):
    time.sleep(0.05)
    return [message[:1] for message in rx]


def test_an_event_stays_inside_the_ring_whatever_a_peer_has_written_into_it():
    with Trace() as trace:
        tx, rx = channel("pipe", trace=trace)
        ring = trace._rings[tx._number]
        end = labkit.traced.RING_BYTES
        ring[[spsc.READ // 8, spsc.WRITE // 8]] = end - 8
        slots = spsc.DATA + end
        tx.send(b"x" * 16)  # the event would begin 8 bytes before the end of the slots
        assert rx.receive() == b"x" * 16
        assert (bytes(ring)[slots - 32 : slots] != bytes(32), bytes(ring)[-16:]) == (True, b"x" * 16)
        tx.close()
        rx.close()


# --- copies made by fork(2) ----------------------------------------------------------------------------------------


def in_a_fork(do):
    """Exit status of a copy of this process that does something; 0 when nothing went wrong."""
    child = os.fork()
    if child == 0:
        try:
            do()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "zmq"])  # which does not work in a copy
def test_a_copy_made_by_fork_sends_and_receives_and_leaves_no_event_and_no_id(trace, kind):
    tx, rx = channel(kind, trace=trace)
    tx.send(b"before")
    assert rx.receive() == b"before"

    def send_there():
        for _ in range(3):
            tx.send(b"there")
        tx.close()

    assert in_a_fork(send_there) == 0
    tx.send(b"after")
    assert [rx.receive() for _ in range(4)] == [b"there"] * 3 + [b"after"]
    messages = trace.messages()
    assert len(messages) == 2
    assert (messages["receive_ends"] > 0).all()
    assert set(trace.events()["pid"]) == {os.getpid()}
    assert trace.lost == 0


def test_a_copy_made_by_fork_takes_no_events_from_the_trace_and_opens_nothing_in_it(trace):
    tx, rx = channel("pipe", trace=trace)
    tx.send(b"x")

    def try_everything():
        trace.collect()
        trace.events()
        with pytest.raises(ValueError, match="closed"):
            channel("pipe", trace=trace)
        with pytest.raises(ValueError, match="clone a traced end"):
            tx.clone()
        with pytest.raises(ValueError, match="copy made by fork"):
            tx.__reduce__()
        trace.close()

    with trace._lock:  # as the collector's thread may hold it
        assert in_a_fork(try_everything) == 0
        assert len(trace.events()) == 2
    assert rx.receive() == b"x"
    assert len(trace.messages()) == 1


def test_a_traced_lock_records_on_when_a_copy_made_by_fork_has_closed_its_own(trace):
    lock = trace.lock(PosixSemaphore(1), "lock")

    def use_and_close():
        with lock:
            pass
        lock.close()

    assert in_a_fork(use_and_close) == 0
    time.sleep(0.05)  # the collector would give up the ring of a lock that was closed
    for _ in range(2):
        with lock:
            pass
    (row,) = trace.locks()
    assert row.acquired == 2
    lock.close()
