"""lp.Quantizer, a layer for somebody's model."""

import copy
import io
import pickle

import pytest
import torch
from cases import FORMATS, normal
from torch import nn

import energy_models as em
import lowprec_eb as lp

each_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
OPTIONS = {
    "values": {"fmt": "int4"},
    "clamped": {"fmt": "fp4_e2m1", "clamped_gradient": "zero"},
    "values and gradient": {"fmt": "int4", "gradient_format": "fp8_e5m2"},
    "gradient": {"gradient_format": "fp8_e5m2"},
    "stochastic": {
        "fmt": "int4",
        "rounding": "stochastic",
        "gradient_format": "int4",
        "gradient_rounding": "stochastic",
    },
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def model(*quantizers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *quantizers, nn.ReLU(), nn.Linear(8, 2))


@each_format
def test_rounds_what_passes_through(fmt):
    assert torch.equal(lp.Quantizer(fmt)(normal(4, 6)), lp.quantize(normal(4, 6), fmt))


@each_option
def test_passes_its_options_on(options):
    results = []
    for function in (lp.Quantizer(**options), lambda x: lp.quantize(x, **({"fmt": None} | options))):
        torch.manual_seed(3)
        x = normal(4, 6).mul(5).requires_grad_()
        out = function(x)
        out.backward(normal(4, 6))
        results.append(torch.stack([out.detach(), x.grad]))
    assert torch.equal(*results)


def test_of_the_gradient_only():
    quantizer, x = lp.Quantizer(gradient_format="fp4_e2m1"), normal(4, 6).requires_grad_()
    out = quantizer(x)
    out.backward(normal(4, 6))
    assert torch.equal(out, x) and torch.equal(x.grad, lp.quantize(normal(4, 6), "fp4_e2m1"))
    with torch.no_grad():
        assert torch.equal(quantizer(x), x)


def test_within_somebodys_model_with_hooks():
    seen = []
    net = model(lp.Quantizer("int4"))
    net[1].register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    net(normal(5, 6)).sum().backward()
    ((before, after),) = seen
    assert torch.equal(after, lp.quantize(before, "int4")) and not torch.equal(before, after)
    assert all(p.grad is not None for p in net.parameters())


@each_option
def test_an_in_place_layer_may_follow(options):
    plain, in_place = model(lp.Quantizer(**options)), model(lp.Quantizer(**options))
    in_place[2] = nn.ReLU(inplace=True)
    for net in (plain, in_place):
        torch.manual_seed(3)
        net(normal(5, 6)).sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), in_place.parameters(), strict=True))


# ---- saved and copied --------------------------------------------------------------------------------------------


def test_has_no_state_so_a_models_state_dict_fits_with_and_without():
    assert not lp.Quantizer("int8").state_dict() and not list(lp.Quantizer("int8").parameters())


@each_format
def test_pickle_and_deepcopy(fmt):
    quantizer = lp.Quantizer(fmt, "toward_zero", gradient_format=fmt, clamped_gradient="zero")
    for other in (pickle.loads(pickle.dumps(quantizer)), copy.deepcopy(quantizer)):
        assert repr(other) == repr(quantizer) and (other.fmt, other.gradient_format) == (fmt, fmt)
        assert torch.equal(other(normal(4, 6)), quantizer(normal(4, 6)))


def test_a_model_that_holds_one_is_saved_and_loaded():
    net, x = model(lp.Quantizer("nvfp4", gradient_format="fp8_e5m2")), normal(5, 6)
    whole, state = io.BytesIO(), io.BytesIO()
    torch.save(net, whole)
    torch.save(net.state_dict(), state)
    whole.seek(0), state.seek(0)
    assert torch.equal(torch.load(whole, weights_only=False)(x), net(x))
    fresh = model(lp.Quantizer("nvfp4"))
    nn.init.zeros_(fresh[0].weight)
    fresh.load_state_dict(torch.load(state, weights_only=True))
    assert torch.equal(fresh(x), net(x))


def test_moves_and_casts_with_its_model():
    assert model(lp.Quantizer("int8")).double()(normal(5, 6).double()).dtype == torch.float64
    assert model(lp.Quantizer("int8")).to("meta")(torch.empty(5, 6, device="meta")).shape == (5, 2)


# ---- what it says of itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"fmt": "int8"}, ["Int(bits=8)", "nearest"]),
        ({"fmt": "int8", "rounding": "stochastic"}, ["Int(bits=8)", "stochastic"]),
        ({"gradient_format": "int4", "gradient_rounding": "toward_zero"}, ["gradient Int(bits=4)", "toward_zero"]),
        ({"fmt": "int8", "gradient_format": "int4"}, ["Int(bits=8)", "gradient Int(bits=4)"]),
        ({"fmt": "int8", "clamped_gradient": "zero"}, ["Int(bits=8)", "clamped_gradient", "zero"]),
        ({"fmt": "int8", "backend": "reference"}, ["Int(bits=8)", "reference"]),
    ],
)
def test_repr_names_what_differs_from_the_default(options, parts):
    text = repr(lp.Quantizer(**options))
    assert all(part in text for part in parts)
    assert ("gradient" in text) == any("gradient" in part for part in parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give fmt, gradient_format or both"),
        ({"fmt": "fp9"}, "not a number format"),
        ({"gradient_format": "fp9"}, "not a number format"),
        ({"fmt": "bf16", "rounding": "up"}, "unknown rounding 'up'"),
        ({"fmt": "bf16", "gradient_format": "bf16", "gradient_rounding": "up"}, "unknown gradient_rounding 'up'"),
        ({"fmt": "bf16", "clamped_gradient": "up"}, "unknown clamped_gradient 'up'"),
        ({"fmt": "bf16", "backend": "up"}, "unknown backend 'up'"),
        ({"gradient_format": "bf16", "clamped_gradient": "zero"}, "clamped_gradient"),  # no range to be clamped to
    ],
)
def test_is_refused_where_it_is_made_and_not_at_the_first_batch(options, message):
    with pytest.raises(ValueError, match=message):
        lp.Quantizer(**options)


# ---- what it costs -----------------------------------------------------------------------------------------------


@each_option
def test_the_counter_sees_a_quantizer_and_no_gemm(options):
    plain, counted = em.count(model(), normal(5, 6)), em.count(model(lp.Quantizer(**options)), normal(5, 6))
    rows = [row for row in counted.element_ops if row.kind == "quantizer"]
    values, gradients = "fmt" in options, "gradient_format" in options
    assert [row.layer for row in rows] == ["1"] * (values + gradients)
    assert [gemm.macs for gemm in counted.gemms] == [gemm.macs for gemm in plain.gemms]
    assert not counted.uncounted
