"""The pictures of a comparison, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lowprec_eb.report.curves import Curve, epoch_curve, mask_distances, mean_curve
from lowprec_eb.report.energy_accuracy import energy_accuracy
from lowprec_eb.report.figures import COLOURS, diverged_text, new_figure, save_picture
from lowprec_eb.report.roles import assign_roles
from lowprec_eb.report.summary import ArmSummary, Comparison, MaskHistory, summarise
from lowprec_eb.report.units import Scale

_ACCURACY_BELOW = 8  # points shown below the usual accuracy
_PANELS_A_ROW = 3
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
    if all(_no_accuracy(comparison, arm) for arm in _selected_arms(comparison)):
        absent["epochs.png"] = "no ledger row has the metric validation_accuracy"
    if not comparison.mask_histories:
        absent["mask_distance.png"] = "no dense run with recorded masks is part of the comparison"
    return absent


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
    axes.set_title(f"{comparison.name}: energy by phase, mean over seeds{diverged_text(comparison)}")
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
    number = len({outcome.arm for outcome in comparison.outcomes})
    shown = f"{len(curves)} of {number} arms, " if len(curves) < number else ""
    title = f"{comparison.name}: {shown}mean over seeds as far as all went (thick), each seed (thin)"
    figure.suptitle(title + diverged_text(comparison), fontsize=11)
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
    """Those of the paper's main claim; the first few where there is none of them."""
    arms = summarise(comparison)
    roles = assign_roles(arms)
    of_paper = (roles.full, roles.full_8bit, roles.slimming, roles.ff, roles.ll)
    return [arm for arm in of_paper if arm is not None] or list(arms[: len(COLOURS)])


def _curves(comparison: Comparison, arm: ArmSummary) -> list[Curve]:
    return [epoch_curve(comparison, outcome) for outcome in comparison.outcomes if outcome.arm == arm.arm]


def _no_accuracy(comparison: Comparison, arm: ArmSummary) -> bool:
    return all(bool(np.isnan(curve.accuracy).all()) for curve in _curves(comparison, arm))


# ---- mask distance -----------------------------------------------------------------------------------------------


def mask_distance(comparison: Comparison) -> Figure:
    """Distance between the masks of every two epochs, a panel for each recorded run of the first seed, in rows."""
    seed = comparison.mask_histories[0].seed
    histories = [history for history in comparison.mask_histories if history.seed == seed]
    distances = [mask_distances(history.masks) for history in histories]
    largest = max(float(matrix.max()) for matrix in distances) or 1.0
    rows = math.ceil(len(histories) / _PANELS_A_ROW)
    columns = math.ceil(len(histories) / rows)
    figure = new_figure(1.7 + 4.8 * columns, 0.6 + 5.0 * rows)
    figure.set_layout_engine("compressed")  # square panels leave gaps otherwise
    grid = figure.add_gridspec(rows, columns)
    panels = [figure.add_subplot(grid[divmod(place, columns)]) for place in range(len(histories))]
    for axes, history, matrix in zip(panels, histories, distances, strict=True):
        image = draw_distances(axes, matrix, largest)
        _mark_ticket(axes, history)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epochs trained")
        axes.set_ylabel("epochs trained")
    figure.colorbar(image, ax=panels, shrink=0.8 / rows, label="mask distance (share of channels that differ)")
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
    title = history.label if epoch is None else f"{history.label}\n(dashed: ticket drawn after {epoch} epochs)"
    axes.set_title(title, fontsize=10)
    if epoch is not None and epoch <= len(history.masks):
        mark_time(axes, epoch)


# ---- files -------------------------------------------------------------------------------------------------------

PICTURES: dict[str, Callable[[Comparison], Figure]] = {
    "energy_accuracy.png": energy_accuracy,
    "energy_phases.png": energy_phases,
    "epochs.png": epochs,
    "mask_distance.png": mask_distance,
}
