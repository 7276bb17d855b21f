import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_example import built, example_comparison

from lowprec_eb.outcome import TicketSummary
from lowprec_eb.report import Comparison, sentences, summarise
from lowprec_eb.report.roles import assign_roles, random_pairs
from lowprec_eb.report.saving import shapley_factors
from lowprec_eb.report.sentences import lowest_energy_arm


def one_with(comparison: Comparison, start: str) -> str:
    (line,) = (line for line in sentences(comparison) if line.startswith(start))
    return line


FULL = ("full", "full", None, "fp32", 10.0, (0.98, 0.97, 0.99))
NS = ("ns", "network_slimming", None, "fp32", 16.0, (0.98, 0.98, 0.98))
NS8 = ("ns8", "network_slimming", None, "bfp8", 4.0, (0.98, 0.98, 0.98))
FF = ("ff", "early_bird", "fp32", "fp32", 8.0, (0.98, 0.98, 0.98))
LL = ("ll", "early_bird", "bfp8", "bfp8", 2.0, (0.974, 0.975, 0.976))


def test_the_winner_is_the_cheapest_among_the_accurate() -> None:
    cheap_and_bad = ("bad", "full", None, "bf16", 1.0, (0.90, 0.91, 0.92))
    comparison = built(FULL, NS, LL, cheap_and_bad)
    line = one_with(comparison, "Lowest energy: ll, with 2.00 J nominal")
    assert "3 of 4 arms" in line
    assert "within 1 point of the most accurate arm (full, 98.00 %)" in line
    assert lowest_energy_arm(summarise(comparison), margin=0.5).arm == "bad"


def test_an_arm_exactly_at_the_margin_counts() -> None:
    edge = ("edge", "full", None, "bf16", 1.0, (0.97, 0.96, 0.98))
    assert lowest_energy_arm(summarise(built(FULL, edge)), margin=0.01).arm == "edge"
    assert lowest_energy_arm(summarise(built(FULL, edge)), margin=0.0099).arm == "full"


def test_the_winner_against_its_baselines() -> None:
    line = one_with(built(FULL, NS, LL), "Against full training in fp32")
    assert "needs x0.200 of the energy" in line
    assert "-0.50 points (90 % interval -2.11 to +1.11 over 3 paired seeds: not established)" in line
    line = one_with(built(FULL, NS, LL), "Against network slimming")
    assert "x0.125" in line
    assert "-0.50 points (90 % interval -0.67 to -0.33 over 3 paired seeds: equal)" in line
    assert "do not even overlap" in line


def test_overlapping_ranges_are_said() -> None:
    close = ("close", "full", None, "bf16", 9.0, (0.98, 0.97, 0.99))
    assert "the order stays" in one_with(built(FULL, close), "Against full")
    tight = ("tight", "full", None, "bfp8", 9.5, (0.98, 0.97, 0.99))
    assert "depends on the assumptions" in one_with(built(FULL, tight), "Against full")


def test_a_baseline_that_wins_is_said() -> None:
    assert any("full training in fp32 itself" in line for line in sentences(built(FULL, NS)))


@pytest.mark.parametrize(
    ("joules", "accuracy", "within", "fifth"),
    [(3.0, 0.975, "yes", "yes"), (3.3, 0.975, "yes", "no"), (3.0, 0.969, "no", "yes"), (3.0, 0.99, "yes", "yes")],
)
def test_the_eight_bit_claim(joules: float, accuracy: float, within: str, fifth: str) -> None:
    ll = (*LL[:4], joules, (accuracy,) * 3)
    line = one_with(built(NS, ll), "8-bit early bird (ll) against network slimming in fp32 (ns)")
    assert f"within 1 point: {within};" in line
    assert f"Less than a fifth of its modelled energy: {fifth} (x{joules / 16:.3f};" in line


def test_a_fifth_that_hangs_on_the_constants_is_said() -> None:
    assert "depends on these assumptions" in one_with(built(NS, (*LL[:4], 3.1, LL[5])), "8-bit early bird")
    assert "depends on these assumptions" not in one_with(built(NS, (*LL[:4], 1.0, LL[5])), "8-bit early bird")


def test_where_the_saving_comes_from_in_both_orders() -> None:
    line = one_with(built(NS, NS8, FF, LL), "Where x0.125 comes from (ll against ns)")
    assert "Ticket first (by way of ff): x0.500 from the ticket, then x0.250 from the bits" in line
    assert "Bits first (by way of ns8): x0.250 from the bits, then x0.500 from the ticket" in line
    assert "ticket x0.500 (0.500-0.500)" in line
    assert "bits x0.250" in line


@given(*[st.floats(1e-3, 1e3)] * 4)
def test_the_two_factors_multiply_to_the_whole(slimming: float, slimming_8bit: float, ff: float, ll: float) -> None:
    ticket, bits = shapley_factors(slimming, slimming_8bit, ff, ll)
    assert ticket * bits == pytest.approx(ll / slimming)
    assert math.log(ticket) == pytest.approx((math.log(ff / slimming) + math.log(ll / slimming_8bit)) / 2, abs=1e-9)
    swapped = shapley_factors(slimming, ff, slimming_8bit, ll)
    assert swapped == pytest.approx((bits, ticket))


@pytest.mark.parametrize("left_out", [NS, NS8, FF, LL])
def test_sentences_whose_arms_are_missing_are_left_out(left_out) -> None:
    arms = [arm for arm in (FULL, NS, NS8, FF, LL) if arm is not left_out]
    lines = sentences(built(*arms))
    assert not any("against ns)" in line for line in lines if line.startswith("Where"))
    assert any(line.startswith("8-bit early bird") for line in lines) == (left_out not in (NS, LL))


def test_ticket_against_random_ticket() -> None:
    random = ("random", "random_ticket", "fp32", "fp32", 8.0, (0.97, 0.98, 0.975))
    line = one_with(built(FF, random), "Ticket against random ticket, at equal energy (random needs x1.00 of ff)")
    assert "differs by +0.50 points" in line
    dearer = (*random[:4], 9.0, random[5])
    one_with(built(FF, dearer), "Ticket against random ticket, not at equal energy (random needs x1.12 of ff)")


def test_roles_and_pairs_skip_reinitialised_and_mixed_arms() -> None:
    reinit = ("LL re-init", *LL[1:])
    mixed = ("lf", "early_bird", "bfp8", "fp32", 5.0, LL[5])
    random = ("random 8 bit", "random_ticket", "bfp8", "bfp8", 2.0, LL[5])
    arms = summarise(built(reinit, mixed, LL, random))
    roles = assign_roles(arms)
    assert roles.ll is not None
    assert roles.ll.arm == "ll"
    assert roles.ff is None
    assert [(bird.arm, control.arm) for bird, control in random_pairs(arms)] == [("ll", "random 8 bit")]


@pytest.mark.parametrize("change", [{"ratio": 0.7}, {"schedule": "restart"}, {"optimizer": "new"}, {"penalty": True}])
def test_a_random_ticket_under_other_conditions_is_no_control(change: dict[str, object]) -> None:
    comparison = built(LL, ("random 8 bit", "random_ticket", "bfp8", "bfp8", 2.0, LL[5]))
    others = tuple(replace(o, **change) if o.pipeline == "random_ticket" else o for o in comparison.outcomes)
    assert random_pairs(summarise(comparison))
    assert not random_pairs(summarise(replace(comparison, outcomes=others)))


def test_a_ticket_at_the_deadline_is_named_once_with_its_arms() -> None:
    line = one_with(example_comparison(), "No ticket appeared in time")
    assert line.count("Search in bfp8, seed 2, 10 epochs, mask distance 0.130") == 1
    assert "early-bird LF, early-bird LL, early-bird LL re-init, random 8 bit" in line
    assert "FF" not in line
    comparison = example_comparison((0, 1))
    assert "Every early-bird ticket appeared before its deadline." in sentences(comparison)
    no_distance = replace(comparison.outcomes[6], ticket=TicketSummary(10, False, None))
    assert "seed 0, 10 epochs: early-bird FF" in one_with(
        replace(comparison, outcomes=(no_distance,)), "No ticket appeared in time"
    )


def test_conditions_are_stated() -> None:
    lines = sentences(built(FULL, NS))
    assert lines[0] == "Energies are modelled, under the profile chip: a chip."
    assert "800 train, 200 test; one test example is 0.50 points" in lines[1]
    assert any(line.startswith("Seeds of an arm: 3.") and "Student's t" in line for line in lines)
    assert not any("significant" in line for line in lines)
    assert any("not measured for any arm" in line for line in lines)


def test_one_seed_and_unequal_seeds_are_said() -> None:
    alone = sentences(built((*FULL[:5], (0.98,)), (*LL[:5], (0.975,))))
    assert any("With one seed nothing is known" in line for line in alone)
    assert any("-0.50 points (one seed: nothing is established)" in line for line in alone)
    uneven = sentences(built(FULL, (*LL[:5], (0.975,))))
    assert any("not run with the same seeds" in line and "ll: 0" in line for line in uneven)


def test_measured_energy_is_kept_apart() -> None:
    comparison = built(FULL, LL)
    measured = {stage: tuple(replace(r, measured_j=5.0) for r in rows) for stage, rows in comparison.rows.items()}
    assert any("not of the chip in the profile" in line for line in sentences(replace(comparison, rows=measured)))
    partly = measured | {"ll-1": comparison.rows["ll-1"]}
    assert any("not measured for ll:" in line for line in sentences(replace(comparison, rows=partly)))
