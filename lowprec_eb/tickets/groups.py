"""Channel groups of a model: what must be cut together when a channel goes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.compaction import compaction_of
from lowprec_eb.tickets.dependencies import channel_graph
from lowprec_eb.tickets.equality import check_compaction
from lowprec_eb.tickets.graph import ChannelGraph, Site
from lowprec_eb.tickets.liveness import removable
from lowprec_eb.tickets.members import ChannelGroup, ChannelGroups, Member
from lowprec_eb.tickets.ticket import Ticket

_UNKNOWN = "is no layer's weight that the dependency graph knows"


def channel_groups(model: nn.Module, example_inputs: Inputs, coupled: bool = True) -> ChannelGroups:
    """The channel groups of ``model``, which is run on ``example_inputs`` (one batch) and not changed.

    coupled: all channels that can only go together form one group (residual sums, concatenations, depthwise and grouped
    convolutions, attention heads, positions behind a flatten), so that a residual stream itself narrows. Groups are
    named after the first layer that writes them, parts of a layer ``layer[first:last + 1]``. False: one group per
    BatchNorm2d, named after it, as in You et al. 2020: a residual stream keeps its width, and channels are selected in
    front of its readers.

    The couplings come from a dependency graph (Fang et al., DepGraph, CVPR 2023; Torch-Pruning). It may misread a
    model, so coupled groups are compacted by half and compared with the masked model; those that fail are listed as
    unprunable.

    Raises:
        TypeError, ValueError: no structure can be read off this model and these inputs.
    """
    graph = channel_graph(model, example_inputs, coupled=coupled, whole_groups=coupled)
    groups = _coupled(graph) if coupled else _of_batch_norms(graph, model)
    unprunable = _unprunable(graph, model, groups, coupled)
    if coupled:
        apart = {group.name: f"has one {group.unit} alone" for group in groups if group.channels == 1}
        apart |= _failing(graph, model, [group for group in groups if group.name not in apart], example_inputs)
        for group in (group for group in groups if group.name in apart):
            unprunable |= {member.module: apart[group.name] for member in group.members if member.side == "out"}
        groups = [group for group in groups if group.name not in apart]
    return ChannelGroups(tuple(groups), unprunable)


def _failing(
    graph: ChannelGraph, model: nn.Module, groups: Sequence[ChannelGroup], example_inputs: Inputs
) -> dict[str, str]:
    """The groups without which the rest can be compacted, and why: found by halving."""
    masks = {group.name: torch.arange(group.channels) % 2 == 0 for group in groups}
    ticket = Ticket(masks, 0.5, 0, groups=groups)
    try:
        if groups:
            plan = compaction_of(graph, model, ticket, removable(graph, model, ticket, example_inputs))
            check_compaction(plan, model, example_inputs)
    except ValueError as error:
        if len(groups) == 1:
            return {groups[0].name: f"cannot be compacted: {error}"}
        half = len(groups) // 2
        parts = (groups[:half], groups[half:])
        failing = {name: why for part in parts for name, why in _failing(graph, model, part, example_inputs).items()}
        return failing or {group.name: f"cannot be compacted with the others: {error}" for group in groups}
    return {}


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
    found = [([graph.sites[place] for place in places], set(atoms)) for places, atoms in together.items()]
    written = [(sites, atoms) for sites, atoms in found if any(site.side == "out" for site in sites)]
    parts = Counter(_first_writer(sites).module for sites, _ in written)
    return [_group(sites, atoms, parts[_first_writer(sites).module] > 1) for sites, atoms in written]


def _first_writer(sites: list[Site]) -> Site:
    writers = [site for site in sites if site.side == "out"]
    return next((site for site in writers if not _is_norm(site)), writers[0])


def _group(sites: list[Site], atoms: set[int], is_part: bool) -> ChannelGroup:
    """The group of ``atoms``; of several with one first writer, each is named after its positions there."""
    first = _first_writer(sites)
    places = [place for place, atom in enumerate(first.atoms.tolist()) if atom in atoms]
    number = {atom: i for i, atom in enumerate(dict.fromkeys(first.atoms[places].tolist()))}
    name = f"{first.module}[{places[0]}:{places[-1] + 1}]" if is_part else first.module
    return ChannelGroup(name, len(number), tuple(_member(site, number) for site in sites), first.unit)


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
    named = {group.name for group in groups}
    reasons: dict[str, str] = {}
    for site in graph.sites:
        found = [graph.fixed[atom] for atom in site.atoms.tolist() if atom in graph.fixed]
        if site.side == "out" and found and site.module not in (pruned if coupled else named):
            reasons.setdefault(site.module, found[0])
    sides = {site.module for site in graph.sites}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            inside = any(name == known or name.startswith(f"{known}.") for known in sides)
            if parameter.dim() > 1 and not inside:
                reasons[f"{name}.{key}".lstrip(".")] = _UNKNOWN
    return reasons
