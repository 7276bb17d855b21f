"""Cutting a model's tensors, and telling its layers what they are now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lowprec_eb.layers import LoweredModule, lowered_class
from lowprec_eb.lowering import raise_
from lowprec_eb.scope import Scope
from lowprec_eb.tickets.narrow import narrow_attention, select_channels, without_nested_tensors


class Selection(NamedTuple):
    """What a batch normalisation reads: ``selected`` (read,) of ``in_channels``."""

    selected: Tensor
    in_channels: int


@torch.no_grad()
def cut_model(model: nn.Module, select: Callable[[str, Tensor], Tensor], selections: Mapping[str, Selection]) -> None:
    """Replace every tensor of ``model`` by ``select(name, tensor)``, in place; a lowered model stays lowered."""
    scopes = {name: m.lowering for name, m in model.named_modules() if isinstance(m, LoweredModule)}
    raise_(model)
    made: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        for key, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in made:
                made[id(parameter)] = _cut_parameter(parameter, prefix + key, select)
            setattr(module, key, made[id(parameter)])
        for key, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, key, select(prefix + key, buffer).clone())
    for name, module in model.named_modules():
        _refresh_sizes(module, selections.get(name))
    without_nested_tensors(model)
    for name, scope in scopes.items():
        _lower_again(model.get_submodule(name), scope)


def _cut_parameter(parameter: nn.Parameter, name: str, select: Callable[[str, Tensor], Tensor]) -> nn.Parameter:
    return nn.Parameter(select(name, parameter.detach()).clone(), requires_grad=parameter.requires_grad)


def _lower_again(module: nn.Module, scope: Scope) -> None:
    for key, seen in list(scope.ranges.items()):
        if seen[0].numel() > 1:
            del scope.ranges[key]  # of slices, which are others now
    setattr(module, "__class__", lowered_class(type(module)))  # noqa: B010 - mypy reads it as a narrowing
    module.lowering = scope  # type: ignore[assignment]


def _refresh_sizes(module: nn.Module, selection: Selection | None) -> None:
    """Make the attributes of a cut module say what its tensors say."""
    match module:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            groups = _groups_left(module.groups, module.weight.shape[0], module.out_channels)
            module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * groups
            module.groups = groups
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            groups = _groups_left(module.groups, module.weight.shape[0], module.in_channels)
            module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * groups
            module.groups = groups
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.Embedding():
            module.embedding_dim = module.weight.shape[1]
        case nn.PReLU():
            module.num_parameters = module.weight.numel()
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() if selection is not None:
            module.num_features = len(selection.selected)
            select_channels(module, selection.selected, selection.in_channels)
        case nn.MultiheadAttention() if module.in_proj_weight is not None:
            narrow_attention(module)


def _groups_left(groups: int, width: int, before: int) -> int:
    """Of a convolution that may have lost whole groups."""
    return groups if groups == 1 else groups * width // before


def cut_state(value: Any, shape: torch.Size, kept: Mapping[int, Tensor], name: str) -> Any:
    """What an optimizer keeps for a parameter of ``shape``, cut like it.

    A tensor of the parameter's shape, or with 1 in some of its dimensions (factored moments), is cut; single numbers
    and what is no tensor stay.

    Raises:
        ValueError: a tensor of another shape.
    """
    if not isinstance(value, Tensor) or value.numel() == 1 or not kept:
        return value
    if value.dim() != len(shape) or any(v not in (1, n) for v, n in zip(value.shape, shape, strict=True)):
        raise ValueError(
            f"{name}: a state of shape {tuple(value.shape)} cannot be cut like its parameter of {tuple(shape)}; "
            "begin with a new optimizer"
        )
    for dim, positions in kept.items():
        if value.shape[dim] == shape[dim]:
            value = value.index_select(dim, positions.to(value.device))
    return value
