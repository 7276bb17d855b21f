"""Energy of one multiply-accumulate from the formats of its operands and of what it sums in.

A MAC is built from parts, each a power law in its width through two published points of the profile:

- multiply: significands as integers, width sqrt(bits_a * bits_b) (QTools, Coelho et al. 2021), through the 8- and
  32-bit integer multipliers. A floating-point product adds its exponents (an integer add) and is normalised and
  rounded: what the published 16- and 32-bit float multipliers cost beyond those two parts, by significand width.
- add: an exact integer sum is as wide as the product plus log2 of its length. A floating-point sum is an addition in
  the accumulator's format, through the published 16- and 32-bit float adders, by significand width: the geometric
  mean of the accumulator's and the exact product's, where the product is narrower.
- align: floating-point products that share a scale may be aligned to the largest exponent and added as integers, a
  shift and an integer add of the aligned width. MX defines its dot product that way (OCP MX 1.0, section 6.2); for
  plain floats it is the low end.

At the end of each run of products that share a scale, the sum is shifted, scaled and added in the accumulator's format:
`Gemm.alignments` of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from energy_models.counts import Gemm
from energy_models.number_formats import NumberFormat
from energy_models.profiles import Arithmetic

MacRule = Literal["parts", "bits_product"]
MAC_RULES: tuple[MacRule, ...] = ("parts", "bits_product")
INTEGER_KINDS = ("block_float", "fixed_point", "integer")
SHARED_SCALE_KINDS = ("mx", "scaled_float")
KINDS = ("float", *INTEGER_KINDS, *SHARED_SCALE_KINDS)
_FP16, _FP32 = (11, 5), (24, 8)  # significand with its hidden bit, exponent
_SCALE_BITS = 8


@dataclass(frozen=True)
class Law:
    """y on the line through two points in log-log space, before, between and after them."""

    x: float
    y: float
    exponent: float

    @classmethod
    def through(cls, first: tuple[float, float], second: tuple[float, float]) -> Law:
        """The line through (x, y) and (x, y)."""
        (x1, y1), (x2, y2) = first, second
        return cls(x1, y1, math.log(y2 / y1) / math.log(x2 / x1))

    def at(self, x: float) -> float:
        """y at x."""
        return self.y * math.pow(x / self.x, self.exponent)


class MacEnergy:
    """The MAC energies of one end (low, nominal or high) of a profile's arithmetic, in pJ."""

    def __init__(self, arithmetic: Arithmetic, end: str) -> None:
        def of(name: str) -> float:
            return float(getattr(getattr(arithmetic, name), "value" if end == "nominal" else end))

        self._known: dict[tuple[int, int, int, int], tuple[NumberFormat, NumberFormat, NumberFormat, float]] = {}
        self.aligned = end == "low"
        self.int_add = Law.through((8, of("int_add_8")), (32, of("int_add_32")))
        self.int_mult = Law.through((8, of("int_mult_8")), (32, of("int_mult_32")))
        self.float_add = Law.through((_FP16[0], of("float_add_16")), (_FP32[0], of("float_add_32")))
        self.float_mult_32 = of("float_mult_32")
        for bits, (significand, exponent) in ((16, _FP16), (32, _FP32)):
            parts_pj = self.int_mult.at(significand) + self.int_add.at(exponent)
            if not of(f"float_mult_{bits}") > parts_pj:
                raise ValueError(
                    f"float_mult_{bits} ({end}) is {of(f'float_mult_{bits}'):g} pJ, and its integer parts alone, by "
                    f"int_mult and int_add, are {parts_pj:.3g} pJ; give a larger one, or smaller integer parts"
                )
        beyond = (
            (_FP16[0], of("float_mult_16") - self.int_mult.at(_FP16[0]) - self.int_add.at(_FP16[1])),
            (_FP32[0], of("float_mult_32") - self.int_mult.at(_FP32[0]) - self.int_add.at(_FP32[1])),
        )
        self.normalise = Law.through(*beyond)

    def gemm_pj(self, gemm: Gemm, rule: MacRule = "parts") -> float:
        """All MACs and alignments of a GEMM.

        Raises:
            ValueError: an operand's kind of format has no price; it names layer, GEMM and operand.
        """
        a, b = gemm.a.format, gemm.b.format
        for operand in (gemm.a, gemm.b):
            if operand.format.kind not in KINDS:
                raise ValueError(
                    f"layer {gemm.layer!r}, {gemm.gemm} GEMM, {operand.name}: format kind {operand.format.kind!r} "
                    f"has no price; priced are {', '.join(KINDS)}"
                )
        if rule == "bits_product":
            return gemm.macs * self.bits_product_pj(a, b)
        energy = gemm.macs * self._known_mac_pj(a, b, gemm.accumulator, gemm.run)
        return energy + gemm.alignments * self.alignment_pj(a, b, gemm.accumulator)

    def _known_mac_pj(self, a: NumberFormat, b: NumberFormat, accumulator: NumberFormat, length: int) -> float:
        """Layers have few formats, and often the same length: each combination is computed once."""
        key = id(a), id(b), id(accumulator), length
        if key not in self._known:  # holding on to the formats, so that no other one can take over its id
            self._known[key] = (a, b, accumulator, self.mac_pj(a, b, accumulator, length))
        return self._known[key][3]

    def mac_pj(self, a: NumberFormat, b: NumberFormat, accumulator: NumberFormat, length: int = 256) -> float:
        """One MAC of a sum of `length` products that share their scales."""
        width = _significand(a) + _significand(b) + math.ceil(math.log2(max(2, length)))
        if _is_integer(a) and _is_integer(b):
            return self.int_mult.at(_mean(a, b)) + self.int_add.at(width)
        product = self.int_mult.at(_mean(a, b)) + self.normalise.at(_mean(a, b))
        product += self.int_add.at(max(a.exponent_bits, b.exponent_bits, 1))
        separate = self.float_add.at(_sum_width(a, b, accumulator))
        aligned = self.align_pj(width + _spread(a) + _spread(b))
        within_scale = any(fmt.kind == "mx" for fmt in (a, b))
        return product + (min(aligned, separate) if within_scale or self.aligned else separate)

    def align_pj(self, width: float) -> float:
        """A shift and an integer add; a shifter of a width is charged as an adder of it."""
        return 2 * self.int_add.at(width)

    def alignment_pj(self, a: NumberFormat, b: NumberFormat, accumulator: NumberFormat) -> float:
        """The end of a run: exponents of the scales are added, the sum is shifted and added to the accumulator."""
        shift = self.int_add.at(32)
        scales = self.int_add.at(_SCALE_BITS) if any(fmt.kind in SHARED_SCALE_KINDS for fmt in (a, b)) else 0.0
        return shift + scales + self.float_add.at(_significand(accumulator))

    def bits_product_pj(self, a: NumberFormat, b: NumberFormat) -> float:
        """The plain rule, energy in proportion to bits_a * bits_b, through the 8-bit integer MAC.

        The accumulator does not shrink with the operands, so it overstates what few bits save: 1.5 times at 4 bits
        and 3 times at 2 (against QTools and BitFusion's synthesis, docs/energy.md); it knows no exponents either.
        """
        mac_8 = self.int_mult.at(8) + self.int_add.at(16 + 8)
        return mac_8 * a.bits * b.bits / 64


def _is_integer(fmt: NumberFormat) -> bool:
    return fmt.kind in INTEGER_KINDS or (fmt.kind in SHARED_SCALE_KINDS and fmt.exponent_bits == 0)


def _significand(fmt: NumberFormat) -> int:
    return fmt.bits if _is_integer(fmt) else fmt.mantissa_bits + 1


def _spread(fmt: NumberFormat) -> int:
    """Bits over which the element's own exponent shifts its significand."""
    return 0 if _is_integer(fmt) else 1 << fmt.exponent_bits


def _sum_width(a: NumberFormat, b: NumberFormat, accumulator: NumberFormat) -> float:
    """Of an adder for the exact product, whose shifter is as narrow as the product, and the accumulator."""
    width = _significand(accumulator)
    return math.sqrt(width * min(width, _significand(a) + _significand(b)))


def _mean(a: NumberFormat, b: NumberFormat) -> float:
    return math.sqrt(_significand(a) * _significand(b))
