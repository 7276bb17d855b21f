"""What a lowered model knows besides its weights: running ranges, and bits that a schedule has set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from lowprec_eb.formats import at_bits
from lowprec_eb.layers import LoweredModule
from lowprec_eb.scope import Scope

_RANGE, _BITS = "range", "bits"


def _scopes(model: nn.Module) -> Iterator[tuple[str, Scope]]:
    for name, module in model.named_modules():
        if isinstance(module, LoweredModule):
            yield name, module.lowering


def precision_state(model: nn.Module) -> dict[str, Tensor]:
    """Running ranges and set bits by ``layer/kind/key``: tensors to save beside the model's state_dict, not in it."""
    state: dict[str, Tensor] = {}
    for name, scope in _scopes(model):
        state |= {f"{name}/{_RANGE}/{key}": value.detach().clone() for key, value in scope.ranges.items()}
        state |= {f"{name}/{_BITS}/{key}": value.detach().clone() for key, value in scope.bits.items()}
    return state


def load_precision_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a model lowered in the same way what :func:`precision_state` took from another; what it had is replaced.

    Raises:
        ValueError: a key names no lowered layer of the model; nothing is loaded then.
    """
    scopes = dict(_scopes(model))
    parts = {key: key.rsplit("/", 2) for key in state}
    for key, part in parts.items():
        if len(part) != 3 or part[0] not in scopes or part[1] not in (_RANGE, _BITS):
            raise ValueError(f"precision state {key!r} is of no lowered layer of this model; lower it in the same way")
    for scope in scopes.values():
        scope.ranges.clear()
        scope.bits.clear()
    for key, (layer, kind, name) in parts.items():
        target = scopes[layer].ranges if kind == _RANGE else scopes[layer].bits
        target[name] = state[key].detach().clone()


def set_bits(model: nn.Module, bits: Mapping[str, int]) -> None:
    """Give operands (``weight``, ``activation``, ``error``, ``output``) another number of bits from the next step on.

    Nothing is lowered or compiled anew (but for the first call, which brings the numbers in). Layers whose precision
    does not round an operand are left alone.

    Raises:
        ValueError: no layer rounds the operand, or its format cannot have so many bits; nothing is changed then.
    """
    chosen = [(scope, operand, int(number)) for operand, number in bits.items() for scope in _rounding(model, operand)]
    for scope, operand, number in chosen:
        for (name, _), reading in scope.readings.items():
            if name == operand and reading is not None:
                at_bits(reading.fmt, number)  # raises
                if reading.prescale != 1:
                    raise ValueError(f"{operand} of layer {scope.name!r} has a prescale: its bits cannot be set")
    for scope, operand, number in chosen:
        if operand in scope.bits:
            scope.bits[operand].fill_(number)
        else:
            scope.bits[operand] = torch.tensor(number)


def _rounding(model: nn.Module, operand: str) -> list[Scope]:
    def rounds(scope: Scope) -> bool:
        return any(name == operand and reading is not None for (name, _), reading in scope.readings.items())

    if operand == "normalization":
        raise ValueError("the bits of 'normalization' cannot be set, only those of what products read and write")
    found = [scope for _, scope in _scopes(model) if rounds(scope)]
    if not found:
        raise ValueError(f"no layer of {type(model).__name__} rounds {operand!r}: nothing to give other bits to")
    return found
