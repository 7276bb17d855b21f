"""The named recipes.

A recipe is a :class:`lowprec_eb.Precision` with a source. Each comment says where it comes from, and what its authors
keep in higher precision; what a recipe leaves out is float32.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from lowprec_eb.formats import BF16, FP8_E4M3, FP8_E5M2, MXFP4, MXFP8_E4M3, BlockFloat, Int, ScaledFloat
from lowprec_eb.precision import LAST, PerGemm, Precision, Rounded, check_choice, nearest

_BFP8 = BlockFloat(wl=8, dim=0)
_SBM = Int(8, symmetric=False, zero_point="minimum")
_ROWS = Int(8, block=1 << 30)  # longer than any dimension: one block, and one scale, per row of a GEMM's operand
_MXFP4 = Rounded(MXFP4, rounding="stochastic", prescale=3 / 4)

RECIPES: dict[str, Precision] = {
    "fp32": Precision(name="fp32"),
    # Mixed precision (Micikevicius et al. 2018; Kalamkar et al. 2019): bf16 into the GEMMs, float32 for all that
    # is kept.
    "bf16": Precision(name="bf16", weight=BF16, activation=BF16, error=BF16),
    # SWALP's numbers (Yang et al. 2019) on every operand of every GEMM, the first layer's image and the last layer
    # included; weights, gradients and momentum are kept in 8 bits too. Normalisation parameters and biases stay in
    # float32.
    "bfp8": Precision(
        name="bfp8",
        weight=_BFP8,
        activation=_BFP8,
        error=_BFP8,
        gradient=_BFP8,
        momentum=_BFP8,
        master=_BFP8,
        rounding="stochastic",
    ),
    # The early-bird paper's placement (You et al. 2020, section 4; SWALP, Yang et al. 2019): quantizers behind the
    # outputs of convolutions and linear layers, forward and backward, but for the last; BN and ReLU follow, so the
    # next GEMM reads float32 activations. The optimizer rounds every parameter, normalisation included.
    "swalp8": Precision(
        name="swalp8",
        weight=_BFP8,
        output=_BFP8,
        error=_BFP8,
        gradient=_BFP8,
        momentum=_BFP8,
        master=_BFP8,
        rounding="stochastic",
        vectors=True,
        overrides=((LAST, Precision(name="swalp8-last", weight=_BFP8, rounding="stochastic")),),
    ),
    # SBM (Banner et al. 2018, "Scalable methods for 8-bit training of neural networks") as the code of FracTrain
    # (Fu et al. 2020) and CPT (Fu et al. 2021) uses it: from the minimum, weights per output channel, errors
    # stochastic. Normalisation and the last layer stay in float32, and so does all that the optimizer keeps.
    "int8": Precision(
        name="int8",
        weight=Int(8, symmetric=False, axis=0, zero_point="minimum"),
        activation=Rounded(_SBM, running=0.9),
        error=Rounded(_SBM, rounding="stochastic"),
        overrides=((LAST, Precision(name="fp32")),),
    ),
    # SwitchBack (Wortsman et al. 2023, "Stable and low-precision training for large-scale vision-language models",
    # section 2): activations and errors with a scale per row, weights with one per tensor; grad_weight, which sums
    # over batch and positions, switches back to 16 bits.
    "int8_rowwise": Precision(
        name="int8_rowwise",
        weight=Int(8),
        activation=PerGemm(output=_ROWS, grad_weight=BF16),
        error=PerGemm(grad_input=_ROWS, grad_weight=BF16),
    ),
    # Micikevicius et al. 2022, "FP8 Formats for Deep Learning", section 3: E4M3 for weights and activations, E5M2
    # for gradients; scales per tensor. GEMM results stay in higher precision.
    "fp8": Precision(
        name="fp8", weight=ScaledFloat(FP8_E4M3), activation=ScaledFloat(FP8_E4M3), error=ScaledFloat(FP8_E5M2)
    ),
    # Mishra et al. 2025, "Recipes for Pre-training LLMs with MXFP8": E4M3 for weights, activations and errors
    # alike. Its authors round the scales up; `MX` rounds them down, as the OCP specification does.
    "mxfp8": Precision(name="mxfp8", weight=MXFP8_E4M3, activation=MXFP8_E4M3, error=MXFP8_E4M3),
    # Tseng et al. 2025, "Training LLMs with MXFP4": both backward GEMMs in MXFP4 with stochastic rounding, after a
    # random Hadamard transform of 64, times 3/4, so that nothing saturates and rounding is unbiased; the forward GEMM
    # reads bfloat16.
    "mxfp4": Precision(
        name="mxfp4",
        weight=PerGemm(output=BF16, grad_input=_MXFP4),
        activation=PerGemm(output=BF16, grad_weight=_MXFP4),
        error=_MXFP4,
        hadamard=PerGemm(grad_input=64, grad_weight=64),
    ),
    # Quantization-aware training of weights alone (straight-through as in Jacob et al. 2018, section 3), a scale
    # per output channel; activations, errors and the copy that the optimizer updates stay in float32.
    "int4": Precision(name="int4", weight=Int(4, axis=0)),
}


def precision(name: str | Precision, /, **changes: Any) -> Precision:
    """A named recipe, with ``changes`` to its fields; a :class:`Precision` is passed through.

    Raises:
        ValueError: no recipe has that name, no field that of a change, or a change has a value that is not allowed.
    """
    for change in changes:
        check_choice("a precision", "field", change, [f.name for f in fields(Precision)])
    if isinstance(name, Precision):
        return replace(name, **changes)
    if name not in RECIPES:
        hint = nearest(name, RECIPES) or f"; recipes are {', '.join(RECIPES)}"
        raise ValueError(f"unknown precision {name!r}{hint}")
    return replace(RECIPES[name], **changes)
