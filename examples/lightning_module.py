"""Low-precision training with Lightning: a small convolutional network on scikit-learn's digits.

Needs `pip install lightning`. Then:

    python examples/lightning_module.py
    python examples/lightning_module.py --recipe mxfp8 --accumulate 2 --folder run
    python examples/lightning_module.py --recipe mxfp8 --accumulate 2 --resume run/mxfp8/last.ckpt
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lowprec_eb as lp


class Digits(L.LightningDataModule):
    """1437 training and 360 test images (N, 1, 8, 8) in [0, 1]."""

    def setup(self, stage: str) -> None:
        digits = load_digits()
        split = train_test_split(digits.images, digits.target, test_size=0.2, random_state=0, stratify=digits.target)
        images = [torch.tensor(part, dtype=torch.float32)[:, None] / 16 for part in split[:2]]
        self.train, self.test = (TensorDataset(x, torch.tensor(y)) for x, y in zip(images, split[2:], strict=True))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, batch_size=360)


class Classifier(L.LightningModule):
    def __init__(self, recipe: str | None = "bfp8", learning_rate: float = 0.1) -> None:
        """recipe: None trains in plain float32."""
        super().__init__()
        self.save_hyperparameters()
        self.model = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(32 * 16, 10)),
        )
        if recipe is not None:  # here, so before Lightning wraps the module and asks for the optimizer
            self.report = lp.lower(self.model, recipe, strict=True)

    def configure_optimizers(self) -> Any:
        chosen = self.hparams
        optimizer: torch.optim.Optimizer = torch.optim.SGD(self.parameters(), chosen["learning_rate"], momentum=0.9)
        if chosen["recipe"] is not None:  # with a seed, so that making it draws nothing from torch's generator
            optimizer = lp.LowPrecisionOptimizer(optimizer, chosen["recipe"], seed=0)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.max_epochs or 1)]

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        x, y = batch
        self.log("accuracy", (self.model(x).argmax(1) == y).float().mean())

    # Running ranges, which recipes such as int8 have, are not among the weights that Lightning saves.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["precision"] = lp.precision_state(self.model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        lp.load_precision_state(self.model, checkpoint["precision"])


class RandomState(L.Callback):
    """Saves what decides shuffling, dropout and stochastic rounding in the layers; Lightning does not."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["random"] = torch.get_rng_state()

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        torch.set_rng_state(checkpoint["random"])


def train(
    module: Classifier,
    folder: Path,
    epochs: int,
    *,
    accumulate: int = 1,
    resume: Path | None = None,
    callbacks: Sequence[L.Callback] = (),
    **options: Any,
) -> L.Trainer:
    """The trainer after ``epochs``; its checkpoint is ``folder / "last.ckpt"``. ``options`` are those of L.Trainer."""
    chosen: dict[str, Any] = {"accelerator": "cpu", "gradient_clip_val": 1.0, "logger": False}
    chosen |= {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=accumulate,
        callbacks=[ModelCheckpoint(folder, save_last=True), RandomState(), *callbacks],
        **(chosen | options),
    )
    trainer.fit(module, datamodule=Digits(), ckpt_path=resume)
    return trainer


def measure(trainer: L.Trainer, module: Classifier) -> float:
    """Test accuracy; Lightning puts the module into eval mode, where rounding is to nearest."""
    return float(trainer.test(module, datamodule=Digits(), verbose=False)[0]["accuracy"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="bfp8", help="bfp8, swalp8, int8, fp8, mxfp8, ...")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--accumulate", type=int, default=1, help="batches per optimizer step")
    parser.add_argument("--folder", type=Path, help="where checkpoints go; a temporary folder if left out")
    parser.add_argument("--resume", type=Path, help="checkpoint to go on from")
    chosen = parser.parse_args(arguments)
    accuracies = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.folder or Path(temporary)
        for name, recipe, resume in (("fp32", None, None), (chosen.recipe, chosen.recipe, chosen.resume)):
            L.seed_everything(0)
            module = Classifier(recipe)
            trainer = train(module, folder / name, chosen.epochs, accumulate=chosen.accumulate, resume=resume)
            accuracies[name] = measure(trainer, module)
        plain = Classifier(recipe=None)
        plain.load_state_dict(module.state_dict(), strict=True)
        accuracies["its weights in plain torch"] = measure(trainer, plain)
    print(module.report)
    for name, accuracy in accuracies.items():
        print(f"test accuracy, {name}: {accuracy:.1%}")


if __name__ == "__main__":
    main()
