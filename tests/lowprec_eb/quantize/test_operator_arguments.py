"""out= and in place, threads and processes, and what lp.quantize, lp.encode and lp.decode refuse."""

import math
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import FORMATS, ROUNDINGS, normal, same_bits

import lowprec_eb as lp

nan, inf = math.nan, math.inf
each_format = pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)

# ---- out= and in place -------------------------------------------------------------------------------------------


@each_format
def test_in_place_equals_out_of_place(fmt):
    x = normal(4, 6)
    expected = lp.quantize(x, fmt, "stochastic", seed=3)
    assert lp.quantize_(x, fmt, "stochastic", seed=3) is x
    assert same_bits(x, expected)


OUTS = {
    "contiguous": lambda: torch.full((4, 6), nan),
    "transposed": lambda: torch.full((6, 4), nan).T,
    "strided": lambda: torch.full((4, 12), nan)[:, ::2],
}


@pytest.mark.parametrize("make", OUTS.values(), ids=OUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_out_may_have_any_layout(make, dtype):
    x, out = normal(4, 6, dtype=dtype), make().to(dtype)
    strides, version = out.stride(), out._version
    assert lp.quantize(x, "int8", out=out) is out
    assert torch.equal(out, lp.quantize(x, "int8")) and out.stride() == strides
    assert out._version > version  # autograd notices the write


def test_out_may_overlap_x():
    storage = normal(30)
    expected = lp.quantize(storage[:24].clone(), "int8", "stochastic", seed=1)
    assert torch.equal(lp.quantize(storage[:24], "int8", "stochastic", seed=1, out=storage[6:]), expected)
    x = normal(4, 4)
    expected = lp.quantize(x, lp.Int(8, axis=0))
    assert torch.equal(lp.quantize(x, lp.Int(8, axis=0), out=x.T), expected)


def leaf():
    return normal(4, 6).requires_grad_()


REFUSED_OUTS = {
    "dtype": lambda x: lp.quantize(x, "int8", out=torch.empty(4, 6, dtype=torch.float64)),
    "shape": lambda x: lp.quantize(x, "int8", out=torch.empty(6, 4)),
    "device": lambda x: lp.quantize(x, "int8", out=torch.empty(4, 6, device="meta")),
    "no tensor": lambda x: lp.quantize(x, "int8", out=[0.0] * 24),
    "sparse": lambda x: lp.quantize(x, "int8", out=torch.zeros(4, 6).to_sparse()),
    "one place for many elements": lambda x: lp.quantize(x, "int8", out=torch.zeros(1, 6).expand(4, 6)),
    "x wants a gradient": lambda x: lp.quantize(leaf(), "int8", out=torch.empty(4, 6)),
    "in place on a leaf": lambda x: lp.quantize_(leaf(), "int8"),
    "in place within a graph": lambda x: lp.quantize_(leaf() * 2, "int8"),
    "out is a parameter": lambda x: lp.quantize(x, "int8", out=leaf()),
    "out is within a graph": lambda x: lp.quantize(x, "int8", out=leaf() * 2),
    "scale wants a gradient": lambda x: lp.quantize(x, "int8", scale=torch.ones((), requires_grad=True), out=x),
    "bits want a gradient": lambda x: lp.quantize(x, "int8", bits=torch.tensor(4.0, requires_grad=True), out=x),
    "no format of values": lambda x: lp.quantize(x, None, gradient_format="bf16", out=torch.empty(4, 6)),
    "in place, no format": lambda x: lp.quantize_(x, None, gradient_format="bf16"),
}


@pytest.mark.parametrize("call", REFUSED_OUTS.values(), ids=REFUSED_OUTS)
def test_a_wrong_out_is_refused(call):
    with pytest.raises((ValueError, TypeError), match="out"):
        call(normal(4, 6))


def test_in_place_without_gradients():
    parameter = torch.nn.Parameter(normal(4, 6))
    with torch.no_grad():
        assert lp.quantize_(parameter, "int8") is parameter
    assert torch.equal(parameter.detach(), lp.quantize(normal(4, 6), "int8")) and parameter.requires_grad


# ---- threads and processes ---------------------------------------------------------------------------------------


def work(seed):
    """Every format, forward and backward; the list of results."""
    results = []
    for fmt in FORMATS.values():
        x = normal(4, 40).requires_grad_()
        out = lp.quantize(x, fmt, "stochastic", seed=seed, gradient_format="int4", gradient_rounding="stochastic")
        out.backward(normal(4, 40))
        results.append(torch.stack([out.detach(), x.grad]))
    return torch.stack(results)


def test_threads_do_not_disturb_each_other():
    expected = [work(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert all(map(torch.equal, pool.map(work, range(6)), expected))


def _send(pipe):
    torch.set_num_threads(1)
    pipe.send(work(3).tolist())


def test_a_forked_process_rounds_alike():
    expected = work(3)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_send, args=(there,))
    process.start()
    assert here.poll(60) and torch.equal(torch.tensor(here.recv()), expected)
    process.join()


class Rounded(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return lp.quantize(normal(5) * index, "int4", "stochastic", seed=index)


def test_in_workers_of_a_data_loader():
    loader = torch.utils.data.DataLoader(Rounded(), batch_size=4, num_workers=1, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), torch.stack([Rounded()[index] for index in range(8)]))


# ---- tensors that are not plain ----------------------------------------------------------------------------------

X = normal(4, 6)
TENSORS = {
    "a list": ([1.0, 2.0], "floating-point tensor"),
    "None": (None, "floating-point tensor"),
    "an array": (X.numpy(), "floating-point tensor"),
    "integers": (torch.arange(3), "floating-point tensor"),
    "booleans": (torch.ones(3, dtype=torch.bool), "floating-point tensor"),
    "complex": (torch.ones(3, dtype=torch.complex64), "floating-point tensor"),
    "torch's quantized": (lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.qint8), "floating-point tensor"),
    "sparse": (X.to_sparse(), "sparse|dense|strided"),
    "sparse rows": (lambda: X.to_sparse_csr(), "sparse|dense|strided"),
    "mkldnn": (X.to_mkldnn(), "mkldnn|dense|strided"),
    "nested": (lambda: torch.nested.nested_tensor([X[0], X[1, :3]]), "nested|dense|strided"),
    "float8": (X.to(torch.float8_e4m3fn), "float8"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("function", [lp.quantize, lp.quantize_, lp.encode], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("x", "message"), TENSORS.values(), ids=TENSORS)
def test_only_dense_floating_point_tensors(x, message, function):
    x = x() if callable(x) else x
    with pytest.raises((ValueError, TypeError), match=message):
        function(x, "int8")


def test_parameters_and_subclasses():
    class Named(torch.Tensor):
        pass

    assert torch.equal(lp.quantize(torch.nn.Parameter(X), "int8"), lp.quantize(X, "int8"))
    assert torch.equal(lp.quantize(X.as_subclass(Named), "int8").as_subclass(torch.Tensor), lp.quantize(X, "int8"))


# ---- arguments ---------------------------------------------------------------------------------------------------


def pairs(cases):
    """(argument, value) of each, the value's text as its name."""
    return [
        pytest.param(name, value, id=f"{name}={value!r}"[:60]) for name, values in cases.items() for value in values
    ]


WRONG = {
    "seed": [2**63, -(2**63) - 1, 1.5, "7", [1], torch.tensor(1.5), torch.tensor([1, 2])],
    "offset": [-1, 2**63, 1.5, "7", torch.tensor(-1), torch.tensor(1.5), torch.tensor([1, 2])],
    "bits": [0, 1, 17, -3, nan, inf, "8", [8], torch.tensor(1), torch.tensor(17), torch.tensor(nan), torch.tensor(inf)],
}
WRONG["bits"] += [torch.tensor([4, 4]), torch.tensor([]), torch.tensor(4 + 0j)]


@pytest.mark.parametrize("function", [lp.quantize, lp.quantize_, lp.encode], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("name", "value"), pairs(WRONG))
def test_wrong_seeds_offsets_and_bits_are_named(function, name, value):
    options = {"seed": 1} | {name: value}
    with pytest.raises((ValueError, TypeError), match=rf"\b{name}\b"):
        function(normal(4, 6), "int8", "stochastic", **options)


def test_the_ends_of_the_ranges_are_fine():
    for seed in (-(2**63), 2**63 - 1):
        assert torch.equal(
            lp.quantize(X, "int4", "stochastic", seed=seed),
            lp.quantize(X, "int4", "stochastic", seed=torch.tensor(seed)),
        )
    assert torch.equal(lp.quantize(X, "int8", bits=2), lp.quantize(X, lp.Int(2)))
    assert torch.equal(lp.quantize(X, "int8", bits=16), lp.quantize(X, lp.Int(16)))
    assert torch.equal(lp.quantize(X, "int8", bits=torch.tensor([4])), lp.quantize(X, lp.Int(4)))


@pytest.mark.parametrize(("bits", "whole"), [(2.5, 2), (3.5, 4), (3.4, 3), (torch.tensor(2.5), 2)])
def test_learned_bits_are_rounded_to_a_whole_number(bits, whole):
    assert torch.equal(lp.quantize(X, "int8", bits=bits), lp.quantize(X, lp.Int(whole)))


@pytest.mark.parametrize(
    ("fmt", "bits", "valid"),
    [
        (lp.BlockFloat(8), 17, "2 to 16"),
        (lp.Int(8), 1, "2 to 16"),
        (lp.FixedPoint(8, 4), 25, ""),
        (lp.FixedPoint(8, 4), 3, ""),
    ],
)
def test_bits_out_of_range_name_the_range(fmt, bits, valid):
    with pytest.raises(ValueError, match=rf"\bbits\b.*{valid}.*{bits}"):
        lp.quantize(X, fmt, bits=bits)


@pytest.mark.parametrize("fmt", ["bf16", "mxfp4", "nvfp4"])
def test_formats_without_a_number_of_bits_take_none(fmt):
    with pytest.raises(ValueError, match=r"bits: .* has no single number of bits to change"):
        lp.quantize(X, fmt, bits=4)


ROWS, RUNS = lp.Int(8, axis=0), lp.Int(8, block=4)  # scales of X: (4, 1), and (4, 2)
WRONG_SCALES = [
    ("int8", [0, -1.0, nan, inf, 1e60, "a", [], torch.tensor(1j), torch.ones(4), torch.ones(0)]),
    (
        "int8",
        [torch.tensor(1e-60, dtype=torch.float64), torch.tensor(1e60, dtype=torch.float64)],
    ),  # 0 and inf of float32
    ("int8", [(1.0, 2.0)]),
    (ROWS, [torch.ones(3), torch.ones(2, 2), torch.ones(1, 4), torch.ones(4, 6), torch.zeros(4, 1)]),
    (RUNS, [torch.ones(4, 1), torch.ones(2, 4), torch.ones(3)]),
    (
        "int8_affine",
        [1.0, (1.0, 2.0, 3.0), (0.0, 1.0), (torch.ones(3), 1), (1.0, "a"), (1.0, None), (1.0, torch.ones(2))],
    ),
    ("int8_affine", [(1.0, nan), (1.0, inf), (1.0, 1.5), (1.0, -5), (1.0, 300)]),  # zero points are whole codes
    (lp.Int(8, symmetric=False, zero_point="minimum"), [(1.0, nan), (1.0, inf), 1.0]),
    ("scaled_fp8_e4m3", [0.0, nan, torch.ones(4)]),
    ("nvfp4", [1.0, (1.0, 0.0), (torch.ones(4, 2), 1.0), (torch.ones(4, 1), torch.ones(2))]),
    ("block8", [1.0]),
    ("mxfp4", [1.0]),
    ("bf16", [1.0]),
    ("fixed8", [1.0]),
]


@pytest.mark.parametrize("function", [lp.quantize, lp.encode], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("fmt", "scale"),
    [pytest.param(f, s, id=f"{f} {s!r}".replace("\n", "")[:70]) for f, scales in WRONG_SCALES for s in scales],
)
def test_wrong_scales_are_named(fmt, scale, function):
    with pytest.raises((ValueError, TypeError), match=r"\bscales?\b|\bzero point\b"):
        function(X, fmt, scale=scale)


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fmt": "fp9"}, "not a number format: 'fp9'"),
        ({"fmt": "fp8_e4m"}, "did you mean 'fp8_e4m3'"),
        ({"fmt": 8}, "not a number format: 8"),
        ({"fmt": lp.Int}, "not a number format"),
        ({"fmt": None}, "not a number format: None"),
        ({"fmt": "Int(bits=99)"}, "bits must be a whole number from 2 to 16"),
        ({"fmt": lp.BlockFloat(8, 2)}, "more than 2 dimensions"),
        ({"rounding": "up"}, "unknown rounding 'up'; one of nearest, nearest_away, stochastic, toward_zero"),
        ({"rounding": None}, "unknown rounding None"),
        ({"backend": "cuda"}, "unknown backend 'cuda'; one of auto, reference"),
        ({"clamped_gradient": "stop"}, "unknown clamped_gradient 'stop'; one of pass, zero"),
        ({"gradient_format": "fp9"}, "not a number format: 'fp9'"),
        ({"gradient_format": lp.BlockFloat(8, 2)}, "more than 2 dimensions"),
        ({"gradient_format": "bf16", "gradient_rounding": "up"}, "unknown gradient_rounding 'up'"),
        ({"gradient_rounding": "up"}, "unknown gradient_rounding 'up'"),
        ({"fmt": None, "gradient_format": "bf16", "rounding": "up"}, "unknown rounding 'up'"),
        ({"fmt": None, "gradient_format": "bf16", "backend": "up"}, "unknown backend 'up'"),
        ({"fmt": None, "gradient_format": "bf16", "scale": 1.0}, "scale"),
        ({"fmt": None, "gradient_format": "bf16", "bits": 4}, "bits"),
        ({"fmt": None, "gradient_format": "bf16", "clamped_gradient": "zero"}, "clamped_gradient"),
        ({"fmt": None, "gradient_format": "bf16", "x": torch.arange(3)}, "floating-point tensor"),
    ],
)
def test_wrong_names_are_refused_in_training_and_in_evaluation(options, message, grad_mode):
    with grad_mode(), pytest.raises(ValueError, match=message):
        lp.quantize(**({"x": X, "fmt": "bf16"} | options))


# ---- decode ------------------------------------------------------------------------------------------------------

CODES, SCALES = lp.encode(X, ROWS)
WRONG_PARTS = {
    "values for codes": ("codes", lambda: lp.decode(CODES.float(), SCALES, ROWS)),
    "a list for codes": ("codes", lambda: lp.decode([1], SCALES, ROWS)),
    "no scales": ("scales", lambda: lp.decode(CODES, None, ROWS)),
    "too many scales": ("scales", lambda: lp.decode(CODES, (SCALES, SCALES), ROWS)),
    "scales of a format without": ("scales", lambda: lp.decode(lp.encode(X, "bf16")[0], SCALES, "bf16")),
    "scales of another shape": ("scales", lambda: lp.decode(CODES, SCALES[:2], ROWS)),
    "scales of slices for runs": ("scales", lambda: lp.decode(CODES, SCALES, RUNS)),
    "a list for scales": ("scales", lambda: lp.decode(CODES, [0.5], ROWS)),
    "scales without zero points": ("scales", lambda: lp.decode(CODES, SCALES, "int8_affine")),
    "a missing dimension": ("dimension", lambda: lp.decode(CODES[0], SCALES, lp.Int(8, axis=1))),
    "a dtype of integers": ("dtype", lambda: lp.decode(CODES, SCALES, ROWS, dtype=torch.int32)),
}


@pytest.mark.parametrize(("named", "call"), WRONG_PARTS.values(), ids=WRONG_PARTS)
def test_decode_refuses_parts_that_do_not_fit(named, call):
    with pytest.raises((ValueError, TypeError), match=rf"\b{named}\b"):
        call()


def test_encode_gives_no_gradients():
    scale, bits = torch.full((4, 1), 0.1, requires_grad=True), torch.tensor(4.0, requires_grad=True)
    for parts in (lp.encode(leaf(), ROWS), lp.encode(X, ROWS, scale=scale), lp.encode(X, ROWS, bits=bits)):
        assert not any(part.requires_grad for part in parts)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_decode_of_encode_takes_all_the_arguments_of_quantize(rounding):
    options = {"seed": 3, "offset": 5, "scale": torch.full((4, 1), 0.1), "bits": 4}
    decoded = lp.decode(*lp.encode(X, ROWS, rounding, **options), lp.Int(4, axis=0))
    assert torch.equal(decoded, lp.quantize(X, ROWS, rounding, **options))
