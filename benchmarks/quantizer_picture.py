"""The picture of `quantizers.py`: times as multiples of a copy's, bounds as lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from measuring import BOUND, STYLES, axis_of_multiples, legend_entry, mark_bound
from quantizer_contenders import Case

from lowprec_eb.report.figures import new_figure, save_picture

_LABELS = {"fast": "fast back end", "fake_quantize": "torch.fake_quantize", "qtorch": "qtorch's kernels"}


def draw(rows: Sequence[dict[str, Any]], cases: Sequence[Case], path: Path) -> None:
    """A panel for each size: one thread, a line for each format and rounding."""
    single = [row for row in rows if row["threads"] == 1 and row["contender"] in STYLES]
    sizes = sorted({row["elements"] for row in single})
    lines = [(case, rounding) for case in cases for rounding in ("nearest", "stochastic")]
    figure = new_figure(4.2 * len(sizes) + 2.2, 1.9 + 0.34 * len(lines))
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axes, elements in zip(panels, sizes, strict=True):
        _panel(axes, [row for row in single if row["elements"] == elements], lines, elements)
    panels[0].set_yticks(range(len(lines)), [f"{case.name}, {rounding}" for case, rounding in lines])
    panels[0].invert_yaxis()
    shown = [name for name in STYLES if any(row["contender"] == name for row in single)]
    handles = [legend_entry(_LABELS.get(name, name), *STYLES[name]) for name in shown]
    figure.legend(handles=[*handles, BOUND], loc="outside lower center", ncols=len(handles) + 1, frameon=False)
    figure.suptitle("Time to round a float32 tensor on one thread, as a multiple of a copy's")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(figure, path)


def _panel(axes: Axes, rows: Sequence[dict[str, Any]], lines: Sequence[tuple[Case, str]], elements: int) -> None:
    for at, (case, rounding) in enumerate(lines):
        mark_bound(axes, case.bound(elements, rounding), at)
        for row in rows:
            if (row["case"], row["rounding"]) == (case.name, rounding):
                marker, colour = STYLES[row["contender"]]
                style: dict[str, Any] = {
                    "markersize": 6.5,
                    "markeredgecolor": "white",
                    "zorder": 4 if row["contender"] == "fast" else 3,
                }
                axes.plot(row["times_copy"], at, marker, color=colour, **style)
    axis_of_multiples(axes)
    axes.set_xlabel("time of copy_ = 1")
    axes.set_title(f"{elements:,} elements", fontsize=11)
