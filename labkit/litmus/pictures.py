"""Litmus tests as pictures: two columns of instructions, what was seen, and what the models say of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from labkit.litmus.models import this_machine
from labkit.stats import COLOURS, Picture, amount

if TYPE_CHECKING:
    from labkit.litmus import Litmus, Seen

TITLES = {"sc": "one after the other", "x86": "x86-TSO", "arm": "Armv8", "c11": "C11"}
BLUE, VERMILLION, GREEN = COLOURS[0], COLOURS[1], COLOURS[2]


def two_columns(test: Litmus) -> str:
    """The test as HTML: one column a process, and the outcomes that are in question."""
    columns = "".join(
        f'<td style="text-align:left;vertical-align:top;padding:.5em 1.2em;border-left:4px solid {colour}">'
        + "<br>".join(f"<code>{escape(str(operation))}</code>" for operation in thread)
        + "</td>"
        for thread, colour in zip(test.program.threads, (BLUE, VERMILLION), strict=True)
    )
    x, y = test.program.places
    weak = " or ".join(f"<code>{escape(test.in_words(outcome))}</code>" for outcome in test.weak)
    question = f"Not if they run one after the other, in any order: {weak}." if weak else "Every outcome is ordinary."
    return (
        f"<b>{escape(test.name)}</b><p style='margin:.3em 0'>at the start {x} = {y} = 0</p>"
        "<table><thead><tr><th style='text-align:left;padding-left:1.2em'>left</th>"
        "<th style='text-align:left;padding-left:1.2em'>right</th></tr></thead>"
        f"<tbody><tr>{columns}</tr></tbody></table><p style='margin:.3em 0'>{question}</p>"
    )


def plot_seen(seen: Iterable[Seen], model: str = "") -> Any:
    """How often each outcome came up, by test: the colour and the shape say what the model thinks of it.

    A circle is what an order of the operations, one after the other, explains; a square is what only the model allows;
    a cross is what it forbids. What never came up stands at 0. The model is that of this machine unless given.
    """
    from matplotlib.figure import Figure

    several, model = list(seen), model or this_machine()
    heights = [len(one.test.outcomes) for one in several]
    figure = Figure(figsize=(8, 0.9 + 0.27 * sum(heights) + 0.22 * len(several)), layout="constrained")
    grid = figure.subplots(len(several), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    kinds = {
        "sc": ("o", BLUE, TITLES["sc"]),
        "weak": ("s", VERMILLION, f"{TITLES[model]} allows it"),
        "never": ("X", COLOURS[6], f"{TITLES[model]} forbids it"),
    }
    for ax, one in zip(grid, several, strict=True):
        test = one.test
        for row, outcome in enumerate(test.outcomes):
            kind = "sc" if outcome in test.models["sc"] else "weak" if outcome in test.models[model] else "never"
            shape, colour, _ = kinds[kind]
            count = one.counts[outcome]
            ax.plot([0, count], [row, row], color=colour, lw=2, solid_capstyle="butt")
            ax.plot([count], [row], shape, color=colour, ms=8, clip_on=False, zorder=3)
            words = amount(count) if count else "never"
            ax.annotate(words, (count, row), (9, 0), textcoords="offset points", va="center", fontsize="small")
        ax.set_yticks(range(len(test.outcomes)), [test.in_words(outcome) for outcome in test.outcomes])
        ax.set_ylim(len(test.outcomes) - 0.5, -0.5)
        ax.set_title(test.name, loc="left", fontsize="medium", weight="bold")
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlim(0, max(one.times for one in several) * 3)
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="x", alpha=0.25)
    grid[-1].set_xlabel(f"how often, of up to {max(one.times for one in several):,} races")
    grid[-1].set_xticks([0, *(10**n for n in range(7))])
    grid[-1].xaxis.set_major_formatter(lambda value, _: amount(value))
    grid[-1].minorticks_off()
    handles = [
        grid[0].plot([], [], shape, color=colour, ms=8, label=label)[0] for shape, colour, label in kinds.values()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return Picture(grid[-1])


@dataclass(frozen=True)
class Table:
    """The outcomes that are not those of one operation after the other: seen here or not, and by whom allowed."""

    several: tuple[Seen, ...]

    def _rows(self) -> list[tuple[str, ...]]:
        return [
            (
                one.test.name,
                one.test.in_words(outcome),
                f"{one.counts[outcome]:,}" if one.counts[outcome] else "never",
                *("✔ allowed" if outcome in one.test.models[model] else "✘ forbidden" for model in TITLES),
            )
            for one in self.several
            for outcome in one.test.weak
        ]

    def _heads(self) -> tuple[str, ...]:
        return ("test", "outcome", "seen here", *TITLES.values())

    def __repr__(self) -> str:
        rows = [self._heads(), *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def _repr_html_(self) -> str:
        def cell(word: str, tag: str = "td") -> str:
            colour = f";color:{GREEN}" if word.startswith("✔") else f";color:{VERMILLION}" if word[0] == "✘" else ""
            return f'<{tag} style="text-align:left;white-space:nowrap{colour}">{escape(word)}</{tag}>'

        heads = "".join(cell(word, "th") for word in self._heads())
        body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in self._rows())
        return f"<div style='overflow-x:auto'><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def table(several: Iterable[Seen]) -> Table:
    """What was seen on this machine against what each model allows, for every outcome that is out of the ordinary."""
    return Table(tuple(several))
