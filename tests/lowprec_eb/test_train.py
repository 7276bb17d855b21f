"""The training loop, its schedule and the gamma penalty."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.tasks import TaskSettings, make_task
from lowprec_eb.train import Callback, SparsityPenalty, TrainSettings, train


@pytest.fixture
def task():
    return make_task(TaskSettings(max_train=100, max_test=40, batch_size=32), seed=0)


def model(seed=0):
    return build_model(VGGSettings(widths=(4, "M", 6)), (1, 8, 8), 10, seed)


class Recorder(Callback):
    def __init__(self, stop_at=math.inf):
        self.reports, self.steps, self.stop_at = [], 0, stop_at

    def before_step(self):
        self.steps += 1

    def after_epoch(self, report):
        self.reports.append(report)
        return report.epoch >= self.stop_at


def run(net, task, epochs=range(3), **options):
    recorder = Recorder(options.pop("stop_at", math.inf))
    settings = TrainSettings(epochs=3, learning_rate=0.05)
    train(net, settings.optimizer(net), task, epochs, settings, seed=0, callbacks=[recorder], **options)
    return recorder


def test_it_is_the_bare_pytorch_loop(task):
    net, plain = model(), model()
    run(net, task)
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    for epoch in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * 0.1 ** sum(epoch >= e for e in (2, 2))
        for batch in task.batches(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(batch.inputs), batch.targets).backward()
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))


def test_loss_falls_and_reports_come_once_an_epoch(task):
    recorder = run(model(), task)
    assert [r.epoch for r in recorder.reports] == [0, 1, 2]
    assert all(a.loss > b.loss for a, b in pairwise(recorder.reports))
    assert recorder.steps == 3 * sum(task.batch_sizes("train").values())


def test_a_callback_stops_the_training(task):
    assert [r.epoch for r in run(model(), task, stop_at=1).reports] == [0, 1]


def test_the_schedule_depends_on_the_epoch_alone():
    settings = TrainSettings(epochs=160, learning_rate=0.1)
    assert [settings.learning_rate_at(e) for e in (0, 79, 80, 119, 120, 159)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    )


def test_the_gamma_penalty_adds_the_sign():
    net = model()
    loss = net(torch.randn(4, 1, 8, 8)).square().sum()
    loss.backward()
    before = [m.weight.grad.clone() for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        net.features[1].weight[0] = -0.5
    SparsityPenalty(net, 0.25).before_step()
    after = [m.weight.grad for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert torch.allclose(after[0] - before[0], torch.tensor([-0.25, 0.25, 0.25, 0.25]))
    assert torch.allclose(after[1] - before[1], torch.full((6,), 0.25))


def test_divergence_is_an_error_that_says_what_to_do(task):
    net = model()
    with torch.no_grad():
        net.classifier.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"training diverged: the mean loss of epoch 0 is nan; lower training"):
        run(net, task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"milestones": (0.7, 0.5)}, "milestones must be rising"),
        ({"decay": 0.0}, "decay must be in"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more"),
    ],
)
def test_impossible_settings_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        TrainSettings(**options)
