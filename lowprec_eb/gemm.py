"""The matrix products of a layer, forward and backward, as functions of two operands.

The seam of the project: layers hand :func:`simulate` the operands, plain or encoded, and do not know how a product is
computed. Here it is simulated: the operands hold low-precision values, the product accumulates in their dtype.

Of a layer, the first factor is its input and the second its weight, so ``grad_first`` is the GEMM named ``grad_input``
and ``grad_second`` the one named ``grad_weight``. Both factors of attention's products are activations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lowprec_eb.formats import Format
from lowprec_eb.partial_sums import Contraction, Occurrences, PartialSums, padded, spread_out, windows
from lowprec_eb.quantize import decode

Role = Literal["activation", "weight", "index"]  # an index only selects: it is never rounded and has no gradient
Gemm = Literal["output", "grad_first", "grad_second"]
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

    def sums(self, gemm: Gemm, first: Tensor, second: Tensor, like: Tensor) -> PartialSums | None:
        """``gemm`` of its two operands, to be taken apart; ``like`` counts for gradients. None: it sums nothing."""
        ...


@dataclass(frozen=True)
class Encoded:
    """An operand as hardware holds it: what :func:`lowprec_eb.encode` gives, the format, and the dtype meant."""

    codes: Tensor
    scales: Tensor | tuple[Tensor, Tensor] | None
    fmt: Format
    dtype: torch.dtype = torch.float32


Operand = Tensor | Encoded


def simulate(products: Products, gemm: Gemm, first: Operand, second: Operand, like: Tensor | None = None) -> Tensor:
    """One product, in the operands' dtype. ``like`` is the factor whose gradient is asked for, read for its shape."""
    a, b = _plain(first), _plain(second)
    if gemm == "output":
        return products.output(a, b)
    assert like is not None
    return products.grad_first(a, b, like) if gemm == "grad_first" else products.grad_second(a, b, like)


def simulate_in_chunks(
    products: Products, gemm: Gemm, first: Operand, second: Operand, chunk: int, like: Tensor | None = None
) -> Iterable[Tensor]:
    """:func:`simulate` in parts that sum ``chunk`` products each, one after the other, the last what is left.

    Half-precision operands are widened: parts are float32, or float64 if the operands are. Of a convolution the
    summed dimension is that of the implicit GEMM: channels, then the places of the kernel (padding and what a stride
    leaves out are products of zero); of its ``grad_weight`` samples, then positions.
    """
    a, b = (_widened(_plain(operand)) for operand in (first, second))
    found = products.sums(gemm, a, b, a if like is None else like)
    if found is None or found.length <= chunk:
        return [simulate(products, gemm, a, b, like)]
    return found.parts(chunk)


def _widened(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _plain(operand: Operand) -> Tensor:
    if isinstance(operand, Tensor):
        return operand
    return decode(operand.codes, operand.scales, operand.fmt, dtype=operand.dtype)


def _rows(x: Tensor) -> Tensor:
    """(..., features) -> (rows, features)."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


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

    def sums(self, gemm: Gemm, first: Tensor, second: Tensor, like: Tensor) -> PartialSums:
        if gemm == "output":
            return Contraction(_rows(first), second, ("mk", "nk", "mn"), (*first.shape[:-1], second.shape[0]))
        if gemm == "grad_first":
            return Contraction(_rows(first), second, ("mk", "kn", "mn"), like.shape)
        return Contraction(_rows(first), _rows(second), ("km", "kn", "mn"), like.shape)


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

    # A transposed convolution is a plain one with input and result exchanged: one of them is small, with a position for
    # each place of the kernel, the other is large. Axes: sample n, group g, channels a (large) and b (small), positions
    # x, y, z, places in the kernel u, v, w.

    def sums(self, gemm: Gemm, first: Tensor, second: Tensor, like: Tensor) -> PartialSums:
        if gemm == "grad_second":
            small, large = (second, first) if self._transposed else (first, second)
            return self._sums_to_weight(small, large, like)
        if (gemm == "output") == self._transposed:
            return self._sums_to_large(first, second, like.shape[2:] if gemm == "grad_first" else None)
        return self._sums_to_small(first, second, like.shape[2:] if gemm == "grad_first" else None)

    def _sums_to_weight(self, small: Tensor, large: Tensor, weight: Tensor) -> PartialSums:
        x, u = self._axes
        seen = self._seen(large, weight.shape[2:], small.shape[2:])
        return Contraction(self._grouped(small), seen, (f"ngb{x}", f"nga{x}{u}", f"gba{u}"), weight.shape)

    def _sums_to_small(self, large: Tensor, weight: Tensor, sizes: Sequence[int] | None) -> PartialSums:
        x, u = self._axes
        seen = self._seen(large, weight.shape[2:], sizes)
        shape = (large.shape[0], weight.shape[0], *seen.shape[3 : 3 + len(x)])
        return Contraction(seen, self._grouped(weight, 0), (f"nga{x}{u}", f"gba{u}", f"ngb{x}"), shape)

    def _sums_to_large(self, small: Tensor, weight: Tensor, sizes: Sequence[int] | None) -> PartialSums:
        x, u = self._axes
        reach = [step * (size - 1) for size, step in zip(weight.shape[2:], self.dilation, strict=True)]
        wide = spread_out(small, self.stride)
        if sizes is None:
            each = zip(wide.shape[2:], reach, self.padding, self.output_padding or (), strict=True)
            sizes = [size + more - 2 * around + beyond for size, more, around, beyond in each]
        before = [more - around for more, around in zip(reach, self.padding, strict=True)]
        each_side = zip(sizes, reach, before, wide.shape[2:], strict=True)
        after = [size + more - ahead - own for size, more, ahead, own in each_side]
        places = windows(padded(wide, before, after), weight.shape[2:], [1] * len(x), self.dilation)
        seen = self._grouped(places.flip(tuple(range(-len(x), 0))))
        shape = (small.shape[0], self.groups * weight.shape[1], *sizes)
        return Contraction(seen, self._grouped(weight, 0), (f"ngb{x}{u}", f"gba{u}", f"nga{x}"), shape)

    @property
    def _axes(self) -> tuple[str, str]:
        return "xyz"[: len(self.stride)], "uvw"[: len(self.stride)]

    def _grouped(self, x: Tensor, axis: int = 1) -> Tensor:
        grouped: Tensor = x.unflatten(axis, (self.groups, x.shape[axis] // self.groups))
        return grouped

    def _seen(self, large: Tensor, kernel: Sequence[int], sizes: Sequence[int] | None) -> Tensor:
        """What the kernel sees of the large tensor: (n, g, a, *positions, *kernel), positions cut to ``sizes``."""
        places = windows(padded(large, self.padding, self.padding), kernel, self.stride, self.dilation)
        for axis, size in enumerate(sizes or (), 2):
            places = places.narrow(axis, 0, size)
        return self._grouped(places)


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

    def sums(self, gemm: Gemm, first: Tensor, second: Tensor, like: Tensor) -> PartialSums:
        left, right = (second.mT, first) if gemm == "grad_second" else (first, second)
        right = right.mT if gemm == "grad_first" else right
        batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        result = (*batch, left.shape[-2], right.shape[-1])
        shape = result if gemm == "output" else tuple(like.shape)
        wanted = (*[1] * (len(result) - len(shape)), *shape)
        names = ascii_uppercase[: len(batch)]
        # A factor that is broadcast is one operand of many products: its gradient sums over them too.
        kept = "".join(name for name, of, size in zip(names, wanted, batch, strict=False) if of == size)
        a, b = (x.expand(*batch, *x.shape[-2:]) for x in (left, right))
        return Contraction(a, b, (f"{names}mk", f"{names}kn", f"{kept}mn"), shape)


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

    def sums(self, gemm: Gemm, first: Tensor, second: Tensor, like: Tensor) -> PartialSums:
        if gemm == "output":
            sizes = dict(zip(self.first + self.second, (*first.shape, *second.shape), strict=True))
            shape = [sizes[index] for index in self.result]
            return Contraction(first, second, (self.first, self.second, self.result), shape)
        factor, wanted = (self.second, self.first) if gemm == "grad_first" else (self.first, self.second)
        return Contraction(first, second, (self.result, factor, wanted), like.shape)


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

    def sums(self, gemm: Gemm, first: Tensor, second: Tensor, like: Tensor) -> PartialSums | None:
        if gemm == "output":  # one row, and zeros that nobody adds
            return None
        return Occurrences(first, second, like.shape[0], self.padding_idx, self.scale_grad_by_freq)


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
