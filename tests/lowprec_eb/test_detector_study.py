"""The study of detectors: figures of recorded runs, by hand; runs that are recorded once; pictures and the script."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lowprec_eb import detector_study, strict_config
from lowprec_eb.detector_study import StudySettings, load_run, record
from lowprec_eb.models import VGGSettings
from lowprec_eb.report.study_pictures import firing_times, mask_matrices, settling_curves, threshold_curves
from lowprec_eb.tasks import TaskSettings
from lowprec_eb.tickets import DETECTORS, ScoreHistory, replay
from lowprec_eb.tickets.masks import Layout
from lowprec_eb.tickets.verdicts import (
    Variant,
    closeness,
    epoch_masks,
    epoch_variants,
    settled_after,
    step_variants,
    to_final,
    verdict,
    verdicts,
)
from lowprec_eb.train import TrainSettings

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


def bits(text):
    return torch.tensor([character == "1" for character in text])


def history(*rows, steps_per_epoch=1):
    """Two layers of four channels; a row is the order of the channels, the best first."""
    scores = torch.zeros(len(rows), 8)
    for row, order in enumerate(rows):
        for place, channel in enumerate(order):
            scores[row, int(channel)] = 8 - place
    return ScoreHistory(("a", "b"), (4, 4), steps_per_epoch, 0, tuple(range(1, len(rows) + 1)), scores)


# ---- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "share", "by_layer", "by_ratio", "widths"),
    [
        ("11001100", "11001100", 0, 0, 0, 1),
        ("11001100", "10101010", 4 / 8, 1, 1, 1),
        ("11001100", "11101000", 2 / 8, 1 / 2, 1 / 2, 3 / 4),
        (
            "11101000",
            "01111000",
            2 / 8,
            2 / 3,
            1 / 2,
            1,
        ),  # full layers differ less by chance
    ],
)
def test_closeness_by_hand(a, b, share, by_layer, by_ratio, widths):
    of = closeness(bits(a), bits(b), Layout(("a", "b"), (4, 4)))
    assert (of.share, of.by_layer, of.by_ratio, of.widths) == pytest.approx((share, by_layer, by_ratio, widths))


def test_masks_of_two_ratios_are_refused():
    with pytest.raises(ValueError, match="these keep 4 and 3 channels"):
        closeness(bits("11001100"), bits("11001000"), Layout(("a", "b"), (4, 4)))


def test_layers_that_keep_all_cannot_differ():
    assert closeness(bits("1111"), bits("1111"), Layout(("a",), (4,))).by_layer == 0


def test_settling_is_measured_against_the_last_mask():
    of = history("04261537", "01452367", "04152637", "04152637")
    assert epoch_masks(of, 0.5)[-1].tolist() == bits("11001100").tolist()
    assert [round(c.by_layer, 3) for c in to_final(of, 0.5)] == [1, 0, 0, 0]
    assert settled_after(of, 0.5) == 2 and settled_after(of, 0.5, within=1) == 1
    back = history("04152637", "04261537", "04152637")
    assert settled_after(back, 0.5) == 3  # it was there, and left again


def test_a_verdict_is_that_of_a_replay():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(24, 40, generator=generator).cumsum(0)
    run = ScoreHistory(("a", "b"), (24, 16), 2, 0, tuple(range(1, 25)), scores)
    for variant in (*epoch_variants(), *step_variants(1, 2, 0.5)):
        of = verdict(run, variant, 0.5)
        replayed = replay(run, variant.detector(0.5), variant.every)
        look = replayed.fired
        assert of.fired == (None if look is None else look.step / 2)
        needed = DETECTORS[variant.rule](variant.window).memory
        assert of.earliest == (needed if variant.every is None else needed / 2)
        if look is None:
            assert of.mask is None and of.final is None
            continue
        assert of.fired >= of.earliest
        flat = torch.cat(list(replayed.ticket.masks.values()))
        assert torch.equal(of.mask, flat)
        assert of.final.share == pytest.approx(float((flat != epoch_masks(run, 0.5)[-1]).float().mean()))
    short = replace(run, steps=run.steps[:4], scores=run.scores[:4])
    assert verdict(short, Variant("window"), 0.5).earliest is None
    assert [(of.variant.rule, of.ratio) for of in verdicts(short, [Variant("single")], (0.3, 0.5))] == [
        ("single", 0.3), ("single", 0.5)
    ]  # fmt: skip


def test_looks_inside_epochs_span_the_same_time():
    assert {v.window for v in step_variants(25, 101, 0.9)} == {20} and {v.window for v in epoch_variants()} == {5}
    assert {v.window for v in step_variants(1000, 101, 0.9)} == {2}
    assert len({(v.rule, v.normalised) for v in epoch_variants()}) == 3 * (len(DETECTORS) - 1) + 1


# ---- recording ---------------------------------------------------------------------------------------------------

TINY = StudySettings(
    name="tiny",
    task=TaskSettings(data="digits", max_train=120, max_test=40),
    model=VGGSettings(widths=(4, "M", 8)),
    training=TrainSettings(epochs=3),
    record_every=1,
    check_every=2,
)


def test_a_run_is_recorded_once(tmp_path, monkeypatch):
    record(TINY, "fp32", 0, tmp_path)
    run = load_run(TINY, "fp32", 0, tmp_path)
    assert run.history.widths == (4, 8) and len(run.history.epoch_scores) == 3 == len(run.facts["loss"])
    assert run.facts["learning_rates"] == pytest.approx([0.1, 0.1, 0.001])
    assert 0 <= run.facts["test_accuracy"] <= 1 and "torch" in run.facts["versions"]
    # What is replayed, which runs there are and where the data lies do not change a run.
    same = replace(TINY, ratios=(0.2,), seeds=(0, 1), controls=("bf16",), check_every=None, title="other")
    same = replace(same, task=replace(TINY.task, data_root="elsewhere"))
    monkeypatch.setattr(detector_study, "TrainingLab", None)  # would be trained again
    record(same, "fp32", 0, tmp_path)
    assert torch.equal(load_run(same, "fp32", 0, tmp_path).history.scores, run.history.scores)
    for other in (replace(TINY, sparsity=1e-3), replace(TINY, training=TrainSettings(epochs=4))):
        with pytest.raises(FileNotFoundError, match="fp32 with seed 0 has not been recorded with these settings"):
            load_run(other, "fp32", 0, tmp_path)


def test_a_run_that_was_killed_goes_on(tmp_path):
    class Killed(BaseException):
        pass

    class Mortal:
        def epoch(self, stage, row, energy_j):
            seen.append(row.key.epoch)
            if row.key.epoch == 1 and seen.count(1) == 1:
                raise Killed

    seen = []
    with pytest.raises(Killed):
        record(TINY, "bfp8", 0, tmp_path / "killed", Mortal())
    record(TINY, "bfp8", 0, tmp_path / "killed", Mortal())
    assert seen == [0, 1, 2]
    record(TINY, "bfp8", 0, tmp_path / "whole")
    found, expected = (load_run(TINY, "bfp8", 0, tmp_path / name).history for name in ("killed", "whole"))
    assert found.steps == expected.steps and torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_studies_can_be_read(path):
    settings = strict_config.load(path, StudySettings)
    assert settings.name == path.stem and settings.title and settings.check_every


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "a/b"}, "name a folder"),
        ({"sparsity": 0.0}, "sparsity must be above 0"),
        ({"check_every": 3, "record_every": 2}, "multiple of record_every"),
        ({"check_every": 2, "record_every": None}, "multiple of record_every"),
        ({"seeds": ()}, "seeds must list at least one"),
        ({"controls": ("fp32",)}, "precisions and controls must list each only once"),
        ({"ratios": (0.5, 0.5)}, "ratios must list each only once"),
    ],
)
def test_settings_that_make_no_study(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changed)


# ---- pictures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs():
    """Two precisions of two seeds, scores that settle over twelve epochs of two steps."""

    def of(seed):
        scores = torch.rand(24, 40, generator=torch.Generator().manual_seed(seed)).cumsum(0)
        return ScoreHistory(("a", "b"), (24, 16), 2, 0, tuple(range(1, 25)), scores)

    return {("fp32", 0): of(0), ("fp32", 1): of(1), ("bfp8", 0): of(2), ("bfp8", 1): of(3)}


def test_matrices_are_in_units_of_random_masks(runs):
    ticket = Variant("window", threshold=0.15, window=3)
    figure = mask_matrices(runs, (0.3, 0.5), "a study", ticket)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 4
    for axes, (run, ratio) in zip(
        panels, [(r, p) for r in (("fp32", 0), ("bfp8", 0)) for p in (0.3, 0.5)], strict=True
    ):
        masks = epoch_masks(runs[run], ratio)
        share = float((masks[2] != masks[7]).float().mean())
        assert np.asarray(axes.images[0].get_array())[2, 7] == pytest.approx(share / (2 * ratio * (1 - ratio)))
        fired = verdict(runs[run], ticket, ratio).fired
        assert f"{run[0]}, p = {ratio:g}" in axes.get_title() and fired is not None
        assert axes.lines[0].get_ydata()[0] == fired


def test_settling_shows_every_run(runs):
    figure = settling_curves(runs, (0.3, 0.5), "a study", drops=[6])
    for column, ratio in enumerate((0.3, 0.5)):
        above, below = figure.axes[column], figure.axes[2 + column]
        for line, other, run in zip(above.lines, below.lines, runs.values(), strict=False):
            curve = to_final(run, ratio)
            assert list(line.get_ydata()) == pytest.approx([of.by_layer for of in curve])
            assert list(other.get_ydata()) == pytest.approx([100 * (1 - of.widths) for of in curve])
        highest = max(max(line.get_ydata()) for line in above.lines)
        assert above.get_ylim()[0] == 0 and above.get_ylim()[1] >= highest >= 1  # the line of random masks


def test_firing_shows_when_and_how_far(runs):
    variants = (Variant("single", threshold=0.3), Variant("window", threshold=1e-6))
    groups = {"a look an epoch": {p: verdicts(runs[p, 0], variants, (0.3, 0.5)) for p in ("fp32", "bfp8")}}
    figure = firing_times(groups, 12, "a study", drops=[])
    for axes, found in zip(figure.axes, groups["a look an epoch"].values(), strict=True):
        markers = [line for line in axes.lines if line.get_marker() not in ("None", "")]
        for marker, of in zip(markers, found, strict=True):
            assert marker.get_xdata()[0] == (of.fired if of.fired is not None else pytest.approx(1.06 * 12))
            assert (marker.get_fillstyle() == "none") == (of.final is not None and of.final.by_layer > 0.5)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["single", "window"]
    assert {of.fired is None for of in groups["a look an epoch"]["fp32"]} == {True, False}


def test_thresholds_that_say_nothing_are_not_drawn(runs):
    figure = threshold_curves(runs, [Variant("single"), Variant("single", "layer")], (0.1, 0.3), (0.1, 0.5), "a study")
    plain, normalised = figure.axes[0].lines, figure.axes[1].lines
    assert np.isnan(plain[0].get_ydata()[1]) and not np.isnan(plain[2].get_ydata()[1])  # p = 0.1 and 0.5 at 0.3
    assert not np.isnan(normalised[0].get_ydata()[1])
    expected = np.mean([verdict(runs["fp32", seed], Variant("single", threshold=0.3), 0.5).fired for seed in (0, 1)])
    assert plain[2].get_ydata()[1] == expected
    assert "p = 0.1 end: its masks differ by 0.2 at most" in figure.axes[0].get_title()
    assert figure.axes[1].get_title() == "single / layer"


# ---- the script --------------------------------------------------------------------------------------------------


def test_the_script_writes_what_it_found(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "ticket_study.py"), str(ROOT / "configs/studies/digits.yaml")]
    changed = ["training.epochs=8", "seeds=[0]", "ratios=[0.5]", "task.max_train=150", "check_every=null"]
    command += ["--out", str(tmp_path), *(part for setting in changed for part in ("--set", setting))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "study-digits"
    assert {path.name for path in folder.glob("*.png")} == {"masks.png", "settling.png", "firing.png", "thresholds.png"}
    rows = list(csv.DictReader((folder / "verdicts.csv").open()))
    assert {row["precision"] for row in rows} == {"fp32", "bfp8", "bf16"} and len(rows) == 3 * len(epoch_variants())
    tree = json.loads((folder / "study.json").read_text())
    assert {pair["runs"] for pair in tree["pairs"]} == {"fp32 and bfp8, one seed", "fp32 and bf16, one seed"}
    balance = {row["detector"]: row for row in tree["balance"]}
    own = [row for row in rows if row["rule"] == "single" and row["unit"] == "layer" and row["precision"] != "bf16"]
    assert [row["fired_epochs"] for row in own].count("") == 2 - balance["single / layer, 0.2, 2 looks"]["fired"]
    assert balance["none: 50 % of the schedule"]["epochs_mean"] == 4
    markdown = (folder / "study.md").read_text()
    fired = next(row for row in rows if row["precision"] == "fp32" and row["rule"] == "epi")["fired_epochs"]
    assert "| epi | " + ("never" if not fired else f"{float(fired):g}") in markdown
    assert "bf16" in markdown and "| bf16 |" not in markdown.split("In hindsight")[1]  # a control has no verdicts there
