"""Running a model on somebody's example inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lowprec_eb.lowering import raise_

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor, positional arguments, or keyword arguments."""


def call(model: nn.Module, inputs: Inputs) -> Any:
    """``model`` on ``inputs``."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy that is not lowered, in eval mode."""
    return raise_(copy.deepcopy(model)).eval()


def random_inputs(
    inputs: Inputs, generator: torch.Generator, dtype: torch.dtype | None = None, *, positive: bool = False
) -> Any:
    """Inputs like these with random numbers in floating-point tensors; a batch of one is doubled.

    Batch statistics of one example can be of one value, and that is no batch. ``generator`` is the CPU's.
    """

    def randomised(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.dim() and value.shape[0] == 1:
            value = torch.cat([value, value])
        if not value.is_floating_point():
            return value
        draw = torch.rand if positive else torch.randn
        return draw(value.shape, generator=generator, dtype=dtype or value.dtype).to(value.device)

    return tree_map(randomised, inputs)
