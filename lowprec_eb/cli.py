"""The command line."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from lowprec_eb.compare import plan, run_folder
from lowprec_eb.config import Config, load_config
from lowprec_eb.progress import CompareProgress
from lowprec_eb.report import print_plan, print_report, write_report
from lowprec_eb.workers import compare as run_comparison

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
_WIDTH = 150  # of a table in a file or a pipe


@app.callback()
def main() -> None:
    """What training costs in energy, and how to pay less."""


@app.command()
def compare(
    config: Annotated[Path, typer.Option(help="YAML file of the comparison.")] = Path("configs/digits.yaml"),
    out: Annotated[Path, typer.Option(help="Folder for stages, ledgers, tables and pictures.")] = Path("runs"),
    data: Annotated[
        str | None, typer.Option(help="Data set: digits, cifar10, cifar100, fashion-mnist or mnist.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder with the data set's files.")] = None,
    backend: Annotated[str | None, typer.Option(help="Quantizers: auto, reference or qtorch.")] = None,
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
    console = _console()
    flags = {"task.data": data, "task.data_root": data_root, "backend": backend, "device": device}
    overrides = [f"{key}={value}" for key, value in flags.items() if value is not None]
    with _explained(console):
        loaded = load_config(config, [*overrides, *(settings or [])])
        if dry_run:
            print_plan(plan(loaded), console, seeds=len(loaded.seeds))
        else:
            _run(loaded, out, console)


def _run(config: Config, out: Path, console: Console) -> None:
    arms = len(config.seeds) * len(config.pipelines)
    with CompareProgress(console, arms) as progress:
        comparison = run_comparison(config, out, progress)
    folder = run_folder(config, out)
    files = write_report(comparison, folder)
    print_report(comparison, console)
    console.print(f"\n{len(files)} files in {folder}", highlight=False)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


@contextmanager
def _explained(console: Console) -> Iterator[None]:
    """Say what is wrong in words for errors that the person at the keyboard can mend."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError, ImportError, BrokenProcessPool) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(2) from error
    except KeyboardInterrupt:
        console.print("interrupted; run the same command again to go on", highlight=False)
        raise typer.Exit(130) from None
