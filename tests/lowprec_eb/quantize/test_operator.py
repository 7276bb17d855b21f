"""lp.quantize, lp.encode and lp.decode under tracers, transforms, exporters and modes of torch."""

import warnings

import pytest
import torch
from cases import FORMATS, ROUNDINGS, normal
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import grad

import lowprec_eb as lp

OPERATORS = torch.ops.lowprec_eb
each_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
KINDS = ["fp8_e4m3", "nvfp4", "block of 3", "affine from minimum"]  # where one of a kind is enough
each_kind = pytest.mark.parametrize("fmt", [FORMATS[name] for name in KINDS], ids=KINDS)
BACKENDS = ["eager", "aot_eager"]


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch.compiler.reset()


def count_compilations(function, *calls):
    """How often ``function`` is compiled, each call checked against it; a graph break is an error."""
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for arguments in calls:
        assert torch.equal(compiled(*arguments), function(*arguments))
    return len(compilations)


# ---- torch.compile -----------------------------------------------------------------------------------------------


@each_format
def test_compiles_once_whatever_the_seed(fmt):
    x = normal(6, 6)
    calls = [(x, torch.tensor(1)), (x, torch.tensor(-(2**63))), (x + 1, torch.tensor(3))]
    assert count_compilations(lambda x, seed: lp.quantize(x, fmt, "stochastic", seed=seed), *calls) == 1


@pytest.mark.parametrize("rounding", ROUNDINGS)
@each_kind
def test_every_rounding_compiles(fmt, rounding):
    assert count_compilations(lambda x: lp.quantize(x, fmt, rounding, seed=3), (normal(6, 6),)) == 1


CHANGING = {
    "offset": (lambda x, t: lp.quantize(x, "int8", "stochastic", seed=torch.tensor(1), offset=t), [0, 7, 2**40]),
    "scale": (lambda x, t: lp.quantize(x, "int8", scale=t), [0.1, 0.2, 3.0]),
    "scales of slices": (lambda x, t: lp.quantize(x, lp.Int(8, axis=0), scale=t.repeat(6, 1)), [0.1, 0.2, 3.0]),
    "scale and zero point": (lambda x, t: lp.quantize(x, "int8_affine", scale=(t, t * 10)), [0.1, 0.2, 3.0]),
    "two scales": (lambda x, t: lp.quantize(x, "nvfp4", scale=(t, t)), [0.1, 0.2, 3.0]),
    "bits of Int": (lambda x, t: lp.quantize(x, "int8", bits=t), [2.0, 4.4, 16.0]),
    "bits of BlockFloat": (lambda x, t: lp.quantize(x, "block8", bits=t), [2.0, 4.4, 16.0]),
    "bits of FixedPoint": (lambda x, t: lp.quantize(x, "fixed8", bits=t), [4.0, 8.0, 12.0]),
    "bits of encode": (lambda x, t: lp.encode(x, "int8", bits=t)[0].float(), [2.0, 4.4, 8.0]),
}


@pytest.mark.filterwarnings("ignore:.*lru_cache")  # a test of its own, below
@pytest.mark.parametrize("function, values", CHANGING.values(), ids=CHANGING)
def test_no_recompilation_when_a_tensor_argument_changes(function, values):
    x = normal(6, 6)
    assert count_compilations(function, *((x, torch.tensor(value)) for value in values)) == 1


TRAINED = {
    "plain": {},
    "clamped": {"clamped_gradient": "zero"},
    "gradient format": {"gradient_format": lp.FP8_E5M2, "gradient_rounding": "stochastic"},
    "all": {"clamped_gradient": "zero", "gradient_format": lp.FP4_E2M1},
}


def gradients(fmt, options, wrap):
    def function(x, seed):
        return lp.quantize(x, fmt, "stochastic", seed=seed, **options)

    x = (normal(6, 6) * 100).requires_grad_()
    out = wrap(function)(x, torch.tensor(3))
    out.backward(normal(6, 6).T)
    return torch.stack([out.detach(), x.grad])


@pytest.mark.parametrize("options", TRAINED.values(), ids=TRAINED)
@each_kind
def test_compiled_gradients_equal_eager_ones(fmt, options):
    compiled = gradients(fmt, options, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True))
    assert torch.equal(compiled, gradients(fmt, options, lambda f: f))


@each_format
def test_compiled_gradients_equal_eager_ones_in_every_format(fmt):
    compiled = gradients(fmt, TRAINED["all"], lambda f: torch.compile(f, backend="aot_eager", fullgraph=True))
    assert torch.equal(compiled, gradients(fmt, TRAINED["all"], lambda f: f))


LEARNED = {
    "scale": (lp.Int(4, axis=0), {"scale": torch.full((6, 1), 0.2)}),
    "bits": (lp.Int(8), {"bits": torch.tensor(3.7)}),
    "bits of BlockFloat": (lp.BlockFloat(8, block=4), {"bits": torch.tensor(3.7)}),
    "bits of FixedPoint": (lp.FixedPoint(8, 6), {"bits": torch.tensor(3.7)}),
    "scale and bits": (lp.Int(8), {"scale": torch.tensor(0.2), "bits": torch.tensor(3.7)}),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fmt, learned", LEARNED.values(), ids=LEARNED)
def test_compiled_gradients_of_scale_and_bits_hold_for_every_value(fmt, learned, backend):
    def function(x, *values):
        return lp.quantize(x, fmt, **dict(zip(learned, values, strict=True)))

    compiled = torch.compile(function, backend=backend, fullgraph=True)
    for factor in (1.0, 1.5):
        results = []
        for form in (function, compiled):
            values = [(value * factor).requires_grad_() for value in learned.values()]
            form(normal(6, 6), *values).backward(normal(6, 6).T)
            results.append([value.grad for value in values])
        assert all(map(torch.allclose, *results))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_training_step_trains_as_the_eager_one(backend):
    def train(wrap):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)]
        model = torch.nn.Sequential(layers[0], lp.Quantizer("bf16", gradient_format="fp8_e5m2"), *layers[1:])
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        forward = wrap(lambda x, seed: model(lp.quantize(x, "int8", "stochastic", seed=seed)).square().mean())
        for step in range(3):
            optimizer.zero_grad()
            forward(normal(16, 6), torch.tensor(step)).backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    compiled = train(lambda function: torch.compile(function, backend=backend, fullgraph=True))
    assert torch.allclose(compiled, train(lambda function: function), atol=1e-6)


WRITTEN_INSIDE = {
    "name": lambda x: lp.quantize(x, "fp8_e4m3"),
    "BlockFloat": lambda x: lp.quantize(x, lp.BlockFloat(8, dim=0)),
    "Int": lambda x: lp.quantize(x, lp.Int(4, symmetric=False, block=4)),
    "Float": lambda x: lp.quantize(x, lp.Float(4, 3)),
    "FixedPoint": lambda x: lp.quantize(x, lp.FixedPoint(8, 4)),
    "MX": lambda x: lp.quantize(x, lp.MX(lp.Float(4, 3), block=4)),
    "ScaledFloat": lambda x: lp.quantize(x, lp.ScaledFloat(lp.FP8_E4M3)),
    "encode, decode": lambda x: lp.decode(*lp.encode(x, lp.Int(8, axis=0)), lp.Int(8, axis=0)),
    "stochastic": lambda x: lp.quantize(x, lp.Int(8), "stochastic", seed=3, offset=7),
}


@pytest.mark.parametrize("function", WRITTEN_INSIDE.values(), ids=WRITTEN_INSIDE)
def test_a_format_may_be_made_inside_a_compiled_function(function):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Dynamo detected a call to a `functools.lru_cache`")
        assert count_compilations(function, (normal(6, 6),)) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_and_out_compile(backend):
    def function(x, out):
        lp.quantize(x, "int8", out=out)
        return lp.quantize_(x, "int4") + 1

    x, out = normal(6, 6), torch.zeros(6, 6)
    result = torch.compile(function, backend=backend, fullgraph=True)(x, out)
    assert torch.equal(out, lp.quantize(normal(6, 6), "int8"))
    assert torch.equal(x, lp.quantize(normal(6, 6), "int4")) and torch.equal(result, x + 1)


def test_no_seed_draws_anew_at_each_call_of_a_compiled_function():
    compiled = torch.compile(lambda x: lp.quantize(x, "int4", "stochastic"), backend="aot_eager", fullgraph=True)
    assert not torch.equal(compiled(normal(500)), compiled(normal(500)))


def test_dynamic_shapes_compile():
    for function in (lambda x: lp.quantize(x, lp.Int(8, block=4)), lambda x: lp.encode(x, lp.Int(8, block=4))[1]):
        torch.compiler.reset()
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
        for rows, columns in ((3, 6), (5, 9), (9, 4)):
            assert torch.equal(compiled(normal(rows, columns)), function(normal(rows, columns)))


def test_a_compiled_transform_is_right_or_an_error():
    # Never a silent gradient of zero.
    def function(x):
        return grad(lambda x: lp.quantize(x, "int8").square().sum())(x)

    try:
        passed = torch.compile(function, backend="eager")(normal(4, 6))
    except Exception:
        return
    assert torch.equal(passed, function(normal(4, 6)))


# ---- shapes without values ---------------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda: normal(4, 6),
    "transposed": lambda: normal(6, 4).T,
    "strided": lambda: normal(4, 12)[:, ::2],
    "expanded": lambda: normal(1, 6).expand(4, 6),
    "permuted": lambda: normal(3, 4, 5).permute(2, 0, 1),
    "channels last": lambda: normal(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "no rows": lambda: torch.empty(0, 6),
    "no columns": lambda: torch.empty(4, 0),
    "0-d": lambda: normal(),
}


def layouts(x, fmt):
    """Dtype, shape and (of what has elements) strides of all that quantize and encode return."""
    codes, scales = lp.encode(x, fmt)
    found = scales if isinstance(scales, tuple) else () if scales is None else (scales,)
    return [
        (part.dtype, part.shape, part.stride() if part.numel() else None)
        for part in (lp.quantize(x, fmt), codes, *found)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS)
@each_format
def test_meta_and_fake_tensors_have_the_layout_of_real_ones(fmt, make, dtype):
    x = make()
    x = torch.empty_strided(x.shape, x.stride(), dtype=dtype).fill_(0.5)
    expected = layouts(x, fmt)
    assert layouts(torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="meta"), fmt) == expected
    with FakeTensorMode() as mode:
        assert layouts(mode.from_tensor(x), fmt) == expected


@pytest.mark.parametrize("fmt", [lp.Int(8), lp.Int(8, symmetric=False), lp.BlockFloat(8)], ids=repr)
@pytest.mark.parametrize("bits", [4, 8, 12, 16])
def test_the_codes_dtype_does_not_depend_on_a_value(fmt, bits):
    # Bits are a tensor that only the run knows.
    real, meta = (
        lp.encode(torch.ones(4, device=device), fmt, bits=torch.tensor(bits))[0] for device in ("cpu", "meta")
    )
    assert real.dtype == meta.dtype


# ---- export, operator checks, modes ------------------------------------------------------------------------------


class Rounds(torch.nn.Module):
    def __init__(self, fmt):
        super().__init__()
        self.linear, self.fmt = torch.nn.Linear(6, 6), fmt

    def forward(self, x, seed):
        y = lp.quantize(self.linear(x), self.fmt, "stochastic", seed=seed)
        return y + lp.decode(*lp.encode(x, self.fmt), self.fmt)


@pytest.mark.parametrize("strict", [False, True])
@each_kind
def test_an_exported_program_runs(fmt, strict):
    model = Rounds(fmt).requires_grad_(False)
    program = torch.export.export(model, (normal(4, 6), torch.tensor(1)), strict=strict)
    operators = {str(n.target) for m in program.graph_module.modules() if hasattr(m, "graph") for n in m.graph.nodes}
    assert "lowprec_eb.quantize.default" in operators
    other = normal(4, 6) * 3, torch.tensor(5)
    for form in (program, program.run_decompositions()):
        assert torch.equal(form.module()(*other), model(*other))


@each_kind
def test_torchs_checks_of_operators(fmt):
    check, how = torch.library.opcheck, ("nearest", None, None, [], None)
    for x in (normal(4, 6), normal(2, 3, 4, 5).to(memory_format=torch.channels_last)):
        check(OPERATORS.quantize.default, (x, repr(fmt), *how, "reference"))
        check(OPERATORS.encode.default, (x, repr(fmt), *how))
        check(OPERATORS.in_range.default, (x, repr(fmt), [], None))
        check(OPERATORS.find_scales.default, (x, repr(fmt), None))
    check(OPERATORS.quantize.out, (x, repr(fmt), *how, "reference"), {"out": torch.empty_like(x)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_dtype_to_the_tensor(dtype):
    x = normal(4, 6)
    with torch.autocast("cpu", dtype=dtype):
        hidden = torch.nn.functional.linear(x, normal(6, 6))
        assert hidden.dtype == dtype and lp.quantize(hidden, "int8").dtype == dtype
        assert torch.equal(lp.quantize(x, "int8"), lp.quantize(normal(4, 6), "int8"))


def test_inference_mode():
    with torch.inference_mode():
        x = normal(4, 6)
        out = lp.quantize(x, "int8")
        assert out.is_inference() and torch.equal(lp.decode(*lp.encode(x, "int8"), "int8"), out)
        assert torch.equal(lp.quantize_(x, "int8"), out)
    assert torch.equal(lp.quantize(out, "int8"), out)


def test_plain_numbers_that_change_compile_too():
    def function(x, seed, offset):
        return lp.quantize(x, "fixed8", "stochastic", seed=seed, offset=offset)

    compiled, x = torch.compile(function, backend="eager", fullgraph=True), normal(4, 6)
    for number in (1, 2, 3):
        assert torch.equal(compiled(x, number, number + 1), function(x, number, number + 1))


def test_a_float_scale_that_changes_compiles_too():
    compiled, x = (
        torch.compile(lambda x, s: lp.quantize(x, "int8", scale=s), backend="eager", fullgraph=True),
        normal(4),
    )
    for number in (0.1, 0.2, 0.3):
        assert torch.equal(compiled(x, number), lp.quantize(x, "int8", scale=number))


def test_forward_mode_is_refused_and_never_lost():
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        lp.quantize(forward_ad.make_dual(normal(3), torch.ones(3)), "int8")
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(lambda x: lp.quantize(x, "int8"), (normal(3),), (torch.ones(3),))
