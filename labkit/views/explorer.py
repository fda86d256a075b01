"""The explorer's view: the reader chooses which process runs next. The drawing is explorer.js, and needs no kernel."""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets


class Steps(anywidget.AnyWidget):
    """Step through the states that `labkit.explore.Explorer.table()` lists. Nothing is sent back."""

    _esm = Path(__file__).with_name("explorer.js")
    table = traitlets.Bytes().tag(sync=True)
