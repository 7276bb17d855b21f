"""What a comparison establishes and what it does not: every arm against every baseline, sweeps, and split savings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from energy_models.energy import ModelledEnergy, Range
from lowprec_eb.report.equal_accuracy import EqualAccuracy, NotReached, SweepPoint, energy_at_equal_accuracy
from lowprec_eb.report.equivalence import Equivalence, holm
from lowprec_eb.report.intervals import Interval, ratio_interval, t_interval
from lowprec_eb.report.roles import assign_roles
from lowprec_eb.report.saving import Saving, Unsplit, split_savings
from lowprec_eb.report.summary import ArmSummary, Comparison, summarise


@dataclass(frozen=True)
class ArmTest:
    """An arm against a baseline, paired over the ``seeds`` that both have; ``dropped`` are those that only one has.

    ``accuracy`` is the arm's test accuracy minus the baseline's. ``energy_ratio`` is the mean energy over the
    baseline's, with the ends that the energy model leaves open, over all seeds of each; ``energy_interval`` is of the
    nominal ratio over the paired seeds. The p-values are adjusted over all tests of the comparison (Holm).
    """

    arm: str
    baseline: str
    accuracy: Equivalence
    seeds: tuple[int, ...]
    dropped: tuple[int, ...]
    energy_ratio: Range
    energy_interval: Interval | None
    holm_equal: float | None = None
    holm_not_worse: float | None = None


@dataclass(frozen=True)
class SweepResult:
    """Arms that differ in ``ratio`` alone, from the smallest to the largest, and where they reach a baseline.

    ``precision`` is their label (search > training). ``result`` is None where two of them have one ratio: they must
    differ in something else, so they are no sweep.
    """

    arms: tuple[str, ...]
    pipeline: str
    precision: str
    ratios: tuple[float, ...]
    baseline: str
    result: EqualAccuracy | NotReached | None


@dataclass(frozen=True)
class Findings:
    """Everything that is said about a comparison beyond its means; empty where there is no baseline."""

    baselines: tuple[ArmSummary, ...]
    tests: tuple[ArmTest, ...]
    savings: tuple[Saving | Unsplit, ...]
    sweeps: tuple[SweepResult, ...]

    def test(self, arm: str, baseline: str) -> ArmTest | None:
        """None for a baseline against itself."""
        return next((test for test in self.tests if (test.arm, test.baseline) == (arm, baseline)), None)


def find(comparison: Comparison) -> Findings:
    """Test, interpolate and split everything that the arms of a comparison allow."""
    arms = summarise(comparison)
    baselines = baseline_arms(comparison, arms)
    level = comparison.confidence
    tests = [arm_test(arm, base, comparison) for base in baselines for arm in arms if arm is not base]
    return Findings(
        baselines=baselines,
        tests=tuple(_adjusted(tests)),
        savings=tuple(saving for base in baselines for saving in split_savings(arms, base, level)),
        # A baseline is as accurate as itself at its own ratio, which says nothing.
        sweeps=tuple(
            _sweep(group, base, level)
            for group in ratio_sweeps(arms)
            for base in baselines
            if base.arm not in [arm.arm for arm in group]
        ),
    )


def baseline_arms(comparison: Comparison, arms: Sequence[ArmSummary]) -> tuple[ArmSummary, ...]:
    """The arms that the comparison names, but for those that diverged with every seed; or full training and network
    slimming in fp32."""
    if comparison.baselines:
        by_name = {arm.arm: arm for arm in arms}
        return tuple(by_name[name] for name in comparison.baselines if name in by_name)
    roles = assign_roles(arms)
    return tuple(arm for arm in (roles.full, roles.slimming) if arm is not None)


def arm_test(arm: ArmSummary, baseline: ArmSummary, comparison: Comparison) -> ArmTest:
    """Paired by seed; p-values are not adjusted."""
    own, its = ({seed.seed: seed for seed in of.seeds} for of in (arm, baseline))
    paired = [seed for seed in own if seed in its]
    everything = {*own, *its, *arm.diverged_seeds, *baseline.diverged_seeds}
    differences = tuple(own[seed].test_accuracy - its[seed].test_accuracy for seed in paired)
    ratios = [own[seed].energy.nominal_j / its[seed].energy.nominal_j for seed in paired]
    return ArmTest(
        arm=arm.arm,
        baseline=baseline.arm,
        accuracy=Equivalence(differences, comparison.margin, comparison.confidence),
        seeds=tuple(paired),
        dropped=tuple(sorted(everything.difference(paired))),
        energy_ratio=arm.energy.ratio_to(baseline.energy),
        energy_interval=ratio_interval(ratios, comparison.confidence),
    )


def accuracy_interval(arm: ArmSummary, level: float) -> Interval | None:
    """Of the mean test accuracy over seeds, a fraction; None for one seed."""
    interval = t_interval([seed.test_accuracy for seed in arm.seeds], level)
    return None if interval is None else interval.clipped(0.0, 1.0)


def energy_interval(arm: ArmSummary, level: float) -> Interval | None:
    """Of the mean nominal energy over seeds, in joules; None for one seed."""
    interval = t_interval([seed.energy.nominal_j for seed in arm.seeds], level)
    return None if interval is None else interval.clipped(0.0, float("inf"))


def holds_for_all(test: ArmTest) -> bool:
    """Whether equal or, where that is not established, not worse holds for all tests of the comparison together."""
    adjusted = test.holm_equal if test.accuracy.verdict == "equal" else test.holm_not_worse
    return test.accuracy.not_worse and adjusted is not None and adjusted <= 1 - test.accuracy.confidence


def ratio_sweeps(arms: Iterable[ArmSummary]) -> list[tuple[ArmSummary, ...]]:
    """Groups of two or more arms that have a ratio and are described alike but for it, each in its ascending order."""
    groups: dict[tuple[object, ...], list[ArmSummary]] = {}
    for arm in arms:
        if arm.ratio is not None:
            key = (arm.pipeline, arm.search_precision, arm.precision, arm.conditions)
            groups.setdefault(key, []).append(arm)
    return [tuple(sorted(group, key=lambda arm: arm.ratio or 0.0)) for group in groups.values() if len(group) > 1]


def is_sweep(group: Sequence[ArmSummary]) -> bool:
    """Whether each arm of a group has another ratio; two of one ratio must differ in what their summaries lack."""
    return len({arm.ratio for arm in group}) == len(group)


def _adjusted(tests: Sequence[ArmTest]) -> list[ArmTest]:
    """Tests without two pairs of seeds have no p-value, and count for nothing."""
    equal = _holm_where_known([test.accuracy.p_equal for test in tests])
    not_worse = _holm_where_known([test.accuracy.p_not_worse for test in tests])
    return [
        replace(test, holm_equal=p_equal, holm_not_worse=p_not_worse)
        for test, p_equal, p_not_worse in zip(tests, equal, not_worse, strict=True)
    ]


def _holm_where_known(p_values: Sequence[float | None]) -> list[float | None]:
    adjusted = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(adjusted) for p in p_values]


def _sweep(arms: Sequence[ArmSummary], baseline: ArmSummary, level: float) -> SweepResult:
    ratios = tuple(arm.ratio or 0.0 for arm in arms)
    result = None
    if is_sweep(arms):
        points = [SweepPoint(ratio, *_by_seed(arm)) for ratio, arm in zip(ratios, arms, strict=True)]
        result = energy_at_equal_accuracy(points, *_by_seed(baseline), level)
    names = tuple(arm.arm for arm in arms)
    return SweepResult(names, arms[0].pipeline, arms[0].precision_label, ratios, baseline.arm, result)


def _by_seed(arm: ArmSummary) -> tuple[dict[int, float], dict[int, ModelledEnergy]]:
    """Test accuracies and energies."""
    return {seed.seed: seed.test_accuracy for seed in arm.seeds}, {seed.seed: seed.energy for seed in arm.seeds}
