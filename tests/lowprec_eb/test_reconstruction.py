"""ThiNet's samples, choice and scales, and SNIP's sensitivity, against their definitions."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from lowprec_eb.models import PreResNetSettings, VGGSettings, build_model
from lowprec_eb.recipes import precision
from lowprec_eb.selection import Bench, Layer, reconstruct, reconstruction_costs, sensitivity, sensitivity_costs
from lowprec_eb.tasks import TaskSettings, make_task
from lowprec_eb.tickets import Ticket, channel_groups, compact
from lowprec_eb.tickets.members import Member
from lowprec_eb.tickets.reconstruction import contributions, covered, kept_channels, scales, select
from lowprec_eb.tickets.scores import Connection


def member(*channels):
    return Member("reader", "in", tuple(range(len(channels))), channels, (("weight", 1),))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2)),
        nn.Conv2d(3, 4, 1, bias=False),
    ],
)
def test_contributions_sum_to_the_outputs_of_a_convolution(layer):
    inputs = torch.randn(5, 3, 7, 6)
    found = contributions(layer, inputs, member(0, 1, 2), 3, 4, torch.Generator().manual_seed(1))
    outputs = layer(inputs).detach().double()
    bias = 0.0 if layer.bias is None else layer.bias.detach().double()[:, None, None]
    assert found.shape == (20, 3)
    for image, sums in enumerate(found.sum(1).reshape(5, 4)):
        assert all(np.isclose((outputs - bias)[image].numpy(), one, atol=1e-6).any() for one in sums)


def test_contributions_to_a_linear_layer_join_the_positions_of_a_channel():
    layer, inputs = nn.Linear(6, 3), torch.randn(4, 6)
    found = contributions(layer, inputs, member(0, 0, 0, 1, 1, 1), 2, 2, torch.Generator().manual_seed(1))
    parts = inputs[:, None, :] * layer.weight  # (images, outputs, features)
    by_channel = torch.stack([parts[..., :3].sum(-1), parts[..., 3:].sum(-1)], -1).detach().numpy()
    for image, samples in enumerate(found.reshape(4, 2, 2)):
        assert all(np.isclose(by_channel[image], one, atol=1e-6).all(1).any() for one in samples)


def test_the_choice_is_the_greedy_one():
    samples = np.random.RandomState(3).randn(40, 6)
    gone = []
    for _ in range(4):  # the definition, with all sums taken anew
        losses = {c: (samples[:, [*gone, c]].sum(1) ** 2).sum() for c in range(6) if c not in gone}
        gone.append(min(losses, key=losses.get))
    assert set(np.flatnonzero(~select(samples, 2).numpy())) == set(gone)


def test_channels_that_cancel_go_together():
    samples = np.random.RandomState(0).randn(30, 4)
    samples[:, 1] = 0.9 * samples[:, 0] / np.abs(samples[:, 0]).max()
    samples[:, 3] = -samples[:, 1]
    assert select(samples, 2).tolist() == [True, False, True, False]


def test_scales_are_the_least_squares_solution():
    samples = np.random.RandomState(1).randn(50, 5)
    mask = torch.tensor([True, False, True, True, False])
    found = scales(samples, mask)
    kept = samples[:, mask.numpy()]
    wanted = np.linalg.solve(kept.T @ kept, kept.T @ samples.sum(1))
    assert torch.allclose(found[mask], torch.from_numpy(wanted)) and (found[~mask] == 1).all()


def test_a_dead_channel_keeps_its_scale():
    samples = np.random.RandomState(1).randn(50, 3)
    samples[:, 1] = 0
    assert scales(samples, torch.tensor([True, True, False]))[1] == 1


@pytest.fixture(scope="module")
def bench():
    task = make_task(TaskSettings(max_train=150, max_test=60, batch_size=32), 0)
    return Bench(task, precision("fp32"), "cpu", 0)


def test_a_doubled_channel_is_dropped_without_a_trace(bench):
    """Half of the channels of the first layer are copies; ThiNet drops one of each pair and doubles the other."""
    model = build_model(VGGSettings(widths=(6, "M", 8)), bench.task.input_shape, bench.task.classes, 0)
    example = torch.zeros(2, *bench.task.input_shape)
    found = covered(model, example, "batch_norm")
    (group, readers), *_ = found.readers.items()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dim() and len(tensor) == 6:
                tensor[3:] = tensor[:3].clone()
        (reader,) = readers
        weight = model.get_submodule(reader.module).weight
        weight[:, 3:] = weight[:, :3].clone()
    layer = Layer.of(group, readers, 6, 0.5, 0)
    mask, rescaled, expense = reconstruct(model, layer, 2, 10, bench)
    assert sorted(int(channel) % 3 for channel in mask.nonzero()) == [0, 1, 2]
    small = compact(rescaled, found.ticket(group, mask, 0.5, 0, "fp32"), example)
    inputs = next(iter(bench.task.batches(0))).inputs
    assert torch.allclose(small.eval()(inputs), model.eval()(inputs), atol=1e-5)
    assert expense.phase == "search"
    assert expense.costs.total_macs == reconstruction_costs(model, layer, 2, 10, bench).total_macs > 0


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.inner = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.head = nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.depthwise(x + self.outer(self.inner(x))))


def test_which_layers_are_covered():
    example = torch.zeros(2, 3, 8, 8)
    vgg = build_model(VGGSettings(widths=(6, "M", 8)), (3, 8, 8), 10, 0)
    assert not covered(vgg, example, "batch_norm").left_out
    found = covered(Residual(), example, "batch_norm")
    assert set(found.readers) == {"inner.1", "head.0"}
    assert [len(reader.positions) for reader in found.readers["head.0"]] == [4 * 36]
    assert found.left_out["outer.1"] and found.left_out["stem.1"]
    assert list(covered(Residual(), example, "batch_norm", only="inner.1").readers) == ["inner.1"]
    coupled = covered(Residual(), example, "coupled")
    readers = {name: {reader.module for reader in of} for name, of in coupled.readers.items()}
    assert readers == {"stem.0": {"inner.0", "head.2"}, "inner.0": {"outer.0"}}  # a depthwise layer passes channels on
    pre = build_model(PreResNetSettings(depth=8, width=4), (3, 8, 8), 10, 0)
    assert not covered(pre, example, "batch_norm").left_out  # each BatchNorm selects for its reader alone


def test_every_layer_keeps_one():
    assert [kept_channels(width, 0.9) for width in (1, 2, 30)] == [1, 1, 3]


def test_connection_sensitivity_by_channel(bench):
    model = build_model(VGGSettings(widths=(6, "M", 8)), bench.task.input_shape, bench.task.classes, 0)
    example = torch.zeros(2, *bench.task.input_shape)
    groups = channel_groups(model, example, coupled=False)
    scores, expense = sensitivity(model, groups, 2, bench)
    assert all(parameter.grad is None for parameter in model.parameters())  # a copy was differentiated
    model.train()
    first, second = itertools.islice(bench.task.batches(0), 2)
    ((bench.task.loss(model, first) + bench.task.loss(model, second)) / 2).backward()
    parts = {name: (p.detach() * p.grad).abs() for name, p in model.named_parameters()}
    total = sum(part.sum() for part in parts.values())
    convolutions = [part for name, part in parts.items() if part.dim() == 4]
    for (name, score), part in zip(scores.items(), convolutions, strict=True):
        assert torch.allclose(score, part.sum((1, 2, 3)) / total, rtol=1e-4), name
    assert expense.costs.total_macs == sensitivity_costs(model, 2, bench).total_macs
    with pytest.raises(ValueError, match=r"batches \(9\) must be at most those of an epoch: 4"):
        sensitivity_costs(model, 9, bench)


def test_sensitivity_needs_gradients_and_weights():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1))
    groups = channel_groups(model, torch.zeros(2, 1, 5, 5), coupled=False)
    with pytest.raises(ValueError, match="has no gradient: run backward"):
        Connection(groups)(model)


def test_a_ticket_of_one_layer_leaves_the_others():
    model = build_model(VGGSettings(widths=(4, "M", 6)), (1, 8, 8), 10, 0)
    found = covered(model, torch.zeros(2, 1, 8, 8), "coupled")
    name, *others = found.widths
    ticket = found.ticket(name, torch.tensor([True, False, True, False]), 0.5, 3, "fp32")
    assert isinstance(ticket, Ticket) and ticket.widths == {name: 2} | {other: found.widths[other] for other in others}
