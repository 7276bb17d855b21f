"""Rounded tensors as 8-bit codes: their values come back bit for bit."""

import pytest
import torch
from cases import FORMATS, normal, same_bits

import lowprec_eb as lp
from lowprec_eb.quantize.fast import threads
from lowprec_eb.quantize.fast.packed import has_codes, round_and_pack

EIGHT_BITS = [name for name, fmt in FORMATS.items() if has_codes(fmt)]
SHAPES = {
    "contiguous": lambda: normal(4, 16, 6, 8),
    "channels last": lambda: normal(4, 16, 6, 8).to(memory_format=torch.channels_last),
    "odd": lambda: normal(3, 17, 5).transpose(1, 2),
    "matrix": lambda: normal(7, 33),
}
RANGES = {"around 1": 1.0, "small": 1e-3, "huge": 1e30, "subnormal": 2.0**-140, "zero": 0.0}


@pytest.fixture(params=[1, 2])
def several_threads(request, monkeypatch):
    monkeypatch.setattr(threads, "PARALLEL_FROM", 1)
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(1)


def test_formats_of_every_kind_have_codes():
    kinds = {type(FORMATS[name]).__name__ for name in EIGHT_BITS}
    assert kinds == {"FixedPoint", "BlockFloat", "Float", "Int", "MX", "ScaledFloat"}
    for wider in (
        lp.BF16,
        lp.BlockFloat(9, 0),
        lp.Int(9),
        lp.FixedPoint(8, 4, clamp=False),
        lp.Float(4, 3, nan="error"),
    ):
        assert not has_codes(wider)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EIGHT_BITS)
def test_values_come_back(name, shape, several_threads):
    fmt = FORMATS[name]
    for scale in RANGES.values():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for rounding in ("nearest", "stochastic"):
                x = (SHAPES[shape]() * scale).to(dtype)
                out = torch.empty_like(x)
                expected = lp.quantize(x, fmt, rounding, seed=5)
                found = round_and_pack(x, fmt, rounding, torch.tensor(5), out)
                assert same_bits(out, expected) or found is None
                if found is None:  # no kernel for this order, or the scale took float16 to infinity
                    assert not x.isfinite().all() or not x.is_contiguous()
                    continue
                codes, packed = found
                assert codes.dtype == torch.uint8 and codes.stride() == x.stride()
                assert same_bits(packed.unpack(codes), expected)
                assert packed.unpack(codes, out.zero_()) is out and same_bits(out, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_has_no_code(bad):
    x = normal(5, 40)
    x[3, 7] = bad
    for name in EIGHT_BITS:
        assert round_and_pack(x, FORMATS[name], "nearest", None, torch.empty_like(x)) is None


def test_tensors_that_lie_apart_or_are_empty_have_none():
    fmt = lp.Int(8)
    for x in (normal(4, 12)[:, ::2], torch.empty(0, 3), normal(1, 6).expand(4, 6)):
        assert round_and_pack(x, fmt, "nearest", None, torch.empty_like(x)) is None
    x = normal(4, 6)
    assert round_and_pack(x, fmt, "nearest", None, torch.empty(6, 4).T) is None
