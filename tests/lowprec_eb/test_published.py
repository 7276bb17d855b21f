"""The early-bird paper's numbers as data, its cost model solved, and what is said of each cell."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lowprec_eb.outcome import Outcome
from lowprec_eb.published import (
    Charge,
    Interval,
    Row,
    bits_share,
    charge,
    check_headline,
    check_table,
    early_bird_paper,
    fitted,
    method_of,
    rises,
    training_flops,
)
from lowprec_eb.published.solving import low_precision_pair, low_precision_share, remaining_after, solve_pair

ROOT = Path(__file__).parents[2]
PAPER = early_bird_paper()
VGG = PAPER.table("vgg16_cifar10")
VGG_100 = PAPER.table("vgg16_cifar100")


def verdicts(table, method):
    return {of.ratio: of.verdict for of in check_table(table) if method in of.methods}


def changed(table, method, quantity, place, value):
    """The table with another number in one cell."""

    def cells(row):
        numbers = list(getattr(row, quantity))
        numbers[place] = value
        return replace(row, **{quantity: tuple(numbers)})

    return replace(table, rows=tuple(cells(row) if row.method == method else row for row in table.rows))


# ---- data --------------------------------------------------------------------------------------------------------


def test_every_row_has_a_cell_for_each_ratio_and_each_table_a_config():
    for table in PAPER.tables:
        assert (ROOT / "configs" / "paper" / f"{table.name}.yaml").is_file()
    with pytest.raises(ValueError, match=r"vgg16_cifar10, snip: 2 cells for 3 ratios"):
        replace(VGG, rows=(Row("snip", (1.0, 2.0, 3.0), (1.0, 2.0), (1.0, 2.0, 3.0)),))
    with pytest.raises(ValueError, match="stands twice"):
        replace(VGG, rows=(VGG.rows[0], VGG.rows[0]))


def test_cells_have_units_and_the_rounding_of_their_digits():
    assert VGG.flops("snip", 0) == Interval(301.5 * 5e13, 302.5 * 5e13)
    energy = VGG.energy_j("eb_ll", 2)
    assert (energy.low, energy.high) == pytest.approx((36450, 36550))
    assert VGG_100.flops("eb_lf", 0) is None
    assert (VGG.place_of(0.5), VGG.place_of(0.4), VGG.place_of(None)) == (1, None, None)
    with pytest.raises(ValueError, match="no published table is named 'vgg19'"):
        PAPER.table("vgg19")


# ---- solving -----------------------------------------------------------------------------------------------------


def test_what_was_put_in_comes_out():
    drawn = random.Random(0)
    for _ in range(2000):
        e, r = sorted((drawn.uniform(0, 0.98), drawn.uniform(0.01, 1)))
        step = drawn.choice((1e-6, 0.003, 0.05))
        reinit, inherited = (
            Interval.printed(round(cost / step) * step, step * (1 + 1e-9)) for cost in (e + r, e + (1 - e) * r)
        )
        pair = solve_pair(reinit, inherited)
        assert pair is not None
        assert pair.emergence.low - 1e-9 <= e <= pair.emergence.high + 1e-9
        assert pair.remaining.low - 1e-9 <= r <= pair.remaining.high + 1e-9


@pytest.mark.parametrize(
    ("reinit", "inherited"),
    [(0.625, 0.652), (1.0, 0.7), (1.3, 1.2)],  # inheriting dearer, no real root, a root above 1
)
def test_impossible_costs_have_no_pair(reinit, inherited):
    assert solve_pair(Interval.printed(reinit, 0.004), Interval.printed(inherited, 0.004)) is None


def test_remaining_share_of_a_cost():
    found = remaining_after(Interval(0.64, 0.64), Interval(0.1, 0.1))
    assert (found.low, found.high) == pytest.approx((0.6, 0.6))
    assert remaining_after(Interval(0.1, 0.1), Interval(0.2, 0.3)) is None


def test_low_precision_costs_bound_the_share_of_the_arithmetic():
    e, r, c = 0.12, 0.5, 0.2
    ll, lf = c * (e + (1 - e) * r), c * e + (1 - e) * r
    share = low_precision_share(Interval(ll, ll), Interval(lf, lf))
    assert share.low <= c <= share.high
    pair = low_precision_pair(Interval(ll, ll), Interval(lf, lf), Interval(c, c))
    assert pair.emergence.low == pytest.approx(e)
    assert pair.remaining.low == pytest.approx(r)
    # A retraining in fp32 that costs less than one in 8 bits: c would be above 1.
    assert low_precision_pair(Interval(0.5, 0.5), Interval(0.4, 0.4), Interval(1.0, 1.0)) is None


# ---- verdicts ----------------------------------------------------------------------------------------------------


def test_early_bird_cells_of_vgg16():
    assert verdicts(VGG, "eb_ff") == {0.3: "consistent", 0.5: "consistent", 0.7: "inconsistent"}
    first = next(of for of in check_table(VGG) if "eb_ff" in of.methods)
    assert first.flops.emergence.low < first.energy.emergence.low < first.flops.emergence.high
    assert 160 * first.energy.emergence.low == pytest.approx(22.9, abs=0.1)
    assert 160 * first.energy.emergence.high == pytest.approx(23.1, abs=0.1)
    assert first.flops.remaining.middle == pytest.approx(0.81, abs=0.005)


@pytest.mark.parametrize(("method", "quantity", "value"), [("eb_ff", "flops", 258), ("eb_reinit", "energy_kj", 297.0)])
def test_a_consistent_cell_can_fail(method, quantity, value):
    assert verdicts(changed(VGG, method, quantity, 0, value), "eb_ff")[0.3] == "inconsistent"


def test_one_search_has_one_cost():
    assert verdicts(VGG, "eb_ll")[0.3] == "fitted"
    assert verdicts(changed(VGG, "eb_lf", "flops", 0, 270), "eb_ll")[0.3] == "inconsistent"
    dear = changed(changed(VGG, "eb_lf", "flops", 0, 320), "eb_ll", "flops", 0, 320)
    assert verdicts(dear, "eb_ll")[0.3] == "inconsistent"


def test_lottery_ticket_is_twice_the_dense_training():
    assert verdicts(VGG, "lt")[0.5] == "consistent"
    assert verdicts(changed(VGG, "lt", "flops", 1, 610), "lt")[0.5] == "inconsistent"
    wrong = changed(VGG, "lt", "energy_kj", 1, 750.0)
    assert verdicts(wrong, "lt")[0.5] == "inconsistent"
    assert verdicts(wrong, "eb_ff")[0.5] == "consistent"  # the dense training stays the unit


def test_slimming_that_costs_less_than_its_dense_run_is_impossible():
    assert verdicts(VGG, "ns")[0.7] == "fitted"
    assert verdicts(changed(VGG, "ns", "flops", 2, 290), "ns")[0.7] == "inconsistent"


def test_cells_without_a_partner_are_fitted_at_best():
    assert set(verdicts(VGG_100, "eb_ff").values()) == {"fitted"}
    assert verdicts(changed(VGG_100, "eb_ff", "flops", 0, 310), "eb_ff")[0.1] == "inconsistent"


def test_arithmetic_costs_the_same_in_all_cells():
    alone, both = bits_share([VGG]), bits_share([VGG, VGG_100])
    assert both.low > alone.low  # CIFAR-100's dearest cell asks for more
    assert both.high == alone.high
    dear = changed(VGG_100, "eb_ll", "energy_kj", 1, 100.0)
    assert bits_share([VGG, dear]) is None
    found = check_table(VGG, [VGG, dear])
    assert {of.verdict for of in found if "eb_ll" in of.methods} == {"inconsistent"}
    assert bits_share([PAPER.table("resnet18_imagenet")]) is None


def test_headline_and_rows_that_rise():
    factors = [factor for _, _, factor in check_headline(PAPER)]
    assert any(factor.meets(Interval.printed(5.8, 0.1)) for factor in factors)
    assert not any(factor.meets(Interval.printed(10.7, 0.1)) for factor in factors)
    assert rises(VGG) == [("thinet", 0.3, 0.5)]
    assert rises(VGG_100) == [("eb_ll", 0.1, 0.3)]


def test_what_nothing_determines_is_not_fitted():
    assert fitted(VGG, "eb_ff", 0.7) is None
    assert fitted(changed(VGG, "eb_reinit", "energy_kj", 0, 297.0), "eb_ff", 0.3) is None  # emergences differ
    assert fitted(VGG, "eb_ll", 0.3) is None
    assert fitted(VGG, "ns", 0.4) is None
    assert fitted(VGG, "ns", 0.3).remaining == pytest.approx(547 / 302.4 - 1, abs=0.002)
    assert "EB re-init" in fitted(VGG, "eb_ff", 0.3).told


# ---- bookkeeping -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("dense", Charge(160, 0)),
        ("snip", Charge(160, 0)),
        ("lt", Charge(320, 0)),
        ("ns", Charge(160, 160)),
        ("eb_reinit", Charge(20, 160)),
        ("eb_ll", Charge(20, 140)),
        ("thinet", None),
    ],
)
def test_what_each_method_is_charged(method, expected):
    assert charge(method, 160, 20) == expected


def test_charging_a_search_needs_its_end_and_flops_are_six_a_mac():
    with pytest.raises(ValueError, match="emergence"):
        charge("eb_ff", 160)
    assert training_flops(Charge(2, 4), forward_macs=10, images=5, remaining=0.5) == 6 * 10 * 5 * (2 + 2)


def outcome(pipeline, precision="fp32", search=None, weights="inherit", **more):
    return Outcome("x", pipeline, 0, search, precision, weights, ("s",), 1, 1, 0, None, 1, 1, 1, 1, **more)


@pytest.mark.parametrize(
    ("arm", "method"),
    [
        (outcome("full"), "dense"),
        (outcome("full", "bfp8"), None),
        (outcome("one_shot_ticket", weights="rewind"), "lt"),
        (outcome("early_bird", search="fp32"), "eb_ff"),
        (outcome("early_bird", search="bfp8"), "eb_lf"),
        (outcome("early_bird", "swalp8", "swalp8"), "eb_ll"),
        (outcome("early_bird", "swalp8", "bfp8"), None),
        (outcome("early_bird", "bf16", "bf16"), None),
        (outcome("early_bird", search="fp32", weights="reinit", schedule="restart"), "eb_reinit"),
        (outcome("early_bird", search="fp32", weights="reinit", schedule="continue"), None),
        (outcome("early_bird", search="fp32", schedule="continue", penalty=True), None),
        (outcome("early_bird", search="fp32", schedule="restart"), None),
        (outcome("random_ticket", search="fp32"), None),
    ],
)
def test_which_method_an_arm_is(arm, method):
    assert method_of(arm) == method


# ---- the page ----------------------------------------------------------------------------------------------------


def test_the_page_is_what_the_script_writes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "paper_table", raising=False)
    import paper_table

    assert (ROOT / "docs" / "paper_table.md").read_text(encoding="utf-8") == paper_table.page()
