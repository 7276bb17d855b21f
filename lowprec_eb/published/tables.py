"""The numbers of a published comparison as data: tables of methods by share of channels dropped.

Kept as printed, with the resolution of the printed digits, so that what follows from a number follows with its
rounding. `early_bird.yaml` beside this file says of each table where it stands in the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, get_args

from lowprec_eb import strict_config
from lowprec_eb.models import ModelSettings
from lowprec_eb.tasks.layouts import DataName

Method = Literal["dense", "lt", "snip", "ns", "thinet", "eb_reinit", "eb_ff", "eb_lf", "eb_ll"]
METHODS: tuple[Method, ...] = get_args(Method)
LABELS: dict[Method, str] = {
    "dense": "dense",
    "lt": "LT (one shot)",
    "snip": "SNIP",
    "ns": "network slimming",
    "thinet": "ThiNet",
    "eb_reinit": "EB re-init",
    "eb_ff": "EB (FF)",
    "eb_lf": "EB LF",
    "eb_ll": "EB LL",
}
_FLOPS_STEP, _ENERGY_STEP = 1.0, 0.1  # of the last printed digit, in the units of the columns


@dataclass(frozen=True)
class Row:
    """A method: accuracy in per cent, energy in kJ, FLOPs in the table's unit, each by the table's ratios."""

    method: Method
    accuracy: tuple[float | None, ...]
    energy_kj: tuple[float | None, ...]
    flops: tuple[float | None, ...]


@dataclass(frozen=True)
class Emergence:
    """After how many epochs tickets of these ratios appeared, read from a figure."""

    ratios: tuple[float, ...]
    epochs: tuple[int, ...]


@dataclass(frozen=True)
class Interval:
    """All numbers that are printed the same, or what follows from them; `low` <= `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"an interval needs low <= high, got {self.low} and {self.high}")

    @classmethod
    def printed(cls, value: float, step: float) -> Interval:
        """The numbers that round to `value` at a resolution of `step`."""
        return cls(value - step / 2, value + step / 2)

    def __truediv__(self, other: Interval) -> Interval:
        """Of positive intervals, taken as independent: it may be too wide, never too narrow."""
        return Interval(self.low / other.high, self.high / other.low)

    def meets(self, other: Interval) -> Interval | None:
        """What both have in common; None: nothing."""
        low, high = max(self.low, other.low), min(self.high, other.high)
        return Interval(low, high) if low <= high else None

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True)
class Table:
    """One model and data set. `images` are the training images of an epoch, `place` says where in the paper it stands.

    Raises ValueError when a row has another number of cells than there are ratios, or a method stands twice.
    """

    name: str
    title: str
    place: str
    data: DataName
    model: ModelSettings
    images: int
    test_images: int
    input_shape: tuple[int, ...]
    classes: int
    epochs: int
    flops_unit: float
    ratios: tuple[float, ...]
    rows: tuple[Row, ...]
    emergence: Emergence | None = None

    def __post_init__(self) -> None:
        methods = [row.method for row in self.rows]
        if len(set(methods)) < len(methods):
            raise ValueError(f"{self.name}: a method stands twice among {methods}")
        for row in self.rows:
            for cells in (row.accuracy, row.energy_kj, row.flops):
                if len(cells) != len(self.ratios):
                    raise ValueError(f"{self.name}, {row.method}: {len(cells)} cells for {len(self.ratios)} ratios")

    def row(self, method: Method) -> Row | None:
        return next((row for row in self.rows if row.method == method), None)

    def place_of(self, ratio: float | None) -> int | None:
        """The column of a ratio; None: it has none."""
        return next(
            (at for at, known in enumerate(self.ratios) if ratio is not None and math.isclose(known, ratio)), None
        )

    def flops(self, method: Method, place: int) -> Interval | None:
        """Training FLOPs (two a MAC) in a cell, as far as its digits say; None: it is empty."""
        row = self.row(method)
        value = None if row is None else row.flops[place]
        if value is None:
            return None
        cell = Interval.printed(value, _FLOPS_STEP)
        return Interval(cell.low * self.flops_unit, cell.high * self.flops_unit)

    def energy_j(self, method: Method, place: int) -> Interval | None:
        """Energy in J in a cell, as far as its digits say; None: it is empty."""
        row = self.row(method)
        value = None if row is None else row.energy_kj[place]
        if value is None:
            return None
        cell = Interval.printed(value, _ENERGY_STEP)
        return Interval(cell.low * 1e3, cell.high * 1e3)


@dataclass(frozen=True)
class Headline:
    """What the abstract claims: the energy of one method over that of another, from `low` to `high`."""

    low: float
    high: float
    step: float
    over: Method
    of: Method


@dataclass(frozen=True)
class Paper:
    """All tables of a paper, and its headline."""

    source: str
    headline: Headline
    tables: tuple[Table, ...]

    def table(self, name: str) -> Table:
        """By name.

        Raises:
            ValueError: there is none of that name.
        """
        found = next((table for table in self.tables if table.name == name), None)
        if found is None:
            known = ", ".join(table.name for table in self.tables)
            raise ValueError(f"no published table is named {name!r}; there are {known}")
        return found

    def table_for(self, data: DataName, model: ModelSettings) -> Table | None:
        """The table of this model on these data; None: there is none."""
        return next((table for table in self.tables if (table.data, table.model) == (data, model)), None)


@lru_cache(maxsize=1)
def early_bird_paper() -> Paper:
    """You et al. 2020, from `early_bird.yaml`."""
    return strict_config.load(Path(__file__).with_name("early_bird.yaml"), Paper)
