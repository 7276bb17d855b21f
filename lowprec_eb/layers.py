"""Layers whose three GEMMs read low-precision operands.

A lowered layer is the very module it was: :func:`lowprec_eb.lower` changes its class and adds one attribute, so its
parameters, state_dict keys, hooks and name stay as they are, and deepcopy and pickle work as before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lowprec_eb.formats import Format
from lowprec_eb.gemm import Conv2dProducts, LinearProducts, Products
from lowprec_eb.precision import Precision
from lowprec_eb.quantize import draw_seeds, quantize

_ROUNDED = ("activation", "weight", "output", "error")


class _Rounder:
    """Rounds the operands of one forward and backward pass, each with its own seed drawn in the forward pass.

    In eval mode everything rounds to nearest, the error of a backward pass included. Drawing in the forward pass
    keeps the stream independent of the order in which autograd runs the layers.
    """

    def __init__(self, precision: Precision, training: bool) -> None:
        self.precision = precision
        self.rounding = precision.rounding if training else "nearest"
        self.seeds = draw_seeds(len(_ROUNDED)).unbind() if self.rounding == "stochastic" else None

    def __call__(self, x: Tensor, operand: str) -> Tensor:
        fmt: Format | None = getattr(self.precision, operand)
        if fmt is None:
            return x
        seed = None if self.seeds is None else self.seeds[_ROUNDED.index(operand)]
        return quantize(x, fmt, self.rounding, seed=seed, backend=self.precision.backend)  # type: ignore[arg-type]


class _LowPrecisionProduct(torch.autograd.Function):
    """``output``, ``grad_input`` and ``grad_weight`` on rounded operands; rounding itself is straight-through."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, rounder: _Rounder, products: Products
    ) -> Tensor:
        activation, rounded_weight = rounder(x, "activation"), rounder(weight, "weight")
        ctx.save_for_backward(activation, rounded_weight)
        ctx.rounder, ctx.products = rounder, products
        result = products.output(activation, rounded_weight)
        if bias is not None:
            result += bias.view(-1, *[1] * (weight.dim() - 2))
        return rounder(result, "output")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        activation, weight = ctx.saved_tensors
        error = ctx.rounder(grad_output, "error")
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        return (
            ctx.products.grad_input(error, weight, activation) if wants_input else None,
            ctx.products.grad_weight(activation, error, weight) if wants_weight else None,
            ctx.products.grad_bias(activation, error, weight) if wants_bias else None,
            None,
            None,
        )


class LoweredLayer(nn.Module):
    """What lowered layers share: their precision, and what the operation counter asks them."""

    lowering: Precision
    weight: Tensor
    bias: Tensor | None

    def operand_format(self, gemm: str, operand: str) -> Format | None:
        """The format in which ``gemm`` reads ``operand``; None is float32."""
        return self.lowering.gemm_operand(operand)

    def _product(self, x: Tensor, products: Products) -> Tensor:
        rounder = _Rounder(self.lowering, self.training)
        result: Tensor = _LowPrecisionProduct.apply(x, self.weight, self.bias, rounder, products)  # type: ignore[no-untyped-call]
        return result

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.lowering.name}"


class LoweredLinear(LoweredLayer, nn.Linear):  # type: ignore[misc]
    """``nn.Linear`` on rounded operands. x (..., in) -> (..., out)."""

    def forward(self, input: Tensor) -> Tensor:
        return self._product(input, LinearProducts())


class LoweredConv2d(LoweredLayer, nn.Conv2d):
    """``nn.Conv2d`` on rounded operands. x (n, in, h, w) -> (n, out, oh, ow)."""

    def forward(self, input: Tensor) -> Tensor:
        assert not isinstance(self.padding, str)
        if input.dim() != 4:
            raise ValueError(f"a lowered Conv2d reads (n, c, h, w), got {tuple(input.shape)}; add the batch dimension")
        return self._product(input, Conv2dProducts(self.stride, self.padding, self.dilation, self.groups))
