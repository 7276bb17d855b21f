"""Cells that the tables of a report share."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from energy_models.energy import ENDS, Range
from lowprec_eb.report.intervals import Interval


def ends_text(interval: Interval | None, text: Callable[[float], str]) -> str:
    """Both ends for people; "-" where there is no interval."""
    if interval is None:
        return "-"
    return "no spread" if interval.is_point else f"{text(interval.low)} to {text(interval.high)}"


def range_cells(name: str, values: Range | None) -> dict[str, float | None]:
    """Columns of a file: low, nominal and high, the end behind the name or in place of ``{end}``."""
    pattern = name if "{end}" in name else f"{name}_{{end}}"
    return {pattern.format(end=end): None if values is None else getattr(values, end) for end in ENDS}


def seeds_cells(name: str, interval: Interval | None) -> dict[str, float | None]:
    """Columns of a file: both ends of an interval over seeds, in place of ``{end}``."""
    return {name.format(end=end): None if interval is None else getattr(interval, end) for end in ("low", "high")}


def csv_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """A heading for each key that some line has, and the lines; what is a list is joined by semicolons."""
    text = io.StringIO()
    columns = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _joined(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def _joined(value: Any) -> Any:
    return ";".join(map(str, value)) if isinstance(value, list) else value
