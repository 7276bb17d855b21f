"""Where a modelled energy goes: the same counts priced layer by layer, and by part of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from energy_models.counts import PARTS, ElementOps, Gemm, OpCounts
from energy_models.energy import ModelledEnergy
from energy_models.estimate import estimate
from energy_models.profiles import HardwareProfile


def energy_by_layer(counts: OpCounts, profile: HardwareProfile) -> dict[str, ModelledEnergy]:
    """The energy of each layer, in the order in which they run; static power, which belongs to none, is left out.

    The components add up to those of `estimate(counts, profile)`.
    """
    found: dict[str, tuple[list[Gemm], list[ElementOps]]] = {}
    for gemm in counts.gemms:
        found.setdefault(gemm.layer, ([], []))[0].append(gemm)
    for op in counts.element_ops:
        found.setdefault(op.layer, ([], []))[1].append(op)
    dynamic = replace(profile, chip=None)
    return {name: estimate(OpCounts(tuple(gemms), tuple(ops)), dynamic) for name, (gemms, ops) in found.items()}


def energy_by_part(counts: OpCounts, profile: HardwareProfile) -> dict[str, ModelledEnergy]:
    """The energy of the GEMMs and of the other operations of each part of a step ("forward GEMMs", ...), as above."""
    dynamic = replace(profile, chip=None)
    found: dict[str, ModelledEnergy] = {}
    for part in PARTS:
        of_part = counts.of_part(part)
        halves: Mapping[str, OpCounts] = {
            f"{part} GEMMs": replace(of_part, element_ops=()),
            f"{part} ops": replace(of_part, gemms=()),
        }
        found |= {name: estimate(half, dynamic) for name, half in halves.items() if half.gemms or half.element_ops}
    return found
