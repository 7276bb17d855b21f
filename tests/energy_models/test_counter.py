"""Counting by tracing, against counts made by hand."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from energy_models.counter import count
from energy_models.counts import Gemm, OpCounts
from energy_models.number_formats import FP32, FormatSpec, NumberFormat
from energy_models.tracing import tracer

BFP8 = FormatSpec("block_float", bits=8, exponent_bits=0, mantissa_bits=7, scale_bits=8, block_dim=0)


@dataclass(frozen=True)
class Everywhere:
    fmt: NumberFormat

    def operand_format(self, layer: str, gemm: str, operand: str) -> NumberFormat | None:
        return self.fmt


def cross_entropy(output: Tensor) -> Tensor:
    return F.cross_entropy(output, torch.zeros(output.shape[0], dtype=torch.long, device=output.device))


def small_vgg() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def by_name(counts: OpCounts, layer: str = "1") -> dict[str, Gemm]:
    return {gemm.gemm: gemm for gemm in counts.gemms if gemm.layer == layer}


def shape(gemm: Gemm) -> tuple[int, int, int, int]:
    return gemm.batch, gemm.m, gemm.n, gemm.k


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 6),
        ({"padding": 1}, 8),
        ({"stride": 2, "padding": 1}, 4),
        ({"dilation": 2}, 4),
        ({"groups": 2}, 6),
        ({"groups": 4}, 6),
        ({"groups": 4, "stride": 2, "dilation": 2}, 2),
    ],
)
def test_conv(options: dict[str, int], size: int) -> None:
    groups, out = options.get("groups", 1), 4 * options.get("groups", 1)
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, out, 3, **options))  # type: ignore[arg-type]
    gemms = by_name(count(model, torch.zeros(2, 1, 8, 8)))
    rows, per_group = 2 * size * size, 4 // groups
    assert shape(gemms["output"]) == (groups, rows, out // groups, per_group * 9)
    assert shape(gemms["grad_input"]) == (groups, rows, per_group, out // groups * 9)
    assert shape(gemms["grad_weight"]) == (groups, out // groups, per_group * 9, rows)
    assert {gemm.macs for gemm in gemms.values()} == {rows * out * per_group * 9}
    assert [gemms[name].result_elements for name in ("output", "grad_input", "grad_weight")] == [
        rows * out,
        2 * 4 * 64,
        out * per_group * 9,
    ]


def test_conv_operands() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 3, padding=1))
    gemms = by_name(count(model, torch.zeros(2, 1, 8, 8)))
    operands = {
        name: [(operand.name, operand.elements, operand.shape[0], operand.k_run) for operand in (gemm.a, gemm.b)]
        for name, gemm in gemms.items()
    }
    assert operands == {
        "output": [("activation", 512, 2, 36), ("weight", 216, 6, 36)],
        "grad_input": [("error", 768, 2, 54), ("weight", 216, 6, 9)],
        "grad_weight": [("error", 768, 2, 64), ("activation", 512, 2, 64)],
    }


def test_strided_conv_reuses_a_weight_slice_for_fewer_taps() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 6, 2, stride=2))
    grad_input = by_name(count(model, torch.zeros(2, 1, 8, 8), Everywhere(BFP8)))["grad_input"]
    assert grad_input.b.k_run == 1
    assert grad_input.alignments == 2 * 64 * 4 * 6  # each input pixel meets each output channel once


def test_linear() -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 5))
    gemms = by_name(count(model, torch.zeros(4, 3)))
    operands = {
        name: [(operand.name, operand.elements, operand.shape[0], operand.k_run) for operand in (gemm.a, gemm.b)]
        for name, gemm in gemms.items()
    }
    assert {name: shape(gemm) for name, gemm in gemms.items()} == {
        "output": (1, 4, 5, 6),
        "grad_input": (1, 4, 6, 5),
        "grad_weight": (1, 5, 6, 4),
    }
    assert operands == {
        "output": [("activation", 24, 4, 6), ("weight", 30, 5, 6)],
        "grad_input": [("error", 20, 4, 5), ("weight", 30, 5, 1)],
        "grad_weight": [("error", 20, 4, 1), ("activation", 24, 4, 1)],
    }


@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_a_sequence_counts_every_row(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 6, bias=bias), nn.Linear(6, 5, bias=bias))
    counts = count(model, torch.zeros(4, 7, 3))
    assert counts.macs == {"output": 28 * (18 + 30), "grad_input": 28 * 30, "grad_weight": 28 * (18 + 30)}


def test_small_vgg_by_hand() -> None:
    counts = count(small_vgg(), torch.zeros(4, 1, 8, 8), loss=cross_entropy)
    first, second, last = 4 * 64 * 8 * 9, 4 * 16 * 16 * 8 * 9, 4 * 16 * 10
    assert counts.macs == {
        "output": first + second + last,
        "grad_input": second + last,  # nothing to train before the first layer
        "grad_weight": first + second + last,
    }
    assert counts.uncounted == ()
    wide, narrow = 4 * 8 * 64, 4 * 16 * 16  # elements after the first and the second convolution
    assert counts.element_ops_by_kind == {
        "batch_norm": 2 * (wide + narrow),
        "relu": 2 * (wide + narrow),
        "max_pool": 2 * (4 * 8 * 16),
        "avg_pool": 4 * 16,
        "elementwise": narrow,  # the backward of the mean scales each error
        "bias": 2 * 40,
        "loss": 40 + 4 + 4 + 40,
    }


def test_batch_norm_by_hand() -> None:
    forward, backward = (op for op in count(small_vgg(), torch.zeros(4, 1, 8, 8)).element_ops if op.layer == "1")
    elements = 4 * 8 * 64
    assert (forward.fp_add, forward.fp_mul) == (5 * elements + 3 * 8, 3 * elements + 10 * 8)
    assert (backward.fp_add, backward.fp_mul) == (5 * elements, 4 * elements + 3 * 8)
    (folded,) = (
        op for op in count(small_vgg(), torch.zeros(4, 1, 8, 8), training=False).element_ops if op.layer == "1"
    )
    assert (folded.fp_add, folded.fp_mul) == (elements, elements)


def test_compares_are_integer_adds() -> None:
    counts = count(small_vgg(), torch.zeros(4, 1, 8, 8), training=False)
    by_layer = {op.layer: op for op in counts.element_ops}
    assert by_layer["2"].int_add == 4 * 8 * 64
    assert by_layer["3"].int_add == 3 * 4 * 8 * 16
    assert (by_layer["3"].read_bits, by_layer["3"].write_bits) == (32 * 4 * 8 * 64, 32 * 4 * 8 * 16)


def test_evaluation_is_forward_only() -> None:
    counts = count(small_vgg(), torch.zeros(4, 1, 8, 8), training=False)
    trained = count(small_vgg(), torch.zeros(4, 1, 8, 8))
    assert counts.macs == {"output": trained.macs["output"], "grad_input": 0, "grad_weight": 0}


def test_frozen_prefix() -> None:
    model = small_vgg()
    for layer in list(model)[:4]:
        layer.requires_grad_(False)
    counts = count(model, torch.zeros(4, 1, 8, 8))
    assert set(by_name(counts, "0")) == {"output"}
    assert set(by_name(counts, "4")) == {"output", "grad_weight"}
    assert set(by_name(counts, "9")) == {"output", "grad_input", "grad_weight"}


def test_frozen_weight_in_the_middle_still_passes_the_error() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].requires_grad_(False)
    assert set(by_name(count(model, torch.zeros(4, 3)), "1")) == {"output", "grad_input"}


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="training=False"):
        count(nn.Linear(3, 3).requires_grad_(False), torch.zeros(4, 3))


def test_an_output_that_is_no_tensor_needs_a_loss() -> None:
    class Text(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            self.seen = super().forward(x)
            return "text"

    model = Text(3, 3)
    with pytest.raises(ValueError, match="returns str"):
        count(model, torch.zeros(4, 3))
    assert count(model, torch.zeros(4, 3), training=False).macs["output"] == 36


def test_the_tensors_of_an_output_are_summed() -> None:
    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), x

    summed, chosen = (
        count(Pair(3, 3), torch.zeros(4, 3)),
        count(Pair(3, 3), torch.zeros(4, 3), loss=lambda o: o[0].sum()),
    )
    assert summed.macs == chosen.macs == {"output": 36, "grad_input": 0, "grad_weight": 36}


class Draws(nn.Module):
    """Draws a key from the default generator, as a stochastic quantizer does."""

    def forward(self, x: Tensor) -> Tensor:
        torch.randint(10, (1,))
        return x


def test_the_model_and_random_state_are_untouched() -> None:
    net = small_vgg()
    model = nn.Sequential(net, Draws())
    net[1].eval()
    model(torch.rand(4, 1, 8, 8)).sum().backward()
    modes = [module.training for module in model.modules()]
    state, grads = copy.deepcopy(model.state_dict()), copy.deepcopy([p.grad for p in model.parameters()])
    generator = torch.get_rng_state()
    count(model, torch.zeros(4, 1, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert parameter.grad is not None and grad is not None and torch.equal(parameter.grad, grad)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_agrees_with_torch_on_a_plain_conv_net() -> None:
    model, x = small_vgg(), torch.zeros(4, 1, 8, 8)
    with FlopCounterMode(display=False) as flops:
        model(x).sum().backward()
    assert 2 * count(model, x).total_macs == flops.get_total_flops()


def test_a_layer_used_twice_is_counted_twice() -> None:
    layer = nn.Linear(3, 3)
    counts = count(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(4, 3))
    assert counts.macs == {"output": 72, "grad_input": 36, "grad_weight": 72}
    assert {gemm.layer for gemm in counts.gemms} == {"0"}


def test_a_residual_branch() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.first(x)
            z: Tensor = self.second(y)
            return y + z

    counts = count(Residual(), torch.zeros(4, 3))
    assert set(by_name(counts, "second")) == {"output", "grad_input", "grad_weight"}
    assert set(by_name(counts, "first")) == {"output", "grad_weight"}
    assert counts.element_ops_by_kind == {"elementwise": 2 * 12}  # the sum, and the two errors that meet


def test_attention_products_without_weights_are_grad_input() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(self.query(x), self.key(x).transpose(1, 2))

    counts = count(Scores(), torch.zeros(2, 5, 3))
    products = [gemm for gemm in counts.gemms if gemm.layer == ""]
    assert [(gemm.gemm, shape(gemm)[0], gemm.macs) for gemm in products] == [
        ("output", 2, 150),
        ("grad_input", 2, 150),
        ("grad_input", 2, 150),
    ]
    assert [{operand.name for operand in (gemm.a, gemm.b)} for gemm in products[1:]] == [{"activation", "error"}] * 2
    assert counts.uncounted == ()


def test_a_weight_of_another_layout_changes_slice_with_every_product() -> None:
    class Projection(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(6, 5))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    output = by_name(count(Projection(), torch.zeros(4, 6)), "")["output"]
    assert (output.b.name, output.b.shape[0], output.b.k_run) == ("weight", 6, 1)


def test_a_masked_weight_is_a_weight() -> None:
    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * torch.ones_like(self.weight), self.bias)

    plain = count(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 5)), torch.zeros(4, 3))
    masked = count(nn.Sequential(Masked(3, 6), Masked(6, 5)), torch.zeros(4, 3))
    assert masked.gemms == plain.gemms


def test_a_bias_added_by_the_layer_itself_is_a_bias() -> None:
    class Added(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = F.linear(x, self.weight)
            out += self.bias
            return out

    plain, added = (count(layer(3, 6), torch.zeros(4, 3)) for layer in (nn.Linear, Added))
    assert added.element_ops == plain.element_ops


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0(x)


def test_unknown_operators_are_listed() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Bessel())
    assert count(model, torch.zeros(1, 4, 3), training=False).uncounted == ("1: aten.i0",)


def test_half_precision_tensors_are_read_at_their_own_bits() -> None:
    counts = count(nn.Linear(3, 3).bfloat16(), torch.zeros(4, 3, dtype=torch.bfloat16))
    assert counts.macs_by_bits == {("output", 16, 16): 36, ("grad_weight", 16, 16): 36}


def test_precision_is_at() -> None:
    model, x = small_vgg(), torch.zeros(4, 1, 8, 8)
    counts = count(model, x, Everywhere(BFP8))
    assert counts == count(model, x).at(Everywhere(BFP8))
    assert counts.macs == count(model, x).macs
    assert {(low, high) for _, low, high in counts.macs_by_bits} == {(8, 8)}


# A lowered layer as lowprec_eb builds one: its own autograd function around a quantizer operator.


@pytest.fixture
def quantize(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    library = torch.library.Library("count_test", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("quantize(Tensor x, str format) -> Tensor")  # type: ignore[no-untyped-call]
    library.impl("quantize", lambda x, format: torch.empty_like(x), "Meta")  # type: ignore[no-untyped-call]
    monkeypatch.setattr(tracer, "QUANTIZERS", frozenset({"count_test::quantize"}))
    yield torch.ops.count_test.quantize
    library._destroy()  # type: ignore[no-untyped-call]


@pytest.fixture
def lowered_layer(quantize: Any) -> type[nn.Linear]:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            x, weight = quantize(x, "bfp8"), quantize(weight, "bfp8")
            ctx.save_for_backward(x, weight)
            return x @ weight.t()

        @staticmethod
        def backward(ctx: Any, *errors: Tensor) -> tuple[Tensor | None, Tensor]:
            x, weight = ctx.saved_tensors
            error = quantize(errors[0], "bfp8")
            return (error @ weight if ctx.needs_input_grad[0] else None), error.t() @ x

    class Lowered(nn.Linear):
        def operand_format(self, gemm: str, operand: str) -> NumberFormat | None:
            return BFP8

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = Product.apply(x, self.weight)  # type: ignore[no-untyped-call]
            return result

    return Lowered


def test_a_simulated_layer_has_the_gemms_of_the_plain_one(lowered_layer: type[nn.Linear]) -> None:
    def model(layer: type[nn.Linear]) -> nn.Module:
        return nn.Sequential(layer(3, 6, bias=False), nn.ReLU(), layer(6, 6, bias=False))

    x = torch.zeros(4, 3)
    plain, lowered = count(model(nn.Linear), x, Everywhere(BFP8)), count(model(lowered_layer), x)
    assert len(lowered.gemms) == len(plain.gemms) == 5
    assert set(lowered.gemms) == set(plain.gemms)
    assert lowered.element_ops_by_kind == plain.element_ops_by_kind
    assert lowered.uncounted == ()


def test_traced_quantizers_write_what_the_gemms_read(lowered_layer: type[nn.Linear]) -> None:
    model = nn.Sequential(nn.Linear(3, 6), lowered_layer(6, 5, bias=False))
    rows = [op for op in count(model, torch.zeros(4, 3)).element_ops if op.kind == "quantizer"]
    assert [(op.layer, op.elements, op.write_bits) for op in rows] == [
        ("1", 24, 24 * 8 + 4 * 8),
        ("1", 30, 30 * 8 + 5 * 8),
        ("1", 20, 20 * 8 + 4 * 8),
    ]


def test_a_quantizer_that_no_gemm_reads_writes_32_bits(quantize: Any) -> None:
    class Output(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = quantize(super().forward(x), "bfp8")
            return result

    counts = count(nn.Sequential(Output(3, 6), nn.ReLU()), torch.zeros(4, 3), training=False)
    (row,) = (op for op in counts.element_ops if op.kind == "quantizer")
    assert (row.layer, row.write_bits) == ("0", 24 * 32)


def test_fp32_is_what_a_plain_layer_reads() -> None:
    assert all(gemm.a.format == FP32 for gemm in count(small_vgg(), torch.zeros(4, 1, 8, 8)).gemms)
