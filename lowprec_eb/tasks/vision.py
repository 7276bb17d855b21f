"""Image classification on tensors that stay on the device.

A split is one uint8 tensor; each batch is taken from it, augmented and normalised on the device. There are no worker
processes and no global random state: epoch e of seed s is the same on every machine, resumed or not.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from lowprec_eb.tasks.augment import crop, flip, random_coins, random_corners
from lowprec_eb.tasks.base import Batch
from lowprec_eb.tasks.datasets import read_dataset
from lowprec_eb.tasks.labelled import LabelledImages
from lowprec_eb.tasks.layouts import DataName

Augment = Literal["none", "crop", "crop_flip"]

_SPLIT_SEED = 2020  # not the run's seed: all seeds and pipelines share one test set
_PIECE = 2**22  # pixels that are counted at once, which takes eight bytes each


@dataclass(frozen=True)
class TaskSettings:
    """An image classification task.

    data_root: folder with the data files (not read for digits); of image-folder a tar archive may stand for it.
    download: fetch data that are not in data_root and put them there.
    image_side: image-folder only; resize and crop all images to so many pixels a side.
    validation_fraction: share of the training rows that is held out for validation.
    test_fraction: digits only, share of all rows; the other data sets have test files of their own.
    augment: of training batches; crop_padding is its zero border in pixels.
    max_train: use at most so many rows for training and validation together; max_test: for testing.
    """

    data: DataName = "digits"
    data_root: str | None = None
    batch_size: int = 64
    validation_fraction: float = 0.2
    test_fraction: float = 0.25
    augment: Augment = "none"
    crop_padding: int = 4
    max_train: int | None = None
    max_test: int | None = None
    download: bool = field(default=False, compare=False)  # how the data came here decides no result
    image_side: int | None = None

    def __post_init__(self) -> None:
        _check_choice("data", self.data, get_args(DataName))
        _check_choice("augment", self.augment, get_args(Augment))
        for name, count in (("batch_size", self.batch_size), ("crop_padding", self.crop_padding)):
            _check_count(name, count, low=1)
        for name, limit, low in (
            ("max_train", self.max_train, 2),
            ("max_test", self.max_test, 1),
            ("image_side", self.image_side, 1),
        ):
            if limit is not None:
                _check_count(name, limit, low)
        for name in ("validation_fraction", "test_fraction"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie strictly between 0 and 1, got {value!r}")
        if self.image_side is not None and self.data != "image-folder":
            raise ValueError(f"image_side is of image-folder only; {self.data} has images of one size: leave it out")


@dataclass(frozen=True, eq=False)
class Split:
    """images: (N, C, H, W) uint8; labels: (N,) int64; both on the task's device."""

    images: Tensor
    labels: Tensor


class _Draw(NamedTuple):
    """Of one batch: rows (N,) int64; corners (2, N) int64 for `crop`; flipped (N,) bool. None: not augmented so."""

    rows: Tensor
    corners: Tensor | None
    flipped: Tensor | None


@dataclass(frozen=True, eq=False)
class VisionTask:
    """Image classification; satisfies `lowprec_eb.tasks.Task`. `make_task` builds it.

    mean, std: (C, 1, 1) float32 in pixel units, of the training split alone. `seed` orders and augments the training
    batches and nothing else, so `dataclasses.replace(task, seed=...)` is the same problem in another order.
    """

    name: str
    classes: int
    splits: Mapping[str, Split]
    batch_size: int
    augment: Augment
    crop_padding: int
    seed: int
    mean: Tensor
    std: Tensor

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.splits["train"].images.shape[1:]
        return channels, height, width

    @property
    def samples(self) -> dict[str, int]:
        """Number of images in each split."""
        return {name: split.labels.shape[0] for name, split in self.splits.items()}

    @cached_property
    def fingerprint(self) -> str:
        """The first 12 hex digits of the SHA-256 of all images and labels, split by split."""
        content = hashlib.sha256()
        for name, split in sorted(self.splits.items()):
            content.update(name.encode())
            for tensor in (split.images, split.labels):
                content.update(tensor.cpu().contiguous().numpy().data)
        return content.hexdigest()[:12]

    def batch_sizes(self, split: str) -> dict[int, int]:
        """Batch size -> number of such batches in one pass over `split` (the last batch may be short)."""
        return batch_counts(self._split(split).labels.shape[0], self.batch_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Training batches of `epoch` (0, 1, ...): shuffled, augmented, normalised; the last short one is kept.

        A pure function of (seed, epoch): order and augmentation come from a CPU generator of their own, seeded with
        the first 8 bytes of SHA-256("lowprec_eb.batches:<seed>:<epoch>"), read big-endian.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        return self._training_batches(epoch)

    def eval_batches(self, split: str) -> Iterator[Batch]:
        """Every image of `split` once, in a fixed order, not augmented."""
        chosen = self._split(split)
        pieces = zip(
            torch.split(chosen.images, self.batch_size), torch.split(chosen.labels, self.batch_size), strict=True
        )
        return (Batch(self._normalise(images), labels) for images, labels in pieces)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy, mean over the batch; `model` maps (N, C, H, W) to logits (N, classes)."""
        return F.cross_entropy(model(batch.inputs), batch.targets)

    def metric(self, model: nn.Module, split: str) -> float:
        """Accuracy on `split`: correct / total, in evaluation mode."""
        return self.evaluate(model, split)[1]

    def evaluate(self, model: nn.Module, split: str) -> tuple[float, float]:
        """(mean cross entropy per image, accuracy in [0, 1]) on `split`.

        Runs in evaluation mode without gradients; the training mode of every submodule comes back as it was.
        """
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.mean.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.mean.device)
        with _evaluating(model), torch.no_grad():
            for batch in self.eval_batches(split):
                logits = model(batch.inputs)
                loss_sum += F.cross_entropy(logits, batch.targets, reduction="sum")
                correct += (logits.argmax(dim=1) == batch.targets).sum()
        total = self.samples[split]
        return loss_sum.item() / total, int(correct.item()) / total

    def _training_batches(self, epoch: int) -> Iterator[Batch]:
        train = self.splits["train"]
        for draw in self._draws(epoch, train.images.device):
            images = train.images[draw.rows]
            if draw.corners is not None:
                images = crop(images, self.crop_padding, *draw.corners)
            if draw.flipped is not None:
                images = flip(images, draw.flipped)
            yield Batch(self._normalise(images), train.labels[draw.rows])

    def _draws(self, epoch: int, device: torch.device) -> list[_Draw]:
        """What is random in each batch of an epoch, sent to the device at once: a copy a step would make each step wait
        for the device."""
        generator = torch.Generator().manual_seed(_mix(self.seed, epoch))
        order = torch.randperm(self.samples["train"], generator=generator)
        corners, flipped = [], []
        for rows in torch.split(order, self.batch_size):
            if self.augment != "none":
                corners.append(random_corners(len(rows), self.crop_padding, generator))
            if self.augment == "crop_flip":
                flipped.append(random_coins(len(rows), generator))
        size, none = self.batch_size, [None] * math.ceil(len(order) / self.batch_size)
        return [
            _Draw(*drawn)
            for drawn in zip(
                order.to(device).split(size),
                torch.cat(corners, 1).to(device).split(size, 1) if corners else none,
                torch.cat(flipped).to(device).split(size) if flipped else none,
                strict=True,
            )
        ]

    def _normalise(self, images: Tensor) -> Tensor:
        """uint8 -> float32 of zero mean and unit variance per channel.

        It comes after augmentation, so the border of a crop is black (0 before normalisation), as in torchvision.
        """
        return (images - self.mean).div_(self.std)  # uint8 minus float32 is float32

    def _split(self, name: str) -> Split:
        if name not in self.splits:
            raise ValueError(f"unknown split {name!r}; this task has {', '.join(self.splits)}")
        return self.splits[name]


def batch_counts(examples: int, batch_size: int) -> dict[int, int]:
    """Batch size -> number of such batches in one pass over so many examples."""
    full, rest = divmod(examples, batch_size)
    sizes = {batch_size: full, rest: 1}
    return {size: times for size, times in sizes.items() if size and times}


def prepare_data(settings: TaskSettings) -> None:
    """Download data and decode images where that is asked for and not done yet, so that `make_task` need not.

    For programs that draw on the terminal later, or read the data in several processes. Raises as `read_dataset`.
    """
    if settings.download or settings.data == "image-folder":
        read_dataset(settings.data, settings.data_root, settings.image_side, settings.download)


def make_task(settings: TaskSettings, seed: int, device: str | torch.device = "cpu") -> VisionTask:
    """Read the data, split it and put it on `device`.

    The splits are stratified and do not depend on `seed`: every seed and pipeline is tested on the same images.
    Raises what `read_dataset` raises, and ValueError for settings that do not fit the data.
    """
    dataset = read_dataset(settings.data, settings.data_root, settings.image_side, settings.download)
    arrays = _split_arrays(settings, dataset.train, dataset.test)
    _check_crop(settings, arrays["train"].images.shape[2:])
    mean, std = _channel_statistics(arrays["train"].images)
    splits = {
        name: Split(torch.as_tensor(part.images, device=device), torch.as_tensor(part.labels, device=device))
        for name, part in arrays.items()
    }
    return VisionTask(
        name=settings.data,
        classes=dataset.classes,
        splits=splits,
        batch_size=settings.batch_size,
        augment=settings.augment,
        crop_padding=settings.crop_padding,
        seed=seed,
        mean=torch.tensor(mean, dtype=torch.float32, device=device)[:, None, None],
        std=torch.tensor(std, dtype=torch.float32, device=device)[:, None, None],
    )


def _split_arrays(
    settings: TaskSettings, rows: LabelledImages, test: LabelledImages | None
) -> dict[str, LabelledImages]:
    order = _stratified_order(rows.labels)
    if test is None:
        tested = round(settings.test_fraction * len(order))
        test, order = rows.take(np.sort(order[:tested])), order[tested:]
    order = order[: settings.max_train]
    test = test.take(np.sort(_stratified_order(test.labels)[: settings.max_test]))
    held_out = round(settings.validation_fraction * len(order))
    parts = {
        "train": rows.take(np.sort(order[held_out:])),
        "validation": rows.take(np.sort(order[:held_out])),
        "test": test,
    }
    for name, part in parts.items():
        if len(part.labels) == 0:
            raise ValueError(
                f"the {name} split of {settings.data!r} is empty; check validation_fraction "
                f"({settings.validation_fraction}), test_fraction ({settings.test_fraction}), max_train "
                f"({settings.max_train}) and the number of rows in the data files ({len(rows.labels)})"
            )
    return parts


def _stratified_order(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """A fixed shuffle of the rows; any prefix takes the same share of every class, rounded to whole rows.

    Each row gets its quantile within its own shuffled class, (rank + 1/2) / class size; rows are sorted by that.
    """
    # RandomState's stream is frozen for good (NEP 19), a Generator's is not; the splits must outlive numpy versions.
    random = np.random.RandomState(_SPLIT_SEED)
    quantiles = np.empty(len(labels))
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        quantiles[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(quantiles, kind="stable")


def _channel_statistics(images: NDArray[np.uint8]) -> tuple[list[float], list[float]]:
    """Mean and population standard deviation of each channel of (N, C, H, W), from exact integer sums."""
    means, stds, values = [], [], np.arange(256)
    step = max(1, _PIECE // math.prod(images.shape[2:]))
    pieces = [images[row : row + step] for row in range(0, len(images), step)]
    for index in range(images.shape[1]):
        counts = np.sum([np.bincount(piece[:, index].ravel(), minlength=256) for piece in pieces], axis=0)
        size = int(counts.sum())
        mean = int(counts @ values) / size
        variance = int(counts @ values**2) / size - mean**2
        if variance <= 0:
            raise ValueError(f"channel {index} of the training images is constant ({mean:g}): it cannot be normalised")
        means.append(mean)
        stds.append(math.sqrt(variance))
    return means, stds


def _mix(seed: int, epoch: int) -> int:
    digest = hashlib.sha256(f"lowprec_eb.batches:{seed}:{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each submodule's own mode again (some may have been frozen before)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _check_crop(settings: TaskSettings, image_size: tuple[int, ...]) -> None:
    if settings.augment != "none" and settings.crop_padding >= min(image_size):
        raise ValueError(
            f"crop_padding must be smaller than the image side for {settings.data!r}: 1 .. {min(image_size) - 1}, "
            f"got {settings.crop_padding}; larger crops can be all black"
        )


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{field} must be one of {', '.join(choices)}, got {value!r}")


def _check_count(field: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ValueError(f"{field} must be a whole number of {low} or more, got {value!r}")
