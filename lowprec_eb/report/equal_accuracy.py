"""Energy at equal accuracy: where a pipeline that was run at several ratios becomes as accurate as a baseline."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from energy_models.energy import ModelledEnergy, Range
from lowprec_eb.report.intervals import Interval, jackknife_values, t_interval

Side = Literal["above", "below", "no seed"]
EnergyVerdict = Literal["less", "more", "not established"]
_DECIMALS = 12  # of accuracies: pooling may leave them a last bit apart


@dataclass(frozen=True)
class SweepPoint:
    """One ratio of a sweep (share of channels dropped), with accuracies (fractions) and energies by seed."""

    ratio: float
    accuracy: Mapping[int, float]
    energy: Mapping[int, ModelledEnergy]


@dataclass(frozen=True)
class EqualAccuracy:
    """The largest ratio at which a sweep is as accurate as a baseline, and what it costs there, a mean over ``seeds``.

    ``target`` is the baseline's mean test accuracy. ``of_baseline`` is the energy over the baseline's: nominal, low and
    high over the corners of the energy model. ``interval`` is of its nominal value, over seeds, and ``energy_interval``
    of the nominal energy, in J. Both are None where leaving out a seed leaves the sweep (``lost``: those seeds), and
    for one seed.
    """

    target: float
    ratio: float
    energy: ModelledEnergy
    of_baseline: Range
    seeds: tuple[int, ...]
    interval: Interval | None
    energy_interval: Interval | None
    lost: tuple[int, ...]

    @property
    def verdict(self) -> EnergyVerdict:
        """Whether the interval over seeds lies below 1, or above it; of nominal energies alone."""
        if self.interval is None:
            return "not established"
        return "less" if self.interval.high < 1 else "more" if self.interval.low > 1 else "not established"


@dataclass(frozen=True)
class NotReached:
    """The target lies outside the sweep; nothing is extrapolated.

    ``side`` "no seed": no seed is common to all, and the target is NaN. "above": no ratio is as accurate. "below": even
    the largest is more accurate, and with ``energy`` (``of_baseline`` of the baseline's) it is only known that equal
    accuracy needs no more.
    """

    target: float
    side: Side
    seeds: tuple[int, ...]
    energy: ModelledEnergy | None = None
    of_baseline: Range | None = None


def energy_at_equal_accuracy(
    points: Sequence[SweepPoint],
    baseline_accuracy: Mapping[int, float],
    baseline_energy: Mapping[int, ModelledEnergy],
    level: float,
) -> EqualAccuracy | NotReached:
    """Interpolate a sweep, linearly in its ratio, at the baseline's mean accuracy.

    The curve is that of means over the seeds that all points and the baseline have, made monotone: accuracy must not
    rise with the ratio, and neighbours that do are replaced by their mean (isotonic regression). The interval is a
    jackknife over seeds, each left out of all points and of the baseline together, on the logarithm of the energy's
    ratio to the baseline's; of numbers that each seed gives by itself it is Student's interval.

    Raises:
        ValueError: fewer than two points, or two of one ratio.
    """
    ratios = [point.ratio for point in points]
    if len(points) < 2 or len(set(ratios)) < len(ratios):
        raise ValueError(f"a sweep needs two points or more, each of another ratio; got ratios {ratios}")
    points = sorted(points, key=lambda point: point.ratio)
    everywhere = set(baseline_accuracy) & set(baseline_energy)
    seeds = sorted(everywhere.intersection(*(set(point.accuracy) & set(point.energy) for point in points)))
    if not seeds:
        return NotReached(math.nan, "no seed", ())
    target = _mean(baseline_accuracy, seeds)
    place = _place(points, target, seeds)
    base = _mean_energy(baseline_energy, seeds)
    if isinstance(place, str):
        if place != "below":
            return NotReached(target, place, tuple(seeds))
        cheapest = _energy(points, len(points) - 1.0, seeds)
        return NotReached(target, place, tuple(seeds), cheapest, cheapest.ratio_to(base))

    def of_some(some: Sequence[int]) -> tuple[float, float] | None:
        """Energy and the baseline's; None: the sweep is left."""
        at = _place(points, _mean(baseline_accuracy, some), some) if some else "no seed"
        if isinstance(at, str):
            return None
        return _energy(points, at, some).nominal_j, _mean_energy(baseline_energy, some).nominal_j

    lost = () if len(seeds) == 1 else tuple(s for s in seeds if of_some([o for o in seeds if o != s]) is None)
    energy = _energy(points, place, seeds)
    return EqualAccuracy(
        target=target,
        ratio=_between([point.ratio for point in points], place),
        energy=energy,
        of_baseline=energy.ratio_to(base),
        seeds=tuple(seeds),
        interval=_interval(seeds, of_some, lambda joules, base: joules / base, level),
        energy_interval=_interval(seeds, of_some, lambda joules, base: joules, level),
        lost=lost,
    )


def _interval(
    seeds: Sequence[int],
    energies: Callable[[Sequence[int]], tuple[float, float] | None],
    number: Callable[[float, float], float],
    level: float,
) -> Interval | None:
    """A jackknife on the logarithm of a number that both energies give; None where leaving out a seed leaves none."""

    def log(some: Sequence[int]) -> float | None:
        both = energies(some)
        return None if both is None else math.log(number(*both))

    values = list(jackknife_values(seeds, log).values())
    known = [value for value in values if value is not None]
    logs = t_interval(known, level) if len(known) == len(values) else None
    return None if logs is None else Interval(math.exp(logs.low), math.exp(logs.high), level)


def falling(values: Sequence[float]) -> list[float]:
    """The least-squares fit that never rises: neighbours that do are pooled into their mean.

    Source: Ayer et al. 1955 (pool adjacent violators).
    """
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and statistics.fmean(blocks[-1]) > statistics.fmean(blocks[-2]):
            last = blocks.pop()
            blocks[-1] += last
    return [statistics.fmean(block) for block in blocks for _ in block]


def _place(points: Sequence[SweepPoint], target: float, seeds: Sequence[int]) -> float | Side:
    """Where along the points the mean accuracy last is the target (1.5: halfway from the second to the third), or on
    which side of all of them the target lies."""
    curve = [round(value, _DECIMALS) for value in falling([_mean(point.accuracy, seeds) for point in points])]
    target = round(target, _DECIMALS)
    if target > curve[0]:
        return "above"
    if target < curve[-1]:
        return "below"
    left = max(index for index, value in enumerate(curve) if value >= target)
    if curve[left] == target:
        return float(left)
    return left + (curve[left] - target) / (curve[left] - curve[left + 1])


def _between(values: Sequence[float], place: float) -> float:
    left = min(int(place), len(values) - 2)
    return values[left] + (place - left) * (values[left + 1] - values[left])


def _energy(points: Sequence[SweepPoint], place: float, seeds: Sequence[int]) -> ModelledEnergy:
    left = min(int(place), len(points) - 2)
    first, second = (_mean_energy(point.energy, seeds) for point in points[left : left + 2])
    return first * (1 - (place - left)) + second * (place - left)


def _mean(by_seed: Mapping[int, float], seeds: Sequence[int]) -> float:
    return statistics.fmean(by_seed[seed] for seed in seeds)


def _mean_energy(by_seed: Mapping[int, ModelledEnergy], seeds: Sequence[int]) -> ModelledEnergy:
    return ModelledEnergy.total(by_seed[seed] for seed in seeds) * (1 / len(seeds))
