"""examples/hf_trainer.py: the Trainer trains, saves, resumes, clips and accumulates with low precision in the model."""

import importlib
import json
from importlib.util import find_spec

import pytest
import torch
from model_cases import torchvision

import lowprec_eb as lp

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
if find_spec("torchvision"):
    torchvision()  # which transformers imports
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install transformers accelerate")
pytest.importorskip("accelerate", reason="needs accelerate: pip install transformers accelerate")
example = importlib.import_module("hf_trainer")
STEPS = 45  # batches of 32 an epoch


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class StopAt(transformers.TrainerCallback):
    """A run that ends after a checkpoint."""

    def __init__(self, step):
        self.step = step

    def on_save(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def trainer_for(folder, recipe, epochs, resume=None, seed=0, **options):
    transformers.set_seed(seed)
    return example.make_trainer(example.make_model(), example.arguments_for(folder, epochs, **options), recipe, resume)


def watch(optimizer):
    """Norm of the gradients and learning rate that an optimizer is given at each of its steps."""
    norms, rates = [], []

    def look(optimizer, *_):
        gradients = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        rates.append(optimizer.param_groups[0]["lr"])

    optimizer.register_step_pre_hook(look)
    return norms, rates


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=example.Digits("test").tokens).logits


def test_the_script_prints_report_and_results(capsys, tmp_path):
    example.main(["--epochs", "6", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "bert.encoder.layer.0.attention.self.query: Linear -> mxfp8, no float32 copy" in printed
    lines = [line for line in printed.splitlines() if line.startswith("test accuracy")]
    full, low, plain = (float(line.split(": ")[1].split("%")[0]) for line in lines)
    assert full > 80 and low > full - 4 and plain > full - 4


@pytest.mark.parametrize("recipe", [None, example.RECIPE, "int8"], ids=["fp32", "mxfp8", "int8"])
def test_a_resumed_run_equals_the_uninterrupted_one(recipe, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 30}
    whole = trainer_for(tmp_path / "whole", recipe, 2, **options)
    whole.train()
    killed = trainer_for(tmp_path / "killed", recipe, 2, **options)
    killed.add_callback(StopAt(60))
    killed.train()
    checkpoint = tmp_path / "killed" / "checkpoint-60"  # in the midst of the second epoch
    resumed = trainer_for(tmp_path / "resumed", recipe, 2, checkpoint, seed=9, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert killed.state.global_step == 60 and resumed.state.global_step == whole.state.global_step == 2 * STEPS
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    ranges = lp.precision_state(whole.model)
    assert bool(ranges) == (recipe == "int8")
    assert all(torch.equal(value, ranges[key]) for key, value in lp.precision_state(resumed.model).items())


def test_accelerate_passes_everything_to_the_wrapped_optimizer(tmp_path):
    options = {
        "gradient_accumulation_steps": 4,
        "max_grad_norm": 0.05,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
    }
    trainer = trainer_for(tmp_path, example.RECIPE, 1, save_strategy="no", **options)
    own = trainer.optimizer
    norms, rates = watch(own.inner)
    trainer.train()
    steps = -(-STEPS // 4)
    assert type(own) is lp.LowPrecisionOptimizer and trainer.optimizer.optimizer is own
    assert len(norms) == trainer.state.global_step == own.state_dict()["low_precision"]["steps"] == steps
    assert max(norms) == pytest.approx(0.05, rel=1e-4)
    assert rates == pytest.approx([2e-3 * (1 - step / steps) for step in range(steps)])
    for kept in (
        trainer.model.classifier.weight,
        *(own.state[trainer.model.classifier.weight][k] for k in ("exp_avg",)),
    ):
        assert torch.equal(kept.detach(), kept.detach().bfloat16().float())


def test_accumulated_batches_are_averaged(tmp_path):
    losses = []
    for batch, accumulated in ((32, 1), (16, 2)):
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulated}
        trainer = trainer_for(tmp_path, "bfp8", 1, save_strategy="no", logging_steps=1, max_steps=1, **options)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.1)  # dropout and rounding draw other numbers


def test_a_schedule_of_ones_own_is_used(tmp_path):
    trainer = trainer_for(tmp_path, example.RECIPE, 1, save_strategy="no")
    schedule = transformers.get_constant_schedule_with_warmup(trainer.optimizer, 10)
    trainer = transformers.Trainer(
        model=trainer.model,
        args=trainer.args,
        train_dataset=trainer.train_dataset,
        optimizers=(trainer.optimizer, schedule),
    )
    _, rates = watch(trainer.optimizer.inner)
    trainer.train()
    assert rates == pytest.approx([2e-3 * min(1, step / 10) for step in range(STEPS)])


def test_evaluation_rounds_to_nearest(tmp_path):
    trainer = trainer_for(tmp_path, "bfp8", 1)
    results = [trainer.evaluate()["eval_loss"] for _ in range(2)]
    assert results[0] == results[1]
    before = torch.get_rng_state()
    assert torch.equal(logits(trainer.model), logits(trainer.model)) and torch.equal(torch.get_rng_state(), before)


def test_the_saved_model_is_one_of_transformers(tmp_path):
    trainer = trainer_for(tmp_path, "bfp8", 1, save_strategy="no", max_steps=5)
    trainer.train()
    trainer.save_model(tmp_path / "final")
    assert json.loads((tmp_path / "final" / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
    plain, found = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "final", output_loading_info=True
    )
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert not any(isinstance(module, type(trainer.model)) for module in plain.modules())
    assert torch.equal(logits(plain), logits(lp.raise_(trainer.model)))
