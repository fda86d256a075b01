"""Views of a trace in the notebook. Nothing here is imported before it is used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.trace import Trace


def watch(trace: Trace, **options: Any) -> None:
    """Show a trace: its messages as they travel, and who holds and awaits its locks; live, and afterwards.

    A trace that has locks and no channels shows locks, one that has both shows both, one under the other.

    Args:
        trace: what to show; call this before the processes are launched to see them live, and after the channels and
            locks are made.
        options: given to the views, `labkit.views.flow.Flow` and `labkit.views.locks.LocksView`.

    Outside of Jupyter this prints one sentence and returns.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        print("watch() draws in a notebook; here, report(trace, 'run.html') writes the same view to a file.")
        return
    from IPython.display import display

    if trace.channels or not trace.traced_locks:
        from labkit.views.flow import Flow

        display(Flow(trace, **options))
    if trace.traced_locks:
        from labkit.views.locks import LocksView

        display(LocksView(trace, **options))


def settle() -> None:
    """Send every living view its whole recording, from the calling thread, before a notebook is saved or exported."""
    views = sys.modules.get("labkit.views.live")
    for view in list(views.live) if views else []:
        view.settle()
