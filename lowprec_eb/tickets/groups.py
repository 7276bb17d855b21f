"""Channel groups of a model: what must be cut together when a channel goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from torch import nn

from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.graph import ChannelGraph, Site, channel_graph
from lowprec_eb.tickets.members import ChannelGroup, ChannelGroups, Member

_UNKNOWN = "the dependency graph knows no channels of it"


def channel_groups(model: nn.Module, example_inputs: Inputs, coupled: bool = True) -> ChannelGroups:
    """The channel groups of ``model``, which is run on ``example_inputs`` (one batch) and not changed.

    coupled: all channels that can only go together form one group (residual sums, concatenations, depthwise and grouped
    convolutions, attention heads, positions behind a flatten), so that a residual stream itself narrows. Groups are
    named after the first layer that writes them. False: one group per BatchNorm2d, named after it, as in You et al.
    2020: a residual stream keeps its width, and channels are selected in front of its readers.

    The couplings come from a dependency graph (Fang et al., "DepGraph", CVPR 2023; Torch-Pruning).
    """
    graph = channel_graph(model, example_inputs, coupled=coupled)
    groups = _coupled(graph) if coupled else _of_batch_norms(graph, model)
    return ChannelGroups(tuple(groups), _unprunable(graph, model, groups, coupled))


def _coupled(graph: ChannelGraph) -> list[ChannelGroup]:
    """Atoms that lie in the same sites form a group."""
    lies_in: dict[int, list[int]] = defaultdict(list)
    for place, site in enumerate(graph.sites):
        for atom in dict.fromkeys(site.atoms.tolist()):
            lies_in[atom].append(place)
    together: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for atom, places in lies_in.items():
        if atom not in graph.fixed:
            together[tuple(places)].append(atom)
    return [_group([graph.sites[place] for place in places], atoms) for places, atoms in together.items()]


def _group(sites: list[Site], atoms: Iterable[int]) -> ChannelGroup:
    writers = [site for site in sites if site.side == "out"]
    first = next((site for site in writers if not _is_norm(site)), writers[0])
    wanted = set(atoms)
    number = {atom: i for i, atom in enumerate(a for a in dict.fromkeys(first.atoms.tolist()) if a in wanted)}
    return ChannelGroup(first.module, len(number), tuple(_member(site, number) for site in sites), first.unit)


def _is_norm(site: Site) -> bool:
    return ("running_mean", 0) in site.tensors


def _member(site: Site, number: dict[int, int]) -> Member:
    inside = [(position, number[atom]) for position, atom in enumerate(site.atoms.tolist()) if atom in number]
    positions, channels = zip(*inside, strict=True)
    return Member(site.module, site.side, positions, channels, site.tensors)


def _of_batch_norms(graph: ChannelGraph, model: nn.Module) -> list[ChannelGroup]:
    """One group for each BatchNorm2d: its own channels, who reads them, and who writes them for it alone."""
    sites = {(site.module, site.side): site for site in graph.sites}
    groups = []
    for name, module in model.named_modules():
        behind, before = sites.get((name, "out")), sites.get((name, "in"))
        if not isinstance(module, nn.BatchNorm2d) or not module.affine or behind is None:
            continue
        number = {atom: channel for channel, atom in enumerate(behind.atoms.tolist())}
        read = {} if before is None else _read_alone(graph, before)
        members = [_member(s, number) for s in graph.sites if not number.keys().isdisjoint(s.atoms.tolist())]
        written = [s for s in graph.sites if s.side == "out" and not read.keys().isdisjoint(s.atoms.tolist())]
        groups.append(ChannelGroup(name, len(number), (*members, *(_member(s, read) for s in written))))
    return groups


def _read_alone(graph: ChannelGraph, norm: Site) -> dict[int, int]:
    """Atoms in front of a batch normalisation, by its channel, that nobody else reads."""
    others = [site.atoms for site in graph.sites if site.side == "in" and site is not norm]
    read = set(np.concatenate([*others, np.empty(0, np.int64)]).tolist())
    return {atom: channel for channel, atom in enumerate(norm.atoms.tolist()) if atom not in read}


def _unprunable(graph: ChannelGraph, model: nn.Module, groups: list[ChannelGroup], coupled: bool) -> dict[str, str]:
    """Layers with channels of their own that no ticket can drop."""
    pruned = {member.module for group in groups for member in group.members if member.side == "out"}
    reasons: dict[str, str] = {}
    for site in graph.sites:
        found = [graph.fixed[atom] for atom in site.atoms.tolist() if atom in graph.fixed]
        if site.side == "out" and found and (not coupled or site.module not in pruned):
            reasons.setdefault(site.module, found[0])
    known = {site.module for site in graph.sites}
    for name, module in model.named_modules():
        own = any(p.dim() > 1 for p in module.parameters(recurse=False))
        if own and name not in known and not any(name.startswith(f"{parent}.") for parent in known if parent):
            reasons[name] = _UNKNOWN
    return reasons
