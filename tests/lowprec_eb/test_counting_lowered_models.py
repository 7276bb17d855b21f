"""A lowered model is counted as what it stands for: the GEMMs of the plain one, at its own precision."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lowprec_eb as lp
from energy_models import OpCounts, count
from lowprec_eb.recipes import RECIPES


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.mix = nn.Linear(32, 32), nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        q = self.project(x)
        mixed: Tensor = self.mix(q, q, q, need_weights=True)[0]
        return mixed


def conv_net() -> tuple[nn.Module, Tensor]:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 32, 3, groups=2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 10)), torch.rand(4, 3, 8, 8)


def attention() -> tuple[nn.Module, Tensor]:
    return Attends(), torch.rand(2, 6, 32)


def transposed() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(nn.Linear(8, 8), nn.ConvTranspose1d(4, 6, 3, stride=2)), torch.rand(2, 4, 8)


class Held(nn.Module):
    """A function that holds a layer: it calls that, not the one of the copy that is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.call = lambda x: self.layer(x)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.call(x)
        return result


def test_a_lowered_layer_that_a_function_holds_is_never_fp32() -> None:
    model = Held()
    lp.lower(model, "bfp8")
    with pytest.raises(ValueError, match="layer 'layer' is called by a hook or function that holds it"):
        count(model, torch.zeros(2, 4))
    assert model.layer.weight.grad is None


def products(counts: OpCounts) -> Counter[Any]:
    return Counter((gemm.layer, gemm.gemm, gemm.macs) for gemm in counts.gemms)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("build", [conv_net, attention, transposed])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("values", [True, False])
def test_simulation_adds_no_gemm_and_leaves_nothing_out(recipe: str, build: Any, training: bool, values: bool) -> None:
    (model, x), (plain, _) = build(), build()
    lp.lower(model, recipe)
    counts = count(model, x, training=training, values=values, strict=True)
    assert products(counts) == products(count(plain, x, training=training))
    allowed = {"quantizer", "running_range", "rotation"}
    extra = counts.element_ops_by_kind.keys() - count(plain, x, training=training).element_ops_by_kind.keys()
    assert extra <= allowed


@pytest.mark.parametrize("recipe", ["bf16", "bfp8", "int8_rowwise", "fp8", "int4"])
def test_a_lowered_models_own_precision_is_that_of_at(recipe: str) -> None:
    (model, x), (plain, _) = conv_net(), conv_net()
    lp.lower(model, recipe)
    own, applied = count(model, x), count(plain, x).at(lp.precision(recipe))
    assert own.bit_ops == applied.bit_ops
    assert own.macs_by_format == applied.macs_by_format
    assert own.element_ops_by_kind["quantizer"] == applied.element_ops_by_kind["quantizer"]


def test_counts_do_not_depend_on_what_was_trained_before() -> None:
    model, x = conv_net()
    lp.lower(model, "int8")
    fresh = count(model, x)
    model(x).sum().backward()
    assert count(model, x) == fresh
    ranges = [dict(module.lowering.ranges) for module in model.modules() if hasattr(module, "lowering")]
    count(model, x)
    again = [dict(module.lowering.ranges) for module in model.modules() if hasattr(module, "lowering")]
    assert all(a.keys() == b.keys() and all(a[k] is b[k] for k in a) for a, b in zip(ranges, again, strict=True))


def test_a_running_range_takes_two_compares_an_element() -> None:
    model, x = conv_net()
    lp.lower(model, "int8")
    rows = [op for op in count(model, x).element_ops if op.kind == "running_range"]
    assert rows and all(op.int_add == 2 * op.elements and op.part == "forward" for op in rows)
    assert not [op for op in count(model, x, training=False).element_ops if op.kind == "running_range"]


def test_a_rotation_is_a_fast_transform() -> None:
    model, x = conv_net()
    lp.lower(model, lp.Precision(weight=lp.BF16, activation=lp.BF16, error=lp.BF16, hadamard=16))
    rows = [op for op in count(model, x).element_ops if op.kind == "rotation"]
    assert rows and all(
        (op.fp_add, op.fp_mul, op.int_add) == (4 * op.elements, op.elements, op.elements) for op in rows
    )


def test_an_accumulator_is_named() -> None:
    precision = lp.Precision(
        weight=lp.FP8_E4M3, activation=lp.FP8_E4M3, accumulator=lp.Float(6, 9), accumulator_chunk=4
    )
    model, x = conv_net()
    lp.lower(model, precision)
    assert {gemm.accumulator for gemm in count(model, x).gemms} == {lp.Float(6, 9)}
    plain = count(conv_net()[0], x)
    assert {gemm.accumulator.bits for gemm in plain.gemms} == {32}
    assert {gemm.accumulator for gemm in plain.at(precision).gemms} == {lp.Float(6, 9)}
    assert products(count(model, x)) == products(plain)


def test_attentions_gradients_read_activations_at_their_own_bits() -> None:
    precision = lp.Precision(
        weight=lp.BF16, activation=lp.PerGemm(output=lp.Int(8), grad_weight=lp.Int(4)), error=lp.BF16
    )
    model, x = attention()
    lp.lower(model, precision)
    own = {(g.layer, g.gemm, g.macs, *sorted((g.a.bits, g.b.bits))) for g in count(model, x).gemms}
    applied = {(g.layer, g.gemm, g.macs, *sorted((g.a.bits, g.b.bits))) for g in count(model, x).at(precision).gemms}
    assert own == applied
    assert ("mix", "grad_input", 2 * 4 * 6 * 6 * 8, 4, 16) in own


def test_functional_products_of_a_lowered_model() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(5, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight)

    model = nn.Sequential(Own())
    lp.lower(model, "bfp8")
    assert count(model, torch.rand(2, 3)).macs_by_bits == {("output", 8, 8): 30, ("grad_weight", 8, 8): 30}
