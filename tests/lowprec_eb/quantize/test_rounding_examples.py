"""How each format rounds, one small example at a time. Read it from top to bottom.

Every example is a list of values and what they become. ``quantized`` makes a float32 tensor of the list.
"""

import math

import pytest
import torch

import lowprec_eb as lp

inf, nan = math.inf, math.nan


def quantized(values, fmt, rounding="nearest", **options):
    return lp.quantize(torch.tensor(values), fmt, rounding, **options).tolist()


# ---- the roundings -----------------------------------------------------------------------------------------------

INTEGERS = lp.FixedPoint(8, 0)  # the whole numbers from -128 to 127: the simplest grid


def test_nearest_takes_ties_to_the_even_neighbour():
    assert quantized([0.4, 0.6, 0.5, 1.5, 2.5, -0.5, -1.5], INTEGERS) == [0, 1, 0, 2, 2, 0, -2]


def test_nearest_away_takes_ties_away_from_zero():
    assert quantized([0.4, 0.6, 0.5, 1.5, 2.5, -0.5, -1.5], INTEGERS, "nearest_away") == [0, 1, 1, 2, 3, -1, -2]


def test_toward_zero_drops_the_fraction():
    assert quantized([0.4, 0.6, 0.999, 2.5, -0.6, -1.5], INTEGERS, "toward_zero") == [0, 0, 0, 2, 0, -1]


def test_stochastic_picks_a_neighbour_with_the_odds_of_the_distance():
    # 0.25 lies a quarter of the way from 0 to 1: one in four becomes 1. On average nothing is lost.
    x = torch.full((10_000,), 0.25)
    rounded = lp.quantize(x, INTEGERS, "stochastic", seed=0)
    assert rounded.unique().tolist() == [0, 1]
    assert rounded.mean().item() == pytest.approx(0.25, abs=0.02)


def test_stochastic_leaves_the_formats_own_values_alone():
    x = torch.arange(-128.0, 128.0)
    assert all(torch.equal(lp.quantize(x, INTEGERS, "stochastic", seed=seed), x) for seed in range(20))


def test_a_seed_decides_every_random_choice():
    halves = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    assert quantized(halves, INTEGERS, "stochastic", seed=1) == [0, 1, 3, 3, 4, 5]
    assert quantized(halves, INTEGERS, "stochastic", seed=2) != [0, 1, 3, 3, 4, 5]
    # The choice belongs to the seed and the element's index: the last four alone, which begin at index 2.
    assert quantized(halves[2:], INTEGERS, "stochastic", seed=1, offset=2) == [3, 3, 4, 5]


# ---- fixed point -------------------------------------------------------------------------------------------------


def test_fixed_point_has_even_steps():
    # 8 bits, 4 of them after the point: steps of 1/16.
    assert quantized([0.06, 0.1, 1 / 32, 3 / 32], lp.FixedPoint(8, 4)) == [1 / 16, 2 / 16, 0, 2 / 16]


def test_fixed_point_clamps():
    x = [100.0, -100.0, 7.97, inf, -inf]
    assert quantized(x, lp.FixedPoint(8, 4)) == [7.9375, -8, 7.9375, 7.9375, -8]
    # The lowest code has no positive partner; a symmetric format does without it.
    assert quantized(x, lp.FixedPoint(8, 4, symmetric=True)) == [7.9375, -7.9375, 7.9375, 7.9375, -7.9375]


def test_fixed_point_without_clamping_only_rounds():
    assert quantized([100.03, -100.0, 7.97, inf], lp.FixedPoint(8, 4, clamp=False)) == [100, -100, 8, inf]


# ---- floating point ----------------------------------------------------------------------------------------------


def test_fp4_has_eight_magnitudes():
    # 2 exponent bits and 1 mantissa bit: 0, 0.5, 1, 1.5, 2, 3, 4, 6. The step doubles at each power of two.
    x = [0.2, 0.6, 1.2, 1.3, 2.4, 2.6, 3.4, 3.6, 4.9, 5.1]
    assert quantized(x, lp.FP4_E2M1) == [0, 0.5, 1, 1.5, 2, 3, 3, 4, 4, 6]


def test_float_ties_go_to_the_even_mantissa():
    # Between 2 (mantissa 0) and 3 (mantissa 1), between 3 and 4 (mantissa 0 again), between 4 and 6.
    assert quantized([2.5, 3.5, 5.0], lp.FP4_E2M1) == [2, 4, 4]
    assert quantized([0.25, 0.75], lp.FP4_E2M1) == [0, 1]
    # qtorch's floats take ties away from zero, and so does a format that says so.
    assert quantized([2.5, 3.5, 5.0], lp.Float(2, 1, ties="away")) == [3, 4, 6]


def test_floats_saturate_or_overflow_as_their_format_says():
    assert quantized([449.0, 1e6, -inf], lp.FP8_E4M3) == [448, 448, -448]  # OCP, saturating
    assert quantized([1e6, -inf], lp.FP8_E5M2) == [57344, -57344]
    assert quantized([65519.0, 65520.0, -inf], lp.FP16) == [65504, inf, -inf]  # IEEE: half a step beyond is infinity
    assert quantized([65520.0, inf], lp.FP16, "toward_zero") == [65504, inf]  # a finite number stays finite
    # E4M3 without saturation has no infinity to give: NaN, as ml_dtypes and torch cast.
    nearly, beyond = quantized([464.0, 465.0], lp.Float(4, 3, specials="nan", overflow="nan"))
    assert nearly == 448 and math.isnan(beyond)


def test_numbers_below_the_smallest_normal_one_have_even_steps():
    # E4M3: normal from 2**-6; below it, steps of 2**-9 down to zero.
    assert quantized([2.0**-6, 2.6 * 2**-9, 0.6 * 2**-9, 0.5 * 2**-9], lp.FP8_E4M3) == [2**-6, 3 * 2**-9, 2**-9, 0]


def test_a_format_without_subnormals_has_a_gap_around_zero():
    flushing = lp.Float(4, 3, subnormals=False)
    assert quantized([2.0**-6, 0.6 * 2**-6, 0.5 * 2**-6, 0.4 * 2**-6], flushing) == [2**-6, 2**-6, 0, 0]


def test_floats_have_a_negative_zero_and_integers_do_not():
    assert math.copysign(1, quantized([-0.001], lp.FP4_E2M1)[0]) == -1
    assert math.copysign(1, quantized([-0.001], INTEGERS)[0]) == 1


def test_nan_passes_unless_the_format_refuses_it():
    assert math.isnan(quantized([nan], lp.FP8_E4M3)[0])
    assert math.isnan(quantized([nan], lp.BlockFloat(8))[0])
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        quantized([nan, 1.0], lp.FP4_E2M1)


def test_codes_of_floats_are_bit_patterns():
    codes, scales = lp.encode(torch.tensor([1.0, -2.0, 448.0, 2.0**-9]), lp.FP8_E4M3)
    assert [f"{code:08b}" for code in codes.tolist()] == ["00111000", "11000000", "01111110", "00000001"]
    assert scales is None


# ---- block floating point ----------------------------------------------------------------------------------------


def test_block_float_shares_the_exponent_of_the_largest_value():
    x = [[1.0, 0.5, 0.013, -0.003], [100.0, 1.0, 0.4, 0.0]]
    # Row 0: the largest is 1 = 2**0, so the step is 2**(0 - 6) = 1/64.
    # Row 1: the largest, 100, lies in [64, 128), so the step is 2**(6 - 6) = 1.
    assert quantized(x, lp.BlockFloat(8, dim=0)) == [[1, 0.5, 1 / 64, 0], [100, 1, 0, 0]]
    # One exponent for the whole tensor: every step is 1.
    assert quantized(x, lp.BlockFloat(8)) == [[1, 0, 0, 0], [100, 1, 0, 0]]
    # One for every two neighbours in a row. The right half of row 0 gets fine steps, 2**(-7 - 6).
    assert quantized(x, lp.BlockFloat(8, block=2)) == [[1, 0.5, 106 / 8192, -25 / 8192], [100, 1, 0.3984375, 0]]


def test_block_float_may_clamp_its_largest_value():
    # 1.999 would round to 2 = 128 steps of 1/64; the largest integer is 127.
    assert quantized([1.999, -1.999], lp.BlockFloat(8)) == [127 / 64, -127 / 64]


def test_a_damaged_value_does_not_touch_its_block():
    *others, damaged = quantized([1.0, 0.3, -0.7, inf], lp.BlockFloat(4))
    assert others == [1, 0.25, -0.75] and damaged == inf  # the exponent is that of 1, the largest finite value


def test_codes_of_block_float_times_their_steps_are_the_values():
    codes, steps = lp.encode(torch.tensor([[1.0, 0.3], [100.0, -7.0]]), lp.BlockFloat(8, dim=0))
    assert codes.tolist() == [[64, 19], [100, -7]]
    assert steps.tolist() == [[1 / 64], [1.0]]


# ---- scaled integers ---------------------------------------------------------------------------------------------


def test_int_divides_by_a_scale_that_makes_the_largest_value_the_largest_code():
    codes, scale = lp.encode(torch.tensor([127.0, 64.0, 0.4, -3.5]), lp.Int(8))
    assert codes.tolist() == [127, 64, 0, -3]  # the scale is a hair above 1: -3.5 lies closer to -3
    assert scale.item() == pytest.approx(1.0)


def test_a_found_scale_has_an_odd_significand():
    # So the scale of 127 / 127 is the float32 after 1, and a rounded tensor finds its own scale again.
    _, scale = lp.encode(torch.tensor([127.0]), lp.Int(8))
    assert scale.item() == 1 + 2**-23
    once = lp.quantize(torch.randn(100, generator=torch.Generator().manual_seed(0)), lp.Int(8))
    assert torch.equal(lp.quantize(once, lp.Int(8), "stochastic", seed=0), once)


def test_a_given_scale_is_taken_as_it_is():
    assert quantized([0.3, 0.25, 0.1, 5.0, -inf], lp.Int(4), scale=0.5) == [0.5, 0, 0, 3.5, -3.5]
    # One scale for each row.
    scales = torch.tensor([[0.5], [1.0]])
    assert quantized([[0.3, 5.0], [0.3, 5.0]], lp.Int(4, axis=0), scale=scales) == [[0.5, 3.5], [0, 5]]


def test_a_quotient_that_is_whole_but_for_the_error_of_a_division_counts_as_whole():
    # Within 2**-22 of itself. So a value on the grid stays there in every rounding, whatever its scale.
    assert quantized([4 * (1 - 2**-23), 4 * (1 - 2**-21)], lp.Int(8), "toward_zero", scale=1.0) == [4, 3]


def test_affine_integers_cover_the_range_of_the_values():
    # From -1 to 2 in 3 steps of (nearly) 1; the zero point, code 1, is the value 0 exactly.
    codes, (scale, zero_point) = lp.encode(torch.tensor([-1.0, 0.0, 0.4, 2.0]), lp.Int(2, symmetric=False))
    assert codes.tolist() == [0, 1, 1, 3]
    assert scale.item() == pytest.approx(1.0) and zero_point.item() == 1
    # A range that does not hold zero is widened until it does.
    assert lp.encode(torch.tensor([2.0, 3.0]), lp.Int(2, symmetric=False))[0].tolist() == [2, 3]


def test_affine_integers_may_count_from_the_minimum_instead():
    # Codes 0 to 3 from 2 to 3, steps of (nearly) 1/3; zero need not be a value.
    codes, (scale, minimum) = lp.encode(torch.tensor([2.0, 2.4, 3.0]), lp.Int(2, symmetric=False, zero_point="minimum"))
    assert codes.tolist() == [0, 1, 3]
    assert scale.item() == pytest.approx(1 / 3) and minimum.item() == 2


def test_fewer_bits_for_a_while():
    x = [1.0, 0.3, -0.7]
    assert quantized(x, lp.Int(8), bits=3) == quantized(x, lp.Int(3))
    assert quantized(x, lp.BlockFloat(8), bits=3) == [1, 0.5, -0.5]
    # Fixed point keeps its range; its steps change. Here from 1/16 to 1/2.
    assert quantized([1.3, 7.9, -8.0], lp.FixedPoint(8, 4), bits=5) == [1.5, 7.5, -8]


# ---- microscaling ------------------------------------------------------------------------------------------------


def test_mx_scales_are_powers_of_two():
    # MXFP4: the largest value, 20, lies in [16, 32); the elements' largest power of two is 4; the scale is 16/4 = 4.
    values, scale = lp.encode(torch.tensor([20.0, 5.0, 1.1, -30.0]), lp.MXFP4)
    assert scale.tolist() == [4.0]
    # Elements 5, 1.25, 0.275 and -7.5 become 4, 1, 0.5 and -6 (they saturate).
    assert lp.decode(values, scale, lp.MXFP4).tolist() == [16, 4, 2, -24]


def test_every_32_elements_have_their_own_mx_scale():
    x = torch.cat([torch.full((32,), 1.0), torch.full((8,), 1e-6)])
    _, scales = lp.encode(x, lp.MXFP8_E4M3)
    assert scales.tolist() == [2.0**-8, 2.0**-28]  # 448 lies in [2**8, 2**9); 1e-6 in [2**-20, 2**-19)


def test_mxint8_is_a_fixed_point_number_times_a_power_of_two():
    # 3 lies in [2, 4): scale 2. Elements have steps of 1/64 up to 127/64.
    assert quantized([3.0, 0.02, 3.999], lp.MXINT8) == [3.0, 1 / 32, 127 / 32]


def test_an_infinity_stays_visible_where_the_scale_is_found_from_the_finite_values():
    assert quantized([1.0, 0.3, inf], lp.MXFP4) == [1.0, 0.25, inf]  # scale 1/4


# ---- floats with other scales ------------------------------------------------------------------------------------


def test_fp8_with_a_scale_for_the_tensor():
    # The scale maps the largest value, 7, to the largest element, 448.
    x = torch.tensor([7.0, 1.0, 0.01, 1e-9])
    codes, scale = lp.encode(x, "scaled_fp8_e4m3")
    assert scale.item() == pytest.approx(7 / 448)
    assert lp.decode(codes, None, "fp8_e4m3").tolist() == [448, 64, 0.625, 0]  # 64.0 and 0.64 before rounding


def test_nvfp4_has_two_levels_of_scales():
    x = torch.cat([torch.full((16,), 6.0), torch.full((16,), 0.1)])
    codes, (block_scales, tensor_scale) = lp.encode(x, lp.NVFP4)
    # The tensor's scale makes the largest block scale 448, the largest E4M3 number. It has 18 significant bits, so
    # that element x block scale x tensor scale is exact in float32.
    assert tensor_scale.item() == pytest.approx(1 / 448, rel=2.0**-17) and tensor_scale.item() <= 1 / 448
    # The second block wants 448 * 0.1 / 6 = 7.47; E4M3 has 7.5 (in [4, 8) its step is 0.5).
    assert block_scales.tolist() == [448, 7.5]
    # 6 is 6 times 448 times the tensor scale; 0.1 is 5.97 times 7.5 times it, which rounds to 6.
    assert lp.decode(codes, None, lp.FP4_E2M1).unique().tolist() == [6]
    assert lp.quantize(x, lp.NVFP4)[-1].item() == 6 * 7.5 * tensor_scale.item()


def test_a_given_block_scale_is_rounded_to_the_format_of_scales():
    # E4M3 has 0.3125 and 0.28125 around 0.3; 0.3125 is the nearer.
    assert lp.quantize(torch.tensor([[1.0, 2.0, 3.0]]), lp.NVFP4, scale=(0.3, 1.0)).tolist() == [[0.9375, 1.875, 1.875]]


# ---- precision of the computation --------------------------------------------------------------------------------


def test_a_result_has_the_tensors_dtype():
    # bfloat16 holds 8 significant bits; 16-bit integers need more, so the result is rounded once more.
    x = torch.tensor([1.0, 1 / 3], dtype=torch.bfloat16)
    assert lp.quantize(x, lp.Int(16)).dtype == torch.bfloat16
    # float64 tensors are computed in float64: a value that float32 cannot tell from a tie.
    almost_a_tie = 0.5 + 2.0**-40
    assert lp.quantize(torch.tensor(almost_a_tie, dtype=torch.float64), INTEGERS).item() == 1
    assert lp.quantize(torch.tensor(almost_a_tie), INTEGERS).item() == 0


def test_float64_tensors_keep_their_own_precision_under_a_given_scale():
    # Of a float32 tensor 30000.995 / 1.0 counts as whole; a float64 tensor tells it from 30001.
    x = torch.tensor([30000.995], dtype=torch.float64)
    assert lp.quantize(x, lp.Int(16), "toward_zero", scale=1.0).item() == 30000
