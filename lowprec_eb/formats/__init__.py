"""Number formats as data: the raw fields are stored, everything else is derived.

Each format satisfies ``energy_models.NumberFormat``, so a count or an energy estimate reads the same object that rounds
the tensors.
"""

from lowprec_eb.formats.base import Blocks, Format
from lowprec_eb.formats.elements import FP32, FixedPoint, Float
from lowprec_eb.formats.named import (
    BF16,
    FP4_E2M1,
    FP6_E2M3,
    FP6_E3M2,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    MXINT8,
    NAMED,
    NVFP4,
    TF32,
)
from lowprec_eb.formats.scaled import MX, BlockFloat, Int, ScaledFloat, at_bits, is_affine
from lowprec_eb.formats.text import as_format, format_name, parse_format

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
    "NAMED",
    "NVFP4",
    "TF32",
    "BlockFloat",
    "Blocks",
    "FixedPoint",
    "Float",
    "Format",
    "Int",
    "ScaledFloat",
    "as_format",
    "at_bits",
    "format_name",
    "is_affine",
    "parse_format",
]
