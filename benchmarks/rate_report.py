"""What `training_rate.py` found: rows, the bounds that hold, a table and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.lines import Line2D
from measuring import BOUND, Check, bounds_section, legend_entry, markdown_table

from lowprec_eb.report.figures import COLOURS, new_figure, save_picture

# Name of a ratio -> contender, and the one it is divided by.
RATIOS = {
    "loop / bare": ("fp32", "bare"),
    "loop, whole epoch / bare": ("fp32", "bare"),
    "bfp8 / fp32": ("bfp8", "fp32"),
}
_WHOLE = "loop, whole epoch / bare"
_STYLES = {"loop / bare": ("o", COLOURS[0]), _WHOLE: ("s", COLOURS[2]), "bfp8 / fp32": ("D", COLOURS[1])}


@dataclass
class Row:
    """One model: seconds of each contender's epochs (their steps, and their ends), and ratios of rates.

    ratios: of the steps alone, and of whole epochs, by name: the quartiles over rounds.
    """

    model: str
    what: str
    batch: int
    images: int
    channels_last: bool
    compiled: bool
    steps_s: dict[str, list[float]] = field(default_factory=dict)
    end_s: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    end_ms: dict[str, float] = field(default_factory=dict)
    ratios: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def summarised(self) -> Row:
        """With rates (images a second, medians), the milliseconds of an epoch's end, and ratios."""
        self.rates = {name: self.images / statistics.median(took) for name, took in self.steps_s.items()}
        self.end_ms = {name: 1e3 * statistics.median(took) for name, took in self.end_s.items()}
        for name, (one, other) in RATIOS.items():
            end = self.end_s[one] if name == _WHOLE else [0.0] * len(self.end_s[one])
            rounds = zip(self.steps_s[one], end, self.steps_s[other], strict=True)
            self.ratios[name] = quartiles([of_other / (steps + after) for steps, after, of_other in rounds])
        return self


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles of at least one value."""
    low, middle, high = statistics.quantiles(values, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return low, middle, high


def bounds(device: str) -> dict[str, float]:
    """The least share of the other's rate."""
    return {"loop / bare": 0.9 if device == "cpu" else 0.8, "bfp8 / fp32": 0.7}


def checks(rows: Sequence[Row], device: str) -> list[Check]:
    return [
        Check(f"{name}, {row.what}", f"at least {bound:g}", f"{row.ratios[name][1]:.3f}", row.ratios[name][1] >= bound)
        for row in rows
        for name, bound in bounds(device).items()
    ]


def report(rows: Sequence[Row], found: Sequence[Check]) -> str:
    """Markdown: a table, and the bounds."""
    heads = [
        "model",
        "batch",
        "images an epoch",
        "bare [images/s]",
        "loop",
        "loop, bfp8",
        *RATIOS,
        "end of an epoch [ms]",
    ]
    lines = [
        [
            *(row.what, str(row.batch), f"{row.images:,}"),
            *(f"{row.rates[name]:.4g}" for name in ("bare", "fp32", "bfp8")),
            *(f"{middle:.2f} ({low:.2f} to {high:.2f})" for low, middle, high in row.ratios.values()),
            f"{row.end_ms['fp32']:.0f}",
        ]
        for row in rows
    ]
    note = "Ratios of rates: the median over rounds, in brackets the middle half."
    return "\n\n".join([markdown_table(heads, lines), note, *(bounds_section(found) if found else [])])


def draw(rows: Sequence[Row], marks: Mapping[str, float], path: Path) -> None:
    """A line for each model with its ratios; ``marks`` are the bounds by ratio."""
    figure = new_figure(7.5, 1.9 + 0.65 * len(rows))
    axes = figure.subplots()
    for line, row in enumerate(rows):
        for place, (name, (low, middle, high)) in enumerate(row.ratios.items()):
            marker, colour = _STYLES[name]
            at = line + 0.22 * (place - 1)
            axes.plot((low, high), (at, at), color=colour, linewidth=1.4, alpha=0.5, zorder=2)
            axes.plot(middle, at, marker, color=colour, markersize=6.5, markeredgecolor="white", zorder=3)
            if name in marks:
                axes.plot(marks[name], at, "|", color="black", markersize=11, markeredgewidth=1.6, zorder=2)
    axes.axvline(1, color="#555555", linewidth=0.8, zorder=1)
    axes.set_yticks(range(len(rows)), [f"{row.what}\nbatch {row.batch}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("rate as a share of the other's")
    axes.grid(True, axis="x", alpha=0.25)
    handles = [legend_entry(name, *style) for name, style in _STYLES.items()]
    handles += [Line2D([], [], color="#777777", alpha=0.6, linewidth=1.4, label="middle half of the rounds")]
    figure.legend(handles=[*handles, *([BOUND] if marks else [])], loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Training rate: the loop against a bare one, and bfp8 against fp32")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(figure, path)
