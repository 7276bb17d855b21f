"""Gradients through a quantizer: straight-through for the tensor, and for a learned number of bits or scale.

Source: Bengio et al. 2013 (straight-through); Esser et al. 2020 (LSQ), equation 3, for the scale; Yu et al. 2022 (LDP)
for the bits. Every gradient is linear in the incoming one and made of differentiable operations, so gradients of
gradients are defined.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lowprec_eb.formats import FixedPoint, Format, Int, is_affine
from lowprec_eb.quantize import operator
from lowprec_eb.quantize.blocks import fit_given, reduce_blocks, spread


class GradientRule(NamedTuple):
    """What happens to a gradient on its way back."""

    clamped: str = "pass"  # or "zero": that of elements beyond the range
    fmt: Format | None = None  # that it is rounded to; None: as it comes
    rounding: str = "nearest"


PLAIN = GradientRule()


class StraightThrough(torch.autograd.Function):
    """Forward rounds; backward passes the gradient on, where asked rounded and without that of clamped elements."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        fmt: Format | None,
        rounding: str,
        seed: Tensor | None,
        offset: Tensor | None,
        bits: Tensor | None,
        backend: str,
        rule: GradientRule,
        gradient_seed: Tensor | None,
        scale: Tensor | None,
        second_scale: Tensor | None,
    ) -> Tensor:
        if fmt is None:
            return x.clone()
        return operator.rounded(x, fmt, rounding, seed, offset, _given(scale, second_scale), bits, backend)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, fmt, _, _, ctx.offset, bits, ctx.backend, ctx.rule, ctx.gradient_seed, scale, second = inputs
        scales = _given(scale, second)
        ctx.fmt = fmt
        learned = [part is not None and part.requires_grad for part in (bits, *scales)]
        if any(learned):  # only then, so that a layer behind may overwrite the output
            ctx.save_for_backward(x, output, bits, *scales)
        elif ctx.rule.clamped == "zero":
            ctx.save_for_backward(x, None, bits, *scales)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        fmt, rounding = ctx.rule.fmt, ctx.rule.rounding
        of_bits: Tensor | None = None
        of_scale: Tensor | None = None
        passed = gradient
        if ctx.saved_tensors:
            x, out, bits, *scales = ctx.saved_tensors
            inside = operator.in_range(x.detach(), repr(ctx.fmt), [s.detach() for s in scales], _detached(bits))
            if ctx.needs_input_grad[5]:
                of_bits = _gradient_of_bits(gradient, x, out, inside, ctx.fmt, bits, scales)
            if scales and ctx.needs_input_grad[9]:
                of_scale = _gradient_of_scale(gradient, x, out, inside, ctx.fmt, scales)
            if ctx.rule.clamped == "zero":
                passed = torch.where(inside, gradient, 0.0)
        if fmt is not None and ctx.needs_input_grad[0]:
            arguments = (fmt, rounding, ctx.gradient_seed, ctx.offset, None, ctx.backend, PLAIN, None, None, None)
            passed = straight_through(passed, *arguments)
        return passed, None, None, None, None, of_bits, None, None, None, of_scale, None


def straight_through(*arguments: Any) -> Tensor:
    """``StraightThrough.apply`` on all its arguments, by position.

    ``apply`` binds them to the signature first, which takes longer than the rest; a transform needs the whole of it.
    """
    watched = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    apply: Any = StraightThrough.apply if watched else super(torch.autograd.Function, StraightThrough).apply
    result: Tensor = apply(*arguments)
    return result


def may_need_gradient(inputs: tuple[Tensor, ...]) -> bool:
    """Whether to go through :class:`StraightThrough`. Under a transform, tensors do not tell; a tracer need not ask."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level >= 0:  # forward mode, which is refused there
        return True
    return any(tensor.requires_grad for tensor in inputs)


def _given(scale: Tensor | None, second_scale: Tensor | None) -> list[Tensor]:
    return [part for part in (scale, second_scale) if part is not None]


def _detached(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.detach()


def _gradient_of_scale(
    gradient: Tensor, x: Tensor, out: Tensor, inside: Tensor, fmt: Format, scales: list[Tensor]
) -> Tensor:
    """Of the given (block) scale: (out - x) / scale, and out / scale of clamped elements, summed over each block."""
    assert fmt.blocks is not None
    scale = spread(fit_given(scales[0].detach(), fmt.blocks, x.shape), fmt.blocks, x.shape)
    zero: Tensor | float = 0.0
    if isinstance(fmt, Int) and fmt.zero_point == "minimum":
        zero = spread(fit_given(scales[1], fmt.blocks, x.shape), fmt.blocks, x.shape)
    each = gradient * (out - torch.where(inside, x, zero)).detach() / scale
    if scales[0].numel() == 1:
        return each.sum().reshape(scales[0].shape)
    summed = reduce_blocks(each, fmt.blocks, lambda t, dims: t.sum(dims, keepdim=True), fill=0.0)
    return summed.reshape(scales[0].shape)


def _gradient_of_bits(
    gradient: Tensor, x: Tensor, out: Tensor, inside: Tensor, fmt: Format, bits: Tensor, scales: list[Tensor]
) -> Tensor:
    """(rounded - exact) times the step's logarithmic slope; a clamped element follows the end of the range.

    Bits stay a tensor here, so that a compiled backward pass holds for every value.
    """
    whole = bits.detach().round().to(torch.promote_types(x.dtype, torch.float32))  # float16 lacks 2 ** 16
    error = (out - x).detach()
    step_slope, end_slope = _slopes(fmt, whole, given=bool(scales))
    end = _end_sign(error, fmt) * end_slope * _step(x, fmt, bits.detach(), whole, scales)
    each = torch.where(inside, error * step_slope, end)
    return (gradient * each).sum().reshape(bits.shape)


def _slopes(fmt: Format, bits: Tensor, given: bool) -> tuple[Tensor | float, Tensor | float]:
    """d log(step) / d bits, and d (end of the range) / d bits in steps."""
    if not isinstance(fmt, Int):
        return -math.log(2), math.log(2)
    levels = torch.exp2(bits - 1) - 1 if fmt.symmetric else torch.exp2(bits) - 1
    slope = math.log(2) * (levels + 1)
    return (0.0, slope) if given else (-slope / levels, 0.0)


def _step(x: Tensor, fmt: Format, bits: Tensor, whole: Tensor, scales: list[Tensor]) -> Tensor:
    if isinstance(fmt, FixedPoint):
        return torch.exp2(fmt.wl - fmt.fl - whole)
    assert fmt.blocks is not None
    found = scales or operator.scales_of(x.detach(), repr(fmt), bits)
    scale = spread(fit_given(found[0].detach(), fmt.blocks, x.shape), fmt.blocks, x.shape)
    return scale if isinstance(fmt, Int) else scale * torch.exp2(2 - whole)


def _end_sign(error: Tensor, fmt: Format) -> Tensor:
    """+1 where clamped from above, -1 from below, and 0 at an end that does not move with the bits."""
    from_above = (error < 0).to(error.dtype)
    lowest_stays = is_affine(fmt) or (isinstance(fmt, FixedPoint) and not fmt.symmetric)
    return from_above if lowest_stays else 2 * from_above - 1
