"""What is particular to the buffers in shared memory: kill -9 at any point, memory that lies, no room."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import roles

from labkit import Closed, RemoteError, channel, launch, receiver, sender, unlink
from labkit.channels import buffer_entry, notes, sysv_shm
from labkit.channels.base import kind_dir
from labkit.libc import ffi, libc
from labkit.shared_array import SharedArray

FILES = ("posix_shm", "mmap_file")
BUFFERS = (*FILES, "sysv_shm")
ROOT = Path(__file__).parents[1]


def killed(job) -> None:
    with pytest.raises(RemoteError, match="SIGKILL"):
        job.wait()


def semaphores(end) -> list[int]:
    """Free slots, filled slots, mutex: semctl(GETVAL)."""
    return [libc.semctl(end._semaphores, number, buffer_entry.GETVAL) for number in range(3)]


def positions(end) -> tuple[int, int]:
    return int(end._words[buffer_entry.WRITE // 8]), int(end._words[buffer_entry.READ // 8])


# --- killed at each point of send and receive ---------------------------------------------------------------
# The steps of the compiled functions, taken one by one by a process that then kills itself.


def die_while_sending(tx, steps):
    state, start = tx._state, int(tx._words.ctypes.data)
    if tx.kind == "sysv_shm":
        take = ffi.cast("struct sembuf *", int(state.ctypes.data) + buffer_entry.TAKE)
        assert libc.semop(tx._semaphores, take, 2) == 0
    else:
        assert libc.sem_trywait(ffi.cast("sem_t *", start + buffer_entry.FREE)) == 0
    if steps > 1:  # the message is in its slot, and its position is written
        slot = buffer_entry.DATA + positions(tx)[0] % tx.max_messages * int(state[buffer_entry.STRIDE // 8])
        tx._words[slot // 8] = 4
        tx._words.view(np.uint8)[slot + 8 : slot + 12] = list(b"last")
    if steps > 2:
        tx._words[buffer_entry.WRITE // 8] += 1
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_receiving(rx, steps):
    state, start = rx._state, int(rx._words.ctypes.data)
    if rx.kind == "sysv_shm":
        take = ffi.cast("struct sembuf *", int(state.ctypes.data) + buffer_entry.TAKE)
        assert libc.semop(rx._semaphores, take, 2) == 0
    else:
        assert libc.sem_trywait(ffi.cast("sem_t *", start + buffer_entry.FILLED)) == 0
    if steps > 1:
        rx._words[buffer_entry.READ // 8] += 1
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("before", [0, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("kind", BUFFERS)
def test_a_sender_killed_at_any_step_blocks_nobody_and_leaves_whole_messages(kind, steps, before, a_name):
    """The buffer holds four; it is empty, half full, or full but for one slot when the sender dies."""
    tx, rx = channel(kind, name=a_name, max_messages=4)
    for number in range(before):
        tx.send(b"%d" % number)
    killed(launch(die_while_sending, tx, steps))
    tx = sender(kind, a_name)
    expected = [b"%d" % number for number in range(before)]
    if steps == 3 and kind in FILES:
        expected.append(b"last")  # its position was written: it is in the buffer
    sent = 0
    while len(expected) < 4:  # what the dead one had taken is to be had again
        tx.send(b"new %d" % sent, timeout=60)
        expected.append(b"new %d" % sent)
        sent += 1
    with pytest.raises(TimeoutError):
        tx.send(b"one too many", timeout=0.1)
    assert [rx.receive(timeout=60) for _ in expected] == expected
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0.1)
    for number in range(20):  # several times round
        tx.send(b"%d" % number, timeout=60)
        assert rx.receive(timeout=60) == b"%d" % number
    if kind == "sysv_shm":
        assert semaphores(tx) == [4, 0, 1]
    tx.close()
    rx.close()


@pytest.mark.parametrize("there", [1, 4])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", BUFFERS)
def test_a_receiver_killed_at_any_step_blocks_nobody(kind, steps, there, a_name):
    tx, rx = channel(kind, name=a_name, max_messages=4)
    for number in range(there):
        tx.send(b"%d" % number)
    killed(launch(die_while_receiving, rx, steps))
    rx = receiver(kind, a_name)
    expected = [b"%d" % number for number in range(there)]
    if steps == 2 and kind in FILES:
        expected.pop(0)  # its position was written: it had been received
    assert [rx.receive(timeout=60) for _ in expected] == expected
    with pytest.raises(TimeoutError):
        rx.receive(timeout=0.1)
    for number in range(4):
        tx.send(b"new %d" % number, timeout=60)
    assert [rx.receive(timeout=60) for _ in range(4)] == [b"new %d" % number for number in range(4)]
    tx.close()
    rx.close()


@pytest.mark.parametrize("kind", BUFFERS)
def test_a_count_that_a_dead_process_took_does_not_hide_a_message_from_who_never_waits(kind, a_name):
    tx, rx = channel(kind, name=a_name)
    tx.send(b"x")
    killed(launch(die_while_receiving, rx, 1))
    with receiver(kind, a_name) as rx:
        assert rx.receive(timeout=0) == b"x"
    tx.close()


# --- killed at random points, hundreds of times -------------------------------------------------------------


def send_generation(tx, generation):
    number = 0
    while True:
        tx.send(roles.numbered(generation * 1_000_000 + number, 100 + number % 3000), timeout=None)
        number += 1


def is_numbered(message) -> bool:
    return message == roles.numbered(int(message[:8]), len(message))


@pytest.mark.parametrize("kind", FILES)
def test_senders_killed_at_random_lose_nothing_that_was_sent_and_tear_nothing(kind, a_name):
    tx, rx = channel(kind, name=a_name, max_message=4000, max_messages=8)
    tx.close()
    random.seed(7)
    for generation in range(40):
        job = launch(send_generation, sender(kind, a_name), generation)
        expected = generation * 1_000_000
        until = time.monotonic() + random.uniform(0, 0.01)
        while time.monotonic() < until:
            message = rx.receive()
            assert (int(message[:8]), is_numbered(message)) == (expected, True)
            expected += 1
        job.kill()
        killed(job)
        while positions(rx)[0] != positions(rx)[1]:
            message = rx.receive(timeout=60)
            assert (int(message[:8]), is_numbered(message)) == (expected, True)
            expected += 1
    rx.close()


def test_system_v_users_killed_at_random_give_everything_back(a_name):
    """Senders and receivers die in pairs, each hundreds of times, mostly within semop or with the mutex in hand."""
    tx, rx = channel("sysv_shm", name=a_name, max_message=4000, max_messages=5)
    random.seed(11)

    def receive_numbered(rx):
        while True:
            assert is_numbered(rx.receive(timeout=None))

    for generation in range(200):
        jobs = [launch(send_generation, tx.clone(), generation % 50), launch(receive_numbered, rx.clone())]
        time.sleep(random.uniform(0, 0.004))
        random.shuffle(jobs)
        for job in jobs:
            job.kill()
        for job in jobs:
            killed(job)
        free, filled, mutex = semaphores(tx)
        assert (free + filled, mutex) == (5, 1)
        while True:
            try:
                assert is_numbered(rx.receive(timeout=0))
            except TimeoutError:
                break
        tx.send(b"00000001", timeout=60)
        assert rx.receive(timeout=60) == b"00000001"
        assert semaphores(tx) == [5, 0, 1]
    tx.close()
    rx.close()


def test_one_is_killed_while_others_use_the_same_segment(a_name):
    """Two senders go on while a third is killed again and again; nothing of theirs is lost or torn."""
    tx, rx = channel("sysv_shm", name=a_name, max_message=4000, max_messages=8)
    jobs = [launch(roles.send_many, tx.clone(), mark, 500, 3000) for mark in (b"a", b"b")]
    received: list[bytes] = []

    def receive():
        while sum(message[:1] in (b"a", b"b") for message in received) < 6000:
            received.append(rx.receive())

    receiving = threading.Thread(target=receive)
    receiving.start()
    while receiving.is_alive():
        victim = launch(send_generation, tx.clone(), 0)
        victim.kill()
        killed(victim)
    receiving.join()
    for job in jobs:
        job.wait()
    for mark in (b"a", b"b"):
        theirs = [message for message in received if message[:1] == mark]
        assert all(map(roles.is_whole, theirs))
        assert [int(message[2:8]) for message in theirs] == list(range(3000))
    assert all(is_numbered(message) for message in received if message[:1] not in (b"a", b"b"))
    tx.close()
    rx.close()


# --- who may use it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_a_second_sender_or_receiver_is_refused_while_the_first_lives(kind, a_name):
    tx, rx = channel(kind, name=a_name)
    for open_end, who in ((sender, "sender"), (receiver, "receiver")):
        with pytest.raises(OSError, match=f"has its {who} already") as caught:
            open_end(kind, a_name)
        assert caught.value.errno == errno.EBUSY
    job = launch(roles.hold, tx)
    with pytest.raises(OSError, match="already"):
        sender(kind, a_name)
    job.kill()
    killed(job)
    with sender(kind, a_name) as tx:
        tx.send(b"next")
    assert rx.receive() == b"next"
    rx.close()


def test_waiting_users_of_a_segment_learn_at_once_that_it_was_removed(a_name):
    tx, rx = channel("sysv_shm", name=a_name)
    removing = threading.Timer(0.1, unlink, ("sysv_shm", a_name))
    removing.start()
    with pytest.raises(Closed, match="removed"):
        rx.receive(None)
    removing.join()
    with pytest.raises(Closed, match="removed"):
        tx.send(b"x")
    tx.close()
    rx.close()


def test_a_second_thread_that_clears_the_error_number_does_no_harm():
    tx, rx = channel("sysv_shm")
    rx._state[buffer_entry.ERRNO // 8] = 0
    sending = threading.Timer(0.1, tx.send, (b"x",))
    sending.start()
    rx._sleep(5)
    assert rx.receive() == b"x"
    sending.join()
    tx.close()
    rx.close()


def test_a_segment_without_a_name_is_gone_when_its_last_user_was_killed():
    tx, rx = channel("sysv_shm")
    path, key = tx.note.path, tx.note.key
    jobs = launch(roles.hold, tx), launch(roles.hold, rx)
    for job in jobs:
        job.kill()
    for job in jobs:
        killed(job)
    assert not path.exists()
    assert [notes.find(kind, key) for kind in sysv_shm.OBJECTS] == [None, None]


# --- memory that lies ---------------------------------------------------------------------------------------


def path_of(kind, name) -> Path:
    return Path("/dev/shm", name) if kind == "posix_shm" else kind_dir("mmap_file") / name


def spoil(kind, name, offset, value):
    with path_of(kind, name).open("r+b") as file:
        file.seek(offset)
        file.write(value.to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("offset", "value", "says"),
    [
        (0, 7, "magic"),
        (8, 99, "version is 99"),
        (16, 2, "semaphore"),
        (24, 0, "max_messages"),
        (24, 500, "truncated"),
        (32, 0, "max_message"),
        (32, 1 << 50, "max_message"),
        (40, 0, "did not finish"),
        (40, 1, "did not finish"),
    ],
)
@pytest.mark.parametrize("kind", FILES)
def test_a_buffer_whose_header_is_wrong_is_refused(kind, offset, value, says, a_name):
    for end in channel(kind, name=a_name):
        end.close()
    spoil(kind, a_name, offset, value)
    for open_end in (sender, receiver):
        with pytest.raises(OSError, match=says) as caught:
            open_end(kind, a_name)
        assert caught.value.errno == errno.EBADMSG


@pytest.mark.parametrize("size", [0, 100, 4096, 20_000])
@pytest.mark.parametrize("kind", FILES)
def test_a_truncated_buffer_is_refused(kind, size, a_name):
    for end in channel(kind, name=a_name):
        end.close()
    os.truncate(path_of(kind, a_name), size)
    with pytest.raises(OSError, match=r"bytes|truncated|finish|magic"):
        sender(kind, a_name)


@pytest.mark.parametrize("kind", FILES)
def test_a_foreign_file_of_that_name_is_refused_and_not_changed(kind, a_name):
    path = path_of(kind, a_name)
    path.write_bytes(b"precious" * 1000)
    path.chmod(0o600)
    for ask in (lambda: sender(kind, a_name), lambda: receiver(kind, a_name, create=True)):
        with pytest.raises(OSError, match="magic"):
            ask()
    with pytest.raises(FileExistsError):
        channel(kind, name=a_name)
    assert path.read_bytes() == b"precious" * 1000


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("written", [-1, 17, 2**62, -(2**63)])
def test_positions_that_contradict_each_other_are_an_error_not_a_crash(kind, written):
    tx, rx = channel(kind)
    tx.send(b"x")
    tx._words[buffer_entry.WRITE // 8] = written
    for use in (lambda: rx.receive(timeout=0), lambda: tx.send(b"x", timeout=0)):
        with pytest.raises(OSError, match="contradict"):
            use()
    tx.close()
    rx.close()


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("size", [0, -1, 2**40])
def test_a_size_that_cannot_be_is_an_error_not_a_copy(kind, size):
    tx, rx = channel(kind)
    tx.send(b"x")
    tx._words[buffer_entry.DATA // 8] = size
    with pytest.raises(OSError, match="contradict"):
        rx.receive(timeout=0)
    tx.close()
    rx.close()


def test_a_buffer_that_its_makers_death_left_half_made_is_made_again(a_name):
    code = (
        "import os; from labkit.channels import bounded_buffer, posix_shm\n"
        "posix_shm.make_in_file = lambda *_: os.kill(os.getpid(), 9)\n"
        f"posix_shm.open_named({a_name!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    assert Path("/dev/shm", a_name).exists()
    with pytest.raises(OSError, match="bytes only"):
        sender("posix_shm", a_name)
    tx, rx = channel("posix_shm", name=a_name)
    tx.send(b"x")
    assert rx.receive() == b"x"
    tx.close()
    rx.close()


def test_a_segment_that_its_makers_death_left_half_made_is_made_again(a_name):
    code = (
        "import os; from labkit.channels import sysv_shm\n"
        "sysv_shm.lay_out = lambda *_: os.kill(os.getpid(), 9)\n"
        f"sysv_shm.open_named({a_name!r})"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    with pytest.raises(FileNotFoundError):
        sender("sysv_shm", a_name)
    tx, rx = channel("sysv_shm", name=a_name)
    tx.send(b"x")
    assert rx.receive() == b"x"
    tx.close()
    rx.close()


# --- options and room ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize(
    "options", [{"max_message": 0}, {"max_message": 1 << 31}, {"max_messages": 0}, {"max_messages": 40_000}], ids=str
)
def test_an_option_out_of_range_is_refused(kind, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        channel(kind, **options)


@pytest.mark.parametrize("kind", BUFFERS)
def test_options_in_range_do_what_they_say(kind):
    tx, rx = channel(kind, max_message=1_000_000, max_messages=2)
    assert (tx.max_message, tx.capacity.amount) == (1_000_000, 2)
    messages = [os.urandom(1_000_000) for _ in range(2)]
    for message in messages:
        tx.send(message, timeout=0)
    tx.close()
    assert list(rx) == messages
    rx.close()


@pytest.mark.parametrize("kind", FILES)
def test_no_room_for_a_buffer_is_an_error_when_it_is_made_and_leaves_nothing(kind, a_name):
    def without_room(kind, name):
        channel(kind)
        before = os.listdir("/proc/self/fd")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        reasons = []
        for named in ({}, {"name": name}):
            try:
                channel(kind, **named)
            except OSError as reason:
                reasons.append((reason.errno, str(reason)))
        return reasons, len(os.listdir("/proc/self/fd")) - len(before)

    reasons, leaked = launch(without_room, kind, a_name).wait()
    assert [number for number, _ in reasons] == [errno.EFBIG] * 2
    assert all("fewer or smaller" in text for _, text in reasons)
    assert leaked == 0
    assert not path_of(kind, a_name).exists()


def test_a_segment_beyond_the_machines_memory_is_explained():
    def too_much():
        resource.setrlimit(resource.RLIMIT_AS, (1 << 33, resource.RLIM_INFINITY))
        channel("sysv_shm", max_message=(1 << 31) - 1, max_messages=32_000)

    with pytest.raises(RemoteError, match=r"fewer or smaller messages|Cannot allocate memory|at its limit"):
        launch(too_much).wait()


# --- cleaning up --------------------------------------------------------------------------------------------


def test_messages_in_a_mapped_file_are_in_the_file_itself(a_name):
    tx, rx = channel("mmap_file", name=a_name)
    tx.send(b"It is a truth universally acknowledged")
    tx.close()
    rx.close()
    assert b"universally acknowledged" in path_of("mmap_file", a_name).read_bytes()


@pytest.mark.parametrize("kind", FILES)
def test_a_buffer_with_a_name_is_for_its_owner_only_and_noted(kind, a_name):
    channel(kind, name=a_name)
    assert path_of(kind, a_name).stat().st_mode & 0o777 == 0o600
    assert (kind_dir(kind) / a_name).exists()
    unlink(kind, a_name)
    assert not (kind_dir(kind) / a_name).exists()


# --- arrays -------------------------------------------------------------------------------------------------


def test_an_array_is_the_same_memory_in_a_child_and_stays_ours():
    shared = SharedArray((3, 4), np.float32)
    assert not shared.array.any()

    def fill(shared):
        shared.array[1] = 7

    launch(fill, shared).wait()
    assert shared.array.tolist() == [[0] * 4, [7] * 4, [0] * 4]
    shared.close()
    shared.close()
    assert "closed" in repr(shared)
    with pytest.raises((ValueError, TypeError), match="closed"):
        launch(fill, shared)


def test_an_array_keeps_its_memory_while_it_is_used():
    shared = SharedArray(1000, np.int64)
    array = shared.array
    shared.close()
    array[:] = 5
    assert array.sum() == 5000


def test_the_memory_of_an_array_cannot_be_truncated():
    shared = SharedArray(10)
    with pytest.raises(PermissionError):
        os.truncate(shared._fd, 0)


@pytest.mark.parametrize(
    ("shape", "dtype", "error"), [(0, "f8", ValueError), ((3, 0), "f8", ValueError), (3, object, TypeError)]
)
def test_an_array_that_cannot_be_shared_is_refused(shape, dtype, error):
    with pytest.raises(error, match="nothing to share|Python objects"):
        SharedArray(shape, dtype)


def test_mapped_files_work_where_the_file_system_has_no_files_without_names(a_name, monkeypatch):
    """An older overlay, for instance. Without its own bit O_TMPFILE is refused by the kernel just as there: EISDIR."""
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    for name in (None, a_name):
        tx, rx = channel("mmap_file", name=name)
        tx.send(b"x")
        assert rx.receive() == b"x"
        tx.close()
        rx.close()
    with pytest.raises(FileExistsError):
        channel("mmap_file", name=a_name)
