"""A search that looks inside an epoch, for several ratios, resumed and charged; and its history, replayed."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import lowprec_eb as lp
from energy_models import load_profile
from lowprec_eb import stage as stage_module
from lowprec_eb.config import load_config
from lowprec_eb.instability import Diverged
from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.planning_lab import PlanningLab
from lowprec_eb.stage_data import StageDiverged
from lowprec_eb.tasks import make_task
from lowprec_eb.tickets import DETECTORS, ScoreHistory, TicketSettings, replay
from lowprec_eb.train import Callback, TrainSettings, train
from lowprec_eb.training_lab import TrainingLab

STEPS, SIZES = 4, (32, 32, 32, 24)  # of an epoch
INSIDE = TicketSettings(ratio=0.4, window=2, threshold=0.2, deadline=4, check_every=3, score_momentum=0.5)


@pytest.fixture
def task(tiny):
    return make_task(tiny.task, 0)


def lab(tiny, task, folder, ticket=INSIDE, **changes):
    return TrainingLab(replace(tiny.lab, ticket=ticket, **changes), task, load_profile("45nm"), 0, folder, "run")


def search(bench, precision="fp32"):
    return bench.train(bench.initial(), "search", precision, sparsity=bench.tickets.sparsity, detect=True)


def rows(result, phase):
    return [row for row in result.rows if row.key.phase == phase]


# ---- the loop ----------------------------------------------------------------------------------------------------


class StopsAfter(Callback):
    def __init__(self, steps):
        self.left, self.reports, self.samples = steps, [], []

    def before_batch(self, samples):
        self.samples.append(samples)

    def after_step(self):
        self.left -= 1
        return self.left == 0

    def after_epoch(self, report):
        self.reports.append(report)
        return False


@pytest.mark.parametrize(("steps", "epochs", "whole"), [(2, 1, False), (4, 1, True), (6, 2, False), (99, 3, True)])
def test_a_callback_breaks_an_epoch_off(task, steps, epochs, whole):
    model = build_model(VGGSettings(widths=(4, "M", 6)), (1, 8, 8), 10, 0)
    stops, training = StopsAfter(steps), TrainSettings(epochs=3, learning_rate=0.05)
    train(
        model, training.optimizer(model), task, range(3), training, seed=0, callbacks=[stops, other := StopsAfter(99)]
    )
    assert len(stops.reports) == epochs and stops.reports[-1].whole == whole
    assert len(stops.samples) == min(steps, 3 * STEPS) and other.samples == stops.samples
    assert 0 < stops.reports[-1].loss < 3


# ---- a stage -----------------------------------------------------------------------------------------------------


def test_a_search_ends_inside_an_epoch_and_is_charged_for_the_steps_done(tiny, task, tmp_path):
    bench = lab(tiny, task, tmp_path)
    result = search(bench)
    looks = result.history.steps
    assert result.ticket.on_time and looks[-1] % 3 == 0 and looks[-1] % STEPS  # between two ends of epochs
    begun, done = divmod(looks[-1], STEPS)
    assert result.ticket.epoch == result.state.epoch == begun + 1  # the epoch that was broken off has begun
    *whole, broken = rows(result, "search")
    assert [row.samples for row in (*whole, broken)] == [120] * begun + [sum(SIZES[:done])]
    assert broken.metrics["broken_off_after_steps"] == done
    assert all("broken_off_after_steps" not in row.metrics for row in whole)
    images = lambda row: row.macs["output"]["32x32"] / (64 * 9 * 6 + 16 * 9 * 6 * 8 + 8 * 10)  # noqa: E731
    assert [images(row) for row in (*whole, broken)] == [120] * begun + [sum(SIZES[:done])]
    assert sum(row.metrics["looks"] for row in rows(result, "detect")) == looks[-1] // 3
    assert all(
        row.duration_s == 0 and row.modelled.nominal_j > 0 for row in rows(result, "detect")
    )  # in the training's


def test_the_retraining_goes_on_at_the_next_epoch_and_misses_no_drop(tiny, task, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        stage_module, "train", (lambda plain: lambda *a, **k: seen.append(rates(*a)) or plain(*a, **k))(train)
    )

    def rates(model, optimizer, task, epochs, settings):
        return [(epoch, settings.learning_rate_at(epoch)) for epoch in epochs]

    # The search is broken off in the last epoch before the drop.
    training = replace(tiny.training, milestones=(0.4,))  # at epoch 2 of 5
    ticket = replace(INSIDE, check_every=5, threshold=1.0, window=2, score_momentum=0)
    bench = lab(tiny, task, tmp_path, ticket, training=training)
    outcome = PIPELINES["early_bird"](bench, tiny.pipelines[3])
    searched, retrained = (bench.finished[key] for key in outcome.stages)
    assert searched.history.steps == (4, 5, 8, 10)
    assert searched.state.epoch == 3
    assert seen[1] == [(3, pytest.approx(0.005)), (4, pytest.approx(0.005))]
    assert [row.key.epoch for row in rows(retrained, "retrain")] == [3, 4]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before_batch", "ledger", "rename"])
def test_killed_at_any_moment_it_ends_alike(tiny, task, tmp_path, monkeypatch, moment):
    settings = replace(INSIDE, also=(0.2, 0.6), threshold=0.1)
    expected = search(lab(tiny, task, tmp_path / "whole", settings))
    target = {
        "before_batch": (stage_module.StageRun, "before_batch"),
        "ledger": (stage_module.Ledger, "append"),
        "rename": (os, "replace"),
    }[moment]
    real, kills = getattr(*target), 0
    for survive in range(1, 24, 2):
        left = survive

        def mortal(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return real(*args, **kwargs)

        monkeypatch.setattr(*target, mortal)
        try:
            search(lab(tiny, task, tmp_path / "killed", settings))
        except Killed:
            kills += 1
        finally:
            monkeypatch.setattr(*target, real)
    found = search(lab(tiny, task, tmp_path / "killed", settings))
    assert kills >= 2
    assert found.history.steps == expected.history.steps and torch.equal(found.history.scores, expected.history.scores)
    for ratio, (ticket, start) in expected.drawn.items():
        other, at = found.drawn[ratio]
        assert (other.epoch, other.distances, other.on_time) == (ticket.epoch, ticket.distances, ticket.on_time)
        assert lp.mask_distance(other.masks, ticket.masks) == 0 and (at.key, at.epoch) == (start.key, start.epoch)
        pairs = zip(at.model.parameters(), start.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    plain = [
        [(row.key.phase, row.key.epoch, row.samples, row.modelled, row.macs) for row in r.rows]
        for r in (found, expected)
    ]
    assert sorted(plain[0], key=str) == sorted(plain[1], key=str)


def test_every_ratio_has_the_state_of_its_own_time(tiny, task, tmp_path):
    settings = replace(INSIDE, also=(0.2, 0.6), threshold=0.1)
    together = search(lab(tiny, task, tmp_path, settings))
    times = set()
    for ratio, (ticket, start) in together.drawn.items():
        alone = search(lab(tiny, task, tmp_path, replace(settings, ratio=ratio, also=())))
        assert (ticket.on_time, ticket.epoch, ticket.distances) == (
            alone.ticket.on_time, alone.ticket.epoch, alone.ticket.distances
        )  # fmt: skip
        if not ticket.on_time:  # at the deadline the best so far is taken, and its state is that of the deadline
            continue
        times.add(len(alone.history.steps))
        pairs = zip(start.model.parameters(), alone.state.model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) and start.epoch == alone.state.epoch
        for index, of in alone.state.optimizer_state["state"].items():
            assert torch.equal(of["momentum_buffer"], start.optimizer_state["state"][index]["momentum_buffer"])
    assert len(times) > 1
    assert together.state is together.drawn[0.4][1] and together.ticket is not None


@pytest.mark.parametrize(("bad", "message"), [("nan", "score is NaN"), ("inf", "score is infinite")])
def test_scores_that_are_not_finite_end_the_stage_as_diverged(tiny, task, tmp_path, monkeypatch, bad, message):
    plain = stage_module.StageRun.before_batch

    def poisoned(run, samples):
        plain(run, samples)
        if run.tally.steps() == 3:  # the loss of this step is finite, and what it leaves behind is not
            run.optimizer.inner.param_groups[0]["weight_decay"] = float(bad)

    monkeypatch.setattr(stage_module.StageRun, "before_batch", poisoned)
    with pytest.raises(StageDiverged, match=f"{message} in epoch 0, step 2") as caught:
        search(lab(tiny, task, tmp_path))
    assert isinstance(caught.value.__cause__, Diverged)
    assert [row.samples for row in caught.value.rows] == [96]


def test_gammas_that_do_not_move_give_no_ticket(tiny, task, tmp_path, monkeypatch):
    monkeypatch.setattr("lowprec_eb.tickets.score_settings.gamma_scores", lambda model: {"a": torch.ones(4)})
    with pytest.raises(ValueError, match="scores of all channels were equal at every look"):
        search(lab(tiny, task, tmp_path, replace(INSIDE, check_every=None)))


@pytest.mark.parametrize(
    ("rule", "looks"), [("window", 5), ("consecutive", 6), ("single", 2), ("pairwise", 5), ("epi", 11)]
)
def test_a_deadline_is_refused_only_where_the_rule_cannot_fire_by_it(tiny, task, tmp_path, rule, looks):
    """With one look an epoch the settings themselves say so; else the lab does, which knows the steps."""
    longer = replace(tiny, training=replace(tiny.training, epochs=20))
    message = f"cannot fire before the look {looks}"
    replace(longer, ticket=TicketSettings(rule=rule, deadline=looks))
    with pytest.raises(ValueError, match=message):
        replace(longer, ticket=TicketSettings(rule=rule, deadline=looks - 1))
    inside = TicketSettings(rule=rule, deadline=4, check_every=4 * STEPS // looks)
    lab(replace(tiny, ticket=inside), task, tmp_path, inside)
    seldom = replace(inside, check_every=inside.check_every + 1)
    with pytest.raises(ValueError, match=rf"looks every {seldom.check_every} of {STEPS} steps an epoch: .*{message}"):
        lab(tiny, task, tmp_path, seldom)


def test_a_plan_charges_as_many_looks_as_the_deadline_allows(tiny, task, tmp_path):
    settings = replace(INSIDE, threshold=1e-9, window=5, score_momentum=0)  # never fires
    real = search(lab(tiny, task, tmp_path, settings))
    planned = search(PlanningLab(replace(tiny.lab, ticket=settings), task, load_profile("45nm"), 0))
    energy = [sum(row.modelled.nominal_j for row in rows(result, "detect")) for result in (real, planned)]
    assert not real.ticket.on_time and energy[0] == pytest.approx(energy[1], rel=1e-9)


# ---- replay ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A penalised dense run on digits, recorded every three steps."""
    torch.set_num_threads(1)
    config = load_config(
        Path(__file__).parents[2] / "configs/digits.yaml", ["training.epochs=13", "ticket.check_every=3"]
    )
    task = make_task(replace(config.task, max_train=350), 0)
    bench = TrainingLab(config.lab, task, load_profile("45nm"), 0, tmp_path_factory.mktemp("digits"), "run")
    # Of the phase of a search, whose rounding has other random bits than that of a full training.
    result = bench.train(bench.initial(), "search", "bfp8", sparsity=1e-4)
    return bench, result.history


@pytest.mark.parametrize("every", [None, 6])
@pytest.mark.parametrize("rule", list(DETECTORS))
def test_a_replay_says_what_the_live_search_said(digits, rule, every, tmp_path):
    bench, history = digits
    history.save(tmp_path / "scores.safetensors")
    history = ScoreHistory.load(tmp_path / "scores.safetensors")
    window = 2 if rule == "epi" else 3  # it looks back further, and there are eight looks
    options = {"threshold": 0.1, "window": window, "score_momentum": 0.5, "rule": rule}
    settings = TicketSettings(ratio=0.4, deadline=10, check_every=every, **options)
    live_bench = TrainingLab(
        replace(bench.settings, ticket=settings), bench.task, load_profile("45nm"), 0, tmp_path, "run"
    )
    live = search(live_bench, "bfp8")
    replayed = replay(history, lp.EarlyBird(0.4, **options), every, deadline=10)
    ticket = replayed.ticket
    assert live.ticket.on_time == (ticket is not None)
    found = ticket or replayed.best
    assert (found.epoch, found.distances) == (live.ticket.epoch, live.ticket.distances)
    assert lp.mask_distance(found.masks, live.ticket.masks) == 0
    of_live = replay(live.history, lp.EarlyBird(0.4, **options), every)
    assert of_live.looks == replayed.looks[: len(of_live.looks)] and len(of_live.looks) > 3
    assert of_live.fired is None or of_live.fired == of_live.looks[-1]


def test_a_history_says_what_it_lacks(digits, tmp_path):
    _, history = digits
    assert len(history.epoch_scores) == 13 and history.epoch(history.steps_per_epoch + 1) == 2
    with pytest.raises(ValueError, match="no scores were recorded after step 1, so looks every 1 steps cannot be repl"):
        replay(history, lp.EarlyBird(0.4), every=1)
    used = lp.EarlyBird(0.4)
    used.observe(history.named(0))
    with pytest.raises(ValueError, match="needs a new detector"):
        replay(history, used)
    with pytest.raises(ValueError, match=r"scores must be \(rows, channels\)"):
        replace(history, steps=(1,))
    with pytest.raises(ValueError, match="steps must rise"):
        replace(history, steps=history.steps[::-1])
    lp_file = tmp_path / "other.safetensors"
    stage_module.checkpoints.save(lp_file, {"scores": torch.ones(1)}, {})
    with pytest.raises(ValueError, match="not a score history"):
        ScoreHistory.load(lp_file)


def test_masks_of_a_replay_are_those_of_its_looks(digits):
    _, history = digits
    replayed = replay(history, lp.EarlyBird(0.4))
    assert replayed.masks.shape == (13, sum(history.widths)) and replayed.masks.sum(1).unique().numel() == 1
    flat = torch.cat(list(replayed.ticket.masks.values()))
    assert torch.equal(replayed.masks[replayed.looks.index(replayed.fired)], flat)
