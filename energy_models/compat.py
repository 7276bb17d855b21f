"""How papers on cheaper training book their work, as counts like any other: they add, scale and price.

They count GEMMs alone, take forward, grad_input and grad_weight of each layer as equally large, charge the first layer
a grad_input, and leave out normalisation, activations, the optimizer and quantizers. `em.count` says what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Literal

from energy_models.counts import Gemm, OpCounts
from energy_models.number_formats import FP32, FP32_BITS, NumberFormat

Compat = Literal["early_bird", "fractrain"]


def early_bird(counts: OpCounts) -> OpCounts:
    """Counts as "Drawing Early-Bird Tickets" (You et al. 2020, section 4) books them: three times the forward MACs.

    Of counts without a backward pass, the forward MACs. `training_flops` of the result is the paper's number; it has no
    unit for bits. The paper charges a one-shot lottery ticket twice the dense training, and SNIP once.
    """
    return _three_times(counts, counts.gemms)


def fractrain(counts: OpCounts) -> OpCounts:
    """Counts as the code of FracTrain and CPT (Fu et al. 2020, 2021) books them: fw^2 + 2 fw bw per forward MAC.

    fw are the bits of a layer's forward operands, bw those of its error. The last linear layer, which those papers
    leave in fp32, is not charged; a model that does not end in one is charged whole. The formats are those of `counts`,
    or those that `.at(precision)` of the result names; the quantizer rows that `at` adds are not in `gbitops`.
    """
    last = _last_linear(counts.gemms)
    return _three_times(counts, [gemm for gemm in counts.gemms if gemm.layer != last])


BOOKKEEPING: dict[Compat, Callable[[OpCounts], OpCounts]] = {"early_bird": early_bird, "fractrain": fractrain}


def kept_as(counts: OpCounts, compat: Compat) -> OpCounts:
    """`counts` in the bookkeeping of that name; ValueError for another name."""
    if compat not in BOOKKEEPING:
        raise ValueError(f"compat must be one of {', '.join(BOOKKEEPING)}, got {compat!r}")
    return BOOKKEEPING[compat](counts)


def training_flops(counts: OpCounts) -> int:
    """Two for each MAC: of `early_bird` counts of an image, times images and epochs, the paper's training FLOPs."""
    return 2 * counts.total_macs


def early_bird_flops(forward_macs: float, images: float) -> float:
    """The early-bird paper's training FLOPs of ``images`` (epochs times images) through a network with so many forward
    MACs an image: two for each MAC, three times the forward pass."""
    return 2 * 3 * forward_macs * images


def gbitops(counts: OpCounts) -> float:
    """Bit operations in 10^9: of `fractrain` counts of a batch, times iterations, the papers' GBitOPs."""
    return counts.bit_ops / 1e9


def relative_cost(counts: OpCounts) -> float:
    """Bit operations as a share of those in fp32: of `fractrain` counts (fw^2 + 2 fw bw) / (3 * 32^2).

    Raises:
        ValueError: there are no MACs.
    """
    if not counts.total_macs:
        raise ValueError("counts without MACs have no relative cost")
    return counts.bit_ops / (counts.total_macs * FP32_BITS**2)


def _three_times(counts: OpCounts, gemms: Iterable[Gemm]) -> OpCounts:
    is_training = any(gemm.part == "backward" for gemm in counts.gemms)
    errors = _error_formats(counts.gemms)
    kept: list[Gemm] = []
    for gemm in gemms:
        if gemm.gemm == "output":
            kept += _passes(gemm, errors.get(gemm.layer, FP32)) if is_training else [gemm]
    return OpCounts(tuple(kept), (), counts.uncounted)


def _passes(gemm: Gemm, error: NumberFormat) -> list[Gemm]:
    # Each pass is the forward GEMM with an error in the place of one operand, so that its MACs are the same.
    return [
        gemm,
        replace(gemm, gemm="grad_input", a=replace(gemm.a, name="error", format=error)),
        replace(gemm, gemm="grad_weight", b=replace(gemm.b, name="error", format=error)),
    ]


def _error_formats(gemms: Iterable[Gemm]) -> dict[str, NumberFormat]:
    return {g.layer: o.format for g in gemms for o in (g.a, g.b) if o.name == "error"}


def _last_linear(gemms: Iterable[Gemm]) -> str | None:
    last = next((gemm for gemm in reversed(tuple(gemms)) if gemm.gemm == "output"), None)
    if last is None:
        return None
    is_linear = any(operand.name == "weight" and len(operand.shape) == 2 for operand in (last.a, last.b))
    return last.layer if is_linear else None
