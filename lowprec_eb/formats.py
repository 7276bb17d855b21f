"""Number formats as data: the raw fields are stored, everything else is derived.

Each format satisfies ``energy_models.NumberFormat``, so a count or an energy estimate reads the same object that rounds
the tensors.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import qtorch


def _check_range(format_name: str, field: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{format_name}: {field} must be a whole number from {low} to {high}, got {value!r}")


@dataclass(frozen=True, repr=False)
class BlockFloat:
    """Block floating point: signed integers of ``wl`` bits that share one 8-bit exponent per block.

    ``dim=0`` gives every slice of dimension 0 its own exponent (output channel of a weight, sample of an activation,
    element of a vector); ``dim=-1`` gives the whole tensor one. The exponent is that of the largest magnitude of the
    block, so the step is ``2 ** (exponent - (wl - 2))`` and the integers reach ``+-(2 ** (wl - 1) - 1)``.

    Source: qtorch 0.3 ``BlockFloatingPoint``; Yang et al. 2019 (SWALP), section 3.1.
    """

    wl: int
    dim: int = -1

    def __post_init__(self) -> None:
        _check_range("BlockFloat", "wl", self.wl, 2, 16)
        _check_range("BlockFloat", "dim", self.dim, -1, 7)

    def __repr__(self) -> str:
        return f"BlockFloat(wl={self.wl}, dim={self.dim})"

    kind: ClassVar[str] = "block_float"
    exponent_bits: ClassVar[int] = 0
    scale_bits: ClassVar[int] = 8
    block_size: ClassVar[int | None] = None

    @property
    def bits(self) -> int:
        """Stored bits of an element, sign included; the shared exponent is ``scale_bits`` per block."""
        return self.wl

    @property
    def mantissa_bits(self) -> int:
        return self.wl - 1

    @property
    def block_dim(self) -> int | None:
        return None if self.dim == -1 else self.dim

    @property
    def max_code(self) -> int:
        """Largest integer of an element; the range is symmetric, as in qtorch."""
        return int(2 ** (self.wl - 1) - 1)


@dataclass(frozen=True, repr=False)
class FixedPoint:
    """Fixed point: integers of ``wl`` bits times ``2 ** -fl``.

    The range is ``[-2 ** (wl - fl - 1), 2 ** (wl - fl - 1) - 2 ** -fl]``; ``symmetric`` gives up the lowest value and
    ``clamp=False`` lets values beyond the range pass, rounded. Source: Gupta et al. 2015; qtorch 0.3 ``FixedPoint``.
    """

    wl: int
    fl: int
    clamp: bool = True
    symmetric: bool = False

    def __post_init__(self) -> None:
        _check_range("FixedPoint", "wl", self.wl, 2, 24)
        _check_range("FixedPoint", "fl", self.fl, 0, 64)

    def __repr__(self) -> str:
        return f"FixedPoint(wl={self.wl}, fl={self.fl}, clamp={self.clamp}, symmetric={self.symmetric})"

    kind: ClassVar[str] = "fixed_point"
    exponent_bits: ClassVar[int] = 0
    scale_bits: ClassVar[int] = 0
    block_size: ClassVar[int | None] = None
    block_dim: ClassVar[int | None] = None

    @property
    def bits(self) -> int:
        return self.wl

    @property
    def mantissa_bits(self) -> int:
        return self.wl - 1

    @property
    def step(self) -> float:
        return float(2.0**-self.fl)

    @property
    def max_code(self) -> int:
        return int(2 ** (self.wl - 1) - 1)

    @property
    def min_code(self) -> int:
        return -self.max_code - (0 if self.symmetric else 1)


@dataclass(frozen=True, repr=False)
class Float:
    """Floating point with ``exp`` exponent and ``man`` mantissa bits, bias ``2 ** (exp - 1) - 1`` and subnormals.

    ``overflow="infinity"`` is IEEE 754: the all-ones exponent is infinity and NaN. ``overflow="saturate"`` is qtorch's
    reading: the all-ones exponent holds ordinary numbers and larger values become the largest (E4M3 reaches 480).
    ``ties`` says what nearest rounding does half-way: ``"even"`` as IEEE 754, ``"away"`` from zero as qtorch.
    """

    exp: int
    man: int
    overflow: Literal["saturate", "infinity"] = "saturate"
    ties: Literal["even", "away"] = "even"

    def __post_init__(self) -> None:
        _check_range("Float", "exp", self.exp, 2, 8)
        _check_range("Float", "man", self.man, 1, 23)

    def __repr__(self) -> str:
        return f"Float(exp={self.exp}, man={self.man}, overflow='{self.overflow}', ties='{self.ties}')"

    kind: ClassVar[str] = "float"
    scale_bits: ClassVar[int] = 0
    block_size: ClassVar[int | None] = None
    block_dim: ClassVar[int | None] = None

    @property
    def bits(self) -> int:
        return 1 + self.exp + self.man

    @property
    def exponent_bits(self) -> int:
        return self.exp

    @property
    def mantissa_bits(self) -> int:
        return self.man

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number, and of every subnormal."""
        return int(2 - 2 ** (self.exp - 1))

    @property
    def max_exponent(self) -> int:
        bias = 2 ** (self.exp - 1) - 1
        return int(bias if self.overflow == "infinity" else bias + 1)

    @property
    def max(self) -> float:
        """Largest finite value."""
        return float(2.0**self.max_exponent * (2 - 2.0**-self.man))


FP32 = Float(8, 23, overflow="infinity")
FP16 = Float(5, 10, overflow="infinity")
BF16 = Float(8, 7, overflow="infinity")

Format = BlockFloat | FixedPoint | Float
_CLASSES: dict[str, type[Format]] = {"BlockFloat": BlockFloat, "FixedPoint": FixedPoint, "Float": Float}


def as_format(number: Any) -> Format:
    """A format from a format or a qtorch number, with qtorch's own meaning.

    Raises:
        ValueError: ``number`` is neither.
    """
    if isinstance(number, Format):
        return number
    if isinstance(number, qtorch.BlockFloatingPoint):
        return BlockFloat(number.wl, number.dim)
    if isinstance(number, qtorch.FixedPoint):
        return FixedPoint(number.wl, number.fl, number.clamp, number.symmetric)
    if isinstance(number, qtorch.FloatingPoint):
        return Float(number.exp, number.man, overflow="saturate", ties="away")
    raise ValueError(f"not a number format: {number!r}; use lp.BlockFloat, lp.FixedPoint, lp.Float or a qtorch number")


@lru_cache(maxsize=256)
def parse_format(text: str) -> Format:
    """The format whose ``repr`` is ``text``: the way a format crosses a torch operator's schema."""
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
        fields: dict[str, Any] = {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
        return _CLASSES[call.func.id](*map(ast.literal_eval, call.args), **fields)
    except (SyntaxError, AssertionError, KeyError, TypeError) as error:
        raise ValueError(f"not a number format: {text!r}; write it as {BlockFloat(8, 0)!r}") from error
