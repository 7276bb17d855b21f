"""Pooling, interpolation and padding."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call
from energy_models.tracing.elements.work import ElementFormula, each, work


def _window(call: Call, rank: int) -> int:
    size = call.args["kernel_size"]
    return int(math.prod(size) if len(size) > 1 else size[0] ** rank)


def _max_pool(rank: int) -> ElementFormula:
    def formula(call: Call) -> ElementOps:
        """All but one of a window's elements are compared."""
        elements = call.results[0].numel()
        return work("max_pool", elements, int_add=(_window(call, rank) - 1) * elements)

    return formula


def _max_pool_backward(call: Call) -> ElementOps:
    """Each error is added to the gradient of the element that was the maximum: 1 add."""
    elements = call.args["grad_output"].numel()
    return work("max_pool", elements, fp_add=elements)


def _avg_pool(rank: int) -> ElementFormula:
    def formula(call: Call) -> ElementOps:
        """All but one of a window's elements are added, the sum is scaled once."""
        elements = call.results[0].numel()
        return work("avg_pool", elements, fp_add=(_window(call, rank) - 1) * elements, fp_mul=elements)

    return formula


def _avg_pool_backward(rank: int) -> ElementFormula:
    def formula(call: Call) -> ElementOps:
        """One scaling per error; windows that overlap add up."""
        elements = call.args["grad_output"].numel()
        overlap = max(0, _window(call, rank) * elements - call.results[0].numel())
        return work("avg_pool", elements, fp_add=overlap, fp_mul=elements)

    return formula


def _adaptive_taps(large: Tensor, small: Tensor, rank: int) -> int:
    """Elements of all windows together: window i of n in a row of m is [floor(i*m/n), ceil((i+1)*m/n))."""
    taps = small.numel() // max(1, math.prod(small.shape[-rank:]))
    for m, n in zip(large.shape[-rank:], small.shape[-rank:], strict=True):
        taps *= sum(-(-(i + 1) * m // n) - i * m // n for i in range(n))
    return taps


def _adaptive_avg_pool(rank: int) -> ElementFormula:
    def formula(call: Call) -> ElementOps:
        """All but one of a window's elements are added, the sum is scaled once."""
        elements = call.results[0].numel()
        taps = _adaptive_taps(call.args["self"], call.results[0], rank)
        return work("avg_pool", elements, fp_add=taps - elements, fp_mul=elements)

    return formula


def _adaptive_avg_pool_backward(rank: int) -> ElementFormula:
    def formula(call: Call) -> ElementOps:
        """One scaling per error; windows that overlap add up."""
        error, gradient = call.args["grad_output"], call.results[0]
        overlap = max(0, _adaptive_taps(gradient, error, rank) - gradient.numel())
        return work("avg_pool", error.numel(), fp_add=overlap, fp_mul=error.numel())

    return formula


def _adaptive_max_pool(rank: int) -> ElementFormula:
    def formula(call: Call) -> ElementOps:
        """All but one of a window's elements are compared."""
        elements = call.results[0].numel()
        taps = _adaptive_taps(call.args["self"], call.results[0], rank)
        return work("max_pool", elements, int_add=taps - elements)

    return formula


def _interpolated(taps: int) -> ElementFormula:
    """A sum of `taps` inputs: 1 mul for each, all but one are added. Weights are made once for a row or column."""
    return each("interpolation", taps - 1, taps)


def _interpolated_backward(taps: int) -> ElementFormula:
    """Each error times each weight is added to a gradient."""
    return each("interpolation", taps, taps, of="grad_output")


def _smoothed(reach: int) -> ElementFormula:
    """With antialias: rows, then columns, by a filter that reaches over `reach` inputs times the shrinkage."""

    def formula(call: Call) -> ElementOps:
        backward = "grad_output" in call.args
        small = call.args["grad_output"] if backward else call.results[0]
        large = call.results[0] if backward else call.args["self"]
        *_, height, width = large.shape
        *batch, rows, columns = small.shape
        across = math.prod(batch) * height * columns * _taps(width, columns, reach)
        down = small.numel() * _taps(height, rows, reach)
        saved = 0 if backward else math.prod(batch) * height * columns + small.numel()
        return work("interpolation", small.numel(), across + down - saved, across + down)

    return formula


def _taps(inputs: int, outputs: int, reach: int) -> int:
    return math.ceil(reach * max(1.0, inputs / outputs))


_BILINEAR, _NEAREST = 0, 1


def _grid_taps(call: Call) -> tuple[int, int, int]:
    """(coordinates of a point, points, inputs that one result is a sum of)."""
    grid = call.args["grid"]
    rank = grid.shape[-1]
    mode = call.args["interpolation_mode"]
    return rank, grid.numel() // rank, {_BILINEAR: 2, _NEAREST: 1}.get(mode, 4) ** rank


def _grid_sample(call: Call) -> ElementOps:
    """Per point and coordinate: to pixels 1 mul, 1 add; floor 1 integer add, 1 sub; per weight its factors less one.

    Per result: 1 mul for each input, all but one are added; the nearest input is taken as it is.
    """
    rank, points, taps = _grid_taps(call)
    elements = call.results[0].numel()
    each_result = taps * elements if taps > 1 else 0
    fp_add = 2 * rank * points + (each_result - elements if taps > 1 else 0)
    return work("interpolation", elements, fp_add, (rank + (rank - 1) * taps) * points + each_result, rank * points)


def _grid_sample_backward(call: Call) -> ElementOps:
    """To the input, per error and weight: 1 mul, 1 add. To the grid, the same for what the weight met.

    Per point and weight, for the grid: 1 mul, 1 add for each coordinate.
    """
    rank, points, taps = _grid_taps(call)
    errors = call.args["grad_output"].numel()
    dx, dgrid = map(int, call.args["output_mask"])
    if taps == 1:
        return work("interpolation", errors, fp_add=dx * errors)
    each_way = (dx + dgrid) * taps * errors + dgrid * rank * taps * points
    return work("interpolation", errors, each_way, each_way)


def _affine_grid(call: Call) -> ElementOps:
    """A matrix times (coordinates, 1): per coordinate one mul and one add fewer for each of its terms."""
    terms = call.args["theta"].shape[-1]
    elements = call.results[0].numel()
    return work("interpolation", elements, (terms - 1) * elements, terms * elements)


def _padding_backward(call: Call) -> ElementOps:
    """Errors of repeated or mirrored elements are added to those of the elements themselves."""
    error, gradient = call.args["grad_output"], call.results[0]
    return work("interpolation", error.numel(), fp_add=error.numel() - gradient.numel())


_TAPS = {"linear1d": 2, "bilinear2d": 4, "trilinear3d": 8, "bicubic2d": 16}
_NEAREST_FORMS = tuple(f"{form}{rank}d" for form in ("upsample_nearest", "_upsample_nearest_exact") for rank in "123")
_PADDINGS = tuple(f"{form}_pad{rank}d" for form in ("reflection", "replication") for rank in "123")


# By name with the ranks that there are: one-dimensional pooling is two-dimensional on a row.
_RANKED: dict[str, tuple[tuple[int, ...], Callable[[int], ElementFormula]]] = {
    "max_pool{}d_with_indices": ((2, 3), _max_pool),
    "fractional_max_pool{}d": ((2, 3), _max_pool),
    "adaptive_max_pool{}d": ((2, 3), _adaptive_max_pool),
    "max_pool{}d_with_indices_backward": ((2, 3), lambda rank: _max_pool_backward),
    "fractional_max_pool{}d_backward": ((2, 3), lambda rank: _max_pool_backward),
    "adaptive_max_pool{}d_backward": ((2, 3), lambda rank: _max_pool_backward),
    "avg_pool{}d": ((1, 2, 3), _avg_pool),
    "avg_pool{}d_backward": ((2, 3), _avg_pool_backward),
    "_adaptive_avg_pool{}d": ((2, 3), _adaptive_avg_pool),
    "_adaptive_avg_pool{}d_backward": ((2, 3), _adaptive_avg_pool_backward),
}

_NAMED: dict[str, ElementFormula] = {
    **{name.format(rank): of_rank(rank) for name, (ranks, of_rank) in _RANKED.items() for rank in ranks},
    **{name: each("interpolation") for name in _NEAREST_FORMS},
    **{f"{name}_backward": each("interpolation", fp_add=1, of="grad_output") for name in _NEAREST_FORMS},
    **{f"upsample_{name}": _interpolated(taps) for name, taps in _TAPS.items()},
    **{f"upsample_{name}_backward": _interpolated_backward(taps) for name, taps in _TAPS.items()},
    **dict.fromkeys(("_upsample_bilinear2d_aa", "_upsample_bilinear2d_aa_backward"), _smoothed(2)),
    **dict.fromkeys(("_upsample_bicubic2d_aa", "_upsample_bicubic2d_aa_backward"), _smoothed(4)),
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), _grid_sample),
    **dict.fromkeys(("grid_sampler_2d_backward", "grid_sampler_3d_backward"), _grid_sample_backward),
    "affine_grid_generator": _affine_grid,
    **{f"{name}_backward": _padding_backward for name in _PADDINGS},
}
POOLING: dict[str, ElementFormula] = {f"aten::{name}": formula for name, formula in _NAMED.items()}
