"""Segments: what they are is checked, who lives is proved, and nobody who waits is forgotten."""

import copy
import errno
import gc
import mmap
import os
import pickle
import select
import signal
import threading
import time

import numpy as np
import pytest

from labkit import launch
from labkit.channels.base import kind_dir
from labkit.lockfree import Broadcast, Mpmc, Spsc, bells
from labkit.lockfree.bells_entry import bell_functions
from labkit.lockfree.segment import (
    BODY,
    BYTES,
    CHECKSUM,
    GEOMETRY,
    ITEMS,
    KIND,
    LAYOUT,
    MAGIC,
    MOST_PEOPLE,
    PEOPLE,
    RECEIVER,
    ROOM,
    SENDER,
    Role,
    Segment,
)

pytestmark = pytest.mark.every_python

HEADER = CHECKSUM + 8


def nothing(number: int) -> None:
    """A sweep that has nothing to sweep."""


@pytest.fixture
def segment():
    segment = Segment.new("mpmc", 1, (3, 5), 10_000)
    yield segment
    segment.close()


# --- what it is ---------------------------------------------------------------------------------------------


def test_a_segment_knows_its_geometry_and_its_body_is_zeroed_and_aligned(segment):
    assert segment.geometry == (3, 5, 0, 0, 0, 0, 0)
    assert segment.body % 4096 == 0
    assert segment.memory.size == BODY + 12_288 and not segment.memory[BODY:].any()


def test_the_body_is_prepared_before_anybody_can_see_it():
    words = []

    def prepare(body: int) -> None:
        words.append(body)
        np.frombuffer((bytearray(8)), np.int64)  # the memory is reached by its address alone

    segment = Segment.new("spsc", 1, (), 100, prepare=prepare)
    assert words and words[0] % 4096 == 0
    segment.close()


def geometry_of(segment: Segment) -> tuple:
    seen = segment.geometry, bytes(segment.memory[BODY : BODY + 3]), segment.enter(nothing)
    segment.close()
    return seen


def test_a_child_gets_the_same_memory_and_is_somebody_else(segment):
    segment.memory[BODY : BODY + 3] = list(b"abc")
    assert segment.enter(nothing) == 1
    assert launch(geometry_of, segment).wait() == (segment.geometry, b"abc", 2)


def test_it_travels_only_to_a_child_that_is_being_started(segment):
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(segment)


@pytest.mark.parametrize("kind", [Broadcast, Mpmc, Spsc])
@pytest.mark.parametrize("attempt", [copy.copy, copy.deepcopy, pickle.dumps])
def test_who_only_tries_to_copy_a_queue_does_it_no_harm(kind, attempt):
    q = kind(16, dtype=np.int64)
    q.send(1)
    with pytest.raises(TypeError, match="hand it over as an argument"):
        attempt(q)
    gc.collect()
    q.send(2)
    assert list(q.receive_many(2)) == [1, 2]
    q.close()


def test_its_memory_lives_as_long_as_somebody_has_it(segment):
    memory = segment.memory
    segment.close()
    gc.collect()
    memory[BODY] = 7
    assert memory[BODY] == 7


def test_a_closed_one_says_so(segment):
    segment.close()
    segment.close()
    for use in (lambda: segment.enter(nothing), lambda: segment.take_role(SENDER), lambda: pickle.dumps(segment)):
        with pytest.raises(ValueError, match="mpmc is closed"):
            use()


def test_nobody_can_shrink_or_grow_one_without_a_name(segment):
    for size in (0, BODY, 1 << 20):
        with pytest.raises(OSError) as refused:
            os.ftruncate(segment.fd, size)
        assert refused.value.errno == errno.EPERM


@pytest.mark.parametrize("size", [0, -1, (1 << 40) + 1])
def test_an_impossible_size_is_refused(size):
    with pytest.raises(ValueError, match="1 byte to 1 TiB"):
        Segment.new("mpmc", 1, (), size)


def test_what_cannot_be_reserved_is_refused_and_leaves_nothing():
    with pytest.raises(OSError, match="smaller capacity"):
        Segment.new("mpmc", 1, (), 1 << 40)


def test_only_what_is_asked_for_is_reserved():
    segment = Segment.new("queue", 1, (), 1 << 28, reserve=4096)
    assert os.fstat(segment.fd).st_blocks * 512 < 1 << 20
    segment.close()


@pytest.mark.parametrize(
    "word, value, says",
    [
        (MAGIC, 0, "unfinished"),
        (KIND, 1234, "not a 'spsc'"),
        (LAYOUT, 2, "layout 2, this labkit knows 1"),
        (BYTES, 4096, "checksum"),
        (GEOMETRY, 77, "checksum"),
        (CHECKSUM, 0, "checksum"),
    ],
)
def test_a_foreign_unfinished_newer_or_damaged_one_is_refused(a_name, word, value, says):
    segment = Segment.new("spsc", 1, (1,), 100, name=a_name)
    try:
        segment.memory[word : word + 8] = np.array([value], np.int64).view(np.uint8)
        with pytest.raises(OSError, match=says) as refused:
            Segment.open("spsc", 1, a_name)
        assert refused.value.errno == errno.EBADMSG and refused.value.filename == a_name
    finally:
        Segment.unlink(a_name)
        segment.close()


@pytest.mark.parametrize("size", [0, 100, BODY, BODY + 4096, BODY + 3 * 4096])
def test_a_truncated_or_longer_one_is_refused(a_name, size):
    segment = Segment.new("spsc", 1, (1,), 8192, name=a_name)
    segment.close()
    try:
        os.truncate(kind_dir("lockfree") / a_name, size)
        with pytest.raises(OSError, match="bytes") as refused:
            Segment.open("spsc", 1, a_name)
        assert refused.value.errno == errno.EBADMSG
    finally:
        Segment.unlink(a_name)


def test_every_damaged_header_is_refused_or_harmless(a_name):
    segment = Segment.new("spsc", 1, (1,), 100, name=a_name)
    whole = segment.memory[:HEADER].copy()
    refused = 0
    try:
        for bit in range(HEADER * 8):
            segment.memory[:HEADER] = whole
            segment.memory[bit // 8] ^= 1 << bit % 8
            try:
                Segment.open("spsc", 1, a_name).close()
            except OSError as reason:
                assert reason.errno == errno.EBADMSG
                refused += 1
        assert refused == HEADER * 8
    finally:
        Segment.unlink(a_name)
        segment.close()


# --- names --------------------------------------------------------------------------------------------------


def test_a_stranger_finds_it_by_its_name_and_only_its_owner_may(a_name):
    segment = Segment.new("spsc", 1, (9,), 100, name=a_name)
    other = Segment.open("spsc", 1, a_name)
    other.memory[BODY] = 5
    assert segment.memory[BODY] == 5 and other.geometry[0] == 9
    assert os.stat(kind_dir("lockfree") / a_name).st_mode & 0o777 == 0o600
    Segment.unlink(a_name)
    with pytest.raises(FileNotFoundError, match="no queue of this name"):
        Segment.open("spsc", 1, a_name)
    with pytest.raises(FileNotFoundError):
        Segment.unlink(a_name)
    segment.close()
    other.close()


def test_a_name_in_use_is_refused_and_a_stale_one_is_taken_over(a_name):
    first = Segment.new("spsc", 1, (1,), 100, name=a_name)
    with pytest.raises(FileExistsError):
        Segment.new("spsc", 1, (2,), 100, name=a_name)
    first.close()
    second = Segment.new("mpmc", 1, (2,), 100, name=a_name)
    assert Segment.open("mpmc", 1, a_name).geometry[0] == 2
    Segment.unlink(a_name)
    second.close()
    gc.collect()


# --- who lives ----------------------------------------------------------------------------------------------


def forked(work) -> tuple[int, int]:
    """A plain child that works, writes a byte to the returned pipe, and waits to be killed: its pid and the pipe."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os.write(write, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.close(read)
    return pid, read


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_a_killed_process_is_proved_dead_and_a_stopped_one_is_not(segment):
    assert segment.enter(nothing) == 1
    is_dead = bell_functions()["is_dead"]
    private = int(segment.private.ctypes.data)
    pid, _ = forked(lambda: segment.enter(nothing))
    assert segment.people() == {1: os.getpid(), 2: pid}
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    assert segment.alive(2) and not is_dead(private, 2)
    kill(pid)
    assert not segment.alive(2) and is_dead(private, 2)
    assert segment.alive(1) and not is_dead(private, 1)


def test_a_dead_ones_number_is_swept_before_it_is_used_again(segment):
    pid, _ = forked(lambda: segment.enter(nothing))
    kill(pid)
    swept = []
    assert segment.enter(lambda number: swept.append((number, segment.me))) == 1
    assert swept == [(1, 0)]


def test_who_leaves_in_order_need_not_be_swept():
    first = Segment.new("mpmc", 1, (), 100)

    def come_and_go() -> None:
        first.enter(nothing)
        first.close()

    pid, _ = forked(come_and_go)
    assert first.enter(lambda number: pytest.fail("nothing to sweep")) == 1
    kill(pid)
    first.close()


def test_a_forked_child_has_no_number_and_none_of_its_parents_locks(segment):
    segment.enter(nothing)
    segment.take_role(SENDER)

    def child() -> None:
        assert segment.me == 0 and segment.alive(1) and segment.role(SENDER) is Role.TAKEN
        assert segment.enter(nothing) == 2

    pid, _ = forked(child)
    kill(pid)


def test_a_killed_parents_locks_do_not_live_on_in_its_forked_child(segment):
    grandchild: list[int] = []
    read, write = os.pipe()

    def child() -> None:
        segment.enter(nothing)
        pid, _ = forked(lambda: None)
        os.write(write, str(pid).encode())

    pid, _ = forked(child)
    grandchild.append(int(os.read(read, 20)))
    kill(pid)
    try:
        assert not segment.alive(1)
    finally:
        os.kill(grandchild[0], signal.SIGKILL)
        os.close(read)
        os.close(write)


def test_a_role_is_for_one_at_a_time_until_it_has_gone(segment):
    assert segment.role(SENDER) is Role.NEVER
    pid, _ = forked(lambda: segment.take_role(SENDER))
    with pytest.raises(ValueError, match=f"has a sender already, process {pid}"):
        segment.take_role(SENDER)
    segment.take_role(RECEIVER)
    assert segment.role(SENDER) is Role.TAKEN
    kill(pid)
    assert segment.role(SENDER) is Role.GONE
    segment.take_role(SENDER)


def test_there_are_numbers_for_255_and_the_next_is_told_so(segment):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # one process, with an attachment for each number
        import resource

        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
            many = []
            for _ in range(MOST_PEOPLE):
                copies = [os.dup(fd) for fd in segment.bell_fds]
                own = os.open(f"/proc/self/fd/{segment.fd}", os.O_RDWR | os.O_CLOEXEC)
                one = Segment(own, (copies[0], copies[1]), "mpmc", 1)
                one.enter(nothing)
                many.append(one)
            os.write(write, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 1) == b"1"
    os.close(read)
    assert len(segment.people()) == MOST_PEOPLE and segment.memory[PEOPLE:].any()
    with pytest.raises(OSError, match="255 processes") as refused:
        segment.enter(nothing)
    assert refused.value.errno == errno.EUSERS
    kill(pid)
    assert segment.enter(nothing) == 1


# --- bells --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [ITEMS, ROOM])
def test_who_sleeps_is_woken_and_who_polls_too(segment, offset):
    bell = segment.bell(offset)
    ticket = bell.seen()
    bell.arm(bells.SLEEPS | bells.POLLS)
    bell.ring()
    bell.sleep(ticket, 3600)  # returns at once: it has been rung since
    assert select.select([bell], [], [], 0)[0] == [bell]
    bell.hear()
    bell.ring()  # nobody has armed it again
    assert select.select([bell], [], [], 0)[0] == []


def ring_often(segment: Segment, rounds: int) -> None:
    """Count up the first word of the body, ringing each time, when the second word says that it was seen."""
    words = segment.memory[BODY : BODY + 16].view(np.int64)
    items, room = segment.bell(ITEMS), segment.bell(ROOM)
    for number in range(1, rounds + 1):
        words[0] = number
        items.ring()
        wait(room, lambda number=number: words[1] == number)
    segment.close()


def wait(bell, condition) -> int:
    """Sleep until it is true; returns how often nobody rang although it was."""
    missed = 0
    while not condition():
        ticket = bell.seen()
        bell.arm()
        if condition():
            break
        bell.sleep(ticket, 1.0)
        missed += condition() and bell.seen() == ticket
    return missed


def test_no_wake_up_is_lost_when_both_sides_sleep_again_and_again(segment):
    rounds = 3000
    words = segment.memory[BODY : BODY + 16].view(np.int64)
    items, room = segment.bell(ITEMS), segment.bell(ROOM)
    job = launch(ring_often, segment, rounds)
    missed = 0
    for number in range(1, rounds + 1):
        missed += wait(items, lambda number=number: words[0] == number)
        words[1] = number
        room.ring()
    job.wait()
    assert missed == 0


def test_a_process_without_membarrier_makes_everybody_fence(segment):
    bell_functions()["set_bits"](segment.address + ITEMS, bells.FENCED)
    bell = segment.bell(ITEMS)
    ticket = bell.seen()
    bell.arm()
    bell.ring()
    assert bell.seen() == ticket + 1
    assert segment.memory[ITEMS] == bells.FENCED


def test_sleeping_releases_the_gil_and_a_signal_ends_it(segment):
    bell = segment.bell(ITEMS)
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        thread = threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGUSR1))
        ticket = bell.seen()
        bell.arm()
        thread.start()
        while not heard:
            bell.sleep(ticket, 3600)
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_nobody_sleeps_for_ever(segment):
    bell = segment.bell(ITEMS)
    begun = time.monotonic()
    bell.arm()
    bell.sleep(bell.seen(), float("inf"))
    assert time.monotonic() > begun  # it came back by itself


def test_a_page_of_the_machine_divides_the_size(segment):
    assert segment.memory.size % mmap.PAGESIZE == 0
