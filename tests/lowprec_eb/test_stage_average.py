"""Weight averaging as an option of stages, pipelines and comparisons: what is delivered, charged and resumed."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import lowprec_eb as lp
from energy_models import MeasuredEnergy, OpCounts, element_ops, estimate, load_profile
from lowprec_eb import stage as stage_module
from lowprec_eb.arms import ArmSettings, MatchSettings
from lowprec_eb.averaging import AveragingSettings
from lowprec_eb.compare import gather, plan, run_arm
from lowprec_eb.config import load_config
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.precision_settings import PrecisionSettings, RoundedSettings
from lowprec_eb.report import summarise
from lowprec_eb.report.roles import random_pairs
from lowprec_eb.stage_average import StageAverage
from lowprec_eb.strict_config import ConfigError, digest
from lowprec_eb.tasks import make_task
from lowprec_eb.tickets import TicketSettings
from lowprec_eb.training_lab import TrainingLab

SWALP = AveragingSettings("swalp", start=0.4)  # epochs 2, 3 and 4 of 5
IMAGES, STEPS = 120, 4  # of the training split, in batches of 32
SIZES = (6 * 9, 6, 6, 8 * 6 * 9, 8, 8, 10 * 8, 10)  # of the parameters
FORWARD = 64 * 9 * 6 + 16 * 9 * 6 * 8 + 8 * 10  # MACs of one image


class Silent:
    def begin(self, arm): ...

    def epoch(self, arm, stage, row, energy_j): ...

    def end(self, arm, outcome): ...


@pytest.fixture
def task(tiny):
    return make_task(tiny.task, 0)


def with_averaging(tiny, averaging, **changes):
    return replace(tiny, training=replace(tiny.training, averaging=averaging), **changes)


def lab(config, task, folder):
    return TrainingLab(config.lab, task, load_profile("45nm"), 0, folder, "run")


def trained(config, task, folder, precision="bfp8"):
    bench = lab(config, task, folder)
    return bench.train(bench.initial(), "train", precision)


def rows(result, phase):
    return [row for row in result.rows if row.key.phase == phase]


def comparable(result):
    """Everything but seconds, joules of a sensor and attempts."""
    plain = [
        replace(row, duration_s=0.0, measured_j=None, key=replace(row.key, attempt=0))
        for row in sorted(result.rows, key=lambda row: row.key)
    ]
    return plain, result.best_epoch, result.validation_accuracy, result.test_accuracy


def same_state(a, b):
    first, second = a.state.model.state_dict(), b.state.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Spy(StageAverage):
    """Keeps what the average is made of."""

    def after_step(self):
        before = self.average.count
        super().after_step()
        if self.average.count > before:
            Spy.visited.append((self.step, [p.detach().double().clone() for p in self.trained.parameters()]))


@pytest.fixture
def visited(monkeypatch):
    monkeypatch.setattr(Spy, "visited", [], raising=False)
    monkeypatch.setattr("lowprec_eb.stage_average.StageAverage", Spy)
    return lambda: Spy.visited


@pytest.mark.parametrize(
    ("averaging", "steps"),
    [
        (SWALP, [12, 16, 20]),
        (replace(SWALP, interval=2), [16]),
        (replace(SWALP, unit="step", interval=5), [13, 18]),
    ],
)
def test_a_stage_delivers_the_mean_of_the_weights_from_the_start_on(tiny, task, tmp_path, visited, averaging, steps):
    result = trained(with_averaging(tiny, averaging), task, tmp_path)
    assert [step for step, _ in visited()] == steps
    for index, parameter in enumerate(result.state.model.parameters()):
        mean = torch.stack([weights[index] for _, weights in visited()]).mean(0)
        torch.testing.assert_close(parameter.detach().double(), mean, rtol=1e-6, atol=1e-7)
    assert rows(result, "average")[-1].metrics["weights_averaged"] == len(steps)
    assert [row.metrics.get("updates", 0) for row in rows(result, "average")] == [
        *(taken for end in range(4, 21, 4) if (taken := sum(end - 4 < step <= end for step in steps))),
        0,
    ]


def test_the_average_is_what_is_validated_and_tested(tiny, task, tmp_path):
    """As the digits' test set says of the model that the stage hands on, its GEMMs reading the weights in float32."""
    result = trained(with_averaging(tiny, SWALP), task, tmp_path, precision="fp32")
    model = result.state.model
    assert type(model.features[0]) is nn.Conv2d and result.state.optimizer_state is None
    assert result.test_accuracy == task.metric(model, "test")
    assert result.validation_accuracy == task.metric(model, "validation")
    assert rows(result, "average")[-1].metrics["average_validation_accuracy"] == result.validation_accuracy
    assert result.best_epoch == 4
    momenta = copy.deepcopy(model).train()
    with torch.no_grad():
        for module in momenta.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        for batch in task.batches(5):
            momenta(batch.inputs)
    for (name, found), expected in zip(model.named_buffers(), momenta.buffers(), strict=True):
        assert torch.equal(found, expected), name


def test_the_training_itself_is_what_it_is_without(tiny, task, tmp_path):
    plain, with_average = (trained(with_averaging(tiny, a), task, tmp_path) for a in (None, SWALP))
    for phase in ("train", "eval"):
        for one, other in zip(rows(plain, phase)[:5], rows(with_average, phase)[:5], strict=True):
            assert (one.metrics, one.macs, one.modelled) == (other.metrics, other.macs, other.modelled)
    assert rows(plain, "average") == [] and torch.equal(plain.scores, with_average.scores)
    assert plain.key != with_average.key


def test_a_learning_rate_of_the_average_changes_the_training_from_the_start_on(tiny, task, tmp_path):
    plain, other = (
        trained(with_averaging(tiny, averaging), task, tmp_path)
        for averaging in (None, replace(SWALP, learning_rate=0.5))
    )
    losses = [[row.metrics["loss"] for row in rows(result, "train")] for result in (plain, other)]
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]


# ---- costs -----------------------------------------------------------------------------------------------------------


def bits_of_8(elements, slices):
    return 8 * elements + 8 * slices


def test_updates_are_charged_by_hand_count(tiny, task, tmp_path):
    result = trained(with_averaging(tiny, replace(SWALP, unit="step")), task, tmp_path)
    row = rows(result, "average")[0]
    parameters = sum(SIZES)
    assert row.element_ops == {"average": STEPS * parameters} and row.key.epoch == 2
    assert sum(map(len, row.macs.values())) == 0 and row.duration_s == 0.0
    matrices = {54: 6, 432: 8, 80: 10}  # elements: slices with an exponent each
    read = sum(32 * size + (bits_of_8(size, matrices[size]) if size in matrices else 32 * size) for size in SIZES)
    assert row.modelled.traffic_bytes.nominal == pytest.approx(STEPS * (read + 32 * parameters) / 8)
    profile, work = load_profile("45nm"), STEPS * parameters
    by_hand = element_ops("average", work, fp_add=2, fp_mul=1)
    assert row.modelled.other_j.nominal == pytest.approx(estimate(by_hand, profile).other_j.nominal)


@pytest.mark.parametrize(("averaging", "weight"), [(SWALP, 32), (replace(SWALP, kind="swa"), 8)])
def test_statistics_and_validation_are_charged_at_what_the_average_reads(tiny, task, tmp_path, averaging, weight):
    result = trained(with_averaging(tiny, averaging), task, tmp_path)
    last, held_out = rows(result, "average")[-1], task.samples["validation"]
    assert last.key.epoch == 5 and last.samples == IMAGES + held_out
    assert last.macs == {"output": {f"8x{weight}": FORWARD * last.samples}, "grad_input": {}, "grad_weight": {}}
    test = rows(result, "eval")[-1]
    assert (test.key.epoch, test.macs["output"]) == (5, {f"8x{weight}": FORWARD * task.samples["test"]})
    outputs = 64 * 6 + 16 * 8  # elements that batch normalisation sees of one image
    assert last.element_ops["batch_norm"] == outputs * last.samples


def test_a_format_of_the_average_is_charged_and_read(tiny, task, tmp_path):
    averaging = replace(SWALP, format="BlockFloat(6, 0)")
    result = trained(with_averaging(tiny, averaging), task, tmp_path)
    first, last = rows(result, "average")[0], rows(result, "average")[-1]
    assert first.element_ops == {"average": sum(SIZES), "quantizer": 54 + 432 + 80}
    assert set(last.macs["output"]) == {"6x8"}


def test_the_plan_predicts_what_the_run_is_charged(tiny, tmp_path):
    arms = (ArmSettings("averaged", "full", precision="bfp8"), ArmSettings("plain", "full", averaging=False))
    config = with_averaging(tiny, replace(SWALP, unit="step", interval=3), pipelines=arms)
    predicted = summarise(plan(config))
    charged = summarise(gather(config, [run_arm(config, tmp_path, 0, arm, Silent()) for arm in arms]))
    for one, other in zip(predicted, charged, strict=True):
        assert one.energy.nominal_j == pytest.approx(other.energy.nominal_j)
        assert one.energy_by_phase.keys() == other.energy_by_phase.keys()
    assert "average" in charged[0].energy_by_phase and "average" not in charged[1].energy_by_phase


@pytest.mark.parametrize(("of_training", "of_updates"), [(5.0, 0.0), (None, None)])
def test_joules_of_updates_are_in_the_trainings_row_and_not_counted_twice(tiny, task, of_training, of_updates):
    config = with_averaging(tiny, SWALP)
    average = StageAverage(nn.Linear(2, 2), config.training, range(5), lp.precision("fp32"), task, 0)
    charged = []
    for epoch in range(5):
        training = MeasuredEnergy("cpu", of_training, duration_s=1.0)
        work = [(OpCounts(), average.updates(epoch))] if average.updates(epoch) else []
        average.charge_updates(lambda *row: charged.append(row), epoch, work, training)
    assert [(row[1], row[4].energy_j, row[4].duration_s) for row in charged] == [
        (e, of_updates, 0.0) for e in (2, 3, 4)
    ]


# ---- pipelines and comparisons ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", [name for name in PIPELINES if name not in ("thinet", "dense_matched")])
def test_every_pipeline_averages_what_delivers_a_model_and_no_search(tiny, task, tmp_path, pipeline):
    arm = ArmSettings("arm", pipeline, precision="bfp8")
    bench = lab(with_averaging(tiny, SWALP), task, tmp_path)
    outcome = PIPELINES[pipeline](bench, arm)
    for key in outcome.stages:
        stage = bench.finished[key]
        assert bool(rows(stage, "average")) == (stage.ticket is None)
    assert outcome.averaging == "swalp"


def test_thinet_averages_the_dense_and_the_last_stage(tiny, task, tmp_path):
    bench = lab(with_averaging(tiny, SWALP), task, tmp_path)
    outcome = PIPELINES["thinet"](bench, ArmSettings("arm", "thinet"))
    assert [bool(rows(bench.finished[key], "average")) for key in outcome.stages] == [True, False, False, True]


def test_a_matched_run_is_long_enough_for_its_average(tiny, task, tmp_path):
    settings = replace(SWALP, start=0.75)  # of two epochs none is left: round(1.5) is 2
    bench = lab(with_averaging(tiny, settings), task, tmp_path)
    bench.others = lambda name: []  # costs nothing
    outcome = PIPELINES["dense_matched"](bench, ArmSettings("arm", "dense_matched", match=MatchSettings("cheap")))
    assert outcome.match.epochs == 3 and rows(bench.finished[outcome.stages[0]], "average")


def test_network_slimming_prunes_the_average(tiny, task, tmp_path):
    bench = lab(with_averaging(tiny, SWALP), task, tmp_path)
    dense = bench.train(bench.initial(), "train", "fp32", sparsity=1e-4)
    ticket = bench.draw(dense, "fp32")
    small = bench.prune(dense.state.at(0, momentum=False), ticket)
    kept = ticket.masks["features.1"]
    assert torch.equal(small.model.features[1].weight, dense.state.model.features[1].weight[kept])
    gammas = torch.cat([m.weight.detach().abs() for m in dense.state.model.modules() if isinstance(m, nn.BatchNorm2d)])
    assert not torch.equal(gammas, dense.scores[-1])


def test_arms_with_and_without_stand_side_by_side(tiny, tmp_path):
    arms = (
        ArmSettings("LL", "early_bird", precision="bfp8", averaging=False),
        ArmSettings("LL swalp", "early_bird", precision="bfp8"),
        ArmSettings("random swalp", "random_ticket", precision="bfp8"),
    )
    config = with_averaging(tiny, SWALP, pipelines=arms)
    comparison = gather(config, [run_arm(config, tmp_path, 0, arm, Silent()) for arm in arms])
    plain, averaged, control = comparison.outcomes
    assert plain.stages[0] == averaged.stages[0] and plain.stages[1] != averaged.stages[1]
    assert (plain.averaging, averaged.averaging) == (None, "swalp")
    assert any(
        "Weights averaged (swalp, every 1 epoch(s) after 2 epochs): LL swalp, random swalp." in note
        for note in comparison.notes
    )
    assert [(bird.arm, other.arm) for bird, other in random_pairs(summarise(comparison))] == [
        ("LL swalp", "random swalp")
    ]
    assert control.stages[1] != averaged.stages[1]


def test_without_averaging_no_hash_knows_of_it(tiny):
    assert digest(with_averaging(tiny, None)) == digest(tiny)
    assert with_averaging(tiny, None).run_name == tiny.run_name
    assert with_averaging(tiny, SWALP).run_name != tiny.run_name


# ---- resuming --------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("precision", "averaging", "write", "kills"),
    [  # after so many writes: in the middle of an epoch, before the average's last row, between it and the test's
        ("bfp8", SWALP, "row", (4, 9, 1)),
        ("bfp8", AveragingSettings("ema", start=0.2, unit="step", decay=0.9), "checkpoint", (2, 3)),
        ("bfp8", replace(SWALP, unit="step", interval=3, format="block8"), "row", (5, 9, 1)),
        ("turned", replace(SWALP, kind="swa"), "row", (4, 9, 1)),  # inference draws signs, its statistics draw noise
    ],
)
def test_killed_and_resumed_it_is_what_the_uninterrupted_stage_is(
    tiny, task, tmp_path, monkeypatch, precision, averaging, write, kills
):
    turned = PrecisionSettings("bfp8", hadamard=16, normalization=RoundedSettings("fp8_e4m3", rounding="stochastic"))
    config = with_averaging(tiny, averaging, precisions={"turned": turned})
    whole = trained(config, task, tmp_path / "whole", precision)
    target = {"row": (stage_module.Ledger, "append"), "checkpoint": (stage_module.checkpoints, "save")}[write]
    real = getattr(*target)
    for survive in kills:
        left = survive

        def mortal(*args, **kwargs):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*args, **kwargs)

        monkeypatch.setattr(*target, mortal)
        torch.manual_seed(survive)  # a new process has another one
        with pytest.raises(Killed):
            trained(config, task, tmp_path / "killed", precision)
    monkeypatch.setattr(*target, real)
    torch.manual_seed(99)
    resumed = trained(config, task, tmp_path / "killed", precision)
    assert comparable(resumed) == comparable(whole) and same_state(resumed, whole)
    read = trained(config, task, tmp_path / "killed", precision)  # finished: nothing is run
    assert comparable(read) == comparable(whole) and same_state(read, whole)


def test_a_lost_row_of_the_average_is_noticed(tiny, task, tmp_path):
    config = with_averaging(tiny, SWALP)
    first = trained(config, task, tmp_path)
    ledger = tmp_path / first.key / "ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(line for line in lines if '"phase": "average", "epoch": 3' not in line))
    with pytest.raises(ValueError, match="1 rows are missing, the first of phase 'average', epoch 3"):
        trained(config, task, tmp_path)


# ---- settings --------------------------------------------------------------------------------------------------------


def yaml(tmp_path, averaging):
    path = tmp_path / "averaged.yaml"
    path.write_text(f"""
name: averaged
training: {{epochs: 10, averaging: {averaging}}}
ticket: {{window: 2, deadline: 4}}
pipelines:
  - {{name: swalp, pipeline: full, precision: bfp8}}
  - {{name: plain, pipeline: full, precision: bfp8, averaging: false}}
""")
    return path


def test_settings_are_read_from_yaml(tmp_path):
    config = load_config(yaml(tmp_path, "{kind: swalp, start: 0.5, learning_rate: 0.01, format: 'BlockFloat(9, 0)'}"))
    expected = AveragingSettings("swalp", start=0.5, learning_rate=0.01, format="BlockFloat(wl=9, dim=0)")
    assert config.training.averaging == expected
    assert [arm.averaging for arm in config.pipelines] == [True, False]
    assert load_config(yaml(tmp_path, "null")).training.averaging is None
    overridden = load_config(yaml(tmp_path, "null"), ["training.averaging.kind=swa", "training.averaging.interval=2"])
    assert overridden.training.averaging == AveragingSettings("swa", interval=2)


@pytest.mark.parametrize(
    ("averaging", "message"),
    [
        ("{start: 0.5}", "training.averaging.kind: missing"),
        ("{kind: swap}", "training.averaging.kind: expected 'swalp', 'swa' or 'ema', got 'swap'; did you mean"),
        ("{kind: swa, begin: 0.5}", "training.averaging.begin: unknown key"),
        ("{kind: ema}", "training.averaging: averaging: kind 'ema' needs a decay"),
        ("{kind: swa, format: fp9}", "not a number format: 'fp9'"),
        ("{kind: swa, start: 0.99}", "takes no weights"),
        ("{kind: swa, start: 0, interval: 7}", "training in epochs 4 to 9 takes no weights"),
    ],
)
def test_impossible_settings_are_explained(tmp_path, averaging, message):
    with pytest.raises(ConfigError) as caught:
        load_config(yaml(tmp_path, averaging))
    assert message in str(caught.value)


def test_an_interval_longer_than_a_stage_is_refused_when_it_begins(tiny, task, tmp_path):
    config = with_averaging(tiny, replace(SWALP, unit="step", interval=13), ticket=TicketSettings(window=2, deadline=3))
    with pytest.raises(ValueError, match=r"interval of 13 step\(s\), training in epochs 0 to 4 takes no weights"):
        trained(config, task, tmp_path)


def test_every_row_of_the_average_is_priced_by_its_counts(tiny, task, tmp_path):
    """Three epochs of one update each are priced alike, and their sum is that of three updates."""
    result = trained(with_averaging(tiny, SWALP), task, tmp_path)
    *updates, last = rows(result, "average")
    assert all(row.modelled == updates[0].modelled for row in updates) and len(updates) == 3
    assert 0 < updates[0].modelled.nominal_j < last.modelled.nominal_j < rows(result, "train")[0].modelled.nominal_j
