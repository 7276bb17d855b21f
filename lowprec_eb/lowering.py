"""Lowering: put low precision into a model that somebody else wrote, and take it out again."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from lowprec_eb.layers import LoweredConv2d, LoweredLayer, LoweredLinear
from lowprec_eb.precision import Precision
from lowprec_eb.precision import precision as named_precision

_LOWERED: dict[type[nn.Module], type[LoweredLayer]] = {nn.Linear: LoweredLinear, nn.Conv2d: LoweredConv2d}
_ORIGINAL: dict[type[nn.Module], type[nn.Module]] = {lowered: plain for plain, lowered in _LOWERED.items()}


@dataclass(frozen=True)
class Lowered:
    """One layer that now computes in low precision."""

    name: str
    layer: str
    precision: Precision


@dataclass(frozen=True)
class Skipped:
    """One module with parameters that was left as it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class LoweringReport:
    """What :func:`lower` did: every module with parameters of its own is in exactly one of the two lists."""

    lowered: tuple[Lowered, ...]
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        lines = [f"{item.name}: {item.layer} -> {item.precision!r}" for item in self.lowered]
        return "\n".join(lines + [f"{item.name}: skipped, {item.reason}" for item in self.skipped])


def lower(model: nn.Module, precision: str | Precision) -> LoweringReport:
    """Make the GEMM layers of ``model`` compute in ``precision``, in place. Calling it again replaces.

    ``nn.Conv2d`` and ``nn.Linear`` are lowered; every other module with parameters is listed as skipped. Parameters,
    buffers, state_dict keys, hooks and module names stay as they are.

    Raises:
        ValueError: ``precision`` is unknown, or the model has no layer that can be lowered.
    """
    recipe = named_precision(precision)
    raise_(model)
    reasons = {name: reason for name, m in model.named_modules() if (reason := _reason_to_skip(m)) is not None}
    for name, module in model.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # In eval mode torch's fused path reads these weights without calling the layers.
            inside = {f"{name}.{child}".lstrip("."): m for child, m in module.named_modules() if type(m) in _LOWERED}
            reasons |= dict.fromkeys(inside, "the fast path of nn.TransformerEncoderLayer would bypass it")
    names = [name for name, m in model.named_modules() if type(m) in _LOWERED and name not in reasons]
    if not names:
        raise ValueError(f"nothing to lower in {type(model).__name__}: no nn.Conv2d or nn.Linear among its modules")
    lowered = []
    for name in names:
        module = model.get_submodule(name)
        of_layer = recipe.of_layer(name, last=name == names[-1])
        lowered.append(Lowered(name, type(module).__name__, of_layer))
        module.__class__ = _LOWERED[type(module)]
        module.lowering = of_layer  # type: ignore[assignment]
    return LoweringReport(tuple(lowered), tuple(Skipped(name, reason) for name, reason in reasons.items()))


def raise_(model: nn.Module) -> nn.Module:
    """Undo :func:`lower`, in place: the plain layers again, with the trained values. Returns ``model``."""
    for module in model.modules():
        if isinstance(module, LoweredLayer):
            plain = _ORIGINAL[type(module)]
            del module.lowering
            setattr(module, "__class__", plain)  # noqa: B010 - mypy reads the plain assignment as a narrowing
    return model


def _reason_to_skip(module: nn.Module) -> str | None:
    """Why a module with parameters stays in float32; None when it is lowered or has no parameters of its own."""
    own = list(module.parameters(recurse=False))
    if not own:
        return None
    if type(module) in _LOWERED:
        if isinstance(module, nn.Conv2d) and (isinstance(module.padding, str) or module.padding_mode != "zeros"):
            return f"padding {module.padding!r} in mode {module.padding_mode!r} is not supported"
        return None
    if all(p.dim() < 2 for p in own):
        return f"{type(module).__name__} has no GEMM: stays in float32"
    return f"no low-precision version of {type(module).__name__}: its products stay in float32"
