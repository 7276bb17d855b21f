"""lowprec-eb: what training costs in energy, and how to pay less.

``import lowprec_eb as lp`` gives number formats and quantizers, ``lower`` for any model, and early-bird tickets;
``energy_models`` counts operations and prices them.
"""

from lowprec_eb.averaging import WeightAverage
from lowprec_eb.draw import CutError, draw_ticket
from lowprec_eb.formats import (
    BF16,
    FP4_E2M1,
    FP6_E2M3,
    FP6_E3M2,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    MX,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NVFP4,
    TF32,
    BlockFloat,
    FixedPoint,
    Float,
    Int,
    ScaledFloat,
)
from lowprec_eb.lowering import LoweringReport, lower, raise_
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.precision import PerGemm, Precision, Rounded
from lowprec_eb.precision_state import load_precision_state, precision_state, set_bits
from lowprec_eb.quantize import Quantizer, backend_for, decode, encode, quantize, quantize_
from lowprec_eb.recipes import precision
from lowprec_eb.stability import Diverged, Instability, StabilityMonitor, StabilitySettings
from lowprec_eb.tickets import (
    DrawnTicket,
    EarlyBird,
    EarlyBirds,
    ScoreHistory,
    Ticket,
    channel_groups,
    compact,
    mask_distance,
    plan_compaction,
    replay,
)
from lowprec_eb.trace import QuantizationTrace, TracedOperand, trace_quantization

__all__ = [
    "BF16",
    "FP4_E2M1",
    "FP6_E2M3",
    "FP6_E3M2",
    "FP8_E4M3",
    "FP8_E5M2",
    "FP16",
    "FP32",
    "MX",
    "MXFP4",
    "MXFP6_E2M3",
    "MXFP6_E3M2",
    "MXFP8_E4M3",
    "MXFP8_E5M2",
    "MXINT8",
    "NVFP4",
    "TF32",
    "BlockFloat",
    "CutError",
    "Diverged",
    "DrawnTicket",
    "EarlyBird",
    "EarlyBirds",
    "FixedPoint",
    "Float",
    "Instability",
    "Int",
    "LowPrecisionOptimizer",
    "LoweringReport",
    "PerGemm",
    "Precision",
    "QuantizationTrace",
    "Quantizer",
    "Rounded",
    "ScaledFloat",
    "ScoreHistory",
    "StabilityMonitor",
    "StabilitySettings",
    "Ticket",
    "TracedOperand",
    "WeightAverage",
    "backend_for",
    "channel_groups",
    "compact",
    "decode",
    "draw_ticket",
    "encode",
    "load_precision_state",
    "lower",
    "mask_distance",
    "plan_compaction",
    "precision",
    "precision_state",
    "quantize",
    "quantize_",
    "raise_",
    "replay",
    "set_bits",
    "trace_quantization",
]
