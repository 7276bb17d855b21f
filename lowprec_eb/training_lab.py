"""The lab that trains, and keeps what it has trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

from energy_models import HardwareProfile
from lowprec_eb.arms import ThinetSettings
from lowprec_eb.lab import Lab
from lowprec_eb.lab_settings import LabSettings
from lowprec_eb.precision import Precision
from lowprec_eb.selection import Bench, Layer, reconstruct, sensitivity
from lowprec_eb.stage import StageRun
from lowprec_eb.stage_data import Expense, Progress, Stage, StageResult, Start
from lowprec_eb.tasks import Task
from lowprec_eb.tickets import keep_largest, scoring
from lowprec_eb.tickets.masks import Masks
from lowprec_eb.tickets.members import ChannelGroup


class TrainingLab(Lab):
    """Trains. Stages live in ``store/<hash>``: a finished one is read, an unfinished one goes on."""

    def __init__(
        self,
        settings: LabSettings,
        task: Task,
        profile: HardwareProfile,
        seed: int,
        store: Path,
        run: str,
        progress: Progress | None = None,
        others: Callable[[str], Sequence[StageResult]] | None = None,
    ) -> None:
        super().__init__(settings, task, profile, seed, others)
        self.store, self.run, self.progress = store, run, progress

    def _run(self, stage: Stage, start: Start, recipe: Precision) -> StageResult:
        folder = self.store / stage.key
        run = StageRun(stage, start, self.task, recipe, self.profile, folder, self.run, raise_to=self._raise_to)
        return run.complete(self.progress)

    def _largest(self, model: nn.Module, ratio: float) -> tuple[Masks, Sequence[ChannelGroup] | None]:
        groups, scorer = scoring(model, self.tickets.scoring, self.example, self.seed)
        return keep_largest(scorer(model), ratio), groups

    def _sensitive(
        self, model: nn.Module, groups: Sequence[ChannelGroup], batches: int, bench: Bench
    ) -> tuple[Masks, Expense]:
        scores, expense = sensitivity(model, groups, batches, bench)
        return keep_largest(scores, self.tickets.ratio), expense

    def _reconstruct(
        self, model: nn.Module, layer: Layer, how: ThinetSettings, bench: Bench
    ) -> tuple[Tensor, nn.Module, Expense]:
        return reconstruct(model, layer, how.batches, how.positions, bench)
