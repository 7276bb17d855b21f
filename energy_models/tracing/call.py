"""One operator call as formulas see it, and what a formula says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from energy_models.counts import NO_ZEROS, ElementOps, GemmName, OperandName, Zeros


@dataclass(frozen=True, slots=True)
class Call:
    """One operator call: schema name ("aten::relu", in place or not), arguments by their names, tensors it returned.

    `written` are the names of the arguments that the operator changes in place.
    """

    op: str
    args: Mapping[str, Any]
    results: tuple[Any, ...]
    written: tuple[str, ...] = ()

    @classmethod
    def of(cls, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Call:
        """The call that an operator, its arguments as they were passed and its result describe."""
        name, defaults, written = _signature(operator)
        bound = {**defaults, **dict(zip(defaults, args, strict=False)), **kwargs}
        results = result if isinstance(result, (tuple, list)) else (result,)
        return cls(name, bound, tuple(item for item in results if isinstance(item, Tensor)), written)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the arguments, those in lists included."""
        found: list[Tensor] = []
        for value in self.args.values():
            if isinstance(value, Tensor):
                found.append(value)
            elif isinstance(value, (list, tuple)):
                found += [item for item in value if isinstance(item, Tensor)]
        return found


@cache
def _signature(operator: Any) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """Schema name without the underscore of in-place operators, which do the same work; arguments with defaults."""
    schema = operator._schema
    written = tuple(one.name for one in schema.arguments if one.alias_info is not None and one.alias_info.is_write)
    return schema.name.removesuffix("_"), {one.name: one.default_value for one in schema.arguments}, written


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """`batch` products of an (m, k) by a (k, n) matrix that an operator does.

    Args:
        a, b, result: the tensors behind the matrices, as stored. For what a fused operator keeps to itself a shape.
        gemm: "output", "grad_input" or "grad_weight"; None: found from where it runs and from what it multiplies.
        names: of the operands ("weight", "activation", "error"); None: found from where the tensors come from.
        runs: consecutive products along k that read the same dimension-0 slice of `a` and of `b`.
        zeros: MACs that read zeros which the operator itself puts there.
    """

    a: Tensor | tuple[int, ...]
    b: Tensor | tuple[int, ...]
    result: Tensor | tuple[int, ...]
    batch: int
    m: int
    n: int
    k: int
    gemm: GemmName | None = None
    names: tuple[OperandName | None, OperandName | None] = (None, None)
    runs: tuple[int | None, int | None] = (None, None)
    zeros: Zeros = NO_ZEROS


Formula = Callable[[Call], Iterable[Product | ElementOps]]


def float_bits(values: Iterable[Any]) -> int:
    """Bits of the real and complex tensors among `values`."""
    tensors = (x for x in values if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()))
    return sum(tensor.numel() * tensor.element_size() * 8 for tensor in tensors)
