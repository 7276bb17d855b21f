"""Small reference models. The library works on any `nn.Module`; these are for examples, tests and comparisons."""

from lowprec_eb.models.build import ModelSettings, build_model
from lowprec_eb.models.preresnet import PreResNet, PreResNetSettings
from lowprec_eb.models.resnet import ResNet, ResNetSettings
from lowprec_eb.models.vgg import VGG, VGGSettings

__all__ = [
    "VGG",
    "ModelSettings",
    "PreResNet",
    "PreResNetSettings",
    "ResNet",
    "ResNetSettings",
    "VGGSettings",
    "build_model",
]
