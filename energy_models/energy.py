"""A modelled energy: components with their ranges, and the totals that compare one chip with itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ENDS = ("low", "nominal", "high")
NOT_MEMORY = ("compute", "other", "static")


@dataclass(frozen=True)
class Range:
    """A quantity with its uncertainty; all three numbers have the same unit."""

    low: float
    nominal: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.nominal + other.nominal, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.nominal * factor, self.high * factor)

    __rmul__ = __mul__

    @classmethod
    def total(cls, ranges: Iterable[Range]) -> Range:
        """The sum, rounded once: it does not depend on the order."""
        parts = list(ranges)
        return cls(*(math.fsum(getattr(part, end) for part in parts) for end in ENDS))


ZERO = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ModelledEnergy:
    """Modelled joules by component, and the bytes behind those of each memory level.

    Components are "compute" (MACs and alignments of the GEMMs), "other" (arithmetic of element operations), one for
    each memory level by its name, from "dram" inwards, and "static" for whole chips. `corners_j` are the total joules
    under each combination of what the profile leaves open, in a fixed order (`estimate.CORNERS`): two energies under
    one profile compare corner by corner, since what is unknown about a chip is the same for both.
    """

    components_j: Mapping[str, Range] = field(default_factory=dict)
    level_bytes: Mapping[str, Range] = field(default_factory=dict)
    corners_j: tuple[float, ...] = ()

    @classmethod
    def zero(cls) -> ModelledEnergy:
        """Nothing done: the start of a sum."""
        return cls()

    @classmethod
    def total(cls, energies: Iterable[ModelledEnergy]) -> ModelledEnergy:
        """The sum, rounded once: it does not depend on the order."""
        parts = [part for part in energies if part.corners_j]
        if len({len(part.corners_j) for part in parts}) > 1:
            raise ValueError("energies with different numbers of corners come from different versions: reprice them")
        return cls(
            _summed([part.components_j for part in parts]),
            _summed([part.level_bytes for part in parts]),
            tuple(math.fsum(corner) for corner in zip(*(part.corners_j for part in parts), strict=True)),
        )

    def __add__(self, other: ModelledEnergy) -> ModelledEnergy:
        return ModelledEnergy.total((self, other))

    def __mul__(self, factor: float) -> ModelledEnergy:
        return ModelledEnergy(
            {name: part * factor for name, part in self.components_j.items()},
            {name: part * factor for name, part in self.level_bytes.items()},
            tuple(corner * factor for corner in self.corners_j),
        )

    __rmul__ = __mul__

    @property
    def compute_j(self) -> Range:
        """The GEMMs' MACs and alignments."""
        return self.components_j.get("compute", ZERO)

    @property
    def other_j(self) -> Range:
        """Arithmetic of element operations."""
        return self.components_j.get("other", ZERO)

    @property
    def static_j(self) -> Range:
        """What the chip draws whatever it does; zero for profiles of bare arithmetic."""
        return self.components_j.get("static", ZERO)

    @property
    def memory_j(self) -> Range:
        """All memory levels together."""
        return Range.total(part for name, part in self.components_j.items() if name not in NOT_MEMORY)

    @property
    def traffic_bytes(self) -> Range:
        """Bytes that cross the outermost memory level."""
        return next(iter(self.level_bytes.values()), ZERO)

    @property
    def total_j(self) -> Range:
        """All components together."""
        return Range.total(self.components_j.values())

    @property
    def low_j(self) -> float:
        """Low end of `total_j`."""
        return self.total_j.low

    @property
    def nominal_j(self) -> float:
        """Nominal value of `total_j`."""
        return self.total_j.nominal

    @property
    def high_j(self) -> float:
        """High end of `total_j`."""
        return self.total_j.high

    def ratio_to(self, other: ModelledEnergy) -> Range:
        """This energy over another one under the same profile: nominal over nominal, ends over all corners jointly.

        Raises:
            ValueError: the other one is zero, or they have different corners.
        """
        if len(self.corners_j) != len(other.corners_j) or not other.corners_j:
            raise ValueError("a ratio needs two energies under one profile")
        if min(other.nominal_j, *other.corners_j) <= 0:
            raise ValueError(
                f"a ratio needs an energy above zero to divide by, got {other.total_j}; check its ledger's rows"
            )
        nominal = self.nominal_j / other.nominal_j
        ratios = [a / b for a, b in zip(self.corners_j, other.corners_j, strict=True)]
        return Range(min(nominal, *ratios), nominal, max(nominal, *ratios))


def _summed(parts: list[Mapping[str, Range]]) -> dict[str, Range]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: Range.total(part[name] for part in parts if name in part) for name in names}
