"""Do a published table's costs follow from the published method?

The cost model is the paper's (`bookkeeping`), in units of one dense training of T epochs: with a ticket after the share
e of the epochs that leaves the share r of the dense network's cost, an early-bird run costs e + (1 - e) r, its
re-initialised one e + r, network slimming 1 + r. The unknowns are solved from the cells, separately for FLOPs and for
energy (a pruned network's share of the energy need not be its share of the FLOPs; the emergence epoch is one). What has
as many unknowns as cells is fitted and called so; what has fewer is checked. Every number stands for all that are
printed the same, and intervals are outer bounds, so what is called inconsistent is so for every rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from lowprec_eb.published.tables import LABELS, Interval, Method, Paper, Table

Verdict = Literal["consistent", "inconsistent", "fitted", "given", "unknown"]
"""consistent: checked, and it holds. inconsistent: no values make it hold. fitted: as many unknowns as cells, a possible
value exists, nothing is left to check. given: taken as it is, the unit of the others. unknown: no cost model."""

_STEPS = 400  # of a scan over the cost of 8-bit arithmetic


@dataclass(frozen=True)
class Pair:
    """An emergence epoch as a share of the schedule, and the pruned network's share of the dense cost."""

    emergence: Interval
    remaining: Interval

    def swapped(self) -> Pair:
        return Pair(self.remaining, self.emergence)


@dataclass(frozen=True)
class Check:
    """What is found of one cell, or of cells that share unknowns.

    methods: whose cells; ratio: of the column, None for all of them. flops, energy: the pair that each quantity gives,
    where it gives one. why: in words, with the numbers.
    """

    methods: tuple[Method, ...]
    ratio: float | None
    verdict: Verdict
    why: str
    flops: Pair | None = None
    energy: Pair | None = None


@dataclass(frozen=True)
class Fit:
    """What a cell's prediction takes from the table itself: shares of the schedule and of the dense forward MACs."""

    emergence: float | None
    remaining: float
    told: str


# ---- solving -----------------------------------------------------------------------------------------------------


def solve_pair(reinit: Interval, inherited: Interval) -> Pair | None:
    """The pair with e + r in ``reinit`` and e + (1 - e) r in ``inherited``, 0 <= e <= r <= 1; None: there is none.

    e and r are the roots of t^2 - A t + (A - B), A and B being the two costs, so they are known up to their order; the
    smaller is given as the emergence. Real and in [0, 1] where 0 <= A - B <= A^2 / 4 and B <= 1. Both are monotone in A
    and B, so that the corners of the box bound them.
    """
    if inherited.low > min(1.0, reinit.high) or inherited.high < reinit.low - reinit.low**2 / 4:
        return None
    low = _roots(reinit.low, min(inherited.high, reinit.low))
    high = _roots(reinit.high, inherited.low)
    largest = low[1] if inherited.high <= reinit.low else min(reinit.high, inherited.high, 1.0)
    return Pair(Interval(low[0], max(low[0], high[0])), Interval(min(high[1], largest), largest))


def _roots(reinit: float, inherited: float) -> tuple[float, float]:
    # Where the corner of a box lies outside what is possible, the double root bounds what the box has inside.
    root = math.sqrt(max(0.0, reinit**2 - 4 * (reinit - inherited)))
    return (reinit - root) / 2, (reinit + root) / 2


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


def _low_precision_pair(ll: Interval, lf: Interval, share: Interval) -> Pair | None:
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


# ---- a table -----------------------------------------------------------------------------------------------------


class _Shares:
    """A table's cells over its dense training."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def dense(self, quantity: Callable[[Method, int], Interval | None], place: int) -> Interval | None:
        cell = quantity("dense", place) or quantity("snip", place)
        twice = quantity("lt", place)
        if cell is None or twice is None:
            return cell
        return cell.meets(Interval(twice.low / 2, twice.high / 2))

    def flops(self, method: Method, place: int) -> Interval | None:
        return self._share(self.table.flops, method, place)

    def energy(self, method: Method, place: int) -> Interval | None:
        return self._share(self.table.energy_j, method, place)

    def _share(
        self, quantity: Callable[[Method, int], Interval | None], method: Method, place: int
    ) -> Interval | None:
        cell, dense = quantity(method, place), self.dense(quantity, place)
        return None if cell is None or dense is None else cell / dense


def check_table(table: Table, shared: Interval | None = None) -> list[Check]:
    """Every printed cell, in the order of the columns.

    Args:
        table: published. shared: what 8-bit arithmetic may cost over fp32, from all tables of the same model; None:
            from this table alone.
    """
    if not table.rows:
        return []
    shares, found = _Shares(table), []
    share = shared if shared is not None else bits_share([table])
    for place in range(len(table.ratios)):
        for check in (_baselines, _slimming, _thinet, _early_birds):
            found += list(check(shares, place))
        found += list(_low_precision(shares, place, share))
    return found


def bits_share(tables: list[Table]) -> Interval | None:
    """What 8-bit arithmetic may cost over fp32 for every LL cell of these tables to be possible; None: no such share.

    Raises:
        ValueError: there are no LL cells.
    """
    found: Interval | None = None
    cells = 0
    for table in tables:
        shares = _Shares(table)
        for place in range(len(table.ratios)):
            ll = shares.energy("eb_ll", place)
            if ll is None:
                continue
            possible = low_precision_share(ll, shares.energy("eb_lf", place))
            found = possible if cells == 0 else None if found is None or possible is None else found.meets(possible)
            cells += 1
    return found


def _baselines(shares: _Shares, place: int) -> Iterator[Check]:
    table, ratio = shares.table, shares.table.ratios[place]
    for method in ("dense", "snip"):
        if table.row(method) is not None:
            yield Check((method,), ratio, "given", "the unit of the others: one dense training")
    if table.row("lt") is None:
        return
    sides = [shares.dense(quantity, place) is not None for quantity in (table.flops, table.energy_j)]
    told = "twice the dense training, in FLOPs and in energy, to the printed digits"
    verdict: Verdict = "consistent" if all(sides) else "inconsistent"
    yield Check(("lt",), ratio, verdict, told if all(sides) else f"not {told}")


def _slimming(shares: _Shares, place: int) -> Iterator[Check]:
    flops, energy = shares.flops("ns", place), shares.energy("ns", place)
    if flops is None:
        return
    parts = [f"r = {interval_text(Interval(flops.low - 1, flops.high - 1))} of the FLOPs"]
    if energy is not None:
        parts.append(f"{interval_text(Interval(energy.low - 1, energy.high - 1))} of the energy")
    possible = all(share is None or (share.high > 1 and share.low <= 2) for share in (flops, energy))
    verdict: Verdict = "fitted" if possible else "inconsistent"
    yield Check(("ns",), shares.table.ratios[place], verdict, f"1 + r: {', '.join(parts)}; a number for a number")


def _thinet(shares: _Shares, place: int) -> Iterator[Check]:
    flops, energy = shares.flops("thinet", place), shares.energy("thinet", place)
    if flops is None or energy is None:
        return
    costs = f"x{flops.middle:.3f} of the dense FLOPs at x{energy.middle:.3f} of its energy"
    less = "; less energy than the dense training alone, though more FLOPs" if energy.high < 1 < flops.low else ""
    yield Check(("thinet",), shares.table.ratios[place], "unknown", f"{costs}{less}; how it is charged is not known")


def _early_birds(shares: _Shares, place: int) -> Iterator[Check]:
    table = shares.table
    if table.row("eb_ff") is None or shares.flops("eb_ff", place) is None:
        return
    if table.row("eb_reinit") is None:
        yield _alone(shares, "eb_ff", place)
        return
    methods: tuple[Method, ...] = ("eb_reinit", "eb_ff")
    pairs, lost = {}, []
    for name, quantity in (("FLOPs", shares.flops), ("energy", shares.energy)):
        reinit, inherited = (quantity(method, place) for method in methods)
        if reinit is None or inherited is None:
            continue
        pairs[name] = solve_pair(reinit, inherited)
        if pairs[name] is None:
            lost.append(f"{name}: {_impossible(reinit, inherited)}")
    flops, energy = pairs.get("FLOPs"), pairs.get("energy")
    told = [_pair_text(name, pair, table.epochs) for name, pair in pairs.items() if pair is not None]
    if lost:
        yield Check(methods, table.ratios[place], "inconsistent", "; ".join([*lost, *told]), flops, energy)
        return
    if flops is None or energy is None:
        yield Check(methods, table.ratios[place], "fitted", "; ".join(told), flops, energy)
        return
    # The order of the roots is open for each quantity, the emergence is one.
    sides = [one.emergence.meets(other.emergence) for one in (flops, flops.swapped()) for other in (energy, energy.swapped())]
    agreed = next((side for side in sides if side is not None), None)
    if agreed is None:
        why = "; ".join([*told, "one search has two emergence epochs"])
        yield Check(methods, table.ratios[place], "inconsistent", why, flops, energy)
        return
    why = "; ".join([*told, f"both have an emergence of {_epochs_text(agreed, table.epochs)}"])
    yield Check(methods, table.ratios[place], "consistent", why, flops, energy)


def _impossible(reinit: Interval, inherited: Interval) -> str:
    costs = f"re-init x{reinit.middle:.3f}, inherited x{inherited.middle:.3f}"
    if inherited.low > reinit.high:
        product = Interval(reinit.low - inherited.high, reinit.high - inherited.low)
        return f"{costs}, so e r = {interval_text(product)}: negative, since inheriting cannot cost more"
    return f"{costs}: no real e and r in [0, 1] have both"


def _alone(shares: _Shares, method: Method, place: int) -> Check:
    """One cell in each quantity, and an emergence and a remaining share to choose: only bounds follow."""
    table = shares.table
    cost, energy = shares.flops(method, place), shares.energy(method, place)
    assert cost is not None
    limit = min(share.high for share in (cost, energy) if share is not None)
    if cost.low > 1 or (energy is not None and energy.low > 1):
        return Check((method,), table.ratios[place], "inconsistent", "more than a dense training", None, None)
    first = f"any emergence below {limit * table.epochs:.0f} epochs has its r: {interval_text(cost)} of the FLOPs at 0"
    known = _figure(table)
    parts = [first]
    if known is not None:
        after = [remaining_after(share, known) for share in (cost, energy) if share is not None]
        if any(share is None for share in after):
            return Check((method,), table.ratios[place], "inconsistent", f"no r at {_epochs_text(known, table.epochs)}")
        names = ("of the FLOPs", "of the energy")
        told = " and ".join(f"{interval_text(r)} {name}" for r, name in zip(after, names, strict=False) if r is not None)
        parts.append(f"at the figure's {_epochs_text(known, table.epochs)} r = {told}")
    return Check((method,), table.ratios[place], "fitted", "; ".join(parts))


def _figure(table: Table) -> Interval | None:
    if table.emergence is None:
        return None
    return Interval(min(table.emergence.epochs) / table.epochs, max(table.emergence.epochs) / table.epochs)


def _low_precision(shares: _Shares, place: int, share: Interval | None) -> Iterator[Check]:
    table = shares.table
    ll, lf = shares.energy("eb_ll", place), shares.energy("eb_lf", place)
    if ll is None:
        return
    ratio = table.ratios[place]
    methods: tuple[Method, ...] = ("eb_ll",) if lf is None else ("eb_lf", "eb_ll")
    costs = [shares.table.flops(method, place) for method in methods]
    if len(costs) == 2 and costs[0] is not None and costs[1] is not None and costs[0].meets(costs[1]) is None:
        yield Check(methods, ratio, "inconsistent", "one search and one network with two costs in FLOPs")
        return
    if share is None:
        yield Check(methods, ratio, "inconsistent", "no cost of 8-bit arithmetic makes all of these cells possible")
        return
    told = f"8-bit arithmetic at c = {interval_text(share)} of fp32's energy"
    if lf is None:
        yield Check(methods, ratio, "fitted", f"possible with {told}; e and r are open")
        return
    pair = _low_precision_pair(ll, lf, share)
    if pair is None:
        yield Check(methods, ratio, "inconsistent", f"no emergence in the schedule with {told}")
        return
    cost = shares.flops("eb_ll", place)
    after = None if cost is None else remaining_after(cost, pair.emergence)
    flops = None if after is None else Pair(pair.emergence, after)
    parts = [told, _pair_text("energy", pair, table.epochs)]
    if after is not None:
        parts.append(f"then r = {interval_text(after)} of the FLOPs")
    yield Check(methods, ratio, "consistent", "; ".join(parts) + "; FLOPs of both are equal", flops, pair)


# ---- predictions and the headline --------------------------------------------------------------------------------


def fitted(table: Table, method: Method, ratio: float) -> Fit | None:
    """What a prediction of a cell takes from the table: nothing (None) where it needs nothing, or nothing fits."""
    place, shares = table.place_of(ratio), _Shares(table)
    if place is None:
        return None
    if method == "ns":
        cost = shares.flops("ns", place)
        return None if cost is None else Fit(None, cost.middle - 1, "r fitted to this cell")
    if method not in ("eb_reinit", "eb_ff"):
        return None
    costs = shares.flops("eb_reinit", place), shares.flops("eb_ff", place)
    pair = None if costs[0] is None or costs[1] is None else solve_pair(costs[0], costs[1])
    if pair is None:
        return None
    told = "e and r fitted to this cell and its " + LABELS["eb_ff" if method == "eb_reinit" else "eb_reinit"]
    return Fit(pair.emergence.middle, pair.remaining.middle, told)


def check_headline(paper: Paper) -> list[tuple[str, float, Interval]]:
    """(table, ratio, factor) of every cell that the headline's factors can come from."""
    found = []
    for table in paper.tables:
        for place, ratio in enumerate(table.ratios):
            over, of = (table.energy_j(method, place) for method in (paper.headline.over, paper.headline.of))
            if over is not None and of is not None:
                found.append((table.title, ratio, over / of))
    return found


def interval_text(interval: Interval) -> str:
    """As "0.812 to 0.815"."""
    low, high = f"{interval.low:.3f}", f"{interval.high:.3f}"
    return low if low == high else f"{low} to {high}"


def _epochs_text(share: Interval, epochs: int) -> str:
    return f"{share.low * epochs:.1f} to {share.high * epochs:.1f} epochs"


def _pair_text(name: str, pair: Pair, epochs: int) -> str:
    return f"{name}: emergence {_epochs_text(pair.emergence, epochs)}, r = {interval_text(pair.remaining)}"
