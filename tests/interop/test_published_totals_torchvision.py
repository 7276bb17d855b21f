"""Totals that torchvision publishes for its models, and papers for theirs, against counts of the same models.

Sources:
    torchvision: `weights.meta["_ops"]`, multiply-accumulates of one example in evaluation in units of 1e9, rounded to
        three digits behind the point (its documentation calls them GFLOPS).
    He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.1 (VGG-19) and table 1.
    Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks", table 1.
    Sandler et al. 2018, "MobileNetV2", table 4. Tan and Le 2019, "EfficientNet", table 2.
    Liu et al. 2021, "Swin Transformer", table 1. Liu et al. 2022, "A ConvNet for the 2020s", table 1.
All count multiply-adds as one.
"""

import pytest
import torch
from model_cases import torchvision
from torch import nn

import energy_models as em

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]
LARGE_REGNETS = ("16gf", "32gf", "128gf")  # they compute on construction, so not on the meta device: gigabytes
UNROUNDED = 0.5e-3  # of 1e9


def published():
    """Each model with each size of image that torchvision publishes a number for."""
    try:
        models = torchvision().models
    except pytest.skip.Exception:
        return []
    found = {}
    for kind in (models, models.video, models.segmentation):
        for name in models.list_models(module=kind):
            if not name.startswith("regnet") or not name.endswith(LARGE_REGNETS):
                for weights in models.get_model_weights(name):
                    found[name, sizes_of(kind is models.video, weights)] = weights.meta["_ops"]
    return [pytest.param(*key, giga, id=f"{key[0]}-{key[1][-1]}") for key, giga in found.items()]


def sizes_of(video, weights):
    """(channels, ...) of the example that the number is for."""
    settings = weights.transforms.keywords
    size = settings.get("crop_size") or settings["resize_size"]
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return (3, 16, height, width) if video else (3, height, width)


class Main(nn.Module):
    """Gives a segmentation model's results as a tensor; the auxiliary one is computed all the same."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        found = self.model(x)
        return found["out"] if isinstance(found, dict) else found


def built(name, sizes):
    models = torchvision().models
    options = {}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False}
    elif name.startswith("vit"):
        options = {"image_size": sizes[-1]}
    elif name.startswith(("deeplabv3", "fcn")):
        options = {"weights_backbone": None, "aux_loss": True}
    elif name.startswith("lraspp"):
        options = {"weights_backbone": None}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return Main(models.get_model(name, **options))


def forward_macs(name, sizes):
    return em.count(built(name, sizes), torch.zeros(1, *sizes, device="meta"), training=False).total_macs


@pytest.mark.parametrize(("name", "sizes", "giga"), published())
def test_torchvision(name, sizes, giga):
    assert forward_macs(name, sizes) / 1e9 == pytest.approx(giga, abs=UNROUNDED)


PAPERS = {  # as printed, in 1e9
    "vgg19": "19.6",
    "resnet18": "1.8",
    "resnext50_32x4d": "4.2",
    "mobilenet_v2": "0.30",
    "efficientnet_b0": "0.39",
    "swin_t": "4.5",
    "swin_s": "8.7",
    "swin_b": "15.4",
    "convnext_tiny": "4.5",
    "convnext_small": "8.7",
    "convnext_base": "15.4",
    "convnext_large": "34.4",
}


@pytest.mark.parametrize("name", PAPERS)
def test_papers(name):
    """To the last digit printed; test_published_totals.py has the ResNets as He et al. built them."""
    digits = len(PAPERS[name].partition(".")[2])
    assert f"{forward_macs(name, (3, 224, 224)) / 1e9:.{digits}f}" == PAPERS[name]
