"""Formulas that a user gives for operators, checked when they are given and when they are used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from energy_models.counts import ElementOps, GemmName, OperandName, Zeros
from energy_models.tracing.call import Call, Formula, Product

_SIZES = ("batch", "m", "n", "k")
_AMOUNTS = ("elements", "fp_add", "fp_mul", "int_add", "read_bits", "write_bits", "times")


def checked(formulas: Mapping[str, Formula]) -> dict[str, Formula]:
    """The formulas, each wrapped so that what it returns is checked.

    Raises:
        ValueError: a name is not that of an operator; later, when an operator runs, what its formula returns is wrong.
    """
    for name in formulas:
        if "::" not in name or "." in name:
            raise ValueError(f"formulas: {name!r} is no operator's name: write namespace::name, without an overload")
        if not torch._C._jit_get_schemas_for_operator(name):
            raise ValueError(f"formulas: no operator is named {name!r}; is the library that defines it imported?")
    return {name: _checked(name, formula) for name, formula in formulas.items()}


def _checked(name: str, formula: Formula) -> Formula:
    def run(call: Call) -> list[Product | ElementOps]:
        try:
            works = list(formula(call))
        except KeyError as error:
            raise ValueError(
                f"formula of {name}: no argument is named {error}; it has {', '.join(call.args)}"
            ) from error
        except Exception as error:
            error.add_note(f"This happened in the formula of {name}; to return nothing, return an empty list.")
            raise
        for work in works:
            _check(name, work)
        return works

    return run


def _check(name: str, work: Any) -> None:
    if isinstance(work, Product):
        _check_product(f"formula of {name}: Product", work)
    elif isinstance(work, ElementOps):
        if not work.kind:
            raise ValueError(f"formula of {name}: ElementOps: kind is empty")
        for field in _AMOUNTS:
            _check_amount(f"formula of {name}: ElementOps", field, getattr(work, field))
    else:
        raise ValueError(f"formula of {name}: it must give Product and ElementOps, not {type(work).__name__}")


def _check_product(where: str, product: Product) -> None:
    for field in _SIZES:
        _check_amount(where, field, getattr(product, field))
    for field in ("a", "b", "result"):
        side = getattr(product, field)
        if not isinstance(side, Tensor) and not (isinstance(side, tuple) and all(isinstance(n, int) for n in side)):
            raise ValueError(f"{where}: {field} must be a tensor or a shape, got {side!r}")
    if product.gemm is not None:
        _check_word(where, "gemm", product.gemm, get_args(GemmName))
    for operand in filter(None, product.names):
        _check_word(where, "names", operand, get_args(OperandName))
    for run in filter(None, product.runs):
        _check_amount(where, "runs", run)
    if not isinstance(product.zeros, Zeros):
        raise ValueError(f"{where}: zeros must be Zeros, got {product.zeros!r}")


def _check_amount(where: str, field: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where}: {field} must be a whole number of 0 or more, got {value!r}")


def _check_word(where: str, field: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{where}: {field} must be one of {', '.join(allowed)} or None, got {value!r}")
