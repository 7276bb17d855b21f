"""`lowprec-eb calibrate`: what it prints, writes and refuses, on the synthetic windows of the examples."""

import json
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from typer.testing import CliRunner

from energy_models import CountStore, Ledger, LedgerKey, LedgerRow, count, estimate, load_profile
from lowprec_eb.cli import app

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "synthetic_windows.jsonl"


def invoke(*arguments):
    return CliRunner().invoke(app, ["calibrate", *map(str, arguments)])


def words(text):
    return " ".join(text.split())


def edited(path, **header):
    """The example with another header."""
    first, *rest = EXAMPLE.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | header), *rest]) + "\n")
    return path


def test_a_new_profile_that_says_where_it_comes_from(tmp_path):
    out = tmp_path / "mine.yaml"
    result = invoke("45nm", EXAMPLE, "--out", out)
    assert result.exit_code == 0, result.output
    old, new = load_profile("45nm"), load_profile(out)
    assert new.name == "mine"
    assert "calibrated on a machine that does not exist" in new.description
    said = new.calibration
    assert said["profile"] == "45nm"
    assert said["windows"] == "9 windows of 9 kinds of work"
    assert said["made"].startswith("synthetic")
    assert "not seen" in said["error_held_out"]
    assert said["not_in_profile"].startswith("static ")
    factors = {}
    for text in said["factors"].split("; "):
        name, value, *_ = text.split()
        factors[name] = float(value)
    assert factors == pytest.approx({"compute": 5.0, "memory": 0.6, "static": 4.0}, rel=0.1)
    for place, constant in new.constants().items():
        before = old.constants()[place]
        factor = factors["compute"] if place.startswith("arithmetic") else factors["memory"]
        if place.endswith("capacity") or place == "operand_reuse":
            assert constant == before
            continue
        assert constant.value == pytest.approx(before.value * factor, rel=1e-3)
        assert constant.low < constant.value < constant.high
        assert constant.source.startswith(before.source)
        assert "calibration" in constant.source
    assert "factor static" in words(result.output)
    assert "1 MAC/byte at 100%, 8 s" in words(result.output)


@pytest.fixture
def chip(tmp_path):
    """A profile with units of its own and static power."""
    document = YAML(typ="safe").load((ROOT / "energy_models/profiles/45nm.yaml").read_text())
    source = "made up"
    document["memory"][0]["bandwidth"] = {"value": 60, "unit": "GB/s", "source": source}
    document["units"] = {"fp32": {"energy": {"value": 4.6, "unit": "pJ", "source": source}}}
    document["units"]["fp32"]["rate"] = {"value": 0.6, "unit": "TMAC/s", "source": source}
    document["chip"] = {
        "static_power": {"value": 1, "unit": "W", "low": 0.5, "high": 9, "source": source},
        "utilisation": {"value": 0.5, "unit": "1", "source": source},
    }
    del document["arithmetic"]
    with (tmp_path / "chip.yaml").open("w") as file:
        YAML().dump(document | {"name": "chip"}, file)
    return tmp_path / "chip.yaml"


def test_static_power_of_a_chip_is_what_was_fitted(tmp_path, chip):
    windows = edited(tmp_path / "windows.jsonl", profile="chip", made="")
    result = invoke(chip, windows, "--out", tmp_path / "mine.yaml")
    assert result.exit_code == 0, result.output
    new = load_profile(tmp_path / "mine.yaml")
    assert new.chip.static_power.value == pytest.approx(4.0, rel=0.1)
    assert 3 < new.chip.static_power.low < 4 < new.chip.static_power.high < 5
    assert new.chip.utilisation == load_profile(chip).chip.utilisation
    assert new.units["fp32"].energy.value == pytest.approx(4.6 * 5.0, rel=0.1)
    assert new.units["fp32"].rate.value == 0.6
    assert not {"made", "not_in_profile", "warnings"} & set(new.calibration)


def test_factors_of_ones_own(tmp_path):
    out = tmp_path / "mine.yaml"
    result = invoke("45nm", EXAMPLE, "--out", out, "--factor", "all=compute,dram,buffer", "--factor", "idle=seconds")
    assert result.exit_code == 0, result.output
    assert "factor idle" in words(result.output)
    assert "all " in load_profile(out).calibration["factors"]


def test_what_the_windows_do_not_determine_is_not_written(tmp_path, chip):
    full_speed = [line for line in EXAMPLE.read_text().splitlines() if "at 100%" in line]
    for profile in ("45nm", "chip"):
        header = edited(tmp_path / "windows.jsonl", profile=profile).read_text().splitlines()[0]
        (tmp_path / profile).write_text("\n".join([header, *full_speed]) + "\n")
    result = invoke("45nm", tmp_path / "45nm", "--out", tmp_path / "mine.yaml")  # it has no static power
    assert result.exit_code == 0, result.output
    assert "warning: factor static is badly known" in words(result.output)
    result = invoke(chip, tmp_path / "chip", "--out", tmp_path / "other.yaml")
    assert result.exit_code == 2
    assert "may as well be 0" in words(result.output)
    assert not (tmp_path / "other.yaml").exists()


def test_two_factors_for_one_constant(tmp_path):
    header, *lines = EXAMPLE.read_text().splitlines()
    windows = [json.loads(line) for line in lines]
    for number, window in enumerate(windows):
        window["predicted_j"]["other"] = window["measured_j"] * number / 1000
    (tmp_path / "windows.jsonl").write_text("\n".join([header, *map(json.dumps, windows)]) + "\n")
    factors = ["--factor", "compute=compute,dram,buffer", "--factor", "other=other"]
    result = invoke("45nm", tmp_path / "windows.jsonl", "--out", tmp_path / "mine.yaml", *factors)
    assert "factors compute and other both scale arithmetic.int_add_8" in words(result.output)


def test_the_worked_example_of_the_docs(tmp_path):
    page = (ROOT / "docs" / "measuring.md").read_text()
    shown = page.partition("$ lowprec-eb calibrate")[2].partition("```")[0].splitlines()[1:]
    output = invoke("45nm", EXAMPLE, "--out", tmp_path / "mine.yaml").output.splitlines()
    assert shown
    assert [line.rstrip() for line in output[: len(shown)]] == shown


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--factor", "memory"], "expected NAME=COMPONENT"),
        (["--factor", "a=dram", "--factor", "a=buffer"], "--factor a is given twice"),
        (["--factor", "a=gpu"], "has no component 'gpu'"),
        (["--out", "mine.json"], "a profile is a .yaml file"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    result = invoke("45nm", EXAMPLE, "--out", "mine.yaml", *arguments)
    assert result.exit_code == 2
    assert reason in words(result.output)
    assert not list(tmp_path.iterdir())


def test_files_that_do_not_fit(tmp_path):
    out = tmp_path / "mine.yaml"
    result = invoke("45nm", edited(tmp_path / "windows.jsonl", profile="7nm"), "--out", out)
    assert "its predictions are of the profile '7nm'" in words(result.output)
    (tmp_path / "empty").mkdir()
    result = invoke("45nm", tmp_path / "empty", "--out", out)
    assert "neither a file of windows nor a folder with ledgers" in words(result.output)
    assert not out.exists()
    out.write_text("mine")
    result = invoke("45nm", EXAMPLE, "--out", out)
    assert result.exit_code == 2
    assert out.read_text() == "mine"


def test_ledgers_of_a_run(tmp_path):
    """Epochs whose energy is a known multiple of what the model says, and a power. The run had another profile."""
    price, own = load_profile("45nm"), load_profile("7nm")
    for number, (width, bits) in enumerate([(8, 2), (64, 2), (512, 2), (512, 64)]):
        layer = torch.nn.Linear(width, width)
        counts = count(layer, torch.zeros(bits, width)) * 10**6
        modelled = estimate(counts, price)
        duration_s = 2.0 + number
        measured_j = 3 * (modelled.compute_j + modelled.other_j).nominal + 2 * modelled.memory_j.nominal
        measured_j += 0.5 * duration_s
        key, folder = LedgerKey("run", f"stage{number}", "train", 0), tmp_path / f"stage{number}"
        kept = {CountStore(folder / "counts").put(counts): 1}
        row = LedgerRow.from_counts(key, counts, estimate(counts, own), bits, measured_j, duration_s, {}, kept=kept)
        Ledger(folder / "ledger.jsonl").append(row)
    result = invoke("45nm", tmp_path, "--out", tmp_path / "mine.yaml")
    assert "say it with --device" in words(result.output)
    result = invoke("45nm", tmp_path, "--out", tmp_path / "mine.yaml", "--device", "my board")
    assert result.exit_code == 0, result.output
    said = load_profile(tmp_path / "mine.yaml").calibration
    assert said["device"] == "my board"
    assert said["factors"].startswith("compute 3 (3 to 3); memory 2 (2 to 2); static 0.5 W (0.5 to 0.5)")
    result = invoke("45nm", tmp_path, "--out", tmp_path / "long.yaml", "--device", "my board", "--min-seconds", "60")
    assert "no measured windows" in words(result.output)


def test_nothing_is_written_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("lowprec_eb.calibrate_command.calibrated_text", lambda *args, **kwargs: "name: broken\n")
    out = tmp_path / "mine.yaml"
    result = invoke("45nm", EXAMPLE, "--out", out)
    assert result.exit_code == 2 and not list(tmp_path.iterdir())
