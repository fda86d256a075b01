"""A real-time signal that every thread of this process blocks, for one receiver to read: signalfd(2), signal(7).

A thread that did not block it would be interrupted, and the default action of a real-time signal is to end the process.
No thread can set another one's mask. But a handler can: each thread that has not blocked the signal gets one, and the
handler (labkit.channels.signal_entry) adds it to the mask that the thread returns to. New threads inherit it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from pathlib import Path

from labkit.channels.signal_entry import handler
from labkit.libc import SYSCALLS, failed, ffi, libc

THREAD_PATIENCE = 1.0  # seconds for all threads to block a signal; one that is stopped does it when it goes on
SA_SIGINFO, SA_ONSTACK, SA_RESTART = 0x4, 0x08000000, 0x10000000
SFD_CLOEXEC, SFD_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK

_numbers_in_use: set[int] = set()
_taking = threading.Lock()


def _take_number() -> int:
    """A real-time signal that nobody else uses in this process, with our handler, and blocked by every thread."""
    action, ours = ffi.new("struct sigaction *"), ffi.new("struct sigaction *")
    ours.sa_handler = ffi.cast("void *", handler().address)
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART
    with _taking:
        for number in range(signal.SIGRTMIN + 1, signal.SIGRTMAX + 1):  # programs like the first one
            if number in _numbers_in_use or libc.sigaction(number, ffi.NULL, action) != 0:
                continue
            if action.sa_handler == ffi.NULL and libc.sigaction(number, ours, ffi.NULL) != 0:
                continue
            if action.sa_handler in (ffi.NULL, ours.sa_handler):
                _block_in_all_threads(number)
                _numbers_in_use.add(number)
                return number
    raise OSError(
        errno.EAGAIN,
        f"all {signal.SIGRTMAX - signal.SIGRTMIN} real-time signals of this process are in use: close a receiver first",
    )


def _block_in_all_threads(number: int) -> None:
    """Every thread blocks the signal when this returns; one that is stopped will as soon as it goes on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (number,))
    pause = 0.0005
    deadline = time.monotonic() + THREAD_PATIENCE
    while (lacking := _threads_lacking(number)) and time.monotonic() < deadline:
        for thread in lacking:
            libc.syscall(
                SYSCALLS["tgkill"], ffi.cast("long", os.getpid()), ffi.cast("long", thread), ffi.cast("long", number)
            )
        time.sleep(pause)
        pause *= 2


def _threads_lacking(number: int) -> list[int]:
    """The threads of this process that do not block a signal: SigBlk in proc_pid_status(5)."""
    lacking = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            status = Path("/proc/self/task", thread, "status").read_text()
            blocked = int(status.partition("SigBlk:")[2].split(maxsplit=1)[0], 16)
            if not blocked >> (number - 1) & 1:
                lacking.append(int(thread))
    return lacking


def listen() -> tuple[int, int]:
    """A signal for one receiver, until it is released, and the descriptor to read it from.

    Raises:
        OSError: EAGAIN, all are in use; or /proc cannot be read.
    """
    number = _take_number()
    try:
        wanted = ffi.new("sigset_t *")
        libc.sigemptyset(wanted)
        libc.sigaddset(wanted, number)
        fd = libc.signalfd(-1, wanted, SFD_CLOEXEC | SFD_NONBLOCK)
        if fd < 0:
            raise failed("signalfd")
        return number, fd
    except BaseException:
        release(number)
        raise


def release(number: int) -> None:
    """Another receiver may have this signal. Every thread keeps it blocked."""
    _numbers_in_use.discard(number)
