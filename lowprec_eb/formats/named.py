"""The formats that have a name: IEEE, OCP and vendor standards."""

from __future__ import annotations

from lowprec_eb.formats.base import Format
from lowprec_eb.formats.elements import FP32, FixedPoint, Float
from lowprec_eb.formats.scaled import MX, BlockFloat, Int, ScaledFloat

FP16 = Float(5, 10, specials="ieee", overflow="infinity")
BF16 = Float(8, 7, specials="ieee", overflow="infinity")
TF32 = Float(8, 10, specials="ieee", overflow="infinity")

FP8_E4M3 = Float(4, 3, specials="nan")
FP8_E5M2 = Float(5, 2, specials="ieee")
FP6_E2M3 = Float(2, 3, nan="error")
FP6_E3M2 = Float(3, 2, nan="error")
FP4_E2M1 = Float(2, 1, nan="error")

MXFP8_E4M3 = MX(FP8_E4M3)
MXFP8_E5M2 = MX(FP8_E5M2)
MXFP6_E2M3 = MX(FP6_E2M3)
MXFP6_E3M2 = MX(FP6_E3M2)
MXFP4 = MX(FP4_E2M1)
MXINT8 = MX(FixedPoint(8, 6, symmetric=True))
NVFP4 = ScaledFloat(FP4_E2M1, scale=FP8_E4M3, block=16, tensor_scale=True)

NAMED: dict[str, Format] = {
    "fp32": FP32,
    "tf32": TF32,
    "bf16": BF16,
    "fp16": FP16,
    "fp8_e4m3": FP8_E4M3,
    "fp8_e5m2": FP8_E5M2,
    "fp6_e2m3": FP6_E2M3,
    "fp6_e3m2": FP6_E3M2,
    "fp4_e2m1": FP4_E2M1,
    "mxfp8_e4m3": MXFP8_E4M3,
    "mxfp8_e5m2": MXFP8_E5M2,
    "mxfp6_e2m3": MXFP6_E2M3,
    "mxfp6_e3m2": MXFP6_E3M2,
    "mxfp4": MXFP4,
    "mxint8": MXINT8,
    "nvfp4": NVFP4,
    "scaled_fp8_e4m3": ScaledFloat(FP8_E4M3),
    "scaled_fp8_e5m2": ScaledFloat(FP8_E5M2),
    "block8": BlockFloat(8, dim=0),
    "int8": Int(8),
    "int4": Int(4),
    "int8_affine": Int(8, symmetric=False),
    "fixed8": FixedPoint(8, 4),
}
