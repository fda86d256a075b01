"""How full each channel was over time, with its producers and consumers blocked: occupancy.js."""

from __future__ import annotations

from labkit.views.esm import module
from labkit.views.flow import Flow


class Occupancy(Flow):
    """Shows how full the channels of a trace were, and who waited for whom; live, and afterwards."""

    _esm = module("occupancy")
    most = 250_000
