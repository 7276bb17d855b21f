"""What is left of a model under a ticket, in shapes alone: quick enough to be asked for many tickets in turn."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import energy_models as em
from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.compaction import Compaction, compaction_of
from lowprec_eb.tickets.dependencies import channel_graph
from lowprec_eb.tickets.foresight import Removed, check_groups, foreseen
from lowprec_eb.tickets.importance import batch_norms
from lowprec_eb.tickets.liveness import removable
from lowprec_eb.tickets.masks import Masks
from lowprec_eb.tickets.members import ChannelGroup
from lowprec_eb.tickets.ticket import Ticket


class Shrinking:
    """The compacted models of many tickets of one model, as copies on the meta device.

    What a ticket removes is foreseen: of coupled groups everything that is dropped; with one group per BatchNorm what
    only dropped BatchNorms write, or only they read. That is right unless a layer makes something of a zero (a sigmoid
    does) or the like. :meth:`observe` finds out on the model, as :func:`plan_compaction` does, for a ticket that is to
    be used. Of coupled groups, what then had to stay is minded from then on; otherwise ``observing`` is set, and every
    ticket is observed, which takes longer.
    """

    def __init__(self, model: nn.Module, example_inputs: Inputs, groups: Sequence[ChannelGroup] | None) -> None:
        self.model, self.example_inputs = model, example_inputs
        self.groups = None if groups is None else tuple(groups)
        self.graph = channel_graph(model, example_inputs, coupled=groups is not None)
        self.bare = without_values(model)
        self.observing = False
        self._stays = np.zeros(self.graph.atoms, np.bool_)  # atoms that were dropped and had to stay
        check_groups(self.graph, self.groups or ())

    @property
    def widths(self) -> dict[str, int]:
        """Channels by group."""
        if self.groups is not None:
            return {group.name: group.channels for group in self.groups}
        return {name: norm.num_features for name, norm in batch_norms(self.model).items()}

    @property
    def foresight(self) -> tuple[bool, int]:
        """Changes when an observation was not foreseen."""
        return self.observing, int(self._stays.sum())

    def removed(self, masks: Masks) -> Removed:
        """Which atoms go under ``masks``, as far as is foreseen, or as observed."""
        if self.observing:
            return removable(self.graph, self.model, self._ticket(masks), self.example_inputs)
        return foreseen(self.graph, self.model, self._ticket(masks)) & ~self._stays

    def observe(self, masks: Masks) -> Removed:
        """Which atoms really go. What was not foreseen changes what :meth:`removed` says from now on."""
        found = removable(self.graph, self.model, self._ticket(masks), self.example_inputs)
        if self.observing:
            return found
        expected = self.removed(masks)
        stays = self._stays | (expected & ~found)
        # What BatchNorms free depends on all masks together, and so would an exception.
        self.observing = not np.array_equal(expected, found) and (
            self.groups is None or np.array_equal(stays, self._stays)
        )
        self._stays = stays
        return found

    def shapes(self, removed: Removed) -> tuple[int, ...]:
        """What decides the shape of every tensor that is left: positions that stay, by site."""
        return tuple(int((~removed[site.atoms]).sum()) for site in self.graph.sites)

    def smaller(self, masks: Masks, removed: Removed) -> nn.Module:
        """The compacted model, its floating-point tensors without values."""
        return compaction_of(self.graph, self.bare, self._ticket(masks), removed).apply(self.bare)

    def compaction(self, ticket: Ticket, removed: Removed) -> Compaction:
        """The compaction of the model itself."""
        return compaction_of(self.graph, self.model, ticket, removed)

    def _ticket(self, masks: Masks) -> Ticket:
        return Ticket(masks, 0.0, 0, groups=self.groups)


def without_values(model: nn.Module) -> nn.Module:
    """A copy whose floating-point parameters and buffers are on the meta device; tied ones stay tied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        bare = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(bare, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        if buffer.is_floating_point():  # indices and lengths decide shapes and keep their values
            memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def macs_per_channel(
    model: nn.Module, example_inputs: Inputs, groups: Sequence[ChannelGroup] | None = None
) -> dict[str, Tensor]:
    """MACs of a training step that dropping one channel of a group saves, all others kept; by group, (channels,).

    Exact at the present widths, products inside of attention included: the model is compacted by one channel and
    counted again, for every kind of channel in a group (those with equally many positions in every member are of a
    kind). With one group per BatchNorm a layer's first channel stands for all of them.

    0 where nothing can be removed: the only channel of a group, one that a sigmoid makes something of, and with one
    group per BatchNorm a channel that other BatchNorms are added to (a residual stream behind its normalisations).
    """
    shrinking = Shrinking(model, example_inputs, groups)
    widths = shrinking.widths
    kinds = {name: _kinds(name, width, groups) for name, width in widths.items() if width > 1}
    everything = {name: torch.ones(width, dtype=torch.bool) for name, width in widths.items()}
    # One look shows what of each kind cannot go, or whether BatchNorms have to be looked at one by one.
    probe = {name: mask.clone() for name, mask in everything.items()}
    for name, of_group in kinds.items():
        probe[name][[of_kind[0] for of_kind in of_group][: widths[name] - 1]] = False
        if groups is None:
            probe[name][1:] = torch.arange(1, widths[name]) % 2 == 0
    shrinking.observe(probe)
    dense = em.count(without_values(model), example_inputs).total_macs
    found = {name: torch.zeros(width, dtype=torch.float64) for name, width in widths.items()}
    for name, of_group in kinds.items():
        for channels in of_group:
            masks = {**everything, name: torch.arange(widths[name]) != channels[0]}
            small = shrinking.smaller(masks, shrinking.removed(masks))
            found[name][channels] = float(dense - em.count(small, example_inputs).total_macs)
    return found


def _kinds(name: str, width: int, groups: Sequence[ChannelGroup] | None) -> list[list[int]]:
    """The channels of a group by how many positions they have in each member."""
    if groups is None:
        return [list(range(width))]
    members: Mapping[str, ChannelGroup] = {group.name: group for group in groups}
    counts = [np.bincount(member.channels, minlength=width) for member in members[name].members]
    kinds: dict[tuple[int, ...], list[int]] = {}
    for channel, kind in enumerate(zip(*(count.tolist() for count in counts), strict=True)):
        kinds.setdefault(kind, []).append(channel)
    return list(kinds.values())
