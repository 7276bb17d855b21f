"""Rounding real numbers to whole ones, and to the grid of an element."""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_eb.formats import FixedPoint, Float
from lowprec_eb.quantize.random_bits import uniform

FLOAT32_ERROR = 2.0**-22  # relative; what one float32 division and a float32 scale may be off


def round_to_element(
    v: Tensor, element: FixedPoint | Float, rounding: str, key: tuple[Tensor | None, int], error: float = 0.0
) -> Tensor:
    """float64 ``v`` on the grid of ``element``; NaN passes. ``key`` is (seed, index of element 0).

    ``error`` is the relative one of ``v``, a rounded quotient: what is whole within it counts as whole, so that a value
    on the grid stays there in every rounding.
    """
    if isinstance(element, FixedPoint):
        steps = v / element.step
        codes = round_whole(steps, rounding, key, steps.abs() * error)
        if element.clamp:
            return codes.clamp(element.min_code, element.max_code) * element.step + 0.0  # integers have one zero
        return torch.where(v.abs() < 2.0**53 * element.step, codes * element.step, v) + 0.0  # whole from there on
    exponent = torch.frexp(torch.where(v.isfinite(), v, 0.0)).exponent - 1
    exponent = exponent.clamp(min=element.min_exponent)
    step = power_of_two(exponent - element.man, v.dtype)
    if not element.subnormals:
        smallest = element.smallest
        step = torch.where(v.abs() < smallest, torch.full_like(step, smallest), step)
    if rounding == "nearest" and element.ties == "away":
        rounding = "nearest_away"
    steps = v / step
    return _overflow(v, round_whole(steps, rounding, key, steps.abs() * error) * step, element, rounding)


def _overflow(v: Tensor, rounded: Tensor, element: Float, rounding: str) -> Tensor:
    saturated = rounded.clamp(element.min, element.max)
    if element.overflow == "saturate":
        return saturated
    if rounding == "toward_zero":
        rounded = torch.where(v.isinf(), rounded, saturated)
    beyond = torch.inf if element.overflow == "infinity" else torch.nan
    return torch.where(rounded.abs() > element.max, torch.full_like(rounded, beyond).copysign(rounded), rounded)


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ldexp(torch.ones_like(exponent, dtype=dtype), exponent)


def round_whole(v: Tensor, rounding: str, key: tuple[Tensor | None, int], tolerance: Tensor) -> Tensor:
    """Whole numbers next to float64 ``v``; infinities and NaN pass. The rule looks at magnitudes, the sign is kept.

    What is whole within ``tolerance`` counts as whole.
    """
    if rounding == "nearest":
        return v.round()  # ties to even
    magnitude = v.abs()
    whole = magnitude.round()
    magnitude = torch.where((magnitude - whole).abs() <= tolerance, whole, magnitude)
    below = magnitude.floor()
    fraction = magnitude - below  # exact, so a value on the grid never moves
    if rounding == "nearest_away":
        below += fraction >= 0.5
    elif rounding == "stochastic":
        seed, offset = key
        assert seed is not None
        below += fraction > uniform(v.shape, seed, offset, v.dtype)
    return torch.where(v.isfinite(), below.copysign(v), v)
