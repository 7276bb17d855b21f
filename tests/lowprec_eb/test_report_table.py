import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_example import ARMS, example_comparison
from rich.console import Console

from energy_models import Range
from lowprec_eb.report import (
    Comparison,
    Spread,
    build_tables,
    print_plan,
    print_report,
    summarise,
    to_csv,
    to_json,
)
from lowprec_eb.report.table_style import fitted
from lowprec_eb.report.units import Scale, energy_text, percent_text, ratio_text, three_digits


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return example_comparison()


def printed(comparison: Comparison, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, _environ={})
    with console.capture() as text:
        for table in build_tables(comparison):
            console.print(table)
    return text.get()


def test_both_tables_fit_150_columns_with_every_arm_on_one_line(comparison: Comparison) -> None:
    text = printed(comparison)
    assert max(map(len, text.splitlines())) <= 150
    for arm in ARMS:
        assert len([line for line in text.splitlines() if line.startswith(f"  {arm[0]} ")]) >= 2


def test_the_table_shows_the_numbers_with_their_units(comparison: Comparison) -> None:
    text = printed(comparison)
    work, energy = (
        next(line for line in part.splitlines() if "early-bird LL " in line) for part in text.split("Modelled")
    )
    ll = next(arm for arm in summarise(comparison) if arm.arm == "early-bird LL")
    assert "7, 8, 10*" in work  # seed 2 at the deadline
    assert f"{100 * ll.test_accuracy.mean:.2f} ± {100 * ll.test_accuracy.std:.2f}" in work
    assert f"{1000 * ll.energy.nominal_j:.1f} " in energy
    assert "x0.119 (0.104-0.145)" in energy
    assert "not measured" in energy
    for unit in ("[%]", "[epochs]", "[s]", "[G]", "[T]", "[mJ]", "[J]"):
        assert unit in text


def test_a_table_without_baselines_shows_a_dash_and_no_number_is_cut_on_a_narrow_console(
    comparison: Comparison,
) -> None:
    without = replace(comparison, outcomes=tuple(o for o in comparison.outcomes if o.pipeline == "early_bird"))
    row = next(line for line in printed(without).split("Modelled")[1].splitlines() if "early-bird FF " in line)
    assert row.split()[-4:] == ["-", "-", "not", "measured"]
    assert "…" not in printed(comparison, width=80)


def test_equal_inputs_give_equal_bytes(comparison: Comparison, tmp_path: Path) -> None:
    backwards = example_comparison()
    backwards = replace(backwards, rows={stage: rows[::-1] for stage, rows in reversed(backwards.rows.items())})
    assert printed(comparison) == printed(backwards)
    for write in (to_csv, to_json):
        write(comparison, tmp_path / "a")
        write(backwards, tmp_path / "b")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_hold_full_precision_in_joules(comparison: Comparison, tmp_path: Path) -> None:
    to_csv(comparison, tmp_path / "t.csv")
    to_json(comparison, tmp_path / "t.json")
    lines = list(csv.DictReader((tmp_path / "t.csv").open()))
    tree = json.loads((tmp_path / "t.json").read_text())
    for line, entry, arm in zip(lines, tree["arms"], summarise(comparison), strict=True):
        assert line["arm"] == entry["arm"] == arm.arm
        assert float(line["energy_nominal_j"]) == entry["energy_nominal_j"] == arm.energy.nominal_j
        assert float(line["energy_memory_high_j"]) == entry["energy_memory_high_j"] == arm.energy.memory_j.high
        assert line["measured_j"] == ""
        assert entry["measured_j"] is None
        assert float(line["energy_vs_full_high"]) == arm.vs_full.high
        assert [seed["energy_low_j"] for seed in entry["seeds"]] == [seed.energy.low_j for seed in arm.seeds]
        assert [seed["test_accuracy"] for seed in entry["seeds"]] == [seed.test_accuracy for seed in arm.seeds]
    assert lines[8]["ticket_epochs"] == "7;8;10"
    assert lines[8]["tickets_on_time"] == "true;true;false"
    assert tree["arms"][8]["seeds"][2]["ticket"] == {"epoch": 10, "on_time": False, "distance": 0.13}
    assert tree["splits"] == {"train": 1078, "validation": 269, "test": 450}


def test_phases_in_the_files_add_up(comparison: Comparison, tmp_path: Path) -> None:
    to_json(comparison, tmp_path / "t.json")
    for entry in json.loads((tmp_path / "t.json").read_text())["arms"]:
        phases = ("search", "train", "prune", "detect", "retrain", "average", "eval")
        assert sum(entry[f"energy_{p}_nominal_j"] for p in phases) == pytest.approx(entry["energy_nominal_j"])


def test_print_report_ends_with_sentences_notes_and_missing_pictures(comparison: Comparison) -> None:
    console = Console(file=io.StringIO(), width=150, color_system=None, _environ={})
    print_report(replace(comparison, mask_histories=(), notes=("a [note] as it is",)), console)
    text = console.file.getvalue()
    assert "- Lowest energy: early-bird LL" in text
    assert text.index("Lowest energy") < text.index("a [note] as it is") < text.index("mask_distance.png is not drawn")


def test_a_plan_needs_no_accuracy_and_counts_shared_stages_once(comparison: Comparison) -> None:
    nan = float("nan")
    one = example_comparison((0,))
    outcomes = tuple(replace(o, test_accuracy=nan, validation_accuracy=nan) for o in one.outcomes)
    plan = replace(one, outcomes=outcomes, mask_histories=())
    console = Console(file=io.StringIO(), width=150, color_system=None, _environ={})
    print_plan(plan, console, seeds=3)
    text = console.file.getvalue()
    macs = 3 * sum(sum(sum(m.values()) for m in r.macs.values()) for rows in plan.rows.values() for r in rows)
    assert f"{macs / 1e9:.0f} G MACs" in text
    assert "nan" not in text
    assert max(map(len, text.splitlines())) <= 150


# ---- numbers for people ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0123456, "0.0123"),
        (0.9996, "1.00"),
        (9.996, "10.0"),
        (123.4, "123"),
        (1234.5, "1234"),
        (-0.5, "-0.500"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


@pytest.mark.parametrize(
    ("energy_j", "text"),
    [
        (0, "0 J"),
        (1.5e-6, "1.50 uJ"),
        (0.0123, "12.3 mJ"),
        (0.9999, "1.00 J"),
        (4200, "4.20 kJ"),
        (1e-15, "0.00100 pJ"),
    ],
)
def test_energy_text(energy_j: float, text: str) -> None:
    assert energy_text(energy_j) == text


def test_one_scale_serves_a_whole_column() -> None:
    scale = Scale.of([0.0, 0.002, 0.03, 40.0])
    assert (scale.prefix, scale.text(0.002), scale.text(40.0)) == ("m", "2.00", "40000")
    assert Scale.of([0.0]).prefix == ""


def test_percent_and_ratio_text() -> None:
    assert percent_text(Spread(0.972, 0.004, 3)) == "97.20 ± 0.40"
    assert percent_text(Spread(0.972, None, 1)) == "97.20"
    assert ratio_text(Range(0.1, 0.123, 1.5)) == "x0.123 (0.100-1.50)"
    assert ratio_text(Range(0.1, 0.123, 1.5), ends=False) == "x0.123"


@pytest.mark.parametrize("width", [80, 100, 150])
def test_a_table_wider_than_the_console_is_printed_in_parts_without_a_cut_cell(width: int) -> None:
    comparison = example_comparison()
    for table in build_tables(comparison):
        console = Console(file=io.StringIO(), width=width, color_system=None, _environ={})
        parts = list(fitted(table, console))
        names = [str(part.columns[0].header) for part in parts]
        assert set(names) == {"arm"}
        with console.capture() as text:
            for part in parts:
                console.print(part)
        lines = text.get().splitlines()
        assert max(map(len, lines)) <= width
        rows = [line for line in lines if line.startswith("  early-bird LL re-init  ")]
        savings = "Savings" in str(table.title)
        assert len(rows) == (2 if savings else 1) * len(parts) or "re-init" not in str(table.columns[0]._cells)
        shown = [str(column.header) for part in parts for column in part.columns]
        repeated = [str(column.header) for column in table.columns if column.justify == "left"]
        assert [head for head in shown if head not in repeated] == [
            str(column.header) for column in table.columns if column.justify != "left"
        ]
        assert width == 80 or all("interval" not in str(part.columns[len(repeated)].header) for part in parts)
        captions = [part.caption for part in parts]
        assert captions[-1] == table.caption and captions[:-1] == [None] * (len(parts) - 1)


def test_a_table_that_fits_stays_whole() -> None:
    table = build_tables(example_comparison())[0]
    console = Console(file=io.StringIO(), width=150, color_system=None, _environ={})
    (whole,) = fitted(table, console)
    assert str(whole.title) == str(table.title) and whole.columns == table.columns
