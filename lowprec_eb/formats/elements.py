"""Formats without a scale: fixed point and floating point. They are also the elements of the scaled ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lowprec_eb.formats.base import Format, check_choice, check_range


@dataclass(frozen=True, repr=False, eq=False)
class FixedPoint(Format):
    """Fixed point: integers of ``wl`` bits times ``2 ** -fl``.

    The range is ``[-2 ** (wl - fl - 1), 2 ** (wl - fl - 1) - 2 ** -fl]``; ``symmetric`` gives up the lowest value and
    ``clamp=False`` lets values beyond the range pass, rounded. NaN passes; an infinity clamps.

    Source: Gupta et al. 2015, section 3; qtorch 0.3 ``FixedPoint``.
    """

    wl: int
    fl: int
    clamp: bool = True
    symmetric: bool = False

    kind: ClassVar[str] = "fixed_point"

    def check(self) -> None:
        check_range("FixedPoint", "wl", self.wl, 2, 24)
        check_range("FixedPoint", "fl", self.fl, 0, 64)
        check_choice("FixedPoint", "clamp", self.clamp, (True, False))
        check_choice("FixedPoint", "symmetric", self.symmetric, (True, False))

    def canonical(self) -> dict[str, object]:
        return {} if self.clamp else {"symmetric": False}  # without a range there is no symmetry

    @property
    def element(self) -> FixedPoint:
        return self

    @property
    def bits(self) -> int:
        return self.wl

    @property
    def exponent_bits(self) -> int:
        return 0

    @property
    def mantissa_bits(self) -> int:
        return self.wl - 1

    @property
    def step(self) -> float:
        """Distance of neighbours."""
        return float(2.0**-self.fl)

    @property
    def max_code(self) -> int:
        return int(2 ** (self.wl - 1) - 1)

    @property
    def min_code(self) -> int:
        return -self.max_code - (0 if self.symmetric else 1)

    @property
    def max(self) -> float:
        return self.max_code * self.step

    @property
    def min(self) -> float:
        """Lowest value."""
        return self.min_code * self.step

    @property
    def smallest(self) -> float:
        return self.step

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest value."""
        return self.wl - 2 - self.fl


@dataclass(frozen=True, repr=False, eq=False)
class Float(Format):
    """Floating point: a sign, ``exp`` exponent bits with bias ``2 ** (exp - 1) - 1``, ``man`` mantissa bits.

    Args:
        specials: what the largest codes mean. ``"ieee"``: the all-ones exponent is infinity and NaN (IEEE 754).
            ``"nan"``: only the all-ones code is NaN, there is no infinity (OCP E4M3). ``"none"``: every code is a
            number (qtorch; OCP E3M2, E2M3, E2M1).
        overflow: what a magnitude beyond :attr:`max` becomes: ``"saturate"`` (the largest value, infinities
            included), ``"infinity"`` (needs ``"ieee"``) or ``"nan"`` (needs a NaN). Rounding toward zero never
            overflows a finite number.
        ties: what ``rounding="nearest"`` does half-way: ``"even"`` (IEEE 754) or ``"away"`` from zero (qtorch).
        subnormals: whether a zero exponent holds evenly spaced small numbers. Without them the smallest positive
            number is ``2 ** min_exponent``, and smaller values round to it or to zero.
        nan: what a NaN in the tensor does: ``"keep"`` lets it through, though ``specials="none"`` has no code for it
            (:func:`lowprec_eb.encode` refuses then); ``"error"`` raises, which waits for the device.

    Source: IEEE 754-2019, section 3; OCP 8-bit Floating Point Specification 1.0, section 5; OCP Microscaling Formats
    1.0, section 5.3; qtorch 0.3 ``FloatingPoint``.
    """

    exp: int
    man: int
    specials: Literal["none", "nan", "ieee"] = "none"
    overflow: Literal["saturate", "infinity", "nan"] = "saturate"
    ties: Literal["even", "away"] = "even"
    subnormals: bool = True
    nan: Literal["keep", "error"] = "keep"

    kind: ClassVar[str] = "float"

    def check(self) -> None:
        check_range("Float", "exp", self.exp, 2, 8)
        check_range("Float", "man", self.man, 1, 23)
        check_choice("Float", "specials", self.specials, ("none", "nan", "ieee"))
        check_choice("Float", "overflow", self.overflow, ("saturate", "infinity", "nan"))
        check_choice("Float", "ties", self.ties, ("even", "away"))
        check_choice("Float", "subnormals", self.subnormals, (True, False))
        check_choice("Float", "nan", self.nan, ("keep", "error"))
        if self.overflow == "infinity" and self.specials != "ieee":
            raise ValueError("Float: overflow='infinity' needs specials='ieee', the others have no infinity")
        if self.overflow == "nan" and self.specials == "none":
            raise ValueError("Float: overflow='nan' needs specials='nan' or 'ieee', 'none' has no NaN")

    @property
    def element(self) -> Float:
        return self

    @property
    def bits(self) -> int:
        return 1 + self.exp + self.man

    @property
    def exponent_bits(self) -> int:
        return self.exp

    @property
    def mantissa_bits(self) -> int:
        return self.man

    @property
    def bias(self) -> int:
        return int(2 ** (self.exp - 1) - 1)

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number, and of every subnormal."""
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest finite number."""
        return self.bias + (0 if self.specials == "ieee" else 1)

    @property
    def max(self) -> float:
        """Largest finite value."""
        last_mantissas = 2 if self.specials == "nan" else 1  # the all-ones mantissa is taken by NaN
        return float(2.0**self.max_exponent * (2 - last_mantissas * 2.0**-self.man))

    @property
    def min(self) -> float:
        """Lowest finite value."""
        return -self.max

    @property
    def smallest(self) -> float:
        """Smallest positive value: a subnormal where there are any."""
        return float(2.0 ** (self.min_exponent - (self.man if self.subnormals else 0)))


FP32 = Float(8, 23, specials="ieee", overflow="infinity")
