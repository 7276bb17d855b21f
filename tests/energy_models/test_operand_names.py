"""Which operand of a product is the weight, where that is not plain."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energy_models.counter import count


def products(model: nn.Module, inputs: Tensor, **options: bool) -> list[tuple[str, str, str, str]]:
    """(layer, GEMM, its operands' names) of each product."""
    counts = count(model, inputs, **options)
    assert counts.gemms == count(model, inputs, values=True, **options).gemms
    return [(gemm.layer, gemm.gemm, gemm.a.name, gemm.b.name) for gemm in counts.gemms]


class LearnedQueries(nn.Module):
    """Latents that no input decides, as in DETR and the Perceiver."""

    def __init__(self) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.zeros(3, 8))
        self.norm = nn.LayerNorm(8)
        self.query = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.query(self.norm(self.latents)) @ x.transpose(1, 2)


def test_a_layer_has_one_weight_and_what_comes_from_outside_is_data() -> None:
    assert products(LearnedQueries(), torch.zeros(2, 5, 8)) == [
        ("query", "output", "activation", "weight"),
        ("", "output", "activation", "activation"),
        ("", "grad_input", "error", "activation"),
        ("query", "grad_weight", "error", "activation"),
        ("query", "grad_input", "error", "weight"),
    ]


class Merged(nn.Module):
    """An adapter of low rank, multiplied out before it meets an input: two weights of inner layers."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.up.weight @ self.down.weight)


def test_a_product_of_two_weights_of_inner_layers_is_a_weight() -> None:
    assert products(Merged(), torch.zeros(5, 4)) == [
        ("", "output", "weight", "weight"),
        ("", "output", "activation", "weight"),
        ("", "grad_weight", "error", "activation"),
        ("", "grad_input", "weight", "error"),
        ("", "grad_input", "error", "weight"),
    ]


def test_a_weight_divided_by_its_spectral_norm_is_a_weight() -> None:
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 5, bias=False))
    assert [row for row in products(model, torch.zeros(3, 4)) if row[0] == ""] == [
        ("", "output", "activation", "weight"),
        ("", "grad_weight", "error", "activation"),
    ]


class Unregistered(nn.Module):
    """A layer that torch does not know of, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(4, 4, bias=False)]

    def forward(self, x: Tensor) -> Tensor:
        return self.hidden[0](x)


def test_a_parameter_is_a_weight_whoever_holds_it() -> None:
    assert products(Unregistered(), torch.zeros(2, 4)) == [
        ("", "output", "activation", "weight"),
        ("", "grad_weight", "error", "activation"),
    ]


class Held(nn.Module):
    """A function that holds the model itself: it calls that, not the copy that is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)
        self.call = lambda x: self.norm(self.layer(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


def test_what_a_function_holds_is_counted_and_keeps_its_gradient_and_buffers() -> None:
    model, x = Held(), torch.eye(4)[:2]
    names = [("", "output", "activation", "weight"), ("", "grad_weight", "error", "activation")]
    assert products(model, x) == names
    assert model.layer.weight.grad is None
    assert model.norm.num_batches_tracked == 0 and not model.norm.running_mean.any()
    model(x).sum().backward()
    gradient = model.layer.weight.grad
    expected = gradient.clone()
    assert products(model, x) == names
    assert model.layer.weight.grad is gradient
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


def test_the_gradient_of_a_bias_is_one_under_autocast_too() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        counts = count(nn.Linear(4, 3), torch.zeros(2, 4))
    assert [(op.kind, op.part) for op in counts.element_ops] == [("bias", "forward"), ("bias", "backward")]
