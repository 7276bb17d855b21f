"""The weight average of a stage: when it takes the weights, and what it is evaluated on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from energy_models import MeasuredEnergy, measure
from lowprec_eb.averaging import WeightAverage
from lowprec_eb.costs import AverageCosts, Work, within
from lowprec_eb.lowering import lower
from lowprec_eb.precision import Precision
from lowprec_eb.quantize.random_bits import derive_seed
from lowprec_eb.tasks import Task
from lowprec_eb.train import Callback, TrainSettings

Charge = Callable[..., Any]  # (phase, epoch, work, samples, measured, metrics): writes a row of the stage's ledger
_AVERAGE_SEED = 3  # tells the average's random bits from those of the stages' optimizers


class StageAverage(Callback):
    """Averages the weights of ``model`` while a stage trains it.

    Steps are counted from the first epoch of the stage, so which weights are taken does not depend on where a run was
    resumed. A step that was skipped as unstable counts too: if it is due, the weights from before it are taken, once
    more perhaps. An average whose stage diverges is delivered to nobody.
    """

    def __init__(
        self, model: nn.Module, training: TrainSettings, epochs: range, precision: Precision, task: Task, seed: int
    ) -> None:
        assert training.averaging is not None
        settings = training.averaging
        self.trained, self.epochs = model, epochs
        self.steps_per_epoch = sum(task.batch_sizes("train").values())
        self.moments = settings.moments(training.epochs, epochs, self.steps_per_epoch)
        self.average = WeightAverage(
            model,
            settings.decay,
            fmt=settings.fmt,
            rounding=settings.rounding,
            seed=derive_seed(seed, _AVERAGE_SEED),
        )
        self.settings, self.step = settings, 0
        self.lower(precision)

    def lower(self, precision: Precision) -> None:
        """The averaged model computes as a stage in ``precision`` has it. Its running ranges start anew; the next
        update brings those of the trained model."""
        lower(self.average.model, self.settings.precision(precision))

    def begin(self, epoch: int) -> None:
        """The next step is the first of ``epoch``."""
        self.step = (epoch - self.epochs.start) * self.steps_per_epoch

    @property
    def is_due(self) -> bool:
        """Whether the weights after the step that was taken last belong to the average."""
        return self.moments.is_due(self.step)

    def after_step(self) -> bool:
        self.step += 1
        if self.is_due:
            self.average.update(self.trained)
        return False

    def updates(self, epoch: int) -> int:
        """How often the weights are taken in ``epoch``."""
        before = (epoch - self.epochs.start) * self.steps_per_epoch
        return self.moments.count(before + self.steps_per_epoch) - self.moments.count(before)

    def charged(self, epoch: int, finished: bool) -> list[int]:
        """The epochs with a ledger row of phase ``average``, of a stage that has trained up to ``epoch``."""
        return [e for e in range(self.epochs.start, epoch) if self.updates(e)] + ([epoch] if finished else [])

    def charge_updates(self, charge: Charge, epoch: int, updates: Work, training: MeasuredEnergy) -> None:
        """Write what the updates of an epoch cost; nothing without updates."""
        if not updates:
            return
        charge("average", epoch, updates, 0, within(training), {"updates": sum(times for _, times in updates)})

    def validate(self, charge: Charge, costs: AverageCosts | None, task: Task, epoch: int) -> float:
        """Validation accuracy of the averaged model, its statistics taken on the training batches of ``epoch``, the one
        after the last, so that with torch's random state seeded it is a function of the checkpoint alone. Once, at the
        end: each look costs a pass over all the data."""
        assert costs is not None
        with measure(str(next(self.trained.parameters()).device)) as measured:
            self.average.update_statistics(batch.inputs for batch in task.batches(epoch))
            _, accuracy = task.evaluate(self.average.model, "validation")
        samples = task.samples["validation"] + (task.samples["train"] if self.average.has_statistics else 0)
        metrics = {"average_validation_accuracy": accuracy, "weights_averaged": self.average.count}
        charge("average", epoch, [(costs.statistics, 1), (costs.validate, 1)], samples, measured, metrics)
        return accuracy


def stage_average(
    model: nn.Module, training: TrainSettings, epochs: range, precision: Precision, task: Task, seed: int
) -> StageAverage | None:
    """The average that the settings ask for; None: none."""
    return None if training.averaging is None else StageAverage(model, training, epochs, precision, task, seed)
