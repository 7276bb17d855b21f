"""Which channels a ticket really frees: what nobody writes anything to, or nobody reads.

A ticket says which channels are zero. Whether one can be taken out depends on the model around it: a summed branch may
still write to it, a gate or a normalisation may make something of a zero. That is not derived but observed, on the
masked model with random weights, where a zero that comes out is one of structure and not of chance.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

from lowprec_eb.tickets.calls import InFloat64, Inputs, Undropped, call, first_tensor, random_inputs, traced_copy
from lowprec_eb.tickets.foresight import foreseen
from lowprec_eb.tickets.graph import BATCH_NORMS, CONVOLUTIONS, TRANSPOSED, ChannelGraph, Side, Site, norm_counts
from lowprec_eb.tickets.ticket import Ticket

Idle = dict[tuple[str, Side], NDArray[np.bool_]]


def removable(graph: ChannelGraph, model: nn.Module, ticket: Ticket, example_inputs: Inputs) -> NDArray[np.bool_]:
    """Which atoms can be taken out of ``model`` under ``ticket`` without changing what it computes; shape (atoms,)."""
    expected = foreseen(graph, model, ticket)
    modules = dict(model.named_modules())
    removed = _removed(graph, modules, _idle(graph, model, ticket, example_inputs))
    if not (removed & ~expected).any():
        return removed
    # Something may be zero that the ticket has not made so: a ReLU that nothing positive reaches, say.
    return _removed(graph, modules, _idle_for_sure(graph, model, ticket, example_inputs, expected))


def _removed(graph: ChannelGraph, modules: dict[str, nn.Module], idle: Idle) -> NDArray[np.bool_]:
    removed = _written(graph)
    removed[list(graph.fixed)] = False
    norms = {site.module: site for site in graph.sites if site.side == "out"}
    while True:
        before = removed.copy()
        for site in graph.sites:
            _veto(removed, site, idle, norms, modules)
        if np.array_equal(before, removed):
            return removed


def _veto(
    removed: NDArray[np.bool_], site: Site, idle: Idle, outs: dict[str, Site], modules: dict[str, nn.Module]
) -> None:
    """Keep what a site cannot do without."""
    module = modules[site.module]
    if isinstance(module, BATCH_NORMS) and site.side == "in":
        # A normalisation makes something of a zero, so its input goes only where its output does.
        selected = getattr(module, "selected", None)
        read = site.atoms if selected is None else site.atoms[selected.cpu().numpy()]
        removed[read[~removed[outs[site.module].atoms]]] = False
    else:
        removed[site.atoms[~idle[site.module, site.side]]] = False
    if removed[site.atoms].all():
        removed[site.atoms[0]] = False  # no layer is emptied


def _written(graph: ChannelGraph) -> NDArray[np.bool_]:
    """What a layer writes; the model's own inputs are not to be cut."""
    written = np.zeros(graph.atoms, np.bool_)
    for site in graph.sites:
        if site.side == "out":
            written[site.atoms] = True
    return written


# ---- observation --------------------------------------------------------------------------------------------------


def _idle_for_sure(
    graph: ChannelGraph, model: nn.Module, ticket: Ticket, example_inputs: Inputs, expected: NDArray[np.bool_]
) -> Idle:
    """Idle with weights of one sign and of both, and not without the ticket too, unless it is ``expected`` (atoms,)."""
    masked, dense = (
        [_idle(graph, model, of, example_inputs, positive=positive) for positive in (True, False)]
        for of in (ticket, None)
    )
    found: Idle = {}
    for site in graph.sites:
        key: tuple[str, Side] = (site.module, site.side)
        always = dense[0][key] & dense[1][key] & ~expected[site.atoms]
        found[key] = masked[0][key] & masked[1][key] & ~always
    return found


def _idle(
    graph: ChannelGraph, model: nn.Module, ticket: Ticket | None, example_inputs: Inputs, *, positive: bool = True
) -> Idle:
    """By site, positions whose value, or whose gradient, is zero with random weights."""
    probe = traced_copy(model, example_inputs).double().requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    _randomise(probe, generator, positive)
    if ticket is not None:
        ticket.apply(probe)
    seen = _Observation(graph, probe)
    with seen.watching(), torch.enable_grad(), Undropped(), InFloat64():
        outputs = call(probe, random_inputs(example_inputs, generator, torch.float64, positive=positive))
        leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.requires_grad]
        drawn = [torch.rand(leaf.shape, generator=generator, dtype=torch.float64).to(leaf) for leaf in leaves]
        torch.autograd.backward(leaves, drawn)
    return seen.idle() | _idle_heads(graph, ticket)


def _idle_heads(graph: ChannelGraph, ticket: Ticket | None) -> Idle:
    """A head's rows and columns lie inside of an attention layer: they are idle where the ticket drops it."""
    heads: Idle = {
        (site.module, site.side): ~np.ones(len(site.atoms), np.bool_) for site in graph.sites if site.unit == "head"
    }
    if ticket is None:
        return heads
    for group in ticket.groups or ():
        for member in group.members:
            if (flags := heads.get((member.module, member.side))) is not None:
                kept = ticket.masks[group.name].cpu().numpy()
                flags[list(member.positions)] |= ~kept[list(member.channels)]
    return heads


@torch.no_grad()
def _randomise(model: nn.Module, generator: torch.Generator, positive: bool) -> None:
    """Random weights under which little is zero by chance.

    All of them are positive, so that no sum cancels and no ReLU closes, and small, so that nothing saturates; matrices
    take means. ``positive`` False: of both signs. Batch statistics would not do: of two examples in one place they
    leave no gradient.
    """
    for parameter in model.parameters():
        drawn = _away_from_zero(parameter.shape, generator, positive)
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        parameter.copy_(drawn * (2 / fan_in if fan_in > 1 else 1))
    for module in model.modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None and module.running_var is not None:
            # Not zero, which would hide what a normalisation without a scale makes of nothing.
            module.running_mean.copy_(-_away_from_zero(module.running_mean.shape, generator, positive))
            module.running_var.fill_(1)


def _away_from_zero(shape: torch.Size, generator: torch.Generator, positive: bool) -> Tensor:
    drawn = 0.1 + 0.2 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return drawn if positive else drawn * torch.randint(0, 2, shape, generator=generator).mul_(2).sub_(1)


class _Observation:
    """What passes a model's sites in one forward and backward pass, as flags by position."""

    def __init__(self, graph: ChannelGraph, model: nn.Module) -> None:
        modules = dict(model.named_modules())
        self.sites = [site for site in graph.sites if site.unit == "channel"]
        self.modules = {site.module: modules[site.module] for site in self.sites}
        self.values: dict[tuple[str, Side], Tensor] = {}  # False where something else than zero has passed
        self.gradients: dict[tuple[str, Side], Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        handles = []
        for site in self.sites:
            handles.append(self._hook(site))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, site: Site) -> RemovableHandle:
        module = self.modules[site.module]
        key: tuple[str, Side] = (site.module, site.side)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            read = first_tensor(args, kwargs)
            seen = read.clone()  # its gradient is this reader's alone
            self._watch(key, module, seen)
            return tree_map(lambda of: seen if of is read else of, (args, kwargs))

        def behind(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            self._watch(key, module, output)

        handle: RemovableHandle
        if site.side == "in":
            handle = module.register_forward_pre_hook(before, with_kwargs=True)
        else:
            handle = module.register_forward_hook(behind)
        return handle

    def _watch(self, key: tuple[str, Side], module: nn.Module, x: Tensor) -> None:
        self._add(self.values, key, module, x.detach())
        if x.requires_grad:
            x.register_hook(lambda gradient: self._add(self.gradients, key, module, gradient))

    @staticmethod
    def _add(into: dict[tuple[str, Side], Tensor], key: tuple[str, Side], module: nn.Module, x: Tensor) -> None:
        by_channel = x.movedim(_channel_dim(module, x), -1).flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
        zero = (by_channel == 0).all(0)
        into[key] = into[key] & zero if key in into else zero

    def idle(self) -> Idle:
        found: Idle = {}
        for site in self.sites:
            key: tuple[str, Side] = (site.module, site.side)
            if key not in self.values:
                raise ValueError(f"{site.module}: was not called with the example inputs; give inputs that reach it")
            # Without a gradient hook nothing came back: nobody reads it.
            gradient = self.gradients.get(key, torch.ones_like(self.values[key]))
            found[key] = (self.values[key] | gradient).cpu().numpy()
        return found


def _channel_dim(module: nn.Module, x: Tensor) -> int:
    if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return -1 - len(module.kernel_size)
    return 1 if isinstance(module, (*BATCH_NORMS, nn.PReLU)) or norm_counts(module) else -1
