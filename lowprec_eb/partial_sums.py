"""GEMMs taken apart along the dimension that they sum over, for accumulation in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class PartialSums(Protocol):
    """One GEMM whose result is the sum of its parts."""

    @property
    def length(self) -> int:
        """Products that an element of the result sums; where elements differ, of the largest there may be."""
        ...

    def parts(self, chunk: int) -> Iterator[Tensor]:
        """Results of the GEMM over ``chunk`` products each, the last over what is left."""
        ...


@dataclass(frozen=True)
class Contraction:
    """``torch.einsum(f"{axes[0]},{axes[1]}->{axes[2]}", first, second).reshape(shape)``.

    Summed are the axes that both operands have and the result has not, the last of them innermost, in the order of the
    first operand.
    """

    first: Tensor
    second: Tensor
    axes: tuple[str, str, str]
    shape: Sequence[int]

    @property
    def _summed(self) -> str:
        first, second, result = self.axes
        return "".join(axis for axis in first if axis in second and axis not in result)

    @property
    def _sizes(self) -> tuple[int, ...]:
        return tuple(self.first.shape[self.axes[0].index(axis)] for axis in self._summed)

    @property
    def length(self) -> int:
        return math.prod(self._sizes)

    def parts(self, chunk: int) -> Iterator[Tensor]:
        summed, sizes, length = self._summed, self._sizes, self.length
        first, one = _led_by(summed, self.first, self.axes[0])
        second, two = _led_by(summed, self.second, self.axes[1])
        for start in range(0, length, chunk):
            stop = min(start + chunk, length)
            a, b = _piece(first, sizes, start, stop), _piece(second, sizes, start, stop)
            yield torch.einsum(f"{summed[0]}{one},{summed[0]}{two}->{self.axes[2]}", a, b).reshape(self.shape)


def _led_by(summed: str, x: Tensor, axes: str) -> tuple[Tensor, str]:
    """A view with the summed axes in front, and the names of the axes behind them."""
    rest = "".join(axis for axis in axes if axis not in summed)
    return x.permute([axes.index(axis) for axis in summed + rest]), rest


def _piece(x: Tensor, sizes: tuple[int, ...], start: int, stop: int) -> Tensor:
    """Elements ``start`` to ``stop`` of the leading axes as if they were one; only these are copied."""
    if len(sizes) == 1:
        return x[start:stop]
    return x[torch.unravel_index(torch.arange(start, stop, device=x.device), sizes)]


def windows(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """What a convolution's kernel sees: (n, c, *padded) -> a view (n, c, *positions, *kernel)."""
    for axis, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        x = x.unfold(axis, spread * (size - 1) + 1, step)[..., ::spread]
    return x


def padded(x: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """``x`` with zeros around its last dimensions; what is negative is cut off."""
    return F.pad(x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair])


def spread_out(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(n, c, *sizes) with zeros in between, so that neighbours lie ``stride`` apart."""
    sizes = [step * (size - 1) + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *sizes)
    wide[(slice(None), slice(None), *[slice(None, None, step) for step in stride])] = x
    return wide


@dataclass(frozen=True)
class Occurrences:
    """The gradient of a table of which ``index`` (...) has read rows: a row sums the errors where it was read."""

    error: Tensor
    index: Tensor
    entries: int
    padding_idx: int
    scale_grad_by_freq: bool

    @property
    def length(self) -> int:
        return self.index.numel()

    def parts(self, chunk: int) -> Iterator[Tensor]:
        turn = (self._ranks() // chunk).view(*self.index.shape, 1)
        # A compiler cannot ask how often the most frequent row was read; a part of zeros changes no sum.
        most = -(-self.length // chunk) if torch.compiler.is_compiling() else int(turn.max()) + 1
        for number in range(most):
            now = torch.where(turn == number, self.error, 0.0)
            yield torch.ops.aten.embedding_dense_backward(
                now, self.index, self.entries, self.padding_idx, self.scale_grad_by_freq
            )

    def _ranks(self) -> Tensor:
        """How often each place's row was read in places before it; 0 for rows that learn nothing."""
        places = self.index.flatten()
        rows, order = places.sort(stable=True)
        first = torch.searchsorted(rows, rows)
        ranks = torch.empty_like(order).scatter(0, order, torch.arange(len(rows), device=rows.device) - first)
        return torch.where(places == self.padding_idx, 0, ranks)
