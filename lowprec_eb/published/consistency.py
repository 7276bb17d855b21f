"""Do a published table's costs follow from the published method?

The cost model is the paper's (`bookkeeping`), in units of one dense training of T epochs: with a ticket after the share
e of the epochs that leaves the share r of the dense network's cost, an early-bird run costs e + (1 - e) r, its
re-initialised one e + r, network slimming 1 + r. The unknowns are solved from the cells, separately for FLOPs and for
energy (a pruned network's share of the energy need not be its share of the FLOPs; the emergence epoch is one). What has
as many unknowns as cells is fitted and called so; what has fewer is checked. Every number stands for all that are
printed the same, and intervals are outer bounds, so what is called inconsistent is so for every rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from lowprec_eb.published.solving import (
    Pair,
    epochs_text,
    interval_text,
    low_precision_pair,
    low_precision_share,
    pair_text,
    remaining_after,
    solve_pair,
)
from lowprec_eb.published.tables import LABELS, Interval, Method, Paper, Table

Verdict = Literal["consistent", "inconsistent", "fitted", "given", "unknown"]
"""consistent: more cells than unknowns, and possible values fit all of them. inconsistent: no values do. fitted:
possible values exist, and there are at least as many unknowns as cells, so that little or nothing is checked. given:
the unit of the others. unknown: no cost model."""


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


# ---- a table -----------------------------------------------------------------------------------------------------


Quantity = Callable[[Method, int], Interval | None]
"""A cell of a table by method and column."""


class _Shares:
    """A table's cells over its dense training."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def dense(self, quantity: Quantity, place: int) -> Interval | None:
        """The dense training's cell, narrowed by the lottery ticket's where that is twice as much."""
        cell, half = quantity("dense", place) or quantity("snip", place), self.half_a_ticket(quantity, place)
        return cell if cell is None or half is None else cell.meets(half) or cell

    def half_a_ticket(self, quantity: Quantity, place: int) -> Interval | None:
        twice = quantity("lt", place)
        return None if twice is None else Interval(twice.low / 2, twice.high / 2)

    def flops(self, method: Method, place: int) -> Interval | None:
        return self._share(self.table.flops, method, place)

    def energy(self, method: Method, place: int) -> Interval | None:
        return self._share(self.table.energy_j, method, place)

    def _share(self, quantity: Quantity, method: Method, place: int) -> Interval | None:
        cell, dense = quantity(method, place), self.dense(quantity, place)
        return None if cell is None or dense is None else cell / dense


def check_table(table: Table, alike: Sequence[Table] = ()) -> list[Check]:
    """Every printed cell, in the order of the columns.

    Args:
        table: published. alike: all tables, this one among them, whose 8-bit arithmetic costs the same share of fp32's
            energy; none: this one alone.
    """
    shares, found = _Shares(table), []
    share = bits_share(alike or [table])
    for place in range(len(table.ratios)):
        for check in (_baselines, _slimming, _thinet, _early_birds):
            found += list(check(shares, place))
        found += list(_low_precision(shares, place, share))
    return found


def bits_share(tables: Sequence[Table]) -> Interval | None:
    """What 8-bit arithmetic may cost over fp32 for every LL cell of these tables to be possible; None: no such share,
    or no LL cells.
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
    names = []
    for name, quantity in (("FLOPs", table.flops), ("energy", table.energy_j)):
        dense, half = shares.dense(quantity, place), shares.half_a_ticket(quantity, place)
        if dense is not None and half is not None and dense.meets(half) is None:
            names.append(name)
    if names:
        yield Check(("lt",), ratio, "inconsistent", f"not twice the dense training: {', '.join(names)}")
    else:
        yield Check(("lt",), ratio, "consistent", "twice the dense training, to the printed digits")


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
    if shares.flops("eb_ff", place) is None:
        return
    if shares.table.row("eb_reinit") is None:
        yield _alone(shares, "eb_ff", place)
        return
    costs = {
        name: (reinit, inherited)
        for name, quantity in (("FLOPs", shares.flops), ("energy", shares.energy))
        if (reinit := quantity("eb_reinit", place)) is not None and (inherited := quantity("eb_ff", place)) is not None
    }
    yield _together(shares.table, place, costs)


def _together(table: Table, place: int, costs: Mapping[str, tuple[Interval, Interval]]) -> Check:
    """Two cells in each quantity: two unknowns each, of which the emergence is the same."""
    pairs = {name: solve_pair(*both) for name, both in costs.items()}
    flops, energy = pairs.get("FLOPs"), pairs.get("energy")
    told = [pair_text(name, pair, table.epochs) for name, pair in pairs.items() if pair is not None]
    verdict: Verdict = "fitted"
    if None in pairs.values():
        lost = [f"{name}: {_impossible(*costs[name])}" for name, pair in pairs.items() if pair is None]
        verdict, told = "inconsistent", [*lost, *told, *_each_at(costs, flops, energy)]
    elif flops is not None and energy is not None:
        agreed = _one_emergence(flops, energy)
        verdict = "inconsistent" if agreed is None else "consistent"
        told.append(
            "one search with two emergence epochs"
            if agreed is None
            else f"the same emergence, {epochs_text(agreed, table.epochs)}"
        )
    return Check(("eb_reinit", "eb_ff"), table.ratios[place], verdict, "; ".join(told), flops, energy)


def _one_emergence(flops: Pair, energy: Pair) -> Interval | None:
    # Which root is the emergence is open for each quantity.
    sides = (one.emergence.meets(of.emergence) for one in (flops, flops.swapped()) for of in (energy, energy.swapped()))
    return next((side for side in sides if side is not None), None)


def _each_at(costs: Mapping[str, tuple[Interval, Interval]], flops: Pair | None, energy: Pair | None) -> Iterator[str]:
    """What each of two cells in FLOPs says of r, at the emergence that the energies give."""
    if flops is None and energy is not None:
        reinit, inherited = costs["FLOPs"]
        own = Interval(reinit.low - energy.emergence.high, reinit.high - energy.emergence.low)
        other = remaining_after(inherited, energy.emergence)
        said = "nothing" if other is None else interval_text(other)
        yield f"at that emergence the FLOPs of re-init say r = {interval_text(own)}, those of inherited {said}"


def _impossible(reinit: Interval, inherited: Interval) -> str:
    costs = f"re-init x{reinit.middle:.3f}, inherited x{inherited.middle:.3f}"
    if inherited.low > reinit.high:
        product = Interval(reinit.low - inherited.high, reinit.high - inherited.low)
        return f"{costs}, so e r = {interval_text(product)}, and neither e nor r can be negative"
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
    return Check((method,), table.ratios[place], "fitted", "; ".join([first, *_at_the_figure(table, cost, energy)]))


def _at_the_figure(table: Table, cost: Interval, energy: Interval | None) -> Iterator[str]:
    known = _figure(table)
    if known is None:
        return
    found = []
    for share, name in ((cost, "FLOPs"), (energy, "energy")):
        if share is not None:
            left = remaining_after(share, known)
            found.append(f"{'no r' if left is None else f'r = {interval_text(left)}'} of the {name}")
    yield f"at the figure's {epochs_text(known, table.epochs)} {', '.join(found)}"


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
    cost = shares.flops("eb_ll", place)
    if lf is None:
        possible = cost is None or cost.low <= 1
        why = f"possible with {told}; e and r are open" if possible else "more FLOPs than a dense training"
        yield Check(methods, ratio, "fitted" if possible else "inconsistent", why)
        return
    pair = low_precision_pair(ll, lf, share)
    after = None if cost is None or pair is None else remaining_after(cost, pair.emergence)
    if pair is None or (cost is not None and after is None):
        yield Check(methods, ratio, "inconsistent", f"no emergence and r in range with {told}", None, pair)
        return
    parts = ["the FLOPs of both are equal, as they must be", f"possible with {told}"]
    parts.append(pair_text("energy", pair, table.epochs))
    if after is not None:
        parts.append(f"then r = {interval_text(after)} of the FLOPs")
    flops = None if after is None else Pair(pair.emergence, after)
    yield Check(methods, ratio, "fitted", "; ".join(parts), flops, pair)


# ---- rows, predictions and the headline ------------------------------------------------------------------------------


def rises(table: Table) -> list[tuple[Method, float, float]]:
    """(method, ratio, next ratio) where the energy rises though the FLOPs fall, beyond rounding."""
    found = []
    for row in table.rows:
        for place, (ratio, following) in enumerate(pairwise(table.ratios)):
            energy = [table.energy_j(row.method, at) for at in (place, place + 1)]
            flops = [table.flops(row.method, at) for at in (place, place + 1)]
            if _rises(*energy) and _rises(*reversed(flops)):
                found.append((row.method, ratio, following))
    return found


def _rises(first: Interval | None, then: Interval | None) -> bool:
    return first is not None and then is not None and then.low > first.high


def fitted(table: Table, method: Method, ratio: float) -> Fit | None:
    """What a prediction of a cell takes from the table: nothing (None) where it needs nothing, or nothing
    fits all cells that share it."""
    place, shares = table.place_of(ratio), _Shares(table)
    if place is None:
        return None
    if method == "ns":
        cost = shares.flops("ns", place)
        return None if cost is None else Fit(None, cost.middle - 1, "fitted to this cell")
    if method not in ("eb_reinit", "eb_ff"):
        return None
    check = next(_early_birds(shares, place), None)
    if check is None or check.flops is None or check.verdict == "inconsistent":
        return None
    other: Method = "eb_ff" if method == "eb_reinit" else "eb_reinit"
    told = f"fitted to this cell and that of {LABELS[other]}"
    return Fit(check.flops.emergence.middle, check.flops.remaining.middle, told)


def check_headline(paper: Paper) -> list[tuple[str, float, Interval]]:
    """(table, ratio, factor) of every cell that the headline's factors can come from."""
    found = []
    for table in paper.tables:
        for place, ratio in enumerate(table.ratios):
            over, of = (table.energy_j(method, place) for method in (paper.headline.over, paper.headline.of))
            if over is not None and of is not None:
                found.append((table.title, ratio, over / of))
    return found
