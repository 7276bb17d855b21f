"""Shapes of results that torch does not know without values, or finds slowly.

Operators are given tensors without values (ghosts) and small known ones; the results are on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

META = torch.device("meta")
aten = torch.ops.aten


def _like(x: Any) -> Tensor:
    return torch.empty_like(getattr(x, "on_meta", x), device=META)


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *_: Any) -> Any:
    statistics = torch.empty(x.shape[1] if training else 0, dtype=_wide(x), device=META)
    return _like(x), statistics, torch.empty_like(statistics)


def _batch_norm_backward(error: Any, x: Any, weight: Any, *rest: Any) -> Any:
    of_channel = torch.empty(x.shape[1], dtype=_wide(x), device=META)
    return tuple(
        _like(like) if asked else None for like, asked in zip((x, of_channel, of_channel), rest[-1], strict=True)
    )


def _wide(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def _addmm(bias: Tensor, a: Tensor, b: Tensor, **scalars: Any) -> Any:
    if a.shape[1] != b.shape[0]:
        raise RuntimeError(f"shapes of a matrix product do not fit: {tuple(a.shape)} by {tuple(b.shape)}")
    return torch.empty(a.shape[0], b.shape[1], dtype=bias.dtype, device=META)


def _packed(x: Any, lengths: Tensor, batch_first: bool) -> Any:
    steps = torch._C._VariableFunctions._pack_padded_sequence(torch.empty(*x.shape[:2], 1), lengths, batch_first)[1]
    return torch.empty(int(lengths.sum()), *x.shape[2:], dtype=x.dtype, device=META), steps


def _ctc_loss(log_probs: Any, targets: Any, inputs: Any, lengths: Tensor | Sequence[int], *_: Any) -> Any:
    """(N,) losses and (N, T, 2 * longest target + 1) alignments of (T, N, C) log-probabilities."""
    longest = max((int(length) for length in lengths), default=0)
    steps, batch = log_probs.shape[0], math.prod(log_probs.shape[1:-1])
    new = {"dtype": log_probs.dtype, "device": META}
    return torch.empty(batch, **new), torch.empty(batch, steps, 2 * longest + 1, **new)


def _grouped_mm(a: Tensor, b: Tensor, offs: Tensor | None = None, bias: Any = None, out_dtype: Any = None) -> Any:
    """Products of slices that start at offsets: of rows (2-d by 3-d), columns (3-d by 2-d) or the summed dimension."""
    groups = (len(offs),) if a.dim() == 2 and b.dim() == 2 and offs is not None else ()
    batch = tuple(a.shape[:1]) if a.dim() == 3 and b.dim() == 3 else groups
    return torch.empty(*batch, a.shape[-2], b.shape[-1], dtype=out_dtype or a.dtype, device=META)


def _sparse_reduce(sparse: Tensor, dense: Tensor, reduce: str) -> Any:
    result = torch.empty(sparse.shape[0], dense.shape[1], dtype=dense.dtype, device=META)
    return result, torch.empty(0, dtype=torch.int64, device=META)


def _sparse_reduce_backward(sparse: Tensor, error: Any, dense: Any, reduce: str, _: Any, mask: Sequence[bool]) -> Any:
    return sparse if mask[0] else None, _like(dense) if mask[1] else None


def _lstm_cell(x_gates: Any, h_gates: Any, cell: Any, *_: Any) -> Any:
    return _like(cell), _like(cell), _like(x_gates)


def _gru_cell(x_gates: Any, h_gates: Any, state: Any, *_: Any) -> Any:
    kept = torch.empty(state.shape[0], 5 * state.shape[1], dtype=state.dtype, device=META)
    return _like(state), kept


def _gru_cell_backward(error: Any, kept: Any, has_bias: bool) -> Any:
    gates = torch.empty(error.shape[0], 3 * error.shape[1], dtype=error.dtype, device=META)
    bias = gates[0] if has_bias else None
    return gates, _like(gates), _like(error), bias, _like(bias) if has_bias else None


# Operators that return what their floating-point operands are like. torch finds that out by its Python decompositions,
# which are slow and import its compiler.
ELEMENTWISE = frozenset(
    getattr(aten, name).default
    for name in ("relu", "sigmoid", "tanh", "silu", "gelu", "neg", "threshold_backward", "sigmoid_backward")
) | frozenset(getattr(aten, name).Tensor for name in ("add", "sub", "mul", "div"))

SHAPES: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm.default: _batch_norm,
    aten.native_batch_norm_backward.default: _batch_norm_backward,
    aten.addmm.default: _addmm,
    aten._pack_padded_sequence.default: _packed,
    aten._ctc_loss.default: _ctc_loss,
    aten._ctc_loss.Tensor: _ctc_loss,
    aten._ctc_loss_backward.default: lambda error, log_probs, *_: _like(log_probs),
    aten._ctc_loss_backward.Tensor: lambda error, log_probs, *_: _like(log_probs),
    aten.multi_margin_loss_backward.default: lambda error, x, *_: _like(x),
    aten.multilabel_margin_loss_backward.default: lambda error, x, *_: _like(x),
    aten._thnn_fused_lstm_cell.default: _lstm_cell,
    aten._thnn_fused_gru_cell.default: _gru_cell,
    aten._thnn_fused_gru_cell_backward.default: _gru_cell_backward,
    aten._grouped_mm.default: _grouped_mm,
    aten._sparse_mm_reduce_impl.default: _sparse_reduce,
    aten._sparse_mm_reduce_impl_backward.default: _sparse_reduce_backward,
}
