"""Every format against the libraries that define it or implement it well: ml_dtypes, torch's casts, gfloat."""

import math

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import formats as gfloat_formats
from gfloat.formats import (
    format_info_mxfp4_e2m1,
    format_info_mxfp6_e2m3,
    format_info_mxfp6_e3m2,
    format_info_mxfp8_e4m3,
    format_info_mxfp8_e5m2,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import lowprec_eb as lp

# What a cast does beyond the largest number differs by library (NaN, infinity or the largest number): each row has the
# format that overflows as ml_dtypes does.
ML_DTYPES = {
    "float8_e4m3fn": lp.Float(4, 3, specials="nan", overflow="nan"),
    "float8_e5m2": lp.Float(5, 2, specials="ieee", overflow="infinity"),
    "float8_e4m3": lp.Float(4, 3, specials="ieee", overflow="infinity"),
    "float8_e3m4": lp.Float(3, 4, specials="ieee", overflow="infinity"),
    "float6_e2m3fn": lp.Float(2, 3),
    "float6_e3m2fn": lp.Float(3, 2),
    "float4_e2m1fn": lp.FP4_E2M1,
    "bfloat16": lp.BF16,
}
TORCH = {
    torch.bfloat16: lp.BF16,
    torch.float16: lp.FP16,
    torch.float8_e4m3fn: lp.FP8_E4M3,
    torch.float8_e5m2: lp.FP8_E5M2,
}
GFLOAT = {
    "e4m3": lp.FP8_E4M3,
    "e5m2": lp.FP8_E5M2,
    "e2m3": lp.FP6_E2M3,
    "e3m2": lp.FP6_E3M2,
    "e2m1": lp.FP4_E2M1,
}
GFLOAT_MX = {
    lp.MXFP8_E4M3: format_info_mxfp8_e4m3,
    lp.MXFP8_E5M2: format_info_mxfp8_e5m2,
    lp.MXFP6_E2M3: format_info_mxfp6_e2m3,
    lp.MXFP6_E3M2: format_info_mxfp6_e3m2,
    lp.MXFP4: format_info_mxfp4_e2m1,
}
raw_floats = st.integers(0, 2**32 - 1).map(lambda bits: float(np.uint32(bits).view(np.float32)))


def every_kind_of_float32(around):
    """All bfloat16 numbers, random bits, and numbers from 0 to beyond ``around`` in steps that make many ties."""
    generator = torch.Generator().manual_seed(0)
    leading = torch.arange(2**16, dtype=torch.int32) << 16
    random = torch.randint(-(2**31), 2**31, (50_000,), dtype=torch.int64, generator=generator).to(torch.int32)
    ties = torch.linspace(-1.125, 1.125, 2 * 9 * 1024 + 1) * 2.0 ** math.ceil(math.log2(around))
    small = ties[ties.abs() <= around / 32] / 256
    return torch.cat([leading.view(torch.float32), random.view(torch.float32), ties, small])


def where_numbers(x):
    return x[~x.isnan()]


def bits_of(x):
    """The bits, but one pattern for every NaN."""
    return torch.where(x.isnan(), torch.nan, x).view(torch.int32)


# ---- ml_dtypes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ML_DTYPES)
def test_values_and_codes_are_those_of_ml_dtypes(name):
    fmt = ML_DTYPES[name]
    x = every_kind_of_float32(fmt.max)
    if fmt.specials == "none":
        x = where_numbers(x)
    with np.errstate(invalid="ignore"):  # NaN to NaN
        theirs = x.numpy().astype(getattr(ml_dtypes, name))
    expected = torch.from_numpy(theirs.astype(np.float32))
    assert torch.equal(bits_of(lp.quantize(x, fmt)), bits_of(expected))
    codes, _ = lp.encode(x, fmt)
    patterns = torch.from_numpy(theirs.view(np.uint8 if fmt.bits <= 8 else np.int16))
    numbers = ~expected.isnan()
    assert torch.equal(codes[numbers], patterns[numbers])


@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_code_decodes_as_in_ml_dtypes(name):
    fmt = ML_DTYPES[name]
    patterns = np.arange(2**fmt.bits, dtype=np.uint16)
    theirs = patterns.astype(np.uint8).view(getattr(ml_dtypes, name)) if fmt.bits <= 8 else patterns.view("bfloat16")
    codes = torch.from_numpy(patterns.astype(np.uint8) if fmt.bits <= 8 else patterns.view(np.int16))
    decoded = lp.decode(codes, None, fmt)
    assert torch.equal(bits_of(decoded), bits_of(torch.from_numpy(theirs.astype(np.float32))))


@pytest.mark.parametrize("fmt", [lp.FP8_E4M3, lp.FP8_E5M2, lp.FP6_E2M3, lp.FP6_E3M2, lp.FP4_E2M1], ids=repr)
def test_the_range_is_that_of_ml_dtypes(fmt):
    name = {8: "float8_e{}m{}", 6: "float6_e{}m{}fn", 4: "float4_e{}m{}fn"}[fmt.bits].format(fmt.exp, fmt.man)
    limits = ml_dtypes.finfo(name + ("fn" if fmt == lp.FP8_E4M3 else ""))
    assert (fmt.max, fmt.min) == (float(limits.max), float(limits.min))
    assert (fmt.smallest, 2.0**fmt.min_exponent) == (float(limits.smallest_subnormal), float(limits.smallest_normal))


def test_mx_scales_are_e8m0_numbers():
    x = every_kind_of_float32(1.0).nan_to_num(0.0, 0.0, 0.0).view(-1, 1)
    _, scales = lp.encode(x, lp.MXFP8_E4M3)
    as_e8m0 = scales.numpy().astype(ml_dtypes.float8_e8m0fnu)
    assert np.array_equal(as_e8m0.astype(np.float32), scales.numpy())
    assert scales.min() == 2.0**-127 and scales.max() == 2.0 ** (127 - 8)


# ---- torch's casts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_values_and_codes_are_those_of_torchs_cast(dtype):
    fmt = TORCH[dtype]
    x = every_kind_of_float32(min(fmt.max, 2.0**20))
    if fmt.bits == 8:  # beyond the largest number torch's cast differs by version
        x = x[x.isnan() | (x.abs() <= fmt.max)]
    cast = x.to(dtype)
    assert torch.equal(bits_of(lp.quantize(x, fmt)), bits_of(cast.float()))
    codes, _ = lp.encode(x, fmt)
    assert torch.equal(codes[~x.isnan()], cast.view(codes.dtype)[~x.isnan()])
    assert lp.decode(codes, None, fmt)[x.isnan()].isnan().all()


def test_float32_is_torchs_cast_of_float64():
    x = every_kind_of_float32(1.0).double()
    x = torch.cat([x * (1 + 2.0**-24), x * (1 + 2.0**-25), x * 2.0**-130, x * 2.0**130])  # ties, subnormals, overflow
    assert torch.equal(bits_of(lp.quantize(x, lp.FP32).float()), bits_of(x.float()))


# ---- gfloat ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["nearest", "nearest_away", "toward_zero"])
@pytest.mark.parametrize("name", GFLOAT)
@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.one_of(raw_floats, st.floats(-600, 600, width=32)), min_size=1, max_size=8))
def test_float_formats_round_and_saturate_as_in_gfloat(name, rounding, values):
    fmt, info = GFLOAT[name], getattr(gfloat_formats, f"format_info_ocp_{name}")
    mode = {"nearest": "TiesToEven", "nearest_away": "TiesToAway", "toward_zero": "TowardZero"}[rounding]
    numbers = [v for v in values if not math.isnan(v)]
    ours = lp.quantize(torch.tensor(numbers), fmt, rounding)
    theirs = [gfloat.round_float(info, v, gfloat.RoundMode[mode], sat=True) for v in numbers]
    assert torch.equal(bits_of(ours), bits_of(torch.tensor(theirs)))


@pytest.mark.parametrize("fmt", GFLOAT_MX, ids=repr)
@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(-2.0, 2.0, width=32), min_size=32, max_size=32), exponent=st.integers(-100, 100))
def test_mx_blocks_are_those_of_gfloat(fmt, values, exponent):
    block = np.ldexp(np.array(values), exponent)
    theirs = gfloat.quantize_block(GFLOAT_MX[fmt], block, gfloat.compute_scale_amax)
    assert torch.equal(lp.quantize(torch.tensor(block), fmt), torch.tensor(theirs))
