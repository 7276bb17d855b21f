"""Zeros of weights, followed through a count, against what the same products do with indicator tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune

from energy_models.counter import count
from energy_models.counts import Gemm, OpCounts, Zeros
from energy_models.tracing import patterns

aten = torch.ops.aten


def gemm(counts: OpCounts, name: str, layer: str = "layer") -> Gemm:
    (found,) = (one for one in counts.gemms if (one.layer, one.gemm) == (layer, name))
    return found


def some(shape: tuple[int, ...], seed: int, share: float = 0.5) -> Tensor:
    """A float mask with zeros in it, not only zeros."""
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > share).float()
    mask.view(-1)[0], mask.view(-1)[-1] = 1, 0
    return mask


class Between(nn.Module):
    """A layer between two channel masks, so that its input and its error have known zero channels."""

    before: Tensor
    after: Tensor

    def __init__(self, layer: nn.Module, before: Tensor, after: Tensor, scale_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.ones(scale_shape))  # so that there is a grad_input
        self.register_buffer("before", before)
        self.register_buffer("after", after)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x * self.scale * self.before) * self.after
        return result


CONVS: list[tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = [
    (nn.Conv2d, {}, (7, 6)),
    (nn.Conv2d, {"stride": 2, "dilation": 2}, (9, 8)),
    (nn.Conv2d, {"groups": 2}, (6, 6)),
    (nn.Conv2d, {"groups": 4}, (6, 6)),
    (nn.Conv1d, {"groups": 2}, (7,)),
    (nn.Conv3d, {}, (4, 4, 4)),
    (nn.ConvTranspose2d, {"stride": 2}, (4, 3)),
    (nn.ConvTranspose2d, {"groups": 2}, (4, 3)),
]


@pytest.mark.parametrize(("kind", "options", "size"), CONVS)
def test_conv_zeros_are_those_of_indicators(
    kind: type[nn.Module], options: dict[str, Any], size: tuple[int, ...]
) -> None:
    layer = kind(4, 8, 3, bias=False, **options)
    ones = [1] * len(size)
    before, after, mask = some((1, 4, *ones), 0), some((1, 8, *ones), 1), some(tuple(layer.weight.shape), 2, 0.7)
    prune.custom_from_mask(layer, "weight", mask)
    x = torch.ones(2, 4, *size)
    counts = count(Between(layer, before, after, (1, 4, *ones)), x)

    # The same three products of tensors that are 1 where an element is not known to be zero.
    def three(needed: tuple[Tensor | int, Tensor | int, Tensor | int]) -> list[int]:
        seen = (x * before).requires_grad_()
        weight = mask.clone().requires_grad_()
        out = (F.conv_transpose2d if layer.transposed else _functional(size))(seen, weight, **options)
        grads = torch.autograd.grad(out, (seen, weight), after.expand_as(out))
        return [int((product * need).sum()) for product, need in zip((out, *grads), needed, strict=True)]

    computed, dead = three((1, 1, 1)), three((1 - after, 1 - before, 1 - mask))
    for name, useful, needless in zip(("output", "grad_input", "grad_weight"), computed, dead, strict=True):
        one = gemm(counts, name)
        assert one.zeros.element == one.macs - useful > 0, name
        assert one.zeros.dead == needless > 0, name
        assert one.masked_macs == one.macs - useful + needless
    assert gemm(counts, "output").b.nonzeros == int(mask.sum())
    assert gemm(counts, "output").a.nonzeros == x.numel() * int(before.sum()) // 4


def _functional(size: tuple[int, ...]) -> Any:
    return (F.conv1d, F.conv2d, F.conv3d)[len(size) - 1]


def test_depthwise_channels_by_hand() -> None:
    """Of four 3x3 filters one is zero and one reads a zero channel: two of four groups need nothing."""
    layer = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    with torch.no_grad():
        layer.weight[1] = 0
    before = torch.tensor([1.0, 1, 0, 1]).reshape(1, 4, 1, 1)
    one = gemm(count(Between(layer, before, torch.ones(1), (1, 4, 1, 1)), torch.zeros(2, 4, 5, 5)), "output")
    assert one.macs == 4 * 2 * 9 * 9
    assert one.zeros == Zeros(element=one.macs // 2, channel=one.macs // 2, removable=one.macs // 2)


def test_a_smaller_grouped_conv_by_hand() -> None:
    """2 groups of 2 -> 3 channels: group 0 loses an output, group 1 an input channel."""
    layer = nn.Conv2d(4, 6, 1, groups=2, bias=False)
    with torch.no_grad():
        layer.weight[1] = 0
    before = torch.tensor([1.0, 1, 0, 1]).reshape(1, 4, 1, 1)
    one = gemm(count(Between(layer, before, torch.ones(1), (1, 4, 1, 1)), torch.zeros(1, 4, 5, 5)), "output")
    assert one.macs == 25 * 6 * 2
    assert one.zeros.channel == one.macs - 25 * (2 * 2 + 3 * 1)
    assert one.zeros.element == 25 * (2 + 3)


def test_a_pruned_linear_layer_by_hand() -> None:
    layer = nn.Linear(6, 5)
    mask = torch.ones(5, 6)
    mask[0], mask[:, 1], mask[2, 3] = 0, 0, 0  # a row, a column, one more: 30 - 6 - 4 - 1 are left
    prune.custom_from_mask(layer, "weight", mask)
    counts = count(nn.Sequential(nn.Linear(3, 6), layer), torch.zeros(4, 3))
    output, grad_input, grad_weight = (gemm(counts, n, "1") for n in ("output", "grad_input", "grad_weight"))
    assert output.b.nonzeros == grad_input.b.nonzeros == 19
    assert output.zeros == Zeros(element=4 * 11, channel=4 * 10, removable=4 * 10)
    assert grad_input.zeros == output.zeros
    # No operand is zero, but 11 gradients are multiplied by the mask: a row, a column and one more.
    assert grad_weight.zeros == Zeros(dead=4 * 11, removable=4 * 10)
    assert counts.total_macs == count(nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 5)), torch.zeros(4, 3)).total_macs


def test_a_flatten_spreads_a_channel_over_its_positions() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight[1] = 0
    model = nn.Sequential(nn.Conv2d(1, 3, 1), norm, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 4, 5))
    output = gemm(count(model, torch.zeros(2, 1, 4, 4)), "output", "5")
    assert output.a.nonzeros == 2 * 2 * 4
    assert output.zeros.channel == output.zeros.element == 2 * 5 * 4


def test_a_channel_whose_beta_is_not_zero_is_no_zero() -> None:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight[1], norm.bias[1] = 0, 0.5
    model = nn.Sequential(nn.Conv2d(1, 3, 1), norm, nn.ReLU(), nn.Conv2d(3, 2, 1))
    counts = count(model, torch.zeros(2, 1, 4, 4))
    assert gemm(counts, "output", "3").zeros == Zeros()
    first = gemm(counts, "output", "0")
    assert first.zeros == Zeros(dead=first.macs // 3, removable=first.macs // 3)  # but it is multiplied by gamma
    assert gemm(counts, "grad_weight", "0").zeros.channel == first.macs // 3  # and so is its error


def test_a_residual_sum_is_zero_where_both_branches_are() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4)) for _ in range(2))
            self.layer = nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(F.relu(self.a(x) + self.b(x)))
            return result

    model = Sum()
    with torch.no_grad():
        model.a[1].weight[:2] = 0
        model.b[1].weight[1:3] = 0
    output = gemm(count(model, torch.zeros(1, 1, 3, 3)), "output")
    assert output.zeros.channel == 9 * 2 * 1  # channel 1 alone


@pytest.mark.parametrize("half", [False, True])
def test_dropout_concatenation_and_padding_keep_zeros(half: bool) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.drop = nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)
            self.layer = nn.Conv2d(8, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop(F.gelu(self.norm(self.first(x))))
            other = torch.ones_like(x) if half else x
            result: Tensor = self.layer(F.pad(torch.cat([x, other], 1), (1, 1, 1, 1)))
            return result

    model = Joined()
    with torch.no_grad():
        model.norm.weight[:3] = 0
    output = gemm(count(model, torch.zeros(2, 1, 3, 3)), "output")
    assert output.zeros.channel == 2 * 9 * 2 * 9 * (3 if half else 6)


def test_channels_that_padding_adds_are_zero_beside_a_dropped_one() -> None:
    class Padded(nn.Module):
        """As the parameter-free shortcut of a ResNet for CIFAR (He et al. 2016, option A)."""

        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = nn.BatchNorm2d(4), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(F.pad(self.norm(x)[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
            return result

    model = Padded()
    with torch.no_grad():
        model.norm.weight[0] = 0
    assert gemm(count(model, torch.zeros(1, 4, 4, 4)), "output").zeros.channel == 4 * 2 * (1 + 4)


def test_a_parametrized_weight_and_a_bool_mask_are_followed() -> None:
    class Mask(nn.Module):
        keep: Tensor

        def __init__(self, keep: Tensor) -> None:
            super().__init__()
            self.register_buffer("keep", keep)

        def forward(self, weight: Tensor) -> Tensor:
            return weight * self.keep

    keep = some((5, 6), 3).bool()
    layer = nn.Linear(6, 5)
    parametrize.register_parametrization(layer, "weight", Mask(keep))
    output = gemm(count(nn.Sequential(layer), torch.zeros(4, 6)), "output", "0")
    assert output.zeros.element == 4 * int((~keep).sum())


def two_of_four(rows: int, columns: int) -> Tensor:
    return torch.tensor([1.0, 0, 0, 1]).repeat(rows, columns // 4)


def test_two_of_four_by_hand() -> None:
    layer = nn.Linear(8, 6)
    prune.custom_from_mask(layer, "weight", two_of_four(6, 8))
    counts = count(nn.Sequential(nn.Linear(3, 8), layer), torch.zeros(4, 3))
    output, grad_input = gemm(counts, "output", "1"), gemm(counts, "grad_input", "1")
    assert output.zeros.two_of_four == output.zeros.element == output.macs // 2
    # The k of grad_input runs over the rows, where columns are zero as a whole: no structure along k.
    assert (grad_input.zeros.two_of_four, grad_input.zeros.channel) == (0, grad_input.macs // 2)


def test_half_zeros_are_not_two_of_four() -> None:
    mask = two_of_four(6, 8)
    mask[0] = torch.tensor([1.0, 1, 1, 0, 0, 0, 0, 1])
    layer = prune.custom_from_mask(nn.Linear(8, 6), "weight", mask)
    output = gemm(count(nn.Sequential(layer), torch.zeros(4, 8)), "output", "0")
    assert (output.zeros.element, output.zeros.two_of_four) == (output.macs // 2, 0)


def test_three_zeros_of_four_save_half() -> None:
    mask = torch.tensor([1.0, 0, 0, 0]).repeat(6, 2)
    mask[0] = torch.tensor([0.0, 1, 0, 0, 0, 0, 1, 0])
    layer = prune.custom_from_mask(nn.Linear(8, 6), "weight", mask)
    output = gemm(count(nn.Sequential(layer), torch.zeros(4, 8)), "output", "0")
    assert (output.zeros.element, output.zeros.two_of_four) == (output.macs * 3 // 4, output.macs // 2)


def test_two_of_four_of_a_conv_is_along_its_channels() -> None:
    keep = torch.zeros(6, 8, 3, 3)
    keep[:, ::4], keep[:, 3::4] = 1, 1
    keep[0, :4, 1, 1] = torch.tensor([0.0, 1, 1, 0])  # another pair at one tap of one filter
    layer = prune.custom_from_mask(nn.Conv2d(8, 6, 3), "weight", keep)
    output = gemm(count(nn.Sequential(layer), torch.zeros(1, 8, 4, 4)), "output", "0")
    assert output.zeros.two_of_four == output.macs // 2


# What must not be taken for a dead result.


def test_a_result_that_is_also_returned_is_needed() -> None:
    class Both(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return (y * torch.zeros(5, dtype=torch.bool), y) if self.returns else y * torch.zeros(5, dtype=torch.bool)

    for returns, dead in ((True, 0), (False, 4 * 30)):
        model = Both(6, 5)
        model.returns = returns
        with torch.no_grad():
            model.weight[0, 0] = 0  # a model without zeros is not followed
        output = gemm(count(model, torch.zeros(4, 6), training=False), "output", "")
        assert output.zeros.dead == (dead - 4 if dead else 0)


def test_what_is_written_over_is_forgotten() -> None:
    class Writes(nn.Module):
        mask: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 5)
            self.register_buffer("mask", torch.tensor([0.0, 0, 1, 1, 1, 1]))

        def forward(self, x: Tensor) -> Tensor:
            y = x * self.mask
            if self.writes:
                y[:, :1] += 1
            result: Tensor = self.layer(y)
            return result

    for writes, zeros in ((False, 2), (True, 0)):  # the view's neighbours are forgotten with it
        model = Writes()
        model.writes = writes
        assert gemm(count(model, torch.zeros(4, 6)), "output").zeros.element == 4 * 5 * zeros


def test_a_mask_that_is_computed_is_not_known() -> None:
    class Computed(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(1, 6, dtype=torch.bool)
            if self.writes:
                mask.copy_(x[:1] > 0)
            return super().forward(x * mask[:])

    for writes, zeros in ((False, 4 * 30), (True, 4)):
        model = Computed(6, 5)
        model.writes = writes
        with torch.no_grad():
            model.weight[0, 0] = 0
        assert gemm(count(model, torch.ones(4, 6)), "output", "").zeros.element == zeros


@pytest.mark.parametrize("values", [False, True])
def test_real_and_traced_runs_know_the_same(values: bool) -> None:
    layer = prune.l1_unstructured(nn.Linear(6, 5), "weight", 0.5)
    norm = nn.BatchNorm1d(6)
    with torch.no_grad():
        norm.weight[2] = 0
    model = nn.Sequential(nn.Linear(3, 6), norm, nn.ReLU(), layer)
    counts = count(model, torch.rand(4, 3), values=values)
    assert gemm(counts, "output", "3").b.nonzeros == 15
    assert gemm(counts, "output", "3").zeros.channel >= 4 * 5
    assert counts == count(model, torch.rand(4, 3))


def test_a_meta_model_has_no_known_zeros_and_the_same_work() -> None:
    layer = prune.l1_unstructured(nn.Linear(6, 5), "weight", 0.5)
    known, unknown = count(layer, torch.zeros(4, 6)), count(layer.to("meta"), torch.zeros(4, 6, device="meta"))
    assert known.macs == unknown.macs
    assert gemm(known, "output", "").zeros.element == 4 * 15
    assert gemm(unknown, "output", "").zeros == Zeros()


def test_the_odd_zero_of_a_random_weight_is_no_pruning() -> None:
    layer = nn.Linear(100, 100)
    x = torch.zeros(4, 100)
    for zeros, known in ((2, 0), (3, 3)):  # 3 of 10,000 are more than 1 of 4,096
        with torch.no_grad():
            layer.weight.fill_(1).view(-1)[:zeros] = 0
        assert gemm(count(layer, x), "output", "").zeros.element == 4 * known


def test_steps_multiply_zeros() -> None:
    layer = prune.l1_unstructured(nn.Linear(6, 5), "weight", 0.5)
    one = gemm(count(layer, torch.zeros(4, 6)) * 3, "output", "")
    assert one.masked_macs == one.skippable_macs("element") == 3 * 4 * 15


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((2, 3, 4), (2, 12)),
        ((2, 12), (2, 3, 4)),
        ((6, 4), (2, 3, 4)),
        ((2, 3, 1, 4), (6, 4, 1)),
        ((4, 6), (8, 3)),
        ((1, 1), (1,)),
        ((1,), ()),
        ((3, 4), (1, 3, 1, 4, 1)),
    ],
)
def test_reshaped_patterns_are_those_of_reshaped_tensors(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    for seed in range(2 ** len(old)):  # each choice of the dimensions that are alike
        small = [1 if seed >> dim & 1 else size for dim, size in enumerate(old)]
        pattern = some(tuple(small), seed).bool()
        seen = patterns.reshaped(pattern, old, new)
        assert seen is not None
        assert torch.equal(seen.expand(new), pattern.expand(old).reshape(new))


def test_an_empty_vector_among_what_is_concatenated() -> None:
    class Cached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([torch.zeros(0), super().forward(x)], dim=2)

    model = Cached(4, 4)
    with torch.no_grad():
        model.weight[0] = 0
    assert count(model, torch.zeros(2, 3, 4)).macs["output"] == 96
