"""Pictures of the labs: which sender each stretch of bytes came from, who waited when, one quantity against another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from labkit.stats import COLOURS, LINES, Picture, _axes, amount, duration

INK = "#222222"


def stretches(data: bytes) -> list[tuple[str, int, int]]:
    """Runs of equal bytes as (letter, start, length): b"AAB" is [("A", 0, 2), ("B", 2, 1)]."""
    array = np.frombuffer(data, np.uint8)
    starts = np.flatnonzero(np.diff(array, prepend=-1)) if len(array) else np.zeros(0, int)
    lengths = np.diff(starts, append=len(array))
    return [(chr(array[start]), int(start), int(n)) for start, n in zip(starts, lengths, strict=True)]


def torn(data: bytes, size: int) -> int:
    """How many writes were mixed with others, when each writer wrote a letter of its own, `size` bytes at a time."""
    array = np.frombuffer(data, np.uint8)
    found = 0
    for letter in np.unique(array):
        where = np.flatnonzero(array == letter)
        writes = where[: len(where) // size * size].reshape(-1, size)
        found += int(np.count_nonzero(writes[:, -1] - writes[:, 0] != size - 1))
    return found


def liveliest(data: bytes, size: int) -> bytes:
    """The `size` bytes of a stream of letters in which its writers alternate most."""
    changes = np.flatnonzero(np.diff(np.frombuffer(data, np.uint8))) + 1
    if not len(changes):
        return data[:size]
    within = np.searchsorted(changes, changes + size) - np.arange(len(changes))
    start = min(int(changes[np.argmax(within)]), max(len(data) - size, 0))
    return data[start : start + size]


def plot_strips(
    strips: Mapping[str, bytes],
    sizes: Sequence[int] = (),
    window: tuple[int, int] | None = None,
    ax: Any = None,
) -> Any:
    """Streams of letters as coloured strips: one colour a writer, in the order in which the bytes came out.

    What nobody is known to have written is a question mark, and black.

    Args:
        strips: label -> bytes, every writer with a letter of its own.
        sizes: the bytes in each write, one number a strip: marks the places at which a write was cut by another.
        window: show only these bytes, from and up to.
    """
    begin, end = window or (0, max(map(len, strips.values()), default=1))
    ax = _axes(ax, 8, 1.1 + 0.55 * max(len(strips), 1))
    found = [stretches(data) for data in strips.values()]
    letters = sorted({letter for runs in found for letter, _, _ in runs})
    known = [letter for letter in letters if letter != "?"]
    for row, runs in enumerate(found):
        written = dict.fromkeys(letters, 0)
        shown: dict[str, list[tuple[int, int]]] = {letter: [] for letter in letters}
        for letter, start, length in runs:
            written[letter] += length
            stop = start + length
            if stop <= begin or start >= end:
                continue
            shown[letter].append((start, length))
            if min(stop, end) - max(start, begin) > (end - begin) / 40:
                centre = (max(start, begin) + min(stop, end)) / 2
                ax.text(centre, row, letter, color="white", ha="center", va="center", fontsize="small", weight="bold")
            if sizes and written[letter] % sizes[row] and stop < end:
                ax.plot([stop, stop], [row - 0.47, row + 0.47], color=INK, lw=1.5)
        for letter in letters:
            colour = INK if letter == "?" else COLOURS[known.index(letter) % len(COLOURS)]
            ax.broken_barh(shown[letter], (row - 0.34, 0.68), facecolors=colour, label="" if row else letter)
    ax.set_yticks(range(len(strips)), list(strips))
    ax.set(xlabel="byte of the stream", xlim=(begin, end), ylim=(len(strips) - 0.45, -0.55))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.spines["left"].set_visible(False)
    ax.tick_params(left=False)
    handles = ax.get_legend_handles_labels()
    ax.legend(*handles, frameon=False, ncols=len(letters), loc="lower right", bbox_to_anchor=(1, 1), fontsize="small")
    return Picture(ax)


def plot_spans(spans: Iterable[tuple[str, float, float, str]], ax: Any = None) -> Any:
    """Who did what from when to when, as bars: (who, begin, end, what), times in seconds; the earliest is 0."""
    spans = list(spans)
    people = list(dict.fromkeys(who for who, _, _, _ in spans))
    whats = list(dict.fromkeys(what for _, _, _, what in spans))
    first = min(begin for _, begin, _, _ in spans)
    ax = _axes(ax, 8, 1.1 + 0.5 * len(people))
    for number, what in enumerate(whats):
        for row, who in enumerate(people):
            bars = [((b - first) * 1e3, (e - b) * 1e3) for w, b, e, t in spans if (w, t) == (who, what)]
            colour, hatch = COLOURS[number % len(COLOURS)], ("", "///", "...", "xx")[number % 4]
            ax.broken_barh(
                bars, (row - 0.3, 0.6), facecolors=colour, hatch=hatch, edgecolor="white", label=what if not row else ""
            )
    ax.set_yticks(range(len(people)), people)
    ax.set(xlabel="time (ms)", xlim=(0, None), ylim=(len(people) - 0.5, -0.5))
    ax.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(whats), fontsize="small")
    ax.grid(axis="x", alpha=0.25)
    return Picture(ax)


def plot_lines(
    lines: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    log: str = "",
    style: str | Mapping[str, str] = "line",
    ax: Any = None,
) -> Any:
    """One quantity against another: label -> points (x, y).

    Args:
        lines: what to draw; with a single line there is no legend.
        xlabel: with its unit.
        ylabel: with its unit.
        log: "x", "y" or "xy" for logarithmic axes.
        style: "line", "dots" (line and dots), "points" (dots only), "steps" (a value holds until the next);
            or label -> one of these.
    """
    ax = _axes(ax, 8, 3.2)
    for number, (label, points) in enumerate(lines.items()):
        x, y = zip(*points, strict=True)
        how = style if isinstance(style, str) else style[label]
        more: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "label": label}
        if how == "steps":
            more["drawstyle"] = "steps-post"
        if how != "line":
            more["marker"] = "os^D"[number % 4]
            more["markersize"] = 4
        more["linestyle"] = "none" if how == "points" else LINES[number % len(LINES)]
        ax.plot(x, y, **more)
    for axis, name in ((ax.xaxis, "x"), (ax.yaxis, "y")):
        if name in log:
            getattr(ax, f"set_{name}scale")("log")
        axis.set_major_formatter(lambda value, _: amount(value) if abs(value) >= 1e4 else f"{value:g}")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.25)
    if len(lines) > 1:  # beside the curves, never over them
        ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(ax)


def plot_times(times: Mapping[str, float], xlabel: str, ax: Any = None) -> Any:
    """How long each of several things takes, as bars: label -> nanoseconds."""
    ax = _axes(ax, 8, 0.7 + 0.42 * max(len(times), 1))
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(times))]
    bars = ax.barh(list(times), list(times.values()), color=colours, height=0.6)
    ax.bar_label(bars, [f" {duration(time)}" for time in times.values()])
    ax.set(xlabel=xlabel)
    ax.xaxis.set_major_formatter(lambda value, _: duration(value) if value else "0")
    ax.invert_yaxis()
    ax.margins(x=0.15)
    return Picture(ax)
