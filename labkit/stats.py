"""From matched messages to numbers and plots: latency and throughput. It knows arrays, no processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Any, ClassVar

import numpy as np


def duration(ns: float) -> str:
    """A length of time as people say it: 12.3 µs. Unknown (nan) is a dash."""
    return "–" if np.isnan(ns) else _said(ns, (" ns", " µs", " ms", " s"))


def amount(number: float) -> str:
    """A large number as people say it: 1.2 M."""
    return _said(number, ("", " k", " M", " G"))


def _said(number: float, units: tuple[str, ...]) -> str:
    """Three digits and the unit, each a thousand times the one before, with which they are less than a thousand."""
    for unit in units[:-1]:
        if abs(number) < 999.5:  # what is more is 1e+03 in three digits
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}{units[-1]}" if abs(number) < 999.5 else f"{number:,.0f}{units[-1]}"


@dataclass(frozen=True)
class Latency:
    """How long messages took, in nanoseconds: from the call of send to the return of receive.

    That is what a program feels: waiting in a full channel and waking the receiver are in it.
    """

    n: int
    """Messages that were received."""
    p50: float
    p90: float
    p99: float
    longest: float
    lost: int
    """Messages that entered the channel and have not been received, or not yet."""
    samples: np.ndarray = field(repr=False, compare=False)
    """Every single latency, sorted."""
    label: str = ""

    @classmethod
    def of(cls, messages: np.ndarray, label: str = "") -> Latency:
        """From rows of dtype labkit.events.MESSAGE. Without any received message all figures are nan."""
        received = messages["receive_ends"] > 0
        done = messages[received]
        samples = np.sort(done["receive_ends"] - done["send_begins"])
        p50, p90, p99 = np.percentile(samples, (50, 90, 99)) if len(samples) else (np.nan,) * 3
        lost = int(np.count_nonzero(~received & (messages["send_ends"] > 0)))
        longest = float(samples[-1]) if len(samples) else np.nan
        return cls(len(samples), float(p50), float(p90), float(p99), longest, lost, samples, label)

    def __repr__(self) -> str:
        times = ", ".join(f"{name}={duration(getattr(self, name))}" for name in ("p50", "p90", "p99", "longest"))
        label = f"{self.label!r}, " if self.label else ""
        return f"Latency({label}n={self.n:,}, {times}, lost={self.lost:,})"

    def plot(self, ax: Any = None) -> Any:
        """The share of messages that took at most so long (ECDF, logarithmic time), as a picture."""
        return plot_latencies([self], ax)


@dataclass(frozen=True)
class Throughput:
    """How much went through, from the first send to the last receive."""

    messages: int
    bytes: int
    seconds: float
    label: str = ""

    @classmethod
    def of(cls, messages: np.ndarray, label: str = "") -> Throughput:
        """From rows of dtype labkit.events.MESSAGE; only received messages count."""
        done = messages[messages["receive_ends"] > 0]
        if not len(done):
            return cls(0, 0, 0.0, label)
        span = int(done["receive_ends"].max()) - int(done["send_begins"].min())
        return cls(len(done), int(done["size"].sum()), span / 1e9, label)

    @property
    def messages_per_second(self) -> float:
        return self.messages / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds else 0.0

    def __repr__(self) -> str:
        label = f"{self.label!r}, " if self.label else ""
        return (
            f"Throughput({label}{amount(self.messages_per_second)} messages/s, "
            f"{amount(self.bytes_per_second)}B/s, {self.messages:,} messages in {duration(self.seconds * 1e9)})"
        )

    def plot(self, ax: Any = None) -> Any:
        """Messages per second as a bar, as a picture."""
        return plot_throughputs([self], ax)


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A7A7A", "#8C6D1F")
"""Okabe and Ito's palette, which colour-blind readers can tell apart (jfly.uni-koeln.de/color, 2008)."""
LINES = ("-", "--", "-.", ":")


def drawable(text: str) -> str:
    """Text that matplotlib writes as it stands: no formulas, no halves of characters, no control characters."""
    shown = text.encode(errors="replace").decode().replace("$", r"\$")
    return "".join(c if c.isprintable() else " " for c in shown)


def _axes(ax: Any, width: float, height: float) -> Any:
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(width, height), layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def plot_latencies(latencies: list[Latency], ax: Any = None) -> Any:
    """Several latencies in one picture: the further left, the faster; the steeper, the steadier."""
    lines = -(-len(latencies) // 2)  # of the legend, which stands below the curves
    ax = _axes(ax, 7, 3.0 + 0.22 * lines)
    for number, latency in enumerate(latencies):
        if latency.n:
            share = np.arange(1, latency.n + 1) / latency.n
            label = f"{drawable(latency.label) or 'latency'}: half within {duration(latency.p50)}"
            style = LINES[number % len(LINES)]
            ax.step(
                latency.samples / 1e3, share, style, where="post", color=COLOURS[number % len(COLOURS)], label=label
            )
    ax.set(xscale="log", xlabel="latency of a message (µs)", ylabel="share of messages", ylim=(0, 1.02))
    ax.grid(alpha=0.25, which="both")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, fontsize="small")
    return Picture(ax)


def plot_throughputs(throughputs: list[Throughput], ax: Any = None) -> Any:
    """Several throughputs as bars, in messages per second."""
    from matplotlib.ticker import MaxNLocator

    ax = _axes(ax, 7, 0.6 + 0.45 * max(len(throughputs), 1))
    names = [drawable(t.label) or "throughput" for t in throughputs]
    bars = ax.barh(names, [t.messages_per_second for t in throughputs], color=COLOURS[: len(names)], height=0.6)
    ax.bar_label(bars, [f" {amount(t.messages_per_second)}/s" for t in throughputs])
    ax.set(xlabel="messages per second")
    ax.xaxis.set_major_formatter(lambda value, _: amount(value))
    ax.margins(x=0.3)
    most = max((t.messages_per_second for t in throughputs), default=0) or 1
    ax.set_xticks([tick for tick in MaxNLocator(5).tick_values(0, most) if tick <= most])  # then come the bars' words
    middle, room = (len(names) - 1) / 2, max(len(names), ax.figure.get_figheight() / INCHES) / 2
    ax.set_ylim(middle + room, middle - room)
    return Picture(ax)


@dataclass(frozen=True)
class Comparison:
    """Several channels side by side. A notebook shows it as two plots over a table."""

    latencies: list[Latency]
    throughputs: list[Throughput]
    unrecorded: int = 0
    """Events that the trace could not record; the figures are of the others."""

    @classmethod
    def of(cls, channels: list[tuple[str, np.ndarray]], unrecorded: int = 0) -> Comparison:
        """From (label, rows of dtype labkit.events.MESSAGE) of each channel."""
        latencies = [Latency.of(m, label) for label, m in channels]
        return cls(latencies, [Throughput.of(m, label) for label, m in channels], unrecorded)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a channel; times in nanoseconds."""
        return [
            {
                "channel": latency.label,
                "messages": latency.n,
                "p50": latency.p50,
                "p99": latency.p99,
                "longest": latency.longest,
                "lost": latency.lost,
                "messages_per_second": throughput.messages_per_second,
                "bytes_per_second": throughput.bytes_per_second,
            }
            for latency, throughput in zip(self.latencies, self.throughputs, strict=True)
        ]

    def plot(self) -> Picture:
        """Latency on the left, throughput on the right."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 3.2 + 0.22 * -(-len(self.latencies) // 2)), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        plot_latencies(self.latencies, left)
        return plot_throughputs(self.throughputs, right)

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                row["channel"],
                f"{row['messages']:,}",
                duration(row["p50"]),
                duration(row["p99"]),
                duration(row["longest"]),
                f"{row['lost']:,}",
                f"{amount(row['messages_per_second'])}/s",
                f"{amount(row['bytes_per_second'])}B/s",
            )
            for row in self.rows()
        ]

    def __repr__(self) -> str:
        lines = [self.HEAD, *self._cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.HEAD))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(title)}</th>" for title in self.HEAD)
        body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>" for cells in self._cells())
        lost = f"<p>{self.unrecorded:,} events could not be recorded; the figures are of the others.</p>"
        note = lost if self.unrecorded else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        label = "Latency and throughput of each channel"
        return f'<div role="img" aria-label="{label}">{self.plot()._repr_svg_()}</div>{table}{note}'

    HEAD: ClassVar = ("channel", "messages", "half within", "99 % within", "longest", "lost", "messages", "data")


INCHES = 0.8
"""A bar, with the space beside it, is at most so wide."""
PIXELS = 100
"""To an inch of a picture on a screen."""
STANDS_IN = "labkit-picture"
"""Marks, in its metadata, an output that is seen where the view before it is not alive."""
INK = "#727a85"
"""Words and axes: a grey that can be read on a light and on a dark page; a picture does not know on which it is."""


class Picture:
    """Axes that a notebook shows, on no ground of their own.

    Made without pyplot, whose global state is not safe outside the main thread.
    """

    def __init__(self, axes: Any):
        self.axes = axes

    def _repr_svg_(self) -> str:
        import warnings
        from io import StringIO

        from matplotlib import rc_context
        from matplotlib.text import Text

        figure, out = self.axes.figure, StringIO()
        for axes in figure.axes:
            axes.set_facecolor("none")
            axes.tick_params(which="both", color=INK)
            for spine in axes.spines.values():
                spine.set_edgecolor(INK)
        for words in figure.findobj(Text):
            if words.get_color() == "black":
                words.set_color(INK)
        # Letters as text: the reader's machine has fonts for what matplotlib's own font lacks, and it is half the size.
        with rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(out, format="svg", facecolor="none")
        text = out.getvalue()
        return text[text.index("<svg") :]

    def png(self) -> bytes:
        """The same as PNG, which also a mail program and an untrusted notebook show."""
        import warnings
        from io import BytesIO

        out = BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            self.axes.figure.savefig(out, format="png", dpi=2 * PIXELS, facecolor="white")
        return out.getvalue()

    def __repr__(self) -> str:
        return f"<picture: {self.axes.get_xlabel()}>"
