"""``lowprec-eb report``: a finished run's tables and pictures again, under another profile if wanted."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from energy_models import HardwareProfile, load_profile
from energy_models.footprint import Footprint, parse_numbers
from lowprec_eb.compare import recorded_config
from lowprec_eb.published import Table, early_bird_paper
from lowprec_eb.report import (
    Comparison,
    paper_table,
    print_paper_table,
    print_report,
    with_statistics,
    write_paper_table,
    write_report,
)
from lowprec_eb.report.profile_pictures import priced_arms, write_profile_pictures
from lowprec_eb.report.saved import load_comparison
from lowprec_eb.terminal import explained, new_console

_RANGE = "One number, low-high, or low-nominal-high."


class Form(StrEnum):
    """Whose tables."""

    full = "full"
    paper = "paper"


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, such as runs/digits-0123456789.")],
    profiles: Annotated[
        list[str] | None,
        typer.Option(
            "--profile", help="Price the run under this hardware profile: a name, or a YAML file. Repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; left out, the run's. Under a profile: under-PROFILE in it.")
    ] = None,
    carbon_intensity: Annotated[str | None, typer.Option(help=f"g CO2e per kWh. {_RANGE}")] = None,
    price: Annotated[str | None, typer.Option(help=f"Price of a kWh. {_RANGE}")] = None,
    currency: Annotated[str | None, typer.Option(help="Currency of the price, such as EUR.")] = None,
    pue: Annotated[str | None, typer.Option(help=f"kWh of the site per kWh of the computer. {_RANGE}")] = None,
    margin: Annotated[
        float | None, typer.Option(help="Difference in accuracy that counts as none, a fraction: 0.01 is 1 point.")
    ] = None,
    confidence: Annotated[float | None, typer.Option(help="Level of intervals over seeds and of verdicts.")] = None,
    baselines: Annotated[
        list[str] | None, typer.Option("--baseline", help="Test the arms against this arm. Repeatable.")
    ] = None,
    form: Annotated[
        Form, typer.Option("--format", help="full: all tables and pictures; paper: the early-bird paper's own table.")
    ] = Form.full,
    published: Annotated[
        str | None,
        typer.Option(
            help="With --format paper: the published table to stand beside; left out, that of model and data."
        ),
    ] = None,
) -> None:
    """Write a finished run's tables and pictures again, without training.

    With --profile its energies are those of another chip; of several, pictures of what the chip changes follow. CO2e
    and cost follow from what you give, and replace what the run's settings gave. So do margin, confidence and
    baselines; the report says that they are not the run's.
    """
    console = new_console()
    with explained(console):
        given = {"carbon_intensity": carbon_intensity, "price": price, "currency": currency, "pue": pue}
        footprint = _footprint(given) if any(value is not None for value in given.values()) else None
        if published is not None and form is not Form.paper:
            raise ValueError("--published: is for --format paper")
        if form is Form.paper and any(value is not None for value in (margin, confidence, baselines)):
            raise ValueError("--margin, --confidence, --baseline: the paper's table tests nothing; use --format full")
        chips: list[HardwareProfile | None] = [load_profile(name) for name in profiles or ()]
        names = [chip.name for chip in chips if chip is not None]
        if len(set(names)) < len(names):
            raise ValueError(
                f"--profile: two of {', '.join(names)} have one name; leave one out, or rename it in its file"
            )
        priced: dict[str, Comparison] = {}
        for chip in chips or [None]:
            named = None if baselines is None else tuple(baselines)
            comparison = with_statistics(load_comparison(run, chip), margin, confidence, named)
            if footprint is not None:
                comparison = dataclasses.replace(comparison, footprint=footprint)
            folder = (out or run) if chip is None else (out or run) / f"under-{_file_name(chip.name)}"
            if form is Form.paper:
                _say_written(_paper_table(run, comparison, published, folder, console), folder, console)
                continue
            files = write_report(comparison, folder)
            print_report(comparison, console)
            _say_written(files, folder, console)
            if chip is not None:
                priced[chip.name] = comparison
        if len(priced) > 1:
            _say_written(write_profile_pictures(priced_arms(priced), out or run), out or run, console)


def _paper_table(
    run: Path, comparison: Comparison, published: str | None, folder: Path, console: Console
) -> list[Path]:
    config, paper = recorded_config(run), early_bird_paper()
    if published is not None:
        beside: Table | None = paper.table(published)
    else:
        beside = None if config is None else paper.table_for(config.task.data, config.model)
    table = paper_table(comparison, beside, None if config is None else config.ticket.ratio)
    print_paper_table(table, console)
    return write_paper_table(table, folder)


def _say_written(files: Sequence[Path], folder: Path, console: Console) -> None:
    console.print(f"\n{len(files)} files in {folder}", highlight=False, markup=False, soft_wrap=True)


def _footprint(given: dict[str, str | None]) -> Footprint:
    numbers = {}
    for name in ("carbon_intensity", "price", "pue"):
        text = given[name]
        try:
            numbers[name] = None if text is None else parse_numbers(text)
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')}: {error}") from error
    return Footprint(currency=given["currency"], **numbers)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
