"""Which share of a training run counting takes."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from measuring import seconds
from torch import Tensor, nn

import energy_models as em
import lowprec_eb as lp
from lowprec_eb.config import load_config
from lowprec_eb.costs import epoch_costs
from lowprec_eb.models import build_model
from lowprec_eb.tasks import make_task
from lowprec_eb.train import train


@dataclass
class Share:
    """Counting beside training the digits VGG in float32, in seconds.

    one_count_s: of one training step. counts_s: of all that the training loop counts, once in a stage: steps with full
    and last batches, the optimizer, passes over the held-out splits. epochs: in a stage.
    """

    one_count_s: float
    counts_s: float
    epoch_s: float
    epochs: int

    @property
    def of_training(self) -> float:
        return self.counts_s / (self.epochs * self.epoch_s)


def epoch_share(config_path: Path, rounds: int) -> Share:
    """Medians; the loop is the project's own, on one thread."""
    torch.set_num_threads(1)
    config = load_config(config_path)
    task = make_task(config.task, 0)
    model = build_model(config.model, task.input_shape, task.classes, 0)
    optimizer = lp.LowPrecisionOptimizer(config.training.optimizer(model), "fp32")
    batch = next(iter(task.batches(0)))
    ones, wholes, trained = list[float](), list[float](), list[float]()
    for epoch in range(rounds):
        ones.append(seconds(lambda: em.count(model, batch.inputs, loss=_cross_entropy)))
        wholes.append(seconds(lambda: epoch_costs(model, optimizer, task, sparsity=0.0, detector=None)))
        epochs = range(epoch, epoch + 1)
        trained.append(seconds(partial(train, model, optimizer, task, epochs, config.training, seed=0)))
    one, whole, epoch_s = (statistics.median(times) for times in (ones, wholes, trained))
    return Share(one, whole, epoch_s, config.training.epochs)


def _cross_entropy(logits: Tensor) -> Tensor:
    targets = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return nn.functional.cross_entropy(logits, targets)
