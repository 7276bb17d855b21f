"""The main job: pipelines, shared stages, resuming, and the commands."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from energy_models import load_profile, settled, totals
from lowprec_eb import stage as stage_module
from lowprec_eb.arms import ArmSettings
from lowprec_eb.cli import app
from lowprec_eb.compare import gather, plan, results_of, run_arm
from lowprec_eb.config import load_config
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.report import summarise
from lowprec_eb.tasks import make_task
from lowprec_eb.tickets import TicketSettings
from lowprec_eb.training_lab import TrainingLab

ROOT = Path(__file__).parents[2]


class Silent:
    def begin(self, arm): ...

    def epoch(self, arm, stage, row, energy_j): ...

    def end(self, arm, outcome): ...


@dataclasses.dataclass
class SeedResult:
    outcomes: tuple
    rows: dict
    results: list


def run_seed(config, out, seed, observer):
    results = [run_arm(config, out, seed, arm, observer) for arm in config.pipelines]
    rows = {key: rows for result in results for key, rows in result.rows.items()}
    return SeedResult(tuple(r.outcome for r in results), rows, results)


def comparable(outcomes, rows):
    """Everything but seconds and measured energy."""
    plain = {
        key: [dataclasses.replace(row, duration_s=0.0, measured_j=None,
                                  key=dataclasses.replace(row.key, attempt=0, run="any"))
              for row in settled(of_stage)]
        for key, of_stage in rows.items()
    }  # fmt: skip
    return outcomes, plain


@pytest.fixture
def finished(tiny, tmp_path):
    return run_seed(tiny, tmp_path, 0, Silent())


def test_arms_share_stages_and_each_is_charged(tiny, tmp_path, finished):
    stages = {outcome.arm: outcome.stages for outcome in finished.outcomes}
    assert stages["slimming fp32"][0] == stages["one-shot"][0]  # the same penalised dense run
    assert stages["LF"][0] == stages["LL"][0] == stages["LL re-init"][0] == stages["random 8 bit"][0]
    assert stages["full fp32"][0] != stages["slimming fp32"][0]  # no penalty
    distinct = {key for keys in stages.values() for key in keys}
    assert {p.name for p in (tmp_path / "stages").iterdir()} == distinct == set(finished.rows)
    comparison = gather(tiny, finished.results)
    for arm in summarise(comparison):
        (seed,) = [o for o in finished.outcomes if o.arm == arm.arm]
        charged = totals(row for key in seed.stages for row in finished.rows[key])
        assert arm.energy.nominal_j == pytest.approx(charged.modelled.nominal_j)
        assert charged.modelled.nominal_j == pytest.approx(
            sum(part.modelled.nominal_j for part in charged.by_phase.values())
        )


def test_arms_that_were_gathered_join_those_run_since(tiny, finished):
    """Network slimming first and the early bird, whose epoch its mask history tells, only afterwards."""
    by_arm = {result.outcome.arm: result for result in finished.results}
    first = gather(tiny, [by_arm["slimming fp32"], by_arm["full fp32"]])
    assert first.mask_histories[0].ticket_epoch is None
    both = gather(tiny, [*results_of(first), by_arm["FF"]])
    assert [outcome.arm for outcome in both.outcomes] == ["full fp32", "slimming fp32", "FF"]
    assert both.mask_histories[0].ticket_epoch == by_arm["FF"].outcome.ticket.epoch
    assert both.rows == {key: rows for of in by_arm.values() if of.outcome in both.outcomes
                         for key, rows in of.rows.items()}  # fmt: skip
    assert (both.splits, both.notes) == (first.splits, first.notes)


def test_gathered_masks_find_their_arms_again(tiny, finished):
    """Where two arms of network slimming have one precision, their labels name them."""
    by_arm = {result.outcome.arm: result for result in finished.results}
    slimming = by_arm["slimming fp32"]
    other = dataclasses.replace(slimming.outcome, arm="slimming again", averaging="swa")
    twin = dataclasses.replace(slimming, outcome=other, dense_masks=~slimming.dense_masks)
    arms = (*tiny.pipelines, ArmSettings("slimming again", "network_slimming"))
    found = results_of(gather(dataclasses.replace(tiny, pipelines=arms), [slimming, twin]))
    assert [result.outcome.arm for result in found] == ["slimming fp32", "slimming again"]
    for before, after in zip((slimming, twin), found, strict=True):
        assert (before.dense_masks == after.dense_masks).all()


def test_every_phase_of_an_early_bird_is_in_the_ledger(finished):
    outcome = next(o for o in finished.outcomes if o.arm == "LL")
    rows = [row for key in outcome.stages for row in finished.rows[key]]
    epochs = {phase: [r.key.epoch for r in rows if r.key.phase == phase] for phase in ("search", "retrain", "detect")}
    found = outcome.ticket.epoch
    assert epochs["search"] == epochs["detect"] == list(range(found))
    assert epochs["retrain"] == list(range(found, 5))  # the schedule goes on
    assert [r.key.epoch for r in rows if r.key.phase == "prune"] == [found]
    assert all(row.modelled.nominal_j > 0 and row.measured_j is None for row in rows)
    search, retrain = (next(r for r in rows if r.key.phase == p) for p in ("search", "retrain"))
    assert sum(map(sum, (m.values() for m in retrain.macs.values()))) < sum(
        map(sum, (m.values() for m in search.macs.values()))
    )
    assert set(retrain.macs["output"]) == {"8x8"}


def test_reinit_and_slimming_train_the_whole_schedule(finished):
    for arm in ("LL re-init", "slimming fp32", "one-shot"):
        outcome = next(o for o in finished.outcomes if o.arm == arm)
        rows = finished.rows[outcome.stages[-1]]
        assert [r.key.epoch for r in rows if r.key.phase == "retrain"] == list(range(5))


def test_the_random_ticket_differs_in_the_mask_alone(finished):
    ticket, random = (next(o for o in finished.outcomes if o.arm == arm) for arm in ("LL", "random 8 bit"))
    assert ticket.stages[0] == random.stages[0] and ticket.stages[1] != random.stages[1]
    assert (ticket.channels_kept, ticket.forward_macs) == (random.channels_kept, random.forward_macs)
    cost = [totals(r for k in o.stages for r in finished.rows[k]).modelled for o in (ticket, random)]
    assert cost[0] == cost[1]


def test_a_search_without_a_ticket_says_so_at_its_deadline(tiny, tmp_path):
    strict = dataclasses.replace(
        tiny,
        ticket=dataclasses.replace(tiny.ticket, threshold=1e-9, window=3),
        pipelines=(ArmSettings("FF", "early_bird"),),
    )
    (outcome,) = run_seed(strict, tmp_path, 0, Silent()).outcomes
    assert not outcome.ticket.on_time and outcome.ticket.epoch == 3 and outcome.ticket.distance > 0


def test_a_finished_run_is_read_and_not_run_again(tiny, tmp_path, finished, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a finished stage was trained again")

    monkeypatch.setattr(stage_module, "train", refuse)
    again = run_seed(tiny, tmp_path, 0, Silent())
    assert comparable(again.outcomes, again.rows) == comparable(finished.outcomes, finished.rows)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["ledger", "checkpoint", "rename"])
def test_killed_at_any_moment_the_result_is_the_same(tiny, tmp_path, finished, monkeypatch, moment):
    """A kill before, between and inside the writes of every epoch in turn."""
    config = dataclasses.replace(tiny, pipelines=(tiny.pipelines[0], tiny.pipelines[5], tiny.pipelines[7]))
    target = {
        "ledger": (stage_module.Ledger, "append"),
        "checkpoint": (stage_module.checkpoints, "save"),
        "rename": (os, "replace"),
    }[moment]
    real, kills = getattr(*target), 0
    for survive in range(1, 40, 3):
        left = survive

        def mortal(*args, **kwargs):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*args, **kwargs)

        monkeypatch.setattr(*target, mortal)
        try:
            run_seed(config, tmp_path / "other", 0, Silent())
        except Killed:
            kills += 1
        finally:
            monkeypatch.setattr(*target, real)
    result = run_seed(config, tmp_path / "other", 0, Silent())
    wanted = tuple(o for o in finished.outcomes if o.arm in {a.name for a in config.pipelines})
    rows = {key: finished.rows[key] for outcome in wanted for key in outcome.stages}
    assert kills >= 3
    assert comparable(result.outcomes, result.rows) == comparable(wanted, rows)


def write_config(tmp_path, seeds="[0, 1]", workers=2, epochs=5):
    path = tmp_path / "tiny.yaml"
    path.write_text(f"""
name: tiny
task: {{max_train: 150, max_test: 60, batch_size: 32}}
model: {{widths: [6, M, 8]}}
training: {{epochs: {epochs}, learning_rate: 0.05}}
ticket: {{ratio: 0.4, window: 2, threshold: 0.3, deadline: 3}}
seeds: {seeds}
workers: {workers}
pipelines:
  - {{name: full fp32, pipeline: full}}
  - {{name: slimming fp32, pipeline: network_slimming}}
  - {{name: FF, pipeline: early_bird}}
  - {{name: LL, pipeline: early_bird, precision: bfp8}}
""")
    return path


def without_time(tree):
    if isinstance(tree, dict):
        return {k: without_time(v) for k, v in tree.items() if "duration" not in k and "measured" not in k}
    return [without_time(v) for v in tree] if isinstance(tree, list) else tree


def summary(out):
    (path,) = out.glob("tiny-*/summary.json")
    return without_time(json.loads(path.read_text()))


def command(config, out):
    script = ROOT / "benchmarks" / "compare_energy.py"
    return [sys.executable, str(script), "--config", str(config), "--out", str(out)]


def test_kill_9_and_the_same_command_again_give_the_same_table(tmp_path):
    config = write_config(tmp_path, epochs=8)
    whole = subprocess.run(command(config, tmp_path / "whole"), capture_output=True, text=True, timeout=300)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    killed = subprocess.Popen(command(config, tmp_path / "killed"), stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("stages/*/state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not list((tmp_path / "killed").glob("tiny-*/summary.json"))
    again = subprocess.run(command(config, tmp_path / "killed"), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
    assert summary(tmp_path / "killed") == summary(tmp_path / "whole")
    for name in ("energy_accuracy", "energy_phases", "epochs", "mask_distance"):
        (picture,) = (tmp_path / "killed").glob(f"tiny-*/{name}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")


def invoke(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_the_command_runs_in_one_process_too_and_seeds_do_not_depend_on_workers(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    result = invoke("--config", write_config(tmp_path, workers=1), "--out", one)
    assert result.exit_code == 0, result.output
    assert "[8/8] seed 1, LL: test" in result.output
    assert invoke("--config", write_config(tmp_path, workers=2), "--out", two).exit_code == 0
    assert summary(one) == summary(two)


@pytest.mark.parametrize("precision", ["int8", "fp8", "mxfp8", "mxfp4", "int4"])
def test_every_recipe_has_a_price(tmp_path, precision):
    settings = "--dry-run", "--set", f"pipelines.0.precision={precision}"
    result = invoke("--config", write_config(tmp_path), "--out", tmp_path / "out", *settings)
    assert result.exit_code == 0 and precision in result.output, result.output


def test_dry_run_predicts_what_the_run_is_charged(tiny, tmp_path, finished):
    """Exact where nothing is drawn; an early bird's prediction is the deadline's."""
    predicted = {arm.arm: arm for arm in summarise(plan(tiny))}
    charged = {arm.arm: arm for arm in summarise(gather(tiny, finished.results))}
    full = predicted["full fp32"]
    assert full.energy.nominal_j == pytest.approx(charged["full fp32"].energy.nominal_j)
    assert full.training_macs == charged["full fp32"].training_macs
    assert 0 < predicted["LL"].energy.nominal_j < full.energy.nominal_j


def test_dry_run_trains_nothing(tmp_path):
    result = invoke("--config", write_config(tmp_path), "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "out").exists()
    assert "slimming fp32" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "training.epohcs=3"], "did you mean 'epochs'"),
        (["--set", "training.epochs=three"], "training.epochs"),
        (["--set", "training.epochs=3"], "must be below training.epochs"),
        (["--set", "pipelines.0.precision=fp9"], "pipelines.0.precision"),
        (["--set", "profile=28nm"], "28nm"),
        (["--data", "cifar10"], "needs a data root (--data-root)"),
        (["--data", "cifar10", "--data-root", "/nowhere"], "/nowhere"),
        (["--data", "imagenet"], "imagenet"),
        (["--backend", "cuda"], "backend"),
        (["--set", "nonsense"], "key.key=value"),
        pytest.param(
            ["--device", "cuda"],
            "torch sees no GPU here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (["--set", "model.widths=[4, M, M, M, M]"], "poolings"),
    ],
)
def test_bad_input_stops_with_a_clear_line(tmp_path, arguments, message):
    result = invoke("--config", write_config(tmp_path), "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ") and "Traceback" not in result.output
    assert not (tmp_path / "out" / "stages").exists()


@pytest.mark.parametrize("name", ["state.safetensors", "ledger.jsonl"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, name):
    config = write_config(tmp_path, seeds="[0]", workers=1)
    assert invoke("--config", config, "--out", tmp_path / "out").exit_code == 0
    (path, *_) = sorted((tmp_path / "out").glob(f"stages/*/{name}"))
    path.write_bytes(path.read_bytes()[:300] + b"\x00\n")
    result = invoke("--config", config, "--out", tmp_path / "out")
    output = result.output.replace("\n", "")
    assert result.exit_code == 2 and path.name in output and "delete" in output and "Traceback" not in output
    path.unlink()
    if name == "state.safetensors":  # the stage runs again from its start, as new attempts in its ledger
        assert invoke("--config", config, "--out", tmp_path / "out").exit_code == 0


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    result = invoke("--config", write_config(tmp_path), "--out", tmp_path / "file")
    assert result.exit_code == 2 and "file" in result.output and "Traceback" not in result.output


def test_one_lab_serves_arms_that_share_a_search_without_mixing_them(tiny, tmp_path, finished):
    """Two arms begin with the same searched weights and momentum in one process; each must find them untouched."""
    task, profile = make_task(tiny.task, 0), load_profile(tiny.profile)
    lab = TrainingLab(tiny.lab, task, profile, 0, tmp_path / "one-lab", "run")
    for name in ("LL", "random 8 bit"):
        arm = next(arm for arm in tiny.pipelines if arm.name == name)
        alone = next(outcome for outcome in finished.outcomes if outcome.arm == name)
        assert PIPELINES[arm.pipeline](lab, arm) == alone


@pytest.mark.compiler
@pytest.mark.skipif(
    shutil.which("ninja") is None or shutil.which("c++") is None,
    reason="qtorch's kernels need ninja and a C++ compiler",
)
def test_the_main_job_runs_through_qtorchs_kernels(tiny, tmp_path):
    arm = next(arm for arm in tiny.pipelines if arm.name == "LL")
    ours = run_arm(tiny, tmp_path, 0, arm, Silent())
    theirs = run_arm(dataclasses.replace(tiny, backend="qtorch"), tmp_path, 0, arm, Silent())
    assert set(ours.rows).isdisjoint(theirs.rows)
    macs = [totals(row for rows in r.rows.values() for row in rows if row.key.epoch == 0).macs for r in (ours, theirs)]
    assert macs[0] == macs[1]


def test_a_missing_config_is_named(tmp_path):
    result = invoke("--config", tmp_path / "none.yaml")
    assert result.exit_code == 2 and "none.yaml" in result.output.replace("\n", "")


def test_a_diverged_stage_is_an_error_and_not_a_row(tmp_path):
    config = write_config(tmp_path, seeds="[0]", workers=1)
    result = invoke("--config", config, "--out", tmp_path / "out", "--set", "training.learning_rate=1e30")
    assert result.exit_code == 2 and "training diverged" in result.output


@pytest.mark.parametrize("name", ["digits", "cifar10_small"])
def test_shipped_configs_are_valid(name):
    config = load_config(ROOT / "configs" / f"{name}.yaml")
    assert {arm.pipeline for arm in config.pipelines} >= {"full", "network_slimming", "early_bird", "random_ticket"}


def test_run_names_follow_the_settings_and_not_the_workers(tiny):
    assert dataclasses.replace(tiny, workers=2).run_name == tiny.run_name
    assert dataclasses.replace(tiny, seeds=(0,)).run_name != tiny.run_name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipelines": ()}, "at least one arm"),
        ({"seeds": (0, 0)}, "seeds must be different"),
        ({"margin": 1.5}, "margin must be in"),
        ({"confidence": 0.5}, "confidence must be between 0.5 and 1"),
        ({"baselines": ("ful",)}, "baselines: no arm is named 'ful'"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"name": "a/b"}, "name must be a word"),
        ({"seeds": (2**31,)}, "seeds must be different whole numbers"),
        ({"ticket": TicketSettings(window=4, deadline=3)}, "cannot fire before"),
        ({"pipelines": (ArmSettings("a", "full"), ArmSettings("a", "full"))}, "two arms are named 'a'"),
    ],
)
def test_impossible_configs_are_explained(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny, **changes)


def test_a_search_precision_needs_a_search():
    with pytest.raises(ValueError, match="is for early_bird and random_ticket and final_ticket, not 'full'"):
        ArmSettings("a", "full", search_precision="bfp8")


def test_no_file_of_a_run_is_a_pickle(tmp_path, finished):
    files = [path for path in (tmp_path / "stages").rglob("*") if path.is_file()]
    names = {path.name for path in files if path.parent.name != "counts"}
    assert names <= {"state.safetensors", "ledger.jsonl", "stage.json", "lock"}
    for path in files:
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError)):
            pickle.loads(path.read_bytes())


def test_a_stage_keeps_the_name_of_the_run_that_began_it(tiny, tmp_path, finished):
    renamed = dataclasses.replace(tiny, name="later")
    again = run_seed(renamed, tmp_path, 0, Silent())
    runs = {row.key.run for rows in again.rows.values() for row in rows}
    assert runs == {tiny.run_name}


def test_recorded_masks_that_only_their_arms_tell_apart_are_named_after_them(tiny, finished):
    """Such as two network slimming arms, one of them with averaged weights."""
    result = next(r for r in finished.results if r.dense_masks is not None and r.outcome.precision == "fp32")
    again = dataclasses.replace(result, outcome=dataclasses.replace(result.outcome, arm="once more"))
    lower = dataclasses.replace(result, outcome=dataclasses.replace(result.outcome, arm="lower", ratio=0.25))
    arms = tuple(ArmSettings(name, "network_slimming") for name in (result.outcome.arm, "once more", "lower"))
    config = dataclasses.replace(tiny, pipelines=arms)
    labels = [of.label for of in gather(config, [result, again, lower]).mask_histories]
    assert labels == [f"{result.outcome.arm}, fp32", "once more, fp32", "fp32, ratio 0.25"]
