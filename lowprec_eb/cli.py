"""The command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lowprec_eb.calibrate_command import calibrate
from lowprec_eb.checkpoints import write_text
from lowprec_eb.compare import plan, run_folder
from lowprec_eb.config import Config, load_config
from lowprec_eb.count_command import count
from lowprec_eb.format_sheet import format_sheet, parse_shape, sheets_csv, sheets_json
from lowprec_eb.formats import NAMED, as_format
from lowprec_eb.ledger_command import app as ledger_app
from lowprec_eb.plan_command import estimate
from lowprec_eb.profiles_command import profiles
from lowprec_eb.progress import CompareProgress, PlanProgress
from lowprec_eb.report import print_plan, print_report, write_report
from lowprec_eb.report.format_pictures import write_format_picture
from lowprec_eb.report.format_tables import print_sheets
from lowprec_eb.report.saved import FILE as COMPARISON_FILE
from lowprec_eb.report_command import report
from lowprec_eb.search_command import search
from lowprec_eb.tasks import prepare_data
from lowprec_eb.terminal import explained, new_console
from lowprec_eb.ticket_command import app as ticket_app
from lowprec_eb.workers import compare as run_comparison

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
app.command()(count)
app.command()(calibrate)
app.command()(report)
app.add_typer(ledger_app, name="ledger")
app.command()(profiles)
app.command()(estimate)
app.command()(search)
app.add_typer(ticket_app, name="ticket")


@app.callback()
def main() -> None:
    """What training costs in energy, and how to pay less."""


@app.command()
def compare(
    config: Annotated[Path, typer.Option(help="YAML file of the comparison.")] = Path("configs/digits.yaml"),
    out: Annotated[Path, typer.Option(help="Folder for stages, ledgers, tables and pictures.")] = Path("runs"),
    data: Annotated[
        str | None, typer.Option(help="Data set: digits, cifar10, cifar100, fashion-mnist, mnist or image-folder.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder with the data set's files.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch data that are not in --data-root.")] = False,
    backend: Annotated[str | None, typer.Option(help="Quantizers: auto, reference, fast, triton or qtorch.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; dots for nesting.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Predict MACs and modelled energy; train nothing.")
    ] = False,
) -> None:
    """Compare full training, pruning and early-bird tickets on energy.

    Run the same command again after an interruption: it goes on where it was.
    """
    console = new_console()
    flags = {"task.data": data, "task.data_root": data_root, "backend": backend, "device": device}
    flags["task.download"] = "true" if download else None
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    with explained(console):
        loaded = load_config(config, [*overrides, *(settings or [])])
        prepare_data(loaded.task)
        if dry_run:
            with PlanProgress(console, len(loaded.pipelines)) as progress:
                planned = plan(loaded, begins=progress.begin)
            print_plan(planned, console, seeds=len(loaded.seeds))
        else:
            _run(loaded, out, console)


@app.command()
def formats(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Names (fp8_e4m3) or constructor calls ('BlockFloat(6, dim=0)'); none: all named formats."),
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the values, and the noise of a Gaussian.")] = False,
    out: Annotated[Path, typer.Option(help="PNG file of --plot, or a folder for it.")] = Path(),
    shape: Annotated[str, typer.Option(help="Tensor whose scales and storage are counted.")] = "1024x1024",
    json: Annotated[Path | None, typer.Option("--json", help="Write all about the formats to this file.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write the table to this file.")] = None,
) -> None:
    """Show number formats: bits, range, step, dynamic range; one name shows that format in full."""
    console = new_console()
    with explained(console):
        sheets = [format_sheet(name, parse_shape(shape)) for name in names or NAMED]
        written = [write_format_picture([as_format(name) for name in names or ()], out)] if plot else []
        print_sheets(sheets, console)
        for path, text in ((json, sheets_json), (csv, sheets_csv)):
            if path is not None:
                write_text(path, text(sheets))
                written.append(path)
        for path in written:
            console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _run(config: Config, out: Path, console: Console) -> None:
    arms = len(config.seeds) * len(config.pipelines)
    with CompareProgress(console, arms) as progress:
        comparison = run_comparison(config, out, progress)
    folder = run_folder(config, out)
    files = [folder / COMPARISON_FILE, *write_report(comparison, folder)]
    print_report(comparison, console)
    console.print(f"\n{len(files)} files in {folder}", highlight=False)
