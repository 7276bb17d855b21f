"""`lowprec-eb report`: a finished run again without training, and under another profile."""

import csv
import dataclasses
import json
import math
import shutil
from importlib import resources

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from energy_models import CountStore, Footprint, Ledger, load_profile, reprice
from lowprec_eb import stage as stage_module
from lowprec_eb.cli import app
from lowprec_eb.instability import Instability
from lowprec_eb.outcome import DivergedOutcome
from lowprec_eb.report import write_report
from lowprec_eb.report.saved import load_comparison, save_comparison

CONFIG = """
name: tiny
task: {data: digits, max_train: 150, max_test: 60, batch_size: 32}
model: {widths: [6, M, 8]}
training: {epochs: 4, learning_rate: 0.05, averaging: {kind: swa, start: 0.5}}
ticket: {ratio: 0.4, deadline: 2, window: 2}
seeds: [0]
pipelines:
  - {name: full fp32, pipeline: full}
  - {name: slimming fp32, pipeline: network_slimming}
  - {name: LL, pipeline: early_bird, precision: bfp8}
"""


def invoke(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result, " ".join(result.output.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(CONFIG)
    result, _ = invoke("compare", "--config", folder / "tiny.yaml", "--out", folder)
    assert result.exit_code == 0, result.output
    (found,) = folder.glob("tiny-*")
    return found


@pytest.fixture(autouse=True)
def _no_training(run, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(stage_module, "train", refuse)


def dearer(entry):
    """A profile's document with every energy a hundred times as large."""
    if isinstance(entry, dict) and str(entry.get("unit", "")).startswith("pJ"):
        return entry | {end: 100 * entry[end] for end in ("value", "low", "high") if end in entry}
    if isinstance(entry, dict):
        return {key: dearer(below) for key, below in entry.items()}
    return [dearer(below) for below in entry] if isinstance(entry, list) else entry


@pytest.fixture
def other_chip(tmp_path):
    document = YAML(typ="safe").load((resources.files("energy_models") / "profiles" / "45nm.yaml").read_text())
    path = tmp_path / "other.yaml"
    YAML(typ="safe").dump(dearer(document) | {"name": "other chip"}, path)
    return path


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_same_tables_and_pictures_come_out_again(run, tmp_path):
    before = files_of(run)
    result, said = invoke("report", run, "--out", tmp_path)
    assert result.exit_code == 0, said
    again = files_of(tmp_path)
    assert again == {name: content for name, content in before.items() if name in again}
    assert {"report.txt", "summary.csv", "summary.json", "energy_accuracy.png", "mask_distance.png"} <= again.keys()
    assert "afterwards" not in said


def test_the_profile_of_the_run_gives_every_row_to_the_last_bit(run):
    stages = [path.parent for path in run.parent.glob("stages/*/ledger.jsonl")]
    phases = set()
    for stage in stages:
        rows = Ledger(stage / "ledger.jsonl").rows()
        assert reprice(rows, CountStore(stage / "counts"), load_profile("45nm")) == rows
        phases |= {row.key.phase for row in rows}
    assert phases == {"search", "train", "prune", "retrain", "detect", "average", "eval"}


def test_another_profile_changes_the_energy_alone_and_says_so(run, other_chip):
    before = files_of(run)
    result, said = invoke("report", run, "--profile", other_chip)
    assert result.exit_code == 0, said
    assert "under the profile other chip" in said
    assert "Priced afterwards, from the stored counts, under the profile other chip; nothing was trained again" in said
    assert "The run itself was priced under 45nm: " in said
    assert files_of(run) == before
    own, other = (list(csv.DictReader((folder / "summary.csv").open())) for folder in (run, run / "under-other_chip"))
    for old, new in zip(own, other, strict=True):
        assert old.keys() == new.keys()
        unchanged = [name for name in old if "energy" not in name]
        assert {name: old[name] for name in unchanged} == {name: new[name] for name in unchanged}
    assert float(other[0]["energy_nominal_j"]) == pytest.approx(100 * float(own[0]["energy_nominal_j"]))


def test_several_profiles_are_compared_in_pictures(run, tmp_path):
    result, said = invoke("report", run, "--profile", "7nm", "--profile", "tx2", "--out", tmp_path)
    assert result.exit_code == 0, said
    assert {path.name for path in tmp_path.iterdir()} == {
        *("under-7nm", "under-tx2", "profile_ranking.png", "profile_split.png")
    }
    result, said = invoke("report", run, "--profile", "7nm", "--profile", "7nm")
    assert result.exit_code == 2 and "--profile: two of 7nm, 7nm have one name" in said


def test_a_wrong_price_is_told_before_anything_is_read(tmp_path):
    result, said = invoke("report", tmp_path / "no run", "--price", "cheap")
    assert result.exit_code == 2 and "--price" in said and "cheap" in said


def test_co2e_and_cost_are_there_when_they_are_given_only(run, tmp_path):
    given = ["--carbon-intensity", "300-500", "--price", "0.3", "--currency", "EUR", "--pue", "1.2"]
    result, said = invoke("report", run, "--out", tmp_path, *given)
    assert result.exit_code == 0, said
    assert "CO2e and cost" in said and "300 to 500 g/kWh" in said and "a PUE of 1.20" in said
    (first, *_) = csv.DictReader((tmp_path / "summary.csv").open())
    energy = {end: float(first[f"energy_{end}_j"]) / 3.6e6 for end in ("low", "high")}
    assert float(first["co2e_modelled_low_g"]) == pytest.approx(energy["low"] * 300 * 1.2)
    assert float(first["co2e_modelled_high_g"]) == pytest.approx(energy["high"] * 500 * 1.2)
    assert float(first["cost_modelled_high_EUR"]) == pytest.approx(energy["high"] * 0.3 * 1.2)
    assert not [name for name in first if "measured_" in name and name != "measured_j"]  # no sensor, no column
    tree = json.loads((tmp_path / "summary.json").read_text())
    assert tree["footprint"] == {"carbon_intensity": [300, 500], "price": [0.3], "currency": "EUR", "pue": [1.2]}
    assert tree["arms"][0]["seeds"][0]["co2e_modelled_low_g"] > 0
    assert "co2e" not in (run / "summary.csv").read_text() and "footprint" not in (run / "summary.json").read_text()


def test_measured_energy_has_columns_of_its_own(run, tmp_path):
    comparison = load_comparison(run)
    rows = {key: tuple(dataclasses.replace(row, measured_j=3.6e6) for row in of) for key, of in comparison.rows.items()}
    measured = dataclasses.replace(comparison, rows=rows, footprint=Footprint(carbon_intensity=(400.0,)))
    write_report(measured, tmp_path)
    (first, *_) = csv.DictReader((tmp_path / "summary.csv").open())
    charged = sum(len(rows[stage]) for stage in comparison.outcomes[0].stages)
    assert float(first["co2e_measured_nominal_g"]) == pytest.approx(400 * charged)
    assert float(first["co2e_modelled_nominal_g"]) == pytest.approx(float(first["energy_nominal_j"]) / 3.6e6 * 400)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "3nm"], "no hardware profile '3nm'"),
        (["--price", "0.3"], "price and currency belong together"),
        (["--carbon-intensity", "much"], "--carbon-intensity: 'much' is not a number or a range"),
    ],
)
def test_wrong_options_are_explained(run, tmp_path, arguments, message):
    result, said = invoke("report", run, "--out", tmp_path, *arguments)
    assert result.exit_code == 2 and message in said and "Traceback" not in said


def test_a_run_of_an_earlier_version_says_what_is_missing(run, tmp_path):
    result, said = invoke("report", tmp_path / "absent")
    assert result.exit_code == 2 and "there is no such folder" in said
    result, said = invoke("report", tmp_path)
    assert result.exit_code == 2 and "holds no comparison.json" in said and "lowprec-eb compare" in said
    old = tmp_path / "runs" / "old"
    comparison = load_comparison(run)
    save_comparison(comparison, old)
    for key, rows in comparison.rows.items():
        Ledger(tmp_path / "runs" / "stages" / key / "ledger.jsonl").extend(
            dataclasses.replace(row, counts=None) for row in rows
        )
    result, said = invoke("report", old)
    assert result.exit_code == 0, said
    result, said = invoke("report", old, "--profile", "45nm")
    assert result.exit_code == 2 and "holds no counts" in said and "ledger.jsonl" in said


@pytest.mark.parametrize("value", [math.nan, math.inf, 2.5])
def test_what_diverged_is_kept(run, tmp_path, value):
    comparison = load_comparison(run)
    event = Instability(1, None, "conv", "weight", "conv.weight", "nan", value, "stop")
    lost = DivergedOutcome(
        "lost", "full", 3, None, "fp32", "inherit", comparison.outcomes[0].stages, "train", event, "-"
    )
    for key in comparison.rows:
        shutil.copytree(run.parent / "stages" / key, tmp_path / "stages" / key)
    save_comparison(dataclasses.replace(comparison, diverged=(lost,)), tmp_path / "run")
    (again,) = load_comparison(tmp_path / "run").diverged
    assert repr(again) == repr(lost)


def test_a_saved_comparison_of_a_newer_version_or_a_damaged_one_is_named(run, tmp_path):
    text = (run / "comparison.json").read_text()
    (tmp_path / "comparison.json").write_text(text.replace('"schema": 1', '"schema": 2'))
    _, said = invoke("report", tmp_path)
    assert "has schema 2, and this version reads up to 1: update lowprec-eb" in said
    (tmp_path / "comparison.json").write_text(text[: len(text) // 2])
    result, said = invoke("report", tmp_path)
    assert result.exit_code == 2 and "not a saved comparison" in said


def test_a_comparison_takes_its_footprint_from_the_settings(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(CONFIG)
    plain, _ = invoke("compare", "--config", path, "--dry-run")
    priced, said = invoke("compare", "--config", path, "--dry-run", "--set", "footprint={carbon_intensity: [400]}")
    assert plain.exit_code == priced.exit_code == 0, said
    assert "CO2e" in said and "CO2e" not in plain.output and "cost of" not in said
    result, said = invoke("compare", "--config", path, "--dry-run", "--set", "footprint={pue: [1.1]}")
    assert result.exit_code == 2 and "give a carbon_intensity or a price" in said


def test_margin_confidence_and_baselines_may_be_others_and_the_report_says_so(run, tmp_path):
    given = ["--margin", "0.05", "--confidence", "0.9", "--baseline", "LL", "--baseline", "slimming fp32"]
    result, said = invoke("report", run, "--out", tmp_path, *given)
    assert result.exit_code == 0, said
    assert (
        "Tested afterwards with other settings than the run's: margin 5 points (the run: 1 point); confidence 90 % "
        "(the run: 95 %); baselines LL, slimming fp32 (the run: full fp32, slimming fp32). Nothing was trained again."
    ) in said
    tree = json.loads((tmp_path / "summary.json").read_text())
    assert (tree["margin"], tree["confidence"], tree["baselines"]) == (0.05, 0.9, ["LL", "slimming fp32"])
    assert tree["notes"][0].startswith("Tested afterwards")
    tested = {line["baseline"] for line in csv.DictReader((tmp_path / "baselines.csv").open())}
    assert tested == {"LL", "slimming fp32"}
    own = json.loads((run / "comparison.json").read_text())
    assert (own["margin"], own["confidence"], own["baselines"]) == (0.01, 0.95, [])
    _, said = invoke("report", run, "--out", tmp_path, "--margin", "0.01")
    assert "Tested afterwards" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--margin", "1"], "margin must be a fraction in [0, 1), got 1"),
        (["--confidence", "95"], "confidence must be between 0.5 and 1, such as 0.95, got 95"),
        (["--baseline", "full fp3"], "no arm is named 'full fp3'; did you mean 'full fp32'?"),
        (["--margin", "0.02", "--format", "paper"], "the paper's table tests nothing"),
    ],
)
def test_statistics_that_cannot_be_are_explained(run, tmp_path, arguments, message):
    result, said = invoke("report", run, "--out", tmp_path, *arguments)
    assert result.exit_code == 2 and message in said and not list(tmp_path.iterdir())
