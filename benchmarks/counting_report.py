"""What `counting.py` found: rows, the bounds that hold, tables and the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from counting_contenders import OURS
from counting_share import Share
from counting_speed import BOUND_GIB, MODELS, Timing
from matplotlib.axes import Axes
from measuring import Check, legend_entry
from rich.table import Table

from lowprec_eb.report.figures import COLOURS, new_figure, save_picture

EPOCH_BOUND = 0.01
_MARKERS = ("o", "s", "D", "^", "v", "P", "X")
_LEAST, _MOST = 1e-2, 1e6  # per cent, first and last tick of the logarithmic axis
_EXACT_AT, _FAILS_AT = 3e-4, 2e8  # places beside it


@dataclass(frozen=True)
class Row:
    """What a counter says of a case. macs: None where it fails, then `failure` says how."""

    case: str
    what: str
    true_macs: int
    counter: str
    macs: int | None
    failure: str = ""

    @property
    def error_percent(self) -> float | None:
        return None if self.macs is None else 100 * (self.macs - self.true_macs) / self.true_macs


# ---- bounds ------------------------------------------------------------------------------------------------------


def checks(rows: Sequence[Row], timings: Sequence[Timing], share: Share | None) -> list[Check]:
    found = []
    for row in rows:
        if row.counter == OURS:
            exact = row.macs == row.true_macs
            found.append(Check(f"{row.what} of {row.case}", f"{row.true_macs:,} MACs", _said(row), exact))
    for timing in timings:
        if timing.counter == OURS:
            bound, slowest = MODELS[timing.model].bound_s, max(timing.first_s, timing.median_s)
            found.append(Check(f"time for {timing.model}", f"below {bound:g} s", f"{slowest:.2f} s", slowest < bound))
            if timing.peak_mib is not None:
                small = timing.peak_mib < BOUND_GIB * 1024
                what = f"memory for {timing.model}"
                found.append(Check(what, f"below {BOUND_GIB:g} GiB", f"{timing.peak_mib:.0f} MiB", small))
    if share is not None:
        bound_text = f"below {EPOCH_BOUND:.0%} of the training time"
        each = f"{share.one_count_s * 1e3:.0f} ms a count, {share.epoch_s * 1e3:.0f} ms an epoch"
        measured = f"{share.of_training:.2%} over {share.epochs} epochs ({each})"
        found.append(Check("all counts of a stage, digits VGG", bound_text, measured, share.of_training < EPOCH_BOUND))
    return found


def _said(row: Row) -> str:
    return f"{row.macs:,}" if row.macs is not None else row.failure


# ---- tables ------------------------------------------------------------------------------------------------------


def error_table(rows: Sequence[Row]) -> Table:
    """A line for each case, a column for each counter."""
    counters = list(dict.fromkeys(row.counter for row in rows))
    table = Table("pass", "case", "MACs by hand", *counters, title="Error of the MACs counted")
    for what, case in dict.fromkeys((row.what, row.case) for row in rows):
        own = {row.counter: row for row in rows if (row.what, row.case) == (what, case)}
        true = next(iter(own.values())).true_macs
        table.add_row(what, case, f"{true:,}", *(_error(own[counter]) for counter in counters))
    return table


def _error(row: Row) -> str:
    error = row.error_percent
    if error is None:
        return "[red]fails[/red]"
    if error == 0:
        return "[green]exact[/green]"
    text = f"{error:+.2f} %" if abs(error) < 10 else f"{error:+.0f} %" if error < 1e4 else f"x {1 + error / 100:,.0f}"
    return f"[red]{text}[/red]" if abs(error) > 5 else text


def time_table(timings: Sequence[Timing]) -> Table:
    table = Table("model", "counter", "counts", "first call", "median", "memory", title="Time and memory of a count")
    for timing in timings:
        memory = "" if timing.peak_mib is None else f"{timing.peak_mib:.0f} MiB"
        times = (f"{timing.first_s:.2f} s", f"{timing.median_s:.2f} s")
        table.add_row(timing.model, timing.counter, timing.passes, *times, memory)
    return table


# ---- picture -----------------------------------------------------------------------------------------------------


def draw(rows: Sequence[Row], path: Path) -> None:
    """Size of the error on a logarithmic axis, a line for each case; hollow: counted too little."""
    counters = list(dict.fromkeys(row.counter for row in rows))
    cases = list(dict.fromkeys((row.what, row.case) for row in rows))
    figure = new_figure(9.5, 1.8 + 0.56 * len(cases))
    axes = figure.subplots()
    for row in rows:
        number = counters.index(row.counter)
        offset = 0.84 * ((number + 0.5) / len(counters) - 0.5)
        _mark(axes, row, cases.index((row.what, row.case)) + offset, _MARKERS[number], COLOURS[number])
    _axes(axes, cases)
    handles = [legend_entry(*style) for style in zip(counters, _MARKERS, COLOURS, strict=False)]
    handles.append(legend_entry("hollow: too few", "o", "white", markeredgecolor="#777777"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle("Error of the multiply-accumulates counted, against hand counts")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(figure, path)


def _mark(axes: Axes, row: Row, line: float, marker: str, colour: str) -> None:
    error = row.error_percent
    size = _FAILS_AT if error is None else _EXACT_AT if error == 0 else max(abs(error), _LEAST)
    few = error is not None and error < 0
    filling = "white" if few else colour
    axes.plot(size, line, marker, color=filling, markeredgecolor=colour, markersize=5, zorder=3, clip_on=False)


def _axes(axes: Axes, cases: Sequence[tuple[str, str]]) -> None:
    axes.set_xscale("log")
    axes.set_xlim(_EXACT_AT / 2, _FAILS_AT * 2)
    decades = [10.0**power for power in range(round(math.log10(_LEAST)), round(math.log10(_MOST)) + 1, 2)]
    labels = [f"{decade:,.9g} %" for decade in decades]
    axes.set_xticks([_EXACT_AT, *decades, _FAILS_AT], ["exact", *labels, "fails"])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("size of the error")
    axes.set_yticks(range(len(cases)), [f"{case}, {what}" for what, case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    for line in range(len(cases) - 1):
        axes.axhline(line + 0.5, color="#cccccc", linewidth=0.6, zorder=1)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x", alpha=0.25)
