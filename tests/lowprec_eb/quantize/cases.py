"""The formats, dtypes and roundings that the laws are tested for."""

import torch

import lowprec_eb as lp
from lowprec_eb.formats import NAMED

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
ROUNDINGS = ["nearest", "nearest_away", "toward_zero", "stochastic"]
FORMATS = NAMED | {
    "fixed without clamp": lp.FixedPoint(8, 4, clamp=False),
    "fixed symmetric": lp.FixedPoint(8, 4, symmetric=True),
    "qtorch float": lp.Float(4, 3, ties="away"),
    "no subnormals": lp.Float(4, 3, subnormals=False),
    "block of tensor": lp.BlockFloat(6),
    "block of 3": lp.BlockFloat(8, block=3),
    "int of slice": lp.Int(6, axis=-1),
    "int of 4": lp.Int(4, block=4, block_axis=0),
    "affine from minimum": lp.Int(8, symmetric=False, zero_point="minimum"),
    "two scales of 5": lp.ScaledFloat(lp.FP8_E5M2, scale=lp.FP16, block=5),
}
FLOAT_CODED = [name for name, fmt in FORMATS.items() if isinstance(fmt.element, lp.Float)]
INTEGER_CODED = [name for name in FORMATS if name not in FLOAT_CODED]
REFUSES_NAN = [name for name in FLOAT_CODED if FORMATS[name].element.nan == "error"]
SCALED = [name for name, fmt in FORMATS.items() if fmt.blocks is not None]
LETS_INFINITY_PASS = ["fp32", "tf32", "bf16", "fp16", "fixed without clamp", *SCALED]
NOT_IDEMPOTENT = ["int8_affine", "affine from minimum", "nvfp4", "two scales of 5"]


def normal(*shape, dtype=torch.float32):
    """Standard normal numbers, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def same_bits(a, b):
    """Equal values and signs of zero; any NaN equals any NaN."""
    both_nan = a.isnan() & b.isnan()
    return a.shape == b.shape and bool((both_nan | ((a == b) & (a.signbit() == b.signbit()))).all())
