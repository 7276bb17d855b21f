"""Small models as other people write them, for tests that must hold on any architecture.

Each has under 200,000 parameters and takes milliseconds. Layouts and names follow the public code that a class names;
widths are small. ``MODELS[name]`` is (factory, example input); :func:`build` also makes it look trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import zoo_attention as attention
import zoo_convolution as convolution
import zoo_odd as odd
from torch import Tensor, nn

from lowprec_eb.models import PreResNetSettings, ResNetSettings
from lowprec_eb.tickets import ChannelGroup, Ticket

CLASSES, WORDS = 5, 37
NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.LayerNorm,
    nn.RMSNorm,
)


def _images(size: int, channels: int = 3, batch: int = 4) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(size))


def _tokens(length: int, batch: int = 3) -> Tensor:
    return torch.randint(WORDS, (batch, length), generator=torch.Generator().manual_seed(length))


def _own(settings: PreResNetSettings | ResNetSettings) -> nn.Module:
    return settings.module((3, 32, 32), CLASSES)


_RESNET18 = ResNetSettings(depth=18, stem="small", width=8)
_RESNET50 = ResNetSettings(depth=50, stem="imagenet", width=4)
_PRERESNET20 = PreResNetSettings(depth=20, width=8)
_PRERESNET29 = PreResNetSettings(depth=29, block="bottleneck", width=8)

MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "vgg16_bn": (partial(convolution.VGG16, CLASSES), _images(32)),
    "lenet": (partial(convolution.LeNet, CLASSES), _images(32)),
    "resnet18": (partial(_own, _RESNET18), _images(16)),
    "resnet50": (partial(_own, _RESNET50), _images(64)),
    "preresnet20": (partial(_own, _PRERESNET20), _images(16)),
    "preresnet29_bottleneck": (partial(_own, _PRERESNET29), _images(16)),
    "mobilenet_v2": (partial(convolution.MobileNetV2, CLASSES), _images(32)),
    "mobilenet_v3": (partial(convolution.MobileNetV3, CLASSES), _images(32)),
    "densenet": (partial(convolution.DenseNet, CLASSES), _images(32)),
    "resnext": (partial(convolution.ResNeXt, CLASSES), _images(16)),
    "unet": (partial(convolution.UNet, CLASSES), _images(16)),
    "vit_multihead": (partial(attention.VisionTransformer, CLASSES), _images(16)),
    "vit_by_hand": (partial(attention.ViTByHand, CLASSES), _images(16)),
    "decoder_tied": (partial(attention.TiedDecoder, WORDS), _tokens(12)),
    "decoder_grouped_query": (partial(attention.GroupedQueryDecoder, WORDS), _tokens(12)),
    "shared_layer": (partial(odd.SharedLayer, CLASSES), _images(16)),
    "two_heads": (partial(odd.TwoHeads, CLASSES), _images(16)),
    "conv1d": (partial(odd.Conv1dNet, CLASSES), torch.randn(4, 3, 40, generator=torch.Generator().manual_seed(1))),
    "sigmoid": (partial(odd.SigmoidNet, CLASSES), _images(16)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """The model, in training mode, and its example input.

    Scales, shifts and running statistics of its normalisations are drawn too: as a model comes, they are all equal, and
    a channel taken for another would not show. The global random state stays as it was.
    """
    factory, example = MODELS[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = factory()
        for module in model.modules():
            if isinstance(module, NORMS):
                _look_trained(module)
    return model.train(), example.clone()


def _look_trained(norm: nn.Module) -> None:
    norm.weight.uniform_(0.2, 1.5)
    if getattr(norm, "bias", None) is not None:
        norm.bias.normal_(0, 0.3)
    if getattr(norm, "running_mean", None) is not None:
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)


def output_loss(output: Tensor | dict[str, Tensor]) -> Tensor:
    """A scalar of everything that a model gives, to run backward from."""
    tensors = output.values() if isinstance(output, dict) else (output,)
    return sum((tensor.square().mean() for tensor in tensors), torch.zeros(()))


def random_ticket(groups: Sequence[ChannelGroup], coupled: bool, share: float = 0.5, seed: int = 0) -> Ticket:
    """Drops about ``share`` of each group's channels, never all."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for group in groups:
        masks[group.name] = torch.rand(group.channels, generator=generator) >= share
        masks[group.name][int(torch.randint(group.channels, (1,), generator=generator))] = True
    return Ticket(masks, share, 0, groups=tuple(groups) if coupled else None)
