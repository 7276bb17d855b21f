"""Which elements of a tensor are known to be zero, as small boolean tensors.

A pattern has its tensor's rank and, along each dimension, either its size or 1 where all of the dimension is alike:
zero channels of an (N, C, H, W) activation are a (1, C, 1, 1) pattern. True: zero. None stands for nothing known.
"""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

Pattern = Tensor
Shape = Sequence[int]


def compact(pattern: Pattern | None) -> Pattern | None:
    """The smallest pattern that says the same; None if nothing is zero."""
    if pattern is None or not bool(pattern.any()):
        return None
    for dim in range(pattern.dim()):
        if pattern.shape[dim] > 1 and _is_alike(pattern, dim):
            pattern = pattern.narrow(dim, 0, 1)
    return pattern


def _is_alike(pattern: Pattern, dim: int) -> bool:
    if pattern.stride(dim) == 0:
        return True
    first, second = pattern.narrow(dim, 0, 1), pattern.narrow(dim, 1, 1)
    return torch.equal(first, second) and bool((pattern == first).all())  # two slices mostly tell it


def zeros_in(x: Tensor, at_least: float = 0.0) -> Pattern | None:
    """The zeros among a real tensor's values, on the CPU; None if there is none or fewer than a share `at_least`."""
    zeros = x.numel() - int(torch.count_nonzero(x))
    if zeros == 0 or zeros < at_least * x.numel():
        return None
    return compact((x.detach() == 0).cpu())


def known_nonzeros(pattern: Pattern, shape: Shape) -> int:
    """Elements of a tensor of `shape` that are not known to be zero."""
    return (pattern.numel() - int(torch.count_nonzero(pattern))) * (math.prod(shape) // pattern.numel())


def either(first: Pattern | None, second: Pattern | None) -> Pattern | None:
    """Zero where one of two factors is."""
    if first is None or second is None:
        return second if first is None else first
    return first | second


def both(first: Pattern | None, second: Pattern | None) -> Pattern | None:
    """Zero where both of two terms are."""
    return None if first is None or second is None else first & second


def ranked(pattern: Pattern | None, rank: int) -> Pattern | None:
    """With leading dimensions added or left out, as broadcasting does."""
    if pattern is None:
        return None
    extra = rank - pattern.dim()
    if extra >= 0:
        return pattern.reshape((1,) * extra + tuple(pattern.shape))
    return pattern.reshape(-1, *pattern.shape[-rank:] if rank else ()).all(0)


def summed_to(pattern: Pattern | None, shape: Shape) -> Pattern | None:
    """Of what was broadcast from `shape`: where all copies are zero."""
    pattern = ranked(pattern, len(shape))
    if pattern is None:
        return None
    for dim, size in enumerate(shape):
        if size == 1 and pattern.shape[dim] > 1:
            pattern = pattern.all(dim, keepdim=True)
    return pattern


def channels(pattern: Pattern | None, count: int) -> Pattern | None:
    """(count,): channels (dimension 1) that are zero as a whole."""
    if pattern is None:
        return None
    return pattern.transpose(0, 1).flatten(1).all(1).expand(count)


def of_channels(vector: Pattern | None, rank: int) -> Pattern | None:
    """The pattern of a tensor of `rank` whose zero channels are given as a (count,) vector."""
    return None if vector is None else vector.reshape(1, -1, *[1] * (rank - 2))


def reshaped(pattern: Pattern | None, old: Shape, new: Shape) -> Pattern | None:
    """What a view of shape `new` of a tensor of shape `old` has, element by element in order."""
    if pattern is None:
        return None
    source, target = [], []
    for ins, outs in _groups(old, new):
        alike = all(pattern.shape[dim] == 1 for dim in ins)
        source += [1 if alike else old[dim] for dim in ins]
        target += [1 if alike else new[dim] for dim in outs]
    return pattern.expand(source).reshape(target)


def _groups(old: Shape, new: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of dimensions of the two shapes that hold the same elements."""
    ends = [list(accumulate(shape, operator.mul)) for shape in (old, new)]
    shared = sorted({1, *ends[0]} & {1, *ends[1]})
    for group in range(len(shared)):
        ins, outs = ([dim for dim, end in enumerate(of) if bisect_left(shared, end) == group] for of in ends)
        yield ins, outs
