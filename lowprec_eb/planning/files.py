"""Plans as JSON and CSV; units stand in the names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import energy_models as em
from energy_models.energy import ENDS
from lowprec_eb.planning.result import Plan, PlannedArm, PlannedPhase
from lowprec_eb.planning.tables import sentences
from lowprec_eb.report.cells import csv_text
from lowprec_eb.strict_config import to_plain

SCHEMA = 1


def plans_json(plans: Sequence[Plan]) -> str:
    """The settings, and of each profile the arms with their phases and what they say."""
    tree = {
        "schema": SCHEMA,
        "settings": to_plain(plans[0].settings),
        "model": plans[0].model,
        "parameters": plans[0].parameters,
        "forward_macs": dict(plans[0].forward_macs),
        "uncounted": list(plans[0].uncounted),
        "profiles": [
            {
                "profile": plan.profile.name,
                "arms": [_arm(plan, arm) | {"phases": [_phase(p) for p in arm.phases]} for arm in plan.arms],
                "unseparated": [{"arms": [a.name, b.name], **_ends("ratio", r)} for a, b, r in plan.unseparated],
                "sentences": sentences(plan),
            }
            for plan in plans
        ],
    }
    return json.dumps(tree, indent=2, allow_nan=False) + "\n"


def plans_csv(plans: Sequence[Plan]) -> str:
    """One line for each arm under each profile; an empty cell where there is no number."""
    lines = [{"plan": plan.settings.name, "profile": plan.profile.name} | _arm(plan, arm) for plan, arm in _arms(plans)]
    return csv_text(lines)


def _arms(plans: Sequence[Plan]) -> Iterator[tuple[Plan, PlannedArm]]:
    for plan in plans:
        for arm in plan.arms:
            yield plan, arm


def _arm(plan: Plan, arm: PlannedArm) -> dict[str, Any]:
    settings, footprint = arm.settings, plan.settings.footprint
    amounts = (
        {}
        if footprint is None
        else {
            "co2e_{end}_g": footprint.co2e_g(arm.energy_j),
            f"cost_{{end}}_{footprint.currency}": footprint.cost(arm.energy_j),
        }
    )
    cells: dict[str, Any] = {
        "arm": arm.name,
        "pipeline": settings.pipeline,
        "search_precision": settings.arm.search if settings.searches else None,
        "precision": " ".join(dict.fromkeys(p.precision for p in settings.schedule)) or settings.precision,
        "weights": settings.weights,
        "macs": arm.macs,
        "bit_ops": arm.bit_ops,
        **_ends("energy_{end}_j", arm.energy_j),
        **_ends("ratio", arm.ratio_to(plan.arms[0])),
        **_ends("time_{end}_s", arm.time_s),
    }
    for name, amount in amounts.items():
        cells |= _ends(name, amount)
    for name, energy in arm.components_j.items():
        cells |= _ends(f"energy_{name}_{{end}}_j", energy)
    for name, energy in arm.phases_j.items():
        cells |= _ends(f"energy_phase_{name}_{{end}}_j", energy)
    return cells


def _phase(phase: PlannedPhase) -> dict[str, Any]:
    names = ("phase", "width", "precision", "epochs", "macs", "bit_ops")
    energy = _ends("energy_{end}_j", phase.energy.total_j)
    return {name: getattr(phase, name) for name in names} | energy | _ends("time_{end}_s", phase.time_s)


def _ends(name: str, amount: em.Range | None) -> dict[str, float | None]:
    """A column for each end; ``{end}`` in the name is its place, else it stands behind."""
    pattern = name if "{end}" in name else f"{name}_{{end}}"
    return {pattern.format(end=end): None if amount is None else getattr(amount, end) for end in ENDS}
