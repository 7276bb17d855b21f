"""``lowprec-eb calibrate``: fit a profile's factors to measured windows and write a new profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from energy_models import CountStore, HardwareProfile, Ledger, calibration, load_profile, reprice
from energy_models.calibrated_profile import calibrated_text, factor_text
from energy_models.calibration import Calibration, default_factors
from energy_models.calibration_windows import MIN_WINDOW_S, WindowSet, WindowsHeader, read_windows, windows_of_rows
from energy_models.profile_files import parse_profile
from lowprec_eb.checkpoints import write_text
from lowprec_eb.stage_data import COUNTS_FOLDER, LEDGER_FILE
from lowprec_eb.terminal import explained, new_console

_SHOWN_WINDOWS = 30


def calibrate(
    profile: Annotated[str, typer.Argument(help="Hardware profile to calibrate: a name, or a .yaml file.")],
    windows: Annotated[
        list[Path],
        typer.Argument(help="Files of measured windows, or ledgers of finished runs, or folders with them."),
    ],
    out: Annotated[Path, typer.Option(help="The new profile's file; its name is the profile's.")],
    factor: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COMPONENT,...", help="A factor to fit, up to three; none: compute, memory, static."),
    ] = None,
    device: Annotated[str, typer.Option(help="What a ledger's run was measured on, for the profile's record.")] = "",
    min_seconds: Annotated[float, typer.Option(help="Ledger rows shorter than this are left out.")] = MIN_WINDOW_S,
) -> None:
    """Fit two or three factors of a hardware profile to measured energy, and write a new profile.

    The new profile says that it was calibrated, on what, and how well. An existing file is not overwritten.
    """
    console = new_console()
    with explained(console):
        _check_out(out)
        chip = load_profile(profile)
        sets = [_windows(source, chip, device, min_seconds) for source in windows]
        header = _joined([found.header for found in sets], chip.name)
        fitted = _fit(sets, _factors(factor or ()), windows)
        when = datetime.now(UTC).date().isoformat()
        _print(fitted, sets, console)
        text = calibrated_text(_profile_text(profile), fitted, header, name=out.stem, when=when)
        written = parse_profile(text, str(out))
        write_text(out, text)
        for key, said in written.calibration.items():
            if key not in ("factors", "warnings"):
                console.print(Text(f"{key.replace('_', ' ')}: {said}"))
        console.print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)


def _check_out(out: Path) -> None:
    if out.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out {out}: a profile is a .yaml file")
    if out.exists():
        raise FileExistsError(17, "a calibration is a new profile, and this file exists", str(out))


def _fit(sets: Sequence[WindowSet], factors: Mapping[str, tuple[str, ...]], sources: Sequence[Path]) -> Calibration:
    windows = [window for found in sets for window in found.windows]
    if not windows:
        left_out = "; ".join(reason for found in sets for reason in found.left_out[:3])
        raise ValueError(f"no measured windows in {', '.join(map(str, sources))}: {left_out}")
    return calibration.calibrate(windows, factors or default_factors(list(windows[0].predicted_j)))


def _profile_text(name_or_path: str) -> str:
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path).read_text(encoding="utf-8")
    return (resources.files("energy_models") / "profiles" / f"{name_or_path}.yaml").read_text(encoding="utf-8")


def _factors(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found = {}
    for text in texts:
        name, equals, components = text.partition("=")
        parts = tuple(part.strip() for part in components.split(",") if part.strip())
        if not (name.strip() and equals and parts):
            raise ValueError(f"--factor {text!r}: expected NAME=COMPONENT,..., as in memory=dram,buffer")
        if name.strip() in found:
            raise ValueError(f"--factor {name.strip()} is given twice")
        found[name.strip()] = parts
    return found


def _windows(source: Path, profile: HardwareProfile, device: str, min_seconds: float) -> WindowSet:
    if source.is_file() and source.name != LEDGER_FILE:
        found = read_windows(source)
        if found.header.profile != profile.name:
            raise ValueError(
                f"{source}: its predictions are of the profile {found.header.profile!r}, and {profile.name!r} is to "
                "be calibrated; predict them again under it"
            )
        return found
    ledgers = [source] if source.is_file() else sorted(source.rglob(LEDGER_FILE))
    if not ledgers:
        raise ValueError(f"{source}: neither a file of windows nor a folder with ledgers")
    if not device:
        raise ValueError(f"{source}: a ledger does not say what it was measured on; say it with --device")
    rows = [
        row
        for path in ledgers
        for row in reprice(Ledger(path).settled(), CountStore(path.parent / COUNTS_FOLDER), profile)
    ]
    header = WindowsHeader(1, profile.name, device, "as the run measured", "")
    return windows_of_rows(rows, header, min_seconds)


def _joined(headers: Sequence[WindowsHeader], profile: str) -> WindowsHeader:
    """What several sources say, each thing once."""

    def together(key: str) -> str:
        return "; ".join(dict.fromkeys(text for header in headers if (text := getattr(header, key))))

    return replace(
        headers[0], profile=profile, device=together("device"), sensor=together("sensor"), made=together("made")
    )


def _print(fitted: Calibration, sets: Sequence[WindowSet], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(Text("window"), overflow="fold")
    for heading in ("measured\n[J]", "before\n[J]", "fitted\n[J]", "error", "held-out\nerror"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for window in fitted.windows[:_SHOWN_WINDOWS]:
        measured_j = window.window.measured_j
        joules = (f"{value:.4g}" for value in (measured_j, window.before_j, window.fitted_j))
        errors = (f"{value / measured_j - 1:+.1%}" for value in (window.fitted_j, window.held_out_j))
        table.add_row(*map(Text, (window.window.name, *joules, *errors)))
    console.print(table)
    if len(fitted.windows) > _SHOWN_WINDOWS:
        console.print(Text(f"and {len(fitted.windows) - _SHOWN_WINDOWS} more windows"))
    for factor in fitted.factors:
        console.print(Text(f"factor {factor_text(factor)}: {', '.join(factor.components)}"))
    for warning in fitted.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
    left_out = [reason for found in sets for reason in found.left_out]
    if left_out:
        console.print(Text(f"{len(left_out)} ledger rows left out, the first: {left_out[0]}"))
