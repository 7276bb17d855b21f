"""Every kind of layer that lower() knows, small, with an input: what the tests of lowering share."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class HandWrittenConv1D(nn.Module):
    """Hugging Face's Conv1D: a linear layer by addmm, its weight (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.3)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], -1)


class Masked(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return F.linear(x, self.weight * (self.weight.abs() > 0.1), self.bias).relu()


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, 5) * 0.3)

    def forward(self, x):
        return torch.einsum("nhd,hdo->nho", x, self.weight)


class MatrixFirst(nn.Module):
    """The weight is the first factor, as in state-space and graph layers."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Parameter(torch.randn(5, 6) * 0.3)

    def forward(self, x):
        return self.mix @ x


class TransposedWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 6) * 0.3)

    def forward(self, x):
        return torch.matmul(x, self.weight.t())


class SelfAttention(nn.Module):
    """nn.MultiheadAttention with one input, its output alone."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def _weight_norm():
    return parametrizations.weight_norm(nn.Linear(6, 5))


CASES = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (4, 6)),
    "linear on tokens": (lambda: nn.Linear(6, 5), (2, 3, 6)),
    "linear on one vector": (lambda: nn.Linear(6, 5), (6,)),
    "subclass": (lambda: Masked(6, 5), (4, 6)),
    "weight_norm": (_weight_norm, (4, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (2, 4, 5, 7)),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding=2), (2, 4, 5, 7)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (2, 4, 5, 7)),
    "conv2d same": (lambda: nn.Conv2d(4, 6, (2, 3), padding="same"), (2, 4, 5, 7)),
    "conv2d reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 7)),
    "conv2d without batch": (lambda: nn.Conv2d(4, 6, 3), (4, 5, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 3, 5, 4)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 5, 3)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 3, 2, dilation=2), (1, 2, 3, 3, 2)),
    "attention": (SelfAttention, (2, 5, 8)),
    "attention without bias": (lambda: SelfAttention(bias=False), (2, 5, 8)),
    "addmm": (lambda: HandWrittenConv1D(6, 5), (2, 3, 6)),
    "einsum": (Einsum, (2, 3, 4)),
    "weight first": (MatrixFirst, (2, 6, 3)),
    "weight transposed": (TransposedWeight, (2, 3, 6)),
}


def build(name, seed=0):
    """The layer of a case inside a model, and an input that requires a gradient."""
    make, shape = CASES[name]
    torch.manual_seed(seed)
    model = nn.Sequential(make())
    return model, torch.randn(shape, requires_grad=True)


def results(model, x):
    """Output, gradient w.r.t. the input and to every parameter, of a fixed error."""
    model.zero_grad()
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    y = model(x)
    error = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    y.backward(error.to(y))
    return {"output": y.detach(), "input": x.grad} | {n: p.grad.clone() for n, p in model.named_parameters()}
