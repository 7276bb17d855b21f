"""The picture of accuracy over energy, with what seeds and what the energy model leave open, and the margin."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
_REACH, _REACH_OF_MANY = 0.6, 0.25  # of the span of means and margin, that intervals may add at either end
_MANY = 16  # arms whose names have room beside their points; of more, numbers stand there
_FAR_OUT, _FEW = 3.0, 8  # interquartile ranges (Tukey 1977); means of fewer arms have no outliers
_NEAR = 1.0  # points of accuracy that flatten no picture


@dataclass(frozen=True)
class _Point:
    """Energies in units of the axis, accuracy in percent; low to high is over seeds, but for ``modelled``.

    ``below``: the mean accuracy of an arm that would flatten all others, and is drawn at the foot of the picture.
    """

    arm: ArmSummary
    name: str
    modelled: Range
    energy: Range
    accuracy: Range
    filled: bool
    below: float | None = None


def energy_accuracy(comparison: Comparison) -> Figure:
    """Accuracy over modelled energy: marker by pipeline, colour by precision, a label (of many arms a number) at each
    point.

    Bars with caps are intervals over seeds, pale ones what the energy model leaves open. The band is the margin around
    the first baseline; markers are filled where an arm is shown to lose less than the margin against it. Arms far below
    all others stand at the foot, with their accuracy.
    """
    arms, findings = summarise(comparison), find(comparison)
    scale, many = Scale.of(arm.energy.nominal_j for arm in arms), len(arms) > _MANY
    names = [str(number) if many else arm.arm for number, arm in enumerate(arms, 1)]
    points = [_point(arm, name, comparison, findings, scale) for arm, name in zip(arms, names, strict=True)]
    band = _band(comparison, findings)
    below = _far_below(points, band)
    ends = _accuracy_limits([point for point, far in zip(points, below, strict=True) if not far], band)
    points = _at_the_foot(points, below, ends[0])
    colours = dict(zip(dict.fromkeys(arm.precision_label for arm in arms), cycle(COLOURS), strict=False))
    markers = dict(zip(dict.fromkeys(arm.pipeline for arm in arms), cycle(_MARKERS), strict=False))
    figure = new_figure(12.5, 8.5) if many else new_figure(11.5, 7.5)
    axes = figure.add_subplot()
    for point in points:
        _draw(axes, point, colours[point.arm.precision_label], markers[point.arm.pipeline])
    sweeps = [group for group in ratio_sweeps(arms) if is_sweep(group)]
    for sweep in sweeps:
        _join(axes, [point for point in points if point.arm in sweep])
    _draw_margin(axes, band)
    _set_axes(axes, points, ends, scale)
    axes.set_title(f"{comparison.name}: accuracy and energy, mean over seeds{diverged_text(comparison)}")
    kinds = _numbered(points, colours, markers) if many else _kinds(colours, markers)
    figure.legend(handles=kinds, loc="outside right upper", frameon=False, fontsize=8.5 if many else None)
    signs = _signs(comparison, findings, bool(sweeps))
    figure.legend(handles=signs, loc="outside lower center", ncols=2, frameon=False)
    _label_points(figure, axes, points)
    return figure


def _point(arm: ArmSummary, name: str, comparison: Comparison, findings: Findings, scale: Scale) -> _Point:
    baseline = findings.baselines[0] if findings.baselines else None
    test = None if baseline is None else findings.test(arm.arm, baseline.arm)
    level = comparison.confidence
    return _Point(
        arm=arm,
        name=name,
        modelled=arm.energy.total_j * (1 / scale.factor),
        energy=_over_seeds(arm.energy.nominal_j, energy_interval(arm, level)) * (1 / scale.factor),
        accuracy=_over_seeds(arm.test_accuracy.mean, accuracy_interval(arm, level)) * 100,
        filled=arm.arm == (baseline and baseline.arm) or (test is not None and test.accuracy.not_worse),
    )


def _far_below(points: Sequence[_Point], band: Sequence[float]) -> list[bool]:
    """Which arms would flatten all others."""
    means = [point.accuracy.nominal for point in points]
    if len(means) < _FEW:
        return [False] * len(means)
    first, third = np.quantile(means, [0.25, 0.75])
    fence = min([first - max(_FAR_OUT * (third - first), _NEAR), *band])
    return [bool(mean < fence) for mean in means]


def _at_the_foot(points: Sequence[_Point], below: Sequence[bool], foot: float) -> list[_Point]:
    """The same, with those far below all others where the picture ends, and without an interval."""
    return [
        replace(point, accuracy=Range(foot, foot, foot), below=point.accuracy.nominal) if far else point
        for point, far in zip(points, below, strict=True)
    ]


def _over_seeds(mean: float, interval: Interval | None) -> Range:
    if interval is None or interval.is_point:
        return Range(mean, mean, mean)  # the ends of a point may be a last bit off the mean
    return Range(interval.low, mean, interval.high)


def _draw(axes: Axes, point: _Point, colour: str, marker: str) -> None:
    x, y, modelled = point.energy, point.accuracy, point.modelled
    axes.hlines(y.nominal, modelled.low, modelled.high, color=colour, linewidth=0.7, alpha=0.45)
    if len(point.arm.seeds) > 1 and point.below is None:
        ends = [[[of.nominal - of.low], [of.high - of.nominal]] for of in (x, y)]
        axes.errorbar(
            x.nominal, y.nominal, xerr=ends[0], yerr=ends[1], ecolor=colour, elinewidth=1.3, capsize=2.5, fmt="none"
        )
    face = colour if point.filled else "white"
    axes.plot(x.nominal, y.nominal, marker, color=colour, markerfacecolor=face, markersize=8, zorder=3, clip_on=False)


def _join(axes: Axes, points: Iterable[_Point]) -> None:
    """The line through the arms of a sweep, in the order of their ratios."""
    path = sorted(points, key=lambda point: point.arm.ratio or 0.0)
    x, y = ([getattr(point, of).nominal for point in path] for of in ("energy", "accuracy"))
    axes.plot(x, y, color=_GREY, linewidth=1.0, linestyle=":", zorder=2)


def _band(comparison: Comparison, findings: Findings) -> tuple[float, ...]:
    """The margin around the first baseline, both its ends in percent; nothing without a baseline."""
    if not findings.baselines:
        return ()
    centre, margin = 100 * findings.baselines[0].test_accuracy.mean, 100 * comparison.margin
    return centre - margin, centre + margin


def _draw_margin(axes: Axes, band: Sequence[float]) -> None:
    if band:
        axes.axhspan(*band, color=_GREY, alpha=0.1, linewidth=0, zorder=0)
        axes.axhline(sum(band) / 2, color=_GREY, linewidth=0.9, linestyle=(0, (6, 4)), zorder=1)


def _set_axes(axes: Axes, points: Sequence[_Point], ends: tuple[float, float], scale: Scale) -> None:
    cut = any(point.accuracy.low < ends[0] or point.accuracy.high > ends[1] for point in points)
    axes.set_ylim(*ends)
    axes.set_xscale("log")
    axes.set_xlim(*_energy_limits(points))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"modelled energy, nominal [{scale.prefix}J]")
    axes.set_ylabel("test accuracy [%]" + (" (bars without a cap go on outside)" if cut else ""))
    axes.grid(True, which="major", alpha=0.25)


def _accuracy_limits(points: Sequence[_Point], band: Sequence[float]) -> tuple[float, float]:
    """As far as means and margin need, and intervals up to a limit: those of two seeds may span all."""
    part = _REACH_OF_MANY if len(points) > _MANY else _REACH
    places = [*(point.accuracy.nominal for point in points), *band]
    low, high = _limits(places, [point.accuracy for point in points], part)
    air = 0.04 * ((high - low) or 1.0)
    return low - air, high + air


def _limits(places: Sequence[float], ranges: Iterable[Range], part: float) -> tuple[float, float]:
    """Of the places, and of the ranges as far as ``part`` of the places' span."""
    reach = part * ((max(places) - min(places)) or 1.0)
    ends = [end for of in ranges for end in (of.low, of.high)]
    return max(min(places) - reach, min([*places, *ends])), min(max(places) + reach, max([*places, *ends]))


def _energy_limits(points: Sequence[_Point]) -> tuple[float, float]:
    """As far as the energy model leaves it open; of many arms up to a limit."""
    modelled = [point.modelled for point in points]
    if len(points) <= _MANY:
        return 0.85 * min(of.low for of in modelled), max(of.high for of in modelled) / 0.85
    logs = [Range(math.log(of.low), math.log(of.nominal), math.log(of.high)) for of in modelled]
    low, high = _limits([of.nominal for of in logs], logs, _REACH_OF_MANY)
    return math.exp(low), math.exp(high)


def _entry(label: str, marker: str = "", colour: str = _GREY, **style: Any) -> Line2D:
    return Line2D([], [], marker=marker, color=colour, linestyle="", markersize=8, label=label, **style)


def _kinds(colours: dict[str, str], markers: dict[str, str]) -> list[Line2D]:
    pipelines = [_entry(pipeline.replace("_", " "), marker) for pipeline, marker in markers.items()]
    precisions = [_entry(precision, "o", colour) for precision, colour in colours.items()]
    return [_entry("Pipeline"), *pipelines, _entry(""), _entry("Precision"), *precisions]


def _numbered(points: Sequence[_Point], colours: dict[str, str], markers: dict[str, str]) -> list[Line2D]:
    """Each arm as it is drawn, behind its number."""
    arms = [
        _entry(
            f"{point.name}  {point.arm.arm}",
            markers[point.arm.pipeline],
            colours[point.arm.precision_label],
            markerfacecolor=colours[point.arm.precision_label] if point.filled else "white",
        )
        for point in points
    ]
    precisions = [_entry(precision, "o", colour) for precision, colour in colours.items()]
    return [_entry("Arm"), *arms, _entry(""), _entry("Precision"), *precisions]


def _signs(comparison: Comparison, findings: Findings, joined: bool) -> list[Artist]:
    """What bars, lines, band and filling mean."""
    level = percent(comparison.confidence)
    known = any(len(arm.seeds) > 1 for arm in summarise(comparison))
    seeds = f"{level} intervals over seeds: accuracy, nominal energy" if known else "one seed: no intervals over seeds"
    signs: list[Artist] = [
        Line2D([], [], color=_GREY, linewidth=2.0 if known else 0.0, label=seeds),
        Line2D([], [], color=_GREY, linewidth=0.7, alpha=0.6, label=_model_text(comparison)),
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


def _model_text(comparison: Comparison) -> str:
    many = len(summarise(comparison)) > _MANY
    return "low to high of the energy model" + (", which may go on outside" if many else "")


def _label_points(figure: Figure, axes: Axes, points: Sequence[_Point]) -> None:
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()  # settles the layout, so that places on the canvas are known
    figure.set_layout_engine("none")
    texts = [
        axes.text(0, 0, _label(point), fontsize=8.5, transform=None, zorder=4, path_effects=[_HALO]) for point in points
    ]
    extents = [text.get_window_extent() for text in texts]
    canvas = _canvas(figure, axes, points)
    boxes = place_labels(canvas, np.array([(extent.width, extent.height) for extent in extents]) + 2 * canvas.unit)
    for text, box, (x0, y0, x1, y1) in zip(texts, boxes, leaders(canvas.points, boxes), strict=True):
        text.set(x=(box[0] + box[2]) / 2, y=(box[1] + box[3]) / 2, ha="center", va="center")
        if np.hypot(x1 - x0, y1 - y0) > 12 * canvas.unit:
            axes.add_artist(Line2D([x0, x1], [y0, y1], color="#777777", linewidth=0.6, transform=None, zorder=2))


def _label(point: _Point) -> str:
    return point.name if point.below is None else f"{point.name}: \N{DOWNWARDS ARROW} {point.below:.2f} %"


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
