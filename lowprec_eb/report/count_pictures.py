"""A picture of operation counts: where the work goes, by layer and GEMM, and beside the GEMMs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from energy_models.counts import OpCounts
from energy_models.units import share_text, si_text
from energy_models.views import operations_by_kind
from lowprec_eb.report.count_tables import LayerWork, Order, largest, layer_work
from lowprec_eb.report.figures import COLOURS, new_figure, save_picture
from lowprec_eb.report.units import Scale

MOST_LAYERS = 160
_GEMM_COLOURS = {"output": COLOURS[0], "grad_input": COLOURS[1], "grad_weight": COLOURS[2], "optimizer": COLOURS[3]}
_OTHERS_COLOUR = "#777777"
_LABEL_LENGTH = 44  # characters of a layer's name
_MOST_BARS = 10  # of a panel beside
_LONG = 25  # layers; a longer panel has its axis on top too
_SIDE_INCH = 6.0  # of the panels beside


def write_count_picture(counts: OpCounts, path: str | Path, title: str = "", order: Order = "model") -> Path:
    """Draw ``counts`` into the PNG file ``path``.

    Raises:
        ValueError: another kind of file; nothing to draw.
    """
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"{path}: pictures are PNG files; give a name that ends in .png")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(count_picture(counts, title, order), path)
    return path


def count_picture(counts: OpCounts, title: str = "", order: Order = "model") -> Figure:
    """MACs of each layer, stacked by GEMM; beside it operations by kind, and traffic by GEMM and part.

    More than 160 layers are summed by the modules around them, as deep as there is room.

    Raises:
        ValueError: no layer has a GEMM.
    """
    work = layer_work(counts, order)
    if not work:
        raise ValueError("nothing to draw: no layer has a GEMM")
    bars = _bars(work)
    if order == "largest":
        bars.sort(key=lambda bar: -bar.total)
    row = 0.3 if len(bars) <= _LONG else 0.2 if len(bars) <= 60 else 0.15
    height = max(1.6 + row * len(bars), _SIDE_INCH)
    figure = new_figure(13, height)
    side = _SIDE_INCH / 2
    ratios = [side, side, max(height - _SIDE_INCH, 0.01)]
    grid = figure.add_gridspec(3, 2, width_ratios=[1.9, 1], height_ratios=ratios)
    of = "layer" if len(bars) == len(work) else f"module ({len(work)} layers)"
    _layers(figure.add_subplot(grid[:, 0]), bars, of, 6.5 if row < 0.2 else 8)
    _side(figure.add_subplot(grid[0, 1]), operations_by_kind(counts), "operations outside the GEMMs", "")
    _side(figure.add_subplot(grid[1, 1]), counts.traffic_bytes, "traffic, each operation by itself", "B")
    if title:
        figure.suptitle(title)
    return figure


def _bars(work: Sequence[LayerWork]) -> list[LayerWork]:
    """One for each layer, or for each module at the greatest depth that has at most `MOST_LAYERS`."""
    bars = list(work)
    for depth in range(max(item.layer.count(".") for item in work), 0, -1):
        if len(bars) > MOST_LAYERS:
            bars = _summed(work, {item.layer: ".".join(item.layer.split(".")[:depth]) for item in work})
    if len(bars) <= MOST_LAYERS:
        return bars
    kept = {item.layer for item in largest(bars, MOST_LAYERS)}
    rest = f"{len(bars) - MOST_LAYERS} smaller"
    last = sorted(bars, key=lambda item: item.layer not in kept)
    return _summed(last, {item.layer: item.layer if item.layer in kept else rest for item in bars})


def _summed(work: Sequence[LayerWork], place: Mapping[str, str]) -> list[LayerWork]:
    """The sums of what has the same place."""
    sums: dict[str, dict[str, int]] = {}
    for item in work:
        macs = sums.setdefault(place[item.layer], {})
        for gemm, n in item.macs.items():
            macs[gemm] = macs.get(gemm, 0) + n
    return [LayerWork(name, macs, (), ()) for name, macs in sums.items()]


def _layers(axes: Axes, bars: Sequence[LayerWork], of: str, size: float) -> None:
    scale = Scale.of([max(item.total for item in bars)])
    rows, left = range(len(bars)), [0.0] * len(bars)
    whole = sum(item.total for item in bars)
    for gemm in dict.fromkeys(name for item in bars for name in item.macs):
        widths = [item.macs.get(gemm, 0) / scale.factor for item in bars]
        if any(widths):
            total = sum(item.macs.get(gemm, 0) for item in bars)
            label = f"{gemm}: {si_text(total)} ({share_text(total, whole)})"
            axes.barh(rows, widths, left=left, color=_GEMM_COLOURS[gemm], label=label, height=0.75)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, item in enumerate(bars):
        text = f"{si_text(item.total)}  {share_text(item.total, whole)}"
        axes.annotate(text, (left[place], place), (3, 0), textcoords="offset points", va="center", fontsize=size - 0.5)
    axes.set_yticks(rows, [_shortened(item.layer or "(model)") for item in bars], fontsize=size)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    _finish(axes, max(left), f"MACs [{scale.prefix}] by {of}: {si_text(whole)} in all".replace(" []", ""), len(bars))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8, borderaxespad=1.8)


def _side(axes: Axes, values: Mapping[str, float], label: str, unit: str) -> None:
    """Plain bars, the largest first."""
    found = sorted(((value, name) for name, value in values.items() if value), reverse=True)
    whole = sum(value for value, _ in found)
    if len(found) > _MOST_BARS:
        rest = found[_MOST_BARS - 1 :]
        found = [*found[: _MOST_BARS - 1], (sum(value for value, _ in rest), f"{len(rest)} smaller")]
    scale = Scale.of([max((value for value, _ in found), default=0)])
    rows, widths = range(len(found)), [value / scale.factor for value, _ in found]
    colours = [_GEMM_COLOURS.get(name, _OTHERS_COLOUR) for _, name in found]
    axes.barh(rows, widths, color=colours, height=0.7)
    for place, (value, _) in enumerate(found):
        text = f"{si_text(value, unit)}  {share_text(value, whole)}"
        axes.annotate(text, (widths[place], place), (3, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.set_yticks(rows, [name.replace("_", " ") if unit == "" else name for _, name in found], fontsize=8)
    axes.set_ylim(max(len(found), 4) - 0.4, -0.6)
    units = f"[{scale.prefix}{unit}]"
    total = si_text(whole, unit)
    _finish(axes, max(widths, default=1), f"{label} {units}: {total} in all".replace(" []", ""), len(found))


def _finish(axes: Axes, longest: float, label: str, rows: int) -> None:
    axes.set_xlim(0, (longest or 1) * 1.35)  # room for the numbers behind the bars
    axes.set_xlabel(label, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8, labeltop=rows > _LONG, top=rows > _LONG)
    axes.grid(True, axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _shortened(name: str) -> str:
    """The end of a long name tells layers apart."""
    return name if len(name) <= _LABEL_LENGTH else f"...{name[3 - _LABEL_LENGTH :]}"
