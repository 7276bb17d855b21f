"""lower() and raise_(): what changes in a model, and what does not."""

import copy
import io
import pickle

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

import lowprec_eb as lp
from lowprec_eb.precision import Precision
from lowprec_eb.recipes import RECIPES


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False),
        nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5),
    )  # fmt: skip


def gradients(model, x, y):
    model.zero_grad()
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    return [loss.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3])


def test_fp32_is_the_plain_model_bit_for_bit(batch):
    plain, lowered = small_net(), small_net()
    lp.lower(lowered, "fp32")
    for a, b in zip(gradients(plain, *batch), gradients(lowered, *batch), strict=True):
        assert torch.equal(a, b)


def test_each_gemm_reads_rounded_operands():
    """Against float64 products of the operands rounded by hand."""
    fmt = lp.BlockFloat(8, 0)
    layer = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2))
    lp.lower(layer, Precision(weight=fmt, activation=fmt, error=fmt))
    x, error = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(2, 4, 3, 3)
    layer(x).backward(error)
    weight, bias = layer[0].weight.detach(), layer[0].bias.detach()
    qx, qw, qe = (lp.quantize(t.detach(), fmt).double() for t in (x, weight, error))
    qx.requires_grad_(), qw.requires_grad_()
    exact = F.conv2d(qx, qw, bias.double(), stride=2, padding=1)
    exact.backward(qe)
    assert torch.allclose(layer(x).double(), exact, atol=1e-6)
    assert torch.allclose(x.grad.double(), qx.grad, atol=1e-6)
    assert torch.allclose(layer[0].weight.grad.double(), qw.grad, atol=1e-6)
    assert torch.allclose(layer[0].bias.grad.double(), qe.sum((0, 2, 3)), atol=1e-6)


def test_linear_on_any_rank_and_output_format():
    fmt = lp.FixedPoint(8, 4)
    layer = nn.Sequential(nn.Linear(6, 3))
    lp.lower(layer, Precision(weight=fmt, activation=fmt, output=fmt, error=fmt))
    x = torch.randn(2, 5, 6, requires_grad=True)
    y = layer(x)
    assert y.shape == (2, 5, 3) and torch.equal(lp.quantize(y, fmt), y)
    y.sum().backward()
    qx = lp.quantize(x.detach(), fmt)
    assert torch.allclose(layer[0].weight.grad, torch.ones(3, 10) @ qx.flatten(0, 1), atol=1e-5)
    assert torch.allclose(x.grad, torch.ones(2, 5, 3) @ lp.quantize(layer[0].weight.detach(), fmt), atol=1e-5)


def test_error_is_rounded_with_its_own_seed_and_evaluation_rounds_to_nearest(batch):
    model = small_net()
    lp.lower(model, "bfp8")
    torch.manual_seed(0)
    first = gradients(model, *batch)
    again = gradients(model, *batch)
    torch.manual_seed(0)
    repeated = gradients(model, *batch)
    assert not torch.equal(first[2], again[2])
    assert all(torch.equal(a, b) for a, b in zip(first, repeated, strict=True))
    model.eval()
    assert torch.equal(model(batch[0]), model(batch[0]))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_lowered_model_is_still_that_model(recipe, batch):
    model = small_net()
    keys, names = list(model.state_dict()), [name for name, _ in model.named_modules()]
    parameters = [id(p) for p in model.parameters()]
    lp.lower(model, recipe)
    assert list(model.state_dict()) == keys and [name for name, _ in model.named_modules()] == names
    assert [id(p) for p in model.parameters()] == parameters
    assert isinstance(model[0], nn.Conv2d) and isinstance(model[6], nn.Linear)
    model.load_state_dict(small_net().state_dict())
    model.eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(batch[0]), model(batch[0]))
        with torch.no_grad():
            other[0].weight.zero_()
        assert not torch.equal(other(batch[0]), model(batch[0]))


def test_raise_undoes_structure_and_keeps_values(batch):
    model, plain = small_net(), small_net()
    lp.lower(model, "bfp8")
    with torch.no_grad():
        model[0].weight += 1
        plain[0].weight += 1
    assert lp.raise_(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(model.modules(), plain.modules(), strict=True))
    assert torch.equal(model(batch[0]), plain(batch[0]))


def test_lowering_twice_replaces():
    model = small_net()
    lp.lower(model, "swalp8")
    report = lp.lower(model, "bfp8")
    assert {item.precision.name for item in report.lowered} == {"bfp8"}
    assert model[0].lowering.precision.output is None


def test_every_module_with_parameters_is_reported_once():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LSTM(4, 4),
        nn.Bilinear(4, 4, 4), nn.LazyLinear(3), nn.Embedding(4, 4, sparse=True), nn.PReLU(), nn.Linear(4, 2),
    )  # fmt: skip
    report = lp.lower(model, "bfp8")
    assert [item.name for item in report.lowered] == ["0", "1", "9"]
    reasons = {item.name: item.reason for item in report.skipped}
    assert list(reasons) == ["2", "4", "5", "6", "7", "8"]
    assert "has no GEMM" in reasons["2"] and "has no GEMM" in reasons["8"]
    assert "fused kernels" in reasons["4"] and "no low-precision version" in reasons["5"]
    assert "run a batch" in reasons["6"] and "sparse" in reasons["7"]
    assert "4: skipped, LSTM runs in torch's fused kernels" in str(report)
    assert [item.name for item in report.skipped if item.multiplies] == ["4", "5", "6", "7"]
    with pytest.raises(ValueError, match="strict: 4 modules"):
        lp.lower(model, "bfp8", strict=True)


def test_torchs_fast_path_cannot_bypass_a_lowered_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2)).eval()
    x = torch.randn(2, 3, 8)
    report = lp.lower(model, "bfp8")
    names = [item.name for item in report.lowered]
    assert names == ["0.self_attn", "0.linear1", "0.linear2", "1"]
    with torch.inference_mode():
        fast = model(x)
    assert torch.equal(fast, model(x))
    assert not torch.equal(fast, lp.raise_(model)(x))


def test_a_linear_layer_on_one_vector_and_a_convolution_without_a_batch():
    linear = nn.Sequential(nn.Linear(4, 3))
    lp.lower(linear, "bfp8")
    linear(torch.randn(4)).sum().backward()
    assert linear[0].weight.grad.shape == (3, 4)
    conv = nn.Sequential(nn.Conv2d(3, 4, 3))
    lp.lower(conv, "bfp8")
    assert conv(torch.randn(3, 8, 8)).shape == (4, 6, 6)


def test_swalp8_leaves_the_last_layers_activations_and_errors_alone():
    model = small_net()
    lp.lower(model, "swalp8")
    assert model[0].lowering.precision.output == model[3].lowering.precision.error == lp.BlockFloat(8, 0)
    assert model[0].operand_format("output", "activation") is None
    assert model[6].lowering.precision.output is None and model[6].lowering.precision.error is None
    assert model[6].operand_format("output", "weight") == lp.BlockFloat(8, 0)


def test_overrides_by_name():
    model = small_net()
    lp.lower(model, Precision(weight=lp.BF16, overrides=(("0", Precision()), ("[36]", Precision(weight=lp.FP16)))))
    assert [model[i].lowering.precision.weight for i in (0, 3, 6)] == [None, lp.FP16, lp.FP16]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lp.lower(small_net(), "bpf8"), "unknown precision 'bpf8'; did you mean 'bfp8'"),
        (lambda: lp.lower(nn.Sequential(nn.ReLU()), "bfp8"), "nothing to lower in Sequential"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class OwnerThatMultiplies(nn.Module):
    """Attention with a parameter of its own, as layer scale or a position table is."""

    def __init__(self, *shape):
        super().__init__()
        self.qkv, self.scale = nn.Linear(8, 24), nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1)) * self.scale


@pytest.mark.parametrize("shape", [(8,), (1, 8)])
def test_functional_lowers_what_a_module_with_parameters_of_its_own_multiplies(shape):
    model, x = nn.Sequential(OwnerThatMultiplies(*shape)), torch.randn(2, 4, 8)
    fmt = lp.FixedPoint(4, 2)
    lp.lower(model, Precision(activation=fmt))
    linear_alone = model(x)
    with pytest.raises(ValueError, match="functional=True"):
        lp.lower(model, Precision(activation=fmt), strict=True, example_inputs=x)
    report = lp.lower(model, Precision(activation=fmt), functional=True, strict=True, example_inputs=x)
    assert [item.name for item in report.functional] == ["0"] and report.skipped == ()
    assert not torch.equal(model(x), linear_alone)


def test_a_lowered_class_goes_by_the_plain_one_s_name():
    model = nn.Sequential(OwnerThatMultiplies(8))
    plain = str(type(model[0]))
    lp.lower(model, "fp8", functional=True)
    assert str(type(model[0])) == plain and type(model[0].qkv).__name__ == "Linear"


def test_the_report_names_each_precision_once():
    other = lp.Precision(name="fp8", weight=lp.Int(4))
    precision = lp.precision("fp8", overrides=(("[2]", other), ("0", lp.precision("bf16"))))
    report = lp.lower(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)), precision)
    lines = str(report).splitlines()
    assert lines[:3] == ["0: Linear -> bf16", "1: Linear -> fp8 #2", "2: Linear -> fp8 #3"]
    assert lines[3:] == [f"bf16: {lp.precision('bf16')}", f"fp8 #2: {precision!r}", f"fp8 #3: {other!r}"]
    console = Console(width=300, file=io.StringIO())
    console.print(report.table())
    assert "overrides=(('[2]', Precision(name='fp8', weight=Int(bits=4)))" in " ".join(console.file.getvalue().split())
    assert [row["detail"] for row in report.rows()] == [repr(item.precision) for item in report.lowered]
