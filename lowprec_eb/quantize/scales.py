"""The scale that a block gets from its values."""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_eb.formats import MX, BlockFloat, Blocks, Float, Format, Int, ScaledFloat, is_affine
from lowprec_eb.quantize.blocks import reduce_blocks, spread
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
    return (_float32_scale(largest, fmt.element.max),)


def _largest(x: Tensor, blocks: Blocks) -> Tensor:
    """Largest finite magnitude of each block; 0 where there is none."""
    finite = x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    return reduce_blocks(finite.abs(), blocks, lambda t, dims: t.amax(dims, keepdim=True))


def _shared_exponent(largest: Tensor, element_exponent: int, lowest: int) -> Tensor:
    exponent = torch.frexp(largest).exponent - 1 - element_exponent
    exponent = torch.where(largest > 0, exponent, lowest).clamp(lowest, 127)
    return power_of_two(exponent, largest.dtype)


def _float32_scale(value_range: Tensor, levels: float) -> Tensor:
    """A float32 of which ``levels`` steps cover ``value_range``, with its last significand bit set.

    An odd significand makes the division of ``fl(levels * scale)`` by ``levels`` give the scale back (no half-way
    case), so a tensor that is already rounded keeps its scale.
    """
    scale = (value_range / levels).to(torch.float32).clamp(_SMALLEST, _LARGEST)
    return (scale.view(torch.int32) | 1).view(torch.float32).to(value_range.dtype)


def _affine(x: Tensor, fmt: Int, blocks: Blocks) -> Scales:
    finite = x.isfinite()
    low = reduce_blocks(torch.where(finite, x, torch.inf), blocks, lambda t, dims: t.amin(dims, keepdim=True))
    high = reduce_blocks(torch.where(finite, x, -torch.inf), blocks, lambda t, dims: t.amax(dims, keepdim=True))
    empty = low > high  # no finite value
    if fmt.zero_point == "minimum":
        low, high = torch.where(empty, 0.0, low), torch.where(empty, 0.0, high)
        low = low.to(torch.float32).to(x.dtype)
        return _float32_scale(high - low, fmt.levels), low
    low, high = torch.where(empty, 0.0, low).clamp(max=0.0), torch.where(empty, 0.0, high).clamp(min=0.0)
    scale = _float32_scale(high - low, fmt.levels)
    return scale, (-low / scale).round().clamp(0, fmt.levels)


def _scaled_float(largest: Tensor, fmt: ScaledFloat) -> Scales:
    if fmt.has_fp32_scale:
        return (_float32_scale(largest, fmt.element.max),)
    if not fmt.tensor_scale:
        return (_round_scale(largest / fmt.element.max, fmt.scale),)
    whole = largest.amax() if largest.numel() else largest.new_zeros(())
    tensor_scale = _float32_scale(whole, fmt.element.max * fmt.scale.max)
    return _round_scale(largest / (fmt.element.max * tensor_scale), fmt.scale), tensor_scale


def _round_scale(scale: Tensor, fmt: Float) -> Tensor:
    rounded = round_to_element(scale.to(torch.float64), fmt, "nearest", _NO_KEY, inexact=False)
    return rounded.clamp(fmt.smallest, fmt.max).to(scale.dtype)


def multiplier(scales: Scales, fmt: Format, shape: torch.Size) -> Tensor:
    """What an element's value is multiplied with, broadcastable against ``shape``."""
    assert fmt.blocks is not None
    block_scale = spread(scales[0], fmt.blocks, shape)
    return block_scale * scales[1] if fmt.tensor_scale_bits else block_scale
