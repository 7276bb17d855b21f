"""Running a model on somebody's example inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lowprec_eb.lowering import raise_

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor, positional arguments, or keyword arguments."""


def call(model: nn.Module, inputs: Inputs) -> Any:
    """``model`` on ``inputs``."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def check_example(model: nn.Module, inputs: Inputs) -> None:
    """Whether the structure of ``model`` can be read off a run on ``inputs``.

    Raises:
        TypeError: one of them is of another kind.
        ValueError: the model is compiled or scripted, or the inputs are an empty batch.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("a scripted or traced model cannot be taken apart into layers: give the module it was made of")
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "a compiled model hides its layers: give the module itself (model._orig_mod, which shares its weights), "
            "and compile what comes back"
        )
    if isinstance(inputs, str | bytes) or not isinstance(inputs, Tensor | Sequence | Mapping):
        raise TypeError(
            "example inputs must be a tensor, a sequence of positional arguments or a mapping of keyword arguments, "
            f"got {type(inputs).__name__}"
        )
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    if not tensors or any(tensor.numel() == 0 for tensor in tensors):
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise ValueError(f"example inputs must hold tensors of at least one example, got shapes {shapes}")


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
