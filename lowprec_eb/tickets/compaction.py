"""Compaction: the smaller plain model that equals the masked one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowprec_eb.lowering import raise_
from lowprec_eb.tickets.groups import Member, channel_groups
from lowprec_eb.tickets.ticket import Ticket

_OUT_TENSORS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, eq=False)
class Compaction:
    """Which indices of which tensor stay: by tensor name, by dimension, sorted positions (kept,)."""

    kept: Mapping[str, Mapping[int, Tensor]]

    def select(self, name: str, tensor: Tensor) -> Tensor:
        """The surviving part of ``tensor``, which belongs to the parameter or buffer ``name``."""
        for dim, positions in self.kept.get(name, {}).items():
            tensor = tensor.index_select(dim, positions.to(tensor.device))
        return tensor

    @torch.no_grad()
    def apply(self, model: nn.Module) -> nn.Module:
        """A smaller copy of ``model``: plain modules, no masks, no lowering. ``model`` is not changed."""
        small = raise_(copy.deepcopy(model))
        for module_name, module in small.named_modules():
            prefix = f"{module_name}." if module_name else ""
            for name, parameter in list(module.named_parameters(recurse=False)):
                part = self.select(prefix + name, parameter.detach()).clone()
                setattr(module, name, nn.Parameter(part, requires_grad=parameter.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, self.select(prefix + name, buffer).clone())
            _refresh_sizes(module)
        return small

    def optimizer_state(self, model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """An optimizer's state_dict for the smaller model: state shaped like its parameter is cut like it.

        The optimizer must have been built over ``model.parameters()`` in that order, in one parameter group.
        """
        parameters = list(model.named_parameters())
        state = {
            index: {key: self._cut_state(value, *parameters[index]) for key, value in entries.items()}
            for index, entries in state_dict["state"].items()
        }
        return {**state_dict, "state": state}

    def _cut_state(self, value: Any, name: str, parameter: Tensor) -> Any:
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            return self.select(name, value)
        return value


def plan_compaction(model: nn.Module, ticket: Ticket, example_inputs: Tensor) -> Compaction:
    """Find out which part of every tensor survives under ``ticket``.

    Raises:
        ValueError: the ticket is of another model, its channels pass through a module that cannot be cut, or channels
            that can only go together (a sum of two branches) are kept here and dropped there.
    """
    groups = {group.name: group for group in channel_groups(model, example_inputs)}
    if set(groups) != set(ticket.masks):
        raise ValueError(f"the ticket's layers {sorted(ticket.masks)} are not this model's {sorted(groups)}")
    stays: dict[tuple[str, str], dict[int, bool]] = {}  # (module, side) -> position -> whether it stays
    for name, group in groups.items():
        mask = ticket.masks[name]
        if mask.numel() != group.channels:
            raise ValueError(f"{name}: the ticket has {mask.numel()} channels, the model {group.channels}")
        for member in group.members:
            _mark(stays.setdefault((member.module, member.side), {}), member, mask, name)
    sizes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    kept: dict[str, dict[int, Tensor]] = {}
    for (module, side), positions in stays.items():
        tensors, dim = (_OUT_TENSORS, 0) if side == "out" else (("weight",), 1)
        width = sizes[f"{module}.weight"][dim]
        survivors = torch.tensor([p for p in range(width) if positions.get(p, True)], dtype=torch.long)
        for tensor in tensors:
            kept.setdefault(f"{module}.{tensor}", {})[dim] = survivors
    return Compaction(kept)


def _mark(positions: dict[int, bool], member: Member, mask: Tensor, group: str) -> None:
    for position, channel in zip(member.positions, member.channels, strict=True):
        if positions.setdefault(position, bool(mask[channel])) != bool(mask[channel]):
            raise ValueError(
                f"channel {channel} of {group!r} is coupled to a channel of another BatchNorm at {member.module!r} "
                "(branches that are added up), and the ticket keeps only one of them: this cannot be compacted yet"
            )


def compact(model: nn.Module, ticket: Ticket, example_inputs: Tensor) -> nn.Module:
    """A smaller plain model whose outputs equal those of ``model`` after ``ticket.apply(model)``.

    Weights, biases and BatchNorm statistics of the surviving channels move along; a lowered model comes back plain.
    ``example_inputs`` has the shape and type of one batch.

    Raises:
        ValueError: see :func:`plan_compaction`; or the two models differ on random inputs, because a dropped channel
            is not zero where it is read (an activation with f(0) != 0, say).
    """
    small = plan_compaction(model, ticket, example_inputs).apply(model)
    masked = raise_(copy.deepcopy(model))
    ticket.apply(masked)
    _check_equal(masked, small, example_inputs)
    return small


@torch.no_grad()
def _check_equal(masked: nn.Module, small: nn.Module, example_inputs: Tensor) -> None:
    """In float64, so that a difference is a wrong channel and not a rounding."""
    inputs = example_inputs
    if inputs.is_floating_point():
        generator = torch.Generator(inputs.device).manual_seed(0)
        inputs = torch.randn(inputs.shape, generator=generator, device=inputs.device, dtype=torch.float64)
    outputs = [tree_leaves(model.eval().double()(inputs)) for model in (masked, copy.deepcopy(small))]
    for wanted, got in zip(*outputs, strict=True):
        if not isinstance(wanted, Tensor) or not wanted.is_floating_point():
            continue
        error, scale = float((wanted - got).abs().max()), float(wanted.abs().max())
        if not error <= 1e-6 * scale:
            raise ValueError(
                f"the compacted model differs from the masked one by {error:.3g} of {scale:.3g}: a dropped channel is "
                "not zero where it is read; check the activations behind the BatchNorms"
            )


def _refresh_sizes(module: nn.Module) -> None:
    """Make the size attributes of a cut module say what its tensors say."""
    match module:
        case nn.Conv2d():
            module.out_channels, module.in_channels = module.weight.shape[:2]
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.BatchNorm2d():
            module.num_features = module.weight.numel()
