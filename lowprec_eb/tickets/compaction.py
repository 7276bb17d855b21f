"""Compaction: the smaller plain model that equals the masked one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.cutting import Selection, cut_model, cut_state
from lowprec_eb.tickets.dependencies import channel_graph
from lowprec_eb.tickets.foresight import check_groups
from lowprec_eb.tickets.graph import BATCH_NORMS, ChannelGraph, norm_counts
from lowprec_eb.tickets.liveness import removable
from lowprec_eb.tickets.ticket import Ticket


@dataclass(frozen=True, eq=False)
class Compaction:
    """Which indices of which tensor stay: by tensor name, by dimension, sorted positions (kept,).

    selections: by batch normalisation, which of its remaining inputs it reads. attributes: by module, what else changes
    (numbers of heads, of channels of an instance normalisation). zeroed: by group, how many channels the ticket drops
    that stay in the model all the same, because others write to them or cannot do without them.
    """

    ticket: Ticket
    kept: Mapping[str, Mapping[int, Tensor]]
    selections: Mapping[str, Selection] = field(default_factory=dict)
    attributes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    zeroed: Mapping[str, int] = field(default_factory=dict)

    def select(self, name: str, tensor: Tensor) -> Tensor:
        """The surviving part of ``tensor``, which belongs to the parameter or buffer ``name``."""
        for dim, positions in self.kept.get(name, {}).items():
            tensor = tensor.index_select(dim, positions.to(tensor.device))
        return tensor

    def apply(self, model: nn.Module) -> nn.Module:
        """A smaller copy of ``model``, lowered like it; ``model`` is not changed.

        Tied parameters stay tied. Running ranges of a tensor as a whole move along; those of its slices are taken anew
        in the next training step.
        """
        small = copy.deepcopy(model)
        self.ticket.apply(small)  # for what stays and is zero
        cut_model(small, self.select, self.selections)
        for name, attributes in self.attributes.items():
            for attribute, value in attributes.items():
                setattr(small.get_submodule(name), attribute, value)
        return small

    def optimizer_state(self, model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
        """An optimizer's state_dict for the smaller model: state shaped like its parameter is cut like it.

        The optimizer must have been built over ``model.parameters()`` in that order, in one parameter group;
        :meth:`move_optimizer` takes any.
        """
        parameters = list(model.named_parameters())
        state = {
            index: self._cut_entries(entries, *parameters[index]) for index, entries in state_dict["state"].items()
        }
        return {**state_dict, "state": state}

    def move_optimizer(self, optimizer: Optimizer, model: nn.Module, small: nn.Module) -> None:
        """Let ``optimizer``, over parameters of ``model``, train ``small``, which is ``self.apply(model)``; in place.

        Parameter groups with their settings, schedulers that hold the optimizer, and its state (momentum and the like,
        cut like the parameter) go along.

        Raises:
            ValueError: a parameter of the optimizer is not one of ``model``'s, or a state of it has a shape that
                cannot be cut like its parameter. Nothing is moved then.
        """
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        targets = dict(small.named_parameters())
        state = self._moved_state(optimizer, names)
        for parameter, entries in state.items():
            del optimizer.state[parameter]
            optimizer.state[targets[names[id(parameter)]]] = entries
        for group in optimizer.param_groups:
            group["params"] = [targets[names[id(parameter)]] for parameter in group["params"]]

    def check_optimizer(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Raise what :meth:`move_optimizer` would, and move nothing: before a long training, say."""
        self._moved_state(optimizer, {id(parameter): name for name, parameter in model.named_parameters()})

    def _moved_state(self, optimizer: Optimizer, names: Mapping[int, str]) -> dict[Tensor, dict[str, Any]]:
        """The optimizer's state, cut, by parameter of the model; ``names`` of its parameters by their identity."""
        unknown = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in names]
        if unknown:
            shapes = ", ".join(str(tuple(p.shape)) for p in unknown)
            raise ValueError(f"move_optimizer: {len(unknown)} parameters are not of the given model (shapes {shapes})")
        return {
            parameter: self._cut_entries(entries, names[id(parameter)], parameter)
            for parameter, entries in optimizer.state.items()
        }

    def _cut_entries(self, entries: Mapping[str, Any], name: str, parameter: Tensor) -> dict[str, Any]:
        kept = self.kept.get(name, {})
        return {key: cut_state(value, parameter.shape, kept, f"{name}/{key}") for key, value in entries.items()}


def plan_compaction(model: nn.Module, ticket: Ticket, example_inputs: Inputs) -> Compaction:
    """Find out which part of every tensor survives under ``ticket``.

    ``example_inputs``: one batch, or positional or keyword arguments; the model is run on them, and on random numbers
    like them. Removed is what nothing but zeros reaches and what nobody reads; a batch normalisation that reads a part
    of a wider stream selects it.

    Raises:
        TypeError: ``ticket`` is no ticket.
        ValueError: the ticket is of another model, or the model has no values (it is on the meta device).
    """
    if not isinstance(ticket, Ticket):
        raise TypeError(f"ticket must be a Ticket, got {type(ticket).__name__}; Ticket.load reads one from a file")
    ticket.check(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"{type(model).__name__} is on the meta device and has no values: what a ticket frees cannot be observed; "
            "lowprec_eb.tickets.Shrinking foresees it from shapes"
        )
    graph = channel_graph(model, example_inputs, coupled=ticket.groups is not None)
    check_groups(graph, ticket.groups or ())
    return compaction_of(graph, model, ticket, removable(graph, model, ticket, example_inputs))


def compaction_of(graph: ChannelGraph, model: nn.Module, ticket: Ticket, removed: NDArray[np.bool_]) -> Compaction:
    """The compaction that takes the atoms ``removed`` (atoms,) out of ``model``, whose graph this is."""
    kept: dict[str, dict[int, Tensor]] = {}
    for site in graph.sites:
        survivors = torch.from_numpy(np.flatnonzero(~removed[site.atoms]))
        for tensor, dim in site.tensors:
            kept.setdefault(f"{site.module}.{tensor}".lstrip("."), {})[dim] = survivors
    return Compaction(
        ticket,
        kept,
        _selections(graph, model, removed),
        _norm_counts(graph, model, removed) | _head_counts(graph, model, removed),
        zeroed(graph, ticket, removed),
    )


def _selections(graph: ChannelGraph, model: nn.Module, removed: NDArray[np.bool_]) -> dict[str, Selection]:
    """What each batch normalisation reads of what is left in front of it."""
    sites = {(site.module, site.side): site for site in graph.sites}
    found = {}
    for name, module in model.named_modules():
        before, behind = sites.get((name, "in")), sites.get((name, "out"))
        if not isinstance(module, BATCH_NORMS) or before is None or behind is None:
            continue
        positions = np.flatnonzero(~removed[before.atoms])
        selected = getattr(module, "selected", None)
        read = np.arange(len(behind.atoms)) if selected is None else selected.cpu().numpy()
        places = np.searchsorted(positions, read[~removed[behind.atoms]])
        found[name] = Selection(torch.from_numpy(places), len(positions))
    return found


def _norm_counts(graph: ChannelGraph, model: nn.Module, removed: NDArray[np.bool_]) -> dict[str, dict[str, int]]:
    counts = {site: norm_counts(model.get_submodule(site.module)) for site in graph.sites}
    return {
        site.module: dict.fromkeys(attributes, int((~removed[site.atoms]).sum()))
        for site, attributes in counts.items()
        if attributes
    }


def _head_counts(graph: ChannelGraph, model: nn.Module, removed: NDArray[np.bool_]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for attention, counts in graph.head_counts.items():
        heads = next(np.unique(site.atoms) for site in graph.sites if site.attention == attention)
        left = int((~removed[heads]).sum())
        for name, attribute in counts:
            number = getattr(model.get_submodule(name), attribute)
            found.setdefault(name, {})[attribute] = number * left // len(heads)
    return found


def zeroed(graph: ChannelGraph, ticket: Ticket, removed: NDArray[np.bool_]) -> dict[str, int]:
    """By group, how many channels ``ticket`` drops that stay where the atoms ``removed`` (atoms,) go."""
    stays = {(site.module, str(site.unit)): ~removed[site.atoms] for site in graph.sites if site.side == "out"}
    found = {}
    for name, mask in ticket.masks.items():
        left = torch.zeros(mask.numel(), dtype=torch.bool)
        for member in ticket.written(name):
            flags = torch.from_numpy(stays[member.module, ticket.unit(name)])
            left[list(member.channels)] |= flags[list(member.positions)]
        if number := int((left & ~mask.cpu()).sum()):
            found[name] = number
    return found
