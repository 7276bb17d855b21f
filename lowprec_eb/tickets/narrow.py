"""Layers that only compacted models need: torch has none with fewer outputs than inputs, or fewer heads than width."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowprec_eb.attention import multi_head_attention_forward


class _Selection(nn.Module):
    """Normalises the input channels ``selected`` (kept,) of ``in_channels`` alone.

    The channel selection of network slimming (Liu et al. 2017, section 3) for pre-activation nets: the residual stream
    keeps its width, and what a branch does not read is left out in front of it.
    """

    in_channels: int
    selected: Tensor

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.index_select(1, self.selected))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, {super().extra_repr()}"


class SelectedBatchNorm1d(_Selection, nn.BatchNorm1d): ...


class SelectedBatchNorm2d(_Selection, nn.BatchNorm2d): ...


class SelectedBatchNorm3d(_Selection, nn.BatchNorm3d): ...


SELECTED = (SelectedBatchNorm1d, SelectedBatchNorm2d, SelectedBatchNorm3d)


def select_channels(norm: nn.Module, selected: Tensor, in_channels: int) -> None:
    """Let ``norm``, already cut, read ``selected`` of ``in_channels`` channels; in place, its tensors stay its own."""
    plain = type(norm).__mro__[2] if isinstance(norm, SELECTED) else type(norm)
    everything = len(selected) == in_channels
    if everything and isinstance(norm, SELECTED):
        del norm.selected, norm.in_channels
        norm.__class__ = plain
    elif not everything:
        norm.__class__ = next(cls for cls in SELECTED if issubclass(cls, plain))
        norm.register_buffer("selected", selected.to(next(iter(norm.state_dict().values())).device))
        norm.in_channels = in_channels  # type: ignore[assignment]


class NarrowMultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with fewer heads than its width has room for; same arguments, shapes and results.

    ``embed_dim`` is the width of what is read and written, ``num_heads * head_dim`` that of queries, keys and values.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(n, l, width) with ``batch_first``, else (l, n, width), or (l, width) -> the same shape, and the weights."""
        plain = not need_weights and key_padding_mask is None and query.dim() == 3
        if plain and (attn_mask is None or attn_mask.dim() == 2):
            return self._fused(query, key, value, attn_mask), None
        swap = self.batch_first and query.dim() == 3
        if swap:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        out, weights = multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            self.in_proj_weight,
            self.in_proj_bias,
            None,
            None,
            False,
            self.dropout,
            self.out_proj.weight,
            self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return out.transpose(0, 1) if swap else out, weights

    def _fused(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
        if query is key and key is value:
            projected: Any = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            triples = zip((query, key, value), self.in_proj_weight.chunk(3), biases, strict=True)
            projected = [F.linear(x, w, b) for x, w, b in triples]
        order = (0, 2, 1, 3) if self.batch_first else (1, 2, 0, 3)
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).permute(order) for x in projected)
        mask = ~attn_mask if attn_mask is not None and attn_mask.dtype == torch.bool else attn_mask
        mixed = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        back = (0, 2, 1, 3) if self.batch_first else (2, 0, 1, 3)
        return F.linear(mixed.permute(back).flatten(2), self.out_proj.weight, self.out_proj.bias)


def narrow_attention(attention: nn.MultiheadAttention) -> None:
    """Let ``attention``, already cut, have as many heads as its projections hold; in place."""
    heads = attention.in_proj_weight.shape[0] // (3 * attention.head_dim)
    if heads == attention.num_heads:
        return
    attention.num_heads = heads
    # torch's fused encoder layer reads these tensors itself, and only where this says that they are as it knows them.
    attention._qkv_same_embed_dim = False
    attention.__class__ = NarrowMultiheadAttention


def without_nested_tensors(model: nn.Module) -> None:
    """Keep torch's encoder from handing nested tensors, which its own attention alone reads, to narrow attention."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(
            isinstance(layer, NarrowMultiheadAttention) for layer in module.modules()
        ):
            module.use_nested_tensor = False
