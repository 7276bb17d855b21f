"""Plans: energy and time of whole pipelines, from one count of each step that they repeat.

Costs are linear in repetitions: a stretch of epochs is the price of one step times their number, so a thousand epochs
take no longer to plan than one. The last batch of an epoch counts as the fraction of a step that it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import energy_models as em
from energy_models.footprint import as_range
from energy_models.ledger import PHASES
from lowprec_eb.arms import MatchSettings
from lowprec_eb.matching import nearest_length
from lowprec_eb.planning.result import Plan, PlannedArm, PlannedPhase, scaled_macs
from lowprec_eb.planning.settings import PlanArm, PlanSettings
from lowprec_eb.planning.walk import DENSE, Stretch, Width, walk
from lowprec_eb.planning.work import ModelWork
from lowprec_eb.stage_data import StagePhase


@dataclass(frozen=True)
class _Repeated:
    """A unit done ``times`` times in all, by ``devices`` side by side."""

    phase: str
    width: Width
    precision: str
    epochs: int
    unit: em.OpCounts
    times: float
    devices: int


def make_plans(settings: PlanSettings) -> tuple[Plan, ...]:
    """The plan under each profile; the model is counted once for all of them.

    Raises:
        ValueError: the model cannot be built, counted or narrowed, or a profile cannot price one of its precisions.
    """
    profiles = [em.load_profile(name) for name in settings.profiles]
    names = [profile.name for profile in profiles]
    if len(set(names)) < len(names):
        raise ValueError(f"profiles: two of the files give the same name, {names}; change the key name in one of them")
    work = ModelWork(settings)
    scenarios = {arm.name: _scenarios(arm, work) for arm in settings.arms}
    return tuple(priced(settings, profile, work, scenarios) for profile in profiles)


def _scenarios(arm: PlanArm, work: ModelWork) -> list[list[_Repeated]]:
    epochs = (0,) if work.settings.ticket is None else work.settings.ticket.epochs
    return [_walked(arm, emergence, work) for emergence in epochs]


def _walked(arm: PlanArm, emergence: int, work: ModelWork) -> list[_Repeated]:
    settings = work.settings
    ratio = None if settings.ticket is None else settings.ticket.ratio

    def matched(match: MatchSettings, precision: str) -> int:
        other = next(other for other in settings.arms if other.name == match.arm)
        target = _training_macs(_walked(other, emergence, work))
        epoch = _training_macs(_repeated([Stretch("train", DENSE, precision, 1)], work))
        return nearest_length(target, lambda epochs: epochs * epoch, 1, settings.epochs)

    return _repeated(walk(arm, settings.epochs, emergence, ratio, matched), work)


def _training_macs(repeated: Iterable[_Repeated]) -> float:
    trained = get_args(StagePhase)
    return math.fsum(part.unit.total_macs * part.times for part in repeated if part.phase in trained)


def _repeated(stretches: Sequence[Stretch], work: ModelWork) -> list[_Repeated]:
    settings = work.settings
    found: list[_Repeated] = []
    items = settings.samples if settings.tokens is None else settings.tokens
    assert items is not None
    steps = items / work.items_per_sample / settings.batch  # of an epoch
    passes = settings.evaluation.samples * settings.evaluation.per_epoch / work.items_per_sample / work.samples_per_pass
    for of in stretches:
        what, devices = (of.width, of.precision, of.epochs), settings.devices
        done = of.epochs * steps * devices
        found += _begun(of, work)
        found.append(_Repeated(of.phase, *what, work.train(of.width, of.precision), done, devices))
        if of.penalised:
            found.append(_Repeated(of.phase, *what, work.penalty(of.width), done, devices))
        if of.detects:
            found.append(_Repeated("detect", *what, work.detection(), of.epochs, 1))
        if passes:
            unit = work.evaluate(of.width, of.precision)
            found.append(_Repeated("eval", *what, unit, of.epochs * passes, devices))
    return found


def _begun(of: Stretch, work: ModelWork) -> Iterator[_Repeated]:
    """What choosing and cutting the channels takes before the first epoch."""
    if of.cut is None:
        return
    if of.seen:
        devices, what = work.settings.devices, ("search", of.cut, of.precision, 0)
        yield _Repeated(*what, work.sensitivity(of.cut, of.precision), of.seen * devices, devices)
        yield _Repeated(*what, work.scoring(of.cut), 1, 1)
    yield _Repeated("prune", of.width, of.precision, 0, work.cut(of.cut, of.width), 1, 1)


# ---- pricing -----------------------------------------------------------------------------------------------------


def priced(
    settings: PlanSettings,
    profile: em.HardwareProfile,
    work: ModelWork,
    scenarios: dict[str, list[list[_Repeated]]],
) -> Plan:
    """The plan under one profile."""
    pricing = _Pricing(profile, settings, work)
    arms = [
        PlannedArm(arm, tuple(pricing.phases(arm, repeated) for repeated in scenarios[arm.name]))
        for arm in settings.arms
    ]
    units = [part.unit for of in scenarios.values() for repeated in of for part in repeated]
    widths = {part.width for of in scenarios.values() for repeated in of for part in repeated}
    per_sample = work.samples_per_pass * settings.accumulate
    forward = {
        width.name: work.train(width, "fp32").macs["output"] // per_sample for width in sorted(widths, reverse=True)
    }
    uncounted = tuple(sorted({name for unit in units for name in unit.uncounted}))
    return Plan(settings, profile, work.name, work.parameters, forward, tuple(arms), uncounted)


class _Pricing:
    """Prices each unit once."""

    def __init__(self, profile: em.HardwareProfile, settings: PlanSettings, work: ModelWork) -> None:
        self._profile, self._settings = profile, settings
        # Work that one device does for a sample (a token) of dense training: what a rate is the speed of.
        items = settings.batch // settings.devices * work.items_per_sample
        self._macs_per_item = work.train(DENSE, "fp32").total_macs / items
        self._priced: dict[tuple[int, bool], tuple[em.OpCounts, em.ModelledEnergy, em.Range | None]] = {}

    def phases(self, arm: PlanArm, repeated: Sequence[_Repeated]) -> tuple[PlannedPhase, ...]:
        """One for each phase, width and precision, in the order of a ledger's phases."""
        groups: dict[tuple[str, Width, str], list[_Repeated]] = {}
        for part in repeated:
            groups.setdefault((part.phase, part.width, part.precision), []).append(part)
        found = [self._phase(arm, *key, parts) for key, parts in groups.items()]
        return tuple(sorted(found, key=lambda phase: PHASES.index(phase.phase)))

    def _phase(
        self, arm: PlanArm, phase: str, width: Width, precision: str, parts: Sequence[_Repeated]
    ) -> PlannedPhase:
        macs, bit_ops = scaled_macs((part.unit, part.times) for part in parts)
        # A chip draws its static power for as long as it takes, which the user knows better than the profile.
        timed = self._profile.chip is not None and self._rate(arm) is not None
        energy = em.ModelledEnergy.total(self._unit(part.unit, timed)[0] * part.times for part in parts)
        epochs = sum(part.epochs for part in parts if part.unit is parts[0].unit)  # a penalty is in the same epochs
        time_s = self._time(arm, macs, parts)
        if timed and time_s is not None:
            energy = energy + em.static_energy(self._profile, time_s * self._settings.devices)
        return PlannedPhase(phase, width.name, precision, epochs, macs, bit_ops, energy, time_s)

    def _rate(self, arm: PlanArm) -> tuple[float, ...] | None:
        return arm.rate or self._settings.rate

    def _time(self, arm: PlanArm, macs: int, parts: Sequence[_Repeated]) -> em.Range | None:
        rate = self._rate(arm)
        if rate is not None:
            items_per_s = as_range(rate) * self._settings.devices
            items = macs / self._macs_per_item
            return em.Range(items / items_per_s.high, items / items_per_s.nominal, items / items_per_s.low)
        times = [(self._unit(part.unit, False)[1], part.times / part.devices) for part in parts]
        if any(time is None for time, _ in times):
            return None
        return em.Range.total(time * repeats for time, repeats in times if time is not None)

    def _unit(self, unit: em.OpCounts, without_static: bool) -> tuple[em.ModelledEnergy, em.Range | None]:
        key = id(unit), without_static
        if key not in self._priced:  # holding on to the unit, so that no other one can take over its id
            profile = replace(self._profile, chip=None) if without_static else self._profile
            self._priced[key] = (unit, em.estimate(unit, profile), em.modelled_time_s(unit, self._profile))
        return self._priced[key][1:]
