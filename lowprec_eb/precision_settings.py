"""Precisions as settings: plain dataclasses that :mod:`lowprec_eb.strict_config` reads from YAML.

Formats are text, everything else is a mapping. A key that is left out is as in ``base``, or as in ``Precision()``
without one; ``null`` is float32.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Tag
from ruamel.yaml import YAML

from lowprec_eb import strict_config
from lowprec_eb.formats import Format, as_format, format_name
from lowprec_eb.precision import GEMMS, OPERANDS, PerGemm, Precision, Rounded, given_fields
from lowprec_eb.quantize import Rounding
from lowprec_eb.recipes import RECIPES, precision

_AS_BASE = "base"  # the value of a key that is left out; null is taken


def _format_text(text: str) -> str:
    """One spelling for each format, so that equal settings name one run."""
    return format_name(as_format(text))


def _format_or_base(text: str) -> str:
    return text if text == _AS_BASE else _format_text(text)


def _recipe_name(text: str) -> str:
    precision(text)
    return text


def _kind(value: Any) -> str:
    """Which of the spellings of an operand this is; what is none of them is reported as bad text."""
    if not isinstance(value, dict):
        return "text"
    return "rounded" if value.keys() & {f.name for f in fields(RoundedSettings)} else "per GEMM"


def _size_kind(value: Any) -> str:
    return "per GEMM" if isinstance(value, dict) else "text" if value == _AS_BASE else "size"


def _number_kind(value: Any) -> str:
    return "text" if value == _AS_BASE else "number"


def _override_kind(value: Any) -> str:
    return "precision" if isinstance(value, dict) else "text"


@dataclass(frozen=True)
class RoundedSettings:
    """:class:`lowprec_eb.Rounded`, its format as text."""

    format: Annotated[str, AfterValidator(_format_text)]
    rounding: Rounding | None = None
    running: float | None = None
    prescale: float = 1.0

    def __post_init__(self) -> None:
        self.rounded()

    def rounded(self) -> Rounded:
        """Raises ValueError for values that do not go together."""
        return Rounded(as_format(self.format), self.rounding, self.running, self.prescale)


_Text = Annotated[str, AfterValidator(_format_text), Tag("text")]
_TextOrBase = Annotated[str, AfterValidator(_format_or_base), Tag("text")]
_Rounded = Annotated[RoundedSettings, Tag("rounded")]
_OfGemm = Annotated[_Text | _Rounded, Discriminator(_kind)] | None


@dataclass(frozen=True)
class PerGemmSettings:
    """:class:`lowprec_eb.PerGemm` of formats."""

    output: _OfGemm = None
    grad_input: _OfGemm = None
    grad_weight: _OfGemm = None


@dataclass(frozen=True)
class SizesSettings:
    """:class:`lowprec_eb.PerGemm` of rotations."""

    output: int | None = None
    grad_input: int | None = None
    grad_weight: int | None = None


_PerGemm = Annotated[PerGemmSettings, Tag("per GEMM")]
_Operand = Annotated[_TextOrBase | _Rounded | _PerGemm, Discriminator(_kind)] | None
_Sizes = Annotated[
    Annotated[int, Tag("size")] | Annotated[SizesSettings, Tag("per GEMM")] | Annotated[str, Tag("text")],
    Discriminator(_size_kind),
]
_Number = Annotated[Annotated[int, Tag("number")] | Annotated[str, Tag("text")], Discriminator(_number_kind)]


@dataclass(frozen=True)
class PrecisionSettings:
    """The fields of :class:`lowprec_eb.Precision`; ``base`` is the recipe that the others change."""

    base: Annotated[str, AfterValidator(_recipe_name)] | None = None
    name: str | None = None
    weight: _Operand = _AS_BASE
    activation: _Operand = _AS_BASE
    output: _Operand = _AS_BASE
    error: _Operand = _AS_BASE
    normalization: _Operand = _AS_BASE
    accumulator: _Operand = _AS_BASE
    gradient: _Operand = _AS_BASE
    update: _Operand = _AS_BASE
    momentum: _Operand = _AS_BASE
    second_moment: _Operand = _AS_BASE
    master: _Operand = _AS_BASE
    rounding: Rounding | None = None
    hadamard: _Sizes | None = _AS_BASE
    accumulator_chunk: _Number | None = _AS_BASE
    block_axis: Literal["reduction", "format"] | None = None
    vectors: bool | None = None
    overrides: tuple[OverrideSettings, ...] | None = None
    backend: Literal["auto", "reference", "fast", "triton", "qtorch"] | None = None

    def __post_init__(self) -> None:
        self.precision()

    def precision(self, name: str | None = None) -> Precision:
        """The precision; ``name`` is for settings that state none.

        Raises:
            ValueError: values that do not go together.
        """
        changes = {key: getattr(self, key) for key in ("rounding", "block_axis", "vectors", "backend")}
        changes = {key: value for key, value in changes.items() if value is not None}
        if (stated := name if self.name is None else self.name) is not None:
            changes["name"] = stated
        if self.overrides is not None:
            changes["overrides"] = tuple((one.layers, one.value()) for one in self.overrides)
        for key in (*OPERANDS, "hadamard", "accumulator_chunk"):
            if (value := getattr(self, key)) != _AS_BASE:
                changes[key] = _from_settings(value)
        return precision(Precision() if self.base is None else self.base, **changes)


@dataclass(frozen=True)
class OverrideSettings:
    """One override: the pattern of the layers, and a recipe's name or a precision of their own."""

    layers: str
    precision: Annotated[
        Annotated[str, AfterValidator(_recipe_name), Tag("text")] | Annotated[PrecisionSettings, Tag("precision")],
        Discriminator(_override_kind),
    ]

    def value(self) -> Precision:
        return precision(self.precision) if isinstance(self.precision, str) else self.precision.precision()


def _from_settings(value: Any) -> Any:
    if isinstance(value, RoundedSettings):
        return value.rounded()
    if isinstance(value, PerGemmSettings | SizesSettings):
        return PerGemm(*(_from_settings(getattr(value, gemm)) for gemm in GEMMS))
    return value


def load_precision(path: str | Path) -> Precision:
    """Read a precision from a YAML file with the fields of :class:`lowprec_eb.Precision`.

    Raises:
        ConfigError: naming file, key, what was expected and the nearest valid name.
    """
    return strict_config.load(path, PrecisionSettings).precision()


def dump_precision(precision: Precision) -> str:
    """``precision`` as YAML text, without what has its default; :func:`load_precision` reads back an equal one."""
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 4096  # no line breaks within a format
    yaml.dump({"name": precision.name} | _given(precision), text)
    return text.getvalue()


def _given(obj: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in given_fields(obj).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Format):
        return format_name(value)
    if isinstance(value, Rounded):
        given = _given(value)
        return {"format": given.pop("fmt")} | given
    if isinstance(value, PerGemm):
        return _given(value)
    if isinstance(value, Precision):
        known = RECIPES.get(value.name) == value
        return value.name if known else {"name": value.name} | _given(value)
    if isinstance(value, tuple):
        return [{"layers": pattern, "precision": _plain(one)} for pattern, one in value]
    return value
