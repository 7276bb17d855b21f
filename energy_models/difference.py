"""Two counts side by side, layer by layer and GEMM by GEMM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from energy_models.counts import OpCounts
from energy_models.units import aligned, si_text

_SHOWN = 12


@dataclass(frozen=True)
class DifferenceRow:
    """One layer's GEMM in both counts; of a total, `layer` is None."""

    layer: str | None
    gemm: str
    macs: tuple[int, int]
    bit_ops: tuple[int, int]

    @property
    def ratio(self) -> float | None:
        """MACs of the second over those of the first; None where the first has none."""
        return self.macs[1] / self.macs[0] if self.macs[0] else None

    @property
    def bit_ops_ratio(self) -> float | None:
        """Bit-ops of the second over those of the first; None where the first has none."""
        return self.bit_ops[1] / self.bit_ops[0] if self.bit_ops[0] else None


@dataclass(frozen=True)
class Difference:
    """What :func:`difference` found: a row for each GEMM in all (`by_gemm`), and for each GEMM of each layer.

    Work outside the GEMMs is compared as `operations` and `traffic_bytes`, in all.
    """

    names: tuple[str, str]
    by_gemm: tuple[DifferenceRow, ...]
    by_layer: tuple[DifferenceRow, ...]
    operations: tuple[int, int]
    traffic_bytes: tuple[float, float]

    @property
    def total(self) -> DifferenceRow:
        """All GEMMs together."""
        return _summed("all", self.by_gemm)

    @property
    def differing(self) -> tuple[DifferenceRow, ...]:
        """Rows of `by_layer` that are not equal, the largest difference in MACs first, then in bit-ops."""
        found = [row for row in self.by_layer if len({*row.macs}) > 1 or len({*row.bit_ops}) > 1]
        return tuple(sorted(found, key=lambda row: (-_distance(row.macs), -_distance(row.bit_ops))))

    def rows(self) -> list[dict[str, Any]]:
        """One flat dict for each GEMM of each layer, for pandas; columns are named after the counts."""
        first, second = self.names
        return [
            {
                "layer": row.layer,
                "gemm": row.gemm,
                f"macs_{first}": row.macs[0],
                f"macs_{second}": row.macs[1],
                "macs_ratio": row.ratio,
                f"bit_ops_{first}": row.bit_ops[0],
                f"bit_ops_{second}": row.bit_ops[1],
                "bit_ops_ratio": row.bit_ops_ratio,
            }
            for row in self.by_layer
        ]

    def __str__(self) -> str:
        first, second = self.names
        headings = ["", f"MACs {first}", f"MACs {second}", "ratio", f"bit-ops {first}", f"bit-ops {second}", "ratio"]
        lines = [headings, *(_line(row.gemm, row) for row in (*self.by_gemm, self.total))]
        differing = self.differing
        if differing:
            lines.append([""] * len(headings))
            lines += [_line(f"{row.layer or '(model)'}: {row.gemm}", row) for row in differing[:_SHOWN]]
        text = aligned(lines)
        if len(differing) > _SHOWN:
            text += f"\n... {len(differing) - _SHOWN} more GEMMs of layers differ: rows() has all"
        others = [
            f"operations outside GEMMs: {first} {si_text(self.operations[0])}, {second} {si_text(self.operations[1])}",
            f"traffic: {first} {si_text(self.traffic_bytes[0], 'B')}, {second} {si_text(self.traffic_bytes[1], 'B')}",
        ]
        return "\n".join([text, *others])


def difference(exact: OpCounts, other: OpCounts, names: tuple[str, str] = ("exact", "other")) -> Difference:
    """Compare two counts: exact and a paper's bookkeeping, dense and pruned, one precision and another.

    Layers are matched by name, so a layer that only one of them has stands beside zeros.
    """
    if len(set(names)) != 2 or not all(names):
        raise ValueError(f"names must be two different texts, got {names!r}")
    sums: dict[tuple[str, str], list[int]] = {}
    for side, counts in enumerate((exact, other)):
        for gemm in counts.gemms:
            found = sums.setdefault((gemm.layer, gemm.gemm), [0, 0, 0, 0])
            found[side] += gemm.macs
            found[2 + side] += gemm.bit_ops
    by_layer = tuple(DifferenceRow(*key, (n[0], n[1]), (n[2], n[3])) for key, n in sums.items())
    gemms = dict.fromkeys((*exact.macs, *other.macs))
    return Difference(
        names,
        tuple(_summed(name, [row for row in by_layer if row.gemm == name]) for name in gemms),
        by_layer,
        (_operations(exact), _operations(other)),
        (sum(exact.traffic_bytes.values()), sum(other.traffic_bytes.values())),
    )


def _operations(counts: OpCounts) -> int:
    return sum(op.operations for op in counts.element_ops)


def _summed(gemm: str, rows: Iterable[DifferenceRow]) -> DifferenceRow:
    macs, bit_ops = [0, 0], [0, 0]
    for row in rows:
        for side in (0, 1):
            macs[side] += row.macs[side]
            bit_ops[side] += row.bit_ops[side]
    return DifferenceRow(None, gemm, (macs[0], macs[1]), (bit_ops[0], bit_ops[1]))


def _distance(pair: tuple[int, int]) -> int:
    return abs(pair[0] - pair[1])


def _line(name: str, row: DifferenceRow) -> list[str]:
    macs, bit_ops = map(si_text, row.macs), map(si_text, row.bit_ops)
    return [name, *macs, _ratio_text(row.ratio), *bit_ops, _ratio_text(row.bit_ops_ratio)]


def _ratio_text(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return f"x{ratio:.0f}" if ratio >= 1000 else f"x{ratio:#.3g}"
