"""Scores: how much a channel matters, by several criteria of the literature.

Each is a callable, model -> scores: group -> (channels,) float on the model's device, larger is more important. None
waits for the device; :func:`lowprec_eb.tickets.check_finite` does, once. ``groups`` are coupled channel groups
(:func:`lowprec_eb.channel_groups`); None means one group per BatchNorm2d, as in the early-bird paper.

What several layers write is one channel, so their shares are put together: magnitudes (gamma, weight norms) by their
mean, since a group would otherwise gain by the number of its members alone; first-order effects (Taylor, gradient flow)
by their signed sum before the square or absolute value, since that sum *is* the effect of all members fading together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lowprec_eb.layers import LoweredModule
from lowprec_eb.precision import nearest
from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.graph import BATCH_NORMS
from lowprec_eb.tickets.importance import batch_norms
from lowprec_eb.tickets.members import ChannelGroup, Member
from lowprec_eb.tickets.shrinking import macs_per_channel

Scores = Mapping[str, Tensor]
Scorer = Callable[[nn.Module], Scores]
Groups = Sequence[ChannelGroup] | None


@dataclass(frozen=True, eq=False)
class Gamma:
    """``|gamma|`` of the BatchNorm; of a coupled group, the mean over those that write it.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 3; You
    et al. 2020, section 3.1.

    Raises:
        ValueError: a group has no BatchNorm.
    """

    groups: Groups = None

    def __call__(self, model: nn.Module) -> Scores:
        found, modules = {}, dict(model.named_modules())
        for group in _groups_of(model, self.groups):
            shares: list[Tensor] = []
            for member in group.members:
                if member.side == "out" and isinstance(modules.get(member.module), BATCH_NORMS):
                    gammas = [p for name, p, _ in _parameters(model, group, member) if name.endswith("weight")]
                    per_channel = len(member.positions) / group.channels
                    shares += [_by_channel(group, member, gamma.detach().abs()) / per_channel for gamma in gammas]
            if not shares:
                raise ValueError(f"group {group.name!r} has no BatchNorm, so no gamma: score by l1, l2 or taylor")
            found[group.name] = torch.stack(shares).mean(0)
        return found


@dataclass(frozen=True, eq=False)
class PerFlop:
    """``score / MACs``: the score of ``of`` over the MACs of a training step that dropping the channel saves.

    Ranking by it drops what costs much and matters little first: the greedy solution of the knapsack problem behind a
    FLOPs budget. ``gamma_per_flop`` is that of :class:`Gamma`. The MACs are those of the present widths, see
    :func:`macs_per_channel`, counted at the first call and again when a width has changed. ``example_inputs``: one
    batch like the training's. Only the order matters, so the MACs are taken relative to their mean over the groups. A
    channel that saves nothing by itself counts as one MAC, and so is dropped last.
    """

    example_inputs: Inputs
    groups: Groups = None
    of: Scorer | None = None
    _macs: dict[tuple[torch.Size, ...], Scores] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, model: nn.Module) -> Scores:
        scores = (self.of or Gamma(self.groups))(model)
        key = tuple(parameter.shape for parameter in model.parameters())
        if key not in self._macs:
            macs = macs_per_channel(model, self.example_inputs, self.groups)
            mean = float(torch.cat(list(macs.values())).mean())
            self._macs.clear()
            self._macs[key] = {name: (macs[name].clamp(min=1) / mean).to(scores[name]) for name in scores}
        return {name: score / self._macs[key][name] for name, score in scores.items()}


@dataclass(frozen=True, eq=False)
class WeightNorm:
    """The norm of the weights that write a channel: ``sum |w|^p`` over its filter, to the power ``1/p``.

    Over the filters of several layers, the mean of their norms. An attention head is scored by all of its rows of the
    query, key and value projections. A channel of a BatchNorm without a layer that writes for it alone (the one that
    selects from a residual stream, ``coupled=False``) is scored by the kernels that read it. Biases are left out.

    Norms of different layers lie on different scales (L1 grows with the filter's size); Li et al. compare within a
    layer. ``relative`` divides by the mean over the group, so that one threshold serves all.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1 (L1) and 4.4 (L2).

    Raises:
        ValueError: ``groups`` is None and the model's BatchNorms do not tell which layers write for them.
    """

    p: Literal[1, 2] = 1
    groups: Groups = None
    relative: bool = False

    def __call__(self, model: nn.Module) -> Scores:
        if self.groups is None:
            raise ValueError(
                f"l{self.p} needs groups, which say whose weights a channel has: "
                "channel_groups(model, example_inputs), coupled or not"
            )
        scores = {group.name: self._of_group(model, group) for group in self.groups}
        return {name: s / s.mean() for name, s in scores.items()} if self.relative else scores

    def _of_group(self, model: nn.Module, group: ChannelGroup) -> Tensor:
        for side in ("out", "in"):
            shares = [
                _by_channel(group, member, _along(weight.detach().abs() ** self.p, dim)) ** (1 / self.p)
                for member in group.members
                if member.side == side
                for _, weight, dim in _parameters(model, group, member)
                if weight.dim() > 1
            ]
            if shares:
                return torch.stack(shares).mean(0)
        raise ValueError(f"group {group.name!r} has no weight matrix to take the norm of")


@dataclass(frozen=True, eq=False)
class Taylor:
    """``(sum g w)^2``: the squared first-order change of the loss when everything that writes the channel fades to 0.

    The sum runs over the parameters that :meth:`Ticket.apply` sets to zero, of all members: gamma and beta with one
    group per BatchNorm, filters and biases besides with coupled groups. Gradients are those that ``backward`` has left
    in ``.grad``. A filter in front of a BatchNorm with batch statistics adds nothing, as its scale is normalised away.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section 3.1: the
    first-order criterion of a group, with a gate behind the BatchNorm.

    Raises:
        ValueError: a parameter has no gradient.
    """

    groups: Groups = None

    def __call__(self, model: nn.Module) -> Scores:
        return {name: effect**2 for name, effect in _faded(model, self.groups, _gradient).items()}


@dataclass(frozen=True, eq=False)
class Connection:
    """``sum |w g|`` over a channel's weights, over that sum for all weights: the channel's sensitivity.

    A channel's weights are those of :class:`WeightNorm`: what writes it, or, where nothing writes for it alone, what
    reads it. The shares of all members are summed, since the paper's sensitivity belongs to a connection. Gradients are
    those that ``backward`` has left in ``.grad``.

    Source: Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019, equations 4 to
    6, which rank single weights; sums over channels are not theirs.

    Raises ValueError where a parameter has no gradient.
    """

    groups: Sequence[ChannelGroup]

    def __call__(self, model: nn.Module) -> Scores:
        scores = {group.name: self._of_group(model, group) for group in self.groups}
        total = sum((p.detach() * p.grad).abs().sum() for p in model.parameters() if p.grad is not None)
        return {name: score / total for name, score in scores.items()}

    def _of_group(self, model: nn.Module, group: ChannelGroup) -> Tensor:
        for side in ("out", "in"):
            shares = [
                _by_channel(group, member, _along((weight.detach() * _gradient(weight, name)).abs(), dim))
                for member in group.members
                if member.side == side
                for name, weight, dim in _parameters(model, group, member)
                if weight.dim() > 1
            ]
            if shares:
                return torch.stack(shares).sum(0)
        raise ValueError(f"group {group.name!r} has no weight matrix to take the sensitivity of")


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """``|sum w (H g)|``: the first-order change of ``|g|^2 / 2`` when everything that writes the channel fades to 0.

    g is the gradient of ``loss(model)`` and H its Hessian with respect to all trainable parameters; the sum runs as in
    :class:`Taylor`. Unlike GraSP's, changes in either direction count: training shall go on as it does.

    Source: Rachwan et al., "Winning the Lottery Ahead of Time: Efficient Early Network Pruning" (EarlyCroP), ICML 2022:
    ``|theta^T H g|``, the product of Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow"
    (GraSP), ICLR 2020, without its sign. EarlyCroP's public code puts gates on weights and takes gradients of the
    ungated ones, which adds the channel's squared gradient to the product; that is left out here, so that the score is
    the derivative of the gradient's norm and nothing else. The code is what was read; the paper's section on
    structured pruning was not.

    Args:
        loss: a closure, model -> scalar, over one batch or several; the model's buffers are put back after it.

    Raises:
        ValueError: the model is lowered: rounding has no second derivative.
    """

    loss: Callable[[nn.Module], Tensor]
    groups: Groups = None

    def __call__(self, model: nn.Module) -> Scores:
        lowered = [name for name, module in model.named_modules() if isinstance(module, LoweredModule)]
        if lowered:
            raise ValueError(
                f"gradient_flow needs second derivatives, and {lowered[0]!r} is lowered: score a copy after raise_()"
            )
        parameters = [p for p in model.parameters() if p.requires_grad]
        # The fused attention kernels have no second derivative.
        with _buffers_put_back(model), sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            of_all = torch.autograd.grad(self.loss(model), parameters, create_graph=True, allow_unused=True)
            pairs = [(p, g) for p, g in zip(parameters, of_all, strict=True) if g is not None and g.requires_grad]
            flow = sum(((g * g.detach()).sum() for _, g in pairs), torch.zeros((), device=parameters[0].device))
            products = torch.autograd.grad(flow, parameters, allow_unused=True) if pairs else [None] * len(parameters)
        flows = {id(p): torch.zeros_like(p) if hg is None else hg for p, hg in zip(parameters, products, strict=True)}

        def product(parameter: Tensor, name: str) -> Tensor:
            if id(parameter) not in flows:
                raise ValueError(f"parameter {name!r} is frozen, so no gradient flows to it; unfreeze it")
            return flows[id(parameter)]

        return {name: effect.abs() for name, effect in _faded(model, self.groups, product).items()}


@dataclass(frozen=True, eq=False)
class Random:
    """Uniform in [0, 1), drawn on the CPU from ``seed``: the control. The same at every call."""

    seed: int = 0
    groups: Groups = None

    def __call__(self, model: nn.Module) -> Scores:
        generator = torch.Generator().manual_seed(self.seed)
        device = next(model.parameters()).device
        groups = _groups_of(model, self.groups)
        return {group.name: torch.rand(group.channels, generator=generator).to(device) for group in groups}


ScoreName = Literal["gamma", "gamma_per_flop", "l1", "l2", "taylor", "gradient_flow", "random"]


@dataclass(frozen=True, eq=False)
class Given:
    """What a scorer may need; see :func:`scorer`."""

    groups: Groups = None
    example_inputs: Inputs | None = None
    loss: Callable[[nn.Module], Tensor] | None = None
    seed: int = 0


def _per_flop(given: Given) -> Scorer:
    if given.example_inputs is None:
        raise ValueError("score 'gamma_per_flop' needs example_inputs, to count MACs")
    return PerFlop(given.example_inputs, given.groups)


def _gradient_flow(given: Given) -> Scorer:
    if given.loss is None:
        raise ValueError("score 'gradient_flow' needs loss: a function, model -> scalar, over one batch")
    return GradientFlow(given.loss, given.groups)


SCORES: Mapping[str, Callable[[Given], Scorer]] = {
    "gamma": lambda given: Gamma(given.groups),
    "gamma_per_flop": _per_flop,
    "l1": lambda given: WeightNorm(1, given.groups),
    "l2": lambda given: WeightNorm(2, given.groups),
    "taylor": lambda given: Taylor(given.groups),
    "gradient_flow": _gradient_flow,
    "random": lambda given: Random(given.seed, given.groups),
}


def scorer(
    name: str,
    *,
    groups: Groups = None,
    example_inputs: Inputs | None = None,
    loss: Callable[[nn.Module], Tensor] | None = None,
    seed: int = 0,
) -> Scorer:
    """The scorer of a name in ``SCORES``. ``example_inputs``: of gamma_per_flop; ``loss``: of gradient_flow.

    Raises:
        ValueError: an unknown name, or something that this score needs is missing.
    """
    if name not in SCORES:
        raise ValueError(f"unknown score {name!r}{nearest(name, SCORES) or '; known are ' + ', '.join(SCORES)}")
    return SCORES[name](Given(groups, example_inputs, loss, seed))


# ---- a group's tensors ----------------------------------------------------------------------------------------------


def _groups_of(model: nn.Module, groups: Groups) -> Sequence[ChannelGroup]:
    """The given ones, or one for each BatchNorm2d with itself as the only member."""
    if groups is not None:
        return groups
    found = []
    for name, norm in batch_norms(model).items():
        channels = tuple(range(norm.num_features))
        tensors = (("weight", 0), ("bias", 0))
        found.append(ChannelGroup(name, norm.num_features, (Member(name, "out", channels, channels, tensors),)))
    return found


def _parameters(model: nn.Module, group: ChannelGroup, member: Member) -> Iterator[tuple[str, nn.Parameter, int]]:
    """A member's parameters: the name in the model, and the dimension that has the channels."""
    for name, dim in member.tensors:
        full = f"{member.module}.{name}".lstrip(".")
        try:
            tensor = attrgetter(full)(model)
        except AttributeError as error:
            raise ValueError(f"group {group.name!r}: {full!r} is not in this model") from error
        if not isinstance(tensor, nn.Parameter):
            continue  # statistics
        if tensor.dim() <= dim or tensor.shape[dim] <= max(member.positions):
            raise ValueError(f"group {group.name!r}: {full!r} has another width in this model; find its groups anew")
        yield full, tensor, dim


def _by_channel(group: ChannelGroup, member: Member, values: Tensor) -> Tensor:
    """The sum of values (width,) of a member over the positions of each channel; shape (channels,)."""
    if member.positions == member.channels == tuple(range(values.numel())):
        return values
    positions, channels = _index(member.positions, values.device), _index(member.channels, values.device)
    return values.new_zeros(group.channels).index_add(0, channels, values[positions])


@lru_cache(maxsize=4096)
def _index(places: tuple[int, ...], device: torch.device) -> Tensor:
    """Made once, since making it on a GPU waits for the device."""
    return torch.tensor(places, device=device)


def _along(tensor: Tensor, dim: int) -> Tensor:
    """The sum over all dimensions but ``dim``."""
    return tensor.movedim(dim, 0).flatten(1).sum(1) if tensor.dim() > 1 else tensor


def _gradient(parameter: Tensor, name: str) -> Tensor:
    if parameter.grad is None:
        raise ValueError(f"parameter {name!r} has no gradient: run backward on a batch before scoring by it")
    return parameter.grad


def _faded(model: nn.Module, groups: Groups, of: Callable[[Tensor, str], Tensor]) -> dict[str, Tensor]:
    """By group, the sum of ``w * of(w)`` over all that writes a channel; shape (channels,)."""
    found = {}
    for group in _groups_of(model, groups):
        effects = [
            _by_channel(group, member, _along(parameter.detach() * of(parameter, name), dim))
            for member in group.members
            if member.side == "out"
            for name, parameter, dim in _parameters(model, group, member)
        ]
        if not effects:
            raise ValueError(f"group {group.name!r} has no parameters that write its channels")
        found[group.name] = torch.stack(effects).sum(0)
    return found


@contextmanager
def _buffers_put_back(model: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in before:
                buffer.copy_(kept)
