"""The Triton kernels give the reference's bits: through Triton's interpreter on the CPU (conftest.py), or on CUDA."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton")

import lowprec_eb as lp
from lowprec_eb.formats import NAMED
from lowprec_eb.quantize import reference, triton_backend
from lowprec_eb.quantize.random_bits import uniform

pytestmark = [
    pytest.mark.interop,
    pytest.mark.filterwarnings("ignore:(overflow|invalid value|divide by zero).*:RuntimeWarning"),  # the interpreter's
]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDINGS = ["nearest", "nearest_away", "toward_zero", "stochastic"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FORMATS = NAMED | {
    "fixed without clamp": lp.FixedPoint(8, 4, clamp=False),
    "qtorch float": lp.Float(4, 3, ties="away"),
    "no subnormals": lp.Float(4, 3, subnormals=False),
    "overflow to NaN": lp.Float(4, 3, specials="nan", overflow="nan"),
    "block of tensor": lp.BlockFloat(6),
    "steps below float32's exponents": lp.MX(lp.FixedPoint(4, 10, symmetric=True)),
    "int of slice": lp.Int(6, axis=1),
    "int of 4 apart": lp.Int(4, block=4, block_axis=0),
    "affine from minimum": lp.Int(8, symmetric=False, zero_point="minimum"),
    "affine of slice": lp.Int(4, symmetric=False, axis=1),
    "two scales of 5": lp.ScaledFloat(lp.FP8_E5M2, scale=lp.FP16, block=5),
}
SHAPES = {"odd": (5, 33), "even": (4, 96), "slices": (2, 3, 70), "narrow slices": (3, 5, 3)}
EXTREMES = [0.0, -0.0, torch.inf, -torch.inf, 1e-40, -(2.0**-130), 2.0**-149, -3e38, 0.5, 2.5, -448.0, 65504.0]


def values(shape, dtype=torch.float32, extremes=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) * torch.exp2(torch.randint(-4, 5, shape, generator=generator))
    flat = x.view(-1)
    if extremes:
        flat[: len(EXTREMES)] = torch.tensor(EXTREMES[: flat.numel()])
    return x.to(dtype).to(DEVICE)


def same_bits(a, b):
    both_nan = a.isnan() & b.isnan()
    return a.dtype == b.dtype and bool((both_nan | ((a == b) & (a.signbit() == b.signbit()))).all())


def both(x, fmt, rounding, offset=0, given=()):
    seed = torch.tensor(-77, device=x.device) if rounding == "stochastic" else None
    results = []
    for backend in (reference, triton_backend):
        out = torch.empty_like(x)
        backend.quantize(x, fmt, rounding, seed, offset, list(given), out)
        results.append(out)
    return results


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_bits_are_the_reference_s(fmt, rounding, shape):
    for extremes, offset in ((True, 0), (False, 3)):
        assert same_bits(*both(values(shape, extremes=extremes), fmt, rounding, offset))


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_halves_are_rounded_as_the_reference_does(fmt, dtype):
    for rounding in ("nearest", "stochastic"):
        assert same_bits(*both(values((4, 33), dtype), fmt, rounding))


def test_a_fraction_goes_up_only_above_its_random_number():
    seed = torch.tensor(-77, device=DEVICE)
    numbers = uniform(torch.Size([256]), seed, 0, torch.float32)
    for x, expected in ((numbers, 0.0), (numbers + 2.0**-24, 1.0)):
        out = torch.empty_like(x)
        triton_backend.quantize(x, lp.FixedPoint(8, 0), "stochastic", seed, 0, [], out)
        assert (out == expected).all()


@pytest.mark.parametrize("offset", [1, 2**31 - 5, 2**32 + 6, 2**63 - 41])
def test_any_offset(offset):
    for fmt in (lp.FixedPoint(8, 4), lp.MX(lp.FP8_E4M3), lp.Int(8, axis=1)):
        assert same_bits(*both(values((4, 5, 6)), fmt, "stochastic", offset))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0)])
def test_small_tensors(shape):
    for fmt in (lp.BF16, lp.Int(8), lp.MXFP4, lp.NVFP4):
        if shape or fmt.blocks is None:
            assert same_bits(*both(values(shape, extremes=False), fmt, "nearest"))


@pytest.mark.parametrize("fmt", [lp.Int(8), lp.ScaledFloat(lp.FP8_E4M3, axis=0), lp.NVFP4, lp.BlockFloat(8, dim=1)])
def test_blocks_longer_than_a_tile_are_measured_before(fmt):
    for rounding in ("nearest", "stochastic"):
        assert same_bits(*both(values((2, 3, 8200)), fmt, rounding))


@pytest.mark.parametrize("shape", [(70, 2100), (300, 3)])
def test_columns_are_measured_before(shape):
    assert same_bits(*both(values(shape), lp.Int(8, axis=1), "stochastic"))


@pytest.mark.parametrize(
    ("fmt", "given"),
    [
        (lp.Int(8), [torch.tensor(0.02)]),
        (lp.Int(8, axis=1), [torch.tensor([0.02, 0.3, 1.0])]),
        (lp.Int(8, symmetric=False), [torch.tensor(0.02), torch.tensor(7.0)]),
        (lp.Int(8, symmetric=False, zero_point="minimum"), [torch.tensor(0.02), torch.tensor(-1.25)]),
        (lp.ScaledFloat(lp.FP8_E4M3), [torch.tensor(0.013)]),
        (lp.NVFP4, [torch.tensor(0.5), torch.tensor(0.03)]),
    ],
)
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_given_scales_saturate_infinities(fmt, given, rounding):
    rounded, expected = both(values((2, 3, 70)), fmt, rounding, given=[part.to(DEVICE) for part in given])
    assert same_bits(rounded, expected)
    assert rounded.isfinite().all()


def test_any_layout_and_in_place():
    x = values((4, 6, 5)).transpose(0, 2)
    assert same_bits(*both(x, lp.BlockFloat(8, 0), "stochastic"))
    whole = values((4, 96))
    expected, _ = both(whole, lp.MXFP8_E4M3, "nearest")
    before = whole._version
    triton_backend.quantize(whole, lp.MXFP8_E4M3, "nearest", None, 0, [], whole)
    assert same_bits(whole, expected)
    assert whole._version > before
    base = values((10,), extremes=False)
    expected, _ = both(base[:8], lp.FixedPoint(8, 2), "nearest")
    triton_backend.quantize(base[:8], lp.FixedPoint(8, 2), "nearest", None, 0, [], base[2:])
    assert same_bits(base[2:], expected)


def test_a_nan_stays_alone_or_is_refused():
    x = values((4, 96), extremes=False)
    x[0, 5] = torch.nan
    assert same_bits(*both(x, lp.MXFP8_E4M3, "nearest"))
    before = x.clone()
    with pytest.raises(ValueError, match="1 of 384 values are NaN"):
        triton_backend.quantize(x, lp.MXFP4, "nearest", None, 0, [], x)
    assert same_bits(x, before)


def test_it_says_what_it_cannot_do(monkeypatch):
    assert "not torch.float64" in triton_backend.plan_for(values((3,)).double(), lp.BF16, "nearest")
    assert "do not fit" in triton_backend.plan_for(values((3, 10001)), lp.Int(8, block=9000), "nearest")
    with pytest.raises(ValueError, match=r"cannot round this: .*float64.*backend='reference'"):
        triton_backend.quantize(values((3,)).double(), lp.BF16, "nearest", None, 0, [], values((3,)).double())
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "the tensor is on cpu" in triton_backend.plan_for(torch.ones(3), lp.BF16, "nearest")


COMPILE = """
import re, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lowprec_eb.formats import NAMED
from lowprec_eb.quantize.triton_backend import kernels, launches

names = kernels.round_tiles.arg_names
for fmt, rounding in [("bf16", "nearest"), ("mxint8", "stochastic"), ("nvfp4", "stochastic"), ("int8", "nearest_away")]:
    made = launches.launch(NAMED[fmt], rounding, (64, 96), torch.float32)
    tiles, rule = made.tiles, made.choices["RULE"]
    constants = made.choices | dict(
        LAYOUT=tiles.layout, PAIRED=tiles.even, WIDE=made.wide, R=tiles.height, W=tiles.width
    )
    kinds = dict.fromkeys(names, "i32") | dict(source="*fp32", target="*fp32", scales="*i32", zeros="*fp32")
    kinds |= dict(tensor="*i32", seed="*i64", damaged="*i32")
    numbers = zip(names[names.index("low") :], made.numbers)
    kinds |= {name: "fp32" for name, number in numbers if isinstance(number, float)}
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernels.round_tiles, kinds, {(names.index(name),): value for name, value in constants.items()})
    options = dict(enable_fp_fusion=False)
    ptx = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options).asm["ptx"]
    loose = re.findall(r"fma[.]|mad[.]f|div[.](?:full|approx)|[a-z.]+[.]ftz[.a-z0-9]*", ptx)
    print(fmt, sorted(set(loose) - {"cvt.rmi.ftz.f32.f32"}))  # the floor of a subnormal magnitude is 0 anyway
"""


def test_machine_code_neither_fuses_nor_flushes():
    """Compiled for a GPU, which needs none."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == ["bf16 []", "mxint8 []", "nvfp4 []", "int8 []"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_bits_are_those_of_the_cpu(fmt, rounding):
    seed = torch.tensor(5)
    for shape in ((257, 33, 3), (64, 1024), (3, 70000)):
        for dtype in DTYPES:
            x = values(shape, dtype).cpu()
            expected, found = torch.empty_like(x), torch.empty_like(x, device="cuda")
            reference.quantize(x, fmt, rounding, seed, 0, [], expected)
            triton_backend.quantize(x.cuda(), fmt, rounding, seed.cuda(), 0, [], found)
            assert same_bits(found.cpu(), expected), (shape, dtype)
