"""The residual networks here are torchvision's: its weights fit, and give the same logits."""

import pytest
import torch
from model_cases import torchvision

from lowprec_eb.models import ResNetSettings, build_model

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_torchvisions_weights_fit(depth):
    theirs = getattr(torchvision().models, f"resnet{depth}")().eval()
    ours = build_model(ResNetSettings(depth=depth), (3, 64, 64), 1000, 0).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(ours(x), theirs(x), atol=1e-2)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x))
    modules = [name for name, _ in theirs.named_modules()]
    assert [name for name, _ in ours.named_modules()] == modules
