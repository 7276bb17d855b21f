"""lowprec-eb: what training costs in energy, and how to pay less.

``import lowprec_eb as lp`` gives number formats and quantizers, ``lower`` for any model, and early-bird tickets;
``energy_models`` counts operations and prices them.
"""

from lowprec_eb.formats import BF16, FP16, FP32, BlockFloat, FixedPoint, Float
from lowprec_eb.lowering import LoweringReport, lower, raise_
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.precision import Precision, precision
from lowprec_eb.quantize import quantize
from lowprec_eb.tickets import EarlyBird, Ticket, channel_groups, compact, mask_distance

__all__ = [
    "BF16",
    "FP16",
    "FP32",
    "BlockFloat",
    "EarlyBird",
    "FixedPoint",
    "Float",
    "LowPrecisionOptimizer",
    "LoweringReport",
    "Precision",
    "Ticket",
    "channel_groups",
    "compact",
    "lower",
    "mask_distance",
    "precision",
    "quantize",
    "raise_",
]
