"""Measured windows for a calibration: as a file of their own, or out of a finished run's ledger.

A file of windows is JSON Lines: the header ``{"windows": 1, "profile": "45nm", "device": "...", "sensor": "..."}``,
then a line a window: ``{"name": "resnet18 bs 64", "measured_j": 812.0, "duration_s": 2.0, "predicted_j": {"compute":
31.0, "memory": 210.0}, "group": "resnet18"}``. ``group`` may be left out: then every window is work of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from energy_models.calibration import EnergyWindow
from energy_models.energy import ModelledEnergy
from energy_models.ledger import LedgerRow, settled

MIN_WINDOW_S = 1.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class WindowsHeader:
    """What a file's windows have in common: the profile that ``predicted_j`` is of, where and with what they were
    measured, and (``made``) a word on where they come from, for what was not measured in earnest."""

    windows: Literal[1]
    profile: str
    device: str
    sensor: str
    made: str = ""


@dataclass(frozen=True)
class WindowSet:
    """Windows and what is to be known about them; ``left_out`` are rows that became no window, with the reason."""

    header: WindowsHeader
    windows: tuple[EnergyWindow, ...]
    left_out: tuple[str, ...] = ()


_HEADER, _WINDOW = TypeAdapter(WindowsHeader), TypeAdapter(EnergyWindow)


def write_windows(path: str | Path, windows: WindowSet) -> None:
    """Write a file of windows. Raises FileExistsError."""
    lines = [asdict(windows.header), *map(asdict, windows.windows)]
    with Path(path).open("x", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def read_windows(path: str | Path) -> WindowSet:
    """Read a file of windows. Raises ValueError with file and line, and FileNotFoundError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a file of windows: {error}") from error
    if len(lines) < 2:
        raise ValueError(f"{path}: there are no windows in it")
    header = _parsed(_HEADER, lines[0], f"{path}:1: not the header of a file of windows")
    numbered = enumerate(lines[1:], start=2)
    return WindowSet(header, tuple(_parsed(_WINDOW, line, f"{path}:{n}: not a window") for n, line in numbered))


def _parsed(adapter: TypeAdapter[_T], line: str, what: str) -> _T:
    try:
        return adapter.validate_json(line, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        raise ValueError(f"{what}: {where}: {first['msg']}") from None


def windows_of_rows(rows: Iterable[LedgerRow], header: WindowsHeader, min_s: float = MIN_WINDOW_S) -> WindowSet:
    """The measured rows of a ledger, its modelled energies priced under the profile that is to be calibrated.

    A row that took no time of its own (updates of a weight average, which the sensor saw in the training) joins the
    training of its stage and epoch. A stage's phase is one group. Rows without a measurement, and those shorter than
    ``min_s``, are left out and named.
    """
    kept, left_out = [], []
    for row, modelled in _joined(settled(rows)):
        name = f"{row.key.stage} {row.key.phase} epoch {row.key.epoch}"
        if row.measured_j is None:
            left_out.append(f"{name}: not measured")
        elif row.duration_s < min_s or row.measured_j == 0:
            left_out.append(f"{name}: {row.duration_s:.3g} s and {row.measured_j:.3g} J, too little")
        else:
            group = f"{row.key.stage} {row.key.phase}"
            kept.append(EnergyWindow(name, row.measured_j, row.duration_s, components_j(modelled), group))
    return WindowSet(header, tuple(kept), tuple(left_out))


def components_j(modelled: ModelledEnergy) -> dict[str, float]:
    """Nominal joules by component."""
    return {name: joules.nominal for name, joules in modelled.components_j.items()}


def _joined(rows: Sequence[LedgerRow]) -> list[tuple[LedgerRow, ModelledEnergy]]:
    inside = [row for row in rows if row.key.phase == "average" and row.duration_s == 0]
    trained = {_place(row): row for row in rows if row.key.phase in ("search", "train", "retrain")}
    energies = {id(row): row.modelled for row in rows}
    for row in inside:
        if _place(row) not in trained:
            raise ValueError(
                f"{row.key.stage} average epoch {row.key.epoch}: the ledger has no training of that epoch, in whose "
                "time the averages fall; run the stage again, or leave its ledger out"
            )
        training = trained[_place(row)]
        energies[id(training)] = energies[id(training)] + row.modelled
    return [(row, energies[id(row)]) for row in rows if not any(row is other for other in inside)]


def _place(row: LedgerRow) -> tuple[str, str, int, int]:
    return row.key.run, row.key.stage, row.key.epoch, row.key.rank
