"""Element operations against counts made by hand: (adds, multiplications, integer adds).

A function is counted alone: its input requires a gradient, and what starts the backward pass is not counted.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energy_models.counter import count
from energy_models.counts import ElementOps
from energy_models.tracing.call import Call
from energy_models.tracing.elements import ELEMENTS, FILLS, FREE, SPECIAL
from energy_models.tracing.products import PRODUCTS

Work = tuple[int, int, int]
Function = Callable[..., Any]
E = 2 * 4 * 6 * 6  # elements of image()
aten = torch.ops.aten


class Alone(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def image(*shape: int) -> Tensor:
    return torch.zeros(shape or (2, 4, 6, 6), requires_grad=True)


def rows(function: Function, *inputs: Tensor, part: str = "forward") -> list[ElementOps]:
    counts = count(Alone(function), inputs, training=part == "backward")
    assert counts.uncounted == () and counts.gemms == ()
    return [row for row in counts.element_ops if row.part == part]


def work(function: Function, *inputs: Tensor, part: str = "forward") -> dict[str, Work]:
    """By kind."""
    found: dict[str, Work] = {}
    for row in rows(function, *inputs, part=part):
        so_far = found.get(row.kind, (0, 0, 0))
        found[row.kind] = (so_far[0] + row.fp_add, so_far[1] + row.fp_mul, so_far[2] + row.int_add)
    return found


def times(elements: int, per_element: Work) -> Work:
    return per_element[0] * elements, per_element[1] * elements, per_element[2] * elements


def test_a_special_function_is_four_multiplications() -> None:
    assert SPECIAL == 4


@pytest.mark.parametrize(
    ("function", "kind", "forward", "backward"),
    [
        (F.relu, "relu", (0, 0, 1), (0, 0, 1)),
        (F.relu6, "hardtanh", (0, 0, 2), (0, 0, 2)),
        (F.leaky_relu, "leaky_relu", (0, 1, 1), (0, 1, 1)),
        (F.hardsigmoid, "hardsigmoid", (1, 1, 2), (0, 1, 2)),
        (F.hardswish, "hardswish", (1, 2, 2), (1, 2, 2)),
        (torch.sigmoid, "sigmoid", (1, 8, 0), (1, 2, 0)),  # exp, 1 add, reciprocal; dy * y * (1 - y)
        (torch.tanh, "tanh", (0, 4, 0), (1, 2, 0)),
        (F.silu, "silu", (1, 9, 0), (3, 11, 0)),
        (F.gelu, "gelu", (1, 7, 0), (2, 15, 0)),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu", (2, 10, 0), (5, 16, 0)),
        (F.elu, "elu", (1, 5, 1), (0, 6, 1)),
        (F.mish, "mish", (1, 13, 0), (4, 24, 0)),
        (F.softplus, "softplus", (1, 8, 1), (1, 9, 1)),
        (F.logsigmoid, "log_sigmoid", (2, 8, 2), (2, 5, 1)),
        (F.softshrink, "shrink", (1, 0, 2), (0, 0, 2)),
    ],
)
def test_activations(function: Function, kind: str, forward: Work, backward: Work) -> None:
    assert work(function, image()) == {kind: times(E, forward)}
    assert work(function, image(), part="backward") == {kind: times(E, backward)}


def test_prelu_and_glu() -> None:
    assert work(F.prelu, image(), image(4)) == {"prelu": (0, E, E)}
    backward = work(F.prelu, image(), image(4), part="backward")
    assert backward == {"prelu": (0, 2 * E, E), "sum": (E, 0, 0)}  # the slopes' gradient is summed over the rest
    assert work(F.glu, image()) == {"glu": times(E // 2, (1, 9, 0))}
    assert work(F.glu, image(), part="backward") == {"glu": times(E // 2, (2, 12, 0))}


@pytest.mark.parametrize(
    ("function", "forward", "backward"),
    [
        (torch.exp, (0, 4, 0), (0, 1, 0)),
        (torch.sqrt, (0, 4, 0), (0, 5, 0)),  # dy / (2 y): 1 mul, 1 division
        (torch.reciprocal, (0, 4, 0), (0, 2, 1)),  # -dy * y * y
        (torch.sin, (0, 4, 0), (0, 5, 0)),
        (torch.neg, (0, 0, 1), (0, 0, 1)),
        (torch.abs, (0, 0, 1), (0, 1, 1)),
        (lambda x: x**2, (0, 1, 0), (0, 2, 0)),  # 2 * x * dy
        (lambda x: x**3, (0, 2, 0), (0, 3, 0)),  # 3 * x ** 2 * dy, of which the square is 1 mul
        (lambda x: x**0.3, (0, 9, 0), None),
        (lambda x: x * 2, (0, 1, 0), (0, 1, 0)),
        (lambda x: x / 3, (0, 1, 0), (0, 1, 0)),
        (lambda x: 1 - x, (1, 0, 0), (0, 0, 1)),
        (lambda x: x.clamp(0, 1), (0, 0, 2), None),
        (lambda x: x.clamp(min=0), (0, 0, 1), None),
        (lambda x: x.masked_fill(torch.zeros(6, dtype=torch.bool), 0.0), (0, 0, 1), (0, 0, 1)),
        (lambda x: torch.add(x, x.detach(), alpha=3), (1, 1, 0), (0, 0, 0)),
        (lambda x: torch.lerp(x.detach(), x.detach(), 0.1), (2, 1, 0), None),
        (lambda x: torch.addcmul(x, x.detach(), x.detach(), value=0.1), (1, 2, 0), (0, 0, 0)),
        (lambda x: torch.addcdiv(x, x.detach(), x.detach(), value=0.1), (1, 5, 0), (0, 0, 0)),
        (lambda x: x.detach() > 0, (0, 0, 1), None),
    ],
)
def test_elementwise(function: Function, forward: Work, backward: Work | None) -> None:
    assert work(function, image()) == {"elementwise": times(E, forward)}
    if backward is not None:
        found = work(function, image(), part="backward").get("elementwise", (0, 0, 0))
        assert found == times(E, backward)


def test_complex_numbers_are_two_real_ones() -> None:
    pairs = torch.zeros(5, 2)
    product = lambda x: torch.view_as_complex(x) * torch.view_as_complex(x)  # noqa: E731
    assert work(product, pairs) == {"elementwise": (10, 20, 0)}  # 4 mul, 2 add each
    assert work(lambda x: torch.view_as_complex(x).abs(), pairs) == {"elementwise": (5, 30, 0)}
    assert rows(product, pairs)[0].read_bits == 2 * 5 * 64


@pytest.mark.parametrize(
    "function",
    [lambda i: i * 2 + 1, lambda i: (i > 3).logical_not(), lambda i: i.sort()[0].max(), lambda i: i.clamp(2)],
)
def test_indices_are_bookkeeping(function: Function) -> None:
    assert work(function, torch.arange(9)) == {}


# Rows of 6, so 48 of them; groups of 2 channels, so 4 of them.
@pytest.mark.parametrize(
    ("layer", "kind", "forward", "backward"),
    [
        (nn.LayerNorm(6), "layer_norm", (5 * E + 48, 3 * E + 6 * 48, 0), (7 * E, 6 * E + 2 * 48, 0)),
        (
            nn.LayerNorm(6, elementwise_affine=False),
            "layer_norm",
            (4 * E + 48, 2 * E + 6 * 48, 0),
            (5 * E, 4 * E + 2 * 48, 0),
        ),
        (nn.LayerNorm(6, bias=False), "layer_norm", (4 * E + 48, 3 * E + 6 * 48, 0), (6 * E, 6 * E + 2 * 48, 0)),
        (nn.GroupNorm(2, 4), "group_norm", (5 * E + 4, 3 * E + 6 * 4, 0), (7 * E, 6 * E + 2 * 4, 0)),
        # Batch norm of one image whose channels are all channels of all images: 8 of them, weights on them.
        (nn.InstanceNorm2d(4), "batch_norm", (4 * E + 3 * 8, 2 * E + 10 * 8, 0), (5 * E, 4 * E + 3 * 8, 0)),
    ],
)
def test_norms(layer: nn.Module, kind: str, forward: Work, backward: Work) -> None:
    found = count(layer, torch.zeros(2, 4, 6, 6, requires_grad=True))
    of = {row.part: (row.fp_add, row.fp_mul, row.int_add) for row in found.element_ops if row.kind == kind}
    assert found.uncounted == () and of == {"forward": forward, "backward": backward}


def test_rms_norm_in_parts_and_in_one() -> None:
    """In parts: square, mean, + eps, rsqrt, and two products."""
    layer, x = nn.RMSNorm(6), torch.zeros(2, 4, 6, 6)
    found = count(layer, x, training=False)
    adds, muls = (sum(getattr(row, name) for row in found.element_ops) for name in ("fp_add", "fp_mul"))
    fused = one("_fused_rms_norm", (x, [6], torch.zeros(6), 1e-5), (x,))
    assert (adds, muls) == (E - 48 + 48, E + 48 + 4 * 48 + 2 * E)
    assert (fused.kind, fused.fp_add, fused.fp_mul) == ("rms_norm", E + 48, muls)


def one(name: str, args: tuple[Any, ...], results: tuple[Tensor, ...]) -> ElementOps:
    """What the formula says of a call that a CPU does not make."""
    call = Call.of(getattr(aten, name).default, args, {}, results)
    found = ELEMENTS[call.op](call)
    assert found is not None
    return found


def test_weight_norm() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
    found = count(layer, torch.zeros(5, 6))
    of = {row.part: (row.fp_add, row.fp_mul) for row in found.element_ops if row.kind == "weight_norm"}
    assert of == {"forward": (18, 2 * 18 + 8 * 3), "backward": (2 * 18, 3 * 18 + 7 * 3)}
    assert found.gemms[0].b.name == "weight"


@pytest.mark.parametrize(
    ("layer", "kind", "forward", "backward"),
    [
        (nn.MaxPool2d(2), "max_pool", (0, 0, 3 * 72), (72, 0, 0)),
        (nn.MaxPool1d(3), "max_pool", (0, 0, 2 * 96), (96, 0, 0)),
        (nn.AvgPool2d(2), "avg_pool", (3 * 72, 72, 0), (0, 72, 0)),
        (nn.AvgPool2d(3, 1), "avg_pool", (8 * 128, 128, 0), (9 * 128 - E, 128, 0)),
        (nn.AdaptiveAvgPool2d(3), "avg_pool", (3 * 72, 72, 0), (0, 72, 0)),
        # Windows of 2 along each side of 6, of which 4 start at 0, 1, 3, 4.
        (nn.AdaptiveAvgPool2d(4), "avg_pool", (3 * 128, 128, 0), (4 * 128 - E, 128, 0)),
        (nn.AdaptiveMaxPool2d(3), "max_pool", (0, 0, 3 * 72), (72, 0, 0)),
        (nn.Upsample(scale_factor=2), "interpolation", (0, 0, 0), (4 * E, 0, 0)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "interpolation", (12 * E, 16 * E, 0), (16 * E, 16 * E, 0)),
        (nn.Upsample(scale_factor=2, mode="bicubic"), "interpolation", (60 * E, 64 * E, 0), (64 * E, 64 * E, 0)),
        (nn.ReflectionPad2d(1), "interpolation", None, (8 * (64 - 36), 0, 0)),
        (nn.ZeroPad2d(1), "interpolation", None, None),
    ],
)
def test_pooling(layer: nn.Module, kind: str, forward: Work | None, backward: Work | None) -> None:
    x = image(2, 4, 36) if isinstance(layer, nn.MaxPool1d) else image()
    assert work(layer, x) == ({} if forward is None else {kind: forward})
    assert work(layer, x, part="backward") == ({} if backward is None else {kind: backward})


def test_pooling_in_three_dimensions() -> None:
    x = image(1, 2, 4, 4, 4)
    assert work(nn.MaxPool3d(2), x) == {"max_pool": (0, 0, 7 * 16)}
    assert work(nn.AvgPool3d(2), x) == {"avg_pool": (7 * 16, 16, 0)}
    assert work(nn.AdaptiveAvgPool3d(1), x) == {"avg_pool": (63 * 2, 2, 0)}


def test_grid_sample() -> None:
    x, grid = image(1, 3, 8, 8), image(1, 5, 5, 2)
    # 25 points: 2 adds and 2 mul for the pixel, 2 subs, 4 weights; 75 results of 4 mul, 3 add
    sample = lambda x, grid: F.grid_sample(x, grid, align_corners=False)  # noqa: E731
    assert work(sample, x, grid) == {"interpolation": (4 * 25 + 3 * 75, 6 * 25 + 4 * 75, 2 * 25)}
    assert work(sample, x, grid, part="backward")["interpolation"] == (8 * 75 + 8 * 25, 8 * 75 + 8 * 25, 0)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.sum(1), {"sum": (E, 0, 0)}),
        (lambda x: x.mean(-1), {"avg_pool": (E - 48, 48, 0)}),
        (lambda x: x.cumsum(-1), {"sum": (E, 0, 0)}),
        (lambda x: x.prod(-1), {"sum": (0, E, 0)}),
        (lambda x: x.var(-1), {"statistics": (3 * E, E + 2 * 48, 0)}),
        (lambda x: x.std(-1), {"statistics": (3 * E, E + 6 * 48, 0)}),
        (lambda x: x.norm(dim=-1), {"statistics": (E, E + 4 * 48, 0)}),
        (lambda x: torch.linalg.vector_norm(x, 1, -1), {"statistics": (E, 0, E)}),
        (lambda x: torch.linalg.vector_norm(x, 3, -1), {"statistics": (E, 9 * (E + 48), E)}),
        (lambda x: x.amax(-1), {"max": (0, 0, E)}),
        (lambda x: x.argmax(-1), {"max": (0, 0, E)}),
        (lambda x: x.sort(-1)[0], {"sort": (0, 0, 3 * E)}),  # ceil(log2 6)
        (lambda x: x.topk(2, -1)[0], {"sort": (0, 0, 3 * E)}),
        (lambda x: x.logsumexp(-1), {"softmax": (2 * E + 48, 4 * E + 4 * 48, E)}),
        (lambda x: x.softmax(-1), {"softmax": (2 * E, 5 * E + 4 * 48, E)}),
        (lambda x: torch.cdist(x, x), {"distance": (2 * 6 * E, 6 * E + 4 * E, 0)}),
        (lambda x: torch.cdist(x, x, p=1.0), {"distance": (2 * 6 * E, 0, 6 * E)}),
    ],
)
def test_reductions(function: Function, expected: dict[str, Work]) -> None:
    assert work(function, image()) == expected


def test_fft() -> None:
    """A complex transform of 8 points is 5 * 8 * 3 operations: 72 add, 48 mul; a real one half of it."""
    assert work(lambda x: torch.fft.rfft(x).real, torch.zeros(8)) == {"fft": (36, 24, 0)}
    assert work(lambda x: torch.fft.fft(torch.view_as_complex(x)).real, torch.zeros(3, 8, 2)) == {"fft": (216, 144, 0)}
    both = work(lambda x: torch.fft.irfft(torch.fft.rfft(x)), torch.zeros(8))
    assert both == {"fft": (72, 48, 0)}


INDEX = torch.tensor([0, 2, 2])
PLACES = torch.zeros(2, 4, 6, 6, dtype=torch.long)


@pytest.mark.parametrize(
    ("function", "forward", "backward"),
    [
        (lambda x: x[:, INDEX], {"gather": (0, 0, 0)}, {"scatter": (216, 0, 0)}),
        (lambda x: x.index_select(1, INDEX), {"gather": (0, 0, 0)}, {"scatter": (216, 0, 0)}),
        (lambda x: x.gather(-1, PLACES), {"gather": (0, 0, 0)}, {"scatter": (E, 0, 0)}),
        (lambda x: torch.zeros_like(x).scatter_add(-1, PLACES, x), {"scatter": (E, 0, 0)}, {"gather": (0, 0, 0)}),
        (lambda x: torch.zeros_like(x).scatter(-1, PLACES, x), {"scatter": (0, 0, 0)}, {"gather": (0, 0, 0)}),
        (
            lambda x: torch.zeros(2, 4, 6, 6).scatter_reduce(-1, PLACES, x.detach(), "amax"),
            {"scatter": (0, 0, E)},
            None,
        ),
        (lambda x: torch.zeros(4, 4, 6, 6).index_add(0, INDEX[1:], x), {"scatter": (E, 0, 0)}, {"gather": (0, 0, 0)}),
        (lambda x: torch.cat([x, x]), {}, {"elementwise": (E, 0, 0)}),  # the two errors meet
        (lambda x: F.fold(F.unfold(x, 2), (6, 6), 2), {"scatter": (4 * 200, 0, 0)}, {"scatter": (4 * 200, 0, 0)}),
    ],
)
def test_indexing(function: Function, forward: dict[str, Work], backward: dict[str, Work] | None) -> None:
    assert work(function, image()) == forward
    if backward is not None:
        assert work(function, image(), part="backward") == backward


def test_embeddings() -> None:
    """10 rows of 8 out of 1000: what is read is 10 rows; backward adds 80 errors into a dense gradient."""
    found = {row.part: row for row in count(nn.Embedding(1000, 8), torch.zeros(2, 5, dtype=torch.long)).element_ops}
    forward, backward = found["forward"], found["backward"]
    assert (forward.kind, forward.operations, forward.read_bits, forward.write_bits) == ("embedding", 0, 2560, 2560)
    assert (backward.fp_add, backward.read_bits, backward.write_bits) == (80, 2560, 256000)


@pytest.mark.parametrize(
    ("mode", "forward", "backward"),
    [("sum", (64, 0, 0), (80, 0, 0)), ("mean", (64, 16, 0), (80, 16, 0)), ("max", (0, 0, 64), (16, 0, 0))],
)
def test_embedding_bags(mode: str, forward: Work, backward: Work) -> None:
    """2 bags of 5 rows of 8."""
    found = count(nn.EmbeddingBag(30, 8, mode=mode), torch.zeros(2, 5, dtype=torch.long))
    of = {row.part: (row.fp_add, row.fp_mul, row.int_add) for row in found.element_ops}
    assert found.uncounted == () and of == {"forward": forward, "backward": backward}


@pytest.mark.parametrize(
    ("function", "forward", "backward"),
    [
        (F.mse_loss, (2 * E, E + 1, 0), (E, 2 * E, 0)),
        (F.smooth_l1_loss, (3 * E, 2 * E + 1, 2 * E), (E, 2 * E, 2 * E)),
        (F.huber_loss, (3 * E, 2 * E + 1, 2 * E), (E, 2 * E, 2 * E)),
        (F.binary_cross_entropy, (4 * E, 10 * E + 1, 0), (2 * E, 6 * E, 0)),
        (F.soft_margin_loss, (2 * E, 9 * E + 1, 0), (E, 11 * E, 0)),
    ],
)
def test_losses(function: Function, forward: Work, backward: Work) -> None:
    loss = lambda x: function(x, torch.zeros(2, 4, 6, 6))  # noqa: E731
    assert work(loss, image()) == {"loss": forward}
    assert work(loss, image(), part="backward") == {"loss": backward}


def test_losses_of_several_operators() -> None:
    """With logits: (1 - t) * x - log_sigmoid(x); backward (sigmoid(x) - t) / n."""
    loss = lambda x: F.binary_cross_entropy_with_logits(x, torch.zeros(2, 4, 6, 6))  # noqa: E731
    assert work(loss, image()) == {"loss": (5 * E, 9 * E + 1, 2 * E)}
    backward = work(loss, image(), part="backward")
    assert backward["sigmoid"] == (E, 8 * E, 0) and backward["elementwise"][0] == E
    pixels = lambda x: F.cross_entropy(x, torch.zeros(2, 6, 6, dtype=torch.long))  # noqa: E731
    assert work(pixels, image()) == {"loss": (3 * E + 72, 4 * (E + 72) + 1, E)}


def test_ctc_loss() -> None:
    """2 sequences of 7 steps, 2 * 3 + 1 states: 7 adds, 4 special functions, 2 compares for each."""
    lengths, targets = torch.tensor([7, 6]), torch.ones(2, 3, dtype=torch.long)
    loss = lambda x: F.ctc_loss(x, targets, lengths, torch.tensor([3, 2]), reduction="sum")  # noqa: E731
    states = 2 * 7 * 7
    assert work(loss, image(7, 2, 5)) == {"loss": (7 * states, 16 * states, 2 * states), "sum": (2, 0, 0)}
    backward = work(loss, image(7, 2, 5), part="backward")
    assert backward["loss"] == (9 * states, 20 * states, 2 * states)


def test_dropout() -> None:
    """Drawing the mask: a random step and a compare each; scaling it and applying it are 1 mul each."""
    assert work(F.dropout, image()) == {"dropout": (0, 0, 2 * E), "elementwise": (0, 2 * E, 0)}
    x = torch.zeros(2, 5)
    fused = one("native_dropout", (x, 0.5, True), (x, x.bool()))
    assert (fused.fp_mul, fused.int_add) == (10, 30)


def test_recurrent_cells_in_one_operator_do_what_they_do_in_several() -> None:
    """CUDA fuses them; without biases, which the CPU adds within its products."""
    states, gates = torch.zeros(3, 16), torch.zeros(3, 64)
    in_parts = {row.kind: row for row in count(nn.LSTMCell(8, 16), torch.zeros(3, 8), training=False).element_ops}
    assert in_parts["sigmoid"].elements == 48  # one of the three logistic functions
    lstm = one("_thnn_fused_lstm_cell", (gates, gates, states), (states, states, gates))
    assert (lstm.fp_add, lstm.fp_mul) == (48 * (4 + 3 + 1), 48 * (3 * 8 + 2 * 4 + 3))
    gru = one("_thnn_fused_gru_cell", (gates, gates, states), (states, gates))
    assert (gru.fp_add, gru.fp_mul) == (48 * (2 + 2 + 3), 48 * (2 * 8 + 4 + 2))
    with_bias = one("_thnn_fused_gru_cell", (gates, gates, states, gates, gates), (states, gates))
    assert with_bias.fp_add - gru.fp_add == 48 * 6


def test_traffic_is_each_tensor_once() -> None:
    def bits(function: Function, *inputs: Tensor, part: str = "forward") -> tuple[int, int]:
        (row,) = rows(function, *inputs, part=part)
        return row.read_bits, row.write_bits

    whole = 32 * E
    assert bits(F.gelu, image()) == (whole, whole)
    assert bits(F.gelu, image(), part="backward") == (2 * whole, whole)  # the error and the input that was kept
    assert bits(lambda x: F.avg_pool2d(x, 2), image(), part="backward") == (whole // 4, whole)  # of the input its shape
    assert bits(lambda x: F.max_pool2d(x, 2), image(), part="backward") == (whole // 4, whole)
    assert bits(lambda x: x[:, :2, 0, INDEX], image()) == (32 * 12, 32 * 12)  # what it takes
    assert bits(lambda x: torch.zeros(9, 4, 6, 6).index_add(0, INDEX[:2], x), image()) == (whole, 32 * 9 * 144)
    statistics = 2 * 32 * 48
    assert bits(lambda x: F.layer_norm(x, (6,)), image()) == (whole, whole + statistics)
    assert bits(lambda x: F.layer_norm(x, (6,)), image(), part="backward") == (2 * whole + statistics, whole)


def test_every_operator_is_in_one_table() -> None:
    assert not ELEMENTS.keys() & FREE and not ELEMENTS.keys() & PRODUCTS.keys() and FILLS <= FREE
    names = [name.removeprefix("aten::") for name in (*ELEMENTS, *FREE) if name.startswith("aten::")]
    assert [name for name in names if not hasattr(aten, name) and not hasattr(aten, f"{name}_")] == []
