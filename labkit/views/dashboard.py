"""Several views over one trace with one timeline: flow, sequence, occupancy and latency: dashboard.js."""

from __future__ import annotations

from typing import Any

from labkit.views.esm import module
from labkit.views.flow import Flow
from labkit.views.latency import floors


class Dashboard(Flow):
    """Shows the messages of a trace as dots and as arrows, how full its channels were, how long they took; linked."""

    _esm = module("dashboard")
    most = 250_000

    def _more(self) -> dict[str, Any]:
        return {"floors": floors()}
