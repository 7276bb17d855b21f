"""What is established over seeds and what is not, in plain sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lowprec_eb.report.equal_accuracy import NotReached
from lowprec_eb.report.equivalence import Equivalence
from lowprec_eb.report.findings import ArmTest, Findings, SweepResult, arm_test, find, holds_for_all
from lowprec_eb.report.intervals import Interval
from lowprec_eb.report.saving import Saving, Unsplit
from lowprec_eb.report.summary import ArmSummary, Comparison, diverged_arms, summarise
from lowprec_eb.report.units import ratio_text, three_digits


def statistics_sentences(comparison: Comparison) -> list[str]:
    """In reading order; a group without arms is left out, but not that nothing could be established."""
    arms, findings = summarise(comparison), find(comparison)
    return [
        *_seeds(arms),
        *_without_baseline(comparison, findings),
        *(line for base in findings.baselines for line in _against_baseline(comparison, findings, base)),
        *_number_of_tests(comparison, findings.tests),
        *_dropped(findings.tests),
        *_no_spread(comparison, findings.tests),
        *_savings(arms, findings),
        *(_sweep(sweep) for sweep in findings.sweeps),
    ]


def verdict_text(result: Equivalence) -> str:
    """One of equal, better, worse, not worse (and no more is known), not established."""
    if result.verdict == "not established" and result.not_worse:
        return "not worse"
    return result.verdict


def difference_text(arm: ArmSummary, other: ArmSummary, comparison: Comparison) -> str:
    """After "differs by": the paired difference, its interval, and the verdict."""
    result = arm_test(arm, other, comparison).accuracy
    if result.mean is None:
        return "an unknown amount (no common seed)"
    change = f"{100 * result.mean:+.2f} points"
    if result.interval is None:
        return f"{change} (one seed: nothing is established)"
    ends = interval_text(result.interval, "points")
    return f"{change} ({ends} over {len(result.differences)} paired seeds: {verdict_text(result)})"


def interval_text(interval: Interval, unit: str) -> str:
    """As "90 % interval -0.10 to +0.30"; in points for a fraction, or in units of a ratio; "no spread" of a point."""
    level = f"{percent(interval.level)} interval"
    if interval.is_point:
        return "no spread"
    if unit == "points":
        return f"{level} {100 * interval.low:+.2f} to {100 * interval.high:+.2f}"
    return f"{level} x{three_digits(interval.low)} to x{three_digits(interval.high)}"


def percent(fraction: float) -> str:
    """As "95 %"."""
    return f"{round(100 * fraction, 10):g} %"


def points_text(fraction: float) -> str:
    """As "1 point" or "0.5 points"."""
    points = f"{round(100 * fraction, 10):g}"
    return f"{points} point" if points == "1" else f"{points} points"


# ---- one group of sentences each ---------------------------------------------------------------------------------


def _seeds(arms: Sequence[ArmSummary]) -> list[str]:
    numbers = sorted({arm.test_accuracy.n for arm in arms})
    if numbers == [1]:
        return ["With one seed nothing is known about the spread over seeds, and no accuracy can be called equal."]
    ends = " to ".join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))
    return [
        f"Seeds of an arm: {ends}. Behind ± stands the sample standard deviation; intervals are Student's t. "
        "They are of other training runs on these very splits, and say nothing of other test examples. What the energy "
        "model leaves open is another matter, and stands apart as low to high. Epochs were selected on the "
        "validation split."
    ]


def _without_baseline(comparison: Comparison, findings: Findings) -> list[str]:
    lost = [name for name in comparison.baselines if name in diverged_arms(comparison)]
    lines = [f"Nothing was tested against {name}: it diverged with every seed." for name in lost]
    known = {outcome.arm for outcome in comparison.outcomes}
    late = [name for name in comparison.baselines if name not in known and name not in lost]
    lines += [f"Nothing was tested against {name}: no seed of it has ended." for name in late]
    if not findings.baselines and not lines:
        lines.append(
            "Equal accuracy was not tested: there is neither full training nor network slimming in fp32, and the "
            "settings name no other arm (baselines)."
        )
    return lines


def _against_baseline(comparison: Comparison, findings: Findings, base: ArmSummary) -> list[str]:
    tests = [test for test in findings.tests if test.baseline == base.arm]
    if not tests:
        return []
    groups: dict[str, list[str]] = {}
    for kind in ("equal", "better", "worse", "not worse", "not established"):
        groups[kind] = [test.arm for test in tests if verdict_text(test.accuracy) == kind]
    told = [f"{kind.capitalize()}: {', '.join(names)}" for kind, names in groups.items() if names]
    return [
        f"Test accuracy against {base.arm}, paired by seed, with a margin of {points_text(comparison.margin)}. "
        f"{'. '.join(told)}.{_equal_yet_different(tests)}",
        _cheapest_established(comparison, tests, base),
    ]


def _equal_yet_different(tests: Iterable[ArmTest]) -> str:
    """A loss within the margin is one nevertheless."""
    found: dict[str, list[str]] = {"lower": [], "higher": []}
    for test in tests:
        outer = test.accuracy.wide_interval
        if test.accuracy.verdict == "equal" and outer is not None and (outer.high < 0 or outer.low > 0):
            found["lower" if outer.high < 0 else "higher"].append(test.arm)
    told = [f"{', '.join(names)} (shown to be {side})" for side, names in found.items() if names]
    return f" Equal within the margin, but not the same: {'; '.join(told)}." if told else ""


def _cheapest_established(comparison: Comparison, tests: Iterable[ArmTest], base: ArmSummary) -> str:
    """The claim that a reader is after, or that it cannot be made."""
    enough = [test for test in tests if test.accuracy.not_worse and test.energy_ratio.nominal < 1]
    margin = points_text(comparison.margin)
    if not enough:
        return (
            f"No saving at equal accuracy is established against {base.arm}: no arm that needs less energy is shown to "
            f"lose less than {margin}."
        )
    best = min(enough, key=lambda test: test.energy_ratio.nominal)
    assert best.holm_not_worse is not None
    holds = best.holm_not_worse <= 1 - comparison.confidence
    held = "so it is established for all together too" if holds else "so for all together it is not"
    return (
        f"Of the arms that are shown to lose less than {margin} against {base.arm}, {best.arm} needs least: "
        f"{ratio_text(best.energy_ratio)} of its energy{_over_seeds(best.energy_interval)}. It was picked among "
        f"several: corrected for all tests (Holm), p is {p_text(best.holm_not_worse)}, {held}."
    )


def p_text(p: float | None) -> str:
    """Two digits, or "-" where there is none."""
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.2g}"


def _number_of_tests(comparison: Comparison, tests: Sequence[ArmTest]) -> list[str]:
    made = [test for test in tests if test.accuracy.p_equal is not None]
    if not made:
        return []
    alpha = 1 - comparison.confidence
    equal = [test for test in made if test.accuracy.verdict == "equal"]
    kept = [f"{test.arm} against {test.baseline}" for test in equal if holds_for_all(test)]
    listed = f" ({', '.join(kept)})" if kept else ""
    return [
        f"Tests made: {len(made)}, each wrong with a probability of at most {percent(alpha)} by itself. "
        "Verdicts of equality that hold for all together, after Holm's correction: "
        f"{len(kept)} of {len(equal)}{listed}."
    ]


def _dropped(tests: Sequence[ArmTest]) -> list[str]:
    found = [
        f"{test.arm} against {test.baseline}: {len(test.dropped)} (seed {', '.join(map(str, test.dropped))})"
        for test in tests
        if test.dropped
    ]
    if not found:
        return []
    return [f"Pairs without a result of both arms, diverged ones too, were left out: {'; '.join(found)}."]


def _no_spread(comparison: Comparison, tests: Sequence[ArmTest]) -> list[str]:
    found = [f"{test.arm} against {test.baseline}" for test in tests if test.accuracy.no_spread]
    if not found:
        return []
    examples = comparison.splits.get("test")
    step = f" One test example is {100 / examples:.2f} points." if examples else ""
    return [
        f"All seeds differ by the same amount, so the interval is a point, and the verdict stands on no spread at all: "
        f"{'; '.join(found)}.{step}"
    ]


def _savings(arms: Sequence[ArmSummary], findings: Findings) -> list[str]:
    """The arm of lowest energy that can be split, for each baseline, and all that cannot."""
    energy = {arm.arm: arm.energy.nominal_j for arm in arms}
    lines, missing = [], dict[str, list[str]]()
    for base in findings.baselines:
        split = [of for of in findings.savings if isinstance(of, Saving) and of.baseline == base.arm]
        if split:
            lines.append(_saving(min(split, key=lambda saving: energy[saving.arm])))
    for saving in findings.savings:
        if isinstance(saving, Unsplit):
            missing.setdefault(saving.missing, []).append(f"{saving.arm} (against {saving.baseline})")
    if lines:
        lines.append(
            "Each pair of factors multiplies to the whole; where the orders differ, what comes first changes what is "
            "left for the other to save. The ticket's factor is all that its pipeline changes against the baseline's: "
            "stages and epochs as well as channels. A factor above 1 costs."
        )
    told = [f"{', '.join(names)}: {what} is missing" for what, names in missing.items()]
    return [*lines, *([f"Cannot be split into ticket and bits. {'; '.join(told)}."] if told else [])]


def _saving(saving: Saving) -> str:
    ticket, then_bits = (three_digits(factor.nominal) for factor in saving.ticket_first)
    bits, then_ticket = (three_digits(factor.nominal) for factor in saving.bits_first)
    return (
        f"Where x{three_digits(saving.whole.nominal)} comes from ({saving.arm} against {saving.baseline}). Ticket "
        f"first (by way of {saving.ticket_only}): x{ticket} from the ticket, then x{then_bits} from the bits. Bits "
        f"first (by way of {saving.bits_only}): x{bits} from the bits, then x{then_ticket} from the ticket. Mean of "
        f"both orders (geometric: the Shapley value of log energy): ticket {ratio_text(saving.ticket)}"
        f"{_over_seeds(saving.ticket_interval)}, bits {ratio_text(saving.bits)}{_over_seeds(saving.bits_interval)}."
    )


def _over_seeds(interval: Interval | None) -> str:
    return "" if interval is None else f" ({interval_text(interval, 'ratio')} over seeds)"


def _sweep(sweep: SweepResult) -> str:
    listed, result = ", ".join(sweep.arms), sweep.result
    if result is None:
        return f"No sweep can be made of {listed}: two of them have one ratio, so they differ in something else."
    start = f"Energy at the accuracy of {sweep.baseline} along the ratios of {listed}: "
    if isinstance(result, NotReached):
        return start + _not_reached(result)
    seeds = (
        _over_seeds(result.interval)
        or " (no interval over seeds: "
        + (f"without seed {', '.join(map(str, result.lost))} it is not reached" if result.lost else "one seed")
        + ")"
    )
    run = "" if result.ratio in sweep.ratios else "; interpolated, so no arm was run there"
    return (
        f"{start}{ratio_text(result.of_baseline)} of its energy{seeds}, at a ratio of {result.ratio:.3f}, where the "
        f"mean accuracy is its {100 * result.target:.2f} %{run}."
    )


def _not_reached(result: NotReached) -> str:
    if result.side == "no seed":
        return "not known, since no seed was run with all of them."
    if result.side == "above":
        return f"not reached. No ratio of the sweep has its {100 * result.target:.2f} %."
    assert result.of_baseline is not None
    return (
        f"below the sweep. Even the largest ratio is more accurate than its {100 * result.target:.2f} %, so it needs "
        f"no more than {ratio_text(result.of_baseline)} of its energy; nothing is extrapolated."
    )
