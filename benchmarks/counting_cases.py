"""The models that `counting.py` counts, each with its MACs by hand: formulas of shapes, of no counter's making."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

FORWARD, BACKWARD = "forward", "backward"
BATCH = 2


@dataclass(frozen=True)
class Case:
    """A model, its input and the MACs of its forward or its backward pass.

    build: the model in the mode in which it is counted; gradients flow where `requires_grad` says.
    """

    name: str
    what: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    macs: int


# ---- hand counts -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conv:
    """A convolution of `groups` groups with a square kernel that writes size x size positions."""

    inside: int
    out: int
    size: int
    kernel: int = 3
    groups: int = 1

    @property
    def macs(self) -> int:
        return BATCH * self.size**2 * self.out * self.inside // self.groups * self.kernel**2


def linear(rows: int, inside: int, out: int) -> int:
    return rows * inside * out


def forward(layers: Sequence[Conv]) -> int:
    return sum(layer.macs for layer in layers)


def backward(layers: Sequence[Conv], head: int) -> int:
    """Two products a layer, but one for the first: nothing trains before it."""
    return 2 * (forward(layers) + head) - layers[0].macs


def attention_block(tokens: int, dim: int) -> int:
    """Four projections, scores, their product with the values, and an MLP four times as wide."""
    return 4 * linear(tokens, dim, dim) + 2 * linear(tokens, dim, tokens) + 2 * linear(tokens, dim, 4 * dim)


# ---- models ------------------------------------------------------------------------------------------------------

PLAIN = (Conv(3, 32, 32), Conv(32, 64, 16), Conv(64, 64, 16))
PLAIN_HEAD = linear(BATCH, 64, 10)
GROUPED = (Conv(3, 32, 32), Conv(32, 64, 32, groups=16), Conv(64, 64, 32, groups=64), Conv(64, 64, 32, kernel=1))
GROUPED_HEAD = linear(BATCH, 64, 10)
# Sandler et al. 2018, table 2, and the size of each block's input: expansion, channels, repeats, stride.
INVERTED_RESIDUALS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2))
CORA_NODES, CORA_LINKS, CORA_FEATURES = 2708, 5278, 1433
GCN_WIDTH, GCN_CLASSES = 16, 7


def _conv_net(layers: Sequence[Conv], strides: Sequence[int]) -> nn.Sequential:
    net: list[nn.Module] = []
    for layer, stride in zip(layers, strides, strict=True):
        kernel = layer.kernel
        net.append(nn.Conv2d(layer.inside, layer.out, kernel, stride, padding=kernel // 2, groups=layer.groups))
        net.append(nn.ReLU())
    return nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(layers[-1].out, 10))


def plain() -> nn.Sequential:
    return _conv_net(PLAIN, (1, 2, 1))


def grouped() -> nn.Sequential:
    return _conv_net(GROUPED, (1, 1, 1, 1))


def frozen_prefix() -> nn.Sequential:
    """Only the last convolution and the classifier train."""
    net = plain()
    net[:4].requires_grad_(False)
    return net


def linear_probe() -> nn.Sequential:
    net = plain()
    net[:-1].requires_grad_(False)
    return net


class Checkpointed(nn.Module):
    """The plain net; its convolutions are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x_nchw: Tensor) -> Tensor:
        features = checkpoint(self.net[:-1], x_nchw, use_reentrant=False)
        logits: Tensor = self.net[-1](features)
        return logits


def transposed() -> nn.Sequential:
    """The end of a DCGAN generator (Radford et al. 2016): 8x8 to 32x32."""
    return nn.Sequential(nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, 2, 1))


class LSTM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(128, 256, num_layers=2, batch_first=True)

    def forward(self, x_ntd: Tensor) -> Tensor:
        hidden: Tensor = self.lstm(x_ntd)[0]
        return hidden


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(256, 8, batch_first=True)

    def forward(self, x_ntd: Tensor) -> Tensor:
        mixed: Tensor = self.attention(x_ntd, x_ntd, x_ntd, need_weights=False)[0]
        return mixed


class Product(nn.Module):
    """Rows times a parameter of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1000, 1000))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class MatrixVector(Product):
    """A parameter of the module's own times a vector."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight @ x


class GCN(nn.Module):
    """Kipf and Welling 2017, equation 9, on a random graph of Cora's size (links both ways, and to oneself)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(CORA_FEATURES, GCN_WIDTH, bias=False)
        self.second = nn.Linear(GCN_WIDTH, GCN_CLASSES, bias=False)
        self.register_buffer("adjacency", _cora_sized_adjacency())

    def forward(self, x: Tensor) -> Tensor:
        hidden = (self.adjacency @ self.first(x)).relu()
        logits: Tensor = self.adjacency @ self.second(hidden)
        return logits


def _cora_sized_adjacency() -> Tensor:
    pairs = torch.triu_indices(CORA_NODES, CORA_NODES, 1)
    chosen = torch.randperm(pairs.shape[1], generator=torch.Generator().manual_seed(0))[:CORA_LINKS]
    links, own = pairs[:, chosen], torch.arange(CORA_NODES).repeat(2, 1)
    places = torch.cat([links, links.flip(0), own], 1)
    return torch.sparse_coo_tensor(places, torch.ones(places.shape[1]), (CORA_NODES,) * 2).coalesce()


@cache
def torchvision_models() -> Any:
    """torchvision's models. Its usual wheel, built for CUDA, fails to import beside a CPU torch for want of schemas."""
    if torch.version.cuda is None and "+cpu" not in version("torchvision"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
    return import_module("torchvision.models")


_kept: list[Any] = []  # a library's definitions go with it


def mobilenet_v2_macs() -> int:
    """Sandler et al. 2018, tables 1 and 2, at 224 x 224; a block whose expansion is 1 has no first convolution."""
    layers, channels, size = [Conv(3, 32, 112)], 32, 112
    for expansion, out, repeats, first_stride in (*INVERTED_RESIDUALS, (6, 320, 1, 1)):
        for repeat in range(repeats):
            wide, before = expansion * channels, size
            size //= 1 if repeat else first_stride
            layers += [Conv(channels, wide, before, kernel=1)] * (expansion > 1)
            layers += [Conv(wide, wide, size, groups=wide), Conv(wide, out, size, kernel=1)]
            channels = out
    return forward([*layers, Conv(320, 1280, 7, kernel=1)]) + linear(BATCH, 1280, 1000)


def vit_macs(depth: int, dim: int) -> int:
    """Dosovitskiy et al. 2021, section 3.1, at 224 x 224 with patches of 16 x 16 and a class token."""
    patches = (224 // 16) ** 2
    each = linear(patches, 3 * 16**2, dim) + depth * attention_block(patches + 1, dim) + linear(1, dim, 1000)
    return BATCH * each


def _gcn_macs() -> int:
    entries = 2 * CORA_LINKS + CORA_NODES
    dense = linear(CORA_NODES, CORA_FEATURES, GCN_WIDTH) + linear(CORA_NODES, GCN_WIDTH, GCN_CLASSES)
    return dense + entries * (GCN_WIDTH + GCN_CLASSES)


# ---- cases -------------------------------------------------------------------------------------------------------


def _random(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(*shape)


_SMALL, _LARGE = _random(BATCH, 3, 32, 32), _random(BATCH, 3, 224, 224)
_LSTM_STEP = 4 * 256 * (128 + 256) + 4 * 256 * (256 + 256)
_LAST = PLAIN[-1].macs

CASES = (
    Case("plain conv net", FORWARD, plain, _SMALL, forward(PLAIN) + PLAIN_HEAD),
    Case("grouped and depthwise", FORWARD, grouped, _SMALL, forward(GROUPED) + GROUPED_HEAD),
    Case("MobileNetV2", FORWARD, lambda: torchvision_models().mobilenet_v2(), _LARGE, mobilenet_v2_macs()),
    Case("transposed conv", FORWARD, transposed, _random(BATCH, 64, 8, 8), BATCH * 16 * (64 * 64 * 32 + 256 * 32 * 3)),
    Case("LSTM", FORWARD, LSTM, _random(BATCH, 50, 128), BATCH * 50 * _LSTM_STEP),
    Case("ViT-B/16", FORWARD, lambda: torchvision_models().vit_b_16(), _LARGE, vit_macs(12, 768)),
    Case(
        *("attention layer, eval", FORWARD, lambda: Attention().eval(), _random(BATCH, 100, 256)),
        BATCH * (4 * linear(100, 256, 256) + 2 * linear(100, 256, 100)),
    ),
    Case("x @ W", FORWARD, Product, _random(BATCH, 1000), BATCH * 1000**2),
    Case("W @ vector", FORWARD, MatrixVector, _random(1000), 1000**2),
    Case("GCN, sparse", FORWARD, GCN, _random(CORA_NODES, CORA_FEATURES), _gcn_macs()),
    Case("plain conv net", BACKWARD, plain, _SMALL, backward(PLAIN, PLAIN_HEAD)),
    Case("grouped and depthwise", BACKWARD, grouped, _SMALL, backward(GROUPED, GROUPED_HEAD)),
    Case("frozen prefix", BACKWARD, frozen_prefix, _SMALL, _LAST + 2 * PLAIN_HEAD),
    Case("linear probe", BACKWARD, linear_probe, _SMALL, PLAIN_HEAD),
    Case("checkpointed", BACKWARD, Checkpointed, _SMALL, backward(PLAIN, PLAIN_HEAD) + forward(PLAIN)),
)


# ---- for time and memory -----------------------------------------------------------------------------------------


class LlamaBlock(nn.Module):
    """Touvron et al. 2023, section 2.2: normalised input, a gated MLP; rotary positions have no matrix product."""

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x_ntd: Tensor) -> Tensor:
        inner = self.norm1(x_ntd)
        query, key, value = (
            part(inner).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x_ntd = x_ntd + self.out(mixed.transpose(1, 2).flatten(-2))
        inner = self.norm2(x_ntd)
        mlp: Tensor = self.down(nn.functional.silu(self.gate(inner)) * self.up(inner))
        return x_ntd + mlp


LLAMA_DEPTH, LLAMA_DIM, LLAMA_HIDDEN, LLAMA_WORDS, LLAMA_CONTEXT = 32, 4096, 11008, 32000, 2048


def llama_7b() -> nn.Module:
    """6.7e9 parameters on the meta device."""
    with torch.device("meta"):
        blocks = (LlamaBlock(LLAMA_DIM, 32, LLAMA_HIDDEN) for _ in range(LLAMA_DEPTH))
        head = (nn.RMSNorm(LLAMA_DIM), nn.Linear(LLAMA_DIM, LLAMA_WORDS, bias=False))
        return nn.Sequential(nn.Embedding(LLAMA_WORDS, LLAMA_DIM), *blocks, *head)


def llama_macs() -> int:
    """Forward, one sequence, attention counted in full."""
    weights = 4 * LLAMA_DIM**2 + 3 * LLAMA_DIM * LLAMA_HIDDEN
    block = LLAMA_CONTEXT * weights + 2 * math.prod((LLAMA_CONTEXT, LLAMA_DIM, LLAMA_CONTEXT))
    return LLAMA_DEPTH * block + LLAMA_CONTEXT * LLAMA_DIM * LLAMA_WORDS
