"""What labkit.sync promises, of every mechanism: waiting, excluding, and what becomes of it under kill -9."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from roles import eventually, gone, interrupt_soon, processor_seconds, sleeping

from labkit import RemoteError, launch
from labkit.channels import notes
from labkit.libc import ffi, libc
from labkit.sync import PosixSemaphore, SysvSemaphores

ROOT = Path(__file__).parent.parent


def a_name() -> str:
    return f"test-{os.getpid()}-{secrets.token_hex(4)}"


# --- what the cases are ------------------------------------------------------------------------------------

Wait = Callable[..., Any]
"""wait(timeout): waits for what nobody gives."""
Let = Callable[[], Any]
"""Lets one that waits go on."""


@contextlib.contextmanager
def posix_semaphore() -> Iterator[tuple[Any, str, Let]]:
    semaphore = PosixSemaphore(0)
    yield semaphore, "acquire", semaphore.release
    semaphore.close()


@contextlib.contextmanager
def named_posix_semaphore() -> Iterator[tuple[Any, str, Let]]:
    semaphore = PosixSemaphore(0, name=a_name())
    yield semaphore, "acquire", semaphore.release
    PosixSemaphore.unlink(semaphore.name)
    semaphore.close()


@contextlib.contextmanager
def sysv_semaphores() -> Iterator[tuple[Any, str, Let]]:
    semaphores = SysvSemaphores((0,), undo=False)
    yield semaphores, "acquire", semaphores.release
    semaphores.close()


@contextlib.contextmanager
def named_sysv_semaphores() -> Iterator[tuple[Any, str, Let]]:
    semaphores = SysvSemaphores((0,), name=a_name(), undo=False)
    yield semaphores, "acquire", semaphores.release
    SysvSemaphores.unlink(semaphores.name)
    semaphores.close()


WAITING = [posix_semaphore, named_posix_semaphore, sysv_semaphores, named_sysv_semaphores]


@pytest.fixture(params=WAITING, ids=lambda case: case.__name__)
def case(request) -> Iterator[tuple[Any, str, Let]]:
    """Something to wait for in vain, the name of the method that does, and what ends the wait."""
    with request.param() as made:
        yield made


@pytest.fixture
def wait(case) -> Wait:
    return getattr(case[0], case[1])


def wait_in_child(thing: Any, method: str, timeout: float | None) -> None:
    getattr(thing, method)(timeout=timeout)


# --- waiting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.01, 0.2])
def test_a_wait_ends_at_its_timeout(wait, timeout):
    with pytest.raises(TimeoutError, match=f"for {timeout:g} s"):
        wait(timeout=timeout)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_negative_timeout_is_refused_where_it_would_wait(wait, timeout):
    with pytest.raises(ValueError, match="timeout must be at least 0"):
        wait(timeout=timeout)


@pytest.mark.parametrize("timeout", [10, None])
def test_a_wait_ends_when_another_thread_lets_it(case, wait, timeout):
    soon = threading.Timer(0.2, case[2])
    soon.start()
    wait(timeout=timeout)
    soon.join()


@pytest.mark.parametrize("timeout", [10, None])
def test_a_wait_in_another_process_ends_when_we_let_it(case, timeout):
    thing, method, let = case
    job = launch(wait_in_child, thing, method, timeout)
    assert eventually(lambda: sleeping(job.pid))
    let()
    job.wait(10)


@pytest.mark.parametrize("timeout", [10, None])
def test_ctrl_c_ends_a_wait(wait, timeout):
    pressed = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        pressed.start()
        wait(timeout=timeout)
    pressed.join()


def test_waiting_costs_next_to_no_processor_time(case):
    thing, method, _ = case
    job = launch(wait_in_child, thing, method, None)
    assert eventually(lambda: sleeping(job.pid))
    before, began = processor_seconds(job.pid), time.monotonic()
    time.sleep(0.5)
    used, passed = processor_seconds(job.pid) - before, time.monotonic() - began
    job.kill()
    with pytest.raises(RemoteError, match="SIGKILL"):
        job.wait()
    assert used <= 0.1 * passed


def test_a_killed_waiter_takes_nothing_with_it(case):
    thing, method, let = case
    first, second = launch(wait_in_child, thing, method, None), launch(wait_in_child, thing, method, None)
    assert eventually(lambda: sleeping(first.pid) and sleeping(second.pid))
    first.kill()
    with pytest.raises(RemoteError):
        first.wait()
    let()
    second.wait(10)


def test_a_closed_one_says_so_and_closing_twice_is_one(case):
    thing, method, _ = case
    assert "closed" not in repr(thing)
    thing.close()
    thing.close()
    assert "closed" in repr(thing)
    with pytest.raises(ValueError, match="is closed"):
        getattr(thing, method)(timeout=1)
    with pytest.raises((ValueError, TypeError), match="closed"):
        launch(print, thing)


def test_what_was_handed_to_a_child_works_there_after_we_have_closed(case):
    thing, method, _ = case
    job = launch(wait_in_child, thing, method, 0.1)
    thing.close()
    with pytest.raises(RemoteError, match="TimeoutError"):
        job.wait()


def test_another_thread_may_close_it_while_one_waits(case, wait):
    thing, _, _ = case

    def attempt() -> None:
        with contextlib.suppress(TimeoutError, OSError, ValueError):
            wait(timeout=0.4)

    waiter = threading.Thread(target=attempt)
    waiter.start()
    assert eventually(lambda: sleeping(waiter.native_id))
    thing.close()
    waiter.join(10)
    assert not waiter.is_alive()


# --- excluding -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def posix_lock() -> Iterator[Any]:
    yield PosixSemaphore(1)


@contextlib.contextmanager
def sysv_lock() -> Iterator[Any]:
    yield SysvSemaphores((1,))


LOCKS = [posix_lock, sysv_lock]


@pytest.fixture(params=LOCKS, ids=lambda case: case.__name__)
def lock(request) -> Iterator[Any]:
    """Something that one process at a time can hold."""
    with request.param() as made:
        yield made
        made.close()


def count_up(lock: Any, path: str, times: int) -> None:
    """Read, wait a little, write: without a lock most of it is lost."""
    for _ in range(times):
        with lock, open(path, "r+") as file:
            number = int(file.read())
            os.sched_yield()
            file.seek(0)
            file.write(str(number + 1))


def test_of_many_processes_only_one_is_inside(lock, tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    jobs = [launch(count_up, lock, str(path), 100) for _ in range(4)]
    for job in jobs:
        job.wait()
    assert path.read_text() == "400"


def test_of_many_threads_only_one_is_inside(lock, tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    threads = [threading.Thread(target=count_up, args=(lock, str(path), 100)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert path.read_text() == "400"


def hold(lock: Any) -> None:
    lock.acquire()
    time.sleep(600)


GIVES_BACK = {"posix_lock": False, "sysv_lock": True}
"""Whether a killed holder's lock comes back."""


def test_what_becomes_of_a_lock_whose_holder_is_killed(lock, request):
    job = launch(hold, lock)

    def taken() -> bool:
        with contextlib.suppress(TimeoutError):
            lock.acquire(timeout=0)
            lock.release()
            return False
        return True

    assert eventually(taken)
    job.kill()
    with pytest.raises(RemoteError, match="SIGKILL"):
        job.wait()
    gives_back = GIVES_BACK[request.node.callspec.id]
    if gives_back:
        lock.acquire(timeout=5)
        lock.release()
    else:
        with pytest.raises(TimeoutError):
            lock.acquire(timeout=0.2)


# --- names ---------------------------------------------------------------------------------------------------

NAMED = [PosixSemaphore, SysvSemaphores]


@pytest.fixture(params=NAMED, ids=lambda kind: kind.__name__)
def kind(request) -> Any:
    return request.param


@pytest.fixture
def name(kind) -> Iterator[str]:
    name = a_name()
    yield name
    with contextlib.suppress(FileNotFoundError):
        kind.unlink(name)


def make(kind: Any, value: int, name: str | None = None) -> Any:
    return kind(value, name=name) if kind is PosixSemaphore else kind((value,), name=name)


def elsewhere(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process that is not related to us."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT)


OPEN = "import sys; from labkit.sync import {kind}; thing = {kind}.open(sys.argv[1]); {then}"


def test_unrelated_processes_meet_at_a_name(kind, name):
    ours = make(kind, 3, name)
    done = elsewhere(
        OPEN.format(kind=kind.__name__, then="thing.undo = False; thing.acquire(timeout=1); print(thing)"), name
    )
    assert name in done.stdout, done.stderr
    ours.acquire(timeout=0)
    ours.acquire(timeout=0)
    with pytest.raises(TimeoutError):
        ours.acquire(timeout=0)
    ours.close()


def test_a_name_outlives_its_users_until_it_is_unlinked(kind, name):
    make(kind, 2, name).close()
    again = kind.open(name)
    again.acquire(timeout=0)
    again.close()
    kind.unlink(name)
    for missing in (lambda: kind.open(name), lambda: kind.unlink(name)):
        with pytest.raises(FileNotFoundError, match=name):
            missing()


def test_a_taken_name_is_refused_and_its_owner_not_disturbed(kind, name):
    ours = make(kind, 1, name)
    with pytest.raises(FileExistsError, match=name):
        make(kind, 5, name)
    ours.acquire(timeout=0)
    with pytest.raises(TimeoutError):
        kind.open(name).acquire(timeout=0)
    ours.close()


@pytest.mark.parametrize("wrong", ["two/words", "/", "..", "x" * 300, "nul\0"])
def test_a_name_is_one_word(kind, wrong):
    for attempt in (lambda: make(kind, 1, wrong), lambda: kind.open(wrong), lambda: kind.unlink(wrong)):
        with pytest.raises(ValueError, match="one word"):
            attempt()


def test_the_longest_name_works(kind, name):
    from labkit.sync import posix_semaphore

    longest = (name + "x" * 300)[: posix_semaphore.LONGEST_NAME if kind is PosixSemaphore else 254]
    make(kind, 1, longest).close()
    kind.open(longest).close()
    kind.unlink(longest)


ANOTHER_USER = """
import os, sys, tempfile
from labkit.channels import notes
from labkit.sync import {kind} as kind

key = notes.key_of("sysv_semaphore", sys.argv[1])  # another user's would be another one
notes.key_of = lambda *_: key
os.environ["XDG_RUNTIME_DIR"] = folder = tempfile.mkdtemp()
os.chown(folder, 65534, 65534)
pid = os.fork()
if pid == 0:
    os.setuid(65534)
    for attempt in (kind.open, kind.unlink, lambda name: kind({value}, name=name)):
        try:
            attempt(sys.argv[1])
        except OSError as refused:
            print(type(refused).__name__, refused, flush=True)
    os._exit(0)
os.waitpid(pid, 0)
os.system("rm -r " + folder)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user: run as root")
def test_another_user_has_no_right(kind, name):
    ours = make(kind, 1, name)
    value = "1" if kind is PosixSemaphore else "(1,)"
    done = elsewhere(ANOTHER_USER.format(kind=kind.__name__, value=value), name)
    opened, unlinked, made = done.stdout.splitlines()
    for answer in (opened, unlinked):
        assert answer.startswith("PermissionError")
        assert "somebody else" in answer
    assert made.startswith(("FileExistsError", "PermissionError"))
    ours.acquire(timeout=0)
    ours.close()


def test_processes_that_were_killed_leave_nothing_that_has_no_name(kind):
    program = (
        f"import os; from labkit.sync import {kind.__name__} as kind; thing = kind(); thing.acquire(); "
        "print(thing, flush=True); os.kill(os.getpid(), 9)"
    )
    assert elsewhere(program).returncode == -signal.SIGKILL
    make(kind, 1).close()  # which sweeps what System V cannot clean itself; the fixture looks whether anything is left


# --- limits and leaks ----------------------------------------------------------------------------------------


def test_opening_and_closing_many_leaks_nothing(kind, name):
    make(kind, 1, name).close()
    kind.open(name).close()
    before = len(os.listdir("/proc/self/fd")), mappings()
    for _ in range(300):
        make(kind, 1).close()
        kind.open(name).close()
    assert len(os.listdir("/proc/self/fd")) <= before[0]
    assert mappings() <= before[1] + 20


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("\n")


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """A process that may open no more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_without_descriptors_the_error_is_the_kernels_and_nothing_is_left(kind, name):
    with no_descriptors():
        errors = []
        for attempt in (lambda: make(kind, 1), lambda: make(kind, 1, name), lambda: kind.open(name)):
            try:
                attempt()
            except OSError as refused:
                errors.append(refused.errno)
    assert errors == [errno.EMFILE] * 3
    with pytest.raises(FileNotFoundError):
        kind.open(name)


# --- POSIX semaphores ----------------------------------------------------------------------------------------


def test_a_posix_semaphore_counts():
    semaphore = PosixSemaphore(2)
    semaphore.acquire()
    assert semaphore.value == 1
    semaphore.release()
    semaphore.release()
    assert semaphore.value == 3
    assert repr(semaphore) == "<PosixSemaphore, value 3>"


@pytest.mark.parametrize("value", [-1, 2**31])
def test_a_posix_semaphore_that_cannot_be_is_refused(value):
    for name in (None, a_name()):
        with pytest.raises(ValueError, match="0 to 2,147,483,647"):
            PosixSemaphore(value, name=name)


def test_a_full_posix_semaphore_says_so():
    semaphore = PosixSemaphore(2**31 - 1)
    with pytest.raises(OSError, match="at its largest") as refused:
        semaphore.release()
    assert refused.value.errno == errno.EOVERFLOW


def test_a_named_posix_semaphore_is_ours_alone():
    semaphore = PosixSemaphore(1, name=a_name())
    assert os.stat(f"/dev/shm/sem.{semaphore.name}").st_mode & 0o777 == 0o600
    PosixSemaphore.unlink(semaphore.name)
    assert semaphore.value == 1, "who has it open goes on"
    semaphore.close()


# --- System V semaphores -------------------------------------------------------------------------------------


def test_several_operations_are_done_at_once_or_not_at_all():
    semaphores = SysvSemaphores((1, 0))
    with pytest.raises(TimeoutError):
        semaphores.ops([(0, -1, True), (1, -1, True)], timeout=0.05)
    assert semaphores.values == (1, 0)
    semaphores.release(1)
    semaphores.ops([(0, -1, True), (1, -1, True)], timeout=0)
    assert semaphores.values == (0, 0)
    assert semaphores.pids == (os.getpid(), os.getpid())


def test_a_delta_of_zero_waits_for_zero():
    semaphores = SysvSemaphores((1,), undo=False)
    with pytest.raises(TimeoutError):
        semaphores.ops([(0, 0, False)], timeout=0)
    semaphores.acquire()
    semaphores.ops([(0, 0, False)], timeout=0)


def take_two_and_die(semaphores: Any, undo: bool) -> None:
    semaphores.ops([(0, -2, undo)])
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("undo", [True, False])
def test_sem_undo_gives_back_what_a_killed_process_took_and_without_it_it_stays_taken(undo):
    semaphores = SysvSemaphores((5,))
    with pytest.raises(RemoteError):
        launch(take_two_and_die, semaphores, undo).wait()
    assert semaphores.values == ((5,) if undo else (3,))


def test_who_waits_is_counted():
    semaphores = SysvSemaphores((1, 0), undo=False)
    job = launch(wait_in_child, semaphores, "acquire", 0)
    job.wait()
    waiter = threading.Thread(target=semaphores.acquire, args=(1, 10))
    waiter.start()
    assert eventually(lambda: semaphores.waiting == (0, 1))
    semaphores.release(1)
    waiter.join()
    assert semaphores.waiting == (0, 0)


def test_removing_a_set_ends_the_wait_for_it():
    semaphores = SysvSemaphores((0,), name=a_name())
    soon = threading.Timer(0.2, SysvSemaphores.unlink, (semaphores.name,))
    soon.start()
    with pytest.raises(OSError, match="somebody has removed these semaphores") as removed:
        semaphores.acquire()
    assert removed.value.errno == errno.EIDRM
    soon.join()
    with pytest.raises(OSError, match="removed") as removed:
        semaphores.release()
    assert removed.value.errno == errno.EINVAL
    semaphores.close()


def test_what_a_set_cannot_do_is_refused():
    for wrong in ((), (-1,), (32768,)):
        with pytest.raises(ValueError, match="0 to 32,767"):
            SysvSemaphores(wrong)
    semaphores = SysvSemaphores((32767, 1))
    with pytest.raises(OSError, match="above 32,767") as refused:
        semaphores.release(0)
    assert refused.value.errno == errno.ERANGE
    for index in (2, -1):
        with pytest.raises(ValueError, match="0 to 1"):
            semaphores.acquire(index)
    with pytest.raises(ValueError, match="at most 32,767"):
        semaphores.ops([(0, -40_000, True)])
    with pytest.raises(OSError, match="operations can be done at once") as refused:
        semaphores.ops([(0, 0, True)] * 100_000)
    assert refused.value.errno == errno.E2BIG


def test_more_semaphores_than_the_machine_allows_in_a_set_are_refused():
    most = int(Path("/proc/sys/kernel/sem").read_text().split()[0])
    for name in (None, a_name()):
        with pytest.raises(OSError, match=f"more than {most}"):
            SysvSemaphores([0] * (most + 1), name=name)


def test_a_named_set_whose_maker_was_killed_before_it_had_its_values_is_not_there():
    name = a_name()
    key = notes.key_of("sysv_semaphore", name)
    assert libc.semget(key, 1, notes.IPC_CREAT | notes.IPC_EXCL | 0o600) >= 0
    with pytest.raises(FileNotFoundError):
        SysvSemaphores.open(name)
    semaphores = SysvSemaphores((1,), name=name)
    assert semaphores.values == (1,)
    SysvSemaphores.unlink(name)
    semaphores.close()


def test_a_child_that_is_left_alone_with_a_set_removes_it_at_its_end():
    semaphores = SysvSemaphores((0,), undo=False)
    jobs = [launch(wait_in_child, semaphores, "acquire", 20) for _ in range(2)]
    semid = semaphores.id
    semaphores.close()
    for job in jobs:
        assert eventually(lambda job=job: sleeping(job.pid))
    assert libc.semctl(semid, 0, 16, ffi.cast("int", 1)) == 0, "SETVAL: the set is still there"
    assert eventually(lambda: any(gone(job.pid) for job in jobs))
    assert libc.semctl(semid, 0, 16, ffi.cast("int", 1)) == 0, "one is left"
    for job in jobs:
        job.wait()
    assert libc.semctl(semid, 0, 16, ffi.cast("int", 1)) == -1
