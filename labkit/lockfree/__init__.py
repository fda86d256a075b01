"""Lock-free queues in shared memory, compiled by Numba. Each class is a file; none is loaded before it is used.

from labkit.lockfree import Broadcast
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "Broadcast": "labkit.lockfree.broadcast_queue",
    "Missed": "labkit.lockfree.broadcast_queue",
    "Mpmc": "labkit.lockfree.mpmc_queue",
    "Objects": "labkit.lockfree.objects",
    "Spsc": "labkit.lockfree.spsc_queue",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from labkit.lockfree.broadcast_queue import Broadcast as Broadcast
    from labkit.lockfree.broadcast_queue import Missed as Missed
    from labkit.lockfree.mpmc_queue import Mpmc as Mpmc
    from labkit.lockfree.objects import Objects as Objects
    from labkit.lockfree.spsc_queue import Spsc as Spsc


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'labkit.lockfree' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
