"""A timeout for system calls that have none: flock(2), fcntl(2) F_SETLKW, msgrcv(2), open(2) of a FIFO.

A signal whose handler was installed without SA_RESTART ends a blocking call with EINTR: signal(7), TLPI §21.5. Here it
comes from a timer of the calling thread (timer_create(2) with SIGEV_THREAD_ID), so that no other thread notices, and
its handler is a function of the C library that does nothing of consequence, abs(3): no Python code runs in it. The
timer is periodic, because a tick that came just before the call blocked would be lost (TLPI §23.3).

After each tick Python looks at the deadline, at Ctrl-C, and at whatever the caller wants to be looked at.
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from labkit.channels.base import Waiter
from labkit.libc import SIGEV_THREAD_ID, failed, ffi, libc

TICK = 0.05
"""Seconds between two looks at the deadline and at Ctrl-C."""
PATIENCE = 2.0
"""Seconds that we try to get a timer when this user has as many queued signals and timers as allowed."""


def interruptible(
    name: str, call: Callable[[], int], waiter: Waiter, doing: str, gone: Callable[[], object] | None = None
) -> int:
    """Make a blocking call of `labkit.libc` until it succeeds; returns what it returned.

    Try once without blocking before: this costs a timer. It works in any thread, and in a child after fork(2).

    Args:
        name: the call's name, for errors.
        call: makes it, and returns -1 with errno as the C library does, EINTR after a signal.
        waiter: the deadline.
        doing: what is being waited for, for the TimeoutError: "the queue stayed empty".
        gone: looked at every `TICK` seconds; when it is true, -1 is returned. As `lifeline.cut`.

    Raises:
        TimeoutError: the deadline has passed.
        OSError: the call failed in another way than EINTR; EAGAIN, this user is at RLIMIT_SIGPENDING.
    """
    number = _tick_signal()
    wanted, before = ffi.new("sigset_t *"), ffi.new("sigset_t *")
    libc.sigemptyset(wanted)
    libc.sigaddset(wanted, number)
    libc.pthread_sigmask(signal.SIG_UNBLOCK, wanted, before)  # some threads block every signal
    timer = _timer(number, waiter, doing)
    try:
        while True:
            pause = TICK
            if waiter.deadline is not None:
                pause = min(TICK, waiter.deadline - time.monotonic())
                if pause <= 0:
                    raise TimeoutError(f"{doing} for {waiter.timeout:g} s")
            _arm(timer, pause)
            result = call()
            if result != -1:
                return result
            if ffi.errno != errno.EINTR:
                raise failed(name)
            if gone is not None and gone():
                return -1
    finally:
        ffi.release(timer)  # timer_delete(2)
        libc.pthread_sigmask(signal.SIG_SETMASK, before, ffi.NULL)


def patiently(
    name: str, call: Callable[[float], int], waiter: Waiter, doing: str, gone: Callable[[], object] | None = None
) -> int:
    """Make a blocking call that has a timeout until it succeeds, looking at Ctrl-C meanwhile; returns what it returned.

    It is made in turns of at most a second, so that a Ctrl-C that comes just before the call blocks is not lost either.

    Args:
        name, waiter, doing, gone: as for `interruptible`.
        call: makes it with the seconds it may wait, and returns -1 with errno as the C library does.

    Raises:
        TimeoutError: the deadline has passed; the call was made at least once.
        OSError: the call failed in another way than by waiting in vain.
    """
    turn = TICK if gone else 1.0
    while True:
        left = turn if waiter.deadline is None else min(turn, max(0.0, waiter.deadline - time.monotonic()))
        result = call(left)
        if result != -1:
            return result
        if ffi.errno not in (errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT):
            raise failed(name)
        if gone is not None and gone():
            return -1
        if waiter.deadline is not None and time.monotonic() >= waiter.deadline:
            raise TimeoutError(f"{doing} for {waiter.timeout:g} s")


def _timer(number: int, waiter: Waiter, doing: str) -> Any:
    """A timer that sends the signal to this thread alone, and is deleted when it is released or forgotten."""
    event, timer = ffi.new("struct sigevent *"), ffi.new("timer_t *")
    event.sigev_notify, event.sigev_signo = SIGEV_THREAD_ID, number
    event.sigev_thread_id = threading.get_native_id()
    began = time.monotonic()
    while libc.timer_create(time.CLOCK_MONOTONIC, event, timer) != 0:
        refused = failed("timer_create", "this user's queued signals and timers are at RLIMIT_SIGPENDING (ulimit -i)")
        now = time.monotonic()
        if waiter.deadline is not None and now >= waiter.deadline:
            raise TimeoutError(f"{doing} for {waiter.timeout:g} s")
        if refused.errno != errno.EAGAIN or now - began > PATIENCE:
            raise refused
        time.sleep(TICK / 10)  # the limit is for all processes of a user: one of them may be full for a moment
    return ffi.gc(timer[0], libc.timer_delete)


def _arm(timer: Any, first: float) -> None:
    nanoseconds = max(1, int(first * 1e9))
    when = ffi.new("struct itimerspec *", ((0, int(TICK * 1e9)), (0, nanoseconds)))
    if libc.timer_settime(timer, 0, when, ffi.NULL) != 0:
        raise failed("timer_settime")


_choice = threading.Lock()
_number = 0
_nothing = ffi.cast("void *", libc.abs)  # int abs(int): takes a signal's number, changes nothing


def _tick_signal() -> int:
    """The number of a real-time signal that nobody else uses in this process, with our handler.

    The highest whose disposition is the default, from SIGRTMAX-3 down: debuggers like the last ones (valgrind takes
    SIGRTMAX), programs the first. Should another library take ours later, the next call finds another one.
    """
    global _number
    action = ffi.new("struct sigaction *")
    if _number and libc.sigaction(_number, ffi.NULL, action) == 0 and action.sa_handler == _nothing:
        return _number
    with _choice:
        for number in range(signal.SIGRTMAX - 3, signal.SIGRTMIN, -1):
            if libc.sigaction(number, ffi.NULL, action) == 0 and action.sa_handler in (ffi.NULL, _nothing):
                ours = ffi.new("struct sigaction *")
                ours.sa_handler = _nothing  # sa_flags stays 0: no SA_RESTART
                if libc.sigaction(number, ours, ffi.NULL) == 0:
                    _number = number
                    return number
    raise OSError(errno.EBUSY, "sigaction: every real-time signal is used by some other library in this process")
