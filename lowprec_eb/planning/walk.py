"""The pipelines' own algorithms, walked without a model: which epochs are trained, how wide and in what precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from lowprec_eb.lab import Lab
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.planning.settings import PlanArm
from lowprec_eb.tickets import TicketSettings

Width = Literal["dense", "ticket"]


@dataclass(frozen=True)
class Stretch:
    """Epochs on end of one phase, at one width and in one precision.

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

    def restarted(self) -> _Weights:
        return replace(self, epoch=0)


@dataclass(frozen=True)
class _Trained:
    """In place of `lowprec_eb.stage_data.StageResult`."""

    state: _Weights
    ticket: str | None


class _Walk:
    """In place of a lab."""

    def __init__(self, arm: PlanArm, epochs: int, emergence: int, sparsity: float) -> None:
        self._arm, self._epochs, self._emergence = arm, epochs, emergence
        self.tickets = TicketSettings(sparsity=sparsity)
        self.stretches: list[Stretch] = []

    def initial(self) -> _Weights:
        return _Weights()

    fresh = initial

    def train(
        self, start: _Weights, phase: str, precision: str, *, sparsity: float = 0.0, detect: bool = False
    ) -> _Trained:
        last = self._emergence if detect else self._epochs
        found: list[Stretch] = []
        for epoch in range(start.epoch, last):
            name = precision if phase == "search" else self._arm.precision_at(epoch)
            if found and found[-1].precision == name:
                found[-1] = replace(found[-1], epochs=found[-1].epochs + 1)
            else:
                cut = start.cut and not found
                found.append(Stretch(phase, start.width, name, 1, sparsity > 0, detect, cut))
        self.stretches += found
        return _Trained(_Weights(start.width, last), "expected" if detect else None)

    def draw(self, dense: _Trained, precision: str) -> str:
        return "expected"

    def randomize(self, ticket: str) -> str:
        return ticket

    def prune(self, start: _Weights, ticket: str) -> _Weights:
        return replace(start, width="ticket", cut=True)

    def outcome(self, arm: Any, stages: Sequence[_Trained], ticket: str | None = None) -> None: ...


def walk(arm: PlanArm, epochs: int, emergence: int = 0, sparsity: float = 1e-4) -> tuple[Stretch, ...]:
    """What ``arm`` trains, in order.

    Args:
        epochs: of the schedule. emergence: epochs of a search.
    """
    lab = _Walk(arm, epochs, emergence, sparsity)
    PIPELINES[arm.pipeline](cast(Lab, lab), arm.arm)
    return tuple(lab.stretches)
