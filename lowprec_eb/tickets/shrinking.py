"""What is left of a model under a ticket, in shapes alone: quick enough to be asked for many tickets in turn."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import energy_models as em
from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.compaction import Compaction, compaction_of
from lowprec_eb.tickets.dependencies import channel_graph
from lowprec_eb.tickets.importance import batch_norms
from lowprec_eb.tickets.liveness import removable
from lowprec_eb.tickets.masks import Masks
from lowprec_eb.tickets.members import ChannelGroup, Member
from lowprec_eb.tickets.ticket import Ticket

Removed = NDArray[np.bool_]  # (atoms,)


class Shrinking:
    """The compacted models of many tickets of one model, as copies on the meta device.

    Of coupled groups everything that is dropped is taken to be removed, which holds unless a layer makes something of a
    zero (a sigmoid does). That is found out by :meth:`observe`, the full analysis of :func:`plan_compaction`, once for
    a ticket that is to be used, and minded from then on. With one group per BatchNorm what is removed depends on all
    masks together, so each ticket is observed.
    """

    def __init__(self, model: nn.Module, example_inputs: Inputs, groups: Sequence[ChannelGroup] | None) -> None:
        self.model, self.example_inputs = model, example_inputs
        self.groups = None if groups is None else tuple(groups)
        self.graph = channel_graph(model, example_inputs, coupled=groups is not None)
        self.bare = without_values(model)
        self._stays = np.zeros(self.graph.atoms, np.bool_)  # atoms that were dropped and had to stay
        self._sites = {(site.module, site.side, site.tensors): site.atoms for site in self.graph.sites}

    @property
    def widths(self) -> dict[str, int]:
        """Channels by group."""
        if self.groups is not None:
            return {group.name: group.channels for group in self.groups}
        return {name: norm.num_features for name, norm in batch_norms(self.model).items()}

    def removed(self, masks: Masks) -> Removed:
        """Which atoms go under ``masks``."""
        if self.groups is None:
            return removable(self.graph, self.model, self._ticket(masks), self.example_inputs)
        flags = np.zeros(self.graph.atoms, np.bool_)
        for group in self.groups:
            dropped = ~masks[group.name].cpu().numpy()
            for member in group.members:
                atoms = self._atoms(group, member)
                flags[atoms[np.asarray(member.positions)[dropped[np.asarray(member.channels)]]]] = True
        return flags & ~self._stays

    def observe(self, masks: Masks) -> Removed:
        """Which atoms really go, observed on the model; later calls of :meth:`removed` mind what had to stay."""
        found = removable(self.graph, self.model, self._ticket(masks), self.example_inputs)
        if self.groups is not None:
            self._stays |= self.removed(masks) & ~found
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

    def _atoms(self, group: ChannelGroup, member: Member) -> NDArray[np.int64]:
        atoms = self._sites.get((member.module, member.side, member.tensors))
        if atoms is None or len(atoms) <= max(member.positions):
            raise ValueError(f"group {group.name!r}: its side of {member.module!r} is not in this model")
        return atoms


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

    Exact at the present widths: the model is compacted by one channel and counted again, for every kind of channel in
    a group (those with equally many positions in every member are of a kind). With one group per BatchNorm a layer's
    first channel stands for all of them. A group of one channel cannot lose it: 1.

    Raises:
        ValueError: dropping a channel of a group saves nothing.
    """
    shrinking = Shrinking(model, example_inputs, groups)
    widths = shrinking.widths
    kinds = {name: _kinds(name, width, groups) for name, width in widths.items() if width > 1}
    everything = {name: torch.ones(width, dtype=torch.bool) for name, width in widths.items()}
    if groups is not None:  # what cannot go stays; one look at all groups shows it
        probed = {name: [of_kind[0] for of_kind in kinds[name]][: widths[name] - 1] for name in kinds}
        firsts = {name: mask.clone() for name, mask in everything.items()}
        for name, channels in probed.items():
            firsts[name][channels] = False
        shrinking.observe(firsts)
    dense = em.count(without_values(model), example_inputs).total_macs
    found = {name: torch.ones(width, dtype=torch.float64) for name, width in widths.items()}
    for name, of_group in kinds.items():
        for channels in of_group:
            masks = {**everything, name: torch.arange(widths[name]) != channels[0]}
            small = shrinking.smaller(masks, shrinking.removed(masks))
            saved = dense - em.count(small, example_inputs).total_macs
            if not saved:
                raise ValueError(
                    f"group {name!r}: dropping a channel saves no MACs, since others write to it or it cannot be "
                    "removed; leave the group out, or score by gamma"
                )
            found[name][channels] = float(saved)
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
