"""The picture of `step_overhead.py`: time and peak memory of a training step, as multiples of float32's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from measuring import BOUND, STYLES, axis_of_multiples, legend_entry, mark_bound

from lowprec_eb.report.figures import new_figure, save_picture

_STYLE_OF = {"lowprec-eb": "fast", "plain torch": "plain torch", "qtorch": "qtorch"}
_LABELS = {"plain torch": "plain torch operations", "qtorch": "qtorch's kernels"}
_LOGARITHMIC_FROM = 6  # the largest multiple that a linear axis shows well


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A column for each model, time above memory, a line for each recipe.

    Args:
        rows: of `step_overhead.Row`, as dictionaries.
    """
    shown = [row for row in rows if row["by"] in _STYLE_OF]
    titles = list(dict.fromkeys(_title(row) for row in shown))
    recipes = list(dict.fromkeys(row["recipe"] for row in shown))
    figure = new_figure(3.6 * len(titles) + 2.2, 2.6 + 0.6 * len(recipes))
    panels = figure.subplots(2, len(titles), squeeze=False, sharey=True)
    for column, title in enumerate(titles):
        own = [row for row in shown if _title(row) == title]
        _panel(panels[0][column], own, recipes, "time")
        _panel(panels[1][column], own, recipes, "memory")
        panels[0][column].set_title(title, fontsize=11)
    panels[0][0].set_yticks(range(len(recipes)), recipes)
    panels[0][0].set_ylim(len(recipes) - 0.5, -0.5)
    handles = [*_legend(shown), BOUND]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False)
    figure.suptitle("A training step, as a multiple of float32's")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(figure, path)


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['model']}, batch {row['batch']}" + (", compiled" if row["compiled"] else "")


def _panel(axes: Axes, rows: Sequence[Mapping[str, Any]], recipes: Sequence[str], of: str) -> None:
    most = max(row["threads"] for row in rows)
    # Peak memory hangs on no number of threads.
    taken = [row for row in rows if row[f"times_fp32_{of}"] and (of == "time" or row["threads"] == most)]
    for row in taken:
        line = recipes.index(row["recipe"])
        marker, colour = STYLES[_STYLE_OF[row["by"]]]
        if of == "time":
            axes.plot(row["middle_half"], (line, line), color=colour, linewidth=1.2, alpha=0.5, zorder=2)
        if row[f"bound_{of}"]:
            mark_bound(axes, row[f"bound_{of}"], line)
        whole = row["threads"] == most
        filling = colour if whole else "white"
        edge = "white" if whole else colour
        axes.plot(
            *(row[f"times_fp32_{of}"], line, marker),
            color=filling,
            markersize=6.5,
            markeredgecolor=edge,
            zorder=4 if whole else 3,
        )
    largest = max((row[f"times_fp32_{of}"] for row in taken), default=1)
    axis_of_multiples(axes, logarithmic=largest > _LOGARITHMIC_FROM, steps=(1, 2, 5))
    axes.set_xlabel("time of fp32 = 1" if of == "time" else "peak memory of fp32 = 1")


def _legend(rows: Sequence[Mapping[str, Any]]) -> list[Line2D]:
    names = [name for name in _STYLE_OF if any(row["by"] == name for row in rows)]
    handles = [legend_entry(_LABELS.get(name, name), *STYLES[_STYLE_OF[name]]) for name in names]
    counts = sorted({row["threads"] for row in rows})
    if len(counts) > 1:
        fewer = " or ".join(map(str, counts[:-1]))
        handles.append(legend_entry(f"{counts[-1]} threads", "o", "#777777"))
        handles.append(legend_entry(f"{fewer} thread", "o", "white", markeredgecolor="#777777"))
    handles.append(Line2D([], [], color="#777777", alpha=0.6, linewidth=1.2, label="middle half of the rounds"))
    return handles
