"""NaN, infinities, overflow and zeros, as in the table of meanings in docs/formats.md."""

import math

import pytest
import torch
from cases import (
    DTYPES,
    FLOAT_CODED,
    FORMATS,
    INTEGER_CODED,
    LETS_INFINITY_PASS,
    REFUSES_NAN,
    ROUNDINGS,
    normal,
    same_bits,
)

import lowprec_eb as lp
from lowprec_eb.formats import is_affine


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_element_leaves_the_others_alone(name, bad, rounding):
    if name in REFUSES_NAN and math.isnan(bad):
        return
    for dtype in DTYPES:
        healthy = torch.cat([normal(30, dtype=dtype), torch.zeros(1, dtype=dtype)]).view(1, -1)
        damaged = healthy.clone()
        damaged[0, -1] = bad
        rounded = lp.quantize(damaged, FORMATS[name], rounding, seed=1)
        assert same_bits(rounded[0, :-1], lp.quantize(healthy, FORMATS[name], rounding, seed=1)[0, :-1])


@pytest.mark.parametrize("name", FORMATS)
def test_nan_passes_or_is_refused(name):
    fmt = FORMATS[name]
    for dtype in DTYPES:
        for x in (torch.tensor([[1.0, math.nan]], dtype=dtype), torch.full((1, 3), math.nan, dtype=dtype)):
            for rounding in ROUNDINGS:
                if name in REFUSES_NAN:
                    with pytest.raises(ValueError, match=f"of {x.numel()} values are NaN"):
                        lp.quantize(x, fmt, rounding)
                else:
                    assert torch.equal(lp.quantize(x, fmt, rounding).isnan(), x.isnan())


@pytest.mark.parametrize("name", FORMATS)
def test_a_nan_has_a_code_or_encode_says_that_it_has_none(name):
    fmt, x = FORMATS[name], torch.tensor([[1.0, math.nan]])
    if isinstance(fmt.element, lp.Float) and fmt.element.specials != "none":
        codes, scales = lp.encode(x, fmt)
        assert lp.decode(codes, scales, fmt).isnan().tolist() == [[False, True]]
    else:
        with pytest.raises(ValueError, match="no code"):
            lp.encode(x, fmt)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", FORMATS)
def test_infinities_pass_or_become_the_ends_of_a_range_without_scale(name, rounding):
    fmt = FORMATS[name]
    for dtype in DTYPES:
        x = torch.tensor([[1.0, -0.25, math.inf, -math.inf]], dtype=dtype)
        *_, up, down = lp.quantize(x, fmt, rounding, seed=0)[0].tolist()
        passes = name in LETS_INFINITY_PASS
        assert (up, down) == ((math.inf, -math.inf) if passes else (fmt.element.max, fmt.element.min))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(
    ("fmt", "scale", "low", "high"),
    [
        (lp.Int(8), 0.5, -63.5, 63.5),
        (lp.ScaledFloat(lp.FP8_E4M3), 0.5, -224, 224),
        (lp.NVFP4, (torch.tensor(2.0), torch.tensor(0.5)), -6, 6),
        (lp.Int(8, symmetric=False), (torch.tensor(0.5), torch.tensor(55.0)), -27.5, 100),
        (lp.Int(8, symmetric=False, zero_point="minimum"), (torch.tensor(0.5), torch.tensor(-3.0)), -3, 124.5),
    ],
    ids=repr,
)
def test_a_given_scale_saturates_infinities_too(fmt, scale, low, high, rounding):
    x = torch.tensor([math.inf, 1e30, -1e30, -math.inf])
    assert lp.quantize(x, fmt, rounding, seed=0, scale=scale).tolist() == [high, high, low, low]


@pytest.mark.parametrize("name", FORMATS)
def test_an_infinity_has_a_code_or_encode_says_that_it_has_none(name):
    fmt, x = FORMATS[name], torch.tensor([[1.0, -math.inf]])
    if name in LETS_INFINITY_PASS and not (name in FLOAT_CODED and fmt.element.specials == "ieee"):
        with pytest.raises(ValueError, match="no code"):
            lp.encode(x, fmt)
    else:
        codes, scales = lp.encode(x, fmt)
        assert torch.equal(lp.decode(codes, scales, fmt), lp.quantize(x, fmt))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("fp32", "tf32", "bf16", "fp16")])
def test_no_finite_number_becomes_infinite_in_a_format_that_saturates(name):
    for dtype in DTYPES:
        largest = torch.finfo(dtype).max
        if dtype == torch.float16 and (is_affine(FORMATS[name]) or name == "two scales of 5"):
            continue  # a range of whole steps, or a coarse scale, may end beyond float16
        for x in ([[largest, 1.0, -largest]], [[largest, largest / 3, 0.0]], [[1.0, largest, math.inf]]):
            for rounding in ROUNDINGS:
                rounded = lp.quantize(torch.tensor(x, dtype=dtype), FORMATS[name], rounding, seed=1)
                assert rounded[:, :2].isfinite().all(), (dtype, rounding, rounded)


@pytest.mark.parametrize("name", ["int8_affine", "affine from minimum"])
def test_an_affine_range_may_be_wider_than_the_largest_float(name):
    x = torch.tensor([-3e38, 3e38, 1e38])
    step = 6e38 / 255
    assert ((lp.quantize(x, FORMATS[name]).double() - x.double()).abs() <= step).all()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_zero_keeps_its_sign_in_float_formats_alone(rounding):
    for dtype in DTYPES:
        for name, fmt in FORMATS.items():
            for x in ([[0.0, -0.0, 1.0]], [[0.0, -0.0, 0.0]], [[-0.0, -0.0, -0.0]]):
                rounded = lp.quantize(torch.tensor(x, dtype=dtype), fmt, rounding, seed=0)
                assert rounded[0, 1] == 0
                assert rounded[0, 1].signbit() == (name in FLOAT_CODED), (name, dtype, x)
                assert not rounded[0, 0].signbit() or x[0][0].hex() == (-0.0).hex()


@pytest.mark.parametrize("name", INTEGER_CODED)
def test_integers_have_one_zero(name):
    small = torch.tensor([[-1e-9, -1e-3, -0.0, 4.0], [-1e-320, -0.0, -1e-300, -0.0]], dtype=torch.float64)
    for x in (small, small.float(), small[1:]):
        for rounding in ROUNDINGS:
            rounded = lp.quantize(x, FORMATS[name], rounding, seed=0)
            assert not (rounded.signbit() & (rounded == 0)).any()
