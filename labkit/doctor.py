"""What this machine, and the container around it, allow; and what a lab loses where they do not.

Every row is found out by trying, not by guessing from the name of the system: a queue is made and removed, a namespace
is entered by a short-lived child, a memory file is sealed. Nothing is left behind and nothing of this process changes.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import platform
import resource
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from labkit.machine import cpu_quota, memory_limit
from labkit.machine import read as _read

Verdict = Literal["good", "limited", "missing"]

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that the labs use: what was found, how good that is, and what is lost without it."""

    what: str
    found: str
    verdict: Verdict
    without: str


def doctor() -> list[Finding]:
    """Look at everything, one Finding each, in the order of the labs. Takes about a second and never raises OSError."""
    return [_careful(what, probe, without) for what, probe, without in PROBES]


def find_browser() -> str | None:
    """The path of a Chromium for browser tests and PDF reports, or None.

    Looks at $LABKIT_BROWSER first (a path or a command; a value that leads nowhere means None, so that "none" turns
    the browser off), then for the usual names on PATH.
    """
    chosen = os.environ.get("LABKIT_BROWSER")
    if chosen:
        return shutil.which(chosen)
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


def _careful(what: str, probe: Callable[[], tuple[str, Verdict]], without: str) -> Finding:
    """The finding of one probe; whatever the kernel refuses is a finding as well."""
    try:
        found, verdict = probe()
    except (OSError, subprocess.SubprocessError) as refused:
        found, verdict = f"refused: {refused}", "missing"
    return Finding(what, found, verdict, without)


# The processor, memory, clock


def _cores() -> tuple[str, Verdict]:
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    usable = min(allowed, quota) if quota else float(allowed)
    found = f"{usable:g} of {os.cpu_count()}" + (f" (control group quota {quota:g})" if quota else "")
    return found, "good" if usable >= 2 else "limited"


def _memory() -> tuple[str, Verdict]:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = memory_limit()
    usable = min(total, limit) if limit else total
    found = f"{usable / GIB:.1f} GiB" + (
        f" (control group; the machine has {total / GIB:.1f})" if usable < total else ""
    )
    return found, "good" if usable >= 1.5 * GIB else "limited"


def _clock() -> tuple[str, Verdict]:
    resolution = time.clock_getres(time.CLOCK_MONOTONIC) * 1e9
    times = [time.monotonic_ns() for _ in range(2001)]
    reading = statistics.median(after - before for before, after in itertools.pairwise(times))
    source = _read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")) or "unknown source"
    found = f"CLOCK_MONOTONIC, {resolution:g} ns resolution, {reading:g} ns a reading, {source}"
    return found, "good" if resolution <= 1000 and reading <= 500 else "limited"


def _open_files() -> tuple[str, Verdict]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{_limit(soft)} (can be raised to {_limit(hard)})", "good" if soft < 0 or soft >= 1024 else "limited"


def _queued_signals() -> tuple[str, Verdict]:
    soft, _ = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    first, last = signal.SIGRTMIN, signal.SIGRTMAX
    found = f"real-time signals {int(first)} to {int(last)}, {_limit(soft)} may be queued by this user"
    return found, "good" if soft < 0 or soft >= 1000 else "limited"


# POSIX message queues, System V, shared memory


def _mqueue_limits() -> tuple[str, Verdict]:
    folder = Path("/proc/sys/fs/mqueue")
    values = [_read(folder / name) for name in ("msg_max", "msgsize_max", "queues_max")]
    soft, _ = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    if None in values:
        return "the kernel was built without POSIX message queues", "missing"
    messages, size, queues = (int(value or 0) for value in values)
    # What a queue costs: its messages and a struct msg_msg plus a tree node for each (about 128 bytes).
    fit = soft // (messages * (size + 128)) if soft >= 0 else queues
    found = (
        f"{messages} messages of {size:,} bytes, {queues} queues, {_limit(soft)} bytes in all ({fit} full-size queues)"
    )
    return found, "good" if messages >= 10 and size >= 8192 and fit >= 4 else "limited"


def _mqueue() -> tuple[str, Verdict]:
    import posix_ipc

    name = f"/labkit-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        queue = posix_ipc.MessageQueue(name, posix_ipc.O_CREX, 0o600, max_messages=1, max_message_size=16)
    except (posix_ipc.Error, ValueError) as refused:  # posix_ipc.Error is no OSError
        return f"refused: {refused}", "missing"
    try:
        queue.send(b"ping", timeout=1)
        message, _ = queue.receive(timeout=1)
    finally:
        queue.close()
        queue.unlink()
    return "made one, sent through it, removed it", "good" if message == b"ping" else "missing"


def _sysv() -> tuple[str, Verdict]:
    kernel = Path("/proc/sys/kernel")
    libc = ctypes.CDLL(None, use_errno=True)
    identifier = libc.msgget(0, 0o600)  # IPC_PRIVATE
    if identifier < 0:
        return f"refused: {os.strerror(ctypes.get_errno())}", "missing"
    libc.msgctl(identifier, 0, None)  # IPC_RMID
    message, queue = _read(kernel / "msgmax"), _read(kernel / "msgmnb")
    semaphores = (_read(kernel / "sem") or "").split()
    sets = semaphores[3] if len(semaphores) == 4 else "?"
    found = (
        f"messages to {message} bytes, queues of {queue}, {sets} semaphore sets, {_read(kernel / 'shmmni')} segments"
    )
    return found, "good" if int(message or 0) >= 8192 else "limited"


def _dev_shm() -> tuple[str, Verdict]:
    if not os.access("/dev/shm", os.W_OK | os.X_OK):
        return "/dev/shm is not there, or not writable", "missing"
    room = os.statvfs("/dev/shm")
    size, free = room.f_frsize * room.f_blocks, room.f_frsize * room.f_bavail
    return f"{size / MIB:,.0f} MiB, {free / MIB:,.0f} free", "good" if free >= 256 * MIB else "limited"


def _memfd() -> tuple[str, Verdict]:
    fd = os.memfd_create("labkit-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(fd, 4096)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    finally:
        os.close(fd)
    return "made one, sealed it against shrinking", "good"


def _pidfd() -> tuple[str, Verdict]:
    os.close(os.pidfd_open(os.getpid()))
    return "opened one", "good"


# What a container takes away

_UNSHARE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for flags in map(int, sys.argv[1:]):
    if libc.unshare(flags) == 0:
        sys.exit(0)
sys.exit(os.strerror(ctypes.get_errno()))
"""
_NEW_IPC, _NEW_USER = 0x08000000, 0x10000000  # sched.h


def _user_namespace() -> tuple[str, Verdict]:
    refused = _probe(_UNSHARE, _NEW_USER)
    return (f"refused: {refused}", "missing") if refused else ("a child entered a new one", "good")


def _ipc_namespace() -> tuple[str, Verdict]:
    """A privileged process may make one at once; anybody else only inside a user namespace of their own."""
    refused = _probe(_UNSHARE, _NEW_IPC, _NEW_USER | _NEW_IPC)
    return (f"refused: {refused}", "missing") if refused else ("a child entered a new one", "good")


_TRACE = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
child = os.fork()
if child == 0:
    signal.alarm(10)
    signal.pause()
answer = libc.ptrace(0x4206, child, None, None)  # PTRACE_SEIZE, what strace uses
reason = os.strerror(ctypes.get_errno())
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
sys.exit(reason if answer else 0)
"""


def _ptrace() -> tuple[str, Verdict]:
    refused = _probe(_TRACE)
    if refused:
        return f"refused: {refused}", "missing"
    scope = _read(Path("/proc/sys/kernel/yama/ptrace_scope"))
    strace = "strace is here" if shutil.which("strace") else "strace is not installed (package strace)"
    if scope in (None, "0") or os.geteuid() == 0:
        return f"own processes can be traced, {strace}", "good" if shutil.which("strace") else "limited"
    return f"only own children can be traced (yama ptrace_scope {scope}), {strace}", "limited"


def _probe(program: str, *arguments: int) -> str | None:
    """Run a few lines in a child of their own; None when they succeeded, else the reason they gave."""
    command = [sys.executable, "-I", "-S", "-c", program, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return None if child.returncode == 0 else (child.stderr.strip().splitlines() or [f"exit {child.returncode}"])[-1]


# Programs


def _browser() -> tuple[str, Verdict]:
    path = find_browser()
    if path is None:
        return "no Chromium on PATH (package chromium, or set LABKIT_BROWSER)", "missing"
    return path, "good"


def _node() -> tuple[str, Verdict]:
    path = shutil.which("node")
    if path is None:
        return "not on PATH (package nodejs)", "missing"
    version = subprocess.run(
        [path, "--version"], capture_output=True, text=True, timeout=20, check=False
    ).stdout.strip()
    return f"{path} {version}", "good"


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else f"{value:,}"


PROBES: list[tuple[str, Callable[[], tuple[str, Verdict]], str]] = [
    (
        "cores",
        _cores,
        "Producer and consumer take turns: latency shows the scheduler, spinning only wastes time.",
    ),
    ("memory", _memory, "Large traces and a second kernel do not fit; keep runs under 100,000 messages."),
    ("clock", _clock, "Latencies below the clock's step or cost cannot be told apart."),
    ("open files", _open_files, "Labs with hundreds of channels stop with EMFILE; raise it with ulimit -n."),
    (
        "POSIX queue limits",
        _mqueue_limits,
        'Fewer or smaller queues: ask for less with channel("posix_mq", max_messages=..., max_message=...).',
    ),
    (
        "POSIX queues usable",
        _mqueue,
        'channel("posix_mq") cannot be opened, and the start page stops there; the other mechanisms work.',
    ),
    (
        "queued signals",
        _queued_signals,
        'channel("signal") holds little before its sender has to wait, and lab 07 shows fewer queued signals.',
    ),
    (
        "System V IPC",
        _sysv,
        "sysv_mq, sysv_shm and SysvSemaphores cannot be opened: the System V halves of labs 03, 04 and 05 stop.",
    ),
    (
        "/dev/shm",
        _dev_shm,
        "posix_shm takes less: ask for fewer or smaller messages. Rings and traces use memfd and do not need it.",
    ),
    ("memfd with seals", _memfd, "No shm_ring and no traces: both live in such memory."),
    ("pidfd", _pidfd, "Lab 07 cannot poll a process; labkit itself notices the death of a child through a pipe."),
    ("user namespaces", _user_namespace, "Lab 12 shows a recorded run, unless this is root with CAP_SYS_ADMIN."),
    (
        "IPC namespaces",
        _ipc_namespace,
        "Lab 12 shows a recorded run; msg_max cannot be raised privately: a queue holds at most 10 messages.",
    ),
    ("ptrace", _ptrace, "strace shows nothing: the system calls of a process cannot be watched."),
    ("browser", _browser, "No PDF reports, and the browser tests are skipped; HTML reports and the notebooks work."),
    ("Node.js", _node, "Nothing yet: no lab runs JavaScript outside the browser so far."),
]


def describe_machine() -> str:
    """One line about the machine, for reports and bug reports; it names no host and no user."""
    return f"Linux {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
