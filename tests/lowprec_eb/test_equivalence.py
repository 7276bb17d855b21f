import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from lowprec_eb.report.equivalence import Equivalence, holm
from lowprec_eb.report.intervals import Interval, jackknife_values, ratio_interval, t_interval

# Student 1908, hours of sleep gained with one drug over another: the paired t-test of the textbooks.
SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)

differences = st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=8)
margins = st.floats(0.0, 0.1)


def test_the_textbook_interval_and_p_value() -> None:
    interval = t_interval(SLEEP, 0.95)
    assert (interval.low, interval.high) == pytest.approx((0.7001, 2.4599), abs=5e-5)
    result = Equivalence(SLEEP, 1.0, 0.95)
    assert result.mean == pytest.approx(1.58)
    assert result.p_different == pytest.approx(0.002833, abs=5e-7)
    assert result.verdict == "better"


@given(differences, margins)
def test_p_values_are_those_of_two_one_sided_t_tests(values: list[float], margin: float) -> None:
    values = [round(value, 6) for value in values]
    assume(statistics.stdev(values) > 1e-5)
    result = Equivalence(tuple(values), margin, 0.95)
    below = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    above = stats.ttest_1samp(values, margin, alternative="less").pvalue
    assert result.p_not_worse == pytest.approx(below, rel=1e-6, abs=1e-12)
    assert result.p_equal == pytest.approx(max(below, above), rel=1e-6, abs=1e-12)
    assert result.p_different == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue, rel=1e-6, abs=1e-12)


@given(differences, margins, st.sampled_from([0.8, 0.95, 0.99]))
def test_verdicts_by_intervals_are_those_by_p_values(values: list[float], margin: float, confidence: float) -> None:
    result = Equivalence(tuple(values), margin, confidence)
    alpha = 1 - confidence
    assume(all(abs(p - alpha) > 1e-9 for p in (result.p_equal, result.p_not_worse, result.p_different)))
    assert (result.verdict == "equal") == (result.p_equal < alpha)
    assert result.not_worse == (result.p_not_worse < alpha)
    if result.verdict != "equal":
        assert (result.verdict in ("better", "worse")) == (result.p_different < alpha)


@given(differences, margins)
def test_the_other_way_round_better_is_worse_and_equal_stays(values: list[float], margin: float) -> None:
    result = Equivalence(tuple(values), margin, 0.95)
    other = Equivalence(tuple(-value for value in values), margin, 0.95)
    swapped = {"better": "worse", "worse": "better"}
    assert other.verdict == swapped.get(result.verdict, result.verdict)
    assert other.p_equal == pytest.approx(result.p_equal, abs=1e-12)
    assert other.interval.low == pytest.approx(-result.interval.high, abs=1e-12)


@given(differences, margins, margins)
def test_what_a_small_margin_establishes_a_large_one_does(values: list[float], one: float, two: float) -> None:
    small, large = (Equivalence(tuple(values), margin, 0.95) for margin in sorted((one, two)))
    assert large.p_equal <= small.p_equal
    assert small.verdict != "equal" or large.verdict == "equal"
    assert not small.not_worse or large.not_worse
    assert not (small.verdict == "equal" and not small.not_worse)


def test_non_inferior_is_less_than_equal() -> None:
    gained = Equivalence((0.02, 0.03, 0.01, 0.04, 0.0), 0.01, 0.95)
    assert gained.not_worse
    assert gained.verdict == "better"
    unsure = Equivalence((0.015, -0.005, 0.02), 0.02, 0.95)
    assert unsure.not_worse
    assert unsure.verdict == "not established"


def test_a_small_loss_is_equal_though_it_is_a_loss() -> None:
    result = Equivalence((-0.004, -0.005, -0.006), 0.01, 0.95)
    assert result.verdict == "equal"
    assert result.wide_interval.high < 0


@pytest.mark.parametrize("values", [(), (0.0,)])
def test_with_fewer_than_two_pairs_nothing_is_established(values: tuple[float, ...]) -> None:
    result = Equivalence(values, 0.5, 0.95)
    assert result.verdict == "not established"
    assert not result.not_worse
    assert (result.interval, result.p_equal, result.p_not_worse, result.p_different) == (None, None, None, None)


@pytest.mark.parametrize(
    ("own", "other", "verdict"),
    [(0.965, 0.97, "equal"), (0.96, 0.97, "worse"), (0.97, 0.96, "better"), (0.98, 0.96, "better")],
)
def test_equal_differences_give_a_point_in_spite_of_rounding(own: float, other: float, verdict: str) -> None:
    """0.97 - 0.96 is not quite 0.01; a difference of the whole margin is outside it."""
    result = Equivalence((own - other, math.nextafter(own - other, 1), own - other), 0.01, 0.95)
    assert result.no_spread
    assert result.verdict == verdict
    assert result.p_equal == (0.0 if verdict == "equal" else 1.0)


@pytest.mark.parametrize(("margin", "confidence"), [(-0.01, 0.95), (math.nan, 0.95), (0.01, 0.5), (0.01, 1.0)])
def test_impossible_settings_are_refused(margin: float, confidence: float) -> None:
    with pytest.raises(ValueError, match=r"(margin|confidence) must"):
        Equivalence((0.0, 0.1), margin, confidence)


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.002), (10, 0.01)])
def test_equal_is_wrong_in_at_most_one_of_twenty(seeds: int, spread: float) -> None:
    """Simulated arms that lose or gain the whole margin."""
    noise = np.random.default_rng(seeds).normal(0.0, spread, (1000, seeds))
    for centre in (-0.01, 0.01):
        results = [Equivalence(tuple(centre + row), 0.01, 0.95) for row in noise]
        assert np.mean([result.verdict == "equal" for result in results]) < 0.07  # 3 standard errors above 0.05
    same = [Equivalence(tuple(row), 0.01, 0.95) for row in noise.tolist()]
    assert np.mean([result.verdict in ("better", "worse") for result in same]) < 0.07
    lost = [Equivalence(tuple(row - 0.01), 0.01, 0.95) for row in noise]
    assert np.mean([result.not_worse for result in lost]) == pytest.approx(0.05, abs=0.02)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    random = np.random.default_rng(5)
    for seeds in (2, 3, 8):
        rows = random.normal(0.9, 0.01, (2000, seeds)).tolist()
        intervals = [t_interval(row, 0.9) for row in rows]
        assert np.mean([i.low <= 0.9 <= i.high for i in intervals]) == pytest.approx(0.9, abs=0.02)
        factors = [ratio_interval(np.exp(row).tolist(), 0.9) for row in rows]
        assert np.mean([i.low <= math.exp(0.9) <= i.high for i in factors]) == pytest.approx(0.9, abs=0.02)


def test_intervals_of_few_and_of_equal_values() -> None:
    assert t_interval([], 0.95) is None
    assert t_interval([1.0], 0.95) is None
    assert ratio_interval([2.0], 0.95) is None
    assert t_interval([0.1] * 3, 0.95) == Interval(0.1, 0.1, 0.95)
    assert ratio_interval([0.1] * 3, 0.95).is_point
    assert Interval(-0.2, 1.3, 0.95).clipped(0.0, 1.0) == Interval(0.0, 1.0, 0.95)


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=6))
def test_an_interval_of_ratios_turns_over_with_them(ratios: list[float]) -> None:
    forth = ratio_interval(ratios, 0.95)
    back = ratio_interval([1 / ratio for ratio in ratios], 0.95)
    assert back.low * forth.high == pytest.approx(1)


@given(st.dictionaries(st.integers(0, 99), st.floats(-10, 10), min_size=2, max_size=8))
def test_pseudo_values_of_a_mean_are_its_values(by_seed: dict[int, float]) -> None:
    values = jackknife_values(list(by_seed), lambda seeds: statistics.fmean(by_seed[seed] for seed in seeds))
    assert values == pytest.approx(by_seed, abs=1e-9)


def test_a_jackknife_names_the_seed_without_which_there_is_no_estimate() -> None:
    values = jackknife_values([1, 2, 3], lambda seeds: 1.0 if 2 in seeds else None)
    assert values == {1: 1.0, 2: None, 3: 1.0}


def test_holm_as_in_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.2]) == [0.2]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_is_between_no_correction_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1.0, len(p_values) * p)
    assert sorted(adjusted) == [adjusted[i] for i in np.argsort(p_values, kind="stable")]


def test_holm_keeps_errors_among_many_tests_rare() -> None:
    p_values = np.random.default_rng(0).random((4000, 13))
    wrong = np.mean([min(holm(row)) <= 0.05 for row in p_values.tolist()])
    assert wrong == pytest.approx(0.05, abs=0.012)
    assert np.mean(p_values.min(axis=1) <= 0.05) > 0.4  # without it
