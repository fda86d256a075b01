"""Views of a trace in the notebook. Nothing here is imported before it is used."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.trace import Trace


VIEWS = {
    "flow": ("labkit.views.flow", "Flow"),
    "sequence": ("labkit.views.sequence", "Sequence"),
    "occupancy": ("labkit.views.occupancy", "Occupancy"),
    "locks": ("labkit.views.locks", "LocksView"),
}
"""The views of a trace, and where they live."""


def watch(trace: Trace, view: str | None = None, **options: Any) -> None:
    """Show a trace: its messages as they travel, and who holds and awaits its locks; live, and afterwards.

    Args:
        trace: what to show; call this before the processes are launched to see them live, and after the channels and
            locks are made.
        view: "flow" shows messages as moving dots, "sequence" as arrows over time, whose slope is their latency,
            "occupancy" how full the channels were, "locks" who held and awaited which lock. Unless given: flow when the
            trace has channels, and locks below it when it has locks.
        options: given to the views.

    Raises:
        ValueError: there is no view of that name.
        TypeError: trace is no Trace.

    Outside of Jupyter this prints one sentence and returns.
    """
    from labkit.trace import must_be_a_trace

    must_be_a_trace(trace)
    if view is not None and view not in VIEWS:
        near = difflib.get_close_matches(str(view), VIEWS, n=1, cutoff=0.4)
        hint = f' (did you mean "{near[0]}"?)' if near else ""
        raise ValueError(f'no view called "{view}"; there are: {", ".join(VIEWS)}{hint}')
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        print("watch() draws in a notebook; here, report(trace, 'run.html') writes the same view to a file.")
        return
    from IPython.display import display

    flow = trace.channels or not trace.traced_locks
    for name in [view] if view else ["flow"] * bool(flow) + ["locks"] * bool(trace.traced_locks):
        module, kind = VIEWS[name]
        display(getattr(importlib.import_module(module), kind)(trace, **options))


def settle() -> None:
    """Send every living view its whole recording, from the calling thread, before a notebook is saved or exported."""
    views = sys.modules.get("labkit.views.live")
    for view in list(views.live) if views else []:
        view.settle()
