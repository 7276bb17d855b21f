"""Tables and file columns of what is established over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from lowprec_eb.report.cells import csv_text, ends_text, range_cells, seeds_cells
from lowprec_eb.report.findings import (
    ArmTest,
    Findings,
    accuracy_interval,
    energy_interval,
    holds_for_all,
)
from lowprec_eb.report.saving import Saving, Unsplit
from lowprec_eb.report.statistics_sentences import p_text, percent, points_text, verdict_text
from lowprec_eb.report.summary import ArmSummary, Comparison
from lowprec_eb.report.sweep_table import sweep_table, sweep_tree
from lowprec_eb.report.table_style import add_columns, new_table
from lowprec_eb.report.units import Scale, ratio_text, three_digits

_FOR_ALL = "\N{DOUBLE DAGGER}"
_CAPTION = (
    "Equal: two one-sided tests, the {inner} interval lies within the margin on both sides. Not worse: above its lower "
    "side. Better, worse: the {outer} interval lies off zero. {mark}: holds for all tests together (Holm) as equal or "
    "not worse. Energy over seeds: of the nominal one alone."
)


def statistics_tables(comparison: Comparison, arms: Sequence[ArmSummary], findings: Findings) -> list[Table]:
    """Intervals over seeds; accuracy and energy against each baseline; savings split into ticket and bits; energy at
    equal accuracy along ratios.

    A table that would be empty is left out.
    """
    against = [
        _against(comparison, base.arm, tests)
        for base in findings.baselines
        if (tests := [test for test in findings.tests if test.baseline == base.arm])
    ]
    split = [saving for saving in findings.savings if isinstance(saving, Saving)]
    savings = [_savings(split, comparison.confidence)] if split else []
    sweeps = [sweep_table(findings.sweeps, comparison.confidence)] if findings.sweeps else []
    return [_intervals(arms, comparison.confidence), *against, *savings, *sweeps]


def _intervals(arms: Sequence[ArmSummary], level: float) -> Table:
    scale = Scale.of(arm.energy.nominal_j for arm in arms)
    unit = f"[{scale.prefix}J]"
    ends = f"{percent(level)} interval"
    caption = "Student's t of the mean over seeds. What the energy model leaves open is not in them."
    table = new_table("Intervals over seeds", caption)
    numbers = ("seeds", "test accuracy\n[%]", f"{ends}\n[%]", f"nominal energy\n{unit}", f"{ends}\n{unit}")
    add_columns(table, ("arm",), numbers)
    for arm in arms:
        accuracy, energy = accuracy_interval(arm, level), energy_interval(arm, level)
        cells = (
            arm.arm,
            str(len(arm.seeds)),
            f"{100 * arm.test_accuracy.mean:.2f}",
            ends_text(accuracy, lambda value: f"{100 * value:.2f}"),
            scale.text(arm.energy.nominal_j),
            ends_text(energy, scale.text),
        )
        table.add_row(*map(Text, cells))
    return table


def _against(comparison: Comparison, baseline: str, tests: Sequence[ArmTest]) -> Table:
    inner, outer = percent(2 * comparison.confidence - 1), percent(comparison.confidence)
    table = new_table(
        f"Against {baseline}: is test accuracy equal within {points_text(comparison.margin)}, and what does it cost?",
        _CAPTION.format(inner=inner, outer=outer, mark=_FOR_ALL),
    )
    numbers = (
        "pairs\n(left out)",
        "difference\n[points]",
        f"{inner} interval\n[points]",
        "p\nequal",
        "p not\nworse",
        "energy of it\n(low-high)",
        f"over seeds\n{outer} interval",
    )
    add_columns(table, ("arm", "established"), numbers)
    for test in tests:
        table.add_row(*map(Text, _against_cells(test)))
    return table


def _against_cells(test: ArmTest) -> tuple[str, ...]:
    result = test.accuracy
    return (
        test.arm,
        verdict_text(result) + (f" {_FOR_ALL}" if holds_for_all(test) else ""),
        f"{len(test.seeds)} ({len(test.dropped)})",
        "-" if result.mean is None else f"{100 * result.mean:+.2f}",
        ends_text(result.interval, lambda value: f"{100 * value:+.2f}"),
        p_text(result.p_equal),
        p_text(result.p_not_worse),
        ratio_text(test.energy_ratio),
        ends_text(test.energy_interval, three_digits),
    )


def _savings(savings: Sequence[Saving], level: float) -> Table:
    caption = (
        "Factors of energy: nominal (low-high of the energy model). Ticket and bits: geometric mean over both orders, "
        "and its interval over seeds."
    )
    table = new_table("Savings split into ticket and bits", caption)
    seeds = f"{percent(level)} interval\nover seeds"
    orders = ("ticket first\n(ticket, bits)", "bits first\n(bits, ticket)")
    add_columns(table, ("arm", "of"), ("whole", "ticket", seeds, "bits", seeds, *orders))
    for saving in savings:
        table.add_row(*map(Text, _saving_cells(saving)))
    return table


def _saving_cells(saving: Saving) -> tuple[str, ...]:
    orders = (saving.ticket_first, saving.bits_first)
    return (
        saving.arm,
        saving.baseline,
        ratio_text(saving.whole, ends=False),
        ratio_text(saving.ticket),
        ends_text(saving.ticket_interval, three_digits),
        ratio_text(saving.bits),
        ends_text(saving.bits_interval, three_digits),
        *(", ".join(ratio_text(factor, ends=False) for factor in order) for order in orders),
    )


# ---- for files ---------------------------------------------------------------------------------------------------


def interval_cells(arm: ArmSummary, level: float) -> dict[str, float | None]:
    """Columns of an arm: both ends over seeds of test accuracy and of nominal energy."""
    accuracy, energy = accuracy_interval(arm, level), energy_interval(arm, level)
    return seeds_cells("test_accuracy_seeds_{end}", accuracy) | seeds_cells("energy_seeds_{end}_j", energy)


def findings_csv(findings: Findings) -> str | None:
    """One line for each arm and baseline, with the split of the saving; None where nothing was tested."""
    splits = {(saving.arm, saving.baseline): saving for saving in findings.savings}
    lines = [_test_cells(test) | _saving_columns(splits.get((test.arm, test.baseline))) for test in findings.tests]
    return csv_text(lines) if lines else None


def sweeps_csv(findings: Findings) -> str | None:
    """One line for each sweep and baseline; None where no arms are a sweep."""
    return csv_text([sweep_tree(sweep) for sweep in findings.sweeps]) if findings.sweeps else None


def findings_tree(findings: Findings) -> dict[str, Any]:
    """For a JSON file; accuracies are fractions."""
    return {
        "baselines": [base.arm for base in findings.baselines],
        "tests": [_test_cells(test) for test in findings.tests],
        "savings": [{"arm": of.arm, "baseline": of.baseline} | _saving_columns(of) for of in findings.savings],
        "sweeps": [sweep_tree(sweep) for sweep in findings.sweeps],
    }


def _test_cells(test: ArmTest) -> dict[str, Any]:
    result = test.accuracy
    return {
        "arm": test.arm,
        "baseline": test.baseline,
        "seeds": list(test.seeds),
        "seeds_left_out": list(test.dropped),
        "accuracy_difference": result.mean,
        **seeds_cells("accuracy_difference_{end}", result.interval),
        **seeds_cells("accuracy_difference_wide_{end}", result.wide_interval),
        "verdict": result.verdict,
        "not_worse": result.not_worse,
        "no_spread": result.no_spread,
        "p_equal": result.p_equal,
        "p_equal_holm": test.holm_equal,
        "p_not_worse": result.p_not_worse,
        "p_not_worse_holm": test.holm_not_worse,
        "p_different": result.p_different,
        **range_cells("energy_ratio", test.energy_ratio),
        **seeds_cells("energy_ratio_seeds_{end}", test.energy_interval),
    }


def _saving_columns(saving: Saving | Unsplit | None) -> dict[str, Any]:
    """Empty for an arm that differs from the baseline in one way."""
    split = saving if isinstance(saving, Saving) else None
    orders = ((None, None), (None, None)) if split is None else (split.ticket_first, split.bits_first)
    (ticket_first, bits_second), (bits_first, ticket_second) = orders
    return {
        "cannot_be_split_without": saving.missing if isinstance(saving, Unsplit) else None,
        **range_cells("ticket_factor", None if split is None else split.ticket),
        **seeds_cells("ticket_factor_seeds_{end}", None if split is None else split.ticket_interval),
        **range_cells("bits_factor", None if split is None else split.bits),
        **seeds_cells("bits_factor_seeds_{end}", None if split is None else split.bits_interval),
        "ticket_factor_ticket_first": ticket_first and ticket_first.nominal,
        "bits_factor_ticket_first": bits_second and bits_second.nominal,
        "bits_factor_bits_first": bits_first and bits_first.nominal,
        "ticket_factor_bits_first": ticket_second and ticket_second.nominal,
    }
