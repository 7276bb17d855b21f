"""Tensors without values: what they keep of the tensors that they stand for, and what stays known beside them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energy_models.counter import count
from energy_models.tracing.ghosts import Ghost, NeedsValues, ghost_of

CUDA = torch.device("cuda", 0)  # nothing runs there


class Alone(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.seen: list[Any] = []

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def results(function: Callable[..., Any], *inputs: Tensor) -> Any:
    """What `function` returns while it is counted."""
    seen: list[Any] = []

    def watched(*ghosts: Tensor) -> Tensor:
        seen.append(function(*ghosts))
        return ghosts[0].sum()

    count(Alone(watched), inputs, training=False)
    return seen[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_ghost_is_like_what_it_stands_for(dtype: torch.dtype) -> None:
    x = torch.zeros(4, 6, dtype=dtype, requires_grad=True)
    ghost = ghost_of(x.t())
    assert (ghost.shape, ghost.stride(), ghost.dtype, ghost.device) == ((6, 4), (1, 6), dtype, torch.device("cpu"))
    assert ghost_of(x).requires_grad and isinstance(ghost_of(nn.Parameter(x)), nn.Parameter)


def test_a_ghost_keeps_a_device_that_is_not_there() -> None:
    x = ghost_of(torch.empty(4, 6, device="meta"), CUDA)
    y = torch.cat([x.relu(), torch.ones(1, 6, device=CUDA)]) if torch.cuda.is_available() else x.relu()
    assert x.device == y.device == (y @ x.t()).device == CUDA and y.is_cuda
    assert isinstance(y, Ghost) and x.to("cpu").device == torch.device("cpu")


def test_autocast_casts_by_the_device_that_is_stood_for() -> None:
    here, there = ghost_of(torch.zeros(4, 4)), ghost_of(torch.empty(4, 4, device="meta"), CUDA)
    with torch.autocast("cpu", torch.bfloat16):
        assert (F.linear(here, here).dtype, here.softmax(-1).dtype) == (torch.bfloat16, torch.float32)
        assert F.linear(there, there).dtype == torch.float32
        gemm = count(nn.Linear(4, 4), torch.zeros(2, 4), training=False).gemms[0]
    assert (gemm.a.bits, gemm.b.bits, gemm.result_bits) == (16, 16, 16)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_cells_of_a_gpu_have_their_shapes(layer: type[nn.Module]) -> None:
    gates = {nn.LSTM: 4, nn.GRU: 3}[layer] * 16
    x, h, state = (ghost_of(torch.zeros(3, width)) for width in (gates, gates, 16))
    if layer is nn.LSTM:
        found = torch.ops.aten._thnn_fused_lstm_cell(x, h, state)
        assert [tuple(t.shape) for t in found] == [(3, 16), (3, 16), (3, 64)]
    else:
        found = torch.ops.aten._thnn_fused_gru_cell(x, h, state)
        assert [tuple(t.shape) for t in found] == [(3, 16), (3, 80)]
        back = torch.ops.aten._thnn_fused_gru_cell_backward(found[0], found[1], True)
        assert [tuple(t.shape) for t in back] == [(3, 48), (3, 48), (3, 16), (48,), (48,)]


def test_indices_keep_their_values() -> None:
    edges = torch.tensor([[0, 1, 1], [2, 0, 6]])
    nodes, degrees, picked = results(
        lambda x, e: (
            int(e.max()) + 1,
            torch.zeros(7, dtype=torch.long).index_add(0, e[1], torch.ones_like(e[1])),
            x[e[0] == 1],
        ),
        torch.zeros(7, 5),
        edges,
    )
    assert nodes == 7 and degrees.tolist() == [1, 0, 1, 0, 0, 0, 1]
    assert isinstance(picked, Ghost) and picked.shape == (2, 5)


def test_what_is_computed_from_known_tensors_in_place_is_known() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        mask = torch.zeros(4, dtype=torch.bool)
        mask[1:3] = True
        mask.logical_not_()
        return mask, x[mask]

    mask, chosen = results(function, torch.zeros(4, 2))
    assert mask.tolist() == [True, False, False, True] and chosen.shape == (2, 2)


def test_what_a_ghost_touches_is_a_ghost() -> None:
    known, ghost = results(lambda x: (torch.arange(3.0) + 1, torch.arange(3.0) + x), torch.zeros(3))
    assert known.tolist() == [1, 2, 3] and isinstance(ghost, Ghost)


def test_a_ghost_is_changed_in_place() -> None:
    def function(x: Tensor) -> list[Tensor]:
        y = x * 1
        same = y.add_(1).mul_(y)
        y.unsqueeze_(0).transpose_(1, 2)
        return [y, same, y[0].t()]

    y, same, back = results(function, torch.zeros(2, 3))
    assert same is y and (y.shape, y.stride()) == ((1, 3, 2), (6, 1, 3))
    assert back.shape == (2, 3) and back.is_contiguous()


def test_views_share_a_storage() -> None:
    x, view, copy = results(lambda x: (x, x.view(6)[2:], x.clone()), torch.zeros(2, 3))
    assert x.untyped_storage()._cdata == view.untyped_storage()._cdata != copy.untyped_storage()._cdata
    assert view.storage_offset() == 2


def test_packed_sequences_have_the_steps_that_their_lengths_say() -> None:
    """5 of 2 x 4 steps; a step is 4 * 16 results of 8 inputs and 16 states."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(8, 16, batch_first=True)

        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]

    inputs = torch.zeros(2, 4, 8), torch.tensor([2, 3])
    assert count(Packed(), inputs, training=False).total_macs == 5 * 4 * 16 * (8 + 16)
    assert count(Packed(), inputs).macs == count(Packed(), inputs, values=True).macs


def test_large_tensors_are_made_without_memory() -> None:
    side = 1 << 20  # 4 TiB
    big, mask = results(
        lambda x: (torch.ones(side, side), torch.arange(side) > torch.arange(side).unsqueeze(1)), torch.zeros(1)
    )
    assert isinstance(big, Ghost) and isinstance(mask, Ghost) and mask.shape == big.shape == (side, side)


def test_a_model_on_the_meta_device_takes_no_memory() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1 << 18, 1 << 18), nn.ReLU(), nn.Linear(1 << 18, 4))
    counts = count(model, torch.empty(2, 1 << 18, device="meta"))
    assert counts.macs["output"] == 2 * ((1 << 36) + (1 << 20))


def filled(x: Tensor) -> Tensor:
    """Known at first, then written to through a view."""
    known = torch.zeros(x.shape)
    known[0] = x[0]
    return known


@pytest.mark.parametrize(
    ("function", "operator", "reason"),
    [
        (lambda x: x * x.max().item(), "_local_scalar_dense", "asks for the number"),
        (lambda x: x if x.sum() > 0 else -x, "_local_scalar_dense", "asks for the number"),
        (lambda x: x * filled(x).max().item(), "_local_scalar_dense", "asks for the number"),
        (lambda x: x[filled(x) > 0], "aten.index.Tensor", "how large its result is"),
        (lambda x: x[x > 0], "aten.index.Tensor", "how large its result is"),
        (lambda x: (x > 0).nonzero(), "aten.nonzero", "how large its result is"),
    ],
)
def test_what_needs_values_says_so(function: Callable[[Tensor], Tensor], operator: str, reason: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3), Alone(function))
    with pytest.raises(ValueError, match=rf"layer '1' calls .*{operator}.*{reason}.*values=True") as found:
        count(model, torch.zeros(2, 3), training=False)
    assert isinstance(found.value.__cause__, NeedsValues)
    assert count(model, torch.zeros(2, 3), training=False, values=True).total_macs == 2 * 9


@pytest.mark.parametrize("reduce", ["sum", "mean"])
def test_a_sparse_mean_is_a_product_of_the_non_zeros(reduce: str) -> None:
    adjacency = torch.eye(6).to_sparse_csr()
    model = Alone(lambda x, a: torch.sparse.mm(a, x, reduce))
    inputs = torch.zeros(6, 5, requires_grad=True), adjacency
    assert count(model, inputs).macs == {"output": 30, "grad_input": 30, "grad_weight": 0}
    assert count(model, inputs, values=True).macs == count(model, inputs).macs


def test_products_of_experts_do_not_depend_on_who_gets_what() -> None:
    weight = torch.zeros(3, 8, 16, dtype=torch.bfloat16, requires_grad=True)
    x = torch.zeros(6, 8, dtype=torch.bfloat16, requires_grad=True)
    ends = torch.tensor([2, 2, 6], dtype=torch.int32)
    counts = count(Alone(lambda x, w, e: F.grouped_mm(x, w, offs=e)), (x, weight, ends))
    assert counts.uncounted == () and [gemm.macs for gemm in counts.gemms] == [6 * 8 * 16] * 3
    assert sorted(gemm.result_elements for gemm in counts.gemms) == [6 * 8, 6 * 16, 3 * 8 * 16]
