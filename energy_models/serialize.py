"""Counts as plain data and back, without loss: what was counted once can be priced again without the model.

The data is a table for each kind of record, column by column; columns that hold nothing but the default are left out.
Operands and formats are kept once and referred to by their place. A format is kept as the fields of a `FormatSpec`,
and where its own `storage_bits` differs from that formula, with the bits of each tensor that the counts store in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from energy_models.counts import ElementOps, Gemm, OpCounts, Operand, Zeros
from energy_models.number_formats import FormatSpec, NumberFormat

SCHEMA = 1
_SPEC = tuple(field.name for field in fields(FormatSpec))
_Plain = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True)
class RecordedFormat(FormatSpec):
    """A format of which some tensors' stored bits are known, as (shape, bits), by another rule than `FormatSpec`'s."""

    recorded: tuple[tuple[tuple[int, ...], int], ...] = ()

    def storage_bits(self, shape: Sequence[int]) -> int:
        """Bits of a tensor of `shape`; a shape that was not recorded raises ValueError."""
        known = dict(self.recorded)
        if tuple(shape) not in known:
            raise ValueError(
                f"these counts were stored, and do not know how many bits a tensor of shape {tuple(shape)} takes in "
                f"their {self.kind} format of {self.bits} bits; count the model again"
            )
        return known[tuple(shape)]


def to_plain(counts: OpCounts) -> _Plain:
    """JSON-able data from which `from_plain` makes counts of the same numbers, formats and order."""
    tables = _Tables(counts)
    gemms, ops = tables.columns(Gemm, counts.gemms), tables.columns(ElementOps, counts.element_ops)
    operands = tables.columns(Operand, tables.operands)
    return {
        "schema": SCHEMA,
        "formats": tables.formats,
        "operands": operands,
        "gemms": gemms,
        "element_ops": ops,
        "uncounted": list(counts.uncounted),
    }


def from_plain(plain: Mapping[str, Any]) -> OpCounts:
    """The counts that `to_plain` wrote. Raises ValueError for a newer schema."""
    schema = plain.get("schema")
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise ValueError(
            f"stored counts have schema {schema!r}, and this version reads up to {SCHEMA}: update lowprec-eb"
        )
    formats = [_format(entry) for entry in plain["formats"]]
    decode: dict[str, Callable[[Any], Any]] = {
        "shape": tuple,
        "format": formats.__getitem__,
        "accumulator": formats.__getitem__,
        "zeros": lambda values: Zeros(*values),
    }
    operands = _records(Operand, plain["operands"], decode)
    decode |= {"a": operands.__getitem__, "b": operands.__getitem__}
    gemms, ops = _records(Gemm, plain["gemms"], decode), _records(ElementOps, plain["element_ops"], decode)
    return OpCounts(tuple(gemms), tuple(ops), tuple(plain["uncounted"]))


class _Tables:
    """The formats and operands of some counts, each once."""

    def __init__(self, counts: OpCounts) -> None:
        self.formats: list[list[Any]] = []
        self.operands: list[Operand] = []
        self._places: dict[tuple[Any, ...], int] = {}
        self._shapes: dict[int, set[tuple[int, ...]]] = {}
        for operand in (operand for gemm in counts.gemms for operand in (gemm.a, gemm.b)):
            if not operand.on_chip:
                stored = (operand.nonzeros or 0,) if operand.is_sparse else operand.shape
                self._shapes.setdefault(id(operand.format), set()).add(stored)

    def columns(self, kind: type, records: Sequence[Any]) -> dict[str, list[Any]]:
        """Field name -> values, without the fields that have their default in every record."""
        columns = {}
        for field in fields(kind):
            values = [getattr(record, field.name) for record in records]
            if not all(value == field.default for value in values):
                columns[field.name] = [self._plain(value) for value in values]
        return columns

    def _plain(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, tuple):
            return list(value)
        if isinstance(value, Zeros):
            return [getattr(value, field.name) for field in fields(Zeros)]
        return self._operand(value) if isinstance(value, Operand) else self._format(value)

    def _operand(self, operand: Operand) -> int:
        described = tuple(_hashable(self._plain(getattr(operand, field.name))) for field in fields(Operand))
        if described not in self._places:
            self._places[described] = len(self.operands)
            self.operands.append(operand)
        return self._places[described]

    def _format(self, fmt: NumberFormat) -> int:
        entry = [_listed(getattr(fmt, name)) for name in _SPEC]
        spec = _format(entry)
        stored = {shape: _bits_or_none(fmt, shape) for shape in sorted(self._shapes.get(id(fmt), ()))}
        if any(bits != _bits_or_none(spec, shape) for shape, bits in stored.items()):
            entry.append([[list(shape), bits] for shape, bits in stored.items() if bits is not None])
        if entry not in self.formats:
            self.formats.append(entry)
        return self.formats.index(entry)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _bits_or_none(fmt: NumberFormat, shape: tuple[int, ...]) -> int | None:
    try:
        return fmt.storage_bits(shape)
    except IndexError:  # a slice per index of a dimension that the shape has not
        return None


def _format(entry: Sequence[Any]) -> FormatSpec:
    spec = {name: _hashable(value) for name, value in zip(_SPEC, entry[: len(_SPEC)], strict=True)}
    if len(entry) == len(_SPEC):
        return FormatSpec(**spec)
    return RecordedFormat(**spec, recorded=tuple((tuple(shape), bits) for shape, bits in entry[-1]))


def _records(kind: type[_T], columns: Mapping[str, list[Any]], decode: Mapping[str, Callable[[Any], Any]]) -> list[_T]:
    names = list(columns)
    values = [map(decode.get(name, _same), columns[name]) for name in names]
    return [kind(**dict(zip(names, of, strict=True))) for of in zip(*values, strict=True)]


def _same(value: Any) -> Any:
    return value
