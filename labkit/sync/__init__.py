"""Processes that wait for each other: semaphores, locks, barriers and doorbells, one mechanism a file.

    from labkit.sync import PosixSemaphore

    with PosixSemaphore(1) as mutex:                    # closed at the end
        jobs = [launch(count, mutex) for _ in range(4)]  # each has it, and so have we

Each can be handed to `launch(f, semaphore)` and is then *shared*: unlike the end of a channel it is not given away.
Every wait has a `timeout` in seconds: 0 never waits, None waits for ever.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME: dict[str, str] = {}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'labkit.sync' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
