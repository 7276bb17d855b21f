"""Channel masks: which channels stay, and how far two masks are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

Masks = Mapping[str, Tensor]  # layer or group -> bool (channels,); True stays


@dataclass(frozen=True)
class Layout:
    """Where the channels of each layer (or group) lie in one flat tensor over all of them."""

    names: tuple[str, ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        return cls(tuple(tensors), tuple(tensor.numel() for tensor in tensors.values()))

    @cached_property
    def channels(self) -> int:
        return sum(self.widths)

    def kept(self, ratio: float) -> int:
        """How many channels stay where the share ``ratio`` goes and every layer keeps one."""
        return max(self.channels - round(ratio * self.channels), len(self.names))

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The layers' parts of ``flat``, shape (channels,)."""
        return dict(zip(self.names, flat.split(list(self.widths)), strict=True))

    def count(self, mask: Tensor) -> Tensor:
        """Channels kept in each layer, int64 (layers,), on the mask's device; waits for nothing."""
        zeros = torch.zeros(len(self.widths), dtype=torch.int64, device=mask.device)
        return zeros.index_add_(0, _constants(self.widths, mask.device).layers, mask.long())


@dataclass(frozen=True, eq=False)
class _Constants:
    """Tensors that every ranking of a layout begins with: a look makes none of them anew.

    layers: the layer of each channel, int64 (channels,). numbers: 0, 1, 2, ... (channels,). last: ``channels``, int64
    (layers,). ones: int8 (channels,). none: False (channels,).
    """

    layers: Tensor
    numbers: Tensor
    last: Tensor
    ones: Tensor
    none: Tensor


@lru_cache(maxsize=16)
def _constants(widths: tuple[int, ...], device: torch.device) -> _Constants:
    channels = sum(widths)
    layers = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(widths)).to(device)
    return _Constants(
        layers,
        torch.arange(channels, device=device),
        torch.full((len(widths),), channels, device=device),
        torch.ones(channels, dtype=torch.int8, device=device),
        torch.zeros(channels, dtype=torch.bool, device=device),
    )


def flatten(scores: Mapping[str, Tensor]) -> Tensor:
    """All scores behind each other, on their device, in float32 at least: (channels,)."""
    flat = torch.cat([score.detach().flatten() for score in scores.values()])
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def rank(flat: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """The sorted scores, and the numbers of the channels in the order in which they are kept.

    The best channel of each layer comes first, so that no layer is emptied; then by score. Equal scores are told apart
    by a fixed rule: earlier layers, then lower channel numbers, come first. Runs on the device of ``flat`` (channels,)
    and waits for nothing. The first and the last of the sorted scores are finite only if all are.
    """
    values, order = flat.sort(descending=True, stable=True)
    constants = _constants(layout.widths, flat.device)
    # In this order the first channel of a layer is its best one.
    first = constants.last.scatter_reduce(0, constants.layers[order], constants.numbers, "amin")
    later = constants.ones.index_fill(0, first, 0)
    return values, order[later.argsort(stable=True)]


def keep_first(order: Tensor, kept: int, layout: Layout) -> Tensor:
    """The mask of the ``kept`` first channels of :func:`rank`'s order: bool (channels,)."""
    return _constants(layout.widths, order.device).none.index_fill(0, order[:kept], True)


def keep_largest(scores: Mapping[str, Tensor], ratio: float) -> dict[str, Tensor]:
    """Drop the ``ratio`` of all channels with the smallest scores, over all layers together.

    Exactly ``round(ratio * channels)`` channels are dropped, and every layer keeps at least its best one (so fewer are
    dropped where ``ratio`` would leave fewer channels than layers). Equal scores are told apart by a fixed rule:
    earlier layers, then lower channel numbers, stay. The public early-bird code keeps what is strictly above a
    threshold instead, which drops every tied channel at once. The masks are on the scores' device.

    Raises:
        ValueError: ``ratio`` is outside [0, 1).
        NaNScores: a score is NaN or infinite; a ValueError, too.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must be in [0, 1): the share of channels to drop, got {ratio}")
    layout = Layout.of(scores)
    _, order = rank(flatten(scores), layout)
    check_finite(scores)
    return layout.split(keep_first(order, layout.kept(ratio), layout))


class NaNScores(ValueError):
    """A score that is NaN or infinite, and so cannot be ranked."""


def check_finite(scores: Mapping[str, Tensor]) -> None:
    """Raise NaNScores for a score that is NaN or infinite, naming the group; waits for the device once."""
    finite = torch.stack([score.isfinite().all() for score in scores.values()]).tolist()
    bad = [name for name, fine in zip(scores, finite, strict=True) if not fine]
    if bad:
        raise NaNScores(
            f"the scores of group {bad[0]!r} ({len(bad)} of {len(scores)} groups) hold NaN or infinity: "
            "the training that produced them diverged"
        )


def keep_uniform(widths: Mapping[str, int], ratio: float) -> dict[str, Tensor]:
    """The first channels of every layer, each of which drops the share ``ratio`` of its own: a plan's ticket."""
    kept = {layer: max(1, round((1 - ratio) * width)) for layer, width in widths.items()}
    return {layer: torch.arange(width) < kept[layer] for layer, width in widths.items()}


def keep_random(masks: Masks, generator: torch.Generator) -> dict[str, Tensor]:
    """A random mask with the same number of channels in every layer as ``masks``: the control for a ticket."""
    result = {}
    for layer, mask in masks.items():
        chosen = torch.randperm(mask.numel(), generator=generator)[: int(mask.sum())]
        result[layer] = torch.zeros_like(mask).index_fill_(0, chosen.to(mask.device), True)
    return result


def mask_distance(a: Masks, b: Masks) -> float:
    """Normalised Hamming distance of two channel masks: 1 - matches / channels, in [0, 1].

    Source: You et al. 2020, section 3.2.

    Raises:
        ValueError: the masks are of different layers or widths.
    """
    if {k: v.numel() for k, v in a.items()} != {k: v.numel() for k, v in b.items()}:
        raise ValueError("mask_distance needs two masks of the same layers and widths")
    one = torch.cat([mask.flatten() for mask in a.values()])
    other = torch.cat([b[layer].flatten() for layer in a]).to(one.device)
    return int((one != other).sum()) / one.numel()


def chance_distance(a: tuple[int, ...], b: tuple[int, ...], widths: tuple[int, ...]) -> float:
    """The mean distance of two masks drawn at random with ``a`` and ``b`` of each layer's ``widths`` channels kept.

    With the shares q and r of one layer a channel differs with probability q (1 - r) + r (1 - q), which is 2 q (1 - q)
    where they are equal. 0 only where no channel can differ.
    """
    differing = sum((i * (n - j) + j * (n - i)) / n for i, j, n in zip(a, b, widths, strict=True))
    return differing / sum(widths)
