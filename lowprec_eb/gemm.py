"""The three matrix products of a layer, as functions of two operands.

The seam of the project: layers ask for ``output``, ``grad_input`` and ``grad_weight`` and do not know how they are
computed. Here they are simulated: the operands already hold low-precision values, the product accumulates in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Products(Protocol):
    """The products of one kind of layer. Shapes are the layer's own."""

    def output(self, activation: Tensor, weight: Tensor) -> Tensor: ...

    def grad_input(self, error: Tensor, weight: Tensor, activation: Tensor) -> Tensor:
        """Gradient w.r.t. the activation, of which only the shape is read."""
        ...

    def grad_weight(self, activation: Tensor, error: Tensor, weight: Tensor) -> Tensor:
        """Gradient w.r.t. the weight, of which only the shape is read."""
        ...

    def grad_bias(self, activation: Tensor, error: Tensor, weight: Tensor) -> Tensor:
        """Gradient w.r.t. a bias: the error summed over all but the channels. No GEMM, but kernels fuse it with one."""
        ...


def _rows(x: Tensor) -> Tensor:
    """(..., features) -> (rows, features)."""
    return x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class LinearProducts:
    """``y = x @ w.T`` with x (..., in), w (out, in), y (..., out)."""

    def output(self, activation: Tensor, weight: Tensor) -> Tensor:
        return F.linear(activation, weight)

    def grad_input(self, error: Tensor, weight: Tensor, activation: Tensor) -> Tensor:
        return error.matmul(weight)

    def grad_weight(self, activation: Tensor, error: Tensor, weight: Tensor) -> Tensor:
        return _rows(error).t().mm(_rows(activation))

    def grad_bias(self, activation: Tensor, error: Tensor, weight: Tensor) -> Tensor:
        return _rows(error).sum(0)


@dataclass(frozen=True)
class Conv2dProducts:
    """2-d convolution with x (n, in, h, w), w (out, in / groups, kh, kw), y (n, out, oh, ow)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output(self, activation: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(activation, weight, None, self.stride, self.padding, self.dilation, self.groups)

    def grad_input(self, error: Tensor, weight: Tensor, activation: Tensor) -> Tensor:
        return self._backward(error, activation, weight, (True, False, False))[0]

    def grad_weight(self, activation: Tensor, error: Tensor, weight: Tensor) -> Tensor:
        return self._backward(error, activation, weight, (False, True, False))[1]

    def grad_bias(self, activation: Tensor, error: Tensor, weight: Tensor) -> Tensor:
        return self._backward(error, activation, weight, (False, False, True))[2]

    def _backward(
        self, error: Tensor, activation: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        bias_sizes, transposed, output_padding = [weight.shape[0]], False, [0, 0]
        geometry = (self.stride, self.padding, self.dilation, transposed, output_padding, self.groups)
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            error, activation, weight, bias_sizes, *geometry, wanted
        )
        return result
