"""Stability in stages and comparisons: ledger, costs, resuming, and an arm that diverges among others that do not."""

import csv
import dataclasses
import io
import json
import math

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import lowprec_eb as lp
from energy_models import load_profile, totals
from lowprec_eb import stage as stage_module
from lowprec_eb.arms import ArmSettings
from lowprec_eb.cli import app
from lowprec_eb.compare import gather, plan, run_arm
from lowprec_eb.config import load_config
from lowprec_eb.costs import epoch_costs, summed
from lowprec_eb.instability import from_text
from lowprec_eb.precision_settings import PrecisionSettings
from lowprec_eb.report import print_report, sentences, summarise, write_report
from lowprec_eb.stability import StabilitySettings
from lowprec_eb.stage_data import StageDiverged
from lowprec_eb.tasks import Batch, make_task
from lowprec_eb.training_lab import TrainingLab
from lowprec_eb.workers import compare

EPOCH, STEP = 2, 1  # of four steps: 3 of 32 examples and one of 24


class Poisoned:
    """A task with one NaN in the images of one batch."""

    def __init__(self, task, places=((EPOCH, STEP),)):
        self.task, self.places = task, places

    def __getattr__(self, name):
        return getattr(self.task, name)

    def batches(self, epoch):
        for step, batch in enumerate(self.task.batches(epoch)):
            if (epoch, step) in self.places:
                batch = Batch(batch.inputs.clone(), batch.targets)
                batch.inputs[0, 0, 4, 4] = math.nan
            yield batch


@pytest.fixture
def task(tiny):
    return make_task(tiny.task, 0)


def settings(tiny, **stability):
    return dataclasses.replace(
        tiny, training=dataclasses.replace(tiny.training, stability=StabilitySettings(**stability))
    )


def lab(config, task, folder):
    return TrainingLab(config.lab, task, load_profile("45nm"), 0, folder, "run")


def trained(config, task, folder, precision="bfp8"):
    bench = lab(config, task, folder)
    return bench.train(bench.initial(), "train", precision)


def row_of(rows, epoch, phase="train"):
    (row,) = [row for row in rows if (row.key.phase, row.key.epoch) == (phase, epoch)]
    return row


def weights(result):
    return torch.cat([p.detach().flatten() for p in result.state.model.parameters()])


def test_a_skipped_step_is_in_the_ledger_and_is_paid_for(tiny, task, tmp_path):
    config = settings(tiny, on_unstable="skip")
    calm = trained(config, task, tmp_path)
    result = trained(config, Poisoned(task), tmp_path / "poisoned")
    row = row_of(result.rows, EPOCH)
    (event,) = from_text(row.metrics["instabilities"])
    assert (event.epoch, event.step, event.layer, event.operand) == (EPOCH, STEP, "features.0", "activation")
    assert row.metrics["skipped_steps"] == 1 and math.isfinite(row.metrics["loss"])
    assert row.modelled == row_of(calm.rows, EPOCH).modelled
    assert "instabilities" not in row_of(result.rows, EPOCH - 1).metrics
    assert all(torch.isfinite(value).all() for value in result.state.model.state_dict().values())


def test_the_mean_loss_is_of_the_steps_that_were_taken(tiny, task, tmp_path):
    still = dataclasses.replace(tiny.training, learning_rate=1e-30, stability=StabilitySettings(on_unstable="skip"))
    config = dataclasses.replace(tiny, training=still)
    whole = row_of(trained(config, task, tmp_path, "fp32").rows, EPOCH).metrics["loss"]
    partial = row_of(trained(config, Poisoned(task), tmp_path / "poisoned", "fp32").rows, EPOCH).metrics["loss"]
    bench = lab(config, task, tmp_path)
    model = bench.initial().model.train()
    sizes_and_losses = [(batch.samples, task.loss(model, batch).item()) for batch in task.batches(EPOCH)]
    del sizes_and_losses[STEP]
    kept = sum(size for size, _ in sizes_and_losses)
    assert partial == pytest.approx(sum(size * loss for size, loss in sizes_and_losses) / kept, rel=1e-5)
    assert partial != whole


@pytest.mark.parametrize("every", [1, 3])
def test_raised_precision_is_charged_from_the_step_on(tiny, task, tmp_path, every):
    config = settings(tiny, on_unstable="raise_precision", raise_to="bf16", check_every=every)
    result = trained(config, Poisoned(task), tmp_path)
    row = row_of(result.rows, EPOCH)
    before = 3 if every == 3 else STEP + 1  # the host looks after the second step, or after the third
    assert row.metrics["raised_after_steps"] == before and row.metrics["precision"] == "bf16"
    assert [event.response for event in from_text(row.metrics["instabilities"])] == ["raise_precision"]
    sizes = [batch.samples for batch in task.batches(EPOCH)]
    assert sizes == [32, 32, 32, 24]
    macs = 64 * 9 * 6 + 16 * 9 * 6 * 8 + 8 * 10  # forward, one image: two convolutions and the classifier
    assert row.macs["output"] == {"8x8": sum(sizes[:before]) * macs, "16x16": sum(sizes[before:]) * macs}
    for epoch, bits in ((EPOCH - 1, "8x8"), (EPOCH + 1, "16x16")):
        assert row_of(result.rows, epoch).macs["output"] == {bits: sum(sizes) * macs}
    validation = row_of(result.rows, EPOCH, "eval").macs["output"]
    assert validation == {"16x16": task.samples["validation"] * macs}  # what follows the epoch is in the new precision
    assert result.test_accuracy is not None


def test_the_costs_of_watching_by_hand(tiny, task):
    bench = lab(tiny, task, None)
    model = bench.initial().model
    lp.lower(model, "fp32")
    optimizer = lp.LowPrecisionOptimizer(tiny.training.optimizer(model), "fp32")
    elements = sum(p.numel() for p in model.parameters())
    buffers = sum(b.numel() for b in model.buffers())

    def counted(**stability):
        chosen = StabilitySettings(**stability)
        costs = epoch_costs(model, optimizer, task, sparsity=0.0, detector=None, stability=chosen)
        assert costs.train == summed(costs.train_batch, task.batch_sizes("train"))
        return costs.train.element_ops_by_kind["stability"]

    norms = 4 * 3 * elements  # four steps: gradients, momenta, weights
    copies = 4 * (2 * elements + buffers)
    assert counted() == norms
    assert counted(on_unstable="skip") == norms + copies
    assert counted(on_unstable="skip", check_every=2) == norms + 2 * copies


class Killed(BaseException):
    pass


@pytest.mark.parametrize("response", ["skip", "raise_precision"])
def test_killed_and_resumed_equals_uninterrupted(tiny, task, tmp_path, monkeypatch, response):
    raise_to = "bf16" if response == "raise_precision" else None
    config = settings(tiny, on_unstable=response, raise_to=raise_to)
    poisoned = Poisoned(task, ((1, 0), (2, STEP), (4, 2)))
    whole = trained(config, poisoned, tmp_path / "whole")
    for _ in range(3):
        left, real = 1, stage_module.checkpoints.save

        def mortal(*args, real=real):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*args)

        monkeypatch.setattr(stage_module.checkpoints, "save", mortal)
        with pytest.raises(Killed):
            trained(config, poisoned, tmp_path / "killed")
        monkeypatch.setattr(stage_module.checkpoints, "save", real)
    resumed = trained(config, poisoned, tmp_path / "killed")
    assert torch.equal(weights(whole), weights(resumed)) and whole.test_accuracy == resumed.test_accuracy
    for one, other in zip(whole.rows, resumed.rows, strict=True):
        assert (one.macs, one.modelled, one.metrics) == (other.macs, other.modelled, other.metrics)
    assert max(row.key.attempt for row in resumed.rows) == 1  # an epoch was done twice


def test_a_stopped_stage_charges_its_last_steps_and_is_not_run_again(tiny, task, tmp_path, monkeypatch):
    config = settings(tiny)
    with pytest.raises(StageDiverged, match="step 1") as found:
        trained(config, Poisoned(task), tmp_path, "fp32")
    error = found.value
    row = row_of(error.rows, EPOCH)
    assert row.samples == 64 and math.isnan(row.metrics["loss"]) and row.duration_s > 0
    macs = 64 * 9 * 6 + 16 * 9 * 6 * 8 + 8 * 10
    assert row.macs["output"] == {"32x32": 64 * macs}
    assert [event.response for event in from_text(row.metrics["instabilities"])] == ["stop"]

    def refuse(*args, **kwargs):
        raise AssertionError("a stage that diverged was trained again")

    monkeypatch.setattr(stage_module, "train", refuse)
    with pytest.raises(StageDiverged) as again:
        trained(config, Poisoned(task), tmp_path, "fp32")
    assert str(again.value) == str(error) and again.value.event == dataclasses.replace(
        error.event, value=again.value.event.value
    )


def refusing(config):
    """With a precision whose format has no code for NaN."""
    return dataclasses.replace(
        config, precisions={"refusing": PrecisionSettings(activation=lp.Float(4, 3, nan="error"))}
    )


def test_a_stage_without_a_monitor_diverges_at_the_end_of_an_epoch(tiny, task, tmp_path):
    with pytest.raises(StageDiverged, match="the mean loss of epoch 2 is nan") as found:
        trained(tiny, Poisoned(task), tmp_path, "fp32")
    assert row_of(found.value.rows, EPOCH).samples == task.samples["train"]
    with pytest.raises(StageDiverged, match=r"layer 'features.0', activation: .* NaN"):
        trained(refusing(tiny), Poisoned(task), tmp_path, "refusing")


def test_an_epoch_without_a_step_says_so(tiny, task, tmp_path):
    config = settings(tiny, on_unstable="skip", explode_above=1e-9, max_skips=1000)
    with pytest.raises(StageDiverged, match=r"loss is exploding.* no step of the epoch could be taken") as found:
        trained(config, task, tmp_path, "fp32")
    assert found.value.event.step is not None and found.value.event.response == "stop"


def test_what_diverges_after_it_was_raised_is_said_to_be_raised(tiny, task, tmp_path):
    config = settings(tiny, on_unstable="raise_precision", raise_to="bf16", explode_above=1e-9, max_skips=2)
    config = dataclasses.replace(config, seeds=(0,), pipelines=(ArmSettings("full", "full"), ArmSettings("f", "full")))
    lost = run_arm(config, tmp_path, 0, config.pipelines[0], Silent())
    calm = dataclasses.replace(config, training=tiny.training)
    found = sentences(gather(config, [lost, run_arm(calm, tmp_path, 0, config.pipelines[1], Silent())]))
    assert any("ran its train stage in fp32, raised to bf16, and has no result" in line for line in found)


def test_a_format_without_a_code_for_nan_is_watched_too(tiny, task, tmp_path):
    result = trained(settings(refusing(tiny), on_unstable="skip"), Poisoned(task), tmp_path, "refusing")
    (event,) = from_text(row_of(result.rows, EPOCH).metrics["instabilities"])
    assert (event.step, event.layer, event.operand) == (STEP, "features.0", "activation")


def test_watching_changes_no_result(tiny, task, tmp_path):
    plain = trained(tiny, task, tmp_path)
    for number, options in enumerate(({}, {"on_unstable": "skip"}, {"check_every": 3})):
        watched = trained(settings(tiny, **options), task, tmp_path / str(number))
        assert torch.equal(weights(plain), weights(watched)) and plain.test_accuracy == watched.test_accuracy
        losses = [[row.metrics.get("loss") for row in result.rows] for result in (plain, watched)]
        assert losses[0] == losses[1]


def test_a_plan_charges_the_watching(tiny, tmp_path):
    arms = (ArmSettings("full", "full", precision="bfp8"),)
    config = dataclasses.replace(settings(tiny, on_unstable="skip"), pipelines=arms, seeds=(0,))
    (planned,) = summarise(plan(config))
    (charged,) = summarise(gather(config, [run_arm(config, tmp_path, 0, arms[0], Silent())]))
    assert planned.energy.nominal_j == pytest.approx(charged.energy.nominal_j)
    assert planned.energy.nominal_j > summarise(plan(dataclasses.replace(tiny, pipelines=arms)))[0].energy.nominal_j


# ---- comparisons -------------------------------------------------------------------------------------------------


class Silent:
    def begin(self, arm): ...

    def epoch(self, arm, stage, row, energy_j): ...

    def end(self, arm, outcome): ...


# Gradients are rounded to whole numbers, up or down at random: weights drift beyond the bound below, and others stay.
BROKEN = "{gradient: {format: 'FixedPoint(8, 0)', rounding: stochastic}}"
BOUND = ", stability: {explode_above: 9.0}"


def yaml(tmp_path, stability="", workers=1):
    path = tmp_path / "c.yaml"
    path.write_text(f"""
name: c
task: {{max_train: 150, max_test: 60, batch_size: 32}}
model: {{widths: [6, M, 8]}}
training: {{epochs: 5, learning_rate: 1.0, milestones: []{stability}}}
ticket: {{ratio: 0.4, window: 2, threshold: 0.3, deadline: 3}}
seeds: [0, 1]
workers: {workers}
precisions:
  broken: {BROKEN}
pipelines:
  - {{name: full fp32, pipeline: full}}
  - {{name: lost search, pipeline: early_bird, search_precision: broken}}
  - {{name: lost retrain, pipeline: early_bird, search_precision: fp32, precision: broken}}
""")
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_a_diverging_arm_ends_alone_and_is_marked_everywhere(tmp_path, workers):
    config = load_config(yaml(tmp_path, BOUND, workers))
    comparison = compare(config, tmp_path / "out", Silent())
    assert {outcome.arm for outcome in comparison.outcomes} == {"full fp32"}
    assert [(o.arm, o.seed, o.phase, len(o.stages)) for o in comparison.diverged] == [
        ("lost search", 0, "search", 1),
        ("lost search", 1, "search", 1),
        ("lost retrain", 0, "retrain", 2),
        ("lost retrain", 1, "retrain", 2),
    ]
    assert {(o.event.operand, o.event.kind) for o in comparison.diverged} == {("master", "exploding")}
    files = {path.name: path for path in write_report(comparison, tmp_path / "report")}
    text = files["report.txt"].read_text()
    assert text.count("  diverged") == 4  # two arms in two tables
    assert "lost search, seed 1, diverged while it ran its search stage in broken, and has no result: master of" in (
        " ".join(text.split())
    )
    lines = {line["arm"]: line for line in csv.DictReader(io.StringIO(files["summary.csv"].read_text()))}
    assert lines["lost retrain"]["diverged_seeds"] == "0;1" and lines["lost retrain"]["test_accuracy_mean"] == ""
    tree = json.loads(files["summary.json"].read_text())
    assert [item["event"]["operand"] for item in tree["diverged"]] == ["master"] * 4
    spent = {item["arm"]: item["energy_nominal_j"] for item in tree["diverged"]}
    assert 0 < spent["lost search"] < spent["lost retrain"]
    assert {"energy_accuracy.png", "energy_phases.png", "epochs.png"} <= files.keys()


def test_the_command_ends_well_with_a_diverged_arm_and_badly_without_any_other(tmp_path):
    run = CliRunner()
    config = str(yaml(tmp_path, BOUND))
    arguments = ["compare", "--config", config, "--out", str(tmp_path / "out"), "--set", "seeds=[0]"]
    result = run.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "[2/3] seed 0, lost search: diverged" in result.output
    alone = run.invoke(app, [*arguments, "--set", "pipelines=[{name: lost, pipeline: full, precision: broken}]"])
    assert alone.exit_code == 2 and "seed 0, lost: training diverged" in alone.output


def test_an_arm_that_diverges_with_some_seeds_shows_the_others(tiny, tmp_path):
    arms = (ArmSettings("full", "full"), ArmSettings("8 bit", "full", precision="bfp8"))
    config = dataclasses.replace(tiny, pipelines=arms)
    results = [run_arm(config, tmp_path, seed, arm, Silent()) for seed in (0, 1) for arm in arms]
    whole = gather(config, results)
    event = lp.Instability(3, 7, "features.0", "error", "", "inf", math.inf, "stop")
    lost = results[3].outcome
    described = {name: getattr(lost, name) for name in ("arm", "pipeline", "search_precision", "precision", "weights")}
    from lowprec_eb.outcome import DivergedOutcome

    diverged = DivergedOutcome(**described, seed=1, stages=lost.stages, phase="train", event=event, message="text")
    partial = dataclasses.replace(whole, outcomes=whole.outcomes[:3], diverged=(diverged,))
    arm = summarise(partial)[1]
    assert arm.diverged_seeds == (1,) and arm.test_accuracy.n == 1
    console = Console(file=io.StringIO(), width=150, color_system=None, _environ={})
    with console.capture() as captured:
        print_report(partial, console)
    text = " ".join(captured.get().split())
    assert "8 bit †" in text and "† diverged with a seed" in text
    assert "8 bit, seed 1, diverged while it ran its train stage in bfp8, and has no result: error of layer" in text
    assert "not run with the same seeds" in text


def test_an_arm_that_diverges_with_its_first_seed_keeps_its_place(tiny, tmp_path):
    arms = (ArmSettings("a", "full"), ArmSettings("b", "full"))
    calm = dataclasses.replace(tiny, pipelines=arms, seeds=(0, 1))
    bad = dataclasses.replace(calm, training=settings(tiny, explode_above=1e-9).training)
    results = [
        run_arm(bad if (arm.name, seed) == ("a", 0) else calm, tmp_path, seed, arm, Silent())
        for arm in arms
        for seed in (0, 1)
    ]
    found = gather(calm, results)
    assert [of.arm for of in found.diverged] == ["a"] and [arm.arm for arm in summarise(found)] == ["a", "b"]


def test_skipped_and_raised_steps_are_in_the_report(tiny, task, tmp_path):
    for response, sentence in (
        ("skip", "the step was skipped"),
        ("raise_precision", "the step was skipped, and training went on in bf16"),
    ):
        raise_to = "bf16" if response == "raise_precision" else None
        arm = ArmSettings("8 bit", "full", precision="bfp8")
        config = dataclasses.replace(
            settings(tiny, on_unstable=response, raise_to=raise_to), pipelines=(arm,), seeds=(0,)
        )
        result = run_arm(config, tmp_path, 0, arm, Silent())
        rows = trained(config, Poisoned(task), tmp_path / response).rows
        noted = dataclasses.replace(result, rows={key: rows for key in result.rows})
        console = Console(file=io.StringIO(), width=150, color_system=None, _environ={})
        with console.capture() as captured:
            print_report(gather(config, [noted]), console)
        expected = "8 bit, seed 0: activation of layer 'features.0' is NaN in epoch 2, step 1; " + sentence
        assert expected in " ".join(captured.get().split())


@pytest.mark.parametrize(
    ("stability", "message"),
    [
        ("{on_unstable: raise}", "expected 'stop', 'skip' or 'raise_precision', got 'raise'"),
        ("{on_unstable: raise_precision}", "give both or neither"),
        ("{on_unstable: raise_precision, raise_to: bf17}", "training.stability.raise_to: unknown precision 'bf17'"),
        ("{check_evry: 3}", "did you mean 'check_every'"),
        ("{explode_factor: 0.5}", "explode_factor must be above 1"),
        ("3", "training.stability: expected"),
    ],
)
def test_bad_settings_name_the_key(tmp_path, stability, message):
    with pytest.raises(ValueError) as found:
        load_config(yaml(tmp_path, f", stability: {stability}"))
    assert message in str(found.value) and "training.stability" in str(found.value)


def test_a_precision_of_the_comparison_can_be_raised_to_and_is_part_of_the_hash(tiny, task, tmp_path):
    keys = set()
    for base in ("bf16", "swalp8"):
        mine = dataclasses.replace(tiny, precisions={"mine": PrecisionSettings(base=base)})
        config = settings(mine, on_unstable="raise_precision", raise_to="mine")
        result = trained(config, Poisoned(task), tmp_path)
        keys.add(result.key)
        assert row_of(result.rows, EPOCH).metrics["precision"] == "mine"
        assert totals(result.rows).bit_ops > 0
    assert len(keys) == 2
