"""The models whose training step `step_overhead.py` measures, with a batch for each. Plain torch throughout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# ---- residual networks -------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x_nchw: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x_nchw)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x_nchw))


class ResNet(nn.Module):
    """He et al. 2016, "Deep Residual Learning for Image Recognition", section 4; its stem comes from outside."""

    def __init__(self, stem: nn.Module, channels: int, widths: Sequence[int], blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            for block in range(blocks):
                layers.append(BasicBlock(channels, width, 2 if stage and not block else 1))
                channels = width
        self.blocks = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, classes)."""
        features: Tensor = self.blocks(self.stem(x_nchw))
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


def resnet20() -> ResNet:
    """For CIFAR (section 4.2): three stages of three blocks."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return ResNet(stem, 16, (16, 32, 64), 3, 10)


def resnet18() -> ResNet:
    """For ImageNet (section 4.1, table 1)."""
    convolution = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
    stem = nn.Sequential(convolution, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    return ResNet(stem, 64, (64, 128, 256, 512), 2, 1000)


# ---- transformers ------------------------------------------------------------------------------------------------


class TransformerBlock(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and beside a shortcut."""

    def __init__(self, dim: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x_ntd: Tensor) -> Tensor:
        queries, keys, values = self.qkv(self.norm1(x_ntd)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=self.causal)
        x_ntd = x_ntd + self.proj(mixed.transpose(1, 2).flatten(-2))
        mlp: Tensor = self.mlp(self.norm2(x_ntd))
        return x_ntd + mlp


class ViT(nn.Module):
    """Dosovitskiy et al. 2021, in the size that DeiT (Touvron et al. 2021) calls tiny; 4x4 patches of 32x32 pixels."""

    def __init__(self, depth: int, dim: int = 192, heads: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 65, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, causal=False) for _ in range(depth)))
        self.norm, self.classifier = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> logits (N, classes)."""
        patches = self.patches(x_nchw).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], 1) + self.positions
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens)[:, 0]))
        return logits


class GPT(nn.Module):
    """Radford et al. 2019, small; the output layer has weights of its own."""

    def __init__(self, depth: int = 4, dim: int = 256, heads: int = 4, context: int = 128, words: int = 512) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, dim), nn.Parameter(0.02 * torch.randn(context, dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads, causal=True) for _ in range(depth)))
        self.norm, self.classifier = nn.LayerNorm(dim), nn.Linear(dim, words, bias=False)

    def forward(self, words_nt: Tensor) -> Tensor:
        """(N, T) -> logits (N, T, words)."""
        logits: Tensor = self.classifier(self.norm(self.blocks(self.words(words_nt) + self.positions)))
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(*(nn.Linear(784, 1024), nn.ReLU()), *(nn.Linear(1024, 1024), nn.ReLU()), nn.Linear(1024, 10))


# ---- batches -----------------------------------------------------------------------------------------------------


def _images(*shape: int, classes: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    images = torch.randn(batch, *shape, generator=generator)
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    return images, torch.randint(classes, (batch,), generator=generator)


def _words(context: int, words: int, *, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(words, (batch, context + 1), generator=generator)
    return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()


@dataclass(frozen=True)
class Workload:
    """A model and the batch that it is trained on.

    Args:
        example: a batch of that many samples, inputs and targets.
        what: the sizes, for a table's head.
    """

    name: str
    what: str
    batch: int
    build: Callable[[], nn.Module]
    example: Callable[..., tuple[Tensor, Tensor]]
    channels_last: bool = False


_CIFAR = partial(_images, 3, 32, 32, classes=10)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("resnet20", "ResNet-20, 3x32x32, channels_last", 128, resnet20, _CIFAR, channels_last=True),
        Workload("vit", "ViT-tiny, 12 blocks, 4x4 patches of 3x32x32", 64, partial(ViT, depth=12), _CIFAR),
        Workload("mlp", "MLP 784-1024-1024-10", 256, mlp, partial(_images, 784, classes=10)),
        Workload("gpt", "GPT, 4 blocks of 256, context 128, 512 words", 16, GPT, partial(_words, 128, 512)),
        Workload(
            *("resnet18", "ResNet-18, 3x224x224, channels_last", 256),
            *(resnet18, partial(_images, 3, 224, 224, classes=1000)),
            channels_last=True,
        ),
    )
}
