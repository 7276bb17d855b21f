"""``lowprec-eb search``: draw a ticket with the settings of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from energy_models import totals
from energy_models.units import si_text
from lowprec_eb.config import Config, load_config
from lowprec_eb.progress import StageProgress
from lowprec_eb.search import Search, run_search, saved_times, search_folder, write_search
from lowprec_eb.tasks import prepare_data
from lowprec_eb.terminal import explained, new_console


def search(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a comparison: configs has some.")],
    precision: Annotated[str, typer.Option(help="Of the search: a recipe, or one that the file defines.")] = "fp32",
    seed: Annotated[int | None, typer.Option(help="The first of the file's seeds if left out.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for stages, tickets, tables and pictures.")] = Path("runs"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: ticket.ratio=0.3.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All layers in the table.")] = False,
) -> None:
    """Train until a ticket appears; write it, the smaller model, and what that saves.

    Task, model, training, ticket and profile are those of the file; its arms are not run. The search is the stage of
    its early-bird arms, so in one --out it is trained once for both. Run the same command again after an interruption:
    it goes on where it was.
    """
    console = new_console()
    with explained(console):
        loaded = load_config(config, settings or ())
        prepare_data(loaded.task)
        found = _run(loaded, out, precision, seed, console)
        for ratio in found.drawn:
            _show(found, ratio, search_folder(found, out, ratio), console, everything)


def _run(config: Config, out: Path, precision: str, seed: int | None, console: Console) -> Search:
    with StageProgress(console, f"search {precision}") as progress:
        return run_search(config, out, precision=precision, seed=seed, progress=progress)


def _show(found: Search, ratio: float, folder: Path, console: Console, everything: bool) -> None:
    """Print one ticket; write its files, or what is missing of those of a finished search."""
    drawn, times = found.drawn[ratio], saved_times(folder)
    savings = drawn.savings(times)
    console.print(Text(f"{found.config.name}, {found.precision}, seed {found.seed}, ratio {ratio:g}", style="bold"))
    console.print(drawn.table(None if everything else 40))
    console.print()
    console.print(savings.table())
    bill = totals(found.stage.rows)
    cost = f"the search took {si_text(bill.modelled.nominal_j, 'J')} (modelled, nominal), {bill.duration_s:.1f} s"
    priced = f"energies are of {found.precision} under {savings.profile}; times of plain float32 on this machine"
    for line in [*drawn.notes(), cost, priced, str(savings.times)]:
        console.print(Text(f"- {line}"))
    files = write_search(found, ratio, savings, folder)
    said = f"{len(files)} files in {folder}"
    if times is not None:
        again = f"; written anew: {', '.join(file.name for file in files)}" if files else ""
        said = f"read from {folder}{again}"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
