"""What follows indices: tables, gathers (traffic alone) and sums at places that indices name."""

from __future__ import annotations

from typing import Any

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call
from energy_models.tracing.elements.work import SPECIAL, ElementFormula, each, is_bookkeeping, is_number, size, work


def _embedding_bag(call: Call) -> ElementOps:
    """Of a bag's rows all but one are added or, for a maximum, compared; a mean scales once, weights each row."""
    bags, rows = call.results[0], call.args["indices"].numel()
    added = max(0, rows * bags.shape[-1] - bags.numel())
    if call.args["mode"] == _MAX:
        return work("embedding", bags.numel(), int_add=added)
    weighted = rows * bags.shape[-1] if call.args["per_sample_weights"] is not None else 0
    return work("embedding", bags.numel(), added, weighted + (bags.numel() if call.args["mode"] == _MEAN else 0))


_MEAN, _MAX = 1, 2


def _embedding_bag_backward(call: Call) -> ElementOps:
    """Each error is added to the gradient of each row of its bag, of a maximum to one; means and weights scale it."""
    error, mode = call.args["grad"], call.args["mode"]
    if mode == _MAX:
        return work("embedding", error.numel(), fp_add=error.numel())
    elements = call.args["indices"].numel() * error.shape[-1]
    weighted = elements if call.args["per_sample_weights"] is not None else 0
    return work("embedding", elements, elements, weighted + (error.numel() if mode == _MEAN else 0))


def _row_weights_backward(call: Call) -> ElementOps:
    """A dot product of the error and the row: 1 mul, 1 add per element."""
    elements = call.args["indices"].numel() * call.args["grad"].shape[-1]
    return work("embedding", elements, elements, elements)


def _renormed(call: Call) -> ElementOps:
    """Of each row the norm, 1 mul, 1 add per element and a square root; a division; 1 mul per element."""
    rows, width = call.args["indices"].numel(), call.args["self"].shape[-1]
    elements = rows * width
    return work("embedding", elements, elements, 2 * elements + 2 * SPECIAL * rows)


def _scattered(source: str, reduce: str | None = None) -> ElementFormula:
    """Each source element meets what lies at its place: "sum" 1 add, "prod" 1 mul, a maximum 1 compare.

    A mean divides each result once more. `alpha` scales the source.
    """

    def formula(call: Call) -> ElementOps | None:
        if is_bookkeeping(call):
            return None
        elements, results = size(call.args[source]), size(call.results[0])
        how = reduce or call.args["reduce"]
        scaling = elements if call.args.get("alpha", 1) != 1 else 0
        if how in ("sum", "add"):
            return work("scatter", elements, fp_add=elements, fp_mul=scaling)
        if how == "mean":
            return work("scatter", elements, fp_add=elements, fp_mul=SPECIAL * results)
        if how in ("prod", "multiply"):
            return work("scatter", elements, fp_mul=elements)
        return work("scatter", elements, int_add=elements)

    return formula


def _scatter(call: Call) -> ElementOps | None:
    """Writing to a place is no arithmetic; with `reduce` as `_scattered`."""
    if call.args.get("reduce") is not None and "src" in call.args:
        return _scattered("src")(call)
    return None if is_bookkeeping(call) else work("scatter", size(call.args["src"]) if _has_source(call) else 0)


def _has_source(call: Call) -> bool:
    return is_number(call.args.get("src"))


def _index_put(call: Call) -> ElementOps | None:
    """With `accumulate` 1 add for each value, else none."""
    if not is_number(call.args["self"]):
        return None
    values = size(call.args["values"])
    return work("scatter", values, fp_add=values if call.args["accumulate"] else 0)


def _overlapped(call: Call) -> ElementOps | None:
    """Windows laid back over each other: each element is added to its place."""
    windows = size(_first(call, "grad_in", "grad_output", "self"))
    return work("scatter", windows, fp_add=windows)


def _first(call: Call, *names: str) -> Any:
    return next(call.args[name] for name in names if name in call.args)


_GATHERS = ("gather", "index_select", "index", "_unsafe_index", "take", "masked_select", "repeat_interleave")

INDEXING: dict[str, ElementFormula] = {
    "aten::embedding": each("embedding"),
    "aten::embedding_dense_backward": each("embedding", fp_add=1, of="grad_output"),
    "aten::embedding_renorm": _renormed,
    "aten::_embedding_bag": _embedding_bag,
    "aten::_embedding_bag_forward_only": _embedding_bag,
    "aten::_embedding_bag_backward": _embedding_bag_backward,
    "aten::_embedding_bag_dense_backward": _embedding_bag_backward,
    "aten::_embedding_bag_per_sample_weights_backward": _row_weights_backward,
    **{f"aten::{name}": each("gather") for name in _GATHERS},
    "aten::scatter": _scatter,
    "aten::scatter_add": _scattered("src", "sum"),
    "aten::scatter_reduce": _scattered("src"),
    "aten::index_add": _scattered("source", "sum"),
    "aten::index_reduce": _scattered("source"),
    "aten::index_put": _index_put,
    "aten::_index_put_impl": _index_put,
    "aten::_unsafe_index_put": _index_put,
    "aten::index_copy": each("scatter", of="source"),
    "aten::masked_scatter": each("scatter", of="source"),
    "aten::max_unpool2d": each("scatter", of="self"),
    "aten::max_unpool3d": each("scatter", of="self"),
    "aten::segment_reduce": _scattered("data"),
    "aten::_segment_reduce_backward": each("scatter", fp_mul=1),  # at most: a mean scales, a sum copies
    "aten::col2im": _overlapped,
    "aten::unfold_backward": _overlapped,
}
