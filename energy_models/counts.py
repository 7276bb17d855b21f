"""What a training step does, as plain numbers: GEMM shapes with the formats their operands are read at, and other ops.

Nothing here knows torch or a chip. `counter.count` fills these records from a model, `estimate.estimate` prices them.
A GEMM is one of a layer's three products; every convolution is described as the GEMM that im2col would make of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

GemmName = Literal["output", "grad_input", "grad_weight"]
OperandName = Literal["weight", "activation", "error"]
GEMMS: tuple[GemmName, ...] = ("output", "grad_input", "grad_weight")
KINDS = ("float", "block_float", "fixed_point")

# A quantizer as hardware does it, per element: a compare for the block maximum, a shift, a step of the random
# generator and the rounding add; all four are charged as integer adds.
QUANTIZER_INT_ADDS = 4
FP32_BITS = 32


class NumberFormat(Protocol):
    """A number format as the counts see it; `lowprec_eb.formats` satisfies it, any other object may."""

    @property
    def kind(self) -> str:
        """One of "float", "block_float", "fixed_point"."""

    @property
    def bits(self) -> int:
        """Stored bits of one element, sign included, a shared scale excluded."""

    @property
    def exponent_bits(self) -> int:
        """The element's own exponent bits (0 for block float and fixed point)."""

    @property
    def mantissa_bits(self) -> int:
        """The element's own mantissa bits, without sign and hidden bit."""

    @property
    def scale_bits(self) -> int:
        """Bits of one shared scale; 0 = there is none."""

    @property
    def block_dim(self) -> int | tuple[int, ...] | None:
        """One scale per slice of this dimension, or index of these; None = one for the whole tensor."""

    @property
    def block_size(self) -> int | None:
        """Elements of a fixed-size block; None = blocks are slices or the whole tensor."""


class PrecisionLike(Protocol):
    """Which format each operand of each GEMM of each layer is read at."""

    def operand_format(self, layer: str, gemm: str, operand: str) -> NumberFormat | None:
        """The format, or None for fp32."""


@dataclass(frozen=True)
class FormatSpec:
    """A `NumberFormat` spelled out field by field."""

    kind: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    scale_bits: int = 0
    block_dim: int | tuple[int, ...] | None = None
    block_size: int | None = None


FP32: NumberFormat = FormatSpec("float", bits=FP32_BITS, exponent_bits=8, mantissa_bits=23)


def _check_format(fmt: NumberFormat, where: str) -> None:
    if fmt.kind not in KINDS:
        raise ValueError(f"{where}: format kind {fmt.kind!r} is not one of {', '.join(KINDS)}")
    if fmt.bits < 1:
        raise ValueError(f"{where}: a format needs at least 1 bit, this one has {fmt.bits}")
    if fmt.block_size is not None or fmt.block_dim not in (None, 0):
        raise ValueError(
            f"{where}: scales per whole tensor or per slice of dimension 0 can be counted, this format has "
            f"block_dim={fmt.block_dim}, block_size={fmt.block_size}"
        )


def _tensor_bits(elements: int, slices: int, fmt: NumberFormat) -> int:
    scales = 1 if fmt.block_dim is None else slices
    return elements * fmt.bits + scales * fmt.scale_bits


@dataclass(frozen=True)
class Operand:
    """One of the two tensors that a GEMM reads."""

    name: OperandName
    elements: int  # as stored, so before im2col
    slices: int  # size of dimension 0: how many scales a per-slice format stores
    k_run: int  # consecutive products along k that read the same dimension-0 slice
    format: NumberFormat = FP32

    @property
    def bits(self) -> int:
        """Bits of one element as the GEMM reads it."""
        return self.format.bits

    @property
    def stored_bits(self) -> int:
        """Bits of the whole tensor, shared scales included."""
        return _tensor_bits(self.elements, self.slices, self.format)


@dataclass(frozen=True)
class Gemm:
    """`batch` products of an (m, k) by a (k, n) matrix, done `times` times.

    Convolution with g groups, N images, O/C output/input channels, kernel K = kh*kw, P = oh*ow output positions:

    | gemm | batch | m | n | k |
    |---|---|---|---|---|
    | output | g | N*P | O/g | C/g*K |
    | grad_input | g | N*P | C/g | O/g*K |
    | grad_weight | g | O/g | C/g*K | N*P |

    All three therefore have N*P*O*C/g*K MACs, padding included. `grad_input` has N*P rows, not one per input pixel, so
    that a stride does not count the products with the zeros that a dilated error would hold.
    """

    layer: str
    gemm: GemmName
    batch: int
    m: int
    n: int
    k: int
    a: Operand
    b: Operand
    result_elements: int  # as stored, so after col2im
    times: int = 1

    def __post_init__(self) -> None:
        for operand in (self.a, self.b):
            _check_format(operand.format, f"layer {self.layer!r}, {self.gemm} GEMM, {operand.name}")

    @property
    def macs(self) -> int:
        """Multiply-accumulates, all `times` together."""
        return self.batch * self.m * self.n * self.k * self.times

    @property
    def bit_ops(self) -> int:
        """MACs x bits of operand a x bits of operand b."""
        return self.macs * self.a.bits * self.b.bits

    @property
    def alignments(self) -> int:
        """Partial sums that must be shifted to a common exponent, all `times` together; 0 without block float.

        Products whose two operands keep their shared exponents add as integers. When the slice changes along k, so does
        the exponent: the integer sum of that run is converted and added to the others in fp32. One scale for the whole
        tensor makes one run of all of k, and the single conversion of each result remains.
        """
        runs = [self._run(operand) for operand in (self.a, self.b) if operand.format.kind == "block_float"]
        if not runs:
            return 0
        return self.batch * self.m * self.n * math.ceil(self.k / min(runs)) * self.times

    def _run(self, operand: Operand) -> int:
        return self.k if operand.format.block_dim is None else operand.k_run


@dataclass(frozen=True)
class ElementOps:
    """Work outside the GEMMs: arithmetic and traffic of one occurrence, done `times` times.

    `elements` is the size of the tensor worked on; the other numbers are totals over it, not per element.
    """

    kind: str
    layer: str
    elements: int
    fp_add: int = 0  # fp32 adds and subtractions
    fp_mul: int = 0  # fp32 multiplications
    int_add: int = 0  # 32-bit integer adds; a compare, a shift and a random step are each charged as one
    read_bits: int = 0
    write_bits: int = 0
    times: int = 1


def quantizer_ops(layer: str, elements: int, write_bits: int, times: int = 1) -> ElementOps:
    """One pass of a hardware quantizer over a 32-bit tensor of `elements`; `write_bits` is what it stores in total."""
    return ElementOps(
        "quantizer",
        layer,
        elements,
        int_add=QUANTIZER_INT_ADDS * elements,
        read_bits=FP32_BITS * elements,
        write_bits=write_bits,
        times=times,
    )


@dataclass(frozen=True)
class OpCounts:
    """Everything one training step (or a sum of steps) does.

    `uncounted` names what was seen but has no formula, as "layer: op"; an empty tuple means nothing is missing.
    """

    gemms: tuple[Gemm, ...] = ()
    element_ops: tuple[ElementOps, ...] = ()
    uncounted: tuple[str, ...] = field(default=())

    @property
    def macs(self) -> dict[str, int]:
        """MACs by GEMM; all three keys are always there."""
        totals: dict[str, int] = dict.fromkeys(GEMMS, 0)
        for gemm in self.gemms:
            totals[gemm.gemm] += gemm.macs
        return totals

    @property
    def total_macs(self) -> int:
        """MACs of all GEMMs."""
        return sum(gemm.macs for gemm in self.gemms)

    @property
    def macs_by_bits(self) -> dict[tuple[str, int, int], int]:
        """MACs by (gemm, smaller operand bits, larger operand bits)."""
        totals: dict[tuple[str, int, int], int] = {}
        for gemm in self.gemms:
            low, high = sorted((gemm.a.bits, gemm.b.bits))
            totals[gemm.gemm, low, high] = totals.get((gemm.gemm, low, high), 0) + gemm.macs
        return totals

    @property
    def bit_ops(self) -> int:
        """Sum over GEMMs of MACs x bits of operand a x bits of operand b."""
        return sum(gemm.bit_ops for gemm in self.gemms)

    @property
    def element_ops_by_kind(self) -> dict[str, int]:
        """Elements worked on outside the GEMMs, by kind."""
        totals: dict[str, int] = {}
        for op in self.element_ops:
            totals[op.kind] = totals.get(op.kind, 0) + op.elements * op.times
        return totals

    def at(self, precision: PrecisionLike) -> OpCounts:
        """The same work with the operand formats of `precision`; nothing is traced again.

        Quantizer rows are replaced too: every operand that `precision` formats is quantized once where a GEMM reads it,
        however many of its layer's GEMMs read it in that format. A traced lowered model may place them elsewhere.
        """
        gemms = tuple(_reformatted(gemm, precision) for gemm in self.gemms)
        others = tuple(op for op in self.element_ops if op.kind != "quantizer")
        return OpCounts(gemms, others + _operand_quantizers(gemms), self.uncounted)

    def __add__(self, other: OpCounts) -> OpCounts:
        uncounted = tuple(sorted({*self.uncounted, *other.uncounted}))
        return OpCounts(self.gemms + other.gemms, self.element_ops + other.element_ops, uncounted)

    def __mul__(self, steps: int) -> OpCounts:
        if steps < 0:
            raise ValueError(f"counts can be multiplied by 0 or more steps, not by {steps}")
        gemms = tuple(replace(gemm, times=gemm.times * steps) for gemm in self.gemms)
        return OpCounts(gemms, tuple(replace(op, times=op.times * steps) for op in self.element_ops), self.uncounted)

    __rmul__ = __mul__


def _reformatted(gemm: Gemm, precision: PrecisionLike) -> Gemm:
    a, b = (
        replace(operand, format=precision.operand_format(gemm.layer, gemm.gemm, operand.name) or FP32)
        for operand in (gemm.a, gemm.b)
    )
    return replace(gemm, a=a, b=b)


def _is_fp32(fmt: NumberFormat) -> bool:
    return (fmt.kind, fmt.bits, fmt.exponent_bits, fmt.mantissa_bits) == ("float", 32, 8, 23)


def _operand_quantizers(gemms: tuple[Gemm, ...]) -> tuple[ElementOps, ...]:
    # A weight is read by output and grad_input but quantized once: its reads are summed per GEMM name, and the largest
    # sum is the number of times that the tensor was made. That survives both c * 3 and c + c.
    reads: dict[tuple[str, str, int, int], dict[str, int]] = {}
    for gemm in gemms:
        for operand in (gemm.a, gemm.b):
            if not _is_fp32(operand.format):
                of_tensor = reads.setdefault((gemm.layer, operand.name, operand.elements, operand.stored_bits), {})
                of_tensor[gemm.gemm] = of_tensor.get(gemm.gemm, 0) + gemm.times
    return tuple(
        quantizer_ops(layer, elements, stored_bits, times=max(by_gemm.values()))
        for (layer, _, elements, stored_bits), by_gemm in reads.items()
    )


def element_ops(
    kind: str,
    elements: int,
    *,
    fp_add: int = 0,
    fp_mul: int = 0,
    int_add: int = 0,
    read_bits: int = 0,
    write_bits: int = 0,
) -> OpCounts:
    """Counts of one pass over `elements` elements that belongs to no layer (mask distance, ranking, averaging).

    The keyword numbers are per element, unlike the totals that an `ElementOps` holds.
    """
    row = ElementOps(
        kind,
        "",
        elements,
        fp_add * elements,
        fp_mul * elements,
        int_add * elements,
        read_bits * elements,
        write_bits * elements,
    )
    return OpCounts(element_ops=(row,))


def count_sgd_step(
    shapes: Mapping[str, tuple[int, ...]],
    formats: Callable[[str, str], NumberFormat | None],
    momentum: bool,
    weight_decay: bool,
) -> OpCounts:
    """Counts of one SGD step over parameters of the given shapes.

    Per element: weight decay g += wd*w, momentum v = mu*v + g, update w -= lr*v, each one multiplication and one add.
    The step reads weight, gradient and momentum and writes weight and momentum, each at the bits it is stored with.
    `formats(parameter, operand)` gives that format for "weight", "gradient" and "momentum" (None: fp32). Each operand
    with a format other than fp32 adds one quantizer pass, which has its own read and write.
    """
    rows: list[ElementOps] = []
    for parameter, shape in shapes.items():
        elements, slices = math.prod(shape), shape[0] if shape else 1
        operands = ("weight", "gradient", "momentum") if momentum else ("weight", "gradient")
        stored: dict[str, int] = {}
        for operand in operands:
            fmt = formats(parameter, operand) or FP32
            _check_format(fmt, f"parameter {parameter!r}, {operand}")
            stored[operand] = _tensor_bits(elements, slices, fmt)
            if not _is_fp32(fmt):
                rows.append(quantizer_ops(parameter, elements, stored[operand]))
        terms = (1 + momentum + weight_decay) * elements
        written = sum(stored.values()) - stored["gradient"]
        rows.append(ElementOps("optimizer", parameter, elements, terms, terms, 0, sum(stored.values()), written))
    return OpCounts(element_ops=tuple(rows))
