"""What labkit.sync promises, of every mechanism: waiting, excluding, and what becomes of it under kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import errno
import gc
import os
import pickle
import random
import re
import resource
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
import pytest
from emitted import aarch64_of
from roles import comes_to_rest, eventually, gone, interrupt_soon, sleeping
from sync_roles import (
    Zero,
    add_many,
    come_and_die,
    count_up,
    hold,
    hold_until,
    meet,
    share,
    take_both,
    take_two_and_die,
    wait_at,
    wait_for_change,
    wait_in_child,
    work_with,
)

from labkit import RemoteError, launch
from labkit.channels import notes
from labkit.channels.base import kind_dir
from labkit.libc import ffi, libc
from labkit.sync import (
    Barrier,
    BrokenBarrier,
    Eventfd,
    FileLock,
    Futex,
    Mutex,
    OwnerDied,
    PosixSemaphore,
    SysvSemaphores,
)
from labkit.sync.barrier import ARRIVED

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


@contextlib.contextmanager
def eventfd() -> Iterator[tuple[Any, str, Let]]:
    bell = Eventfd()
    yield bell, "wait", bell.notify
    bell.close()


@contextlib.contextmanager
def futex() -> Iterator[tuple[Any, str, Let]]:
    word = Zero()
    yield word, "wait", word.let
    word.close()


@contextlib.contextmanager
def barrier() -> Iterator[tuple[Any, str, Let]]:
    meeting = Barrier(2)
    yield meeting, "wait", meeting.wait
    meeting.close()


@contextlib.contextmanager
def held_elsewhere(lock: Any) -> Iterator[tuple[Any, str, Let]]:
    """A lock that another process holds until it is told to give it back."""
    tell, told = Eventfd(), Eventfd()
    job = launch(hold_until, lock, told, tell)
    told.wait()

    def let() -> None:
        tell.notify()

    yield lock, "acquire", let
    tell.notify()
    job.wait()
    for thing in (lock, tell, told):
        thing.close()


def mutex() -> Any:
    return held_elsewhere(Mutex())


@contextlib.contextmanager
def file_lock(how: Any) -> Iterator[Any]:
    with tempfile.NamedTemporaryFile() as file, held_elsewhere(FileLock(file.name, how)) as case:
        yield case


def flock() -> Any:
    return file_lock("flock")


def ofd() -> Any:
    return file_lock("ofd")


def record_lock() -> Any:
    return file_lock("fcntl")


SEMAPHORES = [posix_semaphore, named_posix_semaphore, sysv_semaphores, named_sysv_semaphores]
WAITING = [*SEMAPHORES, eventfd, futex, barrier, mutex, flock, ofd, record_lock]


@pytest.fixture(params=WAITING, ids=lambda case: case.__name__)
def case(request) -> Iterator[tuple[Any, str, Let]]:
    """Something to wait for in vain, the name of the method that does, and what ends the wait."""
    with request.param() as made:
        yield made


@pytest.fixture
def wait(case) -> Wait:
    return getattr(case[0], case[1])


# --- waiting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0, 0.01, 0.2])
def test_a_wait_ends_at_its_timeout(wait, timeout):
    with pytest.raises(TimeoutError, match=f"for {timeout:g} s"):
        wait(timeout=timeout)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_negative_timeout_is_refused_where_it_would_wait(wait, timeout):
    with pytest.raises(ValueError, match="timeout must be at least 0"):
        wait(timeout=timeout)


@pytest.mark.parametrize("timeout", [60, None])
def test_a_wait_ends_when_another_thread_lets_it(case, wait, timeout):
    soon = threading.Timer(0.2, case[2])
    soon.start()
    wait(timeout=timeout)
    soon.join()


@pytest.mark.parametrize("timeout", [60, None])
def test_a_wait_in_another_process_ends_when_we_let_it(case, timeout):
    thing, method, let = case
    job = launch(wait_in_child, thing, method, timeout)
    assert eventually(lambda: sleeping(job.pid))
    let()
    job.wait(60)


@pytest.mark.parametrize("timeout", [60, None])
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
    rested = comes_to_rest(job.pid)
    job.kill()
    with pytest.raises(RemoteError, match="SIGKILL"):
        job.wait()
    assert rested


def test_a_killed_waiter_takes_nothing_with_it(case):
    thing, method, let = case
    if isinstance(thing, Barrier):
        pytest.skip("its waiters are counted: one who is killed breaks it, which has a test of its own")
    first, second = launch(wait_in_child, thing, method, None), launch(wait_in_child, thing, method, None)
    assert eventually(lambda: sleeping(first.pid) and sleeping(second.pid))
    first.kill()
    with pytest.raises(RemoteError):
        first.wait()
    let()
    second.wait(60)


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


def test_it_is_not_copied(case):
    thing, _, _ = case
    with pytest.raises(TypeError, match="hand it to another process as an argument"):
        copy.copy(thing)
    gc.collect()
    assert "closed" not in repr(thing)  # which asks the kernel, or reads its page


def test_another_thread_may_close_it_while_one_waits(case, wait):
    thing, _, _ = case

    said: list[object] = []

    def attempt() -> None:
        try:
            wait()  # at its deadline it would be a TimeoutError
        except (TimeoutError, OSError, ValueError) as reason:
            said.append(reason)

    waiter = threading.Thread(target=attempt)
    waiter.start()
    assert eventually(lambda: sleeping(waiter.native_id))
    thing.close()
    waiter.join()
    assert len(said) == 1 and type(said[0]) is ValueError and "is closed" in str(said[0])


# --- excluding -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def posix_lock() -> Iterator[Any]:
    yield PosixSemaphore(1)


@contextlib.contextmanager
def sysv_lock() -> Iterator[Any]:
    yield SysvSemaphores((1,))


@contextlib.contextmanager
def mutex_lock() -> Iterator[Any]:
    yield Mutex()


@contextlib.contextmanager
def flock_lock(how: Any = "flock") -> Iterator[Any]:
    with tempfile.NamedTemporaryFile() as file:
        yield FileLock(file.name, how)


def ofd_lock() -> Any:
    return flock_lock("ofd")


def fcntl_lock() -> Any:
    return flock_lock("fcntl")


LOCKS = [posix_lock, sysv_lock, mutex_lock, flock_lock, ofd_lock, fcntl_lock]


@pytest.fixture(params=LOCKS, ids=lambda case: case.__name__)
def lock(request) -> Iterator[Any]:
    """Something that one process at a time can hold."""
    with request.param() as made:
        yield made
        made.close()


def test_of_many_processes_only_one_is_inside(lock, tmp_path):
    path = tmp_path / "count"
    path.write_text("0")
    jobs = [launch(count_up, lock, str(path), 100) for _ in range(4)]
    for job in jobs:
        job.wait()
    assert path.read_text() == "400"


def test_of_many_threads_only_one_is_inside_unless_the_lock_belongs_to_more(lock, tmp_path):
    if isinstance(lock, FileLock):
        lock.acquire()
        thread = threading.Thread(target=lock.acquire, args=(0,))  # it is ours: nothing to wait for
        thread.start()
        thread.join()
        return
    path = tmp_path / "count"
    path.write_text("0")
    threads = [threading.Thread(target=count_up, args=(lock, str(path), 100)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert path.read_text() == "400"


OF_A_KILLED_HOLDER = {
    "posix_lock": "stays taken",
    "sysv_lock": "comes back",
    "mutex_lock": "is reported",
    "flock_lock": "comes back",
    "ofd_lock": "comes back",
    "fcntl_lock": "comes back",
}


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
    becomes = OF_A_KILLED_HOLDER[request.node.callspec.id]
    if becomes == "comes back":
        lock.acquire(timeout=60)
        lock.release()
    else:
        with pytest.raises(TimeoutError if becomes == "stays taken" else OwnerDied):
            lock.acquire(timeout=0.2)


# --- names ---------------------------------------------------------------------------------------------------

NAMED = [PosixSemaphore, SysvSemaphores, Mutex]


@pytest.fixture(params=NAMED, ids=lambda kind: kind.__name__)
def kind(request) -> Any:
    return request.param


@pytest.fixture
def name(kind) -> Iterator[str]:
    name = a_name()
    yield name
    with contextlib.suppress(FileNotFoundError):
        kind.unlink(name)


def make(kind: Any, name: str | None = None) -> Any:
    """One that can be taken once."""
    return kind(name=name)


def elsewhere(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process that is not related to us."""
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


OPEN = "import sys; from labkit.sync import {kind}; thing = {kind}.open(sys.argv[1]); {then}"


def test_unrelated_processes_meet_at_a_name(kind, name):
    ours = make(kind, name)
    ours.acquire()
    then = "print(thing, flush=True); thing.acquire(timeout=60); print('taken'); thing.release()"
    program = OPEN.format(kind=kind.__name__, then=then)
    other = subprocess.Popen([sys.executable, "-c", program, name], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert name in other.stdout.readline()
    assert eventually(lambda: sleeping(other.pid))
    ours.release()
    assert other.communicate(timeout=60)[0] == "taken\n"
    ours.acquire()
    ours.close()


def test_a_name_outlives_its_users_until_it_is_unlinked(kind, name):
    make(kind, name).close()
    again = kind.open(name)
    again.acquire(timeout=0)
    again.close()
    kind.unlink(name)
    for missing in (lambda: kind.open(name), lambda: kind.unlink(name)):
        with pytest.raises(FileNotFoundError, match=name):
            missing()


def test_a_taken_name_is_refused_and_its_owner_not_disturbed(kind, name):
    ours = make(kind, name)
    with pytest.raises(FileExistsError, match=name):
        make(kind, name)
    ours.acquire(timeout=0)
    again = kind.open(name)
    with pytest.raises(OSError) as refused:
        again.acquire(timeout=0)
    assert isinstance(refused.value, TimeoutError) or refused.value.errno == errno.EDEADLK
    ours.close()


@pytest.mark.parametrize("wrong", ["", "two/words", "/", "..", "x" * 300, "nul\0"])
def test_a_name_is_one_word(kind, wrong):
    for attempt in (lambda: make(kind, wrong), lambda: kind.open(wrong), lambda: kind.unlink(wrong)):
        with pytest.raises(ValueError, match="one word"):
            attempt()


def test_the_longest_name_works(kind, name):
    from labkit.sync import posix_semaphore

    longest = (name + "x" * 300)[: posix_semaphore.LONGEST_NAME if kind is PosixSemaphore else 254]
    make(kind, longest).close()
    kind.open(longest).close()
    kind.unlink(longest)


ANOTHER_USER = """
import os, sys, tempfile
from labkit.channels import notes
from labkit.channels.base import kind_dir
from labkit.sync import {kind} as kind

key = notes.key_of("sysv_semaphore", sys.argv[1])  # another user's would be another one
notes.key_of = lambda *_: key
os.environ["XDG_RUNTIME_DIR"] = folder = tempfile.mkdtemp()
os.chown(folder, 65534, 65534)
pid = os.fork()
if pid == 0:
    os.setuid(65534)
    for attempt in (kind.open, kind.unlink, lambda name: kind(name=name)):
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
    ours = make(kind, name)
    if kind is Mutex:
        pytest.skip("its file is in a directory that is ours alone: another user has names of his own")
    done = elsewhere(ANOTHER_USER.format(kind=kind.__name__), name)
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
    make(kind).close()  # which sweeps what System V cannot clean itself; the fixture looks whether anything is left


# --- limits and leaks ----------------------------------------------------------------------------------------


def test_opening_and_closing_many_leaks_nothing(kind, name):
    make(kind, name).close()
    kind.open(name).close()
    before = len(os.listdir("/proc/self/fd")), mappings()
    for _ in range(300):
        make(kind).close()
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
        for attempt in (lambda: make(kind), lambda: make(kind, name), lambda: kind.open(name)):
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


def test_a_c_library_without_sem_clockwait_waits_as_long(monkeypatch):
    monkeypatch.setattr("labkit.sync.posix_semaphore.HAS_SEM_CLOCKWAIT", False)
    semaphore = PosixSemaphore(0)
    with pytest.raises(TimeoutError, match=r"for 0\.1 s"):
        semaphore.acquire(timeout=0.1)
    soon = threading.Timer(0.1, semaphore.release)
    soon.start()
    semaphore.acquire()
    soon.join()


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
    waiter = threading.Thread(target=semaphores.acquire, args=(1, 60))
    waiter.start()
    assert eventually(lambda: semaphores.waiting == (0, 1))
    semaphores.release(1)
    waiter.join()
    assert semaphores.waiting == (0, 0)


def test_removing_a_set_ends_the_wait_for_it():
    semaphores = SysvSemaphores((0,), name=a_name())

    def remove():
        eventually(lambda: semaphores.waiting == (1,))
        SysvSemaphores.unlink(semaphores.name)

    other = threading.Thread(target=remove)
    other.start()
    with pytest.raises(OSError, match="somebody has removed these semaphores") as removed:
        semaphores.acquire()
    assert removed.value.errno == errno.EIDRM
    other.join()
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
    semaphores.ops([])  # nothing to do, and nothing to complain about


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


# --- eventfd -------------------------------------------------------------------------------------------------


def test_an_eventfd_adds_up_what_nobody_has_waited_for():
    with Eventfd(2) as bell:
        bell.notify(3)
        bell.notify()
        assert bell.wait(timeout=0) == 6
        with pytest.raises(TimeoutError):
            bell.wait(timeout=0)


def test_an_eventfd_as_a_semaphore_takes_one_at_a_time():
    with Eventfd(2, semaphore=True) as bell:
        assert [bell.wait(timeout=0), bell.wait(timeout=0)] == [1, 1]
        with pytest.raises(TimeoutError):
            bell.wait(timeout=0)


def test_an_eventfd_can_be_polled_and_awaited():
    with Eventfd() as bell:
        assert select.select([bell], [], [], 0)[0] == []
        bell.notify()
        assert select.select([bell], [], [], 0)[0] == [bell]

        async def hear() -> int:
            heard = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().add_reader(bell, lambda: heard.done() or heard.set_result(bell.wait(timeout=0)))
            number = await asyncio.wait_for(heard, 5)
            asyncio.get_running_loop().remove_reader(bell)
            return number

        assert asyncio.run(hear()) == 1


def test_an_eventfd_that_is_full_says_so():
    with Eventfd() as bell:
        bell.notify(2**64 - 2)
        with pytest.raises(BlockingIOError, match="above"):
            bell.notify()
        for wrong in (0, -1, 2**64):
            with pytest.raises(ValueError, match="can be added"):
                bell.notify(wrong)
    with pytest.raises(ValueError, match="starts at"):
        Eventfd(-1)


# --- futex and mutex -----------------------------------------------------------------------------------------


def test_a_futex_whose_word_has_changed_does_not_sleep():
    with Futex(5) as word:
        assert word.wait(4, timeout=None) is False
        assert (word.exchange(7), word.compare_exchange(7, 8), word.compare_exchange(7, 9), word.add(-1)) == (
            5,
            7,
            8,
            8,
        )
        assert word.value == 7
        assert word.add(2**32 - 7) == 7
        assert word.value == 0, "it wraps"
        for wrong in (-1, 2**32):
            with pytest.raises(ValueError, match="32 bits"):
                word.value = wrong
            with pytest.raises(ValueError, match="32 bits"):
                word.wait(wrong)
        with pytest.raises(ValueError, match="sleepers"):
            word.wake(-1)


def test_a_futex_wakes_as_many_as_it_is_told():
    with Futex() as word:
        jobs = [launch(wait_for_change, word) for _ in range(3)]
        for job in jobs:
            assert eventually(lambda job=job: sleeping(job.pid))
        assert word.wake(2) <= 2
        assert eventually(
            lambda: word.wake(9) + sum(not job.alive for job in jobs) >= 3 or not any(j.alive for j in jobs)
        )
        for job in jobs:
            assert job.wait() is True


def test_atomic_additions_of_several_processes_are_all_there():
    with Futex() as word:
        for job in [launch(add_many, word, 20_000) for _ in range(4)]:
            job.wait()
        assert word.value == 80_000


def test_a_mutex_belongs_to_a_thread():
    mutex = Mutex()
    with pytest.raises(PermissionError, match="nobody holds it"):
        mutex.release()
    with mutex:
        assert mutex.holder == threading.get_native_id()
        assert f"held by thread {mutex.holder}" in repr(mutex)
        with pytest.raises(OSError, match="wait for itself for ever") as deadlock:
            mutex.acquire()
        assert deadlock.value.errno == errno.EDEADLK
        refused = []

        def release() -> None:
            try:
                mutex.release()
            except PermissionError as reason:
                refused.append(str(reason))

        thread = threading.Thread(target=release)
        thread.start()
        thread.join()
        assert f"thread {mutex.holder} holds it" in refused[0]
    assert "free" in repr(mutex)


def test_who_waits_for_a_mutex_learns_that_its_holder_died_and_one_can_take_it_over():
    mutex = Mutex()
    job = launch(hold, mutex)
    assert eventually(lambda: mutex.holder)
    with pytest.raises(PermissionError, match="alive"):
        mutex.recover()
    soon = threading.Timer(0.3, job.kill)
    soon.start()
    with pytest.raises(OwnerDied, match=f"thread {job.pid} died while it held the mutex") as died:
        mutex.acquire(timeout=None)
    assert died.value.errno == errno.EOWNERDEAD
    soon.join()
    with pytest.raises(RemoteError):
        job.wait()
    with pytest.raises(OwnerDied):
        mutex.acquire(timeout=0)
    mutex.recover()
    with pytest.raises(PermissionError):
        mutex.recover()
    mutex.release()
    with mutex:
        pass


def test_a_mutex_is_taken_and_given_back_without_a_system_call():
    program = (
        "from labkit.sync import Mutex\nfrom labkit.sync import futex\nmutex = Mutex()\n"
        "futex.futex_wait = futex.futex_wake = None\n"
        "for _ in range(1000):\n    with mutex: pass\nprint('fine')"
    )
    assert elsewhere(program).stdout == "fine\n"


ORDERS = {
    "load_int_acquire": (r"load atomic i32, .* acquire", "ldar|ldapr"),
    "exchange_int": (r"atomicrmw xchg .* i32 .* seq_cst", "ldaxr|swpal"),
    "add_int": (r"atomicrmw add .* i32 .* seq_cst", "ldaxr|ldaddal"),
    "add": (r"atomicrmw add .* i64 .* seq_cst", "ldaxr|ldaddal"),
    "compare_exchange": (r"cmpxchg .* i64 .* acq_rel acquire", "ldaxr|casal"),
    "compare_exchange_int": (r"cmpxchg .* i32 .* seq_cst seq_cst", "ldaxr|casal"),
}


@pytest.mark.parametrize("name", ORDERS)
def test_each_atomic_instruction_is_one_in_the_compiled_code_also_on_aarch64(name):
    from labkit.lockfree import atomics

    arguments = "a" if name.startswith("load") else "a, b, c" if name.startswith("compare") else "a, b"
    call = eval(f"lambda {arguments}: f({arguments})", {"f": getattr(atomics, name)})
    compiled = numba.njit(call)
    compiled.compile((numba.int64,) * (arguments.count(",") + 1))
    text = compiled.inspect_llvm(compiled.signatures[0])
    order, instruction = ORDERS[name]
    assert re.search(order, text)
    assert re.search(instruction, aarch64_of(text))


def test_a_mutex_excludes_while_its_users_are_killed_at_random():
    with Futex() as inside, Futex() as done:
        mutex = Mutex()
        workers = [launch(work_with, mutex, inside, done, 3000) for _ in range(2)]
        chance = random.Random(7)
        for _ in range(10):
            victim, before = launch(work_with, mutex, inside, done, 10**9), done.value
            assert eventually(lambda before=before: done.value > before + chance.randrange(200))
            victim.kill()
            with pytest.raises(RemoteError, match="SIGKILL"):
                victim.wait()
            workers = [worker for worker in workers if worker.alive] or [launch(work_with, mutex, inside, done, 3000)]
        for worker in workers:
            worker.wait()
        with contextlib.suppress(OwnerDied):
            mutex.acquire(timeout=60)
            mutex.release()
        mutex.close()


# --- barrier -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parties", [1, 2, 5])
def test_nobody_passes_a_barrier_before_all_have_come_round_after_round(parties):
    with Barrier(parties) as barrier, Futex() as counter:
        jobs = [launch(meet, barrier, counter, parties, 50) for _ in range(parties)]
        for job in jobs:
            assert job.wait() == [True] * 50
        assert counter.value == parties * 50


def test_the_places_at_a_barrier_are_the_order_of_coming():
    with Barrier(3) as barrier:
        first = launch(wait_at, barrier)
        assert eventually(lambda: barrier.waiting == 1)
        second = launch(wait_at, barrier)
        assert eventually(lambda: barrier.waiting == 2)
        assert repr(barrier) == "<Barrier, 2 of 3 wait>"
        assert barrier.wait() == 2
        assert (first.wait(), second.wait()) == (0, 1)


def test_one_who_gives_up_breaks_the_barrier_for_all_until_it_is_reset():
    with Barrier(3) as barrier:
        job = launch(wait_at, barrier)
        assert eventually(lambda: barrier.waiting == 1)
        with pytest.raises(TimeoutError, match="not all came"):
            barrier.wait(timeout=0.1)
        with pytest.raises(RemoteError, match="BrokenBarrier.*gave up"):
            job.wait()
        assert repr(barrier) == "<Barrier, broken>"
        with pytest.raises(BrokenBarrier, match="reset"):
            barrier.wait()
        barrier.reset()
        jobs = [launch(wait_at, barrier) for _ in range(3)]
        assert sorted(job.wait() for job in jobs) == [0, 1, 2]


def test_one_who_is_killed_while_it_waits_breaks_the_barrier():
    with Barrier(3) as barrier:
        job = launch(wait_at, barrier, None)
        assert eventually(lambda: barrier.waiting == 1)
        soon = threading.Timer(0.2, job.kill)
        soon.start()
        with pytest.raises(BrokenBarrier, match=f"process {job.pid} died"):
            barrier.wait(timeout=None)
        soon.join()
        with pytest.raises(RemoteError):
            job.wait()


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("parties", [2, 3])
def test_one_who_is_killed_in_the_middle_of_coming_is_known(parties, calls):
    with Barrier(parties) as barrier:
        job = launch(wait_at, barrier, None)
        assert eventually(lambda: barrier.waiting == 1)
        victim = launch(come_and_die, barrier, calls)
        with pytest.raises(RemoteError, match="SIGKILL"):
            victim.wait()
        with pytest.raises(RemoteError, match=f"BrokenBarrier.*process {victim.pid} died"):
            job.wait()


def test_who_was_overtaken_while_it_came_to_a_barrier_comes_to_the_round_that_is_now():
    """There are more threads than parties, and others make whole rounds between two steps of the last one."""

    class Overtaken:
        """The words of a barrier. After somebody has read how many have come, five others come."""

        def __init__(self, words: Any):
            self.words, self.others = words, 5

        def __getitem__(self, index: int) -> int:
            value = int(self.words[index])
            if index == ARRIVED // 8 and self.others:
                count, self.others = self.others, 0
                for n in range(count):
                    threads.append(threading.Thread(target=barrier.wait))
                    threads[-1].start()
                    assert eventually(lambda n=n: int(self.words[ARRIVED // 8]) == n + 1)
            return value

    threads: list[threading.Thread] = []
    with Barrier(2) as barrier:
        barrier._words = Overtaken(barrier._words)
        assert barrier.wait() == 1  # with the fifth of the others
        for thread in threads:
            thread.join()
        assert barrier.waiting == 0


def test_aborting_a_barrier_wakes_all():
    with Barrier(3) as barrier:
        jobs = [launch(wait_at, barrier, None) for _ in range(2)]
        assert eventually(lambda: barrier.waiting == 2)
        barrier.abort()
        for job in jobs:
            with pytest.raises(RemoteError, match="BrokenBarrier"):
                job.wait()


@pytest.mark.parametrize("wrong", ["x", b"x", None, 1.5, float("nan"), True, []], ids=str)
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Barrier, "parties is"),
        (Eventfd, "value is"),
        (Futex, "a futex is"),
        (PosixSemaphore, "value is"),
        (lambda value: SysvSemaphores((1, value)), "each value is"),
    ],
    ids=["Barrier", "Eventfd", "Futex", "PosixSemaphore", "SysvSemaphores"],
)
def test_a_number_that_is_none_is_refused_by_its_name(make, what, wrong):
    with pytest.raises(TypeError, match=re.escape(f"{what} a whole number, not {wrong!r}")):
        make(wrong)


@pytest.mark.parametrize("wrong", ["x", None, 5], ids=str)
def test_the_values_of_a_set_are_a_sequence(wrong):
    with pytest.raises(TypeError, match="values is a sequence of whole numbers"):
        SysvSemaphores(wrong)


@pytest.mark.parametrize("parties", [0, -1, 100_000])
def test_a_barrier_that_cannot_be_is_refused(parties):
    with pytest.raises(ValueError, match="1 to 496"):
        Barrier(parties)


def test_a_barrier_and_a_futex_with_a_name_are_found_by_unrelated_processes():
    meeting, word = Barrier(2, name=a_name()), Futex(7, name=a_name())
    program = (
        "import sys; from labkit.sync import Barrier, Futex; place = Barrier.open(sys.argv[1]).wait(timeout=60);"
        "print(place, Futex.open(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, meeting.name, word.name]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert eventually(lambda: meeting.waiting == 1)
    assert meeting.wait() == 1
    assert other.communicate(timeout=60)[0] == f"0 <Futex {word.name!r}, value 7>\n"
    for thing in (meeting, word):
        type(thing).unlink(thing.name)
        thing.close()


@pytest.mark.parametrize("content", [b"", b"x", b"x" * 4096, b"x" * 5000])
def test_a_file_that_is_something_else_is_refused(content):
    name = a_name()
    path = kind_dir("mutex") / name
    path.write_bytes(content)
    try:
        with pytest.raises(OSError, match="not a mutex of labkit"):
            Mutex.open(name)
        with pytest.raises(FileExistsError):
            Mutex(name=name)
    finally:
        path.unlink()


# --- limits of the machine -----------------------------------------------------------------------------------


def in_namespaces(prepare: str, program: str) -> str:
    """What a program prints in a mount and an IPC namespace of its own, which the shell prepares."""
    command = ["unshare", "--mount", "--ipc", "sh", "-ec", f'{prepare}; exec "$@"', "sh", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    if "unshare failed" in done.stderr or "mount:" in done.stderr or "cannot create /proc" in done.stderr:
        pytest.skip(f"needs namespaces: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_dev_shm_is_said_by_a_named_posix_semaphore_and_is_nothing_to_one_without_a_name():
    said = in_namespaces(
        "mount -t tmpfs -o size=4k none /dev/shm; head -c 4096 /dev/zero > /dev/shm/full",
        "from labkit.sync import PosixSemaphore\n"
        "print(PosixSemaphore(1))\n"
        "try: PosixSemaphore(1, name='test-full')\n"
        "except OSError as refused: print(refused)",
    )
    assert "/dev/shm is full" in said
    assert said.startswith("<PosixSemaphore, value 1>")


def test_a_machine_without_dev_shm_or_one_that_may_not_be_written_to_says_so():
    program = (
        "import os\nfrom labkit import channel\nfrom labkit.sync import PosixSemaphore\n"
        "os.path.exists('/dev/shm') and (os.setgid(65534), os.setuid(65534))\n"
        "for make in (lambda: PosixSemaphore(1, name='test-shm'), lambda: channel('posix_shm')):\n"
        "    try: make()\n"
        "    except OSError as refused: print(refused)\n"
    )
    semaphore, memory = in_namespaces("mount -t tmpfs none /dev", program).splitlines()
    assert "/dev/shm is not there: use a semaphore without a name" in semaphore
    assert "there is no /dev/shm: use mmap_file or shm_ring" in memory
    no_right = 'mount -t tmpfs -o mode=755 none /dev/shm; mount -t tmpfs -o mode=700,uid=65534 none "$XDG_RUNTIME_DIR"'
    said = in_namespaces(no_right, program)
    assert said.count("may we write in /dev/shm?") == 2


@pytest.mark.parametrize("limits", ["250 32000 32 3", "250 3 32 128"])
def test_a_machine_without_room_for_another_set_of_semaphores_says_which_limit(limits):
    said = in_namespaces(
        f"echo {limits} > /proc/sys/kernel/sem",
        "from labkit.sync import SysvSemaphores\nmade = []\n"
        "try:\n    while True: made.append(SysvSemaphores((1,)))\n"
        "except OSError as refused: print(len(made), refused)",
    )
    assert said.startswith("3 ")
    assert "at its limit of" in said


# --- file locks ----------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path) -> str:
    return str(tmp_path / "locked")


def can_lock(path: str, how: Any) -> bool:
    """Whether another process gets the lock now."""
    program = "import sys; from labkit.sync import FileLock; FileLock(*sys.argv[1:]).acquire(timeout=0)"
    done = elsewhere(program, path, how)
    assert done.returncode == 0 or "TimeoutError" in done.stderr, done.stderr
    return done.returncode == 0


HOWS = ["flock", "fcntl", "ofd"]


@pytest.mark.parametrize("how", HOWS)
def test_a_lock_excludes_unrelated_processes_until_it_is_given_back_or_closed(path, how):
    lock = FileLock(path, how)
    with lock:
        assert not can_lock(path, how)
    assert can_lock(path, how)
    lock.acquire()
    lock.close()
    assert can_lock(path, how)
    assert os.stat(path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("how", HOWS)
def test_those_who_share_a_lock_exclude_only_who_wants_it_alone(path, how):
    lock = FileLock(path, how)
    lock.acquire(shared=True)
    launch(share, lock).wait()
    with pytest.raises(RemoteError, match="TimeoutError"):
        launch(wait_in_child, lock, "acquire", 0).wait()
    lock.close()


@pytest.mark.parametrize(("how", "kept"), [("flock", True), ("ofd", True), ("fcntl", False)])
def test_a_process_loses_its_fcntl_lock_by_closing_any_descriptor_of_the_file(path, how, kept):
    lock = FileLock(path, how)
    lock.acquire()
    open(path).close()
    assert can_lock(path, how) is not kept
    lock.close()


@pytest.mark.parametrize(("how", "inherited"), [("flock", True), ("ofd", True), ("fcntl", False)])
def test_a_forked_child_inherits_the_lock_of_an_open_file_description(path, how, inherited):
    lock = FileLock(path, how)
    lock.acquire()
    go, ready = Eventfd(), Eventfd()
    child = os.fork()
    if child == 0:
        ready.notify()
        go.wait(timeout=60)
        os._exit(0)
    ready.wait()
    lock.close()  # the child has the same open file description still
    assert can_lock(path, how) is not inherited
    go.notify()
    os.waitpid(child, 0)
    assert can_lock(path, how)
    go.close()
    ready.close()


@pytest.mark.parametrize(("how", "excluded"), [("flock", True), ("ofd", True), ("fcntl", False)])
def test_opening_the_file_anew_contends_within_one_process_except_with_fcntl(path, how, excluded):
    first, second = FileLock(path, how), FileLock(path, how)
    first.acquire()
    if excluded:
        with pytest.raises(TimeoutError, match="somebody kept"):
            second.acquire(timeout=0.1)
    else:
        second.acquire(timeout=0)
    first.close()
    second.close()


def test_flock_and_the_record_locks_do_not_know_each_other_but_those_two_do(path):
    with FileLock(path, "ofd"):
        assert not can_lock(path, "fcntl")
        assert can_lock(path, "flock")


@pytest.mark.parametrize("how", HOWS)
def test_the_kernel_tells_who_holds_a_lock_unless_it_belongs_to_no_process(path, how):
    lock = FileLock(path, how)
    assert lock.holder() is None
    with held_elsewhere(FileLock(path, how)) as (theirs, _, _):
        holder = theirs.holder()
        assert (holder is None) == (how == "ofd")
        assert holder is None or not gone(holder)
    lock.close()


@pytest.mark.parametrize(("how", "kept"), [("flock", False), ("ofd", True)])
def test_a_shared_lock_that_cannot_be_made_exclusive_is_kept_or_lost(path, how, kept):
    ours, theirs, third = (FileLock(path, how) for _ in range(3))
    ours.acquire(shared=True)
    theirs.acquire(shared=True)
    with pytest.raises(TimeoutError):
        ours.acquire(timeout=0)
    theirs.release()
    with pytest.raises(TimeoutError) if kept else contextlib.nullcontext():
        third.acquire(timeout=0)
    for lock in (ours, theirs, third):
        lock.close()


def test_the_kernel_sees_a_deadlock_of_fcntl_locks(tmp_path):
    one, two = FileLock(tmp_path / "one", "fcntl"), FileLock(tmp_path / "two", "fcntl")
    ready = Eventfd()
    one.acquire()
    job = launch(take_both, two, one, ready)
    ready.wait()
    assert eventually(lambda: gone(job.pid) or sleeping(job.pid))
    if gone(job.pid):
        pytest.fail(f"it should wait: {job.wait()}")
    try:  # whoever asks last is refused: us, unless the other was just about to ask again
        two.acquire()
    except OSError as deadlock:
        assert deadlock.errno == errno.EDEADLK
        assert "the holder of this lock waits for one of ours" in str(deadlock)
        one.release()
        job.wait()
    else:
        with pytest.raises(RemoteError, match="the holder of this lock waits for one of ours"):
            job.wait()
    for thing in (one, two, ready):
        thing.close()


def test_a_file_lock_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match='"flock", "fcntl" or "ofd"'):
        FileLock(tmp_path / "file", "lockf")
    with pytest.raises(FileNotFoundError):
        FileLock(tmp_path / "missing" / "file")
    with pytest.raises(IsADirectoryError):
        FileLock(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user: run as root")
def test_a_file_that_may_only_be_read_can_be_flocked_and_shared(tmp_path):
    path = tmp_path / "file"
    path.touch(mode=0o644)
    tmp_path.chmod(0o755)
    program = """
import os, sys
from labkit.sync import FileLock
folder = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)
os.fchdir(folder)
os.setuid(65534)
FileLock("file").acquire(timeout=0)
FileLock("file", "fcntl").acquire(timeout=0, shared=True)
FileLock("file", "fcntl").acquire(timeout=0)
"""
    done = elsewhere(program, str(path))
    assert "may write" in done.stderr
    assert done.stderr.count("Error") == 1


# --- all -----------------------------------------------------------------------------------------------------


def once(kind: Any) -> Any:
    """With a name that is removed at once."""
    thing = kind(name=a_name())
    kind.unlink(thing.name)
    return thing


EVERY = {
    "PosixSemaphore": PosixSemaphore,
    "SysvSemaphores": SysvSemaphores,
    "Eventfd": Eventfd,
    "named Mutex": lambda: once(Mutex),
    "Futex": Futex,
    "Mutex": Mutex,
    "Barrier": lambda: Barrier(2),
    "FileLock": lambda: FileLock(f"{tempfile.gettempdir()}/labkit-test-lock-{os.getpid()}"),
}


@pytest.fixture(params=EVERY)
def make_one(request) -> Iterator[Callable[[], Any]]:
    yield EVERY[request.param]
    Path(f"{tempfile.gettempdir()}/labkit-test-lock-{os.getpid()}").unlink(missing_ok=True)


def test_making_and_forgetting_many_leaks_nothing(make_one):
    make_one()
    before = len(os.listdir("/proc/self/fd")), mappings()
    for number in range(300):
        one = make_one()
        if number % 2:
            one.close()
    del one
    assert len(os.listdir("/proc/self/fd")) <= before[0]
    assert mappings() <= before[1] + 20


def test_without_descriptors_making_one_is_the_kernels_own_error(make_one):
    make_one().close()
    with no_descriptors():
        try:
            make_one()
        except OSError as refused:
            number = refused.errno
    assert number == errno.EMFILE


def test_only_launch_hands_one_over(make_one):
    one = make_one()
    if not isinstance(one, SysvSemaphores):
        with pytest.raises(TypeError, match="launch"):
            pickle.dumps(one)
    one.close()


def test_importing_labkit_sync_loads_next_to_nothing():
    program = "import sys, labkit.sync; print(*sorted(set('numba numpy cffi multiprocess'.split()) & set(sys.modules)))"
    assert elsewhere(program).stdout.split() == []
    program = program.replace("labkit.sync;", "labkit.sync; labkit.sync.PosixSemaphore(); labkit.sync.Eventfd();")
    assert elsewhere(program).stdout.split() == ["cffi"]
