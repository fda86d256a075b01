"""A blocking system call without a timeout gets one, in any thread, and nobody else's signals are disturbed."""

import contextlib
import errno
import fcntl
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from roles import eventually, interrupt_soon, sleeping

from labkit.channels.base import Waiter
from labkit.libc import ffi, libc
from labkit.sync import interrupt
from labkit.sync.interrupt import interruptible


@pytest.fixture
def locked(tmp_path) -> Iterator[tuple[int, int]]:
    """A descriptor that holds a flock, and another that cannot get it."""
    path = tmp_path / "file"
    path.touch()
    with open(path) as holder, open(path) as other:
        fcntl.flock(holder, fcntl.LOCK_EX)
        yield holder.fileno(), other.fileno()


def take(fd: int, timeout: float | None, gone=None) -> int:
    return interruptible("flock", lambda: libc.flock(fd, fcntl.LOCK_EX), Waiter(timeout), "it stayed locked", gone)


@pytest.mark.parametrize("timeout", [0, 0.001, 0.08, 0.2])
def test_the_call_ends_at_its_deadline(locked, timeout):
    with pytest.raises(TimeoutError, match=f"it stayed locked for {timeout:g} s"):
        take(locked[1], timeout)


@pytest.mark.parametrize("timeout", [60, None])
def test_the_call_ends_as_soon_as_it_succeeds(locked, timeout):
    release = threading.Timer(0.2, fcntl.flock, (locked[0], fcntl.LOCK_UN))
    release.start()
    assert take(locked[1], timeout) == 0
    release.join()


def test_ctrl_c_ends_the_call(locked):
    pressed = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        pressed.start()
        take(locked[1], None)
    pressed.join()


def test_it_works_in_every_thread_at_the_same_time(locked):
    outcomes = []

    def attempt(timeout: float) -> None:
        try:
            take(locked[1], timeout)
        except TimeoutError:
            outcomes.append(timeout)

    patient = threading.Thread(target=take, args=(locked[1], None))
    threads = [threading.Thread(target=attempt, args=(0.05 * number,)) for number in range(1, 7)]
    for thread in [patient, *threads]:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == [0.05 * number for number in range(1, 7)]
    assert patient.is_alive(), "the timers of others are not its own"
    fcntl.flock(locked[0], fcntl.LOCK_UN)
    patient.join(60)
    assert not patient.is_alive()


def test_it_works_in_a_thread_that_blocks_every_signal_and_leaves_its_mask_alone(locked):
    masks = []

    def attempt() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        with contextlib.suppress(TimeoutError):
            take(locked[1], 0.1)
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join(60)
    assert len(masks) == 2
    assert masks[0] == masks[1]


def test_it_works_in_a_child_after_fork():
    program = """
import fcntl, os, tempfile
from labkit.channels.base import Waiter
from labkit.libc import libc
from labkit.sync.interrupt import interruptible

with tempfile.NamedTemporaryFile() as file, open(file.name) as other:
    fcntl.flock(file, fcntl.LOCK_EX)
    def attempt():
        try:
            interruptible("flock", lambda: libc.flock(other.fileno(), fcntl.LOCK_EX), Waiter(0.1), "locked")
        except TimeoutError:
            return 7
    assert attempt() == 7
    pid = os.fork()
    if pid == 0:
        os._exit(attempt())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_wait_ends_when_what_the_caller_looks_at_has_gone(locked):
    there = iter([False, False, True])
    assert take(locked[1], 10, gone=lambda: next(there)) == -1


def test_an_error_of_the_call_is_raised_with_its_name():
    with pytest.raises(OSError, match=r"flock: Bad file descriptor") as caught:
        take(999_999, 1)
    assert caught.value.errno == errno.EBADF


def test_a_signal_that_others_use_is_left_alone(locked):
    with contextlib.suppress(TimeoutError):
        take(locked[1], 0)
    ours = interrupt._number
    theirs = signal.signal(ours, lambda *_: None)
    try:
        with pytest.raises(TimeoutError):
            take(locked[1], 0.1)
        assert interrupt._number != ours
        action = ffi.new("struct sigaction *")
        libc.sigaction(ours, ffi.NULL, action)
        assert action.sa_handler != interrupt._nothing
    finally:
        signal.signal(ours, signal.SIG_DFL)
        libc.sigaction(interrupt._number, ffi.new("struct sigaction *"), ffi.NULL)  # SIG_DFL is 0
        assert theirs is None or theirs == signal.SIG_DFL


def test_no_signal_comes_after_the_call_has_ended(locked):
    with pytest.raises(TimeoutError):
        take(locked[1], 0.12)
    # A sleep that a signal interrupts returns EINTR; nothing else in this thread makes one.
    poll = ffi.new("struct timespec *", (0, 150_000_000))
    wanted = ffi.new("sigset_t *")
    libc.sigemptyset(wanted)
    assert libc.sigtimedwait(wanted, ffi.NULL, poll) == -1
    assert ffi.errno == errno.EAGAIN, "EINTR would be a tick"


def test_waiting_sleeps(locked):
    thread = threading.Thread(target=take, args=(locked[1], None))
    thread.start()
    try:
        assert eventually(lambda: sleeping(thread.native_id))
    finally:
        fcntl.flock(locked[0], fcntl.LOCK_UN)
        thread.join(60)


def test_a_thousand_waits_leave_no_timer(locked):
    fcntl.flock(locked[0], fcntl.LOCK_UN)
    for _ in range(1000):
        take(locked[1], 1)
    timers = Path("/proc/self/timers")  # not on every kernel
    assert not timers.exists() or timers.read_text() == ""


LIMITED = """
import resource, sys, threading
from labkit.channels.base import Waiter
from labkit.sync.interrupt import interruptible

hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)[1]
resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, hard))
if sys.argv[1] == "passes":
    threading.Timer(0.3, resource.setrlimit, (resource.RLIMIT_SIGPENDING, (hard, hard))).start()
try:
    print(interruptible("call", lambda: 5, Waiter(0.1 if sys.argv[1] == "short" else None), "nothing came"))
except OSError as refused:
    print(type(refused).__name__, refused)
"""


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("stays", "BlockingIOError .*RLIMIT_SIGPENDING"),
        ("passes", "5$"),
        ("short", "TimeoutError nothing came for 0.1 s"),
    ],
)
def test_the_limit_of_timers_is_named_unless_it_passes(how, says):
    done = subprocess.run([sys.executable, "-c", LIMITED, how], capture_output=True, text=True, timeout=60)
    assert re.match(says, done.stdout), done.stderr
