"""Running ranges: what training saw of an operand's values, for evaluation to use instead of the batch's own.

Source: the quantizer of the dynamic-precision papers (Banner et al. 2018; Fu et al., FracTrain, NeurIPS 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_eb.formats import Format, Int, is_affine
from lowprec_eb.quantize import operator

_SMALLEST_SCALE = 2.0**-126


def follow(ranges: dict[str, Tensor], key: str, x: Tensor, fmt: Format, momentum: float) -> tuple[Tensor, Tensor]:
    """Move the running range of ``key`` by ``1 - momentum`` towards that of ``x``; the first one is taken as it is.

    Returns the smallest and the largest finite number of each block of ``x``.
    """
    lowest, highest = operator.bounds_of(x.detach(), repr(fmt))
    seen = _span_and_lowest(lowest, highest, fmt)
    known = ranges.get(key)
    if known is None or known.shape != seen.shape:
        ranges[key] = seen
    else:
        ranges[key] = known.to(seen.device) * momentum + seen * (1 - momentum)
    return lowest, highest


def running_scales(known: Tensor, fmt: Format, bits: Tensor | None) -> list[Tensor]:
    """What a quantizer takes as given scales."""
    span, lowest = known.unbind()
    scale = (span / _levels(fmt, bits)).clamp_min(_SMALLEST_SCALE)
    return [scale, lowest] if is_affine(fmt) else [scale]


def _levels(fmt: Format, bits: Tensor | None) -> float | Tensor:
    if not isinstance(fmt, Int):
        return fmt.element.max
    if bits is None:
        return fmt.levels
    return torch.exp2(bits - 1.0) - 1 if fmt.symmetric else torch.exp2(bits.float()) - 1


def _span_and_lowest(lowest: Tensor, highest: Tensor, fmt: Format) -> Tensor:
    """Of each block, in the first dimension: the width of its range and the lower end; 0 where nothing is finite."""
    empty = lowest > highest
    lowest, highest = lowest.masked_fill(empty, 0.0), highest.masked_fill(empty, 0.0)
    if is_affine(fmt):
        return torch.stack([highest - lowest, lowest])
    return torch.stack([torch.maximum(-lowest, highest), torch.zeros_like(lowest)])
