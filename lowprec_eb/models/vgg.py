"""VGG with batch normalisation, for small images."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from lowprec_eb.models.checks import check_gamma, check_name

Width = int | Literal["M"]


@dataclass(frozen=True)
class VGGSettings:
    """A VGG by its layers: a number is a convolution with that many channels, "M" a 2 x 2 max pooling.

    VGG16 of the CIFAR experiments of network slimming and early-bird tickets has 13 convolutions: widths 64, 64, M,
    128, 128, M, 256, 256, 256, M, 512, 512, 512, M, 512, 512, 512.

    gamma_init: initial scale of every BatchNorm. 0.5 as in the public code of network slimming (Liu et al., ICCV 2017)
    and early-bird tickets (You et al., ICLR 2020) for CIFAR: channels are ranked by |gamma|, and 0.5 leaves them room
    to move both ways.
    """

    # A plain default, which a digest leaves out: the first model keeps the hashes it had before there were others.
    name: Literal["vgg"] = "vgg"
    widths: tuple[Width, ...] = (16, 16, "M", 32, 32, "M", 64)
    gamma_init: float = 0.5

    def __post_init__(self) -> None:
        check_name(self.name, "vgg")
        check_gamma(self.gamma_init)
        for index, width in enumerate(self.widths):
            _check_width(index, width)
        if not self.widths or self.widths[0] == "M":
            raise ValueError(f"widths must start with a convolution (a number of channels), got {self.widths!r}")

    def module(self, input_shape: tuple[int, int, int], classes: int) -> "VGG":
        """The model for images of `input_shape` (C, H, W).

        Raises ValueError if the poolings shrink the image to nothing.
        """
        _check_poolings(self.widths, input_shape)
        return VGG(self.widths, input_shape[0], classes)


class VGG(nn.Module):
    """VGG (Simonyan & Zisserman, ICLR 2015) with batch normalisation, for small images.

    `features`: 3x3 convolutions (padding 1, no bias: BatchNorm has one) each with BatchNorm and ReLU, and 2x2 max
    poolings; then the average over all positions and one linear `classifier`, as in the CIFAR version of the
    early-bird code, in place of the paper's three fully connected layers.
    """

    features: nn.Sequential
    classifier: nn.Linear

    def __init__(self, widths: tuple[Width, ...], in_channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x_nchw: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes)."""
        features: Tensor = self.pool(self.features(x_nchw))  # (N, channels, 1, 1)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def _check_width(index: int, width: object) -> None:
    if width == "M":
        return
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ValueError(f"widths[{index}] must be 'M' or a number of channels of 1 or more, got {width!r}")


def _check_poolings(widths: tuple[Width, ...], input_shape: tuple[int, int, int]) -> None:
    height, width = input_shape[1:]
    poolings = min(height, width).bit_length() - 1  # each halves, rounding down; a side of 1 cannot be pooled
    if widths.count("M") > poolings:
        raise ValueError(
            f"widths has {widths.count('M')} poolings ('M'), but a {height} x {width} image allows at most {poolings}; "
            "take some out"
        )
