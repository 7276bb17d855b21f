"""Attention as its matrix products: what torch computes in one fused call, taken apart so that each can be rounded.

Both functions have the arguments, shapes and results of torch's own, up to rounding of the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

_safe_softmax = torch.ops.aten._safe_softmax.default  # as in torch's fused attention: who attends to nothing gets zeros


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(query @ key^T * scale + mask) @ value`` by two calls of ``torch.matmul``.

    query (..., l, e), key (..., s, e), value (..., s, v) -> (..., l, v).
    """
    if is_causal:
        if attn_mask is not None:
            raise RuntimeError("scaled_dot_product_attention: give attn_mask or is_causal, not both")
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scaled = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    mask = None if attn_mask is None else _additive(attn_mask, query.dtype)
    return _attend(scaled, key, value, mask, dropout_p, _safe_softmax)[0]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, softmax: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    scores = torch.matmul(query, key.mT)
    weights = softmax(scores if mask is None else scores + mask, -1)
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    return torch.matmul(weights, value), weights


def _additive(mask: Tensor, dtype: torch.dtype, masked: bool = False) -> Tensor:
    """A mask to add to scores; of a boolean one, elements that equal ``masked`` become -inf."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask == masked, -math.inf)


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention by ``F.linear`` and ``torch.matmul``: query (l, n, e) or (l, e) -> the same shape, weights.

    Raises:
        ValueError: static_k or static_v is given; the lowered layer needs the projections.
        RuntimeError: is_causal without the mask that it says is causal.
    """
    if static_k is not None or static_v is not None:
        raise ValueError("multi_head_attention_forward: static_k and static_v cannot be lowered")
    if is_causal and attn_mask is None:
        raise RuntimeError("multi_head_attention_forward: is_causal is a hint about attn_mask; give the mask")
    batched = query.dim() == 3
    if not batched:
        query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    separate = (q_proj_weight, k_proj_weight, v_proj_weight) if use_separate_proj_weight else None
    q, k, v = _projected(query, key, value, in_proj_weight if separate is None else separate, in_proj_bias)
    if bias_k is not None and bias_v is not None:
        k, v = (torch.cat([x, b.expand(1, x.shape[1], -1)]) for x, b in ((k, bias_k), (v, bias_v)))
    if add_zero_attn:
        k, v = (torch.cat([x, x.new_zeros(1, *x.shape[1:])]) for x in (k, v))
    q, k, v = (_heads(x, num_heads) for x in (q, k, v))
    mask = _merged(attn_mask, key_padding_mask, q, k)
    softmax = torch.softmax if need_weights else _safe_softmax
    mixed, weights = _attend(q * q.shape[-1] ** -0.5, k, v, mask, dropout_p if training else 0.0, softmax)
    out = F.linear(mixed.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    weights = weights.mean(1) if average_attn_weights else weights
    shown = weights if batched else weights.squeeze(0)
    return out if batched else out.squeeze(1), shown if need_weights else None


def _projected(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    weight: Tensor | tuple[Tensor | None, Tensor | None, Tensor | None] | None,
    bias: Tensor | None,
) -> list[Tensor]:
    """Queries, keys and values; one weight holds all three one below the other."""
    assert weight is not None
    weights = weight.chunk(3) if isinstance(weight, Tensor) else weight
    biases = (None, None, None) if bias is None else bias.chunk(3)
    if isinstance(weight, Tensor) and query is key and key is value:
        return list(F.linear(query, weight, bias).chunk(3, -1))
    triples = zip((query, key, value), weights, biases, strict=True)
    return [F.linear(x, w, b) for x, w, b in triples if w is not None]


def _heads(x: Tensor, count: int) -> Tensor:
    """(length, n, features) -> (n, heads, length, features / heads)."""
    return x.reshape(*x.shape[:-1], count, -1).permute(1, 2, 0, 3)


def _merged(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """One additive mask that broadcasts over (n, heads, l, s); columns that were appended to the keys are seen."""
    parts = []
    if attn_mask is not None:
        mask = _additive(attn_mask, q.dtype, masked=True)
        parts.append(mask.reshape(q.shape[0], -1, *mask.shape[1:]) if mask.dim() == 3 else mask)
    if padding is not None:
        parts.append(_additive(padding, q.dtype, masked=True)[:, None, None, :])
    merged: Tensor | None = None
    for part in parts:
        padded = F.pad(part, (0, k.shape[-2] - part.shape[-1]))
        merged = padded if merged is None else merged + padded
    return merged
