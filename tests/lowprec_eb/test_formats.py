"""Formats as data: fields, derived properties, qtorch's numbers, errors."""

import pickle

import pytest
import qtorch

import lowprec_eb as lp
from lowprec_eb.formats import as_format, parse_format


@pytest.mark.parametrize(
    ("fmt", "bits", "exponent", "mantissa", "scale"),
    [
        (lp.BlockFloat(8, 0), 8, 0, 7, 8),
        (lp.FixedPoint(8, 4), 8, 0, 7, 0),
        (lp.FP32, 32, 8, 23, 0),
        (lp.BF16, 16, 8, 7, 0),
        (lp.FP16, 16, 5, 10, 0),
        (lp.Float(4, 3), 8, 4, 3, 0),
    ],
)
def test_derived_bits(fmt, bits, exponent, mantissa, scale):
    assert (fmt.bits, fmt.exponent_bits, fmt.mantissa_bits, fmt.scale_bits) == (bits, exponent, mantissa, scale)


def test_float_range_is_ieee_with_infinity_and_qtorchs_when_it_saturates():
    assert lp.FP16.max == 65504
    assert lp.Float(5, 2, specials="ieee", overflow="infinity").max == 57344
    assert lp.Float(4, 3).max == 480
    assert lp.Float(5, 2).max == 114688


def test_equal_formats_are_equal_and_hash_alike():
    assert lp.BlockFloat(8, 0) == lp.BlockFloat(wl=8, dim=0)
    assert len({lp.BlockFloat(8, 0), lp.BlockFloat(8, 0), lp.BlockFloat(8, -1)}) == 2


@pytest.mark.parametrize("fmt", [lp.BlockFloat(8, 0), lp.FixedPoint(8, 4, False, True), lp.BF16, lp.Float(4, 3)])
def test_repr_and_pickle_round_trip(fmt):
    assert parse_format(repr(fmt)) == fmt
    assert pickle.loads(pickle.dumps(fmt)) == fmt


def test_qtorch_numbers_are_accepted_with_their_own_meaning():
    assert as_format(qtorch.BlockFloatingPoint(8, dim=0)) == lp.BlockFloat(8, 0)
    assert as_format(qtorch.FixedPoint(8, 4, clamp=True, symmetric=True)) == lp.FixedPoint(8, 4, True, True)
    assert as_format(qtorch.FloatingPoint(4, 3)) == lp.Float(4, 3, ties="away")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lp.BlockFloat(1), "wl must be a whole number from 2 to 16, got 1"),
        (lambda: lp.BlockFloat(8, dim=-2), "dim must be a whole number from -1 to 7"),
        (lambda: lp.BlockFloat("8"), "wl must be a whole number from 2 to 16, got '8'"),
        (lambda: lp.FixedPoint(8, -1), "fl must be a whole number from 0 to 64"),
        (lambda: lp.Float(9, 3), "exp must be a whole number from 2 to 8"),
        (lambda: lp.Float(True, 3), "exp must be a whole number"),
        (lambda: as_format("bfp8"), "not a number format: 'bfp8'"),
        (lambda: parse_format("BlockFloat(wl=8"), "not a number format"),
        (lambda: parse_format("__import__('os')"), "not a number format"),
    ],
)
def test_bad_parameters_say_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make()
