"""Views of a trace in the notebook. Nothing here is imported before it is used."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labkit.trace import Trace


def watch(trace: Trace, **options: Any) -> None:
    """Show the messages of a trace as they travel: live while they do, as a replay afterwards.

    Args:
        trace: what to show; call this before the processes are launched to see them live.
        options: given to `labkit.views.flow.Flow`.

    Outside of Jupyter this prints one sentence and returns.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        print("watch() draws in a notebook; here, report(trace, 'run.html') writes the same view to a file.")
        return
    from IPython.display import display

    from labkit.views.flow import Flow

    display(Flow(trace, **options))


def settle() -> None:
    """Send every living view its whole recording, from the calling thread, before a notebook is saved or exported."""
    flow = sys.modules.get("labkit.views.flow")
    for view in list(flow.live) if flow else []:
        view.settle()
