"""Running ranges and set bits: what a lowered model knows besides its weights."""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import lowprec_eb as lp
from lowprec_eb.formats import Int
from lowprec_eb.precision import Precision, Rounded

INT8 = lp.precision("int8", overrides=())
KEY = "0/range/0.activation.output"


def model_and_batches(precision=INT8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5))
    lp.lower(model, precision)
    return model, [torch.randn(4, 6) * scale for scale in (1.0, 2.0, 4.0)]


def test_training_follows_the_range_of_what_it_sees():
    model, batches = model_and_batches()
    expected = None
    for x in batches:
        seen = torch.stack([x.amax() - x.amin(), x.amin()])
        expected = seen if expected is None else 0.9 * expected + 0.1 * seen
        model(x).sum().backward()
    assert torch.allclose(lp.precision_state(model)[KEY].flatten(), expected)
    assert list(model.state_dict()) == ["0.weight", "0.bias"]


def test_evaluation_uses_the_range_and_does_not_move_it():
    model, batches = model_and_batches()
    for x in batches:
        model(x)
    span, lowest = lp.precision_state(model)[KEY].flatten().tolist()
    x = batches[0] * 3  # beyond the range on both sides: saturates
    step = span / 255
    rounded = ((x - lowest) / step).round().clamp(0, 255) * step + lowest
    weight = lp.quantize(model[0].weight, INT8.weight)
    expected = rounded @ weight.t() + model[0].bias
    before = lp.precision_state(model)
    with torch.no_grad():
        own = lp.quantize(x, INT8.activation.fmt) @ weight.t() + model[0].bias  # training takes the batch's own range
        assert torch.allclose(model(x), own, atol=1e-5) and not torch.allclose(own, expected, atol=0.1)
        lp.load_precision_state(model, before)
        model.eval()
        assert torch.allclose(model(x), expected, atol=1e-4)
    assert torch.equal(lp.precision_state(model)[KEY], before[KEY])


def test_evaluation_before_training_uses_the_batchs_own_range():
    model, (x, *_) = model_and_batches()
    weight, activation = INT8.weight, INT8.activation.fmt
    with torch.no_grad():
        expected = lp.quantize(x, activation) @ lp.quantize(model[0].weight, weight).t() + model[0].bias
        assert torch.allclose(model.eval()(x), expected, atol=1e-5)
    assert lp.precision_state(model) == {}


def test_each_call_of_a_shared_layer_and_each_operand_has_its_own_range():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    torch.manual_seed(0)
    model = Twice()
    lp.lower(model, INT8)
    model(torch.randn(2, 3, 4))
    state = lp.precision_state(model)
    assert {key.split("/")[2] for key in state} == {
        *(f"{call}.activation.output" for call in range(4)),  # projections, scores, mixture, output projection
        *(f"{call}.second activation.output" for call in (1, 2)),
    }
    assert len({tuple(value.flatten().tolist()) for value in state.values()}) == len(state)


def test_the_state_round_trips_and_is_independent():
    model, batches = model_and_batches()
    for x in batches:
        model(x)
    lp.set_bits(model, {"weight": 5})
    state = lp.precision_state(model)
    assert list(state) == [KEY, "0/bits/weight"]
    other, _ = model_and_batches()
    other(batches[0] * 100)
    lp.load_precision_state(other, state)
    x = torch.randn(3, 6) * 5
    assert torch.equal(other.eval()(x), model.eval()(x))
    for tensor in state.values():
        tensor.zero_()
    assert torch.equal(other(x), model(x)) and lp.precision_state(other)[KEY].abs().sum() > 0
    copied = copy.deepcopy(model)
    lp.load_precision_state(copied, {})
    assert lp.precision_state(copied) == {} and lp.precision_state(model) != {}
    assert not torch.equal(copied(x), model(x))


@pytest.mark.parametrize("key", ["1/range/x", "0/rangs/x", "0", ""])
def test_a_state_of_another_model_is_refused_whole(key):
    model, (x, *_) = model_and_batches()
    model(x)
    before = lp.precision_state(model)
    with pytest.raises(ValueError, match=f"precision state {key!r} is of no lowered layer"):
        lp.load_precision_state(model, {KEY: torch.zeros(2, 1, 1), key: torch.zeros(())})
    assert torch.equal(lp.precision_state(model)[KEY], before[KEY])


def _kinds(bits):
    return {"int": lp.Int(bits), "bfp": lp.BlockFloat(bits, 0), "fixed": lp.FixedPoint(bits, bits - 3)}


@pytest.mark.parametrize("kind", _kinds(8))
@pytest.mark.parametrize("operand", ["weight", "activation", "error", "output"])
def test_set_bits_is_another_format_from_the_next_step_on(operand, kind):
    torch.manual_seed(0)
    x, error = torch.randn(4, 6), torch.randn(4, 5)
    layer = nn.Linear(6, 5)

    def run(model):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y.backward(error)
        return torch.cat([t.detach().flatten() for t in (y, leaf.grad, model[0].weight.grad)])

    def lowered(bits):
        model = copy.deepcopy(nn.Sequential(layer))
        lp.lower(model, Precision(**{operand: _kinds(bits)[kind]}))
        return model

    model = lowered(8)
    eight = run(model)
    for bits in (4, 6):
        lp.set_bits(model, {operand: bits})
        assert torch.equal(run(model), run(lowered(bits))) and not torch.equal(run(model), eight)
    lp.set_bits(model, {operand: 8})
    assert torch.equal(run(model), eight)


def test_set_bits_works_in_place_and_shows_in_the_operands_format():
    model, _ = model_and_batches()
    lp.set_bits(model, {"weight": 4})
    bits = model[0].lowering.bits["weight"]
    lp.set_bits(model, {"weight": 6, "activation": 3})
    assert model[0].lowering.bits["weight"] is bits and bits == 6
    assert model[0].operand_format("output", "weight") == Int(6, symmetric=False, axis=0, zero_point="minimum")
    assert model[0].operand_format("output", "activation").bits == 3
    assert model[0].operand_format("grad_input", "error").bits == 8


def test_set_bits_holds_for_the_running_range_too():
    model, (x, *_) = model_and_batches(Precision(activation=Rounded(Int(8), running=0.5)))
    model(x)
    lp.set_bits(model, {"activation": 3})
    with torch.no_grad():
        step = x.abs().amax() / 3
        expected = (x / step).round() * step @ model[0].weight.t() + model[0].bias
        assert torch.allclose(model.eval()(x), expected, atol=1e-5)


def test_compiled_set_bits_compiles_nothing_anew():
    torch._dynamo.reset()
    model, (x, *_) = model_and_batches(Precision(weight=lp.Int(8)))
    lp.set_bits(model, {"weight": 8})
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    for bits in (8, 4, 3):
        lp.set_bits(model, {"weight": bits})
        assert torch.equal(compiled(x), model(x))
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"weigth": 4}, "no layer of Sequential rounds 'weigth'"),
        ({"activation": 4, "output": 4}, "rounds 'output': nothing to give other bits to"),
        ({"activation": 4, "weight": 1}, "bits must be a whole number from 2 to 16, got 1"),
    ],
)
def test_set_bits_refuses_and_changes_nothing(bits, message):
    model, _ = model_and_batches()
    with pytest.raises(ValueError, match=message):
        lp.set_bits(model, bits)
    assert lp.precision_state(model) == {}


def test_set_bits_needs_a_format_that_has_a_number_of_bits():
    model, _ = model_and_batches("fp8")
    with pytest.raises(ValueError, match="no single number of bits to change; Int, BlockFloat and FixedPoint have"):
        lp.set_bits(model, {"weight": 4})


@pytest.mark.parametrize(
    ("precision", "operand", "message"),
    [
        (lp.Precision(activation=lp.Rounded(lp.Int(8), prescale=3 / 4)), "activation", "has a prescale"),
        (lp.Precision(normalization=lp.Int(8)), "normalization", "'normalization' cannot be set"),
    ],
)
def test_bits_that_would_not_be_followed_are_refused(precision, operand, message):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    lp.lower(model, precision)
    x = torch.randn(2, 4)
    before = model(x)
    with pytest.raises(ValueError, match=message):
        lp.set_bits(model, {operand: 4})
    assert lp.precision_state(model) == {} and torch.equal(model(x), before)
