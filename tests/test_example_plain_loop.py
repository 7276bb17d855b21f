"""examples/plain_loop.py: it learns, and everything a plain loop does works with low precision in it."""

import dataclasses

import plain_loop
import pytest
import torch
from plain_loop import Run, Settings, accuracy, train

import energy_models as em
import lowprec_eb as lp


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits():
    return plain_loop.read_digits()


def assert_equal(one, other):
    """Nested states, bit for bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def test_low_precision_learns_as_full_precision_does(digits):
    full, low = (accuracy(train(Settings(recipe, epochs=4)).model, *digits[2:]) for recipe in (None, "bfp8"))
    assert full > 0.95
    assert low > full - 0.03


def test_the_script_prints_report_and_results(capsys, tmp_path):
    plain_loop.main(["--epochs", "2", "--average", "--recipe", "int8", "--checkpoint", str(tmp_path / "run.pt")])
    printed = capsys.readouterr().out
    assert "0: Conv2d -> int8" in printed
    for name in ("fp32", "int8", "its weights in plain torch", "mean of its weights"):
        assert f"test accuracy, {name}: " in printed


@pytest.mark.parametrize("recipe", [None, "bfp8", "int8"])
def test_a_resumed_run_equals_the_uninterrupted_one(recipe, tmp_path, monkeypatch):
    settings = Settings(recipe, epochs=4, batch_size=128, accumulate=2, average=True, grad_scaler=True)
    expected = train(settings).state_dict()
    interrupted, save = dataclasses.replace(settings, checkpoint=tmp_path / "run.pt"), torch.save

    def save_and_stop(state, path):
        save(state, path)
        if state["epoch"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(interrupted)
    torch.manual_seed(99)
    assert_equal(train(interrupted).state_dict(), expected)


def test_schedule_clipping_and_accumulation_reach_the_optimizer(digits, monkeypatch):
    norms, rates, step = [], [], torch.optim.SGD.step

    def watched(self, closure=None):
        gradients = [parameter.grad for group in self.param_groups for parameter in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        rates.append(self.param_groups[0]["lr"])
        return step(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    run = train(Settings("mxfp8", epochs=2, batch_size=256, accumulate=4, clip=0.05))
    assert len(digits[0]) == 1437  # 6 batches an epoch: steps after 4 and 6
    assert run.optimizer.state_dict()["low_precision"]["steps"] == len(norms) == 4
    assert max(norms) == pytest.approx(0.05, rel=1e-4)  # mxfp8 leaves gradients in float32
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05])


def test_a_loss_scale_of_a_power_of_two_changes_no_bit():
    """Block exponents move with it, so the same fractions are rounded."""
    models = [train(Settings("bfp8", epochs=1, grad_scaler=scale)).model for scale in (False, True)]
    assert_equal(*(dict(model.state_dict()) for model in models))


def test_evaluation_rounds_to_nearest(digits):
    run = Run(Settings("bfp8"))
    x, y = digits[2:]
    before = torch.get_rng_state()
    first, second = accuracy(run.model, x, y), accuracy(run.model, x, y)
    assert first == second and torch.equal(torch.get_rng_state(), before)
    assert run.model.training
    assert not torch.equal(run.model(x[:8]), run.model(x[:8]))  # in training it is stochastic


def test_the_trained_weights_load_into_the_plain_model(digits):
    run = train(Settings("bfp8", epochs=1))
    plain = plain_loop.make_model()
    plain.load_state_dict(run.model.state_dict(), strict=True)
    raised = lp.raise_(run.model)
    assert [type(module) for module in raised] == [type(module) for module in plain]
    assert torch.equal(plain.eval()(digits[2]), raised.eval()(digits[2]))


def test_the_average_is_the_mean_of_the_weights_visited(digits, monkeypatch):
    visited, train_epoch = [], Run.train_epoch

    def remembered(self, x, y):
        train_epoch(self, x, y)
        visited.append(self.model[0].weight.detach().clone())

    monkeypatch.setattr(Run, "train_epoch", remembered)
    run = train(Settings("bfp8", epochs=4, batch_size=256, average=True))
    model = plain_loop.averaged_model(run, digits[0])
    assert torch.allclose(model[0].weight, torch.stack(visited[2:]).mean(0), atol=1e-6)
    assert model[0].lowering.precision.weight is None and model[0].lowering.precision.activation is not None


def test_the_ledger_has_a_row_for_every_epoch_of_a_resumed_run(tmp_path):
    for epochs in (1, 2):
        train(Settings("bfp8", epochs=epochs, checkpoint=tmp_path / "c.pt", ledger=tmp_path / "l.jsonl"))
    rows = em.Ledger(tmp_path / "l.jsonl").rows()
    assert [(row.key.epoch, row.samples, row.metrics["optimizer_steps"]) for row in rows] == [
        (0, 1437, 45),
        (1, 1437, 45),
    ]
    assert set(rows[0].macs["output"]) == {"8x8"} and rows[0].macs == rows[1].macs
