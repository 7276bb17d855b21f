"""How long a training must be to cost as much as another."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import get_args

from energy_models import HardwareProfile, LedgerRow, OpCounts, estimate
from lowprec_eb.arms import MatchSettings, Quantity
from lowprec_eb.outcome import MatchSummary
from lowprec_eb.stage_data import StagePhase, StageResult

_LONGEST = 1000  # times the schedule: beyond that a match is taken for a mistake


def spent(rows: Iterable[LedgerRow], quantity: Quantity) -> float:
    """What stages cost: FLOPs of training, two a MAC, or nominal modelled J of everything."""
    if quantity == "energy":
        return sum(row.modelled.nominal_j for row in rows)
    return 2.0 * sum(row.total_macs for row in rows if row.key.phase in get_args(StagePhase))


def foreseen(by_phase: dict[str, OpCounts], quantity: Quantity, profile: HardwareProfile) -> float:
    """The same of what is not trained yet."""
    if quantity == "energy":
        return sum(estimate(costs, profile).nominal_j for costs in by_phase.values())
    return 2.0 * sum(costs.total_macs for phase, costs in by_phase.items() if phase in get_args(StagePhase))


def how_well(match: MatchSettings | None, target: float, dense: StageResult) -> MatchSummary:
    """What came of it, from the ledger of the dense run."""
    assert match is not None
    return MatchSummary(match.arm, match.quantity, target, spent(dense.rows, match.quantity), dense.state.epoch)


def nearest_length(target: float, cost: Callable[[int], float], shortest: int, usual: int) -> int:
    """The number of epochs, at least ``shortest``, whose cost is nearest to ``target``; the smaller one of two alike.

    Raises:
        ValueError: that is more than a thousand times the ``usual`` number.
    """
    candidates = range(shortest, _LONGEST * usual + 1)
    place = bisect_left(candidates, target, key=cost)
    if place == len(candidates):
        raise ValueError(f"match: a dense run would need over {len(candidates)} epochs to cost {target:.3g}")
    above = candidates[place]
    below = max(above - 1, shortest)
    return below if target - cost(below) <= cost(above) - target else above
