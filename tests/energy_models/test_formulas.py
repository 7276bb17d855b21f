"""Formulas for operators that the package does not know."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import energy_models as em


@torch.library.custom_op("formula_hook::product", mutates_args=())
def product(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    return scale * (x @ weight.t())


@torch.library.custom_op("formula_hook::product_backward", mutates_args=())
def product_backward(error: Tensor, x: Tensor, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return scale * (error @ weight), scale * (error.t() @ x)


@torch.library.custom_op("formula_hook::no_fake", mutates_args=())
def no_fake(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.t()


@product.register_fake
def _(x: Tensor, weight: Tensor, scale: float) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@product_backward.register_fake
def _(error: Tensor, x: Tensor, weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _keep(ctx: Any, inputs: Any, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.scale = inputs[2]


def _gradients(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor, None]:
    return *product_backward(error, *ctx.saved_tensors, ctx.scale), None


product.register_autograd(_gradients, setup_context=_keep)


def forward_formula(call: em.Call) -> Iterator[em.Product | em.ElementOps]:
    x, weight, out = call.args["x"], call.args["weight"], call.results[0]
    yield em.Product(x, weight, out, 1, x.shape[0], weight.shape[0], weight.shape[1])
    yield em.ElementOps("scaling", "", out.numel(), fp_mul=out.numel())


def backward_formula(call: em.Call) -> list[em.Product]:
    error, x, weight = call.args["error"], call.args["x"], call.args["weight"]
    (rows, outputs), inputs = error.shape, x.shape[1]
    return [
        em.Product(error, weight, call.results[0], 1, rows, inputs, outputs, gemm="grad_input"),
        em.Product(error, x, call.results[1], 1, outputs, inputs, rows, gemm="grad_weight"),
    ]


FORMULAS = {"formula_hook::product": forward_formula, "formula_hook::product_backward": backward_formula}


class Own(nn.Module):
    def __init__(self, inputs: int, outputs: int, has_fake: bool = True) -> None:
        super().__init__()
        self.weight, self.has_fake = nn.Parameter(torch.ones(outputs, inputs)), has_fake

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight, 2.0) if self.has_fake else no_fake(x, self.weight)


def test_a_custom_layer_is_counted_as_the_linear_layer_it_is() -> None:
    x = torch.zeros(4, 3)
    own = em.count(nn.Sequential(nn.Linear(3, 6, bias=False), Own(6, 5)), x, formulas=FORMULAS)
    plain = em.count(nn.Sequential(nn.Linear(3, 6, bias=False), nn.Linear(6, 5, bias=False)), x)
    assert own.macs == plain.macs == {"output": 4 * 48, "grad_input": 4 * 30, "grad_weight": 4 * 48}
    sides = [
        [(one.layer, one.gemm, one.m, one.n, one.k, one.a.name, one.b.name) for one in counts.gemms]
        for counts in (own, plain)
    ]
    assert sorted(sides[0]) == sorted(sides[1])
    assert own.element_ops_by_kind == {"scaling": 20}
    assert own.uncounted == ()
    assert own.at(Eight()).macs_by_bits.keys() == {(name, 8, 8) for name in own.macs}


class Eight:
    """8 bits everywhere."""

    def operand_format(self, layer: str, gemm: str, operand: str) -> em.NumberFormat | None:
        return em.FormatSpec("fixed_point", bits=8, exponent_bits=0, mantissa_bits=7)


def test_without_a_formula_both_operators_are_listed_or_refused() -> None:
    model, x = nn.Sequential(nn.Linear(3, 6), Own(6, 5)), torch.zeros(4, 3)
    names = ("1: formula_hook.product", "1: formula_hook.product_backward")
    assert em.count(model, x).uncounted == names
    with pytest.raises(ValueError, match=r"no formula for 1: formula_hook.product; .*product_backward. Give one"):
        em.count(model, x, strict=True)


def test_an_operator_without_a_fake_needs_one_or_values() -> None:
    model, x = Own(3, 5, has_fake=False), torch.zeros(4, 3)
    with pytest.raises(Exception, match="register_fake"):
        em.count(model, x, training=False)
    formulas = {"formula_hook::no_fake": forward_formula}  # the same two arguments
    assert em.count(model, x, training=False, formulas=formulas, values=True).total_macs == 60


def test_a_formula_may_take_the_place_of_a_known_one() -> None:
    counts = em.count(nn.Linear(3, 5, bias=False), torch.zeros(4, 3), training=False, formulas={"aten::mm": nothing})
    assert counts == em.OpCounts()


def nothing(call: em.Call) -> list[em.Product]:
    return []


def changed(**fields: Any) -> Callable[[em.Call], list[Any]]:
    def formula(call: em.Call) -> list[Any]:
        given = {"a": call.args["x"], "b": call.args["weight"], "result": call.results[0]}
        return [em.Product(**{**given, "batch": 1, "m": 4, "n": 5, "k": 3, **fields})]

    return formula


@pytest.mark.parametrize(
    ("formula", "message"),
    [
        (lambda call: [3], "must give Product and ElementOps, not int"),
        (changed(m=-4), "m must be a whole number of 0 or more, got -4"),
        (changed(k=1.5), "k must be a whole number of 0 or more, got 1.5"),
        (changed(n=True), "n must be a whole number of 0 or more, got True"),
        (changed(a=[4, 3]), r"a must be a tensor or a shape, got \[4, 3\]"),
        (changed(gemm="forward"), "gemm must be one of output, grad_input, .* got 'forward'"),
        (changed(names=("input", None)), "names must be one of weight, activation, .* got 'input'"),
        (changed(runs=(-1, None)), "runs must be a whole number"),
        (changed(zeros=3), "zeros must be Zeros, got 3"),
        (lambda call: [em.ElementOps("scaling", "", 20, fp_mul=-20)], "fp_mul must be a whole number .* got -20"),
        (lambda call: [em.ElementOps("", "", 20)], "kind is empty"),
        (lambda call: call.args["input"], "no argument is named 'input'; it has x, weight, scale"),
    ],
)
def test_a_wrong_formula_is_named(formula: Callable[[em.Call], Iterable[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=f"formula of formula_hook::product: .*{message}"):
        em.count(Own(3, 5), torch.zeros(4, 3), training=False, formulas={"formula_hook::product": formula})


def test_a_formula_that_returns_nothing_says_where() -> None:
    with pytest.raises(TypeError) as caught:
        em.count(Own(3, 5), torch.zeros(4, 3), formulas={"formula_hook::product": lambda call: None})  # type: ignore
    assert any("formula of formula_hook::product" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("name", ["formula_hook.product", "product", "formula_hook::product.default"])
def test_a_formula_needs_the_name_of_an_operator(name: str) -> None:
    with pytest.raises(ValueError, match="write namespace::name, without an overload"):
        em.count(Own(3, 5), torch.zeros(4, 3), formulas={name: forward_formula})


def test_a_formula_of_an_unknown_operator_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"no operator is named 'formula_hook::prodct'; is the library"):
        em.count(Own(3, 5), torch.zeros(4, 3), formulas={"formula_hook::prodct": forward_formula})
