"""What rounding a tensor costs: `python benchmarks/quantizers.py` measures the fast back end and others beside a plain
copy, in one run, and says which bounds hold.

Every contender of a size takes its turn in every round, so noise of the machine hits all alike. A figure is the median
over rounds of the time divided by that of ``copy_`` into a preallocated tensor in the same round.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from measuring import Check, bounds_section, markdown_table, missing, seconds
from quantizer_contenders import CASES, LIBRARIES, Case, others
from quantizer_picture import draw
from quantizer_startup import call_overhead, start_up
from torch import Tensor

import lowprec_eb as lp
from lowprec_eb.versions import versions

SIZES = (100_000, 1_000_000, 10_000_000)
COLUMNS = 800
ROUNDINGS = ("nearest", "stochastic")
COPY = "copy_"
FAST = "fast"
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SLOW_SECONDS = 0.02  # a contender that takes longer skips rounds
_BATCH_SECONDS = 0.002  # a faster one is called several times in a row
_NOISE = 1.05  # two figures this close count as equal
_BOUND_BY_MEMORY = 1.6  # times the faster of copy_ on one and two threads
_COLUMNS = ("plain torch", "qtorch", "fake_quantize", "brevitas", "torchao", "gfloat")


@dataclass
class Row:
    """One contender at one size: nanoseconds an element, and the time as a multiple of copy_'s."""

    elements: int
    threads: int
    case: str
    rounding: str
    contender: str
    ns: float = 0.0
    times_copy: float = 0.0
    rounds: int = 0
    seconds: list[float] = field(default_factory=list, repr=False)


# ---- measuring ---------------------------------------------------------------------------------------------------


def measure(elements: int, threads: int, rounds: int) -> list[Row]:
    """Every contender on a float32 tensor (the fast back end on bf16 and fp16 ones too), in turns."""
    torch.set_num_threads(threads)
    x = torch.randn(elements // COLUMNS, COLUMNS, generator=torch.Generator().manual_seed(0))
    out, halves = torch.empty_like(x), {name: x.to(dtype) for name, dtype in _HALVES.items()}
    half_outs = {name: torch.empty_like(half) for name, half in halves.items()}
    calls: list[tuple[Row, Callable[[], Any]]] = [(Row(elements, threads, COPY, "", COPY), lambda: out.copy_(x))]
    for case, rounding in product(CASES, ROUNDINGS):
        named = (elements, threads, case.name, rounding)
        calls.append((Row(*named, FAST), _fast(case, rounding, x, out)))
        if threads == 1:
            calls += [(Row(*named, name), call) for name, call in others(case, rounding, x)]
            for name, half in halves.items():
                calls.append((Row(*named, f"{FAST} {name}"), _fast(case, rounding, half, half_outs[name])))
    _take_turns(calls, rounds)
    return _summarised([row for row, _ in calls])


def _fast(case: Case, rounding: Any, x: Tensor, out: Tensor) -> Callable[[], Any]:
    seed = torch.tensor(1)
    return lambda: lp.quantize(x, case.fmt, rounding, seed=seed, scale=case.scale, backend="fast", out=out)


def _take_turns(calls: Sequence[tuple[Row, Callable[[], Any]]], rounds: int) -> None:
    speeds = [seconds(call) for _, call in calls for _ in range(2)][1::2]  # the first compiles and allocates
    for turn in range(rounds):
        for (row, call), speed in zip(calls, speeds, strict=True):
            skipped = turn % max(1, round(speed / _SLOW_SECONDS)) != 0
            if skipped:
                row.seconds.append(float("nan"))
                continue
            if speed < _SLOW_SECONDS:
                call()  # what ran before it has emptied the caches
            row.seconds.append(seconds(call, max(1, min(100, int(_BATCH_SECONDS / speed)))))


def _summarised(rows: list[Row]) -> list[Row]:
    copies = rows[0].seconds
    for row in rows:
        taken = [(own, copy) for own, copy in zip(row.seconds, copies, strict=True) if own == own]
        row.rounds = len(taken)
        row.ns = 1e9 * statistics.median(own for own, _ in taken) / row.elements
        row.times_copy = statistics.median(own / copy for own, copy in taken)
    return rows


# ---- bounds ------------------------------------------------------------------------------------------------------


class Results:
    """Rows by what they are of."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self._by_key = {(r.elements, r.threads, r.case, r.rounding, r.contender): r for r in self.rows}

    def get(self, elements: int, threads: int, case: str, rounding: str, contender: str = FAST) -> Row | None:
        return self._by_key.get((elements, threads, case, rounding, contender))


def checks(results: Results) -> list[Check]:
    found: list[Check] = []
    for row in results.rows:
        case = next((case for case in CASES if case.name == row.case), None)
        if case is None or row.contender != FAST:
            continue
        if row.threads == 1:
            found.append(_against_copy(row, case))
            found += _against_qtorch(row, case, results) + _of_halves(row, results)
        elif row.elements >= SIZES[-1]:
            found += _of_threads(row, results)
    return found


def _name(row: Row) -> str:
    return f"{row.case} {row.rounding}, {row.elements:.0e} elements"


def _against_copy(row: Row, case: Case) -> Check:
    bound = case.bound(row.elements, row.rounding)
    measured = f"{row.times_copy:.2f} x copy_"
    return Check(f"{_name(row)}, 1 thread", f"at most {bound:g} x copy_", measured, row.times_copy <= bound)


def _against_qtorch(row: Row, case: Case, results: Results) -> list[Check]:
    theirs = results.get(row.elements, 1, row.case, row.rounding, "qtorch")
    if theirs is None or row.elements < 1_000_000:
        return []
    factor = theirs.times_copy / row.times_copy
    bound = case.faster_than_qtorch[row.rounding == "stochastic"]
    return [Check(_name(row), f"at least {bound:g} x as fast as qtorch", f"{factor:.1f} x", factor >= bound)]


def _of_halves(row: Row, results: Results) -> list[Check]:
    found = []
    for name in _HALVES:
        half = results.get(row.elements, 1, row.case, row.rounding, f"{FAST} {name}")
        if half is not None:
            factor = half.times_copy / row.times_copy
            found.append(
                Check(f"{_name(row)} of {name}", "no slower than float32", f"{factor:.2f} x its time", factor <= _NOISE)
            )
    return found


def _of_threads(row: Row, results: Results) -> list[Check]:
    alone = results.get(row.elements, 1, row.case, row.rounding)
    copies = [results.get(row.elements, threads, COPY, "", COPY) for threads in (1, 2)]
    fastest_copy = min((copy.ns for copy in copies if copy), default=0.0)
    if alone is None or not fastest_copy:
        return []
    factor, to_copy = alone.ns / row.ns, row.ns / fastest_copy
    memory = to_copy < _BOUND_BY_MEMORY
    measured = f"{factor:.2f} x" + (f", bound by memory ({to_copy:.2f} x copy_)" if memory else "")
    return [Check(f"{_name(row)}, 2 threads", "at least 1.6 x as fast as 1", measured, factor >= 1.6 or memory)]


# ---- tables ------------------------------------------------------------------------------------------------------


def table(results: Results, elements: int) -> str:
    """Markdown: multiples of copy_ on one thread, those beyond their bound in bold; and the gain of a second thread."""
    present = [name for name in _COLUMNS if any(r.contender == name for r in results.rows)]
    heads = ["format", "rounding", "ns", FAST, "bound", "gain of 2 threads", *_HALVES, *present]
    lines = []
    for case, rounding in product(CASES, ROUNDINGS):
        fast, two = (results.get(elements, threads, case.name, rounding) for threads in (1, 2))
        names = [*(f"{FAST} {name}" for name in _HALVES), *present]
        rest = [_cell(results.get(elements, 1, case.name, rounding, name)) for name in names]
        if fast is not None and two is not None:
            bound = case.bound(elements, rounding)
            own = _cell(fast) if fast.times_copy <= bound else f"**{_cell(fast)}**"
            lines.append([case.name, rounding, f"{fast.ns:.2f}", own, f"{bound:g}", f"{fast.ns / two.ns:.2f}", *rest])
    return markdown_table(heads, lines)


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{row.times_copy:.3g}"


def report(results: Results, found: Sequence[Check], elsewhere: dict[str, float]) -> str:
    parts = []
    for elements in sorted({row.elements for row in results.rows}):
        copies = [results.get(elements, threads, COPY, "", COPY) for threads in (1, 2)]
        costs = ", ".join(f"{row.ns:.3f} ns an element on {row.threads} thread(s)" for row in copies if row)
        parts += [f"### {elements:,} elements (copy_: {costs})", table(results, elements)]
    parts += ["### Calls and start", "\n".join(f"- {what}: {value:.3g}" for what, value in elsewhere.items())]
    return "\n\n".join([*parts, *bounds_section(found)])


# ---- command -----------------------------------------------------------------------------------------------------


def main(
    out: Annotated[Path, typer.Option(help="JSON file with every figure")] = Path("quantizers.json"),
    picture: Annotated[Path, typer.Option(help="PNG file")] = Path("docs/pictures/quantizers.png"),
    rounds: Annotated[int, typer.Option(min=1, help="turns of each contender")] = 60,
    quick: Annotated[bool, typer.Option(help="few rounds and no 10 million elements: a rehearsal")] = False,
) -> None:
    """Measure, print Markdown, write JSON and a picture."""
    sizes, turns = (SIZES[:2], min(rounds, 5)) if quick else (SIZES, rounds)
    for line in missing(LIBRARIES):
        typer.echo(f"not measured: {line}")
    with torch.no_grad():
        results = Results(row for size in sizes for threads in (1, 2) for row in measure(size, threads, turns))
    torch.set_num_threads(1)
    elsewhere = {**call_overhead(200 if quick else 2000), **start_up(1 if quick else 5)}
    found = checks(results) + [_limit(what, value) for what, value in elsewhere.items()]
    machine = {**versions(), "capability": torch.backends.cpu.get_cpu_capability(), "rounds": turns}
    rows = [{key: value for key, value in asdict(row).items() if key != "seconds"} for row in results.rows]
    figures = {"machine": machine, "rows": rows, "elsewhere": elsewhere, "checks": [asdict(c) for c in found]}
    out.write_text(json.dumps(figures, indent=1) + "\n")
    draw(rows, CASES, picture)
    typer.echo(report(results, found, elsewhere))
    typer.echo(f"\nwritten: {out}, {picture}")


_LIMITS = {"us": 20.0, "import": 0.3, "cold": 3.0, "cached": 0.1}


def _limit(what: str, value: float) -> Check:
    limit = next(bound for word, bound in _LIMITS.items() if word in what.replace(",", "").split())
    return Check(what, f"under {limit:g}", f"{value:.3g}", value < limit)


if __name__ == "__main__":
    typer.run(main)
