"""A finished comparison in the early-bird paper's table form: rows methods, columns p, beside what the paper prints.

FLOPs stand twice: as the paper would book the run (`lowprec_eb.published.bookkeeping`, with the run's own emergence
epochs and remaining forward MACs), and as they were counted.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from rich.table import Table
from rich.text import Text

from energy_models.ledger import LedgerRow
from energy_models.units import si_text
from lowprec_eb.outcome import Outcome
from lowprec_eb.published import LABELS, METHODS, Charge, Interval, Method, method_of, training_flops
from lowprec_eb.published import Table as PublishedTable
from lowprec_eb.report.measured import ABSENT, Measured, mean_measured, measured
from lowprec_eb.report.summary import ArmSummary, Comparison, Spread, diverged_arms, summarise
from lowprec_eb.report.table_style import add_columns, new_table
from lowprec_eb.report.units import energy_text, percent_text

_MASKED: tuple[Method, ...] = ("lt", "snip")  # charged dense, whatever is left
OF_IMAGES = "Images:"  # a note that begins so says what must be known of the data; it stands below this table too
_AS_THE_PAPER = "FLOPs, the paper's books"
_COUNTED = "FLOPs, counted"


@dataclass(frozen=True)
class PaperCell:
    """A method at one p: means over the seeds of an arm, and what the paper prints.

    test_accuracy: fractions. energy_j: modelled, nominal. measured: by a sensor, of this machine; None: by none.
    flops_booked: None where it is not known how the paper
    charges the method. accuracy_percent, published_energy, published_flops: of the paper, in %, J and FLOPs.
    """

    arm: str | None
    test_accuracy: Spread | None = None
    energy_j: float | None = None
    measured: Measured | None = None
    flops_booked: float | None = None
    flops_counted: float | None = None
    accuracy_percent: float | None = None
    published_energy: Interval | None = None
    published_flops: Interval | None = None


@dataclass(frozen=True)
class PaperRow:
    """A method in one precision; ``cells`` by p, None where p is not recorded."""

    method: Method
    label: str
    cells: dict[float | None, PaperCell] = field(default_factory=dict)


@dataclass(frozen=True)
class PaperTable:
    """``reasons``: why cells are blank, and what the table does not show."""

    name: str
    published: PublishedTable | None
    ratios: tuple[float | None, ...]
    rows: tuple[PaperRow, ...]
    reasons: tuple[str, ...]


def paper_table(comparison: Comparison, published: PublishedTable | None, ratio: float | None = None) -> PaperTable:
    """Sort the arms of a comparison into the paper's rows and columns.

    Args:
        comparison: finished. published: the paper's table to stand beside it; None: there is none. ratio: of the arms
            that have none of their own.
    """
    outcomes: dict[str, list[Outcome]] = {}
    for outcome in comparison.outcomes:
        outcomes.setdefault(outcome.arm, []).append(outcome)
    found: dict[tuple[Method, str], PaperRow] = {}
    strangers = []
    for arm in summarise(comparison):
        method = method_of(outcomes[arm.arm][0])
        if method is None:
            strangers.append(arm.arm)
            continue
        at = None if method == "dense" else (arm.ratio if arm.ratio is not None else ratio)
        row = _row_for(found, method, arm, at)
        row.cells[at] = _own(comparison, arm, method, outcomes[arm.arm])
    for method in METHODS:
        if published is not None and published.row(method) is not None and not any(m == method for m, _ in found):
            found[method, LABELS[method]] = PaperRow(method, LABELS[method])
    rows = sorted(found.values(), key=lambda row: METHODS.index(row.method))
    ratios = _columns(rows, published)
    rows = [PaperRow(row.method, row.label, _beside(row, ratios, published)) for row in rows]
    reasons = tuple(_reasons(comparison, published, ratios, rows, strangers))
    return PaperTable(comparison.name, published, ratios, tuple(rows), reasons)


def booked_flops(method: Method, outcome: Outcome, rows: Sequence[LedgerRow]) -> float | None:
    """Training FLOPs of a finished arm and seed as the paper books them, from the images that it was trained on.

    Args:
        method: the paper's. outcome: of the arm. rows: of the stages that it is charged for.

    Returns:
        None for ThiNet, whose charging is not known.
    """
    if method == "thinet":
        return None
    images = {
        phase: sum(row.samples for row in rows if row.key.phase == phase) for phase in ("search", "train", "retrain")
    }
    charged = Charge(images["search"] + images["train"], images["retrain"])
    left = 1.0 if method in _MASKED else outcome.forward_macs / outcome.dense_forward_macs
    return training_flops(charged, outcome.dense_forward_macs, 1, left)


def _row_for(found: dict[tuple[Method, str], PaperRow], method: Method, arm: ArmSummary, at: float | None) -> PaperRow:
    label = LABELS[method]
    if method in ("eb_lf", "eb_ll"):
        label = f"{label} ({arm.search_precision})"
    if arm.averaging is not None:
        label = f"{label}, {arm.averaging}"
    if (known := found.get((method, label))) is not None and at in known.cells:
        label = f"{label}: {arm.arm}"
    return found.setdefault((method, label), PaperRow(method, label))


def _own(comparison: Comparison, arm: ArmSummary, method: Method, outcomes: Sequence[Outcome]) -> PaperCell:
    booked = [booked_flops(method, outcome, comparison.charged_rows(outcome)) for outcome in outcomes]
    known = [flops for flops in booked if flops is not None]
    return PaperCell(
        arm=arm.arm,
        test_accuracy=arm.test_accuracy,
        energy_j=arm.energy.nominal_j,
        measured=mean_measured([measured(comparison.charged_rows(outcome)) for outcome in outcomes]),
        flops_booked=statistics.fmean(known) if known else None,
        flops_counted=2 * arm.training_macs,
    )


def _columns(rows: Sequence[PaperRow], published: PublishedTable | None) -> tuple[float | None, ...]:
    given = {at for row in rows if row.method != "dense" for at in row.cells}
    known = {round(at, 9) for at in given if at is not None} | {*(published.ratios if published is not None else ())}
    return (*sorted(known), *([None] if None in given or not known else []))


def _beside(
    row: PaperRow, ratios: Sequence[float | None], published: PublishedTable | None
) -> dict[float | None, PaperCell]:
    own = {None if at is None else round(at, 9): cell for at, cell in row.cells.items()}
    cells = {}
    for ratio in ratios:
        cell = own.get(None if row.method == "dense" else ratio, PaperCell(None))
        cells[ratio] = _with_published(cell, row.method, ratio, published)
    return cells


def _with_published(
    cell: PaperCell, method: Method, ratio: float | None, published: PublishedTable | None
) -> PaperCell:
    place = None if published is None else published.place_of(ratio)
    printed = None if published is None else published.row(method)
    if published is None or place is None or printed is None:
        return cell
    return replace(
        cell,
        accuracy_percent=printed.accuracy[place],
        published_energy=published.energy_j(method, place),
        published_flops=published.flops(method, place),
    )


def _reasons(
    comparison: Comparison,
    published: PublishedTable | None,
    ratios: Sequence[float | None],
    rows: Sequence[PaperRow],
    strangers: Sequence[str],
) -> Iterator[str]:
    yield from (note for note in comparison.notes if note.startswith(OF_IMAGES))
    if comparison.runs_ended is not None:
        yield f"Not finished: {comparison.runs_ended}."
    yield from _blank_columns(published, ratios)
    yield from _blank_rows(rows)
    if any(row.method == "thinet" for row in rows):
        yield f"{_AS_THE_PAPER}: blank for ThiNet, as how the paper charges it is not known."
    if any(row.method in _MASKED for row in rows):
        yield "The paper charges SNIP one dense training and a lottery ticket two; here channels are taken out."
    if strangers:
        yield f"Not among the paper's methods: {', '.join(strangers)}."
    if lost := diverged_arms(comparison):
        yield f"Diverged with every seed: {', '.join(lost)}."


def _blank_columns(published: PublishedTable | None, ratios: Sequence[float | None]) -> Iterator[str]:
    if published is None:
        yield "Published columns are blank: no table of the paper is known to be of this model and these data."
        return
    yield f"Published: {published.title}, {published.place}. How LL's energy came about is not in its code."
    if not published.rows:
        yield f"Published columns are blank: the cells of {published.title} were not at hand."
        return
    absent = [_column_text(ratio) for ratio in ratios if published.place_of(ratio) is None]
    if absent:
        yield f"Published columns are blank at {', '.join(absent)}: the paper's table has no such column."


def _blank_rows(rows: Sequence[PaperRow]) -> Iterator[str]:
    absent = {row.label: [at for at, cell in row.cells.items() if cell.arm is None] for row in rows}
    whole = [row.label for row in rows if len(absent[row.label]) == len(row.cells)]
    if whole:
        yield f"Not in this run: {', '.join(whole)}."
    parts = [f"{name} at {', '.join(map(_column_text, at))}" for name, at in absent.items() if at and name not in whole]
    if parts:
        yield f"No arm of this run: {'; '.join(parts)}."


def _column_text(ratio: float | None) -> str:
    return "p not recorded" if ratio is None else f"p = {100 * ratio:g} %"


# ---- for people --------------------------------------------------------------------------------------------------


def build_paper_table(table: PaperTable) -> Table:
    """Rows of a method: accuracy, energy modelled and measured, FLOPs in both books; two columns each p, this run and
    the paper."""
    told = (
        "Means over seeds. Energy: of everything, modelled (nominal) for the chip of the profile; measured on the "
        "machine that simulated it. FLOPs: two a MAC, of training."
    )
    found = new_table(f"{table.name} in the form of the early-bird paper's table", told)
    heads = [f"{_column_text(ratio)}\n{whose}" for ratio in table.ratios for whose in ("this run", "paper")]
    add_columns(found, ("method", ""), heads)
    for row in table.rows:
        for name, (own, printed) in _LINES.items():
            cells = [text(row.cells[ratio]) for ratio in table.ratios for text in (own, printed)]
            found.add_row(*map(Text, (row.label if name == _FIRST else "", name, *cells)))
    return found


def _optional(value: float | None, text: Callable[[float], str]) -> str:
    return "" if value is None else text(value)


def _middle(interval: Interval | None, text: Callable[[float], str]) -> str:
    return "" if interval is None else text(interval.middle)


def _accuracy(cell: PaperCell) -> str:
    return "" if cell.test_accuracy is None else percent_text(cell.test_accuracy)


def _measured(cell: PaperCell) -> str:
    if cell.arm is None:
        return ""
    return ABSENT if cell.measured is None else cell.measured.text


_FIRST = "accuracy [%]"
_LINES: dict[str, tuple[Callable[[PaperCell], str], Callable[[PaperCell], str]]] = {
    _FIRST: (_accuracy, lambda cell: _optional(cell.accuracy_percent, "{:.2f}".format)),
    "energy, modelled": (
        lambda cell: _optional(cell.energy_j, energy_text),
        lambda cell: _middle(cell.published_energy, energy_text),
    ),
    "energy, measured": (_measured, lambda cell: ""),
    _AS_THE_PAPER: (
        lambda cell: _optional(cell.flops_booked, si_text),
        lambda cell: _middle(cell.published_flops, si_text),
    ),
    _COUNTED: (lambda cell: _optional(cell.flops_counted, si_text), lambda cell: ""),
}


def paper_lines(table: PaperTable) -> list[dict[str, str | float | None]]:
    """One line for each method and p, units in the names, None where there is no number."""
    return [_line(row, ratio, cell) for row in table.rows for ratio, cell in row.cells.items()]


def _line(row: PaperRow, ratio: float | None, cell: PaperCell) -> dict[str, str | float | None]:
    energy, flops = cell.published_energy, cell.published_flops
    return {
        "method": row.method,
        "label": row.label,
        "ratio": ratio,
        "arm": cell.arm,
        "test_accuracy": None if cell.test_accuracy is None else cell.test_accuracy.mean,
        "energy_j": cell.energy_j,
        "measured_j": None if cell.measured is None else cell.measured.energy_j,
        "measured_share_of_time": None if cell.measured is None else cell.measured.share,
        "flops_paper_bookkeeping": cell.flops_booked,
        "flops_counted": cell.flops_counted,
        "published_accuracy": None if cell.accuracy_percent is None else cell.accuracy_percent / 100,
        "published_energy_j": None if energy is None else energy.middle,
        "published_flops": None if flops is None else flops.middle,
    }
