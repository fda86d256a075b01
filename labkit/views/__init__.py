"""Views of a trace in the notebook. Nothing here is imported before it is used."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import TYPE_CHECKING, Any

from labkit.channels import FactsTable

if TYPE_CHECKING:
    from labkit.trace import Trace


VIEWS = {
    "flow": ("labkit.views.flow", "Flow"),
    "sequence": ("labkit.views.sequence", "Sequence"),
    "occupancy": ("labkit.views.occupancy", "Occupancy"),
    "latency": ("labkit.views.latency", "LatencyView"),
    "dashboard": ("labkit.views.dashboard", "Dashboard"),
    "locks": ("labkit.views.locks", "LocksView"),
    "facts": ("labkit.views.facts", "FactsView"),
}
"""The views, and where they live."""


def watch(*traces: Trace | FactsTable, view: str | None = None, **options: Any) -> None:
    """Show a trace: its messages as they travel, and who holds and awaits its locks; live, and afterwards.

    Args:
        traces: what to show; call this before the processes are launched to see them live, and after the channels and
            locks are made. Several traces are compared by their latency. The table labkit.facts() can be shown too.
        view: "flow" shows messages as moving dots; "sequence" as arrows over time, whose slope is their latency;
            "occupancy" how full the channels were; "latency" how long messages took; "dashboard" all four, linked;
            "locks" who held and awaited which lock. Unless given: flow when the trace has channels, and locks below it
            when it has locks.
        options: given to the views; names=("before", "after") for the latencies of two traces.

    Raises:
        ValueError: there is no view of that name, or it shows one trace only.
        TypeError: there is nothing to show, or something that is no trace.

    Outside of Jupyter this prints one sentence and returns.
    """
    names = _views(traces, view)
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        print("watch() draws in a notebook; here, report(trace, 'run.html') writes the same view to a file.")
        return
    from IPython.display import display

    for name in names:
        module, kind = VIEWS[name]
        display(getattr(importlib.import_module(module), kind)(*traces, **options))


def _views(traces: tuple[Any, ...], view: str | None) -> list[str]:
    """The names of the views to show."""
    from labkit.trace import must_be_a_trace

    if not traces:
        raise TypeError("watch() needs a trace: watch(trace)")
    if view is not None and view not in VIEWS:
        near = difflib.get_close_matches(str(view), VIEWS, n=1, cutoff=0.4)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f'no view called "{view}"; there are: {", ".join(VIEWS)}{hint}')
    if isinstance(traces[0], FactsTable):
        return ["facts"]
    for trace in traces:
        must_be_a_trace(trace)
    if len(traces) > 1 and view not in (None, "latency"):
        raise ValueError(f'the view "{view}" shows one trace; several are compared by view="latency"')
    if view or len(traces) > 1:
        return [view or "latency"]
    flow = trace.channels or not trace.traced_locks
    return ["flow"] * bool(flow) + ["locks"] * bool(trace.traced_locks)


def settle() -> None:
    """Send every living view its whole recording, from the calling thread, before a notebook is saved or exported."""
    views = sys.modules.get("labkit.views.live")
    for view in list(views.live) if views else []:
        view.settle()
