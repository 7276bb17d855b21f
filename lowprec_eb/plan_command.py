"""``lowprec-eb estimate``: what whole pipelines would cost, before they are paid for."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from lowprec_eb.checkpoints import write_text
from lowprec_eb.planning import load_plan, make_plans
from lowprec_eb.planning.files import plans_csv, plans_json
from lowprec_eb.planning.picture import plan_picture
from lowprec_eb.planning.tables import print_plan
from lowprec_eb.report.figures import save_picture
from lowprec_eb.terminal import explained, new_console


def estimate(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the plan: configs/plans has some.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; dots for nesting.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write settings, arms and phases to this file.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a line for each arm and profile.")] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the energy of each arm.")] = False,
    out: Annotated[Path, typer.Option(help="PNG file of --plot, or a folder for it.")] = Path(),
) -> None:
    """Plan pipelines: energy, time, CO2e and cost as ranges, for models of any size; nothing is trained."""
    console = new_console()
    with explained(console):
        loaded = load_plan(config, settings or ())
        began = time.perf_counter()
        plans = make_plans(loaded)
        seconds = time.perf_counter() - began
        for plan in plans:
            print_plan(plan, console)
        console.print(Text(f"- planned in {seconds:.2f} s"))
        written = []
        for path, text in ((json, plans_json), (csv, plans_csv)):
            if path is not None:
                write_text(path, text(plans))
                written.append(path)
        if plot:
            picture = out if out.suffix == ".png" else out / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', loaded.name)}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            save_picture(plan_picture(plans), picture)
            written.append(picture)
        for path in written:
            console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)
