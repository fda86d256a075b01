"""The compiled system calls: what they send and receive is what the plain ones would, in whatever pieces it comes."""

import errno
import gc
import os
import random
import socket
import sys
from struct import Struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.channels.call_entry import BUFFER_BYTES, NOTHING, REFUSED, Calls

pytestmark = pytest.mark.every_python

LENGTH = Struct("=I")
SENDS, RECEIVES = ("stream_send", "stream_write"), ("stream_receive", "stream_drop")


@pytest.fixture
def pipe():
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    yield read_end, write_end
    for fd in (read_end, write_end):
        os.close(fd)


def framed(message: bytes) -> bytes:
    return LENGTH.pack(len(message)) + message


def test_a_message_is_written_with_its_length_in_front(pipe):
    read_end, write_end = pipe
    calls = Calls(write_end, SENDS, most=1 << 20)
    assert calls.stream_send(b"hello") == 0
    assert calls.stream_write(framed(b"world")) == 0
    assert os.read(read_end, 100) == framed(b"hello") + framed(b"world")


def test_what_cannot_be_sent_is_refused_and_nothing_is_written(pipe):
    read_end, write_end = pipe
    calls = Calls(write_end, SENDS, most=10)
    assert calls.stream_send(b"") == calls.stream_send(bytes(11)) == calls.stream_write(b"1234") == REFUSED
    with pytest.raises(TypeError):
        calls.stream_send("text")
    with pytest.raises(BlockingIOError):
        os.read(read_end, 1)


def test_a_message_that_went_in_part_is_owed_and_nothing_goes_before_its_rest(pipe):
    _, write_end = pipe
    calls = Calls(write_end, SENDS, most=1 << 20)
    left = calls.stream_send(bytes(100_000))
    assert 0 < left < 100_004
    assert calls.owed == left
    assert (calls.stream_send(b"next"), calls.errno) == (NOTHING, 0)


def test_the_error_of_a_failed_call_is_kept(pipe):
    _, write_end = pipe
    calls = Calls(write_end, SENDS, most=1 << 20)
    while calls.stream_send(bytes(4000)) == 0:
        pass
    assert calls.errno == errno.EAGAIN
    receiving = Calls(-1, RECEIVES, room=BUFFER_BYTES)
    assert (receiving.stream_receive(), receiving.errno, receiving.ended) == (None, errno.EBADF, False)


PIECES = st.lists(st.integers(1, 90_000), max_size=8)
SIZES = st.lists(st.sampled_from([1, 3, 4, 5, 1000, 65_531, 65_532, 65_533, 65_536, 70_000, 200_000]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, pieces=PIECES, travels=st.integers(0, 8))
def test_messages_come_whole_whatever_the_pieces_and_wherever_their_receiver_moves(sizes, pieces, travels):
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    messages = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    stream = memoryview(b"".join(map(framed, messages)))
    calls, received, step = Calls(read_end, RECEIVES, room=BUFFER_BYTES), [], 0
    while stream or len(received) < len(messages):
        piece = pieces[step % len(pieces)] if pieces else 1 << 16
        if stream:
            stream = stream[os.write(write_end, stream[:piece]) :]
        if step == travels:
            rest, old = calls.rest(), calls
            calls = Calls(read_end, RECEIVES, room=BUFFER_BYTES)
            calls.feed(rest)
            old.stream_drop()
        while (message := calls.stream_receive()) is not None:
            received.append(message)
        step += 1
    os.close(write_end)
    assert calls.stream_receive() is None
    assert calls.ended
    assert received == messages
    os.close(read_end)


def test_messages_and_forgotten_parts_are_given_back(pipe):
    read_end, write_end = pipe
    size = 1_000_000
    os.write(write_end, LENGTH.pack(size) + b"begun")

    def begin_and_drop():
        calls = Calls(read_end, RECEIVES, room=BUFFER_BYTES)
        calls.feed(LENGTH.pack(size) + b"x" * 70_000)
        assert calls.stream_receive() is None
        calls.stream_drop()

    begin_and_drop()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(1000):
        begin_and_drop()
    gc.collect()
    assert sys.getallocatedblocks() - before < 500  # other threads have some, pytest-xdist's for one
    message = bytes(range(200))
    count = sys.getrefcount(message)
    calls = Calls(write_end, SENDS, most=1 << 20)
    for _ in range(100):
        calls.stream_send(message)
    assert sys.getrefcount(message) == count


def test_packets_keep_their_boundaries_and_end():
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with left, right:
        sending = Calls(left.fileno(), ("packet_send",), most=1000)
        receiving = Calls(right.fileno(), ("packet_receive",), room=1008)
        assert receiving.packet_receive() is None
        assert receiving.errno == errno.EAGAIN
        assert sending.packet_send(b"one") == sending.packet_send(bytes(1000)) == 0
        assert sending.packet_send(bytes(1001)) == REFUSED
        assert [receiving.packet_receive(), receiving.packet_receive()] == [b"one", bytes(1000)]
        left.close()
        assert receiving.packet_receive() is None
        assert (receiving.ended, receiving.errno) == (True, 0)
