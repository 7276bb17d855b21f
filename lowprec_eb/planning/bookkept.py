"""A comparison's arms in the early-bird paper's own bookkeeping, beside what the paper prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

import energy_models as em
from energy_models.units import si_text
from lowprec_eb.arms import ArmSettings
from lowprec_eb.config import Config
from lowprec_eb.published import LABELS, Interval, Method, charge, early_bird_paper, fitted, method_of, training_flops
from lowprec_eb.published import Table as PublishedTable
from lowprec_eb.published.consistency import Fit
from lowprec_eb.report.cells import csv_text
from lowprec_eb.report.plan_files import SCHEMA, json_text
from lowprec_eb.report.table_style import add_columns, new_table
from lowprec_eb.tasks import DataSize, sized_task


@dataclass(frozen=True)
class BookkeptArm:
    """Training FLOPs (two a MAC) of an arm as the paper would charge them.

    flops: None where ``why`` says what is missing; else that may say whose cell stands beside. published: of the
    paper's cell, with its rounding; None: no cell. fit: what the prediction takes from the table itself; empty:
    nothing, so that the comparison is a test.
    """

    arm: str
    method: Method | None
    ratio: float | None
    flops: float | None
    published: Interval | None
    fit: str = ""
    why: str = ""

    @property
    def difference(self) -> float | None:
        """How much more than the published cell, as a share of it."""
        if self.flops is None or self.published is None:
            return None
        return self.flops / self.published.middle - 1


@dataclass(frozen=True)
class Bookkept:
    """A comparison in the paper's bookkeeping; ``published``: the paper's table of this model and data, if any."""

    name: str
    forward_macs: int
    images: int
    epochs: int
    published: PublishedTable | None
    arms: tuple[BookkeptArm, ...]


def published_size(config: Config) -> DataSize | None:
    """The sizes of the data in the paper's table of this model; None: there is none."""
    table = early_bird_paper().table_for(config.task.data, config.model)
    if table is None:
        return None
    channels, height, width = table.input_shape
    return DataSize((channels, height, width), table.classes, table.images, table.test_images)


def bookkept(config: Config) -> Bookkept:
    """Charge every arm as the paper does: all training images, no evaluation, three forward passes a step.

    Raises:
        ValueError: the sizes of the data are not known without them, or the model cannot be counted.
    """
    table = early_bird_paper().table_for(config.task.data, config.model)
    size = sized_task(config.task, published_size(config)).size
    with torch.device("meta"):
        model = config.model.module(size.input_shape, size.classes)
        example = torch.empty(1, *size.input_shape)
    macs = em.count(model, example, training=False).macs["output"]
    shared = (macs, size.train, config.training.epochs)
    arms = tuple(_arm(config, arm, table, *shared) for arm in config.pipelines)
    return Bookkept(config.name, *shared, table, arms)


def _arm(
    config: Config, arm: ArmSettings, table: PublishedTable | None, macs: int, images: int, epochs: int
) -> BookkeptArm:
    method, ratio = method_of(arm), None
    if arm.prunes:
        ratio = config.ticket.ratio if arm.ratio is None else arm.ratio
    if method is None:
        return BookkeptArm(arm.name, None, ratio, None, None, why="not a method of the paper")
    if method == "thinet":
        told = "how the paper charges it is not known"
        return BookkeptArm(arm.name, method, ratio, None, _cell(table, method, ratio), why=told)
    published = _cell(table, method, ratio)
    needs = method not in ("dense", "lt", "snip")
    fit = fitted(table, method, ratio) if needs and table is not None and ratio is not None else None
    if needs and fit is None:
        told = "no e and r follow from the table"
        return BookkeptArm(arm.name, method, ratio, None, published, why=told)
    emergence = None if fit is None or fit.emergence is None else fit.emergence * epochs
    charged = charge(method, epochs, emergence)
    assert charged is not None
    flops = training_flops(charged, macs, images, 1.0 if fit is None else fit.remaining)
    borrowed = method == "dense" and published is not None and table is not None and table.row("dense") is None
    why = "the paper prints this cost for SNIP" if borrowed else ""
    return BookkeptArm(arm.name, method, ratio, flops, published, "" if fit is None else _told(fit, epochs), why)


def _cell(table: PublishedTable | None, method: Method, ratio: float | None) -> Interval | None:
    if table is None:
        return None
    place = 0 if method == "dense" else table.place_of(ratio)
    if place is None:
        return None
    # The paper's SNIP is charged one dense training, and its table of small images has no row for that.
    return table.flops(method, place) or (table.flops("snip", place) if method == "dense" else None)


def _told(fit: Fit, epochs: int) -> str:
    found = f"r = {fit.remaining:.3f}"
    if fit.emergence is not None:
        found = f"e = {fit.emergence * epochs:.1f} epochs, {found}"
    return f"{found}, {fit.told}"


# ---- for files ---------------------------------------------------------------------------------------------------


def bookkept_csv(book: Bookkept) -> str:
    """One line an arm; an empty cell where there is no number."""
    return csv_text([_line(arm) for arm in book.arms])


def bookkept_json(book: Bookkept) -> str:
    """The arms, and what their numbers rest on."""
    tree = {
        "schema": SCHEMA,
        "name": book.name,
        "bookkeeping": "early_bird",
        "published_table": None if book.published is None else book.published.title,
        "forward_macs": book.forward_macs,
        "images": book.images,
        "epochs": book.epochs,
        "arms": [_line(arm) for arm in book.arms],
        "sentences": list(bookkept_sentences(book)),
    }
    return json_text(tree)


def _line(arm: BookkeptArm) -> dict[str, Any]:
    """``difference`` is a share of the published cell's middle; ``fitted`` says what the prediction took from there."""
    return {
        "arm": arm.arm,
        "method": arm.method,
        "ratio": arm.ratio,
        "training_flops": arm.flops,
        "published_low_flops": None if arm.published is None else arm.published.low,
        "published_high_flops": None if arm.published is None else arm.published.high,
        "difference": arm.difference,
        "fitted": arm.fit or None,
        "note": arm.why or None,
    }


# ---- for people --------------------------------------------------------------------------------------------------


def bookkept_table(book: Bookkept) -> Table:
    """One row an arm."""
    table = new_table(
        f"Training FLOPs of {book.name} in the early-bird paper's bookkeeping",
        "Two FLOPs a MAC. e: epochs of search, r: forward MACs left. What is fitted meets its cell by construction.",
    )
    add_columns(table, ("arm", "method", "p [%]"), ("FLOPs", "published", "difference"))
    add_columns(table, ("fitted, or a note",), ())
    for arm in book.arms:
        table.add_row(*map(Text, _cells(arm)))
    return table


def _cells(arm: BookkeptArm) -> Sequence[str]:
    return (
        arm.arm,
        "-" if arm.method is None else LABELS[arm.method],
        "" if arm.ratio is None else f"{100 * arm.ratio:g}",
        "-" if arm.flops is None else si_text(arm.flops),
        "-" if arm.published is None else si_text(arm.published.middle),
        "-" if arm.difference is None else f"{100 * arm.difference:+.2f} %",
        arm.fit or arm.why,
    )


def bookkept_sentences(book: Bookkept) -> Iterator[str]:
    """What the numbers rest on."""
    yield (
        f"One dense training: 3 x 2 x {si_text(book.forward_macs)} forward MACs x {book.images} images x {book.epochs} "
        "epochs. The paper charges no evaluation and no detector, and SNIP and lottery tickets as dense."
    )
    tested = [arm for arm in book.arms if arm.difference is not None and not arm.fit]
    if tested:
        worst = max(tested, key=lambda arm: abs(arm.difference or 0.0))
        largest = f"{100 * (worst.difference or 0.0):+.2f} %"
        yield f"Nothing is fitted in {len(tested)} of them; the largest difference is {largest}."
    elif book.published is None:
        yield "The paper has no table of this model on these data."
    else:
        yield f"The paper's table of {book.published.title} has no cells here: {book.published.place}."
