"""Checks of notebook 04-shared-memory."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from labkit.exercises import Verdict, last_line
from labkit.launch import Job, RemoteError, launch
from labkit.shared_array import SharedArray
from labkit.sync import PosixSemaphore

PATIENCE = 10.0
"""Seconds that the learner's function gets."""

PROCESSES = 3
ROUNDS = 3000
WORDS = 512


def _new_words() -> SharedArray:
    return SharedArray(WORDS, np.int64)


# --- exercise 1: transfers ----------------------------------------------------------------------------------


def check_transfer(f: Callable[..., Any]) -> Verdict:
    """Whether f(accounts, source, target, amount, mutex) moves money so that none is lost and no account is overdrawn.

    Args:
        f: the learner's function; several processes call it thousands of times on the same shared array.
    """
    for trial in (_alone, _all_of_it, _refused, _interrupted, _together):
        try:
            why = trial(f)
        except RemoteError as error:
            why = f"your function stopped with “{last_line(error)}”."
        except TimeoutError:
            why = (
                f"the processes were not done within {PATIENCE:g} seconds. Is the mutex given back on every way out of "
                "the function, also where nothing is moved? `with mutex:` does that by itself."
            )
        if why:
            return Verdict(False, why)
    return Verdict(
        True,
        f"{PROCESSES} processes made {PROCESSES * ROUNDS:,} transfers between three accounts at the same time: the sum "
        "is what it was, and nobody ever saw an account below zero.",
    )


@contextlib.contextmanager
def _bank(*balances: int) -> Iterator[tuple[SharedArray, PosixSemaphore]]:
    """Three accounts in memory that processes share, and their mutex."""
    with contextlib.closing(_new_words()) as words, contextlib.closing(PosixSemaphore(1)) as mutex:
        words.array[:3] = balances
        yield words, mutex


def _call(f: Callable[..., Any], words: SharedArray, mutex: Any, *arguments: Any) -> Any:
    """f once, in a process of its own, which must not end with the mutex in its hand."""
    job = launch(_once, f, words, mutex, *arguments, name=_name(f))
    try:
        return job.wait(PATIENCE)
    finally:
        job.kill()


def _once(f: Callable[..., Any], words: SharedArray, mutex: Any, *arguments: Any) -> Any:
    moved = f(words.array, *arguments, mutex)
    return bool(moved) if isinstance(moved, np.bool_) else moved  # what accounts[source] >= amount is


def _alone(f: Callable[..., Any]) -> str:
    with _bank(100, 50, 0) as (words, mutex):
        moved = _call(f, words, mutex, 0, 1, 30)
        found = [int(n) for n in words.array[:3]]
        if moved is None or moved is ...:
            return "your function returns nothing: return True when the money was moved, and False when it was not."
        if found != [70, 80, 0] or moved is not True:
            return (
                f"30 from account 0 to account 1 of [100, 50, 0]: the accounts are {found}, and you return {moved!r}."
            )
        if mutex.value != 1:
            return "after the transfer the mutex was still taken: give it back, or use `with mutex:`."
        return ""


def _all_of_it(f: Callable[..., Any]) -> str:
    with _bank(30, 0, 0) as (words, mutex):
        moved = _call(f, words, mutex, 0, 1, 30)
        found = [int(n) for n in words.array[:3]]
        if found != [0, 30, 0] or moved is not True:
            return (
                f"30 from account 0 of [30, 0, 0] is all that there is, and enough: the accounts are {found}, and you "
                f"return {moved!r}. An account may be empty, it may not be below zero."
            )
        return ""


def _refused(f: Callable[..., Any]) -> str:
    with _bank(20, 0, 0) as (words, mutex):
        moved = _call(f, words, mutex, 0, 1, 30)
        found = [int(n) for n in words.array[:3]]
        if found != [20, 0, 0] or moved is not False:
            return (
                f"30 from account 0 of [20, 0, 0] cannot be moved: the accounts are {found}, and you return {moved!r}. "
                "Nothing may change then, and the answer is False."
            )
        if mutex.value != 1:
            return "when nothing was moved the mutex was still taken: give it back on every way out."
        return ""


def _wrong(found: list[int], before: int, lowest: int, who: str) -> str:
    """What is wrong with these balances; the lowest that was seen meanwhile."""
    if sum(found) != before:
        return (
            f"{who} moved money between three accounts with {before} in all, and now there are "
            f"{sum(found)}: {found}. Two processes have read the same balance, and the second wrote over what the "
            "first had written. Take the mutex before you read, and give it back after you have written."
        )
    if lowest < 0:
        return (
            f"no money was lost, but an account went down to {lowest}. Between your look at the balance and the "
            "transfer another process took the money away: looking belongs under the mutex, too."
        )
    return ""


def _interrupted(f: Callable[..., Any]) -> str:
    """Another transfer at each moment at which the mutex is free, one after the other: nothing is left to luck."""
    with _bank(40, 0, 0) as (words, mutex):
        job = launch(_at_every_moment, f, words, mutex, name=_name(f))
        try:
            ends = job.wait(PATIENCE)
        finally:
            job.kill()
        whys = [_wrong(found, 40, lowest, "two processes") for found, lowest in ends]
        # What was lost says more than what went below zero, which may come of the same.
        lost = [why for why, (found, _) in zip(whys, ends, strict=True) if sum(found) != 40]
        return next((why for why in lost + whys if why), "")


def _at_every_moment(f: Callable[..., Any], words: SharedArray, mutex: Any) -> list[tuple[list[int], int]]:
    """What the accounts were in the end, and the lowest balance, for each moment at which another came between."""
    ends = []
    for moment in range(1, 100):
        words.array[:3] = 40, 0, 0
        between = Between(words.array, mutex, moment)
        f(between, 0, 1, 30, Guarded(mutex, between))
        ends.append(([int(n) for n in words.array[:3]], between.lowest))
        if between.moments < moment:
            break
    return ends


class Between:
    """Shared numbers, of which another process takes all of the first at one moment, if the mutex is free then."""

    def __init__(self, array: np.ndarray, mutex: Any, moment: int):
        self.array, self.mutex, self.moment = array, mutex, moment
        self.moments = self.lowest = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: Any) -> int:
        value = self.array[number]
        self.pass_by()
        return value

    def __setitem__(self, number: Any, value: Any) -> None:
        self.pass_by()
        self.array[number] = value
        self.lowest = min(self.lowest, int(np.min(self.array[:3])))

    def pass_by(self) -> None:
        self.moments += 1
        if self.moments == self.moment and self.mutex.value == 1:
            self.array[2] += self.array[0]
            self.array[0] = 0


class Guarded:
    """The mutex, which another process may have had just before it is taken and just after it is given back."""

    def __init__(self, mutex: Any, between: Between):
        self.mutex, self.between = mutex, between

    def acquire(self, *args: Any, **kwargs: Any) -> Any:
        self.between.pass_by()
        return self.mutex.acquire(*args, **kwargs)

    def release(self) -> None:
        self.mutex.release()
        self.between.pass_by()

    def __enter__(self) -> Guarded:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mutex, name)


def _together(f: Callable[..., Any]) -> str:
    jobs: list[Job] = []
    with _bank(40, 40, 40) as (words, mutex):
        try:
            jobs += (launch(_many, f, words, mutex, number, name=_name(f)) for number in range(PROCESSES))
            deadline = time.monotonic() + PATIENCE
            lowest = min(job.wait(max(0.01, deadline - time.monotonic())) for job in jobs)
            found = [int(n) for n in words.array[:3]]
            return _wrong(found, 120, lowest, f"{PROCESSES} processes")
        finally:
            for job in jobs:
                job.kill()


def _many(f: Callable[..., Any], words: SharedArray, mutex: Any, seed: int) -> int:
    """Many transfers on shared accounts, with a pause where it hurts; the lowest balance that was seen."""
    accounts = Slowly(words.array)
    draw = np.random.default_rng(seed)
    lowest = 0
    for source, step, amount in zip(
        draw.integers(0, 3, ROUNDS), draw.integers(1, 3, ROUNDS), draw.integers(1, 40, ROUNDS), strict=True
    ):
        f(accounts, int(source), int((source + step) % 3), int(amount), mutex)
        lowest = min(lowest, accounts.lowest)
    return lowest


class Slowly:
    """Shared numbers; now and then another process gets its turn between two accesses, as it may at any time."""

    def __init__(self, array: np.ndarray):
        self.array, self.accesses, self.lowest = array, 0, 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: Any) -> int:
        value = self.array[number]
        self._pause()
        return value

    def __setitem__(self, number: Any, value: Any) -> None:
        self._pause()
        self.array[number] = value
        self.lowest = min(self.lowest, int(np.min(self.array[:3])))

    def _pause(self) -> None:
        self.accesses += 1
        if self.accesses % 50 == 0:
            time.sleep(0)  # sched_yield(2) would do: somebody else runs


# --- exercise 2: a frame that is never torn -----------------------------------------------------------------

FRAME = 64  # numbers in a frame


def check_snapshot(write: Callable[..., Any], read: Callable[..., Any]) -> Verdict:
    """Whether read(words) gives whole frames only while write(words, frame) goes on, without any lock (a seqlock).

    Args:
        write: write(words, frame) puts 64 numbers into words[1:65]; words[0] is free for a version number.
        read: read(words) returns a frame that was written, whole, as a copy.
    """
    words = _new_words()
    jobs: list[Job] = []
    try:
        try:
            jobs = [launch(_tries_both, write, read, words, name=_name(write))]
            why = jobs[0].wait(PATIENCE)
        except TimeoutError:
            return Verdict(False, f"one write and one read, nobody else there: not done within {PATIENCE:g} seconds.")
        if why:
            return Verdict(False, why)
        words.array[: FRAME + 1] = 0
        jobs += [launch(_writes, write, words, name=_name(write)), launch(_reads, read, words, name=_name(read))]
        try:
            whole, torn, shared, newest, example = jobs[2].wait(PATIENCE)
        except TimeoutError:
            return Verdict(
                False,
                f"while somebody was writing, read did not return within {PATIENCE:g} seconds. Does write make the "
                "version even again when it is done?",
            )
        written = int(words.array[-1])
        why = _judge_frames(whole, torn, shared, newest, example)
        if not why:
            why = _killed_half_way(write, words, jobs)
        if why:
            return Verdict(False, why)
        return Verdict(
            True,
            f"{whole:,} frames were read while {written:,} were written, no lock was taken, and not one was torn. A "
            "writer that is killed half-way leaves an odd version, which tells the reader that the frame is not whole.",
        )
    except RemoteError as error:
        return Verdict(False, f"your function stopped with “{last_line(error)}”.")
    finally:
        for job in jobs:
            job.kill()
        words.close()


def _tries_both(write: Callable[..., Any], read: Callable[..., Any], words: SharedArray) -> str:
    for number in (7, 8):
        write(words.array, np.full(FRAME, number))
        frame = read(words.array)
        if frame is None or frame is ...:
            return "your read returns nothing: return a copy of words[1:65]."
        if np.shape(frame) != (FRAME,):
            return f"your read returns something of shape {np.shape(frame)}: a frame has {FRAME} numbers, words[1:65]."
        if (np.asarray(frame) != number).any():
            return f"a frame full of {number} was written, and read returns {np.asarray(frame)[:4]}…"
    return ""


def _writes(write: Callable[..., Any], words: SharedArray) -> None:
    number = 0
    array = Halting(words.array)
    while True:
        number += 1
        write(array, np.full(FRAME, number))
        words.array[-1] = number
        if number % 20 == 0:
            time.sleep(0.0002)


class Halting:
    """The shared words of a writer: what it stores arrives in two halves, and in between a reader may look."""

    def __init__(self, array: np.ndarray):
        self.array, self.stores = array, 0

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, where: Any) -> Any:
        return self.array[where]

    def __setitem__(self, where: Any, value: Any) -> None:
        self.stores += 1
        if isinstance(where, slice):
            to, values = self.array[where], np.broadcast_to(value, self.array[where].shape)
            half = len(to) // 2
            to[:half] = values[:half]
            if self.stores % 7 == 0:
                time.sleep(0.00005)
            to[half:] = values[half:]
        else:
            self.array[where] = value


def _reads(read: Callable[..., Any], words: SharedArray) -> tuple[int, int, bool, int, list[int]]:
    """Whole and torn frames, whether a frame changed after it was returned, the newest, and an example.

    The newest is -1 when read has returned nothing.
    """
    whole = torn = newest = 0
    shared, example = False, [0, 0]
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        frame = read(words.array)
        if frame is None:
            return whole, torn, shared, -1, example
        first, last = int(frame[0]), int(frame[-1])
        if (np.asarray(frame) == first).all():
            whole += 1
            newest = max(newest, first)
        else:
            torn += 1
            example = [first, last]
        shared = shared or np.shares_memory(np.asarray(frame), words.array)
    return whole, torn, shared, newest, example


def _judge_frames(whole: int, torn: int, shared: bool, newest: int, example: list[int]) -> str:
    if shared:
        return (
            "read returns the shared memory itself, a view, and not a copy: what it shows changes under the reader's "
            "eyes. words[1:65].copy() copies it; look at the version again after that."
        )
    if torn:
        return (
            f"{torn:,} of {whole + torn:,} frames were torn: one began with frame number {example[0]} and ended with "
            f"{example[1]}. write makes the version odd, stores the frame, and makes it even; read copies only while "
            "the version is even, and tries again when it is another one afterwards."
        )
    if newest < 0:
        return (
            "while a frame was being written, read returned nothing. It is to try again until it has a whole one, "
            "`while True:`, and return that."
        )
    if newest == 0:
        return "while frames were being written, read never saw one: it has to look at words[1:65] again each time."
    return ""


def _killed_half_way(write: Callable[..., Any], words: SharedArray, jobs: list[Job]) -> str:
    """Without the second half of the protocol nothing may show in the first: a stopped writer leaves an odd version."""
    jobs[1].kill(signal.SIGKILL)
    time.sleep(0.05)
    job = launch(_dies_half_way, write, words, name=_name(write))
    jobs.append(job)
    try:
        job.wait(PATIENCE)
        return ""  # it writes through a view, where we cannot stop it
    except RemoteError:
        pass
    if int(words.array[0]) % 2 == 0:
        return (
            "a writer was killed in the middle of a frame, and the version was even: make it odd *before* the first "
            "number of the frame is stored, and even after the last."
        )
    return ""


def _dies_half_way(write: Callable[..., Any], words: SharedArray) -> None:
    class Dying(Halting):
        def __setitem__(self, where: Any, value: Any) -> None:
            if isinstance(where, slice) or where != 0:
                os.kill(os.getpid(), signal.SIGKILL)
            super().__setitem__(where, value)

    words.array[0] += int(words.array[0]) % 2  # what the last one may have left
    write(Dying(words.array), np.zeros(FRAME, np.int64))


def _name(f: Callable[..., Any]) -> str:
    return str(getattr(f, "__name__", "your function"))
