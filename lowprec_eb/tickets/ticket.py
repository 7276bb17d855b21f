"""Tickets: the channels kept, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_eb.tickets.importance import batch_norms, gamma_scores
from lowprec_eb.tickets.masks import keep_largest


@dataclass(frozen=True, eq=False)
class Ticket:
    """A channel subnetwork.

    Args:
        masks: by BatchNorm layer, bool (channels,); True stays.
        ratio: the share of channels that was to be dropped.
        epoch: how many epochs had been trained when it was drawn.
        distances: the mask distances that the detector compared with its threshold; empty without a detector.
        on_time: False when no ticket had appeared by the deadline and this is the best so far.
        precision: name of the precision of the training it was drawn from (None: not said).
    """

    masks: Mapping[str, Tensor]
    ratio: float
    epoch: int
    distances: tuple[float, ...] = field(default=())
    on_time: bool = True
    precision: str | None = None

    @property
    def channels_kept(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    @property
    def channels_total(self) -> int:
        return sum(mask.numel() for mask in self.masks.values())

    @property
    def widths(self) -> dict[str, int]:
        """Channels kept, by layer."""
        return {layer: int(mask.sum()) for layer, mask in self.masks.items()}

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Set gamma and beta of the dropped channels to zero, in place: what a compacted model must equal."""
        norms = batch_norms(model)
        for layer, mask in self.masks.items():
            if layer not in norms or norms[layer].num_features != mask.numel():
                raise ValueError(f"the ticket's layer {layer!r} ({mask.numel()} channels) is not in this model")
            dropped = ~mask.to(norms[layer].weight.device)
            norms[layer].weight[dropped] = 0
            norms[layer].bias[dropped] = 0

    def to_tree(self) -> dict[str, Any]:
        """Plain nested data, for a checkpoint."""
        return {**self.__dict__, "masks": dict(self.masks)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Ticket:
        return cls(**{**tree, "distances": tuple(tree["distances"])})


def draw_by_gamma(model: nn.Module, ratio: float, *, epoch: int, precision: str | None = None) -> Ticket:
    """The ticket of network slimming (Liu et al. 2017): the channels with the largest ``|gamma|`` stay."""
    return Ticket(keep_largest(gamma_scores(model), ratio), ratio, epoch, precision=precision)
