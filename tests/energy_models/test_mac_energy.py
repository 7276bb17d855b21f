"""MAC energies against published ones, and their laws."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_models.mac_energy import MacEnergy
from energy_models.number_formats import BF16, FP16, FP32, FormatSpec, NumberFormat
from energy_models.profile_files import load_profile

PROFILE_45 = load_profile("45nm").arithmetic
assert PROFILE_45 is not None
MACS = MacEnergy(PROFILE_45, "nominal")
LOW = MacEnergy(PROFILE_45, "low")
E4M3 = FormatSpec("float", 8, 4, 3)
E5M2 = FormatSpec("float", 8, 5, 2)


def integer(bits: int) -> FormatSpec:
    return FormatSpec("integer", bits, 0, bits - 1)


def mx(element: FormatSpec) -> FormatSpec:
    return replace(element, kind="mx", scale_bits=8, block_size=32)


# pJ at 45 nm. QTools: its multiplier and adder formulas with 2^8 products; BitFusion: synthesis of a fixed-width PE.
PUBLISHED = [(2, 0.0516, 0.0575), (4, 0.1021, 0.1202), (8, 0.2750, 0.2977), (16, 0.9083, 0.9474)]


@pytest.mark.parametrize(("bits", "qtools", "bitfusion"), PUBLISHED)
def test_integer_macs_are_within_a_fifth_of_two_published_ones(bits: int, qtools: float, bitfusion: float) -> None:
    pj = MACS.mac_pj(integer(bits), integer(bits), FP32, 256)
    assert pj == pytest.approx(qtools, rel=0.2)
    assert pj == pytest.approx(bitfusion, rel=0.2)


@pytest.mark.parametrize(("bits", "factor"), [(4, 1.5), (2, 3.0)])
def test_the_bits_product_rule_overstates_what_few_bits_save(bits: int, factor: float) -> None:
    by_parts, plain = (
        MACS.mac_pj(integer(bits), integer(bits), FP32),
        MACS.bits_product_pj(integer(bits), integer(bits)),
    )
    assert by_parts / plain == pytest.approx(factor, rel=0.1)


def test_published_points_are_met() -> None:
    assert MACS.mac_pj(FP32, FP32, FP32) == pytest.approx(3.7 + 0.9)
    assert MACS.mac_pj(FP16, FP16, FP16) == pytest.approx(1.1 + 0.4)


def test_a_bfloat16_multiplier_is_a_smaller_one_than_float16s() -> None:
    # Jouppi et al. 2021, table 2, 7 nm: 0.21 pJ against 0.34 pJ (secondary source).
    ratio = (MACS.mac_pj(BF16, BF16, FP32) - 0.9) / 1.1
    assert ratio == pytest.approx(0.21 / 0.34, rel=0.1)


def test_the_accumulator_has_its_own_price() -> None:
    assert MACS.mac_pj(E4M3, E4M3, FP32) - MACS.mac_pj(E4M3, E4M3, FP16) == pytest.approx(0.9 - 0.4)


def test_a_longer_exact_sum_is_wider() -> None:
    assert MACS.mac_pj(integer(8), integer(8), FP32, 4096) > MACS.mac_pj(integer(8), integer(8), FP32, 16)


def test_a_shared_scale_lets_products_add_as_integers() -> None:
    assert MACS.mac_pj(mx(E4M3), mx(E4M3), FP32, 32) < MACS.mac_pj(E4M3, E4M3, FP32)
    assert MACS.mac_pj(mx(integer(8)), mx(integer(8)), FP32, 32) == MACS.mac_pj(integer(8), integer(8), FP32, 32)


def test_the_low_end_aligns_plain_floats_too() -> None:
    assert LOW.mac_pj(E4M3, E4M3, FP32) < MACS.mac_pj(E4M3, E4M3, FP32)
    assert LOW.mac_pj(FP32, FP32, FP32) == MACS.mac_pj(FP32, FP32, FP32)  # too wide to align


def test_an_alignment_adds_the_scales_of_mx() -> None:
    plain, scaled = MACS.alignment_pj(integer(8), integer(8), FP32), MACS.alignment_pj(mx(E4M3), mx(E4M3), FP32)
    assert plain == pytest.approx(0.1 + 0.9)
    assert scaled == pytest.approx(0.03 + 0.1 + 0.9)


FLOATS = st.builds(lambda e, m: FormatSpec("float", 1 + e + m, e, m), st.integers(2, 8), st.integers(1, 23))
FORMATS = st.one_of(FLOATS, st.builds(integer, st.integers(2, 32)))


@given(FORMATS, FORMATS, st.integers(1, 4096))
def test_symmetric_positive_and_ordered(a: NumberFormat, b: NumberFormat, length: int) -> None:
    pj = MACS.mac_pj(a, b, FP32, length)
    assert pj > 0 and pj == MACS.mac_pj(b, a, FP32, length)
    assert LOW.mac_pj(a, b, FP32, length) <= pj


@given(st.integers(2, 8), st.integers(1, 22))
def test_a_wider_significand_never_costs_less(exponent: int, mantissa: int) -> None:
    one, more = (FormatSpec("float", 1 + exponent + m, exponent, m) for m in (mantissa, mantissa + 1))
    assert MACS.mac_pj(one, one, FP32) <= MACS.mac_pj(more, more, FP32)
