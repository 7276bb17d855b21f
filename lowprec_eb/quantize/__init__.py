"""Rounding tensors to number formats."""

from lowprec_eb.quantize.arguments import ROUNDINGS
from lowprec_eb.quantize.functional import (
    BACKEND_NAMES,
    Rounding,
    Scale,
    backend_for,
    decode,
    encode,
    quantize,
    quantize_,
)
from lowprec_eb.quantize.module import Quantizer
from lowprec_eb.quantize.random_bits import draw_seeds

__all__ = [
    "BACKEND_NAMES",
    "ROUNDINGS",
    "Quantizer",
    "Rounding",
    "Scale",
    "backend_for",
    "decode",
    "draw_seeds",
    "encode",
    "quantize",
    "quantize_",
]
