"""Which of torch's functions are matrix products, and how each becomes a low-precision one.

While a lowered module's forward runs, torch hands each of these calls to the handler of the same name. So it does not
matter how a layer is written: whoever multiplies with torch's own functions is covered, subclasses, parametrizations
and functional calls included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lowprec_eb import attention
from lowprec_eb.gemm import (
    ConvProducts,
    EinsumProducts,
    EmbeddingProducts,
    LinearProducts,
    MatmulProducts,
    Products,
    Role,
)
from lowprec_eb.product import low_precision_product
from lowprec_eb.rounder import Rounder
from lowprec_eb.scope import Scope


class Interception(TorchFunctionMode):
    """While it is entered, products are computed as ``scope`` says; one of them, made for each forward pass."""

    def __init__(self, scope: Scope, training: bool) -> None:
        super().__init__()
        self.scope, self.training, self.calls = scope, training, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = kwargs or {}
        if func in TAKEN_APART and not self.scope.is_plain:
            with self:
                return TAKEN_APART[func](*args, **keywords)
        if func not in PRODUCTS:
            return func(*args, **keywords)
        with torch._C.DisableTorchFunction():  # an enclosing scope must not see a product again
            if self.scope.is_plain:
                return func(*args, **keywords)
            if func not in HANDLERS:
                raise NotImplementedError(
                    f"layer {self.scope.name!r} calls {name_of(func)}, which has no low-precision version: write it as "
                    "a matmul, or leave the layer as it is by an override"
                )
            return HANDLERS[func](self, *args, **keywords)

    def product(self, first: Tensor, second: Tensor, bias: Tensor | None, products: Products) -> Tensor:
        for operand, role in zip((first, second), products.roles, strict=True):
            if role != "index" and (operand.layout != torch.strided or not operand.is_floating_point()):
                raise NotImplementedError(
                    f"layer {self.scope.name!r} multiplies a {operand.layout} tensor of {operand.dtype}: only dense "
                    "floating-point operands have a low precision; leave the layer as it is by an override"
                )
        rounder = Rounder(self.scope, self.training, self.calls, first, second)
        self.calls += 1
        return low_precision_product(first, second, bias, products, rounder)


# ---- handlers: torch's own arguments ------------------------------------------------------------------------------


def _linear(scope: Interception, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return scope.product(input, weight, bias, LinearProducts())


def _convolution(dims: int) -> Callable[..., Tensor]:
    def handler(
        scope: Interception,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        steps, spread = _each(stride, dims), _each(dilation, dims)
        if isinstance(padding, str):
            input, around = _padded(input, weight, padding, spread)
        else:
            around = _each(padding, dims)
        products = ConvProducts(steps, around, spread, groups)
        return _on_batches(scope, input, weight, bias, products, dims)

    return handler


def _transposed_convolution(dims: int) -> Callable[..., Tensor]:
    def handler(
        scope: Interception,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        dilation: Any = 1,
    ) -> Tensor:
        steps, around, spread, beyond = (_each(x, dims) for x in (stride, padding, dilation, output_padding))
        return _on_batches(scope, input, weight, bias, ConvProducts(steps, around, spread, groups, beyond), dims)

    return handler


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * dims if len(values) == 1 else values


def _padded(input: Tensor, weight: Tensor, padding: str, dilation: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """The input with what ``"same"`` adds on one side only, and the padding of both sides."""
    total = [0 if padding == "valid" else d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(t % 2 for t in total):
        input = F.pad(input, [n for t in reversed(total) for n in (0, t % 2)])
    return input, tuple(t // 2 for t in total)


def _on_batches(
    scope: Interception, input: Tensor, weight: Tensor, bias: Tensor | None, products: ConvProducts, dims: int
) -> Tensor:
    if input.dim() == dims + 2:
        return scope.product(input, weight, bias, products)
    return scope.product(input.unsqueeze(0), weight, bias, products).squeeze(0)


def _matmul(scope: Interception, input: Tensor, other: Tensor) -> Tensor:
    """``torch.matmul``: a vector is a matrix of one row, or one column."""
    first = input.unsqueeze(0) if input.dim() == 1 else input
    second = other.unsqueeze(-1) if other.dim() == 1 else other
    result = scope.product(first, second, None, MatmulProducts((_role(input), _role(other))))
    result = result.squeeze(-2) if input.dim() == 1 else result
    return result.squeeze(-1) if other.dim() == 1 else result


def _reflected_matmul(scope: Interception, input: Tensor, other: Tensor) -> Tensor:
    return _matmul(scope, other, input)


def _added_matmul(
    scope: Interception, input: Tensor, first: Tensor, second: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    """``torch.addmm`` and ``torch.baddbmm``."""
    products = MatmulProducts((_role(first), _role(second)))
    if input.dim() == 1 and alpha == beta == 1:
        return scope.product(first, second, input, products)
    result = scope.product(first, second, None, products)
    return (result if alpha == 1 else result * alpha) + (input if beta == 1 else input * beta)


def _role(x: Tensor) -> Role:
    """A parameter, or a view of one, is a weight."""
    return "weight" if isinstance(x, nn.Parameter) or isinstance(x._base, nn.Parameter) else "activation"


def _einsum(scope: Interception, equation: str, *operands: Any) -> Tensor:
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
    terms, arrow, result = equation.replace(" ", "").partition("->")
    indices = terms.split(",")
    if len(tensors) != 2 or not arrow or "..." in equation or not _is_plain_product(indices, result):
        raise NotImplementedError(
            f"layer {scope.scope.name!r} calls torch.einsum({equation!r}): in low precision it takes two operands, an "
            "explicit result, no ellipsis, no index twice in one operand and none in one operand alone"
        )
    first, second = tensors
    roles = (_role(first), _role(second))
    return scope.product(first, second, None, EinsumProducts(indices[0], indices[1], result, roles))


def _is_plain_product(terms: list[str], result: str) -> bool:
    first, second = terms
    for own, others in ((first, second + result), (second, first + result), (result, first + second)):
        if len(set(own)) < len(own) or not set(own) <= set(others):
            return False
    return True


def _embedding(
    scope: Interception,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None or sparse:
        raise NotImplementedError(
            f"layer {scope.scope.name!r}: an embedding with max_norm or sparse gradients has no low-precision version; "
            "leave it as it is by an override"
        )
    ignored = -1 if padding_idx is None else padding_idx % weight.shape[0]
    return scope.product(input, weight, None, EmbeddingProducts(ignored, scale_grad_by_freq))


# Functions made of several products, written anew from those.
TAKEN_APART: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: attention.scaled_dot_product_attention,
    F.multi_head_attention_forward: attention.multi_head_attention_forward,
}
HANDLERS: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    **{function: _convolution(dims) for dims, function in enumerate((F.conv1d, F.conv2d, F.conv3d), 1)},
    **{
        function: _transposed_convolution(dims)
        for dims, function in enumerate((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), 1)
    },
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv), _matmul),
    Tensor.__rmatmul__: _reflected_matmul,
    **dict.fromkeys((torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm), _added_matmul),
    torch.einsum: _einsum,
    F.embedding: _embedding,
}
# Products without a low-precision version: refused inside a lowered module.
_WITHOUT: tuple[Any, ...] = (
    *(F.bilinear, F.embedding_bag, torch.tensordot, torch.inner, Tensor.inner, torch.dot, Tensor.dot),
    *(torch.linalg.multi_dot, torch.chain_matmul, torch.addbmm, Tensor.addbmm, torch.sparse.mm),
    *(torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu),
    *(torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell),
)
PRODUCTS = frozenset([*TAKEN_APART, *HANDLERS, *_WITHOUT])


def name_of(function: Any) -> str:
    """``torch.matmul``, ``Tensor.matmul``: a function as users write it."""
    owner = "Tensor" if getattr(Tensor, function.__name__, None) is function else "torch"
    return f"{owner}.{function.__name__}"
