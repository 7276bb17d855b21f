"""Removed, masked and skippable MACs: what compaction removes is what the masked model says it can."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

import energy_models as em
import lowprec_eb as lp
from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.tickets import draw_by_gamma, gamma_scores

X = torch.zeros(2, 3, 8, 8)


class Block(nn.Module):
    """A basic residual block (He et al. 2016) with a projection where the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        projection = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut = nn.Sequential(*projection if inputs != outputs else ())

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Residual(nn.Sequential):
    def __init__(self) -> None:
        stem = (nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        super().__init__(
            *stem, Block(8, 8, 1), Block(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
        )


class Joined(nn.Module):
    """A layer that reads the concatenation of two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Conv2d(10, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(F.max_pool2d(torch.cat([self.first(x), self.second(x)], 1), 2))
        return result.mean((2, 3))


def vgg() -> nn.Module:
    return build_model(VGGSettings(widths=(6, "M", 8, 10)), (3, 8, 8), 5, 0)


def ticket_of(model: nn.Module, ratio: float) -> lp.Ticket:
    """Random channels; those that are added up share their mask."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        scores = gamma_scores(model)
        for score in scores.values():
            score.copy_(torch.rand(score.shape, generator=generator) + 0.1)
    masks = dict(draw_by_gamma(model, ratio, epoch=1).masks)
    for layer, same in (("3.bn2", "1"), ("4.shortcut.1", "4.bn2")):
        if layer in masks:
            masks[layer] = masks[same]
    return lp.Ticket(masks, ratio, 1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("ratio", [0.3, 0.6])
@pytest.mark.parametrize("make", [vgg, Residual, Joined])
def test_compaction_removes_what_the_masked_model_calls_removable(
    make: type[nn.Module], ratio: float, training: bool
) -> None:
    model = make()
    ticket = ticket_of(model, ratio)
    dense = em.count(model, X, training=training)
    compacted = em.sparsity(em.count(lp.compact(model, ticket, X), X, training=training), dense)
    ticket.apply(model)
    masked = em.sparsity(em.count(model, X, training=training), dense)
    for small, row in zip(compacted.rows, masked.rows, strict=True):
        assert (small.layer, small.gemm, small.dense) == (row.layer, row.gemm, row.dense)
        assert row.dense == row.computed and row.removed == 0  # a mask computes all that it did
        assert small.dense == small.computed + small.removed
        assert small.removed == row.skippable["removable"] == row.masked
        assert row.skippable["channel"] <= row.skippable["removable"]
        assert small.masked == 0
    assert masked.total.masked > 0.05 * masked.total.dense


def test_what_a_smaller_input_alone_explains() -> None:
    """The first convolution reads no zero channel: what it computes for nothing are its results."""
    model = vgg()
    masks = {layer: torch.arange(len(score)) % 3 > 0 for layer, score in gamma_scores(model).items()}
    lp.Ticket(masks, 0.3, 1).apply(model)
    by_name = {(row.layer, row.gemm): row for row in em.sparsity(em.count(model, X)).rows}
    first = by_name["features.0", "output"]
    assert first.skippable["channel"] == first.skippable["element"] == 0
    assert first.masked == first.skippable["dead"] == first.skippable["removable"] == first.dense // 3


@pytest.mark.parametrize("precision", ["bfp8", "int8"])
def test_a_lowered_model_has_the_same_zeros(precision: str) -> None:
    model = vgg()
    ticket_of(model, 0.5).apply(model)
    plain = em.sparsity(em.count(model, X))
    lp.lower(model, precision)
    assert em.sparsity(em.count(model, X)) == plain


def test_a_mask_and_a_ticket_together_add_up() -> None:
    model = vgg()
    ticket = ticket_of(model, 0.5)
    dense = em.count(model, X)
    small = lp.compact(model, ticket, X)
    for layer in small.modules():
        if isinstance(layer, nn.Conv2d):
            prune.l1_unstructured(layer, "weight", 0.5)
    table = em.sparsity(em.count(small, X), dense)
    total = table.total
    assert total.dense == dense.total_macs == total.computed + total.removed
    assert 0 < total.masked < total.computed and total.removed > 0
    assert total.skippable["element"] + total.skippable["dead"] == total.masked
    row = next(row for row in table.rows if (row.layer, row.gemm) == ("features.4", "output"))
    assert row.masked == pytest.approx(row.computed / 2, rel=0.02)


def test_the_table_prints_and_adds_up() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5))
    prune.ln_structured(model[1], "weight", amount=2, n=1, dim=1)  # two of six inputs
    lines = str(em.sparsity(em.count(model, torch.zeros(2, 4), training=False))).splitlines()
    assert [line.split() for line in lines] == [
        ["layer", "gemm", "dense", "removed", "computed", "masked", "element", "channel", "removable"],
        ["0", "output", "48", "0", "48", "0", "0", "0", "0"],
        ["1", "output", "60", "0", "60", "20", "20", "20", "20"],
        ["total", "108", "0", "108", "20", "20", "20", "20"],
    ]


def test_a_sparse_layout_removes_without_a_dense_model() -> None:
    class Graph(nn.Linear):
        def forward(self, a: Tensor, x: Tensor) -> Tensor:
            return a @ super().forward(x)

    adjacency = torch.eye(5).to_sparse()
    graph, weight = (
        em.sparsity(em.count(Graph(3, 2, bias=False), (adjacency, torch.zeros(5, 3)), training=False)).rows,
        30,
    )
    (row,) = graph
    assert (row.dense, row.computed, row.removed) == (weight + 5 * 5 * 2, weight + 5 * 2, 5 * 4 * 2)


def test_another_model_is_no_dense_reference() -> None:
    small, large = (em.count(nn.Linear(3, width), torch.zeros(4, 3)) for width in (5, 6))
    assert em.sparsity(small, large).total.removed == 2 * 4 * 3
    with pytest.raises(ValueError, match=r"72 MACs are computed, the dense counts have 60; count the dense model"):
        em.sparsity(large, small)
    with pytest.raises(ValueError, match=r"layer '0', output GEMM: .* the dense counts have 0"):
        em.sparsity(em.count(nn.Sequential(nn.Linear(3, 5)), torch.zeros(4, 3)), small)


def test_columns_are_of_all_steps() -> None:
    model = prune.l1_unstructured(nn.Linear(6, 5), "weight", 0.5)
    one, ten = (em.sparsity(em.count(model, torch.zeros(4, 6)) * steps).total for steps in (1, 10))
    assert (ten.dense, ten.masked) == (10 * one.dense, 10 * one.masked)
