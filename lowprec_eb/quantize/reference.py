"""The reference quantizer: short, plain torch, for reading. Any faster back end must give the same bits.

A value is divided by its block's scale, rounded to the grid of an element, and multiplied again. Numbers are worked on
in float32 (float64 for float64 tensors): division by a power of two is exact, another scale takes the IEEE quotient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_eb.formats import BlockFloat, FixedPoint, Float, Format, Int, ScaledFloat, is_affine
from lowprec_eb.quantize.blocks import fit_given, spread
from lowprec_eb.quantize.rounding import round_to_element, round_whole
from lowprec_eb.quantize.scales import Scales, find_scales, multiplier


def quantize(
    x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, given: list[Tensor], out: Tensor
) -> None:
    """``x`` rounded to ``fmt`` into ``out``, which has its shape and dtype and may be ``x`` itself."""
    elements, scales = split(x, fmt, rounding, seed, offset, given)
    out.copy_(join(elements, scales, fmt))


def split(
    x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, given: list[Tensor]
) -> tuple[Tensor, Scales]:
    """Elements (x's shape, on the element's grid; codes of an affine format) and scales: the parts of a value."""
    wide = x.to(working_dtype(x.dtype))
    _refuse_nan(wide, fmt)
    scales = given_scales(given, fmt, wide) or find_scales(wide, fmt)
    key = (seed, offset)
    if not scales:
        return round_to_element(wide.double(), fmt.element, rounding, key, False).to(wide.dtype), ()
    if is_affine(fmt):
        return _affine_codes(wide, fmt, rounding, key, scales), scales
    inexact = isinstance(fmt, Int | ScaledFloat)
    quotient = (wide / multiplier(scales, fmt, x.shape)).double()
    elements = round_to_element(quotient, fmt.element, rounding, key, inexact).to(wide.dtype)
    if isinstance(fmt, BlockFloat):
        elements = torch.where(wide.isinf(), wide, elements)  # an infinity stays visible
    return elements, scales


def join(elements: Tensor, scales: Scales, fmt: Format) -> Tensor:
    """The values that the parts stand for, in the parts' dtype."""
    if not scales:
        return elements
    if is_affine(fmt):
        scale, zero = (spread(part, fmt.blocks, elements.shape) for part in scales)
        return elements * scale + zero if fmt.zero_point == "minimum" else (elements - zero) * scale
    return elements * multiplier(scales, fmt, elements.shape)


def _affine_codes(x: Tensor, fmt: Int, rounding: str, key: tuple[Tensor | None, int], scales: Scales) -> Tensor:
    scale, zero = (spread(part, fmt.blocks, x.shape) for part in scales)
    if fmt.zero_point == "minimum":
        codes = round_whole(((x - zero) / scale).double(), rounding, key, inexact=True)
    else:
        codes = round_whole((x / scale).double(), rounding, key, inexact=True) + zero
    return codes.clamp(0, fmt.levels).to(x.dtype)


def in_range(x: Tensor, fmt: Format, given: list[Tensor]) -> Tensor:
    """Which elements lie within the largest and smallest number of their block; NaN counts as within."""
    wide = x.to(working_dtype(x.dtype))
    scales = given_scales(given, fmt, wide) or find_scales(wide, fmt)
    low, high = (join(bound, scales, fmt) for bound in _ends(wide, fmt))
    if isinstance(fmt, FixedPoint) and not fmt.clamp:
        return torch.ones_like(x, dtype=torch.bool)
    return ~((wide < low) | (wide > high))


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
    for scale in given[:1] if isinstance(fmt, Int) else given:
        if not bool(((scale > 0) & scale.isfinite()).all()):
            raise ValueError("scale: must be finite and above 0 everywhere")
    scales = [part.to(device=x.device, dtype=torch.float32).to(x.dtype) for part in given]
    if fmt.tensor_scale_bits:
        return fit_given(scales[0], fmt.blocks, x.shape), scales[1].reshape(())
    return tuple(fit_given(part, fmt.blocks, x.shape) for part in scales)


def _refuse_nan(x: Tensor, fmt: Format) -> None:
    if isinstance(fmt.element, Float) and fmt.element.nan == "error" and bool(x.isnan().any()):
        raise ValueError(
            f"{int(x.isnan().sum())} of {x.numel()} values are NaN, for which {fmt!r} has no code; find where they "
            "come from, or let them through with dataclasses.replace(element, nan='keep')"
        )
