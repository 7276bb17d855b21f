"""A decoder with the sizes of a 7e9 parameter language model, to be planned and counted.

    lowprec-eb count examples/decoder.py:decoder_7b --input tokens:2048 --precision mxfp8 --optimizer adamw
    lowprec-eb estimate configs/plans/decoder_7b.yaml

Nothing here is trained: the commands build it without values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each behind a norm (Touvron et al. 2023, without rotary positions)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_ntc: Tensor) -> Tensor:
        n, t, c = x_ntc.shape
        normed = self.attention_norm(x_ntc)
        parts = (self.query, self.key, self.value)
        query, key, value = (part(normed).view(n, t, self.heads, -1).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_ntc = x_ntc + self.output(mixed.transpose(1, 2).reshape(n, t, c))
        normed = self.feed_forward_norm(x_ntc)
        result: Tensor = x_ntc + self.down(F.silu(self.gate(normed)) * self.up(normed))
        return result


class Decoder(nn.Module):
    """Tokens (N, T) -> the loss of predicting each one's successor."""

    def __init__(self, vocabulary: int, width: int, depth: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x_ntc = self.embedding(tokens)
        for block in self.blocks:
            x_ntc = block(x_ntc)
        logits = self.head(self.norm(x_ntc))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def decoder_7b() -> tuple[nn.Module, tuple[Tensor]]:
    """6.7e9 parameters (Touvron et al. 2023, table 2), and one sample of 2048 tokens."""
    model = Decoder(vocabulary=32000, width=4096, depth=32, heads=32, hidden=11008)
    return model, (torch.zeros(1, 2048, dtype=torch.int64, device="cpu"),)
