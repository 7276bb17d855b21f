"""A training loop as users have them, small nets for it, and a ticket drawn from it in two epochs."""

import torch
import zoo
from torch import nn

import lowprec_eb as lp
from lowprec_eb.models import PreResNetSettings, build_model


class Loop:
    """A training loop as users have them: two steps an epoch, counted."""

    def __init__(self, model, inputs, learning_rate=0.02):
        self.inputs, self.epochs = inputs, 0
        self.optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9)

    def __call__(self, model):
        model.train()
        for _ in range(2):
            self.step(model)
        self.epochs += 1

    def step(self, model):
        self.optimizer.zero_grad()
        zoo.output_loss(model(self.inputs)).backward()
        self.optimizer.step()


def small_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)
    )
    nn.init.uniform_(net[1].weight, 0.2, 1.5)
    return net, torch.randn(6, 1, 8, 8)


def residual_net():
    model = build_model(PreResNetSettings(depth=8, width=8), (3, 16, 16), 5, seed=0)
    return model, torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def draw(model, inputs, loop=None, **settings):
    loop = loop or Loop(model, inputs)
    settings = {"max_epochs": 3, "window": 2, "threshold": 1.0} | settings
    return lp.draw_ticket(model, loop, inputs, **settings)
