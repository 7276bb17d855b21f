"""What detectors saw over one recorded run, drawn: distances, thresholds, and when they fired."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowprec_eb.report.curves import mask_distances
from lowprec_eb.report.figures import COLOURS, new_figure
from lowprec_eb.report.pictures import draw_distances, mark_time
from lowprec_eb.tickets import Replay

_COLUMNS = 3
_DISTANCE, _THRESHOLD, _TICKET = COLOURS[0], "#888888", COLOURS[1]


def detector_curves(replays: Mapping[str, Replay], title: str) -> Figure:
    """A panel for each named replay: the distance that decides at each look, the threshold, and the ticket.

    Raises:
        ValueError: there is nothing to draw.
    """
    if not replays:
        raise ValueError("no replays to draw")
    rows = math.ceil(len(replays) / _COLUMNS)
    columns = min(len(replays), _COLUMNS)
    figure = new_figure(1 + 3.6 * columns, 1 + 2.7 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flatten()
    for axes, (name, replay) in zip(panels, replays.items(), strict=False):
        _draw_curve(axes, replay)
        axes.set_title(f"{name}: {_verdict(replay)}", fontsize=10)
    for axes in panels[len(replays) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(replays) - columns) : len(replays)]:
        axes.set_xlabel("epochs trained")
        axes.tick_params(labelbottom=True)
    handles, labels = next(h for h in (a.get_legend_handles_labels() for a in panels) if h[0])
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(title)
    return figure


def _draw_curve(axes: Axes, replay: Replay) -> None:
    known = [(look.step / replay.steps_per_epoch, look.largest) for look in replay.looks if look.largest is not None]
    times, distances = [time for time, _ in known], [distance for _, distance in known]
    axes.plot(times, distances, ".-", color=_DISTANCE, markersize=4, linewidth=1.2, label="distance that decides")
    axes.axhline(replay.threshold, color=_THRESHOLD, linestyle="--", linewidth=1, label="threshold")
    ticket = replay.fired
    # Without a ticket the marker is still in the legend.
    drawn = [] if ticket is None else [(ticket.step / replay.steps_per_epoch, ticket.largest or 0.0)]
    axes.plot(
        [x for x, _ in drawn],
        [y for _, y in drawn],
        "o",
        color=_TICKET,
        markersize=8,
        fillstyle="none",
        markeredgewidth=2,
        label="ticket",
    )
    axes.set_ylabel(_unit(replay))
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, alpha=0.25)


def _unit(replay: Replay) -> str:
    if replay.rule == "epi":
        return "1 - EPI"
    return "mask distance" if replay.normalised is None else "mask distance / random"


def _verdict(replay: Replay) -> str:
    if (look := replay.fired) is None:
        return "no ticket"
    return f"ticket after {look.step / replay.steps_per_epoch:.3g} epochs"


def replayed_masks(replay: Replay, title: str) -> Figure:
    """The distance between the masks of every two looks (You et al. 2020, figure 3), the ticket marked.

    Raises:
        ValueError: there was no look.
    """
    if not replay.looks:
        raise ValueError("no looks to draw")
    matrix = mask_distances(replay.masks.numpy().astype(np.bool_))
    figure = new_figure(6.5, 5.6)
    axes = figure.add_subplot()
    every = replay.looks[0].step / replay.steps_per_epoch
    image = draw_distances(axes, matrix, float(matrix.max()) or 1.0, every)
    if (look := replay.fired) is not None:
        mark_time(axes, look.step / replay.steps_per_epoch)
    axes.set_xlabel("epochs trained")
    axes.set_ylabel("epochs trained")
    axes.set_title(f"{title}: {_verdict(replay)}", fontsize=11)
    figure.colorbar(image, ax=axes, shrink=0.8, label="mask distance (share of channels that differ)")
    return figure
