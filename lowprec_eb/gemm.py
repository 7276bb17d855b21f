"""The matrix products of a layer, forward and backward, as functions of two operands.

The seam of the project: layers hand :func:`simulate` the operands, plain or encoded, and do not know how a product is
computed. Here it is simulated: the operands hold low-precision values, the product accumulates in their dtype.

Of a layer, the first factor is its input and the second its weight, so ``grad_first`` is the GEMM named ``grad_input``
and ``grad_second`` the one named ``grad_weight``. Both factors of attention's products are activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lowprec_eb.formats import Format
from lowprec_eb.quantize import decode

Role = Literal["activation", "weight", "index"]  # an index only selects: it is never rounded and has no gradient
LEADING = None  # in place of an axis: all dimensions but the last


class Summed(NamedTuple):
    """The dimension that a product sums over, in its two operands; :data:`LEADING` for all but the last."""

    first: int | None
    second: int | None
    first_parts: int = 1  # of that dimension, each summed by itself: the groups of a convolution
    second_parts: int = 1


class Products(Protocol):
    """The products of one kind of layer. Shapes are the layer's own; ``like`` is read for its shape alone."""

    @property
    def roles(self) -> tuple[Role, Role]:
        """Of the first and the second factor."""
        ...

    @property
    def channel_axis(self) -> int:
        """Of the result: what a bias has one number for."""
        ...

    def output(self, first: Tensor, second: Tensor) -> Tensor: ...

    def grad_first(self, error: Tensor, second: Tensor, like: Tensor) -> Tensor: ...

    def grad_second(self, error: Tensor, first: Tensor, like: Tensor) -> Tensor: ...

    @property
    def summed(self) -> tuple[Summed, Summed, Summed]:
        """Of output (first, second), grad_first (error, second) and grad_second (error, first)."""
        ...


@dataclass(frozen=True)
class Encoded:
    """An operand as hardware holds it: what :func:`lowprec_eb.encode` gives, the format, and the dtype meant."""

    codes: Tensor
    scales: Tensor | tuple[Tensor, Tensor] | None
    fmt: Format
    dtype: torch.dtype = torch.float32


Operand = Tensor | Encoded
Gemm = Literal["output", "grad_first", "grad_second"]


def simulate(products: Products, gemm: Gemm, first: Operand, second: Operand, like: Tensor | None = None) -> Tensor:
    """One product, in the operands' dtype. ``like`` is the factor whose gradient is asked for, read for its shape."""
    a, b = _plain(first), _plain(second)
    if gemm == "output":
        return products.output(a, b)
    assert like is not None
    return products.grad_first(a, b, like) if gemm == "grad_first" else products.grad_second(a, b, like)


def _plain(operand: Operand) -> Tensor:
    if isinstance(operand, Tensor):
        return operand
    return decode(operand.codes, operand.scales, operand.fmt, dtype=operand.dtype)


def _rows(x: Tensor) -> Tensor:
    """(..., features) -> (rows, features)."""
    return x.reshape(-1, x.shape[-1])


@dataclass(frozen=True)
class LinearProducts:
    """``y = x @ w.T`` with x (..., in), w (out, in), y (..., out)."""

    roles: ClassVar[tuple[Role, Role]] = ("activation", "weight")
    summed: ClassVar[tuple[Summed, Summed, Summed]] = (Summed(-1, -1), Summed(-1, 0), Summed(LEADING, LEADING))
    channel_axis: ClassVar[int] = -1

    def output(self, first: Tensor, second: Tensor) -> Tensor:
        return F.linear(first, second)

    def grad_first(self, error: Tensor, second: Tensor, like: Tensor) -> Tensor:
        return error.matmul(second)

    def grad_second(self, error: Tensor, first: Tensor, like: Tensor) -> Tensor:
        return _rows(error).t().mm(_rows(first))


@dataclass(frozen=True)
class ConvProducts:
    """Convolution of 1 to 3 dimensions, plain or transposed: x (n, in, ...), y (n, out, ...).

    w is (out, in / groups, ...), transposed (in, out / groups, ...).
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] | None = None  # None: not transposed

    roles: ClassVar[tuple[Role, Role]] = ("activation", "weight")
    channel_axis: ClassVar[int] = 1

    @property
    def summed(self) -> tuple[Summed, Summed, Summed]:
        # The weight's axis of input and of output channels, and whether the groups lie along it one behind the other.
        (into, its_parts), (out_of, their_parts) = (1, 1), (0, self.groups)
        if self._transposed:
            (into, its_parts), (out_of, their_parts) = (0, self.groups), (1, 1)
        return Summed(1, into, self.groups, its_parts), Summed(1, out_of, self.groups, their_parts), Summed(0, 0)

    @property
    def _transposed(self) -> bool:
        return self.output_padding is not None

    @property
    def _geometry(self) -> tuple[Sequence[int], Sequence[int], Sequence[int], bool, Sequence[int], int]:
        beyond = self.output_padding or (0,) * len(self.stride)
        return self.stride, self.padding, self.dilation, self._transposed, beyond, self.groups

    def output(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.convolution(first, second, None, *self._geometry)

    def grad_first(self, error: Tensor, second: Tensor, like: Tensor) -> Tensor:
        return self._backward(error, like, second, (True, False, False))[0]

    def grad_second(self, error: Tensor, first: Tensor, like: Tensor) -> Tensor:
        return self._backward(error, first, like, (False, True, False))[1]

    def _backward(
        self, error: Tensor, first: Tensor, second: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            error, first, second, None, *self._geometry, wanted
        )
        return result


@dataclass(frozen=True)
class MatmulProducts:
    """``y = a @ b`` of matrices or batches of them: a (..., m, k), b (..., k, n), y (..., m, n)."""

    roles: tuple[Role, Role]
    summed: ClassVar[tuple[Summed, Summed, Summed]] = (Summed(-1, -2), Summed(-1, -1), Summed(-2, -2))
    channel_axis: ClassVar[int] = -1

    def output(self, first: Tensor, second: Tensor) -> Tensor:
        return first.matmul(second)

    def grad_first(self, error: Tensor, second: Tensor, like: Tensor) -> Tensor:
        return error.matmul(second.mT).sum_to_size(like.shape)

    def grad_second(self, error: Tensor, first: Tensor, like: Tensor) -> Tensor:
        if like.dim() == 2:  # one matrix for the whole batch: one product
            return _rows(first).t().mm(_rows(error)) if first.dim() > 1 else torch.outer(first, error)
        return first.mT.matmul(error).sum_to_size(like.shape)


@dataclass(frozen=True)
class EinsumProducts:
    """``torch.einsum`` of two operands whose indices all differ, none of them in one operand alone."""

    first: str
    second: str
    result: str
    roles: tuple[Role, Role]
    channel_axis: ClassVar[int] = -1

    @property
    def summed(self) -> tuple[Summed, Summed, Summed]:
        a, b, c = self.first, self.second, self.result
        return _common(a, b, c), _common(c, b, a), _common(c, a, b)

    def output(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.einsum(f"{self.first},{self.second}->{self.result}", first, second)

    def grad_first(self, error: Tensor, second: Tensor, like: Tensor) -> Tensor:
        return torch.einsum(f"{self.result},{self.second}->{self.first}", error, second)

    def grad_second(self, error: Tensor, first: Tensor, like: Tensor) -> Tensor:
        return torch.einsum(f"{self.result},{self.first}->{self.second}", error, first)


def _common(first: str, second: str, result: str) -> Summed:
    """Axes of the last index that both operands have and the result does not; of outer products the last axes."""
    for index in reversed(first):
        if index in second and index not in result:
            return Summed(first.index(index), second.index(index))
    return Summed(-1, -1)


@dataclass(frozen=True)
class EmbeddingProducts:
    """``y = one_hot(i) @ w`` with i (...), w (entries, features), y (..., features): a product that hardware reads."""

    padding_idx: int
    scale_grad_by_freq: bool
    roles: ClassVar[tuple[Role, Role]] = ("index", "weight")
    summed: ClassVar[tuple[Summed, Summed, Summed]] = (Summed(-1, -1), Summed(-1, -1), Summed(-1, -1))
    channel_axis: ClassVar[int] = -1

    def output(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.embedding(second, first, self.padding_idx)

    def grad_first(self, error: Tensor, second: Tensor, like: Tensor) -> Tensor:
        raise AssertionError("an index has no gradient")

    def grad_second(self, error: Tensor, first: Tensor, like: Tensor) -> Tensor:
        found: Tensor = torch.ops.aten.embedding_dense_backward(
            error, first, like.shape[0], self.padding_idx, self.scale_grad_by_freq
        )
        return found


def rotated(x: Tensor, axis: int | None, parts: int, size: int, signs: Tensor) -> Tensor:
    """``x`` with each run of ``size`` elements along ``axis`` times random signs and an orthonormal Hadamard matrix.

    The same rotation of both operands along the summed dimension leaves their product as it is, and spreads what
    sticks out of a block over the block. A dimension, of whose ``parts`` each is summed by itself, is rotated in
    smaller runs where ``size`` does not divide one part: by the largest power of two that does.

    Source: Tseng et al. 2025 ("Training LLMs with MXFP4"), section 3.2.
    """
    moved = _rows(x).t() if axis is LEADING else x.movedim(axis, -1)
    run = math.gcd(size, moved.shape[-1] // parts)
    runs = moved.reshape(*moved.shape[:-1], moved.shape[-1] // run, run) * signs[:run].to(x.dtype)
    mixed = (runs @ _hadamard(run, x)).reshape(moved.shape)
    return mixed.t().reshape(x.shape) if axis is LEADING else mixed.movedim(-1, axis)


def _hadamard(size: int, like: Tensor) -> Tensor:
    """Sylvester's matrix over the square root of its size."""
    matrix = like.new_ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    scaled: Tensor = matrix * size**-0.5
    return scaled
