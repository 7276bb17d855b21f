"""Gradients through a quantizer: straight-through, stopped where clamped, and rounded to a format of their own."""

import math

import pytest
import torch

import lowprec_eb as lp
from lowprec_eb.formats import NAMED

VARIANTS = [
    lp.Int(4, axis=0),
    lp.Int(8, block=4),
    lp.Int(5, symmetric=False, block=4),
    lp.Int(8, symmetric=False, axis=0, zero_point="minimum"),
    lp.BlockFloat(6),
    lp.BlockFloat(6, dim=(0, 1)),
    lp.BlockFloat(6, block=4),
    lp.FixedPoint(6, 2, symmetric=True),
    lp.FixedPoint(6, 2, clamp=False),
    lp.Float(4, 3, subnormals=False),
    lp.ScaledFloat(lp.FP8_E4M3, axis=0),
]
FORMATS = [*NAMED.values(), *VARIANTS]
ROUNDINGS = ["nearest", "nearest_away", "toward_zero", "stochastic"]


def sample(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradient(x, fmt, incoming, **options):
    """d (quantize(x) . incoming) / d x."""
    x = x.detach().clone().requires_grad_()
    lp.quantize(x, fmt, **options).backward(incoming)
    return x.grad


# ---- straight through --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_the_gradient_passes_straight_through(fmt, rounding):
    incoming = sample(4, 6, seed=1)
    assert torch.equal(gradient(sample(4, 6) * 1000, fmt, incoming, rounding=rounding), incoming)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_gradient_has_the_tensors_dtype(dtype):
    incoming = sample(4, 6).to(dtype)
    passed = gradient(sample(4, 6).to(dtype), "int8", incoming, clamped_gradient="zero", gradient_format="fp8_e5m2")
    assert passed.dtype == dtype


def test_no_gradient_is_asked_no_graph_is_built():
    x = sample(4, 6).requires_grad_()
    assert lp.quantize(x, "int8").requires_grad
    assert not lp.quantize(x.detach(), "int8").requires_grad
    with torch.no_grad():
        assert not lp.quantize(x, "int8").requires_grad


# ---- clamped straight through ------------------------------------------------------------------------------------

INF = math.inf
CLAMPED = [  # format, values, whether the gradient passes, given scale
    ("fp8_e4m3", [448.0, 449.0, -449.0, 0.0, INF], [1, 0, 0, 1, 0], None),  # largest 448
    ("fp16", [65504.0, 65505.0, -1e6], [1, 0, 0], None),  # also where the overflow is infinity
    ("fp4_e2m1", [6.0, 6.1, -5.0], [1, 0, 1], None),
    (lp.FixedPoint(8, 4), [7.9375, 8.0, -8.0, -8.1], [1, 0, 1, 0], None),  # lowest -8, highest 7.9375
    (lp.FixedPoint(8, 4, symmetric=True), [7.9375, 8.0, -8.0, -7.9], [1, 0, 0, 1], None),
    (lp.FixedPoint(8, 4, clamp=False), [7.9375, 8.0, -99.0], [1, 1, 1], None),  # nothing clamps
    (lp.BlockFloat(8), [1.99, -1.99, 127 / 64, 0.5], [0, 0, 1, 1], None),  # largest 127/64
    (lp.BlockFloat(8, dim=0), [[1.99, 1.0], [3.9, 1.99]], [[0, 1], [1, 1]], None),  # 3.9 of 3.97
    (lp.BlockFloat(8, block=2), [1.99, 1.0, 1.99, 3.9], [0, 1, 1, 1], None),
    (lp.MX(lp.FP4_E2M1, block=2), [7.0, 1.0, 6.0, 1.0], [0, 1, 1, 1], None),  # scale 1, largest 6
    (lp.MXINT8, [1.99, 1.0], [0, 1], None),
    (lp.Int(4), [0.7, 0.71, -0.7, -0.8], [1, 0, 1, 0], 0.1001),  # codes to 7
    (lp.Int(4, axis=0), [[0.6, 0.8], [0.6, 0.8]], [[1, 0], [1, 1]], torch.tensor([[0.1], [0.2]])),
    (lp.Int(4, symmetric=False), [-0.4, -0.2, 1.2, 1.3], [0, 1, 1, 0], (0.1001, 3.0)),  # from -0.3 to 1.2
    (lp.Int(4, symmetric=False, zero_point="minimum"), [0.9, 1.0, 2.5, 2.6], [0, 1, 1, 0], (0.1001, 1.0)),
    (lp.ScaledFloat(lp.FP8_E4M3), [89.0, 90.0], [1, 0], 0.2),  # largest 448 * 0.2
    ("nvfp4", [6.5, -1.0], [0, 1], (1.0, 1.0)),
]


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize(("fmt", "values", "passes", "scale"), CLAMPED)
def test_clamped_elements_have_no_gradient_where_asked(fmt, values, passes, scale, rounding):
    x = torch.tensor(values)
    incoming = torch.full_like(x, 3.0)
    passed = gradient(x, fmt, incoming, scale=scale, rounding=rounding, clamped_gradient="zero")
    assert torch.equal(passed, incoming * torch.tensor(passes))


def test_a_nan_is_not_clamped():
    x = torch.tensor([math.nan, 1.0, 500.0])
    assert gradient(x, "fp8_e4m3", torch.ones(3), clamped_gradient="zero").tolist() == [1, 1, 0]


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt.kind not in ("integer", "fixed_point")], ids=repr)
def test_the_gradient_stops_beyond_the_largest_value_of_the_block(fmt):
    # The ends of each block, by its scales: what the largest code stands for.
    x = sample(8, 32) * torch.logspace(-1, 3, 8)[:, None]
    _, scales = lp.encode(x, fmt)
    largest_code, _ = lp.encode(torch.tensor(fmt.element.max), fmt.element)
    largest = lp.decode(largest_code.expand(8, 32), scales, fmt)
    clearly = (x.abs() - largest).abs() > 1e-5 * largest  # what sits on the end is a test of its own
    stopped = gradient(x, fmt, torch.ones_like(x), clamped_gradient="zero") == 0
    assert torch.equal(stopped[clearly], (x.abs() > largest)[clearly])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "fmt",
    [
        lp.Int(4),
        lp.Int(8),
        lp.Int(8, symmetric=False),
        lp.Int(8, symmetric=False, zero_point="minimum"),
        lp.ScaledFloat(lp.FP8_E4M3),
    ],
    ids=repr,
)
def test_a_scale_from_the_block_itself_clamps_none_of_its_values(fmt, dtype):
    # Rounding of the scale and of the zero point must not count as clamping.
    for seed in range(100):
        x = sample(16, seed=seed).to(dtype)
        assert (gradient(x, fmt, torch.ones_like(x), clamped_gradient="zero") == 1).all()


# ---- the gradient in a format of its own -------------------------------------------------------------------------


@pytest.mark.parametrize("rounding", ["nearest", "nearest_away", "toward_zero"])
@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_the_gradient_is_rounded_to_its_own_format(fmt, rounding):
    incoming = sample(4, 6, seed=1)
    expected = lp.quantize(incoming, fmt, rounding)
    assert torch.equal(
        gradient(sample(4, 6), "bf16", incoming, gradient_format=fmt, gradient_rounding=rounding), expected
    )
    only = gradient(sample(4, 6), None, incoming, gradient_format=fmt, gradient_rounding=rounding)
    assert torch.equal(only, expected)


def test_clamped_elements_are_zeroed_before_the_gradient_is_rounded():
    # 100 sits on a clamped element: it must not set the scale of the others.
    incoming = torch.tensor([100.0, 0.3])
    options = {"clamped_gradient": "zero", "gradient_format": lp.Int(4)}
    assert torch.equal(
        gradient(torch.tensor([500.0, 1.0]), "fp8_e4m3", incoming, **options),
        lp.quantize(torch.tensor([0.0, 0.3]), lp.Int(4)),
    )


STOCHASTIC = {"gradient_format": lp.FixedPoint(8, 2), "gradient_rounding": "stochastic"}


@pytest.mark.parametrize("fmt", ["fixed8", None])
def test_the_random_bits_of_the_gradient_come_from_the_seed(fmt):
    x, incoming = sample(500), sample(500, seed=1)
    first = gradient(x, fmt, incoming, seed=3, **STOCHASTIC)
    assert torch.equal(first, gradient(x, fmt, incoming, seed=3, **STOCHASTIC))
    assert torch.equal(first, gradient(x, fmt, incoming, seed=torch.tensor(3), **STOCHASTIC))  # int or tensor
    assert not torch.equal(first, gradient(x, fmt, incoming, seed=4, **STOCHASTIC))


@pytest.mark.parametrize("fmt", ["fixed8", None])
def test_the_random_bits_of_the_gradient_come_from_torchs_generator(fmt):
    x, incoming = sample(500), sample(500, seed=1)
    torch.manual_seed(5)
    first, second = (gradient(x, fmt, incoming, **STOCHASTIC) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(first, gradient(x, fmt, incoming, **STOCHASTIC))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("seed", [3, torch.tensor(3), None])
def test_the_gradient_does_not_reuse_the_random_bits_of_the_forward(seed):
    x = sample(2000).requires_grad_()
    out = lp.quantize(x, lp.FixedPoint(8, 2), "stochastic", seed=seed, **STOCHASTIC)
    out.backward(x.detach())  # the same numbers in the same format
    up, gradient_up = out.detach() > x.detach(), x.grad > x.detach()
    both = torch.corrcoef(torch.stack([(up ^ (x < 0)).float(), (gradient_up ^ (x < 0)).float()]))[0, 1]
    fraction = (x.detach().abs() * 4) % 1
    centred = ((up ^ (x < 0)).float() - fraction) * ((gradient_up ^ (x < 0)).float() - fraction)
    assert both < 0.9 and abs(centred.mean()) < 5 * centred.std() / math.sqrt(2000)  # independent given the fraction


@pytest.mark.parametrize("fmt", ["fixed8", None])
def test_shards_round_their_gradients_like_the_whole(fmt):
    x, incoming = sample(8, 5), sample(8, 5, seed=1)
    whole = gradient(x, fmt, incoming, seed=3, **STOCHASTIC)
    shard = gradient(x[5:], fmt, incoming[5:], seed=3, offset=25, **STOCHASTIC)
    assert torch.equal(whole[5:], shard)


# ---- gradients of gradients --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
def test_double_backward_of_the_straight_through_gradient(fmt):
    # loss = sum q(x)^2 / 2 has gradient q(x), whose gradient is straight-through again.
    x = sample(4, 6).requires_grad_()
    out = lp.quantize(x, fmt, clamped_gradient="zero")
    (first,) = torch.autograd.grad(out.square().sum() / 2, x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    inside = (gradient(x, fmt, torch.ones_like(x), clamped_gradient="zero") == 1).float()
    assert torch.equal(first, out * inside) and torch.equal(second, inside)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_double_backward_passes_through_a_rounded_gradient(rounding):
    x, incoming = sample(4, 6).requires_grad_(), sample(4, 6, seed=1).requires_grad_()
    out = lp.quantize(x, "int8", seed=2, gradient_format="fp4_e2m1", gradient_rounding=rounding)
    (first,) = torch.autograd.grad(out, x, incoming, create_graph=True)
    first.backward(torch.arange(24.0).view(4, 6))
    assert torch.equal(incoming.grad, torch.arange(24.0).view(4, 6))
