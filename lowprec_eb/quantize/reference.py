"""The reference quantizer: short, plain torch, for reading. Any faster back end must give the same bits.

A value is divided by its block's scale, rounded to the grid of an element, and multiplied again. Numbers are worked on
in float32 (float64 for float64 tensors): division by a power of two is exact, another scale takes the IEEE quotient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_eb.formats import FixedPoint, Float, Format, Int, ScaledFloat, is_affine
from lowprec_eb.quantize.blocks import fit_given, spread
from lowprec_eb.quantize.rounding import FLOAT32_ERROR, round_to_element, round_whole
from lowprec_eb.quantize.scales import Scales, find_scales, round_scale


def quantize(
    x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, given: list[Tensor], out: Tensor
) -> None:
    """``x`` rounded to ``fmt`` into ``out``, which has its shape and dtype and may be ``x`` itself."""
    elements, scales = split(x, fmt, rounding, seed, offset, given)
    out.copy_(join(elements, scales, fmt, x.dtype))


def split(
    x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, given: list[Tensor]
) -> tuple[Tensor, Scales]:
    """Elements (x's shape, on the element's grid; codes of an affine format) and scales: the parts of a value."""
    wide = x.to(working_dtype(x.dtype))
    refuse_nan(wide, fmt)
    scales = given_scales(given, fmt, wide) or find_scales(wide, fmt)
    key = (seed, offset)
    if not scales:
        return round_to_element(wide.double(), fmt.element, rounding, key).to(wide.dtype), ()
    errors = _quotient_errors(fmt, wide.dtype, bool(given))
    if is_affine(fmt):
        codes = _affine_codes(wide, fmt, rounding, key, scales, errors)
        return _infinities_pass(codes, wide, given), scales
    quotient = (wide / _divisor(scales, fmt, x.shape)).double()
    elements = round_to_element(quotient, fmt.element, rounding, key, errors[0]).to(wide.dtype)
    return _infinities_pass(elements, wide, given), scales


def _quotient_errors(fmt: Format, dtype: torch.dtype, given: bool) -> tuple[float, float]:
    """Relative errors of a quotient by a scale that is no power of two: of its scale and of its own rounding.

    A scale that was found is a float32, whatever the tensor's dtype.
    """
    if not isinstance(fmt, Int | ScaledFloat):
        return 0.0, 0.0
    own = 2 * torch.finfo(dtype).eps
    return (own if given else FLOAT32_ERROR), own


def _divisor(scales: Scales, fmt: Format, shape: torch.Size) -> Tensor:
    assert fmt.blocks is not None
    scale = spread(scales[0], fmt.blocks, shape)
    return scale * scales[1] if fmt.tensor_scale_bits else scale


def _infinities_pass(elements: Tensor, x: Tensor, given: list[Tensor]) -> Tensor:
    """A scale found from the finite values says nothing about an infinity: it stays visible. A given one saturates."""
    return elements if given else torch.where(x.isinf(), x, elements)


def join(elements: Tensor, scales: Scales, fmt: Format, dtype: torch.dtype) -> Tensor:
    """The values that the parts stand for, in the parts' dtype, to be converted to ``dtype``."""
    if not scales:
        return elements
    if is_affine(fmt):
        assert fmt.blocks is not None
        scale, zero = (spread(part, fmt.blocks, elements.shape) for part in scales)
        if fmt.zero_point == "minimum":
            values = (elements * (scale * 0.5) + zero * 0.5) * 2  # halves, as the range may overflow
        else:
            values = (elements - zero) * scale
        largest = torch.finfo(dtype).max  # a rounded zero point may push an end of the range beyond it
        return torch.where(elements.isinf(), values, values.clamp(-largest, largest))
    assert fmt.blocks is not None
    values = elements * spread(scales[0], fmt.blocks, elements.shape)
    return values * scales[1] if fmt.tensor_scale_bits else values


def _affine_codes(
    x: Tensor,
    fmt: Int,
    rounding: str,
    key: tuple[Tensor | None, int],
    scales: Scales,
    errors: tuple[float, float],
) -> Tensor:
    assert fmt.blocks is not None
    scale, zero = (spread(part, fmt.blocks, x.shape) for part in scales)
    if fmt.zero_point == "minimum":
        quotient = (x * 0.5 - zero * 0.5) / scale * 2  # the whole difference may overflow
        # The difference has the error of its larger term.
        tolerance = quotient.abs() * errors[0] + zero.abs() / scale * errors[1]
        codes = round_whole(quotient.double(), rounding, key, tolerance.double())
    else:
        quotient = (x / scale).double()
        codes = round_whole(quotient, rounding, key, quotient.abs() * errors[0]) + zero
    return codes.clamp(0, fmt.levels).to(x.dtype)


def in_range(x: Tensor, fmt: Format, given: list[Tensor]) -> Tensor:
    """Which elements lie within the largest and smallest number of their block; NaN counts as within."""
    if isinstance(fmt, FixedPoint) and not fmt.clamp:
        return torch.ones_like(x, dtype=torch.bool)
    wide = x.to(working_dtype(x.dtype))
    scales = given_scales(given, fmt, wide) or find_scales(wide, fmt)
    low, high = (join(bound, scales, fmt, wide.dtype) for bound in _ends(wide, fmt))
    slack = _slack(fmt) * torch.maximum(low.abs(), high.abs())
    if fmt.has_zero_point and not given:
        assert fmt.blocks is not None
        slack = slack + spread(scales[0], fmt.blocks, x.shape) / 2  # a zero point is rounded, the range moves along
    return ~((wide < low - slack) | (wide > high + slack))


def _slack(fmt: Format) -> float:
    """What the ends of a range may be off, relatively: the rounding of a real scale."""
    return FLOAT32_ERROR if isinstance(fmt, Int | ScaledFloat) else 0.0


def _ends(x: Tensor, fmt: Format) -> tuple[Tensor, Tensor]:
    if is_affine(fmt):
        return torch.zeros_like(x), torch.full_like(x, fmt.levels)
    return torch.full_like(x, fmt.element.min), torch.full_like(x, fmt.element.max)


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def given_scales(given: list[Tensor], fmt: Format, x: Tensor) -> Scales:
    """The user's scales, checked, in x's dtype and the format's shape; () if none were given."""
    if not given:
        return ()
    assert fmt.blocks is not None
    scales = [part.to(device=x.device, dtype=torch.float32).to(x.dtype) for part in given]
    for scale in scales[:1] if fmt.has_zero_point else scales:
        if not bool(((scale > 0) & scale.isfinite()).all()):
            raise ValueError("scale: must be above 0 and within float32's range everywhere")
    if is_affine(fmt):
        _check_zero_point(scales[1], fmt)
    if isinstance(fmt, ScaledFloat) and fmt.scale is not None:
        scales[0] = round_scale(scales[0], fmt.scale)
    if fmt.tensor_scale_bits:
        if scales[1].numel() != 1:
            raise ValueError(f"scale: a tensor has one tensor scale, got {scales[1].numel()}")
        return fit_given(scales[0], fmt.blocks, x.shape), scales[1].reshape(())
    return tuple(fit_given(part, fmt.blocks, x.shape) for part in scales)


def _check_zero_point(zero: Tensor, fmt: Int) -> None:
    if fmt.zero_point == "minimum" and not bool(zero.isfinite().all()):
        raise ValueError("scale: the minimum beside it must be finite everywhere")
    if fmt.zero_point == "integer" and not bool(((zero >= 0) & (zero <= fmt.levels) & (zero == zero.round())).all()):
        raise ValueError(f"scale: the zero point beside it must be a whole number from 0 to {fmt.levels} everywhere")


class RefusedNaN(ValueError):
    """A tensor holds a NaN, for which the format has no code."""


def refuse_nan(x: Tensor, fmt: Format) -> None:
    """Raise :class:`RefusedNaN` if ``x`` holds a NaN that ``fmt`` refuses."""
    if isinstance(fmt.element, Float) and fmt.element.nan == "error" and bool(x.isnan().any()):
        raise RefusedNaN(
            f"{int(x.isnan().sum())} of {x.numel()} values are NaN, for which {fmt!r} has no code; find where they "
            "come from, or let them through with dataclasses.replace(element, nan='keep')"
        )
