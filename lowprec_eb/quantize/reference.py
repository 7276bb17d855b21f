"""The reference quantizers: short, plain torch, for reading. Any faster back end must give the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_eb.formats import BF16, FP16, BlockFloat, FixedPoint, Float, Format
from lowprec_eb.quantize.random_bits import uniform

_SMALLEST_EXPONENT = {torch.float32: -149, torch.float64: -1074}  # of a subnormal: no step is finer
_CASTS = {BF16: torch.bfloat16, FP16: torch.float16}  # formats that a torch cast defines


def quantize(x: Tensor, fmt: Format, rounding: str, seed: Tensor | None, offset: int) -> Tensor:
    """``x`` rounded to ``fmt``; same shape and dtype. NaN and infinities pass through unless the format saturates."""
    if rounding == "nearest" and fmt in _CASTS:
        return x.to(_CASTS[fmt]).to(x.dtype)
    wide = x.to(torch.float64 if isinstance(fmt, Float) else torch.promote_types(x.dtype, torch.float32))
    match fmt:
        case BlockFloat():
            result = _block_float(wide, fmt, rounding, seed, offset)
        case FixedPoint():
            result = _fixed_point(wide, fmt, rounding, seed, offset)
        case Float():
            result = _float(wide, fmt, rounding, seed, offset)
    return result.to(x.dtype)


def _block_float(x: Tensor, fmt: BlockFloat, rounding: str, seed: Tensor | None, offset: int) -> Tensor:
    if fmt.dim >= max(x.dim(), 1):
        raise ValueError(f"{fmt!r} needs a tensor with more than {fmt.dim} dimensions, got shape {tuple(x.shape)}")
    if x.numel() == 0:
        return x.clone()
    finite = torch.isfinite(largest := _largest_magnitude(x, fmt))
    if damaged := not bool(finite.all()):
        largest = _largest_magnitude(x.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), fmt)
    exponent = torch.frexp(largest).exponent - 1  # largest = m * 2 ** exponent, 1 <= m < 2
    step = _power_of_two((exponent - (fmt.wl - 2)).clamp_(min=_SMALLEST_EXPONENT[x.dtype]), x.dtype)
    codes = _round(x / step, rounding, seed, offset).clamp_(-fmt.max_code, fmt.max_code)
    result = codes.mul_(step)
    # A NaN or an infinity stays visible and leaves the rest of its block alone.
    return torch.where(torch.isfinite(x), result, x) if damaged else result


def _largest_magnitude(x: Tensor, fmt: BlockFloat) -> Tensor:
    """Largest |x| of each block, broadcastable against ``x``."""
    others = [d for d in range(x.dim()) if d != fmt.dim]
    return x.abs().amax(dim=others, keepdim=True) if others else x.abs()


def _fixed_point(x: Tensor, fmt: FixedPoint, rounding: str, seed: Tensor | None, offset: int) -> Tensor:
    codes = _round(x / fmt.step, rounding, seed, offset)
    if fmt.clamp:
        codes = codes.clamp_(fmt.min_code, fmt.max_code)
    return codes.mul_(fmt.step)


def _float(x: Tensor, fmt: Float, rounding: str, seed: Tensor | None, offset: int) -> Tensor:
    exponent = (torch.frexp(x).exponent - 1).clamp_(min=fmt.min_exponent)
    step = _power_of_two(exponent - fmt.man, x.dtype)
    ties = "nearest_away" if rounding == "nearest" and fmt.ties == "away" else rounding
    rounded = _round(x / step, ties, seed, offset).mul_(step)
    if fmt.overflow == "infinity":
        rounded = torch.where(rounded.abs() > fmt.max, rounded.sign() * torch.inf, rounded)
    else:
        rounded = rounded.clamp_(-fmt.max, fmt.max)
    return torch.where(torch.isfinite(x), rounded, x if fmt.overflow == "infinity" else rounded)


def _power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.ldexp(torch.ones_like(exponent, dtype=dtype), exponent)


def _round(v: Tensor, rounding: str, seed: Tensor | None, offset: int) -> Tensor:
    """Whole numbers near ``v``, which it may overwrite."""
    if rounding == "nearest":
        return v.round_()  # ties to even
    if rounding == "nearest_away":
        return v.sign().mul_((whole := v.abs().floor_()).add_(v.abs_().sub_(whole) >= 0.5))
    assert seed is not None
    floor = v.floor()
    above = v.sub_(floor)  # exact, so a value on the grid never moves; floor(v + u) would round v + u first
    goes_up = above.sub_(uniform(v.shape, seed, offset, v.dtype)).ceil_()  # 1 where u < above, else 0
    return floor.add_(goes_up)
