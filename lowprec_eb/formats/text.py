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
        if number in NAMED:  # before the cached parser, whose cache a compiler warns of
            return NAMED[number]
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
    if (name := text.strip().lower()) in NAMED:
        return NAMED[name]
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Call):
            return _build(tree)
    except (SyntaxError, KeyError, TypeError, RecursionError) as error:
        reason = f" ({error})" if isinstance(error, TypeError) and str(error).startswith(tuple(CLASSES)) else ""
        raise ValueError(f"not a number format: {text!r}{reason}; {_hint(text)}") from error
    raise ValueError(f"not a number format: {text!r}; {_hint(text)}")


def _hint(text: str) -> str:
    name, call = text.split("(")[0].strip().lower().removeprefix("lp."), "(" in text
    known = {known.lower(): known for known in (CLASSES if call else NAMED)}
    close = get_close_matches(name, known, n=1)
    if close and not (call and known[close[0]] in text):
        return f"did you mean {known[close[0]] + '(...)' if call else close[0]!r}?"
    return f"write it as {BlockFloat(8, 0)!r}" if call else f"names are {', '.join(NAMED)}"


def _build(call: ast.Call) -> Format:
    fields = {str(keyword.arg): _value(keyword.value) for keyword in call.keywords}
    return CLASSES[_name(call.func)](*map(_value, call.args), **fields)


def _name(node: ast.expr) -> str:
    """Of ``BlockFloat`` or ``lp.BlockFloat``."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("lp", "lowprec_eb"):
        return node.attr
    if isinstance(node, ast.Name):
        return node.id
    raise TypeError("not a name")


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return _build(node)
    if isinstance(node, ast.Name | ast.Attribute):
        return NAMED[_name(node).lower()]
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise TypeError("not a literal") from error


def format_name(fmt: Format) -> str:
    """The name of a format that has one, else its ``repr``."""
    return next((name for name, named in NAMED.items() if named == fmt), repr(fmt))
