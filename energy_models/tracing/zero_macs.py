"""Products as matrices of known zeros, and how many of their MACs read one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from energy_models.counts import Zeros
from energy_models.tracing.call import Call, Product
from energy_models.tracing.patterns import Pattern, channels, of_channels, ranked, reshaped
from energy_models.tracing.products import FACTORS

CONVOLUTIONS = ("aten::convolution", "aten::_convolution")
Known = Callable[[Tensor], Pattern | None]
Into = Callable[[Pattern], Pattern]


@dataclass(frozen=True, slots=True, eq=False)
class Matrices:
    """What is known of a product's two operands, and how its result is stored.

    a: (batch, m, k) and b: (batch, n, k), each dimension of its size or 1 where all of it is alike.
    result: a pattern of the result as a (batch, m, n) matrix; back: the other way.
    taps: of a convolution's k = channels x taps the places of the kernel.
    added: name of the argument that is added to the result.
    """

    a: Pattern | None
    b: Pattern | None
    result: Into | None = None
    back: Into | None = None
    taps: int = 1
    added: str | None = None

    def result_zeros(self) -> Pattern | None:
        """Results that are zero because each of their products is, as a (batch, m, n) matrix."""
        known = [matrix for matrix in (self.a, self.b) if matrix is not None]
        if not known or self.back is None:
            return None
        if len(known) == 2 and all(matrix.shape[2] == 1 for matrix in known):
            return None  # the gradient of a weight, which no product reads
        return _pairs(_nonzero(self.a), _nonzero(self.b)) == 0


def matrices(call: Call, known: Known) -> list[Matrices]:
    """One for each product of `call`, in the order that its formula gives them; empty if none is known."""
    if call.op in CONVOLUTIONS:
        return [_convolved(call, known)]
    if call.op == "aten::convolution_backward":
        need_input, need_weight, _ = call.args["output_mask"]
        return [*([_error_spread(call, known)] * need_input), *([_correlated(call, known)] * need_weight)]
    if call.op == "aten::linear":
        return [_linear(call, known)]
    return [_multiplied(call, known)] if call.op in FACTORS else []


# Convolutions. Activations and errors are known by channels.


def _grouped(vector: Pattern | None, groups: int, taps: int = 1) -> Pattern | None:
    """(channels,) -> (groups, channels / groups x taps)."""
    if vector is None:
        return None
    return vector.reshape(groups, -1, 1).expand(-1, -1, taps).reshape(groups, -1)


def _images(vector: Pattern | None, groups: int, taps: int = 1) -> Pattern | None:
    """Im2col'd channels (channels,) as rows that are all alike."""
    grouped = _grouped(vector, groups, taps)
    return None if grouped is None else grouped.unsqueeze(1)


def _stored(call: Call, known: Known) -> Pattern | None:
    """A convolution's weight in full: (groups, channels / groups, channels of the other side / groups, taps)."""
    weight, groups = call.args["weight"], call.args["groups"]
    pattern = known(weight)
    if pattern is None:
        return None
    return pattern.expand(weight.shape).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _taps(call: Call) -> int:
    return int(math.prod(call.args["weight"].shape[2:]))


def _by_channel(groups: int, count: int, rank: int) -> tuple[Into, Into]:
    def result(pattern: Pattern) -> Pattern:
        matrix = _images(channels(pattern, count), groups)
        assert matrix is not None
        return matrix

    def back(matrix: Pattern) -> Pattern:
        vector = of_channels(matrix.all(1).expand(groups, count // groups).reshape(-1), rank)
        assert vector is not None
        return vector

    return result, back


def _convolved(call: Call, known: Known) -> Matrices:
    """Output: rows are positions, k is (input channel, tap), columns are output channels."""
    x, weight, groups = call.args["input"], call.args["weight"], call.args["groups"]
    transposed, taps = call.args["transposed"], _taps(call)
    outputs = weight.shape[1] * groups if transposed else weight.shape[0]
    stored = _stored(call, known)
    rows = _images(channels(known(x), x.shape[1]), groups, taps)
    columns = _columns(stored, by_second=transposed)
    return Matrices(rows, columns, *_by_channel(groups, outputs, x.dim()), taps=taps, added="bias")


def _columns(stored: Pattern | None, by_second: bool) -> Pattern | None:
    """(groups, n, k) of a weight whose first or second channel dimension gives the columns."""
    if stored is None:
        return None
    return (stored.transpose(1, 2) if by_second else stored).flatten(2)


def _error_spread(call: Call, known: Known) -> Matrices:
    """Gradient of the input: k is (output channel, tap), columns are input channels."""
    error, x, groups = call.args["grad_output"], call.args["input"], call.args["groups"]
    taps = _taps(call)
    rows = _images(channels(known(error), error.shape[1]), groups, taps)
    columns = _columns(_stored(call, known), by_second=not call.args["transposed"])
    return Matrices(rows, columns, *_by_channel(groups, x.shape[1], x.dim()), taps=taps)


def _correlated(call: Call, known: Known) -> Matrices:
    """Gradient of the weight: rows and columns as it is stored, k is positions."""
    weight, groups = call.args["weight"], call.args["groups"]
    pair = [call.args["grad_output"], call.args["input"]]
    first, second = reversed(pair) if call.args["transposed"] else pair
    rows = _grouped(channels(known(first), first.shape[1]), groups)
    columns = _grouped(channels(known(second), second.shape[1]), groups, _taps(call))

    def result(pattern: Pattern) -> Pattern:
        return pattern.expand(weight.shape).reshape(groups, weight.shape[0] // groups, -1)

    return Matrices(_along_rows(rows), _along_rows(columns), result)


def _along_rows(matrix: Pattern | None) -> Pattern | None:
    return None if matrix is None else matrix.unsqueeze(2)


# Matrix products


def _linear(call: Call, known: Known) -> Matrices:
    x, out = call.args["input"], call.results[0].shape
    a, b = reshaped(known(x), x.shape, (1, math.prod(x.shape[:-1]), x.shape[-1])), known(call.args["weight"])
    flat = (1, math.prod(out[:-1]), out[-1])
    return Matrices(a, None if b is None else b.unsqueeze(0), *_viewed(tuple(out), flat), added="bias")


def _multiplied(call: Call, known: Known) -> Matrices:
    first, second, added = FACTORS[call.op]
    x, y = call.args[first], call.args[second]
    if x.layout != torch.strided or y.layout != torch.strided:
        return Matrices(None, None)  # only what is stored is multiplied
    outer = call.op == "aten::addr"
    a, b = ranked(known(x), x.dim()), ranked(known(y), y.dim())
    if a is not None:
        a = a.reshape(1, -1, 1) if outer else ranked(a, 3)
    if b is not None:
        b = b.reshape(1, -1, 1) if outer else _transposed(b)
    if call.op == "aten::addbmm":  # sums over its batch too
        return Matrices(a, b)
    out = tuple(call.results[0].shape)
    rows, columns = x.dim() > 1 or outer, y.dim() > 1 or outer
    batch = out[0] if len(out) == 3 else 1
    matrix = (batch, out[-2 if columns else -1] if rows and out else 1, out[-1] if columns and out else 1)
    return Matrices(a, b, *_viewed(out, matrix), added=added)


def _transposed(b: Pattern) -> Pattern:
    """(..., k, n) or (k,) -> (batch, n, k)."""
    if b.dim() == 1:
        return b.reshape(1, 1, -1)
    full = ranked(b, 3)
    assert full is not None
    return full.transpose(1, 2)


def _viewed(stored: tuple[int, ...], matrix: tuple[int, int, int]) -> tuple[Into, Into]:
    def result(pattern: Pattern) -> Pattern:
        seen = reshaped(pattern, stored, matrix)
        assert seen is not None
        return seen

    def back(pattern: Pattern) -> Pattern:
        seen = reshaped(pattern, matrix, stored)
        assert seen is not None
        return seen

    return result, back


# Counting


def count_zeros(product: Product, known: Matrices, dead: Pattern | None) -> Zeros:
    """MACs of one product that known zeros make needless; `dead` is the pattern of results that are never needed.

    A dense operand's MACs with a non-zero on both sides are, for each k, the non-zero rows times the non-zero columns.
    """
    unneeded = None if dead is None or known.result is None else known.result(dead)
    if known.a is None and known.b is None and unneeded is None:
        return product.zeros
    batch, m, n, k = product.batch, product.m, product.n, product.k
    total = batch * m * n * k
    a, b = _nonzero(known.a), _nonzero(known.b)
    pairs = (a.sum(1) * (m // a.shape[1])) * (b.sum(1) * (n // b.shape[1]))
    needless = 0 if unneeded is None else _sum(_pairs(a, b, k) * unneeded, (batch, m, n))
    channel = total - _kept(a, b, None, (batch, m, n, k))
    structured = any(_two_of_four(x, k, known.taps) for x in (known.a, known.b))
    return replace(
        product.zeros,
        element=total - _sum(pairs, (batch, k)),
        channel=channel,
        removable=channel if unneeded is None else total - _kept(a, b, unneeded, (batch, m, n, k)),
        dead=needless,
        two_of_four=total // 2 if structured else 0,
    )


def _nonzero(pattern: Pattern | None) -> Pattern:
    return torch.ones(1, 1, 1, dtype=torch.bool, device="cpu") if pattern is None else ~pattern


def _pairs(a: Tensor, b: Tensor, k: int = 1) -> Tensor:
    """(batch, m, n): for each result the number of its products of two non-zeros; in float64, exact to 2**53."""
    alike = a.shape[2] == 1 and b.shape[2] == 1
    depth = max(a.shape[2], b.shape[2])
    left, right = (x.expand(-1, -1, depth).double() for x in (a, b))
    return torch.matmul(left, right.transpose(1, 2)) * (k if alike else 1)


def _sum(values: Tensor, shape: tuple[int, ...]) -> int:
    """Of `values` broadcast to `shape`."""
    return int(values.sum()) * (math.prod(shape) // values.numel())


def _kept(a: Tensor, b: Tensor, unneeded: Pattern | None, shape: tuple[int, int, int, int]) -> int:
    """MACs of the dense product that is left without the k, rows and columns that are zero, or unneeded, as a whole."""
    batch, m, n, k = shape
    depth = a.any(1) & b.any(1)
    rows, columns = ((x & depth.unsqueeze(1)).any(2) for x in (a, b))
    if unneeded is not None:
        rows, columns = rows & ~unneeded.all(2), columns & ~unneeded.all(1)
    sizes = [x.sum(1) * (size // x.shape[1]) for x, size in ((depth, k), (rows, m), (columns, n))]
    return _sum(sizes[0] * sizes[1] * sizes[2], (batch,))


def _two_of_four(pattern: Pattern | None, k: int, taps: int) -> bool:
    """Whether two of each four along k are zero: of k = (channel, tap) along k, or along the channels of each tap.

    Source: Mishra et al. 2021 ("Accelerating sparse deep neural networks"), section 3; convolutions by channel, as
    its library ASP prunes them.
    """
    if pattern is None or pattern.shape[2] != k:
        return pattern is not None and k % 4 == 0 and bool(pattern.all())
    if 2 * int(torch.count_nonzero(pattern)) < pattern.numel():
        return False
    by_channel = pattern.unflatten(2, (-1, taps)).transpose(2, 3)  # (batch, rows, taps, channels)
    return _half_of_fours(pattern) or _half_of_fours(by_channel)


def _half_of_fours(pattern: Pattern) -> bool:
    """Along the last dimension; a first row mostly tells it."""
    if pattern.shape[-1] % 4:
        return False
    tests = (part.unflatten(-1, (-1, 4)).sum(-1) >= 2 for part in (pattern[:, :1], pattern))
    return all(bool(test.all()) for test in tests)
