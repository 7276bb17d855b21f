"""`benchmarks/energy_sensors.py`: without a sensor it says so, with one it writes what the sensor showed."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from energy_models.calibration_windows import read_windows
from energy_models.meters import rapl

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RANGE_UJ = 262_143_328_850


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """The folder in which sensors are looked for; it is not there yet."""
    init, root = rapl.Rapl.__init__, tmp_path / "powercap"
    monkeypatch.setattr(rapl.Rapl, "__init__", lambda self: init(self, root))
    return root


@pytest.fixture
def check(tmp_path, monkeypatch, powercap):
    """Run the checks; returns what they printed and what they wrote."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import energy_sensors

    monkeypatch.setattr(energy_sensors, "LENGTHS_S", (0.0001, 0.01))
    monkeypatch.setattr(energy_sensors, "PERIODS_S", (0.01,))
    app, out = typer.Typer(), tmp_path / "out.json"
    app.command()(energy_sensors.main)

    def run(*options):
        quick = ["--device", "cpu", "--quick", "--seconds", "0.02", "--json", str(out)]
        done = CliRunner().invoke(app, [*quick, *map(str, options)])
        assert done.exit_code == 0, done.output
        return done.output, json.loads(out.read_text())

    return run


def test_without_a_sensor(check, tmp_path):
    output, found = check("--windows", tmp_path / "windows.jsonl")
    assert output.startswith("no sensor: no RAPL sensor")
    assert found["no_sensor"].startswith("no RAPL sensor")
    assert found["matmul"]["energy_j"] is None
    assert found["matmul"]["duration_s"] >= 0.02
    assert "window_lengths" not in found
    assert not (tmp_path / "windows.jsonl").exists()


def test_with_a_sensor(check, tmp_path, powercap, monkeypatch):
    """A counter that rises by a joule at every read."""
    domain = powercap / "intel-rapl:0"
    domain.mkdir(parents=True)
    (domain / "name").write_text("package-0")
    energy_uj = 0

    def read_uj(path):
        nonlocal energy_uj
        if path.name == "max_energy_range_uj":
            return RANGE_UJ
        energy_uj += 1_000_000
        return energy_uj

    monkeypatch.setattr(rapl, "_read_uj", read_uj)
    _, found = check("--windows", tmp_path / "windows.jsonl")
    assert found["matmul"]["energy_j"] == 1.0
    assert "no_sensor" not in found
    short, long = found["window_lengths"]
    assert len(short["powers_w"]) == 5
    assert all(power > 0 for power in long["powers_w"])
    kept = read_windows(tmp_path / "windows.jsonl")
    assert kept.header.profile == "45nm"
    assert len(kept.windows) == 8
    assert all(window.predicted_j["dram"] > 0 for window in kept.windows)
    assert found["not_measured"] == []
