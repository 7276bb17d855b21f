"""Small reference models. The library works on any `nn.Module`; these are for examples, tests and comparisons."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Width = int | Literal["M"]


@dataclass(frozen=True)
class ModelSettings:
    """A VGG by its layers: a number is a convolution with that many channels, "M" a 2 x 2 max pooling.

    gamma_init: initial scale of every BatchNorm. 0.5 as in the public code of network slimming (Liu et al., ICCV 2017)
    and early-bird tickets (You et al., ICLR 2020) for CIFAR: channels are ranked by |gamma|, and 0.5 leaves them room
    to move both ways.
    """

    name: Literal["vgg"] = "vgg"
    widths: tuple[Width, ...] = (16, 16, "M", 32, 32, "M", 64)
    gamma_init: float = 0.5

    def __post_init__(self) -> None:
        if self.name != "vgg":
            raise ValueError(f"name must be 'vgg', got {self.name!r}")
        if not (math.isfinite(self.gamma_init) and self.gamma_init > 0):
            raise ValueError(f"gamma_init must be a finite number above 0, got {self.gamma_init!r}")
        for index, width in enumerate(self.widths):
            _check_width(index, width)
        if not self.widths or self.widths[0] == "M":
            raise ValueError(f"widths must start with a convolution (a number of channels), got {self.widths!r}")


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


def build_model(settings: ModelSettings, input_shape: tuple[int, int, int], classes: int, seed: int) -> VGG:
    """Build and initialise a model on the CPU for images of `input_shape` (C, H, W).

    The parameters are a pure function of `seed`; the global random state stays as it was. Kaiming initialisation
    (He et al., ICCV 2015) of convolutions (by fan out) and classifier, biases 0, BatchNorm scales `gamma_init`.
    Raises ValueError if the poolings shrink the image to nothing.
    """
    _check_poolings(settings.widths, input_shape)
    # The layers' own initialisation draws from the global CPU generator; all of it is overwritten below.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = VGG(settings.widths, input_shape[0], classes)
    _initialise(model, settings.gamma_init, torch.Generator().manual_seed(seed))
    return model


def _initialise(model: VGG, gamma_init: float, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, gamma_init)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
            nn.init.zeros_(module.bias)


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
