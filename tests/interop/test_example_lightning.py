"""examples/lightning_module.py: Lightning trains, saves, resumes and clips with low precision in the module."""

import importlib
import logging
from importlib.util import find_spec

import pytest
import torch
from model_cases import torchvision

import lowprec_eb as lp

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
if find_spec("torchvision"):
    torchvision()  # which torchmetrics imports
L = pytest.importorskip("lightning", reason="needs lightning: pip install lightning")
example = importlib.import_module("lightning_module")
RECIPES = (None, "bfp8", "int8")


@pytest.fixture(autouse=True)
def _quiet():
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class StopBefore(L.Callback):
    """A run that is killed between two epochs."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("killed")


class Watch(L.Callback):
    """What the wrapped optimizer is given at each step."""

    def __init__(self):
        self.norms, self.rates = [], []

    def on_train_start(self, trainer, pl_module):
        optimizer = trainer.optimizers[0]
        assert type(optimizer) is lp.LowPrecisionOptimizer
        optimizer.inner.register_step_pre_hook(self._look)

    def _look(self, optimizer, *_):
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        self.norms.append(torch.nn.utils.get_total_norm(gradients).item())
        self.rates.append(optimizer.param_groups[0]["lr"])


def fitted(folder, recipe, epochs, *callbacks, seed=0, **options):
    L.seed_everything(seed)
    module = example.Classifier(recipe)
    return module, example.train(module, folder, epochs, callbacks=callbacks, **options)


def test_the_script_prints_report_and_results(capsys):
    example.main(["--epochs", "3"])
    printed = capsys.readouterr().out
    assert "0: Conv2d -> bfp8" in printed
    found = [line.rsplit(" ", 1) for line in printed.splitlines() if line.startswith("test accuracy")]
    names, accuracies = zip(*found, strict=True)
    assert names == tuple(f"test accuracy, {name}:" for name in ("fp32", "bfp8", "its weights in plain torch"))
    full, low, plain = (float(text.rstrip("%")) for text in accuracies)
    assert full > 93 and low > full - 3 and plain > full - 3


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_equals_the_uninterrupted_one(recipe, tmp_path):
    whole, _ = fitted(tmp_path / "whole", recipe, 3, accumulate=2)
    with pytest.raises(RuntimeError, match="killed"):
        fitted(tmp_path / "killed", recipe, 3, StopBefore(2), accumulate=2)
    checkpoint = tmp_path / "killed" / "last.ckpt"
    resumed, _ = fitted(tmp_path / "resumed", recipe, 3, seed=9, accumulate=2, resume=checkpoint)
    expected, found = whole.state_dict(), resumed.state_dict()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    ranges = lp.precision_state(whole.model)
    assert bool(ranges) == (recipe == "int8")
    assert all(torch.equal(value, ranges[key]) for key, value in lp.precision_state(resumed.model).items())


def test_schedule_clipping_and_accumulation_reach_the_wrapped_optimizer(tmp_path):
    watch = Watch()
    _, trainer = fitted(tmp_path, "mxfp8", 2, watch, accumulate=4, gradient_clip_val=0.05)
    assert len(watch.norms) == trainer.global_step == 2 * 12  # 45 batches an epoch
    assert trainer.optimizers[0].state_dict()["low_precision"]["steps"] == trainer.global_step
    assert max(watch.norms) == pytest.approx(0.05, rel=1e-4)  # mxfp8 leaves gradients in float32
    assert watch.rates == pytest.approx([0.1] * 12 + [0.05] * 12)


def test_evaluation_rounds_to_nearest(tmp_path):
    module, trainer = fitted(tmp_path, "bfp8", 1)
    before = torch.get_rng_state()
    found = [trainer.test(module, datamodule=example.Digits(), verbose=False) for _ in range(2)]
    assert found[0] == found[1]
    x = torch.rand(4, 1, 8, 8)
    module.eval()
    torch.set_rng_state(before)
    assert torch.equal(module.model(x), module.model(x)) and torch.equal(torch.get_rng_state(), before)


def test_the_checkpoint_loads_into_the_plain_module(tmp_path):
    module, _ = fitted(tmp_path, "int8", 1)
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    plain = example.Classifier(recipe=None)
    plain.load_state_dict(weights, strict=True)
    x = torch.rand(4, 1, 8, 8)
    lowered = example.Classifier.load_from_checkpoint(tmp_path / "last.ckpt").eval()
    assert torch.equal(lowered.model(x), module.eval().model(x))
    assert torch.equal(plain.eval().model(x), lp.raise_(module.model)(x))
