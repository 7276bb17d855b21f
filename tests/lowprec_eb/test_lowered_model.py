"""A lowered model is still that model: what torch offers for any model works on it too."""

import copy
import gc
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import lowprec_eb as lp
from lowprec_eb.layers import LoweredModule
from lowprec_eb.precision import Precision

STOCHASTIC = lp.precision("bfp8")
NEAREST = lp.precision("bfp8", rounding="nearest")


class Net(nn.Module):
    """Convolutions, a normalisation, attention, an embedding and linear layers, with a forward of its own."""

    def __init__(self):
        super().__init__()
        self.scale = 0.5
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False)
        self.register_buffer("positions", torch.arange(4))
        self.place = nn.Embedding(4, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.grouped(self.norm(self.stem(x)).relu()).flatten(2).mT * self.scale
        tokens = tokens + self.place(self.positions)
        return self.head(self.attention(tokens, tokens, tokens)[0].mean(1))


def net(precision=None, seed=0):
    torch.manual_seed(seed)
    model = Net()
    if precision is not None:
        lp.lower(model, precision)
    return model


@pytest.fixture
def x():
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))


def gradients(model, x, call=None, seed=3):
    """Output and all gradients, from one state of the random generator."""
    model.zero_grad()
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    y = (model if call is None else call)(x)
    y.square().sum().backward()
    found = {"output": y.detach(), "input": x.grad} | {n: p.grad for n, p in model.named_parameters()}
    return {name: value if value is None else value.clone() for name, value in found.items()}


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        equal = torch.allclose(value, other[name], **tolerance) if tolerance else torch.equal(value, other[name])
        assert equal, name


# ---- state and structure ------------------------------------------------------------------------------------------


def test_names_attributes_and_state_are_those_of_the_plain_model():
    plain, lowered = net(), net(STOCHASTIC)
    assert list(lowered.state_dict()) == list(plain.state_dict())
    for list_them in (nn.Module.named_modules, nn.Module.named_parameters, nn.Module.named_buffers):
        assert [name for name, _ in list_them(lowered)] == [name for name, _ in list_them(plain)]
    for one, other in zip(lowered.modules(), plain.modules(), strict=True):
        assert isinstance(one, type(other)) and vars(one).keys() - vars(other).keys() <= {"lowering"}
    assert (lowered.scale, lowered.grouped.groups, lowered.head.in_features) == (0.5, 2, 8)
    assert repr(lowered.head) == "Linear(in_features=8, out_features=5, bias=True, bfp8)"
    with torch.no_grad():
        lowered.head.weight += 1
    plain.load_state_dict(lowered.state_dict(), strict=True)
    lp.raise_(lowered)
    assert torch.equal(plain.head.weight, lowered.head.weight)
    lp.lower(lowered, NEAREST)
    lowered.load_state_dict(net(seed=1).state_dict(), strict=True)
    assert torch.equal(lowered.head.weight, net(seed=1).head.weight)


def test_the_state_is_saved_and_read_with_weights_only(x):
    model, other = net(NEAREST), net(NEAREST, seed=1)
    model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert_same(gradients(model, x), gradients(other, x))


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: _saved_whole(m)],
    ids=["deepcopy", "pickle", "save"],
)
def test_a_copy_computes_the_same_and_is_independent(copied, x):
    model = net(STOCHASTIC)
    lp.set_bits(model, {"weight": 6})
    other = copied(model)
    before = gradients(model, x)
    assert_same(before, gradients(other, x))
    assert isinstance(other.head, LoweredModule) and other.head.lowering is not model.head.lowering
    with torch.no_grad():
        other.head.weight.zero_()
    lp.set_bits(other, {"weight": 4})
    changed = gradients(other, x)
    assert_same(before, gradients(model, x))
    assert not torch.equal(changed["output"], before["output"])
    lp.raise_(other)
    assert isinstance(model.head, LoweredModule) and not isinstance(other.head, LoweredModule)


def _saved_whole(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_raise_restores_the_structure_exactly(x):
    plain, model = net(), net()
    before = [(id(module), type(module), list(vars(module))) for module in model.modules()]
    for functional in (False, True):
        lp.lower(model, STOCHASTIC, functional=functional)
        assert any(isinstance(module, LoweredModule) for module in model.modules())
        lp.raise_(model)
    assert [(id(module), type(module), list(vars(module))) for module in model.modules()] == before
    assert_same(gradients(plain, x), gradients(model, x))


def test_an_error_leaves_a_plain_model():
    model = net(STOCHASTIC)
    with pytest.raises(ValueError, match="strict: 1 modules that multiply would stay"):
        model.odd = nn.Bilinear(2, 2, 2)
        lp.lower(model, NEAREST, strict=True)
    assert not any(isinstance(module, LoweredModule) for module in model.modules())


# ---- hooks, optimizers, frozen and shared parameters --------------------------------------------------------------


def test_hooks_fire_before_and_after_lowering(x):
    model, fired = net(), []
    model.head.register_forward_pre_hook(lambda *_: fired.append("before"))
    model.head.register_full_backward_hook(lambda *_: fired.append("backward"))
    lp.lower(model, STOCHASTIC)
    model.head.register_forward_hook(lambda module, inputs, output: fired.append("after") or output * 0)
    model.head.weight.register_hook(lambda grad: fired.append("weight"))
    assert torch.equal(gradients(model, x)["output"], torch.zeros(4, 5))
    assert sorted(fired) == ["after", "backward", "before", "weight"]


def test_optimizers_made_before_lowering_still_move_the_parameters(x):
    model = net()
    groups = [{"params": model.head.parameters(), "lr": 0.1}, {"params": model.stem.parameters(), "lr": 0.0}]
    optimizer = torch.optim.SGD(groups)
    lp.lower(model, STOCHASTIC)
    head, stem = model.head.weight.detach().clone(), model.stem.weight.detach().clone()
    gradients(model, x)
    optimizer.step()
    assert not torch.equal(model.head.weight, head) and torch.equal(model.stem.weight, stem)


@pytest.mark.parametrize("frozen", ["stem", "grouped", "place", "attention", "head"])
def test_frozen_parameters_get_no_gradient_and_change_no_other(frozen, x):
    model = net(STOCHASTIC)
    whole = {name: grad.clone() for name, grad in gradients(model, x).items()}
    model.get_submodule(frozen).requires_grad_(False)
    part = gradients(model, x)
    assert all(part.pop(name) is None for name in list(part) if name.startswith(frozen + "."))
    assert_same(part, {name: whole[name] for name in part})


class Tied(nn.Module):
    """A language model's embedding and output layer share a weight; one block is used twice."""

    def __init__(self):
        super().__init__()
        self.embedding, self.block = nn.Embedding(7, 6), nn.Linear(6, 6)
        self.again, self.head = self.block, nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, index):
        return self.head(self.again(self.block(self.embedding(index)).tanh()))


def test_shared_modules_and_tied_weights_stay_shared():
    torch.manual_seed(0)
    model, index = Tied(), torch.tensor([[1, 2], [3, 3]])
    report = lp.lower(model, NEAREST)
    assert [item.name for item in report.lowered] == ["embedding", "block", "head"]
    assert model.again is model.block and model.head.weight is model.embedding.weight
    model(index).square().sum().backward()
    fmt = lp.BlockFloat(8, 0)
    weight, middle = (p.detach().clone().requires_grad_() for p in (model.head.weight, model.block.weight))

    def product(x, w, bias=None):
        y = F.linear(lp.quantize(x, fmt), lp.quantize(w, fmt)) + (0 if bias is None else bias)
        return lp.quantize(y, "fp32", gradient_format=fmt)

    bias = model.block.bias.detach()
    # A gradient to an embedding's rows is a product with an exact one-hot matrix.
    rows = lp.quantize(F.embedding(index, lp.quantize(weight, fmt)), "fp32", gradient_format=fmt)
    hidden = product(product(rows, middle, bias).tanh(), middle, bias)
    product(hidden, weight).square().sum().backward()
    assert torch.allclose(model.head.weight.grad, weight.grad, atol=1e-5)
    assert torch.allclose(model.block.weight.grad, middle.grad, atol=1e-5)


class Doubled(nn.Linear):
    """A subclass whose own forward calls its base class's."""

    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Doubled(6, 5),
        lambda: parametrizations.weight_norm(nn.Linear(6, 5)),
        lambda: parametrizations.spectral_norm(nn.Linear(6, 5)),
        lambda: parametrizations.orthogonal(nn.Linear(6, 5)),
    ],
    ids=["subclass", "weight_norm", "spectral_norm", "orthogonal"],
)
def test_the_weight_is_rounded_as_the_product_reads_it(make):
    """What a parametrization computes (in full precision) is the weight."""
    torch.manual_seed(0)
    model, x, fmt = nn.Sequential(make()), torch.randn(4, 6), lp.Int(4)
    with torch.no_grad():
        weight, bias = model.eval()[0].weight.clone(), model[0].bias
        twice = 2 if isinstance(model[0], Doubled) else 1
        report = lp.lower(model, Precision(weight=fmt))
        assert [item.name for item in report.lowered] == ["0"] and report.skipped == ()
        assert torch.equal(model(x), F.linear(x, lp.quantize(weight, fmt), bias) * twice)
        assert not torch.equal(model(x), F.linear(x, weight, bias) * twice)


def test_a_parametrization_registered_after_lowering_is_refused():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5))
    lp.lower(model, NEAREST)
    parametrizations.weight_norm(model[0])
    for change in (lp.raise_, lambda m: lp.lower(m, NEAREST)):
        with pytest.raises(ValueError, match=re.escape("(was a parametrization registered after lower()?)")):
            change(model)
    assert isinstance(model[1], LoweredModule)  # nothing was undone
    nn.utils.parametrize.remove_parametrizations(model[0], "weight")
    lp.raise_(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


# ---- torch's ways of running a model ------------------------------------------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_repeats_the_rounding(reentrant, x):
    model = net(STOCHASTIC)
    model.norm.momentum = 0.0  # a second forward pass moves running statistics, lowered or not
    plain = gradients(model, x)
    again = gradients(model, x, lambda x: checkpoint(model, x, use_reentrant=reentrant))
    assert_same(plain, again)
    assert not torch.equal(plain["output"], gradients(model, x, seed=4)["output"])


@pytest.mark.parametrize("precision", [STOCHASTIC, lp.precision("mxfp4"), lp.precision("fp32")], ids=lambda p: p.name)
def test_autocast_to_bfloat16(precision, x):
    model = net(precision).eval()
    full = gradients(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.head(torch.randn(2, 8)).dtype == torch.bfloat16
        half = gradients(model, x)
    assert {value.dtype for name, value in half.items() if name != "output"} == {torch.float32}
    for name, value in full.items():
        assert (half[name].float() - value).norm() < 0.3 * value.norm(), name
    assert not torch.equal(half["output"].float(), full["output"])


def test_a_model_in_another_dtype(x):
    model = net(NEAREST).double()
    found = gradients(model, x.double())
    assert {value.dtype for value in found.values()} == {torch.float64}
    assert_same(found, {k: v.double() for k, v in gradients(model.float(), x).items()}, rtol=0.05, atol=0.05)


def test_evaluation_rounds_to_nearest_in_every_mode(x):
    model = net(STOCHASTIC).eval()
    expected = gradients(model, x)
    assert_same(expected, gradients(model, x, seed=9))
    assert_same(expected, gradients(net(NEAREST).eval(), x))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(model(x), expected["output"])


ROTATED = lp.precision("bfp8", hadamard=64)


@pytest.mark.parametrize("precision", [NEAREST, STOCHASTIC, ROTATED], ids=["nearest", "stochastic", "rotated"])
def test_compiled_as_one_graph_it_computes_the_same(precision, x):
    torch._dynamo.reset()
    model = net(precision)
    model.norm.momentum = 0.0
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same(gradients(model, x), gradients(model, x, compiled), rtol=1e-5, atol=1e-5)
    assert_same(gradients(model, x, seed=8), gradients(model, x, compiled, seed=8), rtol=1e-5, atol=1e-5)


def test_compiled_what_only_the_backward_pass_rounds_has_the_same_noise():
    """Then a compiler draws the seeds in the backward pass: another stream, but one for both operands of a GEMM."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), torch.randn(64, 64)
    plain = gradients(model, x)
    lp.lower(model, "mxfp4")
    eager = gradients(model, x)
    compiled = gradients(model, x, torch.compile(model, fullgraph=True, backend="aot_eager"))
    assert torch.equal(compiled["output"], eager["output"])
    for name in ("input", "0.weight", "1.weight"):
        noise = [(found[name] - plain[name]).norm() for found in (eager, compiled)]
        assert 0.8 < noise[1] / noise[0] < 1.25 and noise[0] < 0.3 * plain[name].norm(), name


def test_exported_it_computes_the_same(x):
    model = net(STOCHASTIC).eval()
    exported = torch.export.export(model, (x,), strict=False).module()
    with torch.no_grad():
        assert torch.allclose(exported(x), model(x), atol=1e-6)
        assert not torch.allclose(exported(x), net().eval()(x), atol=1e-4)
    with pytest.raises(NotImplementedError, match="no gradient"):  # no silent zero: it is the forward that was exported
        exported(x)


def test_distributed_data_parallel(x, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = net(STOCHASTIC)
        expected = {name: gradient.clone() for name, gradient in gradients(model, x).items()}
        parallel = nn.parallel.DistributedDataParallel(model)
        found = gradients(model, x, parallel)
        # A wrapper that outlives its group, and frees it last, waits now and then for a thread that waits for the
        # interpreter's lock.
        del parallel
        gc.collect()
        assert_same(expected, found, atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()
