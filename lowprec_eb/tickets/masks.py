"""Channel masks: which channels stay, and how far two masks are apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Masks = Mapping[str, Tensor]  # layer -> bool (channels,); True stays


def keep_largest(scores: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """Drop the ``ratio`` of all channels with the smallest scores, over all layers together.

    Exactly ``round(ratio * channels)`` channels are dropped, and every layer keeps at least its best one (so fewer are
    dropped where ``ratio`` would leave fewer channels than layers). Equal scores are told apart by a fixed rule:
    earlier layers, then lower channel numbers, stay. The public early-bird code keeps what is strictly above a
    threshold instead, which drops every tied channel at once.

    Raises:
        ValueError: ``ratio`` is outside [0, 1), or a score is NaN.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must be in [0, 1): the share of channels to drop, got {ratio}")
    layers = list(scores)
    flat = torch.cat([scores[layer].detach().flatten().cpu() for layer in layers])
    if torch.isnan(flat).any():
        raise ValueError("a channel score is NaN: the training that produced it diverged")
    sizes = [scores[layer].numel() for layer in layers]
    best = torch.zeros_like(flat, dtype=torch.bool)
    for start, part in zip(_starts(sizes), flat.split(sizes), strict=True):
        best[start + int(part.argmax())] = True
    # Two stable sorts: by score, then the best of each layer in front.
    order = flat.argsort(descending=True, stable=True)
    order = order[best[order].to(torch.int8).argsort(descending=True, stable=True)]
    kept = max(flat.numel() - round(ratio * flat.numel()), len(layers))
    mask = torch.zeros_like(best)
    mask[order[:kept]] = True
    return dict(zip(layers, mask.split(sizes), strict=True))


def keep_uniform(widths: Mapping[str, int], ratio: float) -> dict[str, Tensor]:
    """The first channels of every layer, each of which drops the share ``ratio`` of its own: a plan's ticket."""
    kept = {layer: max(1, round((1 - ratio) * width)) for layer, width in widths.items()}
    return {layer: torch.arange(width) < kept[layer] for layer, width in widths.items()}


def keep_random(masks: Masks, generator: torch.Generator) -> dict[str, Tensor]:
    """A random mask with the same number of channels in every layer as ``masks``: the control for a ticket."""
    result = {}
    for layer, mask in masks.items():
        chosen = torch.randperm(mask.numel(), generator=generator)[: int(mask.sum())]
        result[layer] = torch.zeros_like(mask).index_fill_(0, chosen, True)
    return result


def mask_distance(a: Masks, b: Masks) -> float:
    """Normalised Hamming distance of two channel masks: 1 - matches / channels, in [0, 1].

    Source: You et al. 2020, section 3.2.

    Raises:
        ValueError: the masks are of different layers or widths.
    """
    if {k: v.numel() for k, v in a.items()} != {k: v.numel() for k, v in b.items()}:
        raise ValueError("mask_distance needs two masks of the same layers and widths")
    differing = sum(int((a[layer] != b[layer]).sum()) for layer in a)
    return differing / sum(mask.numel() for mask in a.values())


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]
