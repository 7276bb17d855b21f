"""The table of energy at equal accuracy: each sweep of ratios against each baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from lowprec_eb.report.cells import ends_text, range_cells, seeds_cells
from lowprec_eb.report.equal_accuracy import EqualAccuracy, NotReached
from lowprec_eb.report.findings import SweepResult
from lowprec_eb.report.intervals import Interval
from lowprec_eb.report.statistics_sentences import percent
from lowprec_eb.report.table_style import add_columns, new_table
from lowprec_eb.report.units import Scale, ratio_text, three_digits

_CAPTION = (
    "Mean accuracy interpolated along the ratios (share of channels dropped). Established: less or more nominal "
    "energy, the {level} interval over seeds (jackknife) lies off 1; low-high is what the energy model leaves open. "
    "Not reached: no ratio is as accurate. Outside the sweep: even the largest ratio is more accurate, so that no more "
    "than its energy is needed."
)
_OUTSIDE = {"above": "not reached", "below": "outside the sweep", "no seed": "no common seed"}


def sweep_table(sweeps: Sequence[SweepResult], level: float) -> Table:
    """Two lines for each sweep and baseline; ``level`` of the intervals over seeds."""
    energies = [of.result.energy for of in sweeps if of.result is not None and of.result.energy is not None]
    scale, seeds = Scale.of(energy.nominal_j for energy in energies), f"{percent(level)} interval over seeds"
    table = new_table("Energy at equal accuracy along the ratios", _CAPTION.format(level=percent(level)))
    numbers = ("at\nratio", f"energy [{scale.prefix}J] (low-high)\n{seeds}", f"of its energy (low-high)\n{seeds}")
    add_columns(table, ("pipeline, precision\nratios run", "as accurate as\n[%]"), numbers)
    add_columns(table, ("established",), ())
    labels = _labels(sweeps)
    for sweep in sweeps:
        table.add_row(
            *map(
                Text, (labels[sweep.arms], _reference(sweep), *_number_texts(sweep.result, scale), _told(sweep.result))
            )
        )
    return table


def sweep_tree(sweep: SweepResult) -> dict[str, Any]:
    """The columns of a file, the same for each sweep; energies in J, ``energy_ratio`` is over the baseline's.

    ``result`` is reached, not reached, outside the sweep (the energy is an upper bound), no common seed, or no sweep;
    ``verdict`` (less, more, not established) is of what is reached.
    """
    result = sweep.result
    found = result if isinstance(result, EqualAccuracy) else None
    joules, factor = _over_seeds(result)
    energy = None if result is None or result.energy is None else result.energy.total_j
    return {
        "arms": list(sweep.arms),
        "pipeline": sweep.pipeline,
        "precision": sweep.precision,
        "ratios": list(sweep.ratios),
        "baseline": sweep.baseline,
        "result": "reached" if found else _told(result),
        "reached": None if result is None else found is not None,
        "side": result.side if isinstance(result, NotReached) else None,
        "target_accuracy": result.target if result is not None and result.seeds else None,
        "seeds": [] if result is None else list(result.seeds),
        "ratio": found and found.ratio,
        **range_cells("energy_{end}_j", energy),
        **seeds_cells("energy_seeds_{end}_j", joules),
        **range_cells("energy_ratio", None if result is None else result.of_baseline),
        **seeds_cells("energy_ratio_seeds_{end}", factor),
        "verdict": found and found.verdict,
        "lost_seeds": list(found.lost) if found else [],
    }


def _labels(sweeps: Sequence[SweepResult]) -> dict[tuple[str, ...], str]:
    """Sweeps alike in pipeline and precision differ in something else, which the names of their arms say."""
    names = {of.arms: f"{of.pipeline.replace('_', ' ')}, {of.precision}" for of in sweeps}
    labels = {}
    for sweep in sweeps:
        name, ratios = names[sweep.arms], ", ".join(f"{ratio:g}" for ratio in sweep.ratios)
        alone = list(names.values()).count(name) == 1
        labels[sweep.arms] = f"{name}\n{ratios}" if alone else f"{name}\n{', '.join(sweep.arms)}\n{ratios}"
    return labels


def _reference(sweep: SweepResult) -> str:
    result = sweep.result
    return sweep.baseline if result is None or not result.seeds else f"{sweep.baseline}\n{100 * result.target:.2f}"


def _number_texts(result: EqualAccuracy | NotReached | None, scale: Scale) -> tuple[str, str, str]:
    if result is None or result.energy is None or result.of_baseline is None:
        return "-", "-", "-"
    energy, (joules, factor) = result.energy.total_j, _over_seeds(result)
    nominal = f"{scale.text(energy.nominal)} ({scale.text(energy.low)}-{scale.text(energy.high)})"
    ratio = ratio_text(result.of_baseline)
    if isinstance(result, NotReached):
        return "-", f"at most {nominal}", f"at most {ratio}"
    return (
        f"{result.ratio:.3f}",
        f"{nominal}\n{ends_text(joules, scale.text)}",
        f"{ratio}\n{ends_text(factor, three_digits)}",
    )


def _over_seeds(result: EqualAccuracy | NotReached | None) -> tuple[Interval | None, Interval | None]:
    """Of the energy, and of its ratio to the baseline's."""
    if isinstance(result, EqualAccuracy):
        return result.energy_interval, result.interval
    return None, None


def _told(result: EqualAccuracy | NotReached | None) -> str:
    if result is None:
        return "no sweep"
    if isinstance(result, NotReached):
        return _OUTSIDE[result.side]
    return result.verdict
