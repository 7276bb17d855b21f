"""What a product keeps between its forward and its backward pass, and that both read the same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import lowprec_eb as lp
from lowprec_eb import FixedPoint, Precision, Rounded


def lowered(precision: Precision, **options) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(16, 4, **options)
    lp.lower(layer, precision)
    return layer


def test_evaluation_differentiates_what_it_computed_with_a_running_range():
    layer = lowered(Precision(activation=Rounded("int4", running=0.5)), bias=False)
    layer(torch.randn(8, 16) * 10)
    layer.eval()
    x = torch.randn(1, 16)
    layer(x)[0, 0].backward()
    rounded = layer.weight.grad[0]
    torch.testing.assert_close(rounded @ layer.weight.detach().T, layer(x)[0].detach())


def test_bits_set_after_the_forward_pass_hold_from_the_next_one():
    layer = lowered(Precision(weight="int8", activation="int8"), bias=False)
    bits = {"weight": 8, "activation": 8}
    lp.set_bits(layer, bits)
    x = torch.randn(1, 16, requires_grad=True)

    def gradients(between: dict[str, int]) -> tuple[torch.Tensor, ...]:
        y = layer(x)[0, 0]
        lp.set_bits(layer, between)
        found = torch.autograd.grad(y, (x, layer.weight))
        lp.set_bits(layer, bits)
        return found

    for other, same in zip(gradients({"weight": 2, "activation": 2}), gradients(bits), strict=True):
        assert torch.equal(other, same)


BOTH = Precision(weight=FixedPoint(8, 4), activation=FixedPoint(8, 4), error=FixedPoint(8, 4))


@pytest.mark.parametrize("kind", ["torch", "lowered", "qtorch"])
def test_what_no_gradient_needs_may_change_before_the_backward_pass(kind):
    layer = nn.Linear(16, 4, bias=False)
    if kind != "torch":
        lp.lower(layer, replace(BOTH, backend="qtorch" if kind == "qtorch" else "auto"))
    y = layer(torch.randn(8, 16))
    with torch.no_grad():
        layer.weight.add_(1)  # its own gradient needs the input only
    y.sum().backward()
    layer.requires_grad_(False)
    x = torch.randn(8, 16, requires_grad=True) * 1
    y = layer(x)
    x.add_(y.sum())
    x.sum().backward()


@pytest.mark.parametrize("backend", ["auto", "qtorch"])
def test_a_bias_alone_learns(backend):
    layer = lowered(replace(BOTH, error=None, backend=backend))
    layer.weight.requires_grad_(False)
    layer(torch.randn(8, 16)).sum().backward()
    assert layer.bias.grad.tolist() == [8] * 4


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_layers_without_features_have_gradients_as_in_torch(shape):
    plain, lowered = torch.nn.Linear(*shape), torch.nn.Linear(*shape)
    lowered.load_state_dict(plain.state_dict())
    lp.lower(lowered, "mxfp8")
    x = torch.randn(2, 4, shape[0])
    for layer in (plain, lowered):
        layer(x).sum().backward()
        assert layer.weight.grad.shape == layer.weight.shape


def test_the_gradient_of_a_bias_lies_in_memory_of_its_own():
    """Of one sample without a batch dimension it is the rounded error itself, which lies in scratch memory."""
    layer = lowered(Precision(error="fp8_e5m2"))
    layer(torch.randn(16)).backward(torch.full((4,), 0.5))
    kept = layer.bias.grad
    layer.zero_grad()
    layer(torch.randn(16)).backward(torch.full((4,), 2.0))
    assert kept.tolist() == [0.5] * 4
