"""`lowprec-eb report --format paper`: a finished comparison in the paper's table form."""

import csv
import shutil
from dataclasses import replace

import pytest
from report_example import example_comparison
from rich.console import Console
from typer.testing import CliRunner

from lowprec_eb.cli import app
from lowprec_eb.published import early_bird_paper
from lowprec_eb.report import build_paper_table, paper_lines, paper_table, summarise, write_paper_table
from lowprec_eb.report.measured import Measured, mean_measured, measured
from lowprec_eb.report.paper_table import booked_flops
from lowprec_eb.report.saved import load_comparison

CONFIG = """
name: tiny
task: {data: digits, max_train: 150, max_test: 60, batch_size: 32}
model: {widths: [6, M, 8]}
training: {epochs: 4, learning_rate: 0.05}
ticket: {ratio: 0.4, deadline: 2, window: 2}
seeds: [0]
pipelines:
  - {name: full fp32, pipeline: full}
  - {name: full 8, pipeline: full, precision: bfp8}
  - {name: slimming, pipeline: network_slimming, ratio: 0.3}
  - {name: LT, pipeline: one_shot_ticket, ratio: 0.3}
  - {name: SNIP, pipeline: snip, ratio: 0.3}
  - {name: ThiNet, pipeline: thinet, ratio: 0.3}
  - {name: FF, pipeline: early_bird, ratio: 0.3}
  - {name: LL, pipeline: early_bird, precision: bfp8, ratio: 0.5}
  - {name: re-init, pipeline: early_bird, weights: reinit, ratio: 0.5}
"""
IMAGES, EPOCHS = 120, 4


def invoke(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"})
    return result, " ".join(result.output.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(CONFIG)
    result, text = invoke("compare", "--config", folder / "tiny.yaml", "--out", folder)
    assert result.exit_code == 0, text
    (found,) = folder.glob("tiny-*")
    return found


@pytest.fixture(scope="module")
def comparison(run):
    return load_comparison(run)


def outcome_of(comparison, arm):
    return next(outcome for outcome in comparison.outcomes if outcome.arm == arm)


def booked(comparison, method, arm):
    outcome = outcome_of(comparison, arm)
    return booked_flops(method, outcome, comparison.charged_rows(outcome))


def test_a_run_is_booked_as_the_paper_would(comparison):
    dense = outcome_of(comparison, "full fp32").forward_macs
    whole = 6 * dense * IMAGES * EPOCHS
    assert booked(comparison, "dense", "full fp32") == whole
    assert booked(comparison, "snip", "SNIP") == whole
    assert booked(comparison, "lt", "LT") == 2 * whole
    assert booked(comparison, "thinet", "ThiNet") is None
    slimming = outcome_of(comparison, "slimming")
    assert booked(comparison, "ns", "slimming") == pytest.approx(whole * (1 + slimming.forward_macs / dense))
    for method, arm, retrained in (("eb_ff", "FF", EPOCHS), ("eb_ll", "LL", EPOCHS), ("eb_reinit", "re-init", None)):
        outcome = outcome_of(comparison, arm)
        searched, left = outcome.ticket.epoch, outcome.forward_macs / dense
        epochs = EPOCHS if retrained is None else EPOCHS - searched
        expected = whole / EPOCHS * (searched + left * epochs)
        assert booked(comparison, method, arm) == pytest.approx(expected)


def test_rows_are_methods_and_columns_are_ratios(comparison):
    table = paper_table(comparison, None)
    assert table.ratios == (0.3, 0.5)
    rows = {row.label: row for row in table.rows}
    assert list(rows)[:2] == ["dense", "LT (one shot)"]
    arms = {arm.arm: arm for arm in summarise(comparison)}
    cell = rows["EB LL (bfp8)"].cells[0.5]
    assert (cell.arm, cell.flops_counted) == ("LL", 2 * arms["LL"].training_macs)
    assert cell.energy_j == arms["LL"].energy.nominal_j
    assert rows["EB LL (bfp8)"].cells[0.3].arm is None
    assert rows["dense"].cells[0.3] == rows["dense"].cells[0.5]  # it has no p
    reasons = "\n".join(table.reasons)
    assert "Published columns are blank" in reasons
    assert "Not among the paper's methods: full 8." in reasons
    assert "EB LL (bfp8) at p = 30 %" in reasons
    assert "blank for ThiNet" in reasons


def test_beside_a_published_table(comparison):
    published = early_bird_paper().table("vgg16_cifar100")
    table = paper_table(comparison, published)
    assert table.ratios == (0.1, 0.3, 0.5)
    rows = {row.label: row for row in table.rows}
    assert rows["EB LL (bfp8)"].cells[0.5].accuracy_percent == 69.91
    assert rows["SNIP"].cells[0.1].published_energy.middle == pytest.approx(370.6e3)
    assert rows["SNIP"].cells[0.1].arm is None
    assert rows["ThiNet"].cells[0.3].accuracy_percent is None  # not in the table of CIFAR-100
    without = replace(comparison, outcomes=tuple(o for o in comparison.outcomes if o.arm != "SNIP"))
    assert any("Not in this run: SNIP" in reason for reason in paper_table(without, published).reasons)
    other = paper_table(comparison, early_bird_paper().table("resnet50_imagenet"))
    assert any("cells of ResNet-50 on ImageNet were not at hand" in reason for reason in other.reasons)


def test_two_arms_of_one_method_have_two_rows(comparison):
    twin = replace(outcome_of(comparison, "FF"), arm="FF again")
    both = replace(comparison, outcomes=(*comparison.outcomes, twin))
    labels = [row.label for row in paper_table(both, None).rows]
    assert "EB (FF)" in labels
    assert "EB (FF): FF again" in labels


def test_measured_energy_stands_beside_the_modelled_one(comparison):
    (dense,) = outcome_of(comparison, "full fp32").stages
    kinds = {"train": 2.0, "eval": None}  # a test pass is too short for the sensor
    rows = [replace(row, measured_j=kinds.get(row.key.phase), duration_s=0.5) for row in comparison.rows[dense]]
    found = paper_table(replace(comparison, rows={**comparison.rows, dense: tuple(rows)}), None)
    cells = {row.method: row.cells[0.3] for row in found.rows}
    assert cells["dense"].measured.energy_j == 2.0 * EPOCHS
    assert cells["dense"].measured.share == EPOCHS / len(rows)
    assert cells["lt"].measured is None
    lines = {line["method"]: line for line in paper_lines(found) if line["ratio"] == 0.3}
    assert (lines["lt"]["measured_j"], lines["lt"]["measured_share_of_time"]) == (None, None)
    console = Console(width=200)
    with console.capture() as text:
        console.print(build_paper_table(found))
    shown = [line.split() for line in text.get().splitlines() if "energy, measured" in line]
    assert shown[0][2:] == f"8.00 J in {100 * EPOCHS / len(rows):.1f} % of the time".split() * 2
    assert shown[1][2:] == ["absent"]


def test_what_must_be_known_of_the_images_is_said_below(comparison):
    told = replace(comparison, notes=("Images: a copy.", "bfp8: eight bits."))
    assert paper_table(told, None).reasons[0] == "Images: a copy."
    assert not any("eight bits" in reason for reason in paper_table(told, None).reasons)


def test_what_was_measured_whole_is_said_without_a_share():
    assert Measured(1500.0, 1.0).text == "1.50 kJ"
    assert Measured(1500.0, 0.99999).text == "1.50 kJ in 99.9 % of the time"
    assert mean_measured([Measured(1.0, 1.0), Measured(3.0, 0.5)]) == Measured(2.0, 0.5)
    assert mean_measured([Measured(1.0, 1.0), None]) is None
    assert measured([]) is None


def test_the_command_prints_it_and_writes_files(run, tmp_path):
    result, text = invoke("report", run, "--format", "paper", "--published", "vgg16_cifar10", "--out", tmp_path)
    assert result.exit_code == 0, text
    assert "tiny in the form of the early-bird paper's table" in text
    assert "Published: VGG16 on CIFAR-10" in text
    assert (tmp_path / "paper_table.txt").read_text().startswith("tiny in the form")
    with (tmp_path / "paper_table.csv").open() as file:
        lines = list(csv.DictReader(file))
    line = next(line for line in lines if (line["method"], line["ratio"]) == ("eb_ff", "0.3"))
    assert line["arm"] == "FF"
    assert float(line["published_flops"]) == 253 * 5e13
    assert float(line["flops_paper_bookkeeping"]) > float(line["flops_counted"]) > 0
    assert not (tmp_path / "report.txt").exists()


def test_model_and_data_of_the_run_choose_the_table(run, tmp_path):
    result, text = invoke("report", run, "--format", "paper", "--out", tmp_path)
    assert result.exit_code == 0, text
    assert "no table of the paper is known to be of this model and these data" in text
    result, text = invoke("report", run, "--published", "vgg16_cifar10")
    assert result.exit_code != 0
    assert "--published: is for --format paper" in text


def test_settings_of_another_version_are_named(run, tmp_path):
    copied = tmp_path / run.name
    shutil.copytree(run, copied)
    (tmp_path / "stages").symlink_to(run.parent / "stages")
    path = copied / "config.json"
    path.write_text(path.read_text().replace('"sparsity"', '"sparseness"'))
    result, text = invoke("report", copied, "--format", "paper")
    assert result.exit_code != 0
    assert "config.json" in text
    assert "sparseness" in text


def test_a_run_without_its_settings_can_be_told_the_table(run, tmp_path):
    copied = tmp_path / run.name
    shutil.copytree(run, copied)
    (tmp_path / "stages").symlink_to(run.parent / "stages")
    (copied / "config.json").unlink()
    result, text = invoke("report", copied, "--format", "paper")
    assert result.exit_code == 0, text
    assert "no table of the paper is known" in text
    result, text = invoke("report", copied, "--format", "paper", "--published", "vgg16_cifar100")
    assert result.exit_code == 0, text
    assert "Published: VGG16 on CIFAR-100" in text


def test_a_comparison_without_ratios(tmp_path):
    table = paper_table(example_comparison(), None)
    assert table.ratios == (None,)
    rows = {row.label: row for row in table.rows}
    assert rows["EB LL (swalp8)"].cells[None].arm == "early-bird LL swalp8"
    assert rows["dense"].cells[None].flops_booked == 6 * 1_000_000 * 1078 * 20
    assert rows["EB re-init"].cells[None].arm == "early-bird FF re-init"
    text, lines = write_paper_table(table, tmp_path)
    assert "p not recorded" in text.read_text()
    assert len(lines.read_text().splitlines()) == 1 + len(table.rows)
    assert paper_table(example_comparison(), None, 0.4).ratios == (0.4,)
