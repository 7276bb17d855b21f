"""What a ticket should remove, from its groups and the channel graph alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lowprec_eb.tickets.graph import BATCH_NORMS, ChannelGraph, Side, Tensors, is_depthwise
from lowprec_eb.tickets.members import ChannelGroup
from lowprec_eb.tickets.ticket import Ticket

Removed = NDArray[np.bool_]  # (atoms,)
_Sites = Mapping[tuple[str, Side, Tensors], NDArray[np.int64]]


def foreseen(graph: ChannelGraph, model: nn.Module, ticket: Ticket) -> Removed:
    """Of coupled groups all that is dropped; with one group per BatchNorm what only dropped channels write or read."""
    if ticket.groups is None:
        return _of_batch_norms(graph, model, ticket.masks)
    sites = _sites(graph)
    flags = np.zeros(graph.atoms, np.bool_)
    for group in ticket.groups:
        dropped = ~ticket.masks[group.name].cpu().numpy()
        for member in group.members:
            atoms = sites[member.module, member.side, member.tensors]
            flags[atoms[np.asarray(member.positions)[dropped[np.asarray(member.channels)]]]] = True
    return flags


def check_groups(graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> None:
    """Raise ValueError if ``groups`` are of another model."""
    sites = _sites(graph)
    for group in groups:
        for member in group.members:
            atoms = sites.get((member.module, member.side, member.tensors))
            if atoms is None or len(atoms) <= max(member.positions):
                raise ValueError(f"group {group.name!r}: its side of {member.module!r} is not in this model")


def _sites(graph: ChannelGraph) -> _Sites:
    return {(site.module, site.side, site.tensors): site.atoms for site in graph.sites}


def _of_batch_norms(graph: ChannelGraph, model: nn.Module, masks: Mapping[str, Tensor]) -> Removed:
    """Atoms that BatchNorms free by dropping channels: only they write them, or only they read them."""
    modules = dict(model.named_modules())
    written, nonzero, read, normalised = (np.zeros(graph.atoms, np.bool_) for _ in range(4))
    behind = {site.module: site.atoms for site in graph.sites if site.side == "out"}
    norms: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # what each reads, what it writes
    for site in graph.sites:
        module = modules[site.module]
        if site.side == "out":
            written[site.atoms] = True
            nonzero[site.atoms[_writes(module, masks.get(site.module), len(site.atoms))]] = True
        elif isinstance(module, BATCH_NORMS):
            selected = getattr(module, "selected", None)
            norms.append((site.atoms if selected is None else site.atoms[selected.cpu().numpy()], behind[site.module]))
            normalised[norms[-1][0]] = True
        else:
            read[site.atoms] = True
    removed = written & (~nonzero | (normalised & ~read))
    removed[list(graph.fixed)] = False
    return _settled(graph, removed, norms)


def _writes(module: nn.Module, mask: Tensor | None, width: int) -> NDArray[np.bool_]:
    """Where a layer may write something else than zero to what were zeros without it; shape (width,)."""
    if is_depthwise(module) and getattr(module, "bias", None) is None:
        return np.zeros(width, np.bool_)
    return np.ones(width, np.bool_) if mask is None else mask.cpu().numpy()


def _settled(
    graph: ChannelGraph, removed: Removed, norms: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
) -> Removed:
    """Without what a BatchNorm still reads, and without emptying a layer."""
    while True:
        before = removed.copy()
        for reads, writes in norms:
            removed[reads[~removed[writes]]] = False
        for site in graph.sites:
            if removed[site.atoms].all():
                removed[site.atoms[0]] = False
        if np.array_equal(before, removed):
            return removed
