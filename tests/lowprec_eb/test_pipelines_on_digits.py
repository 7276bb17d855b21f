"""Each pipeline for real, on a few digits: what is trained, how wide, with which momentum and rates, at what cost."""

from dataclasses import replace

import pytest
import torch

from energy_models import load_profile
from lowprec_eb import lab as lab_module
from lowprec_eb import stage as stage_module
from lowprec_eb.arms import ArmSettings, IterativeSettings, MatchSettings, SnipSettings, ThinetSettings
from lowprec_eb.compare import gather, plan, run_arm
from lowprec_eb.models import VGGSettings
from lowprec_eb.outcome import DivergedOutcome
from lowprec_eb.report import summarise
from lowprec_eb.retraining import Retraining
from lowprec_eb.tasks import make_task
from lowprec_eb.tickets.reconstruction import Covered
from lowprec_eb.train import SparsityPenalty
from lowprec_eb.training_lab import TrainingLab


class Silent:
    def begin(self, arm): ...

    def epoch(self, arm, stage, row, energy_j): ...

    def end(self, arm, outcome): ...


@pytest.fixture
def small(tiny):
    return replace(tiny, seeds=(0,), model=VGGSettings(widths=(6, "M", 8, 8)))


@pytest.fixture
def trained(monkeypatch):
    """What the loop was asked to do, stage by stage."""
    real, seen = stage_module.train, []

    def spy(model, optimizer, task, epochs, settings, **rest):
        momentum = [s["momentum_buffer"].clone() for s in optimizer.inner.state_dict()["state"].values()]
        rates = [settings.learning_rate_at(epoch) for epoch in epochs]
        penalised = any(isinstance(callback, SparsityPenalty) for callback in rest["callbacks"])
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        seen.append((list(epochs), rates, momentum, penalised, weights))
        real(model, optimizer, task, epochs, settings, **rest)

    monkeypatch.setattr(stage_module, "train", spy)
    return seen


def run(config, out, *arms):
    config = replace(config, pipelines=arms)
    return config, [run_arm(config, out, 0, arm, Silent()) for arm in arms]


def rows_of(result, phase=None):
    stages = [result.rows[key] for key in result.outcome.stages]
    return [[row for row in rows if phase in (None, row.key.phase)] for rows in stages]


def cost(result):
    return sum(row.modelled.nominal_j for rows in rows_of(result) for row in rows)


def lab(config, folder):
    task = make_task(config.task, 0)
    return TrainingLab(config.lab, task, load_profile("45nm"), 0, folder, "run")


def search(bench):
    return bench.train(bench.initial(), "search", "fp32", sparsity=bench.tickets.sparsity, detect=True)


# ---- retraining ---------------------------------------------------------------------------------------------------

FIVE = [0.05, 0.05, 0.005, 0.005, 0.0005]  # the schedule of five epochs


@pytest.mark.parametrize(
    ("keys", "first", "has_momentum", "penalised"),
    [
        ({}, 2, True, False),
        ({"schedule": "restart", "penalty": True}, 0, True, True),
        ({"optimizer": "new"}, 2, False, False),
        ({"weights": "reinit"}, 0, False, False),
        ({"weights": "reinit", "schedule": "continue"}, 2, False, False),
        ({"weights": "rewind"}, 0, False, False),
        ({"weights": "rewind", "rewind_epoch": 1}, 1, True, False),
        ({"weights": "rewind", "rewind_epoch": 2, "schedule": "restart", "optimizer": "new"}, 0, False, False),
    ],
)
def test_the_four_keys_are_what_is_trained_and_said(small, tmp_path, trained, keys, first, has_momentum, penalised):
    _, (result,) = run(small, tmp_path, ArmSettings("FF", "early_bird", **keys))
    assert result.outcome.ticket.epoch == 2
    epochs, rates, momentum, penalty, _ = trained[1]
    assert epochs == list(range(first, 5)) and rates == pytest.approx(FIVE[first:])
    assert bool(momentum) == has_momentum and penalty == penalised
    how = ArmSettings("FF", "early_bird", **keys).retraining
    outcome = result.outcome
    assert (outcome.weights, outcome.schedule, outcome.optimizer, outcome.penalty) == (
        how.weights, how.schedule, how.optimizer, how.penalty,
    )  # fmt: skip
    assert outcome.rewind_epoch == (how.rewind_epoch if how.weights == "rewind" else None)
    for row in rows_of(result, "retrain")[1]:
        assert {key: row.metrics[key] for key in how.metrics()} == how.metrics()
    assert all("schedule" not in row.metrics for row in rows_of(result, "search")[0])


def test_a_search_keeps_what_was_trained_after_an_epoch(small, tmp_path):
    arm = ArmSettings("FF", "early_bird", weights="rewind", rewind_epoch=1)
    bench = lab(replace(small, pipelines=(arm,)), tmp_path)
    flat = replace(small.training, milestones=(), epochs=1)
    short = bench.train(bench.initial(), "search", "fp32", sparsity=bench.tickets.sparsity, training=flat).state
    kept = search(bench).kept[1]
    assert kept.epoch == 1
    for name, tensor in short.model.state_dict().items():
        assert torch.equal(kept.model.state_dict()[name], tensor), name
    for index, state in short.optimizer_state["state"].items():
        assert torch.equal(kept.optimizer_state["state"][index]["momentum_buffer"], state["momentum_buffer"])


def test_all_arms_share_the_search_whether_they_rewind_or_not(small, tmp_path):
    arms = (
        ArmSettings("FF", "early_bird"),
        ArmSettings("rewound", "early_bird", weights="rewind", rewind_epoch=1),
        ArmSettings("final", "final_ticket"),
        ArmSettings("slimming", "network_slimming"),
    )
    _, (bird, rewound, final, slimming) = run(small, tmp_path, *arms)
    assert bird.outcome.stages[0] == rewound.outcome.stages[0] == final.outcome.stages[0]
    assert final.outcome.stages[1] == slimming.outcome.stages[0]  # the penalised dense run
    assert final.outcome.ticket.epoch == 5 and final.outcome.channels_kept == bird.outcome.channels_kept
    assert [len(rows) for rows in rows_of(final, "retrain")] == [0, 0, 3]
    assert cost(final) > cost(slimming)


class Killed(BaseException):
    pass


def test_killed_and_resumed_a_rewound_ticket_is_the_same(small, tmp_path, monkeypatch):
    """At every second write of a checkpoint."""
    arm = ArmSettings("rewound", "early_bird", precision="bfp8", weights="rewind", rewind_epoch=1)
    _, (whole,) = run(small, tmp_path / "whole", arm)
    real, kills = stage_module.checkpoints.save, 0
    for survive in (1, 1, 2, 1, 2):
        left = survive

        def mortal(*args):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            real(*args)

        monkeypatch.setattr(stage_module.checkpoints, "save", mortal)
        try:
            run(small, tmp_path / "killed", arm)
        except Killed:
            kills += 1
    monkeypatch.setattr(stage_module.checkpoints, "save", real)
    _, (resumed,) = run(small, tmp_path / "killed", arm)
    assert kills >= 3 and resumed.outcome == whole.outcome
    assert cost(resumed) == cost(whole)


def test_an_epoch_that_a_search_may_not_reach_is_refused(small, tmp_path):
    arm = ArmSettings("FF", "early_bird", weights="rewind", rewind_epoch=3)
    with pytest.raises(ValueError, match=r"rewind_epoch \(3\) must be at most 2: a ticket may appear"):
        run(small, tmp_path, ArmSettings("full", "full"), arm)  # before anything is trained
    assert not (tmp_path / "stages").exists()


# ---- other pruning ------------------------------------------------------------------------------------------------


def test_one_round_of_iterative_pruning_is_network_slimming(small, tmp_path):
    arms = (
        ArmSettings("slimming", "network_slimming"),
        ArmSettings("once", "iterative_pruning", iterative=IterativeSettings(steps=1)),
    )
    _, (slimming, once) = run(small, tmp_path, *arms)
    assert once.outcome.stages == slimming.outcome.stages
    assert once.outcome.test_accuracy == slimming.outcome.test_accuracy


def test_iterative_pruning_reaches_the_ratio_in_rounds_and_pays_for_all(small, tmp_path, trained):
    how = IterativeSettings(steps=2, spacing="linear", epochs=3, learning_rate=0.002)
    arm = ArmSettings("rounds", "iterative_pruning", iterative=how)
    _, (result,) = run(small, tmp_path, arm)
    assert [of[0] for of in trained] == [[0, 1, 2, 3, 4], [0, 1, 2], [0, 1, 2]]
    assert trained[1][1] == trained[2][1] == [0.002] * 3
    assert [of[3] for of in trained] == [True, True, False] and not trained[1][2] and not trained[2][2]
    means = [[tensor for name, tensor in of[4].items() if name.endswith("running_mean")] for of in trained]
    channels = [sum(tensor.numel() for tensor in found) for found in means]
    assert channels == [22, 22 - round(0.2 * 22), 22 - round(0.4 * 22)]
    assert result.outcome.channels_kept == channels[-1] and result.outcome.ticket.epoch == 8
    assert [len(rows) for rows in rows_of(result, "retrain")] == [0, 3, 3]
    assert [len(rows) for rows in rows_of(result, "prune")] == [0, 1, 1]


@pytest.mark.parametrize("precision", ["fp32", "bfp8"])
def test_snip_pays_for_its_pass_and_keeps_the_initial_weights(small, tmp_path, trained, precision):
    arms = (
        ArmSettings("full", "full", precision=precision),
        ArmSettings("snip", "snip", precision=precision),
        ArmSettings("two", "snip", precision=precision, snip=SnipSettings(batches=2)),
    )
    _, (full, snip, two) = run(small, tmp_path, *arms)
    (spent,), (twice,) = rows_of(snip, "search")[0], rows_of(two, "search")[0]
    whole = rows_of(full, "train")[0][0]
    assert spent.key.epoch == 0 and spent.macs.keys() == whole.macs.keys()
    assert spent.total_macs * 120 == whole.total_macs * 32  # one batch of the epoch's images
    assert twice.total_macs == 2 * spent.total_macs
    assert snip.outcome.channels_kept == 22 - round(0.4 * 22) and snip.outcome.ticket.epoch == 0
    assert [row.key.epoch for row in rows_of(snip, "train")[0]] == [0, 1, 2, 3, 4]
    if precision == "fp32":  # the optimizer rounds 8-bit weights, each block by its own random numbers
        dense, cut = trained[0][4], trained[1][4]
        first = next(name for name in dense if name.endswith("weight"))
        rows = {tuple(row.flatten().tolist()) for row in dense[first]}
        assert {tuple(row.flatten().tolist()) for row in cut[first]} <= rows


def test_thinet_drops_its_share_of_each_layer_and_costs_what_was_planned(small, tmp_path, trained):
    how = ThinetSettings(batches=2, positions=5, layer_epochs=1, epochs=2)
    arms = (ArmSettings("full", "full"), ArmSettings("thinet", "thinet", thinet=how))
    config, (full, thinet) = run(small, tmp_path, *arms)
    assert thinet.outcome.stages[0] == full.outcome.stages[0]  # trained without a penalty
    assert [of[0] for of in trained[:5]] == [[0, 1, 2, 3, 4], [0], [0], [0], [0, 1]]
    assert [of[1] for of in trained[1:5]] == [[pytest.approx(0.0005)]] * 3 + [pytest.approx([0.05, 0.005])]
    assert [len(rows) for rows in rows_of(thinet, "search")] == [0, 1, 1, 1, 0]
    assert thinet.outcome.channels_kept == 4 + 5 + 5 and thinet.outcome.ticket.epoch == 7
    foreseen, expected = summarise(plan(config))[1], summarise(gather(config, [full, thinet]))[1]
    assert foreseen.training_macs == expected.training_macs and foreseen.training_bit_ops == expected.training_bit_ops
    assert foreseen.energy.nominal_j == pytest.approx(expected.energy.nominal_j, rel=1e-9)


def test_thinet_without_training_in_between_pays_for_all_layers_at_once(small, tmp_path):
    how = ThinetSettings(batches=1, layer_epochs=0, epochs=1, learning_rate=0.01)
    arms = (
        ArmSettings("thinet", "thinet", precision="bfp8", thinet=how),
        ArmSettings("tenfold", "thinet", precision="bfp8", thinet=replace(how, positions=100)),
    )
    config, (thinet, tenfold) = run(small, tmp_path, *arms)
    assert len(thinet.outcome.stages) == 2
    assert [len(rows) for rows in rows_of(thinet, "search")] == [0, 1]
    assert [len(rows) for rows in rows_of(thinet, "prune")] == [0, 1]
    assert tenfold.outcome.stages[0] == thinet.outcome.stages[0] and cost(tenfold) > cost(thinet)
    assert tenfold.outcome.stages[1] != thinet.outcome.stages[1]  # other samples, other scales
    foreseen, expected = summarise(plan(config))[0], summarise(gather(config, [thinet, tenfold]))[0]
    assert foreseen.training_bit_ops == expected.training_bit_ops


def test_a_ratio_that_thinet_cannot_reach_is_refused(small, tmp_path, monkeypatch):
    found = Covered({"a": ()}, {"b": "read by nobody"}, None, {"a": 4, "b": 8})
    monkeypatch.setattr(lab_module, "covered", lambda *args: found)
    with pytest.raises(ValueError, match=r"thinet: of 4 channels too few .* b: read by nobody"):
        _ = lab(small, tmp_path).reconstructable
    bench = lab(replace(small, ticket=replace(small.ticket, ratio=0.25)), tmp_path)
    assert bench.reconstructable == {"a": 0.75}  # three of twelve


def test_ratios_of_arms_share_what_does_not_depend_on_them(small, tmp_path):
    arms = (
        ArmSettings("slimming", "network_slimming"),
        ArmSettings("slimming 20 %", "network_slimming", ratio=0.2),
        ArmSettings("thinet 20 %", "thinet", ratio=0.2, thinet=ThinetSettings(batches=1, layer_epochs=0, epochs=1)),
        ArmSettings("full", "full"),
    )
    config, results = run(small, tmp_path, *arms)
    slimming, less, thinet, full = (result.outcome for result in results)
    assert slimming.stages[0] == less.stages[0] and thinet.stages[0] == full.stages[0]
    assert (slimming.channels_kept, less.channels_kept) == (22 - 9, 22 - 4)
    assert (slimming.ratio, less.ratio, thinet.ratio, full.ratio) == (0.4, 0.2, 0.2, None)
    histories = gather(config, results).mask_histories
    assert [of.label for of in histories] == ["fp32, ratio 0.4", "fp32, ratio 0.2"]
    assert histories[0].masks[-1].sum() == 13 and histories[1].masks[-1].sum() == 18


# ---- matched dense runs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantity", ["flops", "energy"])
def test_a_dense_run_of_equal_cost(small, tmp_path, trained, quantity):
    arms = (
        ArmSettings("matched", "dense_matched", match=MatchSettings("slimming", quantity)),
        ArmSettings("slimming", "network_slimming", precision="bfp8"),
    )
    config, results = run(small, tmp_path, *arms)
    matched, slimming = results
    match = matched.outcome.match
    assert (match.arm, match.quantity) == ("slimming", quantity)
    by_arm = {arm.arm: arm for arm in summarise(gather(config, results))}
    bill = {arm: 2 * of.training_macs if quantity == "flops" else of.energy.nominal_j for arm, of in by_arm.items()}
    assert match.target == pytest.approx(bill["slimming"]) and match.cost == pytest.approx(bill["matched"])
    per_epoch = match.cost / match.epochs
    assert abs(match.cost - match.target) <= 0.51 * per_epoch and match.error == match.cost / match.target - 1
    assert not set(matched.outcome.stages) & set(slimming.outcome.stages)  # nothing is paid twice
    epochs, rates, _, penalised, _ = trained[-1]
    assert epochs == list(range(match.epochs)) and not penalised
    scaled = replace(small.training, epochs=match.epochs)
    assert rates == [scaled.learning_rate_at(epoch) for epoch in epochs]
    _, again = run(small, tmp_path / "other order", *reversed(arms))
    assert replace(again[1].outcome, stages=()) == replace(matched.outcome, stages=())


def test_matches_are_planned_in_any_order(small):
    arms = (
        ArmSettings("like the control", "dense_matched", match=MatchSettings("control", "energy")),
        ArmSettings("control", "dense_matched", precision="bf16", match=MatchSettings("LL")),
        ArmSettings("full", "full", precision="bf16"),
        ArmSettings("LL", "early_bird", precision="bfp8"),
    )
    chained, control, full, bird = plan(replace(small, pipelines=arms)).outcomes
    assert control.match.target < control.match.cost * 5 / control.match.epochs  # less than the whole schedule
    assert chained.match.target == pytest.approx(
        sum(row.modelled.nominal_j for row in plan(replace(small, pipelines=arms)).rows[control.stages[0]])
    )
    assert full.match is None and bird.match is None


def test_a_match_to_an_arm_that_diverges_diverges_with_it(small, tmp_path):
    training = replace(small.training, learning_rate=1e30)
    arms = (
        ArmSettings("matched", "dense_matched", match=MatchSettings("full")),
        ArmSettings("full", "full"),
    )
    _, (matched, full) = run(replace(small, training=training), tmp_path, *arms)
    assert isinstance(matched.outcome, DivergedOutcome) and isinstance(full.outcome, DivergedOutcome)
    assert matched.outcome.stages == full.outcome.stages


def test_an_arm_describes_itself_alike_finished_or_diverged(small, tmp_path):
    config = replace(small, seeds=(0, 1), pipelines=(ArmSettings("one-shot", "one_shot_ticket"),))
    (arm,) = config.pipelines
    finished = run_arm(config, tmp_path, 0, arm, Silent())
    too_fast = replace(config, training=replace(config.training, learning_rate=1e30))
    diverged = run_arm(too_fast, tmp_path, 1, arm, Silent())
    assert finished.outcome.weights == diverged.outcome.weights == "rewind"
    assert gather(config, [finished, diverged]).diverged == (diverged.outcome,)


def test_a_penalty_that_goes_on_is_paid(small, tmp_path):
    arms = (ArmSettings("FF", "early_bird"), ArmSettings("on", "early_bird", penalty=True))
    _, (off, on) = run(small, tmp_path, *arms)
    assert on.outcome.stages[1] != off.outcome.stages[1] and cost(on) > cost(off)
    assert Retraining.completed("inherit", penalty=True).metrics()["penalty"] == "on"
