"""``lowprec-eb profiles``: the hardware profiles, and every constant of one with its source."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from energy_models.profile_files import available_profiles, load_profile
from energy_models.profiles import Constant, HardwareProfile
from lowprec_eb.terminal import explained, new_console

_MARK = "*"
_SEEN = f"{_MARK} secondary source: seen in works that quote the document, not in the document itself."


def profiles(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A shipped profile, or the path of a .yaml file; none: list them."),
    ] = None,
) -> None:
    """Show hardware profiles: what is priced, each constant with its range and source, and what is left out."""
    console = new_console()
    with explained(console):
        if name is None:
            console.print(build_list([load_profile(each) for each in available_profiles()]))
            console.print(Text(_SEEN))
            return
        profile = load_profile(name)
    console.print(Text(f"{profile.name}: {profile.description}", style="bold"))
    console.print(build_constants(profile))
    console.print(Text(_SEEN))
    for title, lines in (("leaves out", profile.leaves_out), ("calibration", _pairs(profile))):
        if lines:
            console.print(Text(title, style="bold"))
            for line in lines:
                console.print(Text(f"- {line}"))


def build_list(found: list[HardwareProfile]) -> Table:
    """One row a profile: what its MACs and memories are, and how many constants it has."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("name", "MACs", "memory", "constants", "description"):
        right = heading == "constants"
        table.add_column(Text(heading), justify="right" if right else "left", no_wrap=heading in ("name", "constants"))
    for profile in found:
        constants = profile.constants().values()
        secondary = sum(constant.is_secondary for constant in constants)
        cells = (
            profile.name,
            ", ".join(profile.units) or "any format, from parts",
            " > ".join(level.name for level in profile.memory),
            f"{len(constants)}, {secondary}{_MARK}",
            profile.description + ("" if profile.chip is None else "; whole chip: time and static power"),
        )
        table.add_row(*map(Text, cells))
    return table


def build_constants(profile: HardwareProfile) -> Table:
    """One row a constant: value, low, high, unit, source."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(Text("constant"), no_wrap=True)
    for heading in ("value", "low", "high"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    table.add_column(Text("unit"), no_wrap=True)
    table.add_column(Text("source"), overflow="fold")
    above = ""
    for place, constant in profile.constants().items():
        numbers = (f"{value:.6g}" for value in (constant.value, constant.low, constant.high))
        unit, source = "" if constant.unit == "1" else constant.unit, _source(constant)
        table.add_row(*map(Text, (place, *numbers, unit, "as above" if source == above else source)))
        above = source
    return table


def _source(constant: Constant) -> str:
    return f"{_MARK} {constant.source}" if constant.is_secondary else constant.source


def _pairs(profile: HardwareProfile) -> tuple[str, ...]:
    return tuple(f"{key}: {value}" for key, value in profile.calibration.items())
