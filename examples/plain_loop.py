"""Low-precision training in a plain PyTorch loop: a small convolutional network on scikit-learn's digits.

    python examples/plain_loop.py
    python examples/plain_loop.py --recipe mxfp8 --average --grad-scaler --accumulate 2 --checkpoint run.pt

Started again with the same --checkpoint, a run goes on after its last finished epoch, bit for bit on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

import energy_models as em
import lowprec_eb as lp


@dataclass(frozen=True)
class Settings:
    """recipe: None trains in plain float32. accumulate: batches per optimizer step. clip: largest gradient norm."""

    recipe: str | None = "bfp8"
    epochs: int = 12
    batch_size: int = 32
    accumulate: int = 1
    clip: float = 1.0
    average: bool = False
    grad_scaler: bool = False
    checkpoint: Path | None = None
    ledger: Path | None = None


def read_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1437 training and 360 test images (N, 1, 8, 8) in [0, 1], and their labels."""
    digits = load_digits()
    split = train_test_split(digits.images, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32)[:, None] / 16 for part in split[:2])
    train_y, test_y = (torch.tensor(part) for part in split[2:])
    return train_x, train_y, test_x, test_y


def make_model() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * 16, 10)),
    )


def batches(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.randperm(len(x)).split(size):
        yield x[rows], y[rows]


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    was_training = model.training
    correct = model.eval()(x).argmax(1) == y  # in eval mode rounding is to nearest
    model.train(was_training)
    return float(correct.float().mean())


class Run:
    """All that training changes, so that it can be saved and loaded as one."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(0)
        self.settings, self.epoch = settings, 0
        self.model = make_model()
        self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        if settings.recipe is not None:  # the low-precision part
            self.report = lp.lower(self.model, settings.recipe, strict=True)
            self.optimizer = lp.LowPrecisionOptimizer(self.optimizer, settings.recipe)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, settings.epochs)
        self.scaler = torch.amp.GradScaler("cpu", enabled=settings.grad_scaler)
        self.average = lp.WeightAverage(self.model) if settings.average else None

    def train_epoch(self, x: Tensor, y: Tensor) -> None:
        every = self.settings.accumulate
        order = list(batches(x, y, self.settings.batch_size))
        for number, (images, labels) in enumerate(order, 1):
            loss = F.cross_entropy(self.model(images), labels) / every
            self.scaler.scale(loss).backward()
            if number % every == 0 or number == len(order):
                self.scaler.unscale_(self.optimizer)  # gradients are clipped first and rounded in the step
                nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad()
        self.scheduler.step()
        self.epoch += 1
        if self.average is not None and self.epoch > self.settings.epochs // 2:
            self.average.update(self.model)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "model": self.model.state_dict(),  # the plain model's keys
            "precision": lp.precision_state(self.model),  # running ranges, which recipes such as int8 have
            "optimizer": self.optimizer.state_dict(),  # with seed and step of the rounding
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "random": torch.get_rng_state(),  # shuffling, and the seeds of stochastic rounding in the layers
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        lp.load_precision_state(self.model, state["precision"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["random"])


def train(settings: Settings) -> Run:
    x, y, _, _ = read_digits()
    run, path = Run(settings), settings.checkpoint
    if path is not None and path.exists():
        run.load_state_dict(torch.load(path, weights_only=True))
    keeper = None
    if settings.ledger is not None:  # what each epoch does, its modelled energy, and the measured one where it can be
        keeper = em.LedgerCallback(settings.ledger, run.model, run.optimizer, run="plain loop")
    while run.epoch < settings.epochs:
        with keeper.epoch("train", run.epoch) if keeper is not None else contextlib.nullcontext():
            run.train_epoch(x, y)
        if path is not None:
            torch.save(run.state_dict(), path)
    return run


def averaged_model(run: Run, x: Tensor) -> nn.Module:
    """The mean of the weights, with its own batch statistics; its GEMMs read the mean itself, not 8 bits of it."""
    assert run.average is not None
    run.average.update_statistics(x.split(run.settings.batch_size))
    model = run.average.model
    if run.settings.recipe is not None:
        ranges = lp.precision_state(model)  # lowering anew begins without them
        lp.lower(model, lp.precision(run.settings.recipe, weight=None))
        lp.load_precision_state(model, ranges)
    return model


def parse(arguments: list[str] | None) -> Settings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=Settings.recipe, help="bfp8, swalp8, int8, fp8, mxfp8, ...")
    parser.add_argument("--epochs", type=int, default=Settings.epochs)
    parser.add_argument("--batch-size", type=int, default=Settings.batch_size)
    parser.add_argument("--accumulate", type=int, default=Settings.accumulate, help="batches per optimizer step")
    parser.add_argument("--clip", type=float, default=Settings.clip, help="largest norm of the gradient")
    parser.add_argument("--average", action="store_true", help="average the weights of the second half")
    parser.add_argument("--grad-scaler", action="store_true", help="scale the loss with torch.amp.GradScaler")
    parser.add_argument("--checkpoint", type=Path, help="file to save to after every epoch, and to go on from")
    parser.add_argument("--ledger", type=Path, help="file that keeps what every epoch did and its energy")
    return Settings(**vars(parser.parse_args(arguments)))


def main(arguments: list[str] | None = None) -> None:
    settings = parse(arguments)
    train_x, _, test_x, test_y = read_digits()
    full = train(replace(settings, recipe=None, average=False, checkpoint=None, ledger=None))
    run = train(settings)
    print(run.report)
    plain = make_model()
    plain.load_state_dict(run.model.state_dict(), strict=True)
    models = {"fp32": full.model, str(settings.recipe): run.model, "its weights in plain torch": plain}
    if run.average is not None:
        models["mean of its weights"] = averaged_model(run, train_x)
    for name, model in models.items():
        print(f"test accuracy, {name}: {accuracy(model, test_x, test_y):.1%}")


if __name__ == "__main__":
    main()
