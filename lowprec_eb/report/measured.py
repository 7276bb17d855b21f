"""Measured energy where the sensor saw most of an arm, but not all: a window shorter than it needs has no energy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from energy_models.ledger import LedgerRow
from lowprec_eb.report.units import energy_text

ABSENT = "absent"


@dataclass(frozen=True)
class Measured:
    """Joules that a sensor measured, and the share of the arm's time (a fraction) in which it did."""

    energy_j: float
    share: float

    @property
    def text(self) -> str:
        """As "12.3 kJ", or "12.3 kJ in 98.7 % of the time"."""
        told = energy_text(self.energy_j)
        # Rounded down: what is not whole must not look so.
        return told if self.share == 1 else f"{told} in {math.floor(1000 * self.share) / 10:g} % of the time"


def measured(rows: Iterable[LedgerRow]) -> Measured | None:
    """What was measured of settled ledger rows; None: nothing was, which is not 0 J.

    Rows without seconds belong to another row's window and decide nothing.
    """
    timed = [row for row in rows if row.duration_s > 0]
    seen = [row for row in timed if row.measured_j is not None]
    if not seen:
        return None
    energy_j = math.fsum(row.measured_j for row in seen if row.measured_j is not None)
    if len(seen) == len(timed):
        return Measured(energy_j, 1.0)
    return Measured(energy_j, math.fsum(row.duration_s for row in seen) / math.fsum(row.duration_s for row in timed))


def mean_measured(seeds: Sequence[Measured | None]) -> Measured | None:
    """The mean over seeds; None unless each was measured."""
    known = [of for of in seeds if of is not None]
    if not known or len(known) < len(seeds):
        return None
    return Measured(statistics.fmean(of.energy_j for of in known), min(of.share for of in known))
