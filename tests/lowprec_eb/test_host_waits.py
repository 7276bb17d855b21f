"""No training step waits for the device: on a device without values every read of one fails, and copies are seen."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from energy_models import load_profile
from lowprec_eb.lowering import lower
from lowprec_eb.models import PreResNetSettings, build_model
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.recipes import RECIPES, precision
from lowprec_eb.stability import StabilityMonitor, StabilitySettings
from lowprec_eb.tasks import make_task
from lowprec_eb.tasks.vision import Split, VisionTask
from lowprec_eb.tickets import EarlyBirds
from lowprec_eb.train import Callback, SparsityPenalty, TrainSettings, train
from lowprec_eb.training_lab import TrainingLab

STEPS, BATCH = 4, 4
READS = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.nonzero, Tensor.__array__),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
}


def task():
    """Cropped and flipped images whose values nobody knows."""

    def split(count):
        images = torch.empty(count, 3, 8, 8, dtype=torch.uint8, device="meta")
        return Split(images, torch.empty(count, dtype=torch.int64, device="meta"))

    splits = {"train": split(BATCH * STEPS), "validation": split(2), "test": split(2)}
    mean = torch.ones(3, 1, 1, device="meta")
    return VisionTask("unknown", 10, splits, BATCH, "crop_flip", 2, 0, mean, mean)


class Steps(Callback):
    taken = 0

    def after_step(self) -> bool:
        self.taken += 1
        return False


class Looks(Callback):
    """The detector, every so many steps."""

    def __init__(self, model, every):
        self.model, self.every, self.steps = model, every, 0
        self.detector = EarlyBirds((0.5,))

    def after_step(self) -> bool:
        self.steps += 1
        if self.steps % self.every == 0:
            self.detector.update(self.model)
        return False


class Copies(TorchDispatchMode):
    """Counts the copies that the host waits for."""

    def __init__(self):
        super().__init__()
        self.waited = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].is_cpu and kwargs.get("device") == torch.device("meta"):
            self.waited += not kwargs.get("non_blocking", False)
        return func(*args, **kwargs)


def until_a_read(recipe, stability=None, every=None):
    """How many steps of an epoch are taken before the host reads a number, and how many copies it waited for."""
    model = build_model(PreResNetSettings(depth=8, width=4), (3, 8, 8), 10, 0).to("meta")
    lower(model, precision(recipe))
    settings = TrainSettings(epochs=1)
    optimizer = LowPrecisionOptimizer(settings.optimizer(model), recipe, seed=0)
    monitor = None if stability is None else StabilityMonitor(model, optimizer, stability)
    counter, copies = Steps(), Copies()
    callbacks = [SparsityPenalty(model, 1e-4), counter, *([] if every is None else [Looks(model, every)])]
    with copies, pytest.raises(RuntimeError, match="meta"):  # the mean loss at the end of the epoch, if nothing before
        train(model, optimizer, task(), range(1), settings, seed=0, callbacks=callbacks, monitor=monitor)
    return counter.taken, copies.waited


@pytest.mark.parametrize("recipe", ["fp32", "bfp8"])
@pytest.mark.parametrize("period", [3, 100])
def test_a_monitor_reads_every_so_many_steps(recipe, period):
    watched = StabilitySettings(check_every=period)
    assert until_a_read(recipe, stability=watched)[0] == min(period - 1, STEPS)


def test_a_detector_reads_when_it_looks():
    assert until_a_read("fp32", every=3)[0] == 3


@pytest.mark.parametrize("recipe", RECIPES)
def test_no_step_reads_from_the_device_or_waits_for_a_copy_to_it(recipe):
    of_an_epoch = 3  # order, corners and flips
    assert until_a_read(recipe) == (STEPS, of_an_epoch)


class Reads(TorchFunctionMode):
    """Counts reads of numbers that would lie on the device; single whole numbers are seeds, which the host makes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS and (args[0].dtype != torch.int64 or args[0].dim()):
            self.count += 1
        return func(*args, **(kwargs or {}))


class Marked:
    """A task that notes the reads of each step, with all that is called around it."""

    def __init__(self, inner, reads):
        self.inner, self.reads, self.of_steps = inner, reads, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def batches(self, epoch):
        for batch in self.inner.batches(epoch):
            before = self.reads.count
            yield batch
            self.of_steps.append(self.reads.count - before)


@pytest.mark.parametrize("recipe", ["fp32", "bfp8"])
def test_a_stage_reads_once_a_look_and_never_in_a_step_without_one(tiny, tmp_path, recipe):
    inside = replace(tiny.ticket, check_every=2, window=5, rule="consecutive")
    settings = replace(tiny, ticket=inside).lab
    with Reads() as reads:
        marked = Marked(make_task(tiny.task, 0), reads)
        bench = TrainingLab(settings, marked, load_profile("45nm"), 0, tmp_path, "run")
        bench.train(bench.initial(), "search", recipe, sparsity=1e-4, detect=True)
    assert marked.of_steps[:11] == [0, 1] * 5 + [0]  # the twelfth may end the search
