"""The pipelines' own algorithms, walked without a model: which epochs are trained, how wide and in what precision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from lowprec_eb.lab import Lab
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.planning.settings import PlanArm
from lowprec_eb.retraining import Retraining
from lowprec_eb.tickets import TicketSettings

Width = Literal["dense", "ticket"]


@dataclass(frozen=True)
class Stretch:
    """Epochs of one phase, at one width and in one precision; a schedule may come back to it.

    ``penalised`` by the gamma penalty; the detector looks after each epoch where it ``detects``; the model was ``cut``
    just before.
    """

    phase: str
    width: Width
    precision: str
    epochs: int
    penalised: bool = False
    detects: bool = False
    cut: bool = False


@dataclass(frozen=True)
class _Weights:
    """In place of `lowprec_eb.stage_data.Start`."""

    width: Width = "dense"
    epoch: int = 0
    cut: bool = False


@dataclass(frozen=True)
class _Trained:
    """In place of `lowprec_eb.stage_data.StageResult`."""

    state: _Weights
    ticket: str | None


class _Walk:
    """In place of a lab."""

    def __init__(self, arm: PlanArm, epochs: int, emergence: int, sparsity: float) -> None:
        self._planned, self._epochs, self._emergence = arm.by_epoch(epochs), epochs, emergence
        self.tickets = TicketSettings(sparsity=sparsity)
        self.stretches: list[Stretch] = []

    def initial(self) -> _Weights:
        return _Weights()

    def retrained_from(self, trained: _Trained, how: Retraining) -> _Weights:
        return _Weights(epoch=trained.state.epoch if how.schedule == "continue" else 0)

    def train(
        self,
        start: _Weights,
        phase: str,
        precision: str,
        *,
        sparsity: float = 0.0,
        detect: bool = False,
        retraining: Retraining | None = None,
    ) -> _Trained:
        last = self._emergence if detect else self._epochs
        names = [precision] * last if phase == "search" else self._planned
        names = names[start.epoch : last]
        found = [
            Stretch(phase, start.width, name, epochs, sparsity > 0, detect, start.cut and name == names[0])
            for name, epochs in Counter(names).items()
        ]
        self.stretches += found
        return _Trained(_Weights(start.width, last), "expected" if detect else None)

    def draw(self, dense: _Trained, precision: str) -> str:
        return "expected"

    def randomize(self, ticket: str) -> str:
        return ticket

    def prune(self, start: _Weights, ticket: str) -> _Weights:
        return replace(start, width="ticket", cut=True)

    def outcome(self, arm: Any, stages: Sequence[_Trained], ticket: str | None = None, **said: Any) -> None: ...


def walk(arm: PlanArm, epochs: int, emergence: int = 0, sparsity: float = 1e-4) -> tuple[Stretch, ...]:
    """What ``arm`` trains, in order.

    Args:
        epochs: of the schedule. emergence: epochs of a search.
    """
    lab = _Walk(arm, epochs, emergence, sparsity)
    PIPELINES[arm.pipeline](cast(Lab, lab), arm.arm)
    return tuple(lab.stretches)
