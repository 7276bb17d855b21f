"""Prices counts under a hardware profile: modelled energy as low, nominal and high, never mixed with measured energy.

Compute. A product of two block-float or fixed-point operands is an integer multiplication at sqrt(bits_a * bits_b)
bits, on the power law through the published 8- and 32-bit multipliers (and beyond them), plus one 32-bit integer add.
Each alignment of block float adds a shift, charged as a 32-bit integer add, and an fp32 add. If either operand is a
float the product is a float multiplication, on the power law in the product of the significand widths through the
published 16-bit (11 x 11) and 32-bit (24 x 24) multipliers and never below the former, plus one fp32 add: an 8-bit by
fp32 product earns nothing for the shared exponent of one side. An integer operand's width there is its word length.

Memory, two levels. DRAM: low reads each operand and writes the result (32 bits) once; nominal takes, if that is more,
the lower bound of Hong and Kung (STOC 1981) for matrix products, 2*m*n*k/sqrt(S) operands with S operands of mean width
fitting on chip (it ignores that a convolution's im2col rows overlap); high moves the same at DRAM's high energy.
Buffer: each MAC fetches its two operands, divided by the profile's operand_reuse (low: its high end; high: its low
end). Element ops pass through the buffer; low fuses them with their producer, nominal sends through DRAM those that do
not fit on chip, high sends all.

Not modelled: what the profile's `leaves_out` lists, and `counts.uncounted`. The profile's 8-bit integer and 16-bit
float adds are not used, because accumulators are 32 bits wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from energy_models.counts import FP32_BITS, ElementOps, Gemm, NumberFormat, OpCounts
from energy_models.profiles import Constant, HardwareProfile

_INTEGER_KINDS = ("block_float", "fixed_point")
_SIGNIFICAND_FP16, _SIGNIFICAND_FP32 = 11, 24
_PJ = 1e-12


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


_ZERO = Range(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class ModelledEnergy:
    """Modelled joules by component, and the DRAM traffic in bytes behind `memory_j`."""

    compute_j: Range  # the GEMMs' MACs and alignments
    memory_j: Range  # DRAM and on-chip buffer, GEMMs and element ops
    other_j: Range  # arithmetic of element ops
    traffic_bytes: Range

    @classmethod
    def zero(cls) -> ModelledEnergy:
        """Nothing done: the start of a sum."""
        return cls(_ZERO, _ZERO, _ZERO, _ZERO)

    def __add__(self, other: ModelledEnergy) -> ModelledEnergy:
        return ModelledEnergy(
            self.compute_j + other.compute_j,
            self.memory_j + other.memory_j,
            self.other_j + other.other_j,
            self.traffic_bytes + other.traffic_bytes,
        )

    @property
    def total_j(self) -> Range:
        """All components together."""
        return self.compute_j + self.memory_j + self.other_j

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


def estimate(counts: OpCounts, profile: HardwareProfile) -> ModelledEnergy:
    """Modelled energy of `counts` on the chip of `profile`, linear in the counts' `times`. Source: see the module.

    What `counts.uncounted` lists is not in it.
    """
    low, nominal, high = (_at_end(counts, end) for end in _ends(profile))
    compute, memory, other, traffic = (Range(*parts) for parts in zip(low, nominal, high, strict=True))
    return ModelledEnergy(compute, memory, other, traffic)


class _Joules(NamedTuple):
    compute_j: float
    memory_j: float
    other_j: float
    traffic_bytes: float


@dataclass(frozen=True)
class _Prices:
    """One end (low, nominal or high) of a profile, with the choices that belong to it."""

    end: str
    int_add: float  # pJ
    float_add: float
    float_mult: float
    int_mult_8: float
    int_mult_32: float
    float_mult_16: float
    sram: float  # pJ/bit
    dram: float
    capacity_bits: float
    operand_reuse: float

    def element_ops_dram_bits(self, op: ElementOps) -> int:
        bits = op.read_bits + op.write_bits
        spills = self.end == "high" or (self.end == "nominal" and bits > self.capacity_bits)
        return bits if spills else 0

    def gemm_dram_bits(self, gemm: Gemm) -> float:
        result_bits = FP32_BITS * gemm.result_elements
        compulsory = float(gemm.a.stored_bits + gemm.b.stored_bits + result_bits)
        if self.end == "low":
            return compulsory
        width = (gemm.a.bits + gemm.b.bits) / 2
        on_chip = self.capacity_bits / width
        hong_kung = 2 * gemm.batch * gemm.m * gemm.n * gemm.k / math.sqrt(on_chip) * width
        return max(compulsory, hong_kung + result_bits)

    def mac_pj(self, a: NumberFormat, b: NumberFormat) -> float:
        if a.kind in _INTEGER_KINDS and b.kind in _INTEGER_KINDS:
            bits = math.sqrt(a.bits * b.bits)
            return _power_law(bits, (8, self.int_mult_8), (32, self.int_mult_32)) + self.int_add
        published = (_SIGNIFICAND_FP16**2, self.float_mult_16), (_SIGNIFICAND_FP32**2, self.float_mult)
        product = max(_significand_bits(a) * _significand_bits(b), _SIGNIFICAND_FP16**2)
        return _power_law(product, *published) + self.float_add

    def gemm_compute_pj(self, gemm: Gemm) -> float:
        a, b = gemm.a.format, gemm.b.format
        energy = gemm.macs * self.mac_pj(a, b)
        if a.kind in _INTEGER_KINDS and b.kind in _INTEGER_KINDS:
            energy += gemm.alignments * (self.int_add + self.float_add)
        return energy

    def element_ops_pj(self, op: ElementOps) -> float:
        return op.fp_add * self.float_add + op.fp_mul * self.float_mult + op.int_add * self.int_add


def _significand_bits(fmt: NumberFormat) -> int:
    return fmt.mantissa_bits + 1 if fmt.kind == "float" else fmt.bits


def _power_law(x: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    """y on the line through two points in log-log space, before, between and after them."""
    (x1, y1), (x2, y2) = first, second
    return y1 * math.pow(x / x1, math.log(y2 / y1) / math.log(x2 / x1))


def _ends(profile: HardwareProfile) -> tuple[_Prices, _Prices, _Prices]:
    return _prices(profile, "low"), _prices(profile, "nominal"), _prices(profile, "high")


def _prices(profile: HardwareProfile, end: str) -> _Prices:
    def at(constant: Constant) -> float:
        return {"low": constant.low, "nominal": constant.value, "high": constant.high}[end]

    # More reuse means less energy, so its high end belongs to the low energy.
    reuse = profile.operand_reuse
    return _Prices(
        end,
        int_add=at(profile.int_add_32),
        float_add=at(profile.float_add_32),
        float_mult=at(profile.float_mult_32),
        int_mult_8=at(profile.int_mult_8),
        int_mult_32=at(profile.int_mult_32),
        float_mult_16=at(profile.float_mult_16),
        sram=at(profile.sram.per_bit()),
        dram=at(profile.dram.per_bit()),
        capacity_bits=profile.capacity.value * 1024 * 8,
        operand_reuse={"low": reuse.high, "nominal": reuse.value, "high": reuse.low}[end],
    )


def _at_end(counts: OpCounts, prices: _Prices) -> _Joules:
    compute_pj = other_pj = dram_bits = sram_bits = 0.0
    for gemm in counts.gemms:
        compute_pj += prices.gemm_compute_pj(gemm)
        dram_bits += prices.gemm_dram_bits(gemm) * gemm.times
        sram_bits += gemm.macs * (gemm.a.bits + gemm.b.bits) / prices.operand_reuse
    for op in counts.element_ops:
        other_pj += prices.element_ops_pj(op) * op.times
        dram_bits += prices.element_ops_dram_bits(op) * op.times
        sram_bits += (op.read_bits + op.write_bits) * op.times
    memory_pj = dram_bits * prices.dram + sram_bits * prices.sram
    return _Joules(compute_pj * _PJ, memory_pj * _PJ, other_pj * _PJ, dram_bits / 8)
