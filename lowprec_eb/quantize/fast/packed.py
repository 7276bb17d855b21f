"""Rounded tensors kept as 8-bit codes, from which their values come back bit for bit."""

from __future__ import annotations

import torch
from torch import Tensor

from lowprec_eb.formats import FixedPoint, Format
from lowprec_eb.quantize.fast import plan_for
from lowprec_eb.quantize.fast.call import Call

CODE_BITS = 8


class Packed:
    """What a rounded tensor's codes mean: format, scales, and how they lie. The codes themselves are kept elsewhere."""

    def __init__(self, call: Call, dtype: torch.dtype) -> None:
        self._call, self.dtype = call, dtype

    def unpack(self, codes: Tensor, out: Tensor | None = None) -> Tensor:
        """The rounded tensor, written to ``out`` if that is given; it lies as the codes do."""
        target = torch.empty_like(codes, dtype=self.dtype) if out is None else out
        self._call.decode(codes, target)
        return target


def round_and_pack(
    x: Tensor,
    fmt: Format,
    rounding: str,
    seed: Tensor | None,
    out: Tensor,
    bounds: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Packed] | None:
    """Round ``x`` into ``out``, another tensor of its strides; the codes (uint8, x's shape), and what they mean.

    ``bounds`` are the smallest and the largest finite number of the one block of an affine format, if they are known.

    None, and ``out`` has any content, where there are none: elements have more than 8 bits, ``x`` holds what is not
    finite, or no kernel rounds it where it lies.
    """
    made = plan_for(x, fmt, rounding)
    if isinstance(made, str) or not has_codes(fmt) or not x.numel():
        return None
    if (made.order is None and not x.is_contiguous()) or out.stride() != x.stride():
        return None
    codes = torch.empty_like(x, dtype=torch.uint8)
    call = Call(made, x, fmt, 0 if seed is None else int(seed), 0, out)
    call.known_bounds = bounds
    call.run([], codes)
    if call.met_infinity:
        return None
    call.forget_tensors()
    return codes, Packed(call, x.dtype)


def has_codes(fmt: Format) -> bool:
    """Whether 8 bits tell every finite number of a block apart."""
    element = fmt.element
    if isinstance(element, FixedPoint):
        return element.clamp and fmt.bits <= CODE_BITS
    return element.bits <= CODE_BITS and element.nan != "error"
