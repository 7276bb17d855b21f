"""``lowprec-eb ledger``: show, merge and compare ledger files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energy_models import Ledger, LedgerRow, diff, merge, settled, totals
from energy_models.files import replacing
from energy_models.ledger import BY, Change, LedgerDiff, PhaseTotals
from energy_models.units import si_text
from lowprec_eb.stage_data import LEDGER_FILE
from lowprec_eb.terminal import explained, new_console

app = typer.Typer(no_args_is_help=True, help="Show, merge and compare ledgers.")
_Paths = Annotated[list[Path], typer.Argument(help=f"Ledger files, or folders that hold a {LEDGER_FILE} at any depth.")]


@app.command()
def show(paths: _Paths) -> None:
    """Sum the ledgers by phase; work that several of them have is counted once."""
    console = new_console()
    with explained(console):
        rows = settled(merge(_files(paths)))
        bill = totals(rows)
        table = _table("phase", "rows", "samples", "MACs", "bit-ops", "modelled (low - high)", "measured", "seconds")
        for phase, part in bill.by_phase.items():
            table.add_row(phase, *_cells([row for row in rows if row.key.phase == phase], part))
        table.add_section()
        table.add_row("all", *_cells(rows, bill))
        console.print(table)
        profiles = sorted({row.profile or "not named" for row in rows})
        stages = {row.key.stage for row in rows}
        for line in (f"{len(stages)} stages; hardware profile: {', '.join(profiles) or 'none'}.", *_ranks(rows)):
            console.print(line, highlight=False, markup=False)


@app.command(name="merge")
def merge_command(
    paths: _Paths, out: Annotated[Path, typer.Option(help="The new ledger; must not exist.")] = Path("merged.jsonl")
) -> None:
    """Write all rows of several ledgers into a new one, each once."""
    console = new_console()
    with explained(console):
        rows = merge(_files(paths))
        if out.exists():
            raise ValueError(f"{out}: is there already; give --out the name of a new file")
        with replacing(out) as temporary:
            Ledger(temporary).extend(rows)
        console.print(f"{len(rows)} rows in {out}", highlight=False, markup=False)


@app.command(name="diff")
def diff_command(
    a: Annotated[Path, typer.Argument(help="A ledger, or a folder of ledgers.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    by: Annotated[str, typer.Option(help="Parts of a row's key that name what is compared.")] = ",".join(BY),
    ignore: Annotated[str, typer.Option(help="Quantities that may differ, such as duration_s,measured_j.")] = "",
) -> None:
    """Say which rows of two ledgers differ, and by how much; ends with 1 if any do."""
    console = new_console()
    with explained(console):
        found = diff(
            merge(_files([a])),
            merge(_files([b])),
            by=tuple(by.split(",")),
            ignore=tuple(name for name in ignore.split(",") if name),
        )
        _print_diff(found, console)
    if found:
        raise typer.Exit(1)


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = sorted(path.rglob(LEDGER_FILE)) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise ValueError(f"{path}: there is no ledger; give a ledger file, or a folder with a {LEDGER_FILE} in it")
        files += found
    return files


def _cells(rows: Sequence[LedgerRow], part: PhaseTotals) -> tuple[str, ...]:
    energy = part.modelled
    return (
        str(len(rows)),
        str(part.samples),
        si_text(sum(part.macs.values())),
        si_text(part.bit_ops),
        f"{_joules(energy.nominal_j)} ({_joules(energy.low_j)} - {_joules(energy.high_j)})",
        "not measured" if part.measured_j is None else _joules(part.measured_j),
        f"{part.duration_s:.1f}",
    )


def _joules(energy_j: float) -> str:
    return f"{energy_j:.3g} J"


def _ranks(rows: Sequence[LedgerRow]) -> list[str]:
    ranks = {row.key.rank for row in rows}
    told = f"{len(ranks)} ranks: sums are over all of them, seconds of an epoch are those of its slowest."
    return [told] if len(ranks) > 1 else []


def _print_diff(found: LedgerDiff, console: Console) -> None:
    if not found:
        console.print("no differences")
        return
    table = _table(", ".join(found.by), "quantity", "a", "b", "b - a", "b / a")
    for group in found.groups:
        name = ", ".join(map(str, group.group))
        if group.only_in is not None:
            table.add_row(name, f"only in {group.only_in}", "", "", "", "")
            continue
        for change in group.changes:
            table.add_row(name, *_change_cells(change))
    table.add_section()
    for change in found.totals:
        table.add_row("total", *_change_cells(change))
    console.print(table)


def _change_cells(change: Change) -> tuple[Text, ...]:
    ratio = "" if change.ratio is None else f"{change.ratio:.4g}"
    return tuple(map(Text, (change.name, _value(change.a), _value(change.b), _value(change.difference), ratio)))


def _value(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.7g}"


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="left" if place == 0 else "right", overflow="fold")
    return table
