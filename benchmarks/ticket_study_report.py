"""What `ticket_study.py` found, as rows, tables for a terminal, and Markdown for the docs."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import Any

from measuring import markdown_table
from rich import box
from rich.table import Table
from torch import Tensor

from lowprec_eb.detector_study import RecordedRun, StudySettings
from lowprec_eb.tickets import ScoreHistory
from lowprec_eb.tickets.detectors import DETECTORS
from lowprec_eb.tickets.masks import Layout
from lowprec_eb.tickets.verdicts import (
    NORMALISED_THRESHOLD,
    PUBLISHED_WINDOW,
    Variant,
    Verdict,
    closeness,
    epoch_masks,
    epoch_variants,
    last_mask,
    layout_of,
    settled_after,
    step_variants,
    to_final,
    verdicts,
)

_EPOCHS, _STEPS = "a look an epoch", "looks inside epochs"
_AT_ONCE = "\N{DAGGER}"
_APART = PUBLISHED_WINDOW - 1  # of the newest and the oldest mask of a window
Heads = Sequence[str]
Lines = list[list[str]]


@dataclass(eq=False)
class Study:
    """The recorded runs, and every detector's verdicts on each: groups -> run -> verdicts."""

    settings: StudySettings
    runs: Sequence[RecordedRun]
    groups: dict[str, dict[tuple[str, int], list[Verdict]]] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = {
            group: {
                (run.precision, run.seed): verdicts(run.history, variants, self.settings.ratios) for run in self.runs
            }
            for group, variants in self._variants().items()
        }

    def _variants(self) -> dict[str, tuple[Variant, ...]]:
        found = {_EPOCHS: epoch_variants()}
        every = self.settings.check_every
        if every is not None:
            steps = self.runs[0].history.steps_per_epoch
            group = f"{_STEPS}, every {every} of {steps} steps"
            found[group] = step_variants(every, steps, self.settings.score_momentum)
        return found

    @property
    def histories(self) -> dict[tuple[str, int], ScoreHistory]:
        return {(run.precision, run.seed): run.history for run in self.runs}

    @property
    def shown_histories(self) -> dict[tuple[str, int], ScoreHistory]:
        """Those of no control."""
        return {run: history for run, history in self.histories.items() if run[0] in self.settings.precisions}

    @property
    def epochs(self) -> int:
        return self.settings.training.epochs

    @property
    def drops(self) -> list[int]:
        """Epochs after which the learning rate fell."""
        rates = [self.settings.training.learning_rate_at(epoch) for epoch in range(self.epochs)]
        return [epoch for epoch in range(1, self.epochs) if rates[epoch] != rates[epoch - 1]]

    def by_precision(self) -> dict[str, dict[str, list[Verdict]]]:
        """Group -> precision -> the verdicts of all seeds."""
        return {
            group: {
                name: [of for (precision, _), found in by_run.items() if precision == name for of in found]
                for name in self.settings.precisions
            }
            for group, by_run in self.groups.items()
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for each run, detector and ratio."""
        for group, by_run in self.groups.items():
            for run in self.runs:
                for of in by_run[run.precision, run.seed]:
                    yield {"precision": run.precision, "seed": run.seed, "looks": group, **_row(of, run)}

    def tree(self) -> dict[str, Any]:
        """All figures, for a file."""
        runs = [{"precision": run.precision, "seed": run.seed, **run.facts} for run in self.runs]
        curves = {
            f"{precision}, seed {seed}": {
                f"{ratio:g}": [of.__dict__ for of in to_final(history, ratio)] for ratio in self.settings.ratios
            }
            for (precision, seed), history in self.histories.items()
        }
        return {
            "runs": runs,
            "verdicts": list(self.rows()),
            "balance": balance_rows(self),
            "pairs": pair_rows(self),
            "to_last_mask": curves,
        }


def _row(of: Verdict, run: RecordedRun) -> dict[str, Any]:
    v, final = of.variant, of.final
    accuracy = run.facts["validation_accuracy"]
    known = of.fired is not None and of.fired >= 1
    return {
        "rule": v.rule,
        "unit": v.normalised or "share",
        "threshold": v.threshold,
        "window": v.window,
        "score_momentum": v.score_momentum,
        "ratio": of.ratio,
        "earliest_epochs": of.earliest,
        "fired_epochs": of.fired,
        "validation_accuracy": accuracy[int(of.fired) - 1] if known and of.fired is not None else None,
        "to_last_share": final and final.share,
        "to_last_by_layer": final and final.by_layer,
        "to_last_by_ratio": final and final.by_ratio,
        "width_overlap": final and final.widths,
    }


def csv_text(study: Study) -> str:
    rows = list(study.rows())
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# ---- tables ------------------------------------------------------------------------------------------------------


def tables(study: Study) -> list[Table]:
    """For a terminal."""
    return [_rich(title, *of) for title, of in _all_tables(study).items()]


def docs(study: Study) -> str:
    """The same for the docs."""
    parts = [f"**{title}**\n\n{markdown_table(*of)}" for title, of in _all_tables(study).items()]
    return "\n\n".join(parts) + "\n"


def _all_tables(study: Study) -> dict[str, tuple[Heads, Lines]]:
    found = {
        "The runs": _run_table(study),
        f"Masks of neighbouring epochs, and {_APART} epochs apart: their distance (1: random)": _pace_table(study),
        "In hindsight: epochs after which no mask was farther than 0.2 from the last one": _hindsight_table(study),
    }
    for group, by_precision in study.by_precision().items():
        title = (
            f"Epochs until the ticket, and its mask's distance to the last one (1: random), {group} "
            f"({_AT_ONCE} at the first look that the rule allows)"
        )
        found[title] = _firing_table(by_precision, study.settings.ratios)
    title = (
        "Over all ratios, precisions and seeds: when the ticket, and how far its mask is from the last one (1: random)"
    )
    found[title] = _balance_table(study)
    title = "Distance between the masks of two runs (1: random), and kept channels that are in the same layers"
    return {**found, title: _pair_table(study)}


def _rich(title: str, heads: Heads, lines: Lines) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < 2 else "right")
    for line in lines:
        table.add_row(*line)
    return table


def _run_table(study: Study) -> tuple[Heads, Lines]:
    lines = []
    for run in study.runs:
        losses, accuracy = run.facts["loss"], run.facts["validation_accuracy"]
        figures = (f"{losses[-1]:.3f}", f"{100 * accuracy[-1]:.1f}", f"{100 * run.facts['test_accuracy']:.1f}")
        lines.append([run.precision, str(run.seed), *figures, f"{run.facts['seconds'] / 60:.1f}"])
    return ["precision", "seed", "last loss", "last validation [%]", "test [%]", "training [min]"], lines


def _ratio_heads(study: Study) -> list[str]:
    return [f"p = {ratio:g}" for ratio in study.settings.ratios]


def _pace_table(study: Study) -> tuple[Heads, Lines]:
    """Means over precisions and seeds, over the halves of each phase of one learning rate."""
    own, lines = list(study.shown_histories.values()), []
    masks = {ratio: [epoch_masks(history, ratio) for history in own] for ratio in study.settings.ratios}
    layout = layout_of(own[0])
    for begin, end in pairwise((0, *study.drops, study.epochs)):
        half = (begin + end) // 2
        for now in (range(begin, half), range(half, end)):
            pairs = {n: [epoch for epoch in now if epoch - n >= begin] for n in (1, _APART)}
            cells = [" / ".join(_pace(of, layout, *at) for at in pairs.items()) for of in masks.values()]
            lines.append([f"{now.start + 1}-{now.stop}", *cells])
    return ["epochs", *_ratio_heads(study)], lines


def _pace(masks: Sequence[Tensor], layout: Layout, apart: int, epochs: Sequence[int]) -> str:
    found = [closeness(of[epoch - apart], of[epoch], layout).by_layer for of in masks for epoch in epochs]
    return f"{statistics.mean(found):.2f}" if found else "none"


def _hindsight_table(study: Study) -> tuple[Heads, Lines]:
    lines = []
    for precision in study.settings.precisions:
        own = [run.history for run in study.runs if run.precision == precision]
        cells = [_span([settled_after(of, ratio) for of in own]) for ratio in study.settings.ratios]
        lines.append([precision, *cells])
    return ["precision", *_ratio_heads(study)], lines


def _firing_table(by_precision: Mapping[str, Sequence[Verdict]], ratios: Sequence[float]) -> tuple[Heads, Lines]:
    """A column for each ratio and precision."""
    variants = dict.fromkeys(of.variant for found in by_precision.values() for of in found)
    columns = [(ratio, precision) for ratio in ratios for precision in by_precision]
    lines = []
    for variant in variants:
        cells = [
            _cell([of for of in by_precision[precision] if of.variant == variant and of.ratio == ratio])
            for ratio, precision in columns
        ]
        lines.append([variant.name, *cells])
    return ["detector / unit", *(f"{ratio:g} {precision}" for ratio, precision in columns)], lines


def _cell(found: Sequence[Verdict]) -> str:
    drawn = [of for of in found if of.fired is not None and of.final is not None]
    if not drawn:
        return "never"
    mark = _AT_ONCE if any(of.fired == of.earliest for of in drawn) else ""
    distance = statistics.mean(of.final.by_layer for of in drawn if of.final is not None)
    some = f" ({len(drawn)} of {len(found)})" if len(drawn) < len(found) else ""
    return f"{_span([of.fired for of in drawn if of.fired is not None])}{mark}: {distance:.2f}{some}"


def _span(values: Sequence[float]) -> str:
    low, high = (f"{value:.1f}".removesuffix(".0") for value in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"


# ---- time against closeness ----------------------------------------------------------------------------------------

_SHARES = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5)  # of the schedule
_THRESHOLDS, _WINDOWS = (0.1, 0.15, 0.25, 0.3, 0.4), (3, 8)


def balance_rows(study: Study) -> list[dict[str, Any]]:
    """For stopping after a fixed share of the schedule and for each detector: when, and how close to the last mask."""
    own, ratios, rows = list(study.shown_histories.values()), study.settings.ratios, []
    for share in _SHARES:
        after = max(1, round(share * study.epochs))
        far = [to_final(history, ratio)[after - 1].by_layer for history in own for ratio in ratios]
        rows.append(_balance(f"none: {100 * share:g} % of the schedule", "", len(far), [after], far))
    found = [of for by_precision in study.by_precision().values() for some in by_precision.values() for of in some]
    base = Variant("window", "layer", NORMALISED_THRESHOLD)
    others = [replace(base, threshold=t) for t in _THRESHOLDS] + [replace(base, window=w) for w in _WINDOWS]
    found += [of for history in own for of in verdicts(history, others, ratios)]
    for variant in dict.fromkeys(of.variant for of in found):
        said = [of for of in found if of.variant == variant]
        times = [of.fired for of in said if of.fired is not None]
        far = [of.final.by_layer for of in said if of.final is not None]
        memory = DETECTORS[variant.rule](variant.window).memory
        name = f"{variant.name}, {variant.threshold:g}, {min(variant.window, memory)} looks"
        rows.append(_balance(name, "yes" if variant.every else "", len(said), times, far))
    return rows


def _balance(name: str, inside: str, runs: int, epochs: Sequence[float], distances: Sequence[float]) -> dict[str, Any]:
    row: dict[str, Any] = {"detector": name, "inside": inside, "runs": runs, "fired": len(distances)}
    for key, values in (("epochs", epochs), ("distance", distances)):
        known = [min(values), statistics.mean(values), max(values)] if values else [None] * 3
        row |= dict(zip((f"{key}_min", f"{key}_mean", f"{key}_max"), known, strict=True))
    return {**row, "distance_std": statistics.pstdev(distances) if distances else None}


def _balance_table(study: Study) -> tuple[Heads, Lines]:
    lines = []
    for row in balance_rows(study):
        cells = [row["detector"], row["inside"]]
        if row["fired"]:
            low, high = row["epochs_min"], row["epochs_max"]
            mean = f"{row['epochs_mean']:.1f} ({_span([low, high])})"
            far = f"{row['distance_mean']:.2f} ({row['distance_min']:.2f}-{row['distance_max']:.2f})"
            some = f", {row['fired']} of {row['runs']}" if row["fired"] < row["runs"] else ""
            cells += [mean + some, far, f"{row['distance_std']:.2f}"]
        else:
            cells += ["never", "", ""]
        lines.append(cells)
    return [
        "detector / unit, threshold",
        "inside epochs",
        "epochs: mean (range)",
        "distance: mean (range)",
        "std",
    ], lines


# ---- two runs ----------------------------------------------------------------------------------------------------


def pair_rows(study: Study) -> list[dict[str, Any]]:
    """How close the masks of two runs are at one ratio: their last masks, and what detectors drew from each."""
    rows = []
    for one, other in combinations(study.runs, 2):
        kind = _kind(study.settings, one, other)
        if kind is None:
            continue
        for what, ratio, a, b in _masks_of_pair(study, one, other):
            of = closeness(a, b, layout_of(one.history))
            seeds = f"{one.seed}" if one.seed == other.seed else f"{one.seed}, {other.seed}"
            rows.append({"runs": kind, "seeds": seeds, "masks": what, "ratio": ratio, **of.__dict__})
    return rows


def _kind(settings: StudySettings, one: RecordedRun, other: RecordedRun) -> str | None:
    """What two runs have in common; None: they are not compared."""
    if one.seed == other.seed:
        both = one.precision in settings.precisions and other.precision in settings.precisions
        compared = both or one.precision == settings.precisions[0]
        return f"{one.precision} and {other.precision}, one seed" if compared else None
    same = one.precision == other.precision and one.precision in settings.precisions
    return f"{one.precision}, two seeds" if same else None


def _masks_of_pair(study: Study, one: RecordedRun, other: RecordedRun) -> Iterator[tuple[str, float, Tensor, Tensor]]:
    for ratio in study.settings.ratios:
        yield "last", ratio, last_mask(one.history, ratio), last_mask(other.history, ratio)
    for by_run in study.groups.values():
        pairs = zip(by_run[one.precision, one.seed], by_run[other.precision, other.seed], strict=True)
        for a, b in pairs:
            if a.mask is not None and b.mask is not None:
                inside = "" if a.variant.every is None else ", inside epochs"
                yield a.variant.name + inside, a.ratio, a.mask, b.mask


_SHOWN = ("last", "window", "window / layer")


def _pair_table(study: Study) -> tuple[Heads, Lines]:
    rows = pair_rows(study)
    lines = []
    for kind in dict.fromkeys(row["runs"] for row in rows):
        for what in _SHOWN:
            own = [row for row in rows if row["runs"] == kind and row["masks"] == what]
            cells = [_closeness_cell([row for row in own if row["ratio"] == r]) for r in study.settings.ratios]
            lines.append([kind, "last masks" if what == "last" else f"tickets of {what}", *cells])
    return ["runs", "masks", *_ratio_heads(study)], lines


def _closeness_cell(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    distance, widths = (statistics.mean(row[key] for row in rows) for key in ("by_layer", "widths"))
    return f"{distance:.2f}, {100 * widths:.0f} %"
