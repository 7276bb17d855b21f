"""The smaller models of a plan: found from one look at the dense model, and without values."""

from __future__ import annotations

from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lowprec_eb.tickets import Shrinking, batch_norms
from lowprec_eb.tickets.foresight import Removed
from lowprec_eb.tickets.masks import Masks
from lowprec_eb.tickets.reconstruction import Covered, covered
from lowprec_eb.tickets.ticket import Ticket


class PlannedCuts:
    """Cuts models that descend from ``dense`` by tickets with one group per BatchNorm2d.

    A model is known by the channels of ``dense`` that it has left, so none needs a channel graph of its own, and the
    same channels give the same model.
    """

    def __init__(self, dense: nn.Module, example: Tensor) -> None:
        self._dense, self._example = dense, example
        self._left: WeakKeyDictionary[nn.Module, Masks] = WeakKeyDictionary()
        self._made: dict[str, nn.Module] = {}

    @cached_property
    def _shrinking(self) -> Shrinking:
        return Shrinking(self._dense, self._example, None)

    @cached_property
    def _covered(self) -> Covered:
        return covered(self._dense, self._example, "batch_norm")

    def covered(self, model: nn.Module) -> Covered:
        """What :func:`lowprec_eb.tickets.reconstruction.covered` says of ``model``, for groups that are whole in it."""
        found = self._covered
        widths = {name: norm.num_features for name, norm in batch_norms(model).items() if name in found.widths}
        return Covered(found.readers, found.left_out, found.groups, widths)

    def cut(self, model: nn.Module, ticket: Ticket) -> nn.Module:
        """What is left of ``model``. Where one group alone loses channels, and was observed to be able to, what goes is
        foreseen; else it is observed."""
        masks = self._composed(model, ticket.masks)
        key = Ticket(masks, 0.0, 0).fingerprint
        if key not in self._made:
            losing = [name for name, mask in ticket.masks.items() if not bool(mask.all())]
            was_seen = len(losing) == 1 and losing[0] in self._covered.readers
            removed = self._shrinking.removed(masks) if was_seen else self._shrinking.observe(masks)
            self._made[key] = self._shrinking.smaller(masks, removed)
            self._left[self._made[key]] = self._physically_left(removed)
        return self._made[key]

    def _physically_left(self, removed: Removed) -> Masks:
        """By BatchNorm, its channels that are in the smaller model: of those dropped, some may have to stay."""
        widths = self._shrinking.widths
        sites = {site.module: site for site in self._shrinking.graph.sites if site.side == "out"}
        return {name: torch.from_numpy(~removed[sites[name].atoms]) for name in widths}

    def _composed(self, model: nn.Module, masks: Masks) -> Masks:
        """Masks of what ``model`` has left as masks of the dense model."""
        before = self._left.get(model)
        return masks if before is None else {name: _within(left, masks[name]) for name, left in before.items()}


def _within(left: Tensor, mask: Tensor) -> Tensor:
    found = torch.zeros_like(left)
    found[left] = mask
    return found
