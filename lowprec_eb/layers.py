"""Modules whose products are computed in low precision.

A lowered module is the very module it was: its class is replaced by a subclass of it, and it gets one attribute, the
scope. Parameters, state_dict keys, hooks and names stay, and what the plain module can do (deepcopy, pickle, compile,
export) the lowered one can too.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_eb import rounder
from lowprec_eb.formats import Format
from lowprec_eb.interception import Interception
from lowprec_eb.quantize import operator, quantize
from lowprec_eb.scope import Scope

NORMALIZATIONS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,  # batch and instance normalisation
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.CrossMapLRN2d,
)


class LoweredModule(nn.Module):
    """What lowered modules share; the class of each is made by :func:`lowered_class`."""

    lowering: Scope

    def operand_format(self, gemm: str, operand: str) -> Format | None:
        """The format in which ``gemm`` reads ``operand``, for whoever counts operations; None is full precision."""
        return self.lowering.operand_format(gemm, operand)

    def extra_repr(self) -> str:
        own = super().extra_repr()
        return f"{own}, {self.lowering.precision.name}" if own else self.lowering.precision.name

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as the plain class, from which the lowered one is made again."""
        reduced: Any = super().__reduce_ex__(protocol)
        return (_bare, (plain_class(type(self)),), *reduced[2:])


def _bare(plain: type[nn.Module]) -> nn.Module:
    lowered = lowered_class(plain)
    return lowered.__new__(lowered)


def lowered_class(plain: type[nn.Module]) -> type[LoweredModule]:
    """The subclass of ``plain`` whose forward runs in its module's scope; one for each class."""
    if plain not in _made:
        _made[plain] = _make(plain)
    return _made[plain]


_made: dict[type[nn.Module], type[LoweredModule]] = {}


def _make(plain: type[nn.Module]) -> type[LoweredModule]:
    run = _round_result if issubclass(plain, NORMALIZATIONS) else _intercept

    @functools.wraps(plain.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self, plain.forward, args, kwargs)

    # Other libraries look classes up by name. torch's module is not taken over: its compiler trusts what is in there.
    names = {"__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
    names["__module__"] = __name__ if plain.__module__.startswith("torch.") else plain.__module__
    return type(plain.__name__, (LoweredModule, plain), {"forward": forward, **names})


def plain_class(lowered: type[nn.Module]) -> type[nn.Module]:
    """What :func:`lowered_class` was called with.

    Raises:
        ValueError: somebody made a subclass of the lowered class, as torch's parametrizations do.
    """
    plain: type[nn.Module] = lowered.__bases__[-1]
    if lowered.__bases__[0] is not LoweredModule:
        raise ValueError(
            f"{lowered.__name__} was derived from a lowered layer (was a parametrization registered after lower()?); "
            "undo that first, or register it before lower()"
        )
    return plain


def _intercept(module: LoweredModule, forward: Any, args: Any, kwargs: Any) -> Any:
    if module.lowering.is_plain and not module._modules and _is_alone():
        return forward(module, *args, **kwargs)
    with Interception(module.lowering, module.training):
        return forward(module, *args, **kwargs)


def _is_alone() -> bool:
    """Whether nobody around would take a plain layer's products for its own. A layer with others inside is not asked:
    torch's fused path would read their weights without calling them."""
    return not torch.compiler.is_compiling() and not torch._C._len_torch_function_stack()


def _round_result(module: LoweredModule, forward: Any, args: Any, kwargs: Any) -> Any:
    """Of a normalisation: its result, and the error w.r.t. it."""
    result: Tensor = forward(module, *args, **kwargs)
    reading = module.lowering.readings["normalization", None]
    if reading is None:
        return result
    rounding: Any = reading.rounding if module.training else "nearest"
    backend = module.lowering.precision.backend
    rounded = quantize(
        result, reading.fmt, rounding, gradient_format=reading.fmt, gradient_rounding=rounding, backend=backend
    )
    if rounder.watchers:
        _show(module.lowering, reading.fmt, rounding, result, rounded)
    return rounded


def _show(scope: Scope, fmt: Format, rounding: str, result: Tensor, rounded: Tensor) -> None:
    """Tell those who watch of a normalisation's result and, in the backward pass, of the error."""

    def show(operand: str, x: Tensor, rounded: Tensor) -> None:
        inside = operator.in_range(x, repr(fmt), [], None)
        rounder.show(rounder.Observation(scope, 0, operand, None, x, rounded, inside, fmt, rounding))

    show("normalization", result.detach(), rounded.detach())
    if rounded.requires_grad:
        exact: list[Tensor] = []
        rounded.register_hook(exact.append)
        result.register_hook(lambda error: show("error", exact.pop(), error))
