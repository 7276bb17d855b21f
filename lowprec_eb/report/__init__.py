"""Tables, pictures and plain sentences from saved ledgers."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from energy_models.ledger import totals
from lowprec_eb.checkpoints import write_text
from lowprec_eb.report.cells import csv_text
from lowprec_eb.report.detector_pictures import detector_curves, replayed_masks
from lowprec_eb.report.findings import Findings, find
from lowprec_eb.report.footprint_table import footprint_sentence, footprint_table
from lowprec_eb.report.overrides import with_statistics
from lowprec_eb.report.paper_table import PaperTable, build_paper_table, paper_lines, paper_table
from lowprec_eb.report.pictures import missing_pictures, write_pictures
from lowprec_eb.report.plan_files import plan_csv, plan_json
from lowprec_eb.report.sentences import sentences
from lowprec_eb.report.statistics_table import findings_csv, sweeps_csv
from lowprec_eb.report.summary import ArmSummary, Comparison, MaskHistory, SeedSummary, Spread, summarise
from lowprec_eb.report.table import TABLE_WIDTH, build_plan_table, build_tables, to_csv, to_json
from lowprec_eb.report.table_style import fitted
from lowprec_eb.report.units import Scale

__all__ = [
    "ArmSummary",
    "Comparison",
    "Findings",
    "MaskHistory",
    "PaperTable",
    "SeedSummary",
    "Spread",
    "build_paper_table",
    "build_plan_table",
    "build_tables",
    "detector_curves",
    "find",
    "missing_pictures",
    "paper_lines",
    "paper_table",
    "plan_csv",
    "plan_json",
    "print_paper_table",
    "print_plan",
    "print_report",
    "replayed_masks",
    "sentences",
    "summarise",
    "to_csv",
    "to_json",
    "with_statistics",
    "write_paper_table",
    "write_pictures",
    "write_report",
]


def write_report(comparison: Comparison, folder: Path) -> list[Path]:
    """Write report.txt, summary.csv, summary.json, baselines.csv, sweeps.csv and the pictures; return their paths.

    There is no baselines.csv where no arm could be tested against another, and no sweeps.csv where no arms differ in
    their ratio alone. A picture whose data is missing is not written; report.txt says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    report, table, tree = (folder / name for name in ("report.txt", "summary.csv", "summary.json"))
    # An empty environment: a FORCE_COLOR or COLUMNS of the caller must not change the file.
    console = Console(file=io.StringIO(), width=TABLE_WIDTH, color_system=None, force_terminal=False, _environ={})
    with console.capture() as printed:
        print_report(comparison, console)
    write_text(report, printed.get())
    to_csv(comparison, table)
    to_json(comparison, tree)
    written = [report, table, tree]
    findings = find(comparison)
    for path, text in (
        (folder / "baselines.csv", findings_csv(findings)),
        (folder / "sweeps.csv", sweeps_csv(findings)),
    ):
        if text is None:
            path.unlink(missing_ok=True)  # of an earlier report
        else:
            write_text(path, text)
            written.append(path)
    return [*written, *write_pictures(comparison, folder)]


def write_paper_table(table: PaperTable, folder: Path) -> list[Path]:
    """Write paper_table.txt and paper_table.csv; return the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    report, lines = folder / "paper_table.txt", folder / "paper_table.csv"
    console = Console(file=io.StringIO(), width=TABLE_WIDTH, color_system=None, force_terminal=False, _environ={})
    with console.capture() as text:
        print_paper_table(table, console)
    write_text(report, text.get())
    write_text(lines, csv_text(paper_lines(table)))
    return [report, lines]


def print_paper_table(table: PaperTable, console: Console) -> None:
    """Print the table and why cells of it are blank."""
    console.print(build_paper_table(table))
    for line in table.reasons:
        console.print(Text(f"- {line}"))


def print_report(comparison: Comparison, console: Console) -> None:
    """Print the tables, what they say, the notes, and which pictures cannot be drawn.

    A table that is wider than the console is printed in parts, each with some of its columns.
    """
    console.print(Text(comparison.name + (", not finished" if comparison.missing else ""), style="bold"))
    tables = list(build_tables(comparison))
    if comparison.footprint is not None:
        tables.append(footprint_table(summarise(comparison), comparison.footprint))
    _print_tables(tables, console)
    absent = [f"{name} is not drawn: {reason}." for name, reason in missing_pictures(comparison).items()]
    for line in [*sentences(comparison), *comparison.notes, *absent]:
        console.print(Text(f"- {line}"))


def print_plan(comparison: Comparison, console: Console, *, seeds: int) -> None:
    """Print what a plan (a comparison of one seed without accuracies) predicts, and the work of all its ``seeds``."""
    console.print(Text(f"{comparison.name}: plan", style="bold"))
    tables = [build_plan_table(comparison)]
    if comparison.footprint is not None:
        tables.append(footprint_table(summarise(comparison), comparison.footprint))
    _print_tables(tables, console)
    everything = totals(row for rows in comparison.rows.values() for row in rows)
    macs = seeds * sum(everything.macs.values())
    scale = Scale.of([macs])
    lines = [
        f"Energies are modelled, under the profile {comparison.profile.rstrip('.')}.",
        f"All arms and {seeds} seed{'s' if seeds > 1 else ''}, each shared stage once, evaluation included: "
        f"{scale.text(macs)} {scale.prefix} MACs.",
        *comparison.notes,
        *([] if comparison.footprint is None else [footprint_sentence(comparison.footprint)]),
    ]
    for line in lines:
        console.print(Text(f"- {line}"))


def _print_tables(tables: Iterable[Table], console: Console) -> None:
    for table in tables:
        for part in fitted(table, console):
            console.print(part)
            console.print()
