"""Sums, statistics, norms, maxima, sorting, distances and Fourier transforms.

Kinds: "sum" (also running sums and products), "statistics" (variance, norms), "max" (also running), "sort", "distance",
"fft". Means have the kind "avg_pool": a mean is a window of everything.
"""

from __future__ import annotations

import math

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call
from energy_models.tracing.elements.work import SPECIAL, ElementFormula, each, is_bookkeeping, size, width, work


def _sum(call: Call) -> ElementOps:
    elements = size(call.args["self"])
    return work("sum", elements, fp_add=elements)


def _mean(call: Call) -> ElementOps:
    """Windows that tile the input: all but one of each window's elements are added, the sum is scaled once."""
    inputs, elements = size(call.args["self"]), size(call.results[0])
    return work("avg_pool", elements, fp_add=inputs - elements, fp_mul=elements)


def _variance(roots: int) -> ElementFormula:
    def formula(call: Call) -> ElementOps:
        """Per element: mean 1 add; 1 sub, 1 mul, 1 add. Per result: 2 divisions by one number, maybe a square root."""
        elements, results = call.args["self"].numel(), call.results[0].numel()
        return work("statistics", elements, 3 * elements, elements + (2 + roots * SPECIAL) * results)

    return formula


def _norm(call: Call) -> ElementOps:
    """Per element by order: 2 takes 1 mul, 1 add; 1 the sign and 1 add; inf the sign and 1 compare.

    Others take a power and 1 add. Per result: a square root for 2, a power for others.
    """
    elements, results = size(call.args["self"]), call.results[0].numel()
    order = call.args.get("ord", call.args.get("p"))
    order = 2 if order is None else order
    if math.isinf(order):
        return work("statistics", elements, int_add=2 * elements)
    if order in (0, 1):
        return work("statistics", elements, fp_add=elements, int_add=elements)
    if order == 2:
        return work("statistics", elements, elements, elements + SPECIAL * results)
    return work("statistics", elements, elements, (2 * SPECIAL + 1) * (elements + results), elements)


def _sorted(call: Call) -> ElementOps | None:
    """n log2 n compares for n elements in a row."""
    x = call.args["self"]
    if is_bookkeeping(call):
        return None
    n = width(x, call.args.get("dim"))
    return work("sort", x.numel(), int_add=x.numel() * math.ceil(math.log2(n)))


def _searched(call: Call) -> ElementOps | None:
    """log2 n compares for each value that is looked up in n sorted ones."""
    found, edges = call.results[0].numel(), call.args.get("boundaries", call.args.get("sorted_sequence"))
    if is_bookkeeping(call) or edges is None:
        return None
    return work("sort", found, int_add=found * math.ceil(math.log2(max(2, edges.shape[-1]))))


def _distances(call: Call) -> ElementOps:
    """Per pair and coordinate: 1 sub, then as a norm of order p."""
    x, p, pairs = call.args.get("x1", call.args.get("self")), call.args["p"], call.results[0].numel()
    assert x is not None
    terms = pairs * x.shape[-1]
    if p == 2:
        return work("distance", pairs, 2 * terms, terms + SPECIAL * pairs)
    if p in (0, 1) or math.isinf(p):
        return work("distance", pairs, 2 * terms, int_add=terms)
    return work("distance", pairs, 2 * terms, (2 * SPECIAL + 1) * (terms + pairs), terms)


def _distances_backward(call: Call) -> ElementOps:
    """Per pair and coordinate: the difference 1 sub, 1 mul by dy / distance, 1 add; per pair that division.

    For orders other than 1 and 2 a power of the difference, too.
    """
    errors, p = call.args["grad"].numel(), call.args["p"]
    terms = errors * call.results[0].shape[-1]
    power = 0 if p in (1, 2) else 2 * SPECIAL + 1
    return work("distance", errors, 2 * terms, (1 + power) * terms + SPECIAL * errors)


def _fft(call: Call) -> ElementOps:
    """A complex transform of n points is 2 n log2 n mul and 3 n log2 n add, a real one half of it.

    Source: Van Loan 1992 ("Computational Frameworks for the Fast Fourier Transform"), section 1.4. Scaling is left out.
    """
    is_real = call.op != "aten::_fft_c2c"
    points = call.results[0] if call.op == "aten::_fft_c2r" else call.args["self"]
    n = width(points, call.args["dim"])
    butterflies = points.numel() * math.ceil(math.log2(n)) // (2 if is_real else 1)
    return work("fft", size(points), 3 * butterflies, 2 * butterflies)


_MAXIMA = ("amax", "amin", "max", "min", "argmax", "argmin", "cummax", "cummin")
_SORTS = ("sort", "topk", "kthvalue", "median", "nanmedian", "mode", "_unique2", "unique_dim", "unique_consecutive")

REDUCTIONS: dict[str, ElementFormula] = {
    "aten::sum": _sum,
    "aten::nansum": _sum,
    "aten::trace": each("sum", fp_add=1),
    "aten::cumsum": each("sum", fp_add=1),
    "aten::cumprod": each("sum", fp_mul=1),
    "aten::prod": each("sum", fp_mul=1, of="self"),
    "aten::logcumsumexp": each("sum", 3, 2 * SPECIAL, 1),  # max + log1p(exp(-|a - b|))
    "aten::count_nonzero": each("max", int_add=1, of="self"),
    "aten::mean": _mean,
    "aten::var": _variance(0),
    "aten::var_mean": _variance(0),
    "aten::std": _variance(1),
    "aten::std_mean": _variance(1),
    "aten::linalg_vector_norm": _norm,
    "aten::norm": _norm,
    **{f"aten::{name}": each("max", int_add=1, of="self") for name in _MAXIMA},
    "aten::aminmax": each("max", int_add=2, of="self"),
    **{f"aten::{name}": _sorted for name in _SORTS},
    "aten::bucketize": _searched,
    "aten::searchsorted": _searched,
    "aten::_cdist_forward": _distances,
    "aten::_cdist_backward": _distances_backward,
    "aten::_pdist_forward": _distances,
    "aten::_pdist_backward": _distances_backward,
    "aten::linalg_cross": each("elementwise", fp_add=1, fp_mul=2),
    **{f"aten::_fft_{name}": _fft for name in ("c2c", "r2c", "c2r")},
}
