"""What is particular to the baselines people know: multiprocess.Queue, and ZeroMQ over ipc."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
import roles

from labkit import Closed, channel, launch, receiver, sender, unlink
from labkit.channels.base import kind_dir

# --- mp_queue -----------------------------------------------------------------------------------------------


def test_a_queue_has_no_names_in_dev_shm_and_none_are_left():
    before = set(os.listdir("/dev/shm"))
    tx, rx = channel("mp_queue")
    tx.send(b"x")
    assert set(os.listdir("/dev/shm")) == before
    assert rx.receive() == b"x"
    tx.close()
    rx.close()


def test_what_the_feeder_thread_has_not_written_travels_with_its_sender():
    tx, rx = channel("mp_queue")
    messages = [b"%03d" % n * 1000 for n in range(300)]  # more than a pipe holds
    for message in messages:
        tx.send(message)
    job = launch(roles.send_all, tx, [b"later"])
    assert list(rx) == [*messages, b"later"]
    job.wait()
    rx.close()


def test_a_launch_that_fails_leaves_unsent_messages_here():
    tx, rx = channel("mp_queue")
    messages = [b"%03d" % n * 1000 for n in range(100)]
    for message in messages:
        tx.send(message)
    with pytest.raises(TypeError):
        launch(roles.hold, tx, (nothing for nothing in ()))
    closing = threading.Thread(target=tx.close)
    closing.start()
    assert list(rx) == messages
    closing.join()
    rx.close()


def test_a_process_that_ends_well_has_sent_everything():
    tx, rx = channel("mp_queue")
    job = launch(roles.send_all, tx, [bytes(1000)] * 900)
    assert roles.eventually(lambda: roles.sleeping(job.pid))
    assert sum(1 for _ in rx) == 900
    job.wait()
    rx.close()


def test_maxsize_is_how_many_messages_wait_and_nonsense_is_refused():
    tx, rx = channel("mp_queue", maxsize=3)
    for _ in range(3):
        tx.send(b"x", timeout=0)
    with pytest.raises(TimeoutError):
        tx.send(b"x", timeout=0)
    assert tx.capacity.amount == 3
    rx.receive()
    tx.send(b"x", timeout=60)
    tx.close()
    rx.close()
    for nonsense in (-1, 1 << 40):
        with pytest.raises(ValueError, match="maxsize"):
            channel("mp_queue", maxsize=nonsense)


# --- zmq ----------------------------------------------------------------------------------------------------


def test_a_full_channel_that_is_closed_loses_nothing_although_libzmq_would():
    """libzmq drops what is in the kernel when its receiver stands at the high-water mark and the sender ends."""
    tx, rx = channel("zmq", max_messages=10)
    sent, full = 0, False
    while not full:
        try:
            tx.send(b"%06d" % sent * 20, timeout=0.05)
            sent += 1
        except TimeoutError:
            full = sent >= tx.capacity.amount  # else a thread of libzmq has not come to move them on yet
    closing = threading.Thread(target=tx.close)
    closing.start()
    assert list(rx) == [b"%06d" % n * 20 for n in range(sent)]
    closing.join()
    rx.close()


def test_an_unnamed_channel_is_nowhere_in_the_file_system():
    tx, rx = channel("zmq")
    assert list(kind_dir("zmq").iterdir()) == []
    tx.send(b"x")
    assert rx.receive() == b"x"
    tx.close()
    rx.close()


def test_the_name_is_for_its_owner_only_and_goes_with_its_receiver(a_name):
    path = kind_dir("zmq") / a_name
    with receiver("zmq", a_name, create=True):
        mode = path.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
        with pytest.raises(FileExistsError):
            receiver("zmq", a_name, create=True)
    assert not path.exists()
    with pytest.raises(FileNotFoundError):
        unlink("zmq", a_name)


def test_what_is_no_socket_is_not_replaced(a_name):
    path = kind_dir("zmq") / a_name
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="no socket"):
        receiver("zmq", a_name, create=True)
    with pytest.raises(FileNotFoundError):
        sender("zmq", a_name)
    assert path.read_text() == "precious"
    path.unlink()


def test_a_sender_cannot_make_the_name(a_name):
    with pytest.raises(ValueError, match="made by its receiver"):
        sender("zmq", a_name, create=True)


@pytest.mark.parametrize("nonsense", [0, -1, 1 << 31])
def test_a_high_water_mark_out_of_range_is_refused(nonsense):
    with pytest.raises(ValueError, match="max_messages"):
        channel("zmq", max_messages=nonsense)


def receive_all_when_connected(rx, tell):
    """What is sent before the sender's I/O thread has heard that the receiver left, and connects again, may be lost."""
    assert roles.eventually(lambda: rx._connections() == 1)
    tell.send(b"connected")
    return list(rx)


def test_a_receiver_that_travels_takes_along_what_has_come_and_hears_what_comes_later():
    tx, rx = channel("zmq")
    for number in range(100):
        tx.send(b"%d" % number)
    tell, told = channel("pipe")
    job = launch(receive_all_when_connected, rx, tell)
    assert told.receive(timeout=60)
    for number in range(100, 200):
        tx.send(b"%d" % number)
    tx.close()
    told.close()
    assert job.wait() == [b"%d" % number for number in range(200)]


def test_a_sender_to_a_dead_receiver_closes_at_once(a_name):
    tx, rx = channel("zmq", name=a_name)
    job = launch(roles.hold, rx)
    tx.send(b"x")
    job.kill()
    assert roles.eventually(lambda: not job.alive)
    tx.close()
    assert Path(kind_dir("zmq") / a_name).exists()  # killed: `labkit clean`, or the next receiver, removes it


def test_end_of_file_after_a_kill_comes_behind_what_was_written():
    tx, rx = channel("zmq")
    job = launch(roles.send_forever, tx, b"m" * 100)
    for _ in range(1000):
        assert rx.receive() == b"m" * 100
    job.kill()
    with pytest.raises(Closed):
        while True:
            assert rx.receive() == b"m" * 100
    rx.close()
