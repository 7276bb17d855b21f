"""Published comparisons: their numbers as data, their own bookkeeping, and whether the two fit together."""

from lowprec_eb.published.bookkeeping import Charge, Kind, charge, method_of, training_flops
from lowprec_eb.published.consistency import Check, Verdict, bits_share, check_headline, check_table, fitted, rises
from lowprec_eb.published.tables import LABELS, METHODS, Interval, Method, Paper, Row, Table, early_bird_paper

__all__ = [
    "LABELS",
    "METHODS",
    "Charge",
    "Check",
    "Interval",
    "Kind",
    "Method",
    "Paper",
    "Row",
    "Table",
    "Verdict",
    "bits_share",
    "charge",
    "check_headline",
    "check_table",
    "early_bird_paper",
    "fitted",
    "method_of",
    "rises",
    "training_flops",
]
