"""What a comparison says, in plain sentences with their conditions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from energy_models.energy import Range
from energy_models.ledger import LedgerRow
from lowprec_eb.instability import Instability, from_text
from lowprec_eb.outcome import DivergedOutcome, TicketSummary
from lowprec_eb.report.footprint_table import footprint_sentence
from lowprec_eb.report.roles import Roles, assign_roles, random_pairs
from lowprec_eb.report.statistics_sentences import difference_text, points_text, statistics_sentences
from lowprec_eb.report.summary import ArmSummary, Comparison, summarise
from lowprec_eb.report.units import energy_text, ratio_text, three_digits

FIFTH = 0.2
_EQUAL_ENERGY = 0.02  # largest relative difference that is called equal
_ROUNDING = 1e-9  # of accuracies: 0.97 - 0.96 is not quite 0.01


def sentences(comparison: Comparison) -> list[str]:
    """The closing sentences in reading order; one whose arms are missing is left out."""
    arms = summarise(comparison)
    roles = assign_roles(arms)
    winner = lowest_energy_arm(arms, comparison.margin)
    return [
        *_unfinished(comparison),
        *_conditions(comparison, arms),
        *_winner(comparison, arms, winner),
        *_against(comparison, winner, roles.full, "full training in fp32"),
        *_against(comparison, winner, roles.slimming, "network slimming in fp32"),
        *statistics_sentences(comparison),
        *_eight_bit_claim(comparison, roles),
        *_random_tickets(comparison, arms),
        *_deadlines(arms),
        *_diverged(comparison),
        *_unstable(comparison),
        *_measured(arms),
        *([] if comparison.footprint is None else [footprint_sentence(comparison.footprint)]),
    ]


def lowest_energy_arm(arms: Iterable[ArmSummary], margin: float) -> ArmSummary:
    """The arm of lowest mean nominal energy among those with a mean test accuracy within ``margin`` of the best one.

    Of arms that need equal energy (such as a ticket and a random one) it is the most accurate.
    """
    return max(_cheapest(arms, margin), key=lambda arm: arm.test_accuracy.mean)


def _accurate_enough(arms: Iterable[ArmSummary], margin: float) -> list[ArmSummary]:
    arms = list(arms)
    best = max(arm.test_accuracy.mean for arm in arms)
    return [arm for arm in arms if arm.test_accuracy.mean >= best - margin - _ROUNDING]


def _cheapest(arms: Iterable[ArmSummary], margin: float) -> list[ArmSummary]:
    """All arms of the lowest energy among the accurate ones, equal energies taken together."""
    enough = _accurate_enough(arms, margin)
    lowest = min(arm.energy.nominal_j for arm in enough)
    return [arm for arm in enough if arm.energy.nominal_j <= lowest * (1 + _EQUAL_ENERGY)]


# ---- one group of sentences each ---------------------------------------------------------------------------------


def _unfinished(comparison: Comparison) -> list[str]:
    if comparison.runs_ended is None:
        return []
    seeds: dict[str, list[int]] = {}
    for arm, seed in comparison.missing:
        seeds.setdefault(arm, []).append(seed)
    told = ", ".join(f"{arm} (seed {', '.join(map(str, of))})" for arm, of in seeds.items())
    return [f"Not finished: {comparison.runs_ended}. Missing: {told}."]


def _conditions(comparison: Comparison, arms: tuple[ArmSummary, ...]) -> list[str]:
    sizes = ", ".join(f"{number} {split}" for split, number in comparison.splits.items())
    lines = [f"Energies are modelled, under the profile {comparison.profile.rstrip('.')}."]
    if test := comparison.splits.get("test"):
        lines.append(f"Examples: {sizes}; one test example is {100 / test:.2f} points of accuracy.")
    seeds = {arm.arm: tuple(seed.seed for seed in arm.seeds) for arm in arms}
    if len(set(seeds.values())) > 1:
        listed = "; ".join(f"{arm}: {', '.join(map(str, numbers))}" for arm, numbers in seeds.items())
        lines.append(f"The arms were not run with the same seeds, so their means are not quite comparable ({listed}).")
    return lines


def _winner(comparison: Comparison, arms: tuple[ArmSummary, ...], winner: ArmSummary) -> list[str]:
    best = max(arms, key=lambda arm: arm.test_accuracy.mean)
    enough = _accurate_enough(arms, comparison.margin)
    energy = winner.energy
    equal = [arm for arm in _cheapest(arms, comparison.margin) if arm is not winner]
    listed = ", ".join(f"{arm.arm} ({100 * arm.test_accuracy.mean:.2f} %)" for arm in equal)
    tie = f" Equal to it in energy, and behind it in accuracy: {listed}." if equal else ""
    return [
        f"Lowest energy: {winner.arm}, with {energy_text(energy.nominal_j)} nominal ({energy_text(energy.low_j)} to "
        f"{energy_text(energy.high_j)}) and {100 * winner.test_accuracy.mean:.2f} % test accuracy. It is the "
        f"cheapest by nominal energy of the {len(enough)} of {len(arms)} arms whose mean test accuracy, which is no "
        f"test, is within {points_text(comparison.margin)} of the most accurate arm ({best.arm}, "
        f"{100 * best.test_accuracy.mean:.2f} %).{tie}"
    ]


def _against(comparison: Comparison, winner: ArmSummary, baseline: ArmSummary | None, name: str) -> list[str]:
    if baseline is None:
        return []
    if baseline is winner:
        return [f"That arm is {name} itself: no arm of comparable accuracy needs less."]
    ratio = winner.energy.ratio_to(baseline.energy)
    return [
        f"Against {name} ({baseline.arm}), {winner.arm} needs {ratio_text(ratio, ends=False)} of the energy "
        f"({_ends_text(ratio)}). "
        f"Its test accuracy differs by {difference_text(winner, baseline, comparison)}. "
        + _separation(winner, baseline, ratio)
    ]


def _separation(a: ArmSummary, b: ArmSummary, ratio: Range) -> str:
    if a.energy.high_j < b.energy.low_j or b.energy.high_j < a.energy.low_j:
        return "Their low to high ranges of energy do not even overlap."
    if ratio.high < 1 or ratio.low > 1:
        return "Their low to high ranges of energy overlap, but under the same assumptions for both the order stays."
    return "Their low to high ranges of energy overlap, and which of the two is cheaper depends on the assumptions."


def _eight_bit_claim(comparison: Comparison, roles: Roles) -> list[str]:
    ll, slimming = roles.ll, roles.slimming
    if ll is None or slimming is None:
        return []
    loss = slimming.test_accuracy.mean - ll.test_accuracy.mean
    ratio = ll.energy.ratio_to(slimming.energy)
    return [
        f"8-bit early bird ({ll.arm}) against network slimming in fp32 ({slimming.arm}): mean "
        f"within {points_text(comparison.margin)}: {_yes(loss <= comparison.margin + _ROUNDING)}; its test accuracy "
        f"differs by {difference_text(ll, slimming, comparison)}. Less than a fifth of its modelled energy: "
        f"{_yes(ratio.nominal < FIFTH)} ({ratio_text(ratio, ends=False)}; {_ends_text(ratio)}"
        f"{_fifth_caveat(ratio)}). By component: {_component_ratios(ll, slimming)}."
    ]


def _ends_text(ratio: Range) -> str:
    return (
        f"x{three_digits(ratio.low)} to x{three_digits(ratio.high)} over schedules and the open constants of the "
        "profile, the same for both"
    )


def _component_ratios(arm: ArmSummary, baseline: ArmSummary) -> str:
    names = ("compute", "memory", "other")
    pairs = [(name, getattr(arm.energy, f"{name}_j"), getattr(baseline.energy, f"{name}_j")) for name in names]
    return ", ".join(f"{name} x{three_digits(own.nominal / of.nominal)}" for name, own, of in pairs if of.nominal)


def _fifth_caveat(ratio: Range) -> str:
    if ratio.low < FIFTH <= ratio.high:
        return ", so the answer depends on these assumptions"
    return ""


def _random_tickets(comparison: Comparison, arms: tuple[ArmSummary, ...]) -> list[str]:
    return [_random_ticket(comparison, bird, control) for bird, control in random_pairs(arms)]


def _random_ticket(comparison: Comparison, bird: ArmSummary, control: ArmSummary) -> str:
    ratio = control.energy.nominal_j / bird.energy.nominal_j
    energy = "at equal energy" if abs(ratio - 1) <= _EQUAL_ENERGY else "not at equal energy"
    return (
        f"Ticket against random ticket, {energy} ({control.arm} needs x{three_digits(ratio)} of {bird.arm}): "
        f"test accuracy of the ticket differs by {difference_text(bird, control, comparison)}."
    )


def _deadlines(arms: tuple[ArmSummary, ...]) -> list[str]:
    """Arms that share a search share its ticket, so a ticket is named once with all its arms."""
    late: dict[str, list[str]] = {}
    for arm in arms:
        for seed in arm.seeds:
            if seed.ticket is not None and not seed.ticket.on_time:
                late.setdefault(_ticket_text(arm, seed.seed, seed.ticket), []).append(arm.arm)
    if late:
        listed = "; ".join(f"{ticket}: {', '.join(names)}" for ticket, names in late.items())
        return [f"No ticket appeared in time in these searches, and the best by the deadline was taken. {listed}."]
    detected = any(seed.ticket and seed.ticket.distance is not None for arm in arms for seed in arm.seeds)
    return ["Every early-bird ticket appeared before its deadline."] if detected else []


def _ticket_text(arm: ArmSummary, seed: int, ticket: TicketSummary) -> str:
    distance = "" if ticket.distance is None else f", mask distance {ticket.distance:.3f}"
    return f"Search in {arm.search_precision}, seed {seed}, {ticket.epoch} epochs{distance}"


def _diverged(comparison: Comparison) -> list[str]:
    """One sentence for each arm and seed that has no result."""
    return [
        f"{outcome.arm}, seed {outcome.seed}, diverged while it ran its {outcome.phase} stage in "
        f"{_precision_of(outcome, comparison.rows[outcome.stages[-1]])}, and has no result: {outcome.event}."
        for outcome in comparison.diverged
    ]


def _precision_of(outcome: DivergedOutcome, rows: Iterable[LedgerRow]) -> str:
    searching = outcome.phase == "search" and outcome.search_precision is not None
    began = str(outcome.search_precision if searching else outcome.precision)
    raised = {str(row.metrics["precision"]) for row in rows if "precision" in row.metrics}
    return "".join([began, *(f", raised to {precision}" for precision in raised)])


def _unstable(comparison: Comparison) -> list[str]:
    """What was skipped, or went on in a higher precision; arms that share a stage are named together."""
    arms: dict[str, list[str]] = {}
    for outcome in comparison.outcomes:
        for stage in outcome.stages:
            arms.setdefault(stage, []).append(f"{outcome.arm}, seed {outcome.seed}")
    lines = []
    for stage, names in arms.items():
        found = [event for row in comparison.rows[stage] for event in from_text(_noted(row))]
        if found:
            raised = {str(row.metrics["precision"]) for row in comparison.rows[stage] if "precision" in row.metrics}
            lines.append(f"{'; '.join(names)}: {_unstable_text(found, raised)}")
    return lines


def _noted(row: LedgerRow) -> str:
    return str(row.metrics.get("instabilities", "[]"))


def _unstable_text(found: Sequence[Instability], raised: Iterable[str]) -> str:
    went_on = "".join(f", and training went on in {precision}" for precision in raised)
    others = f" It is the first of {len(found)} such steps." if len(found) > 1 else ""
    return f"{found[0]}; the step was skipped{went_on}.{others}"


def _measured(arms: tuple[ArmSummary, ...]) -> list[str]:
    without = [arm.arm for arm in arms if arm.measured_j is None]
    if not without:
        return ["Measured energy is that of the simulation on this machine, not of the chip in the profile."]
    whom = "any arm" if len(without) == len(arms) else ", ".join(without)
    return [f"Energy was not measured for {whom}: no sensor covered the whole run."]


# ---- wording -----------------------------------------------------------------------------------------------------


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"
