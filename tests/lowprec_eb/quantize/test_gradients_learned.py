"""Gradients of a learned scale and of a learned number of bits."""

import itertools
import math

import pytest
import torch

import lowprec_eb as lp


def sample(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- a learned scale: LSQ (Esser et al. 2020, equation 3) --------------------------------------------------------


def lsq(x, scale, zero, lowest, highest):
    """d quantize(x) / d scale of one element: rounding error in steps inside, the end's code outside."""
    u = x / scale + zero
    if u <= lowest:
        return lowest - zero
    if u >= highest:
        return highest - zero
    return round(u) - u  # Python rounds ties to even


SCALES = [  # format, its scales for a tensor of 4 x 6, the index of the scale of element (i, j)
    (lp.Int(4), (), lambda i, j: ()),
    (lp.Int(4), (1,), lambda i, j: 0),
    (lp.Int(4), (1, 1), lambda i, j: (0, 0)),
    (lp.Int(4, axis=0), (4, 1), lambda i, j: (i, 0)),
    (lp.Int(4, axis=0), (4,), lambda i, j: i),
    (lp.Int(4, axis=0), (), lambda i, j: ()),  # one scale for every slice
    (lp.Int(4, axis=1), (1, 6), lambda i, j: (0, j)),
    (lp.Int(4, axis=(0, 1)), (4, 6), lambda i, j: (i, j)),
    (lp.Int(4, block=4), (4, 2), lambda i, j: (i, j // 4)),  # runs of 4 and 2
    (lp.Int(4, block=3, block_axis=0), (2, 6), lambda i, j: (i // 3, j)),  # runs of 3 and 1
    (lp.Int(4, block=4), (), lambda i, j: ()),
]


@pytest.mark.parametrize(("fmt", "shape", "index"), SCALES)
def test_the_gradient_of_the_scale_is_lsqs(fmt, shape, index):
    x, incoming = sample(4, 6).double(), sample(4, 6, seed=1).double()
    scale = (torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 0.2 + 0.1).double()
    scale.requires_grad_()
    lp.quantize(x, fmt, scale=scale).backward(incoming)
    used, expected = scale.detach().float(), torch.zeros(shape, dtype=torch.float64)  # scales are float32
    for i, j in itertools.product(range(4), range(6)):
        expected[index(i, j)] += incoming[i, j] * lsq(x[i, j].item(), used[index(i, j)].item(), 0, -7, 7)
    assert scale.grad.shape == shape
    assert torch.allclose(scale.grad, expected, rtol=1e-6, atol=1e-9)


def test_the_gradient_of_an_affine_scale_counts_codes_from_the_zero_point():
    x, incoming = sample(50).double(), sample(50, seed=1).double()
    scale, zero = torch.tensor(0.125, dtype=torch.float64, requires_grad=True), 6
    lp.quantize(x, lp.Int(4, symmetric=False), scale=(scale, zero)).backward(incoming)
    expected = sum(g * lsq(v, 0.125, zero, 0, 15) for v, g in zip(x.tolist(), incoming.tolist(), strict=True))
    assert math.isclose(scale.grad.item(), expected, rel_tol=1e-9)
    scale.grad = None
    lp.quantize(x, lp.Int(4, symmetric=False, zero_point="minimum"), scale=(scale, -0.75)).backward(incoming)
    expected = sum(g * lsq(v + 0.75, 0.125, 0, 0, 15) for v, g in zip(x.tolist(), incoming.tolist(), strict=True))
    assert math.isclose(scale.grad.item(), expected, rel_tol=1e-9)


def test_the_gradient_of_a_scaled_floats_scale():
    # x / scale = 1.0625 and 500: half a step of 1/8 below... 1.0 (error -0.0625), and clamped to 448.
    scale = torch.tensor(2.0, requires_grad=True)
    lp.quantize(torch.tensor([2.125, 1000.0]), lp.ScaledFloat(lp.FP8_E4M3), scale=scale).backward(
        torch.tensor([1.0, 0.0])
    )
    assert scale.grad.item() == -0.0625
    scale.grad = None
    lp.quantize(torch.tensor([2.125, 1000.0]), lp.ScaledFloat(lp.FP8_E4M3), scale=scale).backward(
        torch.tensor([0.0, 1.0])
    )
    assert scale.grad.item() == 448


def test_where_all_is_clamped_the_gradient_of_the_scale_is_the_true_derivative():
    x = torch.tensor([9.0, -9.0, 20.0], dtype=torch.float64)
    scale = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: lp.quantize(x, lp.Int(4), scale=s), scale, eps=2.0**-10, atol=1e-6)


def test_scale_and_tensor_gradients_come_together_and_keep_their_dtypes():
    x, scale = sample(4, 6).bfloat16().requires_grad_(), torch.full((4, 1), 0.1, requires_grad=True)
    lp.quantize(x, lp.Int(4, axis=0), scale=scale, clamped_gradient="zero").sum().backward()
    assert (x.grad.dtype, scale.grad.dtype, scale.grad.shape) == (torch.bfloat16, torch.float32, (4, 1))
    assert torch.equal(x.grad == 0, x.abs() > 0.7)
    # Summed over many elements, the gradient does not stall at bfloat16's precision.
    many, scale = torch.full((4097,), 3.25 / 8, dtype=torch.bfloat16), torch.tensor(1 / 8, requires_grad=True)
    lp.quantize(many, lp.Int(4), scale=scale).sum().backward()
    assert scale.grad.item() == -4097 / 4


@pytest.mark.parametrize("pair", [("int8_affine", (0.1, 3.0)), ("nvfp4", (1.0, 1.0))])
def test_a_second_scale_that_asks_for_a_gradient_is_refused(pair):
    # Silence would leave it untrained.
    fmt, (scale, second) = pair
    with pytest.raises(ValueError, match="scale"):
        lp.quantize(sample(4, 16), fmt, scale=(torch.tensor(scale), torch.tensor(second, requires_grad=True)))


# ---- learned bits: LDP (Yu et al. 2022) --------------------------------------------------------------------------

X = torch.tensor([0.013, 0.61, -0.34, 1.27, 0.91, 1.96, -1.97], dtype=torch.float64)  # the last two clamp in some
LARGEST, LOWEST, HIGHEST = 1.97, -1.97, 1.96
SYMMETRIC = lp.FixedPoint(8, 7, symmetric=True)
MINIMUM = lp.Int(8, symmetric=False, zero_point="minimum")
BITS = [  # format, given scale; step, highest and lowest value as functions of real bits
    (lp.BlockFloat(8), None, lambda b: 2 ** (2 - b), lambda b: 2 - 2 ** (2 - b), lambda b: 2 ** (2 - b) - 2),
    (lp.FixedPoint(8, 7), None, lambda b: 2 ** (1 - b), lambda b: 1 - 2 ** (1 - b), lambda b: -1),
    (SYMMETRIC, None, lambda b: 2 ** (1 - b), lambda b: 1 - 2 ** (1 - b), lambda b: 2 ** (1 - b) - 1),
    (lp.Int(8), None, lambda b: LARGEST / (2 ** (b - 1) - 1), lambda b: LARGEST, lambda b: LOWEST),
    (lp.Int(8), 0.25, lambda b: 0.25, lambda b: (2 ** (b - 1) - 1) / 4, lambda b: (1 - 2 ** (b - 1)) / 4),
    (MINIMUM, None, lambda b: (HIGHEST - LOWEST) / (2**b - 1), lambda b: HIGHEST, lambda b: LOWEST),
    (lp.Int(8, symmetric=False), (0.125, 4.0), lambda b: 0.125, lambda b: (2**b - 5) / 8, lambda b: -0.5),
]


@pytest.mark.parametrize("bits", [3.0, 4.0, 3.7, 5.2])
@pytest.mark.parametrize(("fmt", "scale", "step", "top", "bottom"), BITS)
def test_the_gradient_of_the_bits_is_that_of_the_step_and_of_the_ends(fmt, scale, step, top, bottom, bits):
    incoming = sample(len(X), seed=1).double()
    learned = torch.tensor(bits, dtype=torch.float64, requires_grad=True)
    out = lp.quantize(X, fmt, bits=learned, scale=scale)
    out.backward(incoming)
    whole, h = round(bits), 1e-5

    def value(x, rounded, b):
        """Straight-through: the rounding error in steps stays, the step moves; a clamped value follows its end."""
        if x > top(whole) * (1 + 1e-6) or x < bottom(whole) * (1 + 1e-6):
            return top(b) if x > 0 else bottom(b)
        return x + (rounded - x) / step(whole) * step(b)

    expected = sum(
        g * (value(x, r, whole + h) - value(x, r, whole - h)) / (2 * h)
        for x, r, g in zip(X.tolist(), out.tolist(), incoming.tolist(), strict=True)
    )
    assert math.isclose(learned.grad.item(), expected, rel_tol=1e-4, abs_tol=1e-6)


def test_the_gradient_of_the_bits_is_ldps_formula():
    bits = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    lp.quantize(X, lp.Int(8, symmetric=False, zero_point="minimum"), bits=bits).sum().backward()
    step = (HIGHEST - LOWEST) / (2**4 - 1)
    slope = -(HIGHEST - LOWEST) * math.log(2) * 2**4 / (2**4 - 1) ** 2  # of the step
    u = (X - LOWEST) / step
    assert math.isclose(bits.grad.item(), ((u.round() - u) * slope).sum().item(), abs_tol=1e-6)


@pytest.mark.parametrize("shape", [(), (0, 6), (4, 6), (2, 3, 4, 5)])
@pytest.mark.parametrize(
    "fmt", [lp.Int(8, axis=0), lp.Int(8, block=4, symmetric=False), lp.BlockFloat(8, block=4)], ids=repr
)
def test_the_gradient_of_the_bits_has_their_shape_for_tensors_of_any(fmt, shape):
    for start in (torch.tensor(4.0), torch.tensor([4.0])):
        bits = start.requires_grad_()
        lp.quantize(sample(*shape), fmt, bits=bits).sum().backward()
        assert bits.grad.shape == bits.shape and bits.grad.isfinite().all()


# ---- gradients of gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", ["scale", "bits"])
def test_gradients_of_scale_and_bits_are_linear_in_the_incoming_gradient(learned):
    x = sample(4, 6).double().requires_grad_()
    value = torch.tensor({"scale": 0.2, "bits": 3.0}[learned], dtype=torch.float64, requires_grad=True)

    def of(incoming):
        out = lp.quantize(x, lp.Int(4), **{learned: value})
        return torch.autograd.grad(out, (x, value), incoming, create_graph=True)

    incoming = sample(4, 6, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(of, incoming)
    assert torch.autograd.gradgradcheck(of, incoming)
