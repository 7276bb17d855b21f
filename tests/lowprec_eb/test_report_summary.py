from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_example import ARMS, energy, example_comparison, outcome, row

from energy_models import ModelledEnergy, Range
from energy_models.estimate import CORNERS
from lowprec_eb.report import Comparison, MaskHistory, Spread, summarise
from lowprec_eb.report.curves import epoch_curve, mask_distances, mean_curve


def small(*arms: tuple[str, str, str, str, tuple[str, ...]], seed: int = 0, **rows) -> Comparison:
    """A comparison of arms (name, pipeline, search precision, precision, stages) over hand-written rows."""
    outcomes = tuple(outcome(*arm[:4], seed, arm[4], 0.9, None) for arm in arms)
    return Comparison("small", "p: chip", outcomes, rows, (), {"test": 100}, ())


def test_every_arm_pays_for_a_shared_stage_in_full() -> None:
    comparison = small(
        ("a", "full", None, "fp32", ("dense",)),
        ("b", "network_slimming", None, "fp32", ("dense", "retrain")),
        dense=(row("dense", "train", 0, 2.0), row("dense", "eval", 0, 0.5)),
        retrain=(row("retrain", "prune", 0, 0.25), row("retrain", "retrain", 0, 1.0)),
    )
    a, b = summarise(comparison)
    assert a.energy.nominal_j == pytest.approx(2.5)
    assert b.energy.nominal_j == pytest.approx(3.75)
    assert {phase: e.nominal_j for phase, e in b.energy_by_phase.items()} == pytest.approx(
        {"train": 2.0, "prune": 0.25, "retrain": 1.0, "eval": 0.5}
    )
    assert b.energy.compute_j.high == pytest.approx(3.75 * 0.65 * 1.2)
    assert b.duration_s == 2.0


def test_training_work_leaves_evaluation_pruning_and_detection_out() -> None:
    phases = ("search", "detect", "prune", "retrain", "eval")
    rows = tuple(row("s", phase, 0, 10.0**-i, bits=8) for i, phase in enumerate(phases))
    (arm,) = summarise(small(("a", "early_bird", "bfp8", "bfp8", ("s",)), s=rows))
    macs = round(1e10) + round(1e7)
    assert arm.training_macs == 3 * macs
    assert arm.training_bit_ops == macs * (2 * 64 + 1024)


def test_arms_keep_their_order_and_seeds_are_averaged() -> None:
    comparison = example_comparison()
    arms = summarise(comparison)
    assert [arm.arm for arm in arms] == [arm[0] for arm in ARMS]
    for arm in arms:
        accuracies = [o.test_accuracy for o in comparison.outcomes if o.arm == arm.arm]
        assert arm.test_accuracy.mean == pytest.approx(np.mean(accuracies))
        assert arm.test_accuracy.std == pytest.approx(np.std(accuracies, ddof=1))
        assert arm.energy.nominal_j == pytest.approx(np.mean([seed.energy.nominal_j for seed in arm.seeds]))
        assert arm.energy.total_j.high == pytest.approx(sum(e.high_j for e in arm.energy_by_phase.values()))
        assert arm.energy.low_j < arm.energy.nominal_j < arm.energy.high_j
    shuffled = replace(comparison, outcomes=comparison.outcomes[14:] + comparison.outcomes[:14])
    assert summarise(shuffled) == arms


def test_one_seed_has_no_standard_deviation() -> None:
    assert all(arm.test_accuracy.std is None for arm in summarise(example_comparison((0,))))
    assert Spread.of([1.0, 3.0]) == Spread(2.0, pytest.approx(2**0.5), 2)


@pytest.mark.parametrize("missing", [0, 1])
def test_measured_energy_is_unknown_unless_every_row_has_it(missing: int) -> None:
    readings = [3.0, 4.0]
    arm = ("a", "full", None, "fp32", ("s",))
    whole = tuple(row("s", "train", i, 1.0, measured_j=j) for i, j in enumerate(readings))
    assert summarise(small(arm, s=whole))[0].measured_j == 7.0
    readings[missing] = None
    gap = tuple(row("s", "train", i, 1.0, measured_j=j) for i, j in enumerate(readings))
    assert summarise(small(arm, s=gap))[0].measured_j is None


def test_baselines_are_the_first_arms_that_are_fp32_throughout() -> None:
    arms = {arm.arm: arm for arm in summarise(example_comparison())}
    full, slimming, ll = arms["full fp32"], arms["slimming fp32"], arms["early-bird LL"]
    assert full.vs_full == Range(1, 1, 1)
    assert slimming.vs_slimming == Range(1, 1, 1)
    assert ll.vs_full.nominal == pytest.approx(ll.energy.nominal_j / full.energy.nominal_j)
    corners = [a / b for a, b in zip(ll.energy.corners_j, slimming.energy.corners_j, strict=True)]
    assert (ll.vs_slimming.low, ll.vs_slimming.high) == (min(corners), max(corners))
    comparison = example_comparison()
    no_baseline = tuple(o for o in comparison.outcomes if o.arm not in ("full fp32", "slimming fp32"))
    assert all(
        arm.vs_full is None and arm.vs_slimming is None for arm in summarise(replace(comparison, outcomes=no_baseline))
    )


def modelled(nominal: float, corners: list[float]) -> ModelledEnergy:
    return ModelledEnergy({"compute": Range(nominal / 2, nominal, nominal * 2)}, {}, tuple(corners))


positive = st.lists(st.floats(1e-9, 1e9), min_size=CORNERS + 1, max_size=CORNERS + 1)


@given(positive, positive)
def test_a_ratio_takes_both_arms_at_the_same_corner_of_the_model(a: list[float], b: list[float]) -> None:
    ratio = modelled(a[0], a[1:]).ratio_to(modelled(b[0], b[1:]))
    each = [x / y for x, y in zip(a, b, strict=True)]
    assert (ratio.low, ratio.nominal, ratio.high) == (min(each), each[0], max(each))


def test_a_baseline_without_energy_is_refused() -> None:
    with pytest.raises(ValueError, match="above zero"):
        modelled(1, [1] * CORNERS).ratio_to(modelled(1, [0] + [1] * (CORNERS - 1)))


ROWS = (row("s", "train", 0, 1.0),)
ARM = ("a", "full", None, "fp32", ("s",))


@pytest.mark.parametrize(
    ("arms", "rows", "message"),
    [
        ((), {}, "no outcomes"),
        ((ARM, ARM), {"s": ROWS}, "two outcomes"),
        (((*ARM[:4], ("s", "s")),), {"s": ROWS}, "each once"),
        (((*ARM[:4], ()),), {"s": ROWS}, "at least one stage"),
        ((ARM,), {}, "stage 's', which has no ledger rows"),
        ((ARM,), {"s": ()}, "stage 's', which has no ledger rows"),
    ],
)
def test_a_bill_that_would_be_wrong_is_refused(arms, rows, message) -> None:
    with pytest.raises(ValueError, match=message):
        small(*arms, **rows)


@pytest.mark.parametrize("change", [{"precision": "bfp8"}, {"ratio": 0.5}])
def test_an_arm_cannot_change_between_seeds(change) -> None:
    one = small(ARM, s=ROWS)
    other = replace(one.outcomes[0], seed=1, **change)
    with pytest.raises(ValueError, match="name two arms"):
        replace(one, outcomes=(*one.outcomes, other))


@pytest.mark.parametrize("masks", [np.ones((2, 3)), np.ones(3, dtype=bool), np.ones((0, 3), dtype=bool)])
def test_masks_must_be_bool_epochs_by_channels(masks) -> None:
    with pytest.raises(ValueError, match="'fp32', seed 1"):
        MaskHistory("fp32", 1, masks, None)


# ---- curves ------------------------------------------------------------------------------------------------------


def test_a_curve_runs_through_all_stages_in_time_although_ledgers_sort_by_phase() -> None:
    search = (
        row("s", "detect", 0, 0.1),
        row("s", "detect", 1, 0.1),
        row("s", "eval", 0, 0.2),
        row("s", "eval", 1, 0.2),
        row("s", "eval", 2, 0.3),  # the test pass
        row("s", "search", 0, 1.0, accuracy=0.5),
        row("s", "search", 1, 1.0, accuracy=0.6),
    )
    retrain = (row("r", "eval", 2, 0.2), row("r", "prune", 2, 0.05), row("r", "retrain", 2, 2.0, accuracy=0.8))
    comparison = small(("a", "early_bird", "fp32", "fp32", ("s", "r")), s=search, r=retrain)
    curve = epoch_curve(comparison, comparison.outcomes[0])
    assert curve.energy_j == pytest.approx([0.0, 1.3, 2.6 + 0.3 + 0.05, 2.95 + 2.2])
    assert curve.energy_j[-1] == pytest.approx(summarise(comparison)[0].energy.nominal_j)
    assert curve.accuracy[1:].tolist() == [0.5, 0.6, 0.8]
    assert np.isnan(curve.accuracy[0])


def test_choosing_channels_before_training_is_no_epoch_of_a_curve() -> None:
    chosen = replace(row("s", "search", 0, 0.5), samples=0)
    cut = replace(row("s", "prune", 0, 0.1), samples=0)
    trained = tuple(row("s", "train", epoch, 1.0, accuracy=0.7 + epoch / 10) for epoch in (0, 1))
    again = (replace(row("r", "search", 2, 0.25), samples=0), row("r", "retrain", 2, 1.0, accuracy=0.9))
    comparison = small(("a", "thinet", None, "fp32", ("s", "r")), s=(cut, chosen, *trained), r=again)
    curve = epoch_curve(comparison, comparison.outcomes[0])
    assert curve.energy_j == pytest.approx([0.6, 1.6, 2.6 + 0.25, 3.85])
    assert curve.accuracy[1:].tolist() == pytest.approx([0.7, 0.8, 0.9])


def test_a_mean_curve_ends_with_the_shortest() -> None:
    comparison = example_comparison()
    curves = [epoch_curve(comparison, o) for o in comparison.outcomes if o.arm == "early-bird LL re-init"]
    mean = mean_curve(curves)
    assert [len(c.energy_j) for c in curves] == [28, 29, 31]
    assert len(mean.energy_j) == 28
    assert mean.energy_j[-1] == pytest.approx(np.mean([c.energy_j[27] for c in curves]))


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 99))
def test_mask_distances_are_normalised_hamming_distances(epochs: int, channels: int, seed: int) -> None:
    masks = np.random.default_rng(seed).random((epochs, channels)) < 0.5
    expected = [[np.mean(a != b) for b in masks] for a in masks]
    np.testing.assert_allclose(mask_distances(masks), expected, atol=1e-12)


def test_energy_of_the_example_sums_to_what_it_says() -> None:
    assert energy(2.0, 8).nominal_j == pytest.approx(2.0)
