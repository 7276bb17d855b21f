"""``lowprec-eb count``: what a step of a named model costs, layer by layer."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import energy_models as em
from energy_models.compat import kept_as
from energy_models.number_formats import is_fp32
from energy_models.units import share_text, si_text
from energy_models.views import missing_text
from lowprec_eb.checkpoints import write_text
from lowprec_eb.named_models import NamedModel, example_inputs, load_model
from lowprec_eb.precision import Precision
from lowprec_eb.recipes import precision as named_precision
from lowprec_eb.report.count_pictures import write_count_picture
from lowprec_eb.report.count_tables import build_energy_table, build_layer_table, build_totals_table, layer_work
from lowprec_eb.report.energy_pictures import write_energy_picture
from lowprec_eb.step_counts import Step, inputs_text
from lowprec_eb.terminal import explained, new_console

_LISTED = 5  # names in a note
_AS_IT_IS = "as it is"


class By(StrEnum):
    """What a row of the table is."""

    LAYER = "layer"
    TREE = "tree"
    KIND = "kind"


class Compat(StrEnum):
    """Whose bookkeeping stands beside the exact count."""

    EARLY_BIRD = "early_bird"
    FRACTRAIN = "fractrain"


class Order(StrEnum):
    """Of layers in table and picture."""

    MODEL = "model"
    LARGEST = "largest"


def count(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="torchvision:NAME, timm:NAME, hf:CLASS, hf:REPOSITORY, a name without prefix, module:function or "
            "file.py:function.",
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="[NAME=][TYPE:]SHAPE", help="Of one sample: 3x224x224, tokens:128."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Samples in a step.")] = 1,
    precisions: Annotated[
        list[str] | None, typer.Option("--precision", help="Recipe (bfp8). Repeatable: totals side by side.")
    ] = None,
    training: Annotated[bool, typer.Option("--training/--inference", help="Forward and backward, or forward.")] = True,
    optimizer: Annotated[
        str | None,
        typer.Option(metavar="NAME[:SETTINGS]", help="Add its step: adamw, sgd:momentum=0.9,weight_decay=5e-4."),
    ] = None,
    functional: Annotated[
        bool, typer.Option("--functional", help="The precision also holds for products outside layers (attention).")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Stop if anything has no formula.")] = False,
    compat: Annotated[Compat | None, typer.Option(help="Print a paper's bookkeeping beside the exact count.")] = None,
    values: Annotated[
        bool, typer.Option("--values", help="Run for real, on random numbers: for shapes that depend on them.")
    ] = False,
    in_memory: Annotated[bool, typer.Option("--in-memory", help="Build the model with values, on the CPU.")] = False,
    by: Annotated[By, typer.Option(help="Layers with GEMMs, the module tree, or totals by kind alone.")] = By.LAYER,
    depth: Annotated[int | None, typer.Option(help="Levels of --by tree; all by default.")] = None,
    order: Annotated[Order, typer.Option(help="Layers as the model calls them, or the largest first.")] = Order.MODEL,
    limit: Annotated[int, typer.Option(help="Most layers in the table.")] = 40,
    everything: Annotated[bool, typer.Option("--all", help="All layers in the table.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write totals and rows to this file.")] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a row for each GEMM and element operation.")] = None,
    profile: Annotated[
        str | None, typer.Option(help="Price it under this hardware profile; with --plot a second picture.")
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw where the work goes.")] = False,
    out: Annotated[Path, typer.Option(help="PNG file of --plot, or a folder for it.")] = Path(),
) -> None:
    """Count a model's training step: MACs with their bits, element operations and traffic, layer by layer.

    Models are built without weights, and nothing is computed. Tables, files and picture show the first precision; the
    totals show all.
    """
    console = new_console()
    with explained(console):
        _check(limit, optimizer, training)
        chip = None if profile is None else em.load_profile(profile)
        recipes = [named_precision(name) for name in dict.fromkeys(precisions or ())]
        began = time.perf_counter()
        named = load_model(model, in_memory=in_memory or values)
        picture = _picture_path(out, named.name) if plot else None
        built = time.perf_counter()
        example = example_inputs(named, inputs or (), batch, values=values)
        step = Step(example, training, optimizer, functional, strict, values)
        types = {name: type(module).__name__ for name, module in named.module.named_modules()}
        counts = _counts(named, step, recipes)
        seconds = f"built in {built - began:.2f} s, counted in {time.perf_counter() - built:.2f} s"
        first, heading = next(iter(counts.values())), _heading(named, step)
        console.print(Text(heading, style="bold"))
        if by is By.LAYER:
            _print_layers(first, types, console, order, None if everything else limit)
        elif by is By.TREE:
            console.print(Text(first.tree().text(depth)), soft_wrap=True)
        console.print()
        console.print(build_totals_table(counts))
        if compat is not None:
            found = em.difference(first, kept_as(first, compat.value), ("exact", compat.value))
            console.print(Text(f"\n{found}\n"), soft_wrap=True)
        if chip is not None:
            console.print(build_energy_table(first, chip))
        for line in [*_notes(counts), seconds]:
            console.print(Text(f"- {line}"))
        files = [*_written(first, json, csv)]
        files += [] if picture is None else _drawn(first, picture, heading, order, chip)
        for path in files:
            console.print(f"wrote {path}", highlight=False, markup=False, soft_wrap=True)


def _check(limit: int, optimizer: str | None, training: bool) -> None:
    if limit < 1:
        raise ValueError(f"--limit must be 1 or more, got {limit}")
    if optimizer is not None and not training:
        raise ValueError("--optimizer needs a training step: leave --inference out")


def _drawn(
    counts: em.OpCounts, picture: Path, heading: str, order: Order, chip: em.HardwareProfile | None
) -> list[Path]:
    files = [write_count_picture(counts, picture, heading, order.value)]
    if chip is not None:
        files.append(write_energy_picture(counts, chip, picture.with_stem(f"{picture.stem}_energy"), heading))
    return files


def _counts(named: NamedModel, step: Step, recipes: Sequence[Precision]) -> dict[str, em.OpCounts]:
    """The count in each precision."""
    if not recipes:
        return {_AS_IT_IS: step.count(named)}
    return {recipe.name: step.count(named, recipe) for recipe in recipes}


# ---- words -------------------------------------------------------------------------------------------------------


def _heading(named: NamedModel, step: Step) -> str:
    parameters = si_text(sum(parameter.numel() for parameter in named.module.parameters()))
    updated = f", {step.optimizer}" if step.optimizer else ""
    what = f"one training step: forward, backward{updated}" if step.training else "one inference: forward"
    return f"{named.name}, {parameters} parameters, {inputs_text(step.inputs)}; {what}"


def _print_layers(
    counts: em.OpCounts, types: Mapping[str, str], console: Console, order: Order, limit: int | None
) -> None:
    work = layer_work(counts, order.value)
    table, shown = build_layer_table(work, types, limit)
    console.print(table)
    if len(shown) < len(work):
        share = 100 * sum(item.total for item in shown) / sum(item.total for item in work)
        text = f"The {len(shown)} largest of {len(work)} layers with GEMMs, {share:.1f} % of the MACs; --all shows all."
        console.print(Text(text))


def _notes(counts: Mapping[str, em.OpCounts]) -> list[str]:
    name, first = next(iter(counts.items()))
    shown = [f"All but the totals is in {name}."] if len(counts) > 1 else []
    convention = "1 MAC is 1 multiplication and 1 addition, so 2 FLOPs. "
    convention += "Traffic: operands read once, results written once, each operation by itself."
    full = [_left_text(name, count) for name, count in counts.items()]
    return [*shown, convention, *filter(None, full), f"not counted: {missing_text(first.uncounted)}"]


def _left_text(name: str, counts: em.OpCounts) -> str:
    """Which layers multiply two float32 operands, where others do not."""
    left = [gemm for gemm in counts.gemms if is_fp32(gemm.a.format) and is_fp32(gemm.b.format)]
    if len(left) in (0, len(counts.gemms)):
        return ""
    layers = list(dict.fromkeys(gemm.layer or "(model)" for gemm in left))
    share = share_text(sum(gemm.macs for gemm in left), counts.total_macs)
    return f"{name} leaves in float32 {share} of the MACs, in {_listed(layers)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


# ---- files -------------------------------------------------------------------------------------------------------


def _picture_path(out: Path, name: str) -> Path:
    if out.suffix not in ("", ".png") and not out.is_dir():
        raise ValueError(f"{out}: pictures are PNG files; give a name that ends in .png, or a folder")
    return out if out.suffix == ".png" else out / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)}.png"


def _written(counts: em.OpCounts, json: Path | None, csv: Path | None) -> Iterator[Path]:
    for path, text in ((json, counts.to_json), (csv, counts.to_csv)):
        if path is not None:
            write_text(path, text())
            yield path
