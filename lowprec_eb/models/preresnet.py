"""Residual networks with pre-activation, for small images."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lowprec_eb.models.checks import check_gamma, check_name, check_width
from lowprec_eb.one_of import tag

Block = Literal["basic", "bottleneck"]
_LAYERS = {"basic": 6, "bottleneck": 9}  # of one block in each of the three stages


@dataclass(frozen=True)
class PreResNetSettings:
    """A pre-activation residual network for CIFAR (He et al., ECCV 2016, on identity mappings).

    depth: 6 n + 2 with basic blocks (20, 56, 110), 9 n + 2 with bottlenecks (29, 101, 164), for n blocks in each of
    three stages. PreResNet-101 of the early-bird paper is depth 101, block bottleneck.
    width: channels of the stem and of the first stage's 3x3 convolutions; the two others have 2 and 4 times as many.
    gamma_init: initial scale of every BatchNorm, see :class:`lowprec_eb.models.VGGSettings`.
    """

    name: Literal["preresnet"] = tag("preresnet")
    depth: int = 20
    block: Block = "basic"
    width: int = 16
    gamma_init: float = 0.5

    def __post_init__(self) -> None:
        check_name(self.name, "preresnet")
        check_width(self.width)
        check_gamma(self.gamma_init)
        if self.block not in _LAYERS:
            raise ValueError(f"block must be 'basic' or 'bottleneck', got {self.block!r}")
        _check_depth(self.depth, self.block)

    def module(self, input_shape: tuple[int, int, int], classes: int) -> "PreResNet":
        """The model for images of `input_shape` (C, H, W)."""
        blocks = (self.depth - 2) // _LAYERS[self.block]
        return PreResNet(
            BasicBlock if self.block == "basic" else Bottleneck, blocks, self.width, input_shape[0], classes
        )


def _check_depth(depth: int, block: Block) -> None:
    layers = _LAYERS[block]
    if depth > 2 and depth % layers == 2:
        return
    below = max(1, (depth - 2) // layers)
    fitting = [f"block: {name}" for name, other in _LAYERS.items() if depth > 2 and depth % other == 2]
    raise ValueError(
        f"depth must be {layers} n + 2 with {block} blocks, {layers * below + 2} or {layers * (below + 1) + 2} say, "
        f"got {depth}" + (f"; it fits {fitting[0]}" if fitting else "")
    )


def _shortcut(channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride, bias=False))


class BasicBlock(nn.Module):
    """x + two 3x3 convolutions, each behind its BatchNorm and ReLU; a projection reads x itself."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width, H / stride, W / stride)."""
        inner: Tensor = self.conv1(self.relu(self.bn1(x_nchw)))
        inner = self.conv2(self.relu(self.bn2(inner)))
        return inner + (x_nchw if self.downsample is None else self.downsample(x_nchw))


class Bottleneck(nn.Module):
    """x + 1x1, 3x3 and 1x1 convolutions, each behind its BatchNorm and ReLU; a projection reads x itself."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, 4 * width, stride)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, 4 width, H / stride, W / stride)."""
        inner: Tensor = self.conv1(self.relu(self.bn1(x_nchw)))
        inner = self.conv2(self.relu(self.bn2(inner)))
        inner = self.conv3(self.relu(self.bn3(inner)))
        return inner + (x_nchw if self.downsample is None else self.downsample(x_nchw))


class PreResNet(nn.Module):
    """Stem `conv1`, three stages `layer1` to `layer3`, the last BatchNorm `bn`, ReLU, average over positions, `fc`.

    Layers, names and projections (1x1 convolutions of the raw stream, no BatchNorm) as in the public code of network
    slimming (Liu et al., ICCV 2017) and early-bird tickets (You et al., ICLR 2020), which has the bottlenecks; without
    its channel selection, which is compaction's part here.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], blocks: int, width: int, in_channels: int, classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.layer1 = _stage(block, blocks, width, width, 1)
        self.layer2 = _stage(block, blocks, width * block.expansion, 2 * width, 2)
        self.layer3 = _stage(block, blocks, 2 * width * block.expansion, 4 * width, 2)
        channels = 4 * width * block.expansion
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        stream = self.layer3(self.layer2(self.layer1(self.conv1(x_nchw))))
        features: Tensor = self.avgpool(self.relu(self.bn(stream)))  # (N, channels, 1, 1)
        logits: Tensor = self.fc(features.flatten(1))
        return logits


def _stage(
    block: type[BasicBlock] | type[Bottleneck], blocks: int, channels: int, width: int, stride: int
) -> nn.Sequential:
    rest = (block(width * block.expansion, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(channels, width, stride), *rest)
