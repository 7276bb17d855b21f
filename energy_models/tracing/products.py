"""The matrix products that torch's operators do, one formula per operator."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor

from energy_models.counts import ElementOps
from energy_models.number_formats import FP32_BITS
from energy_models.tracing.attention_products import ATTENTION
from energy_models.tracing.call import Call, Formula, Product, float_bits
from energy_models.tracing.elements import SPECIAL
from energy_models.tracing.uneven_products import UNEVEN

Work = Iterator[Product | ElementOps]


def _bias(elements: int, read_bits: int, write_bits: int) -> ElementOps:
    return ElementOps("bias", "", elements, fp_add=elements, read_bits=read_bits, write_bits=write_bits)


def _convolution(call: Call) -> Work:
    """One product for each place of the kernel at each output position; of a transposed one at each input position."""
    x, weight, out, groups = call.args["input"], call.args["weight"], call.results[0], call.args["groups"]
    sides: dict[str, Any] = {"gemm": "output", "names": ("activation", "weight")}
    if call.args["transposed"]:
        k, taps = math.prod(weight.shape[2:]) * weight.shape[0] // groups, _taps(call)
        yield Product(x, weight, out, groups, _positions(x), weight.shape[1], k, **sides, runs=(k, taps))
    else:
        k = math.prod(weight.shape[1:])
        yield Product(x, weight, out, groups, _positions(out), weight.shape[0] // groups, k, **sides, runs=(k, k))
    if call.args["bias"] is not None:  # added in the accumulator, so the result is written once, by the product
        yield _bias(out.numel(), float_bits([call.args["bias"]]), 0)


def _positions(x: Tensor) -> int:
    return int(x.shape[0] * math.prod(x.shape[2:]))


def _taps(call: Call) -> int:
    """How many places of the kernel one result meets: a stride spreads an error over fewer of them."""
    return max(1, int(math.prod(call.args["weight"].shape[2:])) // int(math.prod(call.args["stride"])))


def _convolution_backward(call: Call) -> Work:
    args = call.args
    error, weight = args["grad_output"], args["weight"]
    need_input, need_weight, need_bias = args["output_mask"]
    if need_input:
        yield _error_to_input(call)
    if need_weight:
        yield _to_weight(call)
    if need_bias:
        channels = weight.shape[1] * args["groups"] if args["transposed"] else weight.shape[0]
        yield _bias(error.numel(), float_bits([error]), FP32_BITS * channels)


def _error_to_input(call: Call) -> Product:
    args = call.args
    error, x, weight, groups = args["grad_output"], args["input"], args["weight"], args["groups"]
    sides: dict[str, Any] = {"gemm": "grad_input", "names": ("error", "weight")}
    if args["transposed"]:
        k = math.prod(weight.shape[1:])
        return Product(error, weight, x, groups, _positions(x), weight.shape[0] // groups, k, **sides, runs=(k, k))
    k = math.prod(weight.shape[2:]) * weight.shape[0] // groups
    runs = (k, _taps(call))
    return Product(error, weight, x, groups, _positions(error), weight.shape[1], k, **sides, runs=runs)


def _to_weight(call: Call) -> Product:
    args = call.args
    error, x, weight, groups = args["grad_output"], args["input"], args["weight"], args["groups"]
    small = x if args["transposed"] else error
    per_image = math.prod(small.shape[2:])
    rows, columns = weight.shape[0] // groups, math.prod(weight.shape[1:])
    shape = (groups, rows, columns, _positions(small))
    return Product(
        error, x, weight, *shape, gemm="grad_weight", names=("error", "activation"), runs=(per_image, per_image)
    )


# The factors of matrix products and what is added to them, by argument name.
FACTORS: dict[str, tuple[str, str, str | None]] = {
    "aten::mm": ("self", "mat2", None),
    "aten::addmm": ("mat1", "mat2", "self"),
    "aten::_addmm_activation": ("mat1", "mat2", "self"),
    "aten::bmm": ("self", "mat2", None),
    "aten::baddbmm": ("batch1", "batch2", "self"),
    "aten::addbmm": ("batch1", "batch2", "self"),
    "aten::mv": ("self", "vec", None),
    "aten::addmv": ("mat", "vec", "self"),
    "aten::dot": ("self", "tensor", None),
    "aten::vdot": ("self", "other", None),
    "aten::addr": ("vec1", "vec2", "self"),
    "aten::_int_mm": ("self", "mat2", None),
    "aten::_scaled_mm": ("self", "mat2", "bias"),
    "aten::_sparse_mm": ("sparse", "dense", None),
    "aten::_sparse_addmm": ("mat1", "mat2", "self"),
}


def _matmul(call: Call) -> Work:
    first, second, added = FACTORS[call.op.removesuffix("_") if call.op.removesuffix("_") in FACTORS else call.op]
    a, b, out = call.args[first], call.args[second], call.results[0]
    if call.op.startswith("aten::addr"):
        yield Product(a, b, out, 1, a.shape[0], b.shape[0], 1)
    else:
        rows = a.shape[-2] if a.dim() > 1 else 1
        columns = b.shape[-1] if b.dim() > 1 else 1
        yield Product(a, b, out, math.prod(a.shape[:-2]), rows, columns, a.shape[-1])
    bias = call.args[added] if added is not None else None
    if bias is not None and call.args.get("beta", 1) != 0:  # beta = 0 only says where to write
        factors = sum(abs(call.args.get(factor, 1)) != 1 for factor in ("alpha", "beta"))
        yield replace(_bias(out.numel(), float_bits([bias]), 0), fp_mul=factors * out.numel())


def _linear(call: Call) -> Work:
    x, weight, out = call.args["input"], call.args["weight"], call.results[0]
    rows = math.prod(x.shape[:-1])
    yield Product(x, weight, out, 1, rows, weight.shape[0], weight.shape[1], runs=(weight.shape[1],) * 2)
    if call.args["bias"] is not None:
        yield _bias(out.numel(), float_bits([call.args["bias"]]), 0)


def _distances(call: Call) -> Work:
    """Euclidean distances of many points: |x|^2 + |y|^2 - 2 x @ y^T, whose norms are part of the product."""
    x, y, out = call.args["x1"], call.args["x2"], call.results[0]
    yield Product(x, y, out, math.prod(out.shape[:-2]), out.shape[-2], out.shape[-1], x.shape[-1])
    normed, found = x.numel() + y.numel(), out.numel()
    yield ElementOps("distance", "", found, normed + 2 * found, normed + (1 + SPECIAL) * found, found)


def _trilinear(call: Call) -> Work:
    """A sum of products of three tensors, as two matrix products in the cheaper order (torch.nn.Bilinear).

    Of y[n,o] = sum_ab x[n,a] w[o,a,b] z[n,b] the first product sums over a or b and costs N*O*A*B MACs, the second
    N*O*min(A, B) with the better choice.
    """
    factors = [_expanded(call, number) for number in (1, 2, 3)]
    sizes = {}
    for names, tensor in factors:
        sizes.update({name: size for name, size in zip(names, tensor.shape, strict=True) if name is not None})
    kept = [name for name in sizes if name not in call.args["sumdim"]]
    plans = [_pairwise(sizes, kept, factors, order) for order in ((0, 1, 2), (1, 2, 0), (0, 2, 1))]
    yield from min(plans, key=lambda plan: sum(p.batch * p.m * p.n * p.k for p in plan))


_Factor = tuple[tuple[int | None, ...], Tensor]


def _expanded(call: Call, number: int) -> _Factor:
    """The dimensions of one factor as numbers of the common space; None for one of size 1."""
    tensor, added = call.args[f"i{number}"], call.args[f"expand{number}"]
    rank = tensor.dim() + len(added)
    names = [dim for dim in range(rank) if dim not in added]
    return tuple(name if size > 1 else None for name, size in zip(names, tensor.shape, strict=True)), tensor


def _pairwise(
    sizes: dict[int, int], kept: list[int], factors: list[_Factor], order: tuple[int, int, int]
) -> list[Product]:
    (one, x), (two, y), (three, z) = (factors[place] for place in order)
    needed = {*kept, *three}
    between = tuple(name for name in sizes if name in {*one, *two} and name in needed)
    middle = tuple(sizes[name] for name in between)
    result = tuple(sizes[name] for name in kept)
    return [
        _contraction(sizes, one, x, two, y, between, middle),
        _contraction(sizes, between, middle, three, z, tuple(kept), result),
    ]


def _contraction(
    sizes: dict[int, int],
    one: tuple[int | None, ...],
    x: Tensor | tuple[int, ...],
    two: tuple[int | None, ...],
    y: Tensor | tuple[int, ...],
    kept: tuple[int, ...],
    result: tuple[int, ...],
) -> Product:
    def size(wanted: bool, left: bool, right: bool) -> int:
        chosen = (n for n in sizes if (n in kept, n in one, n in two) == (wanted, left, right))
        return math.prod(sizes[name] for name in chosen)

    summed = size(False, True, True) * size(False, True, False) * size(False, False, True)
    return Product(x, y, result, size(True, True, True), size(True, True, False), size(True, False, True), summed)


def _sampled(call: Call) -> Work:
    """The results of a product at the non-zeros of a sparse matrix: one dot product for each."""
    a, b, out = call.args["mat1"], call.args["mat2"], call.results[0].values()
    yield Product(a, b, out, out.numel(), 1, 1, a.shape[-1])
    if call.args["beta"] != 0:
        yield _bias(out.numel(), float_bits([call.args["self"].values()]), 0)


PRODUCTS: dict[str, Formula] = {
    "aten::convolution": _convolution,
    "aten::_convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::linear": _linear,
    "aten::_trilinear": _trilinear,
    "aten::_euclidean_dist": _distances,
    "aten::sparse_sampled_addmm": _sampled,
    **dict.fromkeys(FACTORS, _matmul),
    **ATTENTION,
    **UNEVEN,
}
