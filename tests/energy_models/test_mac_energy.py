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
PROFILE_7 = load_profile("7nm").arithmetic
assert PROFILE_7 is not None
MACS_7 = MacEnergy(PROFILE_7, "nominal")
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
    ratio = (MACS.mac_pj(BF16, BF16, BF16) - MACS.float_add.at(8)) / 1.1
    assert ratio == pytest.approx(0.21 / 0.34, rel=0.1)


def test_bfloat16_at_7_nm_by_parts() -> None:
    """No bfloat16 number is in the profile: both follow from the others. Jouppi et al. 2021, table 2."""
    add = MACS_7.float_add.at(8)
    assert add == pytest.approx(0.11, rel=0.05)
    assert MACS_7.mac_pj(BF16, BF16, BF16) - add == pytest.approx(0.21, rel=0.05)


def over_int8(macs: MacEnergy, fmt: NumberFormat, accumulator: NumberFormat) -> float:
    return macs.mac_pj(fmt, fmt, accumulator, 4096) / macs.mac_pj(integer(8), integer(8), FP32, 4096)


@pytest.mark.parametrize("macs", [MACS, MACS_7], ids=["45nm", "7nm"])
def test_fp8_against_int8_with_a_float_accumulator(macs: MacEnergy) -> None:
    """van Baalen et al. 2023, arXiv 2303.17951: 50 to 180 % more by the accumulator, 183 % with float32."""
    assert over_int8(macs, E4M3, FP32) == pytest.approx(2.83, rel=0.1)
    assert 1.5 < over_int8(macs, E4M3, FP16) < 2.8


def test_fp8_against_int8_with_an_exact_accumulator() -> None:
    """Published: 53 % more gates (E4M3, the same work). The low end, which aligns, says 95 %: a miss upwards."""
    assert over_int8(LOW, E4M3, FP32) == pytest.approx(1.95, abs=0.01)
    assert 1.2 < over_int8(LOW, E4M3, FP32) / 1.53 < 1.3


def test_int4_against_int8() -> None:
    """Keller et al. 2022, 5 nm: 39.1 and 91.1 TOPS/W of a whole chip, 2.33 times; 7 nm alone a third too much."""
    ratios = [m.mac_pj(integer(8), integer(8), FP32) / m.mac_pj(integer(4), integer(4), FP32) for m in (MACS, MACS_7)]
    assert ratios == pytest.approx([2.63, 3.10], abs=0.01)
    assert ratios[0] == pytest.approx(2.33, rel=0.15)


def test_shared_exponents_are_cheaper_than_fp8_beyond_what_is_published() -> None:
    """Darvish Rouhani et al. 2023: MX9 is close to FP8 in area times memory, MX6 takes 1/2, MX4 1/4: elements of 8, 5
    and 3 bits without exponents here. The order holds; the arithmetic alone saves more than area times memory."""
    fp8 = LOW.mac_pj(E4M3, E4M3, FP32)
    found = [LOW.mac_pj(mx(integer(bits)), mx(integer(bits)), FP32, 16) / fp8 for bits in (8, 5, 3)]
    memory = (9 / 8, 6 / 8, 4 / 8)
    products = [mac * bits for mac, bits in zip(found, memory, strict=True)]
    assert products == pytest.approx([0.54, 0.18, 0.06], abs=0.02)  # against 1, 0.5 and 0.25


def test_the_accumulator_has_its_own_price() -> None:
    """A product of 8 bits of significand meets an accumulator of 24 or 11: adders of their geometric means."""
    wide, narrow = (MACS.float_add.at((8 * width) ** 0.5) for width in (24, 11))
    assert MACS.mac_pj(E4M3, E4M3, FP32) - MACS.mac_pj(E4M3, E4M3, FP16) == pytest.approx(wide - narrow)
    assert narrow < 0.4 < wide < 0.9


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
