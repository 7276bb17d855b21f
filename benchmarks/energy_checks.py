"""Modelled energy against published ones: `python benchmarks/energy_checks.py [--json FILE] [--pictures DIR]`.

ZigZag (memory of single layers), the Eyeriss chip on AlexNet, and the energies that the early-bird paper prints. The
published numbers are in `energy_check_data.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from energy_check_data import (
    BATCH,
    EARLY_BIRD,
    EPOCHS,
    EYERISS,
    EYERISS_BATCH,
    EYERISS_BITS,
    EYERISS_DRAM_MB,
    EYERISS_DRAM_UNCOMPRESSED_MB,
    FLOPS_UNIT,
    HIERARCHY_BATCH,
    IMAGES,
    PRUNED,
    RELATIVE_COSTS,
    ZIGZAG,
    Conv,
)
from measuring import markdown_table

import energy_models as em
import lowprec_eb as lp
from energy_models.counts import Gemm, Operand
from energy_models.energy import ModelledEnergy, Range
from energy_models.profile_files import available_profiles
from lowprec_eb.checkpoints import write_text
from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.report.profile_pictures import price, write_profile_pictures

PROFILES = Path(__file__).parent / "profiles"
_UJ, _MJ, _KJ = 1e-6, 1e-3, 1e3


@dataclass(frozen=True)
class Row:
    """A published number and the modelled one, in `unit`."""

    case: str
    what: str
    unit: str
    published: float
    low: float
    nominal: float
    high: float

    @property
    def ratio(self) -> float:
        """Modelled, nominal, over published."""
        return self.nominal / self.published


def _row(case: str, what: str, unit: str, published: float, modelled: Range) -> Row:
    return Row(case, what, unit, published, modelled.low, modelled.nominal, modelled.high)


def convolution(conv: Conv, batch: int, bits: int, sum_bits: int) -> em.OpCounts:
    """The forward GEMM of a convolution of integers, its result written at `bits`."""
    number, sums = em.FormatSpec("integer", bits, 0, bits - 1), em.FormatSpec("integer", sum_bits, 0, sum_bits - 1)
    k = conv.inputs // conv.groups * conv.kernel**2
    rows, columns = batch * conv.side**2, conv.outputs // conv.groups
    images = Operand("activation", (batch, conv.inputs, conv.input_side, conv.input_side), k, number)
    kernels = Operand("weight", (conv.outputs, conv.inputs // conv.groups, conv.kernel, conv.kernel), k, number)
    results = rows * conv.outputs
    gemm = Gemm(
        conv.name, "output", conv.groups, rows, columns, k, images, kernels, results, result_bits=bits, accumulator=sums
    )
    return em.OpCounts((gemm,))


# ---- ZigZag ------------------------------------------------------------------------------------------------------


def zigzag_rows() -> list[Row]:
    rows = []
    for case in ZIGZAG:
        energy = em.estimate(convolution(case.layer, 1, 8, 16), em.load_profile(PROFILES / f"{case.machine}.yaml"))
        name = f"{case.machine.removeprefix('zigzag_')} {case.layer.name}"
        rows.append(_row(name, "DRAM", "uJ", case.dram_uj, energy.components_j["dram"] * (1 / _UJ)))
        rows.append(_row(name, "memory", "uJ", case.memory_uj, energy.memory_j * (1 / _UJ)))
    return rows


# ---- Eyeriss -----------------------------------------------------------------------------------------------------


def eyeriss_rows() -> list[Row]:
    """Chip energy of each layer and of all, without DRAM; bytes through DRAM; then the cost of each memory level."""
    profile, rows, energies = em.load_profile("eyeriss"), [], []
    for layer in EYERISS:
        energy = em.estimate(convolution(layer.layer, EYERISS_BATCH, EYERISS_BITS, EYERISS_BITS), profile)
        energies.append(energy)
        rows.append(_row(layer.layer.name, "chip", "mJ", layer.chip_mj, _chip(energy) * (1 / _MJ)))
    whole = ModelledEnergy.total(energies)
    rows.append(_row("all", "chip", "mJ", sum(layer.chip_mj for layer in EYERISS), _chip(whole) * (1 / _MJ)))
    megabytes = whole.traffic_bytes * 1e-6
    rows.append(_row("all", "DRAM, compressed on the chip", "MB", EYERISS_DRAM_MB, megabytes))
    rows.append(_row("all", "DRAM, not compressed", "MB", EYERISS_DRAM_UNCOMPRESSED_MB, megabytes))
    return rows + _hierarchy_rows(profile)


def _hierarchy_rows(profile: em.HardwareProfile) -> list[Row]:
    """Cost in 1e9 MACs of the levels, under the costs 200 : 6 : 2 : 1 of ISCA 2016, batch 16."""
    rows = []
    for layer in EYERISS:
        energy = em.estimate(convolution(layer.layer, HIERARCHY_BATCH, EYERISS_BITS, EYERISS_BITS), profile)
        words = {level: moved * (8 / EYERISS_BITS / 1e9) for level, moved in energy.level_bytes.items()}
        for level, cost in RELATIVE_COSTS.items():
            published = getattr(layer, f"{level}_words") / 1e3 * cost
            rows.append(_row(layer.layer.name, f"{level} cost", "1e9 MACs", published, words[level] * cost))
    return rows


def _chip(energy: ModelledEnergy) -> Range:
    return Range.total(part for name, part in energy.components_j.items() if name != "dram")


# ---- the early-bird paper ----------------------------------------------------------------------------------------

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
SEARCH_EPOCHS = 20  # the paper's CIFAR-100 tickets emerge after 14 to 31


@cache
def training_step(width: float, recipe: str) -> em.OpCounts:
    """A step of VGG16 with all widths times `width`, batch 256, SGD with momentum included."""
    widths = tuple(each if isinstance(each, str) else round(each * width) for each in VGG16)
    model = build_model(VGGSettings(widths=widths), (3, 32, 32), 10, seed=0)  # type: ignore[arg-type]
    precision = lp.precision(recipe)
    optimizer = lp.LowPrecisionOptimizer(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), precision)
    lp.lower(model, precision)
    return em.count(model, torch.zeros(BATCH, 3, 32, 32)) + em.count_optimizer(optimizer, model=model)


def _units(width: float) -> float:
    """FLOPs of a whole training in the paper's units and by its rule, 3 times 2 times the forward MACs."""
    forward = training_step(width, "fp32").macs["output"] / BATCH
    return 6 * forward * IMAGES * EPOCHS / FLOPS_UNIT


def width_left(place: int) -> float:
    """The width of all layers at which the pruned net has the FLOPs that the NS row says: dense training, then its."""
    share = EARLY_BIRD["NS"][place][1] / EARLY_BIRD["SNIP"][place][1] - 1
    return float(share**0.5)


def row_energy(row: str, place: int, profile: em.HardwareProfile, recipes: tuple[str, str]) -> ModelledEnergy:
    """Energy of a row's FLOPs: in the dense net as far as its method trains it, the rest in the pruned one.

    recipes: precision of the dense and of the pruned part.
    """
    flops, width = EARLY_BIRD[row][place][1], width_left(place)
    dense = {"LT (one shot)": flops, "SNIP": flops, "ThiNet": 0.0}.get(row, _units(1) * SEARCH_EPOCHS / EPOCHS)
    dense = _units(1) if row == "NS" else dense
    steps = EPOCHS * IMAGES / BATCH
    parts = ((1.0, dense, recipes[0]), (width, flops - dense, recipes[1]))
    return ModelledEnergy.total(
        em.estimate(training_step(of, recipe), profile) * (steps * units / _units(of)) for of, units, recipe in parts
    )


def early_bird_rows(profile_name: str, eight_bits: str = "bfp8") -> list[Row]:
    """kJ of SNIP, then the energy of each row over SNIP's, published and modelled jointly."""
    profile, rows = em.load_profile(profile_name), []
    for place, pruned in enumerate(PRUNED):
        snip = row_energy("SNIP", place, profile, ("fp32", "fp32"))
        if place == 0:
            rows.append(_row("SNIP", "energy", "kJ", EARLY_BIRD["SNIP"][0][0], snip.total_j * (1 / _KJ)))
        for name, cells in EARLY_BIRD.items():
            if name == "SNIP":
                continue
            recipes = {"EB LF": (eight_bits, "fp32"), "EB LL": (eight_bits, eight_bits)}.get(name, ("fp32", "fp32"))
            ratio = row_energy(name, place, profile, recipes).ratio_to(snip)
            rows.append(_row(name, f"over SNIP, p = {pruned} %", "", cells[place][0] / 373.1, ratio))
    return rows


# ---- the command -------------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[], list[Row]]] = {
    "ZigZag 3.9.1: memory of one layer": zigzag_rows,
    "Eyeriss on AlexNet": eyeriss_rows,
    "Early-bird paper, profile tx2, 8 bits as bfp8": lambda: early_bird_rows("tx2"),
    "Early-bird paper, profile 45nm, 8 bits as bfp8": lambda: early_bird_rows("45nm"),
    "Early-bird paper, profile 45nm, 8 bits as the paper places them (swalp8)": lambda: early_bird_rows(
        "45nm", "swalp8"
    ),
}


def table(rows: Iterable[Row]) -> str:
    heads = ("case", "what", "published", "low", "nominal", "high", "nominal / published")
    cells = []
    for row in rows:
        numbers = (f"{value:.4g}" for value in (row.published, row.low, row.nominal, row.high))
        cells.append((row.case, f"{row.what} [{row.unit}]".replace(" []", ""), *numbers, f"{row.ratio:.2f}"))
    return markdown_table(heads, cells)


def pictured() -> dict[str, em.OpCounts]:
    """VGG16 trained for 160 epochs, dense and by an early-bird ticket of p = 50 %, in four precisions."""
    steps = EPOCHS * IMAGES // BATCH
    search = steps * SEARCH_EPOCHS // EPOCHS
    found = {}
    for recipe in ("fp32", "bf16", "bfp8", "swalp8"):
        dense, pruned = training_step(1.0, recipe), training_step(width_left(1), recipe)
        found[f"dense {recipe}"] = dense * steps
        found[f"early bird {recipe}"] = dense * search + pruned * (steps - search)
    return found


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all rows to this file.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder: draw what the profiles say of dense and early-bird training.")
    ] = None,
) -> None:
    """Print all tables."""
    found: dict[str, Any] = {}
    for title, rows_of in TABLES.items():
        rows = rows_of()
        found[title] = [asdict(row) for row in rows]
        typer.echo(f"\n### {title}\n\n{table(rows)}")
    if json_file is not None:
        write_text(json_file, json.dumps(found, indent=2))
    if pictures is not None:
        profiles = [em.load_profile(name) for name in available_profiles() if name != "h200"]  # as h100, nearly
        write_profile_pictures(price(pictured(), profiles), pictures, baseline="dense fp32")


if __name__ == "__main__":
    typer.run(main)
