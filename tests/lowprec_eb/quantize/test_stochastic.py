"""Stochastic rounding: the random numbers, and what every format makes of them."""

import math
from fractions import Fraction

import pytest
import torch
from cases import DTYPES, FORMATS, normal
from exact_rounding import split_mix_64
from exact_rounding import uniform as exact_uniform

import lowprec_eb as lp
from lowprec_eb.quantize.random_bits import derive_seed, draw_seeds, mix64, random_words, uniform

COUNT = 1 << 18
SIGMAS = 5.0  # of all tests together, one in thousands of seeds would fail; the seeds are fixed


def numbers(seed, count=COUNT, offset=0):
    return uniform(torch.Size([count]), torch.tensor(seed), offset, torch.float64)


# ---- the generator -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "published"),
    [
        # The generator's first outputs, as printed by the reference C code (Vigna, splitmix64.c) and Java's
        # SplittableRandom.
        (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]),
        (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]),
    ],
)
def test_random_words_are_the_published_outputs_of_splitmix64(seed, published):
    words = random_words(2 * len(published), torch.tensor(seed)).tolist()
    pairs = zip(words[::2], words[1::2], strict=True)
    assert [(low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32 for low, high in pairs] == published
    assert [mix64(seed + i * 0x9E3779B97F4A7C15) for i in range(1, len(published) + 1)] == published


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
@pytest.mark.parametrize("offset", [0, 1, 2**31 - 3, 2**33 + 1, 2**62])
def test_a_number_is_a_function_of_its_seed_and_index(seed, offset):
    expected = [exact_uniform(seed, offset + i) for i in range(9)]
    assert [Fraction(u) for u in numbers(seed, 9, offset).tolist()] == expected
    single = uniform(torch.Size([9]), torch.tensor(seed), offset, torch.float32)
    assert torch.equal(single.double(), numbers(seed, 9, offset))  # float32 holds them


def test_numbers_are_the_middles_of_equal_intervals():
    u = numbers(3)
    odd = u * 2**24
    assert torch.equal(odd, odd.round()) and (odd % 2 == 1).all()
    assert u.min() >= 2**-24 and u.max() <= 1 - 2**-24
    assert abs(u.mean() - 0.5) < SIGMAS * math.sqrt(1 / 12 / COUNT)


def chi_square(u, bins):
    """In standard deviations from its mean."""
    expected = u.numel() / bins
    counts = torch.bincount((u * bins).long(), minlength=bins)
    return float(((counts - expected) ** 2 / expected).sum() - (bins - 1)) / math.sqrt(2 * (bins - 1))


def correlation(a, b):
    """In standard deviations from zero."""
    return float((12 * (a - 0.5) * (b - 0.5)).sum()) / math.sqrt(a.numel())


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7, -5])
def test_numbers_are_uniform_in_every_part_of_their_bits(seed):
    u = numbers(seed)
    for bins in (2, 256, 4096):
        assert abs(chi_square(u, bins)) < SIGMAS
        assert abs(chi_square((u * 2**11) % 1, bins)) < SIGMAS  # the lower bits
        assert abs(chi_square(u[::2], bins)) < SIGMAS  # low halves of the outputs
        assert abs(chi_square(u[1::2], bins)) < SIGMAS  # high halves


@pytest.mark.parametrize("seed", [0, 1, -5])
def test_neighbours_are_independent(seed):
    u = numbers(seed)
    for lag in (1, 2, 3, 16, 1024):
        assert abs(correlation(u[lag:], u[:-lag])) < SIGMAS
    assert abs(correlation(u[::2], u[1::2])) < SIGMAS  # the two halves of an output
    # Pairs fill the square evenly.
    cells = (u[::2] * 32).long() * 32 + (u[1::2] * 32).long()
    assert abs(chi_square((cells.double() + 0.5) / 1024, 1024)) < SIGMAS


@pytest.mark.parametrize("other", [1, 2, -1, 2**32, 2**63 - 1, 0x9E3779B97F4A7C15 - 2**64])
def test_seeds_give_unrelated_numbers(other):
    # The last one is the generator's own increment: its numbers are those of seed 0, two places on, and so not equal
    # at the same index.
    a, b = numbers(0), numbers(other)
    assert abs(correlation(a, b)) < SIGMAS
    assert (a == b).sum() < 8  # by chance: 2**18 / 2**23


def test_the_same_element_is_uniform_across_seeds():
    firsts = torch.stack([numbers(seed, 2) for seed in range(4096)])
    assert abs(chi_square(firsts[:, 0], 64)) < SIGMAS and abs(chi_square(firsts[:, 1], 64)) < SIGMAS
    assert abs(correlation(firsts[:-1, 0], firsts[1:, 0])) < SIGMAS


def test_derived_seeds_differ_and_fit_int64():
    parts = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    seeds = {derive_seed(*part) for part in [*parts, (1,), (1, 0), (0, 1), (-1,), (2**63,)]}
    assert len(seeds) == 1005 and all(-(2**63) <= seed < 2**63 for seed in seeds)


def test_the_oracle_is_the_published_generator_too():
    assert split_mix_64(0, 1) == 0xE220A8397B1DCDAF


# ---- reproducibility ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_no_seed_draws_from_torchs_generator(name):
    x, draws = normal(4, 64), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append([lp.quantize(x, FORMATS[name], "stochastic") for _ in range(2)])
    (first, second), again, other = draws
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    if name != "fp32":  # nothing to round
        assert not torch.equal(first, second) and not torch.equal(first, other[0])


def test_other_roundings_leave_torchs_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for rounding in ("nearest", "nearest_away", "toward_zero"):
        lp.quantize(normal(9), lp.FixedPoint(8, 4), rounding)
    lp.quantize(normal(9), lp.FixedPoint(8, 4), "stochastic", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(draw_seeds(2)[:1], draw_seeds(1))


@pytest.mark.parametrize("name", ["fp8_e4m3", "mxfp4", "nvfp4", "block8", "int8", "int8_affine", "fixed8"])
def test_one_or_two_threads_give_the_same_bits(name):
    x = normal(600, 400)  # large enough for torch to use both
    one = lp.quantize(x, FORMATS[name], "stochastic", seed=1)
    torch.set_num_threads(2)
    try:
        two = lp.quantize(x, FORMATS[name], "stochastic", seed=1)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, two)


@pytest.mark.parametrize("name", FORMATS)
def test_every_dtype_gets_the_same_random_numbers(name):
    x = normal(3, 50, dtype=torch.bfloat16)  # values that float16 and float64 hold too
    x = torch.where(x.abs() < 2.0**-6, 0.0, x)
    results = [lp.quantize(x.to(dtype), FORMATS[name], "stochastic", seed=9).double() for dtype in DTYPES]
    step = x.abs().max().double() * 2.0**-7  # the dtype's own rounding; another draw would differ by a whole step
    for other in results[1:]:
        assert ((results[0] - other).abs() <= step).all()


# ---- what becomes of an element ----------------------------------------------------------------------------------

FRACTIONS = [0.0001, 0.003, 0.3, 0.5, 0.77, 0.997]  # near the lower neighbour, far from both, near the upper one
ROUNDS_FLOAT32 = [name for name in FORMATS if name != "fp32"]


def quantized_beside_the_largest(values, name, rounding, seed=None):
    """Each value in a block of (1.9, -1.9, value), so that the scale stays what it is."""
    x = torch.stack([torch.full_like(values, 1.9), torch.full_like(values, -1.9), values], dim=1)
    axis = 0 if name in ("int of slice", "int of 4") else 1  # these two have blocks that run down
    rounded = lp.quantize(x if axis else x.T.contiguous(), FORMATS[name], rounding, seed=seed)
    return rounded[:, 2] if axis else rounded[2]


def neighbours(value, name):
    """The numbers of the format on both sides: that of the code toward zero, and that of the next code."""
    x = torch.tensor([[1.9, -1.9, value]])
    x = x.T if name in ("int of slice", "int of 4") else x
    codes, scales = lp.encode(x, FORMATS[name], "toward_zero")
    low = high = lp.decode(codes, scales, FORMATS[name]).flatten()[2].item()
    while high == low:  # without subnormals, some codes are no numbers
        codes.flatten()[2:] += 1
        high = lp.decode(codes, scales, FORMATS[name]).flatten()[2].item()
    return low, high


# From 1e-5 and zero, every step of a coarse format is the first one: values far below a block's step.
@pytest.mark.parametrize("start", [1.3, 0.4, 0.02, 1e-5, 0.0])
@pytest.mark.parametrize("name", ROUNDS_FLOAT32)
def test_an_element_becomes_its_upper_neighbour_as_often_as_it_is_near_it(name, start):
    low, high = neighbours(start, name)
    assert low <= start < high
    for seed, fraction in enumerate(FRACTIONS):
        value = torch.tensor(low + fraction * (high - low))
        exact = (value.item() - low) / (high - low)
        repeats = 20_000
        rounded = quantized_beside_the_largest(value.expand(repeats), name, "stochastic", seed=seed)
        ups = (rounded == high).sum().item()
        assert ups + (rounded == low).sum().item() == repeats
        spread = math.sqrt(repeats * exact * (1 - exact))
        assert abs(ups - repeats * exact) <= SIGMAS * spread + 3, (value, ups / repeats, exact)


@pytest.mark.parametrize("seed", range(20))
def test_an_element_goes_up_when_its_fraction_exceeds_its_random_number(seed):
    u = numbers(seed, 50).float()
    above = torch.nextafter(u, torch.ones(1))
    integers = lp.FixedPoint(8, 0)
    assert (lp.quantize(u, integers, "stochastic", seed=seed) == 0).all()
    assert (lp.quantize(above, integers, "stochastic", seed=seed) == 1).all()
    assert (lp.quantize(-above, integers, "stochastic", seed=seed) == -1).all()


@pytest.mark.parametrize("name", ROUNDS_FLOAT32)
def test_negative_numbers_go_away_from_zero_as_often_as_positive_ones(name):
    if FORMATS[name].has_zero_point and FORMATS[name].zero_point == "minimum":
        return  # counts from the minimum: no symmetry
    x = normal(500).clamp(-1.89, 1.89)
    up, down = (quantized_beside_the_largest(v, name, "stochastic", seed=3) for v in (x, -x))
    assert torch.equal(up, -down)


@pytest.mark.parametrize("name", ROUNDS_FLOAT32)
def test_elements_are_rounded_independently(name):
    low, high = neighbours(0.4, name)
    halves = torch.full((8192,), (low + high) / 2)
    ups = [(quantized_beside_the_largest(halves, name, "stochastic", seed=s) == high).double() for s in (1, 2)]
    for lag in (1, 2, 7):
        assert abs(float((4 * (ups[0][lag:] - 0.5) * (ups[0][:-lag] - 0.5)).sum())) < SIGMAS * math.sqrt(8192)
    assert abs(float((4 * (ups[0] - 0.5) * (ups[1] - 0.5)).sum())) < SIGMAS * math.sqrt(8192)


@pytest.mark.parametrize("name", ROUNDS_FLOAT32)
def test_a_number_of_the_format_never_moves(name):
    values = [neighbour for start in (1.3, 0.4, 0.02, 1e-5, 0.0) for neighbour in neighbours(start, name)]
    x = torch.tensor(values)
    for seed in range(100):
        assert torch.equal(quantized_beside_the_largest(x, name, "stochastic", seed=seed), x)


@pytest.mark.parametrize("fmt", [lp.FP8_E4M3, lp.BlockFloat(8, 0), lp.Int(8), lp.MXFP4, lp.NVFP4], ids=repr)
def test_sums_of_rounded_numbers_keep_what_rounding_to_nearest_loses(fmt):
    # 15 numbers below half a step beside each large one: to nearest, nothing is left of them.
    x = torch.full((1250, 16), 0.0009)
    x[:, 0] = 1.0
    assert lp.quantize(x, fmt, "nearest")[:, 1:].sum() == 0
    total = lp.quantize(x, fmt, "stochastic", seed=0)[:, 1:].sum().item()
    assert total == pytest.approx(1250 * 15 * 0.0009, rel=0.3)
