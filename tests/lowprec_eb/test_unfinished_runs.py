"""A comparison that was stopped half-way can be reported as far as it came."""

import dataclasses
import json

import pytest
from typer.testing import CliRunner

from lowprec_eb.cli import app
from lowprec_eb.compare import run_folder
from lowprec_eb.config import load_config
from lowprec_eb.report import find, sentences
from lowprec_eb.report.saved import load_comparison
from lowprec_eb.workers import compare

CONFIG = """
name: half
task: {data: digits, batch_size: 64, max_train: 96, max_test: 32}
model: {widths: [4, M, 4]}
training: {epochs: 4}
ticket: {deadline: 3, window: 2}
seeds: [0, 1]
workers: WORKERS
pipelines:
  - {name: full, pipeline: full}
  - {name: in 8 bits, pipeline: full, precision: bfp8}
"""


class Stopped(Exception):
    """Somebody pulled the plug."""


class StopsAfter:
    """An observer that stops the run when ``arms`` have ended."""

    def __init__(self, arms):
        self.left = arms

    def begin(self, arm): ...

    def epoch(self, arm, stage, row, energy_j): ...

    def end(self, arm, outcome):
        if not self.left:
            raise Stopped
        self.left -= 1


def loaded(tmp_path, workers):
    path = tmp_path / "half.yaml"
    path.write_text(CONFIG.replace("WORKERS", str(workers)))
    return load_config(path, [])


def test_what_ended_before_a_stop_can_be_reported(tmp_path):
    config = loaded(tmp_path, workers=1)
    with pytest.raises(Stopped):
        compare(config, tmp_path / "runs", StopsAfter(3))
    folder = run_folder(config, tmp_path / "runs")
    partial = load_comparison(folder)
    assert [(of.arm, of.seed) for of in partial.outcomes] == [("full", 0), ("full", 1), ("in 8 bits", 0)]
    assert partial.missing == (("in 8 bits", 1),)
    result = CliRunner().invoke(app, ["report", str(folder)])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "half, not finished" in said
    assert "Not finished: 3 of 4 runs have ended. Missing: in 8 bits (seed 1)." in said
    assert json.loads((folder / "summary.json").read_text())["missing"] == [{"arm": "in 8 bits", "seed": 1}]


def test_a_baseline_that_has_not_ended_yet_is_named(tmp_path):
    config = dataclasses.replace(loaded(tmp_path, workers=1), baselines=("in 8 bits", "full"))
    with pytest.raises(Stopped):
        compare(config, tmp_path / "runs", StopsAfter(2))
    partial = load_comparison(run_folder(config, tmp_path / "runs"))
    assert partial.baselines == config.baselines
    assert "Nothing was tested against in 8 bits: no seed of it has ended." in sentences(partial)
    assert [arm.arm for arm in find(partial).baselines] == ["full"]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_note_is_gone_when_all_have_ended(tmp_path, workers):
    config = loaded(tmp_path, workers)
    whole = compare(config, tmp_path / "runs", StopsAfter(4))
    saved = load_comparison(run_folder(config, tmp_path / "runs"))
    assert len(saved.outcomes) == 4 and saved.outcomes == whole.outcomes
    assert saved.missing == whole.missing == ()
    assert not any("Not finished" in line for line in sentences(saved))
