"""What is particular to channels of signals: who is addressed, which threads block, what has lost its place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import roles

from labkit import Closed, channel, launch, receiver, sender, unlink
from labkit.channels import signal as signals
from labkit.channels.base import kind_dir
from labkit.channels.signal_entry import handler
from labkit.libc import SYSCALLS, ffi, libc

pytestmark = pytest.mark.every_python


def blocked(thread: int, number: int) -> bool:
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return bool(int(status.partition("SigBlk:")[2].split()[0], 16) >> (number - 1) & 1)


@pytest.fixture
def bystander():
    """A thread that sleeps in poll(2) and has nothing to do with it."""
    stop, done = os.pipe()[::-1]
    ids = []

    def sleep():
        ids.append(threading.get_native_id())
        poll = select.poll()
        poll.register(done, select.POLLIN)
        poll.poll()

    thread = threading.Thread(target=sleep)
    thread.start()
    assert roles.eventually(lambda: ids)
    yield ids[0]
    os.close(stop)
    thread.join()
    os.close(done)


def test_every_thread_blocks_the_signal_of_a_receiver_also_one_that_came_before_or_after(bystander):
    tx, rx = channel("signal")
    later = []
    thread = threading.Thread(target=lambda: later.append(blocked(threading.get_native_id(), rx.number)))
    thread.start()
    thread.join()
    assert blocked(bystander, rx.number)
    assert later == [True]
    tx.close()
    rx.close()


def test_a_thread_that_unblocks_the_signal_loses_nothing_and_mixes_up_nothing(bystander):
    tx, rx = channel("signal")
    stop, opened = threading.Event(), threading.Event()

    def unblock():
        while not stop.is_set():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [rx.number])
            opened.set()
            time.sleep(0.0001)

    thread = threading.Thread(target=unblock)
    thread.start()
    opened.wait()
    messages = [bytes([n % 256]) * 50 for n in range(2000)]
    job = launch(roles.send_all, tx, messages)
    received = list(rx)
    stop.set()
    thread.join()
    job.wait()
    assert received == messages
    rx.close()


@pytest.mark.parametrize("late", [0, 1], ids=["a piece before another", "the last piece of a message"])
def test_a_piece_that_a_thread_gives_back_when_every_sender_has_gone_is_waited_for(late, monkeypatch):
    """Its handler does that, and a busy machine may stop it in the middle."""
    monkeypatch.setattr(signals, "GAP_PATIENCE", 60)
    monkeypatch.setattr(signals, "BEGUN_PATIENCE", 60)
    tx, rx = channel("signal")
    messages = [b"of two" * 2] if late else [b"a word", b"another"]
    launch(roles.send_all, tx, messages).wait()
    taken = [os.read(rx.fileno(), 128) for _ in range(late + 1)]  # as a thread that has not blocked the signal
    for piece in taken[:-1]:
        give_back(rx.number, piece)
    timer = threading.Timer(0.05, give_back, (rx.number, taken[-1]))
    timer.start()
    assert list(rx) == messages
    timer.join()
    rx.close()


def give_back(number, piece):
    """rt_sigqueueinfo(2): a signal that was read from a signalfd is pending again."""
    channel_and_sender, code, pid, rest, value = signals.FIELDS.unpack_from(piece)
    info = struct.pack("=iii4xiIQ96x", number, channel_and_sender, code, pid, rest, value)
    assert (
        libc.syscall(
            SYSCALLS["rt_sigqueueinfo"], ffi.cast("long", os.getpid()), ffi.cast("long", number), ffi.from_buffer(info)
        )
        == 0
    )


def test_pieces_that_a_thread_has_taken_and_put_back_again_and_again_find_their_places():
    tx, rx = channel("signal")
    messages = [b"%02d" % n * 25 for n in range(40)]
    for message in messages:
        tx.send(message)

    def take_the_first_and_put_it_behind():
        for _ in range(330):  # more than there are pieces
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [rx.number])

    thread = threading.Thread(target=take_the_first_and_put_it_behind)
    thread.start()
    thread.join()
    tx.close()
    assert list(rx) == messages
    rx.close()


@pytest.fixture
def no_room():
    """Whoever puts a signal into the queue is told that it is full; kill(2) may still say that there is one."""
    most, hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)

    @contextlib.contextmanager
    def full():
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_SIGPENDING, (most, hard))

    return full


def take(rx, times):
    """A thread of its own unblocks the signal: its handler takes one piece each time, and blocks it again."""

    def unblock():
        for _ in range(times):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [rx.number])

    thread = threading.Thread(target=unblock)
    thread.start()
    thread.join()


def test_pieces_that_find_no_room_in_the_queue_again_are_not_lost(no_room):
    tx, rx = channel("signal")
    messages = [b"%03d" % n * 17 for n in range(60)]
    for message in messages:
        tx.send(message)
    with no_room():
        take(rx, 333)
    tx.close()
    assert list(rx) == messages
    rx.close()


def test_who_waits_is_told_of_a_piece_that_found_no_room(no_room, bystander):
    tx, rx = channel("signal")
    other, not_his = channel("signal")
    tx.send(b"one")
    with no_room():
        take(rx, 2)  # the second time it takes what tells of the piece
        assert select.select([rx, not_his], [], [], 0)[0] == [rx]
        with pytest.raises(TimeoutError):
            not_his.receive(timeout=0)
        assert rx.receive(timeout=0) == b"one"
        with pytest.raises(TimeoutError):
            rx.receive(timeout=0)
    for end in (tx, rx, other, not_his):
        end.close()


def test_what_found_no_room_goes_with_its_receiver(no_room):
    tx, rx = channel("signal")
    tx.send(b"of a channel that ends")
    with no_room():
        take(rx, 1)
        number = rx.number
        tx.close()
        rx.close()
        tx, rx = channel("signal")
        assert rx.number == number
        with pytest.raises(TimeoutError):
            rx.receive(timeout=0)
    tx.send(b"of this one")
    with no_room():
        take(rx, 2)
    assert rx.receive() == b"of this one"
    tx.close()
    rx.close()


def test_several_receivers_of_one_process_have_a_signal_each_and_give_it_back():
    pairs = [channel("signal") for _ in range(5)]
    assert len({rx.number for _, rx in pairs}) == 5
    for number, (tx, _) in enumerate(pairs):
        tx.send(b"%d" % number)
    assert [rx.receive() for _, rx in pairs] == [b"0", b"1", b"2", b"3", b"4"]
    numbers = [rx.number for _, rx in pairs]
    for end in (end for pair in pairs for end in pair):
        end.close()
    tx, rx = channel("signal")
    assert rx.number == numbers[0]
    tx.close()
    rx.close()


def test_when_every_signal_is_taken_it_says_so_and_leaves_nothing():
    def take_all():
        pairs = []
        try:
            while True:
                pairs.append(channel("signal"))
        except OSError as reason:
            number, text = reason.errno, str(reason)
        before = len(os.listdir("/proc/self/fd"))
        with contextlib.suppress(OSError):
            channel("signal")
        return len(pairs), number, text, len(os.listdir("/proc/self/fd")) - before

    made, number, text, leaked = launch(take_all).wait()
    assert made > 20
    assert number == errno.EAGAIN
    assert "real-time signals" in text
    assert leaked == 0


def test_a_signal_that_somebody_handles_is_left_to_him():
    def handled():
        called = []
        signal.signal(signal.SIGRTMIN + 1, lambda *_: called.append(True))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGRTMIN + 1])  # a mask is inherited
        tx, rx = channel("signal")
        tx.send(b"x")
        rx.receive()
        os.kill(os.getpid(), signal.SIGRTMIN + 1)
        return rx.number != signal.SIGRTMIN + 1, called

    assert launch(handled).wait() == (True, [True])


def test_signals_of_strangers_are_not_taken_for_messages():
    tx, rx = channel("signal")
    os.kill(os.getpid(), rx.number)
    libc.sigqueue(os.getpid(), rx.number, 0x0141424344454619)
    tx.send(b"mine")
    assert rx.receive() == b"mine"
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0)
    tx.close()
    rx.close()


def test_two_senders_of_one_process_do_not_mix():
    tx, rx = channel("signal")
    with tx, tx.clone() as second:
        for number in range(50):
            tx.send(b"a%d" % number * 20)
            second.send(b"b%d" % number * 20)
    received = list(rx)
    assert sorted(received) == sorted(b"%c%d" % (who, n) * 20 for n in range(50) for who in b"ab")
    rx.close()


def test_a_process_may_make_any_number_of_senders(monkeypatch):
    """The numbers of two that live, and of one that has closed, differ by a multiple of 32,768."""
    monkeypatch.setattr(signals, "_next_sender", iter([5 + (n << signals.SENDER_BITS) for n in range(3)]))
    tx, rx = channel("signal")
    second = tx.clone()
    for number in range(20):
        tx.send(b"a%d" % number * 20)
        second.send(b"b%d" % number * 20)
    tx.close()
    third = second.clone()
    third.send(b"c")
    second.close()
    third.close()
    assert list(rx) == [b"%c%d" % (who, n) * 20 for n in range(20) for who in b"ab"] + [b"c"]
    rx.close()


def test_a_receiver_travels_while_others_send(a_name):
    """From process to process and back, with a sender that never stops: nothing is lost, doubled or out of order."""

    def pass_on(rx, back, most):
        for _ in range(most):
            back.send(rx.receive())

    tx, rx = channel("signal", name=a_name)
    keep = tx.clone()
    sending = launch(roles.send_all, tx, [b"%06d" % n * 3 for n in range(20_000)])
    received = [rx.receive() for _ in range(100)]
    back, rest = channel("pipe")
    job = launch(pass_on, rx, back, 20_000 - 100)
    received += [rest.receive() for _ in range(20_000 - 100)]
    sending.wait()
    job.wait()
    assert received == [b"%06d" % n * 3 for n in range(20_000)]
    keep.close()
    rest.close()
    assert not (kind_dir("signal") / a_name).exists()


def test_a_launch_that_fails_leaves_the_receiver_here():
    tx, rx = channel("signal")
    tx.send(b"1")
    with pytest.raises(TypeError):
        launch(roles.hold, rx, (nothing for nothing in ()))
    with pytest.raises(TimeoutError):
        tx.send(b"too early", timeout=0)  # nobody receives just now
    assert rx.receive() == b"1"
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0)  # it is used again, so senders are let in again
    tx.send(b"2")
    tx.close()
    assert list(rx) == [b"2"]
    rx.close()


def test_a_full_queue_is_the_users_limit_and_what_went_in_part_is_forgotten():
    def deaf(rx, ready, go):
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (50, 50))
        ready.send(b"here")
        go.receive()
        return list(rx)

    tx, rx = channel("signal")
    (ready, is_ready), (say_go, go) = channel("pipe"), channel("pipe")
    job = launch(deaf, rx, ready, go)
    is_ready.receive()
    whole = 0
    try:
        while True:
            tx.send(b"m" * 100, timeout=0)  # 15 signals
            whole += 1
    except TimeoutError:
        pass
    assert whole <= 3
    say_go.send(b"go")
    tx.send(b"next")
    tx.close()
    assert job.wait() == [b"m" * 100] * whole + [b"next"]
    for end in (is_ready, say_go):
        end.close()


def test_a_process_that_has_got_the_pid_of_a_dead_receiver_is_not_hit(a_name):
    tx, rx = channel("signal", name=a_name)
    innocent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    rx._page[signals.WHO] = rx.number << 32 | innocent.pid  # as if it had its pid: the start time differs
    with pytest.raises(Closed):
        tx.send(b"x")
    assert innocent.poll() is None
    innocent.communicate()
    tx.close()
    rx.close()


def test_a_sender_cannot_make_the_name(a_name):
    with pytest.raises(ValueError, match="made by its receiver"):
        sender("signal", a_name, create=True)


def test_a_receiver_needs_to_make_the_name_and_there_is_one(a_name):
    with pytest.raises(FileNotFoundError, match="create=True"):
        receiver("signal", a_name)
    with receiver("signal", a_name, create=True), pytest.raises(FileExistsError):
        receiver("signal", a_name, create=True)
    with pytest.raises(FileNotFoundError):
        unlink("signal", a_name)


def test_a_file_that_is_no_signal_channel_is_refused(a_name):
    path = kind_dir("signal") / a_name
    path.write_bytes(b"something else")
    with open(path, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="size is wrong"):
            sender("signal", a_name)
    path.unlink()


def test_the_name_is_for_its_owner_only(a_name):
    with receiver("signal", a_name, create=True):
        assert (kind_dir("signal") / a_name).stat().st_mode & 0o777 == 0o600


def test_the_handler_is_where_the_kernel_calls_it():
    """The offset of uc_sigmask, on the machine on which this runs."""
    tx, rx = channel("signal")
    action = ffi.new("struct sigaction *")
    assert libc.sigaction(rx.number, ffi.NULL, action) == 0
    assert int(ffi.cast("intptr_t", action.sa_handler)) == handler().address
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [rx.number])
    signal.pthread_kill(threading.get_ident(), rx.number)  # runs at once, in this thread
    assert blocked(threading.get_native_id(), rx.number)
    tx.close()
    rx.close()


def test_threads_that_find_the_receiver_at_the_same_time_keep_one_descriptor_of_it():
    tx, rx = channel("signal")

    def pidfds():
        links = (os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path))
        return sum("pidfd" in link for link in links)

    before = pidfds()
    threads = [threading.Thread(target=lambda: [tx._meet() for _ in range(500)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pidfds() - before <= 1
    tx.send(b"x")
    assert rx.receive() == b"x"
    tx.close()
    rx.close()
    assert pidfds() <= before
