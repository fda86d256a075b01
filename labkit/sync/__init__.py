"""Processes that wait for each other: semaphores, locks, barriers and doorbells, one mechanism a file.

    from labkit.sync import PosixSemaphore

    mutex = PosixSemaphore(1)
    jobs = [launch(count, mutex) for _ in range(4)]     # each has it, and so have we
    with mutex:                                         # taken here, given back at the end
        ...

Each can be handed to `launch(f, semaphore)` and is then *shared*: unlike the end of a channel it is not given away.
Every wait has a `timeout` in seconds: 0 never waits, None waits for ever.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Barrier": "labkit.sync.barrier",
    "BrokenBarrier": "labkit.sync.barrier",
    "Eventfd": "labkit.sync.eventfd",
    "FileLock": "labkit.sync.file_lock",
    "Futex": "labkit.sync.futex",
    "Mutex": "labkit.sync.futex",
    "OwnerDied": "labkit.sync.futex",
    "PosixSemaphore": "labkit.sync.posix_semaphore",
    "SysvSemaphores": "labkit.sync.sysv_semaphore",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from labkit.sync.barrier import Barrier as Barrier
    from labkit.sync.barrier import BrokenBarrier as BrokenBarrier
    from labkit.sync.eventfd import Eventfd as Eventfd
    from labkit.sync.file_lock import FileLock as FileLock
    from labkit.sync.futex import Futex as Futex
    from labkit.sync.futex import Mutex as Mutex
    from labkit.sync.futex import OwnerDied as OwnerDied
    from labkit.sync.posix_semaphore import PosixSemaphore as PosixSemaphore
    from labkit.sync.sysv_semaphore import SysvSemaphores as SysvSemaphores


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'labkit.sync' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
