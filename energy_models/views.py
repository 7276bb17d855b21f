"""What people see of counts: rows for pandas, a summary of few lines, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from energy_models.units import share_text, si_text

if TYPE_CHECKING:
    from energy_models.counts import ElementOps, Gemm, OpCounts

SCHEMA = 1
ZEROS = (
    "element",
    "channel",
    "two_of_four",
    "causal",
    "dead",
    "removable",
)  # what a machine may exploit, see `energy_models.counts.Zeros`
# Of every row. Exactly one of gemm and kind is set; what a row of the other sort lacks is None, or 0 where it is work.
COLUMNS = (
    *("layer", "part", "gemm", "kind", "batch", "m", "n", "k", "times", "elements"),
    *("a", "a_kind", "a_bits", "b", "b_kind", "b_bits", "result_bits", "accumulator_bits"),
    *(
        "macs",
        "bit_ops",
        "masked_macs",
        *(f"{name}_zero_macs" for name in ZEROS),
        "operations",
        "fp_add",
        "fp_mul",
        "int_add",
        "read_bytes",
        "written_bytes",
    ),
)
_NAMED = 6  # entries of a line of the summary


def rows(counts: OpCounts) -> list[dict[str, Any]]:
    """One flat dict for each GEMM and each element operation, with the keys `COLUMNS`."""
    return [*map(_gemm_row, counts.gemms), *map(_element_row, counts.element_ops)]


def to_csv(counts: OpCounts) -> str:
    """The rows as CSV, with a line of headings; an empty cell for None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(counts))
    return text.getvalue()


def to_json(counts: OpCounts) -> str:
    """Schema number, totals, what is not counted, and the rows."""
    tree = {"schema": SCHEMA, "totals": totals(counts), "uncounted": list(counts.uncounted), "rows": rows(counts)}
    return json.dumps(tree, indent=1) + "\n"


def short(counts: OpCounts) -> str:
    """One line: MACs, and how many rows there are."""
    found = f"{len(counts.gemms)} GEMMs, {len(counts.element_ops)} element operations"
    missing = f", {len(counts.uncounted)} uncounted" if counts.uncounted else ""
    return f"<OpCounts: {si_text(counts.total_macs, 'MACs')}, {found}{missing}>"


def _gemm_row(gemm: Gemm) -> dict[str, Any]:
    a, b = gemm.a, gemm.b
    return {
        "layer": gemm.layer,
        "part": gemm.part,
        "gemm": gemm.gemm,
        "kind": None,
        "batch": gemm.batch,
        "m": gemm.m,
        "n": gemm.n,
        "k": gemm.k,
        "times": gemm.times,
        "elements": gemm.result_elements,
        "a": a.name,
        "a_kind": a.format.kind,
        "a_bits": a.bits,
        "b": b.name,
        "b_kind": b.format.kind,
        "b_bits": b.bits,
        "result_bits": gemm.result_bits,
        "accumulator_bits": gemm.accumulator.bits,
        "macs": gemm.macs,
        "bit_ops": gemm.bit_ops,
        "masked_macs": gemm.masked_macs,
        **{f"{name}_zero_macs": gemm.skippable_macs(name) for name in ZEROS},
        "operations": 0,
        "fp_add": 0,
        "fp_mul": 0,
        "int_add": 0,
        "read_bytes": (a.stored_bits + b.stored_bits) * gemm.times / 8,
        "written_bytes": gemm.result_elements * gemm.result_bits * gemm.times / 8,
    }


def _element_row(op: ElementOps) -> dict[str, Any]:
    return dict.fromkeys(COLUMNS) | {
        "layer": op.layer,
        "part": op.part,
        "kind": op.kind,
        "times": op.times,
        "elements": op.elements,
        "macs": 0,
        "bit_ops": 0,
        "masked_macs": 0,
        **dict.fromkeys((f"{name}_zero_macs" for name in ZEROS), 0),
        "operations": op.operations,
        "fp_add": op.fp_add * op.times,
        "fp_mul": op.fp_mul * op.times,
        "int_add": op.int_add * op.times,
        "read_bytes": op.read_bits * op.times / 8,
        "written_bytes": op.write_bits * op.times / 8,
    }


def totals(counts: OpCounts) -> dict[str, Any]:
    """MACs by GEMM and in all, bit-ops, operations by kind, bytes moved by GEMM and part."""
    return {
        "macs": counts.macs,
        "total_macs": counts.total_macs,
        "bit_ops": counts.bit_ops,
        "masked_macs": sum(gemm.masked_macs for gemm in counts.gemms),
        "operations": operations_by_kind(counts),
        "traffic_bytes": counts.traffic_bytes,
    }


def operations_by_kind(counts: OpCounts) -> dict[str, int]:
    """Adds and multiplications outside the GEMMs by kind, the most first."""
    found: dict[str, int] = {}
    for op in counts.element_ops:
        found[op.kind] = found.get(op.kind, 0) + op.operations
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def summary(counts: OpCounts) -> str:
    """A few lines: MACs by GEMM, bit-ops by operand bits, operations by kind, traffic by part, what is missing."""
    macs, operations, traffic = counts.macs, operations_by_kind(counts), counts.traffic_bytes
    bits: dict[str, int] = {}
    for (_, low, high), n in counts.macs_by_bits.items():
        bits[f"{low} x {high} bit"] = bits.get(f"{low} x {high} bit", 0) + n
    lines = [
        f"MACs         {si_text(counts.total_macs):>8}   {_parts(macs)}",
        f"bit-ops      {si_text(counts.bit_ops):>8}   {_shares(bits)}".rstrip(),
        f"element ops  {si_text(sum(operations.values())):>8}   {_parts(operations)}".rstrip(),
        f"traffic      {si_text(sum(traffic.values()), 'B'):>8}   {_parts(traffic, 'B')}".rstrip(),
    ]
    masked = sum(gemm.masked_macs for gemm in counts.gemms)
    if masked:
        lines.append(f"masked MACs  {si_text(masked):>8}   {share_text(masked, counts.total_macs)} read a known zero")
    return "\n".join([*lines, f"not counted  {missing_text(counts.uncounted)}"])


def _parts(found: Mapping[str, float], unit: str = "") -> str:
    largest = sorted(((n, name) for name, n in found.items() if n), key=lambda item: -item[0])
    shown = [f"{name} {si_text(n, unit)}" for n, name in largest[:_NAMED]]
    return ", ".join([*shown, f"{len(largest) - _NAMED} more"] if len(largest) > _NAMED else shown)


def _shares(found: Mapping[str, int]) -> str:
    whole = sum(found.values())
    return ", ".join(f"{name} {share_text(n, whole)} of MACs" for name, n in found.items() if n)


def missing_text(uncounted: Sequence[str]) -> str:
    """Operators without a formula, each with the layer (or how many) that calls it; "nothing" if there is none."""
    layers: dict[str, list[str]] = {}
    for entry in uncounted:
        layer, _, op = entry.rpartition(": ")
        layers.setdefault(op, []).append(layer)
    texts = [f"{op} in {of[0] if len(of) == 1 else f'{len(of)} layers'}" for op, of in layers.items()]
    return ", ".join(texts) or "nothing"
