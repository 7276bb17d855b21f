"""The scale that a block gets from its values."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lowprec_eb.formats import MX, BlockFloat, Blocks, Float, Format, Int, ScaledFloat, is_affine
from lowprec_eb.quantize.blocks import reduce_blocks
from lowprec_eb.quantize.rounding import power_of_two, round_to_element

Scales = tuple[Tensor, ...]
_SMALLEST = 2.0**-126
_LARGEST = torch.finfo(torch.float32).max
_NO_KEY = (None, 0)


def find_scales(x: Tensor, fmt: Format) -> Scales:
    """Scales of the finite values of ``x`` (float32 or float64), in x's dtype and the shape of ``fmt.blocks``.

    None, (scale,), (scale, zero point) of an affine :class:`Int`, or (block scales, tensor scale).
    """
    if fmt.blocks is None:
        return ()
    if is_affine(fmt):
        return _affine(x, fmt, fmt.blocks)
    largest = _largest(x, fmt.blocks)
    match fmt:
        case BlockFloat():
            return (_shared_exponent(largest, 0, -126),)
        case MX():
            return (_shared_exponent(largest, fmt.element.max_exponent, -127),)
        case ScaledFloat():
            return _scaled_float(largest, fmt)
    return (float32_scale(largest, fmt.element.max),)


def _largest(x: Tensor, blocks: Blocks) -> Tensor:
    """Largest finite magnitude of each block; 0 where there is none."""
    finite = x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return reduce_blocks(finite.abs(), blocks, lambda t, dims: t.amax(dims, keepdim=True))


def _shared_exponent(largest: Tensor, element_exponent: int, lowest: int) -> Tensor:
    exponent = torch.frexp(largest).exponent - 1 - element_exponent
    exponent = torch.where(largest > 0, exponent, lowest).clamp(lowest, 127)
    return power_of_two(exponent, largest.dtype)


def float32_scale(value_range: Tensor, levels: float) -> Tensor:
    """A float32 of which ``levels`` steps cover ``value_range``, with its last significand bit set.

    An odd significand makes the division of ``fl(levels * scale)`` by ``levels`` give the scale back (no half-way
    case), so a tensor that is already rounded keeps its scale.
    """
    return _odd(_divided(value_range, levels), levels)


def _odd(scale: Tensor, levels: float) -> Tensor:
    pattern = scale.to(torch.float32).clamp(_SMALLEST, _LARGEST).view(torch.int32) | 1
    above, below = (bits.view(torch.float32).to(scale.dtype) for bits in (pattern, pattern - 2))
    return torch.where((above * levels).isfinite(), above, below)


def _divided(numbers: Tensor, by: float) -> Tensor:
    """The IEEE quotient; a Python scalar would be inverted first on some devices."""
    return numbers / torch.full_like(numbers, by)


def _affine(x: Tensor, fmt: Int, blocks: Blocks) -> Scales:
    return affine_scales(*bounds_of(x, blocks), fmt)


def bounds_of(x: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """The smallest and the largest finite number of each block; infinity and -infinity if it has none."""
    finite = x.isfinite()
    low = reduce_blocks(torch.where(finite, x, torch.inf), blocks, lambda t, dims: t.amin(dims, keepdim=True))
    high = reduce_blocks(torch.where(finite, x, -torch.inf), blocks, lambda t, dims: t.amax(dims, keepdim=True))
    return low, high


def affine_scales(low: Tensor, high: Tensor, fmt: Int) -> Scales:
    """(scale, zero point) of blocks whose finite values lie between ``low`` and ``high``; none do if low > high."""
    empty = low > high
    if fmt.zero_point == "minimum":
        low, high = torch.where(empty, 0.0, low), torch.where(empty, 0.0, high)
        low = low.to(torch.float32).to(low.dtype) + 0.0
        return _spanning(low, high, fmt.levels), low
    low, high = torch.where(empty, 0.0, low).clamp(max=0.0), torch.where(empty, 0.0, high).clamp(min=0.0)
    scale = _spanning(low, high, fmt.levels)
    return scale, (-low / scale).round().clamp(0, fmt.levels)


def _spanning(low: Tensor, high: Tensor, levels: int) -> Tensor:
    """As :func:`float32_scale` of ``high - low``, which itself may overflow."""
    return _odd(_divided(high, levels) - _divided(low, levels), levels)


def _scaled_float(largest: Tensor, fmt: ScaledFloat) -> Scales:
    if fmt.scale is None:
        return (float32_scale(largest, fmt.element.max),)
    if not fmt.tensor_scale:
        return (round_scale(_divided(largest, fmt.element.max), fmt.scale),)
    whole = largest.amax() if largest.numel() else largest.new_zeros(())
    tensor_scale = tensor_scale_of(whole, fmt)
    return round_scale(largest / (fmt.element.max * tensor_scale), fmt.scale), tensor_scale


def tensor_scale_of(largest: Tensor, fmt: ScaledFloat) -> Tensor:
    """The second level: a float32 with so few significand bits that element x block scale x tensor scale is exact.

    So a rounded tensor finds its scales again.
    """
    assert fmt.scale is not None
    dropped = min(fmt.element.man + 1 + fmt.scale.man + 1, 16)
    wanted = _divided(largest, fmt.element.max * fmt.scale.max).to(torch.float32).clamp(_SMALLEST, _LARGEST)
    pattern = wanted.view(torch.int32) >> dropped << dropped
    return pattern.view(torch.float32).to(largest.dtype)


def round_scale(scale: Tensor, fmt: Float) -> Tensor:
    """The nearest scale that ``fmt`` can hold, above zero."""
    rounded = round_to_element(scale.to(torch.float64), replace(fmt, overflow="saturate"), "nearest", _NO_KEY)
    return rounded.clamp(fmt.smallest, fmt.max).to(scale.dtype)
