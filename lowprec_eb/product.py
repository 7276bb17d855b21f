"""A product of two operands in low precision, with its gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from energy_models.tracing import is_counting
from lowprec_eb.gemm import Gemm, Products, simulate, simulate_in_chunks
from lowprec_eb.quantize.fast.packed import Packed
from lowprec_eb.rounder import Reading, Rounder
from lowprec_eb.scratch import scratch

# By a factor's role: the GEMM that gives its gradient, and the one under which a precision says how a backward GEMM
# reads it. Attention's backward products are grad_input.
_GRADIENT = {"activation": "grad_input", "weight": "grad_weight", "index": "grad_input"}
_READ_AGAIN = {"activation": "grad_weight", "weight": "grad_input", "index": "grad_weight"}
Readings = tuple[Reading, Reading, Reading, Reading, Reading, Reading]


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
    readings = readings_of(products)
    for x, reading in zip((first, second), readings, strict=False):
        if reading.operand != "index":
            rounder.follow(x, reading)
    # Asked here, since a compiler does not know needs_input_grad in the forward pass.
    wanted = tuple(torch.is_grad_enabled() and part.requires_grad for part in (first, second))
    result: Tensor = _LowPrecisionProduct.apply(first, second, bias, products, rounder, readings, wanted)  # type: ignore[no-untyped-call]
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
        readings: Readings,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        ctx.products, ctx.rounder, ctx.readings = products, rounder, readings
        a, kept_a, packed_a = _read_to_keep(rounder, first, readings[0], readings[5], "first", wanted[1])
        b, kept_b, packed_b = _read_to_keep(rounder, second, readings[1], readings[3], "second", wanted[0])
        ctx.packed = packed_a, packed_b
        ctx.save_for_backward(kept_a, kept_b)
        result = _accumulated(rounder, products, "output", a, b, "output")
        if bias is not None:
            result = result + bias.view(_bias_shape(products, result.dim()))
        return rounder.result(result, "output", ("output", None))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        first, second = map(_unpacked, ctx.packed, ctx.saved_tensors, ("first", "second"))
        wants_first, wants_second, wants_bias = ctx.needs_input_grad[:3]
        rounder, (_, _, of_first, _, of_second, _) = ctx.rounder, ctx.readings
        error = grad_first = grad_second = None
        if wants_first:
            error = _read(rounder, grad_output, of_first, "error")
            grad_first = _gradient(ctx, "grad_first", error, second, first, of_first)
        if error is None or not rounder.reads_alike(of_first, of_second):
            error = _read(rounder, grad_output, of_second, "error") if wants_second or wants_bias else None
        if wants_second:
            grad_second = _gradient(ctx, "grad_second", error, first, second, of_second)
        if rounder.scope.rotations[of_second.gemm] is not None:
            error = grad_output  # a rotated one would sum to something else
        grad_bias = _sum_to_bias(ctx.products, error) if wants_bias else None
        return grad_first, grad_second, grad_bias, None, None, None, None


def readings_of(products: Products) -> Readings:
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


def _read(rounder: Rounder, x: Tensor, reading: Reading, place: str = "") -> Tensor:
    return x if reading.operand == "index" else rounder.operand(x, reading, place)


def _read_to_keep(
    rounder: Rounder, x: Tensor, forward: Reading, backward: Reading, place: str, wanted: bool
) -> tuple[Tensor, Tensor, Packed | None]:
    """A factor as the forward GEMM reads it, what is kept of it, and what that means if it is codes.

    Not ``wanted``, only its shape is: then an alias of what came is kept, which may change as for torch's products.
    """
    if not wanted or forward.operand == "index":
        return _read(rounder, x, forward, place), x if wanted else x.data, None
    if not rounder.reads_alike(forward, backward):
        return _read(rounder, x, forward, place), _read(rounder, x, backward), None
    found = rounder.packed(x, forward, place)
    if found is not None:
        return found
    rounded = _read(rounder, x, forward)
    return rounded, rounded, None


def _unpacked(packed: Packed | None, kept: Tensor, place: str) -> Tensor:
    if packed is None:
        return kept
    return packed.unpack(kept, scratch.like(place, kept, packed.dtype))


def _gradient(ctx: Any, gemm: Gemm, error: Tensor | None, factor: Tensor, like: Tensor, reading: Reading) -> Tensor:
    assert error is not None
    return _accumulated(ctx.rounder, ctx.products, gemm, error, factor, reading.gemm, like)


def _accumulated(
    rounder: Rounder, products: Products, gemm: Gemm, a: Tensor, b: Tensor, named: str, like: Tensor | None = None
) -> Tensor:
    """The product as it leaves the accumulator; ``named`` is the GEMM to the precision."""
    chunk = rounder.scope.precision.accumulator_chunk
    if chunk is None or is_counting():  # a GEMM is one GEMM, however it is simulated
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
