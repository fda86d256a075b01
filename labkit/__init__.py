"""labkit: see how processes talk. Channels, processes, traces and views for the ipclab notebooks.

    from labkit import Trace, channel, launch, watch, report

Everything is loaded when it is first used, so that `import labkit` costs next to nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Closed": "labkit.channels.base",
    "Facts": "labkit.channels.base",
    "KINDS": "labkit.channels",
    "channel": "labkit.channels",
    "facts": "labkit.channels",
    "receiver": "labkit.channels",
    "sender": "labkit.channels",
    "unlink": "labkit.channels",
    "Job": "labkit.launch",
    "RemoteError": "labkit.launch",
    "jobs": "labkit.launch",
    "launch": "labkit.launch",
    "stop_all": "labkit.launch",
    "cluster": "labkit.cluster",
    "kernel": "labkit.kernels",
    "kernels": "labkit.kernels",
    "load_ipython_extension": "labkit.kernel_cells",
    "unload_ipython_extension": "labkit.kernel_cells",
    "JoinableQueue": "labkit.queue",
    "Queue": "labkit.queue",
    "SimpleQueue": "labkit.queue",
    "Trace": "labkit.trace",
    "watch": "labkit.views",
    "Latency": "labkit.stats",
    "Throughput": "labkit.stats",
    "plot_latencies": "labkit.stats",
    "plot_throughputs": "labkit.stats",
    "replay": "labkit.replay",
    "report": "labkit.report",
    "doctor": "labkit.doctor",
    "namespace": "labkit.isolation",
    "objects": "labkit.objects",
}

_MODULES = ("draw", "electron", "explore", "exercises", "lockfree", "sync")

__all__ = sorted(name for name in _HOME if not name.endswith("_ipython_extension"))

if TYPE_CHECKING:
    from labkit.channels import KINDS, channel, facts, receiver, sender, unlink
    from labkit.channels.base import Closed, Facts
    from labkit.cluster import cluster
    from labkit.doctor import doctor
    from labkit.isolation import namespace
    from labkit.kernels import kernel, kernels
    from labkit.launch import Job, RemoteError, jobs, launch, stop_all
    from labkit.objects import objects
    from labkit.queue import JoinableQueue, Queue, SimpleQueue
    from labkit.replay import replay
    from labkit.report import report
    from labkit.stats import Latency, Throughput, plot_latencies, plot_throughputs
    from labkit.trace import Trace
    from labkit.views import watch


class _Package(ModuleType):
    """Importing a submodule sets an attribute of its package. The function `launch` must not become the module."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"labkit.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'labkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
