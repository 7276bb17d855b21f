"""Modelled energy against arithmetic done by hand, and its laws."""

import math
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_models.counts import ElementOps, Gemm, OpCounts, Operand, element_ops
from energy_models.energy import ModelledEnergy, Range
from energy_models.estimate import CORNERS, estimate, modelled_time_s
from energy_models.number_formats import FP16, FP32, FormatSpec, NumberFormat
from energy_models.profile_files import load_profile

PROFILE = load_profile("45nm")
BFP8 = FormatSpec("block_float", bits=8, exponent_bits=0, mantissa_bits=7, scale_bits=8, block_dim=0)
FIXED8 = FormatSpec("fixed_point", bits=8, exponent_bits=0, mantissa_bits=7)
BF16 = FormatSpec("float", bits=16, exponent_bits=8, mantissa_bits=7)

MACS = 16 * 16 * 9 * 32 * 32
ELEMENTS, WEIGHTS = 16 * 32 * 32, 16 * 16 * 9


def conv(activation: NumberFormat, weight: NumberFormat, times: int = 1) -> OpCounts:
    """16 -> 16 channels, 3x3, 32x32, one image: 2,359,296 MACs."""
    a = Operand("activation", (1, 16, 32, 32), 144, activation)
    b = Operand("weight", (16, 16, 3, 3), 144, weight)
    return OpCounts((Gemm("conv", "output", 1, 1024, 16, 144, a, b, ELEMENTS, times),))


# pJ of one addition at the end of a run, worked out from the published points.
ALIGNMENTS_PJ = ELEMENTS * (0.1 + 0.9)  # one run of 144 products per result


def law(x: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    (x1, y1), (x2, y2) = first, second
    return y1 * math.exp(math.log(x / x1) * math.log(y2 / y1) / math.log(x2 / x1))


def int_mult(bits: float) -> float:
    return law(bits, (8, 0.2), (32, 3.1))


def int_add(bits: float) -> float:
    return law(bits, (8, 0.03), (32, 0.1))


def float_add(significand: float) -> float:
    return law(significand, (11, 0.4), (24, 0.9))


def float_mult(significand: float, exponent: int) -> float:
    beyond_16 = 1.1 - int_mult(11) - int_add(5)
    beyond_32 = 3.7 - int_mult(24) - int_add(8)
    return int_mult(significand) + int_add(exponent) + law(significand, (11, beyond_16), (24, beyond_32))


@pytest.mark.parametrize(
    ("activation", "weight", "compute_pj"),
    [
        (FP32, FP32, MACS * (3.7 + 0.9)),
        (FP16, FP16, MACS * (1.1 + float_add(math.sqrt(22 * 24)))),
        (BF16, BF16, MACS * (float_mult(8, 8) + float_add(math.sqrt(16 * 24)))),
        (BFP8, BFP8, MACS * (0.2 + int_add(16 + 8)) + ALIGNMENTS_PJ),  # 144 products: 8 more bits
        (FIXED8, FIXED8, MACS * (0.2 + int_add(16 + 8))),
        (FP32, FIXED8, MACS * (float_mult(math.sqrt(24 * 8), 8) + 0.9)),
    ],
)
def test_compute_of_one_conv(activation: NumberFormat, weight: NumberFormat, compute_pj: float) -> None:
    energy = estimate(conv(activation, weight), PROFILE)
    assert energy.compute_j.nominal == pytest.approx(compute_pj * 1e-12)
    assert energy.compute_j.nominal == energy.compute_j.high
    assert energy.other_j == Range(0, 0, 0)


def test_integer_operands_of_two_widths_meet_at_the_geometric_mean() -> None:
    energy = estimate(conv(replace(FIXED8, bits=4), replace(FIXED8, bits=16)), PROFILE)
    assert energy.compute_j.nominal == pytest.approx(MACS * (0.2 + int_add(20 + 8)) * 1e-12)


@pytest.mark.parametrize(
    ("fmt", "bits", "scales_bits"), [(FP32, 32, 0), (BFP8, 8, (1 + 16) * 8), (BF16, 16, 0), (FIXED8, 8, 0)]
)
def test_memory_of_one_conv(fmt: NumberFormat, bits: int, scales_bits: int) -> None:
    energy = estimate(conv(fmt, fmt), PROFILE)
    compulsory = (ELEMENTS + WEIGHTS) * bits + scales_bits + ELEMENTS * 32
    written = ELEMENTS * bits + (8 if scales_bits else 0)  # the activation, before the GEMM can read it
    on_chip = 1024 * 1024 * 8 / bits
    dram_bits = max(compulsory, 2 * MACS / math.sqrt(on_chip) * bits + ELEMENTS * 32) + written
    fetched = MACS * 2 * bits
    assert energy.traffic_bytes.low == compulsory / 8
    assert energy.traffic_bytes.nominal == pytest.approx(dram_bits / 8)
    no_reuse = fetched / 16 + ELEMENTS * 32 + written
    assert energy.traffic_bytes.high == pytest.approx(no_reuse / 8)
    sram = 100 / 64
    pj = (
        compulsory * (1300 / 64 + sram) + fetched / 128 * sram,
        dram_bits * (1950 / 64 + sram) + fetched / 16 * sram,
        no_reuse * (2600 / 64 + sram) + fetched * sram,
    )
    memory = energy.memory_j
    assert (memory.low, memory.nominal, memory.high) == pytest.approx(tuple(value * 1e-12 for value in pj))


def backward(fmt: NumberFormat, gemms: tuple[str, ...]) -> OpCounts:
    """The backward GEMMs of a linear layer (64 rows, 10 inputs, 20 outputs)."""
    error = Operand("error", (64, 20), 20, fmt)
    others = {"grad_input": Operand("weight", (20, 10), 1, fmt), "grad_weight": Operand("activation", (64, 10), 1, fmt)}
    shapes = {"grad_input": (64, 10, 20), "grad_weight": (20, 10, 64)}
    results = {"grad_input": 640, "grad_weight": 200}
    return OpCounts(tuple(Gemm("fc", g, 1, *shapes[g], error, others[g], results[g]) for g in gemms))


def test_an_error_is_written_once_for_both_gemms_that_read_it() -> None:
    both = estimate(backward(FIXED8, ("grad_input", "grad_weight")), PROFILE).traffic_bytes
    assert both.nominal - both.low == 64 * 20
    frozen = estimate(backward(FIXED8, ("grad_input",)), PROFILE).traffic_bytes
    assert frozen.nominal - frozen.low == 64 * 20


def test_a_large_product_is_bound_by_the_buffer() -> None:
    size = 4096
    a, b = Operand("activation", (size, size), size), Operand("weight", (size, size), size)
    energy = estimate(OpCounts((Gemm("fc", "output", 1, size, size, size, a, b, size**2),)), PROFILE)
    assert energy.traffic_bytes.low == 3 * size**2 * 4
    hong_kung = 2 * size**3 / 512  # sqrt(2**18 operands)
    assert energy.traffic_bytes.nominal == pytest.approx((hong_kung + 2 * size**2) * 4)


@pytest.mark.parametrize(
    ("kind", "nominal_bits"),
    [("relu", 0), ("max_pool", 0), ("quantizer", 0), ("batch_norm", 96), ("optimizer", 128), ("mask_distance", 128)],
)
def test_what_element_ops_move_through_dram(kind: str, nominal_bits: int) -> None:
    """Element-wise ops ride along, batch norm reads its inputs, the optimizer moves its tensors; at worst all do."""
    traffic = estimate(element_ops(kind, 1000, read_bits=96, write_bits=32), PROFILE).traffic_bytes
    assert (traffic.low, traffic.nominal, traffic.high) == (0, nominal_bits * 125, 128 * 125)


@pytest.mark.parametrize(
    ("kind", "forward", "backward"),
    [
        ("dropout", 0, 0),
        ("interpolation", 0, 0),
        ("gelu", 0, 96),
        ("layer_norm", 0, 96),
        ("gather", 96, 96),
        ("scatter", 128, 128),
        ("embedding", 128, 128),
        ("sort", 128, 128),
    ],
)
def test_what_is_kept_for_backward_is_moved_there(kind: str, forward: int, backward: int) -> None:
    for part, bits in (("forward", forward), ("backward", backward)):
        row = ElementOps(kind, "", 1000, read_bits=96, write_bits=32, times=1000, part=part)  # type: ignore[arg-type]
        assert estimate(OpCounts(element_ops=(row,)), PROFILE).traffic_bytes.nominal == bits * 125


def test_corners_bracket_nothing_but_themselves_and_add_up() -> None:
    a, b = estimate(conv(FP32, FP32), PROFILE), estimate(conv(BFP8, BFP8), PROFILE)
    assert len(a.corners_j) == CORNERS and min(a.corners_j) < a.nominal_j < max(a.corners_j)
    assert (a + b).corners_j == tuple(x + y for x, y in zip(a.corners_j, b.corners_j, strict=True))
    assert (a * 0.5).corners_j == pytest.approx(tuple(x / 2 for x in a.corners_j))


def test_arithmetic_of_element_ops() -> None:
    energy = estimate(element_ops("batch_norm", 10, fp_add=5, fp_mul=3, int_add=2), PROFILE)
    expected = 10 * (5 * 0.9 + 3 * 3.7 + 2 * 0.1) * 1e-12
    assert energy.other_j.nominal == pytest.approx(expected)
    assert energy.total_j.nominal == pytest.approx(expected)


def test_grad_input_of_a_linear_layer_pays_an_alignment_per_product() -> None:
    def grad_input(fmt: NumberFormat) -> OpCounts:
        a, b = Operand("error", (64, 10), 10, fmt), Operand("weight", (10, 128), 1, fmt)
        return OpCounts((Gemm("fc", "grad_input", 1, 64, 128, 10, a, b, 8192),))

    macs = 64 * 128 * 10
    per_slice = estimate(grad_input(BFP8), PROFILE).compute_j.nominal
    whole = estimate(grad_input(replace(BFP8, block_dim=None)), PROFILE).compute_j.nominal
    assert per_slice == pytest.approx(macs * (0.2 + int_add(16 + 1) + 1.0) * 1e-12)
    assert whole == pytest.approx(macs * (0.2 + int_add(16 + 4) + 0.1) * 1e-12)  # k = 10 products share one


FORMATS = st.one_of(
    st.builds(lambda bits: replace(BFP8, bits=bits, mantissa_bits=bits - 1), st.integers(2, 32)),
    st.builds(lambda bits: replace(FIXED8, bits=bits, mantissa_bits=bits - 1), st.integers(2, 32)),
    st.sampled_from([FP32, BF16]),
)


@st.composite
def counts_of_a_step(draw: st.DrawFn) -> OpCounts:
    m, n, k = (draw(st.integers(1, 5000)) for _ in range(3))
    a = Operand("error", (m, k), draw(st.integers(1, k)), draw(FORMATS))
    b = Operand("activation", (n, k), draw(st.integers(1, k)), draw(FORMATS))
    numbers = [draw(st.integers(0, 10**9)) for _ in range(5)]
    return OpCounts((Gemm("l", "grad_weight", 1, m, n, k, a, b, m * n),), (ElementOps("relu", "l", 1, *numbers),))


@given(counts_of_a_step())
def test_low_nominal_high_are_in_order(counts: OpCounts) -> None:
    energy = estimate(counts, PROFILE)
    parts = (energy.compute_j, energy.memory_j, energy.other_j, energy.traffic_bytes, energy.total_j)
    assert all(0 <= part.low <= part.nominal <= part.high for part in parts)
    assert (energy.low_j, energy.nominal_j, energy.high_j) == (
        energy.total_j.low,
        energy.total_j.nominal,
        energy.total_j.high,
    )


@given(counts_of_a_step(), st.integers(0, 100))
def test_linear_in_times(counts: OpCounts, steps: int) -> None:
    one, many = estimate(counts, PROFILE), estimate(counts * steps, PROFILE)
    assert many.total_j.nominal == pytest.approx(one.total_j.nominal * steps)
    assert many.total_j.high == pytest.approx(one.total_j.high * steps)
    assert many.traffic_bytes.low == pytest.approx(one.traffic_bytes.low * steps)


@given(counts_of_a_step(), counts_of_a_step())
def test_energies_add_as_counts_do(first: OpCounts, second: OpCounts) -> None:
    together = estimate(first + second, PROFILE)
    apart = estimate(first, PROFILE) + estimate(second, PROFILE) + ModelledEnergy.zero()
    assert together.low_j == pytest.approx(apart.low_j)
    assert together.nominal_j == pytest.approx(apart.nominal_j)
    assert together.high_j == pytest.approx(apart.high_j)


@given(st.integers(2, 31), st.sampled_from([BFP8, FIXED8]), st.booleans())
def test_more_bits_never_cost_less(bits: int, family: FormatSpec, against_fp32: bool) -> None:
    def energy(width: int) -> ModelledEnergy:
        fmt = replace(family, bits=width, mantissa_bits=width - 1)
        return estimate(conv(FP32 if against_fp32 else fmt, fmt), PROFILE)

    fewer, more = energy(bits), energy(bits + 1)
    assert fewer.compute_j.nominal <= more.compute_j.nominal
    assert (fewer.low_j, fewer.nominal_j, fewer.high_j) < (more.low_j, more.nominal_j, more.high_j)
    assert fewer.nominal_j < more.nominal_j and fewer.high_j < more.high_j


def test_a_profile_in_pj_per_bit_is_the_same_chip() -> None:
    per_bit = replace(PROFILE, memory=tuple(replace(m, energy=m.energy.per_bit()) for m in PROFILE.memory))
    assert estimate(conv(FP32, FP32), per_bit) == estimate(conv(FP32, FP32), PROFILE)


def test_ranges_of_arithmetic_constants_reach_the_estimate() -> None:
    assert PROFILE.arithmetic is not None
    wide = replace(PROFILE.arithmetic, int_mult_8=replace(PROFILE.arithmetic.int_mult_8, low=0.1, high=0.4))
    compute = estimate(conv(FIXED8, FIXED8), replace(PROFILE, arithmetic=wide)).compute_j
    expected = tuple(MACS * (mult + int_add(24)) * 1e-12 for mult in (0.1, 0.2, 0.4))
    assert (compute.low, compute.nominal, compute.high) == pytest.approx(expected)


def test_range_arithmetic() -> None:
    assert Range(1, 2, 3) + Range(10, 20, 30) == Range(11, 22, 33)
    assert Range(1, 2, 3) * 2 == 2 * Range(1, 2, 3) == Range(2, 4, 6)


def test_hundreds_of_records_are_priced_in_milliseconds() -> None:
    counts = OpCounts(conv(BFP8, BFP8).gemms * 200, (ElementOps("relu", "l", 1, 1, 1, 1, 1, 1),) * 200)
    durations = []
    for _ in range(5):
        started = time.perf_counter()
        estimate(counts, PROFILE)
        durations.append(time.perf_counter() - started)
    assert min(durations) < 0.02  # about 3 ms on an idle core


@given(st.permutations([1e-9, 3.3, 1e7, -0.0, 0.1, 2.2e-5]))
def test_a_total_does_not_depend_on_the_order(joules: list[float]) -> None:
    def energy(value: float) -> ModelledEnergy:
        return estimate(element_ops("optimizer", 1, fp_add=1, read_bits=1), PROFILE) * value

    assert ModelledEnergy.total(map(energy, joules)) == ModelledEnergy.total(map(energy, sorted(joules)))
    assert ModelledEnergy.total([]) == ModelledEnergy.zero()


def test_formats_without_a_price_name_the_layer() -> None:
    with pytest.raises(ValueError, match=r"layer 'conv', output GEMM, activation: .*'logarithmic'"):
        estimate(conv(replace(BFP8, kind="logarithmic"), FP32), PROFILE)


def test_the_plain_rule_by_name() -> None:
    fmt = replace(FIXED8, bits=4)
    plain = estimate(conv(fmt, fmt), PROFILE, mac_rule="bits_product").compute_j.nominal
    assert plain == pytest.approx(MACS * (0.2 + int_add(24)) / 4 * 1e-12)
    with pytest.raises(ValueError, match="mac_rule must be one of parts, bits_product, got 'bits'"):
        estimate(conv(fmt, fmt), PROFILE, mac_rule="bits")  # type: ignore[arg-type]


@pytest.mark.parametrize(("end", "reuse", "tensors"), [("low", 128, 1), ("nominal", 16, 2), ("high", 1, 2)])
def test_without_a_buffer_results_reach_dram_too(end: str, reuse: int, tensors: int) -> None:
    """The result is written, and so is, but for the low end, the activation that the layer reads."""
    chip = load_profile("45nm")
    moved = estimate(conv(FP32, FP32), replace(chip, memory=chip.memory[:1])).level_bytes["dram"]
    assert getattr(moved, end) == pytest.approx(MACS * 8 / reuse + tensors * ELEMENTS * 4)


def test_the_range_of_a_bandwidth_is_used() -> None:
    chip = load_profile("h100")
    dram, work = chip.memory[0], element_ops("sgd", 10**6, read_bits=64, write_bits=32)
    assert dram.bandwidth is not None
    wide = replace(dram.bandwidth, low=dram.bandwidth.value / 2, high=dram.bandwidth.value * 2)
    narrow_s = modelled_time_s(work, chip)
    wide_s = modelled_time_s(work, replace(chip, memory=(replace(dram, bandwidth=wide), *chip.memory[1:])))
    assert narrow_s is not None and wide_s is not None
    assert wide_s.high == pytest.approx(2 * narrow_s.high) and wide_s.nominal == narrow_s.nominal
