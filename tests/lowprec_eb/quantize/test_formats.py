"""Formats as data: fields, values derived from them, names, qtorch's numbers, stored bits, errors."""

import copy
import dataclasses
import math
import pickle
import re

import pytest
import qtorch
import torch

import lowprec_eb as lp
from lowprec_eb.formats import NAMED, as_format, at_bits, format_name, parse_format

EVERY_KIND = [
    *NAMED.values(),
    lp.Float(3, 4, specials="ieee", overflow="nan", ties="away", subnormals=False, nan="error"),
    lp.FixedPoint(8, 4, clamp=False),
    lp.FixedPoint(12, 0, symmetric=True),
    lp.BlockFloat(6),
    lp.BlockFloat(6, dim=(0, 2)),
    lp.BlockFloat(6, block=16, block_axis=0),
    lp.Int(5, axis=-1),
    lp.Int(5, axis=(0, 1)),
    lp.Int(5, block=8),
    lp.Int(8, symmetric=False, zero_point="minimum"),
    lp.MX(lp.Float(2, 1, nan="keep"), block=16, block_axis=1),
    lp.ScaledFloat(lp.FP8_E5M2, scale=lp.BF16, axis=0),
]


# ---- values of the standards -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmt", "bits", "bias", "largest", "smallest_normal", "smallest"),
    [
        # IEEE 754-2019, table 3.5; bfloat16 and TF32 have float32's exponent.
        (lp.FP32, 32, 127, (2 - 2**-23) * 2.0**127, 2.0**-126, 2.0**-149),
        (lp.FP16, 16, 15, 65504, 2.0**-14, 2.0**-24),
        (lp.BF16, 16, 127, (2 - 2**-7) * 2.0**127, 2.0**-126, 2.0**-133),
        (lp.TF32, 19, 127, (2 - 2**-10) * 2.0**127, 2.0**-126, 2.0**-136),
        # OCP 8-bit Floating Point Specification 1.0, tables 1 and 2.
        (lp.FP8_E4M3, 8, 7, 448, 2.0**-6, 2.0**-9),
        (lp.FP8_E5M2, 8, 15, 57344, 2.0**-14, 2.0**-16),
        # OCP Microscaling Formats 1.0, tables 3 to 5.
        (lp.FP6_E2M3, 6, 1, 7.5, 1.0, 0.125),
        (lp.FP6_E3M2, 6, 3, 28, 0.25, 0.0625),
        (lp.FP4_E2M1, 4, 1, 6, 1.0, 0.5),
        # qtorch: every code is a number, so one more power of two than IEEE has.
        (lp.Float(4, 3), 8, 7, 480, 2.0**-6, 2.0**-9),
        (lp.Float(5, 2), 8, 15, 114688, 2.0**-14, 2.0**-16),
        (lp.Float(5, 2, subnormals=False), 8, 15, 114688, 2.0**-14, 2.0**-14),
    ],
    ids=repr,
)
def test_floats_have_the_values_of_the_standards(fmt, bits, bias, largest, smallest_normal, smallest):
    assert (fmt.bits, fmt.bias) == (bits, bias)
    assert (fmt.max, fmt.min) == (largest, -largest)
    assert (2.0**fmt.min_exponent, fmt.smallest) == (smallest_normal, smallest)
    assert 2.0**fmt.max_exponent <= fmt.max < 2.0 ** (fmt.max_exponent + 1)


@pytest.mark.parametrize(
    ("fmt", "element", "block", "largest_element", "bits_each"),
    [
        # OCP Microscaling Formats 1.0, table 1: blocks of 32, one 8-bit scale each.
        (lp.MXFP8_E4M3, lp.FP8_E4M3, 32, 448, 8.25),
        (lp.MXFP8_E5M2, lp.FP8_E5M2, 32, 57344, 8.25),
        (lp.MXFP6_E2M3, lp.FP6_E2M3, 32, 7.5, 6.25),
        (lp.MXFP6_E3M2, lp.FP6_E3M2, 32, 28, 6.25),
        (lp.MXFP4, lp.FP4_E2M1, 32, 6, 4.25),
        (lp.MXINT8, lp.FixedPoint(8, 6, symmetric=True), 32, 127 / 64, 8.25),
        # NVIDIA: blocks of 16, an E4M3 scale each, and a float32 scale of the tensor.
        (lp.NVFP4, lp.FP4_E2M1, 16, 6, 4.5 + 32 / 1024),
    ],
    ids=repr,
)
def test_microscaling_formats_have_the_blocks_of_the_standards(fmt, element, block, largest_element, bits_each):
    assert (fmt.element, fmt.block_size, fmt.element.max) == (element, block, largest_element)
    assert fmt.storage_bits((1024,)) / 1024 == bits_each


def test_e8m0_scales_reach_from_2_to_the_minus_127_to_2_to_the_127():
    assert lp.MXFP4.scale_limits == (2.0**-127, 2.0**127)
    assert lp.MXFP4.max == 6 * 2.0**127 and lp.MXFP4.smallest == 0.5 * 2.0**-127
    assert lp.MXFP4.scale_bits == 8


def test_ranges_of_integers():
    fixed = lp.FixedPoint(8, 4)  # sign, 3 integer bits, 4 fractional bits
    assert (fixed.min, fixed.max, fixed.step, fixed.smallest) == (-8.0, 7.9375, 0.0625, 0.0625)
    assert lp.FixedPoint(8, 4, symmetric=True).min == -7.9375
    assert (lp.Int(8).levels, lp.Int(8, symmetric=False).levels) == (127, 255)
    assert lp.BlockFloat(8).max_code == 127


def test_dynamic_range_within_a_block_and_overall():
    assert lp.Int(8).block_range_db == pytest.approx(20 * math.log10(127))
    assert lp.FP4_E2M1.block_range_db == lp.FP4_E2M1.dynamic_range_db == pytest.approx(20 * math.log10(12))
    assert lp.MXFP4.block_range_db == lp.FP4_E2M1.block_range_db
    assert lp.MXFP4.dynamic_range_db == pytest.approx(20 * (math.log10(12) + 254 * math.log10(2)))


# ---- equality and text -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", EVERY_KIND, ids=repr)
def test_copies_pickles_and_text_give_an_equal_format(fmt):
    copies = [copy.copy(fmt), copy.deepcopy(fmt), pickle.loads(pickle.dumps(fmt)), parse_format(repr(fmt))]
    copies += [dataclasses.replace(fmt), as_format(fmt), as_format(format_name(fmt))]
    for other in copies:
        assert other == fmt and hash(other) == hash(fmt) and repr(other) == repr(fmt)


def test_formats_that_differ_in_a_field_differ():
    assert len(set(EVERY_KIND)) == len(EVERY_KIND)
    assert lp.BlockFloat(8) != lp.FixedPoint(8, 0)
    assert lp.Float(4, 3) != lp.FP8_E4M3


def test_a_format_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        lp.FP8_E4M3.man = 2


def test_repr_is_the_shortest_constructor_call():
    assert repr(lp.BlockFloat(8, dim=0)) == "BlockFloat(wl=8, dim=0)"
    assert repr(lp.MXFP4) == "MX(element=Float(exp=2, man=1, nan='error'))"


@pytest.mark.parametrize("name", NAMED)
def test_names(name):
    assert as_format(name) is NAMED[name]
    assert format_name(NAMED[name]) == name
    assert torch.equal(lp.quantize(torch.ones(1, 2), name), lp.quantize(torch.ones(1, 2), NAMED[name]))


def test_text_may_use_positions_names_and_spaces():
    assert parse_format(" BlockFloat( 8,0 ) ") == lp.BlockFloat(8, 0)
    assert parse_format("MX(FP4_E2M1, block=16)") == lp.MX(lp.FP4_E2M1, block=16)
    assert parse_format("BlockFloat(6, dim=(0, 1))") == lp.BlockFloat(6, dim=(0, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fp8_e4m4", "did you mean 'fp8_e4m3'?"),
        ("zzz", "names are fp32, tf32, "),
        ("", "not a number format: ''"),
        ("BlockFloat(wl=8", "write it as BlockFloat(wl=8, dim=0)"),
        ("BlockFloat(wide=8)", "write it as"),
        ("BlockFloat(8, *[1])", "write it as"),
        ("BlockFloat(**{'wl': 8})", "write it as"),
        ("__import__('os')", "write it as"),
        ("().__class__()", "write it as"),
        ("BlockFloat(1 + 7)", "write it as"),
        ("Blockfloat(8)", "did you mean 'BlockFloat(...)'?"),
        ("BlockFloat(99)", "wl must be a whole number from 2 to 16, got 99"),
    ],
)
def test_text_that_is_no_format_says_what_to_write(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_format(text)


@pytest.mark.parametrize("thing", [8, None, 1.5, torch.float16, lp.BlockFloat, [8, 4]])
def test_things_that_are_no_format(thing):
    with pytest.raises(ValueError, match=r"not a number format: .*; use lp\.BlockFloat"):
        as_format(thing)


# ---- qtorch ------------------------------------------------------------------------------------------------------


def test_qtorch_numbers_keep_qtorchs_meaning():
    assert as_format(qtorch.BlockFloatingPoint(8, dim=0)) == lp.BlockFloat(8, 0)
    assert as_format(qtorch.BlockFloatingPoint(8)) == lp.BlockFloat(8, -1)
    assert as_format(qtorch.FixedPoint(8, 4)) == lp.FixedPoint(8, 4)
    assert as_format(qtorch.FixedPoint(8, 4, clamp=False, symmetric=True)) == lp.FixedPoint(8, 4, False, True)
    assert as_format(qtorch.FloatingPoint(4, 3)) == lp.Float(4, 3, ties="away")


def test_qtorch_numbers_are_taken_wherever_a_format_is():
    x, number, fmt = torch.randn(3, 4), qtorch.BlockFloatingPoint(8, dim=0), lp.BlockFloat(8, 0)
    assert torch.equal(lp.quantize(x, number), lp.quantize(x, fmt))
    codes, scales = lp.encode(x, number)
    assert torch.equal(lp.decode(codes, scales, number), lp.quantize(x, fmt))
    assert lp.Quantizer(number, gradient_format=number).gradient_format == fmt


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (qtorch.FixedPoint(32, 16), "wl must be a whole number from 2 to 24, got 32"),
        (qtorch.FloatingPoint(1, 2), "exp must be a whole number from 2 to 8, got 1"),
        (qtorch.BlockFloatingPoint(40), "wl must be a whole number from 2 to 16, got 40"),
    ],
)
def test_qtorch_numbers_beyond_what_float32_holds_are_refused(number, message):
    with pytest.raises(ValueError, match=message):
        as_format(number)


# ---- stored bits -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (1,), (33,), (3, 37), (2, 3, 16), (0, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("fmt", EVERY_KIND, ids=repr)
def test_storage_counts_every_code_and_every_scale_that_encode_returns(fmt, shape):
    try:
        codes, scales = lp.encode(torch.zeros(shape), fmt)
    except ValueError:
        with pytest.raises(ValueError, match="need a tensor with more than"):
            fmt.storage_bits(shape)
        return
    parts = () if scales is None else scales if isinstance(scales, tuple) else (scales,)
    stored = codes.numel() * fmt.bits
    if fmt.has_zero_point:
        stored += parts[0].numel() * 32 + parts[1].numel() * (fmt.bits if fmt.zero_point == "integer" else 32)
    elif parts:
        stored += parts[0].numel() * fmt.scale_bits + sum(32 for _ in parts[1:])
    assert fmt.storage_bits(shape) == stored
    assert fmt.scale_count(shape) == (parts[0].numel() if parts else 0)
    if parts and shape:
        assert tuple(parts[0].shape) == fmt.blocks.scale_shape(shape)


@pytest.mark.parametrize(
    ("fmt", "scale_shape", "bits"),
    [
        (lp.FP8_E4M3, None, 6 * 40 * 8),
        (lp.BlockFloat(8, dim=0), (6, 1), 6 * 40 * 8 + 6 * 8),
        (lp.BlockFloat(8, dim=(0, 1)), (6, 40), 6 * 40 * (8 + 8)),
        (lp.BlockFloat(8), (1, 1), 6 * 40 * 8 + 8),
        (lp.Int(4, block=32), (6, 2), 6 * 40 * 4 + 12 * 32),  # the last run of each row has 8 elements
        (lp.Int(4, block=4, block_axis=0), (2, 40), 6 * 40 * 4 + 80 * 32),
        (lp.Int(8, symmetric=False), (1, 1), 6 * 40 * 8 + 32 + 8),
        (lp.NVFP4, (6, 3), 6 * 40 * 4 + 18 * 8 + 32),
    ],
    ids=repr,
)
def test_which_elements_share_a_scale(fmt, scale_shape, bits):
    assert fmt.storage_bits((6, 40)) == bits
    assert scale_shape is None if fmt.blocks is None else fmt.blocks.scale_shape((6, 40)) == scale_shape


@pytest.mark.parametrize("fmt", EVERY_KIND, ids=repr)
def test_bits_and_ranges_fit_together(fmt):
    assert fmt.bits >= fmt.exponent_bits + fmt.mantissa_bits >= 1
    assert fmt.block_range_db <= fmt.dynamic_range_db + 1e-9
    assert (fmt.scale_bits > 0) == (fmt.blocks is not None)
    assert fmt.block_dim is None or fmt.block_size is None


def test_another_number_of_bits():
    assert at_bits(lp.Int(8, axis=0), 4) == lp.Int(4, axis=0)
    assert at_bits(lp.BlockFloat(8, dim=0), 4) == lp.BlockFloat(4, dim=0)
    assert at_bits(lp.FixedPoint(8, 4), 6) == lp.FixedPoint(6, 2)  # the same range, coarser steps
    with pytest.raises(ValueError, match="has no single number of bits"):
        at_bits(lp.FP8_E4M3, 6)


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lp.FixedPoint(1, 0), "FixedPoint: wl must be a whole number from 2 to 24, got 1"),
        (lambda: lp.FixedPoint(25, 0), "FixedPoint: wl must be a whole number from 2 to 24, got 25"),
        (lambda: lp.FixedPoint(8, -1), "FixedPoint: fl must be a whole number from 0 to 64, got -1"),
        (lambda: lp.FixedPoint(8, 65), "FixedPoint: fl must be a whole number from 0 to 64, got 65"),
        (lambda: lp.FixedPoint(8, 4, clamp=1), "FixedPoint: clamp must be one of True, False, got 1"),
        (lambda: lp.FixedPoint(8, 4, symmetric="no"), "FixedPoint: symmetric must be one of True, False, got 'no'"),
        (lambda: lp.Float(1, 3), "Float: exp must be a whole number from 2 to 8, got 1"),
        (lambda: lp.Float(9, 3), "Float: exp must be a whole number from 2 to 8, got 9"),
        (lambda: lp.Float(True, 3), "Float: exp must be a whole number from 2 to 8, got True"),
        (lambda: lp.Float(4, 0), "Float: man must be a whole number from 1 to 23, got 0"),
        (lambda: lp.Float(4, 24), "Float: man must be a whole number from 1 to 23, got 24"),
        (lambda: lp.Float(4, 3.0), "Float: man must be a whole number from 1 to 23, got 3.0"),
        (lambda: lp.Float(4, 3, "inf"), "Float: specials must be one of 'none', 'nan', 'ieee', got 'inf'"),
        (lambda: lp.Float(4, 3, overflow="wrap"), "overflow must be one of 'saturate', 'infinity', 'nan', got 'wrap'"),
        (lambda: lp.Float(4, 3, ties="odd"), "Float: ties must be one of 'even', 'away', got 'odd'"),
        (lambda: lp.Float(4, 3, subnormals=0), "Float: subnormals must be one of True, False, got 0"),
        (lambda: lp.Float(4, 3, nan="zero"), "Float: nan must be one of 'keep', 'error', got 'zero'"),
        (lambda: lp.Float(4, 3, overflow="infinity"), "Float: overflow='infinity' needs specials='ieee'"),
        (lambda: lp.Float(4, 3, "nan", "infinity"), "Float: overflow='infinity' needs specials='ieee'"),
        (lambda: lp.Float(4, 3, overflow="nan"), "Float: overflow='nan' needs specials='nan' or 'ieee'"),
        (lambda: lp.BlockFloat(1), "BlockFloat: wl must be a whole number from 2 to 16, got 1"),
        (lambda: lp.BlockFloat("8"), "BlockFloat: wl must be a whole number from 2 to 16, got '8'"),
        (lambda: lp.BlockFloat(8, dim=-2), "BlockFloat: dim must be a whole number from -1 to 7, got -2"),
        (lambda: lp.BlockFloat(8, dim=8), "BlockFloat: dim must be a whole number from -1 to 7, got 8"),
        (lambda: lp.BlockFloat(8, dim=(0, -1)), "BlockFloat: dim must be a whole number from 0 to 7, got -1"),
        (lambda: lp.BlockFloat(8, dim=()), "BlockFloat: dim must name one or more different dimensions, got ()"),
        (lambda: lp.BlockFloat(8, dim=(0, 0)), "dim must name one or more different dimensions, got (0, 0)"),
        (lambda: lp.BlockFloat(8, block=0), "BlockFloat: block must be a whole number from 1 to 1073741824, got 0"),
        (lambda: lp.BlockFloat(8, block=4, block_axis=9), "block_axis must be a whole number from -8 to 7, got 9"),
        (lambda: lp.BlockFloat(8, dim=0, block=4), "BlockFloat: give dim or block, not both"),
        (lambda: lp.Int(1), "Int: bits must be a whole number from 2 to 16, got 1"),
        (lambda: lp.Int(17), "Int: bits must be a whole number from 2 to 16, got 17"),
        (lambda: lp.Int(8, symmetric=None), "Int: symmetric must be one of True, False, got None"),
        (lambda: lp.Int(8, axis=8), "Int: axis must be a whole number from -8 to 7, got 8"),
        (lambda: lp.Int(8, axis=(1, 1)), "Int: axis must name one or more different dimensions, got (1, 1)"),
        (lambda: lp.Int(8, axis=[0]), "Int: axis must be a whole number from -8 to 7, got [0]"),
        (lambda: lp.Int(8, axis=0, block=4), "Int: give axis or block, not both"),
        (lambda: lp.Int(8, block=-3), "Int: block must be a whole number from 1 to 1073741824, got -3"),
        (lambda: lp.Int(8, symmetric=False, zero_point="max"), "zero_point must be one of 'integer', 'minimum'"),
        (lambda: lp.Int(8, zero_point="minimum"), "Int: zero_point='minimum' needs symmetric=False"),
        (lambda: lp.MX("fp4_e2m1"), "MX: element must be a Float or a FixedPoint format, got 'fp4_e2m1'"),
        (lambda: lp.MX(lp.Int(8)), "MX: element must be a Float or a FixedPoint format, got Int(bits=8)"),
        (lambda: lp.MX(lp.BF16), "MX: element must saturate, got Float(exp=8, man=7, "),
        (lambda: lp.MX(lp.FixedPoint(8, 6, clamp=False)), "MX: element must saturate"),
        (lambda: lp.MX(lp.FP4_E2M1, block=None), "MX: block must be a whole number from 1"),
        (lambda: lp.MX(lp.FP4_E2M1, block=0), "MX: block must be a whole number from 1 to 1073741824, got 0"),
        (lambda: lp.ScaledFloat(lp.FixedPoint(8, 6)), "ScaledFloat: element must be a Float format, got FixedPoint"),
        (lambda: lp.ScaledFloat(lp.BF16), "ScaledFloat: element must saturate"),
        (lambda: lp.ScaledFloat(lp.FP4_E2M1, scale=8), "ScaledFloat: scale must be a Float format, got 8"),
        (
            lambda: lp.ScaledFloat(lp.Float(6, 3)),
            "element has 6 exponent and 3 mantissa bits; at most 5 and 15",
        ),
        (lambda: lp.MX(lp.Float(8, 7)), "MX: element has 8 exponent and 7 mantissa bits"),
        (lambda: lp.ScaledFloat(lp.FP4_E2M1, scale=lp.BF16, tensor_scale=True), "need no tensor_scale"),
        (lambda: lp.ScaledFloat(lp.FP4_E2M1, axis=0, block=4), "ScaledFloat: give axis or block, not both"),
        (lambda: lp.ScaledFloat(lp.FP4_E2M1, tensor_scale=True), "need no tensor_scale"),
        (lambda: lp.MX(lp.FixedPoint(8, 6)), "MX: element must be symmetric"),
        (lambda: lp.Int(8, block_axis=0), "Int: block_axis needs block"),
    ],
)
def test_bad_parameters_name_the_field_and_what_is_valid(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("fmt", "shape", "message"),
    [
        (lp.BlockFloat(8, dim=2), (3, 4), "dimension 2 need a tensor with more than 2 dimensions, got shape (3, 4)"),
        (lp.Int(8, axis=-3), (3, 4), "dimension -3 need a tensor with more than 2 dimensions, got shape (3, 4)"),
        (lp.MX(lp.FP4_E2M1, block_axis=1), (7,), "dimension 1 need a tensor with more than 1 dimensions"),
    ],
)
def test_a_tensor_without_the_formats_dimension(fmt, shape, message):
    for use in (lp.quantize, lp.encode):
        with pytest.raises(ValueError, match=re.escape(message)):
            use(torch.ones(shape), fmt)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lp.BlockFloat(8, dim=(0,)), lp.BlockFloat(8, dim=0)),
        (lp.Int(8, axis=(1, 0)), lp.Int(8, axis=(0, 1))),
        (lp.FixedPoint(8, 4, False, True), lp.FixedPoint(8, 4, False)),
        (lp.ScaledFloat(lp.FP8_E4M3, scale=lp.FP32), lp.ScaledFloat(lp.FP8_E4M3)),
    ],
)
def test_what_means_the_same_has_one_spelling(one, other):
    assert one == other and hash(one) == hash(other) and repr(one) == repr(other)


@pytest.mark.parametrize("text", ["FP8_E4M3", " fp8_e4m3 ", "lp.Float(4, 3, specials='nan')"])
def test_names_are_read_kindly(text):
    assert parse_format(text) == lp.FP8_E4M3
