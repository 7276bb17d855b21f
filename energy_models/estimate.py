"""Prices counts under a hardware profile: modelled energy as low, nominal and high, never mixed with measured energy.

Compute. A product of two block-float or fixed-point operands is an integer multiplication at sqrt(bits_a * bits_b)
bits, on the power law through the published 8- and 32-bit multipliers (and beyond them), plus one 32-bit integer add.
Each alignment of block float adds a shift, charged as a 32-bit integer add, and an fp32 add. If either operand is a
float the product is a float multiplication, on the power law in the product of the significand widths through the
published 16-bit (11 x 11) and 32-bit (24 x 24) multipliers and never below the former, plus one fp32 add: an 8-bit by
fp32 product earns nothing for the shared exponent of one side. An integer operand's width there is its word length.

Memory, two levels. What goes to DRAM is a choice of how operations are fused, and there are three, by name:

- "fused": a GEMM reads its operands and writes its result once; element ops stay on chip. The low end.
- "chained": a GEMM also needs each activation and error written before it can be read, once, at its stored bits;
  batch norm reads its inputs, the one it saved for backward too, and a gather what it takes; a smooth activation or a
  norm over a row writes its input for backward; scatters, tables and sorts move all they touch; element-wise ops and
  quantizers (a block is a sample or a channel, and fits on chip) ride along with their neighbours; the optimizer moves
  its tensors. Nominal.
- "unfused": every element op reads and writes through DRAM on its own on top of that. The high end.

"chained" and "unfused" take for a GEMM the lower bound of Hong and Kung (STOC 1981) for the chip's buffer, if that is
more: 2*m*n*k/sqrt(S) operands with S operands of mean width on chip (it ignores that im2col rows overlap). Whatever
goes to DRAM passes the buffer; each MAC fetches its two operands from there, divided by the profile's operand_reuse.

Low, nominal and high are ends of an *energy*. A *ratio* of two energies on one chip may leave the ratios of the ends:
`corners_j` has the total under every combination of fusion, DRAM price and operand reuse, for a joint ratio.

Not modelled: what the profile's `leaves_out` lists, and `counts.uncounted`. The profile's 8-bit integer and 16-bit
float adds are not used, because accumulators are 32 bits wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal

from energy_models.counts import ElementOps, Gemm, OpCounts
from energy_models.number_formats import NumberFormat
from energy_models.profiles import Constant, HardwareProfile

Fusion = Literal["fused", "chained", "unfused"]
FUSIONS: tuple[Fusion, ...] = ("fused", "chained", "unfused")
CORNERS = len(FUSIONS) * 2 * 2
_INTEGER_KINDS = ("block_float", "fixed_point")
_PRICED_KINDS = ("float", *_INTEGER_KINDS)
# Kinds by what goes to DRAM when "chained"; all others (scatters, sorts, optimizers, ...) move all that they touch.
_RIDES_ALONG = frozenset(
    {
        *("relu", "leaky_relu", "hardtanh", "hardsigmoid", "shrink", "elu", "sigmoid", "tanh", "lstm_cell", "gru_cell"),
        *("max_pool", "avg_pool", "interpolation", "elementwise", "dropout", "softmax", "loss", "quantizer"),
        *("sum", "max", "statistics", "weight_norm"),
    }
)
_READS_ITS_INPUTS = frozenset({"batch_norm", "gather"})
# Rides along forward. Backward takes the error, which rides along, and the input, which was written for it and is read:
# two passes over one of the two tensors that it takes.
_KEEPS_ITS_INPUT = frozenset(
    {
        *("gelu", "silu", "glu", "mish", "softplus", "log_sigmoid", "hardswish", "prelu"),
        *("layer_norm", "group_norm", "rms_norm"),
    }
)
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
    """Modelled joules by component, the DRAM traffic in bytes behind `memory_j`, and the totals at the corners.

    `corners_j` are the total joules under each combination of fusion, DRAM price (low, high) and operand reuse (low,
    high), in a fixed order: two energies under one profile compare corner by corner.
    """

    compute_j: Range  # the GEMMs' MACs and alignments
    memory_j: Range  # DRAM and on-chip buffer, GEMMs and element ops
    other_j: Range  # arithmetic of element ops
    traffic_bytes: Range
    corners_j: tuple[float, ...]

    @classmethod
    def zero(cls) -> ModelledEnergy:
        """Nothing done: the start of a sum."""
        return cls(_ZERO, _ZERO, _ZERO, _ZERO, (0.0,) * CORNERS)

    @classmethod
    def total(cls, energies: Iterable[ModelledEnergy]) -> ModelledEnergy:
        """The sum, rounded once: it does not depend on the order."""
        parts = list(energies)

        def summed(name: str) -> Range:
            ranges = [getattr(part, name) for part in parts]
            return Range(*(math.fsum(getattr(r, end) for r in ranges) for end in ("low", "nominal", "high")))

        corners = zip(*(part.corners_j for part in parts), strict=True) if parts else [(0.0,)] * CORNERS
        return cls(
            summed("compute_j"),
            summed("memory_j"),
            summed("other_j"),
            summed("traffic_bytes"),
            tuple(math.fsum(corner) for corner in corners),
        )

    def __add__(self, other: ModelledEnergy) -> ModelledEnergy:
        return ModelledEnergy(
            self.compute_j + other.compute_j,
            self.memory_j + other.memory_j,
            self.other_j + other.other_j,
            self.traffic_bytes + other.traffic_bytes,
            tuple(a + b for a, b in zip(self.corners_j, other.corners_j, strict=True)),
        )

    def __mul__(self, factor: float) -> ModelledEnergy:
        return ModelledEnergy(
            self.compute_j * factor,
            self.memory_j * factor,
            self.other_j * factor,
            self.traffic_bytes * factor,
            tuple(corner * factor for corner in self.corners_j),
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
    ends = {end: _arithmetic(profile, end) for end in ("low", "nominal", "high")}
    compute = Range(*(sum(a.gemm_pj(gemm) for gemm in counts.gemms) * _PJ for a in ends.values()))
    other = Range(*(sum(a.element_ops_pj(op) for op in counts.element_ops) * _PJ for a in ends.values()))
    moved = {fusion: _moved(counts, fusion, profile) for fusion in FUSIONS}
    dram, reuse = profile.dram.per_bit(), profile.operand_reuse
    memory = Range(
        moved["fused"].joules(dram.low, profile.sram.per_bit().low, reuse.high),
        moved["chained"].joules(dram.value, profile.sram.per_bit().value, reuse.value),
        moved["unfused"].joules(dram.high, profile.sram.per_bit().high, reuse.low),
    )
    traffic = Range(*(moved[fusion].dram_bits / 8 for fusion in FUSIONS))
    arithmetic_j, sram = compute.nominal + other.nominal, profile.sram.per_bit().value
    corners = tuple(
        arithmetic_j + moved[fusion].joules(dram_price, sram, reused)
        for fusion, dram_price, reused in product(FUSIONS, (dram.low, dram.high), (reuse.low, reuse.high))
    )
    return ModelledEnergy(compute, memory, other, traffic, corners)


# ---- memory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Moved:
    """Bits that cross each level of the memory; `fetched_bits` are the operands of every MAC, before any reuse."""

    dram_bits: float
    on_chip_bits: float
    fetched_bits: float

    def joules(self, dram_pj: float, sram_pj: float, operand_reuse: float) -> float:
        through_buffer = self.dram_bits + self.on_chip_bits + self.fetched_bits / operand_reuse
        return (self.dram_bits * dram_pj + through_buffer * sram_pj) * _PJ


def _moved(counts: OpCounts, fusion: Fusion, profile: HardwareProfile) -> _Moved:
    trained = {gemm.layer for gemm in counts.gemms if gemm.gemm == "grad_weight"}
    capacity_bits = profile.capacity.value * 1024 * 8
    dram_bits = on_chip_bits = fetched_bits = 0.0
    for gemm in counts.gemms:
        dram_bits += _gemm_dram_bits(gemm, fusion, capacity_bits, gemm.layer in trained) * gemm.times
        fetched_bits += gemm.macs * (gemm.a.bits + gemm.b.bits)
    for op in counts.element_ops:
        to_dram = _element_ops_dram_bits(op, fusion)
        dram_bits += to_dram * op.times
        on_chip_bits += (op.read_bits + op.write_bits - to_dram) * op.times
    return _Moved(dram_bits, on_chip_bits, fetched_bits)


def _gemm_dram_bits(gemm: Gemm, fusion: Fusion, capacity_bits: float, trained: bool) -> float:
    result_bits = gemm.result_bits * gemm.result_elements
    compulsory = float(gemm.a.stored_bits + gemm.b.stored_bits + result_bits)
    if fusion == "fused":
        return compulsory
    width = (gemm.a.bits + gemm.b.bits) / 2
    hong_kung = 2 * gemm.batch * gemm.m * gemm.n * gemm.k / math.sqrt(capacity_bits / width) * width
    first_readers = {"activation": "output", "error": "grad_weight" if trained else "grad_input"}
    written = sum(o.stored_bits for o in (gemm.a, gemm.b) if first_readers.get(o.name) == gemm.gemm)
    return max(compulsory, hong_kung + result_bits) + written


def _element_ops_dram_bits(op: ElementOps, fusion: Fusion) -> int:
    if fusion == "fused":
        return 0
    if fusion == "chained":
        if op.kind in _RIDES_ALONG or (op.kind in _KEEPS_ITS_INPUT and op.part != "backward"):
            return 0
        if op.kind in _READS_ITS_INPUTS or op.kind in _KEEPS_ITS_INPUT:
            return op.read_bits
    return op.read_bits + op.write_bits


# ---- arithmetic --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Arithmetic:
    """One end (low, nominal or high) of a profile's arithmetic, pJ per operation."""

    int_add: float
    float_add: float
    float_mult: float
    int_mult_8: float
    int_mult_32: float
    float_mult_16: float

    def mac_pj(self, a: NumberFormat, b: NumberFormat) -> float:
        if a.kind in _INTEGER_KINDS and b.kind in _INTEGER_KINDS:
            bits = math.sqrt(a.bits * b.bits)
            return _power_law(bits, (8, self.int_mult_8), (32, self.int_mult_32)) + self.int_add
        published = (_SIGNIFICAND_FP16**2, self.float_mult_16), (_SIGNIFICAND_FP32**2, self.float_mult)
        product = max(_significand_bits(a) * _significand_bits(b), _SIGNIFICAND_FP16**2)
        return _power_law(product, *published) + self.float_add

    def gemm_pj(self, gemm: Gemm) -> float:
        for operand in (gemm.a, gemm.b):
            _check_price(operand.format, f"layer {gemm.layer!r}, {gemm.gemm} GEMM, {operand.name}")
        a, b = gemm.a.format, gemm.b.format
        energy = gemm.macs * self.mac_pj(a, b)
        if a.kind in _INTEGER_KINDS and b.kind in _INTEGER_KINDS:
            energy += gemm.alignments * (self.int_add + self.float_add)
        return energy

    def element_ops_pj(self, op: ElementOps) -> float:
        once = op.fp_add * self.float_add + op.fp_mul * self.float_mult + op.int_add * self.int_add
        return once * op.times


def _check_price(fmt: NumberFormat, where: str) -> None:
    if fmt.kind not in _PRICED_KINDS:
        raise ValueError(f"{where}: format kind {fmt.kind!r} has no price yet; priced are {', '.join(_PRICED_KINDS)}")
    if fmt.block_size is not None or fmt.block_dim not in (None, 0):
        raise ValueError(
            f"{where}: scales per whole tensor or per slice of dimension 0 have a price, this format has "
            f"block_dim={fmt.block_dim}, block_size={fmt.block_size}"
        )


def _arithmetic(profile: HardwareProfile, end: str) -> _Arithmetic:
    def at(constant: Constant) -> float:
        return {"low": constant.low, "nominal": constant.value, "high": constant.high}[end]

    return _Arithmetic(
        int_add=at(profile.int_add_32),
        float_add=at(profile.float_add_32),
        float_mult=at(profile.float_mult_32),
        int_mult_8=at(profile.int_mult_8),
        int_mult_32=at(profile.int_mult_32),
        float_mult_16=at(profile.float_mult_16),
    )


def _significand_bits(fmt: NumberFormat) -> int:
    return fmt.mantissa_bits + 1 if fmt.kind == "float" else fmt.bits


def _power_law(x: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    """y on the line through two points in log-log space, before, between and after them."""
    (x1, y1), (x2, y2) = first, second
    return y1 * math.pow(x / x1, math.log(y2 / y1) / math.log(x2 / x1))
