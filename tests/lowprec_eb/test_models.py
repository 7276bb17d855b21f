import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import energy_models as em
from lowprec_eb.config import load_config
from lowprec_eb.models import VGG, ModelSettings, PreResNetSettings, ResNetSettings, VGGSettings, build_model
from lowprec_eb.strict_config import ConfigError, digest

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
VGG19 = (*(64,) * 2, "M", *(128,) * 2, "M", *(256,) * 4, "M", *(512,) * 4, "M", *(512,) * 4)
SMALL = {
    "vgg": VGGSettings(),
    "preresnet": PreResNetSettings(depth=14, width=4),
    "preresnet bottleneck": PreResNetSettings(depth=20, block="bottleneck", width=4),
    "resnet": ResNetSettings(width=4),
    "resnet small": ResNetSettings(depth=50, stem="small", width=4),
}


def on_meta(settings: ModelSettings, size: int = 32, classes: int = 10) -> nn.Module:
    """Without values: a large model costs nothing."""
    with torch.device("meta"):
        return settings.module((3, size, size), classes)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def forward_macs(model: nn.Module, size: int = 32) -> int:
    return em.count(model, torch.zeros(1, 3, size, size, device="meta"), training=False).total_macs


def test_default_model_layer_by_layer() -> None:
    model = build_model(VGGSettings(), (1, 8, 8), 10, seed=0)
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    expected = [*block, *block, "MaxPool2d", *block, *block, "MaxPool2d", *block]
    assert [type(layer).__name__ for layer in model.features] == expected
    convs = [layer for layer in model.features if isinstance(layer, nn.Conv2d)]
    assert [conv.weight.shape for conv in convs] == [
        (16, 1, 3, 3),
        (16, 16, 3, 3),
        (32, 16, 3, 3),
        (32, 32, 3, 3),
        (64, 32, 3, 3),
    ]
    assert all(conv.bias is None for conv in convs)
    assert model.classifier.weight.shape == (10, 64)
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_forward_is_features_then_global_average_then_classifier() -> None:
    model = build_model(VGGSettings(widths=(4, "M", 6)), (3, 9, 7), 5, seed=0).eval()
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    features = model.features(x)
    assert features.shape == (2, 6, 4, 3)
    assert torch.allclose(model(x), model.classifier(features.mean((2, 3))), atol=1e-6)


def test_initial_values() -> None:
    model = build_model(VGGSettings(widths=(64, 128), gamma_init=0.25), (1, 8, 8), 10, seed=0)
    for layer in model.features:
        if isinstance(layer, nn.BatchNorm2d):
            assert bool((layer.weight == 0.25).all())
            assert bool((layer.bias == 0).all())
    conv = model.features[3]
    assert isinstance(conv, nn.Conv2d)
    std = (2 / (9 * 128)) ** 0.5  # Kaiming, fan out; 73,728 weights: the estimate is good to 0.3 %
    assert conv.weight.std().item() == pytest.approx(std, rel=0.02)
    assert bool((model.classifier.bias == 0).all())
    assert model.classifier.weight.std().item() == pytest.approx(128**-0.5, rel=0.1)


@pytest.mark.parametrize("settings", SMALL.values(), ids=SMALL)
def test_gamma_starts_at_one_half_unless_told(settings: ModelSettings) -> None:
    for told in (0.5, 0.25):
        model = build_model(
            dataclasses.replace(settings, gamma_init=told) if told != 0.5 else settings, (3, 8, 8), 10, 0
        )
        norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert all(bool((norm.weight == told).all()) and bool((norm.bias == 0).all()) for norm in norms)
        assert len(norms) >= 5


@pytest.mark.parametrize("settings", SMALL.values(), ids=SMALL)
def test_parameters_depend_on_the_seed_alone(settings: ModelSettings) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        return build_model(settings, (3, 8, 8), 10, seed).state_dict()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = state(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = state(3), state(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = {key for key in first if not torch.equal(first[key], other[key])}
    assert drawn == {key for key in first if key.endswith("weight") and first[key].dim() > 1}


@pytest.mark.parametrize("settings", SMALL.values(), ids=SMALL)
def test_images_of_any_shape(settings: ModelSettings) -> None:
    for shape in ((1, 8, 8), (3, 9, 20)):
        assert build_model(settings, shape, 7, 0)(torch.zeros(2, *shape)).shape == (2, 7)


# ---- published sizes, and sizes by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "published", "giga_macs"),  # torchvision: weights.meta["num_params"] and ["_ops"]
    [
        (18, 11_689_512, 1.814),
        (34, 21_797_672, 3.664),
        (50, 25_557_032, 4.089),
        (101, 44_549_160, 7.801),
        (152, 60_192_808, 11.514),
    ],
)
def test_resnet_is_as_large_as_torchvisions(depth: int, published: int, giga_macs: float) -> None:
    model = on_meta(ResNetSettings(depth=depth), 224, 1000)  # type: ignore[arg-type]
    assert parameters(model) == published
    assert forward_macs(model, 224) / 1e9 == pytest.approx(giga_macs, abs=0.5e-3)


def test_the_small_stem_keeps_the_image_size() -> None:
    sizes = {}
    for stem in ("imagenet", "small"):
        model = build_model(ResNetSettings(stem=stem, width=8), (3, 32, 32), 10, 0)  # type: ignore[arg-type]
        stream = model.maxpool(model.relu(model.bn1(model.conv1(torch.zeros(2, 3, 32, 32)))))
        sizes[stem] = (tuple(stream.shape), tuple(model.layer4(model.layer3(model.layer2(model.layer1(stream)))).shape))
    assert sizes == {
        "imagenet": ((2, 8, 8, 8), (2, 64, 1, 1)),
        "small": ((2, 8, 32, 32), (2, 64, 4, 4)),
    }


def test_preresnet_20_by_hand() -> None:
    """Per stage of three blocks: the first convolution widens, five keep the width; a 1x1 projects where it widens."""
    model = on_meta(PreResNetSettings())
    convolutions = {
        "stem": 3 * 16 * 9,
        "16 channels, 32 x 32": 6 * 16 * 16 * 9,
        "32 channels, 16 x 16": 16 * 32 * 9 + 5 * 32 * 32 * 9 + 16 * 32,
        "64 channels, 8 x 8": 32 * 64 * 9 + 5 * 64 * 64 * 9 + 32 * 64,
    }
    norms = 3 * (16 + 16) + (16 + 32 + 2 * 64) + (32 + 64 + 2 * 128) + 64
    assert parameters(model) == sum(convolutions.values()) + 2 * norms + 64 * 10 + 10 == 272_282
    macs = sum(size * n for size, n in zip((1024, 1024, 256, 64), convolutions.values(), strict=True)) + 640
    assert forward_macs(model) == macs == 40_813_184


def test_preresnet_101_by_hand() -> None:
    """Eleven bottlenecks a stage: 1x1 into w, 3x3, 1x1 into 4 w; the first of a stage projects from its c channels."""
    model = on_meta(PreResNetSettings(depth=101, block="bottleneck"))
    total, channels = 3 * 16 * 9, 16
    for w in (16, 32, 64):
        total += channels * w + 13 * w * w + channels * 4 * w + 2 * (channels + 2 * w)
        total += 10 * (4 * w * w + 13 * w * w + 2 * (4 * w + 2 * w))
        channels = 4 * w
    assert parameters(model) == total + 2 * 256 + 256 * 10 + 10 == 1_054_106
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d)]) == 1 + 99 + 3
    assert list(dict(model.named_children())) == ["conv1", "layer1", "layer2", "layer3", "bn", "relu", "avgpool", "fc"]
    assert {"bn1", "conv1", "bn3", "conv3", "downsample"} <= dict(model.layer1[0].named_children()).keys()
    assert model.layer1[1].downsample is None


@pytest.mark.parametrize(
    ("settings", "million_parameters", "flops"),
    [
        (VGGSettings(widths=VGG19), "20.04", 7.97e8),  # type: ignore[arg-type]
        (PreResNetSettings(depth=164, block="bottleneck"), "1.70", 4.99e8),
    ],
)
def test_sizes_printed_by_network_slimming(settings: ModelSettings, million_parameters: str, flops: float) -> None:
    """Liu et al., ICCV 2017, table 1, baselines for CIFAR-10; its FLOPs are two a MAC, and under 1 % for the rest."""
    model = on_meta(settings)
    assert f"{parameters(model) / 1e6:.2f}" == million_parameters
    assert 2 * forward_macs(model) == pytest.approx(flops, rel=0.01)


def test_vgg16_of_the_early_bird_paper() -> None:
    model = on_meta(VGGSettings(widths=VGG16))  # type: ignore[arg-type]
    assert len([m for m in model.modules() if isinstance(m, nn.Conv2d)]) == 13
    weights = 3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 2 * 256 * 256 + 256 * 512 + 5 * 512 * 512
    norms = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512
    assert parameters(model) == 9 * weights + 2 * norms + 5130 == 14_724_042
    assert forward_macs(model) == 313_201_664


def test_preactivation_order() -> None:
    """The stream runs from stem to last BatchNorm through sums alone."""
    model = build_model(PreResNetSettings(depth=8, width=4), (3, 8, 8), 5, 0).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    block = model.layer1[0]
    stream = model.conv1(x)
    inner = block.conv2(block.bn2(block.conv1(block.bn1(stream).relu())).relu())
    assert torch.equal(block(stream), stream + inner)
    second = model.layer2[0]
    read = second.conv2(second.bn2(second.conv1(second.bn1(stream).relu())).relu())
    assert torch.equal(second(stream), second.downsample(stream) + read)
    features = model.bn(model.layer3(model.layer2(model.layer1(stream)))).relu().mean((2, 3))
    assert torch.allclose(model(x), model.fc(features), atol=1e-6)


# ---- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 9, 15), (1, 64, 8)])
def test_poolings_up_to_the_image_size(shape: tuple[int, int, int]) -> None:
    fits: tuple[int | str, ...] = (4, "M", "M", "M")
    model = build_model(VGGSettings(widths=fits), shape, 2, seed=0)  # type: ignore[arg-type]
    assert isinstance(model, VGG)
    assert model(torch.zeros(2, *shape)).shape == (2, 2)
    with pytest.raises(ValueError, match=r"4 poolings.*at most 3"):
        build_model(VGGSettings(widths=(*fits, "M")), shape, 2, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (VGGSettings, {"name": "resnet"}, "name must be 'vgg'"),
        (VGGSettings, {"widths": ()}, "widths must start with a convolution"),
        (VGGSettings, {"widths": ("M", 16)}, "widths must start with a convolution"),
        (VGGSettings, {"widths": ("M",)}, "widths must start with a convolution"),
        (VGGSettings, {"widths": (16, 0)}, r"widths\[1\] must be 'M' or a number of channels of 1 or more, got 0"),
        (VGGSettings, {"widths": (16, -2)}, r"widths\[1\]"),
        (VGGSettings, {"widths": (16, "m")}, r"widths\[1\]"),
        (VGGSettings, {"widths": (16.5,)}, r"widths\[0\]"),
        (VGGSettings, {"widths": (True,)}, r"widths\[0\]"),
        (VGGSettings, {"gamma_init": 0.0}, "gamma_init must be a finite number above 0"),
        (VGGSettings, {"gamma_init": float("nan")}, "gamma_init"),
        (VGGSettings, {"gamma_init": float("inf")}, "gamma_init"),
        (PreResNetSettings, {"name": "vgg"}, "name must be 'preresnet', got 'vgg'"),
        (PreResNetSettings, {"depth": 21}, r"6 n \+ 2 with basic blocks, 20 or 26 say, got 21$"),
        (PreResNetSettings, {"depth": 2}, r"8 or 14 say, got 2$"),
        (PreResNetSettings, {"depth": 101}, r"98 or 104 say, got 101; it fits block: bottleneck"),
        (PreResNetSettings, {"depth": 26, "block": "bottleneck"}, r"9 n \+ 2.*20 or 29 say.*; it fits block: basic"),
        (PreResNetSettings, {"block": "wide"}, "block must be 'basic' or 'bottleneck', got 'wide'"),
        (PreResNetSettings, {"width": 0}, "width must be a number of channels of 1 or more, got 0"),
        (PreResNetSettings, {"gamma_init": 0.0}, "gamma_init"),
        (ResNetSettings, {"name": "vgg"}, "name must be 'resnet', got 'vgg'"),
        (ResNetSettings, {"depth": 20}, "depth must be one of 18, 34, 50, 101, 152, got 20"),
        (ResNetSettings, {"stem": "cifar"}, "stem must be 'imagenet' or 'small', got 'cifar'"),
        (ResNetSettings, {"width": -1}, "width"),
        (ResNetSettings, {"gamma_init": -1.0}, "gamma_init"),
    ],
)
def test_settings_out_of_range(kind: type[ModelSettings], values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**values)


CONFIGS = Path(__file__).parents[2] / "configs"


def test_every_model_can_stand_in_a_config() -> None:
    for settings, model in [
        ("{widths: [4, M, 6]}", VGGSettings(widths=(4, "M", 6))),
        ("{name: vgg}", VGGSettings()),
        (
            "{name: preresnet, depth: 29, block: bottleneck, width: 8}",
            PreResNetSettings("preresnet", 29, "bottleneck", 8),
        ),
        ("{name: resnet, depth: 50, stem: small}", ResNetSettings("resnet", 50, "small")),
    ]:
        assert load_config(CONFIGS / "digits.yaml", [f"model={settings}"]).model == model


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            "{name: resnext}",
            "model.name: expected 'vgg', 'preresnet' or 'resnet', got 'resnext'; did you mean 'resnet'?",
        ),
        ("{depth: 20}", "model.depth: is a key of 'preresnet' and 'resnet'; name is left out: 'vgg', with gamma_init"),
        (
            "{name: resnet, widths: [4]}",
            "model.widths: is a key of 'vgg'; name is 'resnet' here, with depth, gamma_init",
        ),
        ("{name: resnet, depth: 20}", "model.depth: expected 18, 34, 50, 101 or 152, got 20"),
        ("{name: preresnet, depth: 21}", "model: depth must be 6 n + 2"),
    ],
)
def test_a_wrong_model_in_a_config(settings: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIGS / "digits.yaml", [f"model={settings}"])
    assert str(caught.value).startswith(f"override 'model={settings}': {problem}")


def test_a_vggs_hash_is_older_than_the_choice_of_models() -> None:
    assert digest(VGGSettings(widths=(8, "M", 16))) == "99410b37eb"
    assert len({digest(settings) for settings in (*SMALL.values(), ResNetSettings(), PreResNetSettings())}) == 7
