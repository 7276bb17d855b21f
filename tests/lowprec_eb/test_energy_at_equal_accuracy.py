from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_example import energy
from sklearn.isotonic import IsotonicRegression

from lowprec_eb.report.equal_accuracy import EqualAccuracy, NotReached, SweepPoint, energy_at_equal_accuracy, falling
from lowprec_eb.report.intervals import ratio_interval

SEEDS = (0, 1, 2)


def point(ratio: float, accuracies: tuple[float, ...], joules: tuple[float, ...]) -> SweepPoint:
    return SweepPoint(ratio, dict(enumerate(accuracies)), {seed: energy(j, 8) for seed, j in enumerate(joules)})


def result_of(*points: SweepPoint, target: tuple[float, ...], joules: tuple[float, ...] = (10.0,) * 3, level=0.95):
    return energy_at_equal_accuracy(
        points, dict(enumerate(target)), {seed: energy(j, 8) for seed, j in enumerate(joules)}, level
    )


SWEEP = (
    point(0.3, (0.95, 0.95, 0.95), (6.0, 6.0, 6.0)),
    point(0.5, (0.93, 0.93, 0.93), (4.0, 4.0, 4.0)),
    point(0.7, (0.89, 0.89, 0.89), (2.0, 2.0, 2.0)),
)


def test_between_two_ratios_energy_and_ratio_are_interpolated() -> None:
    result = result_of(*SWEEP, target=(0.92,) * 3)
    assert result.ratio == pytest.approx(0.55)
    assert result.energy.nominal_j == pytest.approx(3.5)
    assert result.of_baseline.nominal == pytest.approx(0.35)
    assert (result.target, result.seeds, result.lost) == (pytest.approx(0.92), SEEDS, ())
    assert (result.interval.low, result.interval.high) == pytest.approx((0.35, 0.35))
    assert result_of(*SWEEP[::-1], target=(0.92,) * 3) == result


@pytest.mark.parametrize(("target", "ratio", "joules"), [(0.95, 0.3, 6.0), (0.93, 0.5, 4.0), (0.89, 0.7, 2.0)])
def test_at_a_point_of_the_sweep_its_numbers_come_out(target: float, ratio: float, joules: float) -> None:
    result = result_of(*SWEEP, target=(target,) * 3)
    assert result.ratio == pytest.approx(ratio)
    assert result.energy.nominal_j == pytest.approx(joules)


def test_the_largest_of_several_ratios_that_are_as_accurate_is_taken() -> None:
    flat = (SWEEP[0], point(0.5, (0.95,) * 3, (4.0,) * 3), SWEEP[2])
    assert result_of(*flat, target=(0.95,) * 3).ratio == pytest.approx(0.5)


def test_nothing_is_extrapolated() -> None:
    above = result_of(*SWEEP, target=(0.951,) * 3)
    assert (above.side, above.of_baseline) == ("above", None)
    below = result_of(*SWEEP, target=(0.88,) * 3)
    assert below.side == "below"
    assert below.of_baseline.nominal == pytest.approx(0.2)


def test_ratios_take_sweep_and_baseline_at_the_same_corner_of_the_energy_model() -> None:
    result = result_of(*SWEEP, target=(0.93,) * 3)
    assert result.of_baseline.low == pytest.approx(0.4)
    assert result.of_baseline.high == pytest.approx(0.4)
    assert result.energy.high_j / energy(10.0, 8).low_j > 1  # apart they would be this far


def test_an_accuracy_that_rises_with_the_ratio_is_pooled() -> None:
    bumpy = (SWEEP[0], point(0.5, (0.90,) * 3, (4.0,) * 3), point(0.6, (0.92,) * 3, (3.0,) * 3), SWEEP[2])
    result = result_of(*bumpy, target=(0.93,) * 3)
    assert result.ratio == pytest.approx(0.4)  # halfway from 0.95 to the mean of 0.90 and 0.92
    assert result.energy.nominal_j == pytest.approx(5.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_pooling_is_isotonic_regression(values: list[float]) -> None:
    expected = IsotonicRegression(increasing=False).fit_transform(range(len(values)), values)
    assert falling(values) == pytest.approx(expected.tolist(), abs=1e-9)


@given(st.floats(0.89, 0.95), st.floats(0.89, 0.95))
def test_a_lower_target_never_needs_more_energy(one: float, two: float) -> None:
    low, high = (result_of(*SWEEP, target=(target,) * 3) for target in sorted((one, two)))
    assert low.energy.nominal_j <= high.energy.nominal_j + 1e-9
    assert low.ratio >= high.ratio - 1e-9


def test_where_seeds_do_not_move_the_place_the_interval_is_students() -> None:
    joules = ((5.0, 6.0, 7.0), (3.0, 4.0, 5.0))
    sweep = (point(0.3, (0.95,) * 3, joules[0]), point(0.5, (0.93,) * 3, joules[1]))
    base = (8.0, 10.0, 12.0)
    result = result_of(*sweep, target=(0.94,) * 3, joules=base)
    assert result.of_baseline.nominal == pytest.approx(0.5)
    by_seed = ratio_interval([4 / 8, 5 / 10, 6 / 12], 0.95)
    assert by_seed.is_point
    assert (result.interval.low, result.interval.high) == pytest.approx((0.5, 0.5))
    wide = result_of(*sweep, target=(0.94,) * 3)
    students = ratio_interval([0.4, 0.5, 0.6], 0.95)
    assert (wide.interval.low, wide.interval.high) == pytest.approx((students.low, students.high), rel=0.1)


def test_a_sweep_that_one_seed_alone_reaches_has_no_interval_and_says_so() -> None:
    sweep = (point(0.3, (0.95, 0.95, 0.95), (6.0,) * 3), point(0.5, (0.93, 0.93, 0.93), (4.0,) * 3))
    result = result_of(*sweep, target=(0.951, 0.951, 0.930))
    assert isinstance(result, EqualAccuracy)
    assert (result.interval, result.lost) == (None, (2,))
    one = result_of(*(replace(p, accuracy={0: p.accuracy[0]}) for p in sweep), target=(0.94,) * 3)
    assert (one.seeds, one.interval, one.lost) == ((0,), None, ())


def test_only_seeds_that_all_have_count() -> None:
    gap = replace(SWEEP[1], accuracy={1: 0.93, 2: 0.93})
    assert result_of(SWEEP[0], gap, SWEEP[2], target=(0.92,) * 3).seeds == (1, 2)
    none = replace(SWEEP[1], accuracy={7: 0.93})
    result = result_of(SWEEP[0], none, target=(0.92,) * 3)
    assert isinstance(result, NotReached)
    assert (result.side, result.seeds) == ("no seed", ())


@pytest.mark.parametrize("points", [SWEEP[:1], (SWEEP[0], SWEEP[0])])
def test_what_is_no_sweep_is_refused(points: tuple[SweepPoint, ...]) -> None:
    with pytest.raises(ValueError, match="each of another ratio"):
        result_of(*points, target=(0.92,) * 3)


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_interval_covers_the_true_energy(seeds: int) -> None:
    """Simulated: accuracy falls by 0.4 a ratio of 1, energy from 6 to 2 J; the baseline is reached at 0.5, 4 J."""
    random, covered, known = np.random.default_rng(seeds), 0, 0
    for _ in range(300):
        shared = random.normal(0, 0.004, seeds)  # a seed's splits and order move its arms together
        points = [
            point(r, tuple(1.0 - 0.4 * r + shared + random.normal(0, 0.004, seeds)), (9 - 10 * r,) * seeds)
            for r in (0.3, 0.4, 0.5, 0.6, 0.7)
        ]
        target = tuple(0.8 + shared + random.normal(0, 0.004, seeds))
        result = result_of(*points, target=target, joules=(10.0,) * seeds)
        if isinstance(result, EqualAccuracy) and result.interval is not None:
            known += 1
            covered += result.interval.low <= 0.4 <= result.interval.high
    assert known > 290
    assert covered / known == pytest.approx(0.95, abs=0.05)
