"""Counts made from those of another model: the same rows, in the same order, as counting the whole gives."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import energy_models as em
import lowprec_eb as lp
from lowprec_eb import recounting
from lowprec_eb.batch_counts import BatchCounts
from lowprec_eb.models import PreResNetSettings, VGGSettings, build_model
from lowprec_eb.tickets import Shrinking, keep_uniform

IMAGES = (4, 3, 16, 16)
MODELS = {
    "vgg": VGGSettings(widths=(6, 8, "M", 10, 12, "M", 8)),
    "preresnet": PreResNetSettings(depth=29, block="bottleneck", width=4),
}


def narrower(model, ratio):
    """The model with its groups cut one after the other, as ThiNet does."""
    shrinking = Shrinking(model, torch.zeros(2, *IMAGES[1:]), None)
    widths = shrinking.widths
    masks = {name: torch.ones(width, dtype=torch.bool) for name, width in widths.items()}
    for name, mask in keep_uniform(widths, ratio).items():
        masks[name] = mask
        yield shrinking.smaller(masks, shrinking.removed(masks))


def whole(model, images, training):
    def loss(logits):
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))

    return em.count(model, torch.empty(images, device="meta"), training=training, loss=loss)


def counted_modules(monkeypatch):
    """How many modules each call of the counter runs."""
    seen = []

    def counting(model, *args, **kwargs):
        seen.append(sum(1 for _ in model.modules()))
        return em.count(model, *args, **kwargs)

    monkeypatch.setattr(recounting, "count", counting)
    return seen


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "recipe"), [("vgg", "fp32"), ("vgg", "swalp8"), ("preresnet", "bfp8")])
def test_models_cut_step_by_step_have_the_counts_of_the_whole(name, recipe, training, monkeypatch):
    dense, counts = build_model(MODELS[name], IMAGES[1:], 10, 0), BatchCounts()
    models = [dense.to("meta"), *narrower(build_model(MODELS[name], IMAGES[1:], 10, 0), 0.5)]
    seen = counted_modules(monkeypatch)
    for model in models:
        lp.lower(model, recipe)
        assert counts.of(model, IMAGES, training=training) == whole(model, IMAGES, training)
    size = sum(1 for _ in dense.modules())
    if name == "preresnet":  # most blocks are like another one
        assert sum(n == size for n in seen) < len(models) / 3
        assert sum(seen) < size * len(models) / 2


def test_models_that_are_alike_are_counted_once(monkeypatch):
    seen, counts = counted_modules(monkeypatch), BatchCounts()
    models = [build_model(MODELS["vgg"], IMAGES[1:], 10, seed) for seed in (0, 1)]
    first, second = (counts.of(model, IMAGES, training=True) for model in models)
    assert first is second
    assert len(seen) == 1
    lp.lower(models[1], "bfp8")
    assert counts.of(models[1], IMAGES, training=True) != first
    counts.of(models[0], (5, *IMAGES[1:]), training=True)
    assert len(seen) == 3


class Gated(nn.Module):
    """A block whose work outside of itself follows the width inside: the caller reads an attribute."""

    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x):
        return self.b(self.a(x))


class Follows(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.block = Gated(width)
        self.more = nn.Sequential(*(nn.ReLU() for _ in range(9)))

    def forward(self, x):
        logits = self.more(self.block(x)).mean((2, 3))
        for _ in range(self.block.a.out_channels):
            logits = logits * 2
        return logits


def test_what_follows_an_attribute_of_a_part_is_counted_as_a_whole():
    counts = BatchCounts()
    for width in (4, 6, 5):
        model = Follows(width)
        assert counts.of(model, IMAGES, training=True) == whole(model, IMAGES, True)


def test_a_part_that_gives_another_shape_is_not_replaced_alone():
    counts = BatchCounts()
    for width in (4, 6, 5):
        inner = nn.Sequential(nn.Conv2d(3, width, 1), nn.ReLU(), nn.ReLU())
        head = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
        model = nn.Sequential(inner, nn.Sequential(*(nn.ReLU() for _ in range(9))), head)
        model(torch.zeros(IMAGES))
        assert counts.of(model, IMAGES, training=True).macs == whole(model, IMAGES, True).macs


class Block(nn.Module):
    """Not replaced alone where it writes into what it takes."""

    def __init__(self, width, first=None):
        super().__init__()
        self.first, self.a, self.b = first, nn.Conv2d(3, width, 1), nn.Conv2d(width, 3, 1)

    def forward(self, x):
        return self.b(self.a(x if self.first is None else self.first(x)))


class Sliced(nn.Module):
    """Calls the modules of a Sequential, with something between them."""

    def __init__(self, width):
        super().__init__()
        of = nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.Linear(width, 3)
        self.layers, self.more = nn.Sequential(*of), nn.Sequential(*(nn.ReLU() for _ in range(12)))

    def forward(self, x):
        return self.more(self.layers[3](self.layers[:3](x).mean((2, 3))))


def chain(*blocks, frozen=(), before=False):
    """The blocks, and enough behind them that they are the smaller part."""
    for place in frozen:
        blocks[place].requires_grad_(False)
    more = nn.Sequential(*(nn.ReLU() for _ in range(12)), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 3, 1) if before else nn.Identity(), nn.Sequential(*blocks), more)


def with_common_relu(one, two):
    """Two chains of the same classes; a module stands twice in the second one."""
    relu = nn.ReLU()
    first = nn.Sequential(nn.Conv2d(3, one, 1), nn.ReLU(), nn.Conv2d(one, 3, 1))
    return chain(first, nn.Sequential(nn.Conv2d(3, two, 1), relu, nn.Conv2d(two, 3, 1), relu), before=True)


@pytest.mark.parametrize(
    "models",
    [
        [chain(Block(4), Block(5)), chain(Block(6), Block(5)), chain(Block(6), Block(5), frozen=[0])],
        [chain(Block(4), Block(width, nn.ReLU(inplace=True)), before=True) for width in (4, 6)],
        [Sliced(4), Sliced(6)],
        [with_common_relu(4, 4), with_common_relu(6, 4), with_common_relu(6, 5)],
    ],
    ids=["frozen afterwards", "writes into its input", "called one by one", "called twice"],
)
def test_modules_that_cannot_be_counted_by_themselves_are_counted_as_a_whole(models):
    counts = BatchCounts()
    for model in models:
        assert counts.of(model, IMAGES, training=True) == whole(model, IMAGES, True)
