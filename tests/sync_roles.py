"""What the processes of test_sync.py do. Children import this file instead of that, so it imports next to nothing."""

from __future__ import annotations

import itertools
import os
import signal
import time
from typing import Any

from labkit.sync import Futex, OwnerDied


class Zero(Futex):
    """A futex whose wait is for it not to be 0 any more."""

    def wait(self, timeout: float | None = None) -> Any:
        return super().wait(0, timeout)

    def let(self) -> None:
        self.value = 1
        self.wake()


def hold_until(lock: Any, told: Any, tell: Any) -> None:
    with lock:
        told.notify()
        tell.wait(timeout=60)


def wait_in_child(thing: Any, method: str, timeout: float | None) -> None:
    getattr(thing, method)(timeout=timeout)


def count_up(lock: Any, path: str, times: int) -> None:
    """Read, wait a little, write: without a lock most of it is lost."""
    for _ in range(times):
        with lock, open(path, "r+") as file:
            number = int(file.read())
            os.sched_yield()
            file.seek(0)
            file.write(str(number + 1))


def hold(lock: Any) -> None:
    lock.acquire()
    time.sleep(600)


def take_two_and_die(semaphores: Any, undo: bool) -> None:
    semaphores.ops([(0, -2, undo)])
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_change(word: Any) -> bool:
    return word.wait(0, timeout=60)


def add_many(word: Any, times: int) -> None:
    for _ in range(times):
        word.add(1)


def work_with(mutex: Any, inside: Any, done: Any, times: int) -> int:
    """Take the mutex and give it back; returns how often a dead one's had to be taken over."""
    recovered = 0
    for _ in range(times):
        try:
            mutex.acquire()
        except OwnerDied:
            try:
                mutex.recover()
            except PermissionError:  # another was faster
                continue
            recovered += 1
            inside.value = 0
        assert inside.add(1) == 0, "two are inside"
        done.add(1)
        assert inside.add(-1) == 1, "two were inside"
        mutex.release()
    return recovered


def meet(barrier: Any, counter: Any, parties: int, rounds: int) -> list[int]:
    """How many had come, seen after each round; it must be all of them."""
    seen = []
    for turn in range(rounds):
        counter.add(1)
        barrier.wait()
        seen.append(counter.value - parties * turn >= parties)
        barrier.wait()
    return seen


def wait_at(barrier: Any, timeout: float | None = 20) -> int:
    return barrier.wait(timeout=timeout)


def come_and_die(barrier: Any, calls: int) -> None:
    """Be killed as soon as so many atomic instructions have changed something, or might have."""
    from labkit.sync import barrier as module

    real, done = module.atomics(), itertools.count(1)

    def dying(instruction: Any) -> Any:
        def call(*arguments: int) -> int:
            result = instruction(*arguments)
            if next(done) == calls:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    deadly = {name: call if name.startswith("load") else dying(call) for name, call in real.items()}
    module.atomics = lambda: deadly
    barrier.wait()


def share(lock: Any) -> None:
    lock.acquire(timeout=0, shared=True)


def take_both(first: Any, second: Any, ready: Any) -> None:
    with first:
        ready.notify()
        with second:
            pass
