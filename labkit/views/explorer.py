"""The explorer's view: the reader chooses which process runs next. The drawing is explorer.js, and needs no kernel."""

from __future__ import annotations

import anywidget
import traitlets

from labkit.views.esm import module


class Steps(anywidget.AnyWidget):
    """Step through the states that `labkit.explore.Explorer.table()` lists. Nothing is sent back."""

    _esm = module("explorer")
    table = traitlets.Bytes().tag(sync=True)
