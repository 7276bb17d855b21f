"""Tickets drawn: widths of layers before and after, the channels that stay, and two tickets side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from energy_models.units import si_text
from lowprec_eb.report.figures import COLOURS, new_figure
from lowprec_eb.report.units import Scale
from lowprec_eb.tickets import Ticket
from lowprec_eb.tickets.widths import LayerWidths

MOST_LAYERS = 60  # in a picture of widths
_BEFORE, _AFTER = "#C8C8C8", COLOURS[0]
_KEPT, _DROPPED = COLOURS[0], "#E4E4E4"
_PARTS: Mapping[str, str] = {"both": COLOURS[0], "first": COLOURS[4], "second": COLOURS[3], "neither": _DROPPED}
_CELLS = 1200  # of a row of channels, at least


def widths_picture(layers: Sequence[LayerWidths], title: str) -> Figure:
    """Channels that each layer writes, and the forward MACs, before and after.

    Layers that multiply; of more than 60 those with the most MACs.

    Raises:
        ValueError: no layer multiplies.
    """
    found = [layer for layer in layers if layer.multiplies]
    if not found:
        raise ValueError("no layer that multiplies, so there are no widths to draw")
    largest = sorted(found, key=lambda layer: -(layer.macs or (0, 0))[0])[:MOST_LAYERS]
    shown = [layer for layer in found if layer in largest]
    figure = new_figure(11, 1.9 + 0.24 * len(shown))
    channels, macs = figure.subplots(1, 2, sharey=True)
    _bars(channels, [layer.written for layer in shown], str, 1.0)
    channels.set_xlabel("channels written")
    channels.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    scale = Scale.of([max((layer.macs or (0, 0))[0] for layer in shown)])
    _bars(macs, [layer.macs or (0, 0) for layer in shown], si_text, scale.factor)
    macs.set_xlabel(f"forward MACs on the example batch [{scale.prefix}]")
    channels.set_yticks(range(len(shown)), [layer.name or "(model)" for layer in shown], fontsize=8)
    channels.set_ylim(len(shown) - 0.4, -0.6)
    handles = [Patch(color=_BEFORE, label="before"), Patch(color=_AFTER, label="after")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    left_out = len(found) - len(shown)
    figure.suptitle(title + (f"\nthe {len(shown)} layers with the most MACs of {len(found)}" if left_out else ""))
    return figure


def _bars(
    axes: Axes, pairs: Sequence[tuple[int | None, int | None]], text: Callable[[int], str], factor: float
) -> None:
    rows, numbers = range(len(pairs)), [(before or 0, after or 0) for before, after in pairs]
    axes.barh(rows, [before / factor for before, _ in numbers], color=_BEFORE, height=0.8)
    axes.barh(rows, [after / factor for _, after in numbers], color=_AFTER, height=0.44)
    widest = max(before for before, _ in numbers) / factor
    for row, (before, after) in enumerate(numbers):
        label = text(before) if before == after else f"{text(before)} \N{RIGHTWARDS ARROW} {text(after)}"
        axes.annotate(label, (before / factor, row), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.set_xlim(0, 1.3 * widest)  # room for the numbers behind the bars
    axes.grid(True, axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)


def ticket_picture(ticket: Ticket, title: str) -> Figure:
    """The channels of each group, one beside the other: those that stay are coloured."""
    rows = {name: mask.cpu().numpy().astype(np.int64) for name, mask in ticket.masks.items()}
    of = {name: f"{int(row.sum())} of {len(row)}" for name, row in rows.items()}
    colours = {"dropped": _DROPPED, "stays": _KEPT}
    share = f"{ticket.channels_kept} of {ticket.channels_total} channels stay"
    return _strips(rows, of, colours, f"{title}: {share}", "stay")


def compared_tickets(first: Ticket, second: Ticket, names: tuple[str, str], title: str) -> Figure:
    """The channels of each group by which of two tickets keeps them, with the mask distance in the title.

    Raises:
        ValueError: the tickets are of different groups or widths.
    """
    distance, parts = first.distance(second), first.compare(second)
    rows, of = {}, {}
    for name, mask in first.masks.items():
        one, other = mask.cpu().numpy(), second.masks[name].cpu().numpy()
        rows[name] = np.where(one, np.where(other, 0, 1), np.where(other, 2, 3))
        found = parts[name]
        of[name] = f"{found['both']}, {found['first']}, {found['second']} of {len(one)}"
    labels = ("both keep", f"only {names[0]}", f"only {names[1]}", "neither")
    colours = dict(zip(labels, _PARTS.values(), strict=True))
    return _strips(rows, of, colours, f"{title}: mask distance {distance:.3f}", "both, 1st, 2nd")


def _strips(
    rows: Mapping[str, NDArray[np.int64]],
    counts: Mapping[str, str],
    colours: Mapping[str, str],
    title: str,
    counted: str,
) -> Figure:
    """A row a group, all of one length, a cell a channel in the colour of its number."""
    figure = new_figure(11, 1.6 + 0.24 * len(rows))
    axes = figure.add_subplot()
    palette = np.array([to_rgb(colour) for colour in colours.values()])
    for place, (name, row) in enumerate(rows.items()):
        cells = palette[row].repeat(math.ceil(_CELLS / len(row)), axis=0)
        axes.imshow(cells[None], extent=(0, 100, place + 0.4, place - 0.4), aspect="auto", interpolation="antialiased")
        axes.annotate(counts[name], (100, place), (5, 0), textcoords="offset points", va="center", fontsize=7.5)
    axes.annotate(counted, (100, -0.5), (5, 2), textcoords="offset points", fontsize=7.5, fontstyle="italic")
    axes.set_xlim(0, 100)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("channels of the group, the first to the last [%]")
    axes.spines[:].set_visible(False)
    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(title)
    return figure
