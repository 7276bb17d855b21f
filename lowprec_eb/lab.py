"""The lab: what a pipeline works with.

Pipelines are written against :class:`Lab` and read like their papers' algorithm boxes.
:class:`lowprec_eb.training_lab.TrainingLab` trains and keeps finished stages, so pipelines that share one reuse it;
:class:`lowprec_eb.planning_lab.PlanningLab` walks the same pipelines without training and predicts what they cost.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from energy_models import HardwareProfile, count, measure
from lowprec_eb.arms import ArmSettings, MatchSettings, ThinetSettings
from lowprec_eb.costs import copy_costs, ranking_costs
from lowprec_eb.forecast import Forecast
from lowprec_eb.lab_settings import LabSettings
from lowprec_eb.matching import foreseen, how_well, nearest_length, spent
from lowprec_eb.models import build_model
from lowprec_eb.outcome import Outcome, TicketSummary
from lowprec_eb.precision import Precision
from lowprec_eb.quantize.random_bits import derive_seed
from lowprec_eb.recipes import precision as named_precision
from lowprec_eb.retraining import Retraining
from lowprec_eb.selection import Bench, Layer
from lowprec_eb.stage_data import Expense, Stage, StagePhase, StageResult, Start
from lowprec_eb.strict_config import digest
from lowprec_eb.tasks import Task
from lowprec_eb.tickets import (
    ScoreSettings,
    Ticket,
    batch_norms,
    channel_groups,
    keep_random,
    plan_compaction,
    scoring,
)
from lowprec_eb.tickets.masks import Masks
from lowprec_eb.tickets.members import ChannelGroup
from lowprec_eb.tickets.reconstruction import Covered, covered
from lowprec_eb.train import TrainSettings
from lowprec_eb.versions import software_fingerprint

_TICKET_SEED, _FRESH_SEED = 1, 2  # a random ticket and new weights differ from each other


class Lab(ABC):
    """One seed's bench: initial weights, training stages, choosing and pruning channels, and a pipeline's outcome.

    ``others``: the finished stages of another arm of the comparison, by its name, with this seed.

    Raises:
        ValueError: a search may end before an epoch that an arm is rewound to.
    """

    def __init__(
        self,
        settings: LabSettings,
        task: Task,
        profile: HardwareProfile,
        seed: int,
        others: Callable[[str], Sequence[StageResult]] | None = None,
    ) -> None:
        self.settings, self.task, self.profile, self.seed, self.others = settings, task, profile, seed, others
        self.tickets = settings.ticket
        self.tickets.check_deadline(sum(task.batch_sizes("train").values()))
        self.example = torch.zeros(2, *task.input_shape)
        self.finished: dict[str, StageResult] = {}
        self._dense = self._build(seed)
        settings.check_rewinds(sum(task.batch_sizes("train").values()))

    def _build(self, seed: int) -> nn.Module:
        return build_model(self.settings.model, self.task.input_shape, self.task.classes, seed)

    def initial(self) -> Start:
        """The initial weights of this seed."""
        return Start(f"initial/{self.seed}", copy.deepcopy(self._dense))

    def fresh(self) -> Start:
        """New random weights, other than the initial ones."""
        return Start(f"fresh/{self.seed}", self._build(derive_seed(self.seed, _FRESH_SEED) % 2**31))

    def schedule(self, epochs: int | None = None, learning_rate: float | None = None) -> TrainSettings:
        """The comparison's, scaled to other ``epochs``, or with a constant learning rate."""
        training = self.settings.training
        if learning_rate is not None:
            training = replace(training, learning_rate=learning_rate, milestones=())
        return training if epochs is None else replace(training, epochs=epochs)

    def between_layers(self, epochs: int) -> TrainSettings:
        """Short fine-tuning at the last learning rate; what comes of it is pruned again, so it is not averaged."""
        training = replace(self.settings.training, averaging=None)
        last = training.learning_rate_at(training.epochs - 1)
        return replace(training, epochs=epochs, learning_rate=last, milestones=())

    def train(
        self,
        start: Start,
        phase: StagePhase,
        precision: str,
        *,
        sparsity: float = 0.0,
        detect: bool = False,
        retraining: Retraining | None = None,
        training: TrainSettings | None = None,
    ) -> StageResult:
        """Train from ``start`` to the end of the schedule, or with ``detect`` until the early-bird ticket appears.

        ``retraining``: what ``start`` is, for the ledger, and whether the penalty goes on. ``training``: in place of
        the comparison's. A stage that another pipeline has run already is not run again.
        """
        if retraining is not None and retraining.penalty:
            sparsity = self.tickets.sparsity
        recipe = self.recipe(precision)
        stage = self._stage(start, phase, recipe, sparsity, detect, retraining, training or self.settings.training)
        if stage.key not in self.finished:
            self.finished[stage.key] = self._run(stage, start, recipe)
        return self.finished[stage.key]

    def recipe(self, name: str) -> Precision:
        """A precision by name: a recipe, or one that the settings define."""
        return named_precision(self.settings.precisions.get(name, name), backend=self.settings.backend)

    @property
    def averaging_kind(self) -> str | None:
        """Of the average that the stages deliver; None: none."""
        return None if (averaging := self.settings.training.averaging) is None else averaging.kind

    @property
    def _raise_to(self) -> Precision | None:
        """What an unstable stage goes on in, if it does."""
        stability = self.settings.training.stability
        return None if stability is None or stability.raise_to is None else self.recipe(stability.raise_to)

    @abstractmethod
    def _run(self, stage: Stage, start: Start, recipe: Precision) -> StageResult: ...

    @abstractmethod
    def _largest(self, model: nn.Module, ratio: float) -> tuple[Masks, Sequence[ChannelGroup] | None]:
        """The masks of the largest scores, and the groups that they are of."""

    @abstractmethod
    def _sensitive(
        self, model: nn.Module, groups: Sequence[ChannelGroup], batches: int, bench: Bench
    ) -> tuple[Masks, Expense]: ...

    @abstractmethod
    def _reconstruct(
        self, model: nn.Module, layer: Layer, how: ThinetSettings, bench: Bench
    ) -> tuple[Tensor, nn.Module, Expense]: ...

    # Choosing channels ---------------------------------------------------------------------------------------------

    def draw(
        self, dense: StageResult, precision: str, *, left: float | None = None, epoch: int | None = None
    ) -> Ticket:
        """The ticket of the channels with the largest scores at the end of a stage.

        ``left``: the share of the original channels that stays, of a model that may have been pruned before; None:
        all but the ratio. ``epoch``: epochs trained until then; None: those of the stage.
        """
        model, ratio = dense.state.model, self.tickets.ratio
        if left is not None:
            dropped = round((1 - left) * self._channels(self._dense))
            ratio = max(0.0, 1 - (self._channels(self._dense) - dropped) / self._channels(model))
        masks, groups = self._largest(model, ratio)
        epoch = dense.state.epoch if epoch is None else epoch
        return Ticket(masks, self.tickets.ratio, epoch, precision=precision, groups=groups)

    def _channels(self, model: nn.Module) -> int:
        """Channels that have a score."""
        _, scorer = scoring(model, self.tickets.scoring, self.example, self.seed)
        return sum(scores.numel() for scores in scorer(model).values())

    def randomize(self, ticket: Ticket) -> Ticket:
        """A random mask with the widths of ``ticket``."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, _TICKET_SEED) % 2**63)
        return replace(ticket, masks=keep_random(ticket.masks, generator))

    def draw_sensitive(self, start: Start, precision: str, batches: int) -> tuple[Start, Ticket]:
        """The ticket of the channels with the largest connection sensitivity, and ``start`` with what that took."""
        coupled = self.tickets.groups == "coupled"
        groups = channel_groups(start.model, self.example, coupled)
        masks, expense = self._sensitive(start.model, groups, batches, self._bench(precision))
        of = groups if coupled else None
        ticket = Ticket(masks, self.tickets.ratio, start.epoch, precision=precision, groups=of)
        return replace(start, key=f"{start.key}/seen by {batches} batches").charged(expense), ticket

    @cached_property
    def reconstructable(self) -> dict[str, float]:
        """The channel groups that ThiNet covers, in model order, with the share that each drops: the same one of all,
        such that the ratio is that of the model's channels.

        Raises:
            ValueError: they are too few for that, or there are none.
        """
        found = self._covered(self._dense)
        channels = sum(found.widths[name] for name in found.readers)
        rate = self.tickets.ratio * sum(found.widths.values()) / max(1, channels)
        if rate >= 1:
            why = "; ".join(f"{name}: {reason}" for name, reason in found.left_out.items())
            raise ValueError(f"thinet: of {channels} channels too few can go for the ratio of all: {why}")
        return dict.fromkeys(found.readers, rate)

    def reconstruct(
        self, start: Start, group: str, precision: str, how: ThinetSettings, *, epoch: int
    ) -> tuple[Start, Ticket]:
        """Prune the channels of ``group`` that what reads them notices least, and rescale the others: the smaller model
        with what that took, and the ticket. ``epoch``: epochs trained until then."""
        found = self._covered(start.model, only=group)
        number, rate = list(self.reconstructable).index(group), self.reconstructable[group]
        layer = Layer.of(group, found.readers[group], found.widths[group], rate, number)
        mask, model, expense = self._reconstruct(start.model, layer, how, self._bench(precision))
        ticket = found.ticket(group, mask, self.tickets.ratio, epoch, precision)
        key = f"{start.key}/rescaled by {how.batches} batches, {how.positions} positions"
        return self.prune(replace(start, key=key, model=model).charged(expense), ticket), ticket

    def _covered(self, model: nn.Module, only: str | None = None) -> Covered:
        return covered(model, self.example, self.tickets.groups, only)

    def _bench(self, precision: str) -> Bench:
        return Bench(self.task, self.recipe(precision), self.settings.device, self.seed)

    def prune(self, start: Start, ticket: Ticket) -> Start:
        """The smaller model with the momentum of the surviving channels; its cost goes to the stage that begins so."""
        with measure(self.settings.device) as measured:
            small, momentum = self._cut(start, ticket)
        costs = ranking_costs(ticket.channels_total) + copy_costs(small)
        return replace(
            start.charged(Expense("prune", costs, measured)),
            key=f"{start.key}/pruned/{ticket.fingerprint}",
            model=small,
            optimizer_state=momentum,
        )

    def _cut(self, start: Start, ticket: Ticket) -> tuple[nn.Module, Mapping[str, Any] | None]:
        """The smaller model, and the optimizer's state for it."""
        compaction, momentum = plan_compaction(start.model, ticket, self.example), start.optimizer_state
        state = None if momentum is None else compaction.optimizer_state(start.model, momentum)
        return compaction.apply(start.model), state

    # Beginning and ending ------------------------------------------------------------------------------------------

    def retrained_from(self, trained: StageResult, how: Retraining) -> Start:
        """What a ticket that was drawn in ``trained`` begins with: weights, momentum and epoch of the schedule."""
        match how.weights:
            case "inherit":
                start = trained.state
            case "rewind":
                start = trained.kept[how.rewind_epoch] if how.rewind_epoch else self.initial()
            case "reinit":
                start = replace(self.fresh(), epoch=trained.state.epoch)
        epoch = start.epoch if how.schedule == "continue" else 0
        return start.at(epoch, momentum=how.optimizer == "keep")

    def matched(self, match: MatchSettings, precision: str) -> tuple[int, float]:
        """The epochs after which a dense run has cost what another arm does, as near as whole epochs go; that cost."""
        assert self.others is not None
        target = spent((row for stage in self.others(match.arm) for row in stage.rows), match.quantity)
        start, recipe, usual = self.initial(), self.recipe(precision), self.settings.training

        def stage_of(epochs: int) -> Stage:
            return self._stage(start, "train", recipe, 0.0, False, None, self.schedule(epochs))

        forecast = self._forecast(stage_of(usual.epochs), start, recipe)

        def cost(epochs: int) -> float:
            return foreseen(forecast.by_phase(stage_of(epochs)), match.quantity, self.profile)

        return nearest_length(target, cost, usual.shortest, usual.epochs), target

    def _forecast(self, stage: Stage, start: Start, recipe: Precision) -> Forecast:
        return Forecast(stage, start, recipe, self.task)

    def outcome(
        self,
        arm: ArmSettings,
        stages: Sequence[StageResult],
        ticket: Ticket | None = None,
        *,
        retraining: Retraining | None = None,
        target: float | None = None,
    ) -> Outcome:
        """What the arm delivers: the last stage's accuracy, the costs of all.

        ``retraining``: what the ticket was retrained from. ``target``: the cost that the arm was matched to.
        """
        final = stages[-1]
        assert final.test_accuracy is not None
        searched = next((stage for stage in stages if stage.ticket is not None), None)
        return Outcome(
            arm=arm.name,
            pipeline=arm.pipeline,
            seed=self.seed,
            search_precision=arm.search if searched else None,
            precision=arm.precision,
            weights=arm.origin,
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
            ratio=self.ratio_of(arm),
            schedule=None if retraining is None else retraining.schedule,
            optimizer=None if retraining is None else retraining.optimizer,
            penalty=None if retraining is None else retraining.penalty,
            rewind_epoch=None if retraining is None or retraining.weights != "rewind" else retraining.rewind_epoch,
            match=None if target is None else how_well(arm.match, target, final),
        )

    def ratio_of(self, arm: ArmSettings) -> float | None:
        """As an outcome has it: None where the arms have no ratios of their own, or this one drops nothing."""
        return self.tickets.ratio if self.settings.sweeps and arm.prunes else None

    def _forward_macs(self, model: nn.Module) -> int:
        """MACs of the forward pass of one image."""
        return count(model, self.example[:1], training=False).macs["output"]

    def _stage(
        self,
        start: Start,
        phase: StagePhase,
        precision: Precision,
        sparsity: float,
        detect: bool,
        retraining: Retraining | None,
        training: TrainSettings,
    ) -> Stage:
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
            keep=self.settings.rewind_epochs if detect else (),
            retraining=retraining,
        )


def _summary(ticket: Ticket, searched: StageResult | None) -> TicketSummary:
    # A search that found none in time ends later than the mask it takes; a final ticket is drawn after its search.
    epoch = ticket.epoch if searched is None else max(ticket.epoch, searched.state.epoch)
    return TicketSummary(epoch, ticket.on_time, max(ticket.distances, default=None))
