"""From settings to an initialised model."""

from typing import Annotated, Protocol, TypeVar

import torch
from torch import nn

from lowprec_eb.models.preresnet import PreResNetSettings
from lowprec_eb.models.resnet import ResNetSettings
from lowprec_eb.models.vgg import VGGSettings
from lowprec_eb.one_of import OneOf

M = TypeVar("M", bound=nn.Module, covariant=True)
ModelSettings = Annotated[VGGSettings | PreResNetSettings | ResNetSettings, OneOf("name", default="vgg")]


class Buildable(Protocol[M]):
    """The settings of a model, this package's or somebody's own."""

    @property
    def gamma_init(self) -> float: ...
    def module(self, input_shape: tuple[int, int, int], classes: int) -> M: ...


def build_model(settings: Buildable[M], input_shape: tuple[int, int, int], classes: int, seed: int) -> M:
    """Build and initialise a model on the CPU for images of `input_shape` (C, H, W).

    The parameters are a pure function of `seed`; the global random state stays as it was. Kaiming initialisation
    (He et al., ICCV 2015) of convolutions (by fan out) and classifier, biases 0, BatchNorm scales `gamma_init`.
    Raises ValueError if the model cannot read such images.
    """
    # The layers' own initialisation draws from the global CPU generator; all of it is overwritten below.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        model = settings.module(input_shape, classes)
    _initialise(model, settings.gamma_init, torch.Generator().manual_seed(seed))
    return model


def _initialise(model: nn.Module, gamma_init: float, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, gamma_init)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
            nn.init.zeros_(module.bias)
