"""The one training loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from energy_models import MeasuredEnergy, measure
from lowprec_eb.averaging import AveragingSettings
from lowprec_eb.execution import compiled
from lowprec_eb.instability import Diverged, Instability
from lowprec_eb.quantize.random_bits import derive_seed
from lowprec_eb.quantize.reference import RefusedNaN
from lowprec_eb.stability import StabilityMonitor, StabilitySettings
from lowprec_eb.tasks import Batch, Task
from lowprec_eb.tickets import batch_norms


@dataclass(frozen=True)
class TrainSettings:
    """SGD with momentum and a step schedule.

    milestones: shares of ``epochs`` at which the learning rate is multiplied by ``decay`` (0.5 and 0.75 are the paper's
    epochs 80 and 120 of 160). averaging: of the weights, in stages that deliver a model; None averages nothing.
    stability: watch every step, and what to do about an unstable one; None only looks at the mean loss of each epoch,
    and stops where that is not finite.

    How steps are run, which may change last bits: channels_last: the layout of 4-d weights and activations. compile:
    forward and backward passes of training through torch.compile, with a graph for each batch size; validation and test
    run as written. tf32: whether float32 products on CUDA round their operands to TF32; None leaves torch's flags
    (convolutions do, matrix products do not).
    """

    epochs: int = 20
    learning_rate: float = 0.1
    milestones: tuple[float, ...] = (0.5, 0.75)
    decay: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    averaging: AveragingSettings | None = None
    stability: StabilitySettings | None = None
    channels_last: bool = False
    compile: bool = False
    tf32: bool | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be above 0 and finite, got {self.learning_rate}")
        if any(not 0 < m < 1 for m in self.milestones) or list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones must be rising shares of the epochs between 0 and 1, got {self.milestones}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {self.decay}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        if self.averaging is not None:
            self.averaging.check(self.epochs)

    @property
    def shortest(self) -> int:
        """The fewest epochs that the schedule can be scaled to: an average needs weights to take."""
        for epochs in range(1, self.epochs):
            try:
                replace(self, epochs=epochs)
            except ValueError:
                continue
            return epochs
        return self.epochs

    def learning_rate_at(self, epoch: int) -> float:
        """A function of the epoch alone: a run that starts or resumes at any epoch misses no drop."""
        averaging = self.averaging
        if averaging is not None and averaging.learning_rate and epoch >= averaging.start_epoch(self.epochs):
            return averaging.learning_rate
        passed = sum(epoch >= round(milestone * self.epochs) for milestone in self.milestones)
        return self.learning_rate * self.decay**passed

    def optimizer(self, model: nn.Module) -> torch.optim.SGD:
        return torch.optim.SGD(
            model.parameters(), self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of training gave: mean loss per example (of the steps that were taken), and what it took.

    whole: False where a callback broke the epoch off before its last step.
    """

    epoch: int
    loss: float
    measured: MeasuredEnergy
    whole: bool = True


class Callback:
    """What may be hung into the loop."""

    def before_batch(self, samples: int) -> None:
        """Before each step on ``samples`` examples, whatever becomes of it."""

    def before_step(self) -> None:
        """After the backward pass and before the optimizer's step."""

    def after_step(self) -> bool:
        """After the optimizer's step, also one that was taken back; not after one that stopped the training. True
        breaks the epoch off here: :meth:`after_epoch` follows, and the training ends."""
        return False

    def after_epoch(self, report: EpochReport) -> bool:
        """After the last step of an epoch; True stops the training."""
        return False


class SparsityPenalty(Callback):
    """Adds ``strength * sign(gamma)`` to the gradient of every BatchNorm scale: the L1 penalty of network slimming.

    Source: Liu et al. 2017, section 3; You et al. 2020, section 4.
    """

    def __init__(self, model: nn.Module, strength: float) -> None:
        self.gammas = [norm.weight for norm in batch_norms(model).values()]
        self.strength = strength

    @torch.no_grad()
    def before_step(self) -> None:
        for gamma in self.gammas:
            assert gamma.grad is not None
            gamma.grad.add_(gamma.sign(), alpha=self.strength)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    epochs: range,
    settings: TrainSettings,
    *,
    seed: int,
    callbacks: Sequence[Callback] = (),
    monitor: StabilityMonitor | None = None,
) -> None:
    """Train ``model`` in place over ``epochs`` of the schedule.

    Each epoch starts torch's default generator from (seed, epoch), so an epoch's random numbers do not depend on where
    the training was started or resumed. With a ``monitor`` (of this model and optimizer) it takes the steps; then
    callbacks may see the backward pass of a bad batch twice.

    Raises:
        Diverged: the loss of an epoch is not finite, or the monitor stops the training or took no step of an epoch.
    """
    forward = compiled(model) if settings.compile else model
    for epoch in epochs:
        torch.manual_seed(derive_seed(seed, epoch))
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(epoch)
        if monitor is not None:
            monitor.begin_epoch(epoch)
        try:
            with measure(str(next(model.parameters()).device)) as measured:
                loss, whole, stopped = _train_epoch(forward, optimizer, task, epoch, callbacks, monitor)
        except RefusedNaN as error:  # a format without a code for NaN sees it before the mean loss does
            if monitor is not None:
                monitor.check()  # it may know the step
            raise Diverged(_in_loss(epoch, math.nan), str(error)) from error
        if not math.isfinite(loss):
            advice = f"lower training.learning_rate (now {settings.learning_rate_at(epoch):g}) or raise the precision"
            if monitor is not None and monitor.events:  # it takes no step with such a loss, so it took none at all
                event = replace(monitor.events[-1], response="stop")
                raise Diverged(event, f"no step of the epoch could be taken; {advice}")
            raise Diverged(_in_loss(epoch, loss), advice)
        report = EpochReport(epoch, loss, measured, whole)
        if any([callback.after_epoch(report) for callback in callbacks]) or stopped:
            return


def _in_loss(epoch: int, loss: float) -> Instability:
    return Instability(epoch, None, "", "loss", "", "nan" if math.isnan(loss) else "inf", loss, "stop")


def _train_epoch(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    epoch: int,
    callbacks: Sequence[Callback],
    monitor: StabilityMonitor | None,
) -> tuple[float, bool, bool]:
    """The mean loss, whether all batches were trained on, and whether a callback ended the training."""
    model.train()
    seen, stopped = 0, False  # examples
    loss_sum = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    lost = torch.zeros_like(loss_sum)  # examples in steps that were not taken

    def backward(batch: Batch) -> Tensor:
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        for callback in callbacks:
            callback.before_step()
        return loss

    for batch in task.batches(epoch):
        for callback in callbacks:
            callback.before_batch(batch.samples)
        if monitor is None:
            loss = backward(batch)
            optimizer.step()
            loss_sum += loss.detach() * batch.samples
        else:
            loss = monitor.step(partial(backward, batch))
            loss_sum += torch.where(monitor.accepted, loss.detach(), 0.0) * batch.samples
            lost += ~monitor.accepted * batch.samples
        seen += batch.samples
        if stopped := any([callback.after_step() for callback in callbacks]):
            break
    if monitor is not None:
        monitor.check()
    return loss_sum.item() / (seen - int(lost.item()) or math.nan), seen == task.samples["train"], stopped
