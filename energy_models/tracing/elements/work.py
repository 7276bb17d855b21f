"""What formulas are made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeGuard

from torch import Tensor

from energy_models.counts import ElementOps
from energy_models.tracing.call import Call

SPECIAL = 4

ElementFormula: TypeAlias = Callable[[Call], ElementOps | None]


def work(kind: str, elements: int, fp_add: int = 0, fp_mul: int = 0, int_add: int = 0) -> ElementOps:
    """Arithmetic of one call: totals. Layer, part and traffic are filled in by the tracer."""
    return ElementOps(kind, "", elements, fp_add, fp_mul, int_add)


def each(kind: str, fp_add: int = 0, fp_mul: int = 0, int_add: int = 0, *, of: str | None = None) -> ElementFormula:
    """The formula of an operator that does so much for each element of its first result, or of its argument `of`."""

    def formula(call: Call) -> ElementOps | None:
        if is_bookkeeping(call):
            return None
        elements = size(call.results[0] if of is None else call.args[of])
        return work(kind, elements, fp_add * elements, fp_mul * elements, int_add * elements)

    return formula


def is_number(value: Any) -> TypeGuard[Tensor]:
    """Whether `value` is a tensor of real or complex numbers."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def is_bookkeeping(call: Call) -> bool:
    """Whether a call has integers and truth values alone: indices, counters and masks of the simulation."""
    return not any(map(is_number, (*call.tensors, *call.results)))


def size(x: Tensor) -> int:
    """Real numbers in `x`: a complex one is two."""
    return x.numel() * (2 if x.is_complex() else 1)


def width(x: Tensor, dim: Any) -> int:
    """How many elements of `x` are reduced to one over `dim`: a number, several, or None for all."""
    if dim is None or (isinstance(dim, (list, tuple)) and not dim) or x.dim() == 0:
        return max(1, x.numel())
    chosen = dim if isinstance(dim, (list, tuple)) else (dim,)
    return max(1, math.prod(x.shape[d] for d in chosen))
