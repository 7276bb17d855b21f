"""How much of a saving is the ticket, and how much the bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from energy_models.energy import ModelledEnergy, Range
from lowprec_eb.report.intervals import Interval, ratio_interval
from lowprec_eb.report.summary import ArmSummary


@dataclass(frozen=True)
class Saving:
    """The factor between the energies of a baseline and of an arm that differs in two ways, split into two factors.

    ``ticket`` is what the arm's pipeline brings (its channels, and its epochs and stages too), ``bits`` what its
    precision brings: each the geometric mean over both orders in which they can be brought in, which is the Shapley
    value of log energy. They multiply to ``whole`` at every corner of the energy model, so their ends, taken over the
    corners, need not. Intervals are over the common seeds, of nominal energies; None for one seed.
    """

    arm: str
    baseline: str
    bits_only: str  # the baseline's pipeline in the arm's precision
    ticket_only: str  # the arm's pipeline in the baseline's precision
    whole: Range
    ticket: Range
    bits: Range
    ticket_first: tuple[Range, Range]  # ticket, then bits
    bits_first: tuple[Range, Range]  # bits, then ticket
    seeds: tuple[int, ...]
    ticket_interval: Interval | None
    bits_interval: Interval | None


@dataclass(frozen=True)
class Unsplit:
    """A saving that cannot be split, since an arm with only one of the two changes is ``missing`` (in words)."""

    arm: str
    baseline: str
    missing: str


def shapley_factors(base: float, bits_only: float, ticket_only: float, both: float) -> tuple[float, float]:
    """(ticket, bits): the factors of both / base that each change brings, from four energies above zero.

    The geometric mean over the two orders in which they can be brought in: the Shapley value of log energy for two
    players. Their product is the whole ratio.
    """
    ticket = math.sqrt((ticket_only / base) * (both / bits_only))
    bits = math.sqrt((both / ticket_only) * (bits_only / base))
    return ticket, bits


def split_savings(arms: Sequence[ArmSummary], baseline: ArmSummary, level: float) -> list[Saving | Unsplit]:
    """One for each arm that differs from the baseline in pipeline and in precision, and is averaged as it is."""
    both = (arm for arm in arms if _changes(arm, baseline) == (True, True) and arm.averaging == baseline.averaging)
    return [_split(arms, baseline, arm, level) for arm in both]


def same_but_for_precision(arm: ArmSummary) -> tuple[object, ...]:
    """Equal for two arms that differ in their precision (and their name) alone."""
    return arm.pipeline, arm.ratio, arm.conditions


def _changes(arm: ArmSummary, baseline: ArmSummary) -> tuple[bool, bool]:
    pipeline = same_but_for_precision(arm) != same_but_for_precision(baseline)
    return pipeline, arm.precision_label != baseline.precision_label


def _split(arms: Sequence[ArmSummary], baseline: ArmSummary, arm: ArmSummary, level: float) -> Saving | Unsplit:
    single: list[ArmSummary] = []
    for like, bits_of in ((baseline, arm), (arm, baseline)):
        found = [
            other
            for other in arms
            if same_but_for_precision(other) == same_but_for_precision(like)
            and other.precision_label == bits_of.precision_label
        ]
        if len(found) != 1:
            return Unsplit(arm.arm, baseline.arm, _missing(like, bits_of, found))
        single += found
    return _saving(baseline, single[0], single[1], arm, level)


def _missing(like: ArmSummary, bits_of: ArmSummary, found: Sequence[ArmSummary]) -> str:
    precision = bits_of.precision_label
    if like.search_precision is None and precision != bits_of.precision:
        return f"a search in {like.arm}, which could have other bits than its training,"
    if found:
        return f"a single arm like {like.arm} in {precision} (there are {', '.join(other.arm for other in found)})"
    return f"an arm like {like.arm} in {precision}"


def _saving(base: ArmSummary, bits_only: ArmSummary, ticket_only: ArmSummary, both: ArmSummary, level: float) -> Saving:
    four = (base, bits_only, ticket_only, both)
    energies = [arm.energy for arm in four]
    seeds = sorted(set.intersection(*({seed.seed for seed in arm.seeds} for arm in four)))
    nominal = [{seed.seed: seed.energy.nominal_j for seed in arm.seeds} for arm in four]
    factors = [shapley_factors(*(of[seed] for of in nominal)) for seed in seeds]
    ticket, bits = zip(*factors, strict=True) if factors else ((), ())
    return Saving(
        arm=both.arm,
        baseline=base.arm,
        bits_only=bits_only.arm,
        ticket_only=ticket_only.arm,
        whole=both.energy.ratio_to(base.energy),
        ticket=_jointly(energies, 0),
        bits=_jointly(energies, 1),
        ticket_first=(ticket_only.energy.ratio_to(base.energy), both.energy.ratio_to(ticket_only.energy)),
        bits_first=(bits_only.energy.ratio_to(base.energy), both.energy.ratio_to(bits_only.energy)),
        seeds=tuple(seeds),
        ticket_interval=ratio_interval(ticket, level),
        bits_interval=ratio_interval(bits, level),
    )


def _jointly(energies: Sequence[ModelledEnergy], which: int) -> Range:
    """A Shapley factor; low and high over the corners of the energy model, the same corner for all four."""
    nominal = shapley_factors(*(energy.nominal_j for energy in energies))[which]
    corners = zip(*(energy.corners_j for energy in energies), strict=True)
    factors = [nominal, *(shapley_factors(*corner)[which] for corner in corners)]
    return Range(min(factors), nominal, max(factors))
