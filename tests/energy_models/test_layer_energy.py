"""Energy by layer and by part adds up to the whole."""

import pytest
import torch
from torch import nn

from energy_models import OpCounts, count, count_optimizer, estimate, load_profile
from energy_models.energy import ModelledEnergy
from energy_models.layer_energy import energy_by_layer, energy_by_part

MODEL = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))


def step() -> OpCounts:
    optimizer = torch.optim.SGD(MODEL.parameters(), 0.1, momentum=0.9)
    return count(MODEL, torch.zeros(4, 3, 8, 8)) + count_optimizer(optimizer, model=MODEL)


@pytest.mark.parametrize("name", ["45nm", "eyeriss", "h100"])
@pytest.mark.parametrize("split", [energy_by_layer, energy_by_part])
def test_parts_add_up_to_all_but_static_power(name: str, split: object) -> None:
    profile = load_profile(name)
    whole, parts = estimate(step(), profile), split(step(), profile)  # type: ignore[operator]
    total = ModelledEnergy.total(parts.values())
    assert ("static" in whole.components_j) == (name == "h100") and "static" not in total.components_j
    for component, energy in total.components_j.items():
        for end in ("low", "nominal", "high"):
            assert getattr(energy, end) == pytest.approx(getattr(whole.components_j[component], end))


def test_layers_and_parts_are_named_in_their_order() -> None:
    profile = load_profile("45nm")
    assert list(energy_by_layer(step(), profile))[:2] == ["0", "4"]
    assert set(energy_by_part(step(), profile)) == {
        *("forward GEMMs", "forward ops", "backward GEMMs", "backward ops", "optimizer ops")
    }
    assert energy_by_layer(OpCounts(), profile) == energy_by_part(OpCounts(), profile) == {}
