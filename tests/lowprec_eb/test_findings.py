import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from report_example import built, example_comparison
from rich.console import Console

from lowprec_eb.instability import Instability
from lowprec_eb.outcome import DivergedOutcome
from lowprec_eb.report import Comparison, build_tables, find, sentences, summarise, to_csv, to_json, write_report
from lowprec_eb.report.energy_accuracy import energy_accuracy
from lowprec_eb.report.equal_accuracy import EqualAccuracy, NotReached
from lowprec_eb.report.findings import holds_for_all, ratio_sweeps
from lowprec_eb.report.intervals import t_interval
from lowprec_eb.report.saved import load_comparison, save_comparison
from lowprec_eb.report.saving import Saving, Unsplit
from lowprec_eb.report.statistics_table import findings_csv

FULL = ("full", "full", None, "fp32", 10.0, (0.980, 0.970, 0.990))
FULL8 = ("full8", "full", None, "bfp8", 4.0, (0.979, 0.970, 0.988))
NS = ("ns", "network_slimming", None, "fp32", 16.0, (0.960, 0.951, 0.969))
FF = ("ff", "early_bird", "fp32", "fp32", 5.0, (0.976, 0.964, 0.985))
LL = ("ll", "early_bird", "bfp8", "bfp8", 1.6, (0.960, 0.975, 0.976))
LF = ("lf", "early_bird", "bfp8", "fp32", 4.0, (0.976, 0.966, 0.985))


def with_ratio(comparison: Comparison, **ratios: float) -> Comparison:
    outcomes = tuple(replace(o, ratio=ratios.get(o.arm)) for o in comparison.outcomes)
    return replace(comparison, outcomes=outcomes)


def diverged(arm: str, pipeline: str, seed: int) -> DivergedOutcome:
    event = Instability(3, None, "", "loss", "", "nan", math.nan, "stop")
    search = "fp32" if pipeline == "early_bird" else None
    return DivergedOutcome(arm, pipeline, seed, search, "fp32", "inherit", ("ff-0",), "train", event, "it broke")


def printed(comparison: Comparison, width: int = 150) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, _environ={})
    with console.capture() as text:
        for table in build_tables(comparison):
            console.print(table)
    return text.get()


def said(comparison: Comparison, start: str) -> str:
    (line,) = (line for line in sentences(comparison) if line.startswith(start))
    return line


# ---- every arm against every baseline ----------------------------------------------------------------------------


def test_every_arm_is_tested_against_full_and_slimming_in_fp32() -> None:
    findings = find(built(FULL, FULL8, NS, LL))
    assert [(test.arm, test.baseline) for test in findings.tests] == [
        ("full8", "full"),
        ("ns", "full"),
        ("ll", "full"),
        ("full", "ns"),
        ("full8", "ns"),
        ("ll", "ns"),
    ]
    assert findings.test("full8", "full").accuracy.differences == (-0.001, 0.0, -0.002)
    verdicts = {test.arm: test.accuracy.verdict for test in findings.tests if test.baseline == "full"}
    assert verdicts == {"full8": "equal", "ns": "worse", "ll": "not established"}
    assert findings.test("full", "ns").accuracy.verdict == "better"
    assert findings.test("full", "full") is None


def test_the_settings_may_name_other_baselines() -> None:
    comparison = built(FULL, FULL8, LL, baselines=("full8",))
    assert [(test.arm, test.baseline) for test in find(comparison).tests] == [("full", "full8"), ("ll", "full8")]
    with pytest.raises(ValueError, match="baseline 'fulll' is none of the arms"):
        built(FULL, LL, baselines=("fulll",))


def test_margin_and_confidence_decide() -> None:
    verdicts = [
        find(built(FULL, FF, margin=margin, confidence=confidence)).tests[0].accuracy.verdict
        for margin, confidence in ((0.01, 0.95), (0.005, 0.95), (0.01, 0.999), (0.006, 0.8))
    ]
    assert verdicts == ["equal", "worse", "not established", "equal"]


def test_a_seed_that_only_one_arm_has_is_left_out_and_named() -> None:
    comparison = built(FULL, (*FF[:5], FF[5][:2]))
    comparison = replace(comparison, diverged=(diverged("ff", "early_bird", 2),))
    (test,) = find(comparison).tests
    assert (test.seeds, test.dropped) == ((0, 1), (2,))
    assert "ff against full: 1 (seed 2)" in said(comparison, "Pairs without a result of both arms")
    assert "2 (1)" in printed(comparison)


def test_with_one_seed_nothing_is_established() -> None:
    comparison = built(*((*arm[:5], arm[5][:1]) for arm in (FULL, FULL8, LL)))
    tests = find(comparison).tests
    assert {(test.accuracy.verdict, test.holm_equal) for test in tests} == {("not established", None)}
    assert "no accuracy can be called equal" in said(comparison, "With one seed")
    assert "Not established: full8, ll." in said(comparison, "Test accuracy against full")
    assert said(comparison, "No saving at equal accuracy is established against full")
    assert not any("Holm" in line for line in sentences(comparison))
    assert "not established" in printed(comparison)


def test_without_a_baseline_it_is_said() -> None:
    comparison = built(LL, FF)
    assert find(comparison).tests == ()
    assert said(comparison, "Equal accuracy was not tested")
    lost = replace(built(FF), diverged=(diverged("full", "full", 0),), baselines=("full",))
    assert said(lost, "Nothing was tested against full: it diverged with every seed.")


def test_the_correction_is_over_all_tests_and_says_what_is_left() -> None:
    unsteady = ("unsteady", *FULL8[1:5], (0.976, 0.970, 0.993))
    comparison = built(FULL, unsteady, NS, LL)
    tests = find(comparison).tests
    smallest = min(test.accuracy.p_equal for test in tests)
    assert min(test.holm_equal for test in tests) == pytest.approx(len(tests) * smallest)
    assert [holds_for_all(test) for test in tests if test.accuracy.verdict == "equal"] == [False]
    assert "Tests made: 6," in said(comparison, "Tests made")
    assert said(comparison, "Tests made").endswith("after Holm's correction: 0 of 1.")
    alone = built(FULL, FULL8)
    assert holds_for_all(find(alone).tests[0])
    assert said(alone, "Tests made").endswith("after Holm's correction: 1 of 1 (full8 against full).")
    assert "equal \N{DOUBLE DAGGER}" in printed(alone)
    assert "equal \N{DOUBLE DAGGER}" not in printed(comparison)


def test_the_cheapest_arm_that_is_shown_to_be_as_accurate_is_named() -> None:
    line = said(built(FULL, FULL8, LL), "Of the arms that are shown to lose less than 1 point against full")
    assert "full8 needs least: x0.400" in line
    assert "for all together too" in line
    dear = built(FULL, (*FULL8[:4], 11.0, FULL8[5]), LL)
    assert said(dear, "No saving at equal accuracy is established against full")


def test_a_loss_within_the_margin_is_called_one() -> None:
    lower = ("lower", "full", None, "bf16", 5.0, (0.976, 0.9655, 0.9855))
    line = said(built(FULL, lower), "Test accuracy against full")
    assert "Equal: lower." in line
    assert "Equal within the margin, but not the same: lower (shown to be lower)." in line
    assert "not the same" not in said(built(FULL, FULL8), "Test accuracy against full")


def test_differences_without_spread_are_said() -> None:
    same = ("same", "full", None, "bf16", 5.0, FULL[5])
    line = said(built(FULL, same), "All seeds differ by the same amount")
    assert "same against full. One test example is 0.50 points." in line
    assert "no spread" in printed(built(FULL, same))


# ---- intervals over seeds stay apart from what the energy model leaves open --------------------------------------


def test_intervals_over_seeds_and_ranges_of_the_model_are_different_columns(tmp_path: Path) -> None:
    comparison = example_comparison()
    to_csv(comparison, tmp_path / "t.csv")
    lines = list(csv.DictReader((tmp_path / "t.csv").open()))
    for line, arm in zip(lines, summarise(comparison), strict=True):
        accuracy = t_interval([seed.test_accuracy for seed in arm.seeds], 0.95)
        assert float(line["test_accuracy_seeds_low"]) == accuracy.low
        assert float(line["test_accuracy_seeds_high"]) == min(1.0, accuracy.high)
        joules = t_interval([seed.energy.nominal_j for seed in arm.seeds], 0.95)
        assert float(line["energy_seeds_high_j"]) == joules.high
        assert float(line["energy_high_j"]) == arm.energy.high_j
    wild = built(("a", "full", None, "fp32", 10.0, (0.99, 0.7)))
    to_csv(wild, tmp_path / "t.csv")
    (line,) = csv.DictReader((tmp_path / "t.csv").open())
    assert (line["test_accuracy_seeds_low"], line["test_accuracy_seeds_high"]) == ("0.0", "1.0")


def test_files_have_every_test(tmp_path: Path) -> None:
    comparison = example_comparison()
    to_json(comparison, tmp_path / "summary.json")
    lines = list(csv.DictReader(io.StringIO(findings_csv(find(comparison)))))
    tree = json.loads((tmp_path / "summary.json").read_text())
    assert tree["baselines"] == ["full fp32", "slimming fp32"]
    assert len(lines) == len(tree["tests"]) == 26
    for line, entry, test in zip(lines, tree["tests"], find(comparison).tests, strict=True):
        assert (line["arm"], line["baseline"]) == (entry["arm"], entry["baseline"]) == (test.arm, test.baseline)
        assert line["verdict"] == entry["verdict"] == test.accuracy.verdict
        assert float(line["accuracy_difference_low"]) == entry["accuracy_difference_low"] == test.accuracy.interval.low
        assert float(line["p_equal_holm"]) == entry["p_equal_holm"] == test.holm_equal
        assert float(line["energy_ratio_high"]) == test.energy_ratio.high
        assert line["seeds"] == "0;1;2"


def test_without_a_test_there_is_no_file_of_tests(tmp_path: Path) -> None:
    (tmp_path / "baselines.csv").write_text("of an earlier report")
    assert tmp_path / "baselines.csv" not in write_report(built(FF, LL), tmp_path)
    assert not (tmp_path / "baselines.csv").exists()


def test_settings_of_the_statistics_are_kept_for_a_later_report(tmp_path: Path) -> None:
    comparison = built(FULL, FULL8, confidence=0.9, baselines=("full8",))
    path = save_comparison(comparison, tmp_path)
    tree = json.loads(path.read_text())
    assert (tree["confidence"], tree["baselines"]) == (0.9, ["full8"])
    for name in ("confidence", "baselines"):
        del tree[name]
    for outcome in tree["outcomes"]:
        del outcome["ratio"]
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="the ledger of a stage"):  # so the file itself was read
        load_comparison(tmp_path)


# ---- savings -----------------------------------------------------------------------------------------------------


def test_a_saving_is_split_the_same_in_both_orders() -> None:
    (saving,) = find(built(FULL, FULL8, FF, LL)).savings
    assert isinstance(saving, Saving)
    assert (saving.arm, saving.bits_only, saving.ticket_only) == ("ll", "full8", "ff")
    assert saving.whole.nominal == pytest.approx(0.16)
    assert [factor.nominal for factor in saving.ticket_first] == pytest.approx([0.5, 0.32])
    assert [factor.nominal for factor in saving.bits_first] == pytest.approx([0.4, 0.4])
    assert saving.ticket.nominal == pytest.approx(math.sqrt(0.5 * 0.4))
    assert saving.ticket.nominal * saving.bits.nominal == pytest.approx(0.16)
    assert saving.bits_interval.low == pytest.approx(saving.bits.nominal)  # each seed needs the same energy here


def test_the_split_takes_all_four_arms_at_the_same_corner_of_the_energy_model() -> None:
    comparison = built(FULL, FULL8, FF, LL)
    (saving,) = find(comparison).savings
    base, bits, ticket, both = (
        next(arm for arm in summarise(comparison) if arm.arm == name).energy.corners_j
        for name in ("full", "full8", "ff", "ll")
    )
    corners = [math.sqrt(t / a * (c / b)) for a, b, t, c in zip(base, bits, ticket, both, strict=True)]
    assert (saving.ticket.low, saving.ticket.high) == (
        pytest.approx(min(*corners, saving.ticket.nominal)),
        pytest.approx(max(*corners, saving.ticket.nominal)),
    )


def test_an_interval_of_a_split_is_over_the_factors_of_each_seed() -> None:
    (saving,) = (s for s in find(example_comparison()).savings if (s.arm, s.baseline) == ("early-bird LL", "full fp32"))
    arms = {arm.arm: arm.seeds for arm in summarise(example_comparison())}
    names = ("full fp32", "full 8 bit", "early-bird FF", "early-bird LL")
    by_seed = [[seed.energy.nominal_j for seed in seeds] for seeds in zip(*(arms[name] for name in names), strict=True)]
    logs = t_interval([(math.log(t / a) + math.log(c / b)) / 2 for a, b, t, c in by_seed], 0.95)
    assert saving.ticket_interval.low == pytest.approx(math.exp(logs.low))
    assert saving.ticket_interval.high == pytest.approx(math.exp(logs.high))


@pytest.mark.parametrize(
    ("arms", "missing"),
    [
        ((FULL, FF, LL), "an arm like full in bfp8"),
        ((FULL, FULL8, LL), "an arm like ll in fp32"),
        ((FULL, FULL8, FF, LF), "a search in full, which could have other bits than its training,"),
        ((FULL, FULL8, FF, ("ff 2", *FF[1:]), LL), "a single arm like ll in fp32 (there are ff, ff 2)"),
    ],
)
def test_a_saving_that_cannot_be_split_names_what_is_missing(arms, missing: str) -> None:
    comparison = built(*arms)
    (saving,) = find(comparison).savings
    assert isinstance(saving, Unsplit)
    assert saving.missing == missing
    assert f"(against full): {missing} is missing" in said(comparison, "Cannot be split into ticket and bits.")
    assert not any(line.startswith("Where") for line in sentences(comparison))
    assert "Savings split" not in printed(comparison)


def test_an_averaged_arm_is_no_third_change_in_disguise() -> None:
    comparison = built(FULL, FULL8, FF, LL)
    outcomes = tuple(replace(o, averaging="swa" if o.arm == "ll" else None) for o in comparison.outcomes)
    assert find(replace(comparison, outcomes=outcomes)).savings == ()


# ---- sweeps ------------------------------------------------------------------------------------------------------

SWEEP = (
    ("ff 30", *FF[1:4], 7.0, (0.985, 0.975, 0.992)),
    ("ff 70", *FF[1:4], 3.0, (0.970, 0.960, 0.976)),
    ("ff 50", *FF[1:4], 5.0, (0.979, 0.968, 0.988)),
)
RATIOS = {"ff 30": 0.3, "ff 50": 0.5, "ff 70": 0.7}


def test_arms_that_differ_in_ratio_alone_are_one_sweep() -> None:
    comparison = with_ratio(built(FULL, *SWEEP, LL), **RATIOS, ll=0.5)
    (group,) = ratio_sweeps(summarise(comparison))
    assert [arm.arm for arm in group] == ["ff 30", "ff 50", "ff 70"]
    (sweep,) = find(comparison).sweeps
    assert isinstance(sweep.result, EqualAccuracy)
    assert 0.3 < sweep.result.ratio < 0.5
    assert 0.5 < sweep.result.of_baseline.nominal < 0.7
    line = said(comparison, "Energy at the accuracy of full along the ratios of ff 30, ff 50, ff 70")
    assert f"at a ratio of {sweep.result.ratio:.3f}" in line
    assert "over seeds" in line


def test_a_sweep_that_does_not_reach_the_baseline_says_on_which_side(tmp_path: Path) -> None:
    poor = ("full", *FULL[1:5], (0.90, 0.90, 0.91))
    good = ("full", *FULL[1:5], (0.999, 0.999, 0.999))
    for base, side, text in ((poor, "below", "no more than x0.300"), (good, "above", "No ratio of the sweep has")):
        comparison = with_ratio(built(base, *SWEEP), **RATIOS)
        (sweep,) = find(comparison).sweeps
        assert isinstance(sweep.result, NotReached)
        assert sweep.result.side == side
        assert text in said(comparison, "Energy at the accuracy of full")
        to_json(comparison, tmp_path / "t.json")
        (entry,) = json.loads((tmp_path / "t.json").read_text())["sweeps"]
        assert (entry["reached"], entry["side"]) == (False, side)


def test_a_baseline_is_no_reference_for_its_own_sweep() -> None:
    comparison = with_ratio(built(FULL, *SWEEP, baselines=("full", "ff 50")), **RATIOS)
    assert [sweep.baseline for sweep in find(comparison).sweeps] == ["full"]


def test_what_was_run_is_not_called_interpolated() -> None:
    same = ("full", *FULL[1:5], SWEEP[2][5])
    comparison = with_ratio(built(same, *SWEEP), **RATIOS)
    assert find(comparison).sweeps[0].result.ratio == 0.5
    assert "interpolated" not in said(comparison, "Energy at the accuracy of full")
    assert "interpolated" in said(with_ratio(built(FULL, *SWEEP), **RATIOS), "Energy at the accuracy of full")


def test_two_arms_of_one_ratio_are_no_sweep() -> None:
    comparison = with_ratio(built(FULL, *SWEEP), **{**RATIOS, "ff 50": 0.3})
    assert find(comparison).sweeps[0].result is None
    assert "two of them have one ratio" in said(comparison, "No sweep can be made of")


ROWS = {  # accuracies of the baseline -> the last cell of the row
    "less": FULL[5],
    "outside the sweep": (0.90, 0.90, 0.91),
    "not reached": (0.999, 0.999, 0.999),
}


@pytest.mark.parametrize("told", ROWS)
def test_the_table_of_sweeps_says_what_equal_accuracy_costs_and_where_nothing_is_known(told: str) -> None:
    comparison = with_ratio(built((*FULL[:5], ROWS[told]), *SWEEP), **RATIOS)
    result = find(comparison).sweeps[0].result
    text = printed(comparison)
    text = text[text.index("Energy at equal accuracy") :]
    first, second = (line for line in text.splitlines() if line.startswith(("  early bird, fp32", "  0.3, 0.5, 0.7")))
    assert first.rstrip().endswith(f"   {told}") and f"{100 * result.target:.2f}" in second
    assert "energy [J]" in text
    if told == "less":
        joules, factor = result.energy_interval, result.interval
        assert f"{joules.low:.2f} to {joules.high:.2f}" in second and f"{factor.low:.3f} to {factor.high:.3f}" in second
        assert f"{result.ratio:.3f}" in first
    else:
        assert ("at most 3.00 (" in first and "at most x0.300 (" in first) == (told == "outside the sweep")
    assert max(map(len, printed(comparison).splitlines())) <= 150


def test_sweeps_alike_in_pipeline_and_precision_are_told_apart_by_their_arms() -> None:
    new = [(f"{arm[0]} new", *arm[1:]) for arm in SWEEP]
    comparison = with_ratio(built(FULL, *SWEEP, *new), **RATIOS, **{f"{name} new": r for name, r in RATIOS.items()})
    outcomes = tuple(replace(o, weights="reinit" if "new" in o.arm else "inherit") for o in comparison.outcomes)
    text = printed(replace(comparison, outcomes=outcomes))
    assert "  ff 30, ff 50, ff 70   " in text and "ff 30 new, ff 50 new, ff 70 new" in text
    assert "  ff 30, ff 50, ff 70   " not in printed(with_ratio(built(FULL, *SWEEP), **RATIOS))


def test_a_file_of_sweeps_says_what_the_tree_says(tmp_path: Path) -> None:
    comparison = with_ratio(built(FULL, NS, *SWEEP), **RATIOS)
    assert tmp_path / "sweeps.csv" in write_report(comparison, tmp_path)
    lines = list(csv.DictReader((tmp_path / "sweeps.csv").open()))
    tree = json.loads((tmp_path / "summary.json").read_text())["sweeps"]
    assert [line["baseline"] for line in lines] == ["full", "ns"]
    assert [line["result"] for line in lines] == ["reached", "outside the sweep"]
    assert (lines[0]["ratios"], tree[0]["ratios"]) == ("0.3;0.5;0.7", [0.3, 0.5, 0.7])
    for line, entry in zip(lines, tree, strict=True):
        assert line.keys() == entry.keys()
        assert float(line["energy_nominal_j"]) == entry["energy_nominal_j"]
        assert float(line["energy_ratio_high"]) == entry["energy_ratio_high"]
    assert (lines[0]["verdict"], lines[1]["verdict"], tree[1]["verdict"]) == ("less", "", None)
    assert tree[0]["energy_seeds_low_j"] < tree[0]["energy_nominal_j"] < tree[0]["energy_seeds_high_j"]
    write_report(built(FULL, NS), tmp_path)
    assert not (tmp_path / "sweeps.csv").exists()


def test_less_energy_is_established_by_the_interval_over_seeds_alone() -> None:
    means = {"ff 30": 0.99, "ff 50": 0.97, "ff 70": 0.95}
    steep = [(*arm[:5], (means[arm[0]] - 0.007, means[arm[0]], means[arm[0]] + 0.007)) for arm in SWEEP]
    wild = with_ratio(built((*FULL[:4], 5.5, (0.98, 0.975, 0.985)), *steep), **RATIOS)
    result = find(wild).sweeps[0].result
    assert isinstance(result, EqualAccuracy)
    assert result.verdict == "not established"
    assert find(with_ratio(built((*FULL[:4], 1.0, FULL[5]), *SWEEP), **RATIOS)).sweeps[0].result.verdict == "more"


# ---- picture -----------------------------------------------------------------------------------------------------


def test_the_picture_shows_margin_intervals_and_what_is_established() -> None:
    comparison = with_ratio(built(FULL, FULL8, LL, *SWEEP), **RATIOS)
    figure = energy_accuracy(comparison)
    (axes,) = figure.axes
    (band,) = (patch for patch in axes.patches if patch.get_height() == pytest.approx(2.0))
    assert band.get_y() == pytest.approx(97.0)
    _, signs = figure.legends
    labels = [text.get_text() for text in signs.get_texts()]
    assert "95 % intervals over seeds: accuracy, nominal energy" in labels
    assert "full: mean, 1 point to both sides" in labels
    assert "shown to lose less than 1 point against full" in labels
    points = {line.get_xdata()[0]: line for line in axes.lines if line.get_marker() in ("o", "s")}
    filled = {round(x, 2): to_hex(line.get_markerfacecolor()) != "#ffffff" for x, line in points.items()}
    assert filled == {10.0: True, 4.0: True, 1.6: False, 7.0: True, 5.0: True, 3.0: False}
    (path,) = (line for line in axes.lines if line.get_linestyle() == ":")
    assert list(path.get_xdata()) == pytest.approx([7.0, 5.0, 3.0])
    assert len(axes.containers) == 6  # error bars, one an arm


def test_intervals_of_two_seeds_do_not_flatten_the_picture() -> None:
    arms = ((*arm[:5], accuracies) for arm, accuracies in ((FULL, (0.98, 0.97)), (LL, (0.99, 0.95))))
    (axes,) = energy_accuracy(built(*arms)).axes
    low, high = axes.get_ylim()
    assert 94 < low < 96.5
    assert high < 100.1
    assert "go on outside" in axes.get_ylabel()


def test_the_picture_of_one_seed_has_no_intervals() -> None:
    figure = energy_accuracy(built(*((*arm[:5], arm[5][:1]) for arm in (FULL, LL))))
    assert not figure.axes[0].containers
    assert "one seed: no intervals over seeds" in [text.get_text() for text in figure.legends[1].get_texts()]
