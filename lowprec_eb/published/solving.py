"""Unknowns of the published cost model from costs: closed forms, with intervals for all numbers that round the same.

Costs are shares of one dense training. e: the share of the schedule after which a ticket was drawn. r: the pruned
network's cost over the dense one's. c: the cost of 8-bit arithmetic over that of fp32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lowprec_eb.published.tables import Interval

_STEPS = 400  # of a scan over the cost of 8-bit arithmetic


@dataclass(frozen=True)
class Pair:
    """An emergence epoch as a share of the schedule, and the pruned network's share of the dense cost."""

    emergence: Interval
    remaining: Interval

    def swapped(self) -> Pair:
        return Pair(self.remaining, self.emergence)


def solve_pair(reinit: Interval, inherited: Interval) -> Pair | None:
    """The pair with e + r in ``reinit`` and e + (1 - e) r in ``inherited``, 0 <= e <= r <= 1; None: there is none.

    e and r are the roots of t^2 - A t + (A - B), A and B being the two costs, so they are known up to their order; the
    smaller is given as the emergence. Real and in [0, 1] where 0 <= A - B <= A^2 / 4 and B <= 1. e rises with A and
    falls with B, r the other way round, so that corners of the box bound them; where a corner is impossible, e = 0 or
    e = r does.
    """
    if inherited.low > min(1.0, reinit.high) or inherited.high < reinit.low - reinit.low**2 / 4:
        return None
    inherited = Interval(inherited.low, min(1.0, inherited.high))
    least, largest = 0.0, min(1.0, reinit.high, inherited.high)  # e = 0, where r = A = B
    if inherited.high <= reinit.low:
        least, largest = _roots(reinit.low, inherited.high)
    if inherited.low >= reinit.high - reinit.high**2 / 4:
        most, smallest = _roots(reinit.high, min(reinit.high, inherited.low))
    else:  # e = r = A / 2
        most = min(reinit.high, _doubled(inherited.high)) / 2
        smallest = max(reinit.low, _doubled(inherited.low)) / 2
    return Pair(Interval(least, most), Interval(smallest, largest))


def _roots(reinit: float, inherited: float) -> tuple[float, float]:
    root = math.sqrt(max(0.0, reinit**2 - 4 * (reinit - inherited)))
    return (reinit - root) / 2, (reinit + root) / 2


def _doubled(inherited: float) -> float:
    """The cost of a re-initialised run whose e and r are equal, by that of the inherited one."""
    return 2 - 2 * math.sqrt(max(0.0, 1 - inherited))


def remaining_after(cost: Interval, emergence: Interval) -> Interval | None:
    """r of e + (1 - e) r = cost, clipped to (0, 1]; None: there is none."""
    ends = [(c - e) / (1 - e) for c in (cost.low, cost.high) for e in (emergence.low, emergence.high)]
    if max(ends) <= 0 or min(ends) > 1:
        return None
    return Interval(max(0.0, min(ends)), min(1.0, max(ends)))


def low_precision_share(ll: Interval, lf: Interval | None) -> Interval | None:
    """What 8-bit arithmetic may cost, as a share of fp32's, for an emergence and a remaining share in [0, 1] to exist.

    LL costs c (e + (1 - e) r) <= c, so c >= LL; with LF = c e + (1 - e) r also c <= LL / LF, where e is 0.
    """
    high = 1.0 if lf is None else (ll / lf).high
    return Interval(ll.low, high) if ll.low <= high else None


def low_precision_pair(ll: Interval, lf: Interval, share: Interval) -> Pair | None:
    """All pairs over ``share``: LL / c = e + (1 - e) r and LF = c e + (1 - e) r, so e = (LL / c - LF) / (1 - c)."""
    found = []
    for step in range(_STEPS + 1):
        c = share.low + (share.high - share.low) * step / _STEPS
        if not 0 < c < 1:
            continue
        for a in (ll.low, ll.high):
            for b in (lf.low, lf.high):
                e = (a / c - b) / (1 - c)
                if 0 <= e < 1 and 0 < (a / c - e) / (1 - e) <= 1:
                    found.append((e, (a / c - e) / (1 - e)))
    if not found:
        return None
    emergences, remaining = zip(*found, strict=True)
    return Pair(Interval(min(emergences), max(emergences)), Interval(min(remaining), max(remaining)))


def interval_text(interval: Interval) -> str:
    """As "0.812 to 0.815"."""
    low, high = f"{interval.low:.3f}", f"{interval.high:.3f}"
    return low if low == high else f"{low} to {high}"


def epochs_text(share: Interval, epochs: int) -> str:
    return f"{share.low * epochs:.1f} to {share.high * epochs:.1f} epochs"


def pair_text(name: str, pair: Pair, epochs: int) -> str:
    return f"{name}: emergence {epochs_text(pair.emergence, epochs)}, r = {interval_text(pair.remaining)}"
