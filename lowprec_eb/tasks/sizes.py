"""Data sets by their sizes alone: enough to plan what training on them costs, without their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor, nn

from lowprec_eb.tasks.base import Batch
from lowprec_eb.tasks.layouts import DataName
from lowprec_eb.tasks.vision import TaskSettings, batch_counts


@dataclass(frozen=True)
class DataSize:
    """Shape (C, H, W) of an image, classes, and images; ``test`` None: they are taken from ``train``."""

    input_shape: tuple[int, int, int]
    classes: int
    train: int
    test: int | None


SIZES: Mapping[DataName, DataSize] = {
    "digits": DataSize((1, 8, 8), 10, 1797, None),
    "mnist": DataSize((1, 28, 28), 10, 60000, 10000),
    "fashion-mnist": DataSize((1, 28, 28), 10, 60000, 10000),
    "cifar10": DataSize((3, 32, 32), 10, 50000, 10000),
    "cifar100": DataSize((3, 32, 32), 100, 50000, 10000),
}


@dataclass(frozen=True)
class SizedTask:
    """Satisfies `lowprec_eb.tasks.Task` as far as planning asks; there is nothing to train or to evaluate on."""

    settings: TaskSettings
    size: DataSize

    @property
    def name(self) -> str:
        return self.settings.data

    @property
    def classes(self) -> int:
        return self.size.classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.size.input_shape

    @property
    def samples(self) -> dict[str, int]:
        """Images in each split, as `lowprec_eb.tasks.make_task` splits them."""
        settings, rows, test = self.settings, self.size.train, self.size.test
        if test is None:
            test = round(settings.test_fraction * rows)
            rows -= test
        rows = min(rows, settings.max_train or rows)
        held_out = round(settings.validation_fraction * rows)
        return {"train": rows - held_out, "validation": held_out, "test": min(test, settings.max_test or test)}

    @property
    def fingerprint(self) -> str:
        return f"{self.name}, sizes alone"

    @property
    def batch_size(self) -> int:
        return self.settings.batch_size

    def batch_sizes(self, split: str) -> dict[int, int]:
        return batch_counts(self.samples[split], self.batch_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        self._refuse()

    def eval_batches(self, split: str) -> Iterator[Batch]:
        self._refuse()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self._refuse()

    def metric(self, model: nn.Module, split: str) -> float:
        self._refuse()

    def evaluate(self, model: nn.Module, split: str) -> tuple[float, float]:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ValueError(f"{self.name}: only the sizes of the data are here, which is enough for a plan alone")


def sized_task(settings: TaskSettings, size: DataSize | None = None) -> SizedTask:
    """A task without data.

    Args:
        settings: of the task. size: of the data; left out, that of the data set of that name.

    Raises:
        ValueError: the sizes of an image folder are not known from its name.
    """
    found = size or SIZES.get(settings.data)
    if found is None:
        raise ValueError(
            f"task.data: how many images {settings.data!r} has is not known without them; plan it with "
            "lowprec-eb compare --dry-run --data-root DIR"
        )
    return SizedTask(settings, found)
