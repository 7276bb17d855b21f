"""Rounding tensors to number formats."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor

from lowprec_eb.formats import as_format
from lowprec_eb.quantize import operator
from lowprec_eb.quantize.random_bits import draw_seeds

Rounding = Literal["nearest", "stochastic"]
ROUNDINGS: tuple[str, ...] = ("nearest", "stochastic")
BACKEND_NAMES: tuple[str, ...] = ("auto", *operator.BACKENDS)


def quantize(
    x: Tensor,
    fmt: Any,
    rounding: Rounding = "nearest",
    *,
    seed: int | Tensor | None = None,
    offset: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Round every element of ``x`` to a number that ``fmt`` can hold.

    Args:
        x: floating-point tensor of any shape.
        fmt: a format of :mod:`lowprec_eb.formats` or a qtorch number.
        rounding: ``"nearest"`` (ties as the format says, to even by default) or ``"stochastic"`` (up with a
            probability equal to the distance from the lower neighbour in steps, so the expectation is ``x`` to within
            the random numbers' grid of ``2 ** -24`` steps).
        seed: stochastic rounding's key: an integer or a 0-d int64 tensor. None draws one from torch's default
            generator.
        offset: global index of element 0, so that the shards of a tensor round as the whole would.
        backend: ``"reference"`` (plain torch), ``"qtorch"`` (its C++ kernels) or ``"auto"`` (``"reference"``).

    Returns:
        A tensor of the same shape, dtype and device. Its gradient is the straight-through estimate (identity).

    Raises:
        ValueError: not a format, rounding, back end or floating-point tensor; the format has a dimension ``x`` lacks.
    """
    if not x.is_floating_point():
        raise ValueError(f"quantize needs a floating-point tensor, got {x.dtype}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"unknown rounding {rounding!r}; one of {', '.join(ROUNDINGS)}")
    if backend not in BACKEND_NAMES:
        raise ValueError(f"unknown backend {backend!r}; one of {', '.join(BACKEND_NAMES)}")
    key = _key(seed, x.device) if rounding == "stochastic" else None
    chosen = "reference" if backend == "auto" else backend
    arguments = (repr(as_format(fmt)), rounding, key, offset, chosen)
    if x.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _StraightThrough.apply(x, *arguments))  # type: ignore[no-untyped-call]
    return operator.call(x, *arguments)


def _key(seed: int | Tensor | None, device: torch.device) -> Tensor:
    if seed is None:
        return draw_seeds(1)[0].to(device)
    return torch.as_tensor(seed, dtype=torch.int64, device=device)


class _StraightThrough(torch.autograd.Function):
    """Forward rounds, backward is the identity (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        return operator.call(x, *arguments)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None, None, None, None, None


__all__ = ["BACKEND_NAMES", "ROUNDINGS", "Rounding", "draw_seeds", "quantize"]
