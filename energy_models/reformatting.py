"""GEMMs in other formats, quickly: a schedule that changes bits asks at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from energy_models.number_formats import FP32, NumberFormat, is_fp32

if TYPE_CHECKING:
    from energy_models.counts import ElementOps, Gemm, Operand

FormatOf = Callable[[str, str, str], NumberFormat | None]
QuantizerRow = Callable[["Gemm", "Operand", int, bool], "ElementOps"]

_Reads = dict[tuple[int, int], tuple[dict[str, int], "Gemm", "Operand"]]


class Reformatter:
    """Makes each GEMM and each quantizer's row once for each of the formats that it meets, and hands it out again.

    Args:
        gemms: what is read in other formats; those of an optimizer stay as they are.
        row: (a GEMM that reads the operand, operand, times, whether a forward GEMM reads it) -> quantizer's row.
    """

    def __init__(self, gemms: Sequence[Gemm], row: QuantizerRow) -> None:
        self._gemms, self._row = gemms, row
        self._numbers: dict[NumberFormat, int] = {FP32: 0}
        self._formats: list[NumberFormat] = [FP32]
        self._is_fp32 = [True]
        self._made: dict[tuple[int, int, int, int], Gemm] = {}
        self._rows: dict[tuple[Any, ...], ElementOps] = {}
        tensors: dict[Any, int] = {}

        def tensor(layer: str, operand: Operand) -> int:
            """Whichever GEMM of its layer reads it, along whichever dimension."""
            return tensors.setdefault((layer, replace(operand, k_run=1, format=FP32)), len(tensors))

        self._read = [
            (place, g.layer, g.gemm, g.a.name, g.b.name, tensor(g.layer, g.a), tensor(g.layer, g.b))
            for place, g in enumerate(gemms)
            if g.gemm != "optimizer"
        ]

    def at(self, format_of: FormatOf) -> tuple[tuple[Gemm, ...], tuple[ElementOps, ...]]:
        """The GEMMs in the formats that `format_of(layer, gemm, operand)` names, and the rows of their quantizers."""
        numbers: dict[int, int] = {id(None): 0}
        kept: list[NumberFormat] = []  # an id is unique as long as its object lives

        def number(layer: str, gemm: str, operand: str) -> int:
            fmt = format_of(layer, gemm, operand)
            found = numbers.get(id(fmt))
            if found is None:
                assert fmt is not None
                kept.append(fmt)
                found = numbers[id(fmt)] = self._number(fmt)
            return found

        gemms = list(self._gemms)
        # Of each tensor that is quantized: how often each GEMM name reads it, and a GEMM and side where.
        reads: _Reads = {}
        for place, layer, name, side_a, side_b, tensor_a, tensor_b in self._read:
            a, b = number(layer, name, side_a), number(layer, name, side_b)
            key = place, a, b, number(layer, name, "accumulator")
            gemm = gemms[place] = self._made.get(key) or self._make(key)
            if not self._is_fp32[a]:
                _note(reads, (tensor_a, a), name, gemm, gemm.a)
            if not self._is_fp32[b]:
                _note(reads, (tensor_b, b), name, gemm, gemm.b)
        return tuple(gemms), self._quantizers(reads)

    def _number(self, fmt: NumberFormat) -> int:
        found = self._numbers.get(fmt)
        if found is None:
            found = self._numbers[fmt] = len(self._formats)
            self._formats.append(fmt)
            self._is_fp32.append(is_fp32(fmt))
        return found

    def _make(self, key: tuple[int, int, int, int]) -> Gemm:
        place, a, b, accumulator = key
        gemm, formats = self._gemms[place], self._formats
        sides = replace(gemm.a, format=formats[a]), replace(gemm.b, format=formats[b])
        made = self._made[key] = replace(gemm, a=sides[0], b=sides[1], accumulator=formats[accumulator])
        return made

    def _quantizers(self, reads: _Reads) -> tuple[ElementOps, ...]:
        # A weight is read by output and grad_input but quantized once: its reads are summed per GEMM name, and the
        # largest sum is the number of times that the tensor was made. That survives both c * 3 and c + c.
        rows = []
        for key, (by_gemm, gemm, operand) in reads.items():
            full = *key, max(by_gemm.values()), "output" in by_gemm
            row = self._rows.get(full)
            if row is None:
                row = self._rows[full] = self._row(gemm, operand, *full[2:])
            rows.append(row)
        return tuple(rows)


def _note(reads: _Reads, key: tuple[int, int], name: str, gemm: Gemm, operand: Operand) -> None:
    found = reads.get(key)
    if found is None:
        reads[key] = ({name: gemm.times}, gemm, operand)
    else:
        found[0][name] = found[0].get(name, 0) + gemm.times
