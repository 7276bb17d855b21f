"""A picture of modelled energy: where it goes, by layer, by part of a step, and compute against memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from energy_models.counts import OpCounts
from energy_models.energy import ModelledEnergy
from energy_models.estimate import estimate
from energy_models.layer_energy import energy_by_layer, energy_by_part
from energy_models.profiles import HardwareProfile
from energy_models.units import share_text
from lowprec_eb.report.figures import new_figure, save_picture
from lowprec_eb.report.profile_pictures import COMPONENT_COLOURS, component_kinds, component_legend
from lowprec_eb.report.units import Scale

MOST_LAYERS = 40
_SIDE_INCH = 3.2  # of the panel beside


def write_energy_picture(counts: OpCounts, profile: HardwareProfile, path: Path, title: str = "") -> Path:
    """Draw the modelled energy of ``counts`` into the PNG file ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(energy_picture(counts, profile, title), path)
    return path


def energy_picture(counts: OpCounts, profile: HardwareProfile, title: str = "") -> Figure:
    """Nominal energy of each layer, stacked by component; beside it by part of a step.

    More than 40 layers are summed by the modules around them. Shares are of the whole step, static power included.

    Raises:
        ValueError: there is no work to price.
    """
    layers = _by_module(energy_by_layer(_of_model(counts), profile))
    if not layers:
        raise ValueError("nothing to draw: these counts are empty")
    parts, whole = energy_by_part(counts, profile), estimate(counts, profile)
    height = max(2.0 + 0.24 * len(layers), _SIDE_INCH + 1)
    figure = new_figure(13, height)
    grid = figure.add_gridspec(2, 2, width_ratios=[1.7, 1], height_ratios=[_SIDE_INCH, height - _SIDE_INCH])
    _bars(figure.add_subplot(grid[:, 0]), layers, whole, "by layer, without the optimizer")
    _bars(figure.add_subplot(grid[0, 1]), {**parts, "whole step": whole}, whole, "by part")
    ends = Scale.of([whole.total_j.nominal])
    text = f"profile {profile.name}: {ends.text(whole.nominal_j)} {ends.prefix}J"
    text += f" ({ends.text(whole.low_j)} to {ends.text(whole.high_j)})"
    figure.suptitle(f"{title}\n{text}" if title else text, fontsize=11)
    figure.legend(handles=component_legend([whole]), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def _of_model(counts: OpCounts) -> OpCounts:
    """All but the optimizer's step, whose layers are parameters."""
    return replace(
        counts,
        gemms=tuple(gemm for gemm in counts.gemms if gemm.part != "optimizer"),
        element_ops=tuple(op for op in counts.element_ops if op.part != "optimizer"),
    )


def _by_module(layers: Mapping[str, ModelledEnergy]) -> dict[str, ModelledEnergy]:
    """The layers, or the modules at the greatest depth that has at most `MOST_LAYERS`."""
    depth = max((name.count(".") + 1 for name in layers), default=0)
    while True:
        grouped: dict[str, list[ModelledEnergy]] = {}
        for name, energy in layers.items():
            grouped.setdefault(".".join(name.split(".")[:depth]) or "(model)", []).append(energy)
        if len(grouped) <= MOST_LAYERS or depth == 1:
            return {name: ModelledEnergy.total(energies) for name, energies in grouped.items()}
        depth -= 1


def _bars(axes: Axes, energies: Mapping[str, ModelledEnergy], whole: ModelledEnergy, label: str) -> None:
    scale = Scale.of([max(energy.nominal_j for energy in energies.values())])
    size = 8 if len(energies) <= 30 else 7
    for row, energy in enumerate(energies.values()):
        left = 0.0
        for name, kind in component_kinds(energy).items():
            width = energy.components_j[name].nominal / scale.factor
            axes.barh(row, width, left=left, height=0.75, color=COMPONENT_COLOURS[kind])
            left += width
        text = f"{scale.text(energy.nominal_j)}  {share_text(energy.nominal_j, whole.nominal_j)}"
        axes.annotate(text, (left, row), (3, 0), textcoords="offset points", va="center", fontsize=size - 0.5)
    axes.set_yticks(range(len(energies)), list(energies), fontsize=size)
    axes.set_ylim(max(len(energies), 6) - 0.4, -0.6)
    axes.set_xlim(0, max(energy.nominal_j for energy in energies.values()) / scale.factor * 1.35)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"nominal energy [{scale.prefix}J] {label}", fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
