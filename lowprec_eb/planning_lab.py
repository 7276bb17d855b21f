"""The lab that plans: what the pipelines would cost, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from energy_models import HardwareProfile, LedgerKey, LedgerRow, OpCounts, estimate
from lowprec_eb.arms import ThinetSettings
from lowprec_eb.batch_counts import BatchCounts
from lowprec_eb.forecast import Forecast
from lowprec_eb.lab import Lab
from lowprec_eb.lab_settings import LabSettings
from lowprec_eb.planned_cuts import PlannedCuts
from lowprec_eb.precision import Precision
from lowprec_eb.selection import Bench, Layer, reconstruction_costs, sensitivity_costs
from lowprec_eb.stage_data import Expense, Stage, StageResult, Start
from lowprec_eb.tasks import Task
from lowprec_eb.tickets import Ticket, keep_uniform, scoring
from lowprec_eb.tickets.masks import Masks
from lowprec_eb.tickets.members import ChannelGroup
from lowprec_eb.tickets.reconstruction import Covered


class Planned:
    """What the labs of one plan have in common: their arms share stages, models and what a batch costs those."""

    def __init__(self) -> None:
        self.stages: dict[str, StageResult] = {}
        self.counts = BatchCounts()
        self.cuts: PlannedCuts | None = None


class PlanningLab(Lab):
    """Predicts. A ticket is assumed at the deadline (the latest it can come) with the ratio in every layer.

    ``planned``: by other labs of the same plan, with other ratios or without averaging.
    """

    def __init__(
        self,
        settings: LabSettings,
        task: Task,
        profile: HardwareProfile,
        seed: int,
        planned: Planned | None = None,
        others: Callable[[str], Sequence[StageResult]] | None = None,
    ) -> None:
        super().__init__(settings, task, profile, seed, others)
        self.planned = planned or Planned()
        self.finished = self.planned.stages

    @property
    def _cuts(self) -> PlannedCuts | None:
        """None with coupled groups, whose names depend on what was cut before."""
        if self.tickets.groups == "coupled":
            return None
        if self.planned.cuts is None:
            self.planned.cuts = PlannedCuts(self._dense, self.example)
        return self.planned.cuts

    def _run(self, stage: Stage, start: Start, recipe: Precision) -> StageResult:
        by_phase = self._forecast(stage, start, recipe).by_phase(stage)
        state = replace(start, key=f"stage/{stage.key}", epoch=stage.epochs.stop, expenses={})
        ticket = self._expected(start.model, stage.epochs.stop, recipe.name) if stage.detector else None
        kept = {epoch: replace(state, key=f"{state.key}/epoch {epoch}", epoch=epoch) for epoch in stage.keep}
        rows = tuple(self._row(stage.key, name, counts) for name, counts in by_phase.items())
        nan = float("nan")
        return StageResult(stage.key, state, ticket, 0, nan, nan, None, rows, kept=kept)

    def _bench(self, precision: str) -> Bench:
        # A plan for a GPU is made without one, and needs no values.
        return replace(super()._bench(precision), device="meta", counts=self.planned.counts)

    def _forecast(self, stage: Stage, start: Start, recipe: Precision) -> Forecast:
        return Forecast(stage, start, recipe, self.task, self.planned.counts)

    def _covered(self, model: nn.Module, only: str | None = None) -> Covered:
        return super()._covered(model, only) if self._cuts is None else self._cuts.covered(model)

    def _cut(self, start: Start, ticket: Ticket) -> tuple[nn.Module, Mapping[str, Any] | None]:
        return super()._cut(start, ticket) if self._cuts is None else (self._cuts.cut(start.model, ticket), None)

    def _expected(self, model: nn.Module, epoch: int, precision: str) -> Ticket:
        masks, groups = self._largest(model, self.tickets.ratio)
        return Ticket(masks, self.tickets.ratio, epoch, precision=precision, groups=groups)

    def _largest(self, model: nn.Module, ratio: float) -> tuple[Masks, Sequence[ChannelGroup] | None]:
        groups, scorer = scoring(model, self.tickets.scoring, self.example, self.seed)
        widths = {name: scores.numel() for name, scores in scorer(model).items()}
        return keep_uniform(widths, ratio), groups

    def _sensitive(
        self, model: nn.Module, groups: Sequence[ChannelGroup], batches: int, bench: Bench
    ) -> tuple[Masks, Expense]:
        masks = keep_uniform({group.name: group.channels for group in groups}, self.tickets.ratio)
        return masks, Expense("search", sensitivity_costs(model, batches, bench))

    def _reconstruct(
        self, model: nn.Module, layer: Layer, how: ThinetSettings, bench: Bench
    ) -> tuple[Tensor, nn.Module, Expense]:
        costs = reconstruction_costs(model, layer, how.batches, how.positions, bench)
        return torch.arange(layer.channels) < layer.kept, model, Expense("search", costs)

    def _row(self, stage: str, phase: str, counts: OpCounts) -> LedgerRow:
        key = LedgerKey(run="plan", stage=stage, phase=phase, epoch=0)  # type: ignore[arg-type]
        modelled = estimate(counts, self.profile)
        return LedgerRow.from_counts(key, counts, modelled, samples=0, measured_j=None, duration_s=0.0, metrics={})
