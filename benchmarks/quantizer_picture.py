"""The picture of `quantizers.py`: times as multiples of a copy's, bounds as lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from quantizer_contenders import Case

from lowprec_eb.report.pictures import COLOURS, new_figure, save_picture

_STYLES = {
    "fast": ("o", COLOURS[0]),
    "plain torch": ("s", COLOURS[2]),
    "qtorch": ("D", COLOURS[1]),
    "fake_quantize": ("^", COLOURS[3]),
    "brevitas": ("v", COLOURS[5]),
    "torchao": ("P", COLOURS[4]),
    "gfloat": ("X", COLOURS[6]),
}
_LABELS = {"fast": "fast back end", "fake_quantize": "torch.fake_quantize", "qtorch": "qtorch's kernels"}


def draw(rows: Sequence[dict[str, Any]], cases: Sequence[Case], path: Path) -> None:
    """A panel for each size: one thread, a line for each format and rounding."""
    single = [row for row in rows if row["threads"] == 1 and row["contender"] in _STYLES]
    sizes = sorted({row["elements"] for row in single})
    lines = [(case, rounding) for case in cases for rounding in ("nearest", "stochastic")]
    figure = new_figure(4.2 * len(sizes) + 2.2, 1.9 + 0.34 * len(lines))
    panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
    for axes, elements in zip(panels, sizes, strict=True):
        _panel(axes, [row for row in single if row["elements"] == elements], lines, elements)
    panels[0].set_yticks(range(len(lines)), [f"{case.name}, {rounding}" for case, rounding in lines])
    panels[0].invert_yaxis()
    shown = [name for name in _STYLES if any(row["contender"] == name for row in single)]
    handles = [_handle(_LABELS.get(name, name), *_STYLES[name]) for name in shown]
    bound = Line2D([], [], color="black", marker="|", markersize=11, markeredgewidth=2, linestyle="", label="bound")
    figure.legend(handles=[*handles, bound], loc="outside lower center", ncols=len(handles) + 1, frameon=False)
    figure.suptitle("Time to round a float32 tensor on one thread, as a multiple of a copy's")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(figure, path)


def _panel(axes: Axes, rows: Sequence[dict[str, Any]], lines: Sequence[tuple[Case, str]], elements: int) -> None:
    for at, (case, rounding) in enumerate(lines):
        axes.plot(case.bound(elements, rounding), at, "|", color="black", markersize=13, markeredgewidth=2, zorder=2)
        for row in rows:
            if (row["case"], row["rounding"]) == (case.name, rounding):
                marker, colour = _STYLES[row["contender"]]
                style: dict[str, Any] = {
                    "markersize": 6.5,
                    "markeredgecolor": "white",
                    "zorder": 4 if row["contender"] == "fast" else 3,
                }
                axes.plot(row["times_copy"], at, marker, color=colour, **style)
    axes.axvline(1, color="#555555", linewidth=0.8, zorder=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, axis="both", alpha=0.25)
    axes.set_xlabel("time of copy_ = 1")
    axes.set_title(f"{elements:,} elements", fontsize=11)


def _handle(label: str, marker: str, colour: str) -> Line2D:
    return Line2D([], [], marker=marker, color=colour, linestyle="", markersize=7.5, label=label)
