"""`benchmarks/training_rate.py` measures what it says; its figures themselves are not tested."""

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


def test_every_contender_is_measured(tmp_path):
    files = ["--json", str(tmp_path / "rate.json"), "--picture", str(tmp_path / "rate.png")]
    chosen = ("--quick", "--rounds", "2", "--models", "vgg_digits", *files)
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "training_rate.py"), *chosen], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "rate.json").read_text())
    (row,) = figures["rows"]
    assert {name: len(took) for name, took in row["steps_s"].items()} == {"bare": 2, "fp32": 2, "bfp8": 2}
    assert all(rate > 0 for rate in row["rates"].values())
    assert row["images"] == 1078
    assert row["end_ms"]["fp32"] > row["end_ms"]["bare"] == 0
    assert figures["machine"]["threads"] == 1
    assert (tmp_path / "rate.png").read_bytes().startswith(b"\x89PNG")


def test_ratios_are_of_rates_of_the_same_round(benchmarks):
    from rate_report import Row, checks

    row = Row("m", "a model", 64, 640, True, False)
    row.steps_s = {"bare": [1.0, 2.0, 4.0], "fp32": [2.0, 2.5, 4.0], "bfp8": [4.0, 5.0, 4.0]}
    row.end_s = {"bare": [0.0] * 3, "fp32": [2.0, 0.0, 4.0], "bfp8": [0.0] * 3}
    row.summarised()
    assert row.rates == {"bare": 320, "fp32": 256, "bfp8": 160}
    assert row.ratios["loop / bare"][1] == 0.8
    assert row.ratios["loop, whole epoch / bare"] == (0.375, 0.5, 0.65)
    assert row.ratios["bfp8 / fp32"] == (0.5, 0.5, 0.75)
    assert [check.holds for check in checks([row], "cpu")] == [False, False]
    assert [check.holds for check in checks([row], "cuda")] == [True, False]


def test_both_loops_train_the_same_model_on_the_same_number_of_images(benchmarks, tmp_path):
    from rate_contenders import CASES, BareLoop, OwnLoop, Setting, images_of

    case, setting = CASES["vgg_digits"], Setting("cpu", channels_last=True)
    task = images_of(case, setting)
    bare, own = BareLoop(case, setting, task), OwnLoop(case, setting, task, "fp32", tmp_path)
    for one, other in zip(bare.model.parameters(), own.run.model.parameters(), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()
    seen = []
    bare.forward.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    bare(), own()
    sizes = task.batch_sizes("train")
    assert sorted(seen) == sorted(size for size, times in sizes.items() for _ in range(times))
    assert own.run.position.next_epoch == 1 and own.run.rows[0].samples == sum(seen)


def test_images_that_are_not_digits_are_cropped_and_flipped(benchmarks):
    from rate_contenders import CASES, Setting, images_of

    task = images_of(CASES["preresnet20_w8"], Setting("cpu", channels_last=True))
    assert (task.augment, task.samples["train"], task.input_shape) == ("crop_flip", 8 * 128, (3, 32, 32))
