import pytest
import torch
from torch import nn

from lowprec_eb.models import VGG, ModelSettings, build_model


def test_default_model_layer_by_layer() -> None:
    model = build_model(ModelSettings(), (1, 8, 8), 10, seed=0)
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
    model = build_model(ModelSettings(widths=(4, "M", 6)), (3, 9, 7), 5, seed=0).eval()
    x = torch.randn(2, 3, 9, 7, generator=torch.Generator().manual_seed(0))
    features = model.features(x)
    assert features.shape == (2, 6, 4, 3)
    assert torch.allclose(model(x), model.classifier(features.mean((2, 3))), atol=1e-6)


def test_initial_values() -> None:
    model = build_model(ModelSettings(widths=(64, 128), gamma_init=0.25), (1, 8, 8), 10, seed=0)
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


def test_gamma_starts_at_one_half() -> None:
    model = build_model(ModelSettings(), (1, 8, 8), 10, seed=0)
    gammas = [layer.weight for layer in model.features if isinstance(layer, nn.BatchNorm2d)]
    assert bool((torch.cat(gammas) == 0.5).all())


def test_parameters_depend_on_the_seed_alone() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        return build_model(ModelSettings(), (1, 8, 8), 10, seed).state_dict()

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = state(3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = state(3), state(4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = [key for key in first if key.endswith("weight") and not torch.equal(first[key], other[key])]
    assert len(drawn) == 6  # five convolutions and the classifier


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 9, 15), (1, 64, 8)])
def test_poolings_up_to_the_image_size(shape: tuple[int, int, int]) -> None:
    fits: tuple[int | str, ...] = (4, "M", "M", "M")
    model = build_model(ModelSettings(widths=fits), shape, 2, seed=0)  # type: ignore[arg-type]
    assert isinstance(model, VGG)
    assert model(torch.zeros(2, *shape)).shape == (2, 2)
    with pytest.raises(ValueError, match=r"4 poolings.*at most 3"):
        build_model(ModelSettings(widths=(*fits, "M")), shape, 2, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "resnet"}, "name must be 'vgg'"),
        ({"widths": ()}, "widths must start with a convolution"),
        ({"widths": ("M", 16)}, "widths must start with a convolution"),
        ({"widths": ("M",)}, "widths must start with a convolution"),
        ({"widths": (16, 0)}, r"widths\[1\] must be 'M' or a number of channels of 1 or more, got 0"),
        ({"widths": (16, -2)}, r"widths\[1\]"),
        ({"widths": (16, "m")}, r"widths\[1\]"),
        ({"widths": (16.5,)}, r"widths\[0\]"),
        ({"widths": (True,)}, r"widths\[0\]"),
        ({"gamma_init": 0.0}, "gamma_init must be a finite number above 0"),
        ({"gamma_init": float("nan")}, "gamma_init"),
        ({"gamma_init": float("inf")}, "gamma_init"),
    ],
)
def test_settings_out_of_range(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSettings(**values)  # type: ignore[arg-type]
