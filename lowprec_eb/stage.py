"""A stage: one stretch of training, named by what decides its outcome, resumable at every epoch."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from filelock import FileLock
from torch import nn

from energy_models import (
    CountStore,
    HardwareProfile,
    Ledger,
    LedgerKey,
    LedgerRow,
    MeasuredEnergy,
    ModelledEnergy,
    OpCounts,
    estimate,
    measure,
    settled,
)
from lowprec_eb import checkpoints
from lowprec_eb.costs import EpochCosts, Work, epoch_costs, within
from lowprec_eb.execution import float32_products, placed
from lowprec_eb.instability import Diverged, Instability, to_text
from lowprec_eb.lowering import lower, raise_
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.precision import Precision
from lowprec_eb.precision_state import load_precision_state, precision_state
from lowprec_eb.quantize.random_bits import derive_seed
from lowprec_eb.stability import StabilityMonitor
from lowprec_eb.stage_average import stage_average
from lowprec_eb.stage_data import (
    COUNTS_FOLDER,
    LEDGER_FILE,
    Position,
    Progress,
    Stage,
    StageDiverged,
    StagePhase,
    StageResult,
    Start,
)
from lowprec_eb.stage_search import StageSearch
from lowprec_eb.strict_config import to_plain
from lowprec_eb.tally import Tally
from lowprec_eb.tasks import Task
from lowprec_eb.train import Callback, EpochReport, SparsityPenalty, train
from lowprec_eb.versions import versions


class StageRun(Callback):
    """Runs a stage in its own folder: ``state.safetensors`` after every epoch, ``ledger.jsonl``, and ``counts``.

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
        raise_to: Precision | None = None,
    ) -> None:
        self.stage, self.start, self.task, self.profile, self.folder = stage, start, task, profile, folder
        self.model = placed(copy.deepcopy(start.model), stage.device, stage.training.channels_last)
        lower(self.model, precision)
        rounding_seed = derive_seed(stage.seed, get_args(StagePhase).index(stage.phase))
        self.optimizer = LowPrecisionOptimizer(stage.training.optimizer(self.model), precision, rounding_seed)
        if start.optimizer_state is not None:
            # A copy: torch keeps the tensors it is given, and another arm may begin with the same ones.
            self.optimizer.inner.load_state_dict(copy.deepcopy(dict(start.optimizer_state)))
        self.averaging = stage_average(self.model, stage.training, stage.epochs, precision, task, stage.seed)
        self.monitor = self._monitor(raise_to)
        self.tally = Tally(self._count, self.monitor)
        self.search = StageSearch(stage, self.model, self.optimizer, task)
        self.position = Position(next_epoch=stage.first_epoch)
        self.progress: Progress | None = None
        self.ledger, self.counts = Ledger(folder / LEDGER_FILE), CountStore(folder / COUNTS_FOLDER)
        self.rows: list[LedgerRow] = []  # what stands in the ledger
        self.priced: dict[tuple[tuple[str, int], ...], tuple[OpCounts, ModelledEnergy]] = {}
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
            self.rows = self.ledger.rows() if self.ledger.path.exists() else []
            self._resume()
            self._check_ledger()
            if self.position.diverged is not None:
                raise self._diverged(self.position.diverged)
            if not self.position.finished:
                with float32_products(self.stage.training.tf32):
                    self._train()
                    self._finish()
            return self._result()

    # The loop's callback -------------------------------------------------------------------------------------------

    def before_batch(self, samples: int) -> None:
        self.tally.add(samples)

    def after_step(self) -> bool:
        if self.averaging is not None and self.averaging.is_due:
            self.tally.add_update()
        return self.search.after_step()

    def after_epoch(self, report: EpochReport) -> bool:
        """Detect, validate, write the ledger, then the checkpoint: a kill in between repeats the epoch."""
        with measure(self.stage.device) as detecting:
            self.search.after_epoch(report.whole)
        with measure(self.stage.device) as validating:
            _, accuracy = self.task.evaluate(self.model, "validation")
        metrics: dict[str, float | str | None] = {
            "loss": report.loss,
            "validation_accuracy": accuracy,
            "mask_distance": self.search.distance,
            **self.tally.metrics(report.epoch),
        }
        if self.stage.retraining is not None:
            metrics |= self.stage.retraining.metrics()
        if not report.whole:
            metrics["broken_off_after_steps"] = self.tally.steps()
        if self.tally.costs.uncounted:
            metrics["uncounted"] = "; ".join(self.tally.costs.uncounted)
        steps, samples = self.tally.train_costs(), self.tally.samples()
        row = self._charge(self.stage.phase, report.epoch, steps, samples, report.measured, metrics)
        if self.search.looks:
            took = detecting if self.search.every is None else within(report.measured)
            looked = [(self.tally.costs.detect, self.search.looks)]
            of_look = {"mask_distance": self.search.distance, "looks": self.search.looks}
            self._charge("detect", report.epoch, looked, 0, took, of_look)
        passed, split = [(self.tally.costs.validate, 1)], "validation"
        self._charge("eval", report.epoch, passed, self.task.samples[split], validating, {"split": split})
        self._charge_average(report.epoch, report.measured)
        self._advance(report.epoch, accuracy)
        self._begin_epoch(report.epoch + 1)
        if self.progress is not None:
            self.progress.epoch(self.stage, row, sum(r.modelled.nominal_j for r in settled(self.rows)))
        return self.search.done

    def _begin_epoch(self, epoch: int) -> None:
        self.tally.begin_epoch()
        self.search.begin(epoch)

    def _advance(self, epoch: int, accuracy: float) -> None:
        position = self.position
        position.next_epoch = epoch + 1
        if accuracy > position.best_accuracy:
            position.best_epoch, position.best_accuracy = epoch, accuracy
            position.best_state = {k: v.clone() for k, v in self.model.state_dict().items()}
        self._save()

    # Steps of a run ------------------------------------------------------------------------------------------------

    def _count(self) -> EpochCosts:
        return epoch_costs(
            self.model,
            self.optimizer,
            self.task,
            sparsity=self.stage.sparsity,
            detector=self.stage.detector,
            stability=self.stage.training.stability,
            device=self.stage.device,
            average=None if self.averaging is None else self.averaging.average,
        )

    def _monitor(self, raise_to: Precision | None) -> StabilityMonitor | None:
        settings = self.stage.training.stability
        if settings is None:
            return None
        return StabilityMonitor(self.model, self.optimizer, settings, raise_to=raise_to, lower=self._lower)

    def _lower(self, model: nn.Module, precision: Precision) -> None:
        """Where the precision is raised, the average goes along."""
        lower(model, precision)
        if self.averaging is not None:
            self.averaging.lower(precision)

    def _stop(self, error: Diverged) -> StageDiverged:
        """Charge what the last epoch took, and remember that the stage ends here: run again, it would end alike."""
        metrics: dict[str, float | str | None] = {"loss": math.nan, "instabilities": to_text([error.event])}
        metrics |= self.tally.metrics(error.event.epoch)
        took = MeasuredEnergy(self.stage.device, duration_s=self.tally.seconds())
        self._charge(self.stage.phase, error.event.epoch, self.tally.train_costs(), self.tally.samples(), took, metrics)
        self._charge_average(error.event.epoch, took)
        self.position.diverged = {"event": error.event.to_tree(), "message": str(error)}
        self._save()
        return self._diverged(self.position.diverged)

    def _diverged(self, record: dict[str, Any]) -> StageDiverged:
        event = Instability.from_tree(record["event"])
        return StageDiverged(record["message"], event, self.stage, tuple(settled(self.rows)))

    def _train(self) -> None:
        if self.position.next_epoch == self.stage.first_epoch:
            for of in self.start.expenses.values():
                self._charge(of.phase, self.stage.first_epoch, [(of.costs, 1)], 0, of.measured, {})
        if self.search.done:
            return
        try:
            self.train(range(self.position.next_epoch, self.stage.epochs.stop))
        except Diverged as error:
            raise self._stop(error) from error

    def train(self, epochs: range) -> None:
        """Train over ``epochs``, the next ones, with all that watches and charges them; raises as ``train`` does."""
        callbacks: list[Callback] = [self]
        if self.stage.sparsity:
            callbacks.insert(0, SparsityPenalty(self.model, self.stage.sparsity))
        if self.averaging is not None:
            self.averaging.begin(epochs.start)
            callbacks.insert(0, self.averaging)
        self._begin_epoch(epochs.start)
        training, seed = self.stage.training, self.stage.seed
        train(
            self.model,
            self.optimizer,
            self.task,
            epochs,
            training,
            seed=seed,
            callbacks=callbacks,
            monitor=self.monitor,
        )

    def _finish(self) -> None:
        """A search ends with a ticket, at its deadline with the best so far; any other stage with a test."""
        if self.stage.detector is None:
            # Inference may draw random numbers, too (rotations): they are those of the checkpoint's next epoch.
            torch.manual_seed(derive_seed(self.stage.seed, self.position.next_epoch))
            if self.averaging is not None:
                position, costs = self.position, self.tally.costs.average
                position.best_accuracy = self.averaging.validate(self._charge, costs, self.task, position.next_epoch)
                position.best_epoch = position.next_epoch - 1
            self.position.test_accuracy = self._test()
        else:
            self.position.ticket = self.search.ticket(self.stage.detector.ratio)
        self.position.finished = True
        self._save()

    def _test(self) -> float:
        """Test accuracy of the average, or at the epoch that validation selected; the model keeps its final state."""
        final = {k: v.clone() for k, v in self.model.state_dict().items()}
        model, costs = self.model, self.tally.costs
        if self.averaging is not None and costs.average is not None:
            model, of_test = self.averaging.average.model, costs.average.test
        else:
            of_test = costs.test
            self.model.load_state_dict(self.position.best_state)
        with measure(self.stage.device) as testing:
            _, accuracy = self.task.evaluate(model, "test")
        self.model.load_state_dict(final)
        # The test pass stands at the epoch after the last, so that it does not collide with a validation row.
        epoch, samples = self.position.next_epoch, self.task.samples["test"]
        self._charge("eval", epoch, [(of_test, 1)], samples, testing, {"split": "test"})
        return accuracy

    def _charge_average(self, epoch: int, training: MeasuredEnergy) -> None:
        if self.averaging is not None:
            self.averaging.charge_updates(self._charge, epoch, self.tally.average_costs(), training)

    def _charge(
        self, phase: Any, epoch: int, work: Work, samples: int, measured: Any, metrics: dict[str, Any]
    ) -> LedgerRow:
        key = LedgerKey(run=self.run_name, stage=self.stage.key, phase=phase, epoch=epoch)
        kept = self.counts.put_all(work)  # before the row that refers to them
        counts, modelled = self._price(kept)
        row = LedgerRow.from_counts(
            replace(key, attempt=self.ledger.next_attempt(key)),
            counts,
            modelled,
            samples=samples,
            measured_j=None if measured is None else measured.energy_j,
            duration_s=0.0 if measured is None else measured.duration_s,
            metrics=metrics,
            profile=self.profile.name,
            kept=kept,
        )
        self.ledger.append(row)
        self.rows.append(row)
        return row

    def _price(self, kept: dict[str, int]) -> tuple[OpCounts, ModelledEnergy]:
        """The sum of stored counts and its modelled energy; most epochs do the same, which is priced once."""
        parts = tuple(kept.items())
        if parts not in self.priced:
            counts = self.counts.total(kept)
            self.priced[parts] = (counts, estimate(counts, self.profile))
        return self.priced[parts]

    # State ---------------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        tree = {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "precision": precision_state(self.model),
            "monitor": None if self.monitor is None else self.monitor.state_dict(),
            "search": self.search.state_dict(),
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
        if self.monitor is not None:
            self.monitor.load_state_dict(tree["monitor"])
        self.model.load_state_dict(tree["model"])
        load_precision_state(self.model, tree["precision"])
        self.optimizer.load_state_dict(tree["optimizer"])
        self.search.load_state_dict(tree["search"])
        if self.averaging is not None:
            self.averaging.average.load_state_dict(tree["average"])
        self.position = Position.from_tree(tree["position"])

    def _check_ledger(self) -> None:
        """Every epoch that the checkpoint has behind it is in the ledger: a lost row would be energy for free."""
        position, stage = self.position, self.stage
        if position.next_epoch == stage.first_epoch:
            return
        epochs = range(stage.first_epoch, position.next_epoch)
        expected: set[tuple[str, int]] = {(phase, epoch) for phase in (stage.phase, "eval") for epoch in epochs}
        expected |= {("detect", epoch) for epoch in epochs if self.search.expects_row(epoch)}
        if position.finished and stage.detector is None:
            expected.add(("eval", position.next_epoch))
        if self.averaging is not None:
            expected |= {("average", epoch) for epoch in self.averaging.charged(position.next_epoch, position.finished)}
        expected |= {(phase, stage.first_epoch) for phase in self.start.expenses}
        if missing := sorted(expected - {(row.key.phase, row.key.epoch) for row in self.rows}):
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
        history = self.search.history
        state = Start(f"stage/{self.stage.key}", raise_(model).cpu(), momentum, position.next_epoch)
        end, drawn = state, self.search.drawn(state)
        if self.stage.detector is not None:
            _, state = drawn[self.stage.detector.ratio]
        return StageResult(
            key=self.stage.key,
            state=state,
            ticket=position.ticket,
            best_epoch=position.best_epoch,
            validation_accuracy=position.best_accuracy,
            test_accuracy=position.test_accuracy,
            history=history,
            rows=tuple(settled(self.rows)),
            drawn=drawn,
            kept=self.search.kept(end),
        )
