"""Curves of replayed detectors: what is drawn is what was said; and the benchmark of a look."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import lowprec_eb as lp
from lowprec_eb.report import detector_curves, replayed_masks
from lowprec_eb.tickets import DETECTORS, ScoreHistory, replay

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "detectors.py"


@pytest.fixture(scope="module")
def history():
    """Scores that settle: twelve epochs of two steps, a row for each step."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(24, 40, generator=generator).cumsum(0)
    return ScoreHistory(("a", "b"), (24, 16), 2, 0, tuple(range(1, 25)), scores)


def test_a_panel_shows_distances_threshold_and_ticket(history):
    replays = {rule: replay(history, lp.EarlyBird(0.5, threshold=0.15, window=3, rule=rule)) for rule in DETECTORS}
    replays["never"] = replay(history, lp.EarlyBird(0.5, threshold=1e-6, normalised="layer"))
    figure = detector_curves(replays, "a run")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert len(panels) == len(replays) == 6
    for axes, (name, of) in zip(panels, replays.items(), strict=True):
        curve, threshold, ticket = axes.lines
        assert list(curve.get_ydata()) == [look.largest for look in of.looks if look.largest is not None]
        assert list(curve.get_xdata())[-1] == 12 and threshold.get_ydata()[0] == of.threshold
        fired = of.fired
        assert list(ticket.get_xdata()) == ([] if fired is None else [fired.step / 2])
        assert axes.get_title().startswith(f"{name}: {'no ticket' if fired is None else 'ticket after'}")
    assert replays["window"].fired is not None and replays["never"].fired is None
    assert [axes.get_ylabel() for axes in panels][-2:] == ["1 - EPI", "mask distance / random"]
    with pytest.raises(ValueError, match="no replays"):
        detector_curves({}, "nothing")


def test_the_matrix_is_of_the_masks_at_each_look(history):
    of = replay(history, lp.EarlyBird(0.5, threshold=0.15, window=3), every=1)
    figure = replayed_masks(of, "window")
    image = figure.axes[0].images[0]
    shown = np.asarray(image.get_array())
    assert shown.shape == (24, 24) and shown[3, 9] == pytest.approx(float((of.masks[3] != of.masks[9]).float().mean()))
    assert list(image.get_extent()) == [0.25, 12.25, 0.25, 12.25]  # looks half an epoch apart
    assert [line.get_ydata()[0] for line in figure.axes[0].lines[:1]] == [of.fired.step / 2]
    empty = replay(history, lp.EarlyBird(0.5), every=100)
    with pytest.raises(ValueError, match="no looks"):
        replayed_masks(empty, "window")


def test_every_detector_is_timed_beside_a_step(tmp_path):
    command = [sys.executable, str(BENCHMARK), "digits", "--rounds", "2", "--json", str(tmp_path / "looks.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "looks.json").read_text())["rows"]
    assert {row["rule"] for row in rows} > set(DETECTORS) and all(row["channels"] == 136 for row in rows)
    for row in rows:
        share = 100 * row["look_us"] / (row["step_ms"] * 1000 * 17)
        assert row["share_of_epoch_percent"] == pytest.approx(share)
