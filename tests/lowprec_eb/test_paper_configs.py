"""The paper's experiments as configurations, and `lowprec-eb estimate` of comparisons without their data."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lowprec_eb import compare
from lowprec_eb.cli import app
from lowprec_eb.config import load_config
from lowprec_eb.planning.bookkept import bookkept, bookkept_sentences, published_size
from lowprec_eb.progress import PlanProgress
from lowprec_eb.published import early_bird_paper, method_of
from lowprec_eb.tasks import DataSize, TaskSettings, make_task, sized_task

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "paper").glob("*.yaml"))
PAPER = early_bird_paper()

TINY = """
name: tiny
task: {data: digits, max_train: 150, max_test: 60, batch_size: 32}
model: {widths: [6, M, 8]}
training: {epochs: 4, learning_rate: 0.05}
ticket: {ratio: 0.4, deadline: 2, window: 2}
seeds: [0]
device: DEVICE
pipelines:
  - {name: full, pipeline: full}
  - {name: SNIP, pipeline: snip}
  - {name: FF, pipeline: early_bird}
  - {name: bf16, pipeline: full, precision: bf16}
"""


def estimate(*arguments):
    result = CliRunner().invoke(app, ["estimate", *map(str, arguments)], env={"COLUMNS": "200"})
    return result, " ".join(result.output.split())


def tiny(folder, device="cpu"):
    path = folder / "tiny.yaml"
    path.write_text(TINY.replace("DEVICE", device))
    return path


# ---- configurations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_its_table(path):
    config, table = load_config(path), PAPER.table(path.stem)
    assert PAPER.table_for(config.task.data, config.model) is table
    assert config.name == f"paper_{path.stem}"
    assert config.training.epochs == table.epochs
    assert (config.task.batch_size, config.training.momentum, config.training.weight_decay) == (256, 0.9, 1e-4)
    drops = [round(share * table.epochs) for share in config.training.milestones]
    assert drops == ([80, 120] if table.epochs == 160 else [30, 60])
    assert (config.ticket.sparsity, config.ticket.threshold, config.ticket.window) == (1e-4, 0.1, 5)
    named = {(method_of(arm), arm.ratio) for arm in config.pipelines}
    assert None not in {method for method, _ in named}
    printed = {(row.method, ratio) for row in table.rows for ratio in table.ratios if row.method != "dense"}
    assert printed <= named
    assert ("dense", None) in named


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_float32_is_float32_on_a_gpu(path):
    assert load_config(path).training.tf32 is False


@pytest.mark.parametrize("path", [p for p in CONFIGS if "cifar" in p.stem], ids=lambda path: path.stem)
def test_low_precision_is_averaged_from_epoch_140_and_the_rest_is_not(path):
    config = load_config(path)
    assert config.training.averaging.start_epoch(160) == 140
    averaged = {arm.name for arm in config.pipelines if arm.averaging}
    assert averaged == {arm.name for arm in config.pipelines if method_of(arm) == "eb_ll"}


# ---- the paper's bookkeeping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [table.name for table in PAPER.tables if table.rows])
def test_published_flops_are_reproduced_within_three_per_cent(name):
    book = bookkept(load_config(ROOT / "configs" / "paper" / f"{name}.yaml"))
    by_method = {}
    for arm in book.arms:
        if arm.difference is not None:
            by_method.setdefault(arm.method, []).append(arm)
    expected = {"dense", "ns"} if name.startswith("resnet") else {"dense", "snip", "lt", "ns"}
    assert expected <= by_method.keys()
    for method, arms in by_method.items():
        for arm in arms:
            assert abs(arm.difference) < 0.03
            assert bool(arm.fit) == (method not in ("dense", "snip", "lt"))


def test_flops_of_other_models_are_not_published():
    for name in ("preresnet101_cifar10", "preresnet101_cifar100", "resnet50_imagenet"):
        book = bookkept(load_config(ROOT / "configs" / "paper" / f"{name}.yaml"))
        assert {arm.method for arm in book.arms if arm.flops is not None} <= {"dense", "snip", "lt"}
        assert not [arm for arm in book.arms if arm.published is not None or arm.fit]


def test_what_the_table_does_not_determine_has_no_number():
    arms = {arm.arm: arm for arm in bookkept(load_config(ROOT / "configs/paper/vgg16_cifar10.yaml")).arms}
    for name in ("EB FF p70", "EB LL p30", "ThiNet p30"):
        assert arms[name].flops is None
        assert arms[name].published is not None
        assert arms[name].why
    assert arms["dense"].flops == 6 * 313201664 * 50000 * 160


def test_bookkeeping_on_the_command_line():
    result, text = estimate(ROOT / "configs/paper/resnet18_imagenet.yaml", "--bookkeeping", "early_bird")
    assert result.exit_code == 0, text
    assert "NS p10 network slimming 10 2.42 E 2.42 E -0.32 % r = 0.926, fitted to this cell" in text
    assert "Nothing is fitted in 1 of them; the largest difference is -0.32 %." in text


def test_a_model_without_a_table(tmp_path):
    book = bookkept(load_config(tiny(tmp_path)))
    arms = {arm.arm: arm for arm in book.arms}
    assert arms["full"].flops == 6 * book.forward_macs * 1797 * 4
    assert (arms["FF"].flops, arms["bf16"].why) == (None, "not a method of the paper")
    assert "no table of this model" in list(bookkept_sentences(book))[-1]


# ---- comparisons without their data ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [TaskSettings(), TaskSettings(max_train=150, max_test=60, batch_size=32, validation_fraction=0.13)]
)
def test_sizes_are_those_of_the_data(settings):
    task, sized = make_task(settings, 0), sized_task(settings)
    assert sized.samples == task.samples
    assert (sized.classes, sized.input_shape, sized.name) == (task.classes, task.input_shape, task.name)
    for split in task.samples:
        assert sized.batch_sizes(split) == task.batch_sizes(split)
    with pytest.raises(ValueError, match="sizes of the data"):
        sized.batches(0)


def test_a_plan_needs_no_data(tmp_path):
    config = load_config(tiny(tmp_path))
    planned, without = compare.plan(config), compare.plan(config, sized_task(config.task))
    assert dict(without.splits) == dict(planned.splits)
    for one, other in zip(planned.outcomes, without.outcomes, strict=True):
        bills = [
            [(row.key.phase, row.macs, row.modelled) for row in of.charged_rows(outcome)]
            for of, outcome in ((planned, one), (without, other))
        ]
        assert bills[0] == bills[1]


def test_a_plan_is_written_with_units(tmp_path):
    table, tree = tmp_path / "plan.csv", tmp_path / "plan.json"
    result, text = estimate(tiny(tmp_path), "--csv", table, "--json", tree)
    assert result.exit_code == 0, text
    planned = compare.plan(load_config(tiny(tmp_path)))
    lines, arms = list(csv.DictReader(table.open())), json.loads(tree.read_text())["arms"]
    assert [line["arm"] for line in lines] == [arm["arm"] for arm in arms] == ["full", "SNIP", "FF", "bf16"]
    for line, arm, outcome in zip(lines, arms, planned.outcomes, strict=True):
        rows = planned.charged_rows(outcome)
        assert float(line["energy_nominal_j"]) == arm["energy_nominal_j"]
        assert arm["energy_nominal_j"] == pytest.approx(sum(row.modelled.nominal_j for row in rows))
        training = sum(row.total_macs for row in rows if row.key.phase in ("search", "train", "retrain"))
        assert arm["training_macs"] == training
        assert not {"measured_j", "duration_s", "test_accuracy_mean"} & arm.keys()
    assert [arm["ticket_epoch"] for arm in arms] == [None, 0, 2, None]


def test_bookkeeping_is_written_with_units(tmp_path):
    table, tree = tmp_path / "book.csv", tmp_path / "book.json"
    path = ROOT / "configs/paper/vgg16_cifar10.yaml"
    result, text = estimate(path, "--bookkeeping", "early_bird", "--csv", table, "--json", tree)
    assert result.exit_code == 0, text
    lines, written = list(csv.DictReader(table.open())), json.loads(tree.read_text())
    for line, arm, found in zip(lines, written["arms"], bookkept(load_config(path)).arms, strict=True):
        assert (line["arm"], arm["training_flops"], arm["difference"]) == (found.arm, found.flops, found.difference)
    assert written["arms"][0]["published_low_flops"] == 301.5 * 5e13
    assert written["forward_macs"] == 313201664


def test_a_plan_tells_which_arm_is_next(tmp_path):
    told = []
    compare.plan(load_config(tiny(tmp_path)), begins=told.append)
    assert told == ["full", "SNIP", "FF", "bf16"]
    out = io.StringIO()
    with PlanProgress(Console(file=out, force_terminal=True, width=120, _environ={}), 2) as progress:
        progress.begin("dense")
        progress.begin("FF")
    assert "2 of 2: FF" in out.getvalue()


def test_arms_of_a_plan_share_stages_and_cost_what_they_cost_alone(tmp_path):
    arms = ("a, pipeline: thinet, ratio: 0.3", "b, pipeline: thinet, ratio: 0.5", "c, pipeline: snip, ratio: 0.5")
    listed = ", ".join(f"{{name: {arm}}}" for arm in arms)
    config = load_config(tiny(tmp_path), [f"pipelines=[{listed}]"])
    plan = compare.plan(config)
    for arm, together in zip(config.pipelines, plan.outcomes, strict=True):
        alone = compare.plan(replace(config, pipelines=(arm,)))
        (outcome,) = alone.outcomes
        assert outcome.forward_macs == together.forward_macs
        rows = (alone.charged_rows(outcome), plan.charged_rows(together))
        assert [row.modelled for row in rows[0]] == [row.modelled for row in rows[1]]
    assert plan.outcomes[0].stages[0] == plan.outcomes[1].stages[0]


def test_a_plan_for_a_gpu_needs_none(tmp_path):
    result, text = estimate(tiny(tmp_path, "cuda"))
    assert result.exit_code == 0, text
    assert "tiny: plan" in text
    assert "SNIP fp32" in text


def test_image_folders_have_the_size_of_the_published_table_or_none():
    config = load_config(ROOT / "configs/paper/resnet18_imagenet.yaml")
    assert published_size(config) == DataSize((3, 224, 224), 1000, 1281167, 50000)
    assert sized_task(config.task, published_size(config)).samples["test"] == 50000
    with pytest.raises(ValueError, match=r"--dry-run"):
        sized_task(config.task)


def test_options_of_the_other_kind_of_file_are_refused(tmp_path):
    result, text = estimate(tiny(tmp_path), "--json", tmp_path / "same", "--csv", tmp_path / "same")
    assert result.exit_code == 2 and "give two files" in text
    result, text = estimate(tiny(tmp_path), "--plot")
    assert result.exit_code != 0
    assert "is for plan files" in text
    result, text = estimate(ROOT / "configs/plans/resnet50_imagenet.yaml", "--bookkeeping", "early_bird")
    assert result.exit_code != 0
    assert "is for comparisons" in text
