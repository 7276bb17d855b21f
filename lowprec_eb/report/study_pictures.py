"""Detectors over recorded runs, drawn: how masks settle, when each detector fires, and what its threshold decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lowprec_eb.report.curves import mask_distances
from lowprec_eb.report.figures import COLOURS, new_figure
from lowprec_eb.report.pictures import draw_distances, mark_time
from lowprec_eb.tickets import ScoreHistory
from lowprec_eb.tickets.verdicts import Closeness, Variant, Verdict, epoch_masks, to_final, verdict

_MARKERS = ("o", "s", "^", "D", "v", "P")
_GREY, _LIGHT = "#666666", "#b5b5b5"
_LineStyle = Literal["-", "--", ":"]
_SEED_STYLES: tuple[_LineStyle, ...] = ("-", "--", ":")
_PRECISION_STYLES: tuple[_LineStyle, ...] = ("-", "--")
Histories = Mapping[tuple[str, int], ScoreHistory]  # by precision and seed
Drops = Sequence[int]  # epochs after which the learning rate fell


def _epoch_ticks() -> MaxNLocator:
    return MaxNLocator(6, integer=True, steps=[1, 2, 5, 10])


def mask_matrices(histories: Histories, ratios: Sequence[float], title: str, variant: Variant) -> Figure:
    """The distance between the masks of every two epochs (You et al. 2020, figure 3), in units of two random masks of
    the ratio, for the first seed: a row for each precision, a column for each ratio, ``variant``'s ticket marked."""
    seed = next(iter(histories))[1]
    rows = {precision: history for (precision, of), history in histories.items() if of == seed}
    figure = new_figure(1.4 + 2.75 * len(ratios), 0.9 + 2.75 * len(rows))
    figure.set_layout_engine("compressed")  # square panels leave gaps otherwise
    panels = figure.subplots(len(rows), len(ratios), squeeze=False, sharex=True, sharey=True)
    for line, (precision, history) in zip(panels, rows.items(), strict=True):
        for axes, ratio in zip(line, ratios, strict=True):
            matrix = mask_distances(epoch_masks(history, ratio).numpy()) / (2 * ratio * (1 - ratio))
            image = draw_distances(axes, matrix, 1.0)
            fired = verdict(history, variant, ratio).fired
            if fired is not None:
                mark_time(axes, fired)
            axes.set_title(f"{precision}, p = {ratio:g}: {_after(fired)}", fontsize=9.5)
            axes.xaxis.set_major_locator(_epoch_ticks())
            axes.yaxis.set_major_locator(_epoch_ticks())
        line[0].set_ylabel("epochs trained")
    for axes in panels[-1]:
        axes.set_xlabel("epochs trained")
    figure.colorbar(
        image, ax=list(panels.flat), shrink=0.8, label="mask distance (1: two random masks of the ratio)", extend="max"
    )
    figure.suptitle(f"{title}, seed {seed}: masks of every two epochs; dashed: ticket of {variant.name!r}", fontsize=12)
    return figure


def _after(fired: float | None) -> str:
    return "no ticket" if fired is None else f"after {fired:.3g} epochs"


# ---- settling ----------------------------------------------------------------------------------------------------


def settling_curves(histories: Histories, ratios: Sequence[float], title: str, drops: Drops) -> Figure:
    """How far the mask after each epoch is from the last one: by layer, in units of random masks of the same widths
    (above), and the share of kept channels that are in other layers (below). A panel for each ratio; a line for each
    run, its colour the precision."""
    figure = new_figure(1.2 + 2.8 * len(ratios), 5.6)
    panels = figure.subplots(2, len(ratios), squeeze=False, sharex=True, sharey="row")
    colours = _colours(histories)
    for column, ratio in enumerate(ratios):
        for (precision, seed), history in histories.items():
            curve = to_final(history, ratio)
            style = (colours[precision], _style(histories, precision, seed))
            _draw_settling(panels[0][column], [of.by_layer for of in curve], *style)
            _draw_settling(panels[1][column], [100 * (1 - of.widths) for of in curve], *style)
        panels[0][column].axhline(1, color=_GREY, linewidth=1)
        panels[0][column].set_title(f"p = {ratio:g}", fontsize=11)
        panels[1][column].set_xlabel("epochs trained")
        for axes in panels[:, column]:
            _mark_drops(axes, drops)
    for line in panels:  # at last: an axis with a limit does not grow with its curves
        line[0].set_ylim(bottom=0)
    panels[0][0].set_ylabel("distance to the last mask\n(1: random, same widths)")
    panels[1][0].set_ylabel("kept channels that are\nin another layer [%]")
    handles = [Line2D([], [], color=colour, label=precision) for precision, colour in colours.items()]
    handles += _seed_handles(histories) + [_drop_handle()] * bool(drops)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{title}: from the mask after each epoch to the last one")
    return figure


def _draw_settling(axes: Axes, values: Sequence[float], colour: str, line: _LineStyle) -> None:
    axes.plot(np.arange(1, len(values) + 1), values, color=colour, linestyle=line, linewidth=1.4)
    axes.set_xlim(left=0)
    axes.grid(True, alpha=0.25)
    axes.xaxis.set_major_locator(_epoch_ticks())


def _colours(histories: Histories) -> dict[str, str]:
    return dict(zip(dict.fromkeys(precision for precision, _ in histories), COLOURS, strict=False))


def _style(histories: Histories, precision: str, seed: int) -> _LineStyle:
    seeds = [of for name, of in histories if name == precision]
    return _SEED_STYLES[seeds.index(seed) % len(_SEED_STYLES)]


def _seed_handles(histories: Histories) -> list[Line2D]:
    precision = next(iter(histories))[0]
    seeds = [of for name, of in histories if name == precision]
    styles = {seed: _style(histories, precision, seed) for seed in seeds}
    found = [Line2D([], [], color=_GREY, linestyle=style, label=f"seed {seed}") for seed, style in styles.items()]
    return found if len(found) > 1 else []


def _mark_drops(axes: Axes, drops: Drops) -> None:
    for epoch in drops:
        axes.axvline(epoch, color=_LIGHT, linewidth=1.6, zorder=1)


def _drop_handle() -> Line2D:
    return Line2D([], [], color=_LIGHT, linewidth=1.6, label="learning rate falls")


# ---- firing ------------------------------------------------------------------------------------------------------


def firing_times(
    groups: Mapping[str, Mapping[str, Sequence[Verdict]]], epochs: int, title: str, drops: Drops
) -> Figure:
    """When each detector fires; a hollow marker says that its mask is still far from the last one.

    Args:
        groups: title of a row of panels -> precision -> the verdicts of all seeds.
        epochs: of the whole run.
        drops: epochs after which the learning rate fell.
    """
    precisions = list(next(iter(groups.values())))
    figure = new_figure(2.6 + 4.6 * len(precisions), 1.5 + 3.9 * len(groups))
    panels = figure.subplots(len(groups), len(precisions), squeeze=False, sharex=True, sharey="row")
    ratios = list(dict.fromkeys(of.ratio for by in groups.values() for found in by.values() for of in found))
    for line, (group, by_precision) in zip(panels, groups.items(), strict=True):
        for axes, precision in zip(line, precisions, strict=True):
            _draw_firing(axes, by_precision[precision], ratios, epochs)
            _mark_drops(axes, drops)
            axes.set_title(f"{precision}, {group}", fontsize=10.5)
    for axes in panels[-1]:
        axes.set_xlabel("epochs trained until the ticket")
    handles = [
        Line2D([], [], marker=marker, color=colour, linestyle="", label=f"p = {ratio:g}")
        for ratio, marker, colour in zip(ratios, _MARKERS, COLOURS, strict=False)
    ]
    hollow = Line2D([], [], marker="o", color=_GREY, fillstyle="none", linestyle="", label=_HOLLOW)
    handles += [hollow, *[_drop_handle()] * bool(drops)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{title}: when detectors fire")
    return figure


_FAR = 0.5
_HOLLOW = f"farther than {_FAR:g} from the last mask (1: random)"


def _draw_firing(axes: Axes, found: Sequence[Verdict], ratios: Sequence[float], epochs: int) -> None:
    names = list(dict.fromkeys(of.variant.name for of in found))
    never, any_never = 1.06 * epochs, any(of.fired is None for of in found)
    for of in found:
        place = ratios.index(of.ratio)
        y = names.index(of.variant.name) + 0.66 * (place / max(1, len(ratios) - 1) - 0.5)
        far = of.final is not None and of.final.by_layer > _FAR
        axes.plot(
            never if of.fired is None else of.fired,
            y,
            _MARKERS[place % len(_MARKERS)],
            color=COLOURS[place % len(COLOURS)],
            markersize=4.5,
            fillstyle="none" if far else "full",
        )
    for line in range(1, len(names)):
        axes.axhline(line - 0.5, color=_GREY, linewidth=0.4, alpha=0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    ticks = [tick for tick in _epoch_ticks().tick_values(0, epochs) if 0 <= tick <= epochs]
    axes.set_xticks(ticks + [never] * any_never, [f"{tick:g}" for tick in ticks] + ["\nnever"] * any_never)
    axes.set_xlim(0, (1.11 if any_never else 1.02) * epochs)
    axes.grid(True, axis="x", alpha=0.25)


# ---- thresholds --------------------------------------------------------------------------------------------------


def threshold_curves(
    histories: Histories, variants: Sequence[Variant], thresholds: Sequence[float], ratios: Sequence[float], title: str
) -> Figure:
    """What a threshold decides, a column for each variant: epochs until the ticket (above), and how far its mask is
    from the last one (below). Means over seeds where all fired; colour and marker by ratio, dashed for the second
    precision. A threshold that masks of a ratio cannot exceed is not drawn; the title says so."""
    figure = new_figure(1.2 + 3.6 * len(variants), 6.2)
    panels = figure.subplots(2, len(variants), squeeze=False, sharex=True, sharey="row")
    precisions = list(_colours(histories))
    for column, variant in enumerate(variants):
        for place, ratio in enumerate(ratios):
            for precision, line in zip(precisions, _PRECISION_STYLES, strict=False):
                of = [history for (name, _), history in histories.items() if name == precision]
                points = [_mean_verdict(of, replace(variant, threshold=t), ratio) for t in thresholds]
                style = {"color": COLOURS[place], "marker": _MARKERS[place], "linestyle": line}
                for axes, values in zip(panels[:, column], zip(*points, strict=True), strict=True):
                    axes.plot(thresholds, values, markersize=4, linewidth=1.2, **style)
        panels[0][column].set_title(variant.name + _no_limit(variant, thresholds, ratios), fontsize=10)
        unit = "share of the channels" if variant.normalised is None else "1: two random masks"
        panels[1][column].set_xlabel(f"threshold ({unit})")
    for axes in panels.flat:
        axes.grid(True, alpha=0.25)
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
    panels[0][0].set_ylabel("epochs until the ticket")
    panels[1][0].set_ylabel("distance to the last mask\n(1: random, same widths)")
    handles = [
        Line2D([], [], color=colour, marker=marker, label=f"p = {ratio:g}")
        for ratio, marker, colour in zip(ratios, _MARKERS, COLOURS, strict=False)
    ]
    handles += [
        Line2D([], [], color=_GREY, linestyle=line, label=p)
        for p, line in zip(precisions, _PRECISION_STYLES, strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{title}: what the threshold decides")
    return figure


def _farthest(ratio: float) -> float:
    """The share of the channels in which two masks of ``ratio`` can differ."""
    return 2 * min(ratio, 1 - ratio)


def _no_limit(variant: Variant, thresholds: Sequence[float], ratios: Sequence[float]) -> str:
    if variant.normalised is not None:
        return ""
    short = [ratio for ratio in ratios if _farthest(ratio) <= max(thresholds)]
    return "".join(f"\nlines of p = {ratio:g} end: its masks differ by {_farthest(ratio):g} at most" for ratio in short)


def _mean_verdict(histories: Sequence[ScoreHistory], variant: Variant, ratio: float) -> tuple[float, float]:
    nothing = float("nan"), float("nan")
    if variant.normalised is None and variant.threshold >= _farthest(ratio):
        return nothing
    found = [verdict(history, variant, ratio) for history in histories]
    drawn: list[tuple[float, Closeness]] = [(of.fired, of.final) for of in found if of.fired is not None and of.final]
    if len(drawn) < len(found):
        return nothing
    return float(np.mean([time for time, _ in drawn])), float(np.mean([final.by_layer for _, final in drawn]))
