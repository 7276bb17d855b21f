"""The ledger: what each epoch of each phase cost, as append-only rows that survive a killed process and a full disk."""

from energy_models.ledger.columns import SCHEMA
from energy_models.ledger.differences import BY, Change, GroupDifference, LedgerDiff, diff
from energy_models.ledger.file import Ledger, merge
from energy_models.ledger.rows import GEMMS, PHASES, LedgerKey, LedgerRow, Phase
from energy_models.ledger.sums import PhaseTotals, Totals, settled, totals

__all__ = [
    "BY",
    "GEMMS",
    "PHASES",
    "SCHEMA",
    "Change",
    "GroupDifference",
    "Ledger",
    "LedgerDiff",
    "LedgerKey",
    "LedgerRow",
    "Phase",
    "PhaseTotals",
    "Totals",
    "diff",
    "merge",
    "settled",
    "totals",
]
