"""A picture of what rounding does: signal-to-noise ratio and rates over a model's layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from lowprec_eb.report.figures import COLOURS, new_figure, save_picture
from lowprec_eb.trace import OPERANDS, QuantizationTrace, TracedOperand, place_of, places_with_several_products

_OPERAND_COLOURS = {
    "activation": COLOURS[0],
    "second activation": COLOURS[5],
    "weight": COLOURS[1],
    "second weight": COLOURS[4],
    "error": COLOURS[2],
    "accumulator": COLOURS[3],
    "output": COLOURS[6],
    "normalization": "#777777",
}
_GEMM_MARKERS: dict[str | None, str] = {None: "o", "output": "s", "grad_input": "<", "grad_weight": ">"}
_LABEL_LENGTH = 44  # characters of a layer's name
_SMALLEST_PERCENT = 0.01  # the axis of rates is linear below
_TALL_INCH = 13.0  # of the rows, unless that makes them too narrow for their labels
_LONG = 25  # rows; longer panels have their axis on top too
_Series = tuple[str, str | None]  # operand and GEMM


def write_trace_picture(trace: QuantizationTrace, path: str | Path) -> Path:
    """Draw ``trace`` into the PNG file ``path``.

    Raises:
        ValueError: another kind of file.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"{path}: pictures are PNG files; give a name that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(trace_picture(trace), path)
    return path


def trace_picture(trace: QuantizationTrace) -> Figure:
    """A row a layer, the model's first on top; a colour an operand, a marker a GEMM; the worse, the further left."""
    several = places_with_several_products(trace.operands)
    places = {place: row for row, place in enumerate(dict.fromkeys(place_of(i, several) for i in trace.operands))}
    series = _series(trace.operands)
    spread = 0.62 / max(len(series) - 1, 1)  # of the series within a row
    marks = {
        one: [(places[place_of(i, several)] + (n - (len(series) - 1) / 2) * spread, i) for i in items]
        for n, (one, items) in enumerate(series.items())
    }
    row_height = max(0.2, min(0.42, 0.055 * len(series), _TALL_INCH / len(places)))
    figure = new_figure(11, 1.9 + row_height * len(places))
    panels = figure.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1])
    _noise(panels[0], marks)
    _rate(
        panels[1],
        marks,
        lambda item: item.saturation_rate + item.overflow_rate,
        "saturated or overflowed\n[% of elements]",
    )
    _rate(panels[2], marks, lambda item: item.underflow_rate, "underflow to zero\n[% of non-zero elements]")
    for axes in panels:
        _rows(axes, list(places))
    figure.suptitle("What rounding does, by layer and operand: the further left, the worse")
    figure.legend(handles=_legend(list(series)), loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _series(operands: Sequence[TracedOperand]) -> dict[_Series, list[TracedOperand]]:
    gemms = list(_GEMM_MARKERS)
    found: dict[_Series, list[TracedOperand]] = {}
    for item in sorted(operands, key=lambda i: (OPERANDS.index(i.operand), gemms.index(i.gemm))):
        found.setdefault((item.operand, item.gemm), []).append(item)
    return found


_Marks = dict[_Series, list[tuple[float, TracedOperand]]]


def _noise(axes: Axes, marks: _Marks) -> None:
    """Finite ratios on the axis; beyond its ends stand what overflowed and what rounding left as it was."""
    items = [item for marked in marks.values() for _, item in marked]
    known = [item.snr_db for item in items if math.isfinite(item.snr_db)]
    low, high = min([0.0, *known]), max([10.0, *known])
    margin = 0.12 * (high - low)
    ends = {"over-\nflow": low - margin, "exact": high + margin, "all\nzero": high + 2 * margin}

    def place(item: TracedOperand) -> float:
        return ends[_beyond(item)] if _beyond(item) else item.snr_db

    _draw(axes, marks, place)
    shown = {end: ends[end] for end in ends if end in map(_beyond, items)}
    ticks = [tick for tick in MaxNLocator(7).tick_values(low, high) if low <= tick <= high]
    axes.set_xticks([*ticks, *shown.values()], [*(f"{tick:g}" for tick in ticks), *shown])
    axes.set_xlim(min([low, *shown.values()]) - 0.3 * margin, max([high, *shown.values()]) + 0.3 * margin)
    axes.axvline(0, color="#999999", linewidth=0.9, zorder=0)
    axes.set_xlabel("signal to quantization noise [dB]\n(0: as much noise as signal)")


def _beyond(item: TracedOperand) -> str:
    """Where an operand stands whose ratio is no finite number; nowhere else: empty."""
    if item.largest == 0:
        return "all\nzero"
    return "" if math.isfinite(item.snr_db) else "exact" if item.snr_db > 0 else "over-\nflow"


def _rate(axes: Axes, marks: _Marks, rate: Callable[[TracedOperand], float], label: str) -> None:
    """Shares in percent, logarithmic; the largest on the left, where the worst stands in every panel."""
    _draw(axes, marks, lambda item: 100 * rate(item))
    axes.set_xscale("symlog", linthresh=_SMALLEST_PERCENT, linscale=0.6)
    axes.set_xlim(170, -0.004)
    axes.xaxis.set_major_locator(FixedLocator([0, 0.01, 0.1, 1, 10, 100]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(label)


def _draw(axes: Axes, marks: _Marks, value: Callable[[TracedOperand], float]) -> None:
    for (operand, gemm), items in marks.items():
        rows, values = [row for row, _ in items], [value(item) for _, item in items]
        colour, marker = _OPERAND_COLOURS[operand], _GEMM_MARKERS[gemm]
        style: dict[str, Any] = {"markersize": 4.5, "markeredgewidth": 0, "clip_on": False}
        axes.plot(values, rows, marker, color=colour, label=_label(operand, gemm), **style)


def _rows(axes: Axes, places: Sequence[str]) -> None:
    for row in range(1, len(places), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f0f0f0", linewidth=0, zorder=-1)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_yticks(range(len(places)), [_shortened(place) for place in places], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, labeltop=len(places) > _LONG, top=len(places) > _LONG)
    axes.grid(True, axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _shortened(name: str) -> str:
    """The end of a long name tells layers apart, and so may its beginning."""
    if len(name) <= _LABEL_LENGTH:
        return name
    return f"{name[: _LABEL_LENGTH // 3]}...{name[-(_LABEL_LENGTH - _LABEL_LENGTH // 3 - 3) :]}"


def _legend(series: Sequence[_Series]) -> list[Line2D]:
    handles = []
    for operand, gemm in series:
        label = _label(operand, gemm)
        marker, colour = _GEMM_MARKERS[gemm], _OPERAND_COLOURS[operand]
        handle = Line2D([], [], marker=marker, color=colour, linestyle="", label=label, markersize=6, markeredgewidth=0)
        handles.append(handle)
    return handles


def _label(operand: str, gemm: str | None) -> str:
    return operand + (f" for {gemm}" if gemm else "")
