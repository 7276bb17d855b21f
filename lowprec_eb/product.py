"""A product of two operands in low precision, with its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lowprec_eb.gemm import Gemm, Products, simulate, simulate_in_chunks
from lowprec_eb.rounder import Reading, Rounder

# By a factor's role: the GEMM that gives its gradient, and the one under which a precision says how a backward GEMM
# reads it. Attention's backward products are grad_input.
_GRADIENT = {"activation": "grad_input", "weight": "grad_weight", "index": "grad_input"}
_READ_AGAIN = {"activation": "grad_weight", "weight": "grad_input", "index": "grad_weight"}


def low_precision_product(
    first: Tensor, second: Tensor, bias: Tensor | None, products: Products, rounder: Rounder
) -> Tensor:
    """``products.output(first, second) + bias``, each GEMM on operands as the rounder's scope reads them.

    Rounding is straight-through. Under autocast the operands are cast first, as torch's own products cast theirs.
    """
    device = first.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        first, second, bias = (_cast(part, dtype) for part in (first, second, bias))  # type: ignore[assignment]
        with torch.autocast(device, enabled=False):
            return _apply(first, second, bias, products, rounder)
    return _apply(first, second, bias, products, rounder)


def _cast(part: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return part.to(dtype) if part is not None and part.dtype == torch.float32 else part


def _apply(first: Tensor, second: Tensor, bias: Tensor | None, products: Products, rounder: Rounder) -> Tensor:
    if first is second:  # a compiler takes a tensor once
        second = second.view_as(second)
    for x, reading in zip((first, second), readings_of(products), strict=False):
        if reading.operand != "index":
            rounder.follow(x, reading)
    # Asked here, since a compiler does not know needs_input_grad in the forward pass.
    wanted = tuple(torch.is_grad_enabled() and part.requires_grad for part in (first, second))
    result: Tensor = _LowPrecisionProduct.apply(first, second, bias, products, rounder, wanted)  # type: ignore[no-untyped-call]
    return result


class _LowPrecisionProduct(torch.autograd.Function):
    """``output`` and both gradients on rounded operands."""

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor,
        bias: Tensor | None,
        products: Products,
        rounder: Rounder,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        ctx.products, ctx.rounder = products, rounder
        readings = readings_of(products)
        ctx.reads_again = again = rounder.reads_again(first)
        a = _read(rounder, first, readings[0], "first" if again else "")
        b = _read(rounder, second, readings[1], "second" if again else "")
        if any(wanted) and again:
            ctx.save_for_backward(first, second)
        elif any(wanted):
            a_again = _read_again(rounder, first, a, readings[0], readings[5]) if wanted[1] else a
            b_again = _read_again(rounder, second, b, readings[1], readings[3]) if wanted[0] else b
            ctx.save_for_backward(a_again, b_again)
        result = _accumulated(rounder, products, "output", a, b, "output")
        if bias is not None:
            result = result + bias.view(_bias_shape(products, result.dim()))
        return rounder.result(result, "output", ("output", None))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        first, second = ctx.saved_tensors
        wants_first, wants_second, wants_bias = ctx.needs_input_grad[:3]
        rounder, (_, _, of_first, _, of_second, _) = ctx.rounder, readings_of(ctx.products)
        error = grad_first = grad_second = None
        if wants_first:
            error = _read(rounder, grad_output, of_first, "error")
            grad_first = _gradient(ctx, "grad_first", error, second, first)
        if error is None or not rounder.reads_alike(of_first, of_second):
            error = _read(rounder, grad_output, of_second, "error") if wants_second or wants_bias else None
        if wants_second:
            grad_second = _gradient(ctx, "grad_second", error, first, second)
        if rounder.scope.rotations[of_second.gemm] is not None:
            error = grad_output  # a rotated one would sum to something else
        grad_bias = _sum_to_bias(ctx.products, error) if wants_bias else None
        return grad_first, grad_second, grad_bias, None, None, None


def readings_of(products: Products) -> tuple[Reading, Reading, Reading, Reading, Reading, Reading]:
    """How the three products read their operands: (first, second), (error, second), (error, first)."""
    (one, two), output, of_first, of_second = products.roles, *products.summed
    second_slot = "second activation" if one == two else two
    to_first, to_second = _GRADIENT[one], _GRADIENT[two]
    return (
        Reading(one, "output", "output", output.first, output.first_parts, one),
        Reading(two, "output", "output", output.second, output.second_parts, second_slot),
        Reading("error", to_first, to_first, of_first.first, of_first.first_parts, "error"),
        Reading(two, _READ_AGAIN[two], to_first, of_first.second, of_first.second_parts, second_slot),
        Reading("error", to_second, to_second, of_second.first, of_second.first_parts, "error"),
        Reading(one, _READ_AGAIN[one], to_second, of_second.second, of_second.second_parts, one),
    )


def _read(rounder: Rounder, x: Tensor, reading: Reading, place: str = "", shown: bool = True) -> Tensor:
    return x if reading.operand == "index" else rounder.operand(x, reading, place, shown)


def _read_again(rounder: Rounder, x: Tensor, known: Tensor, forward: Reading, backward: Reading) -> Tensor:
    """A factor as the backward GEMM reads it; ``known`` is how the forward one does."""
    if backward.operand == "index" or rounder.reads_alike(forward, backward):
        return known
    return _read(rounder, x, backward)


def _gradient(ctx: Any, gemm: Gemm, error: Tensor | None, factor: Tensor, like: Tensor) -> Tensor:
    """Of the factor whose shape is ``like``'s, from the other ``factor``."""
    assert error is not None
    rounder, readings = ctx.rounder, readings_of(ctx.products)
    reading, forward, again = readings[2], readings[1], readings[3]
    if gemm == "grad_second":
        reading, forward, again = readings[4], readings[0], readings[5]
    if ctx.reads_again and again.operand != "index":  # what came was kept, not how it was read
        place = "second" if gemm == "grad_first" else "first"
        factor = _read(rounder, factor, again, place, shown=not rounder.reads_alike(forward, again))
    return _accumulated(rounder, ctx.products, gemm, error, factor, reading.gemm, like)


def _accumulated(
    rounder: Rounder, products: Products, gemm: Gemm, a: Tensor, b: Tensor, named: str, like: Tensor | None = None
) -> Tensor:
    """The product as it leaves the accumulator; ``named`` is the GEMM to the precision."""
    chunk = rounder.scope.precision.accumulator_chunk
    # Without values, as the counter runs a model, a GEMM is one GEMM, however it is simulated.
    if chunk is None or b.is_meta:
        return rounder.result(simulate(products, gemm, a, b, like), "accumulator", ("accumulator", named))
    dtype = a.dtype if a.is_floating_point() else b.dtype
    return rounder.accumulated(simulate_in_chunks(products, gemm, a, b, chunk, like), named).to(dtype)


def _sum_to_bias(products: Products, error: Tensor | None) -> Tensor:
    assert error is not None
    channels = products.channel_axis % error.dim()
    others = [axis for axis in range(error.dim()) if axis != channels]
    return error.sum(others) if others else error.clone()


def _bias_shape(products: Products, dims: int) -> tuple[int, ...]:
    return (-1, *[1] * (dims - 1 - products.channel_axis % dims))
