"""Which cells of the early-bird paper's tables follow from its method: writes docs/paper_table.md.

python benchmarks/paper_table.py [--out PAGE]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from measuring import markdown_table

from energy_models.units import si_text
from lowprec_eb.config import load_config
from lowprec_eb.planning.bookkept import Bookkept, bookkept
from lowprec_eb.published import (
    LABELS,
    METHODS,
    Check,
    Interval,
    Paper,
    Table,
    check_headline,
    check_table,
    early_bird_paper,
    rises,
)

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "paper_table.md"

INTRODUCTION = """# The early-bird paper's table, checked

Which published cells of You et al. 2020 follow from the published method? Made by `python benchmarks/paper_table.py`
from [the numbers as data](../lowprec_eb/published/early_bird.yaml); nothing is trained, and accuracies are not judged
here. The paper's experiments as configurations are in [configs/paper](../configs/paper):
`lowprec-eb estimate CONFIG --bookkeeping early_bird` books one of them as the paper does, and
`lowprec-eb report --format paper RUN` sets a finished run beside these numbers.

## The cost model

In units of one dense training, e being the share of the schedule that the search takes, and r what the pruned network
costs of the dense one:

| method | costs | unknown |
| --- | --- | --- |
| dense, SNIP | 1 | |
| LT (one shot) | 2 | |
| network slimming | 1 + r | r |
| EB re-init | e + r | e, r |
| EB (FF) | e + (1 - e) r | e, r |
| EB LF, energy | c e + (1 - e) r, with c what 8-bit arithmetic costs of fp32's | e, r, c |
| EB LL, energy | c (e + (1 - e) r) | e, r, c |

A dense training is 3 x 2 x forward MACs x images x epochs. FLOPs and energy have an r each, since a pruned network need
not take as much energy a FLOP; the emergence e is one. Re-init and FF at one p share search and network, so their two
costs determine e and r (as the roots of one equation; both orders are tried, and the smaller is shown as e), once from
FLOPs and once from energy: four cells, three unknowns, one check. LF and LL share theirs, and c is one for all cells of
VGG16. Each printed number stands for all that round to it, and intervals are outer bounds: a cell that is called
inconsistent is so for every rounding.

- **consistent**: more cells than unknowns, and possible values (0 <= e <= 1, 0 < r <= 1) fit all of them.
- **inconsistent**: no such values exist.
- **fitted**: possible values exist, and there are as many unknowns as cells or more: evidence neither for nor against.
- **given**: the unit of the others. **unknown**: the notes that this rests on do not say how it is charged.
"""

LIMITS = """## What this does not show

- The notes that this rests on have no published FLOPs or energies of PreResNet-101 and ResNet-50 (of PreResNet-101 on
  CIFAR-100 emergence epochs alone), and not all rows of VGG16 on CIFAR-100. Their configurations are there, and
  `estimate` books dense, SNIP and lottery tickets of them; no cell of theirs is checked against anything.
- A consistent cell may still be wrong: costs are checked against each other, not against what was run.
- Network slimming's r is its own cell's. Where `estimate` predicts from a fitted number it says so, and meets the cell
  by construction.
- Early-bird cells without a re-initialised partner have two numbers and three unknowns. The emergence epochs of the
  paper's figure, where there are any, are of other p and narrow them only in part.
"""


def write(out: Annotated[Path, typer.Option(help="The page.")] = PAGE) -> None:
    """Check every cell, and write the page."""
    out.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page, as Markdown."""
    paper = early_bird_paper()
    tables = [table for table in paper.tables if table.rows]
    alike = {table.name: [other for other in tables if other.model == table.model] for table in tables}
    checks = {table.name: check_table(table, alike[table.name]) for table in tables}
    books = {table.name: bookkept(load_config(ROOT / "configs" / "paper" / f"{table.name}.yaml")) for table in tables}
    parts = [INTRODUCTION, *_result(tables, checks), *_count(tables, books)]
    for table in tables:
        parts += _cells(table, checks[table.name])
    return "\n".join([*parts, *_rising(tables), *_headline(paper), LIMITS])


def _result(tables: Sequence[Table], checks: dict[str, list[Check]]) -> Iterator[str]:
    yield "## Result\n"
    for table in tables:
        verdicts = {(m, of.ratio): of.verdict for of in checks[table.name] for m in of.methods}
        heads = [table.title, *(f"p = {100 * ratio:g} %" for ratio in table.ratios)]
        rows = [
            [LABELS[method], *(_marked(verdicts.get((method, ratio), "")) for ratio in table.ratios)]
            for method in METHODS
            if table.row(method) is not None
        ]
        yield markdown_table(heads, rows) + "\n"
    for verdict in ("consistent", "inconsistent", "fitted"):
        cells = [f"{table.title}: {_listed(checks[table.name], verdict)}" for table in tables]
        number = sum(len(of.methods) for table in tables for of in checks[table.name] if of.verdict == verdict)
        yield f"- {number} {verdict}. {'. '.join(cell for cell in cells if not cell.endswith(': '))}."
    yield ""


def _listed(checks: Sequence[Check], verdict: str) -> str:
    found: dict[str, list[str]] = {}
    for of in checks:
        for method in of.methods if of.verdict == verdict else ():
            found.setdefault(LABELS[method], []).append(f"{100 * (of.ratio or 0.0):g}")
    return "; ".join(f"{name} at {', '.join(ratios)} %" for name, ratios in found.items())


def _marked(verdict: str) -> str:
    return f"**{verdict}**" if verdict == "inconsistent" else verdict


def _count(tables: Sequence[Table], books: dict[str, Bookkept]) -> Iterator[str]:
    yield "## The count against the printed FLOPs\n"
    yield (
        "Nothing is fitted in these: forward MACs of the model as it is built here, all training images, the paper's "
        "epochs.\n"
    )
    rows = []
    for table in tables:
        tested = {arm.method: arm for arm in books[table.name].arms if arm.difference is not None and not arm.fit}
        tested = {method: arm for method, arm in tested.items() if method is not None and table.row(method)}
        for arm in tested.values():
            assert arm.method is not None and arm.flops is not None and arm.published is not None
            cells = (si_text(books[table.name].forward_macs), _peta(arm.flops), _peta(arm.published.middle))
            rows.append([table.title, LABELS[arm.method], *cells, f"{100 * (arm.difference or 0.0):+.2f} %"])
    heads = ["table", "method", "forward MACs", "counted [PFLOPs]", "printed [PFLOPs]", "difference"]
    yield markdown_table(heads, rows) + "\n"
    yield "The printed costs are larger than the count by more than rounding; shares below are of the printed ones.\n"
    yield from _fitted_cells(tables, books)


def _fitted_cells(tables: Sequence[Table], books: dict[str, Bookkept]) -> Iterator[str]:
    yield (
        "In these, what a pruned network leaves (and an emergence epoch) is fitted to the table itself, so that they "
        "meet their cells but for the difference of the dense count: no evidence for the method.\n"
    )
    rows, missing = [], []
    for table in tables:
        for arm in books[table.name].arms:
            if arm.method is None or arm.published is None or arm.ratio is None:
                continue
            place = [table.title, LABELS[arm.method], f"{100 * arm.ratio:g}"]
            if arm.fit:
                assert arm.flops is not None
                cells = (_peta(arm.flops), _peta(arm.published.middle), f"{100 * (arm.difference or 0.0):+.2f} %")
                rows.append([*place, *cells, arm.fit])
            elif arm.flops is None:
                missing.append(f"{place[1]} at {place[2]} % ({table.title})")
    heads = ["table", "method", "p [%]", "booked [PFLOPs]", "printed [PFLOPs]", "difference", "fitted"]
    yield markdown_table(heads, rows) + "\n"
    yield f"Printed, and not booked, since nothing determines what they would be: {', '.join(missing)}.\n"


def _peta(flops: float) -> str:
    return f"{flops / 1e15:.2f}"


def _cells(table: Table, checks: Sequence[Check]) -> Iterator[str]:
    yield f"## {table.title}\n"
    yield f"From {table.place}. {table.epochs} epochs.\n"
    rows = [
        [f"{100 * (of.ratio or 0.0):g}", ", ".join(LABELS[m] for m in of.methods), _marked(of.verdict), of.why]
        for of in checks
        if of.verdict != "given"
    ]
    yield markdown_table(["p [%]", "cells", "verdict", "what follows"], rows) + "\n"


def _rising(tables: Sequence[Table]) -> Iterator[str]:
    found = [(table, *of) for table in tables for of in rises(table)]
    if not found:
        return
    yield "## Energy that rises where FLOPs fall\n"
    yield (
        "From one column to the next, beyond rounding. The model allows it only where the search of the larger p takes "
        "longer or its network more energy a FLOP; no other row does it.\n"
    )
    rows = []
    for table, method, first, then in found:
        at = [table.place_of(first), table.place_of(then)]
        row = table.row(method)
        assert row is not None
        energy, flops = ([cells[place] for place in at if place is not None] for cells in (row.energy_kj, row.flops))
        columns = f"{100 * first:g} to {100 * then:g}"
        rows.append([table.title, LABELS[method], columns, _arrow(energy), _arrow(flops)])
    yield markdown_table(["table", "method", "p [%]", "energy [kJ]", "FLOPs [printed unit]"], rows) + "\n"


def _arrow(values: Sequence[float | None]) -> str:
    return " to ".join(f"{value:g}" for value in values)


def _headline(paper: Paper) -> Iterator[str]:
    headline = paper.headline
    factors = check_headline(paper)
    yield f"## The headline, {headline.low} to {headline.high} times\n"
    yield f"It is the energy of {LABELS[headline.over]} over that of {LABELS[headline.of]}. From the cells:\n"
    rows = [[title, f"{100 * ratio:g}", _factor(factor)] for title, ratio, factor in factors]
    yield markdown_table(["table", "p [%]", "factor"], rows) + "\n"
    for name, value in (("smallest", headline.low), ("largest", headline.high)):
        printed = Interval.printed(value, headline.step)
        source = next((f"{title}, p = {100 * ratio:g} %" for title, ratio, of in factors if of.meets(printed)), None)
        told = f"follows from {source}" if source else "follows from none of these cells"
        yield f"- {value}, the {name}, {told}."
    largest = max(factors, key=lambda of: of[2].high)
    yield f"- The largest factor here is {_factor(largest[2])}, of {largest[0]} at p = {100 * largest[1]:g} %.\n"


def _factor(factor: Interval) -> str:
    low, high = f"{factor.low:.2f}", f"{factor.high:.2f}"
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    typer.run(write)
