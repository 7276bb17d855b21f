"""A ledger row as flat columns, and as a line of the file.

Schema 2, one JSON object a row, every row with its schema, so that any row can be read by itself and pandas reads the
file as it is. Schema 1 had ``{"schema": 1}`` as its first line and nested rows without a schema; it is still read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from energy_models.ledger.rows import LedgerRow

SCHEMA = 2
_KEY = ("run", "stage", "phase", "epoch", "rank", "attempt")
# For people who read the file; a reader of rows takes them from the other columns.
_DERIVED = ("modelled_low_j", "modelled_nominal_j", "modelled_high_j", "total_macs", "bit_ops")
_NAMED = ("macs", "element_ops", "metrics")
_LARGEST_INTEGER = 2**63 - 1  # that pandas reads; larger ones are written as text
_SCHEMA_1_ENERGY = {"compute_j", "memory_j", "other_j", "traffic_bytes", "corners_j"}
_BEGIN = b'{"schema": '  # of every ledger
_NO_OBJECT = "the line is no JSON object"
_ROW = TypeAdapter(LedgerRow)


def to_columns(row: LedgerRow) -> dict[str, Any]:
    """The row as column name -> number, text or None; ``counts`` and the corners of the model are not flat."""
    return {
        **asdict(row.key),
        "profile": row.profile,
        "samples": row.samples,
        "duration_s": row.duration_s,
        "measured_j": row.measured_j,
        "modelled_low_j": row.modelled.low_j,
        "modelled_nominal_j": row.modelled.nominal_j,
        "modelled_high_j": row.modelled.high_j,
        "total_macs": row.total_macs,
        "bit_ops": float(row.bit_ops),
        **{f"metrics.{name}": metric for name, metric in row.metrics.items()},
        **{f"macs.{gemm}.{bits}": number for gemm, of in row.macs.items() for bits, number in of.items()},
        **{f"element_ops.{kind}": number for kind, number in row.element_ops.items()},
        **dict(flat("modelled", asdict(row.modelled))),
        "counts": row.counts,
    }


def flat(name: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, each with the path to it, dots between."""
    if not isinstance(tree, Mapping):
        yield name, tree
        return
    for key, below in tree.items():
        if "." in key:
            raise ValueError(f"ledger row: {name} has the key {key!r}; dots separate the parts of a column's name")
        yield from flat(f"{name}.{key}", below)


def encode(row: LedgerRow) -> bytes:
    """The row's line, its newline included."""
    return json.dumps({"schema": SCHEMA} | {k: _written(v) for k, v in to_columns(row).items()}).encode() + b"\n"


class Content(NamedTuple):
    """What a ledger's file holds: its complete rows, the schema it was begun in, and how many bytes follow the rows (of
    a row that was cut short)."""

    rows: list[LedgerRow]
    schema: int
    torn_bytes: int


def decode(content: bytes, path: Path) -> Content:
    """Read the content of the file ``path``.

    Raises:
        ValueError: it is no ledger, or one of a newer schema, or a line is damaged; with path and line.
    """
    lines = content.split(b"\n")
    torn = lines.pop()
    if not lines and not _may_begin(torn):
        raise _no_ledger(str(path))
    begun = _first_schema(lines[0], path) if lines else SCHEMA
    start = 1 if begun == 1 else 0  # schema 1 has a header
    rows = [_row(line, begun, path, number) for number, line in enumerate(lines[start:], start + 1)]
    return Content(rows, begun, len(torn))


def _may_begin(torn: bytes) -> bool:
    """Whether this can be the beginning of a ledger whose first write was cut short."""
    begins = (_BEGIN + b"1", _BEGIN + b'2, "run": ')
    return any(begin.startswith(torn) or torn.startswith(begin) for begin in begins)


def _first_schema(line: bytes, path: Path) -> int:
    tree = _json(line)
    if tree is None and line.startswith(_BEGIN):
        raise _damaged(path, 1, _NO_OBJECT)
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if type(schema) is not int or schema < 1:
        raise _no_ledger(f"{path}:1")
    _check_known(schema, f"{path}:1")
    return schema


def _check_known(schema: int, where: str) -> None:
    if schema > SCHEMA:
        raise ValueError(
            f"{where}: the ledger has schema {schema}, and this version reads up to {SCHEMA}: update lowprec-eb"
        )


def _row(line: bytes, begun: int, path: Path, number: int) -> LedgerRow:
    where, tree = f"{path}:{number}", _json(line)
    if not isinstance(tree, dict):
        raise _damaged(path, number, _NO_OBJECT)
    schema = tree.pop("schema", 1)
    if type(schema) is int:
        _check_known(schema, where)
    if schema != begun:
        raise _damaged(path, number, f"schema is {schema!r} in a file that began with schema {begun}")
    try:
        nested = _from_schema_1(tree) if begun == 1 else _from_columns(tree)
        return _ROW.validate_json(json.dumps(nested), strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"])).removeprefix("key.") or "the line"
        raise _damaged(path, number, f"{at}: {first['msg']}") from None
    except ValueError as error:
        raise _damaged(path, number, str(error)) from None


def _no_ledger(where: str) -> ValueError:
    return ValueError(f"{where}: this is not a ledger; give the path of a file that Ledger wrote")


def _damaged(path: Path, number: int, what: str) -> ValueError:
    return ValueError(
        f"{path}:{number}: not a ledger row: {what}. Restore the file from a copy; if it is a stage's, the folder "
        f"{path.parent} can be deleted instead: the stage then runs again from the start"
    )


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:  # what is no text, too
        return None


def _from_schema_1(tree: dict[str, Any]) -> dict[str, Any]:
    tree.pop("bit_ops", None)  # follows from the MACs
    energy = tree.get("modelled")
    if not isinstance(energy, dict) or energy.keys() != _SCHEMA_1_ENERGY:
        raise ValueError(f"modelled must have {', '.join(sorted(_SCHEMA_1_ENERGY))}")
    components = {name: energy[f"{name}_j"] for name in ("compute", "memory", "other")}  # memory: all its levels
    levels = {"memory": energy["traffic_bytes"]}
    return tree | {"modelled": {"components_j": components, "level_bytes": levels, "corners_j": energy["corners_j"]}}


def _from_columns(columns: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {"key": {}, "macs": {}, "element_ops": {}, "metrics": {}}
    for name, value in columns.items():
        head, _, rest = name.partition(".")
        if name in _KEY:
            tree["key"][name] = value
        elif head == "macs" and rest:
            gemm, _, bits = rest.partition(".")
            tree["macs"].setdefault(gemm, {})[bits] = _read(value)
        elif head in ("element_ops", "metrics") and "." in name:
            tree[head][rest] = _read(value) if head == "element_ops" else value
        elif head == "modelled" and rest:
            _put(tree, name.split("."), value)
        elif name not in _DERIVED:
            tree[name] = _read(value) if name == "samples" else value
    return tree


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ValueError(f"column {'.'.join(path)} lies below another column")
    if path[-1] in tree:
        raise ValueError(f"other columns lie below column {'.'.join(path)}")
    tree[path[-1]] = value


def _written(value: Any) -> Any:
    return str(value) if isinstance(value, int) and value > _LARGEST_INTEGER else value


def _read(value: Any) -> Any:
    if isinstance(value, str) and value.isdecimal() and int(value) > _LARGEST_INTEGER:
        return int(value)
    return value
