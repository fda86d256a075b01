"""The message sequence chart: a lifeline a process, an arrow a message, its slope the latency: sequence.js."""

from __future__ import annotations

from labkit.views.esm import module
from labkit.views.flow import Flow


class Sequence(Flow):
    """Shows the messages of a trace as arrows over time, from seconds to nanoseconds; live, and afterwards."""

    _esm = module("sequence")
    most = 250_000
