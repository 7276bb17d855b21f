"""Plans: what an arm repeats, against hand sums and against the plan of a comparison; ranges, time, CO2e, files."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import energy_models as em
from energy_models.footprint import Footprint
from lowprec_eb import compare
from lowprec_eb.arms import IterativeSettings, MatchSettings, SnipSettings
from lowprec_eb.cli import app
from lowprec_eb.config import load_config
from lowprec_eb.models import ResNetSettings, VGGSettings, build_model
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.planning import PlanArm, PlanSettings, PlanTicket, load_plan, make_plans
from lowprec_eb.planning import plan as planning
from lowprec_eb.planning.files import plans_csv, plans_json
from lowprec_eb.planning.settings import Evaluation, Segment
from lowprec_eb.planning.tables import sentences
from lowprec_eb.planning.walk import DENSE, Stretch, Width, walk
from lowprec_eb.strict_config import ConfigError

ROOT = Path(__file__).parents[2]
MODEL = "test_planning:digits_vgg"


def digits_vgg():
    return build_model(VGGSettings(widths=(8, "M", 32, 32, "M", 64)), (1, 8, 8), 10, 0)


def residual_without_values():
    with torch.device("meta"):
        return ResNetSettings(depth=18, stem="small", width=8).module((1, 8, 8), 10)


def tokens_model():
    return nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11)), (torch.zeros(1, 16, dtype=torch.int64, device="cpu"),)


def settings(*arms, **changes):
    chosen = {"samples": 640, "epochs": 10, "batch": 64, "inputs": ("1x8x8",), "optimizer": "sgd:momentum=0.9"}
    return PlanSettings("test", MODEL, arms or (PlanArm("full"),), **(chosen | changes))


TICKET = PlanTicket(0.4, (3,))
SMALL = Width(0.6, "ticket")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


# ---- what is trained ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (PlanArm("x"), [Stretch("train", DENSE, "fp32", 10)]),
        (
            PlanArm("x", "network_slimming", "bf16"),
            [
                Stretch("train", DENSE, "bf16", 10, penalised=True),
                Stretch("retrain", SMALL, "bf16", 10, cut=DENSE),
            ],
        ),
        (
            PlanArm("x", "early_bird", search_precision="bfp8"),
            [
                Stretch("search", DENSE, "bfp8", 3, penalised=True, detects=True),
                Stretch("retrain", SMALL, "fp32", 7, cut=DENSE),
            ],
        ),
        (
            PlanArm("x", "random_ticket", weights="reinit"),
            [
                Stretch("search", DENSE, "fp32", 3, penalised=True, detects=True),
                Stretch("retrain", SMALL, "fp32", 10, cut=DENSE),
            ],
        ),
        (
            PlanArm("x", "early_bird", search_precision="bfp8", schedule=(Segment("bfp8", 6), Segment("fp32", 4))),
            [
                Stretch("search", DENSE, "bfp8", 3, penalised=True, detects=True),
                Stretch("retrain", SMALL, "bfp8", 3, cut=DENSE),
                Stretch("retrain", SMALL, "fp32", 4),
            ],
        ),
        (
            PlanArm("x", schedule=(Segment("bfp8", 4), Segment("fp32", 1), Segment("bfp8", 5))),
            [Stretch("train", DENSE, "bfp8", 9), Stretch("train", DENSE, "fp32", 1)],
        ),
        (
            PlanArm("x", "early_bird", weights="rewind", rewind_epoch=2, penalty=True, ratio=0.5),
            [
                Stretch("search", DENSE, "fp32", 3, penalised=True, detects=True),
                Stretch("retrain", Width(0.5, "50 % left"), "fp32", 8, penalised=True, cut=DENSE),
            ],
        ),
        (
            PlanArm("x", "final_ticket", "bfp8"),
            [
                Stretch("search", DENSE, "bfp8", 3, penalised=True, detects=True),
                Stretch("train", DENSE, "bfp8", 10, penalised=True),
                Stretch("retrain", SMALL, "bfp8", 7, cut=DENSE),
            ],
        ),
        (
            PlanArm("x", "iterative_pruning", iterative=IterativeSettings(2, "linear", epochs=4)),
            [
                Stretch("train", DENSE, "fp32", 10, penalised=True),
                Stretch("retrain", Width(0.8, "80 % left"), "fp32", 4, penalised=True, cut=DENSE),
                Stretch("retrain", SMALL, "fp32", 4, cut=Width(0.8, "80 % left")),
            ],
        ),
        (
            PlanArm("x", "snip", "bf16", snip=SnipSettings(2)),
            [Stretch("train", SMALL, "bf16", 10, cut=DENSE, seen=2)],
        ),
    ],
)
def test_an_arm_trains_what_its_pipeline_says(arm, expected):
    assert list(walk(arm, 10, 3, 0.4)) == expected


def test_every_pipeline_of_a_comparison_can_be_planned_or_says_why_not():
    with pytest.raises(ValueError, match=r"pipeline: thinet prunes layer by layer.* with the key pipelines"):
        PlanArm("x", "thinet")
    match = {"dense_matched": MatchSettings("snip")}
    arms = [PlanArm(name, name, match=match.get(name)) for name in PIPELINES if name != "thinet"]
    (plan,) = make_plans(settings(*arms, ticket=TICKET))
    macs = {arm.name: arm.macs for arm in plan.arms}
    assert min(macs.values()) > 0 and macs["random_ticket"] == macs["early_bird"] < macs["final_ticket"]
    snip = next(arm for arm in plan.arms if arm.name == "snip")
    assert [(phase.phase, phase.width) for phase in snip.phases] == [
        ("search", "dense"), ("train", "ticket"), ("prune", "ticket")
    ]  # fmt: skip


def test_baselines_agree_with_the_plan_of_a_comparison():
    config = load_config(ROOT / "configs" / "digits_baselines.yaml")
    names = "iterative fp32", "SNIP 8 bit", "final ticket fp32", "early-bird FF", "early-bird FF rewound to 1"
    names += "early-bird FF penalty on", "dense as FF in FLOPs"
    chosen = tuple(arm for arm in config.pipelines if arm.name in names)
    compared = compare.plan(replace(config, pipelines=chosen))
    shared = ("ratio", "rewind_epoch", "penalty", "iterative", "snip", "match")
    arms = [
        PlanArm(
            arm.name,
            arm.pipeline,
            arm.precision,
            arm.search_precision,
            arm.weights,
            **{name: getattr(arm, name) for name in shared},
        )
        for arm in chosen
    ]
    optimizer = f"sgd:momentum={config.training.momentum},weight_decay={config.training.weight_decay}"
    ticket, of_data = PlanTicket(0.4, (config.ticket.deadline,)), {"samples": compared.splits["train"], "epochs": 30}
    (plan,) = make_plans(settings(*arms, **of_data, batch=64, optimizer=optimizer, ticket=ticket))
    trained = ("search", "train", "retrain")
    for planned, outcome in zip(plan.arms, compared.outcomes, strict=True):
        rows = [row for row in compared.charged_rows(outcome) if row.key.phase in trained]
        macs = sum(row.total_macs for row in rows)
        own = sum(phase.macs for phase in planned.phases if phase.phase in trained)
        assert own == macs, planned.name
        energy = math.fsum(row.modelled.nominal_j for row in rows)
        own_j = math.fsum(planned.phases_j[name].nominal for name in trained if name in planned.phases_j)
        assert own_j == pytest.approx(energy, rel=0.01), planned.name


def test_a_plan_agrees_with_the_plan_of_a_comparison():
    config = load_config(ROOT / "configs" / "digits.yaml")
    config = replace(config, training=replace(config.training, momentum=0.9), ticket=replace(config.ticket, deadline=7))
    compared = compare.plan(config)
    samples, batch = compared.splits["train"], config.task.batch_size
    arms = tuple(PlanArm(a.name, a.pipeline, a.precision, a.search_precision, a.weights) for a in config.pipelines)
    optimizer = f"sgd:momentum={config.training.momentum},weight_decay={config.training.weight_decay}"
    planned = settings(
        *arms,
        samples=samples,
        epochs=30,
        batch=batch,
        optimizer=optimizer,
        ticket=PlanTicket(0.4, (7,)),
        evaluation=Evaluation(compared.splits["validation"]),
    )
    (plan,) = make_plans(planned)
    outcomes = {outcome.arm: outcome for outcome in compared.outcomes}
    trained = ("search", "train", "retrain")
    for arm in plan.arms:
        rows = [row for row in compared.charged_rows(outcomes[arm.name]) if row.key.phase in trained]
        macs = sum(sum(of.values()) for row in rows for of in row.macs.values())
        assert sum(p.macs for p in arm.phases if p.phase in trained) == macs
        # The comparison counts its loss too, and the last batch of an epoch as a step of its own.
        energy = math.fsum(row.modelled.nominal_j for row in rows)
        planned_j = math.fsum(arm.phases_j[name].nominal for name in trained if name in arm.phases_j)
        assert planned_j == pytest.approx(energy, rel=0.01)


def test_energy_is_that_of_one_step_times_their_number():
    model, images = digits_vgg(), torch.zeros(16, 1, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    step = em.count(model, images) + em.count_optimizer(optimizer, model=model)
    forward = em.count(model, images, training=False)
    profile = em.load_profile("45nm")
    (plan,) = make_plans(settings(devices=4, evaluation=Evaluation(80, per_epoch=2)))
    train, evaluate = plan.arms[0].phases
    assert train.energy.total_j.high == pytest.approx(em.estimate(step, profile).total_j.high * 4 * 10 * 10)
    assert evaluate.energy.nominal_j == pytest.approx(em.estimate(forward, profile).nominal_j * 10 * 2 * 5)
    assert train.macs == step.total_macs * 400 and train.bit_ops == train.macs * 32 * 32
    assert plan.arms[0].energy_j.nominal == pytest.approx(train.energy.nominal_j + evaluate.energy.nominal_j)


def test_tokens_count_by_the_length_of_a_sample():
    tokens = {"samples": None, "tokens": 1.6e6, "inputs": ("tokens:16",)}
    chosen = replace(settings(), model="test_planning:tokens_model", epochs=1, **tokens)
    (plan,) = make_plans(chosen)
    per_sample = em.count(tokens_model()[0], torch.zeros(1, 16, dtype=torch.int64)).total_macs
    assert plan.arms[0].macs == per_sample * 100_000
    with pytest.raises(ValueError, match="reads no tokens"):
        make_plans(replace(settings(), samples=None, tokens=100.0))


# ---- ranges ------------------------------------------------------------------------------------------------------


def test_emergence_widens_the_range_and_is_shared_by_arms():
    arms = (PlanArm("full"), PlanArm("eb", "early_bird"), PlanArm("random", "random_ticket"))
    (plan,) = make_plans(settings(*arms, ticket=PlanTicket(0.4, (2, 4, 8))))
    full, eb, random = plan.arms
    assert full.totals[0] == full.totals[2] and eb.totals[0].nominal_j < eb.totals[1].nominal_j < eb.totals[2].nominal_j
    assert eb.energy_j.low == eb.totals[0].low_j and eb.energy_j.high == eb.totals[2].high_j
    assert eb.ratio_to(random) == em.Range(1, 1, 1)
    ratio = eb.ratio_to(full)
    assert ratio.low == min(t.ratio_to(full.totals[0]).low for t in eb.totals) < ratio.nominal < ratio.high < 1
    assert [(a.name, b.name) for a, b, _ in plan.unseparated] == [("random", "eb")]


def test_scaled_widths_are_near_the_compacted_ones():
    arms = (PlanArm("slim", "network_slimming"),)
    (cut,) = make_plans(settings(*arms, ticket=TICKET))
    (scaled,) = make_plans(settings(*arms, ticket=replace(TICKET, widths="scaled")))
    assert cut.forward_macs == scaled.forward_macs
    assert scaled.arms[0].energy_j.nominal == pytest.approx(cut.arms[0].energy_j.nominal, rel=0.003)


# ---- time, CO2e, cost --------------------------------------------------------------------------------------------


def test_a_network_without_values_is_cut_by_its_shapes():
    """Published models are planned on the meta device: nothing of a ticket can be observed there."""
    arms = (PlanArm("full"), PlanArm("eb", "early_bird"))
    (plan,) = make_plans(replace(settings(*arms, ticket=TICKET), model="test_planning:residual_without_values"))
    full, early = plan.arms
    assert early.macs < full.macs


def test_a_rate_gives_the_time_of_dense_training_and_of_less_work_in_proportion():
    arms = (PlanArm("full"), PlanArm("slim", "network_slimming"), PlanArm("slow", rate=(10.0,)))
    (plan,) = make_plans(settings(*arms, ticket=TICKET, rate=(50.0, 200.0), devices=2))
    full, slim, slow = plan.arms
    assert (full.time_s.low, full.time_s.nominal, full.time_s.high) == pytest.approx((16, 25.6, 64))
    assert slim.time_s.nominal == pytest.approx(25.6 * slim.macs / full.macs)
    assert slow.time_s.nominal == pytest.approx(320)


def test_no_rate_and_no_whole_chip_is_no_time():
    (plan,) = make_plans(settings())
    assert plan.arms[0].time_s is None


def test_footprint_stands_in_the_files():
    chosen = settings(footprint=Footprint((400.0,), (0.1, 0.3), "EUR"), rate=(100.0,))
    plans = make_plans(chosen)
    (line,) = csv.DictReader(io.StringIO(plans_csv(plans)))
    kwh = plans[0].arms[0].energy_j.nominal / 3.6e6
    assert float(line["co2e_nominal_g"]) == pytest.approx(400 * kwh)
    assert float(line["cost_nominal_EUR"]) == pytest.approx(0.2 * kwh)
    tree = json.loads(plans_json(plans))
    (arm,) = tree["profiles"][0]["arms"]
    assert arm["phases"][0]["energy_nominal_j"] == pytest.approx(float(line["energy_nominal_j"]))
    assert arm["time_nominal_s"] == pytest.approx(64)


# ---- settings and command ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "match"),
    [
        ("arms.0.pipelin=full", "did you mean 'pipeline'"),
        ("arms.0.precision=bpf8", "did you mean 'bfp8'|near"),
        ("batch=255", "multiple of devices x accumulate"),
        ("tokens=5", "samples or tokens, one of them"),
        ("ticket.emergence=[95]", "must be below epochs"),
        ("ticket=null", "needs a ticket"),
        ("arms.7.schedule=[{precision: bfp8, epochs: 3}]", "sum to 3, and the plan has 90"),
        ("arms.4.pipeline=thinet", "pipeline: thinet prunes layer by layer"),
        ("arms.4.pipeline=thinnet", "did you mean 'thinet'|thinet"),
        ("arms.1={name: m, pipeline: dense_matched, match: {arm: early-bird LL, quantity: energy}}", "match.quantity"),
        (
            "arms.1={name: m, pipeline: dense_matched, match: {arm: early}}",
            r"arms.1.match.arm: no arm is named 'early'",
        ),
        ("arms.1={name: m, pipeline: dense_matched}", "needs match"),
        ("arms.4={name: r, pipeline: early_bird, weights: rewind, rewind_epoch: 9}", r"arms.4.rewind_epoch \(9\)"),
        (
            "arms.4={name: r, pipeline: iterative_pruning, schedule: [{precision: bfp8, epochs: 90}]}",
            "epochs of its own",
        ),
        ("rate=[3, 2]", "rate must be one number"),
        ("footprint={price: [0.2]}", "price and currency"),
    ],
)
def test_settings_that_cannot_be_planned_are_explained(override, match):
    with pytest.raises(ConfigError, match=match):
        load_plan(ROOT / "configs" / "plans" / "resnet50_imagenet.yaml", [override])


def test_all_example_configs_load():
    found = sorted((ROOT / "configs" / "plans").glob("*.yaml"))
    assert len(found) >= 2 and all(load_plan(path).arms for path in found)


def test_a_model_without_batch_norms_has_no_ticket():
    chosen = settings(PlanArm("eb", "early_bird"), ticket=TICKET)
    with pytest.raises(ValueError, match="no BatchNorm2d"):
        make_plans(replace(chosen, model="test_planning:tokens_model", inputs=("tokens:16",)))


def test_the_command_prints_tables_and_writes_files(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "name: small\nmodel: test_planning:digits_vgg\ninputs: [1x8x8]\nsamples: 640\nepochs: 10\nbatch: 64\n"
        "ticket: {ratio: 0.4, emergence: [2, 6]}\n"
        "arms:\n  - {name: full}\n  - {name: early bird, pipeline: early_bird}\n"
    )
    files = ["--json", str(tmp_path / "p.json"), "--csv", str(tmp_path / "p.csv"), "--plot", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["estimate", str(path), "--set", "epochs=20", *files])
    assert result.exit_code == 0, result.output
    assert "early bird" in result.output and "20 epochs" in result.output
    assert "separate" in result.output and "No time" in result.output
    assert (tmp_path / "small.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "p.json").read_text())["settings"]["epochs"] == 20
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 3
    wrong = CliRunner().invoke(app, ["estimate", str(path), "--set", "epoch=20"])
    assert wrong.exit_code == 2 and "did you mean 'epochs'" in wrong.output


def test_repeated_epochs_cost_nothing_to_plan(monkeypatch):
    asked = []
    estimate = em.estimate
    monkeypatch.setattr(planning.em, "estimate", lambda *given: asked.append(1) or estimate(*given))
    segments = tuple(Segment(("bfp8", "fp32")[epoch % 2], 1) for epoch in range(1000))
    (plan,) = make_plans(settings(PlanArm("cyclic", schedule=segments), epochs=1000))
    assert len(asked) == 2
    assert [phase.epochs for phase in plan.arms[0].phases] == [500, 500]


@pytest.mark.parametrize("devices", [1, 2])
def test_static_power_is_drawn_for_as_long_as_the_rate_says(devices):
    (plan,) = make_plans(settings(PlanArm("a"), rate=(10.0, 20.0), devices=devices, profiles=("h100",)))
    (arm,) = plan.arms
    power, static = plan.profile.chip.static_power, arm.components_j["static"]
    assert static.low == pytest.approx(power.low * arm.time_s.low * devices)
    assert static.nominal == pytest.approx(power.value * arm.time_s.nominal * devices)
    assert static.high == pytest.approx(power.high * arm.time_s.high * devices)
    assert min(arm.totals[0].corners_j) > static.low
    assert any("Static energy is the profile's static power" in line for line in sentences(plan))
    (bare,) = make_plans(settings(PlanArm("a"), rate=(10.0,), profiles=("45nm",)))
    assert "static" not in bare.arms[0].components_j
