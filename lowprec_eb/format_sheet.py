"""What a number format is and does, as one sheet: derived values, exact meaning, stored bits, and its noise.

The tables of ``lowprec-eb formats`` and docs/formats.md say what stands here, and the tests hold it against
:func:`lowprec_eb.quantize`.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lowprec_eb.formats import (
    MX,
    BlockFloat,
    FixedPoint,
    Float,
    Format,
    Int,
    ScaledFloat,
    as_format,
    format_name,
    is_affine,
)
from lowprec_eb.quantize import Rounding, decode, quantize

SCHEMA = 1
SHAPE = (1024, 1024)
LISTED_BITS = 8  # of formats up to here every value can be listed
_SAMPLES = 1 << 14
_ROW = 1 << 10  # samples along the last dimension of a matrix


@dataclass(frozen=True)
class Semantics:
    """What a format does in each case that number formats differ in; short texts, a column each in the docs."""

    ties: str
    beyond_range: str
    subnormals: str
    signed_zero: str
    nan: str
    infinity: str
    idempotent: str
    scale: str
    stored_bits: str


@dataclass(frozen=True)
class FormatSheet:
    """All about one format. ``largest`` and ``smallest`` are magnitudes at scale 1, the others over all scales."""

    name: str
    constructor: str
    kind: str
    bits: int
    exponent_bits: int
    mantissa_bits: int
    block: str | None
    scale_bits: int
    tensor_scale_bits: int
    shape: tuple[int, ...]
    storage_bits: int  # of a tensor of ``shape``, every scale counted
    bits_per_element: float
    largest: float
    smallest: float
    largest_overall: float
    smallest_overall: float
    block_range_db: float
    dynamic_range_db: float
    semantics: Semantics


def format_sheet(number: Any, shape: Sequence[int] = SHAPE) -> FormatSheet:
    """The sheet of a format, a name, a constructor call as text or a qtorch number.

    Raises:
        ValueError: not a format, or its blocks lie along a dimension that ``shape`` lacks.
    """
    fmt = as_format(number)
    if not math.prod(shape):
        raise ValueError(f"shape: needs at least one element, got {tuple(shape)}")
    try:
        stored = fmt.storage_bits(shape)
    except ValueError as error:
        raise ValueError(f"{format_name(fmt)}: {error}; count another shape (--shape 64x16x3x3)") from error
    return FormatSheet(
        name=format_name(fmt),
        constructor=repr(fmt),
        kind=fmt.kind,
        bits=fmt.bits,
        exponent_bits=fmt.exponent_bits,
        mantissa_bits=fmt.mantissa_bits,
        block=_block_text(fmt),
        scale_bits=fmt.scale_bits,
        tensor_scale_bits=fmt.tensor_scale_bits,
        shape=tuple(shape),
        storage_bits=stored,
        bits_per_element=stored / math.prod(shape),
        largest=float(fmt.levels) if is_affine(fmt) else fmt.element.max,
        smallest=fmt.element.smallest,
        largest_overall=fmt.max,
        smallest_overall=fmt.smallest,
        block_range_db=fmt.block_range_db,
        dynamic_range_db=fmt.dynamic_range_db,
        semantics=semantics(fmt),
    )


def parse_shape(text: str) -> tuple[int, ...]:
    """The shape written as ``"64x3x3"``.

    Raises:
        ValueError: not whole numbers from 1 joined by x.
    """
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ValueError(f"shape: write it as 64x3x3, whole numbers from 1, got {text!r}")
    return tuple(map(int, sizes))


# ---- meaning -----------------------------------------------------------------------------------------------------


def semantics(fmt: Format) -> Semantics:
    """What ``fmt`` does, read off its fields."""
    element = fmt.element
    of_element = _float_semantics(element) if isinstance(element, Float) else _integer_semantics(element)
    if is_affine(fmt) and fmt.zero_point == "minimum":
        of_element |= {"signed_zero": "zero may lie off the grid"}
    if fmt.blocks is not None:
        of_element |= {"beyond_range": _beyond_scaled_range(fmt), "infinity": _scaled_infinity(fmt)}
    return Semantics(**of_element, idempotent=_idempotent(fmt), scale=_scale_text(fmt), stored_bits=_stored_text(fmt))


def _float_semantics(element: Float) -> dict[str, str]:
    nan = "kept" if element.specials != "none" else "kept, no code"
    beyond = {"saturate": f"saturates at ±{element.max:g}", "infinity": "infinity", "nan": "NaN"}[element.overflow]
    return {
        "ties": "to even" if element.ties == "even" else "away from zero",
        "beyond_range": beyond,
        "subnormals": "yes" if element.subnormals else "no",
        "signed_zero": "-0 kept",
        "nan": "error" if element.nan == "error" else nan,
        "infinity": {"saturate": f"±{element.max:g}", "infinity": "kept", "nan": "NaN"}[element.overflow],
    }


def _integer_semantics(element: FixedPoint) -> dict[str, str]:
    ends = f"{element.min:g} and {element.max:g}"
    return {
        "ties": "to even",
        "beyond_range": f"clamps to {ends}" if element.clamp else "passes, rounded",
        "subnormals": "even grid",
        "signed_zero": "+0 only",
        "nan": "kept, no code",
        "infinity": ends if element.clamp else "kept, no code",
    }


def _beyond_scaled_range(fmt: Format) -> str:
    if isinstance(fmt, Int) or (isinstance(fmt, ScaledFloat) and fmt.scale is None):
        return "only under a given scale: saturates"
    return "largest of its block"


def _scaled_infinity(fmt: Format) -> str:
    """A found scale says nothing about an infinity, which passes; a given one saturates it."""
    has_code = isinstance(fmt.element, Float) and fmt.element.specials == "ieee"
    given = "; given scale: saturates" if isinstance(fmt, Int | ScaledFloat) else ""
    return ("kept" if has_code else "kept, no code") + given


def _idempotent(fmt: Format) -> str:
    if is_affine(fmt):
        return "given its scales"
    if isinstance(fmt, ScaledFloat) and fmt.scale is not None:
        # The block's largest must round back to the element's largest after the scale's own rounding.
        element = fmt.element
        half_last_step = 2.0 ** (element.max_exponent - element.man - 1) / element.max
        return "nearest, normal scales" if 2.0 ** -(fmt.scale.man + 1) < half_last_step else "no"
    return "yes"


def _scale_text(fmt: Format) -> str:
    match fmt:
        case BlockFloat():
            return "2^e, e the exponent of the largest"
        case MX():
            power = f"(e - {fmt.element.max_exponent})" if fmt.element.max_exponent else "e"
            return f"2^{power}, e the exponent of the largest"
        case Int(symmetric=True):
            return f"largest / {fmt.levels}, or given"
        case Int(zero_point="integer"):
            return f"(max - min, zero included) / {fmt.levels}, or given"
        case Int():
            return f"(max - min) / {fmt.levels}, or given"
        case ScaledFloat():
            return f"largest / {fmt.element.max:g}{_rounded_to(fmt)}, or given"
    return "none"


def _rounded_to(fmt: ScaledFloat) -> str:
    if fmt.scale is None:
        return ""
    return f" in {format_name(fmt.scale)}" + (" times the tensor's" if fmt.tensor_scale else "")


def _stored_text(fmt: Format) -> str:
    parts = [str(fmt.bits)]
    if fmt.blocks is not None:
        parts.append(f"{fmt.scale_bits} per {_block_text(fmt)}")
    if fmt.tensor_scale_bits:
        parts.append(f"{fmt.tensor_scale_bits} per tensor")
    return " + ".join(parts)


def _block_text(fmt: Format) -> str | None:
    blocks = fmt.blocks
    if blocks is None:
        return None
    if blocks.size is not None:
        return f"block of {blocks.size}" + ("" if blocks.axis == -1 else f" along dim {blocks.axis}")
    if not blocks.slices:
        return "tensor"
    return "slice of dim " + ", ".join(map(str, blocks.slices))


# ---- values ------------------------------------------------------------------------------------------------------


def positive_values(fmt: Format) -> list[float]:
    """All positive values of a block at scale 1, ascending; of an affine format the steps above its zero point.

    Raises:
        ValueError: more than 8 bits, which are too many values to list.
    """
    if fmt.bits > LISTED_BITS:
        raise ValueError(f"{format_name(fmt)} has {fmt.bits} bits; values are listed up to {LISTED_BITS}")
    values = float_codes(fmt.element) if isinstance(fmt.element, Float) else _integers(fmt)
    return sorted({value for value in values if 0 < value < math.inf})


def float_codes(element: Float) -> list[float]:
    """The value of each non-negative code, in the order of the codes."""
    values: list[float] = decode(torch.arange(2 ** (element.bits - 1)), None, element, dtype=torch.float64).tolist()
    return values


def _integers(fmt: Format) -> list[float]:
    assert isinstance(fmt.element, FixedPoint)
    last = fmt.levels if is_affine(fmt) else fmt.element.max_code
    return [code * fmt.element.step for code in range(1, last + 1)]


# ---- noise -------------------------------------------------------------------------------------------------------


def sample_shape(fmt: Format) -> tuple[int, ...]:
    """16384 samples as 16 x 1024, or with as many dimensions as the blocks of ``fmt`` need."""
    blocks = fmt.blocks
    named = () if blocks is None else blocks.slices if blocks.size is None else (blocks.axis,)
    rank = max([2, *(d + 1 if d >= 0 else -d for d in named)])
    if rank == 2:
        return _SAMPLES // _ROW, _ROW
    side = round((_SAMPLES // 64) ** (1 / (rank - 1)))
    return (*[side] * (rank - 1), 64)


def sqnr_db(fmt: Format, stds: Sequence[float], rounding: Rounding = "nearest", seed: int = 0) -> list[float]:
    """Signal-to-quantization-noise ratio in dB of Gaussian samples of each standard deviation.

    ``10 log10(sum x^2 / sum (x - quantize(x))^2)`` over :func:`sample_shape` float64 samples, the same for every
    standard deviation but for their scale. NaN where a sample overflows to infinity.
    """
    generator = torch.Generator().manual_seed(seed)
    unit = torch.randn(sample_shape(fmt), generator=generator, dtype=torch.float64)
    return [_ratio_db(unit, quantize(unit * std, fmt, rounding, seed=seed) / std) for std in stds]


def _ratio_db(signal: Tensor, rounded: Tensor) -> float:
    noise = float((signal - rounded).square().mean())
    if not 0 < noise < math.inf:
        return math.nan
    return 10 * math.log10(float(signal.square().mean()) / noise)


# ---- files -------------------------------------------------------------------------------------------------------


def sheets_csv(sheets: Sequence[FormatSheet]) -> str:
    """One line a format, full precision; units in the column names."""
    text = io.StringIO()
    lines = [_flat(sheet) for sheet in sheets]
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def sheets_json(sheets: Sequence[FormatSheet]) -> str:
    """All sheets, with the fields of each format, and the positive values of those up to 8 bits."""
    tree = {"schema": SCHEMA, "formats": [_tree(sheet) for sheet in sheets]}
    return json.dumps(tree, indent=2, allow_nan=False) + "\n"


def _flat(sheet: FormatSheet) -> dict[str, Any]:
    cells: dict[str, Any] = {name: value for name, value in vars(sheet).items() if name != "semantics"}
    cells["shape"] = "x".join(map(str, sheet.shape))
    return cells | vars(sheet.semantics)


def _tree(sheet: FormatSheet) -> dict[str, Any]:
    fmt = as_format(sheet.constructor)
    listed = positive_values(fmt) if fmt.bits <= LISTED_BITS else None
    return vars(sheet) | {
        "fields": field_values(fmt),
        "semantics": vars(sheet.semantics),
        "positive_values_at_scale_1": listed,
    }


def field_values(fmt: Format) -> dict[str, Any]:
    """The constructor's arguments, defaults included; formats as their constructor call."""
    values = {field.name: getattr(fmt, field.name) for field in fields(fmt)}  # type: ignore[arg-type]
    return {name: repr(value) if isinstance(value, Format) else value for name, value in values.items()}
