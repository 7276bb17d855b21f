"""Every format against an exact quantizer in fractions (exact_rounding.py), and against other libraries.

Hypothesis draws the formats' parameters and the raw bits of floating-point numbers, so subnormals, infinities, NaN and
both zeros occur.
"""

import math

import pytest
import torch
from cases import ROUNDINGS, same_bits
from exact_rounding import quantize_block, to_float32
from hypothesis import given, settings
from hypothesis import strategies as st

import lowprec_eb as lp
from lowprec_eb.formats import NAMED

DTYPES = {
    torch.float32: torch.int32,
    torch.float64: torch.int64,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def saturating(largest_exp):
    return st.builds(
        lambda exp, man, specials, ties, subnormals: lp.Float(exp, man, specials, "saturate", ties, subnormals),
        st.integers(2, largest_exp),
        st.integers(1, 6),
        st.sampled_from(["none", "nan", "ieee"]),
        st.sampled_from(["even", "away"]),
        st.booleans(),
    )


floats, float_elements = saturating(7), saturating(5)
overflowing = st.builds(
    lambda exp, man, specials: lp.Float(exp, man, *specials),
    st.integers(2, 8),
    st.integers(1, 7),
    st.sampled_from([("ieee", "infinity"), ("ieee", "nan"), ("nan", "nan")]),
)
fixed_points = st.builds(lp.FixedPoint, st.integers(2, 24), st.integers(0, 64), st.booleans(), st.booleans())
elements = st.one_of(
    float_elements, st.builds(lambda wl: lp.FixedPoint(wl, wl - 2, symmetric=True), st.integers(2, 12))
)
FAMILIES = {
    "Float": floats,
    "Float that overflows": overflowing,
    "FixedPoint": fixed_points,
    "BlockFloat": st.builds(lp.BlockFloat, st.integers(2, 16)),
    "MX": st.builds(lp.MX, elements),
    "Int": st.builds(lp.Int, st.integers(2, 16)),
    "affine Int": st.builds(
        lambda bits, zero_point: lp.Int(bits, symmetric=False, zero_point=zero_point),
        st.integers(2, 16),
        st.sampled_from(["integer", "minimum"]),
    ),
    "ScaledFloat": st.builds(lp.ScaledFloat, float_elements),
    "ScaledFloat with a float scale": st.builds(
        lambda element: lp.ScaledFloat(element, scale=lp.FP8_E4M3), float_elements
    ),
    "NVFP4": st.just(lp.NVFP4),
    "named": st.sampled_from([fmt for name, fmt in NAMED.items() if name not in ("fp32", "tf32", "block8")]),
}


def width(dtype):
    return torch.finfo(dtype).bits


@st.composite
def tensors(draw, dtype):
    """Up to 12 elements: raw bits of any kind; or near each other, as in a real block; or multiples of a half step."""
    kind = draw(st.sampled_from(["any bits", "one block", "ties"]))
    size = draw(st.integers(1, 12))
    if kind == "ties":
        exponent = draw(st.integers(-10, 10))
        codes = draw(st.lists(st.integers(-600, 600), min_size=size, max_size=size))
        return torch.tensor([math.ldexp(code, exponent) for code in codes]).to(dtype)
    patterns = draw(st.lists(st.integers(0, 2 ** width(dtype) - 1), min_size=size, max_size=size))
    signed = [p - 2 ** width(dtype) if p >> (width(dtype) - 1) else p for p in patterns]
    x = torch.tensor(signed, dtype=DTYPES[dtype]).view(dtype)
    if kind == "one block":  # significands as drawn, exponents from a narrow range
        significand = torch.frexp(x.float().nan_to_num(1.0, 1.0, 1.0)).mantissa
        lowest = draw(st.integers(-12, 5))
        x = torch.ldexp(significand, torch.tensor([lowest + p % 9 for p in patterns])).to(dtype)
    return x


def in_reach(x, fmt):
    """Leave out NaN where it is an error, and float64 numbers (and sums) beyond the float32 scales."""
    if fmt.element.kind == "float" and fmt.element.nan == "error":
        x = x.nan_to_num(nan=1.0, posinf=math.inf, neginf=-math.inf)
    if fmt.blocks is not None:
        x = torch.where(x.isfinite() & (x.abs().double() > 2.0**120), 1.0, x)
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), rounding=st.sampled_from(ROUNDINGS), seed=st.integers(-(2**63), 2**63 - 1))
def test_every_format_gives_the_bits_of_the_exact_quantizer(family, dtype, data, rounding, seed):
    fmt = data.draw(FAMILIES[family])
    x = in_reach(data.draw(tensors(dtype)), fmt)
    work = float if dtype == torch.float64 else to_float32
    exact = quantize_block(x.tolist(), fmt, rounding, seed if rounding == "stochastic" else None, work)
    expected = torch.tensor(exact, dtype=torch.float64).to(dtype)
    rounded = lp.quantize(x, fmt, rounding, seed=seed)
    assert same_bits(rounded, expected), (x.tolist(), rounded.tolist(), expected.tolist())
