"""Scores: how much a channel matters."""

from __future__ import annotations

from torch import Tensor, nn


def batch_norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """The BatchNorm2d layers with a scale of their own, by name.

    Raises:
        ValueError: the model has none.
    """
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.affine}
    if not norms:
        raise ValueError(
            f"{type(model).__name__} has no BatchNorm2d with a scale: no channel can be scored by its gamma"
        )
    return norms


def gamma_scores(model: nn.Module) -> dict[str, Tensor]:
    """``|gamma|`` of every BatchNorm2d channel, by layer; shape (channels,).

    Source: Liu et al. 2017 (network slimming), section 3; You et al. 2020, section 3.1.
    """
    return {name: norm.weight.detach().abs() for name, norm in batch_norms(model).items()}
