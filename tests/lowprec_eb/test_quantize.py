"""How each format rounds, as laws and as examples to read."""

import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lowprec_eb as lp
from lowprec_eb.quantize.random_bits import derive_seed, mix64, random_words, uniform

FORMATS = [lp.BlockFloat(8, 0), lp.BlockFloat(4, -1), lp.BlockFloat(8, 1), lp.FixedPoint(8, 4), lp.BF16, lp.Float(4, 3)]
ROUNDINGS = ["nearest", "stochastic"]
SHAPES = [(0,), (), (7,), (3, 5), (4, 3, 5, 2)]
finite = st.floats(-(2.0**100), 2.0**100, width=32)


def fits(fmt, x):
    return not (isinstance(fmt, lp.BlockFloat) and fmt.dim >= max(x.dim(), 1))


# ---- examples ----------------------------------------------------------------------------------------------------


def test_block_float_shares_the_exponent_of_the_largest_value():
    x = torch.tensor([[1.0, 0.5, 0.013, -0.003], [100.0, 1.0, 0.4, 0.0]])
    # Row 0: largest 1 = 2**0, step 2**(0 - 6) = 1/64. Row 1: largest 100 in [64, 128), step 2**(6 - 6) = 1.
    assert lp.quantize(x, lp.BlockFloat(8, 0)).tolist() == [[1.0, 0.5, 1 / 64, 0.0], [100.0, 1.0, 0.0, 0.0]]
    # One exponent for the whole tensor: every step is 1.
    assert lp.quantize(x, lp.BlockFloat(8, -1)).tolist() == [[1.0, 0.0, 0.0, 0.0], [100.0, 1.0, 0.0, 0.0]]


def test_block_float_range_is_symmetric():
    assert lp.quantize(torch.tensor([1.999, -1.999]), lp.BlockFloat(8, -1)).tolist() == [127 / 64, -127 / 64]


def test_ties_go_to_even():
    steps = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 127.0])
    assert lp.quantize(steps, lp.BlockFloat(8, -1)).tolist() == [0, 2, 2, 0, -2, 127]
    assert lp.quantize(steps / 16, lp.FixedPoint(8, 4)).mul(16).tolist() == [0, 2, 2, 0, -2, 127]


def test_ties_away_where_the_format_says_so():
    x = torch.tensor([1.0625, 1.1875, -1.0625])  # half-way between neighbours of E4M3, whose step is 1/8 there
    assert lp.quantize(x, lp.Float(4, 3)).tolist() == [1.0, 1.25, -1.0]
    assert lp.quantize(x, lp.Float(4, 3, ties="away")).tolist() == [1.125, 1.25, -1.125]


def test_fixed_point_clamps_or_lets_pass():
    x = torch.tensor([100.0, -100.0, 7.97])
    assert lp.quantize(x, lp.FixedPoint(8, 4)).tolist() == [7.9375, -8.0, 7.9375]
    assert lp.quantize(x, lp.FixedPoint(8, 4, symmetric=True)).tolist() == [7.9375, -7.9375, 7.9375]
    assert lp.quantize(x, lp.FixedPoint(8, 4, clamp=False)).tolist() == [100.0, -100.0, 8.0]


def test_float_overflow_is_infinity_or_saturates():
    x = torch.tensor([1e6, -1e6])
    assert lp.quantize(x, lp.FP16).tolist() == [math.inf, -math.inf]
    assert lp.quantize(x, lp.Float(4, 3)).tolist() == [480.0, -480.0]


@pytest.mark.parametrize(("fmt", "dtype"), [(lp.BF16, torch.bfloat16), (lp.FP16, torch.float16)])
def test_named_floats_round_as_torch_casts(fmt, dtype):
    bits = torch.randint(-(2**31), 2**31 - 1, (100_000,), dtype=torch.int64).to(torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.tensor([math.inf, -math.inf, 0.0, 65519.0, 65520.0])])
    x = x[~x.isnan()]
    expected = x.to(dtype).float()
    assert torch.equal(lp.quantize(x, fmt), expected)
    # The general rule, without the cast, is the same function.
    general = lp.quantize(x.double(), lp.Float(fmt.exp, fmt.man, specials="ieee", overflow="infinity"))
    assert torch.equal(general.float(), expected)


# ---- laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_shape_and_dtype_stay_and_rounding_twice_is_rounding_once(fmt, rounding, shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if not fits(fmt, x):
        with pytest.raises(ValueError, match="needs a tensor with more than"):
            lp.quantize(x, fmt, rounding)
        return
    once = lp.quantize(x, fmt, rounding, seed=3)
    assert once.shape == x.shape and once.dtype == dtype
    assert torch.equal(lp.quantize(once, fmt, rounding, seed=4), once)


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
@settings(max_examples=60, deadline=None)
@given(values=st.lists(finite, min_size=1, max_size=12), seed=st.integers(-(2**63), 2**63 - 1))
def test_stochastic_picks_one_of_the_two_neighbours(fmt, values, seed):
    x = torch.tensor([values], dtype=torch.float32)
    step = (lp.quantize(x, fmt) - x).abs()
    rounded = lp.quantize(x, fmt, "stochastic", seed=seed)
    # Where nearest does not clamp, stochastic is off by less than one step, and nearest by at most half a step.
    if isinstance(fmt, lp.BlockFloat):
        largest = x.abs().amax() if fmt.dim == -1 else x.abs().amax(dim=1 - fmt.dim, keepdim=True)
        grid = 2.0 ** (torch.frexp(largest).exponent - 1.0 - (fmt.wl - 2)).clamp(min=-149).double()
        assert ((rounded - x).abs() <= grid).all() and (step <= grid).all()
        assert torch.equal((rounded / grid).round() * grid, rounded)
    else:
        again = lp.quantize(rounded, fmt)
        assert torch.equal(again, rounded)


@pytest.mark.parametrize("fmt", [lp.BlockFloat(8, -1), lp.FixedPoint(16, 6), lp.BF16, lp.Float(4, 3)], ids=repr)
def test_stochastic_rounding_is_unbiased(fmt):
    # Near the grid, half-way, far below a step; 1.0 keeps the block's exponent.
    x = torch.tensor([1.0, 0.7, 0.501, 0.0101, 0.0031, -0.3, -0.0007])
    repeated = x.repeat(20_000, 1).T.contiguous()
    rounded = lp.quantize(repeated, fmt, "stochastic", seed=11).double()
    deviation = (rounded.mean(1) - repeated[:, 0].double()).abs()
    error_of_mean = rounded.std(1) / math.sqrt(repeated.shape[1])
    assert (deviation <= 4.5 * error_of_mean + 1e-9).all()


def test_values_on_the_grid_never_move():
    codes = torch.arange(-127, 128, dtype=torch.float32)
    for seed in range(50):
        assert torch.equal(lp.quantize(codes, lp.BlockFloat(8, -1), "stochastic", seed=seed), codes)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_damaged_block_keeps_its_damage_and_its_other_elements(bad, rounding):
    x = torch.tensor([1.0, 0.3, -0.7, 0.02])
    damaged = torch.cat([x, torch.tensor([bad])])
    rounded = lp.quantize(damaged, lp.BlockFloat(8, -1), rounding, seed=1)
    assert torch.equal(rounded[:4], lp.quantize(x, lp.BlockFloat(8, -1), rounding, seed=1))
    assert rounded[4].isnan() if math.isnan(bad) else rounded[4] == bad


def test_zeros_and_tiny_blocks():
    assert lp.quantize(torch.zeros(3), lp.BlockFloat(8, -1)).tolist() == [0, 0, 0]
    tiny = torch.tensor([2.0**-140, 2.0**-141])
    assert torch.equal(lp.quantize(tiny, lp.BlockFloat(8, -1)), tiny)


# ---- random bits -------------------------------------------------------------------------------------------------


def test_random_words_are_splitmix64():
    # First outputs of the published generator for seed 0 (Steele, Lea and Flood; the reference C code).
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [mix64(0x9E3779B97F4A7C15 * i) for i in (1, 2, 3)] == published
    words = random_words(6, torch.tensor(0)).tolist()
    pairs = zip(words[::2], words[1::2], strict=True)
    assert [(low & 0xFFFFFFFF) | (high & 0xFFFFFFFF) << 32 for low, high in pairs] == published


def test_bits_depend_on_seed_and_index_alone():
    x = torch.randn(64, 33)
    whole = lp.quantize(x, lp.FixedPoint(8, 4), "stochastic", seed=5)
    half = lp.quantize(x[32:], lp.FixedPoint(8, 4), "stochastic", seed=5, offset=32 * 33)
    assert torch.equal(whole[32:], half)
    odd = lp.quantize(x.flatten()[7:], lp.FixedPoint(8, 4), "stochastic", seed=5, offset=7)
    assert torch.equal(whole.flatten()[7:], odd)
    transposed = lp.quantize(x.T.contiguous().T, lp.FixedPoint(8, 4), "stochastic", seed=torch.tensor(5))
    assert torch.equal(whole, transposed)
    assert not torch.equal(whole, lp.quantize(x, lp.FixedPoint(8, 4), "stochastic", seed=6))


def test_uniform_numbers_are_uniform_and_uncorrelated():
    u = uniform(torch.Size([1 << 20]), torch.tensor(123), 0, torch.float64)
    counts = torch.histc(u, bins=256, min=0, max=1)
    chi_square = ((counts - 4096) ** 2 / 4096).sum()
    assert 160 < chi_square < 360  # 255 degrees of freedom: mean 255, sigma 22.6
    centred = u - 0.5
    for lag in (1, 2, 3, 64):
        assert abs((centred[lag:] * centred[:-lag]).mean() * 12) < 5 / 1024  # 5 sigma
    other = uniform(torch.Size([1 << 20]), torch.tensor(124), 0, torch.float64) - 0.5
    assert abs((centred * other).mean() * 12) < 5 / 1024


def test_no_seed_draws_from_torchs_generator():
    x = torch.randn(1000)
    torch.manual_seed(1)
    first, second = (lp.quantize(x, lp.BlockFloat(8, -1), "stochastic") for _ in range(2))
    torch.manual_seed(1)
    assert torch.equal(first, lp.quantize(x, lp.BlockFloat(8, -1), "stochastic"))
    assert not torch.equal(first, second)


def test_derived_seeds_differ_and_fit_int64():
    seeds = {derive_seed(a, b, c) for a in range(10) for b in range(10) for c in range(10)}
    assert len(seeds) == 1000 and all(-(2**63) <= seed < 2**63 for seed in seeds)


# ---- as an operator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_the_gradient_passes_straight_through(rounding):
    x = torch.randn(5, requires_grad=True)
    (lp.quantize(x, lp.BlockFloat(8, -1), rounding) * torch.arange(5.0)).sum().backward()
    assert torch.equal(x.grad, torch.arange(5.0))


def test_meta_tensors_and_compile():
    assert lp.quantize(torch.empty(4, 4, device="meta"), lp.BlockFloat(8, 0)).device.type == "meta"
    x = torch.randn(8, 8)

    def double(y):
        return lp.quantize(y, lp.BlockFloat(8, 0)) * 2

    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), double(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lp.quantize(torch.arange(3), lp.BF16), "needs a floating-point tensor, got torch.int64"),
        (lambda: lp.quantize(torch.ones(3), lp.BF16, "up"), "unknown rounding 'up'; one of nearest, stochastic"),
        (lambda: lp.quantize(torch.ones(3), lp.BF16, backend="cuda"), "unknown backend 'cuda'"),
        (lambda: lp.quantize(torch.ones(3), 8), "not a number format: 8"),
        (lambda: lp.quantize(torch.ones(3), lp.BlockFloat(8, 2)), "more than 2 dimensions"),
    ],
)
def test_bad_calls_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- qtorch ------------------------------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(
    shutil.which("ninja") is None or shutil.which("c++") is None,
    reason="qtorch's kernels need ninja and a C++ compiler",
)


@pytest.mark.compiler
@needs_compiler
@pytest.mark.parametrize("wl", [4, 8, 12])
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_qtorchs_block_kernels_agree_away_from_ties(wl, dim):
    scales = torch.logspace(-10, 10, 64)[:, None]
    x = torch.randn(64, 500, generator=torch.Generator().manual_seed(wl)) * (scales if dim == 0 else 1)
    fmt = lp.BlockFloat(wl, dim)
    ours, theirs = lp.quantize(x, fmt), lp.quantize(x, fmt, backend="qtorch")
    # qtorch rounds the sum with a number six times as large: only what sits next to a tie can differ.
    largest = x.abs().amax() if dim == -1 else x.abs().amax(dim=1 - dim, keepdim=True)
    steps = x / 2.0 ** (torch.frexp(largest).exponent - 1.0 - (wl - 2))
    from_tie = (steps - steps.floor() - 0.5).abs()
    assert (from_tie[ours != theirs] < 2.0 ** (wl - 22)).all()
    assert (ours != theirs).float().mean() < 1e-3


@pytest.mark.compiler
@needs_compiler
@pytest.mark.parametrize("symmetric", [False, True])
def test_qtorchs_fixed_point_kernel_agrees(symmetric):
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 4
    x = torch.cat([x, torch.arange(-200, 200) / 32])  # ties: both to even
    fmt = lp.FixedPoint(8, 4, symmetric=symmetric)
    assert torch.equal(lp.quantize(x, fmt), lp.quantize(x, fmt, backend="qtorch"))


@pytest.mark.compiler
@needs_compiler
def test_qtorchs_float_kernel_agrees_on_normal_numbers():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 20
    x = torch.cat([x[x.abs() > 0.02], torch.tensor([1.0625, -1.1875, 1e6])])  # ties away, saturation
    fmt = lp.Float(4, 3, ties="away")
    assert torch.equal(lp.quantize(x, fmt), lp.quantize(x, fmt, backend="qtorch"))


@pytest.mark.compiler
@needs_compiler
def test_qtorchs_stochastic_block_kernel_agrees_in_the_mean():
    x = torch.rand(1, 64) + 0.5
    many = x.repeat(4000, 1)
    ours = lp.quantize(many, lp.BlockFloat(8, -1), "stochastic", seed=1).mean(0)
    theirs = lp.quantize(many, lp.BlockFloat(8, -1), "stochastic", backend="qtorch").mean(0)
    assert torch.allclose(ours, theirs, atol=5 * 2 * 2.0**-6 / 2 / math.sqrt(4000))


@pytest.mark.compiler
@needs_compiler
def test_qtorch_backend_refuses_what_qtorch_cannot():
    with pytest.raises(ValueError, match="float32 tensors only"):
        lp.quantize(torch.ones(3, dtype=torch.float64), lp.BlockFloat(8), backend="qtorch")
    with pytest.raises(ValueError, match="has no Float"):
        lp.quantize(torch.ones(3), lp.BF16, backend="qtorch")


def test_a_missing_compiler_is_explained(monkeypatch):
    from lowprec_eb.quantize import qtorch_backend

    def broken(name):
        raise RuntimeError("Ninja is required to load C++ extensions")

    qtorch_backend._kernels.cache_clear()
    monkeypatch.setattr(qtorch_backend.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="install a C\\+\\+ compiler"):
        lp.quantize(torch.ones(3), lp.BlockFloat(8), backend="qtorch")
    qtorch_backend._kernels.cache_clear()
