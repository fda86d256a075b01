"""Pictures of the views, for where no JavaScript runs: GitHub, mail, a notebook that is opened without a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.events import MESSAGE, messages, of_channels
from labkit.locks import FOREVER, GIVEN, HELD
from labkit.stats import COLOURS, Picture, _axes, drawable, duration
from labkit.views import recording

if TYPE_CHECKING:
    from labkit.trace import Trace

MOST_ROWS = 12
SAMPLE = 20_000  # messages that are looked at
INK, WEAK, BAD = "#222222", "#5B5B5B", "#A3263A"
BOX = {"boxstyle": "round,pad=0.35", "facecolor": "#F6F7F9", "edgecolor": WEAK}


def flow(trace: Trace) -> Picture:
    """A line a channel: who sends, how much, how long it takes, who receives; on the right what is on the way when."""
    events, shown = of_channels(trace.events()), list(trace.channels)[:MOST_ROWS]
    every = recording.sparsity(events, len(trace.channels), SAMPLE)
    tally = recording.Tally(len(trace.channels))
    tally.add(events)
    found = messages(recording.sample(events, every)) if len(events) else np.zeros(0, MESSAGE)
    axes = _axes(None, 9, 0.35 + 0.95 * max(len(shown), 1))
    axes.set(xlim=(0, 100), ylim=(max(len(shown), 1) - 0.4, -0.75))
    axes.axis("off")
    for row, channel in enumerate(shown):
        own = found[found["channel"] == channel.number]
        _channel(axes, row, channel, own, tally.channels[channel.number], int(every[channel.number]))
        for place, role in ((9, 0), (63, 1)):
            text, bad = _people(trace, [pid for number, pid, r in tally.links if (number, r) == (channel.number, role)])
            axes.text(place, row, text, ha="center", va="center", fontsize=9, color=BAD if bad else INK, bbox=BOX)
    if not shown:
        axes.text(0, 0, "no channel yet", color=WEAK)
    if len(trace.channels) > len(shown):
        axes.text(0, len(shown) - 0.42, f"and {len(trace.channels) - len(shown)} more channels", color=WEAK, fontsize=8)
    return Picture(axes)


def _channel(axes: Any, row: int, channel: Any, own: np.ndarray, sums: np.ndarray, every: int) -> None:
    colour = COLOURS[channel.number % len(COLOURS)]
    sent, received, dropped = (int(n) for n in sums[:3])
    for begin, end in ((17, 28), (45, 55)):
        axes.annotate("", (end, row), (begin, row), arrowprops={"arrowstyle": "-|>", "color": colour})
    label = {"ha": "center", "va": "center", "fontsize": 9, "weight": "bold", "color": INK}
    axes.text(36.5, row, drawable(channel.label)[:24], **label, bbox=BOX | {"edgecolor": colour, "linewidth": 2})
    below = {"ha": "center", "va": "top", "fontsize": 8, "color": WEAK}
    axes.text(22.5, row + 0.12, f"{sent:,} sent", **below)
    axes.text(50, row + 0.12, f"{received:,} received", **below)
    median = recording.median_latency(own)
    notes = [f"half within {duration(median)}"] if median is not None else []
    missing = [f"{sent - received:,} not received"] * (sent > received) + [f"{dropped:,} given up"] * (dropped > 0)
    notes = [", ".join(notes + missing)]
    axes.text(36.5, row + 0.27, notes[0], **below | ({"color": BAD} if missing else {}))
    if len(own):
        _on_the_way(axes, row, own, colour, every)


def _on_the_way(axes: Any, row: int, own: np.ndarray, colour: str, every: int) -> None:
    """How many messages were sent and not yet received, over time, as a small curve."""
    end = max(int(own["receive_ends"].max()), int(own["send_begins"].max()))
    times = np.linspace(int(own["send_begins"].min()), end, 300)
    kept = own[~own["dropped"]]
    arrived = np.sort(kept["receive_ends"][kept["receive_ends"] > 0])
    depth = (np.searchsorted(kept["send_begins"], times, "right") - np.searchsorted(arrived, times, "right")) * every
    x = 74 + 25 * (times - times[0]) / max(times[-1] - times[0], 1)
    most = max(int(depth.max()), 1)
    axes.fill_between(x, row + 0.25, row + 0.25 - 0.6 * depth / most, step="post", color=colour, alpha=0.35, lw=0)
    axes.plot([74, 99], [row + 0.25] * 2, color=WEAK, lw=0.8)
    small = {"fontsize": 7, "color": WEAK, "va": "top"}
    axes.text(74, row + 0.29, f"on the way, at most {most:,}", **small)
    axes.text(99, row + 0.29, duration(times[-1] - times[0]), ha="right", **small)


def _people(trace: Trace, pids: list[int]) -> tuple[str, bool]:
    """Names of the processes at an end, and whether one of them ended badly."""
    known = [trace.processes[pid] for pid in pids if pid in trace.processes]
    ends = [p.ended for p in known if p.ended and p.ended != "exited 0"]
    names = list(dict.fromkeys(drawable(process.name) for process in known))
    count = f"{len(pids)} × " if len(pids) > 1 and len(names) == 1 else ""
    text = f"{count}{', '.join(names[:2])}{' …' if len(names) > 2 else ''}"[:26] if pids else "nobody yet"
    return text + (f"\n{ends[0]}" if ends else ""), bool(ends)


def locks(trace: Trace) -> Picture:
    """A line a thread: what it held, a colour a lock, and when it waited, hatched."""
    history = trace._history()
    spans, actors = history.spans[history.spans["kind"] != GIVEN], history.actors[:MOST_ROWS]
    spans = np.sort(spans[np.argsort(spans["begin"] - spans["end"])[:5000]], order="begin")  # the longest
    axes = _axes(None, 9, 1.3 + 0.5 * max(len(actors), 1))
    first = int(spans["begin"].min()) if len(spans) else 0
    last = max([history.newest, *(end for pid, _ in actors if (end := history.died(pid)) < FOREVER)]) - first
    for row, (pid, thread) in enumerate(actors):
        for info in history.infos:
            own = spans[(spans["pid"] == pid) & (spans["thread"] == thread) & (spans["lock"] == info.number)]
            bars = [(s["begin"] - first, min(int(s["end"]) - first, last) - (s["begin"] - first)) for s in own]
            held = own["kind"] == HELD
            colour = COLOURS[info.number % len(COLOURS)]
            for holds, style in ((True, {"facecolor": colour}), (False, {"facecolor": "white", "hatch": "////"})):
                chosen = [(b / 1e6, w / 1e6) for (b, w), h in zip(bars, held, strict=True) if h == holds]
                axes.broken_barh(chosen, (row - 0.3, 0.6), edgecolor=colour, linewidth=0.8, **style)
    for info in history.infos[:8]:
        axes.barh(0, 0, color=COLOURS[info.number % len(COLOURS)], label=f"holds {drawable(info.label)}"[:24])
    axes.barh(0, 0, facecolor="white", edgecolor=WEAK, hatch="////", label="waits for it")
    axes.set_yticks(range(len(actors)), [drawable(history.names[actor])[:24] for actor in actors])
    axes.set(xlabel="time (ms)", xlim=(0, max(last / 1e6, 1e-3)), ylim=(max(len(actors), 1) - 0.5, -0.5))
    axes.legend(frameon=False, fontsize="small", ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return Picture(axes)


def ring(title: str, frame: dict[str, Any], positions: dict[str, int], owners: list[str]) -> Picture:
    """The slots of a queue as a circle, each in its state, who owns it, and where the positions are."""
    from matplotlib.patches import Patch, Wedge

    axes = _axes(None, 7, 4.2)
    axes.set(xlim=(-1.35, 3.1), ylim=(-1.3, 1.3), aspect="equal")
    axes.axis("off")
    styles: dict[str, dict[str, Any]] = {
        "free": {"facecolor": "#F6F7F9"},
        "filling": {"facecolor": "white", "hatch": "////"},
        "full": {"facecolor": COLOURS[0]},
        "taking": {"facecolor": "white", "hatch": "\\\\\\\\"},
        "poison": {"facecolor": "#FDF1F2", "edgecolor": BAD},
    }
    slots = frame["slots"]
    for number, (state, lap, owner, _, text) in enumerate(slots):
        wide = 360 / len(slots)
        start = 90 - (number + 1) * wide
        axes.add_patch(Wedge((0, 0), 1, start, start + wide, width=0.45, **{"edgecolor": WEAK, **styles[state]}))
        middle = np.deg2rad(start + wide / 2)
        x, y = np.cos(middle), np.sin(middle)
        small = {"ha": "center", "va": "center", "fontsize": 8}
        axes.text(1.13 * x, 1.13 * y, str(number), color=WEAK, **small)
        who = "?" if owner == -1 else chr(65 + owner % 26) if owner is not None else ""
        told = f"{who} ✕" if owner in frame["dead"] else who or drawable(text)[:8]
        if len(slots) <= 16:
            told += f"\nlap {lap}"
        colour = "white" if state == "full" else BAD if "✕" in told else INK
        ground = {"boxstyle": "round,pad=0.15", "facecolor": "white", "linewidth": 0}
        hatched = {"bbox": ground} if "hatch" in styles[state] else {}
        axes.text(0.78 * x, 0.78 * y, told, color=colour, **small, **hatched)
    for line, (name, value) in enumerate(positions.items()):
        axes.text(
            0, 0.12 - 0.2 * line, f"{name.replace('_position', '')} {value:,}", ha="center", fontsize=8, color=INK
        )
    names = [f"{chr(65 + number % 26)}: {drawable(owner)}" for number, owner in enumerate(owners[:8])]
    note = "\n".join([drawable(title), drawable(frame["label"]), *names])
    axes.text(1.5, 1.05, note, va="top", fontsize=9, color=INK, wrap=True)
    marks = [Patch(**{"edgecolor": WEAK, **style}, label=state) for state, style in styles.items()]
    axes.legend(handles=marks, frameon=False, fontsize=8, loc="lower right")
    return Picture(axes)


def window(title: str, text: list[str], rows: list[tuple[str, str, str, str]], count: int) -> Picture:
    """A window of labkit.electron: its title, the words of its page, its first messages (when, way, what, channel)."""
    text, shown = text[:MOST_ROWS], rows[:MOST_ROWS]
    height = max(len(text), len(shown) + (count > len(shown)), 2)
    axes = _axes(None, 9, 0.6 + 0.22 * height)
    axes.set(xlim=(0, 100), ylim=(height + 0.4, -1.5))
    from matplotlib.patches import Rectangle

    axes.axis("off")
    frame: Any = {"edgecolor": WEAK, "linewidth": 1, "clip_on": False}
    axes.add_patch(Rectangle((0, -1.4), 100, height + 1.8, facecolor="white", **frame))
    axes.add_patch(Rectangle((0, -1.4), 100, 1.1, facecolor="#E7EAEF", **frame))
    small = {"fontsize": 8, "va": "center", "clip_on": True}
    axes.text(1, -0.85, drawable(title)[:90], fontsize=9, weight="bold", color=INK, va="center")
    for row, line in enumerate(text):
        axes.text(1, row + 0.2, drawable(line)[:56], color=INK, **small)
    for row, (when, way, what, channel) in enumerate(shown):
        for x, word, align in ((57, when, "right"), (59, way, "left"), (72, what, "left"), (85, channel, "left")):
            axes.text(x, row + 0.2, drawable(word)[:22], color=WEAK, ha=align, **small)
    if count > len(shown):
        axes.text(59, len(shown) + 0.2, f"and {count - len(shown):,} more messages", color=WEAK, **small)
    return Picture(axes)
