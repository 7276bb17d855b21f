"""A stage: one stretch of training, named by what decides its outcome, resumable at every epoch."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from filelock import FileLock
from torch import Tensor, nn

from energy_models import (
    HardwareProfile,
    Ledger,
    LedgerKey,
    LedgerRow,
    MeasuredEnergy,
    ModelledEnergy,
    OpCounts,
    estimate,
    measure,
)
from lowprec_eb import checkpoints
from lowprec_eb.costs import EpochCosts, epoch_costs
from lowprec_eb.lowering import lower, raise_
from lowprec_eb.models import ModelSettings
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.precision import Precision
from lowprec_eb.quantize.random_bits import derive_seed
from lowprec_eb.stage_average import stage_average
from lowprec_eb.strict_config import digest, to_plain
from lowprec_eb.tasks import Task, TaskSettings
from lowprec_eb.tickets import EarlyBird, Ticket, TicketSettings, gamma_scores
from lowprec_eb.train import Callback, EpochReport, SparsityPenalty, TrainSettings, train
from lowprec_eb.versions import versions

StagePhase = Literal["search", "train", "retrain"]


@dataclass(frozen=True)
class Stage:
    """Everything that decides what a stage computes and what its ledger says. Its hash is its name.

    ``start`` names the weights it begins with, ``data`` is a hash of the examples (the folder they came from does not
    count), ``profile`` is the hardware profile with a hash of its content, ``software`` that of this package's sources
    and torch's version.
    """

    task: TaskSettings
    model: ModelSettings
    training: TrainSettings
    seed: int
    phase: StagePhase
    precision: str
    start: str
    first_epoch: int
    sparsity: float
    detector: TicketSettings | None
    profile: str
    device: str
    threads: int
    data: str
    software: str

    @property
    def key(self) -> str:
        return digest(self, length=12)

    @property
    def epochs(self) -> range:
        """Epochs of the schedule; a detector may stop it earlier."""
        last = self.training.epochs if self.detector is None else min(self.detector.deadline, self.training.epochs)
        return range(self.first_epoch, last)


@dataclass(frozen=True, eq=False)
class Start:
    """A model to begin with: plain (not lowered), with the momentum it brings and the epoch its schedule is at.

    ``costs`` and ``measured`` are what making it took (pruning), charged to the stage that begins with it.
    """

    key: str
    model: nn.Module
    optimizer_state: Mapping[str, Any] | None = None
    epoch: int = 0
    costs: OpCounts | None = None
    measured: MeasuredEnergy | None = None

    def restarted(self) -> Start:
        """The same weights at the beginning of the schedule, without momentum."""
        return replace(self, optimizer_state=None, epoch=0, key=f"{self.key}/restarted")


@dataclass(frozen=True, eq=False)
class StageResult:
    """A finished stage: the state it ended in, and how the best epoch on validation did on test (None: a search,
    which delivers a ticket and no model). Where weights are averaged, the average is that state, without momentum, and
    what was validated and tested; ``best_epoch`` is the last one that it may hold.

    ``scores`` is ``|gamma|`` after every epoch, shape (epochs, channels): an observation for pictures, not charged.
    """

    key: str
    state: Start
    ticket: Ticket | None
    best_epoch: int
    validation_accuracy: float
    test_accuracy: float | None
    scores: Tensor
    rows: tuple[LedgerRow, ...]


class Progress(Protocol):
    """Where a stage reports to while it runs."""

    def epoch(self, stage: Stage, row: LedgerRow, energy_j: float) -> None:
        """One epoch is in the ledger; ``energy_j`` is the stage's modelled energy so far (nominal)."""


@dataclass(eq=False)
class _Position:
    """What changes from epoch to epoch, beside model, optimizer and detector."""

    next_epoch: int
    best_epoch: int = -1
    best_accuracy: float = -1.0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    scores: list[Tensor] = field(default_factory=list)
    ticket: Ticket | None = None
    finished: bool = False
    test_accuracy: float | None = None

    def to_tree(self) -> dict[str, Any]:
        return {**self.__dict__, "ticket": None if self.ticket is None else self.ticket.to_tree()}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> _Position:
        ticket = None if tree["ticket"] is None else Ticket.from_tree(tree["ticket"])
        return cls(**{**tree, "ticket": ticket})


class StageRun(Callback):
    """Runs a stage in its own folder: ``state.safetensors`` after every epoch, and ``ledger.jsonl``.

    Killed at any moment, it goes on from the last finished epoch; the epoch that was lost is a new attempt in the
    ledger.
    """

    def __init__(
        self,
        stage: Stage,
        start: Start,
        task: Task,
        precision: Precision,
        profile: HardwareProfile,
        folder: Path,
        run: str,
    ) -> None:
        self.stage, self.start, self.task, self.profile, self.folder = stage, start, task, profile, folder
        self.precision_name = precision.name
        self.model = copy.deepcopy(start.model).to(stage.device)
        lower(self.model, precision)
        rounding_seed = derive_seed(stage.seed, get_args(StagePhase).index(stage.phase))
        self.optimizer = LowPrecisionOptimizer(stage.training.optimizer(self.model), precision, rounding_seed)
        if start.optimizer_state is not None:
            # A copy: torch keeps the tensors it is given, and another arm may begin with the same ones.
            self.optimizer.inner.load_state_dict(copy.deepcopy(dict(start.optimizer_state)))
        self.detector = _detector(stage.detector)
        self.averaging = stage_average(self.model, stage.training, stage.epochs, precision, task, stage.seed)
        self.position = _Position(next_epoch=stage.first_epoch)
        self.progress: Progress | None = None
        self.priced: dict[int, tuple[OpCounts, ModelledEnergy]] = {}
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.run_name = run

    def _first_run(self, run: str) -> str:
        """The run that began this stage: a later run that goes on with it keeps the name, so no epoch has two keys."""
        identity = self.folder / "stage.json"
        if not identity.exists():
            text = json.dumps({"run": run, "stage": to_plain(self.stage), "versions": versions()}, indent=2)
            checkpoints.write_text(identity, text + "\n")
        try:
            return str(json.loads(identity.read_text())["run"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{identity}: not the identity of a stage; {self._remedy}") from error

    @property
    def _remedy(self) -> str:
        return f"delete the folder {self.folder}: the stage then runs again from its start"

    @property
    def state_file(self) -> Path:
        return self.folder / "state.safetensors"

    def complete(self, progress: Progress | None = None) -> StageResult:
        """Train what is left to train; a finished stage is only read."""
        self.progress = progress
        with FileLock(self.folder / "lock"):  # another process may be at the same stage; freed when it dies
            self.run_name = self._first_run(self.run_name)
            self._resume()
            self._check_ledger()
            if not self.position.finished:
                self.costs = self._count()
                self._train()
                self._finish()
            return self._result()

    # The loop's callback -------------------------------------------------------------------------------------------

    def after_epoch(self, report: EpochReport) -> bool:
        """Detect, validate, write the ledger, then the checkpoint: a kill in between repeats the epoch."""
        with measure(self.stage.device) as detecting:
            ticket = self.detector.update(self.model, self.precision_name) if self.detector else None
        with measure(self.stage.device) as validating:
            _, accuracy = self.task.evaluate(self.model, "validation")
        distance = max(self.detector.distances(), default=None) if self.detector else None
        samples = self.task.samples
        metrics: dict[str, float | str | None] = {
            "loss": report.loss,
            "validation_accuracy": accuracy,
            "mask_distance": distance,
        }
        if self.costs.uncounted:
            metrics["uncounted"] = "; ".join(self.costs.uncounted)
        row = self._charge(self.stage.phase, report.epoch, self.costs.train, samples["train"], report.measured, metrics)
        if self.detector:
            self._charge("detect", report.epoch, self.costs.detect, 0, detecting, {"mask_distance": distance})
        self._charge(
            "eval", report.epoch, self.costs.validate, samples["validation"], validating, {"split": "validation"}
        )
        if self.averaging is not None:
            self.averaging.charge_updates(self._charge, self.costs.average, report)
        self._advance(report.epoch, accuracy, ticket)
        if self.progress is not None:
            self.progress.epoch(self.stage, row, sum(r.modelled.nominal_j for r in self.ledger.settled()))
        return ticket is not None

    def _advance(self, epoch: int, accuracy: float, ticket: Ticket | None) -> None:
        position = self.position
        position.next_epoch, position.ticket = epoch + 1, ticket
        position.scores.append(torch.cat(list(gamma_scores(self.model).values())).cpu())
        if accuracy > position.best_accuracy:
            position.best_epoch, position.best_accuracy = epoch, accuracy
            position.best_state = {k: v.clone() for k, v in self.model.state_dict().items()}
        self._save()

    # Steps of a run ------------------------------------------------------------------------------------------------

    def _count(self) -> EpochCosts:
        stage, average = self.stage, None if self.averaging is None else self.averaging.average
        return epoch_costs(
            self.model, self.optimizer, self.task, sparsity=stage.sparsity, detector=stage.detector, average=average
        )

    def _train(self) -> None:
        if self.start.costs is not None and self.position.next_epoch == self.stage.first_epoch:
            self._charge("prune", self.stage.first_epoch, self.start.costs, 0, self.start.measured, {})
        if self.position.ticket is not None:
            return
        callbacks: list[Callback] = [self]
        if self.stage.sparsity:
            callbacks.insert(0, SparsityPenalty(self.model, self.stage.sparsity))
        if self.averaging is not None:
            self.averaging.begin(self.position.next_epoch)
            callbacks.insert(0, self.averaging)
        stage, epochs = self.stage, range(self.position.next_epoch, self.stage.epochs.stop)
        train(self.model, self.optimizer, self.task, epochs, stage.training, seed=stage.seed, callbacks=callbacks)

    def _finish(self) -> None:
        """A search ends with a ticket, at its deadline with the best so far; any other stage with a test."""
        if self.detector is None:
            if self.averaging is not None:
                position, costs = self.position, self.costs.average
                position.best_accuracy = self.averaging.validate(self._charge, costs, self.task, position.next_epoch)
                position.best_epoch = position.next_epoch - 1
            self.position.test_accuracy = self._test()
        elif self.position.ticket is None:
            assert self.detector.best is not None
            self.position.ticket = replace(self.detector.best, on_time=False)
        self.position.finished = True
        self._save()

    def _test(self) -> float:
        """Test accuracy of the average, or at the epoch that validation selected; the model keeps its final state."""
        final = {k: v.clone() for k, v in self.model.state_dict().items()}
        model, costs = self.model, self.costs.test
        if self.averaging is not None and self.costs.average is not None:
            model, costs = self.averaging.average.model, self.costs.average.test
        else:
            self.model.load_state_dict(self.position.best_state)
        with measure(self.stage.device) as testing:
            _, accuracy = self.task.evaluate(model, "test")
        self.model.load_state_dict(final)
        # The test pass stands at the epoch after the last, so that it does not collide with a validation row.
        self._charge("eval", self.position.next_epoch, costs, self.task.samples["test"], testing, {"split": "test"})
        return accuracy

    def _charge(
        self, phase: Any, epoch: int, counts: OpCounts, samples: int, measured: Any, metrics: dict[str, Any]
    ) -> LedgerRow:
        key = LedgerKey(run=self.run_name, stage=self.stage.key, phase=phase, epoch=epoch)
        row = LedgerRow.from_counts(
            replace(key, attempt=self.ledger.next_attempt(key)),
            counts,
            self._price(counts),
            samples=samples,
            measured_j=None if measured is None else measured.energy_j,
            duration_s=0.0 if measured is None else measured.duration_s,
            metrics=metrics,
        )
        self.ledger.append(row)
        return row

    def _price(self, counts: OpCounts) -> ModelledEnergy:
        """Modelled energy; the counts of a stage are the same objects every epoch, so each is priced once.

        The cache holds on to the counts, so that no other object can take over an id.
        """
        if id(counts) not in self.priced:
            self.priced[id(counts)] = (counts, estimate(counts, self.profile))
        return self.priced[id(counts)][1]

    # State ---------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        tree = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "detector": None if self.detector is None else self.detector.state_dict(),
            "position": self.position.to_tree(),
            "average": None if self.averaging is None else self.averaging.average.state_dict(),
        }
        tensors, plain = checkpoints.pack(tree)
        checkpoints.save(self.state_file, tensors, {"stage": self.stage.key, "tree": plain})

    def _resume(self) -> None:
        if not self.state_file.exists():
            return
        tensors, meta = checkpoints.load(self.state_file)  # to the CPU; what belongs on the device is copied there
        if meta.get("stage") != self.stage.key:
            raise ValueError(f"{self.state_file}: the state of another stage ({meta.get('stage')}); {self._remedy}")
        tree = checkpoints.unpack(tensors, meta["tree"])
        self.model.load_state_dict(tree["model"])
        self.optimizer.load_state_dict(tree["optimizer"])
        if self.detector is not None:
            self.detector.load_state_dict(tree["detector"])
        if self.averaging is not None:
            self.averaging.average.load_state_dict(tree["average"])
        self.position = _Position.from_tree(tree["position"])

    def _check_ledger(self) -> None:
        """Every epoch that the checkpoint has behind it is in the ledger: a lost row would be energy for free."""
        position, stage = self.position, self.stage
        if position.next_epoch == stage.first_epoch:
            return
        phases = [stage.phase, "eval", *(["detect"] if stage.detector else [])]
        expected = {(phase, epoch) for phase in phases for epoch in range(stage.first_epoch, position.next_epoch)}
        if position.finished and stage.detector is None:
            expected.add(("eval", position.next_epoch))
        if self.averaging is not None:
            expected |= {("average", epoch) for epoch in self.averaging.charged(position.next_epoch, position.finished)}
        if self.start.costs is not None:
            expected.add(("prune", stage.first_epoch))
        rows = self.ledger.settled() if self.ledger.path.exists() else []
        if missing := sorted(expected - {(row.key.phase, row.key.epoch) for row in rows}):
            phase, epoch = missing[0]
            raise ValueError(
                f"{self.ledger.path}: {len(missing)} rows are missing, the first of phase {phase!r}, epoch {epoch}; "
                f"{self._remedy}"
            )

    def _result(self) -> StageResult:
        position = self.position
        # Momentum belongs to the weights that were trained, not to their average.
        model = self.model if self.averaging is None else self.averaging.average.model
        momentum = self.optimizer.inner.state_dict() if self.averaging is None else None
        state = Start(f"stage/{self.stage.key}", raise_(model).cpu(), momentum, position.next_epoch)
        return StageResult(
            key=self.stage.key,
            state=state,
            ticket=position.ticket,
            best_epoch=position.best_epoch,
            validation_accuracy=position.best_accuracy,
            test_accuracy=position.test_accuracy,
            scores=torch.stack(position.scores),
            rows=tuple(self.ledger.settled()),
        )


def _detector(settings: TicketSettings | None) -> EarlyBird | None:
    if settings is None:
        return None
    return EarlyBird(settings.ratio, settings.threshold, settings.window, settings.rule)
