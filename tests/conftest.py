"""Every test leaves the machine as it found it: an autouse fixture looks, waits a moment, and names what was left.

A test that cannot keep to a single check opts out of it and says why:

    @pytest.mark.leaves("threads", reason="the browser's driver keeps one for the session")

Looking at the whole machine, two sessions would blame each other. So each worker of `pytest -n` has a lane: namespaces
of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import gc
import os
import re
import resource
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lane
import pytest

MARK = f"labkit-tests-{os.getpid()}-{secrets.token_hex(4)}"
"""Every process that this session starts carries it in its environment, orphans too."""
os.environ["LABKIT_TESTS"] = MARK
RUNTIME = tempfile.mkdtemp(prefix="labkit-runtime-")
os.environ["XDG_RUNTIME_DIR"] = RUNTIME
atexit.register(shutil.rmtree, RUNTIME, ignore_errors=True)

for _number in signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM:
    if signal.getsignal(_number) == signal.SIG_IGN:  # as a shell does to what runs in the background, and nohup(1)
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

with contextlib.suppress(ImportError):
    import hypothesis

    # The same examples each time, on every machine. Others: pytest --hypothesis-profile=default
    hypothesis.settings.load_profile("ci")

GRACE = 60.0
"""Seconds after which nothing of a test may be left."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "leaves(check, ..., reason): may leave what these checks look for; every test else leaves nothing"
    )
    if hasattr(config, "workerinput"):
        config.option.basetemp = None  # temporary folders are the lane's
    elif getattr(config.option, "tx", None):
        if not lane.possible():
            raise pytest.UsageError("the kernel allows no namespaces here, so tests run one by one: pytest -n0")
        python = shlex.join([sys.executable, lane.__file__, sys.executable])
        config.option.tx = [f"popen//python={python}"] * len(config.option.tx)
        # Compiled once, without a time limit, and not in every lane at the same time.
        subprocess.run([sys.executable, "-c", "import labkit.preload"], cwd=config.rootpath, check=False)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Lanes of `pytest -n auto`: one more than processors, since most tests wait, and no more than memory is for."""
    return min(len(os.sched_getaffinity(0)) + 1, 6) if lane.possible() else 0


def pytest_make_parametrize_id(val: object) -> str | None:
    """Many bytes make no name: unreadable, and what gzip has written says when, so that lanes would differ."""
    return f"{len(val)} bytes" if isinstance(val, bytes) and len(val) > 12 else None


# --- what there is ------------------------------------------------------------------------------------------


def _stat(pid: int | str) -> tuple[str, str, int, str]:
    """Name, state, parent and start time of a process: proc_pid_stat(5)."""
    text = Path(f"/proc/{pid}/stat").read_text()
    name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
    return name, rest[0], int(rest[1]), rest[19]


def kept_processes() -> set[int]:
    """Those that live as long as the session: the forkserver and the resource trackers of this process, our helper."""
    kept = {_mounter.pid} if _mounter else set()
    for package in ("multiprocess", "multiprocessing"):
        if forkserver := sys.modules.get(f"{package}.forkserver"):
            kept.add(forkserver._forkserver._forkserver_pid)
        if tracker := sys.modules.get(f"{package}.resource_tracker"):
            kept.add(tracker._resource_tracker._pid)
    return kept - {None}


_foreign: set[tuple[int, str]] = set()  # processes that do not carry our mark, by pid and start


def processes() -> set[str]:
    """Our descendants, zombies included, and whatever carries our mark, orphans included."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                table[int(entry)] = _stat(entry)
    ours = {os.getpid()}
    for _ in range(8):  # generations
        ours |= {pid for pid, (_, _, parent, _) in table.items() if parent in ours}
    for pid in table.keys() - ours:
        identity = pid, table[pid][3]
        if identity not in _foreign:
            with contextlib.suppress(OSError):
                if MARK.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                    ours.add(pid)
                else:
                    _foreign.add(identity)
    found = set()
    for pid in ours - kept_processes() - {os.getpid()}:
        name, state, _, start = table[pid]
        found.add(f"{'zombie' if state == 'Z' else 'process'} {pid} {name} started {start}")
    return found


def descriptors() -> set[str]:
    """Open descriptors, but for those that packages keep on files of their own (matplotlib: its fonts)."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"fd {fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
    return {text for text in found if "/proc/" not in text and "/site-packages/" not in text}


def shared_memory() -> set[str]:
    """Entries of /dev/shm. Browsers' own, which come and go, are not ours."""
    with contextlib.suppress(OSError):
        return {f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if "chromium" not in name}
    return set()


def system_v() -> set[str]:
    found = set()
    for kind in ("msg", "sem", "shm"):
        with contextlib.suppress(OSError):
            lines = Path("/proc/sysvipc", kind).read_text().splitlines()[1:]
            found |= {f"System V {kind}, key {line.split()[0]}, id {line.split()[1]}" for line in lines}
    return found


def posix_queues() -> set[str]:
    """Named POSIX queues of this IPC namespace: those in the mounted file system, or else those labkit has noted."""
    if _mounter:
        folder = Path(f"/proc/{_mounter.pid}/root{_mqueue_dir}")
    else:
        folder = Path("/dev/mqueue") if os.path.ismount("/dev/mqueue") else Path(RUNTIME, "labkit", "posix_mq")
    with contextlib.suppress(OSError):
        return {f"POSIX queue /{name}" for name in os.listdir(folder) if not _of_another_session(name)}
    return set()


def _of_another_session(name: str) -> bool:
    """A queue of a session that runs beside this one (pytest -n): its name says whose it is."""
    owner = re.match(r"labkit-(?:tests-)?(\d+)-", name)
    return bool(owner and MARK not in name and int(owner[1]) != os.getpid() and Path("/proc", owner[1]).exists())


def files() -> set[str]:
    """What is in the runtime directory, and sockets of ours in the directory for temporary files."""
    found = {str(path) for path in Path(RUNTIME).rglob("*") if not path.is_dir()}
    with contextlib.suppress(OSError):
        for entry in os.scandir(tempfile.gettempdir()):
            with contextlib.suppress(OSError):
                if entry.name.startswith("labkit-ring") or Path(entry.path).is_socket():
                    found.add(entry.path)
    return found


def threads() -> set[str]:
    return {f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()}


CHECKS: dict[str, Callable[[], set[str]]] = {
    check.__name__: check for check in (processes, descriptors, shared_memory, system_v, posix_queues, files, threads)
}


# --- the file system of POSIX queues, mounted where nobody else sees it -------------------------------------

_mounter: subprocess.Popen[bytes] | None = None
_mqueue_dir = ""


def _mount_mqueue() -> None:
    """mount(2) in a mount namespace of a helper's own; we look into it through /proc/<helper>/root."""
    global _mounter, _mqueue_dir
    if os.geteuid() != 0:
        return
    folder = tempfile.mkdtemp(prefix="labkit-mqueue-")
    code = (
        "import ctypes, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18\n"
        "done = (libc.unshare(CLONE_NEWNS) == 0 and libc.mount(b'none', b'/', None, MS_REC | MS_PRIVATE, None) == 0\n"
        f"        and libc.mount(b'mqueue', {folder.encode()!r}, b'mqueue', 0, None) == 0)\n"
        "print('yes' if done else 'no', flush=True)\n"
        "sys.stdin.read()\n"
    )
    helper = subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert helper.stdout and helper.stdin

    def end() -> None:
        with contextlib.suppress(OSError):
            helper.stdin.close()
        helper.wait(10)
        helper.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)

    if helper.stdout.readline() == b"yes\n":
        _mounter, _mqueue_dir = helper, folder
        atexit.register(end)
    else:
        end()


# --- the fixtures -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def warm_up() -> Iterator[None]:
    """Open once whatever is opened once a session: the forkserver's descriptors, compiled code, random numbers."""
    from labkit import KINDS, Trace, channel, launch, stop_all

    _mount_mqueue()
    # A test that fills a queue of signals leaves room for this user's other programs, which share the limit.
    most, hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    resource.setrlimit(resource.RLIMIT_SIGPENDING, (4096 if most < 0 else min(most, 4096), hard))
    os.urandom(1)
    with Trace() as trace:
        for kind in KINDS:
            for end in channel(kind, trace=trace):
                end.close()
    launch(int).wait()
    gc.collect()
    gc.freeze()  # what is there now stays, and need not be looked through after each test
    yield
    stop_all()


@pytest.fixture(scope="module")
def forkserver(warm_up: None) -> None:
    """That of multiprocessing, which lives on until the session ends, or a module of tests that has stopped it."""
    import multiprocessing.forkserver

    multiprocessing.set_forkserver_preload(["labkit.preload"])
    multiprocessing.forkserver.ensure_running()


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest, warm_up: None) -> Iterator[None]:
    """The fixture that this file is about."""
    allowed: set[str] = set()
    for mark in request.node.iter_markers("leaves"):
        assert mark.kwargs.get("reason"), "leaves(...) needs a reason"
        assert set(mark.args) <= CHECKS.keys(), f"leaves(...) knows {', '.join(CHECKS)}"
        allowed |= set(mark.args)
    checks = {name: check for name, check in CHECKS.items() if name not in allowed}
    gc.collect()
    before = {name: check() for name, check in checks.items()}
    yield
    if getattr(request.node, "failed", False):
        return  # its own report matters more
    deadline = time.monotonic() + GRACE
    while True:
        left = sorted(thing for name, check in checks.items() for thing in check() - before[name])
        if not left:
            return
        if time.monotonic() > deadline:
            pytest.fail("this test left behind:\n  " + "\n  ".join(left), pytrace=False)
        gc.collect()
        time.sleep(0.02)


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """One at a time may use up RLIMIT_SIGPENDING or RLIMIT_MSGQUEUE: they are for a user, whatever his namespaces."""
    with open(__file__) as turn:
        if re.search("signal|posix_mq|message.queues", item.nodeid):
            fcntl.flock(turn, fcntl.LOCK_EX)
        yield
        fcntl.flock(turn, fcntl.LOCK_UN)  # closing is not enough where a test has made a copy of this process


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call":
        item.failed = report.failed  # type: ignore[attr-defined]


@pytest.fixture
def a_name() -> Iterator[str]:
    """A name for a channel that is nobody else's, whatever its mechanism."""
    from labkit import facts, unlink

    name = f"{MARK}-{secrets.token_hex(3)}"
    yield name
    for kind, fact in facts().items():
        if not fact.related_only:
            with contextlib.suppress(FileNotFoundError):
                unlink(kind, name)


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """This process on a single processor, as on Binder."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)
