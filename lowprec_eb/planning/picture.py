"""A picture of plans: the energy of each arm by component and by phase, with its range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

import energy_models as em
from energy_models.energy import ZERO
from energy_models.units import si_text
from lowprec_eb.planning.result import Plan
from lowprec_eb.report.figures import COLOURS, new_figure
from lowprec_eb.report.units import Scale, ratio_text

_VISIBLE = 0.003  # of the widest bar
_GREY = "#777777"
# Blue is arithmetic, orange memory from the outside inwards, grey what a chip draws anyway.
_COMPONENTS = {"compute": COLOURS[0], "other": COLOURS[5], "static": _GREY}
_MEMORY = (COLOURS[1], COLOURS[4], COLOURS[3], COLOURS[2])
_PHASES: Mapping[str, str] = {
    "search": COLOURS[4],
    "train": COLOURS[0],
    "prune": COLOURS[6],
    "retrain": COLOURS[2],
    "detect": _GREY,
    "eval": COLOURS[3],
}


def plan_picture(plans: Sequence[Plan]) -> Figure:
    """Four panels for each profile: nominal energy by component and by phase, its range, and the ratio to the first
    arm's energy with its joint range."""
    arms = len(plans[0].arms)
    figure = new_figure(15, 1.0 + len(plans) * (1.6 + 0.38 * arms))
    grid = figure.add_gridspec(len(plans), 4, width_ratios=(1.15, 1.15, 0.85, 0.85))
    for row, plan in enumerate(plans):
        panels = [figure.add_subplot(grid[row, 0])]
        panels += [figure.add_subplot(grid[row, column], sharey=panels[0]) for column in (1, 2, 3)]
        memory = dict(zip((level.name for level in plan.profile.memory), _MEMORY, strict=False))
        _stacked(panels[0], plan, [arm.components_j for arm in plan.arms], _COMPONENTS | memory, "by component")
        _stacked(panels[1], plan, [arm.phases_j for arm in plan.arms], _PHASES, "by phase")
        _energies(panels[2], plan)
        _ratios(panels[3], plan)
        for axes in panels:
            _finish(axes)
        panels[0].set_yticks(range(arms), [arm.name for arm in plan.arms])
        panels[0].set_ylim(arms - 0.5, -0.5)
        panels[0].set_title(f"profile {plan.profile.name}", loc="left", fontsize=10, fontweight="bold", pad=36)
    figure.suptitle(f"{plans[0].settings.name}: modelled energy")
    return figure


def _stacked(
    axes: Axes, plan: Plan, parts: Sequence[Mapping[str, em.Range]], colours: Mapping[str, str], label: str
) -> None:
    widest = max(arm.energy_j.nominal for arm in plan.arms)
    scale, rows, starts = Scale.of([widest]), range(len(parts)), [0.0] * len(parts)
    for name, colour in colours.items():
        widths = [of.get(name, ZERO).nominal for of in parts]
        if not any(widths):
            continue
        text = name if max(widths) > _VISIBLE * widest else f"{name} (too small to see)"
        axes.barh(rows, [width / scale.factor for width in widths], left=starts, color=colour, label=text, height=0.66)
        starts = [start + width / scale.factor for start, width in zip(starts, widths, strict=True)]
    for row, arm in enumerate(plan.arms):
        text = si_text(arm.energy_j.nominal, "J")
        axes.annotate(text, (starts[row], row), (3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, 1.22 * max(starts))  # room for the numbers behind the bars
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(f"nominal, {label} [{scale.prefix}J]")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=7.5)


def _energies(axes: Axes, plan: Plan) -> None:
    energies = [arm.energy_j for arm in plan.arms]
    scale = Scale.of(energy.nominal for energy in energies)
    _ranges(axes, [energy * (1 / scale.factor) for energy in energies])
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"low, nominal, high [{scale.prefix}J]")


def _ratios(axes: Axes, plan: Plan) -> None:
    ratios = [arm.ratio_to(plan.arms[0]) for arm in plan.arms]
    _ranges(axes, ratios)
    axes.axvline(1, color="#222222", linewidth=0.8, linestyle=(0, (4, 3)))
    for row, ratio in enumerate(ratios):
        place = (1, row), (4, 0), ("axes fraction", "data"), "offset points"
        axes.annotate(ratio_text(ratio), *place, va="center", fontsize=8)
    axes.set_xlim(0, 1.06 * max(ratio.high for ratio in ratios))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("over the first arm, jointly")


def _ranges(axes: Axes, ranges: Sequence[em.Range]) -> None:
    rows = range(len(ranges))
    axes.hlines(rows, [r.low for r in ranges], [r.high for r in ranges], color=COLOURS[0], linewidth=1.6)
    axes.plot([r.nominal for r in ranges], rows, "o", color=COLOURS[0], markersize=5)


def _finish(axes: Axes) -> None:
    axes.grid(True, axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, labelleft=axes.get_subplotspec().colspan.start == 0)  # type: ignore[union-attr]
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
