"""What an operator outside the GEMMs moves: each tensor of numbers that it takes or returns, once.

Left out: batch norm's second pass over its input, the few bits of pooling indices, and integer tensors. Copies (cat,
stack, padding) have no row at all: a GEMM that follows could write its result to where it belongs.
"""

from __future__ import annotations

from energy_models.tracing.call import Call, float_bits

# Arguments that are there for their shape, or to be written over.
_SHAPE_ALONE = ("self",)
_NOT_READ: dict[str, tuple[str, ...]] = {
    **{
        f"aten::{name}{rank}d_backward": _SHAPE_ALONE
        for rank in "123"
        for name in (
            *("avg_pool", "_adaptive_avg_pool", "adaptive_max_pool", "fractional_max_pool"),
            *("reflection_pad", "replication_pad"),
        )
    },
    **{f"aten::max_pool{rank}d_with_indices_backward": _SHAPE_ALONE for rank in "23"},
    "aten::nll_loss_backward": _SHAPE_ALONE,
    "aten::nll_loss2d_backward": _SHAPE_ALONE,
    "aten::native_layer_norm_backward": ("bias",),
    # Sums go into zeros that were made for them, or are held on chip: the result is written once.
    **dict.fromkeys(
        ("aten::scatter_add", "aten::scatter_reduce", "aten::scatter", "aten::index_add", "aten::index_reduce"),
        _SHAPE_ALONE,
    ),
    **dict.fromkeys(("aten::index_put", "aten::_index_put_impl", "aten::_unsafe_index_put"), _SHAPE_ALONE),
    **dict.fromkeys(("aten::index_copy", "aten::masked_scatter"), _SHAPE_ALONE),
}
# Of a large table only what is taken is read.
_TAKES = {
    "aten::embedding": "weight",
    **dict.fromkeys(
        (f"aten::{n}" for n in ("gather", "index_select", "index", "_unsafe_index", "take", "masked_select")), "self"
    ),
}


def moved_bits(call: Call) -> tuple[int, int]:
    """(bits read, bits written) by one call."""
    written = float_bits(call.results)
    if call.op in _TAKES:
        return written, written
    if call.op == "aten::bernoulli" and call.args.get("p") is not None:
        return float_bits([call.args["p"]]), written
    unread = _NOT_READ.get(call.op, ())
    return float_bits(value for name, value in call.args.items() if name not in unread), written
