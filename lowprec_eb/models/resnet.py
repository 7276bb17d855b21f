"""Residual networks as torchvision lays them out."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lowprec_eb.models.checks import check_gamma, check_name, check_width
from lowprec_eb.one_of import tag

Depth = Literal[18, 34, 50, 101, 152]
Stem = Literal["imagenet", "small"]
_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_STEMS = ("imagenet", "small")


@dataclass(frozen=True)
class ResNetSettings:
    """A residual network (He et al., CVPR 2016) as torchvision builds it: bottlenecks stride in their 3x3 convolution.

    depth: 18 and 34 have basic blocks, 50, 101 and 152 bottlenecks.
    stem: `imagenet` is a 7x7 convolution and a max pooling, both of stride 2; `small` a 3x3 convolution of stride 1 and
    no pooling, for images such as CIFAR's.
    width: channels of the stem and of the first stage's 3x3 convolutions; each further stage has twice as many.
    gamma_init: initial scale of every BatchNorm, see :class:`lowprec_eb.models.VGGSettings`; torchvision's is 1.
    """

    name: Literal["resnet"] = tag("resnet")
    depth: Depth = 18
    stem: Stem = "imagenet"
    width: int = 64
    gamma_init: float = 0.5

    def __post_init__(self) -> None:
        check_name(self.name, "resnet")
        check_width(self.width)
        check_gamma(self.gamma_init)
        if self.depth not in _BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, _BLOCKS))}, got {self.depth}")
        if self.stem not in _STEMS:
            raise ValueError(f"stem must be 'imagenet' or 'small', got {self.stem!r}")

    def module(self, input_shape: tuple[int, int, int], classes: int) -> "ResNet":
        """The model for images of `input_shape` (C, H, W)."""
        block = BasicBlock if self.depth < 50 else Bottleneck
        return ResNet(block, _BLOCKS[self.depth], self.stem, self.width, input_shape[0], classes)


def _shortcut(channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, ReLU between them and behind the sum."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, width, H / stride, W / stride)."""
        inner: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x_nchw)))))
        total: Tensor = self.relu(inner + (x_nchw if self.downsample is None else self.downsample(x_nchw)))
        return total


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions with BatchNorm, ReLU between them and behind the sum."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(channels, 4 * width, stride)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, 4 width, H / stride, W / stride)."""
        inner: Tensor = self.relu(self.bn1(self.conv1(x_nchw)))
        inner = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(inner)))))
        total: Tensor = self.relu(inner + (x_nchw if self.downsample is None else self.downsample(x_nchw)))
        return total


class ResNet(nn.Module):
    """Names as in torchvision: `conv1`, `bn1`, `maxpool`, `layer1` to `layer4`, `avgpool`, `fc`.

    A state_dict of torchvision's model of the same depth fits one of width 64 with the `imagenet` stem, and back.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, ...],
        stem: Stem,
        width: int,
        in_channels: int,
        classes: int,
    ) -> None:
        super().__init__()
        small = stem == "small"
        self.conv1 = nn.Conv2d(in_channels, width, 3 if small else 7, 1 if small else 2, 1 if small else 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, padding=1)
        out = width * block.expansion
        self.layer1 = _stage(block, blocks[0], width, width, 1)
        self.layer2 = _stage(block, blocks[1], out, 2 * width, 2)
        self.layer3 = _stage(block, blocks[2], 2 * out, 4 * width, 2)
        self.layer4 = _stage(block, blocks[3], 4 * out, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * out, classes)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        stream = self.maxpool(self.relu(self.bn1(self.conv1(x_nchw))))
        stream = self.layer4(self.layer3(self.layer2(self.layer1(stream))))
        features: Tensor = self.avgpool(stream)  # (N, channels, 1, 1)
        logits: Tensor = self.fc(features.flatten(1))
        return logits


def _stage(
    block: type[BasicBlock] | type[Bottleneck], blocks: int, channels: int, width: int, stride: int
) -> nn.Sequential:
    rest = (block(width * block.expansion, width, 1) for _ in range(blocks - 1))
    return nn.Sequential(block(channels, width, stride), *rest)
