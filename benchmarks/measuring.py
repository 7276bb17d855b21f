"""What the benchmarks share: bounds, clocks, libraries that may be missing, and the parts of their pictures."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from lowprec_eb.report.figures import COLOURS


@dataclass
class Check:
    """A bound, and whether it holds."""

    what: str
    bound: str
    measured: str
    holds: bool


def bounds_section(found: Sequence[Check]) -> list[str]:
    """Markdown: how many bounds hold, and those that do not."""
    missed = [f"- {c.what}: {c.bound}; {c.measured}" for c in found if not c.holds]
    return [f"### {len(found) - len(missed)} of {len(found)} bounds hold, {len(missed)} do not", "\n".join(missed)]


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))


def seconds(call: Callable[[], Any], times: int = 1, finish: Callable[[], Any] = lambda: None) -> float:
    """Seconds a call takes; ``finish`` waits for what the calls have started (on a GPU)."""
    finish()
    start = time.perf_counter()
    for _ in range(times):
        call()
    finish()
    return (time.perf_counter() - start) / times


# ---- other libraries ---------------------------------------------------------------------------------------------


@cache
def library(name: str) -> Any:
    """The module, or None with the reason in :func:`missing`."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever another library's import raises, it is not measured
        _absent[name] = f"{type(error).__name__}: {error}"
        return None


_absent: dict[str, str] = {}


def missing(names: Iterable[str]) -> list[str]:
    """Those that cannot be imported, with the reason."""
    return [f"{name} ({_absent[name]})" for name in names if library(name) is None]


# ---- pictures ----------------------------------------------------------------------------------------------------

STYLES = {  # marker and colour, the same in every picture
    "fast": ("o", COLOURS[0]),
    "plain torch": ("s", COLOURS[2]),
    "qtorch": ("D", COLOURS[1]),
    "fake_quantize": ("^", COLOURS[3]),
    "brevitas": ("v", COLOURS[5]),
    "torchao": ("P", COLOURS[4]),
    "gfloat": ("X", COLOURS[6]),
}
BOUND = Line2D([], [], color="black", marker="|", markersize=11, markeredgewidth=2, linestyle="", label="bound")


def legend_entry(label: str, marker: str, colour: str, **style: Any) -> Line2D:
    return Line2D([], [], marker=marker, color=colour, linestyle="", markersize=7.5, label=label, **style)


def mark_bound(axes: Axes, at: float, line: int) -> None:
    axes.plot(at, line, "|", color="black", markersize=13, markeredgewidth=2, zorder=2)


def axis_of_multiples(axes: Axes, *, logarithmic: bool = True, steps: Sequence[float] = (1, 3)) -> None:
    """The x axis for multiples of something's time, with a line at 1."""
    axes.axvline(1, color="#555555", linewidth=0.8, zorder=1)
    if logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=steps))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(True, axis="both", alpha=0.25)
