"""How many bits cross each level of a memory hierarchy, under three assumptions named by the ends of a range.

What is known of a program's schedule decides how often a tensor travels. Three choices stand for what is not known:

- "low": compulsory traffic. A GEMM's operands and result cross each level once; element operations stay on chip.
- "nominal": tiling. A GEMM moves, into a level that holds S operands of mean width, at least 2*m*n*k/sqrt(S) of them,
  the I/O lower bound of matrix multiplication (Hong and Kung, STOC 1981), or 1/sqrt(R) of it for a convolution whose
  windows read each input R times (Chen et al., HPCA 2020). Each activation and error is also written before it can be
  read, once, at its stored bits. Batch normalisation reads its inputs, the one it saved for the backward pass too, and
  a gather what it takes; a smooth activation or a norm over a row writes its input for the backward pass; scatters,
  tables, sorts and the optimizer move all that they touch; element-wise operations and quantizers (a block fits on
  chip) ride along with their neighbours.
- "high": no reuse. Buffers keep nothing, so what the multipliers ask for (each operand for `operand_reuse` products)
  travels all the way from DRAM; of several levels on the chip the innermost still works on its tile, and what that asks
  for travels. Every element operation goes through DRAM on its own.

What enters a level was read one level further out: the energy of a level counts both. Where a profile has a
`sum_reuse`, the innermost level also holds the partial sums, each read and written at its accumulator's bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from energy_models.counts import ElementOps, Gemm, OpCounts
from energy_models.profiles import HardwareProfile

# Kinds by what goes to DRAM in the nominal case; all others (scatters, sorts, optimizers, ...) move all they touch.
_RIDES_ALONG = frozenset(
    {
        *("relu", "leaky_relu", "hardtanh", "hardsigmoid", "shrink", "elu", "sigmoid", "tanh", "lstm_cell", "gru_cell"),
        *("max_pool", "avg_pool", "interpolation", "elementwise", "dropout", "softmax", "loss"),
        *("sum", "max", "statistics", "weight_norm", "quantizer", "running_range", "rotation"),
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


@dataclass(frozen=True)
class _GemmBits:
    """What the traffic of one GEMM is made of, in bits, `times` included."""

    compulsory: float
    tiled: tuple[float, ...]  # into each level inside the first
    written: float  # activations and errors that must be there first
    result: float
    fetched: float  # the operands of every MAC
    summed: float  # the partial sum of every MAC, read and written


@dataclass(frozen=True)
class _ElementBits:
    """Element operations: bits through DRAM under each assumption, and all that they read and write."""

    to_dram: dict[str, int]
    moved: int


class Traffic:
    """The bits of `counts` on the memories of `profile`, under any assumption and any reuse of operands and sums."""

    def __init__(self, counts: OpCounts, profile: HardwareProfile) -> None:
        self._levels, self._reuse, self._sum_reuse = len(profile.memory), profile.operand_reuse, profile.sum_reuse
        trained = {gemm.layer for gemm in counts.gemms if gemm.gemm == "grad_weight"}
        capacities = [level.capacity.value * 8192 for level in profile.memory if level.capacity is not None]
        self._gemms = [_gemm_bits(gemm, capacities, gemm.layer in trained) for gemm in counts.gemms]
        self._elements = _element_bits(counts.element_ops)

    def into_levels(self, end: str, reuse: str) -> list[float]:
        """Bits that cross into each level but the first, then those that the multipliers fetch from the last."""
        crossing, operand_reuse = [0.0] * self._levels, self._reuse.at(reuse)
        for gemm in self._gemms:
            if self._levels == 1:  # nothing in between: results and what must be there first reach DRAM themselves
                crossing[0] += gemm.result + (gemm.written if end != "low" else 0.0)
            asked = gemm.fetched / self._reuse.value + gemm.result
            if self._levels > 2:
                asked = min(asked, gemm.tiled[-1])
            for level, tiled in enumerate(gemm.tiled):
                written = gemm.written if level == 0 and end != "low" else 0.0
                crossing[level] += _into(gemm, tiled, asked, end) + written
            crossing[-1] += gemm.fetched / operand_reuse
        return crossing

    def per_level(self, end: str, reuse: str) -> list[float]:
        """Bits read and written at each level, from DRAM inwards; `end` and `reuse` are "low", "nominal" or "high"."""
        crossing = self.into_levels(end, reuse)
        bits = [crossing[0], *(outer + inner for outer, inner in pairwise(crossing))]
        to_dram = self._elements.to_dram[end]
        bits[0] += to_dram
        if self._levels > 1:  # what goes to DRAM passes the buffer, and so does what stays on chip
            bits[1] += self._elements.moved
        if self._sum_reuse is not None:
            bits[-1] += sum(gemm.summed for gemm in self._gemms) / self._sum_reuse.at(reuse)
        return bits


def _into(gemm: _GemmBits, tiled: float, asked: float, end: str) -> float:
    if end == "low":
        return gemm.compulsory
    return tiled if end == "nominal" else max(tiled, asked)


def _gemm_bits(gemm: Gemm, capacities: list[float], trained: bool) -> _GemmBits:
    result = gemm.result_elements * gemm.result_bits
    compulsory = gemm.traffic_bits / gemm.times if gemm.times else 0
    width = (gemm.a.bits + gemm.b.bits) / 2
    products = gemm.macs / gemm.times / math.sqrt(_overlap(gemm)) if gemm.times else 0
    tiled = [max(compulsory, 2 * products / math.sqrt(size / width) * width + result) for size in capacities]
    first_readers = {"activation": "output", "error": "grad_weight" if trained else "grad_input"}
    written = sum(side.stored_bits for side in (gemm.a, gemm.b) if first_readers.get(side.name) == gemm.gemm)
    return _GemmBits(
        compulsory * gemm.times,
        tuple(bits * gemm.times for bits in tiled),
        written * gemm.times,
        result * gemm.times,
        gemm.macs * (gemm.a.bits + gemm.b.bits),
        2 * gemm.macs * gemm.accumulator.bits,
    )


def _overlap(gemm: Gemm) -> float:
    """How often a convolution's windows read each element of the larger side: kernel positions over stride positions.

    An error's windows meet each element of the input gradient less often by the stride. An operand that is broadcast
    over the batch counts as overlapping too.
    """
    a, b = gemm.m * gemm.k / max(1, gemm.a.elements), gemm.k * gemm.n / max(1, gemm.b.elements)
    spread = gemm.result_elements / (gemm.batch * gemm.m * gemm.n) if gemm.m and gemm.n else 1
    return max(1.0, gemm.batch * max(a, b) / max(1.0, spread))


def _element_bits(ops: Iterable[ElementOps]) -> _ElementBits:
    nominal = high = 0
    for op in ops:
        high += op.traffic_bits
        if op.kind in _READS_ITS_INPUTS or (op.kind in _KEEPS_ITS_INPUT and op.part == "backward"):
            nominal += op.read_bits * op.times
        elif op.kind not in _RIDES_ALONG | _KEEPS_ITS_INPUT:
            nominal += op.traffic_bits
    return _ElementBits({"low": 0, "nominal": nominal, "high": high}, high)
