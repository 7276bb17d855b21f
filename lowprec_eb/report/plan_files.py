"""What a plan of a comparison predicts, as CSV and JSON; units stand in the names."""

from __future__ import annotations

import json
from typing import Any

from lowprec_eb.report.cells import csv_text
from lowprec_eb.report.footprint_table import footprint_cells, footprint_tree
from lowprec_eb.report.summary import ArmSummary, Comparison, summarise
from lowprec_eb.report.table import DESCRIBED, number_cells, ratio_cells

SCHEMA = 1
_MEASURED = ("measured_j", "duration_s")  # which a plan has not


def plan_csv(comparison: Comparison) -> str:
    """One line an arm, of one seed; an empty cell where there is no number."""
    return csv_text([_cells(arm, comparison) for arm in summarise(comparison)])


def plan_json(comparison: Comparison, *, seeds: int) -> str:
    """The arms, of one of ``seeds`` seeds each, and what the numbers rest on."""
    footprint = comparison.footprint
    tree = {
        "schema": SCHEMA,
        "name": comparison.name,
        "profile": comparison.profile,
        "seeds": seeds,
        "splits": dict(comparison.splits),
        **({} if footprint is None else {"footprint": footprint_tree(footprint)}),
        "arms": [_cells(arm, comparison) for arm in summarise(comparison)],
        "notes": list(comparison.notes),
    }
    return json_text(tree)


def json_text(tree: dict[str, Any]) -> str:
    return json.dumps(tree, indent=2, allow_nan=False) + "\n"


def _cells(arm: ArmSummary, comparison: Comparison) -> dict[str, Any]:
    ticket = arm.seeds[0].ticket
    numbers = {name: value for name, value in number_cells(arm).items() if name not in _MEASURED}
    return {
        **{name: getattr(arm, name) for name in DESCRIBED},
        "ticket_epoch": None if ticket is None else ticket.epoch,
        **numbers,
        **ratio_cells(arm, "vs_full"),
        **ratio_cells(arm, "vs_slimming"),
        **footprint_cells(arm, comparison.footprint),
    }
