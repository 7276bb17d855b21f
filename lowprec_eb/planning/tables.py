"""A plan for people: two tables and what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from rich.console import Console
from rich.table import Table
from rich.text import Text

import energy_models as em
from energy_models.units import share_text, si_text
from energy_models.views import missing_text
from lowprec_eb.planning.result import Plan, PlannedArm, PlannedPhase
from lowprec_eb.report.table_style import fitted, new_table
from lowprec_eb.report.units import Scale, ratio_text, three_digits

_J_PER_KWH = 3.6e6
_DURATIONS = (("y", 31557600.0), ("d", 86400.0), ("h", 3600.0), ("min", 60.0))
_LISTED = 12  # pairs of arms in a sentence


def print_plan(plan: Plan, console: Console) -> None:
    """Print both tables of one profile, and what they say."""
    console.print(Text(heading(plan), style="bold"))
    for table in (energy_table(plan), work_table(plan), phase_table(plan)):
        for part in fitted(table, console):
            console.print(part)
            console.print()
    for line in sentences(plan):
        console.print(Text(f"- {line}"))


def heading(plan: Plan) -> str:
    settings = plan.settings
    data = f"{si_text(settings.samples)} samples" if settings.samples else f"{si_text(settings.tokens or 0)} tokens"
    epochs = f"{settings.epochs} epoch{'s' if settings.epochs > 1 else ''}"
    of = f"{plan.model}, {si_text(plan.parameters)} parameters, {data}, {epochs}, batch {settings.batch}"
    devices = f" on {settings.devices} devices" if settings.devices > 1 else ""
    return f"{settings.name}: {of}{devices}; profile {plan.profile.name}"


def energy_table(plan: Plan) -> Table:
    """One row an arm: energy, its ratio to the first arm's, and components."""
    table = new_table(
        "Modelled energy", "Components are nominal. A ratio's range is over what both arms have in common."
    )
    scale = Scale.of(arm.energy_j.nominal for arm in plan.arms)
    unit, components = f"[{scale.prefix}J]", list(dict.fromkeys(chain(*(arm.components_j for arm in plan.arms))))
    table.add_column("arm", overflow="fold")
    headings = [f"energy\n{unit}", f"low - high\n{unit}", "over the first arm\n(low-high)"]
    for text in (*headings, *(f"{name}\n{unit}" for name in components)):
        table.add_column(Text(text), justify="right", overflow="fold")
    for arm in plan.arms:
        energy, parts = arm.energy_j, arm.components_j
        cells = [scale.text(energy.nominal), f"{scale.text(energy.low)} - {scale.text(energy.high)}"]
        cells += [ratio_text(arm.ratio_to(plan.arms[0])), *(scale.text(parts[name].nominal) for name in components)]
        table.add_row(*map(Text, (arm.name, *cells)))
    return table


def work_table(plan: Plan) -> Table:
    """One row an arm: MACs, bit-ops, kilowatt-hours, time, CO2e and cost."""
    table = new_table("Work and what it comes to", "In brackets low and high.")
    footprint = plan.settings.footprint
    headings = ["MACs", "bit-ops", "energy [kWh]", "time"]
    headings += ["CO2e"] if footprint is not None and footprint.carbon_intensity is not None else []
    headings += [f"cost [{footprint.currency}]"] if footprint is not None and footprint.price is not None else []
    table.add_column("arm", overflow="fold")
    for text in headings:
        table.add_column(Text(text), justify="right", overflow="fold")
    for arm in plan.arms:
        kwh = arm.energy_j * (1 / _J_PER_KWH)
        cells = [si_text(arm.macs), si_text(arm.bit_ops), _ends_text(kwh, three_digits)]
        cells += [duration_text(arm.time_s), *_footprint_texts(plan, arm)]
        table.add_row(*map(Text, (arm.name, *cells)))
    return table


def _footprint_texts(plan: Plan, arm: PlannedArm) -> Iterator[str]:
    footprint = plan.settings.footprint
    if footprint is None:
        return
    emitted, cost = footprint.co2e_g(arm.energy_j), footprint.cost(arm.energy_j)
    if emitted is not None:
        yield _ends_text(emitted, mass_text)
    if cost is not None:
        yield _ends_text(cost, three_digits)


def phase_table(plan: Plan) -> Table:
    """One row for each phase of an arm, at one width and in one precision."""
    table = new_table("Phases", "Share: of the arm's nominal energy. Epochs, MACs and time are nominal.")
    for text in ("arm", "phase", "width", "precision"):
        table.add_column(text, overflow="fold")
    for text in ("epochs", "MACs", "energy", "low - high", "share", "time"):
        table.add_column(text, justify="right", overflow="fold")
    for arm in plan.arms:
        whole = sum(phase.energy.nominal_j for phase in arm.phases)
        for place, phase in enumerate(arm.phases):
            table.add_row(*map(Text, _phase_cells(arm.name if place == 0 else "", phase, whole)))
    return table


def _phase_cells(arm: str, phase: PlannedPhase, whole: float) -> tuple[str, ...]:
    energy = phase.energy
    ends = f"{si_text(energy.low_j, 'J')} - {si_text(energy.high_j, 'J')}"
    numbers = (str(phase.epochs or ""), si_text(phase.macs), si_text(energy.nominal_j, "J"), ends)
    share = share_text(energy.nominal_j, whole)
    time = "-" if phase.time_s is None else _seconds_text(phase.time_s.nominal)
    return (arm, phase.phase, phase.width, phase.precision, *numbers, share, time)


# ---- sentences ---------------------------------------------------------------------------------------------------


def sentences(plan: Plan) -> list[str]:
    """What the numbers say, what they rest on, and what they leave out."""
    return [*_separation(plan), *_ticket(plan), *_time(plan), *_conditions(plan)]


def _separation(plan: Plan) -> Iterator[str]:
    pairs = plan.unseparated
    if not pairs:
        if len(plan.arms) > 1:
            yield "The ranges separate every pair of arms: whatever the profile leaves open, their order stays."
        return
    told = [f"{a.name} against {b.name} {ratio_text(ratio)}" for a, b, ratio in pairs[:_LISTED]]
    more = f"; and {len(pairs) - _LISTED} more pairs" if len(pairs) > _LISTED else ""
    yield f"The ranges do not separate, so this plan cannot rank: {'; '.join(told)}{more}."


def _ticket(plan: Plan) -> Iterator[str]:
    ticket = plan.settings.ticket
    if ticket is None or "ticket" not in plan.forward_macs:
        return
    left = 100 * plan.forward_macs["ticket"] / plan.forward_macs["dense"]
    how = "cut evenly" if ticket.widths == "compacted" else "its counts scaled from the dense ones"
    emerged = " to ".join(map(str, dict.fromkeys((ticket.epochs[0], ticket.epochs[-1]))))
    yield (
        f"The ticket keeps {100 * (1 - ticket.ratio):.0f} % of the channels of every layer ({how}) and {left:.1f} % of "
        f"the forward MACs; a real one is not even over the layers. It is expected after {emerged} epochs of search."
    )


def _time(plan: Plan) -> Iterator[str]:
    settings = plan.settings
    if settings.rate is not None or any(arm.rate for arm in settings.arms):
        yield (
            "Time is from the given rate, which is of dense training: other widths and evaluation are taken at as many "
            "MACs a second, and so is every precision of an arm without a rate of its own."
        )
        if plan.profile.chip is not None:
            yield ("Static energy is the profile's static power for that time, on every device.")
    elif plan.profile.chip is not None:
        yield "Time is the profile's: the slower of multipliers and DRAM, without anything between devices."
    else:
        yield "No time: the profile is of bare arithmetic; give rate (samples or tokens a second and device)."


def _conditions(plan: Plan) -> Iterator[str]:
    settings = plan.settings
    if settings.devices > 1:
        yield f"{settings.devices} devices share each batch and each updates all weights; what they send is left out."
    footprint = settings.footprint
    if footprint is not None and plan.profile.chip is None:
        yield (
            f"Profile {plan.profile.name} has no static power, so CO2e and cost are of its operations alone, not of a "
            "machine."
        )
    yield f"Energies are modelled. The profile leaves out: {'; '.join(plan.profile.leaves_out)}."
    yield f"Not counted: {missing_text(plan.uncounted)}. A loss counts where the model computes it."


# ---- units -------------------------------------------------------------------------------------------------------


def duration_text(time_s: em.Range | None) -> str:
    """As "3.21 d (3.01 d - 3.52 d)"; "-" where it is not known."""
    return "-" if time_s is None else _ends_text(time_s, _seconds_text)


def _ends_text(amount: em.Range, text: Callable[[float], str]) -> str:
    nominal, low, high = text(amount.nominal), text(amount.low), text(amount.high)
    return nominal if low == high else f"{nominal} ({low} - {high})"


def _seconds_text(seconds: float) -> str:
    for name, length in _DURATIONS:
        if seconds >= length:
            return f"{three_digits(seconds / length)} {name}"
    return f"{three_digits(seconds)} s"


def mass_text(grams: float) -> str:
    """As "12.3 kg"; tonnes above 1000 kg."""
    for name, size in (("t", 1e6), ("kg", 1e3)):
        if grams >= size:
            return f"{three_digits(grams / size)} {name}"
    return f"{three_digits(grams)} g"
