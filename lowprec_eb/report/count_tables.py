"""Operation counts for people: what each layer's GEMMs do, and totals of several precisions side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

from energy_models.counts import GEMMS, Gemm, OpCounts
from energy_models.estimate import estimate
from energy_models.layer_energy import energy_by_part
from energy_models.profiles import HardwareProfile
from energy_models.units import share_text, si_text
from energy_models.views import operations_by_kind

Order = Literal["model", "largest"]
_SHAPES = 2  # of different products of a layer that are shown


@dataclass(frozen=True)
class LayerWork:
    """All GEMMs of one layer: MACs by GEMM, the shapes of its forward products, and bits of the operands."""

    layer: str
    macs: Mapping[str, int]
    shapes: tuple[str, ...]
    bits: tuple[str, ...]

    @property
    def total(self) -> int:
        """MACs of all GEMMs."""
        return sum(self.macs.values())


def layer_work(counts: OpCounts, order: Order = "model") -> list[LayerWork]:
    """One entry for each layer that has a GEMM: as the model calls them, or those with the most MACs first."""
    by_layer: dict[str, list[Gemm]] = {}
    for gemm in counts.gemms:
        by_layer.setdefault(gemm.layer, []).append(gemm)
    found = [_work(layer, gemms) for layer, gemms in by_layer.items()]
    return found if order == "model" else sorted(found, key=lambda work: -work.total)


def _work(layer: str, gemms: Sequence[Gemm]) -> LayerWork:
    macs: dict[str, int] = dict.fromkeys(GEMMS, 0)
    for gemm in gemms:
        macs[gemm.gemm] = macs.get(gemm.gemm, 0) + gemm.macs
    forward = [gemm for gemm in gemms if gemm.gemm == "output"] or gemms
    shapes = dict.fromkeys(f"{g.batch}: {g.m} x {g.n} x {g.k}" for g in forward)
    bits = dict.fromkeys(f"{min(g.a.bits, g.b.bits)}x{max(g.a.bits, g.b.bits)}" for g in gemms)
    return LayerWork(layer, macs, tuple(shapes), tuple(bits))


def largest(work: Sequence[LayerWork], limit: int | None) -> list[LayerWork]:
    """The ``limit`` layers with the most MACs (None: all), in the order in which they were."""
    if limit is None or limit >= len(work):
        return list(work)
    kept = {item.layer for item in sorted(work, key=lambda item: -item.total)[:limit]}
    return [item for item in work if item.layer in kept]


def build_layer_table(
    work: Sequence[LayerWork], types: Mapping[str, str], limit: int | None = None
) -> tuple[Table, list[LayerWork]]:
    """A row a layer, and the rows that are shown.

    Args:
        types: layer -> name of its class. limit: most rows; the layers with the fewest MACs are left out.
    """
    shown, whole = largest(work, limit), sum(item.total for item in work)
    gemms = [name for name in dict.fromkeys(n for w in work for n in w.macs) if any(w.macs.get(name) for w in work)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold", min_width=8)
    table.add_column("type", overflow="fold")
    table.add_column("output GEMM\nbatch: m x n x k", no_wrap=True)
    for name in gemms:
        table.add_column(Text(name.replace("_", "\n") + "\n[MACs]"), justify="right", no_wrap=True)
    table.add_column("bits", overflow="fold", min_width=5)
    table.add_column("share", justify="right", no_wrap=True)
    for item in shown:
        macs = (si_text(item.macs.get(name, 0)) for name in gemms)
        more = [f"{len(item.shapes) - _SHAPES} more"] if len(item.shapes) > _SHAPES else []
        shapes = "\n".join([*item.shapes[:_SHAPES], *more])
        cells = (item.layer or "(model)", types.get(item.layer, ""), shapes, *macs, ", ".join(item.bits))
        table.add_row(*map(Text, cells), Text(share_text(item.total, whole)))
    return table, shown


def build_totals_table(counts: Mapping[str, OpCounts]) -> Table:
    """MACs, bit-ops, element operations by kind and traffic, a column for each count (a precision, say)."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("total", no_wrap=True)
    for name in counts:
        table.add_column(Text(name), justify="right", no_wrap=True)
    every = list(counts.values())
    macs = [count.macs for count in every]
    sections: list[tuple[str, str, Sequence[Mapping[str, float]]]] = [
        ("MACs", "", macs),
        ("FLOPs of the GEMMs (2 a MAC)", "", [{"": 2 * count.total_macs} for count in every]),
        ("MACs by operand bits", "", [_by_bits(count) for count in every]),
        ("bit-ops (MACs x bits x bits)", "", [{"": count.bit_ops} for count in every]),
        ("masked MACs (of those above)", "", [{"": sum(g.masked_macs for g in c.gemms)} for c in every]),
        ("element operations", "", [operations_by_kind(count) for count in every]),
        ("traffic", "B", [count.traffic_bytes for count in every]),
    ]
    for title, unit, values in sections:
        _add_section(table, title, unit, values)
    return table


def build_energy_table(counts: OpCounts, profile: HardwareProfile) -> Table:
    """Modelled joules by component, low, nominal and high, and by part of a step."""
    whole = estimate(counts, profile)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(Text(f"modelled energy, {profile.name}"), no_wrap=True)
    for heading in ("low", "nominal", "high"):
        table.add_column(heading, justify="right", no_wrap=True)
    parts = {name: energy.total_j for name, energy in energy_by_part(counts, profile).items()}
    for name, energy in ({"total": whole.total_j} | dict(whole.components_j) | parts).items():
        style = "bold" if name == "total" else ""
        cells = (si_text(value, "J") for value in (energy.low, energy.nominal, energy.high))
        table.add_row(Text(name if style else f"  {name}", style=style), *map(Text, cells))
    return table


def _by_bits(counts: OpCounts) -> dict[str, int]:
    found: dict[str, int] = {}
    for (_, low, high), macs in counts.macs_by_bits.items():
        found[f"{low} x {high}"] = found.get(f"{low} x {high}", 0) + macs
    return found


def _add_section(table: Table, title: str, unit: str, values: Sequence[Mapping[str, float]]) -> None:
    sums = [sum(found.values()) for found in values]
    names = list(dict.fromkeys(name for found in values for name in found if name and any(v.get(name) for v in values)))
    if not any(sums):
        return
    if title != "MACs by operand bits":
        table.add_row(Text(title, style="bold"), *_cells(sums, unit))
    else:
        table.add_row(Text(title, style="bold"))
    for name in names:
        table.add_row(Text(f"  {name}"), *_cells([found.get(name, 0) for found in values], unit))


def _cells(values: Iterable[float], unit: str) -> list[Text]:
    return [Text(si_text(value, unit)) for value in values]
