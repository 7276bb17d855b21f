"""lp.quantize under torch.func: vmap equals a loop over samples, and gradients nest with it."""

import pytest
import torch
from cases import FORMATS, normal, same_bits
from torch.func import functional_call, grad, jacrev, vmap

import lowprec_eb as lp

each_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@each_format
def test_vmap_equals_a_loop_over_samples(fmt, dim):
    x = normal(4, 5, 6)
    seeds = torch.arange(x.shape[dim])

    def function(x, seed):
        return lp.quantize(x, fmt, "stochastic", seed=seed)

    looped = torch.stack([function(sample, seed) for sample, seed in zip(x.unbind(dim), seeds, strict=True)], dim)
    assert same_bits(vmap(function, in_dims=(dim, 0), out_dims=dim)(x, seeds), looped)
    nearest = torch.stack([lp.quantize(sample, fmt) for sample in x.unbind(dim)])
    assert same_bits(vmap(lambda x: lp.quantize(x, fmt), in_dims=dim)(x), nearest)


@each_format
def test_vmap_of_encode_equals_a_loop(fmt):
    x = normal(3, 4, 6)
    coded = vmap(lambda x: lp.encode(x, fmt)[0])(x)
    assert torch.equal(coded, torch.stack([lp.encode(sample, fmt)[0] for sample in x]))


@each_format
def test_per_sample_gradients(fmt):
    options = {"clamped_gradient": "zero", "gradient_format": "fp8_e5m2"}
    x, weight = normal(4, 5, 6) * 100, normal(5, 4, 6)

    def loss(x, weight):
        return (lp.quantize(x, fmt, **options) * weight).sum()

    expected = []
    for sample, factor in zip(x.unbind(1), weight, strict=True):
        leaf = sample.clone().requires_grad_()
        loss(leaf, factor).backward()
        expected.append(leaf.grad)
    expected = torch.stack(expected)
    assert torch.equal(vmap(grad(loss), in_dims=(1, 0))(x, weight), expected)
    assert torch.equal(grad(lambda x: vmap(loss, in_dims=(1, 0))(x, weight).sum())(x), expected.movedim(0, 1))


LEARNED = {
    "scale": (lp.Int(4, axis=0), {"scale": torch.full((6, 1), 0.2)}),
    "bits": (lp.Int(8), {"bits": torch.tensor(3.7)}),
    "bits of BlockFloat": (lp.BlockFloat(8, block=4), {"bits": torch.tensor(3.7)}),
    "bits of FixedPoint": (lp.FixedPoint(8, 6), {"bits": torch.tensor(3.7)}),
    "scale and bits": (lp.Int(8), {"scale": torch.tensor(0.2), "bits": torch.tensor(3.7)}),
}


@pytest.mark.parametrize("fmt, learned", LEARNED.values(), ids=LEARNED)
def test_per_sample_gradients_of_scale_and_bits(fmt, learned):
    x, name = normal(3, 6, 6), next(iter(learned))
    values = torch.stack([learned[name] * factor for factor in (1.0, 1.2, 1.4)])

    def loss(value, x):
        return lp.quantize(x, fmt, **(learned | {name: value})).square().sum()

    looped = torch.stack([grad(loss)(value, sample) for value, sample in zip(values, x, strict=True)])
    assert torch.allclose(vmap(grad(loss))(values, x), looped)


def test_jacobians():
    def square(x):
        return lp.quantize(x, "int8").square().sum()

    x = normal(6)
    assert torch.equal(jacrev(lambda x: lp.quantize(x, "int8"))(x), torch.eye(6))
    assert torch.equal(jacrev(jacrev(square))(x), 2 * torch.eye(6))
    assert torch.equal(grad(lambda a: grad(lambda b: lp.quantize(a * b, "fp32").sum())(x).sum())(x), torch.ones(6))


def test_vmaps_randomness():
    x = torch.full((3, 100), 0.37)
    x[:, 0] = 1.0

    def function(x):
        return lp.quantize(x, "int4", "stochastic")

    same, different = (vmap(function, randomness=mode)(x) for mode in ("same", "different"))
    assert torch.equal(same[0], same[1]) and not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="random operation"):
        vmap(function)(x)


def test_vmap_over_no_samples_and_over_samples_of_samples():
    assert vmap(lambda x: lp.quantize(x, "int8"))(torch.empty(0, 4)).shape == (0, 4)
    nested = vmap(vmap(lambda x: lp.quantize(x, "int8")))(normal(2, 3, 4))
    assert torch.equal(nested, lp.quantize(normal(2, 3, 4), lp.Int(8, axis=(0, 1))))


def test_per_sample_gradients_of_a_model():
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), lp.Quantizer("int4"), torch.nn.Linear(4, 1))
    parameters, x = dict(model.named_parameters()), normal(5, 6)

    def loss(parameters, x):
        return functional_call(model, parameters, (x,)).sum()

    together = vmap(grad(loss), in_dims=(None, 0))(parameters, x)
    alone = [grad(loss)(parameters, sample) for sample in x]
    assert all(torch.allclose(together[k], torch.stack([one[k] for one in alone]), atol=1e-6) for k in parameters)
