"""Two runs side by side: reports that labkit wrote, or saved traces; machines, latency, throughput."""

from __future__ import annotations

import html
import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from labkit.page import REPORT_FORMAT, Page, figures_of
from labkit.stats import COLOURS, Picture, _axes, amount, drawable, duration
from labkit.trace import Trace
from labkit.views import recording

BLOCK = re.compile(r'<script type="application/json" id="labkit-report">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True)
class Run:
    """What is compared: a name for people, the machine, and the figures of each channel of each view."""

    name: str
    machine: dict[str, str]
    parts: dict[tuple[str, int], tuple[str, dict[str, dict[str, Any]]]]
    """(notebook, number of the view in it) -> heading, and label -> figures of labkit.views.recording."""


def read_run(path: Path) -> Run:
    """A report or a saved trace.

    Raises:
        ValueError: it is neither, or is damaged, or holds no channel.
        ImportError: it is Parquet and pyarrow is not installed.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        is_page = file.read(20).lower().startswith(b"<!doctype html")
    if not is_page:
        trace = Trace.load(path)
        return _run(
            path, trace.machine, [{"notebook": "", "heading": "", "channels": figures_of(recording.record(trace))}]
        )
    text = path.read_text(encoding="utf-8", errors="replace")
    found = BLOCK.search(text)
    try:
        about = json.loads(found[1]) if found else {}
    except json.JSONDecodeError:
        about = {}
    if not isinstance(about.get("runs"), list) or not isinstance(about.get("machine"), dict):
        raise ValueError(f"{path}: is no whole report of labkit report; make it again, with this version")
    if about.get("format") != REPORT_FORMAT:
        raise ValueError(f"{path}: was written by a newer labkit (format {about.get('format')}): update this one")
    return _run(path, about["machine"], about["runs"])


def _run(path: Path, machine: dict[str, str], runs: list[dict[str, Any]]) -> Run:
    parts: dict[tuple[str, int], tuple[str, dict[str, dict[str, Any]]]] = {}
    for run in runs:
        number = sum(notebook == run["notebook"] for notebook, _ in parts)
        channels = {channel["label"]: channel for channel in run["channels"] if channel["received"]}
        if channels:
            parts[run["notebook"], number] = run["heading"], channels
    if not parts:
        raise ValueError(f"{path}: no message was received in it: show a trace in the notebook with watch(trace)")
    return Run(path.name, machine, parts)


def compare(one: Run, other: Run) -> str:
    """The page."""
    if one.name == other.name:
        one, other = (Run(f"{name}: {run.name}", run.machine, run.parts) for name, run in (("A", one), ("B", other)))
    page = Page(f"{one.name} and {other.name}")
    page.body.append(f"<h1>{html.escape(one.name)} and {html.escape(other.name)}, side by side</h1>")
    page.body.append(_machines(one, other))
    common = [(key, key) for key in one.parts if key in other.parts]
    if not common and len(one.parts) == len(other.parts) == 1:  # a trace, and the notebook that recorded it
        common = [(next(iter(one.parts)), next(iter(other.parts)))]
    for key, same in common:
        (heading, first), (_, second) = one.parts[key], other.parts[same]
        labels = [label for label in first if label in second]
        if not labels:
            continue
        title = ": ".join(filter(None, (key[0], heading))) or "Channels"
        page.contents.append((2, f"part-{len(page.contents) + 1}", title))
        page.body.append(f'<h2 id="{page.contents[-1][1]}">{html.escape(title)}</h2>')
        pairs = [(label, first[label], second[label]) for label in labels]
        page.body.append(f'<div class="rich">{_plot(one, other, pairs)._repr_svg_()}{_table(one, other, pairs)}</div>')
    left_out = [
        f"{run.name}: {label}" for run, rest in ((one, other), (other, one)) for label in _only(run, rest, common)
    ]
    if len(page.contents) == 0:
        page.body.append('<p class="note">They have no channel of the same name in common.</p>')
    if left_out:
        page.body.append(f'<p class="note">Only in one of them: {html.escape(", ".join(left_out))}.</p>')
    return page.html()


def _only(run: Run, rest: Run, common: list[Any]) -> list[str]:
    partner = {key: same for pair in common for key, same in (pair, pair[::-1])}
    labels = []
    for key, (_, channels) in run.parts.items():
        there = rest.parts[partner[key]][1] if key in partner else {}
        labels += [" ".join(filter(None, (key[0], label))) for label in channels if label not in there]
    return labels


def _machines(one: Run, other: Run) -> str:
    rows = []
    for name in dict.fromkeys([*one.machine, *other.machine]):
        values = [html.escape(str(run.machine.get(name, "–"))) for run in (one, other)]
        kind = "" if values[0] == values[1] else ' class="differs"'
        rows.append(f"<tr{kind}><td>{html.escape(name)}</td><td>{values[0]}</td><td>{values[1]}</td></tr>")
    head = f"<tr><th></th><th>{html.escape(one.name)}</th><th>{html.escape(other.name)}</th></tr>"
    return f'<div class="rich machines"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


Pairs = list[tuple[str, dict[str, Any], dict[str, Any]]]


def _plot(one: Run, other: Run, pairs: Pairs) -> Picture:
    """Latency: a colour a channel, one run with a whole line and the other with a broken one."""
    axes = _axes(None, 9, 3.4)
    shares = np.array(recording.PERCENTILES) / 100
    for number, (label, *both) in enumerate(pairs):
        for run, figures, line in zip((one, other), both, ("-", "--"), strict=True):
            times = np.array(figures["percentiles"]) / 1e3
            text = f"{drawable(label)}, {drawable(run.name)}"
            axes.step(times, shares, line, where="post", color=COLOURS[number % len(COLOURS)], label=text)
    axes.set(xscale="log", xlabel="latency of a message (µs)", ylabel="share of messages", ylim=(0, 1.02))
    axes.grid(alpha=0.25, which="both")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")
    return Picture(axes)


def _table(one: Run, other: Run, pairs: Pairs) -> str:
    """Each channel in three lines: one, the other, and how many times the one the other is."""
    half, most = recording.PERCENTILES.index(50), recording.PERCENTILES.index(99)
    rows = []
    for label, *both in pairs:
        figures = [
            (f["percentiles"][half], f["percentiles"][most], f["percentiles"][-1], *_rates(f), f["received"], f["lost"])
            for f in both
        ]
        for run, (p50, p99, longest, messages, data, received, lost) in zip((one, other), figures, strict=True):
            name = f"<td>{html.escape(label)}</td><td>{html.escape(run.name)}</td>"
            cells = (*map(duration, (p50, p99, longest)), f"{amount(messages)}/s", f"{amount(data)}B/s")
            rows.append(f"<tr>{name}{_cells((*cells, f'{received:,}', f'{lost:,}'))}</tr>")
        times = [f"× {b / a:.2f}" if a else "–" for a, b in itertools.islice(zip(*figures, strict=True), 5)]
        rows.append(f'<tr class="ratio"><td></td><td>ratio</td>{_cells((*times, "", ""))}</tr>')
    titles = ("channel", "", "half within", "99 % within", "longest", "messages", "data", "received", "lost")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cells(texts: tuple[str, ...]) -> str:
    return "".join(f"<td>{html.escape(text)}</td>" for text in texts)


def _rates(figures: dict[str, Any]) -> tuple[float, float]:
    seconds = figures["seconds"] or float("inf")
    return figures["received"] / seconds, figures["bytes"] / seconds
