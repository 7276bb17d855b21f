"""What a change of hardware profile does: to the ranking of pipelines, and to where their energy goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from energy_models import HardwareProfile, ModelledEnergy, OpCounts, Range, estimate
from energy_models.energy import NOT_MEMORY
from lowprec_eb.report.figures import COLOURS, new_figure, save_picture
from lowprec_eb.report.summary import Comparison, summarise
from lowprec_eb.report.units import Scale

Priced = Mapping[str, Mapping[str, ModelledEnergy]]
"""Profile -> pipeline -> energy; every profile has the same pipelines."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_LINES = ("-", "--", ":", "-.")
# A profile names its levels as it likes, so they are told by their depth.
_LEVELS = ("dram", "first on chip", "second on chip", "third on chip")
COMPONENT_COLOURS = {
    "compute": COLOURS[0],
    "other": COLOURS[5],
    "dram": COLOURS[1],
    "first on chip": COLOURS[4],
    "second on chip": COLOURS[3],
    "third on chip": COLOURS[2],
    "static": "#BBBBBB",
}
_DARK = (COLOURS[0], COLOURS[1])
_SHOWN = 0.04  # of a bar; a narrower part has no number


def price(counts: Mapping[str, OpCounts], profiles: Iterable[HardwareProfile]) -> dict[str, dict[str, ModelledEnergy]]:
    """The energy of each of the named counts under each profile."""
    return {profile.name: {name: estimate(of, profile) for name, of in counts.items()} for profile in profiles}


def priced_arms(comparisons: Mapping[str, Comparison]) -> dict[str, dict[str, ModelledEnergy]]:
    """The mean energy of each arm, of one comparison priced under several profiles: profile -> comparison."""
    return {
        profile: {arm.arm: arm.energy for arm in summarise(comparison)} for profile, comparison in comparisons.items()
    }


def write_profile_pictures(priced: Priced, folder: Path, baseline: str | None = None) -> list[Path]:
    """Write `profile_ranking.png` and `profile_split.png`; errors as :func:`profile_ranking`."""
    figures = {"profile_ranking.png": profile_ranking(priced, baseline), "profile_split.png": profile_split(priced)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        save_picture(figure, folder / name)
    return [folder / name for name in figures]


# ---- ranking -----------------------------------------------------------------------------------------------------


def profile_ranking(priced: Priced, baseline: str | None = None) -> Figure:
    """Energy of each pipeline over the baseline's, a column a profile; numbers are ranks, bars joint ranges.

    baseline: a pipeline; None: the first.

    Raises:
        ValueError: there is no profile or pipeline, profiles have different pipelines, or none is the baseline.
    """
    pipelines = _pipelines(priced)
    baseline = pipelines[0] if baseline is None else baseline
    if baseline not in pipelines:
        raise ValueError(f"no pipeline {baseline!r} to compare with; there are {', '.join(pipelines)}")
    ratios = {
        profile: {name: energy.ratio_to(energies[baseline]) for name, energy in energies.items()}
        for profile, energies in priced.items()
    }
    column = 0.19 * max(len(pipelines), 8)  # inch: room for a rank of two figures beside each marker
    figure = new_figure(2.6 + column / 0.6 * len(priced), 1.8 + 0.42 * max(len(pipelines), 8))
    axes = figure.add_subplot()
    offsets = np.linspace(-0.3, 0.3, len(pipelines)) if len(pipelines) > 1 else np.zeros(1)
    for number, (name, offset) in enumerate(zip(pipelines, offsets, strict=True)):
        _series(axes, number, name, offset, [ratios[profile][name] for profile in priced])
    places = dict(zip(pipelines, offsets, strict=True))
    for column, of in enumerate(ratios.values()):
        _ranks(axes, column, {name: ratio.nominal for name, ratio in of.items()}, places)
    _finish_ranking(axes, list(priced), baseline)
    figure.legend(loc="outside right upper", frameon=False, title="pipeline")
    return figure


def _series(axes: Axes, number: int, name: str, offset: float, ratios: list[Range]) -> None:
    colour, places = COLOURS[number % len(COLOURS)], np.arange(len(ratios)) + offset
    nominal = [ratio.nominal for ratio in ratios]
    axes.plot(places, nominal, color=colour, linewidth=0.8, alpha=0.5, linestyle=_LINES[number % len(_LINES)])
    axes.vlines(places, [r.low for r in ratios], [r.high for r in ratios], color=colour, linewidth=2, alpha=0.6)
    marker = _MARKERS[number % len(_MARKERS)]
    axes.plot(places, nominal, marker, color=colour, markeredgecolor="white", markersize=8, label=name, zorder=3)


def _ranks(axes: Axes, column: int, nominal: Mapping[str, float], offsets: Mapping[str, float]) -> None:
    for name in nominal:
        rank = 1 + sum(other < nominal[name] for other in nominal.values())  # equals share one
        axes.annotate(
            str(rank),
            (column + offsets[name], nominal[name]),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )


def _finish_ranking(axes: Axes, profiles: list[str], baseline: str) -> None:
    axes.axhline(1, color="#555555", linewidth=0.8)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(range(len(profiles)), profiles)
    for border in range(1, len(profiles)):
        axes.axvline(border - 0.5, color="#dddddd", linewidth=0.8, zorder=0)
    axes.set_xlim(-0.5, len(profiles) - 0.5)
    axes.set_xlabel("hardware profile")
    axes.set_ylabel(f"modelled energy over that of {baseline}\n(marker: nominal, bar: joint range)")
    axes.set_title("Ranking of pipelines by profile (number: rank, 1 takes least)")
    axes.grid(True, axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


# ---- where the energy goes ---------------------------------------------------------------------------------------


def profile_split(priced: Priced) -> Figure:
    """Shares of the nominal energy by component, a bar for each profile and pipeline, the total with its ends beside.

    Raises:
        ValueError: as :func:`profile_ranking`.
    """
    pipelines = _pipelines(priced)
    figure = new_figure(11, 1.9 + (0.27 * len(pipelines) + 0.25) * len(priced))
    axes = figure.add_subplot()
    rows: list[int] = []
    for block, (profile, energies) in enumerate(priced.items()):
        first = block * (len(pipelines) + 1)
        scale = Scale.of(energy.nominal_j for energy in energies.values())
        for row, energy in enumerate(energies.values(), start=first):
            _bar(axes, row, energy, scale)
            rows.append(row)
        axes.annotate(
            profile,
            (0, first - 0.75),
            (-4, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontweight="bold",
            annotation_clip=False,
        )
    axes.set_yticks(rows, list(pipelines) * len(priced), fontsize=8)
    _finish_split(axes, max(rows))
    legend = component_legend(energy for energies in priced.values() for energy in energies.values())
    figure.legend(handles=legend, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _bar(axes: Axes, row: int, energy: ModelledEnergy, scale: Scale) -> None:
    left, whole = 0.0, energy.nominal_j
    for name, kind in component_kinds(energy).items():
        width = energy.components_j[name].nominal / whole
        axes.barh(row, width, left=left, height=0.8, edgecolor="white", linewidth=0.4, color=COMPONENT_COLOURS[kind])
        if width > _SHOWN:
            colour = "white" if COMPONENT_COLOURS[kind] in _DARK else "black"
            axes.text(left + width / 2, row, f"{100 * width:.0f}", ha="center", va="center", fontsize=7, color=colour)
        left += width
    total = energy.total_j
    text = f"{scale.text(total.nominal)} {scale.prefix}J  ({scale.text(total.low)} to {scale.text(total.high)})"
    axes.annotate(text, (1, row), (4, 0), textcoords="offset points", va="center", fontsize=8)


def _finish_split(axes: Axes, last: int) -> None:
    axes.set_ylim(last + 0.7, -1.2)
    axes.set_xlim(0, 1.28)  # room for the numbers behind the bars
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of the nominal energy; behind the bars the total, nominal (low to high)")
    axes.set_title("Where the energy goes, by hardware profile")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def component_kinds(energy: ModelledEnergy) -> dict[str, str]:
    """Component -> what it is, in the order of `COMPONENT_COLOURS`."""
    levels = [name for name in energy.components_j if name not in NOT_MEMORY]
    of_level = dict(zip(levels, _LEVELS, strict=False)) | dict.fromkeys(levels[len(_LEVELS) :], _LEVELS[-1])
    found = {name: of_level.get(name, name) for name in energy.components_j}
    order = list(COMPONENT_COLOURS)
    return dict(sorted(found.items(), key=lambda item: order.index(item[1])))


def component_legend(energies: Iterable[ModelledEnergy]) -> list[Patch]:
    """Entries of a legend, each with the names that the profiles have for it."""
    names: dict[str, dict[str, None]] = {}
    for energy in energies:
        for name, kind in component_kinds(energy).items():
            names.setdefault(kind, {})[name] = None
    labels = {"compute": "MACs", "other": "other arithmetic", "static": "static"}
    return [
        Patch(label=labels.get(kind) or ", ".join(names[kind]), color=colour)
        for kind, colour in COMPONENT_COLOURS.items()
        if kind in names
    ]


def _pipelines(priced: Priced) -> list[str]:
    """Of every profile."""
    if not priced or not all(priced.values()):
        raise ValueError("a picture of profiles needs at least one profile and one pipeline")
    first, *others = priced.items()
    for profile, energies in others:
        if set(energies) != set(first[1]):
            raise ValueError(f"profile {profile!r} has other pipelines than {first[0]!r}; price the same ones")
    return list(first[1])
