"""The bookkeeping of the papers, against the numbers that they publish."""

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import energy_models as em
from energy_models.compat import early_bird, fractrain, gbitops, relative_cost, training_flops

BITS = {
    bits: em.FormatSpec("integer", bits=bits, exponent_bits=0, mantissa_bits=bits - 1, scale_bits=64)
    for bits in range(3, 13)
}


@dataclass(frozen=True)
class ForwardBackward:
    fw: int
    bw: int

    def operand_format(self, layer: str, gemm: str, operand: str) -> em.NumberFormat | None:
        return None if operand == "accumulator" else BITS[self.bw if operand == "error" else self.fw]


def conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, stride=stride), conv(outputs, outputs))
        self.short = nn.Identity() if inputs == outputs else conv(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.short(x))


@cache
def resnet20() -> em.OpCounts:
    widths = [16] * 4 + [32] * 3 + [64] * 3
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    model = nn.Sequential(conv(3, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return em.count(model, torch.zeros(1, 3, 32, 32))


@cache
def vgg16() -> em.OpCounts:
    layers, inputs = [], 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        layers.append(conv(inputs, width) if width else nn.MaxPool2d(2))
        inputs = width or inputs
    return em.count(
        nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(512, 10)), torch.zeros(1, 3, 32, 32)
    )


def test_vgg16_of_the_early_bird_paper() -> None:
    """You et al. 2020, table 2 (CIFAR-10), in units of 0.05 P: SNIP pays a dense training, a lottery ticket two."""
    dense = early_bird(vgg16()) * (160 * 50_000)
    assert training_flops(dense) == 3 * 2 * vgg16().macs["output"] * 160 * 50_000
    assert training_flops(dense) == pytest.approx(15.06e15, rel=2e-3)
    assert round(training_flops(dense) / 0.05e15) == 301
    assert training_flops(dense) / 0.05e15 == pytest.approx(302, rel=0.005)
    assert training_flops(dense + dense) / 0.05e15 == pytest.approx(605, rel=0.007)


def test_resnet20_of_fractrain_and_cpt() -> None:
    book = fractrain(resnet20())
    assert book.macs["output"] == pytest.approx(40.81e6, rel=1e-4)  # 1x1 convolutions downsample; no linear layer
    assert resnet20().macs["output"] == book.macs["output"] + 640
    static = book.at(ForwardBackward(8, 8))
    assert gbitops(static * (64_000 * 128)) == pytest.approx(6.42e7, rel=1e-3)
    assert relative_cost(static) == pytest.approx((8 * 8 + 2 * 8 * 8) / (3 * 32 * 32))


def test_the_cycles_of_cpt_cost_36_67_percent_less() -> None:
    """Fu et al. 2021: 3 to 8 bits forward, 8 backward, against 8/8; one of 32 cycles of 64,000 iterations."""
    book, period = fractrain(resnet20()), 2_000
    cost = 0.0
    for t in range(period):
        fw = round(3 + 5 / 2 * (1 + math.cos(math.pi * t / period + math.pi)))
        cost += gbitops(book.at(ForwardBackward(fw, 8)))
    assert 1 - cost / (period * gbitops(book.at(ForwardBackward(8, 8)))) == pytest.approx(0.3667, abs=5e-5)


def test_every_pair_of_bits_by_its_formula() -> None:
    book, macs = fractrain(resnet20()), fractrain(resnet20()).macs["output"]
    for fw, bw in ((3, 6), (4, 6), (6, 8), (8, 8), (6, 12)):
        counts = book.at(ForwardBackward(fw, bw))
        assert counts.bit_ops == macs * (fw * fw + 2 * fw * bw)
        assert fractrain(resnet20().at(ForwardBackward(fw, bw))).bit_ops == counts.bit_ops  # formats first or last


def test_against_the_exact_count() -> None:
    """What the books leave out and add: element operations, the last layer, and a grad_input of the first."""
    exact = resnet20()
    first = 9 * 3 * 16 * 32 * 32
    bird, frac = early_bird(exact), fractrain(exact)
    assert bird.element_ops == frac.element_ops == () and exact.element_ops
    assert bird.total_macs - exact.total_macs == first
    assert frac.total_macs - exact.total_macs == first - 3 * 640
    assert set(bird.macs.values()) == {exact.macs["output"]}


def test_a_frozen_layer_is_charged_like_any_other() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    model[0].requires_grad_(False)
    counts = em.count(model, torch.zeros(1, 1, 8, 8), compat="fractrain")
    assert counts.total_macs == 3 * (36 * 18 + 16 * 36)


def test_of_inference_the_forward_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    forward = em.count(model, torch.zeros(2, 6), training=False)
    assert early_bird(forward).macs == {"output": 100, "grad_input": 0, "grad_weight": 0}
    assert fractrain(forward).macs["output"] == 60


def test_a_model_that_ends_otherwise_is_charged_whole() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 2, 1))
    assert em.count(model, torch.zeros(1, 16), compat="fractrain").macs["output"] == 256 + 32


def test_books_of_a_sum_are_the_sum_of_the_books() -> None:
    counts = resnet20()
    for book in (early_bird, fractrain):
        assert book(counts + counts * 2).bit_ops == 3 * book(counts).bit_ops
        assert book(counts).uncounted == replace(counts, uncounted=()).uncounted


def test_they_are_priced_like_any_count() -> None:
    profile = em.load_profile("45nm")
    low = em.count(nn.Linear(6, 5), torch.zeros(2, 6), compat="early_bird")
    assert em.estimate(low * 3, profile).nominal_j == pytest.approx(3 * em.estimate(low, profile).nominal_j)
    assert em.estimate(low, profile).nominal_j > 0


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"compat must be one of early_bird, fractrain, got 'swalp'"):
        em.count(nn.Linear(2, 2), torch.zeros(1, 2), compat="swalp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without MACs"):
        relative_cost(em.OpCounts())
