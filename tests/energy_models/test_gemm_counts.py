"""MACs of every kind of product, forward and backward, against counts made by hand."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from energy_models.counter import count
from energy_models.counts import GEMMS, OpCounts

Shape = tuple[int, ...]


class Calls(nn.Module):
    """A function of activations: each input passes a layer first, so that all gradients are asked for."""

    def __init__(self, function: Callable[..., Tensor], *shapes: Shape) -> None:
        super().__init__()
        self.function, self.shapes = function, shapes
        self.scales = nn.ParameterList(torch.ones(()) for _ in shapes)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*(x * scale for x, scale in zip(inputs, self.scales, strict=True)))


def of_function(function: Callable[..., Tensor], *shapes: Shape, **options: Any) -> OpCounts:
    return count(Calls(function, *shapes), tuple(torch.zeros(shape) for shape in shapes), **options)


def macs(counts: OpCounts, layer: str | None = None) -> tuple[int, int, int]:
    """(output, grad_input, grad_weight)."""
    chosen = [gemm for gemm in counts.gemms if layer is None or gemm.layer == layer]
    output, grad_input, grad_weight = (sum(g.macs for g in chosen if g.gemm == name) for name in GEMMS)
    return output, grad_input, grad_weight


def behind(first: nn.Module, layer: nn.Module) -> nn.Sequential:
    """A model whose layer "1" is not the first, so that it has all three GEMMs."""
    return nn.Sequential(first, layer)


# ---- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (4,), (4, 7), (2, 3, 4, 5), (0,)])
def test_linear_on_any_rank(leading: Shape) -> None:
    counts = count(behind(nn.Linear(3, 6), nn.Linear(6, 5)), torch.zeros(*leading, 3))
    assert macs(counts, "1") == (math.prod(leading) * 30,) * 3
    assert macs(counts, "0") == (math.prod(leading) * 18, 0, math.prod(leading) * 18)


CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "positions"),
    [
        ({}, 5),
        ({"padding": 1}, 7),
        ({"stride": 2}, 3),
        ({"dilation": 2}, 3),
        ({"groups": 2}, 5),
        ({"groups": 4}, 5),
        ({"groups": 2, "stride": 2, "padding": 1, "dilation": 2}, 3),
        ({"padding": "same"}, 7),
        ({"padding": 1, "padding_mode": "circular"}, 7),
    ],
)
def test_convolution(dims: int, options: dict[str, Any], positions: int) -> None:
    model = behind(CONVOLUTIONS[dims][0](1, 4, 1), CONVOLUTIONS[dims][0](4, 8, 3, **options))
    counts = count(model, torch.zeros(2, 1, *[7] * dims))
    by_hand = 2 * positions**dims * 8 * (4 // options.get("groups", 1)) * 3**dims
    assert macs(counts, "1") == (by_hand,) * 3


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"stride": 2, "output_padding": 1}, {"groups": 2}, {"groups": 4, "dilation": 2}]
)
def test_transposed_convolution_multiplies_at_each_input_position(dims: int, options: dict[str, int]) -> None:
    model = behind(CONVOLUTIONS[dims][0](1, 4, 1), CONVOLUTIONS[dims][1](4, 8, 3, **options))
    counts = count(model, torch.zeros(2, 1, *[5] * dims))
    groups = options.get("groups", 1)
    rows, taps = 2 * 5**dims, 3**dims
    assert macs(counts, "1") == (rows * 4 * (8 // groups) * taps,) * 3
    shapes = {g.gemm: (g.batch, g.m, g.n, g.k) for g in counts.gemms if g.layer == "1"}
    assert shapes == {
        "output": (groups, rows, 8 // groups, 4 // groups * taps),
        "grad_input": (groups, rows, 4 // groups, 8 // groups * taps),
        "grad_weight": (groups, 4 // groups, 8 // groups * taps, rows),
    }


def test_a_transposed_convolution_is_the_gradient_of_a_convolution() -> None:
    plain = count(behind(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, stride=2)), torch.zeros(2, 3, 9, 9))
    turned = count(behind(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 4, 3, stride=2)), torch.zeros(2, 3, 4, 4))
    assert macs(plain, "1") == macs(turned, "1")


def test_unbatched_convolution() -> None:
    assert macs(count(nn.Conv1d(2, 3, 3), torch.zeros(2, 10))) == (8 * 3 * 2 * 3, 0, 8 * 3 * 2 * 3)


def test_depthwise_grad_weight_has_the_products_of_its_own_channel_alone() -> None:
    counts = count(behind(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)), torch.zeros(1, 3, 8, 8))
    assert macs(counts, "1") == (64 * 16 * 9,) * 3


class Pair(nn.Module):
    def __init__(self, a: int, b: int, out: int) -> None:
        super().__init__()
        self.first, self.bilinear = nn.Linear(a, a), nn.Bilinear(a, b, out)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        result: Tensor = self.bilinear(self.first(x), y)
        return result


def test_bilinear_takes_its_two_products_in_the_cheaper_order() -> None:
    rows, a, b, out = 2, 3, 4, 5
    forward, to_input, to_weight = macs(
        count(Pair(a, b, out), (torch.zeros(rows, a), torch.zeros(rows, b))), "bilinear"
    )
    outer = rows * a * b  # x (outer) z, which is cheaper than rows * out * min(a, b)
    assert forward == outer + outer * out
    assert to_input == outer * out + rows * a * b  # of x alone: z is an input that needs none
    assert to_weight == outer + outer * out


@pytest.mark.parametrize(("layer", "gates"), [(nn.RNN, 1), (nn.GRU, 3), (nn.LSTM, 4)])
@pytest.mark.parametrize(("layers", "both_ways"), [(1, False), (2, False), (2, True)])
def test_recurrent_layers(layer: Any, gates: int, layers: int, both_ways: bool) -> None:
    steps, batch, features, hidden = 3, 2, 5, 4
    ways = 1 + both_ways
    model = layer(features, hidden, layers, bidirectional=both_ways)
    counts = count(model, torch.zeros(steps, batch, features), loss=lambda output: output[0].sum())
    widths = [features] + [hidden * ways] * (layers - 1)
    of_inputs = [steps * batch * gates * hidden * width * ways for width in widths]
    of_states = steps * batch * gates * hidden * hidden * ways * layers
    first_states = of_states // steps  # the state before the first step is zero and needs no gradient
    assert macs(counts) == (
        sum(of_inputs) + of_states,
        sum(of_inputs[1:]) + of_states - first_states,
        sum(of_inputs) + of_states,
    )


def test_lstm_with_a_projection() -> None:
    steps, batch, features, hidden, projected = 3, 2, 5, 8, 4
    counts = count(nn.LSTM(features, hidden, proj_size=projected), torch.zeros(steps, batch, features), training=False)
    assert macs(counts)[0] == steps * batch * (4 * hidden * (features + projected) + hidden * projected)


def test_packed_sequences_end_at_their_own_length() -> None:
    class Packed(nn.LSTM):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:  # type: ignore[override]
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return nn.utils.rnn.pad_packed_sequence(super().forward(packed)[0], batch_first=True)[0]

    inputs = torch.zeros(3, 5, 6), torch.tensor([5, 3, 1])
    assert macs(count(Packed(6, 4, batch_first=True), inputs, training=False))[0] == 9 * 4 * 4 * (6 + 4)


def test_cells() -> None:
    assert macs(count(nn.LSTMCell(3, 4), torch.zeros(2, 3), training=False))[0] == 2 * 4 * 4 * (3 + 4)


def test_a_complex_product_is_four_real_ones() -> None:
    """(2, 3) by (3, 4): as real numbers (2, 6) by (6, 8)."""
    model = nn.Linear(3, 4, bias=False, dtype=torch.complex64)
    output, to_weight = count(model, torch.zeros(2, 3, dtype=torch.complex64), loss=lambda y: y.abs().sum()).gemms
    assert (output.batch, output.m, output.n, output.k) == (1, 2, 8, 6)
    assert output.macs == to_weight.macs == 4 * 2 * 3 * 4
    assert output.traffic_bits == 32 * 2 * (2 * 3 + 3 * 4 + 2 * 4)
    assert output.a.k_run == output.b.k_run == 6


class Points(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.zeros(40, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(x, self.points)


def test_distances_of_many_points_are_a_product() -> None:
    """30 points to 40 learned ones, of 4 numbers; torch has one backward for both, needed or not."""
    counts = count(Points(), torch.zeros(30, 4))
    assert counts.macs == dict.fromkeys(GEMMS, 30 * 40 * 4)
    assert counts.uncounted == () and counts.element_ops_by_kind["distance"] == 30 * 40


class Neighbours(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).long() @ (x > 0).long().T


def test_integers_are_multiplied_at_their_own_bits() -> None:
    counts = count(Neighbours(), torch.ones(2, 3), training=False)
    assert [(gemm.macs, gemm.a.bits, gemm.b.bits) for gemm in counts.gemms] == [(12, 64, 64)]


def test_an_embedding_multiplies_nothing() -> None:
    counts = count(behind(nn.Embedding(10, 4), nn.Linear(4, 3)), torch.zeros(2, 5, dtype=torch.long))
    assert {gemm.layer for gemm in counts.gemms} == {"1"}
    assert [gemm.a.name for gemm in counts.gemms if gemm.gemm == "output"] == ["activation"]


# ---- functions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "shapes", "by_hand"),
    [
        (torch.mm, [(2, 3), (3, 4)], 24),
        (torch.bmm, [(5, 2, 3), (5, 3, 4)], 120),
        (torch.matmul, [(3,), (3,)], 3),
        (torch.matmul, [(2, 3), (3,)], 6),
        (torch.matmul, [(3,), (3, 4)], 12),
        (torch.matmul, [(5, 2, 3), (3, 4)], 120),
        (torch.matmul, [(2, 3), (5, 3, 4)], 120),
        (torch.matmul, [(5, 1, 2, 3), (6, 3, 4)], 720),
        (torch.mv, [(2, 3), (3,)], 6),
        (torch.dot, [(3,), (3,)], 3),
        (torch.inner, [(2, 3), (4, 3)], 24),
        (torch.addmm, [(2, 4), (2, 3), (3, 4)], 24),
        (torch.addmv, [(2,), (2, 3), (3,)], 6),
        (torch.baddbmm, [(5, 2, 4), (5, 2, 3), (5, 3, 4)], 120),
        (torch.addbmm, [(2, 4), (5, 2, 3), (5, 3, 4)], 120),
        (lambda *x: torch.einsum("bij,bjk->bik", *x), [(5, 2, 3), (5, 3, 4)], 120),
        (lambda *x: torch.einsum("bqhd,bkhd->bhqk", *x), [(2, 3, 4, 5), (2, 6, 4, 5)], 2 * 3 * 6 * 4 * 5),
        (lambda *x: torch.einsum("ij,jk,kl->il", *x), [(2, 3), (3, 4), (4, 5)], 24 + 40),
        (lambda *x: torch.tensordot(*x, dims=2), [(2, 3, 4), (3, 4, 5)], 120),
        (lambda *x: torch.linalg.multi_dot(x), [(2, 3), (3, 4), (4, 5)], 24 + 40),
        (torch.chain_matmul, [(2, 3), (3, 4)], 24),
        (F.linear, [(7, 3), (4, 3)], 84),
    ],
)
def test_products(function: Callable[..., Tensor], shapes: Sequence[Shape], by_hand: int) -> None:
    counts = of_function(function, *shapes, training=False, strict=False)
    assert macs(counts)[0] == by_hand


@pytest.mark.parametrize("shapes", [[(2, 3), (3, 4)], [(5, 2, 3), (5, 3, 4)]])
def test_gradients_of_products_of_activations_are_grad_input(shapes: Sequence[Shape]) -> None:
    forward, to_input, to_weight = macs(of_function(torch.matmul, *shapes))
    assert (to_input, to_weight) == (2 * forward, 0)


def test_a_batch_of_weights_has_a_grad_weight() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(x, self.weight)

    counts = count(behind(nn.Linear(3, 3), Experts()), torch.zeros(4, 7, 3))
    assert macs(counts, "1") == (4 * 7 * 3 * 5,) * 3


def test_matrix_vector_with_a_weight() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vector = nn.Parameter(torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.vector

    counts = count(behind(nn.Linear(3, 6), Scores()), torch.zeros(4, 3))
    # Both gradients of a matrix-vector product: an outer product, element by element, and a product again.
    assert macs(counts, "1") == (24, 0, 24)
    assert sum(op.fp_mul for op in counts.element_ops if op.layer == "1" and op.part == "backward") == 24


# ---- attention ------------------------------------------------------------------------------------------------------

HEADS, ROWS, COLUMNS, WIDTH = 3, 5, 7, 4
ONE = 2 * HEADS * ROWS * COLUMNS * WIDTH  # MACs of one of the products


def attend(**options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)


def qkv(rows: int = ROWS, columns: int = COLUMNS, heads: int = HEADS) -> list[Shape]:
    return [(2, HEADS, rows, WIDTH), (2, heads, columns, WIDTH), (2, heads, columns, WIDTH)]


def test_functional_attention() -> None:
    # Fused attention computes the scores again in the backward pass; then four gradients.
    assert macs(of_function(attend(), *qkv())) == (3 * ONE, 4 * ONE, 0)
    assert macs(of_function(attend(), *qkv(), training=False)) == (2 * ONE, 0, 0)


def test_attention_as_two_products_keeps_its_scores() -> None:
    counts = of_function(lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, *qkv())
    assert macs(counts) == (2 * ONE, 4 * ONE, 0)


def test_causal_attention_is_counted_whole_and_says_what_is_masked() -> None:
    counts = of_function(attend(is_causal=True), *qkv(ROWS, ROWS), training=False)
    whole, hidden = 2 * HEADS * ROWS * ROWS * WIDTH, 2 * HEADS * (ROWS * (ROWS - 1) // 2) * WIDTH
    assert macs(counts)[0] == 2 * whole
    assert [gemm.skippable_macs("causal") for gemm in counts.gemms] == [hidden, hidden]


@pytest.mark.parametrize(("rows", "columns", "seen"), [(3, 5, 6), (5, 3, 12), (4, 4, 10), (1, 9, 1)])
def test_causal_masks_start_in_the_upper_left_corner(rows: int, columns: int, seen: int) -> None:
    counts = of_function(attend(is_causal=True), *qkv(rows, columns), training=False)
    assert torch.ones(rows, columns).tril().sum() == seen
    assert {g.skippable_macs("causal") for g in counts.gemms} == {2 * HEADS * (rows * columns - seen) * WIDTH}


def test_grouped_query_attention_multiplies_for_each_query_head() -> None:
    assert macs(of_function(attend(enable_gqa=True), *qkv(heads=1), training=False)) == (2 * ONE, 0, 0)


def test_fused_scores_move_no_bytes() -> None:
    scores, values = of_function(attend(), *qkv(), training=False).gemms
    assert scores.result_elements == 0 and values.a.stored_bits == 0
    assert scores.traffic_bits == 32 * 2 * HEADS * (ROWS + COLUMNS) * WIDTH


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_in_train_and_eval(training: bool, need_weights: bool) -> None:
    class Attention(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x, x, x, need_weights=need_weights)[0]

    n, length, width, heads = 2, 5, 8, 2
    counts = count(Attention(width, heads, batch_first=True), torch.zeros(n, length, width), training=training)
    projections, scores = 4 * n * length * width * width, n * length * length * width
    assert counts.macs["output"] == projections + 2 * scores + (scores if training and not need_weights else 0)
    assert counts.macs["grad_input"] == (training and projections // 4 + 4 * scores)
    assert counts.macs["grad_weight"] == (training and projections)


def test_cross_attention_with_other_widths() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=10)
    inputs = torch.zeros(5, 2, 8), torch.zeros(7, 2, 6), torch.zeros(7, 2, 10)
    by_hand = 2 * (5 * 8 * 8 + 7 * 6 * 8 + 7 * 10 * 8) + 2 * (2 * 5 * 7 * 8) + 2 * 5 * 8 * 8
    assert macs(count(attention, inputs, training=False))[0] == by_hand


def test_an_encoder_layer_is_the_same_on_torchs_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    x = torch.zeros(2, 5, 8)
    by_hand = 2 * 5 * (4 * 64 + 2 * 8 * 16) + 2 * (2 * 5 * 5 * 8)
    assert count(layer, x, training=False).macs["output"] == by_hand
    assert torch.backends.mha.get_fastpath_enabled()  # and it is left as it was


# ---- what is trained ------------------------------------------------------------------------------------------------


def three(*trained: int) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5), nn.Linear(5, 6))
    for place, layer in enumerate(model):
        layer.requires_grad_(place in trained)
    return model


@pytest.mark.parametrize(
    ("trained", "grad_input", "grad_weight"),
    [
        ((0, 1, 2), 20 + 30, 12 + 20 + 30),
        ((1, 2), 30, 20 + 30),  # frozen prefix
        ((0, 2), 20 + 30, 12 + 30),  # frozen middle
        ((0, 1), 20 + 30, 12 + 20),  # frozen head
        ((2,), 0, 30),  # linear probe
        ((0,), 20 + 30, 12),
    ],
)
def test_only_needed_gradients_are_counted(trained: tuple[int, ...], grad_input: int, grad_weight: int) -> None:
    assert macs(count(three(*trained), torch.zeros(7, 3))) == (7 * 62, 7 * grad_input, 7 * grad_weight)


def test_an_input_that_needs_a_gradient_has_one() -> None:
    assert macs(count(nn.Linear(3, 4), torch.zeros(2, 3, requires_grad=True))) == (24, 24, 24)


def test_biases_alone_need_the_error_and_no_grad_weight() -> None:
    model = three()
    for layer in model:
        layer.bias.requires_grad_(True)
    assert macs(count(model, torch.zeros(7, 3))) == (7 * 62, 7 * 50, 0)


class Adapted(nn.Module):
    """LoRA: a frozen layer and a trained low-rank one beside it (Hu et al. 2021)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.frozen(x) + self.up(self.down(x))
        return result


def test_low_rank_adapters() -> None:
    counts = count(behind(Adapted(8, 2), Adapted(8, 2)), torch.zeros(4, 8))
    assert macs(counts, "0.frozen") == (256, 0, 0)
    assert macs(counts, "1.frozen") == (256, 256, 0)
    assert macs(counts, "0.down") == (64, 0, 64)
    assert macs(counts, "0.up") == macs(counts, "1.down") == (64, 64, 64)


def test_a_merged_adapter_is_a_weight() -> None:
    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Parameter(torch.zeros(8, 8), requires_grad=False)
            self.down, self.up = nn.Parameter(torch.zeros(2, 8)), nn.Parameter(torch.zeros(8, 2))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.frozen + self.up @ self.down)

    counts = count(Merged(), torch.zeros(4, 8))
    assert [(g.gemm, g.a.name, g.b.name, g.macs) for g in counts.gemms[:2]] == [
        ("output", "weight", "weight", 128),
        ("output", "activation", "weight", 256),
    ]
    assert counts.macs["grad_weight"] == 256


def test_shared_weights_are_counted_where_they_are_used() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(10, 4), nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            result: Tensor = self.head(self.embedding(tokens))
            return result

    counts = count(Tied(), torch.zeros(2, 5, dtype=torch.long))
    assert macs(counts, "head") == (400, 400, 400)


@pytest.mark.parametrize(("reentrant", "again"), [(True, 12 + 20), (False, 12)])
def test_checkpointing_computes_again(reentrant: bool, again: int) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.inner = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = checkpoint(self.inner, self.first(x), use_reentrant=reentrant)
            return result

    counts = count(Checkpointed(), torch.zeros(7, 3))
    # Without reentrance torch stops as soon as it has what it needs, before the last layer.
    assert macs(counts) == (7 * (9 + 12 + 20 + again), 7 * (12 + 20), 7 * (9 + 12 + 20))


def test_checkpointing_a_function_computes_again_what_it_calls() -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = checkpoint(lambda y: torch.relu(y @ self.weight) @ self.weight, x, use_reentrant=False)
            return result

    assert macs(count(Checkpointed(), torch.zeros(7, 3)))[0] == 7 * 9 * 3


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gradient_accumulation(steps: int) -> None:
    model, x = three(0, 1, 2), torch.zeros(7, 3)
    one, counts = count(model, x), count(model, x, accumulation_steps=steps)
    assert counts.macs == (one * steps).macs
    parameters = sum(p.numel() for p in model.parameters())
    assert counts.element_ops_by_kind.get("gradient_accumulation", 0) == (steps - 1) * parameters


def test_accumulation_needs_a_step() -> None:
    with pytest.raises(ValueError, match="accumulation_steps must be 1 or more, got 0"):
        count(three(0), torch.zeros(7, 3), accumulation_steps=0)


# ---- how it is run --------------------------------------------------------------------------------------------------


def test_autocast_reads_what_it_casts() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        counts = count(three(0, 1, 2), torch.zeros(7, 3))
    assert {(low, high) for _, low, high in counts.macs_by_bits} == {(16, 16)}
    assert {gemm.result_bits for gemm in counts.gemms} == {16}
    assert counts.macs == count(three(0, 1, 2), torch.zeros(7, 3)).macs


def test_a_compiled_model_is_counted_as_it_was_written() -> None:
    model, x = three(0, 1, 2), torch.zeros(7, 3)
    outside, inside = torch.compile(model), nn.Sequential(torch.compile(model[0]), *model[1:])
    assert count(outside, x).gemms == count(inside, x).gemms == count(model, x).gemms
    model.compile()
    assert [gemm.layer for gemm in count(model, x).gemms][:3] == ["0", "1", "2"]


def test_a_model_without_memory() -> None:
    with torch.device("meta"):
        model = three(0, 1, 2)
    assert count(model, torch.zeros(7, 3)).gemms == count(three(0, 1, 2), torch.zeros(7, 3)).gemms
    assert count(model, torch.zeros(7, 3, device="meta")).gemms == count(model, torch.zeros(7, 3)).gemms


def test_a_real_run_counts_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    x = torch.rand(2, 1, 8, 8)
    assert count(model, x, values=True) == count(model, x)


def test_indices_decide_shapes() -> None:
    class Selects(nn.Linear):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x[mask])

    mask = torch.tensor([True, False, True])
    assert macs(count(Selects(3, 4), (torch.zeros(3, 3), mask)))[0] == 2 * 12


def test_what_depends_on_values_is_an_error_that_says_what_to_do() -> None:
    class Selects(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[x[:, 0] > 0])

    x = torch.tensor([[1.0, 0, 0], [-1, 0, 0]])
    with pytest.raises(ValueError, match=r"layer '0' calls aten.*values=True"):
        count(nn.Sequential(Selects(3, 4)), x)
    assert macs(count(Selects(3, 4), x, values=True))[0] == 12


def test_keyword_inputs() -> None:
    class Named(nn.Linear):
        def forward(self, *, x: Tensor, twice: bool) -> Tensor:
            return super().forward(torch.cat([x, x]) if twice else x)

    assert macs(count(Named(3, 4), {"x": torch.zeros(2, 3), "twice": True}))[0] == 48


def test_parts_in_eval_mode_stay_there() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 5))
    model[1].eval()
    (forward,) = (op for op in count(model, torch.zeros(7, 3)).element_ops if op.layer == "1" and op.part == "forward")
    assert forward.fp_add == forward.fp_mul == 28


def test_strict_raises_what_is_otherwise_listed() -> None:
    class Bessel(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i0(super().forward(x))

    model, x = nn.Sequential(Bessel(3, 4)), torch.zeros(2, 3)
    assert count(model, x, training=False).uncounted == ("0: aten.i0",)
    with pytest.raises(ValueError, match=r"strict: no formula for 0: aten\.i0"):
        count(model, x, training=False, strict=True)


class Uncopied(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("there is one of me")


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        ("model", torch.zeros(2, 3), TypeError, "must be a torch.nn.Module, got str"),
        (nn.Linear(3, 4), None, ValueError, "not None"),
        (nn.LazyLinear(4), torch.zeros(2, 3), ValueError, "parameter weight has no shape yet"),
        (Uncopied(3, 4), torch.zeros(2, 3), ValueError, "Uncopied cannot be deep-copied: there is one of me"),
        (nn.Linear(3, 4), torch.zeros(2, 5), RuntimeError, "do not fit"),
    ],
)
def test_what_cannot_be_counted_says_why(model: Any, inputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        count(model, inputs)


def test_errors_of_a_model_name_the_layer() -> None:
    with pytest.raises(RuntimeError) as caught:
        count(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 4)), torch.zeros(2, 3))
    assert "while layer '1' was counted" in "".join(caught.value.__notes__)


def test_wrapped_models() -> None:
    model, x = three(0, 1, 2), torch.zeros(7, 3)
    assert count(nn.DataParallel(model), x).gemms == count(model, x).gemms
    with pytest.raises(ValueError, match="TorchScript"):
        count(nn.Sequential(torch.jit.script(nn.Linear(3, 3))), x)


def test_settings_of_torch_are_left_as_they_were() -> None:
    count(nn.LSTM(3, 4), torch.zeros(2, 3), training=False)
    with pytest.raises(RuntimeError):
        count(nn.Linear(3, 4), torch.zeros(2, 5))
    assert torch.backends.mkldnn.enabled and torch.backends.mha.get_fastpath_enabled() and torch.is_grad_enabled()


def test_an_enormous_batch_takes_no_memory() -> None:
    assert count(nn.Linear(3, 4), torch.zeros(1, 3).expand(10**12, 3)).macs["output"] == 12 * 10**12
