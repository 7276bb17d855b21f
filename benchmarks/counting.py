"""Who counts multiply-accumulates rightly, how fast and in how much memory: `python benchmarks/counting.py --out DIR`.

Errors are against hand counts (`counting_cases.py`). The other counters are measured where they are installed
(`make test-interop` installs them); torchvision has to be.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from counting_cases import CASES, torchvision_models
from counting_contenders import FORWARD_COUNTERS, MODULES, macs
from counting_report import Row, checks, draw, error_table, time_table
from counting_share import Share, epoch_share
from counting_speed import MODELS, Timing, measure
from measuring import Check, bounds_section, missing
from rich.console import Console

from lowprec_eb.versions import versions

_CONFIG = Path(__file__).parents[1] / "configs" / "digits.yaml"
_SHOWN = 100  # letters of another library's message
_WIDTH = 150  # of the tables, where they go to a file


def say(text: str) -> None:
    typer.echo(text, err=True)


def _errors(counters: Sequence[str]) -> list[Row]:
    rows = []
    for case in CASES:
        say(f"{case.name}, {case.what}")
        for counter in counters:
            found, failure = None, ""
            try:
                found = macs(counter, case)
            except Exception as error:  # whatever another library raises is its result
                failure = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:_SHOWN]}"
            rows.append(Row(case.name, case.what, case.macs, counter, found, failure))
    return rows


def _timings(counters: Sequence[str], rounds: int, failures: list[str]) -> list[Timing]:
    timings = []
    for model in MODELS:
        for counter in counters:
            say(f"{model}: {counter}")
            try:
                timings.append(measure(model, counter, rounds))
            except RuntimeError as error:
                failures.append(f"time of {counter} for {model} ({error})")
    return timings


def _save(
    rows: Sequence[Row],
    timings: Sequence[Timing],
    share: Share | None,
    found: Sequence[Check],
    left_out: Sequence[str],
    out: Path,
) -> None:
    lines = [{**asdict(row), "error_percent": row.error_percent} for row in rows]
    figures: dict[str, Any] = {"machine": {**versions(), "threads": torch.get_num_threads()}, "errors": lines}
    figures["times"] = [asdict(timing) for timing in timings]
    figures["share"] = None if share is None else {**asdict(share), "of_training": share.of_training}
    figures |= {"checks": [asdict(check) for check in found], "not_measured": list(left_out)}
    (out / "counting.json").write_text(json.dumps(figures, indent=1) + "\n")
    with (out / "counting.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def main(
    out: Annotated[Path, typer.Option(help="folder for counting.json, counting.csv and counting.png")],
    rounds: Annotated[int, typer.Option(min=1, help="counts behind a median")] = 7,
    speed: Annotated[bool, typer.Option(help="time and memory too")] = True,
) -> None:
    """Measure, print tables, write figures and a picture."""
    try:
        torchvision_models()
    except ImportError as error:
        raise typer.BadParameter(f"torchvision is needed, `make test-interop` installs it ({error})") from None
    absent = missing(MODULES.values())
    counters = [
        name for name in FORWARD_COUNTERS if not any(line.startswith(MODULES.get(name, " ")) for line in absent)
    ]
    rows, left_out = _errors(counters), list(absent)
    left_out += [f"{row.what} of {row.case} by {row.counter} ({row.failure})" for row in rows if row.macs is None]
    timings = _timings(counters, rounds, left_out) if speed else []
    share = epoch_share(_CONFIG, rounds) if speed else None
    found = checks(rows, timings, share)
    out.mkdir(parents=True, exist_ok=True)
    _save(rows, timings, share, found, left_out, out)
    draw(rows, out / "counting.png")
    console = Console() if Console().is_terminal else Console(width=_WIDTH)
    console.print(error_table(rows))
    if timings:
        console.print(time_table(timings))
    if left_out:
        console.print("\n".join(["Not measured", *(f"- {line}" for line in left_out)]), markup=False)
    console.print("\n".join(bounds_section(found)), markup=False)
    console.print(f"written: {out}/counting.json, .csv, .png", markup=False)


if __name__ == "__main__":
    typer.run(main)
