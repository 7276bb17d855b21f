"""Hardware profiles: the constants that a modelled energy is made of, each with its value, unit, range and source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SECONDARY = "secondary source"


@dataclass(frozen=True)
class Constant:
    """One constant of a profile: low <= value <= high (both are the value where the source gives no range)."""

    value: float
    unit: str
    low: float
    high: float
    source: str

    def at(self, end: str) -> float:
        """Its "low", "nominal" or "high"."""
        return self.value if end == "nominal" else float(getattr(self, end))

    def per_bit(self) -> Constant:
        """The same energy in pJ/bit; only for a constant in pJ/bit or pJ/64bit."""
        if self.unit == "pJ/bit":
            return self
        return Constant(self.value / 64, "pJ/bit", self.low / 64, self.high / 64, self.source)

    @property
    def is_secondary(self) -> bool:
        """Whether its document itself was not seen, only works that quote it."""
        return SECONDARY in self.source


@dataclass(frozen=True)
class Arithmetic:
    """Energy of the operations that MACs of every format are made of, in pJ; see `mac_energy`."""

    int_add_8: Constant
    int_add_32: Constant
    int_mult_8: Constant
    int_mult_32: Constant
    float_add_16: Constant
    float_add_32: Constant
    float_mult_16: Constant
    float_mult_32: Constant


@dataclass(frozen=True)
class Unit:
    """What a chip multiplies in: pJ of one MAC, and how many TMAC/s all of them make at their peak."""

    energy: Constant
    rate: Constant


@dataclass(frozen=True)
class MemoryLevel:
    """One memory: energy of a bit that is read or written, capacity (None outside of the chip), bandwidth in GB/s."""

    name: str
    energy: Constant
    capacity: Constant | None = None
    bandwidth: Constant | None = None


@dataclass(frozen=True)
class Chip:
    """What a whole chip adds: the power that it draws whatever it does, and the share of its peak that it reaches.

    `rate` is the peak in TMAC/s, of MACs of any format, of a chip with `arithmetic`; None where its `units` have rates.
    """

    static_power: Constant
    utilisation: Constant
    rate: Constant | None = None


@dataclass(frozen=True)
class HardwareProfile:
    """What the operations of one chip cost; field names are the keys of the file.

    `memory` goes from the outside (DRAM) inwards; `operand_reuse` are the products made per operand that the innermost
    level hands out. `sum_reuse` are the products added to a partial sum between its read from that level and its way
    back; None where sums stay in accumulators, priced with the MACs. MACs cost what `arithmetic` says of their formats,
    or, of a chip with fixed units, what the cheapest of its `units` costs that holds both operands. `calibration` is
    what a calibrated profile says of itself.
    """

    name: str
    description: str
    leaves_out: tuple[str, ...]
    memory: tuple[MemoryLevel, ...]
    operand_reuse: Constant
    sum_reuse: Constant | None = None
    arithmetic: Arithmetic | None = None
    units: Mapping[str, Unit] = field(default_factory=dict)
    chip: Chip | None = None
    calibration: Mapping[str, str] = field(default_factory=dict)

    def constants(self) -> dict[str, Constant]:
        """Every constant by its place in the file ("memory.dram.energy")."""
        found: dict[str, Constant] = {"operand_reuse": self.operand_reuse}
        if self.sum_reuse is not None:
            found["sum_reuse"] = self.sum_reuse
        for part, name in ((self.arithmetic, "arithmetic"), (self.chip, "chip")):
            if part is not None:
                given = {key: getattr(part, key) for key in part.__dataclass_fields__}
                found |= {f"{name}.{key}": value for key, value in given.items() if value is not None}
        for unit_name, unit in self.units.items():
            found |= {f"units.{unit_name}.energy": unit.energy, f"units.{unit_name}.rate": unit.rate}
        for level in self.memory:
            parts = {"energy": level.energy, "capacity": level.capacity, "bandwidth": level.bandwidth}
            found |= {f"memory.{level.name}.{key}": value for key, value in parts.items() if value is not None}
        return found
