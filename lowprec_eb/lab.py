"""The lab: what a pipeline works with.

Pipelines are written against :class:`Lab` and read like their papers' algorithm boxes. :class:`TrainingLab` trains and
keeps finished stages, so pipelines that share one reuse it; :class:`PlanningLab` walks the same pipelines without
training and predicts what they would cost.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from energy_models import HardwareProfile, LedgerKey, LedgerRow, OpCounts, count, element_ops, estimate, measure
from lowprec_eb.costs import epoch_costs, ranking_costs
from lowprec_eb.lowering import lower
from lowprec_eb.models import ModelSettings, build_model
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.outcome import Outcome, TicketSummary
from lowprec_eb.precision import Precision
from lowprec_eb.quantize.random_bits import derive_seed
from lowprec_eb.recipes import precision as named_precision
from lowprec_eb.stage import StageRun
from lowprec_eb.stage_average import stage_average
from lowprec_eb.stage_data import Progress, Stage, StagePhase, StageResult, Start
from lowprec_eb.strict_config import digest
from lowprec_eb.tasks import Task, TaskSettings
from lowprec_eb.tickets import (
    ScoreSettings,
    Ticket,
    TicketSettings,
    batch_norms,
    keep_largest,
    keep_random,
    keep_uniform,
    plan_compaction,
    scoring,
)
from lowprec_eb.train import TrainSettings
from lowprec_eb.versions import software_fingerprint

PipelineName = Literal["full", "network_slimming", "one_shot_ticket", "early_bird", "random_ticket"]
_TICKET_SEED, _FRESH_SEED = 1, 2  # a random ticket and new weights differ from each other


@dataclass(frozen=True)
class ArmSettings:
    """One row of the comparison: a pipeline and its precisions.

    precision: of training, or of retraining where there is a search; a recipe's name, or one that the comparison
    defines. search_precision: of the search; the same as ``precision`` where it is left out. weights: what a ticket is
    retrained from, ``"inherit"`` (the weights it was drawn with, the schedule goes on) or ``"reinit"`` (new random
    weights, the whole schedule). averaging: whether the comparison's ``training.averaging`` holds for this arm, so that
    arms with and without can stand side by side.
    """

    name: str
    pipeline: PipelineName
    precision: str = "fp32"
    search_precision: str | None = None
    weights: Literal["inherit", "reinit"] = "inherit"
    averaging: bool = True

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name must not be empty: it labels the arm in tables and pictures")
        searches = self.pipeline in ("early_bird", "random_ticket")
        if not searches and (self.search_precision is not None or self.weights != "inherit"):
            raise ValueError(
                f"search_precision and weights are for early_bird and random_ticket, not {self.pipeline!r}"
            )

    @property
    def search(self) -> str:
        return self.search_precision or self.precision


@dataclass(frozen=True)
class LabSettings:
    """What all arms of a comparison have in common; ``precisions`` are names beside those of the recipes."""

    task: TaskSettings
    model: ModelSettings
    training: TrainSettings
    ticket: TicketSettings
    device: str = "cpu"
    backend: str = "auto"
    threads: int = 1
    precisions: Mapping[str, Precision] = field(default_factory=dict)

    def of_arm(self, arm: ArmSettings) -> LabSettings:
        """The same without averaging, for an arm that is to have none."""
        return self if arm.averaging else replace(self, training=replace(self.training, averaging=None))


class Lab(ABC):
    """One seed's bench: initial weights, training stages, pruning, and the outcome of a pipeline."""

    def __init__(self, settings: LabSettings, task: Task, profile: HardwareProfile, seed: int) -> None:
        self.settings, self.task, self.profile, self.seed = settings, task, profile, seed
        self.tickets = settings.ticket
        self.tickets.check_deadline(sum(task.batch_sizes("train").values()))
        self.example = torch.zeros(2, *task.input_shape)
        self.finished: dict[str, StageResult] = {}
        self._dense = self._build(seed)

    def _build(self, seed: int) -> nn.Module:
        return build_model(self.settings.model, self.task.input_shape, self.task.classes, seed)

    def initial(self) -> Start:
        """The initial weights of this seed."""
        return Start(f"initial/{self.seed}", copy.deepcopy(self._dense))

    def fresh(self) -> Start:
        """New random weights, other than the initial ones."""
        return Start(f"fresh/{self.seed}", self._build(derive_seed(self.seed, _FRESH_SEED) % 2**31))

    def train(
        self, start: Start, phase: StagePhase, precision: str, *, sparsity: float = 0.0, detect: bool = False
    ) -> StageResult:
        """Train from ``start`` to the end of the schedule, or with ``detect`` until the early-bird ticket appears.

        A stage that another pipeline has run already is not run again.
        """
        recipe = self.recipe(precision)
        stage = self._stage(start, phase, recipe, sparsity, detect)
        if stage.key not in self.finished:
            self.finished[stage.key] = self._run(stage, start, recipe)
        return self.finished[stage.key]

    def recipe(self, name: str) -> Precision:
        """A precision by name: a recipe, or one that the settings define."""
        return named_precision(self.settings.precisions.get(name, name), backend=self.settings.backend)

    @property
    def averaging_kind(self) -> str | None:
        """Of the average that the stages deliver; None: none."""
        averaging = self.settings.training.averaging
        return None if averaging is None else averaging.kind

    @property
    def _raise_to(self) -> Precision | None:
        """What an unstable stage goes on in, if it does."""
        stability = self.settings.training.stability
        return None if stability is None or stability.raise_to is None else self.recipe(stability.raise_to)

    @abstractmethod
    def _run(self, stage: Stage, start: Start, recipe: Precision) -> StageResult: ...

    @abstractmethod
    def draw(self, dense: StageResult, precision: str) -> Ticket:
        """The ticket of the channels with the largest scores at the end of a stage."""

    def randomize(self, ticket: Ticket) -> Ticket:
        """A random mask with the widths of ``ticket``."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, _TICKET_SEED) % 2**63)
        return replace(ticket, masks=keep_random(ticket.masks, generator))

    def prune(self, start: Start, ticket: Ticket) -> Start:
        """The smaller model with the momentum of the surviving channels; its cost goes to the stage that begins so."""
        with measure(self.settings.device) as measured:
            compaction = plan_compaction(start.model, ticket, self.example)
            small = compaction.apply(start.model)
        momentum = start.optimizer_state
        return replace(
            start,
            key=f"{start.key}/pruned/{_fingerprint(ticket)}",
            model=small,
            optimizer_state=None if momentum is None else compaction.optimizer_state(start.model, momentum),
            costs=ranking_costs(ticket.channels_total) + _copy_costs(small),
            measured=measured,
        )

    def outcome(self, arm: ArmSettings, stages: Sequence[StageResult], ticket: Ticket | None = None) -> Outcome:
        """What the arm delivers: the last stage's accuracy, the costs of all."""
        final = stages[-1]
        assert final.test_accuracy is not None
        searched = next((stage for stage in stages if stage.ticket is not None), None)
        return Outcome(
            arm=arm.name,
            pipeline=arm.pipeline,
            seed=self.seed,
            search_precision=arm.search if searched else None,
            precision=arm.precision,
            weights=arm.weights,
            stages=tuple(stage.key for stage in stages),
            test_accuracy=final.test_accuracy,
            validation_accuracy=final.validation_accuracy,
            best_epoch=final.best_epoch,
            ticket=None if ticket is None else _summary(ticket, searched),
            channels_kept=sum(norm.num_features for norm in batch_norms(final.state.model).values()),
            channels_total=sum(norm.num_features for norm in batch_norms(self._dense).values()),
            forward_macs=self._forward_macs(final.state.model),
            dense_forward_macs=self._forward_macs(self._dense),
            averaging=self.averaging_kind,
        )

    def _forward_macs(self, model: nn.Module) -> int:
        """MACs of the forward pass of one image."""
        return count(model, self.example[:1], training=False).macs["output"]

    def _stage(self, start: Start, phase: StagePhase, precision: Precision, sparsity: float, detect: bool) -> Stage:
        training = self.settings.training
        return Stage(
            task=replace(self.settings.task, data_root=None),
            model=self.settings.model,
            # A search draws a ticket from the weights themselves and delivers no model: there is nothing to average.
            training=replace(training, averaging=None) if detect else training,
            seed=self.seed,
            phase=phase,
            precision=repr(precision),
            raise_to=None if self._raise_to is None else repr(self._raise_to),
            start=start.key,
            first_epoch=start.epoch,
            sparsity=sparsity,
            detector=self.tickets if detect else None,
            record_every=self.tickets.check_every if sparsity and not detect else None,
            # A ticket is drawn from these stages alone.
            scoring=self.tickets.scoring if sparsity or detect else ScoreSettings(),
            profile=f"{self.profile.name}/{digest(self.profile)}",
            device=self.settings.device,
            threads=self.settings.threads,
            data=self.task.fingerprint,
            software=software_fingerprint(),
        )


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
    ) -> None:
        super().__init__(settings, task, profile, seed)
        self.store, self.run, self.progress = store, run, progress

    def _run(self, stage: Stage, start: Start, recipe: Precision) -> StageResult:
        folder = self.store / stage.key
        run = StageRun(stage, start, self.task, recipe, self.profile, folder, self.run, raise_to=self._raise_to)
        return run.complete(self.progress)

    def draw(self, dense: StageResult, precision: str) -> Ticket:
        state, ratio = dense.state, self.tickets.ratio
        groups, scorer = scoring(state.model, self.tickets.scoring, self.example, self.seed)
        masks = keep_largest(scorer(state.model), ratio)
        return Ticket(masks, ratio, state.epoch, precision=precision, groups=groups)


class PlanningLab(Lab):
    """Predicts. A ticket is assumed at the deadline (the latest it can come) with the ratio in every layer."""

    def _run(self, stage: Stage, start: Start, recipe: Precision) -> StageResult:
        model = copy.deepcopy(start.model)
        lower(model, recipe)
        optimizer = LowPrecisionOptimizer(stage.training.optimizer(model), recipe, stage.seed)
        averaging = stage_average(model, stage.training, stage.epochs, recipe, self.task, stage.seed)
        average = None if averaging is None else averaging.average
        costs = epoch_costs(
            model,
            optimizer,
            self.task,
            sparsity=stage.sparsity,
            detector=stage.detector,
            stability=stage.training.stability,
            device=stage.device,
            average=average,
        )
        epochs = len(stage.epochs)
        per_phase = {stage.phase: costs.train * epochs, "eval": costs.validate * epochs}
        if averaging is not None and costs.average is not None:
            updates = sum(averaging.updates(epoch) for epoch in stage.epochs)
            per_phase["average"] = costs.average.update * updates + costs.average.statistics + costs.average.validate
            per_phase["eval"] += costs.average.test
        elif stage.detector is None:
            per_phase["eval"] += costs.test
        if stage.detector is not None:
            looks = stage.detector.looks(epochs, sum(self.task.batch_sizes("train").values()))
            per_phase["detect"] = costs.detect * looks
        if start.costs is not None:
            per_phase["prune"] = start.costs
        state = replace(start, key=f"stage/{stage.key}", epoch=stage.epochs.stop, costs=None)
        ticket = self._uniform(start.model, stage.epochs.stop, recipe.name) if stage.detector else None
        rows = tuple(self._row(stage.key, name, counts) for name, counts in per_phase.items())
        nan = float("nan")
        return StageResult(stage.key, state, ticket, 0, nan, nan, None, rows)

    def draw(self, dense: StageResult, precision: str) -> Ticket:
        return self._uniform(dense.state.model, dense.state.epoch, precision)

    def _uniform(self, model: nn.Module, epoch: int, precision: str) -> Ticket:
        groups, scorer = scoring(model, self.tickets.scoring, self.example, self.seed)
        widths = {name: scores.numel() for name, scores in scorer(model).items()}
        masks = keep_uniform(widths, self.tickets.ratio)
        return Ticket(masks, self.tickets.ratio, epoch, precision=precision, groups=groups)

    def _row(self, stage: str, phase: str, counts: OpCounts) -> LedgerRow:
        key = LedgerKey(run="plan", stage=stage, phase=phase, epoch=0)  # type: ignore[arg-type]
        modelled = estimate(counts, self.profile)
        return LedgerRow.from_counts(key, counts, modelled, samples=0, measured_j=None, duration_s=0.0, metrics={})


def _summary(ticket: Ticket, searched: StageResult | None) -> TicketSummary:
    epoch = ticket.epoch if searched is None else searched.state.epoch
    return TicketSummary(epoch, ticket.on_time, max(ticket.distances, default=None))


def _fingerprint(ticket: Ticket) -> str:
    """A hash of the masks: it tells apart what was pruned how."""
    content = b"".join(name.encode() + bytes(mask.tolist()) for name, mask in sorted(ticket.masks.items()))
    return hashlib.sha256(content).hexdigest()[:12]


def _copy_costs(model: nn.Module) -> OpCounts:
    """Moving the surviving weights: one read and one write of 32 bits each, no arithmetic."""
    return element_ops("copy", sum(p.numel() for p in model.parameters()), read_bits=32, write_bits=32)
