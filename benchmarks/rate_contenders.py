"""Who trains in `training_rate.py`: the project's loop, and a bare one around the same model and images."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from energy_models import load_profile
from lowprec_eb.execution import compiled, float32_products, placed
from lowprec_eb.models import ModelSettings, PreResNetSettings, VGGSettings, build_model
from lowprec_eb.recipes import precision
from lowprec_eb.stage import StageRun
from lowprec_eb.stage_data import Stage, Start
from lowprec_eb.tasks import TaskSettings, VisionTask, make_task
from lowprec_eb.tasks.augment import crop, flip, random_coins, random_corners
from lowprec_eb.tasks.vision import Split
from lowprec_eb.train import EpochReport, TrainSettings
from lowprec_eb.versions import software_fingerprint

_VGG16: Any = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
Clock = Callable[[], float]
_EPOCHS = 10_000  # more than are trained: the learning rate stays
_LEARNING_RATE = 1e-3  # random labels must not make a loss that stops the training


@dataclass(frozen=True)
class Case:
    """A model and its batches. An epoch has ``on_cpu`` of them, on a GPU ``on_gpu``; None: those of the digits."""

    name: str
    what: str
    model: ModelSettings
    batch: int = 128
    on_cpu: int | None = 4
    on_gpu: int | None = 100


CASES = {
    case.name: case
    for case in (
        Case("vgg_digits", "VGG of configs/digits.yaml", VGGSettings(widths=(8, "M", 32, 32, "M", 64)), 64, None, None),
        Case("preresnet20_w8", "PreResNet-20, width 8", PreResNetSettings(width=8), on_cpu=8),
        Case("preresnet20_w16", "PreResNet-20, width 16", PreResNetSettings(), on_cpu=4),
        Case("vgg16", "VGG16", VGGSettings(widths=_VGG16), on_cpu=1),
    )
}


@dataclass(frozen=True)
class Setting:
    """What all contenders of a case share."""

    device: str
    channels_last: bool
    compile: bool = False
    tf32: bool | None = None
    data_root: Path | None = None

    @property
    def training(self) -> TrainSettings:
        return TrainSettings(
            epochs=_EPOCHS,
            learning_rate=_LEARNING_RATE,
            channels_last=self.channels_last,
            compile=self.compile,
            tf32=self.tf32,
        )

    @property
    def clock(self) -> Clock:
        """Seconds. On one thread of a CPU those of the processor: other programs take turns with this one."""
        on_one_thread = self.device == "cpu" and torch.get_num_threads() == 1
        return time.process_time if on_one_thread else time.perf_counter

    def finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


class _Unvalidated(VisionTask):
    """Validation is no part of training."""

    def evaluate(self, model: torch.nn.Module, split: str) -> tuple[float, float]:
        return 0.0, 0.0


def images_of(case: Case, setting: Setting) -> VisionTask:
    """The digits; else images of CIFAR-10 or, without a folder, random ones of their size, cropped and flipped."""
    batches = case.on_gpu if setting.device == "cuda" else case.on_cpu
    if batches is None:
        found = make_task(TaskSettings(batch_size=case.batch), 0, setting.device)
    elif setting.data_root is None:
        found = _random_images(case.batch, batches, setting.device)
    else:
        cifar = TaskSettings("cifar10", str(setting.data_root), case.batch, augment="crop_flip")
        found = make_task(cifar, 0, setting.device)
        train = found.splits["train"]
        first = Split(train.images[: case.batch * batches], train.labels[: case.batch * batches])
        found = replace(found, splits={**found.splits, "train": first})
    return _Unvalidated(**{name: getattr(found, name) for name in VisionTask.__dataclass_fields__})


def _random_images(batch: int, batches: int, device: str) -> VisionTask:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator).to(torch.uint8)
        return Split(images.to(device), torch.randint(10, (count,), generator=generator).to(device))

    splits = {"train": split(batch * batches), "validation": split(batch), "test": split(batch)}
    mean, std = (torch.full((3, 1, 1), value, device=device) for value in (127.5, 74.0))
    return VisionTask("random", 10, splits, batch, "crop_flip", 4, 0, mean, std)


# ---- the two loops -----------------------------------------------------------------------------------------------


class Loop(Protocol):
    """One contender; a call trains an epoch and returns the seconds of its steps, and those of its end."""

    def __call__(self) -> tuple[float, float]: ...


class BareLoop:
    """What one would write who wants to train and nothing else: no counts, checkpoints, seeds or resumption."""

    def __init__(self, case: Case, setting: Setting, task: VisionTask) -> None:
        self.task, self.setting = task, setting
        model = build_model(case.model, task.input_shape, task.classes, 0)
        self.model = placed(model, setting.device, setting.channels_last)
        self.forward = compiled(self.model) if setting.compile else self.model
        self.optimizer = setting.training.optimizer(self.model)
        self.generator = torch.Generator(setting.device).manual_seed(0)

    def __call__(self) -> tuple[float, float]:
        with float32_products(self.setting.tf32):
            self.setting.finish()
            began = self.setting.clock()
            self._epoch()
            self.setting.finish()
            return self.setting.clock() - began, 0.0

    def _epoch(self) -> None:
        train, generator, task = self.task.splits["train"], self.generator, self.task
        self.model.train()
        order = torch.randperm(len(train.labels), generator=generator, device=train.images.device)
        for rows in order.split(task.batch_size):
            images = train.images[rows]
            if task.augment != "none":
                images = crop(images, task.crop_padding, *random_corners(len(rows), task.crop_padding, generator))
                images = flip(images, random_coins(len(rows), generator))
            loss = F.cross_entropy(self.forward((images.float() - task.mean) / task.std), train.labels[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


class _TimedStage(StageRun):
    """Notes when the steps of an epoch have ended; the loop has waited for the device then."""

    clock: Clock
    steps_ended: float

    def after_epoch(self, report: EpochReport) -> bool:
        self.steps_ended = self.clock()
        return super().after_epoch(report)


class OwnLoop:
    """A stage of a comparison in ``recipe``, with its counts, ledger and checkpoints, without validation."""

    def __init__(self, case: Case, setting: Setting, task: VisionTask, recipe: str, folder: Path) -> None:
        self.setting, chosen = setting, precision(recipe)
        stage = Stage(
            task=TaskSettings(),
            model=case.model,
            training=setting.training,
            seed=0,
            phase="train",
            precision=repr(chosen),
            start="initial/0",
            first_epoch=0,
            sparsity=0.0,
            detector=None,
            profile="45nm",
            device=setting.device,
            threads=torch.get_num_threads(),
            data="not hashed",
            software=software_fingerprint(),
        )
        start = Start("initial/0", build_model(case.model, task.input_shape, task.classes, 0))
        self.run = _TimedStage(stage, start, task, chosen, load_profile("45nm"), folder / recipe, "rate")
        self.run.clock = setting.clock
        self.epoch = 0

    def __call__(self) -> tuple[float, float]:
        epochs, clock = range(self.epoch, self.epoch + 1), self.setting.clock
        self.epoch += 1
        with float32_products(self.setting.tf32):
            self.setting.finish()
            began = clock()
            self.run.train(epochs)
            return self.run.steps_ended - began, clock() - self.run.steps_ended


def contenders(case: Case, setting: Setting, folder: Path) -> dict[str, Callable[[], Loop]]:
    """How each is made, by name; all train on the same images."""
    task = images_of(case, setting)
    own = {
        recipe: lambda recipe=recipe: OwnLoop(case, setting, task, recipe, folder / case.name)
        for recipe in ("fp32", "bfp8")
    }
    return {"bare": lambda: BareLoop(case, setting, task), **own}
