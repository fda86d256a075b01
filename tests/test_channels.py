"""One suite for all mechanisms: what every channel promises, every field of Facts both ways, and every bad input."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import errno
import gc
import importlib
import inspect
import io
import os
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import posix_ipc
import pytest
import roles
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import labkit.channels
from labkit import KINDS, Closed, RemoteError, Trace, channel, facts, launch, receiver, sender, unlink
from labkit.channels import base, pipe
from labkit.holders import places

pytestmark = pytest.mark.every_python

ENDS = [(kind, traced) for kind in KINDS for traced in (False, True)]
NAMED = [kind for kind, fact in facts().items() if not fact.related_only]
STREAMS = [kind for kind, fact in facts().items() if not fact.boundaries]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def fact(kind):
    return facts()[kind]


@pytest.fixture(params=ENDS, ids=[f"{kind}-traced" if traced else kind for kind, traced in ENDS])
def ends(request) -> Iterator[tuple[base.Sender, base.Receiver]]:
    """Two fresh ends of each mechanism, bare and traced."""
    kind, traced = request.param
    trace = Trace() if traced else None
    tx, rx = channel(kind, trace=trace)
    yield tx, rx
    rx.close()  # first: a sender that buffers in its own process may wait for its receiver
    tx.close()
    if trace:
        trace.close()


def fill(tx, message=b"x") -> int:
    """Send without waiting until the channel is full; returns how many went in."""
    if not tx.facts.reliable:
        pytest.skip("it is never full: it drops what does not fit, which has a test of its own")
    tx.send(message)  # a receiver that was just given away may still be on its way
    count = 1
    patience = 0.5 if tx.kind in ("tcp", "zmq") else 0  # whose receivers make a little more room by themselves
    while True:
        try:
            tx.send(message, timeout=0 if tx.facts.handed_over else 0.3)  # else a thread moves on what was sent
        except TimeoutError:
            try:
                tx.send(message, patience)
            except TimeoutError:
                # Half: libzmq tells of room half a queue at a time, so that what was received before may still count.
                if tx.facts.handed_over or count >= tx.capacity.amount // 2:
                    return count
                continue  # a thread that moves on what was sent has not come to that yet
        count += 1


def what_is_left(tx, rx) -> list[bytes]:
    """Close the sender and receive the rest, at the same time: closing may wait until all is on its way."""
    closing = threading.Thread(target=tx.close)
    closing.start()
    left = list(rx)
    closing.join()
    return left


def largest(tx) -> int:
    """The largest message worth sending in a test: a byte stream's own limit is 4 GiB."""
    return min(tx.max_message, 5_000_000)


def make_way(tx):
    """For a stranger that is going to send: some kinds take one sender at a time (test_shared_memory.py)."""
    if tx.kind in ("posix_shm", "mmap_file"):
        tx.close()


def only_streams(kind):
    if kind not in STREAMS:
        pytest.skip("only a byte stream carries a message in parts")


def only_reliable(end):
    if not end.facts.reliable:
        pytest.skip("it loses what a slow receiver leaves no room for, which has a test of its own")


def several_senders(kind, name):
    """Two senders and the receiver of one channel: a clone, or for connections one more by name."""
    if kind in NAMED:
        tx, rx = channel(kind, name=name)
        return tx, sender(kind, name), rx
    tx, rx = channel(kind)
    return tx, tx.clone(), rx


# --- what every channel promises ----------------------------------------------------------------------------


def test_a_message_arrives_as_it_was_sent(ends):
    tx, rx = ends
    tx.send(b"hello")
    assert rx.receive() == b"hello"


def test_messages_of_every_size_arrive_whole(ends):
    tx, rx = ends
    for size in sorted({1, 2, 7, 8, 9, 2047, 4084, 4085, 4096, 65535, 65536, largest(tx)}):
        if size <= tx.max_message:
            message = os.urandom(size)
            sending = threading.Thread(target=tx.send, args=(message,))
            sending.start()
            assert rx.receive() == message
            sending.join()


def test_messages_of_one_sender_arrive_in_order(ends):
    tx, rx = ends
    only_reliable(tx)
    assert tx.facts.ordered
    messages = [b"%d" % n for n in range(2000)]
    job = launch(roles.send_all, tx, messages)
    assert list(rx) == messages
    job.wait()


def test_iteration_ends_when_the_last_sender_closes(ends):
    tx, rx = ends
    tx.send(b"1")
    tx.send(b"2")
    tx.close()
    assert list(rx) == [b"1", b"2"]


def test_a_closed_channel_says_so_again_and_again(ends):
    tx, rx = ends
    tx.close()
    for timeout in (0, 0.01, None):
        with pytest.raises(Closed):
            rx.receive(timeout)


def test_closing_twice_is_closing_once(ends):
    for end in ends:
        end.close()
        end.close()
        end.given_away()
        assert end.closed
        assert "closed" in repr(end)


def test_a_closed_end_raises_value_error_whatever_is_asked_of_it(ends):
    tx, rx = ends
    tx.close()
    rx.close()
    for ask in (
        lambda: tx.send(b"x"),
        lambda: tx.send(b"x", timeout=0),
        lambda: rx.receive(),
        lambda: rx.receive(timeout=0),
        lambda: next(iter(rx)),
        lambda: launch(roles.hold, tx),
        lambda: launch(roles.hold, [rx]),
    ):
        with pytest.raises(ValueError, match="closed"):
            ask()


@pytest.mark.parametrize("doing", ["sends", "receives"])
def test_another_thread_may_close_an_end_that_waits(kind, doing):
    def close_meanwhile():
        tx, rx = channel(kind)
        end, waits = (rx, rx.receive) if doing == "receives" else (tx, lambda timeout: tx.send(b"x", timeout))
        if doing == "sends":
            fill(tx)
        closing = threading.Timer(0.2, end.close)
        closing.start()
        try:
            waits(timeout=60)  # at its deadline it would be a TimeoutError
        except Exception as reason:
            said = type(reason), str(reason)
        else:
            said = None, "it has gone after all"  # closing makes room: what tcp has overdrawn, for instance
        closing.join()
        return said

    if doing == "sends" and not facts()[kind].reliable:
        pytest.skip("it never waits")
    if (kind, doing) in (("signal", "sends"), ("zmq", "sends")):
        pytest.skip("it would fill the queue of all processes, and closing waits long for what was sent")
    error, text = launch(close_meanwhile).wait()  # in a process of its own: memory that is gone is a SIGSEGV
    assert (error is ValueError and "closed" in text) or (doing == "sends" and error is None), (error, text)


OPTIONS = [
    (kind, function, option)
    for kind, module in KINDS.items()
    for function in ("open", "open_named", "open_sender", "open_receiver")
    for option, about in inspect.signature(
        getattr(importlib.import_module(module), function, lambda: None)
    ).parameters.items()
    if about.annotation in ("int", "int | None", "bool") and option != "create"
]


@pytest.mark.parametrize("wrong", ["x", b"x", None, 1.5, float("nan"), float("inf"), [], True], ids=str)
@pytest.mark.parametrize(("kind", "function", "option"), OPTIONS, ids="-".join)
def test_an_option_of_the_wrong_type_is_refused_by_its_name(kind, function, option, wrong, a_name):
    about = inspect.signature(getattr(importlib.import_module(KINDS[kind]), function)).parameters[option]
    if (wrong is None and "None" in about.annotation) or (wrong is True and about.annotation == "bool"):
        pytest.skip("it may be that")
    opens = {"open": channel, "open_named": channel, "open_sender": sender, "open_receiver": receiver}[function]
    name = [] if function == "open" else [a_name]
    with pytest.raises(TypeError) as refusal:
        opens(kind, *name, **{option: wrong})
    what = "True or False" if about.annotation == "bool" else "a whole number"
    assert str(refusal.value) == f"{option} is {what}, not {wrong!r}"


def test_an_option_that_a_channel_has_not_is_refused_with_those_that_it_has(kind):
    with pytest.raises(TypeError, match=f"a {kind} has no option 'colour' here; it has: ") as refusal:
        channel(kind, colour="red")
    for option in inspect.signature(importlib.import_module(KINDS[kind]).open).parameters:
        assert option in str(refusal.value)


@pytest.mark.parametrize("wrong", ["x", b"x", []], ids=str)
def test_a_timeout_is_seconds(kind, wrong):
    tx, rx = channel(kind)
    with rx, tx, pytest.raises(TypeError, match="timeout is seconds, or None"):
        rx.receive(timeout=wrong)


@pytest.mark.parametrize("timeout", [np.float32(0.01), np.int64(0), Fraction(1, 100)], ids=repr)
def test_a_timeout_is_any_number(ends, timeout):
    tx, rx = ends
    tx.send(b"x", timeout)
    assert rx.receive(timeout) == b"x" if tx.facts.handed_over else rx.receive() == b"x"
    with pytest.raises(TimeoutError):
        rx.receive(timeout)


def test_a_closed_end_is_not_cloned(ends):
    for end in ends:
        end.close()
        with pytest.raises((ValueError, io.UnsupportedOperation)):
            end.clone()


@pytest.mark.parametrize("attempt", [copy.copy, copy.deepcopy, pickle.dumps])
def test_who_only_tries_to_copy_an_end_does_it_no_harm(ends, attempt):
    tx, rx = ends
    tx.send(b"before")
    for end in ends:
        with pytest.raises(TypeError, match="hand it over as an argument"):
            attempt(end)
    gc.collect()
    tx.send(b"after")
    assert [rx.receive(), rx.receive()] == [b"before", b"after"]


def test_ends_in_cycles_are_closed_when_the_cycles_are_collected(kind):
    tx, rx = channel(kind)
    tx.itself, rx.itself = tx, rx
    tx.send(b"x")
    forgotten = [weakref.ref(tx), weakref.ref(rx)]
    del tx, rx
    gc.collect()
    assert [end() for end in forgotten] == [None, None]


def test_an_end_closes_with_its_block_and_when_it_is_forgotten(kind):
    tx, rx = channel(kind)
    with rx:
        del tx
        with pytest.raises(Closed):
            rx.receive()
    assert rx.closed


def test_many_messages_between_two_processes_keep_their_content(ends):
    tx, rx = ends
    only_reliable(tx)
    count, top = 100_000, min(tx.max_message, 20_000)
    jobs = launch(roles.check_numbered, rx, top), launch(roles.send_numbered, tx, count, top)
    assert jobs[0].wait() == count
    jobs[1].wait()


def test_messages_go_round_through_another_process(kind):
    (there, far_rx), (far_tx, back) = channel(kind), channel(kind)
    job = launch(roles.echo, far_rx, far_tx)
    for number in range(300):
        there.send(b"%d" % number)
        assert back.receive() == b"%d" % number
    there.close()
    job.wait()
    back.close()


@pytest.mark.usefixtures("one_cpu")
def test_it_works_on_one_processor(ends):
    tx, rx = ends
    only_reliable(tx)

    def pinned(tx, count, top, cpus):
        os.sched_setaffinity(0, cpus)
        roles.send_numbered(tx, count, top)

    top = min(tx.max_message, 2000)
    job = launch(pinned, tx, 3000, top, os.sched_getaffinity(0))
    assert roles.check_numbered(rx, top) == 3000
    job.wait()


# --- what a message may be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        bytearray(b"12345678"),
        memoryview(b"12345678"),
        memoryview(b"0123456789")[1:9],
        np.frombuffer(b"12345678", np.uint8),
        np.arange(3, dtype=np.int64),
        np.arange(3, dtype=">i4"),
        np.ones((2, 3)),
        np.zeros(2, [("a", "i4"), ("b", "f8")]),
    ],
    ids=["bytearray", "memoryview", "slice", "bytes array", "int64", "big-endian", "two-dimensional", "records"],
)
def test_a_message_is_anything_whose_bytes_lie_in_a_row(ends, message):
    tx, rx = ends
    tx.send(message)
    assert rx.receive() == (message.tobytes() if hasattr(message, "tobytes") else bytes(message))


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("text", "encode"),
        (42, "not int"),
        (None, "not NoneType"),
        ([1, 2], "not list"),
        (np.arange(10)[::2], "copy it first"),
        (np.asfortranarray(np.ones((2, 3))), "copy it first"),
        (memoryview(b"12345678")[::2], "copy it first"),
    ],
    ids=["str", "int", "None", "list", "strided", "fortran", "strided view"],
)
def test_anything_else_is_a_type_error_and_the_channel_stays_usable(ends, message, says):
    tx, rx = ends
    with pytest.raises(TypeError, match=says):
        tx.send(message)
    tx.send(b"fine")
    assert rx.receive() == b"fine"


@pytest.mark.parametrize(
    "empty",
    [b"", bytearray(), memoryview(b""), np.zeros(0), np.zeros((0, 3))],
    ids=["bytes", "bytearray", "memoryview", "array", "2-D array"],
)
def test_an_empty_message_is_refused_and_the_channel_stays_usable(ends, empty):
    tx, rx = ends
    with pytest.raises(ValueError, match="at least 1 byte"):
        tx.send(empty)
    tx.send(b"fine")
    assert rx.receive() == b"fine"


def test_a_message_that_is_too_large_is_refused_with_the_limit_and_the_channel_stays_usable(ends):
    tx, rx = ends
    if tx.kind == "pipe":  # which takes 4 GiB, except where several send
        tx.clone().close()
    if tx.max_message > 1 << 30:
        pytest.skip("a message of 4 GiB")
    assert tx.max_message <= 1 << 20
    for message in (b"x" * (tx.max_message + 1), bytearray(tx.max_message + 9)):
        with pytest.raises(OSError, match=f"{tx.max_message:,}") as caught:
            tx.send(message)
        assert caught.value.errno == errno.EMSGSIZE
    longest = os.urandom(tx.max_message)
    tx.send(longest)
    assert rx.receive() == longest


def test_a_message_larger_than_the_buffer_goes_through_a_byte_stream(ends):
    tx, rx = ends
    if tx.max_message < 5_000_000:
        pytest.skip("only a byte stream takes messages larger than its buffer")
    message = os.urandom(5_000_000)
    job = launch(roles.send_all, tx, [message, b"next"])
    assert rx.receive() == message
    assert rx.receive() == b"next"
    job.wait()


def test_a_buffer_that_calls_send_again_does_no_harm(ends):
    tx, rx = ends
    if sys.version_info < (3, 12):
        pytest.skip("Python 3.12 lets classes have buffers: PEP 688")

    class Nested:
        def __buffer__(self, flags):
            tx.send(b"inner")
            return memoryview(b"outer")

    tx.send(Nested())
    assert {rx.receive(), rx.receive()} == {b"inner", b"outer"}


# --- time ---------------------------------------------------------------------------------------------------


def test_an_empty_channel_times_out(ends):
    tx, rx = ends
    for timeout in (0, 0.02):
        with pytest.raises(TimeoutError):
            rx.receive(timeout)
    tx.send(b"later")
    assert rx.receive() == b"later"


def test_a_full_channel_times_out_and_loses_nothing(ends):
    tx, rx = ends
    accepted = fill(tx)
    for timeout in (0, 0.02):
        with pytest.raises(TimeoutError):
            tx.send(b"y", timeout)
    assert what_is_left(tx, rx) == [b"x"] * accepted


def test_a_negative_timeout_is_refused_where_it_would_have_to_wait(ends):
    tx, rx = ends
    for nonsense in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            rx.receive(nonsense)
    accepted = fill(tx)
    for nonsense in (-1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            tx.send(b"y", nonsense)
    assert what_is_left(tx, rx) == [b"x"] * accepted


def test_a_large_message_with_a_negative_timeout_leaves_the_stream_in_order(kind):
    only_streams(kind)
    tx, rx = channel(kind)
    if tx.max_message < 1_000_000:
        pytest.skip("this one takes atomic messages only")
    with pytest.raises(ValueError, match="timeout"):
        tx.send(bytes(1_000_000), timeout=-1)
    tx.send(b"fine")
    assert rx.receive() == b"fine"


@pytest.mark.parametrize("dtype", ["datetime64[s]", "complex128", ">i4", "S8", [("a", "i4"), ("b", "i4")]], ids=str)
def test_any_array_goes_in_parts_through_a_byte_stream_as_it_lies_in_memory(kind, dtype):
    only_streams(kind)
    tx, rx = channel(kind)
    if tx.max_message < 1_000_000:
        pytest.skip("this one takes atomic messages only")
    array = np.arange(1_000_000 // 8).view(np.uint8).view(dtype)
    job = launch(roles.receive_all, rx)
    tx.send(array)
    tx.send(b"fine")
    tx.close()
    assert job.wait() == [array.tobytes(), b"fine"]


@pytest.mark.parametrize("timeout", [None, 1e9, float("inf")])
def test_a_timeout_may_be_as_long_as_one_likes(ends, timeout):
    tx, rx = ends
    sending = threading.Timer(0.05, tx.send, (b"x",))
    sending.start()
    assert rx.receive(timeout) == b"x"
    sending.join()
    accepted = fill(tx)
    draining = threading.Timer(0.05, lambda: [rx.receive() for _ in range(accepted)])
    draining.start()
    tx.send(b"last", timeout)
    draining.join()
    assert rx.receive() == b"last"


def test_a_sender_that_waits_goes_on_as_soon_as_its_message_fits(ends):
    tx, rx = ends
    message = b"m" * min(tx.max_message, 2000)
    fill(tx, message)
    sending = threading.Thread(target=tx.send, args=(message, None))
    sending.start()
    for _ in range(4 if tx.facts.handed_over else tx.capacity.amount):  # a pipe frees whole pages, zmq half a queue
        rx.receive()
    sending.join(60)  # nobody receives any more
    woke = not sending.is_alive()
    while sending.is_alive():
        rx.receive()
    assert woke


def test_waiting_costs_no_processor_time(kind):
    (tx, far), (far_tx, rx) = channel(kind), channel(kind)
    jobs = [launch(roles.receive_forever, far)]
    if facts()[kind].reliable:
        if facts()[kind].handed_over:
            fill(far_tx)
        jobs += [launch(roles.send_forever, far_tx, b"x")]
    rested = roles.comes_to_rest(*[job.pid for job in jobs])
    for job in jobs:
        job.kill()
    for end in (tx, rx, far_tx):
        end.close()
    assert rested


@pytest.mark.parametrize("doing", ["sending", "receiving"])
def test_ctrl_c_ends_a_wait_and_loses_nothing(ends, doing):
    tx, rx = ends
    accepted = fill(tx) if doing == "sending" else 0
    more = 0
    timer = roles.interrupt_soon(0.2)
    with pytest.raises(KeyboardInterrupt):
        timer.start()
        while (
            doing == "sending"
        ):  # it is full, but where threads or other processes of this user make room, not for ever
            tx.send(b"x", timeout=60)
            more += 1
        rx.receive(timeout=60)
    timer.join()
    left = what_is_left(tx, rx)
    assert left == [b"x"] * len(left)
    assert len(left) - accepted - more in (0, bool(more))  # Ctrl-C may come when send has done its work


# --- the other side -----------------------------------------------------------------------------------------


def test_messages_of_a_killed_process_still_arrive(ends):
    tx, rx = ends
    done_tx, done_rx = channel("pipe")

    def send_and_hold(tx, done):
        for number in range(5):
            tx.send(b"%d" % number)
        done.send(b"sent")
        time.sleep(600)

    job = launch(send_and_hold, tx, done_tx)
    done_rx.receive()
    job.kill()
    left = list(rx)
    done_rx.close()
    sent = [b"0", b"1", b"2", b"3", b"4"]
    if tx.facts.handed_over:
        assert left == sent
    else:
        assert left == sent[: len(left)]


def test_handed_over_a_message_has_left_its_sender_or_dies_with_it(kind, fact):
    """Nobody receives while the sender is alive, and it is killed in the very moment in which send has returned."""
    tx, rx = channel(kind)
    messages = [b"%d" % n * 50 for n in range(10 if kind == "posix_mq" else 12)]

    def send_and_die(tx, messages):
        for message in messages:
            tx.send(message)
        os.kill(os.getpid(), 9)

    survived = []
    for _ in range(1 if fact.handed_over else 20):
        job = launch(send_and_die, tx, messages)
        with pytest.raises(RemoteError, match="SIGKILL"):
            job.wait()
        survived.append(list(rx) == messages)
        tx, rx = channel(kind)
    assert all(survived) == fact.handed_over
    tx.close()
    rx.close()


def test_reliable_what_was_accepted_arrives_or_is_dropped_without_a_word(kind, fact):
    tx, rx = channel(kind)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 50_000:
            tx.send(b"%d" % sent, timeout=0)
            sent += 1
    received = []
    with contextlib.suppress(TimeoutError):
        while fact.reliable and len(received) < sent:  # a thread may have to move it on first
            received.append(int(rx.receive(timeout=60)))
        while True:
            received.append(int(rx.receive(timeout=0.05)))
    assert (received == list(range(sent))) == fact.reliable
    assert received == sorted(received)
    tx.close()
    rx.close()


def test_a_receiver_sees_end_of_file_when_the_sender_is_killed_while_sending(ends):
    tx, rx = ends
    only_reliable(tx)
    job = launch(roles.send_forever, tx, b"m" * min(tx.max_message, 1500))
    for _ in range(20):
        rx.receive()
    job.kill()
    left = list(rx)
    assert {len(message) for message in left} <= {min(1500, len(left[0]) if left else 0)}


def test_a_waiting_receiver_sees_end_of_file_when_the_sender_is_killed(ends):
    tx, rx = ends
    job = launch(roles.hold, tx)
    killer = threading.Timer(0.1, job.kill)
    killer.start()
    with pytest.raises(Closed):
        rx.receive()
    killer.join()


def test_a_message_whose_sender_is_killed_half_way_is_never_delivered(ends):
    tx, rx = ends
    if tx.max_message < 8_000_000:
        pytest.skip("only a byte stream carries a message in parts")
    job = launch(roles.send_all, tx, [b"whole", bytes(8_000_000)])
    assert rx.receive() == b"whole"
    assert roles.eventually(lambda: roles.sleeping(job.pid))
    job.kill(signal.SIGSTOP)  # else it goes on while we receive
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0)  # the channel was full, and what was in it is a part
    job.kill()
    assert list(rx) == []


@pytest.mark.parametrize("how", ["closes", "is killed"])
def test_a_sender_learns_in_the_end_that_no_receiver_is_left(ends, how):
    tx, rx = ends
    if how == "closes":
        rx.close()
    else:
        job = launch(roles.receive_forever, rx)
        tx.send(b"x")
        job.kill()

    def learns():
        try:
            for _ in range(1000):
                tx.send(b"x" * 500)
        except Closed:
            return True

    assert roles.eventually(learns)


def test_a_sender_that_waits_learns_that_the_receiver_was_killed(ends):
    tx, rx = ends
    only_reliable(tx)
    job = launch(roles.hold, rx)
    fill(tx)
    killer = threading.Timer(0.1, job.kill)
    killer.start()
    with pytest.raises(Closed):
        tx.send(b"y" * 100, timeout=60)
    killer.join()


def test_a_half_sent_message_goes_out_before_the_next(kind):
    tx, rx = channel(kind)
    if tx.max_message < 1 << 22:
        pytest.skip("only a byte stream carries a message in parts")
    big = os.urandom(3_000_000)
    with pytest.raises(TimeoutError, match="go with the next send"):
        tx.send(big, timeout=0.02)
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0) and None
    sending = threading.Thread(target=tx.send, args=(b"next",))
    sending.start()
    assert rx.receive() == big
    assert rx.receive() == b"next"
    sending.join()


def test_a_half_sent_message_travels_with_its_sender(kind):
    tx, rx = channel(kind)
    if tx.max_message < 1 << 22:
        pytest.skip("only a byte stream carries a message in parts")
    big = os.urandom(3_000_000)
    with pytest.raises(TimeoutError):
        tx.send(big, timeout=0)
    if kind == "pipe":
        with pytest.raises(BlockingIOError, match="half-sent"):
            tx.clone()
    job = launch(roles.send_all, tx, [b"next"])
    assert list(rx) == [big, b"next"]
    job.wait()


def test_a_half_received_message_travels_with_its_receiver(kind):
    tx, rx = channel(kind)
    if tx.max_message < 1 << 22:
        pytest.skip("only a byte stream carries a message in parts")
    big = os.urandom(3_000_000)
    with pytest.raises(TimeoutError):
        tx.send(big, timeout=0)
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0)
    job = launch(roles.receive_all, rx)
    tx.send(b"next")
    tx.close()
    assert job.wait() == [big, b"next"]


def test_received_but_unread_messages_travel_with_their_receiver(kind):
    tx, rx = channel(kind)
    for number in range(10):
        tx.send(b"%d" % number)
    assert rx.receive() == b"0"
    if not facts()[kind].handed_over:  # close waits until all of it has left the sender's process
        tx.close()
    job = launch(roles.receive_all, rx)
    tx.close()
    assert job.wait() == [b"%d" % number for number in range(1, 10)]


# --- facts, both ways ---------------------------------------------------------------------------------------


def test_facts_is_a_table_of_every_mechanism():
    table = facts()
    assert list(table) == list(KINDS)
    assert [row["kind"] for row in table.rows()] == list(KINDS)
    html = table._repr_html_()
    for field in dataclasses.fields(base.Facts):
        assert field.name.replace("_", " ") in html
    assert "<td" in html


BY_READ = ("unix_seqpacket", "unix_datagram", "udp")


def test_boundaries_the_kernel_keeps_messages_apart_or_does_not(kind, fact):
    tx, rx = channel(kind)
    tx.send(b"one")
    tx.send(b"two")
    # Where no system call gives a message with nothing round it, receive() is as near as one can come.
    if fact.pollable:
        select.select([rx], [], [], 60)
    raw = os.read(rx.fileno(), 100) if kind in STREAMS or kind in BY_READ else rx.receive()
    assert (raw == b"one") == fact.boundaries
    tx.close()
    rx.close()


def test_tells_close_the_kernel_tells_both_sides_or_does_not(kind, fact, a_name):
    """Both sides at once, without the lifeline that labkit lays beside a pair whose mechanism does not."""
    name = a_name if kind in NAMED else None
    tx, rx = channel(kind, name=name)
    tx.close()
    lifeline = getattr(rx, "lifeline", None)
    if lifeline:
        assert not fact.tells_close
        assert lifeline.cut()
        receiver_told = False
    else:
        with pytest.raises((Closed, TimeoutError)) as caught:
            rx.receive(timeout=60 if fact.tells_close else 0.02)
        receiver_told = caught.type is Closed
    rx.close()
    if name:
        with contextlib.suppress(FileNotFoundError):
            unlink(kind, name)
    tx, rx = channel(kind, name=name)
    job = launch(roles.hold, rx)
    job.kill()
    assert roles.eventually(lambda: not job.alive)
    sender_told = False
    try:
        for _ in range(600 if fact.tells_close else 2):
            tx.send(b"x")
            time.sleep(0.1)  # TCP takes messages until the other side has answered one with a reset
    except Closed:
        sender_told = getattr(tx, "lifeline", None) is None
    tx.close()
    assert (receiver_told and sender_told) == fact.tells_close


def test_pollable_ends_have_a_descriptor_that_poll_understands(kind, fact):
    tx, rx = channel(kind)
    if fact.pollable:
        poll = select.poll()
        poll.register(rx.fileno(), select.POLLIN)
        assert not poll.poll(0)
        tx.send(b"x")
        assert poll.poll(1000)
        rx.receive()
        assert not poll.poll(0)
    else:
        for end in (tx, rx):
            with pytest.raises(io.UnsupportedOperation, match="no descriptor"):
                end.fileno()
    tx.close()
    rx.close()


def test_pollable_ends_are_received_from_with_asyncio_as_their_documentation_says(kind, fact):
    if not fact.pollable:
        pytest.skip("no descriptor")
    tx, rx = channel(kind)
    messages, received = [b"%d" % number for number in range(300)], []

    async def receive_all():
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def ready():
            try:
                while fact.tells_close or len(received) < len(messages):
                    received.append(rx.receive(timeout=0))
            except TimeoutError:
                return
            except Closed:
                pass
            loop.remove_reader(rx.fileno())
            done.set_result(None)

        loop.add_reader(rx.fileno(), ready)
        sending = launch(roles.send_slowly, tx, messages)
        await done
        await sending

    asyncio.run(receive_all())
    assert received == messages
    rx.close()


def test_duplex_objects_carry_data_both_ways(kind, fact):
    tx, rx = channel(kind)
    both = False
    if fact.pollable and kind not in (
        "posix_mq",
        "signal",
        "zmq",
        "mp_queue",
    ):  # read(2) and write(2) know no such descriptors
        with contextlib.suppress(OSError):
            os.write(rx.fileno(), b"back")
            select.select([tx], [], [], 30 if fact.duplex else 0)  # the network may take a moment
            both = os.read(tx.fileno(), 100) == b"back"
    else:  # what is sent at one end comes out of the queue or ring, not at the other end
        assert not hasattr(rx, "send")
        assert not hasattr(tx, "receive")
    assert both == fact.duplex
    tx.close()
    rx.close()


def test_related_only_mechanisms_have_no_name_and_the_others_do(kind, fact, a_name):
    """A stranger is a process that was started by nobody of us and knows only the name."""
    if fact.related_only:
        for ask in (lambda: channel(kind, name="x"), lambda: sender(kind, "x"), lambda: unlink(kind, "x")):
            with pytest.raises(ValueError, match="has no name.*posix_mq"):
                ask()
        return
    tx, rx = channel(kind, name=a_name)
    make_way(tx)
    code = f"from labkit import sender; sender({kind!r}, {a_name!r}).send(b'from a stranger')"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
    assert rx.receive() == b"from a stranger"
    tx.close()
    rx.close()


def test_many_senders_keep_messages_of_every_size_whole_or_large_ones_are_refused(kind, fact, a_name):
    if not fact.many_senders and kind != "pipe":
        tx, rx = channel(kind)
        with pytest.raises(io.UnsupportedOperation, match="one sender"):
            tx.clone()
        tx.close()
        rx.close()
        return
    tx, second, rx = several_senders(kind, a_name)
    only_reliable(tx)
    assert tx.max_message == second.max_message
    assert (tx.max_message == fact.max_message) == fact.many_senders
    size, count = min(tx.max_message, 200_000) - 40, 300
    jobs = [launch(roles.send_many, end, mark, size, count) for end, mark in ((tx, b"a"), (second, b"b"))]
    received = [rx.receive() for _ in range(2 * count)]
    for job in jobs:
        job.wait()
    assert all(map(roles.is_whole, received))
    for mark in (b"a", b"b"):  # each sender's are in order
        numbers = [message.split(b" ", 2)[1] for message in received if message.startswith(mark)]
        assert numbers == sorted(numbers)
    rx.close()


def test_large_messages_of_many_writers_do_mix_in_a_pipe():
    """The other side of many_senders=False: what labkit refuses, shown with the bare system calls of pipe(7)."""
    assert not facts()["pipe"].many_senders
    assert pipe.ATOMIC < select.PIPE_BUF
    size = 1 << 18

    def written_at_once():
        read_fd, write_fd = os.pipe()
        writers = [threading.Thread(target=os.write, args=(write_fd, mark * size)) for mark in (b"a", b"b")]
        for writer in writers:
            writer.start()
        data = b""
        while len(data) < 2 * size:
            data += os.read(read_fd, 5000)
        for writer in writers:
            writer.join()
        os.close(read_fd)
        os.close(write_fd)
        return data

    whole = b"a" * size + b"b" * size, b"b" * size + b"a" * size
    assert any(written_at_once() not in whole for _ in range(50)), "fifty pairs of writers took turns"


def test_many_receivers_share_the_messages_or_are_refused(kind, fact):
    tx, rx = channel(kind)
    if not fact.many_receivers:
        with pytest.raises(io.UnsupportedOperation):
            rx.clone()
        tx.close()
        rx.close()
        return
    only_reliable(rx)
    jobs = launch(roles.receive_all, rx.clone()), launch(roles.receive_all, rx)
    messages = [b"%d" % number for number in range(1000)]
    for message in messages:
        tx.send(message)
    tx.close()
    received = [message for job in jobs for message in job.wait()]
    assert sorted(received) == sorted(messages)


def test_persistence_unread_messages_survive_their_processes_or_do_not(kind, fact, a_name):
    if fact.persistence == "process":
        tx, rx = channel(kind)
        tx.send(b"unread")
        tx.close()
        rx.close()  # the last users; that there is no name to find it by is tested above
        return
    launch(roles.send_to_name, kind, a_name, b"unread", True).wait()
    assert launch(roles.receive_from_name, kind, a_name).wait() == b"unread"


def test_max_message_is_what_the_ends_say(kind, fact):
    tx, rx = channel(kind)
    assert tx.max_message == fact.max_message
    tx.close()
    rx.close()


def test_copies_a_message_lies_in_as_many_places_as_it_was_copied_and_one_more(kind, fact):
    """Counted by looking for it in the memory of a process that has sent and received it; the kernel's is not there."""

    def send_and_receive(tx, rx, word, times, done):
        message = word * times
        tx.send(message)
        received = rx.receive()
        done.send(b"both are here")
        time.sleep(60)
        return message, received

    word, times = b"nowhere else: " + os.urandom(8), 40
    (tx, rx), (done, is_done) = channel(kind), channel("pipe")
    job = launch(send_and_receive, tx, rx, word, times, done)
    is_done.receive()
    found = places(job.pid, word * times)
    job.kill()
    is_done.close()
    shared = len(set(found) - {"private"})
    copies = found.count("private") - 1 + (shared or 1)  # what is not shared was in the kernel
    if kind in ("sysv_mq", "signal"):  # some lay where other things lie now
        assert 2 <= copies <= fact.copies
    elif kind in ("mp_queue", "zmq"):  # the library's, more or fewer with its version
        assert copies > 3 and fact.copies > 3
    else:
        assert copies == fact.copies
    assert bool(shared) == (fact.copies == 2)


def test_manual_is_what_the_mechanisms_own_file_names_too(kind, fact):
    module = importlib.import_module(KINDS[kind])
    assert all(page in module.__doc__ for page in fact.manual.split(", "))


def test_namespaced_by_a_new_namespace_hides_the_name(kind, fact, a_name):
    if fact.namespaced_by == "none":
        assert fact.related_only  # a descriptor crosses every namespace, and there is no name to hide
        return
    if fact.namespaced_by == "net":  # the address itself, not the file in which labkit notes it
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            a_name = f"127.0.0.1:{free.getsockname()[1]}"
    tx, rx = channel(kind, name=a_name)
    make_way(tx)
    for space in ("mount", "ipc", "net", "pid"):
        sent = launch(roles.send_from_a_namespace, kind, a_name, space).wait()
        if sent is None:
            tx.close()
            rx.close()
            pytest.skip(f"no permission to make a {space} namespace here")
        if sent:
            assert rx.receive() == b"over the wall"
        assert sent == (space not in fact.namespaced_by), f"a new {space} namespace"
    tx.close()
    rx.close()


def test_a_channel_without_clones_in_other_processes_says_how_much_it_holds(ends):
    tx, _ = ends
    capacity = tx.capacity
    accepted = fill(tx, b"x" * 100)
    if capacity.unit == "messages" and not tx.facts.handed_over:  # the kernel's buffer comes on top
        assert accepted >= capacity.amount
    elif capacity.unit == "messages":
        assert accepted == capacity.amount
    else:  # a channel that takes no more is nearly full by its own account, so that views may show it
        assert 0.8 <= accepted * (100 + capacity.overhead) / capacity.amount <= 1.1


# --- clones -------------------------------------------------------------------------------------------------


def test_end_of_file_comes_when_the_last_clone_has_closed(ends):
    tx, rx = ends
    try:
        second = tx.clone()
    except io.UnsupportedOperation:
        pytest.skip("one sender")
    tx.send(b"1")
    tx.close()
    assert rx.receive() == b"1"
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0.02)
    second.send(b"2")
    second.close()
    assert list(rx) == [b"2"]


def test_after_cloning_a_pipe_takes_atomic_messages_only(ends):
    tx, rx = ends
    if tx.kind != "pipe":
        pytest.skip("only pipes lose their boundaries")
    with tx.clone() as second:
        for end in (tx, second):
            assert end.max_message == pipe.ATOMIC
            longest = os.urandom(pipe.ATOMIC)
            end.send(longest)
            assert rx.receive() == longest
            with pytest.raises(OSError, match="too large"):
                end.send(bytes(pipe.ATOMIC + 1))


def test_a_pipe_that_could_not_be_cloned_takes_messages_of_all_sizes_still():
    def starve():
        tx, _ = channel("pipe")
        before = tx.max_message
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        try:
            tx.clone()
        except OSError as reason:
            return reason.errno, tx.max_message == before

    assert launch(starve).wait() == (errno.EMFILE, True)


def test_a_clone_of_a_receiver_gets_what_the_first_leaves(ends):
    tx, rx = ends
    if not rx.facts.many_receivers:
        pytest.skip("one receiver")
    with rx.clone() as second:
        tx.send(b"1")
        tx.send(b"2")
        assert (rx.receive(), second.receive()) == (b"1", b"2")


# --- names --------------------------------------------------------------------------------------------------


@pytest.fixture(params=NAMED)
def named(request):
    """Each mechanism that has names."""
    return request.param


@pytest.mark.parametrize("name", ["", "/", "a/b", "../x", "/a/b", "x" * 255, "nul\0", ".", ".."], ids=repr)
def test_a_name_that_cannot_be_is_refused_and_touches_no_file(named, name):
    precious = Path(os.environ["XDG_RUNTIME_DIR"], "labkit", "x")
    precious.parent.mkdir(mode=0o700, exist_ok=True)
    precious.touch()
    for ask in (
        lambda: channel(named, name=name),
        lambda: sender(named, name),
        lambda: receiver(named, name),
        lambda: receiver(named, name, create=True),
        lambda: unlink(named, name),
    ):
        with pytest.raises(ValueError, match="one word"):
            ask()
    assert precious.exists()
    precious.unlink()


def test_a_name_that_is_no_text_is_refused(named):
    for ask in (lambda: channel(named, name=b"x"), lambda: sender(named, 7), lambda: receiver(named, Path("x"))):
        with pytest.raises(TypeError, match="a name is text"):
            ask()


def test_the_longest_name_works(named):
    for length in (254, 80):
        name = f"{os.environ['LABKIT_TESTS']}-".ljust(length, "x")
        try:
            tx, rx = channel(named, name=name)
            break
        except ValueError as reason:
            assert length > 80, reason
    tx.send(b"x")
    assert rx.receive() == b"x"
    unlink(named, name)
    tx.close()
    rx.close()


def test_a_taken_name_is_refused_and_what_it_names_is_unharmed(named, a_name):
    tx, rx = channel(named, name=a_name)
    tx.send(b"mine")
    with pytest.raises(FileExistsError):
        channel(named, name=a_name)
    assert rx.receive() == b"mine"
    tx.send(b"still there")
    assert rx.receive() == b"still there"
    tx.close()
    rx.close()


def test_a_missing_name_is_said_to_be_missing(named, a_name):
    for ask in (sender, receiver, unlink):
        with pytest.raises(FileNotFoundError):
            ask(named, a_name)


def test_a_receiver_may_make_the_name_and_a_stranger_find_it(named, a_name):
    rx = receiver(named, a_name, create=True)
    stranger = launch(roles.send_to_name, named, a_name, b"found")
    assert rx.receive() == b"found"
    stranger.wait()
    rx.close()


def test_creating_a_name_that_is_there_opens_it(named, a_name):
    if facts()[named].persistence == "process":
        pytest.skip("a name that is there has its receiver already")
    first = sender(named, a_name, create=True)
    first.send(b"1")
    with receiver(named, a_name, create=True) as rx:
        assert rx.receive() == b"1"
    first.close()


def test_an_unlinked_name_is_free_again(named, a_name):
    for _ in range(2):
        tx, rx = channel(named, name=a_name)
        tx.send(b"x")
        assert rx.receive() == b"x"
        unlink(named, a_name)
        tx.close()
        rx.close()
    with pytest.raises(FileNotFoundError):
        unlink(named, a_name)


def test_a_name_whose_processes_were_all_killed_can_be_used_again(named, a_name):
    """Stale: what is left is opened as it is where it outlives processes, and taken over where it does not."""
    with pytest.raises(RemoteError, match="SIGKILL"):
        launch(roles.make_name_and_die, named, a_name, b"left").wait()
    if facts()[named].persistence == "process":
        tx, rx = channel(named, name=a_name)
        with pytest.raises(TimeoutError):
            rx.receive(timeout=0.02)
    else:
        tx, rx = sender(named, a_name), receiver(named, a_name)
        assert rx.receive() == b"left"
    tx.send(b"new")
    assert rx.receive() == b"new"
    tx.close()
    rx.close()


def test_what_a_name_makes_is_for_its_owner_only(named, a_name):
    """A process of another user finds nothing that it may open."""
    if os.geteuid() != 0:
        pytest.skip("needs a second user: run as root")
    tx, rx = channel(named, name=a_name)
    make_way(tx)
    assert launch(roles.send_as_another_user, named, a_name).wait() is False
    tx.close()
    rx.close()


def test_a_foreign_queue_is_refused(a_name):
    if os.geteuid() != 0:
        pytest.skip("needs a second user: run as root")
    channel("posix_mq", name=a_name)
    code = (
        "import os; from labkit.channels import posix_mq; os.setuid(65534)\n"
        f"for ask in (posix_mq.open_sender, posix_mq.open_receiver):\n"
        f"    try: ask({a_name!r})\n"
        "    except PermissionError as reason: assert 'somebody else' in str(reason)\n"
        "    else: raise SystemExit('it was let in')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("size", [4, 100])
def test_a_message_may_fill_a_queue_that_another_program_has_made(a_name, size):
    theirs = posix_ipc.MessageQueue("/" + a_name, posix_ipc.O_CREX, max_messages=2, max_message_size=size)
    try:
        with sender("posix_mq", a_name) as tx, receiver("posix_mq", a_name) as rx:
            assert tx.max_message == size
            largest = bytes(range(size))
            tx.send(largest)
            assert theirs.receive(0)[0] == largest
            theirs.send(largest)
            assert rx.receive() == largest
            with pytest.raises(OSError, match=f"takes 1 to {size}"):
                tx.send(bytes(size + 1))
    finally:
        theirs.close()


def test_a_queue_of_our_own_opened_by_name_takes_as_much_as_it_was_made_for(a_name):
    for end in channel("posix_mq", a_name, max_message=100):
        end.close()
    with sender("posix_mq", a_name) as tx:
        assert tx.max_message == 100


def test_a_queue_with_a_name_is_noted_until_it_is_unlinked(a_name):
    tx, rx = channel("posix_mq", name="/" + a_name)
    note = base.runtime_dir() / "posix_mq" / a_name
    assert note.exists()
    tx.close()
    rx.close()
    unlink("posix_mq", a_name)
    assert not note.exists()


def test_a_runtime_directory_open_to_others_is_refused_and_leaves_no_queue(a_name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "labkit").mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="private directory"):
        channel("posix_mq", name=a_name)


def test_priorities_overtake(a_name):
    tx, rx = channel("posix_mq")
    for priority in (0, 5, 1):
        tx.send(b"%d" % priority, priority=priority)
    assert [rx.receive() for _ in range(3)] == [b"5", b"1", b"0"]
    for nonsense in (-1, 32768):
        with pytest.raises(ValueError, match="priority"):
            tx.send(b"x", priority=nonsense)
    tx.close()
    rx.close()


# --- bad options, and the limits of the machine -------------------------------------------------------------


def test_an_unknown_kind_is_refused_with_the_nearest_and_all():
    with pytest.raises(ValueError, match=r'no channel called "piep".*pipe, posix_mq.*did you mean "pipe"'):
        channel("piep")
    with pytest.raises(ValueError, match="there are"):
        channel("telepathy")


def test_a_trace_that_is_none_is_refused_before_anything_is_opened(kind):
    for nonsense in (5, True, "trace", Trace):
        with pytest.raises(TypeError, match=r"labkit\.Trace, not (int|bool|str|type)"):
            channel(kind, trace=nonsense)


def test_an_unknown_option_is_refused(kind):
    with pytest.raises(TypeError, match="speed"):
        channel(kind, speed=9)


def test_an_unknown_option_is_refused_also_where_the_name_is_there_already(named, a_name):
    ends = channel(named, name=a_name)
    for open_end in (sender, receiver):
        with pytest.raises(TypeError, match="speed"):
            open_end(named, a_name, speed=9)
    for end in ends:
        end.close()
    with contextlib.suppress(FileNotFoundError):
        unlink(named, a_name)


@pytest.mark.parametrize("kind", ["unix_seqpacket", "unix_datagram"])
def test_an_option_that_is_no_whole_number_is_refused_and_leaves_no_descriptor(kind):
    for end in channel(kind):
        end.close()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(TypeError, match="whole number, not 1000.5"):
        channel(kind, max_message=1000.5)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("pipe", {"capacity": 0}, ValueError),
        ("pipe", {"capacity": -1}, ValueError),
        ("pipe", {"capacity": 1 << 40}, ValueError),
        ("unix_seqpacket", {"max_message": 0}, ValueError),
        ("unix_seqpacket", {"max_message": -5}, ValueError),
        ("unix_seqpacket", {"max_message": 1 << 29}, ValueError),
        ("unix_seqpacket", {"max_message": 1 << 40}, ValueError),
        ("unix_datagram", {"max_message": 0}, ValueError),
        ("unix_datagram", {"max_message": 1 << 29}, ValueError),
        ("tcp", {"buffer": 0}, ValueError),
        ("udp", {"receive_buffer": -1}, ValueError),
        ("posix_mq", {"max_message": 0}, ValueError),
        ("posix_mq", {"max_messages": 0}, ValueError),
        ("posix_mq", {"max_messages": -1}, ValueError),
        ("posix_mq", {"max_messages": 1 << 20}, OSError),
        ("posix_mq", {"max_message": 1 << 28}, OSError),
        ("posix_mq", {"max_message": 1 << 80}, OSError),
        ("shm_ring", {"capacity": 0}, ValueError),
        ("shm_ring", {"capacity": -1}, ValueError),
        ("shm_ring", {"capacity": 1 << 31}, ValueError),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused(kind, options, error):
    with pytest.raises(error) as caught:
        channel(kind, **options)
    assert next(iter(options)) in str(caught.value) or "limits" in str(caught.value)


def test_options_in_range_do_what_they_say():
    tx, rx = channel("pipe", capacity=1 << 17)
    assert (tx.capacity.amount, tx.capacity.unit) == (1 << 17, "bytes")
    tx, rx = channel("unix_seqpacket", max_message=70_000)
    tx.send(bytes(70_000))
    assert len(rx.receive()) == tx.max_message == 70_000
    tx, rx = channel("posix_mq", max_messages=3, max_message=100)
    assert fill(tx, bytes(100)) == 3
    tx, rx = channel("shm_ring", capacity=5000)
    assert tx.capacity.amount == 8192
    tx.close()
    rx.close()


def test_a_pipe_above_the_limit_of_an_ordinary_user_is_refused():
    limit = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    code = (
        "import os; from labkit.channels import pipe; os.getuid() or os.setuid(65534)\n"
        f"try: pipe.open(capacity={limit * 2})\n"
        "except PermissionError: raise SystemExit(0)\n"
        "raise SystemExit(1)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0


def test_message_queues_over_the_users_limit_are_explained_and_leave_nothing():
    def many():
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (60_000, 60_000))
        os.getuid() or os.setuid(65533)  # a user that has no other queues, and no privileges
        kept = []
        try:
            while len(kept) < 100:
                kept += [labkit.channels.channel("posix_mq")]
        except OSError as reason:
            open_now = len(os.listdir("/proc/self/fd"))
            try:
                labkit.channels.channel("posix_mq")
            except OSError:
                return len(kept), reason.errno, str(reason), len(os.listdir("/proc/self/fd")) - open_now
        return None

    made, number, text, leaked = launch(many).wait()
    assert made > 0
    assert number == errno.EMFILE
    assert "RLIMIT_MSGQUEUE" in text
    assert leaked == 0


def test_a_message_queue_without_a_descriptor_is_not_blamed_on_the_limit_of_queues(a_name):
    def without_descriptors():
        channel("posix_mq", name=a_name)
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        said = []
        for open_one in (lambda: channel("posix_mq"), lambda: labkit.channels.posix_mq._existing(a_name, False, 1, 1)):
            try:
                open_one()
            except OSError as reason:
                said.append((reason.errno, str(reason)))
        for fd in taken:
            os.close(fd)
        unlink("posix_mq", a_name)
        return said

    said = launch(without_descriptors).wait()
    assert [number for number, _ in said] == [errno.EMFILE] * 2
    for _, text in said:
        assert "ulimit -n" in text
        assert "MSGQUEUE" not in text


def test_message_queues_beyond_msg_max_are_explained():
    def beyond():
        os.getuid() or os.setuid(65533)
        labkit.channels.channel("posix_mq", max_messages=11)

    if int(Path("/proc/sys/fs/mqueue/msg_max").read_text()) > 10:
        pytest.skip("this machine allows more")
    with pytest.raises(Exception, match="msg_max is 10"):
        launch(beyond).wait()


def test_too_many_queues_are_explained():
    limit = int(Path("/proc/sys/fs/mqueue/queues_max").read_text())

    def too_many(limit):
        os.getuid() or os.setuid(65533)
        kept = []
        for _ in range(limit + 1):
            name = f"/{os.environ['LABKIT_TESTS']}-{len(kept)}"
            kept.append(labkit.channels.posix_mq._create(name, 1, 1))
            labkit.channels.posix_mq.posix_ipc.unlink_message_queue(name)

    importlib.import_module("labkit.channels.posix_mq")
    if limit > 1000:
        pytest.skip("this machine allows very many")
    with pytest.raises(Exception, match="queues_max"):
        launch(too_many, limit).wait()


@pytest.mark.parametrize("traced", [False, True])
def test_without_descriptors_opening_fails_and_leaves_nothing(kind, traced):
    def starve(kind, traced):
        from labkit import Trace, channel

        trace = Trace() if traced else None
        for end in channel(kind, trace=trace):
            end.close()
        if trace:
            trace.collect()
            assert trace._rest()  # what it holds of its closed channels is given back
        resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
        failures = 0
        for spare in range(32):
            taken = []
            try:
                while True:
                    taken.append(os.dup(0))
            except OSError:
                pass
            for fd in taken[:spare]:
                os.close(fd)
            try:
                ends = channel(kind, trace=trace)
            except OSError as reason:
                failures += 1
                assert reason.errno in (errno.EMFILE, errno.ENFILE), repr(reason)
            else:
                for end in ends:
                    end.close()
            for fd in taken[spare:]:
                os.close(fd)
            if trace:  # it keeps the rings of its endpoints, whatever has become of these
                trace._rings.clear()
                assert trace._rest()
            for _ in range(200):  # the collector may just be looking at a ring
                free = 60 - len(os.listdir("/proc/self/fd")) + 1
                if free == len(taken):
                    break
                time.sleep(0.01)
            assert free == len(taken), f"{len(taken) - free} descriptors leaked when {spare} were free"
        return failures

    assert 0 < launch(starve, kind, traced).wait() < 32


def test_no_memory_for_a_ring_is_explained_and_leaves_nothing():
    def without_memory():
        from labkit import channel

        channel("shm_ring")
        before = os.listdir("/proc/self/fd")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        try:
            channel("shm_ring")
        except OSError as reason:
            return reason.errno, str(reason), len(os.listdir("/proc/self/fd")) - len(before)

    import signal

    def quietly():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        return without_memory()

    number, text, leaked = launch(quietly).wait()
    assert number == errno.EFBIG
    assert "smaller capacity" in text
    assert leaked == 0


def test_a_traced_channel_that_cannot_be_made_leaves_no_name(named, a_name):
    trace = Trace()
    trace.close()
    with pytest.raises(ValueError, match="trace is closed"):
        channel(named, name=a_name, trace=trace)
    with pytest.raises(FileNotFoundError):
        sender(named, a_name)


def test_opening_and_closing_many_channels_leaves_no_memory_behind(kind):
    def rss():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    def open_and_close(count):
        for _ in range(count):
            tx, rx = channel(kind)
            tx.send(b"x" * 100)
            rx.receive()
            tx.close()
            rx.close()

    open_and_close(100)
    before = rss()
    open_and_close(300)
    assert rss() - before < 20_000_000


def test_two_threads_that_share_an_end_do_no_harm_to_the_process(ends):
    """An end has one owner. Sharing one is a mistake, and may mix up messages, but it must not crash or hang."""
    tx, rx = ends
    stop = threading.Event()

    def send():
        while not stop.is_set():
            with contextlib.suppress(TimeoutError, Closed, ValueError):
                tx.send(b"x" * 50, timeout=0.01)

    def receive():
        while not stop.is_set():
            with contextlib.suppress(OSError, Closed):  # a TimeoutError is one
                rx.receive(timeout=0.01)

    users = [threading.Thread(target=user) for user in (send, send, receive, receive)]
    for user in users:
        user.start()
    time.sleep(0.3)
    stop.set()
    for user in users:
        user.join(60)
        assert not user.is_alive()


# --- against a model ----------------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.one_of(
        st.integers(1, 3000).map(lambda size: ("send", size)),
        st.just(("receive", 0)),
        st.just(("empty", 0)),
        st.just(("large", 0)),
    ),
    max_size=60,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS)
def test_a_channel_behaves_like_a_deque(kind, operations):
    tx, rx = channel(kind)
    model: deque[bytes] = deque()
    for number, (what, size) in enumerate(operations):
        if what == "send":
            message = roles.numbered(number, min(size, tx.max_message))
            try:
                tx.send(message, timeout=0)
            except TimeoutError:
                assert model  # full, then there is something in it
            else:
                model.append(message)
        elif what == "receive":
            try:  # what was sent may be on its way still
                received = rx.receive(timeout=60 if model else 0)
            except TimeoutError:
                assert not model
            else:
                assert received == model.popleft()
        elif what == "empty":
            with pytest.raises(ValueError, match="at least 1"):
                tx.send(b"", timeout=0)
        elif tx.max_message < 1 << 30:
            with pytest.raises(OSError, match="too large"):
                tx.send(bytes(tx.max_message + 1), timeout=0)
    if getattr(tx, "_owed", None):  # half-sent at the end: it is a message that was not accepted
        model.append(None)  # type: ignore[arg-type]
    tx.close()
    received = list(rx)
    rx.close()
    assert received == [message for message in model if message is not None]


# --- Ctrl-C in the middle of a large message ----------------------------------------------------------------


def test_ctrl_c_in_a_large_message_never_swallows_the_next_ones():
    """Whole messages in order, and end of file at the latest where one was torn; never a later one as its rest."""

    def receive_all(rx):
        return [(message[:1], len(message)) for message in rx]

    for attempt in range(25):
        tx, rx = channel("pipe")
        receiving = launch(receive_all, rx)
        accepted = []
        timer = roles.interrupt_soon(0.002 + attempt * 0.0004)
        try:
            timer.start()
            until = time.monotonic() + 2
            while time.monotonic() < until:
                tx.send(b"l" * 50_000)
                accepted.append((b"l", 50_000))
            timer.join()
        except KeyboardInterrupt:
            pass
        timer.join()
        try:
            tx.send(b"s" * 100)
            after = [(b"s", 100)]
        except Closed:
            after = []
        tx.close()
        got = receiving.wait()
        larges = [m for m in got if m[0] == b"l"]
        assert len(accepted) <= len(larges) <= len(accepted) + 1
        assert got == [(b"l", 50_000)] * len(larges) + after


def test_a_sender_that_never_waits_learns_of_a_dead_receiver_too(kind):
    tx, rx = channel(kind)
    only_reliable(tx)
    holding = launch(roles.hold, rx)
    fill(tx)
    holding.kill()
    assert roles.eventually(lambda: not holding.alive)
    with pytest.raises(Closed):
        tx.send(b"x", timeout=0)
    tx.close()


@pytest.mark.parametrize("first", ["channel, launch", "launch, channel", "Trace, launch, channel"])
def test_a_script_ends_without_a_word_on_standard_error(first, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"from labkit import {first}\n"
        "trace = Trace() if 'Trace' in globals() else None\n"
        "closed, open_ = channel('pipe', trace=trace), channel('unix_seqpacket', trace=trace)\n"
        "for end in closed: end.close()\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# --- copies made by a plain fork(2) -------------------------------------------------------------------------


def in_a_fork(do):
    """Run in a child made by os.fork(); what the function returned or raised, as text."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = "the child was killed"
        try:
            signal.alarm(20)
            said = str(do())
        except BaseException as reason:
            said = f"{type(reason).__name__}: {reason}"
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with open(reading) as pipe_:
        said = pipe_.read()
    os.waitpid(child, 0)
    return said


def test_a_process_without_standard_streams_has_channels_too(kind):
    def use():
        for stream in 0, 1, 2:
            os.close(stream)
        tx, rx = channel(kind)
        tx.send(b"x")
        got = rx.receive()
        tx.close()
        return got, list(rx)

    assert in_a_fork(use) == "(b'x', [])"


def test_a_copy_made_by_fork_sends_too_or_says_that_it_cannot(ends):
    tx, rx = ends
    tx.send(b"before")
    assert rx.receive() == b"before"

    def send_two():
        tx.send(b"from the child")
        tx.send(b"and again")
        tx.close()
        return "sent"

    said = in_a_fork(send_two)
    if tx.kind == "zmq":
        assert said.startswith("RuntimeError: ZeroMQ does not work in a copy")
    else:
        assert said == "sent"
        assert [rx.receive(), rx.receive()] == [b"from the child", b"and again"]
    tx.send(b"after")
    assert rx.receive() == b"after"


def test_a_copy_made_by_fork_receives_too_or_says_that_it_cannot(kind):
    tx, rx = channel(kind)
    tx.send(b"before")
    assert rx.receive() == b"before"
    tx.send(b"for the child")
    said = in_a_fork(rx.receive)
    if kind in ("zmq", "signal"):
        assert said.startswith("RuntimeError: ") and "fork" in said
        assert rx.receive() == b"for the child"
    else:
        assert said == "b'for the child'"
    rx.close()
    tx.close()


def test_closing_a_copy_made_by_fork_takes_nothing_from_its_parent(ends):
    tx, rx = ends
    assert in_a_fork(lambda: (tx.close(), rx.close(), "closed")[-1]) == "closed"
    tx.send(b"still here")
    assert rx.receive() == b"still here"


def test_closing_a_copy_made_by_fork_leaves_the_name(named, a_name):
    tx, rx = channel(named, name=a_name)
    assert in_a_fork(lambda: (tx.close(), rx.close(), "closed")[-1]) == "closed"
    make_way(tx)
    again = sender(named, a_name)
    again.send(b"found")
    assert rx.receive() == b"found"
    for end in (again, tx, rx):
        end.close()
    with contextlib.suppress(FileNotFoundError):
        unlink(named, a_name)


# --- out of descriptors half-way ----------------------------------------------------------------------------


def test_a_name_that_could_not_be_opened_for_want_of_descriptors_can_be_made_when_there_are_some(named, a_name):
    for end in channel(named):  # loads all that it needs
        end.close()

    def starve():
        failures, limits = 0, range(3, max(map(int, os.listdir("/proc/self/fd"))) + 30)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        for limit in limits:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            try:
                made = channel(named, name=a_name)
            except OSError as reason:
                assert reason.errno in (errno.EMFILE, errno.ENFILE), repr(reason)
                failures += 1
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
                made = channel(named, name=a_name)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            for end in made:
                end.close()
            with contextlib.suppress(FileNotFoundError):
                unlink(named, a_name)
        return 0 < failures < len(limits)

    assert in_a_fork(starve) == "True"


# --- a directory on which the user has no right -------------------------------------------------------------


@pytest.mark.parametrize("what", ["read-only", "its folder is read-only", "its folder is a file"])
def test_a_directory_without_rights_is_named_with_the_way_out(named, what, tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]):  # those that pytest has made, closed to others
        folder.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o777)
    for end in channel(named):  # loads all that it needs, which another user may not be able to
        end.close()

    def make_a_name():
        if os.getuid() == 0:  # who has every right everywhere
            os.setuid(65534)
        mine = home / "base"
        os.environ["XDG_RUNTIME_DIR"] = str(mine)
        folder = mine / "labkit" / named
        folder.parent.mkdir(mode=0o700, parents=True)
        if what == "read-only":
            folder.parent.chmod(0o500)
        elif what == "its folder is read-only":
            folder.mkdir(mode=0o500)
        else:
            folder.touch()
        channel(named, name="weather")

    said = in_a_fork(make_a_name)
    assert str(home / "base" / "labkit" / named) in said
    assert "set XDG_RUNTIME_DIR to a folder of yours" in said
    subprocess.run(["chmod", "-R", "u+rwX", home], check=True)


def test_a_user_whose_limit_allows_no_signals_is_told_which_limit():
    def send():
        if os.getuid() == 0:  # whom no limit holds
            os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))
        tx, _rx = channel("signal")
        tx.send(b"x", timeout=0.05)

    said = in_a_fork(send)
    assert said.startswith("TimeoutError: ") and "RLIMIT_SIGPENDING" in said
