"""The explorer's view: the reader chooses which process runs next. The drawing is explorer.js, and needs no kernel."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import traitlets

from labkit.views.esm import module
from labkit.views.live import Shown

if TYPE_CHECKING:
    from labkit.explore import Explorer


class Steps(Shown):
    """Step through the states that `labkit.explore.Explorer.table()` lists. Nothing is sent back."""

    _esm = module("explorer")
    table = traitlets.Bytes().tag(sync=True)

    def __init__(self, explorer: Explorer):
        self._explorer = explorer
        super().__init__(table=explorer.table())

    def __repr__(self) -> str:
        return repr(self._explorer)

    def stands_in(self) -> dict[str, str]:
        """How many interleavings there are, and the shortest that breaks."""
        shortest = self._explorer.shortest()
        lines = [repr(self._explorer), *([f"The shortest that breaks: {shortest!r}"] if shortest else [])]
        return self.as_page("".join(f"<pre>{escape(line)}</pre>" for line in lines))
