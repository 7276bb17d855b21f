"""The fast back end gives the reference's bits: for every format, dtype, shape, layout, rounding, seed and thread."""

import math
from dataclasses import replace

import pytest
import torch
from cases import FORMATS, REFUSES_NAN, ROUNDINGS, normal, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import lowprec_eb as lp
from lowprec_eb.quantize.fast import threads
from lowprec_eb.quantize.fast.order import order_of, rows_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_format = pytest.mark.parametrize("name", FORMATS)
inf, nan = math.inf, math.nan


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(
    params=[(1, True), (2, True), (3, True), (2, False)], ids=lambda how: f"{how[0]}{'' if how[1] else ' of Python'}"
)
def several_threads(request, monkeypatch):
    """That many threads, of OpenMP or of Python, from the first element on."""
    count, openmp = request.param
    monkeypatch.setattr(threads, "PARALLEL_FROM", 1)
    if not openmp:
        monkeypatch.setattr(threads, "_PYTHON_THREADS_FROM", 1)
        monkeypatch.setattr(threads, "_openmp", lambda: None)
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(1)


def assert_same(x, fmt, rounding="nearest", **options):
    """Both back ends give the same values, signs of zero, dtype, shape and memory layout."""
    options = {"seed": 7, **options}
    expected = lp.quantize(x, fmt, rounding, backend="reference", **options)
    found = lp.quantize(x, fmt, rounding, backend="fast", **options)
    assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
    assert same_bits(found, expected), first_difference(x, expected, found)


def first_difference(x, expected, found):
    for before, wanted, got in zip(x.flatten(), expected.flatten(), found.flatten(), strict=True):
        if not same_bits(wanted, got):
            return f"{before.item()!r} must become {wanted.item()!r}, not {got.item()!r}"
    return None


# ---- values ------------------------------------------------------------------------------------------------------


def raw_bits(count, dtype):
    """Every bit pattern as likely as any other: subnormals, NaN and infinities occur."""
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    low, high = torch.iinfo(integer).min, torch.iinfo(integer).max
    generator = torch.Generator().manual_seed(0)
    return torch.randint(low, high + 1, (count,), generator=generator, dtype=integer).view(dtype)


EXTREMES = [0.0, -0.0, inf, -inf, nan, 2.0**-149, -(2.0**-149), 2.0**-126, 2.0**-24, 65504.0, torch.finfo().max, -1.0]
VALUES = {
    "normal": lambda count, dtype: normal(count, dtype=dtype),
    "raw bits": raw_bits,
    "ties": lambda count, dtype: ((torch.arange(count) - count // 2) / 16).to(dtype),
    "extremes": lambda count, dtype: torch.tensor(EXTREMES).repeat(-(-count // len(EXTREMES)))[:count].to(dtype),
    "subnormal": lambda count, dtype: (normal(count) * 2.0 ** (-18 if dtype == torch.float16 else -130)).to(dtype),
    "huge": lambda count, dtype: (normal(count) * (2e4 if dtype == torch.float16 else 1e38)).to(dtype),
    "zeros": lambda count, dtype: torch.zeros(count, dtype=dtype),
}


def make(kind, shape, dtype, name=None):
    x = VALUES[kind](math.prod(shape), dtype).view(shape)
    return x.nan_to_num(0.0, inf, -inf) if name in REFUSES_NAN else x


@pytest.mark.parametrize("rounding", ROUNDINGS)
@each_dtype
@each_format
def test_every_format_rounding_dtype_and_kind_of_value(name, dtype, rounding):
    for kind in VALUES:
        assert_same(make(kind, (6, 37), dtype, name), FORMATS[name], rounding)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_format
def test_every_16_bit_number(name, dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).view(2**8, 2**8)
    x = x.nan_to_num(0.0, inf, -inf) if name in REFUSES_NAN else x
    assert_same(x, FORMATS[name])
    assert_same(x, FORMATS[name], "stochastic")


# ---- blocks ------------------------------------------------------------------------------------------------------

SHAPE = (3, 5, 4, 7)
BLOCKS = {
    "whole tensor": {},
    "first dimension": {"axis": 0},
    "middle dimension": {"axis": 1},
    "last dimension": {"axis": 3},
    "first two dimensions": {"axis": (0, 1)},
    "middle dimensions": {"axis": (2, 1)},
    "every dimension": {"axis": (0, 1, 2, 3)},
    "runs of 1": {"block": 1},
    "runs of 7": {"block": 7},
    "runs of 3, a last one of 1": {"block": 3},
    "runs longer than the tensor": {"block": 100},
    "runs along the first dimension": {"block": 2, "block_axis": 0},
    "runs along a middle dimension": {"block": 2, "block_axis": 1},
}
E4M3, FP8 = lp.FP8_E4M3, lp.FP8_E5M2
FAMILIES = {
    "Int": lambda **blocks: lp.Int(5, **blocks),
    "affine Int": lambda **blocks: lp.Int(5, symmetric=False, **blocks),
    "affine Int from the minimum": lambda **blocks: lp.Int(5, symmetric=False, zero_point="minimum", **blocks),
    "ScaledFloat": lambda **blocks: lp.ScaledFloat(E4M3, **blocks),
    "ScaledFloat with FP8 scales": lambda **blocks: lp.ScaledFloat(lp.FP4_E2M1, scale=E4M3, **blocks),
    "ScaledFloat of two levels": lambda **blocks: lp.ScaledFloat(FP8, scale=E4M3, tensor_scale=True, **blocks),
    "BlockFloat": lambda axis=-1, **blocks: lp.BlockFloat(6, axis, **blocks),
    "MX": lambda block=32, block_axis=-1, **slices: lp.MX(lp.FP6_E3M2, block, block_axis),
}
each_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.mark.parametrize("blocks", BLOCKS)
@each_family
def test_every_layout_of_blocks(family, blocks, several_threads):
    fmt = FAMILIES[family](**BLOCKS[blocks])
    loudness = torch.logspace(-6, 6, math.prod(SHAPE)).view(SHAPE)  # neighbouring blocks get different scales
    for dtype in DTYPES:
        x = (normal(*SHAPE) * loudness).to(dtype)
        x[0, 0, 0, 1], x[1, 2, 3, 4], x[2] = inf, -inf, 0.0
        for rounding in ("nearest", "stochastic"):
            assert_same(x, fmt, rounding)


@each_family
def test_dimensions_of_size_1_do_not_part_neighbours(family):
    fmt = FAMILIES[family](axis=(0, 2))
    assert_same(normal(4, 1, 5, 3), fmt)
    assert_same(normal(1, 6, 5, 3), fmt)


@each_family
def test_given_scales(family, several_threads):
    for blocks in ({"axis": 1}, {"block": 3}, {"block": 2, "block_axis": 0}):
        fmt = FAMILIES[family](**blocks)
        if isinstance(fmt, lp.BlockFloat | lp.MX):
            continue
        x = make("extremes", SHAPE, torch.float32).nan_to_num(0.5, inf, -inf)
        _, found = lp.encode(normal(*SHAPE), fmt)
        first, *second = found if isinstance(found, tuple) else (found,)
        for scale in (first, first * 1e-3, first.flatten()[0]):
            for rounding in ROUNDINGS:
                assert_same(x, fmt, rounding, scale=(scale, *second) if second else scale)


@pytest.mark.parametrize("fmt", [lp.Int(8), lp.Int(8, symmetric=False, axis=0), lp.BlockFloat(8), lp.FixedPoint(8, 6)])
def test_given_bits(fmt):
    for bits in (2, 5.4, 16):
        assert_same(normal(4, 9), fmt, "stochastic", bits=bits)


# ---- any format at all -------------------------------------------------------------------------------------------


@st.composite
def floats(draw):
    special, overflow = draw(st.sampled_from(["none", "nan", "ieee"])), "saturate"
    if special != "none":
        overflow = draw(st.sampled_from(["saturate", "nan"] + ["infinity"] * (special == "ieee")))
    ties, subnormals = draw(st.sampled_from(["even", "away"])), draw(st.booleans())
    return lp.Float(draw(st.integers(2, 8)), draw(st.integers(1, 23)), special, overflow, ties, subnormals)


@st.composite
def elements(draw):
    """What MX and ScaledFloat take."""
    element = replace(draw(floats()), overflow="saturate")
    return replace(element, exp=min(element.exp, 5), man=min(element.man, 15))


fixed_points = st.builds(lp.FixedPoint, st.integers(2, 24), st.integers(0, 64), st.booleans(), st.booleans())
steps = st.builds(lambda wl, fl: lp.FixedPoint(wl, fl, symmetric=True), st.integers(2, 16), st.integers(0, 22))
blocks = st.one_of(
    st.just({}),
    st.builds(lambda axis: {"axis": axis}, st.integers(0, 2)),
    st.builds(lambda block, axis: {"block": block, "block_axis": axis}, st.integers(1, 40), st.integers(-3, 2)),
)
widths = st.integers(2, 16)
ANY_FORMAT = st.one_of(
    floats(),
    fixed_points,
    st.builds(lambda wl, where: lp.BlockFloat(wl, where.get("axis", -1), where.get("block"), -1), widths, blocks),
    st.builds(lambda bits, where: lp.Int(bits, **where), widths, blocks),
    st.builds(
        lambda bits, zero, where: lp.Int(bits, symmetric=False, zero_point=zero, **where),
        widths,
        st.sampled_from(["integer", "minimum"]),
        blocks,
    ),
    st.builds(lp.MX, st.one_of(elements(), steps), st.integers(1, 40), st.integers(-3, 2)),
    st.builds(
        lambda element, scale, where: lp.ScaledFloat(element, scale=scale, **where),
        elements(),
        st.one_of(st.none(), floats().map(lambda fmt: replace(fmt, ties="even"))),
        blocks,
    ),
    st.builds(
        lambda element, scale, where: lp.ScaledFloat(element, scale=scale, tensor_scale=True, **where),
        elements(),
        elements().map(lambda fmt: replace(fmt, ties="even")),
        blocks,
    ),
)


@settings(max_examples=600, deadline=None)
@given(
    fmt=ANY_FORMAT,
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 40)),
    kind=st.sampled_from(list(VALUES)),
    dtype=st.sampled_from(DTYPES),
    rounding=st.sampled_from(ROUNDINGS),
    seed=st.integers(-(2**63), 2**63 - 1),
    offset=st.integers(0, 2**63 - 1),
)
def test_any_format(fmt, shape, kind, dtype, rounding, seed, offset):
    assert_same(make(kind, shape, dtype), fmt, rounding, seed=seed, offset=offset)


# ---- shapes, memory layouts, tiles -------------------------------------------------------------------------------

LAYOUTS = {
    "0-d": lambda: normal(),
    "one element": lambda: normal(1, 1),
    "no rows": lambda: torch.empty(0, 6),
    "no columns": lambda: torch.empty(4, 0),
    "odd": lambda: normal(7, 13),
    "transposed": lambda: normal(6, 4).T,
    "strided": lambda: normal(4, 12)[:, ::2],
    "shifted": lambda: normal(25)[1:].view(4, 6),
    "expanded": lambda: normal(1, 6).expand(4, 6),
    "one number everywhere": lambda: normal(1).expand(4, 6),
    "permuted": lambda: normal(3, 4, 5).permute(2, 0, 1),
    "channels last": lambda: normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "many dimensions": lambda: normal(*[2] * 8),
    "one long row": lambda: normal(1, 9001),
    "one long column": lambda: normal(9001, 1),
}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@each_layout
@each_format
def test_every_memory_layout(name, layout):
    for rounding in ("nearest", "stochastic"):
        for dtype in (torch.float32, torch.bfloat16):
            assert_same(LAYOUTS[layout]().to(dtype), FORMATS[name], rounding)


# A pair of numbers: a dense tensor in an order of its own, and how many loops its rows take.
ORDERS = {
    "channels last, even": (lambda: normal(3, 16, 4, 6).to(memory_format=torch.channels_last), 2),
    "channels last, odd": (lambda: normal(3, 19, 3, 5).to(memory_format=torch.channels_last), 2),
    "channels last, one image": (lambda: normal(1, 40, 5, 4).to(memory_format=torch.channels_last), 1),
    "channels last, 3-d": (lambda: normal(2, 9, 2, 3, 4).to(memory_format=torch.channels_last_3d), 2),
    "transposed": (lambda: normal(36, 8).T, 1),
    "transposed, odd": (lambda: normal(17, 9).T, 1),
    "heads": (lambda: normal(2, 6, 4, 16).transpose(1, 2), 3),
    "heads, odd": (lambda: normal(3, 5, 3, 11).transpose(1, 2), 3),
    "reversed": (lambda: normal(2, 3, 4, 12).permute(3, 2, 1, 0), 3),
}
KERNELS_LACK = {  # these are rounded in a contiguous copy
    "short rows": lambda: normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "too many loops": lambda: normal(2, 2, 2, 2, 9).permute(3, 2, 1, 0, 4),
}


def test_the_orders_mean_what_they_say():
    for x, loops in ((make_one(), loops) for make_one, loops in ORDERS.values()):
        rows = rows_of(x.shape, order_of(x))
        assert sum(stride != 0 for stride in rows.strides) == loops
    for make_one in KERNELS_LACK.values():
        x = make_one()
        assert rows_of(x.shape, order_of(x)) is None
    assert order_of(normal(4, 12)[:, ::2]) is None and order_of(normal(1, 6).expand(4, 6)) is None


@pytest.mark.parametrize("order", [*ORDERS, *KERNELS_LACK])
@each_format
def test_every_order_in_memory(name, order, several_threads):
    x = ORDERS[order][0]() if order in ORDERS else KERNELS_LACK[order]()
    for rounding in ("nearest", "stochastic"):
        assert_same(x, FORMATS[name], rounding)
    assert_same(x.bfloat16(), FORMATS[name], "stochastic", offset=4)
    assert_same(x, FORMATS[name], "stochastic", offset=2**40 + 1)


@pytest.mark.parametrize("order", ORDERS)
def test_given_scales_in_every_order(order):
    x = ORDERS[order][0]()
    for axis in range(x.dim()):
        count = x.shape[axis]
        scale = torch.linspace(0.01, 0.1, count).view([-1 if d == axis else 1 for d in range(x.dim())])
        assert_same(x, lp.Int(8, axis=axis), "stochastic", scale=scale)
        zero = torch.linspace(100, 140, count).round().view_as(scale)
        assert_same(x, lp.Int(8, symmetric=False, axis=axis), "nearest", scale=(scale, zero))


@pytest.mark.parametrize("order", ORDERS)
def test_into_a_tensor_of_another_order(order):
    x = ORDERS[order][0]()
    expected = lp.quantize(x, "fp8_e4m3", "stochastic", seed=7, backend="reference")
    for out in (torch.empty_like(x), torch.empty(x.shape)):
        assert same_bits(lp.quantize(x, "fp8_e4m3", "stochastic", seed=7, backend="fast", out=out), expected)
    own = x.clone()
    assert same_bits(lp.quantize_(own, "fp8_e4m3", "stochastic", seed=7, backend="fast"), expected)


def test_a_nan_in_another_order_leaves_the_tensor_as_it_was():
    x = normal(2, 16, 4, 4).to(memory_format=torch.channels_last)
    x[1, 3, 2, 1] = nan
    before = x.clone()
    with pytest.raises(ValueError, match="NaN"):
        lp.quantize_(x, lp.Float(4, 3, nan="error"), backend="fast")
    assert same_bits(x, before)


@pytest.mark.parametrize("zero_point", ["minimum", "integer"])
@pytest.mark.parametrize("kind", VALUES)
def test_the_range_of_affine_integers(kind, zero_point, several_threads):
    """Found by a kernel where blocks are runs: of the whole tensor, of rows, of blocks of a size."""
    for dtype in DTYPES:
        x = make(kind, (6, 40), dtype)
        for options in ({}, {"axis": 0}, {"axis": 1}, {"block": 16}):
            assert_same(x, lp.Int(8, symmetric=False, zero_point=zero_point, **options), "stochastic")


KINDS = ["fp8_e4m3", "fixed8", "block8", "int8_affine", "mxfp4", "nvfp4", "int of 4"]  # where one of a kind is enough
each_kind = pytest.mark.parametrize("name", KINDS)


@pytest.mark.parametrize("count", [1, 2, 31, 33, 1023, 1024, 1025, 2048, 5000])
@each_kind
def test_every_length_and_offset(name, count, several_threads):
    # Kernels go tile by tile, and two neighbours share a random word: neither may show.
    for offset in (0, 1, 2**40 + 1):
        assert_same(normal(count), FORMATS[name], "stochastic", offset=offset)


def test_indices_beyond_63_bits():
    assert_same(normal(5000), "fixed8", "stochastic", offset=2**63 - 1)


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
@each_kind
def test_every_seed(name, seed):
    assert_same(normal(50), FORMATS[name], "stochastic", seed=seed)


# ---- rare formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_scale_from_subnormal_numbers(dtype):
    # Small elements need a scale above the values, whose exponents lie below that of the smallest normal number.
    assert_same(make("subnormal", (4, 32), dtype), lp.MX(lp.FixedPoint(8, 14, symmetric=True)))


def test_scales_beyond_float32():
    # Eight exponent bits without codes for infinity and NaN reach 2 ** 128.
    assert_same(make("huge", (4, 32), torch.float32), lp.ScaledFloat(E4M3, scale=lp.Float(8, 3), block=8))


def test_a_scale_saturates_whatever_its_format_does_beyond_its_range():
    scale = lp.Float(4, 3, "nan", "nan")
    for tensor_scale in (False, True):
        fmt = lp.ScaledFloat(lp.FP4_E2M1, scale=scale, block=8, tensor_scale=tensor_scale)
        x = normal(4, 32) * 1e5
        assert torch.equal(lp.quantize(x, fmt), lp.quantize(x, replace(fmt, scale=E4M3)))
        assert_same(x, fmt)
