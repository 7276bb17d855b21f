"""What pictures share: colours, size, how a file is written.

The colours are Okabe and Ito's, which colour-blind people tell apart.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lowprec_eb.report.summary import Comparison

DPI = 150
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(width_inch: float, height_inch: float) -> Figure:
    return Figure(figsize=(width_inch, height_inch), dpi=DPI, layout="constrained")


def save_picture(figure: Figure, path: Path) -> None:
    """Write the whole file or nothing."""
    png = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(png, format="png", dpi=DPI)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_bytes(png.getvalue())
    unfinished.replace(path)


def diverged_text(comparison: Comparison) -> str:
    """Lines of a title for what is not, or not with all seeds, in the picture."""
    seeds: dict[str, list[int]] = {}
    for outcome in comparison.diverged:
        seeds.setdefault(outcome.arm, []).append(outcome.seed)
    named = [f"{arm} (seed {', '.join(map(str, of))})" for arm, of in seeds.items()]
    lines = textwrap.wrap(f"diverged, and not shown: {'; '.join(named)}", 100) if named else []
    return "".join(f"\n{line}" for line in lines)
