"""Formats from what people write: a format, a qtorch number, a name, or a constructor call as text."""

from __future__ import annotations

import ast
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

import qtorch

from lowprec_eb.formats.base import Format
from lowprec_eb.formats.elements import FixedPoint, Float
from lowprec_eb.formats.named import NAMED
from lowprec_eb.formats.scaled import MX, BlockFloat, Int, ScaledFloat

CLASSES: dict[str, type[Format]] = {
    "FixedPoint": FixedPoint,
    "BlockFloat": BlockFloat,
    "Float": Float,
    "Int": Int,
    "MX": MX,
    "ScaledFloat": ScaledFloat,
}


def as_format(number: Any) -> Format:
    """A format from a format, a name (``"fp8_e4m3"``), a constructor call as text, or a qtorch number.

    A qtorch number keeps qtorch's own meaning: its ``FloatingPoint`` has neither infinity nor NaN codes, saturates
    and rounds ties away from zero.

    Raises:
        ValueError: ``number`` is none of these.
    """
    if isinstance(number, Format):
        return number
    if isinstance(number, str):
        return parse_format(number)
    if isinstance(number, qtorch.BlockFloatingPoint):
        return BlockFloat(number.wl, number.dim)
    if isinstance(number, qtorch.FixedPoint):
        return FixedPoint(number.wl, number.fl, number.clamp, number.symmetric)
    if isinstance(number, qtorch.FloatingPoint):
        return Float(number.exp, number.man, ties="away")
    raise ValueError(f"not a number format: {number!r}; use lp.BlockFloat, lp.Float, ..., a name or a qtorch number")


@lru_cache(maxsize=1024)
def parse_format(text: str) -> Format:
    """The format with this name, or whose ``repr`` is ``text``: the way a format crosses a torch operator's schema.

    Raises:
        ValueError: neither; the nearest name is suggested.
    """
    if text in NAMED:
        return NAMED[text]
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Call):
            return _build(tree)
    except (SyntaxError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a number format: {text!r}; write it as {BlockFloat(8, 0)!r}") from error
    close = get_close_matches(text.lower(), NAMED, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"names are {', '.join(NAMED)}"
    raise ValueError(f"not a number format: {text!r}; {hint}")


def _build(call: ast.Call) -> Format:
    if not isinstance(call.func, ast.Name):
        raise TypeError("a format is a plain call")
    fields = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
    return CLASSES[call.func.id](*map(_value, call.args), **fields)


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return _build(node)
    if isinstance(node, ast.Name):
        return NAMED[node.id.lower()]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise TypeError("not a literal") from error


def format_name(fmt: Format) -> str:
    """The name of a format that has one, else its ``repr``."""
    return next((name for name, named in NAMED.items() if named == fmt), repr(fmt))
