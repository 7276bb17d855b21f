"""What a plan says: plain data for tables, files and pictures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import energy_models as em
from energy_models.energy import ZERO
from lowprec_eb.planning.settings import PlanArm, PlanSettings


@dataclass(frozen=True)
class PlannedPhase:
    """A phase of an arm at one width and in one precision; ``time_s`` is None where nothing says how fast it is."""

    phase: str
    width: str
    precision: str
    epochs: int
    macs: int
    bit_ops: int
    energy: em.ModelledEnergy
    time_s: em.Range | None


@dataclass(frozen=True, eq=False)
class PlannedArm:
    """An arm under one profile.

    ``scenarios`` are its phases for each emergence epoch: one, or low, nominal and high.
    """

    settings: PlanArm
    scenarios: tuple[tuple[PlannedPhase, ...], ...]

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def phases(self) -> tuple[PlannedPhase, ...]:
        """Of the nominal emergence epoch."""
        return self.scenarios[len(self.scenarios) // 2]

    @cached_property
    def totals(self) -> tuple[em.ModelledEnergy, ...]:
        """The energy of each scenario."""
        return tuple(em.ModelledEnergy.total(phase.energy for phase in phases) for phases in self.scenarios)

    @property
    def energy_j(self) -> em.Range:
        """Low and high over the scenarios too."""
        return _spanned([total.total_j for total in self.totals])

    @property
    def components_j(self) -> Mapping[str, em.Range]:
        """By component, low and high over the scenarios too."""
        names = dict.fromkeys(name for total in self.totals for name in total.components_j)
        return {name: _spanned([total.components_j.get(name, ZERO) for total in self.totals]) for name in names}

    @property
    def phases_j(self) -> Mapping[str, em.Range]:
        """By phase ("search", "retrain", ...), low and high over the scenarios too."""
        names = dict.fromkeys(phase.phase for phase in self.phases)
        sums = [
            {n: em.Range.total(p.energy.total_j for p in phases if p.phase == n) for n in names}
            for phases in self.scenarios
        ]
        return {name: _spanned([of[name] for of in sums]) for name in names}

    @property
    def time_s(self) -> em.Range | None:
        """Of all devices, which work side by side; low and high over the scenarios too."""
        times = [[phase.time_s for phase in phases] for phases in self.scenarios]
        if any(time is None for of in times for time in of):
            return None
        return _spanned([em.Range.total(time for time in of if time is not None) for of in times])

    @property
    def macs(self) -> int:
        return sum(phase.macs for phase in self.phases)

    @property
    def bit_ops(self) -> int:
        return sum(phase.bit_ops for phase in self.phases)

    def ratio_to(self, other: PlannedArm) -> em.Range:
        """This arm's energy over the other's: jointly over what the profile leaves open and the emergence epoch."""
        ratios = [mine.ratio_to(its) for mine, its in zip(self.totals, other.totals, strict=True)]
        return _spanned(ratios)


def _spanned(ranges: list[em.Range]) -> em.Range:
    """Nominal of the middle one, ends over all."""
    nominal = ranges[len(ranges) // 2].nominal
    return em.Range(min(r.low for r in ranges), nominal, max(r.high for r in ranges))


@dataclass(frozen=True, eq=False)
class Plan:
    """All arms under one profile.

    ``forward_macs`` are of one sample, by width; ``uncounted`` names what has no formula.
    """

    settings: PlanSettings
    profile: em.HardwareProfile
    model: str
    parameters: int
    forward_macs: Mapping[str, int]
    arms: tuple[PlannedArm, ...]
    uncounted: tuple[str, ...]

    @property
    def unseparated(self) -> list[tuple[PlannedArm, PlannedArm, em.Range]]:
        """Pairs of arms whose ratio may be above or below 1."""
        pairs = ((a, b) for place, b in enumerate(self.arms) for a in self.arms[place + 1 :])
        ratios = [(a, b, a.ratio_to(b)) for a, b in pairs]
        return [(a, b, ratio) for a, b, ratio in ratios if ratio.low <= 1 <= ratio.high]


def scaled_macs(counts: Iterable[tuple[em.OpCounts, float]]) -> tuple[int, int]:
    """(MACs, bit-ops) of units done so many times."""
    parts = list(counts)
    sums = [math.fsum(getattr(unit, name) * times for unit, times in parts) for name in ("total_macs", "bit_ops")]
    if not all(map(math.isfinite, sums)):
        raise ValueError("the plan's operations are too many to be a number; check samples (tokens) and epochs")
    return round(sums[0]), round(sums[1])
