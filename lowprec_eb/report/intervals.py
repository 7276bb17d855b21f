"""Confidence intervals over seeds: where the mean of many more seeds would lie.

They say nothing of what the energy model leaves open; its ranges are :class:`energy_models.Range`, another type.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """Both ends in the unit of the values; ``level`` is the confidence, such as 0.95."""

    low: float
    high: float
    level: float

    @property
    def is_point(self) -> bool:
        """All values were equal, so that they show no spread; that does not mean there is none."""
        return self.low == self.high

    def clipped(self, low: float, high: float) -> Interval:
        """Within [low, high], where the mean must lie: it covers the mean as often as before."""
        return Interval(min(max(self.low, low), high), max(min(self.high, high), low), self.level)


def check_confidence(confidence: float) -> None:
    """Raises ValueError unless it lies between one half and one."""
    if not 0.5 < confidence < 1:
        raise ValueError(f"confidence must be between 0.5 and 1, such as 0.95, got {confidence}")


def student_quantile(probability: float, degrees: int) -> float:
    """Where the cumulative distribution of Student's t reaches ``probability``."""
    from scipy.special import stdtrit  # takes as long to import as all the rest

    return float(stdtrit(degrees, probability))


def student_below(t: float, degrees: int) -> float:
    """Probability of a value of Student's t below ``t``."""
    from scipy.special import stdtr  # takes as long to import as all the rest

    return float(stdtr(degrees, t))


def t_interval(values: Sequence[float], level: float) -> Interval | None:
    """The two-sided interval of the mean, Student's t with n - 1 degrees of freedom; None for fewer than two values."""
    if len(values) < 2:
        return None
    if min(values) == max(values):
        return Interval(values[0], values[0], level)
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = student_quantile((1 + level) / 2, len(values) - 1) * error
    return Interval(mean - reach, mean + reach, level)


def ratio_interval(ratios: Sequence[float], level: float) -> Interval | None:
    """The interval of the geometric mean of factors above zero: Student's t on their logarithms."""
    if len(ratios) > 1 and min(ratios) == max(ratios):
        return Interval(ratios[0], ratios[0], level)
    logs = t_interval([math.log(ratio) for ratio in ratios], level)
    return None if logs is None else Interval(math.exp(logs.low), math.exp(logs.high), level)


def jackknife_values(
    seeds: Sequence[int], estimate: Callable[[Sequence[int]], float | None]
) -> Mapping[int, float | None]:
    """What each seed stands for in an estimate that needs all seeds: Tukey's pseudo-values.

    Seed left out -> n * estimate(all) - (n - 1) * estimate(all others); None where one of the two is. Of a mean they
    are the values themselves, so their :func:`t_interval` is the usual one.

    Source: Tukey 1958; Efron and Tibshirani 1993, chapter 11.
    """
    whole, n = estimate(seeds), len(seeds)
    values: dict[int, float | None] = {}
    for seed in seeds:
        rest = estimate([other for other in seeds if other != seed])
        values[seed] = None if whole is None or rest is None else n * whole - (n - 1) * rest
    return values
