"""The pictures of a comparison, as PNG files. The colours are Okabe and Ito's, which colour-blind people tell apart."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from lowprec_eb.report.curves import Curve, epoch_curve, mask_distances, mean_curve
from lowprec_eb.report.label_placement import Canvas, leaders, place_labels
from lowprec_eb.report.roles import assign_roles
from lowprec_eb.report.summary import ArmSummary, Comparison, MaskHistory, summarise
from lowprec_eb.report.units import Scale

DPI = 150
_ACCURACY_BELOW = 8  # points shown below the usual accuracy
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_PHASE_GROUPS: dict[str, tuple[str, ...]] = {
    "search": ("search",),
    "train": ("train",),
    "prune + detect": ("prune", "detect"),
    "retrain": ("retrain",),
    "average": ("average",),
    "eval": ("eval",),
}
_PHASE_COLOURS = ("#E69F00", "#0072B2", "#000000", "#009E73", "#56B4E9", "#CC79A7")


def write_pictures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the pictures whose data is there and return their paths; ``missing_pictures`` says which are not and why.

    A file of an earlier report is removed where its picture is missing now.
    """
    absent = missing_pictures(comparison)
    written = []
    for name, draw in PICTURES.items():
        path = folder / name
        if name in absent:
            path.unlink(missing_ok=True)
            continue
        save_picture(draw(comparison), path)
        written.append(path)
    return written


def missing_pictures(comparison: Comparison) -> dict[str, str]:
    """File name -> what is missing, for each picture that cannot be drawn."""
    absent = {}
    selected = _selected_arms(comparison)
    if not selected:
        absent["epochs.png"] = "there is neither a full, a network slimming nor an early-bird arm in fp32 or bfp8"
    elif all(_no_accuracy(comparison, arm) for arm in selected):
        absent["epochs.png"] = "no ledger row has the metric validation_accuracy"
    if not comparison.mask_histories:
        absent["mask_distance.png"] = "no dense run with recorded masks is part of the comparison"
    return absent


# ---- energy and accuracy -----------------------------------------------------------------------------------------


def energy_accuracy(comparison: Comparison) -> Figure:
    """Accuracy over modelled energy: marker by pipeline, colour by precision, a label at each point."""
    arms = summarise(comparison)
    scale = Scale.of(arm.energy.nominal_j for arm in arms)
    colours = dict(zip(dict.fromkeys(arm.precision_label for arm in arms), cycle(COLOURS), strict=False))
    markers = dict(zip(dict.fromkeys(arm.pipeline for arm in arms), cycle(_MARKERS), strict=False))
    figure = new_figure(11, 7)
    axes = figure.add_subplot()
    crosses = np.array([_cross(arm, scale) for arm in arms])
    for arm, (x, y, low, high, std) in zip(arms, crosses, strict=True):
        colour = colours[arm.precision_label]
        axes.hlines(y, low, high, color=colour, linewidth=0.7, alpha=0.45)
        if arm.test_accuracy.std is not None:
            axes.errorbar(x, y, yerr=std, ecolor=colour, elinewidth=1.1, capsize=2.5, fmt="none")
        axes.plot(x, y, markers[arm.pipeline], color=colour, markersize=8, markeredgecolor="white", zorder=3)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"modelled energy [{scale.prefix}J] (marker: nominal, thin bar: low to high)")
    axes.set_ylabel("test accuracy [%] (bar: std over seeds)")
    axes.set_title(f"{comparison.name}: accuracy and energy, mean over seeds{_diverged_text(comparison)}")
    axes.grid(True, which="major", alpha=0.25)
    _legend(figure, colours, markers)
    _label_points(figure, axes, crosses, [arm.arm for arm in arms])
    return figure


def _diverged_text(comparison: Comparison) -> str:
    """Lines of a title for what is not, or not with all seeds, in the picture."""
    seeds: dict[str, list[int]] = {}
    for outcome in comparison.diverged:
        seeds.setdefault(outcome.arm, []).append(outcome.seed)
    named = [f"{arm} (seed {', '.join(map(str, of))})" for arm, of in seeds.items()]
    lines = textwrap.wrap(f"diverged, and not shown: {'; '.join(named)}", 100) if named else []
    return "".join(f"\n{line}" for line in lines)


def _cross(arm: ArmSummary, scale: Scale) -> tuple[float, float, float, float, float]:
    """(energy, accuracy in %, low, high, std in %) of a point and its bars."""
    energy, accuracy = arm.energy.total_j * (1 / scale.factor), arm.test_accuracy
    return energy.nominal, 100 * accuracy.mean, energy.low, energy.high, 100 * (accuracy.std or 0.0)


def _legend(figure: Figure, colours: dict[str, str], markers: dict[str, str]) -> None:
    def entry(label: str, marker: str = "", colour: str = "#555555") -> Line2D:
        return Line2D([], [], marker=marker, color=colour, linestyle="", markersize=8, label=label)

    pipelines = [entry(pipeline.replace("_", " "), marker) for pipeline, marker in markers.items()]
    precisions = [entry(precision, "o", colour) for precision, colour in colours.items()]
    handles = [entry("Pipeline"), *pipelines, entry(""), entry("Precision"), *precisions]
    figure.legend(handles=handles, loc="outside right upper", frameon=False)


def _label_points(figure: Figure, axes: Axes, crosses: NDArray[np.float64], labels: list[str]) -> None:
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # settles the layout, so that places on the canvas are known
    figure.set_layout_engine("none")
    texts = [axes.text(0, 0, label, fontsize=8.5, transform=None, zorder=4) for label in labels]
    extents = [text.get_window_extent() for text in texts]
    x, y, low, high, std = crosses.T
    to_canvas, unit = axes.transData.transform, figure.dpi / 72
    points = to_canvas(np.stack([x, y], axis=1))
    ranges = np.hstack([to_canvas(np.stack([low, y], axis=1)), to_canvas(np.stack([high, y], axis=1))])
    spreads = np.hstack([to_canvas(np.stack([x, y - std], axis=1)), to_canvas(np.stack([x, y + std], axis=1))])
    grown = np.array([-unit, -unit, unit, unit])
    canvas = Canvas(
        points=points,
        markers=np.hstack([points, points]) + 5 * grown,
        bars=np.vstack([ranges, spreads]) + 0.5 * grown,
        frame=np.array(axes.get_window_extent().extents),
        unit=unit,
    )
    boxes = place_labels(canvas, np.array([(extent.width, extent.height) for extent in extents]) + 2 * unit)
    for text, box, (x0, y0, x1, y1) in zip(texts, boxes, leaders(points, boxes), strict=True):
        text.set(x=(box[0] + box[2]) / 2, y=(box[1] + box[3]) / 2, ha="center", va="center")
        if np.hypot(x1 - x0, y1 - y0) > 12 * unit:
            axes.add_artist(Line2D([x0, x1], [y0, y1], color="#777777", linewidth=0.6, transform=None, zorder=2))


# ---- energy by phase ---------------------------------------------------------------------------------------------


def energy_phases(comparison: Comparison) -> Figure:
    """One horizontal bar an arm: nominal energy stacked by phase, the total beside it."""
    arms = summarise(comparison)
    scale = Scale.of(arm.energy.nominal_j for arm in arms)
    figure = new_figure(10, 1.6 + 0.36 * len(arms))
    axes = figure.add_subplot()
    names = [arm.arm for arm in arms]
    left, largest = [0.0] * len(arms), max(arm.energy.nominal_j for arm in arms) / scale.factor
    for (group, phases), colour in zip(_PHASE_GROUPS.items(), _PHASE_COLOURS, strict=True):
        widths = [_energy_of(arm, phases) / scale.factor for arm in arms]
        if not any(widths):
            continue
        label = group if max(widths) > 0.003 * largest else f"{group} (too small to see)"
        axes.barh(names, widths, left=left, color=colour, label=label, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, arm in enumerate(arms):
        axes.annotate(
            scale.text(arm.energy.nominal_j), (left[row], row), xytext=(4, 0), textcoords="offset points", va="center"
        )
    axes.invert_yaxis()
    axes.margins(x=0.09, y=0.02)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"modelled energy, nominal [{scale.prefix}J]")
    axes.set_title(f"{comparison.name}: energy by phase, mean over seeds{_diverged_text(comparison)}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(_PHASE_GROUPS), frameon=False)
    return figure


def _energy_of(arm: ArmSummary, phases: tuple[str, ...]) -> float:
    return sum(arm.energy_by_phase[phase].nominal_j for phase in phases if phase in arm.energy_by_phase)


# ---- epochs ------------------------------------------------------------------------------------------------------


def epochs(comparison: Comparison) -> Figure:
    """Energy so far and validation accuracy over trained epochs: means as thick lines, seeds as thin ones."""
    curves = {arm.arm: _curves(comparison, arm) for arm in _selected_arms(comparison)}
    means = {arm: mean_curve(group) for arm, group in curves.items()}
    scale = Scale.of(mean.energy_j[-1] for mean in means.values())
    figure = new_figure(11, 5)
    energy_axes, accuracy_axes = figure.subplots(1, 2)
    # Arms begin alike, so the longer a curve the wider and the further behind: none hides another.
    order = sorted(curves, key=lambda arm: -len(means[arm].energy_j))
    width = dict(zip(order, np.linspace(5.5, 1.5, len(order)), strict=True))
    for (arm, group), colour in zip(curves.items(), COLOURS, strict=False):
        style = {"color": colour, "zorder": 5 - width[arm] / 4}
        for curve in group:
            _plot_energy(energy_axes, curve, scale, color=colour, linewidth=0.6, alpha=0.4)
            _plot_accuracy(accuracy_axes, curve, color=colour, linewidth=0.6, alpha=0.3)
        _plot_energy(energy_axes, means[arm], scale, linewidth=width[arm], label=arm, **style)
        _plot_accuracy(accuracy_axes, means[arm], linewidth=2, **style)
    energy_axes.set_ylabel(f"modelled energy so far, nominal [{scale.prefix}J]")
    energy_axes.set_ylim(bottom=0)
    _cut_low_accuracies(accuracy_axes, means.values())
    for axes in (energy_axes, accuracy_axes):
        axes.set_xlabel("epochs trained, over all stages")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(True, alpha=0.25)
        axes.set_xlim(left=0)
    title = f"{comparison.name}: mean over seeds as far as all went (thick), each seed (thin)"
    figure.suptitle(title + _diverged_text(comparison), fontsize=11)
    handles, labels = energy_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(curves), frameon=False)
    return figure


def _plot_energy(axes: Axes, curve: Curve, scale: Scale, **style: Any) -> None:
    axes.plot(np.arange(len(curve.energy_j)), curve.energy_j / scale.factor, **style)


def _plot_accuracy(axes: Axes, curve: Curve, **style: Any) -> None:
    known = np.flatnonzero(~np.isnan(curve.accuracy))
    axes.plot(known, 100 * curve.accuracy[known], **style)


def _cut_low_accuracies(axes: Axes, means: Iterable[Curve]) -> None:
    """Begin the axis a little below what the arms have half of the time: the first epochs would flatten the rest."""
    usual = min(float(np.nanmedian(mean.accuracy)) for mean in means if not np.isnan(mean.accuracy).all())
    bottom, top = axes.get_ylim()
    cut = max(bottom, math.floor(100 * usual - _ACCURACY_BELOW))
    axes.set_ylim(cut, min(top, 100.5))
    axes.set_ylabel("validation accuracy [%]" + (f", axis begins at {cut} %" if cut > bottom else ""))


def _selected_arms(comparison: Comparison) -> list[ArmSummary]:
    roles = assign_roles(summarise(comparison))
    arms = (roles.full, roles.full_8bit, roles.slimming, roles.ff, roles.ll)
    return [arm for arm in arms if arm is not None]


def _curves(comparison: Comparison, arm: ArmSummary) -> list[Curve]:
    return [epoch_curve(comparison, outcome) for outcome in comparison.outcomes if outcome.arm == arm.arm]


def _no_accuracy(comparison: Comparison, arm: ArmSummary) -> bool:
    return all(bool(np.isnan(curve.accuracy).all()) for curve in _curves(comparison, arm))


# ---- mask distance -----------------------------------------------------------------------------------------------


def mask_distance(comparison: Comparison) -> Figure:
    """Distance between the masks of every two epochs, a panel for each recorded run of the first seed."""
    seed = comparison.mask_histories[0].seed
    histories = [history for history in comparison.mask_histories if history.seed == seed]
    distances = [mask_distances(history.masks) for history in histories]
    largest = max(float(matrix.max()) for matrix in distances) or 1.0
    figure = new_figure(1.7 + 4.8 * len(histories), 5.6)
    figure.set_layout_engine("compressed")  # square panels leave gaps otherwise
    panels = figure.subplots(1, len(histories), squeeze=False)[0]
    for axes, history, matrix in zip(panels, histories, distances, strict=True):
        image = draw_distances(axes, matrix, largest)
        _mark_ticket(axes, history)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epochs trained")
        axes.set_ylabel("epochs trained")
    figure.colorbar(image, ax=list(panels), shrink=0.8, label="mask distance (share of channels that differ)")
    figure.suptitle(f"{comparison.name}: masks of the dense run with gamma penalty, seed {seed}")
    return figure


def draw_distances(axes: Axes, matrix: NDArray[np.float64], largest: float, every: float = 1.0) -> AxesImage:
    """A matrix of mask distances, its rows ``every`` so many epochs apart, the first after as many."""
    first, last = every / 2, every * (len(matrix) + 0.5)
    return axes.imshow(
        matrix,
        cmap="viridis",
        vmin=0,
        vmax=largest,
        origin="lower",
        extent=(first, last, first, last),
        interpolation="none",
    )


def mark_time(axes: Axes, epoch: float) -> None:
    """Dashed lines across a matrix of mask distances."""
    outline = [withStroke(linewidth=3.5, foreground="black")]
    for line in (axes.axhline, axes.axvline):
        line(epoch, color="white", linewidth=1.5, linestyle=(0, (4, 3)), path_effects=outline)


def _mark_ticket(axes: Axes, history: MaskHistory) -> None:
    epoch = history.ticket_epoch
    title = history.label if epoch is None else f"{history.label} (dashed: ticket drawn after {epoch} epochs)"
    axes.set_title(title, fontsize=11)
    if epoch is not None and epoch <= len(history.masks):
        mark_time(axes, epoch)


# ---- files -------------------------------------------------------------------------------------------------------

PICTURES: dict[str, Callable[[Comparison], Figure]] = {
    "energy_accuracy.png": energy_accuracy,
    "energy_phases.png": energy_phases,
    "epochs.png": epochs,
    "mask_distance.png": mask_distance,
}


def new_figure(width_inch: float, height_inch: float) -> Figure:
    return Figure(figsize=(width_inch, height_inch), dpi=DPI, layout="constrained")


def save_picture(figure: Figure, path: Path) -> None:
    """Write the whole file or nothing."""
    png = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(png, format="png", dpi=DPI)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(png.getvalue())
    unfinished.replace(path)
