"""Puts a label beside each point of a scatter plot so that labels cover neither each other nor the points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_DEGREES = (0, 180, 20, -20, 160, -160, 90, -90, 45, -45, 135, -135, 70, -70, 110, -110)
_REACHES = (9, 14, 22, 34, 50, 70, 95, 125)  # from a point to its label, in points (1/72 inch)
_ROUNDS = 6
_SAMPLES = np.linspace(0, 1, 13)[1:]  # along a leader line


@dataclass(frozen=True, eq=False)
class Canvas:
    """What is drawn already, as boxes (n, 4) of (x0, y0, x1, y1); all lengths in units of the canvas.

    ``markers`` are those of the points and ``bars`` their error bars; ``frame`` (4,) is the plot's; ``unit`` is the
    length of 1/72 inch.
    """

    points: Floats  # (n, 2)
    markers: Floats
    bars: Floats
    frame: Floats
    unit: float


def place_labels(canvas: Canvas, sizes: Floats) -> Floats:
    """A box for the label of each point, (n, 4); ``sizes`` (n, 2) are the labels' widths and heights.

    Near its point, in the frame, and clear of other labels, markers, bars and leader lines where possible: greedy, then
    each label is placed again with all others known. Deterministic.
    """
    boxes = np.full((len(canvas.points), 4), np.nan)
    for _ in range(_ROUNDS):
        for i, size in enumerate(sizes):
            placed = ~np.isnan(boxes[:, 0])
            placed[i] = False
            candidates = _candidates(canvas.points[i], size, canvas.unit)
            costs = _costs(canvas, i, candidates, boxes[placed], leaders(canvas.points[placed], boxes[placed]))
            boxes[i] = candidates[np.argmin(costs)]
    return boxes


def leaders(points: Floats, boxes: Floats) -> Floats:
    """The lines (x0, y0, x1, y1) from points (n, 2) to the nearest places of their labels (n, 4)."""
    return np.hstack([points, np.clip(points, boxes[:, :2], boxes[:, 2:])])


def overlaps(a: Floats, b: Floats) -> Floats:
    """Area that box i of a (n, 4) and box j of b (m, 4) both cover, (n, m)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.asarray(np.prod(np.clip(high - low, 0, None), axis=-1))


def _candidates(point: Floats, size: Floats, unit: float) -> Floats:
    """Boxes around the point, the nearest first; beside it they are centred vertically, above it moved sideways."""
    reach, degrees = (grid.ravel() for grid in np.meshgrid(_REACHES, _DEGREES, indexing="ij"))
    direction = np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)
    shift = np.stack([np.clip(2 * direction[:, 0], -1, 1), direction[:, 1]], axis=1) * size / 2
    centre = point + direction * (reach * unit)[:, None] + shift
    return np.hstack([centre - size / 2, centre + size / 2])


def _costs(canvas: Canvas, i: int, candidates: Floats, labels: Floats, lines: Floats) -> Floats:
    """Of each place for label i, with the other labels and their leader lines; about 1 for 40/72 inch of distance."""
    area = np.prod(candidates[:, 2:] - candidates[:, :2], axis=1)
    outside = area - overlaps(candidates, canvas.frame[None])[:, 0]
    covered = overlaps(candidates, np.vstack([labels, canvas.markers])).sum(axis=1)
    bars = (overlaps(candidates, canvas.bars) > 0).sum(axis=1)
    own_lines = leaders(np.broadcast_to(canvas.points[i], (len(candidates), 2)), candidates)
    obstacles = np.vstack([labels, np.delete(canvas.markers, i, axis=0)])
    crossed = _inside(lines, candidates).sum(axis=0) + _inside(own_lines, obstacles).sum(axis=1)
    length = np.hypot(*(own_lines[:, 2:] - own_lines[:, :2]).T)
    return np.asarray(10 * (outside + covered) / area + 0.5 * bars + 2 * crossed + length / (40 * canvas.unit))


def _inside(lines: Floats, boxes: Floats) -> Floats:
    """Share of line i (n, 4) that lies in box j (m, 4), (n, m)."""
    start, end = lines[:, None, :2], lines[:, None, 2:]
    places = (start + (end - start) * _SAMPLES[None, :, None])[:, None]  # (n, 1, samples, 2)
    inside = (places >= boxes[None, :, None, :2]) & (places <= boxes[None, :, None, 2:])
    return np.asarray(inside.all(axis=-1).mean(axis=-1))
