"""The table of a comparison: for people (rich), and with full precision in joules for files (CSV, JSON)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from energy_models.energy import ModelledEnergy
from energy_models.footprint import Footprint
from energy_models.ledger import PHASES, totals
from lowprec_eb.checkpoints import write_text
from lowprec_eb.outcome import DivergedOutcome
from lowprec_eb.report.cells import csv_text
from lowprec_eb.report.findings import find
from lowprec_eb.report.footprint_table import footprint_cells, footprint_tree
from lowprec_eb.report.sentences import sentences
from lowprec_eb.report.statistics_table import findings_tree, interval_cells, statistics_tables
from lowprec_eb.report.summary import (
    ArmSummary,
    Comparison,
    SeedSummary,
    Spread,
    diverged_arms,
    precision_label,
    summarise,
)
from lowprec_eb.report.table_style import add_columns, new_table
from lowprec_eb.report.units import Scale, percent_text, ratio_text

SCHEMA = 1
TABLE_WIDTH = 150  # both tables fit
_COMPONENTS = ("compute_j", "memory_j", "other_j")
_RATIO_HEADINGS = ("of full fp32\n(low-high)", "of slimming fp32\n(low-high)")
_MARK = "\N{DAGGER}"
DESCRIBED = ("arm", "pipeline", "search_precision", "precision", "weights", "averaging", "ratio")
_ENDS = ("low", "nominal", "high")


def build_tables(comparison: Comparison) -> tuple[Table, ...]:
    """One row an arm: accuracy, ticket and work; energy; then intervals over seeds, and what is established.

    The first two show means over seeds; arms that diverged with every seed come last there, without numbers.
    """
    arms = summarise(comparison)
    lost = diverged_arms(comparison)
    statistics = statistics_tables(comparison, arms, find(comparison))
    return _work_table(arms, lost), _energy_table(arms, lost), *statistics


def build_plan_table(comparison: Comparison) -> Table:
    """Predicted work and energy of one seed of each arm; a plan has no accuracies."""
    arms = summarise(comparison)
    work = _work_columns(arms)
    scale = Scale.of(arm.energy.nominal_j for arm in arms)
    table = new_table(
        "Predicted work and energy of one seed", "Tickets are assumed at the deadline. MACs and bit-ops of training."
    )
    energy_headings = (f"modelled\n[{scale.prefix}J]", f"low - high\n[{scale.prefix}J]")
    add_columns(table, ("arm", "precision"), (*work, *energy_headings, "of full\nfp32", "of slimming\nfp32"))
    for arm in arms:
        energy = (scale.text(arm.energy.nominal_j), _range_text(arm, scale))
        cells = (
            arm.arm,
            arm.precision_label,
            *(text(arm) for text in work.values()),
            *energy,
            *_ratio_texts(arm, ends=False),
        )
        table.add_row(*map(Text, cells))
    return table


def to_csv(comparison: Comparison, path: Path) -> None:
    """Write one line an arm, means over seeds; units in the column names, an empty cell where there is no number.

    An arm that diverged with every seed has empty cells but for what it is, and its ``diverged_seeds``.
    """
    lines = [_cells(arm, comparison) for arm in summarise(comparison)]
    lines += [_flat_lost(outcomes) for outcomes in diverged_arms(comparison).values()]
    write_text(path, csv_text(lines))


def to_json(comparison: Comparison, path: Path) -> None:
    """Write the summary of every arm and every seed, what diverged, and the closing sentences; units in the names."""
    tree = {
        "schema": SCHEMA,
        "name": comparison.name,
        "profile": comparison.profile,
        "margin": comparison.margin,
        "confidence": comparison.confidence,
        "splits": dict(comparison.splits),
        **({} if comparison.footprint is None else {"footprint": footprint_tree(comparison.footprint)}),
        "arms": [_arm_tree(arm, comparison) for arm in summarise(comparison)],
        **findings_tree(find(comparison)),
        "diverged": [_diverged_tree(comparison, outcome) for outcome in comparison.diverged],
        "sentences": sentences(comparison),
        "notes": list(comparison.notes),
        "missing": [{"arm": arm, "seed": seed} for arm, seed in comparison.missing],
    }
    write_text(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


# ---- for people --------------------------------------------------------------------------------------------------


def _work_table(arms: tuple[ArmSummary, ...], lost: dict[str, list[DivergedOutcome]]) -> Table:
    columns: dict[str, Callable[[ArmSummary], str]] = {
        "test accuracy\n[%]": lambda arm: percent_text(arm.test_accuracy),
        "ticket after\n[epochs]": _ticket_text,
        **_work_columns(arms),
        "time\n[s]": lambda arm: f"{arm.duration_s:.1f}",
    }
    caption = "* no ticket in time, drawn at the deadline. MACs and bit-ops of training."
    if any(arm.diverged_seeds for arm in arms):
        caption += f" {_MARK} diverged with a seed, and shows the means of the others."
    table = new_table("Accuracy, ticket and work", caption)
    add_columns(table, ("arm", "precision"), columns)
    for arm in arms:
        table.add_row(*map(Text, (_name(arm), arm.precision_label, *(text(arm) for text in columns.values()))))
    for name, outcomes in lost.items():
        cells = (name, precision_label(outcomes[0]), "diverged", *("-" for _ in list(columns)[1:]))
        table.add_row(*map(Text, cells))
    return table


def _name(arm: ArmSummary) -> str:
    return f"{arm.arm} {_MARK}" if arm.diverged_seeds else arm.arm


def _work_columns(arms: tuple[ArmSummary, ...]) -> dict[str, Callable[[ArmSummary], str]]:
    macs = Scale.of(arm.training_macs for arm in arms)
    bit_ops = Scale.of(arm.training_bit_ops for arm in arms)
    return {
        "channels left\n[%]": lambda arm: f"{100 * arm.channels_left:.1f}",
        "FLOPs left\n[%]": lambda arm: f"{100 * arm.flops_left:.1f}",
        f"MACs\n[{macs.prefix or '1'}]": lambda arm: macs.text(arm.training_macs),
        f"bit-ops\n[{bit_ops.prefix or '1'}]": lambda arm: bit_ops.text(arm.training_bit_ops),
    }


def _energy_table(arms: tuple[ArmSummary, ...], lost: Iterable[str]) -> Table:
    scale = Scale.of(arm.energy.nominal_j for arm in arms)
    unit = f"[{scale.prefix}J]"
    components = [f"{component.removesuffix('_j')}\n{unit}" for component in _COMPONENTS]
    table = new_table(
        "Modelled energy, and energy measured by a sensor",
        "Compute, memory and other are nominal. A ratio's (low-high) is over what the profile and the schedule leave "
        "open, the same for both arms.",
    )
    headings = (f"modelled\n{unit}", f"low - high\n{unit}", *components, *_RATIO_HEADINGS, "measured\n[J]")
    add_columns(table, ("arm",), headings)
    for arm in arms:
        energy = arm.energy
        cells = (
            _name(arm),
            scale.text(energy.nominal_j),
            _range_text(arm, scale),
            *(scale.text(getattr(energy, component).nominal) for component in _COMPONENTS),
            *_ratio_texts(arm),
            "not measured" if arm.measured_j is None else f"{arm.measured_j:.1f}",
        )
        table.add_row(*map(Text, cells))
    for name in lost:
        table.add_row(*map(Text, (name, "diverged", *("-" for _ in headings[1:]))))
    return table


def _range_text(arm: ArmSummary, scale: Scale) -> str:
    return f"{scale.text(arm.energy.low_j)} - {scale.text(arm.energy.high_j)}"


def _ratio_texts(arm: ArmSummary, *, ends: bool = True) -> list[str]:
    return ["-" if ratio is None else ratio_text(ratio, ends=ends) for ratio in (arm.vs_full, arm.vs_slimming)]


def _ticket_text(arm: ArmSummary) -> str:
    """The ticket epoch of every seed in order; "-" for an arm without a ticket."""
    tickets = [seed.ticket for seed in arm.seeds]
    if not any(tickets):
        return "-"
    return ", ".join("-" if t is None else f"{t.epoch}{'' if t.on_time else '*'}" for t in tickets)


# ---- for files ---------------------------------------------------------------------------------------------------


def _cells(arm: ArmSummary, comparison: Comparison) -> dict[str, Any]:
    """All columns of an arm."""
    return _flat(arm) | interval_cells(arm, comparison.confidence) | footprint_cells(arm, comparison.footprint)


def _flat(arm: ArmSummary) -> dict[str, Any]:
    """The cells of an arm's CSV line."""
    return {
        "arm": arm.arm,
        "pipeline": arm.pipeline,
        "search_precision": arm.search_precision,
        "precision": arm.precision,
        "weights": arm.weights,
        "averaging": arm.averaging,
        "ratio": arm.ratio,
        "seeds": ";".join(str(seed.seed) for seed in arm.seeds),
        "diverged_seeds": ";".join(map(str, arm.diverged_seeds)),
        **_spread_cells("test_accuracy", arm.test_accuracy),
        **_spread_cells("validation_accuracy", arm.validation_accuracy),
        "ticket_epochs": ";".join("" if seed.ticket is None else str(seed.ticket.epoch) for seed in arm.seeds),
        "tickets_on_time": ";".join(
            "" if seed.ticket is None else str(seed.ticket.on_time).lower() for seed in arm.seeds
        ),
        **number_cells(arm),
        **ratio_cells(arm, "vs_full"),
        **ratio_cells(arm, "vs_slimming"),
    }


def _flat_lost(outcomes: Sequence[DivergedOutcome]) -> dict[str, Any]:
    first = outcomes[0]
    described = {name: getattr(first, name) for name in DESCRIBED}
    return described | {"diverged_seeds": ";".join(str(outcome.seed) for outcome in outcomes)}


def number_cells(summary: ArmSummary | SeedSummary) -> dict[str, Any]:
    """Work and energy, by column; units in the names."""
    by_phase = {
        f"energy_{phase}_nominal_j": summary.energy_by_phase.get(phase, ModelledEnergy.zero()).nominal_j
        for phase in PHASES
    }
    return {
        "channels_left": summary.channels_left,
        "flops_left": summary.flops_left,
        "training_macs": summary.training_macs,
        "training_bit_ops": summary.training_bit_ops,
        **_energy_cells(summary.energy),
        **by_phase,
        "measured_j": summary.measured_j,
        "duration_s": summary.duration_s,
    }


def _energy_cells(energy: ModelledEnergy) -> dict[str, float]:
    cells = {f"energy_{end}_j": getattr(energy, f"{end}_j") for end in _ENDS}
    for component in _COMPONENTS:
        name = component.removesuffix("_j")
        cells |= {f"energy_{name}_{end}_j": getattr(getattr(energy, component), end) for end in _ENDS}
    return cells | {f"traffic_{end}_bytes": getattr(energy.traffic_bytes, end) for end in _ENDS}


def _spread_cells(name: str, spread: Spread) -> dict[str, float | None]:
    return {f"{name}_mean": spread.mean, f"{name}_std": spread.std}


def ratio_cells(arm: ArmSummary, name: str) -> dict[str, float | None]:
    """The ends of a ratio of energies, ``name`` being ``"vs_full"`` or ``"vs_slimming"``; None: no such arm."""
    ratio = getattr(arm, name)
    return {f"energy_{name}_{end}": ratio and getattr(ratio, end) for end in _ENDS}


def _diverged_tree(comparison: Comparison, outcome: DivergedOutcome) -> dict[str, Any]:
    """Where it broke, and what had been spent until then."""
    spent = totals(comparison.charged_rows(outcome)).modelled
    named = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)}
    return named | {"stages": list(outcome.stages), "event": outcome.event.to_tree(), **_energy_cells(spent)}


def _arm_tree(arm: ArmSummary, comparison: Comparison) -> dict[str, Any]:
    cells = _cells(arm, comparison)
    for joined in ("ticket_epochs", "tickets_on_time", "diverged_seeds"):
        del cells[joined]  # the seeds have them
    return cells | {
        "diverged_seeds": list(arm.diverged_seeds),
        "seeds": [_seed_tree(seed, comparison.footprint) for seed in arm.seeds],
    }


def _seed_tree(seed: SeedSummary, footprint: Footprint | None) -> dict[str, Any]:
    return {
        "seed": seed.seed,
        "stages": list(seed.stages),
        "test_accuracy": seed.test_accuracy,
        "validation_accuracy": seed.validation_accuracy,
        "best_epoch": seed.best_epoch,
        "ticket": seed.ticket and dataclasses.asdict(seed.ticket),
        **number_cells(seed),
        **footprint_cells(seed, footprint),
    }
