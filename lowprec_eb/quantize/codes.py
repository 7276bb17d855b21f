"""Integer codes of elements, and values of codes."""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_eb.formats import BlockFloat, Float, Format, is_affine
from lowprec_eb.quantize.reference import join, split
from lowprec_eb.quantize.rounding import power_of_two
from lowprec_eb.quantize.scales import Scales


def code_dtype(fmt: Format) -> torch.dtype:
    """uint8 for bit patterns and affine codes of up to 8 bits, else the smallest signed integers that hold the bits."""
    unsigned = isinstance(fmt.element, Float) or is_affine(fmt)
    if fmt.bits <= 8:
        return torch.uint8 if unsigned else torch.int8
    widest = 15 if is_affine(fmt) else 16  # an affine code of 16 bits does not fit int16
    return torch.int16 if fmt.bits <= widest else torch.int32


def scale_shapes(shape: torch.Size, fmt: Format) -> list[tuple[int, ...]]:
    """Shapes of the scales that :func:`encode` gives."""
    if fmt.blocks is None:
        return []
    blocks = fmt.blocks.scale_shape(shape)
    if fmt.tensor_scale_bits:
        return [blocks, ()]
    return [blocks] * (2 if fmt.has_zero_point else 1)


def encode(
    x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int, given: list[Tensor]
) -> tuple[Tensor, Scales]:
    """Codes in :func:`code_dtype`, and float32 scales; a :class:`BlockFloat`'s scales are its steps.

    Raises:
        ValueError: a value that rounding lets through has no code (NaN or infinity, clamp=False).
    """
    elements, scales = split(x, fmt, rounding, seed, offset, given)
    codes = _codes(elements, fmt).to(code_dtype(fmt))
    step = fmt.element.smallest if isinstance(fmt, BlockFloat) else 1.0
    return codes, tuple((part * step).to(torch.float32) for part in scales)


def decode(codes: Tensor, scales: Scales, fmt: Format, dtype: torch.dtype) -> Tensor:
    """The values that codes and scales stand for, in ``dtype``."""
    wide = torch.promote_types(dtype, torch.float32)
    step = fmt.element.smallest if isinstance(fmt, BlockFloat) else 1.0
    elements = _values(codes, fmt).to(wide)
    return join(elements, tuple(part.to(wide) / step for part in scales), fmt, dtype).to(dtype)


def _codes(elements: Tensor, fmt: Format) -> Tensor:
    if isinstance(fmt.element, Float):
        return _float_codes(elements.double(), fmt.element)
    if is_affine(fmt):
        codes, low, high = elements.double(), 0, fmt.levels
    else:
        codes, low, high = elements.double() / fmt.element.step, fmt.element.min_code, fmt.element.max_code
    codeless = ~((codes >= low) & (codes <= high))  # NaN too
    if bool(codeless.any()):
        first = elements[codeless][0].item()
        raise ValueError(
            f"{int(codeless.sum())} of {codes.numel()} values have no code in {fmt!r}, the first rounds to {first}"
        )
    return codes.to(torch.int64)


def _values(codes: Tensor, fmt: Format) -> Tensor:
    if isinstance(fmt.element, Float):
        return _float_values(codes, fmt.element)
    affine = is_affine(fmt)
    return codes.double() * (1.0 if affine else fmt.element.step)


def _float_codes(v: Tensor, fmt: Float) -> Tensor:
    """Bit patterns: sign, exponent field, mantissa field."""
    codeless = v.isinf() if fmt.specials != "ieee" else torch.zeros_like(v, dtype=torch.bool)
    if fmt.specials == "none":
        codeless = codeless | v.isnan()
    if bool(codeless.any()):
        raise ValueError(
            f"{int(codeless.sum())} of {v.numel()} values are infinite or NaN: {fmt!r} has no code for them"
        )
    magnitude = v.abs().clamp(max=fmt.max)
    exponent = (torch.frexp(magnitude).exponent - 1).clamp(min=fmt.min_exponent)
    exponent = torch.where(magnitude == 0, fmt.min_exponent, exponent)
    significand = (magnitude / power_of_two(exponent - fmt.man, v.dtype)).nan_to_num(0.0).to(torch.int64)
    codes = (exponent - fmt.min_exponent).to(torch.int64) * 2**fmt.man + significand
    infinity = (2**fmt.exp - 1) << fmt.man
    codes = torch.where(v.isinf(), infinity, codes)
    not_a_number = infinity | (2**fmt.man - 1 if fmt.specials == "nan" else 2 ** (fmt.man - 1))
    codes = torch.where(v.isnan(), not_a_number, codes)
    patterns: Tensor = codes + torch.signbit(v).to(torch.int64) * 2 ** (fmt.bits - 1)
    return patterns


def _float_values(codes: Tensor, fmt: Float) -> Tensor:
    pattern = codes.to(torch.int64) & ((1 << fmt.bits) - 1)
    magnitude = pattern & ((1 << (fmt.bits - 1)) - 1)
    field, mantissa = magnitude >> fmt.man, (magnitude & ((1 << fmt.man) - 1)).double()
    normal = (mantissa * 2.0**-fmt.man + 1) * power_of_two(field - fmt.bias, torch.float64)
    small = mantissa * fmt.smallest if fmt.subnormals else torch.zeros_like(mantissa)
    values = torch.where(field == 0, small, normal)
    if fmt.specials == "ieee":
        top = field == 2**fmt.exp - 1
        values = torch.where(top, torch.where(mantissa == 0, torch.inf, torch.nan), values)
    elif fmt.specials == "nan":
        values = torch.where(magnitude == (1 << (fmt.bits - 1)) - 1, torch.nan, values)
    return torch.where((pattern >> (fmt.bits - 1)) == 1, -values, values)
