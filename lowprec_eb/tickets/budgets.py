"""Budgets: tickets that leave so much of a model's channels, FLOPs, bit-ops, parameters or modelled energy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import energy_models as em
from lowprec_eb.precision import nearest
from lowprec_eb.recipes import precision as recipe
from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.compaction import Compaction
from lowprec_eb.tickets.foresight import Removed
from lowprec_eb.tickets.masks import Masks, check_finite
from lowprec_eb.tickets.members import ChannelGroup
from lowprec_eb.tickets.ranking import Ranking, Widths
from lowprec_eb.tickets.shrinking import Shrinking
from lowprec_eb.tickets.ticket import Ticket

BudgetKind = Literal["channels", "flops", "bit_ops", "parameters", "energy"]
UNITS: Mapping[str, str] = {
    "channels": "channels",
    "flops": "FLOPs of a training step",
    "bit_ops": "bit-ops of a training step",
    "parameters": "parameters",
    "energy": "J of a training step, modelled",
}
_NARROW = 1e-3  # of the budget: a bracket around it that is not worth another look


class Found(NamedTuple):
    """Widths by group, and what they cost."""

    kept: tuple[int, ...]
    cost: float


class BudgetError(ValueError):
    """No ticket meets the budget; the message says how near one came, and why."""


@dataclass(frozen=True)
class Budget:
    """How much of a model a ticket removes, and what it must leave alone.

    Args:
        kind: what is counted, of the compacted model. channels: of all groups (You et al. 2020). flops, bit_ops,
            energy: of one training step, forward and backward, on the example inputs, without the optimizer. energy is
            the nominal modelled energy under ``profile``.
        ratio: the share to remove.
        tolerance: how far off the budget, what may be left, the result may be, as a share of it.
        min_width: channels that each group keeps at least, if it has so many.
        multiple: widths are multiples of it, or the present width. Of an attention head, or a group of a grouped
            convolution, its channels count.
        protect: patterns ("classifier*") of groups, or of layers that write them, which keep all channels.
        precision: a recipe, at which bit_ops and energy are counted; None: the model's own, float32 unless lowered.
        profile: of energy, a name or a file.
    """

    kind: BudgetKind = "channels"
    ratio: float = 0.5
    tolerance: float = 0.02
    min_width: int = 1
    multiple: int = 1
    protect: tuple[str, ...] = ()
    precision: str | None = None
    profile: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in UNITS:
            raise ValueError(f"kind must be one of {', '.join(UNITS)}, got {self.kind!r}{nearest(self.kind, UNITS)}")
        if not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be in [0, 1): the share to remove, got {self.ratio}")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must be between 0 and 1, got {self.tolerance}")
        for name in ("min_width", "multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.precision is not None:
            if self.kind not in ("bit_ops", "energy"):
                raise ValueError(
                    f"precision {self.precision!r} is of bit_ops and energy; {self.kind} do not depend on it"
                )
            recipe(self.precision)
        if (self.profile is None) == (self.kind == "energy"):
            raise ValueError(f"profile must be given for kind 'energy' and for no other, got {self.profile!r}")


@dataclass(frozen=True, eq=False)
class Drawn:
    """A ticket that meets a budget.

    dense, left: the cost of the model and of the compacted one, in ``unit``. ``compaction.apply(model)`` makes that.
    """

    ticket: Ticket
    budget: Budget
    dense: float
    left: float
    compaction: Compaction

    @property
    def removed(self) -> float:
        """The share that is gone."""
        return 1 - self.left / self.dense

    @property
    def unit(self) -> str:
        return UNITS[self.budget.kind]


class BudgetSearch:
    """Draws tickets of one model under one budget, for as many scores as there are.

    The threshold on the scores is searched, over all groups together: the largest model within the budget, or the next
    larger one if that is nearer than the tolerance and the largest within is not. Where widths are so coarse that
    neither is, groups are made narrower one by one, those that lose the smallest scores first.

    A candidate's cost is that of the really compacted model, without values; what has been found is kept, so a second
    draw of similar widths costs little. What a candidate removes is foreseen by its groups; the one that is taken is
    observed on the model, and where that differs the search goes on with what was seen.

    Args:
        model: its weights do not matter, its shapes and its precision do.
        example_inputs: one batch like the training's.
        groups: coupled channel groups; None: one per BatchNorm2d.

    Raises:
        ValueError: ``protect`` has a pattern that fits nothing.
    """

    def __init__(
        self, model: nn.Module, budget: Budget, example_inputs: Inputs, groups: Sequence[ChannelGroup] | None = None
    ) -> None:
        self.budget, self._inputs = budget, example_inputs
        self._shrinking = Shrinking(model, example_inputs, groups)
        self.widths = _allowed(self._shrinking, budget)
        self._cost_of = _measure(budget)
        self._costs: dict[tuple[int, ...], float] = {}
        kept = {name: torch.ones(width.allowed[-1], dtype=torch.bool) for name, width in self.widths.items()}
        nothing = np.zeros(self._shrinking.graph.atoms, np.bool_)
        self.dense = self._cost(tuple(mask.numel() for mask in kept.values()), kept, nothing)

    @property
    def target(self) -> float:
        """The budget: what may be left."""
        if self.budget.kind == "channels":
            return self.dense - round(self.budget.ratio * self.dense)
        return (1 - self.budget.ratio) * self.dense

    def draw(self, scores: Mapping[str, Tensor], *, epoch: int = 0, precision: str | None = None) -> Drawn:
        """The ticket of ``scores``, one for each group; ``epoch`` and ``precision`` are noted on it.

        Raises:
            BudgetError: none meets the budget.
            ValueError: scores of other groups, or NaN or infinite.
        """
        self._check(scores)
        ranking = Ranking(scores, self.widths)
        while True:
            found = self._search(ranking)
            masks, foresight = ranking.masks(found.kept), self._shrinking.foresight
            removed = self._shrinking.observe(masks)
            left = self._cost(found.kept, masks, removed)
            if self._is_met(left):
                break
            if self._shrinking.foresight == foresight:
                raise BudgetError(self._why(ranking, found))
        masks = {name: mask.to(scores[name].device) for name, mask in masks.items()}
        share = 1 - sum(found.kept) / sum(ranking.sizes)
        ratio = self.budget.ratio if self.budget.kind == "channels" else share
        ticket = Ticket(masks, ratio, epoch, precision=precision, groups=self._shrinking.groups)
        return Drawn(ticket, self.budget, self.dense, left, self._shrinking.compaction(ticket, removed))

    def _check(self, scores: Mapping[str, Tensor]) -> None:
        wanted = {name: width.allowed[-1] for name, width in self.widths.items()}
        if {name: score.numel() for name, score in scores.items()} != wanted:
            other = next(iter(wanted.keys() ^ scores.keys()), None)
            what = f"{other!r} has only one of the two" if other is not None else "widths differ"
            raise ValueError(f"the scores must be of the search's channel groups, each of its width: {what}")
        check_finite(scores)

    # ---- cost ----

    def _candidate(self, ranking: Ranking, kept: tuple[int, ...]) -> Found:
        if self.budget.kind == "channels":
            return Found(kept, float(sum(kept)))
        masks = ranking.masks(kept)
        return Found(kept, self._cost(kept, masks, self._shrinking.removed(masks)))

    def _cost(self, kept: tuple[int, ...], masks: Masks, removed: Removed) -> float:
        if self.budget.kind == "channels":
            return float(sum(kept))
        key = self._shrinking.shapes(removed)
        if key not in self._costs:
            self._costs[key] = self._cost_of(self._shrinking.smaller(masks, removed), self._inputs)
        return self._costs[key]

    def _is_met(self, cost: float) -> bool:
        return abs(cost - self.target) <= self.budget.tolerance * self.target

    # ---- search ----

    def _search(self, ranking: Ranking) -> Found:
        """Widths within the budget's tolerance, or else the closest."""
        within, beyond = self._crossing(ranking)
        found = [within, beyond]
        if within.cost <= self.target < beyond.cost and not any(self._is_met(one.cost) for one in found):
            found.append(self._narrowed(ranking, beyond))
        for one in found:
            if self._is_met(one.cost):
                return one
        return min(found, key=lambda one: abs(one.cost - self.target))

    def _crossing(self, ranking: Ranking) -> tuple[Found, Found]:
        """The widths on either side of the budget: within it, if there are any, and beyond it.

        By interpolation; where that does not halve the bracket, by bisection.
        """
        low, high = 0, ranking.droppable
        beyond, within = (self._candidate(ranking, ranking.kept(dropped)) for dropped in (low, high))
        while within.cost <= self.target < beyond.cost and high - low > 1:
            if beyond.cost - within.cost <= _NARROW * self.target:
                break
            size = high - low
            guess = low + round(size * (beyond.cost - self.target) / (beyond.cost - within.cost))
            for at in (guess, None):
                if at is None and 2 * (high - low) <= size:
                    break
                at = (low + high) // 2 if at is None else at
                at = min(max(at, low + 1), high - 1)
                found = self._candidate(ranking, ranking.kept(at))
                if found.cost <= self.target:
                    high, within = at, found
                else:
                    low, beyond = at, found
                if high - low == 1:
                    break
        return within, beyond

    def _narrowed(self, ranking: Ranking, found: Found) -> Found:
        """Make single groups narrower, as long as that does not fall below the budget's tolerance."""
        least = (1 - self.budget.tolerance) * self.target
        while not self._is_met(found.cost):
            before = found
            for place in ranking.by_loss(found.kept):
                kept = ranking.narrower(found.kept, place)
                step = found if kept is None else self._candidate(ranking, kept)
                if least <= step.cost < found.cost and not self._is_met(found.cost):
                    found = step
            if found is before:
                break
        return found

    def _why(self, ranking: Ranking, closest: Found) -> str:
        budget, dense = self.budget, self.dense
        wanted = (
            f"no ticket meets the budget: {self.target / dense:.1%} of {dense:.6g} {UNITS[budget.kind]} shall be left, "
            f"give or take {budget.tolerance:.1%} of that"
        )
        if closest.cost > self.target and closest.kept == ranking.kept(ranking.droppable):
            rules = [f"each group keeps {budget.min_width} channel{'s' if budget.min_width > 1 else ''}"]
            rules += [f"{', '.join(budget.protect)} protected"] if budget.protect else []
            rules += [f"widths in multiples of {budget.multiple}"] if budget.multiple > 1 else []
            why = (
                f"the smallest ticket leaves {closest.cost / dense:.1%} ({', '.join(rules)}, what is in no group stays)"
            )
            return f"{wanted}; {why}. Lower the ratio, or free more"
        step = f"{budget.multiple} channels of a group are" if budget.multiple > 1 else "one channel is"
        return (
            f"{wanted}; the closest leaves {closest.cost / dense:.1%}, since {step} more than that. Raise the tolerance"
        )


def draw(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    budget: Budget,
    example_inputs: Inputs,
    groups: Sequence[ChannelGroup] | None = None,
    *,
    epoch: int = 0,
    precision: str | None = None,
) -> Drawn:
    """The ticket of ``scores`` under ``budget``; see :class:`BudgetSearch`, which draws several for one model."""
    return BudgetSearch(model, budget, example_inputs, groups).draw(scores, epoch=epoch, precision=precision)


def _measure(budget: Budget) -> Callable[[nn.Module, Inputs], float]:
    """What the budget counts, of a model without values."""
    precision = None if budget.precision is None else recipe(budget.precision)
    profile = None if budget.profile is None else em.load_profile(budget.profile)

    def cost(model: nn.Module, inputs: Inputs) -> float:
        if budget.kind == "parameters":
            return float(sum(parameter.numel() for parameter in model.parameters()))
        counts = em.count(model, inputs, precision)
        if profile is not None:
            return em.estimate(counts, profile).nominal_j
        return float(counts.bit_ops if budget.kind == "bit_ops" else 2 * counts.total_macs)

    return cost


# ---- widths ---------------------------------------------------------------------------------------------------------


def _allowed(shrinking: Shrinking, budget: Budget) -> dict[str, Widths]:
    written = _written(shrinking)
    protected: set[str] = set()
    for pattern in budget.protect:
        found = {name for name, layers in written.items() if any(fnmatchcase(layer, pattern) for layer in layers)}
        if not found:
            names = sorted({layer for layers in written.values() for layer in layers})
            hint = nearest(pattern, names) or f"; there are {', '.join(written)}"
            raise ValueError(f"protect: {pattern!r} fits no channel group and no layer that writes one{hint}")
        protected |= found
    found_widths = {}
    for name, width in shrinking.widths.items():
        multiple = budget.multiple // math.gcd(budget.multiple, _positions(shrinking, name))
        found_widths[name] = Widths.of(width, budget.min_width, multiple, protected=name in protected)
    return found_widths


def _written(shrinking: Shrinking) -> dict[str, set[str]]:
    """By group, its name and the layers that write it."""
    if shrinking.groups is None:
        return {name: {name} for name in shrinking.widths}
    return {g.name: {g.name, *(m.module for m in g.members if m.side == "out")} for g in shrinking.groups}


def _positions(shrinking: Shrinking, name: str) -> int:
    """Channels of a tensor that one channel of a group is: the features of a head, say."""
    if shrinking.groups is None:
        return 1
    group = next(group for group in shrinking.groups if group.name == name)
    return min(len(member.positions) // group.channels for member in group.members)
