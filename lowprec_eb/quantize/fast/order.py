"""How the elements of a dense tensor lie in memory: channels last, transposed, or in order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

SHORTEST_ROW = 8  # neighbours in memory for which a step through memory of its own pays


@dataclass(frozen=True)
class Rows:
    """The logical indices of elements in the order of memory: rows of ``length`` neighbours, ``step`` apart.

    Rows follow each other in three loops, the inner one first: ``counts`` rows of each of the first two, and how far
    the logical index moves (``strides``) with each turn of the three.
    """

    length: int
    step: int
    counts: tuple[int, int]
    strides: tuple[int, int, int]

    @property
    def come_in_pairs(self) -> bool:
        """Whether elements with the indices 2n and 2n + 1 lie in neighbouring rows, from the first row on."""
        first, *others = self.strides
        return first == 1 and not any(number % 2 for number in (self.step, self.counts[0], *others))


def order_of(x: Tensor) -> tuple[int, ...] | None:
    """The dimensions of ``x`` from the slowest to the fastest in memory.

    None if that is their own order, or if elements overlap or leave gaps.
    """
    return None if x.is_contiguous() else _order(x.shape, x.stride())


@lru_cache(maxsize=4096)
def _order(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...] | None:
    flat = [d for d, n in enumerate(shape) if n == 1]
    order = sorted((d for d, n in enumerate(shape) if n != 1), key=lambda d: -strides[d])
    expected = 1
    for d in reversed(order):
        if strides[d] != expected:
            return None
        expected *= shape[d]
    return (*flat, *order)


def rows_of(shape: tuple[int, ...], order: tuple[int, ...]) -> Rows | None:
    """The rows of a tensor of ``shape`` that lies in ``order``; None if there are more loops, or rows are too short."""
    groups: list[tuple[int, int]] = []  # (elements, logical stride), the fastest first
    for d in reversed(order):
        if shape[d] == 1:
            continue
        stride = math.prod(shape[d + 1 :])
        if groups and groups[-1][0] * groups[-1][1] == stride:  # the next turn goes on where this one ends
            groups[-1] = (groups[-1][0] * shape[d], groups[-1][1])
        else:
            groups.append((shape[d], stride))
    if len(groups) > 4 or groups[0][0] < SHORTEST_ROW:
        return None
    (length, step), *outer = [*groups, *[(1, 0)] * (4 - len(groups))]
    return Rows(length, step, (outer[0][0], outer[1][0]), (outer[0][1], outer[1][1], outer[2][1]))
