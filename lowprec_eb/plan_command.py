"""``lowprec-eb estimate``: what whole pipelines would cost, before they are paid for."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from lowprec_eb.checkpoints import write_text
from lowprec_eb.compare import plan as plan_comparison
from lowprec_eb.config import load_config
from lowprec_eb.planning import load_plan, make_plans
from lowprec_eb.planning.bookkept import (
    bookkept,
    bookkept_csv,
    bookkept_json,
    bookkept_sentences,
    bookkept_table,
    published_size,
)
from lowprec_eb.planning.files import plans_csv, plans_json
from lowprec_eb.planning.picture import plan_picture
from lowprec_eb.planning.settings import PlanSettings
from lowprec_eb.planning.tables import print_plan
from lowprec_eb.progress import PlanProgress
from lowprec_eb.report import plan_csv, plan_json
from lowprec_eb.report import print_plan as print_comparison_plan
from lowprec_eb.report.figures import save_picture
from lowprec_eb.strict_config import top_keys
from lowprec_eb.tasks import sized_task
from lowprec_eb.terminal import explained, new_console


class Bookkeeping(StrEnum):
    """Whose way of charging; the exact one has no name."""

    early_bird = "early_bird"


def estimate(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file of a plan (configs/plans) or of a comparison.")
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; dots for nesting.")
    ] = None,
    bookkeeping: Annotated[
        Bookkeeping | None,
        typer.Option(help="Of a comparison: charge as this paper does, beside what it prints."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write arms, and what they rest on, to this file.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a line for each arm (and profile).")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Of a plan: draw the energy of each arm.")] = False,
    out: Annotated[Path, typer.Option(help="PNG file of --plot, or a folder for it.")] = Path(),
) -> None:
    """Plan pipelines: energy, time, CO2e and cost as ranges, for models of any size; nothing is trained.

    Of a comparison what `compare --dry-run` says, without its data.
    """
    console = new_console()
    with explained(console):
        if json is not None and json == csv:
            raise ValueError(f"--json, --csv: both are to be written to {json}; give two files")
        if "pipelines" in top_keys(config):
            if plot:
                raise ValueError(f"{config}: is a comparison; --plot is for plan files")
            _estimate_comparison(config, settings or [], bookkeeping, json, csv, console)
            return
        if bookkeeping is not None:
            raise ValueError(
                f"--bookkeeping: is for comparisons (files with the key pipelines), and {config} is a plan"
            )
        _estimate_plan(load_plan(config, settings or ()), json, csv, out if plot else None, console)


def _estimate_comparison(
    path: Path,
    settings: list[str],
    bookkeeping: Bookkeeping | None,
    json: Path | None,
    csv: Path | None,
    console: Console,
) -> None:
    config = load_config(path, settings)
    if bookkeeping is None:
        task, seeds = sized_task(config.task, published_size(config)), len(config.seeds)
        with PlanProgress(console, len(config.pipelines)) as progress:
            comparison = plan_comparison(config, task, progress.begin)
        print_comparison_plan(comparison, console, seeds=seeds)
        texts = {json: lambda: plan_json(comparison, seeds=seeds), csv: lambda: plan_csv(comparison)}
    else:
        book = bookkept(config)
        console.print(bookkept_table(book))
        for line in bookkept_sentences(book):
            console.print(Text(f"- {line}"))
        texts = {json: lambda: bookkept_json(book), csv: lambda: bookkept_csv(book)}
    _say_written(_written(texts), console)


def _written(texts: Mapping[Path | None, Callable[[], str]]) -> list[Path]:
    """Those of the files that were asked for."""
    paths = {path: text for path, text in texts.items() if path is not None}
    for path, text in paths.items():
        write_text(path, text())
    return list(paths)


def _say_written(files: Sequence[Path], console: Console) -> None:
    for path in files:
        console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _estimate_plan(
    loaded: PlanSettings, json: Path | None, csv: Path | None, picture: Path | None, console: Console
) -> None:
    began = time.perf_counter()
    plans = make_plans(loaded)
    seconds = time.perf_counter() - began
    for plan in plans:
        print_plan(plan, console)
    console.print(Text(f"- planned in {seconds:.2f} s"))
    written = _written({json: lambda: plans_json(plans), csv: lambda: plans_csv(plans)})
    if picture is not None:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", loaded.name)
        picture = picture if picture.suffix == ".png" else picture / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        save_picture(plan_picture(plans), picture)
        written.append(picture)
    _say_written(written, console)
