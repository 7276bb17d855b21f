"""What `step_overhead.py` found: rows, the bounds that hold, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from measuring import Check, bounds_section, markdown_table
from step_contenders import LOWERED, PLAIN
from step_models import WORKLOADS

_TIME_BOUNDS = {"swalp8": 1.3, "bfp8": 1.3, "int8": 1.3, "fp8": 1.2}
_GPU_TIME_BOUND, _MEMORY_BOUND = 1.3, 1.25


@dataclass
class Row:
    """One contender at one model: milliseconds a step, and time and peak memory as multiples of float32's.

    middle_half: the quartiles of the time's multiple over rounds.
    """

    model: str
    batch: int
    threads: int
    where: str
    compiled: bool
    recipe: str
    by: str
    ms: float = 0.0
    times_fp32_time: float = 0.0
    middle_half: tuple[float, float] = (0.0, 0.0)
    rounds: int = 0
    peak_mib: float = 0.0
    times_fp32_memory: float = 0.0
    bound_time: float | None = None
    bound_memory: float | None = None
    pairs: list[tuple[float, float]] = field(default_factory=list, repr=False)


# ---- bounds ------------------------------------------------------------------------------------------------------


def set_bounds(rows: Sequence[Row], device: str) -> None:
    """ResNet-20 with two threads on a CPU; ResNet-18, compiled, on a GPU."""
    for row in rows:
        on_gpu = device == "cuda" and row.model == "resnet18" and row.compiled
        on_cpu = device == "cpu" and row.model == "resnet20" and row.threads == 2 and not row.compiled
        if row.by == LOWERED and row.recipe in _TIME_BOUNDS and (on_cpu or on_gpu):
            row.bound_time = _GPU_TIME_BOUND if on_gpu else _TIME_BOUNDS[row.recipe]
            row.bound_memory = _MEMORY_BOUND


def checks(rows: Sequence[Row]) -> list[Check]:
    found = []
    for row in rows:
        for of in ("time", "memory"):
            bound, measured = getattr(row, f"bound_{of}"), getattr(row, f"times_fp32_{of}")
            if bound and measured:
                what = f"{row.recipe}, {row.model}, batch {row.batch}"
                found.append(
                    Check(f"{what}: {of}", f"at most {bound:g} x fp32", f"{measured:.2f} x", measured <= bound)
                )
    return found


# ---- tables ------------------------------------------------------------------------------------------------------


def report(rows: Sequence[Row], found: Sequence[Check], left_out: Sequence[str]) -> str:
    """Markdown: a section for each model, the bounds, and what was not measured."""
    parts = []
    for model, compiled in dict.fromkeys((row.model, row.compiled) for row in rows):
        own = [row for row in rows if (row.model, row.compiled) == (model, compiled)]
        plain = [row for row in own if row.by == PLAIN]
        took = "; ".join(f"{row.ms:.3g} ms on {row.where}{_spread(row)}" for row in plain)
        title = f"### {WORKLOADS[model].what}, batch {own[0].batch}{', compiled' if compiled else ''}"
        memory = f"; {plain[0].peak_mib:.0f} MiB at the peak" if plain[0].peak_mib else ""
        parts += [title, f"fp32: {took}{memory}", _table(own)]
    if left_out:
        parts += ["### Not measured", "\n".join(f"- {line}" for line in left_out)]
    return "\n\n".join([*parts, *bounds_section(found)])


def _spread(row: Row) -> str:
    """The noise of the machine: float32's own step beside another of its kind."""
    low, high = row.middle_half
    return f" ({low:.2f} to {high:.2f} of another such step in the middle half of rounds)"


def _table(rows: Sequence[Row]) -> str:
    """Multiples of float32's time and memory; those beyond their bound in bold."""
    timed = dict.fromkeys((row.by, row.threads) for row in rows if row.by != PLAIN)
    by_name = list(dict.fromkeys(by for by, _ in timed))
    timed_columns = sorted(timed, key=lambda column: (by_name.index(column[0]), column[1]))
    where = {row.threads: row.where for row in rows}
    known = {(row.recipe, row.by, row.threads): row for row in rows}
    most = max(where)
    heads = ["recipe", f"ms, {where[most]}", *(f"{by}, {where[count]}" for by, count in timed_columns)]
    heads += [f"memory, {by}" for by in by_name]
    lines = []
    for recipe in dict.fromkeys(row.recipe for row in rows if row.by != PLAIN):
        times = [_cell(known.get((recipe, by, count)), "time") for by, count in timed_columns]
        memory = [_cell(known.get((recipe, by, most)), "memory") for by in by_name]
        own = known.get((recipe, LOWERED, most))
        lines.append([recipe, f"{own.ms:.3g}" if own else "", *times, *memory])
    return markdown_table(heads, lines)


def _cell(row: Row | None, of: str) -> str:
    value = getattr(row, f"times_fp32_{of}") if row else 0
    if row is None or not value:
        return ""
    bound = getattr(row, f"bound_{of}")
    text = f"{value:.2f}" if value < 10 else f"{value:.1f}"
    if bound is None:
        return text
    return f"{text} (bound {bound:g})" if value <= bound else f"**{text}** (bound {bound:g})"
