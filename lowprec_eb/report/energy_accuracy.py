"""The picture of accuracy over energy, with what seeds and what the energy model leave open, and the margin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from operator import attrgetter
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray

from energy_models.energy import Range
from lowprec_eb.report.figures import COLOURS, diverged_text, new_figure
from lowprec_eb.report.findings import Findings, accuracy_interval, energy_interval, find, is_sweep, ratio_sweeps
from lowprec_eb.report.intervals import Interval
from lowprec_eb.report.label_placement import Canvas, leaders, place_labels
from lowprec_eb.report.statistics_sentences import percent, points_text
from lowprec_eb.report.summary import ArmSummary, Comparison, summarise
from lowprec_eb.report.units import Scale

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_ENDS = attrgetter("low"), attrgetter("high")
_GREY = "#555555"
_HALO = withStroke(linewidth=2.5, foreground="white", alpha=0.8)
_REACH = 0.6  # of the span of means and margin, that intervals may add at either end


@dataclass(frozen=True)
class _Point:
    """Energies in units of the axis, accuracy in percent; low to high is over seeds, but for ``modelled``."""

    arm: ArmSummary
    modelled: Range
    energy: Range
    accuracy: Range
    filled: bool


def energy_accuracy(comparison: Comparison) -> Figure:
    """Accuracy over modelled energy: marker by pipeline, colour by precision, a label at each point.

    Bars with caps are intervals over seeds, pale ones what the energy model leaves open. The band is the margin around
    the first baseline; markers are filled where an arm is shown to lose less than the margin against it.
    """
    arms, findings = summarise(comparison), find(comparison)
    scale = Scale.of(arm.energy.nominal_j for arm in arms)
    points = [_point(arm, comparison, findings, scale) for arm in arms]
    colours = dict(zip(dict.fromkeys(arm.precision_label for arm in arms), cycle(COLOURS), strict=False))
    markers = dict(zip(dict.fromkeys(arm.pipeline for arm in arms), cycle(_MARKERS), strict=False))
    figure = new_figure(11.5, 7.5)
    axes = figure.add_subplot()
    for point in points:
        _draw(axes, point, colours[point.arm.precision_label], markers[point.arm.pipeline])
    sweeps = [group for group in ratio_sweeps(arms) if is_sweep(group)]
    for sweep in sweeps:
        _join(axes, [point for point in points if point.arm in sweep])
    band = _draw_margin(axes, comparison, findings)
    _set_axes(axes, points, band, scale)
    axes.set_title(f"{comparison.name}: accuracy and energy, mean over seeds{diverged_text(comparison)}")
    figure.legend(handles=_kinds(colours, markers), loc="outside right upper", frameon=False)
    figure.legend(
        handles=_signs(comparison, findings, bool(sweeps)), loc="outside lower center", ncols=2, frameon=False
    )
    _label_points(figure, axes, points)
    return figure


def _point(arm: ArmSummary, comparison: Comparison, findings: Findings, scale: Scale) -> _Point:
    baseline = findings.baselines[0] if findings.baselines else None
    test = None if baseline is None else findings.test(arm.arm, baseline.arm)
    level = comparison.confidence
    return _Point(
        arm=arm,
        modelled=arm.energy.total_j * (1 / scale.factor),
        energy=_over_seeds(arm.energy.nominal_j, energy_interval(arm, level)) * (1 / scale.factor),
        accuracy=_over_seeds(arm.test_accuracy.mean, accuracy_interval(arm, level)) * 100,
        filled=arm.arm == (baseline and baseline.arm) or (test is not None and test.accuracy.not_worse),
    )


def _over_seeds(mean: float, interval: Interval | None) -> Range:
    if interval is None or interval.is_point:
        return Range(mean, mean, mean)  # the ends of a point may be a last bit off the mean
    return Range(interval.low, mean, interval.high)


def _draw(axes: Axes, point: _Point, colour: str, marker: str) -> None:
    x, y, modelled = point.energy, point.accuracy, point.modelled
    axes.hlines(y.nominal, modelled.low, modelled.high, color=colour, linewidth=0.7, alpha=0.45)
    if len(point.arm.seeds) > 1:
        ends = [[[of.nominal - of.low], [of.high - of.nominal]] for of in (x, y)]
        axes.errorbar(
            x.nominal, y.nominal, xerr=ends[0], yerr=ends[1], ecolor=colour, elinewidth=1.3, capsize=2.5, fmt="none"
        )
    face = colour if point.filled else "white"
    axes.plot(x.nominal, y.nominal, marker, color=colour, markerfacecolor=face, markersize=8, zorder=3)


def _join(axes: Axes, points: Iterable[_Point]) -> None:
    """The line through the arms of a sweep, in the order of their ratios."""
    path = sorted(points, key=lambda point: point.arm.ratio or 0.0)
    x, y = ([getattr(point, of).nominal for point in path] for of in ("energy", "accuracy"))
    axes.plot(x, y, color=_GREY, linewidth=1.0, linestyle=":", zorder=2)


def _draw_margin(axes: Axes, comparison: Comparison, findings: Findings) -> tuple[float, ...]:
    """Of the first baseline; both its ends in percent, or nothing without a baseline."""
    if not findings.baselines:
        return ()
    centre, margin = 100 * findings.baselines[0].test_accuracy.mean, 100 * comparison.margin
    axes.axhspan(centre - margin, centre + margin, color=_GREY, alpha=0.1, linewidth=0, zorder=0)
    axes.axhline(centre, color=_GREY, linewidth=0.9, linestyle=(0, (6, 4)), zorder=1)
    return centre - margin, centre + margin


def _set_axes(axes: Axes, points: Sequence[_Point], band: Sequence[float], scale: Scale) -> None:
    """Accuracies as far as means and margin need, and intervals up to a limit: those of two seeds may span all."""
    places = [*(point.accuracy.nominal for point in points), *band]
    reach = _REACH * ((max(places) - min(places)) or 1.0)
    low = max(min(places) - reach, min([*places, *(point.accuracy.low for point in points)]))
    high = min(max(places) + reach, max([*places, *(point.accuracy.high for point in points)]))
    air = 0.04 * ((high - low) or 1.0)
    cut = any(point.accuracy.low < low or point.accuracy.high > high for point in points)
    axes.set_ylim(low - air, high + air)
    axes.set_xscale("log")
    axes.set_xlim(
        0.85 * min(point.modelled.low for point in points), max(point.modelled.high for point in points) / 0.85
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"modelled energy, nominal [{scale.prefix}J]")
    axes.set_ylabel("test accuracy [%]" + (" (bars without a cap go on outside)" if cut else ""))
    axes.grid(True, which="major", alpha=0.25)


def _entry(label: str, marker: str = "", colour: str = _GREY, **style: Any) -> Line2D:
    return Line2D([], [], marker=marker, color=colour, linestyle="", markersize=8, label=label, **style)


def _kinds(colours: dict[str, str], markers: dict[str, str]) -> list[Line2D]:
    pipelines = [_entry(pipeline.replace("_", " "), marker) for pipeline, marker in markers.items()]
    precisions = [_entry(precision, "o", colour) for precision, colour in colours.items()]
    return [_entry("Pipeline"), *pipelines, _entry(""), _entry("Precision"), *precisions]


def _signs(comparison: Comparison, findings: Findings, joined: bool) -> list[Artist]:
    """What bars, lines, band and filling mean."""
    level = percent(comparison.confidence)
    known = any(len(arm.seeds) > 1 for arm in summarise(comparison))
    seeds = f"{level} intervals over seeds: accuracy, nominal energy" if known else "one seed: no intervals over seeds"
    signs: list[Artist] = [
        Line2D([], [], color=_GREY, linewidth=2.0 if known else 0.0, label=seeds),
        Line2D([], [], color=_GREY, linewidth=0.7, alpha=0.6, label="low to high of the energy model"),
    ]
    if joined:
        signs.append(Line2D([], [], color=_GREY, linewidth=1.0, linestyle=":", label="one pipeline at several ratios"))
    if findings.baselines:
        name, margin = findings.baselines[0].arm, points_text(comparison.margin)
        signs += [
            Patch(color=_GREY, alpha=0.1, label=f"{name}: mean, {margin} to both sides"),
            _entry(f"shown to lose less than {margin} against {name}", "o"),
            _entry("not shown to", "o", markerfacecolor="white"),
        ]
    return signs


def _label_points(figure: Figure, axes: Axes, points: Sequence[_Point]) -> None:
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # settles the layout, so that places on the canvas are known
    figure.set_layout_engine("none")
    texts = [
        axes.text(0, 0, point.arm.arm, fontsize=8.5, transform=None, zorder=4, path_effects=[_HALO]) for point in points
    ]
    extents = [text.get_window_extent() for text in texts]
    canvas = _canvas(figure, axes, points)
    boxes = place_labels(canvas, np.array([(extent.width, extent.height) for extent in extents]) + 2 * canvas.unit)
    for text, box, (x0, y0, x1, y1) in zip(texts, boxes, leaders(canvas.points, boxes), strict=True):
        text.set(x=(box[0] + box[2]) / 2, y=(box[1] + box[3]) / 2, ha="center", va="center")
        if np.hypot(x1 - x0, y1 - y0) > 12 * canvas.unit:
            axes.add_artist(Line2D([x0, x1], [y0, y1], color="#777777", linewidth=0.6, transform=None, zorder=2))


def _canvas(figure: Figure, axes: Axes, points: Sequence[_Point]) -> Canvas:
    """What labels must not cover; bars as far as they are in the frame."""
    unit, bounds = figure.dpi / 72, np.array([axes.get_xlim(), axes.get_ylim()])

    def to_canvas(places: Iterable[tuple[float, float]]) -> NDArray[np.float64]:
        return np.asarray(axes.transData.transform(np.clip(np.array(list(places)), *bounds.T)))

    middle = to_canvas((point.energy.nominal, point.accuracy.nominal) for point in points)
    bars = [
        np.hstack([to_canvas((end(point.modelled), point.accuracy.nominal) for point in points) for end in _ENDS]),
        np.hstack([to_canvas((end(point.energy), point.accuracy.nominal) for point in points) for end in _ENDS]),
        np.hstack([to_canvas((point.energy.nominal, end(point.accuracy)) for point in points) for end in _ENDS]),
    ]
    grown = np.array([-unit, -unit, unit, unit])
    return Canvas(
        points=middle,
        markers=np.hstack([middle, middle]) + 5 * grown,
        bars=np.vstack(bars) + 0.5 * grown,
        frame=np.array(axes.get_window_extent().extents),
        unit=unit,
    )
