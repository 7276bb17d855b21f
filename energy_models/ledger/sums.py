"""Which rows count, and what they sum to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from energy_models.energy import ModelledEnergy
from energy_models.ledger.columns import encode
from energy_models.ledger.rows import GEMMS, PHASES, LedgerKey, LedgerRow


def settled(rows: Iterable[LedgerRow]) -> list[LedgerRow]:
    """Of each (run, stage, phase, epoch, rank) the row with the highest attempt, sorted by key.

    A stage that several pipelines share may be given several times; it counts once. Two different rows with one key
    raise ValueError.
    """
    kept: dict[LedgerKey, LedgerRow] = {}
    for row in rows:
        if not same(kept.setdefault(row.key, row), row):
            raise ValueError(f"two different ledger rows have the key {row.key}; they must come from different stages")
    last = {key.work: row for key, row in sorted(kept.items(), key=lambda item: item[0])}
    return list(last.values())


def same(a: LedgerRow, b: LedgerRow) -> bool:
    """Whether two rows say the same; a metric of nan equals itself here."""
    return a == b or encode(a) == encode(b)


@dataclass(frozen=True)
class PhaseTotals:
    """Sums over settled rows, over the ranks of an epoch too, which work side by side.

    ``duration_s`` therefore takes of each (run, stage, phase, epoch) the longest of its ranks, and sums these.
    ``measured_j`` is None unless every row has a measurement (and there is a row).
    """

    samples: int
    macs: dict[str, int]  # {GEMM: MACs}, all three GEMMs always
    bit_ops: int
    modelled: ModelledEnergy
    measured_j: float | None
    duration_s: float


@dataclass(frozen=True)
class Totals(PhaseTotals):
    """The sums over all rows, and the same of each phase that has rows."""

    by_phase: dict[str, PhaseTotals]


def totals(rows: Iterable[LedgerRow]) -> Totals:
    """Sum the settled rows; superseded attempts and repeated rows do not count, and the order does not matter.

    Raises ValueError for rows whose modelled energies are under different hardware profiles.
    """
    counted = settled(rows)
    _check_one_profile(counted)
    phases = [phase for phase in PHASES if any(row.key.phase == phase for row in counted)]
    by_phase: dict[str, PhaseTotals] = {
        phase: _sum([row for row in counted if row.key.phase == phase]) for phase in phases
    }
    return Totals(**vars(_sum(counted)), by_phase=by_phase)


def _check_one_profile(rows: list[LedgerRow]) -> None:
    profiles = sorted({"one that is not named" if row.profile is None else row.profile for row in rows})
    if len(profiles) > 1:
        raise ValueError(
            f"these ledger rows are modelled under different hardware profiles ({', '.join(profiles)}), so their "
            "energies do not add up; price them under one with reprice"
        )


def _sum(rows: list[LedgerRow]) -> PhaseTotals:
    measured = [row.measured_j for row in rows if row.measured_j is not None]
    longest: dict[tuple[str, str, str, int], float] = {}
    for row in rows:
        epoch = (row.key.run, row.key.stage, row.key.phase, row.key.epoch)
        longest[epoch] = max(longest.get(epoch, 0.0), row.duration_s)
    gemms = dict.fromkeys((*GEMMS, *(gemm for row in rows for gemm in row.macs)))
    return PhaseTotals(
        samples=sum(row.samples for row in rows),
        macs={gemm: sum(sum(row.macs.get(gemm, {}).values()) for row in rows) for gemm in gemms},
        bit_ops=sum(row.bit_ops for row in rows),
        modelled=ModelledEnergy.total(row.modelled for row in rows),
        measured_j=math.fsum(measured) if rows and len(measured) == len(rows) else None,
        duration_s=math.fsum(longest.values()),
    )
