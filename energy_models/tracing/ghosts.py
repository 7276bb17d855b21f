"""Tensors without values: shape, type, strides and device, and no memory.

A ghost keeps the device that it stands for, so that autocast, device checks and torch's choice of kernels are those of
a real run; its storage is on the meta device. Parameters, buffers and floating-point inputs become ghosts. Everything
else keeps its values as long as it is small and made from no ghost: indices of edges, lengths and masks decide shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef

from energy_models.tracing.shapes import ELEMENTWISE, META, SHAPES

MAX_KNOWN_FLOATS = 1 << 20  # elements of a tensor whose values are kept
MAX_KNOWN_INTEGERS = 1 << 26
_SURELY_SMALL = 1 << 12  # elements of an operand: not even an outer product of two is too large to keep

aten = torch.ops.aten


class NeedsValues(RuntimeError):
    """An operator's result depends on values that a ghost does not have."""


class Ghost(Tensor):
    """A tensor of `device` without values. Only `Ghosts.run` computes with it."""

    stands_for: torch.device
    on_meta: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, on_meta: Tensor, device: torch.device) -> Ghost:
        ghost: Ghost = Tensor._make_subclass(cls, on_meta, False, dispatch_device=True, device_for_backend_keys=device)
        ghost.stands_for, ghost.on_meta = device, on_meta
        return ghost

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.stands_for

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return run(func, args, kwargs or {})


def ghost_of(x: Tensor, device: torch.device | None = None) -> Tensor:
    """A ghost of `x`'s shape, strides, type, `requires_grad` and device; `device` is what a meta tensor stands for."""
    stands_for = x.device if device is None or not x.is_meta else device
    if isinstance(x, FakeTensor):  # whatever is made like one is one
        on_meta = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=META)
    else:
        on_meta = torch.empty_like(x, device=META, requires_grad=False)
    ghost = Ghost(on_meta, stands_for)
    ghost.requires_grad_(x.requires_grad)
    if isinstance(x, nn.Parameter):
        ghost._is_param = True  # what isinstance(_, nn.Parameter) asks
    return ghost


def has_ghost(values: Any) -> bool:
    """Whether a ghost is among `values`, a tensor or nested sequences of tensors."""
    if isinstance(values, Ghost):
        return True
    return isinstance(values, (list, tuple)) and any(has_ghost(value) for value in values)


def run(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """What `func` returns: ghosts if a ghost is among its arguments or its result is large, else real tensors.

    Raises:
        NeedsValues: the result's shape, or a number that is asked for, depends on the values of a ghost.
    """
    if func is torch.ops.prim.device.default:
        return args[0].stands_for
    given = (*args, *kwargs.values())
    device = next((tensor.device for tensor in tensors_of(given) if not _is_known(tensor)), None)
    if device is not None:
        return _run_on_meta(func, args, kwargs, kwargs.get("device") or device)
    if _is_small(func, args, kwargs, given):
        return func(*args, **kwargs)
    return _run_on_meta(func, args, kwargs, kwargs.get("device") or _device_of(given))


_written_to: dict[int, StorageWeakRef] = {}  # storages of tensors whose values were known, until a ghost was copied in


def _is_known(x: Tensor) -> bool:
    if isinstance(x, Ghost):
        return False
    if not _written_to or x.layout != torch.strided:
        return True
    found = _written_to.get(x.untyped_storage()._cdata)
    return found is None or found.expired()


def _forget(x: Tensor) -> None:
    """Take the values of `x`, and of all that share its storage, for unknown."""
    if not isinstance(x, Ghost) and x.layout == torch.strided:
        for key in [key for key, storage in _written_to.items() if storage.expired()]:
            del _written_to[key]
        storage = x.untyped_storage()
        _written_to[storage._cdata] = StorageWeakRef(storage)


def tensors_of(values: Any) -> list[Tensor]:
    """The tensors in nested sequences."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_of(value)
    return found


def _device_of(values: Any) -> torch.device:
    return next((tensor.device for tensor in tensors_of(values)), torch.device("cpu"))


def _is_small(func: Any, args: Sequence[Any], kwargs: dict[str, Any], given: Sequence[Any]) -> bool:
    """Whether the result, of real tensors alone, is small enough to compute and keep."""
    tensors = tensors_of(given)
    if any(tensor.layout != torch.strided for tensor in tensors):
        return True
    if tensors and all(tensor.numel() <= _SURELY_SMALL for tensor in tensors):
        return True
    if torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags:
        return True  # no larger than what it selects from
    results = tensors_of([_call_on_meta(func, args, kwargs, {})])
    limits = (MAX_KNOWN_FLOATS if r.is_floating_point() else MAX_KNOWN_INTEGERS for r in results)
    return all(result.numel() <= limit for result, limit in zip(results, limits, strict=True))


def _run_on_meta(func: Any, args: Sequence[Any], kwargs: dict[str, Any], device: torch.device) -> Any:
    if torch.Tag.inplace_view in func.tags:
        return _reshape_in_place(func, args, kwargs) if isinstance(args[0], Ghost) else func(*args, **kwargs)
    if func is aten._local_scalar_dense.default:
        raise NeedsValues("it asks for the number that a tensor holds")
    if func in SHAPES:
        return _wrapped(SHAPES[func](*args, **kwargs), {}, torch.device(device))
    if func in ELEMENTWISE and (like := _same_as_all(args)) is not None:
        return Ghost(torch.empty_like(like.on_meta), like.stands_for)
    if func is aten.index.Tensor:
        args = (args[0], [item for index in args[1] for item in _indices(index)])
    originals: dict[int, Tensor] = {}
    try:
        results = _call_on_meta(func, args, kwargs, originals)
    except NotImplementedError as error:
        raise NeedsValues(_why(func, error)) from error
    return _wrapped(results, originals, torch.device(device))


def _same_as_all(args: Sequence[Any]) -> Ghost | None:
    """The first argument, if it is a ghost and all tensors among `args` have its shape, strides and type."""
    first = args[0]
    if not isinstance(first, Ghost):
        return None
    for other in args[1:]:
        if isinstance(other, Tensor) and (
            other.shape != first.shape or other.dtype != first.dtype or other.stride() != first.stride()
        ):
            return None
    return first if first.is_floating_point() else None


def _why(func: Any, error: NotImplementedError) -> str:
    if torch.Tag.dynamic_output_shape in func.tags:
        return "how large its result is depends on the values"
    return str(error).partition("\n")[0].partition(". ")[0]


def _indices(index: Tensor | None) -> Sequence[Tensor | None]:
    """A known mask as the indices that it selects; the shape of what it selects is known then."""
    if index is None or not _is_known(index) or index.dtype not in (torch.bool, torch.uint8):
        return (index,)
    return index.nonzero(as_tuple=True)


def _call_on_meta(func: Any, args: Sequence[Any], kwargs: dict[str, Any], originals: dict[int, Tensor]) -> Any:
    def stand_in(value: Any) -> Any:
        if isinstance(value, Tensor):
            meta = _like_on_meta(value)
            originals[id(meta)] = value
            kept.append(meta)
            return meta
        if isinstance(value, (list, tuple)):
            return type(value)(map(stand_in, value))
        return value

    kept: list[Tensor] = []  # so that no id is given out twice
    named = {name: stand_in(value) for name, value in kwargs.items()}
    if named.get("device") is not None:
        named["device"] = META
    return func(*map(stand_in, args), **named)


def _like_on_meta(x: Tensor) -> Tensor:
    if isinstance(x, Ghost):
        return x.on_meta
    if x.layout == torch.strided:
        return torch.empty_like(x, device=META)
    return torch.empty(x.shape, dtype=x.dtype, device=META)  # its product with a dense tensor is dense


def _wrapped(results: Any, originals: dict[int, Tensor], device: torch.device) -> Any:
    if isinstance(results, Tensor):
        if not results.is_meta:
            return results
        original = originals.get(id(results))
        if original is None:
            return Ghost(results, device)
        _forget(original)  # written to in place
        return original
    if isinstance(results, (list, tuple)):
        return type(results)(_wrapped(result, originals, device) for result in results)
    return results


def _reshape_in_place(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`unsqueeze_` and its like change shape and strides alone, of the ghost and of what it stands on."""
    ghost = args[0]
    func(ghost.on_meta, *args[1:], **kwargs)
    with torch._C._DisableTorchDispatch():
        func(*args, **kwargs)
    return ghost
