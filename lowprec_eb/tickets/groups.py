"""Coupled channels: what must be cut together when a channel goes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from lowprec_eb.lowering import raise_
from lowprec_eb.tickets.importance import batch_norms


@dataclass(frozen=True)
class Member:
    """One side of a module that a group's channels pass through.

    ``positions[i]`` along the module's output (``side="out"``) or input channels belongs to channel
    ``channels[i]`` of the group; behind a flatten one channel owns several positions.
    """

    module: str
    side: str
    positions: tuple[int, ...]
    channels: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """The channels of one BatchNorm and every module side they are coupled to."""

    name: str
    channels: int
    members: tuple[Member, ...]


def channel_groups(model: nn.Module, example_inputs: Tensor) -> tuple[ChannelGroup, ...]:
    """One group per BatchNorm2d, from a dependency graph (Fang et al., "DepGraph", CVPR 2023; Torch-Pruning).

    ``example_inputs`` has the shape of one batch. The model is not changed.

    Raises:
        ValueError: a group reaches a kind of module that compaction cannot cut.
    """
    # The graph is read off autograd, which must reach frozen layers too.
    plain = raise_(copy.deepcopy(model)).eval().requires_grad_(True)
    names = {module: name for name, module in plain.named_modules()}
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(plain, example_inputs)
    groups = []
    for name, norm in batch_norms(plain).items():
        everything = list(range(norm.num_features))
        coupled = graph.get_pruning_group(norm, torch_pruning.prune_batchnorm_out_channels, idxs=everything)
        members = tuple(_member(item, names, name) for item in coupled if item.dep.target.module in names)
        groups.append(ChannelGroup(name, norm.num_features, members))
    return tuple(groups)


def _member(item: Any, names: dict[nn.Module, str], group: str) -> Member:
    module, cut = item.dep.target.module, item.dep.handler.__name__
    grouped = isinstance(module, nn.Conv2d) and module.groups != 1
    if grouped or not isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
        raise ValueError(
            f"channels of {group!r} pass through {names[module]!r} ({type(module).__name__}"
            f"{', grouped' if grouped else ''}), which cannot be compacted yet"
        )
    side = "in" if cut == "prune_in_channels" and not isinstance(module, nn.BatchNorm2d) else "out"
    return Member(names[module], side, tuple(item.idxs), tuple(item.root_idxs))
