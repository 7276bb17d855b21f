"""Running a model on somebody's example inputs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lowprec_eb.lowering import raise_

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one tensor, positional arguments, or keyword arguments."""

FUSED_ATTENTION = F.scaled_dot_product_attention
_DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
)
_TO_FLOAT64 = {Tensor.float: Tensor.double, Tensor.half: Tensor.double, Tensor.bfloat16: Tensor.double}
_NARROW = (torch.float32, torch.float16, torch.bfloat16)


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


def first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What a layer reads: the first tensor that it is called with."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy that is not lowered, in eval mode."""
    return raise_(copy.deepcopy(model)).eval()


def traced_copy(model: nn.Module, inputs: Inputs) -> nn.Module:
    """A plain copy to read a model's structure off: in eval mode, unless training runs layers that evaluation does not.

    Auxiliary classifiers are such layers. Their branches are then taken, while batch normalisations and dropout layers
    stay as in evaluation.
    """
    plain = plain_copy(model)
    evaluated = _called(plain, inputs)
    take_training_branches(plain)
    return plain if _called(plain, inputs) - evaluated else plain.eval()


def take_training_branches(plain: nn.Module) -> None:
    """Training mode for modules of somebody's own that hold others; layers keep theirs."""
    for module in plain.modules():
        if any(True for _ in module.children()) and not type(module).__module__.startswith("torch.nn."):
            module.training = True


@torch.no_grad()
def _called(plain: nn.Module, inputs: Inputs) -> set[str]:
    """The modules that run on ``inputs``."""
    called: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: called.add(name)) for name, module in plain.named_modules()
    ]
    try:
        with Undropped():
            call(plain, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return called


class Undropped(TorchFunctionMode):
    """Dropout drops nothing, wherever it is called and in whichever mode."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is FUSED_ATTENTION:  # dropout_p is its fifth argument
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = {**kwargs, "dropout_p": 0.0} if "dropout_p" in kwargs else kwargs
        return func(*args, **kwargs)


class InFloat64(TorchFunctionMode):
    """A model in float64 stays in float64, whichever narrower precision its forward asks for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_widened, (args, kwargs or {}))
        result = _TO_FLOAT64.get(func, func)(*args, **kwargs)
        if isinstance(result, Tensor) and result.dtype in _NARROW:
            return result.double()
        return result


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


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
