"""Fused attention as the products that its kernels do; scores and probabilities stay on chip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from energy_models.counts import ElementOps, Zeros
from energy_models.tracing.call import Call, Formula, Product
from energy_models.tracing.elements import softmax_backward_ops, softmax_ops

_FUSED = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


class _Shapes:
    """query (..., l, e), key (..., s, e), value (..., s, v); fewer key than query heads are read by several."""

    def __init__(self, call: Call) -> None:
        self.query, self.key, self.value = (call.args[name] for name in ("query", "key", "value"))
        *batch, self.rows, self.width = self.query.shape
        self.columns, self.value_width = self.value.shape[-2:]
        self.batch = math.prod(batch)
        self.scores = (*batch, self.rows, self.columns)
        hidden = self.rows * self.columns - self._seen if call.args.get("is_causal") else 0
        self.hidden = self.batch * hidden

    @property
    def _seen(self) -> int:
        """Scores on and below the diagonal, which starts in the upper left corner."""
        full = min(self.rows, self.columns)
        return int(full * (full + 1) // 2 + max(0, self.rows - full) * self.columns)

    def product(self, a: Any, b: Any, result: Any, m: int, n: int, k: int, **roles: Any) -> Product:
        """One of the products; two of its three sides are those of the scores, so a hidden score saves the third."""
        zeros = Zeros(causal=self.hidden * (m * n * k // (self.rows * self.columns)))
        return Product(a, b, result, self.batch, m, n, k, **roles, zeros=zeros)


def _attention(call: Call) -> Iterator[Product | ElementOps]:
    """scores = query @ key^T, out = softmax(scores) @ value."""
    s = _Shapes(call)
    roles: dict[str, Any] = {"gemm": "output", "names": ("activation", "activation")}
    yield s.product(s.query, s.key, s.scores, s.rows, s.columns, s.width, **roles)
    yield softmax_ops(math.prod(s.scores), s.columns)
    yield s.product(s.scores, s.value, call.results[0], s.rows, s.value_width, s.columns, **roles)


def _attention_backward(call: Call) -> Iterator[Product | ElementOps]:
    """The scores once more (they were not kept), then the gradients of probabilities, value, query and key.

    Source: Dao et al. 2022 ("FlashAttention"), algorithm 4.
    """
    s, error = _Shapes(call), _error(call)
    again: dict[str, Any] = {"gemm": "output", "names": ("activation", "activation")}
    roles: dict[str, Any] = {"gemm": "grad_input", "names": ("error", "activation")}
    yield s.product(s.query, s.key, s.scores, s.rows, s.columns, s.width, **again)
    yield softmax_ops(math.prod(s.scores), s.columns)
    yield s.product(error, s.value, s.scores, s.rows, s.columns, s.value_width, **roles)
    yield s.product(error, s.scores, s.value, s.columns, s.value_width, s.rows, **roles)
    yield softmax_backward_ops(math.prod(s.scores))
    yield s.product(s.scores, s.key, s.query, s.rows, s.width, s.columns, **roles)
    yield s.product(s.scores, s.query, s.key, s.columns, s.width, s.rows, **roles)


def _error(call: Call) -> Tensor:
    found = next(call.args[name] for name in ("grad_out", "grad_out_", "grad_output") if name in call.args)
    assert isinstance(found, Tensor)
    return found


ATTENTION: dict[str, Formula] = {
    **{f"aten::{name}": _attention for name in _FUSED},
    **{f"aten::{name}_backward": _attention_backward for name in _FUSED},
}
