"""`benchmarks/step_overhead.py` measures what it says; its figures themselves are not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    """The benchmarks' folder, importable as when one of them runs."""
    monkeypatch.syspath_prepend(BENCHMARKS)


def command(folder, *options):
    script = [sys.executable, str(BENCHMARKS / "step_overhead.py"), *options]
    files = ["--json", str(folder / "steps.json"), "--picture", str(folder / "steps.png")]
    return subprocess.run([*script, *files], capture_output=True, text=True, timeout=300)


def test_every_contender_is_measured(tmp_path):
    chosen = ("--recipes", "swalp8", "--recipes", "fp8", "--against", "plain torch", "--threads", "1")
    done = command(tmp_path, "--quick", "--rounds", "2", "--models", "mlp", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "steps.json").read_text())
    found = {(row["recipe"], row["by"]): row for row in figures["rows"]}
    assert list(found) == [("fp32", "fp32"), ("swalp8", "lowprec-eb"), ("fp8", "lowprec-eb"), ("swalp8", "plain torch")]
    assert found["fp32", "fp32"]["times_fp32_memory"] == 1
    assert found["swalp8", "plain torch"]["times_fp32_memory"] > found["swalp8", "lowprec-eb"]["times_fp32_memory"] > 1
    assert all(row["ms"] > 0 and 1 <= row["rounds"] <= 2 for row in found.values())
    assert figures["not_measured"] == figures["checks"] == []
    assert (tmp_path / "steps.png").read_bytes().startswith(b"\x89PNG")
    assert "| swalp8 |" in done.stdout


def test_an_unknown_recipe_is_refused_by_name(tmp_path):
    done = command(tmp_path, "--recipes", "bpf8")
    assert done.returncode == 2
    assert "did you mean 'bfp8'" in " ".join(done.stderr.replace("│", " ").split())


def test_peak_memory_has_what_stays_and_what_comes_and_goes(benchmarks):
    from step_memory import peak_bytes

    def build():
        kept = torch.empty(2**20)  # 4 MiB
        return lambda: kept.new_empty(3 * 2**20).add_(1)  # 12 MiB, freed behind each step

    assert peak_bytes(build, "cpu") == pytest.approx(16 * 2**20, rel=1e-3)


def test_bounds_hold_up_to_their_value(benchmarks):
    from step_report import Row, checks, set_bounds

    def row(threads, recipe, time, memory):
        own = Row("resnet20", 128, threads, "", False, recipe, "lowprec-eb")
        own.times_fp32_time, own.times_fp32_memory = time, memory
        return own

    rows = [row(2, "fp8", 1.2, 1.26), row(2, "int8", 1.31, 1.0), row(1, "int8", 9.0, 9.0), row(2, "mxfp4", 9.0, 9.0)]
    set_bounds(rows, "cpu")
    assert [check.holds for check in checks(rows)] == [True, False, False, True]


def test_the_transformers_and_residual_networks_have_their_sizes(benchmarks):
    from step_models import WORKLOADS

    sizes = {"resnet20": 272_474, "resnet18": 11_689_512, "vit": 5_362_762, "mlp": 1_863_690, "gpt": 3_454_464}
    built = {name: workload.build() for name, workload in WORKLOADS.items()}
    assert {name: sum(p.numel() for p in model.parameters()) for name, model in built.items()} == sizes
