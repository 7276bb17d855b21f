"""What every kind of layer computes when it is lowered, against torch's own layer and against float64."""

import math
from dataclasses import replace

import pytest
import torch
from layer_cases import CASES, build, results
from torch import nn
from torch.nn import functional as F

import lowprec_eb as lp
from lowprec_eb.precision import PerGemm, Precision
from lowprec_eb.recipes import RECIPES
from lowprec_eb.scope import READINGS

THROUGH = Precision("through", weight="fp32", activation="fp32", error="fp32")  # every GEMM by the engine, exactly


# ---- formats that lose nothing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("hadamard", [None, 64])
@pytest.mark.parametrize("case", CASES)
def test_formats_that_lose_nothing_give_the_plain_model(case, hadamard):
    model, x = build(case)
    plain = results(model, x)
    lp.lower(model, replace(THROUGH, hadamard=hadamard))
    lowered = results(model, x)
    assert plain.keys() == lowered.keys()
    for name, value in plain.items():
        assert torch.allclose(lowered[name], value, rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("case", CASES)
def test_evaluation_without_gradients_gives_the_plain_model(case):
    model, x = build(case)
    model.eval()
    plain = model(x).detach()
    lp.lower(model, THROUGH)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.allclose(model(x), plain, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"padding_idx": 2}, {"scale_grad_by_freq": True}])
def test_an_embedding_reads_rounded_rows_and_keeps_its_options(options):
    def gradient(precision):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 4, **options))
        lp.lower(model, precision)
        found = results(model, torch.tensor([[1, 2, 2], [6, 1, 1]]))
        return model[0].weight.detach(), found["output"], found["0.weight"]

    _, output, grad = gradient("fp32")
    _, same_output, same_grad = gradient(THROUGH)
    assert torch.equal(output, same_output) and torch.allclose(grad, same_grad)
    fmt = lp.Int(4)
    weight, rounded, through = gradient(Precision(weight=fmt))
    assert torch.equal(rounded, F.embedding(torch.tensor([[1, 2, 2], [6, 1, 1]]), lp.quantize(weight, fmt)))
    assert not torch.equal(rounded, output) and torch.allclose(through, grad)


# ---- each GEMM by itself, against float64 -------------------------------------------------------------------------


def _flat(x, fmt):
    """Blocks along all dimensions but the last, as the rows that a weight gradient sums over."""
    return lp.quantize(x.reshape(-1, x.shape[-1]), replace(fmt, block_axis=0)).view(x.shape)


def _along(axis):
    return lambda x, fmt: lp.quantize(x, replace(fmt, block_axis=axis))


# function of two factors, their shapes, and the axes that are summed over:
# output (first, second), grad of first (error, second), grad of second (error, first)
_CONV_AXES = (1, 1, 1, 0, 0, 0)
_CONV_TRANSPOSE_AXES = (1, 0, 1, 1, 0, 0)
PRODUCTS = {
    "linear": (F.linear, nn.Linear(12, 8), (3, 5, 12), (-1, -1, -1, 0, None, None)),
    "conv1d": (lambda x, w: F.conv1d(x, w, stride=2), nn.Conv1d(8, 4, 3, stride=2), (6, 8, 9), _CONV_AXES),
    "conv2d": (lambda x, w: F.conv2d(x, w, padding=1), nn.Conv2d(8, 4, 3, padding=1), (6, 8, 4, 5), _CONV_AXES),
    "grouped": (
        lambda x, w: F.conv2d(x, w, dilation=2, groups=2),
        nn.Conv2d(8, 12, 2, dilation=2, groups=2),
        (6, 8, 4, 5),
        _CONV_AXES,
    ),
    "transposed": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2),
        nn.ConvTranspose2d(8, 4, 3, stride=2),
        (6, 8, 3, 3),
        _CONV_TRANSPOSE_AXES,
    ),
    "transposed grouped": (
        lambda x, w: F.conv_transpose1d(x, w, groups=2),
        nn.ConvTranspose1d(8, 12, 3, groups=2),
        (6, 8, 5),
        _CONV_TRANSPOSE_AXES,
    ),
}
TENSOR_FORMATS = (lp.Int(8), lp.BlockFloat(7, 0), lp.FP8_E4M3, lp.FixedPoint(8, 5), lp.FP8_E5M2, lp.Int(6, axis=0))
BLOCK_FORMATS = tuple(
    lp.BlockFloat(bits, block=block) for bits, block in zip(range(4, 10), (2, 4, 2, 4, 3, 2), strict=True)
)


def _per_gemm(formats, **settings):
    a, b, c, d, e, f = formats
    return Precision(
        activation=PerGemm(output=a, grad_weight=b),
        weight=PerGemm(output=c, grad_input=d),
        error=PerGemm(grad_input=e, grad_weight=f),
        **settings,
    )


def _check_against_float64(name, precision, formats, quantizers):
    """``quantizers``: of output's two factors, of grad_input's and of grad_weight's."""
    function, layer, shape, _ = PRODUCTS[name]
    torch.manual_seed(0)
    model, x = nn.Sequential(layer), torch.randn(shape, requires_grad=True)
    layer.reset_parameters()
    lp.lower(model, precision)
    model.zero_grad()
    y = model(x)
    error = torch.randn_like(y)
    y.backward(error)
    lp.raise_(model)
    a, b, c, d, e, f = formats
    rounded = [
        q(tensor.detach(), fmt).double()
        for q, tensor, fmt in zip(
            quantizers, (x, layer.weight, error, layer.weight, error, x), (a, c, e, d, f, b), strict=True
        )
    ]
    exact = function(rounded[0], rounded[1])
    channels = y.dim() - 1 if name == "linear" else 1
    exact = exact + layer.bias.double().view(-1, *[1] * (y.dim() - 1 - channels))
    exact_input = torch.func.vjp(lambda t: function(t, rounded[3]), x.detach().double())[1](rounded[2])[0]
    exact_weight = torch.func.vjp(lambda t: function(rounded[5], t), layer.weight.detach().double())[1](rounded[4])[0]
    others = [axis for axis in range(y.dim()) if axis != channels]
    pairs = ((y, exact), (x.grad, exact_input), (layer.weight.grad, exact_weight))
    for found, expected in (*pairs, (layer.bias.grad, rounded[4].sum(others))):
        assert torch.allclose(found.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("name", PRODUCTS)
def test_each_gemm_reads_its_own_formats(name):
    """Six different formats: none can stand in for another."""
    quantizers = [lp.quantize] * 6
    _check_against_float64(name, _per_gemm(TENSOR_FORMATS), TENSOR_FORMATS, quantizers)
    swapped = (*TENSOR_FORMATS[:2], TENSOR_FORMATS[3], TENSOR_FORMATS[2], *TENSOR_FORMATS[4:])
    with pytest.raises(AssertionError):
        _check_against_float64(name, _per_gemm(TENSOR_FORMATS), swapped, quantizers)


@pytest.mark.parametrize("name", PRODUCTS)
def test_blocks_run_along_the_summed_dimension(name):
    axes = PRODUCTS[name][3]
    quantizers = [_flat if axis is None else _along(axis) for axis in axes]
    _check_against_float64(name, _per_gemm(BLOCK_FORMATS), BLOCK_FORMATS, quantizers)
    with pytest.raises(AssertionError):
        _check_against_float64(name, _per_gemm(BLOCK_FORMATS), BLOCK_FORMATS, [lp.quantize] * 6)


@pytest.mark.parametrize("name", PRODUCTS)
def test_blocks_run_along_the_formats_own_axis(name):
    formats = [replace(fmt, block_axis=axis) for fmt, axis in zip(BLOCK_FORMATS, (0, -1, -1, 0, 1, 0), strict=True)]
    precision = _per_gemm(formats, block_axis="format")
    _check_against_float64(name, precision, formats, [lp.quantize] * 6)


class Product(nn.Module):
    def forward(self, a, b):
        return a @ b


@pytest.mark.parametrize("block_axis", ["reduction", "format"])
@pytest.mark.parametrize(("first", "second"), [((3, 4, 6), (3, 6, 5)), ((3, 4, 6), (6, 5)), ((2, 3, 4, 6), (3, 6, 5))])
def test_a_product_of_activations_rounds_both_factors(first, second, block_axis):
    """Both are activations: read as ``output`` says forward; backward the error as ``grad_input``, the other factor as
    ``grad_weight``."""
    forward, again, error_format = BLOCK_FORMATS[3:]
    model = nn.Sequential(Product())
    activation, error_formats = PerGemm(output=forward, grad_weight=again), PerGemm(grad_input=error_format)
    lp.lower(model, Precision(activation=activation, error=error_formats, block_axis=block_axis), functional=True)
    torch.manual_seed(0)
    a, b = torch.randn(first, requires_grad=True), torch.randn(second, requires_grad=True)
    y = model[0](a, b)
    error = torch.randn_like(y)
    y.backward(error)

    def q(x, fmt, axis):
        return _along(-1 if block_axis == "format" else axis)(x.detach(), fmt).double()

    assert torch.allclose(y.double(), q(a, forward, -1) @ q(b, forward, -2), atol=1e-5)
    grad_a = q(error, error_format, -1) @ q(b, again, -1).mT
    assert torch.allclose(a.grad.double(), grad_a.sum_to_size(first), atol=1e-5)
    grad_b = q(a, again, -2).mT @ q(error, error_format, -2)
    assert torch.allclose(b.grad.double(), grad_b.sum_to_size(second), atol=1e-5)


def test_the_accumulator_is_rounded_before_the_bias_and_the_output_after_it():
    """On a grid on which float32 is exact, so that both roundings are too."""
    grid, accumulator, output = lp.FixedPoint(8, 4), lp.FixedPoint(12, 3), lp.FixedPoint(10, 1)
    model, x = nn.Sequential(nn.Linear(6, 5)), torch.randn(4, 6, requires_grad=True)
    layer = model[0]
    lp.lower(model, Precision(weight=grid, activation=grid, error=grid, accumulator=accumulator, output=output))
    y = model(x)
    error = torch.randn_like(y)
    y.backward(error)
    qx, qw, qe = (lp.quantize(t.detach(), grid) for t in (x, layer.weight, error))
    assert torch.equal(y, lp.quantize(lp.quantize(qx @ qw.t(), accumulator) + layer.bias, output))
    assert torch.equal(x.grad, lp.quantize(qe @ qw, accumulator))
    assert torch.equal(layer.weight.grad, lp.quantize(qe.t() @ qx, accumulator))
    assert not torch.equal(x.grad, qe @ qw) and torch.equal(layer.bias.grad, qe.sum(0))


def test_a_normalization_rounds_its_result_and_its_error():
    fmt = lp.BlockFloat(6, 0)
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5)), torch.randn(4, 6, requires_grad=True)
    report = lp.lower(model, Precision(normalization=fmt))
    assert [item.name for item in report.lowered] == ["0", "1"]
    y = model[0](x)
    error = torch.randn_like(y)
    y.backward(error)
    other = x.detach().clone().requires_grad_()
    plain = F.layer_norm(other, (6,))
    plain.backward(lp.quantize(error, fmt))
    assert torch.equal(y, lp.quantize(plain.detach(), fmt)) and torch.allclose(x.grad, other.grad, atol=1e-6)


# ---- signal-to-noise ratio ----------------------------------------------------------------------------------------

DB_PER_BIT = 20 * math.log10(2)
# A layer whose results depend on each other: any GEMM's noise is in all of them.
CHAINED = ("attention", "attention without bias", "subclass")


def _formats_behind(result, precision):
    """The formats whose noise is in a result of a single product."""
    behind = {
        "output": [("activation", "output"), ("weight", "output"), ("output", None)],
        "input": [("error", "grad_input"), ("weight", "grad_input")],
        "weight": [("error", "grad_weight"), ("activation", "grad_weight")],
        "bias": [("error", "grad_weight")] if precision.rotation("grad_weight") is None else [],
        "any": [key for key in READINGS if key[0] in ("activation", "weight", "error", "output")],
    }
    return [found.fmt for key in behind[result] if (found := precision.of(*key)) is not None]


def _kind(case, name):
    if case in CHAINED:
        return "any" if name != "output" else "output"
    return name if name in ("output", "input") else "bias" if name.endswith("bias") else "weight"


def signal_to_noise_db(case, precision, seeds=4):
    """Of each result, in dB, its energies summed over seeds; infinity where nothing was rounded."""
    signal, noise = {}, {}
    for seed in range(seeds):
        model, x = build(case, seed)
        plain = results(model, x)
        lp.lower(model, precision)
        for name, value in results(model, x).items():
            signal[name] = signal.get(name, 0.0) + plain[name].square().sum().item()
            noise[name] = noise.get(name, 0.0) + (value - plain[name]).square().sum().item()
    return {name: 10 * math.log10(signal[name] / noise[name]) if noise[name] else math.inf for name in signal}


def _bounds_db(kind, chained, precision):
    """What rounding to the coarsest of a result's formats lets its signal-to-noise ratio be.

    A float of m mantissa bits has a relative error of up to 2^-(m+1); integers spend about two of their bits on what
    lies between the largest and the typical magnitude, and stochastic rounding has twice the noise power. A bias sums
    what may cancel, and in a chain the noise of several products adds: one bit more on both sides.
    """
    formats = _formats_behind(kind, precision)
    if not formats:
        return 120.0, math.inf  # the same numbers, up to float32's own rounding
    bits = min(fmt.mantissa_bits for fmt in formats)
    coarse_float = all(fmt.element.exponent_bits for fmt in formats if fmt.mantissa_bits == bits)
    low, high = (0.0, 3.0) if coarse_float else (-2.5, 2.0)
    wider = 1 if chained or kind == "bias" else 0
    return DB_PER_BIT * (bits + low - wider), DB_PER_BIT * (bits + high + wider)


def _assert_noise_is_the_formats(case, precision, formats_of):
    chained = case in CHAINED
    for name, found in signal_to_noise_db(case, precision).items():
        low, high = _bounds_db(_kind(case, name), chained, formats_of)
        assert found >= low, f"{name}: {found:.1f} dB, at least {low:.1f} expected"
        if not chained or name in ("output", "input"):  # a chain's parameter may depend on the noisy part hardly at all
            assert found <= high, f"{name}: {found:.1f} dB, at most {high:.1f} expected"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "fp32"])
def test_signal_to_noise_ratio_is_that_of_the_formats(recipe, case):
    precision = lp.precision(recipe, overrides=())
    _assert_noise_is_the_formats(case, precision, precision)


@pytest.mark.parametrize("computed", ["fp32", "int4", "fp8", "mxfp4"])
def test_the_bounds_tell_another_recipe_from_bfp8(computed):
    with pytest.raises(AssertionError, match="expected"):
        _assert_noise_is_the_formats("conv2d", lp.precision(computed, overrides=()), lp.precision("bfp8"))


# ---- stochastic rounding ------------------------------------------------------------------------------------------


def _deviations(precision, repeats=600):
    """How far the means of output, input's and weight's gradient lie from the plain ones, in standard errors."""
    torch.manual_seed(0)
    model, x, error = nn.Sequential(nn.Linear(8, 6)), torch.randn(16, 8), torch.randn(16, 6)

    def once():
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y.backward(error)
        return torch.cat([t.detach().flatten() for t in (y, leaf.grad, model[0].weight.grad)]).double()

    plain = once()
    lp.lower(model, precision)
    seen = torch.stack([once() for _ in range(repeats)])
    # Not below float32's own error: what hardly varies has no standard error to speak of.
    standard_error = (seen.std(0) / repeats**0.5).clamp_min(1e-5)
    return ((seen.mean(0) - plain) / standard_error).split([16 * 6, 16 * 8, 6 * 8])


@pytest.mark.parametrize("hadamard", [None, 4])
def test_stochastic_rounding_is_unbiased_in_every_gemm(hadamard):
    """Both operands are rounded with seeds of their own, so the mean of their product is the product of the means."""
    fmt = lp.Int(4)
    precision = Precision(weight=fmt, activation=fmt, error=fmt, rounding="stochastic", hadamard=hadamard)
    for deviations in _deviations(precision):
        assert deviations.abs().max() < 4.5 and 0.6 < deviations.square().mean() < 1.6
    for deviations in _deviations(replace(precision, rounding="nearest", hadamard=None), repeats=2):
        assert deviations.abs().max() > 100


def test_the_rotations_signs_are_drawn_anew_and_governed_by_the_seed():
    fmt = lp.Int(4)
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(8, 8)
    lp.lower(model, Precision(weight=fmt, activation=fmt, error=fmt, hadamard=8))  # nothing else is random
    runs = []
    for seed in (0, 0, 1, 2):
        torch.manual_seed(seed)
        runs.append(results(model, x))
    for name in ("output", "input", "0.weight"):
        assert torch.equal(runs[0][name], runs[1][name])
        assert not all(torch.equal(runs[0][name], other[name]) for other in runs[2:])
