"""The table of meanings in docs/formats.md as laws: for every format, dtype, shape and rounding."""

import os

import pytest
import torch
from cases import DTYPES, FORMATS, NOT_IDEMPOTENT, ROUNDINGS, normal, same_bits

import lowprec_eb as lp
from lowprec_eb.formats import is_affine

SHAPES = {
    "empty": lambda: normal(0),
    "empty rows": lambda: normal(3, 0),
    "no rows": lambda: normal(0, 5),
    "0-d": lambda: normal(),
    "one": lambda: normal(1),
    "odd": lambda: normal(37),
    "odd rows": lambda: normal(3, 37),
    "transposed": lambda: normal(7, 5).T,
    "every other": lambda: normal(6, 10)[::2, 1::3],
    "channels_last": lambda: normal(2, 3, 5, 4).to(memory_format=torch.channels_last),
    "expanded": lambda: normal(5, 1).expand(5, 9),
    "permuted": lambda: normal(3, 4, 5).permute(2, 0, 1),
}


# ---- shape, dtype, layout, codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FORMATS)
def test_shape_dtype_and_layout_stay_and_the_values_are_those_of_the_codes(name, shape, dtype):
    fmt, x = FORMATS[name], SHAPES[shape]().to(dtype)
    before = x.clone()
    for rounding in ROUNDINGS:
        rounded = lp.quantize(x, fmt, rounding, seed=3)
        assert (rounded.shape, rounded.dtype) == (x.shape, dtype)
        assert rounded.stride() == torch.empty_like(x).stride()
        codes, scales = lp.encode(x, fmt, rounding, seed=3)
        assert codes.shape == x.shape
        assert same_bits(lp.decode(codes, scales, fmt, dtype=dtype), rounded)
        # The layout has no say in the result.
        assert same_bits(lp.quantize(x.contiguous(), fmt, rounding, seed=3), rounded)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", FORMATS)
def test_codes_stay_within_the_bits_of_the_format(name):
    fmt, x = FORMATS[name], torch.cat([normal(100), torch.tensor([1e30, -1e30, 1e-30])]) * 10
    if name == "fixed without clamp":
        with pytest.raises(ValueError, match="values have no code in FixedPoint"):
            lp.encode(x, fmt)
        return
    codes, _ = lp.encode(x.view(1, -1), fmt)
    if isinstance(fmt.element, lp.Float):
        patterns = codes.long() & (2**32 - 1) if codes.dtype == torch.int32 else codes.long() % 2 ** max(fmt.bits, 8)
        assert patterns.min() >= 0 and patterns.max() < 2**fmt.bits
    elif is_affine(fmt):
        assert codes.min() == 0 and codes.max() == 2**fmt.bits - 1
    else:
        assert codes.min() >= -(2 ** (fmt.bits - 1)) and codes.max() <= 2 ** (fmt.bits - 1) - 1
    smallest = {8: (torch.int8, torch.uint8), 16: (torch.int16,), 32: (torch.int32,)}
    assert codes.dtype in smallest[8 if fmt.bits <= 8 else 16 if fmt.bits <= 16 else 32]


@pytest.mark.parametrize("name", FORMATS)
def test_each_block_rounds_as_a_tensor_of_its_own(name):
    fmt = FORMATS[name]
    if fmt.blocks is None or fmt.tensor_scale_bits:
        return
    x = normal(6, 11) * torch.logspace(-3, 3, 66).view(6, 11)
    rows, columns = (n // scales for n, scales in zip(x.shape, fmt.blocks.scale_shape(x.shape), strict=True))
    if fmt.block_size is not None:
        rows, columns = (fmt.block_size, 1) if fmt.blocks.axis == 0 else (1, fmt.block_size)
    whole = lp.quantize(x, fmt)
    for band, whole_band in zip(x.split(rows, 0), whole.split(rows, 0), strict=True):
        for part, whole_part in zip(band.split(columns, 1), whole_band.split(columns, 1), strict=True):
            assert torch.equal(lp.quantize(part, fmt), whole_part)


# ---- idempotence -------------------------------------------------------------------------------------------------

HARD_NUMBERS = {
    "normal": normal(5, 40),
    "many magnitudes": normal(5, 40) * torch.logspace(-30, 30, 200).view(5, 40),
    "ties": torch.arange(-100.0, 100.0).view(5, 40) / 16,
    "tiny": normal(5, 40) * 2.0**-140,
    "zeros": torch.zeros(5, 40),
    "large": normal(5, 40).clamp(-2, 2) * 2.0**124,
}


@pytest.mark.parametrize("numbers", HARD_NUMBERS)
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in NOT_IDEMPOTENT])
def test_rounding_twice_is_rounding_once(name, numbers):
    fmt, x = FORMATS[name], HARD_NUMBERS[numbers]
    for dtype in (torch.float32, torch.float64):
        for rounding in ROUNDINGS:
            once = lp.quantize(x.to(dtype), fmt, rounding, seed=1)
            for again in ROUNDINGS:
                assert same_bits(lp.quantize(once, fmt, again, seed=2), once), (dtype, rounding, again)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["fp8_e4m3", "fp8_e5m2", "fp4_e2m1", "mxfp4", "mxint8", "block8", "block of 3", "fixed8"]
)
def test_rounding_twice_is_rounding_once_where_a_16_bit_tensor_holds_the_values(name, dtype):
    for rounding in ROUNDINGS:
        once = lp.quantize(normal(5, 40, dtype=dtype), FORMATS[name], rounding, seed=1)
        assert same_bits(lp.quantize(once, FORMATS[name], rounding, seed=2), once)


@pytest.mark.parametrize("name", ["int8_affine", "affine from minimum"])
def test_affine_integers_are_idempotent_under_their_own_scales(name):
    fmt, x = FORMATS[name], normal(200) + 0.5
    for rounding in ROUNDINGS:
        codes, scales = lp.encode(x, fmt, rounding, seed=1)
        once = lp.decode(codes, scales, fmt)
        for again in ROUNDINGS:
            assert torch.equal(lp.quantize(once, fmt, again, seed=2, scale=scales), once)


def test_nvfp4_is_idempotent_to_nearest_while_its_block_scales_are_normal():
    for x in normal(200, 32):  # 200 tensors of two blocks
        once = lp.quantize(x, lp.NVFP4)
        assert torch.equal(lp.quantize(once, lp.NVFP4), once)


# ---- range and exactness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, fmt in FORMATS.items() if fmt.blocks is None])
def test_every_code_of_a_small_format_is_a_value_that_stays(name):
    fmt = FORMATS[name]
    if fmt.bits > 8:
        return
    dtype = torch.uint8 if isinstance(fmt, lp.Float) else torch.int8
    codes = torch.arange(256).to(torch.uint8).view(dtype) if fmt.bits == 8 else torch.arange(2**fmt.bits).to(dtype)
    values = lp.decode(codes, None, fmt)
    values, codes = values[values.isfinite()], codes[values.isfinite()]
    in_format = values.abs() >= (fmt.smallest if not getattr(fmt, "subnormals", True) else 0)
    in_format |= codes % 128 == 0
    in_format &= (values >= fmt.element.min) & (values <= fmt.element.max)
    values, codes = values[in_format], codes[in_format]
    for rounding in ROUNDINGS:
        assert torch.equal(lp.quantize(values, fmt, rounding, seed=0), values)
    assert torch.equal(lp.encode(values, fmt)[0], codes)
    assert values.max() == fmt.max and values[values > 0].min() == fmt.smallest


@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_element_of_a_block_is_a_large_code(name):
    fmt = FORMATS[name]
    if fmt.blocks is None:
        return
    x = torch.tensor([[3.0, -0.1, 0.02]])
    codes, scales = lp.encode(x, fmt)
    decoded = lp.decode(codes, scales, fmt)
    assert decoded[0, 0] == pytest.approx(3.0, rel=2.0**-fmt.mantissa_bits)


def test_block_float_exponents_end_at_float32s_own():
    subnormal = torch.tensor([2.0**-140, 2.0**-149])  # float32 numbers below 2**-126
    assert torch.equal(lp.quantize(subnormal, lp.BlockFloat(16)), torch.tensor([2.0**-140, 0.0]))
    huge = torch.tensor([1e300, -1e300], dtype=torch.float64)
    assert lp.quantize(huge, lp.BlockFloat(8)).tolist() == [127 * 2.0**121, -127 * 2.0**121]


def test_mx_exponents_end_at_127_on_both_sides():
    tiny, huge = (torch.tensor([v], dtype=torch.float64) for v in (1e-300, 1e300))
    assert lp.encode(tiny, lp.MXFP4)[1].item() == 2.0**-127
    assert lp.encode(torch.zeros(1), lp.MXFP4)[1].item() == 2.0**-127
    assert lp.encode(huge, lp.MXFP4)[1].item() == 2.0**127
    assert lp.quantize(huge, lp.MXFP4).item() == 6 * 2.0**127


@pytest.mark.parametrize("fmt", [lp.Int(8), lp.Int(8, symmetric=False), lp.ScaledFloat(lp.FP8_E4M3)], ids=repr)
def test_float32_scales_are_normal_numbers(fmt):
    for x in (torch.zeros(3), torch.tensor([1e-44, 0.0])):
        scales = lp.encode(x, fmt)[1]
        assert (scales[0] if isinstance(scales, tuple) else scales).item() == 2.0**-126 * (1 + 2.0**-23)


@pytest.mark.parametrize("wl", [2, 8, 16, 24])
def test_whole_numbers_of_steps_are_exact(wl):
    codes = torch.tensor([0, 1, -1, 2 ** (wl - 1) - 1, -(2 ** (wl - 1)), 2 ** (wl - 2)], dtype=torch.int32)
    for fl in (0, wl, 64):
        fmt = lp.FixedPoint(wl, fl)
        x = (codes.double() * 2.0**-fl).float()
        for rounding in ROUNDINGS:
            assert torch.equal(lp.quantize(x, fmt, rounding, seed=0), x)
            assert torch.equal(lp.encode(x, fmt, rounding, seed=0)[0].int(), codes)


def test_fixed_point_without_clamp_lets_any_magnitude_pass():
    for fl in (0, 64):
        x = torch.tensor([1e300, -1e300, 2.0**1023], dtype=torch.float64)
        assert torch.equal(lp.quantize(x, lp.FixedPoint(8, fl, clamp=False)), x)


# ---- seeds and offsets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_shards_round_as_the_whole(name):
    fmt, given = FORMATS[name], {}
    x = normal(15, 32).clamp(-1.9, 1.9)
    x[:, 0] = 1.9  # so that the shards of a tensor with one scale find the same
    if is_affine(fmt):
        given["scale"] = (torch.tensor(0.01), torch.tensor(3.0))
    elif name in ("int of slice", "int of 4"):  # blocks across the shards
        given["scale"] = 0.05
    whole = lp.quantize(x, fmt, "stochastic", seed=5, **given)
    for start in (0, 5, 10):
        shard = x[start : start + 5]
        for offset in (32 * start, torch.tensor(32 * start)):
            rounded = lp.quantize(shard, fmt, "stochastic", seed=torch.tensor(5), offset=offset, **given)
            codes, scales = lp.encode(shard, fmt, "stochastic", seed=5, offset=offset, **given)
            assert torch.equal(rounded, whole[start : start + 5])
            assert torch.equal(lp.decode(codes, scales, fmt), rounded)


@pytest.mark.parametrize("start", [1, 2, 31, 2**31 - 3, 2**32 - 3, 2**33 + 1, 2**62])
def test_offsets_of_any_size_continue_the_same_sequence(start):
    x, fmt = torch.full((64,), 0.5), lp.FixedPoint(8, 0)
    whole = lp.quantize(x, fmt, "stochastic", seed=5, offset=start)
    assert 0 < whole.sum() < 64
    for cut in (1, 2, 7):
        assert torch.equal(lp.quantize(x[cut:], fmt, "stochastic", seed=5, offset=start + cut), whole[cut:])


def test_seeds_are_int64_numbers_and_may_be_tensors():
    x = torch.full((64,), 0.5)
    seeds = [0, 1, -1, 2**63 - 1, -(2**63)]
    results = [lp.quantize(x, lp.FixedPoint(8, 0), "stochastic", seed=seed) for seed in seeds]
    assert len({tuple(result.tolist()) for result in results}) == len(seeds)
    for seed, result in zip(seeds, results, strict=True):
        assert torch.equal(lp.quantize(x, lp.FixedPoint(8, 0), "stochastic", seed=torch.tensor(seed)), result)


# ---- large tensors -----------------------------------------------------------------------------------------------


@pytest.mark.huge
@pytest.mark.skipif(not os.environ.get("LOWPREC_EB_HUGE"), reason="takes 140 GB; set LOWPREC_EB_HUGE=1 to run it")
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("fmt", [lp.FP8_E4M3, lp.FixedPoint(8, 4), lp.Int(8), lp.BlockFloat(8, block=32)], ids=repr)
def test_more_than_two_to_the_31_elements(fmt, rounding):
    count, part = 2**31 + 2**20 + 32, 2**20
    x = torch.zeros(count, dtype=torch.float16)
    x[0] = 4.0  # the largest value of the tensor, and of both parts below
    for start in (2**31 - part // 2, count - part):
        x[start : start + part] = normal(part, dtype=torch.float16).clamp(-4, 4)
        x[start] = 4.0
    rounded = lp.quantize(x, fmt, rounding, seed=7)
    for start in (2**31 - part // 2, count - part):
        alone = lp.quantize(x[start : start + part], fmt, rounding, seed=7, offset=start)
        assert torch.equal(rounded[start : start + part], alone)
