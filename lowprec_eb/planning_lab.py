"""The lab that plans: what the pipelines would cost, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from energy_models import LedgerKey, LedgerRow, OpCounts, estimate
from lowprec_eb.arms import ThinetSettings
from lowprec_eb.forecast import Forecast
from lowprec_eb.lab import Lab
from lowprec_eb.precision import Precision
from lowprec_eb.selection import Bench, Layer, reconstruction_costs, sensitivity_costs
from lowprec_eb.stage_data import Expense, Stage, StageResult, Start
from lowprec_eb.tickets import Ticket, keep_uniform, scoring
from lowprec_eb.tickets.masks import Masks
from lowprec_eb.tickets.members import ChannelGroup


class PlanningLab(Lab):
    """Predicts. A ticket is assumed at the deadline (the latest it can come) with the ratio in every layer."""

    def _run(self, stage: Stage, start: Start, recipe: Precision) -> StageResult:
        by_phase = Forecast(stage, start, recipe, self.task).by_phase(stage)
        state = replace(start, key=f"stage/{stage.key}", epoch=stage.epochs.stop, expenses={})
        ticket = self._expected(start.model, stage.epochs.stop, recipe.name) if stage.detector else None
        kept = {epoch: replace(state, key=f"{state.key}/epoch {epoch}", epoch=epoch) for epoch in stage.keep}
        rows = tuple(self._row(stage.key, name, counts) for name, counts in by_phase.items())
        nan = float("nan")
        return StageResult(stage.key, state, ticket, 0, nan, nan, None, rows, kept=kept)

    def _bench(self, precision: str) -> Bench:
        return replace(super()._bench(precision), device="cpu")  # a plan for a GPU is made without one

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
