"""The pipelines' own algorithms, walked without a model: which epochs are trained, how wide and in what precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from lowprec_eb.arms import MatchSettings
from lowprec_eb.lab import Lab
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.planning.settings import PlanArm
from lowprec_eb.retraining import Retraining
from lowprec_eb.tickets import TicketSettings


@dataclass(frozen=True, order=True)
class Width:
    """A network whose layers all keep the share ``left`` of their channels."""

    left: float
    name: str

    @classmethod
    def of(cls, left: float, ticket: float | None) -> Width:
        """Named dense, ticket (the plan's own, that drops the share ``ticket``), or by its share."""
        if left == 1:
            return DENSE
        return cls(left, "ticket" if ticket is not None and left == 1 - ticket else f"{100 * left:.4g} % left")


DENSE = Width(1.0, "dense")


@dataclass(frozen=True)
class Stretch:
    """Epochs of one phase, at one width and in one precision; a schedule may come back to it.

    ``penalised`` by the gamma penalty; the detector looks after each epoch where it ``detects``; the model was ``cut``
    from that width just before, chosen by so many batches (``seen``) whose loss was differentiated at that width.
    """

    phase: str
    width: Width
    precision: str
    epochs: int
    penalised: bool = False
    detects: bool = False
    cut: Width | None = None
    seen: int = 0


@dataclass(frozen=True)
class _Weights:
    """In place of `lowprec_eb.stage_data.Start`."""

    width: Width = DENSE
    epoch: int = 0
    cut: Width | None = None
    seen: int = 0


@dataclass(frozen=True)
class _Trained:
    """In place of `lowprec_eb.stage_data.StageResult`."""

    state: _Weights
    ticket: Width | None


Matched = Callable[[MatchSettings, str], int]
"""Epochs of a dense run in a precision that cost what another arm does."""


class _Walk:
    """In place of a lab; a ticket is the width that it leaves."""

    def __init__(self, arm: PlanArm, epochs: int, emergence: int, ratio: float | None, matched: Matched | None) -> None:
        self._planned, self._epochs, self._emergence = arm.by_epoch(epochs), epochs, emergence
        self._usual, self._matched = ratio, matched
        dropped = ratio if arm.ratio is None else arm.ratio
        settings = TicketSettings()
        self.tickets = settings if dropped is None else replace(settings, ratio=dropped)
        self.stretches: list[Stretch] = []

    def initial(self) -> _Weights:
        return _Weights()

    def schedule(self, epochs: int | None = None, learning_rate: float | None = None) -> int:
        return self._epochs if epochs is None else epochs

    def retrained_from(self, trained: _Trained, how: Retraining) -> _Weights:
        epoch = how.rewind_epoch if how.weights == "rewind" else trained.state.epoch
        return _Weights(trained.state.width, epoch if how.schedule == "continue" else 0)

    def train(
        self,
        start: _Weights,
        phase: str,
        precision: str,
        *,
        sparsity: float = 0.0,
        detect: bool = False,
        retraining: Retraining | None = None,
        training: int | None = None,
    ) -> _Trained:
        last = self._emergence if detect else self._epochs if training is None else training
        names = [precision] * last if phase == "search" or training is not None else self._planned
        penalised = sparsity > 0 or (retraining is not None and retraining.penalty)
        found = [
            Stretch(phase, start.width, name, epochs, penalised, detect)
            for name, epochs in Counter(names[start.epoch : last]).items()
        ]
        found[0] = replace(found[0], cut=start.cut, seen=start.seen)
        self.stretches += found
        return _Trained(_Weights(start.width, last), self._ticket() if detect else None)

    def _ticket(self, left: float | None = None) -> Width:
        return Width.of(1 - self.tickets.ratio if left is None else left, self._usual)

    def draw(self, dense: _Trained, precision: str, *, left: float | None = None, epoch: int | None = None) -> Width:
        return self._ticket(left)

    def draw_sensitive(self, start: _Weights, precision: str, batches: int) -> tuple[_Weights, Width]:
        return replace(start, seen=batches), self._ticket()

    def randomize(self, ticket: Width) -> Width:
        return ticket

    def prune(self, start: _Weights, ticket: Width) -> _Weights:
        return replace(start, width=ticket, cut=start.width)

    def matched(self, match: MatchSettings, precision: str) -> tuple[int, float]:
        assert self._matched is not None
        return self._matched(match, precision), 0.0

    def outcome(self, arm: Any, stages: Sequence[_Trained], ticket: Width | None = None, **said: Any) -> None: ...


def walk(
    arm: PlanArm, epochs: int, emergence: int = 0, ratio: float | None = None, matched: Matched | None = None
) -> tuple[Stretch, ...]:
    """What ``arm`` trains, in order.

    Args:
        epochs: of the schedule. emergence: epochs of a search. ratio: share of channels that a ticket drops, where the
            arm has none of its own. matched: for dense_matched arms.
    """
    lab = _Walk(arm, epochs, emergence, ratio, matched)
    PIPELINES[arm.pipeline](cast(Lab, lab), arm.arm)
    return tuple(lab.stretches)
