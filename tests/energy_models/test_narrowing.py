"""Counts of a narrower network from those of the wide one, against a network that is really cut."""

import pytest
import torch
from torch import nn

import energy_models as em
import lowprec_eb as lp
from energy_models.narrowing import narrowed
from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.tickets import Shrinking, batch_norms, keep_uniform

PROFILE = em.load_profile("45nm")


def step(model, images, recipe):
    lp.lower(model, recipe)
    optimizer = lp.LowPrecisionOptimizer(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), recipe)
    counts = em.count(model, images) + em.count_optimizer(optimizer, model=model)
    lp.raise_(model)
    return counts


def cut(model, share, images):
    widths = {name: norm.num_features for name, norm in batch_norms(model).items()}
    masks = keep_uniform(widths, 1 - share)
    shrinking = Shrinking(model, images[:2], groups=None)
    return shrinking.smaller(masks, shrinking.removed(masks))


@pytest.mark.parametrize("share", [0.3, 0.55, 0.7])
@pytest.mark.parametrize("recipe", ["fp32", "bfp8", "swalp8", "mxfp8"])
def test_a_vgg_has_the_same_gemms_and_nearly_the_same_energy(recipe, share):
    images = torch.zeros(4, 3, 16, 16, device="meta")
    widths = VGGSettings(widths=(64, 64, "M", 128, 128, "M", 256, 256))
    model = build_model(widths, (3, 16, 16), 10, 0).to("meta")  # no values, so no known zeros
    found, real = narrowed(step(model, images, recipe), share), step(cut(model, share, images), images, recipe)
    assert found.gemms == real.gemms
    a, b = em.estimate(found, PROFILE), em.estimate(real, PROFILE)
    for end in ("low_j", "nominal_j", "high_j"):
        assert getattr(a, end) == pytest.approx(getattr(b, end), rel=0.005)
    assert a.other_j.nominal == pytest.approx(b.other_j.nominal, rel=0.01)  # rounded channels, layer by layer


def test_a_residual_network_differs_by_rounding():
    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.a, self.b = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
            self.shortcut, self.norm = nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)

        def forward(self, x):
            return (self.b(self.a(x)) + self.norm(self.shortcut(x))).relu()

    stem = (nn.Conv2d(3, 30, 3, padding=1, bias=False), nn.BatchNorm2d(30), nn.ReLU())
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(70, 10))
    model, images = nn.Sequential(*stem, Block(30, 50), Block(50, 70), *tail), torch.zeros(2, 3, 8, 8)
    found, real = narrowed(em.count(model, images), 0.63), em.count(cut(model, 0.63, images), images)
    assert found.macs != real.macs
    for gemm, macs in found.macs.items():
        assert macs == pytest.approx(real.macs[gemm], rel=0.01)


def test_depthwise_convolutions_keep_whole_groups():
    def network(width):
        convolutions = (
            nn.Conv2d(3, width, 1),
            nn.Conv2d(width, width, 3, groups=width),
            nn.Conv2d(width, 2 * width, 1),
        )
        return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 5))

    images = torch.zeros(2, 3, 8, 8)
    assert narrowed(em.count(network(20), images), 0.5).gemms == em.count(network(10), images).gemms


def test_all_channels_change_nothing():
    model = build_model(VGGSettings(widths=(8, "M", 16)), (3, 8, 8), 10, 0)
    counts = step(model, torch.zeros(2, 3, 8, 8), "bfp8")
    assert narrowed(counts, 1.0) == counts


@pytest.mark.parametrize(
    ("model", "inputs", "match"),
    [
        (nn.Linear(4, 4), torch.zeros(2, 4), "no convolution"),
        (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 4, 3)), torch.zeros(2, 4, 8, 8), "groups"),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(2, 4, 8), "attention"),
    ],
)
def test_what_has_no_single_channels_is_refused(model, inputs, match):
    with pytest.raises(ValueError, match=match):
        narrowed(em.count(model, inputs), 0.5)


def test_the_share_is_checked():
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        narrowed(em.OpCounts(), 0.0)
