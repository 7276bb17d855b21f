"""What a training step does, as plain numbers: GEMM shapes with the formats their operands are read at, and other ops.

Nothing here knows torch or a chip. `counter.count` fills these records from a model, `estimate.estimate` prices them.
A GEMM is one of a layer's three products; every convolution is described as the GEMM that im2col would make of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Protocol

from energy_models import views
from energy_models.count_tree import CountNode, count_tree
from energy_models.number_formats import FP32, FP32_BITS, NumberFormat
from energy_models.reformatting import Reformatter

GemmName = Literal["output", "grad_input", "grad_weight", "optimizer"]
OperandName = Literal["weight", "activation", "error", "state"]
Part = Literal["forward", "backward", "optimizer", "other"]
GEMMS: tuple[GemmName, ...] = ("output", "grad_input", "grad_weight")  # an optimizer that multiplies is rare
PARTS: tuple[Part, ...] = ("forward", "backward", "optimizer", "other")

# A quantizer as hardware does it, per element: a compare for the block maximum, a shift, a step of the random
# generator and the rounding add; all four are charged as integer adds.
QUANTIZER_INT_ADDS = 4


class PrecisionLike(Protocol):
    """Which format each operand of each GEMM of each layer is read at, and what the GEMM sums in."""

    def operand_format(self, layer: str, gemm: str, operand: str) -> NumberFormat | None:
        """The format of operand "weight", "activation", "error" or "accumulator"; None for fp32."""


@dataclass(frozen=True, slots=True)
class Operand:
    """One of the two tensors that a GEMM reads.

    `shape` is as stored, so before im2col. A tensor in one of torch's sparse layouts has `is_sparse`: only its
    `nonzeros` are stored (with `index_bits` in all to say where they are) and multiplied. `nonzeros` of a dense tensor
    (None: all elements) are the elements that are not known to be zero. What is `on_chip` is made and read within one
    fused operator (the scores of fused attention) and never stored.
    """

    name: OperandName
    shape: tuple[int, ...]
    k_run: int  # consecutive products along k that read the same dimension-0 slice
    format: NumberFormat = FP32
    nonzeros: int | None = None
    is_sparse: bool = False
    index_bits: int = 0
    on_chip: bool = False

    @property
    def elements(self) -> int:
        """Elements of the whole tensor, zeros included."""
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Bits of one element as the GEMM reads it."""
        return self.format.bits

    @property
    def stored_bits(self) -> int:
        """Bits of the whole tensor, shared scales and sparse indices included; 0 for what stays on chip."""
        if self.on_chip:
            return 0
        if not self.is_sparse:
            return self.format.storage_bits(self.shape)
        return self.format.storage_bits((self.nonzeros or 0,)) + self.index_bits


@dataclass(frozen=True, slots=True)
class Zeros:
    """MACs of one GEMM that known zeros make needless, by what a machine must exploit to skip them.

    element: either operand's element is zero (a fine-grained sparse engine). channel: rows, columns or k that are zero
    as a whole, each group's matrix by itself (a smaller dense matrix does). two_of_four: half of the MACs of an operand
    with two zeros in each four along k (2:4 structured sparsity). causal: scores above the diagonal of masked
    attention. dead: no operand is zero, but the result is only ever multiplied by zero (or not read), such as a channel
    that its BatchNorm drops. removable: `channel`, and rows and columns that are dead as a whole: what compaction
    removes.
    """

    element: int = 0
    channel: int = 0
    two_of_four: int = 0
    causal: int = 0
    dead: int = 0
    removable: int = 0


NO_ZEROS = Zeros()


@dataclass(frozen=True, slots=True)
class Gemm:
    """`batch` products of an (m, k) by a (k, n) matrix, done `times` times.

    Convolution with g groups, N images, O/C output/input channels, kernel K = kh*kw, P = oh*ow output positions:

    | gemm | batch | m | n | k |
    |---|---|---|---|---|
    | output | g | N*P | O/g | C/g*K |
    | grad_input | g | N*P | C/g | O/g*K |
    | grad_weight | g | O/g | C/g*K | N*P |

    All three therefore have N*P*O*C/g*K MACs, padding included. `grad_input` has N*P rows, not one per input pixel, so
    that a stride does not count the products with the zeros that a dilated error would hold. Of a transposed
    convolution P are the input positions, and the shapes of `output` and `grad_input` change places.
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
    result_bits: int = FP32_BITS  # of one element, as written
    accumulator: NumberFormat = FP32
    zeros: Zeros = NO_ZEROS

    @property
    def part(self) -> Part:
        """The part of a training step that it belongs to."""
        if self.gemm in ("output", "optimizer"):
            return "forward" if self.gemm == "output" else "optimizer"
        return "backward"

    @property
    def macs(self) -> int:
        """Multiply-accumulates, all `times` together; of a sparse operand its non-zeros alone are multiplied."""
        if self.a.is_sparse:
            return (self.a.nonzeros or 0) * self.n * self.times
        if self.b.is_sparse:
            return (self.b.nonzeros or 0) * self.m * self.times
        return self.batch * self.m * self.n * self.k * self.times

    @property
    def bit_ops(self) -> int:
        """MACs x bits of operand a x bits of operand b."""
        return self.macs * self.a.format.bits * self.b.format.bits

    @property
    def masked_macs(self) -> int:
        """MACs that are computed although an operand is known to be zero or the result is dead, `times` together."""
        return (self.zeros.element + self.zeros.dead) * self.times

    def skippable_macs(self, exploits: str) -> int:
        """MACs that a machine which exploits `exploits` (a field of `Zeros`) does not compute, all `times` together."""
        if exploits not in Zeros.__slots__:
            raise ValueError(f"exploits must be one of {', '.join(Zeros.__slots__)}, got {exploits!r}")
        return int(getattr(self.zeros, exploits)) * self.times

    @property
    def traffic_bits(self) -> int:
        """Compulsory traffic, all `times` together: both operands read once, the result written once."""
        return (self.a.stored_bits + self.b.stored_bits + self.result_elements * self.result_bits) * self.times

    @property
    def alignments(self) -> int:
        """Partial sums that end where a shared scale changes along k, all `times` together; 0 without shared scales.

        Products whose two operands keep their scales add without a shift. When a scale changes along k, the sum of that
        run is converted and added to the others in fp32. One scale for the whole tensor makes one run of all of k, and
        the single conversion of each result remains. Blocks of fixed size are taken to lie along k.
        """
        if not (self.a.format.scale_bits or self.b.format.scale_bits):
            return 0
        return self.batch * self.m * self.n * math.ceil(self.k / self.run) * self.times

    @property
    def run(self) -> int:
        """Products along k that share all their scales."""
        runs = [self._run(operand) for operand in (self.a, self.b) if operand.format.scale_bits]
        return min([self.k, *runs])

    def _run(self, operand: Operand) -> int:
        fmt = operand.format
        if fmt.block_size is not None:
            return fmt.block_size
        if fmt.block_dim is None:
            return self.k
        return operand.k_run if fmt.block_dim == 0 else 1


@dataclass(frozen=True, slots=True)
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
    part: Part = "other"

    @property
    def operations(self) -> int:
        """Adds and multiplications of all kinds, all `times` together."""
        return (self.fp_add + self.fp_mul + self.int_add) * self.times

    @property
    def traffic_bits(self) -> int:
        """Bits read and written, all `times` together."""
        return (self.read_bits + self.write_bits) * self.times


def quantizer_ops(layer: str, elements: int, write_bits: int, times: int = 1, part: Part = "other") -> ElementOps:
    """One pass of a hardware quantizer over a 32-bit tensor of `elements`; `write_bits` is what it stores in total."""
    adds, read_bits = QUANTIZER_INT_ADDS * elements, FP32_BITS * elements
    return ElementOps("quantizer", layer, elements, 0, 0, adds, read_bits, write_bits, times, part)


@dataclass(frozen=True, repr=False)
class OpCounts:
    """Everything one training step (or a sum of steps) does.

    `uncounted` names what was seen but has no formula, as "layer: op"; an empty tuple means nothing is missing.
    """

    gemms: tuple[Gemm, ...] = ()
    element_ops: tuple[ElementOps, ...] = ()
    uncounted: tuple[str, ...] = ()

    @property
    def macs(self) -> dict[str, int]:
        """MACs by GEMM; "output", "grad_input" and "grad_weight" are always there, "optimizer" if one multiplies."""
        totals: dict[str, int] = dict.fromkeys(GEMMS, 0)
        for gemm in self.gemms:
            totals[gemm.gemm] = totals.get(gemm.gemm, 0) + gemm.macs
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
    def macs_by_format(self) -> dict[tuple[str, NumberFormat, NumberFormat, NumberFormat], int]:
        """MACs by (gemm, format of operand a, format of operand b, accumulator)."""
        totals: dict[tuple[str, NumberFormat, NumberFormat, NumberFormat], int] = {}
        for gemm in self.gemms:
            key = gemm.gemm, gemm.a.format, gemm.b.format, gemm.accumulator
            totals[key] = totals.get(key, 0) + gemm.macs
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

    @property
    def traffic_bytes(self) -> dict[str, float]:
        """Bytes moved by GEMM, and by the element operations of each part of a step ("forward ops", ...).

        Each operation by itself: operands read once, results written once, nothing kept between operations.
        """
        totals: dict[str, float] = dict.fromkeys(GEMMS, 0.0)
        for gemm in self.gemms:
            totals[gemm.gemm] = totals.get(gemm.gemm, 0.0) + gemm.traffic_bits / 8
        for op in self.element_ops:
            totals[f"{op.part} ops"] = totals.get(f"{op.part} ops", 0.0) + op.traffic_bits / 8
        return totals

    def of_part(self, part: Part) -> OpCounts:
        """What belongs to one part of a step: "forward", "backward", "optimizer" or "other"."""
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
        return replace(
            self,
            gemms=tuple(gemm for gemm in self.gemms if gemm.part == part),
            element_ops=tuple(op for op in self.element_ops if op.part == part),
        )

    def at(self, precision: PrecisionLike) -> OpCounts:
        """The same work with the formats of `precision`; nothing is traced again.

        Quantizer rows are replaced too: every operand that `precision` formats is quantized once where a GEMM reads it,
        however many of its layer's GEMMs read it in that format. A traced lowered model may place them elsewhere.
        """
        gemms, quantizers = self._reformatter.at(precision.operand_format)
        others = tuple([op for op in self.element_ops if op.kind != "quantizer" or op.part in ("optimizer", "other")])
        return OpCounts(gemms, others + quantizers, self.uncounted)

    @cached_property
    def _reformatter(self) -> Reformatter:
        return Reformatter(self.gemms, _quantizer_row)

    def __add__(self, other: OpCounts) -> OpCounts:
        uncounted = tuple(sorted({*self.uncounted, *other.uncounted}))
        return OpCounts(self.gemms + other.gemms, self.element_ops + other.element_ops, uncounted)

    def __mul__(self, steps: int) -> OpCounts:
        if steps < 0:
            raise ValueError(f"counts can be multiplied by 0 or more steps, not by {steps}")
        gemms = tuple(replace(gemm, times=gemm.times * steps) for gemm in self.gemms)
        return OpCounts(gemms, tuple(replace(op, times=op.times * steps) for op in self.element_ops), self.uncounted)

    __rmul__ = __mul__

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict for each GEMM and each element operation: ``pandas.DataFrame(counts.rows())`` is the table.

        The keys are `energy_models.views.COLUMNS`. `elements` is the size of a GEMM's result, or of the tensor that an
        element operation works on, of one time; macs, bit_ops, operations and bytes are of all `times`. `a` and `b`
        are the operands' names, `a_kind` and `a_bits` the format in which the GEMM reads one.
        """
        return views.rows(self)

    def tree(self, depth: int | None = None) -> CountNode:
        """The counts by module, `depth` levels deep (None: all); prints as an indented table."""
        root = count_tree(self)
        return root if depth is None else root.cut(depth)

    def to_csv(self) -> str:
        """The rows as CSV with a line of headings; an empty cell for None."""
        return views.to_csv(self)

    def to_json(self) -> str:
        """An object of `schema`, `totals`, `uncounted` and `rows` as JSON."""
        return views.to_json(self)

    def __str__(self) -> str:
        return views.summary(self)

    def __repr__(self) -> str:
        return views.short(self)


def _quantizer_row(gemm: Gemm, operand: Operand, times: int, is_forward: bool) -> ElementOps:
    elements = operand.nonzeros or 0 if operand.is_sparse else operand.elements
    return quantizer_ops(
        gemm.layer, elements, operand.stored_bits, times=times, part="forward" if is_forward else "backward"
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
    part: Part = "other",
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
        part=part,
    )
    return OpCounts(element_ops=(row,))
