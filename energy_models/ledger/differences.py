"""Where two ledgers differ, and by how much."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from energy_models.ledger.columns import flat
from energy_models.ledger.file import Ledger
from energy_models.ledger.rows import LedgerKey, LedgerRow
from energy_models.ledger.sums import settled, totals

BY = ("stage", "phase", "epoch", "rank")
_KEY_FIELDS = tuple(field.name for field in fields(LedgerKey))
_Group = tuple[Any, ...]  # texts and numbers, in the places that `by` gives them


@dataclass(frozen=True)
class Change:
    """One quantity in both ledgers (None: one of them has it not)."""

    name: str
    a: float | str | None
    b: float | str | None

    @property
    def difference(self) -> float | None:
        """b - a, of two numbers."""
        if isinstance(self.a, str) or isinstance(self.b, str) or self.a is None or self.b is None:
            return None
        return self.b - self.a

    @property
    def ratio(self) -> float | None:
        """b / a, of two numbers."""
        return None if self.difference is None or not self.a else self.b / self.a  # type: ignore[operator]


@dataclass(frozen=True)
class GroupDifference:
    """A group of rows that is not the same in both ledgers, or in one of them alone."""

    group: _Group
    only_in: Literal["a", "b"] | None
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class LedgerDiff:
    """Groups of rows that differ, in the order of their names, and the quantities that differ in total.

    ``by`` says which parts of the key name a group. It is false when nothing differs.
    """

    by: tuple[str, ...]
    groups: tuple[GroupDifference, ...]
    totals: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.groups or self.totals)


def diff(
    a: Ledger | str | Path | Iterable[LedgerRow],
    b: Ledger | str | Path | Iterable[LedgerRow],
    *,
    by: Sequence[str] = BY,
    ignore: Sequence[str] = (),
) -> LedgerDiff:
    """Compare the settled rows of two ledgers, exactly.

    Args:
        by: the parts of a row's key that name a group; groups of the same name are compared, each summed as ``totals``
            does. The default compares single rows and leaves the name of the run aside; ("phase",) compares phases.
        ignore: quantities that may differ, such as "duration_s".
    """
    if unknown := [name for name in by if name not in _KEY_FIELDS]:
        raise ValueError(f"diff: by has {unknown[0]!r}; the parts of a key are {', '.join(_KEY_FIELDS)}")
    rows_a, rows_b = _rows(a), _rows(b)
    of_a, of_b = _grouped(rows_a, by), _grouped(rows_b, by)
    groups = []
    for group in sorted({**of_a, **of_b}):
        changes = _changes(of_a.get(group, []), of_b.get(group, []), ignore)
        if group not in of_a or group not in of_b:
            groups.append(GroupDifference(group, "b" if group in of_b else "a", changes))
        elif changes:
            groups.append(GroupDifference(group, None, changes))
    return LedgerDiff(tuple(by), tuple(groups), _changes(rows_a, rows_b, ignore))


def _rows(given: Ledger | str | Path | Iterable[LedgerRow]) -> list[LedgerRow]:
    if isinstance(given, str | Path):
        given = Ledger(given)
    return given.settled() if isinstance(given, Ledger) else settled(given)


def _grouped(rows: Iterable[LedgerRow], by: Sequence[str]) -> dict[_Group, list[LedgerRow]]:
    groups: dict[_Group, list[LedgerRow]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row.key, name) for name in by), []).append(row)
    return groups


def _changes(a: list[LedgerRow], b: list[LedgerRow], ignore: Sequence[str]) -> tuple[Change, ...]:
    of_a, of_b = _quantities(a), _quantities(b)
    changes = (Change(name, of_a.get(name), of_b.get(name)) for name in {**of_a, **of_b} if name not in ignore)
    return tuple(change for change in changes if change.a != change.b and not (_is_nan(change.a) and _is_nan(change.b)))


def _quantities(rows: list[LedgerRow]) -> dict[str, Any]:
    """What is compared of a group: its sums; of a single row its metrics, too."""
    if not rows:
        return {}
    total = totals(rows)
    metrics = rows[0].metrics if len(rows) == 1 else {}
    modelled = {name: value for name, value in flat("modelled", asdict(total.modelled)) if isinstance(value, float)}
    return {
        "rows": len(rows),
        "samples": total.samples,
        **{f"macs.{gemm}": number for gemm, number in total.macs.items()},
        "bit_ops": total.bit_ops,
        "profile": rows[0].profile,
        **{f"modelled_{end}_j": getattr(total.modelled, f"{end}_j") for end in ("low", "nominal", "high")},
        **modelled,
        "measured_j": total.measured_j,
        "duration_s": total.duration_s,
        **{f"metrics.{name}": value for name, value in metrics.items()},
    }


def _is_nan(value: object) -> bool:
    return value != value
