"""Where qtorch 0.3 is right the two agree; where it departs from its documentation or from right, a row says how."""

import math
import shutil

import pytest
import qtorch
import torch
from cases import same_bits

import lowprec_eb as lp

pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(
        shutil.which("ninja") is None or shutil.which("c++") is None,
        reason="qtorch's kernels need ninja and a C++ compiler",
    ),
]
inf, nan = math.inf, math.nan


def by_qtorch(values, number, rounding="nearest"):
    """What qtorch's own kernels make of a list or a tensor."""
    from qtorch import quant

    x = values if isinstance(values, torch.Tensor) else torch.tensor(values)
    match number:
        case qtorch.BlockFloatingPoint():
            return quant.block_quantize(x, number.wl, number.dim, rounding)
        case qtorch.FixedPoint():
            return quant.fixed_point_quantize(x, number.wl, number.fl, number.clamp, number.symmetric, rounding)
    return quant.float_quantize(x, number.exp, number.man, rounding)


# ---- agreement ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wl", [4, 8, 12])
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_block_floating_point_agrees_away_from_ties(wl, dim):
    scales = torch.logspace(-10, 10, 64)[:, None]
    x = torch.randn(64, 500, generator=torch.Generator().manual_seed(wl)) * (scales if dim == 0 else 1)
    ours, theirs = lp.quantize(x, lp.BlockFloat(wl, dim)), by_qtorch(x, qtorch.BlockFloatingPoint(wl, dim=dim))
    # qtorch rounds the sum with a number six times as large: only what sits next to a tie can differ.
    largest = x.abs().amax() if dim == -1 else x.abs().amax(dim=1 - dim, keepdim=True)
    steps = x / 2.0 ** (torch.frexp(largest).exponent - 1.0 - (wl - 2))
    from_tie = (steps - steps.floor() - 0.5).abs()
    assert (from_tie[ours != theirs] < 2.0 ** (wl - 22)).all()
    assert (ours != theirs).float().mean() < 1e-3


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("clamp", [False, True])
def test_fixed_point_agrees(clamp, symmetric):
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 4
    x = torch.cat([x, torch.arange(-200, 200) / 32, torch.tensor([inf, -inf, nan])])  # ties: both to even
    number = qtorch.FixedPoint(8, 4, clamp=clamp, symmetric=symmetric)
    assert torch.equal(lp.quantize(x, number).nan_to_num(5.0), by_qtorch(x, number).nan_to_num(5.0))


@pytest.mark.parametrize(("exp", "man"), [(4, 3), (5, 2), (3, 4), (5, 10)])
def test_floating_point_agrees_on_normal_numbers(exp, man):
    number = qtorch.FloatingPoint(exp, man)
    smallest_normal = 2.0 ** (2 - 2 ** (exp - 1))
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 20
    x = torch.cat([x[x.abs() >= smallest_normal], torch.tensor([1.0625, -1.1875, 1e6, inf, -inf, 1.25])])
    assert torch.equal(lp.quantize(x, number), by_qtorch(x, number))


@pytest.mark.parametrize(
    "number",
    [qtorch.BlockFloatingPoint(8), qtorch.FixedPoint(8, 6), qtorch.FloatingPoint(4, 3)],
    ids=["block", "fixed", "float"],
)
def test_stochastic_rounding_agrees_in_the_mean(number):
    x = torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.5
    many = x.repeat(4000, 1)
    ours = lp.quantize(many, number, "stochastic", seed=1).mean(0)
    theirs = by_qtorch(many, number, "stochastic").mean(0)
    largest_step = 2.0**-3
    assert torch.allclose(ours, theirs, atol=5 * math.sqrt(2) * largest_step / 2 / math.sqrt(4000))


@pytest.mark.parametrize(
    "number",
    [qtorch.BlockFloatingPoint(8, dim=0), qtorch.FixedPoint(8, 4), qtorch.FloatingPoint(4, 3)],
    ids=["block", "fixed", "float"],
)
def test_the_qtorch_back_end_is_qtorch(number):
    x = torch.randn(16, 9, generator=torch.Generator().manual_seed(0))
    assert same_bits(lp.quantize(x, number, backend="qtorch"), by_qtorch(x, number))
    assert same_bits(lp.quantize(x.T, number, backend="qtorch"), by_qtorch(x.T.contiguous(), number))


def test_the_qtorch_back_end_refuses_what_qtorch_cannot():
    with pytest.raises(ValueError, match="float32 tensors only"):
        lp.quantize(torch.ones(3, dtype=torch.float64), lp.BlockFloat(8), backend="qtorch")
    with pytest.raises(ValueError, match="has no Float"):
        lp.quantize(torch.ones(3), lp.BF16, backend="qtorch")
    with pytest.raises(ValueError, match="has no rounding 'toward_zero'"):
        lp.quantize(torch.ones(3), lp.BlockFloat(8), "toward_zero", backend="qtorch")


def test_a_missing_compiler_is_explained(monkeypatch):
    from lowprec_eb.quantize import qtorch_backend

    def broken(name):
        raise RuntimeError("Ninja is required to load C++ extensions")

    qtorch_backend._kernels.cache_clear()
    monkeypatch.setattr(qtorch_backend.importlib, "import_module", broken)
    with pytest.raises(ImportError, match=r"install a C\+\+ compiler"):
        lp.quantize(torch.ones(3), lp.BlockFloat(8), backend="qtorch")
    qtorch_backend._kernels.cache_clear()


# ---- deviations --------------------------------------------------------------------------------------------------

E4M3, E5M2, E5M10 = qtorch.FloatingPoint(4, 3), qtorch.FloatingPoint(5, 2), qtorch.FloatingPoint(5, 10)
BLOCK8, FIXED8_4 = qtorch.BlockFloatingPoint(8), qtorch.FixedPoint(8, 4)
tiny = 2.0**-24  # the smallest half-precision number


@pytest.mark.parametrize(
    ("number", "values", "theirs", "fmt", "ours"),
    [
        pytest.param(E4M3, [1.0625], [1.125], lp.FP8_E4M3, [1.0], id="float: ties go away from zero"),
        pytest.param(E4M3, [465.0], [480.0], lp.FP8_E4M3, [448.0], id="float: E4M3 reaches 480"),
        pytest.param(E5M2, [1e6], [114688.0], lp.FP8_E5M2, [57344.0], id="float: E5M2 reaches 114688"),
        pytest.param(E5M10, [65520.0], [65536.0], lp.FP16, [inf], id="float: half precision goes beyond 65504"),
        pytest.param(E5M10, [inf, -inf], [131008.0, -131008.0], lp.FP16, [inf, -inf], id="float: infinities saturate"),
        pytest.param(E4M3, [nan], [480.0], lp.FP8_E4M3, [nan], id="float: NaN becomes the largest number"),
        pytest.param(E4M3, [-0.0, -1e-9], [0.0, 0.0], lp.FP8_E4M3, [-0.0, -0.0], id="float: no negative zero"),
        pytest.param(
            qtorch.FloatingPoint(8, 23), [1.0, 2.5], [-1.0, -2.5], lp.FP32, [1.0, 2.5], id="float: 23 bits change signs"
        ),
        pytest.param(
            E5M10, [321.49994 * tiny], [322 * tiny], lp.FP16, [321 * tiny], id="float: subnormals are rounded twice"
        ),
        pytest.param(FIXED8_4, [-0.01], [-0.0], lp.FixedPoint(8, 4), [0.0], id="fixed: a negative zero"),
        pytest.param(
            BLOCK8,
            [64.0, 0.5, 2.5, -0.5],
            [64.0, 1.0, 3.0, 0.0],
            lp.BlockFloat(8),
            [64.0, 0.0, 2.0, 0.0],
            id="block: ties go up",
        ),
        pytest.param(
            BLOCK8, [64.0, 0.49999997], [64.0, 1.0], lp.BlockFloat(8), [64.0, 0.0], id="block: values are rounded twice"
        ),
        pytest.param(
            BLOCK8, [1.0, 0.5, nan], [nan, nan, nan], lp.BlockFloat(8), [1.0, 0.5, nan], id="block: NaN spreads"
        ),
        pytest.param(
            BLOCK8, [1.0, 0.5, inf], [nan, nan, nan], lp.BlockFloat(8), [1.0, 0.5, inf], id="block: infinity spreads"
        ),
        pytest.param(
            BLOCK8,
            [2.0**126, 1.0],
            [-127 * 2.0**120, -127 * 2.0**120],
            lp.BlockFloat(8),
            [2.0**126, 0.0],
            id="block: broken from 2**126",
        ),
    ],
)
def test_where_qtorch_deviates(number, values, theirs, fmt, ours):
    assert same_bits(by_qtorch(values, number), torch.tensor(theirs))
    assert same_bits(lp.quantize(torch.tensor(values), fmt), torch.tensor(ours))


def test_fixed_point_ties_go_to_even_though_qtorch_documents_down():
    # "floor(x) if floor(x) <= x <= floor(x) + half a step": 1.5 steps would be 1.
    ties = [0.5 / 16, 1.5 / 16, 2.5 / 16]
    assert by_qtorch(ties, FIXED8_4).tolist() == [0, 2 / 16, 2 / 16]
    assert lp.quantize(torch.tensor(ties), FIXED8_4).tolist() == [0, 2 / 16, 2 / 16]


@pytest.mark.parametrize(
    ("number", "values", "theirs", "right", "message"),
    [
        # The largest number, 2**28 - 0.5, needs 29 significant bits; float32 has 24.
        (qtorch.FixedPoint(30, 1), [1e9], [2.0**28], 2.0**28 - 0.5, "wl must be a whole number from 2 to 24, got 30"),
        (qtorch.FixedPoint(8, 130, clamp=False), [0.5], [inf], 0.5, "fl must be a whole number from 0 to 64, got 130"),
        (qtorch.BlockFloatingPoint(21), [1.0, 0.3], [1.0, 157287 / 2**19], 157286 / 2**19, "from 2 to 16, got 21"),
        (qtorch.BlockFloatingPoint(23), [1.0], [-2.0 + 2.0**-21], 1.0, "from 2 to 16, got 23"),
    ],
    ids=["fixed: 30 bits", "fixed: 2**130", "block: 21 bits", "block: 23 bits"],
)
def test_parameters_that_qtorch_takes_and_gets_wrong_are_refused(number, values, theirs, right, message):
    found = by_qtorch(values, number)
    assert found.tolist() == theirs and found[-1].item() != right
    with pytest.raises(ValueError, match=message):
        lp.quantize(torch.tensor(values), number)


@pytest.mark.parametrize("number", [BLOCK8, E4M3], ids=["block", "float"])
def test_torchs_seed_does_not_reach_qtorchs_stochastic_rounding(number):
    x = torch.rand(1000) + 0.5

    def twice(quantize):
        results = []
        for _ in range(2):
            torch.manual_seed(0)
            results.append(quantize(x))
        return torch.equal(*results)

    assert not twice(lambda x: by_qtorch(x, number, "stochastic"))
    assert twice(lambda x: lp.quantize(x, number, "stochastic"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_qtorch_takes_float32_alone(dtype):
    x = torch.tensor([1.0, 0.3], dtype=dtype)
    for number in (BLOCK8, E4M3):
        with pytest.raises(RuntimeError):
            by_qtorch(x, number)
        assert lp.quantize(x, number).dtype == dtype
