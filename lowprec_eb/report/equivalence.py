"""Is one arm as accurate as another? Two one-sided tests on the differences of the seeds that both were run with.

Source: Schuirmann 1987 (two one-sided tests); Lakens 2017 (together with a test for a difference); Holm 1979.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lowprec_eb.report.intervals import Interval, check_confidence, student_below, t_interval

Verdict = Literal["equal", "better", "worse", "not established"]
_DECIMALS = 12  # 0.97 - 0.96 is not quite 0.01


@dataclass(frozen=True)
class Equivalence:
    """The differences of paired values (one arm minus another, a seed each) against a margin, in the same unit.

    Every verdict is wrong with a probability of at most 1 - ``confidence``, whatever the true mean difference:

    - equal: the interval of level 2 * confidence - 1 lies within the margin on both sides (two one-sided tests);
    - better, worse: not equal, and the interval of level confidence lies above, below zero (a two-sided test);
    - not established: none of these.

    ``not_worse`` (non-inferior: the first interval lies above the margin's lower side) is a weaker claim than equal.
    With fewer than two pairs nothing is established, and there are neither intervals nor p-values (None). Where all
    differences are equal the intervals are points, and p-values 0 or 1: no spread was seen.

    Raises ValueError for a negative margin and a confidence outside (0.5, 1).
    """

    differences: tuple[float, ...]
    margin: float
    confidence: float

    def __post_init__(self) -> None:
        if not self.margin >= 0:
            raise ValueError(f"margin must not be negative, got {self.margin}")
        check_confidence(self.confidence)
        object.__setattr__(self, "differences", tuple(round(value, _DECIMALS) for value in self.differences))

    @property
    def mean(self) -> float | None:
        """The mean difference; None without a pair."""
        return statistics.fmean(self.differences) if self.differences else None

    @property
    def interval(self) -> Interval | None:
        """Of level 2 * confidence - 1 (0.9 for 0.95): equal and not worse are read off it."""
        return t_interval(self.differences, 2 * self.confidence - 1)

    @property
    def wide_interval(self) -> Interval | None:
        """Of level ``confidence``: better and worse are read off it."""
        return t_interval(self.differences, self.confidence)

    @property
    def verdict(self) -> Verdict:
        inner, outer = self.interval, self.wide_interval
        if inner is None or outer is None:
            return "not established"
        if -self.margin < inner.low and inner.high < self.margin:
            return "equal"
        return "better" if outer.low > 0 else "worse" if outer.high < 0 else "not established"

    @property
    def not_worse(self) -> bool:
        return self.interval is not None and self.interval.low > -self.margin

    @property
    def no_spread(self) -> bool:
        """All differences are equal, so what is established stands on the resolution of the test split."""
        return self.interval is not None and self.interval.is_point

    @property
    def p_not_worse(self) -> float | None:
        """Of the hypothesis that the mean difference is -margin or below."""
        return self._p_below(-self.margin)

    @property
    def p_equal(self) -> float | None:
        """Of the hypothesis that the mean difference is the margin or more, on either side."""
        below, above = self._p_below(-self.margin), self._p_above(self.margin)
        return None if below is None or above is None else max(below, above)

    @property
    def p_different(self) -> float | None:
        """Of the hypothesis that the mean difference is zero, two-sided."""
        below, above = self._p_below(0.0), self._p_above(0.0)
        return None if below is None or above is None else min(1.0, 2 * min(below, above))

    def _p_below(self, bound: float) -> float | None:
        """Of the hypothesis that the mean is at most ``bound``."""
        if len(self.differences) < 2:
            return None
        if self.no_spread:
            return 0.0 if self.differences[0] > bound else 1.0
        error = statistics.stdev(self.differences) / math.sqrt(len(self.differences))
        return student_below((bound - statistics.fmean(self.differences)) / error, len(self.differences) - 1)

    def _p_above(self, bound: float) -> float | None:
        """Of the hypothesis that the mean is at least ``bound``."""
        mirrored = Equivalence(tuple(-value for value in self.differences), self.margin, self.confidence)
        return mirrored._p_below(-bound)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the same order: those at most alpha hold together, with a probability of an error among
    them of at most alpha.

    Source: Holm 1979.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
