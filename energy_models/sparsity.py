"""Where the MACs of a sparse model are: removed, computed for nothing, and skippable by hardware that can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from energy_models.counts import Gemm, OpCounts, Zeros

ABILITIES: tuple[str, ...] = tuple(field.name for field in fields(Zeros))
_HEADS = {"two_of_four": "2:4"}


@dataclass(frozen=True, slots=True)
class SparsityRow:
    """MACs of one layer's GEMM; `dense` == `removed` + `computed`.

    removed: not computed, because the model is smaller (compacted) or an operand is stored sparsely.
    masked: computed although an operand is known to be zero or the result is only multiplied by zero; part of
        `computed`. A pruning paper that reports the MACs of a masked model counts `computed` - `masked`.
    skippable: the part of `computed` that hardware which exploits it skips, by field of :class:`Zeros`. One machine's
        abilities overlap: these do not add up.
    """

    layer: str
    gemm: str
    dense: int
    computed: int
    masked: int
    skippable: dict[str, int]

    @property
    def removed(self) -> int:
        """Of the dense MACs, those that are not computed."""
        return self.dense - self.computed


@dataclass(frozen=True, slots=True)
class Sparsity:
    """One row for each layer and GEMM, in the order in which they ran. Printing it gives a table."""

    rows: tuple[SparsityRow, ...]

    @property
    def total(self) -> SparsityRow:
        """All rows together."""
        skippable = {ability: sum(row.skippable[ability] for row in self.rows) for ability in ABILITIES}
        dense, computed, masked = (sum(getattr(row, name) for row in self.rows) for name in _COLUMNS)
        return SparsityRow("total", "", dense, computed, masked, skippable)

    def __str__(self) -> str:
        shown = [ability for ability in ABILITIES if self.total.skippable[ability]]
        head = ["layer", "gemm", "dense", "removed", "computed", "masked", *(_HEADS.get(name, name) for name in shown)]
        lines = [head, *([*map(str, _cells(row, shown))] for row in (*self.rows, self.total))]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join(_aligned(line, widths) for line in lines)


_COLUMNS = ("dense", "computed", "masked")


def _cells(row: SparsityRow, shown: list[str]) -> Iterator[str]:
    yield row.layer
    yield row.gemm
    for value in (row.dense, row.removed, row.computed, row.masked, *(row.skippable[name] for name in shown)):
        yield f"{value:,}"


def _aligned(line: list[str], widths: list[int]) -> str:
    texts = (cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True))
    numbers = (cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True))
    return "  ".join((*texts, *numbers)).rstrip()


def sparsity(counts: OpCounts, dense: OpCounts | None = None) -> Sparsity:
    """What zeros save and what they could save, by layer and GEMM.

    Args:
        counts: of the pruned model: compacted, masked, or both.
        dense: of the model before anything was removed from it, on the same inputs. None: the same shapes without
            sparse storage, so `removed` is what sparse layouts save.

    Raises:
        ValueError: `dense` lacks a layer's GEMM or has fewer MACs there: it is another model, or on other inputs.
    """
    grouped: dict[tuple[str, str], list[Gemm]] = {}
    for gemm in counts.gemms:
        grouped.setdefault((gemm.layer, gemm.gemm), []).append(gemm)
    reference = _macs(counts, whole=True) if dense is None else _macs(dense, whole=False)
    rows = []
    for layer, name in dict.fromkeys((*reference, *grouped)):
        row = _row(layer, name, reference.get((layer, name), 0), grouped.get((layer, name), []))
        if row.removed < 0:
            raise ValueError(
                f"layer {layer!r}, {name} GEMM: {row.computed} MACs are computed, the dense counts have {row.dense}; "
                "count the dense model on the same inputs and in the same mode"
            )
        rows.append(row)
    return Sparsity(tuple(rows))


_Totals = dict[tuple[str, str], int]


def _macs(counts: OpCounts, whole: bool) -> _Totals:
    totals: _Totals = {}
    for gemm in counts.gemms:
        macs = gemm.batch * gemm.m * gemm.n * gemm.k * gemm.times if whole else gemm.macs
        totals[gemm.layer, gemm.gemm] = totals.get((gemm.layer, gemm.gemm), 0) + macs
    return totals


def _row(layer: str, name: str, dense: int, gemms: list[Gemm]) -> SparsityRow:
    skippable = {ability: sum(gemm.skippable_macs(ability) for gemm in gemms) for ability in ABILITIES}
    computed, masked = sum(gemm.macs for gemm in gemms), sum(gemm.masked_macs for gemm in gemms)
    return SparsityRow(layer, name, dense, computed, masked, skippable)
