"""CO2e and cost of a comparison's arms, of modelled and of measured energy apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from energy_models.energy import Range
from energy_models.footprint import Footprint, as_range
from lowprec_eb.report.summary import ArmSummary, SeedSummary
from lowprec_eb.report.units import Scale, three_digits

_ENDS = ("low", "nominal", "high")


def footprint_cells(summary: ArmSummary | SeedSummary, footprint: Footprint | None) -> dict[str, float]:
    """Columns of an arm or a seed: grams and money with their ends; what was not given or not measured has none."""
    cells: dict[str, float] = {}
    for name, amount in _amounts(summary, footprint).items():
        cells |= {name.format(end=end): getattr(amount, end) for end in _ENDS}
    return cells


def footprint_table(arms: Sequence[ArmSummary], footprint: Footprint) -> Table:
    """One row an arm, mean over its seeds: CO2e and cost, nominal and low to high."""
    columns = list(dict.fromkeys(name for arm in arms for name in _amounts(arm, footprint)))
    table = Table(title=Text("CO2e and cost"), box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column(Text("arm"), overflow="fold")
    of_arms = [_amounts(arm, footprint) for arm in arms]
    scales = {name: Scale.of(of[name].nominal for of in of_arms if name in of) for name in columns}
    for name in columns:
        table.add_column(Text(f"{_heading(name)}\n[{scales[name].prefix}{_unit(name)}]"), justify="right")
    for arm, of in zip(arms, of_arms, strict=True):
        cells = [_text(of[name], scales[name]) if name in of else "not measured" for name in columns]
        table.add_row(*map(Text, [arm.arm, *cells]))
    return table


def footprint_sentence(footprint: Footprint) -> str:
    """What was given, and what the amounts are of."""
    given = []
    if footprint.carbon_intensity is not None:
        given.append(f"a carbon intensity of {_ends(footprint.carbon_intensity)} g/kWh")
    if footprint.price is not None:
        given.append(f"a price of {_ends(footprint.price)} {footprint.currency}/kWh")
    pue = "without a factor for the site" if footprint.pue is None else f"times a PUE of {_ends(footprint.pue)}"
    return (
        f"CO2e and cost follow from {' and '.join(given)}, as given by the user, {pue}; low, nominal and high are of "
        "the energy and of what was given together. Of modelled energy they are those of the profile's chip, of "
        "measured energy those of this machine; the two are never added."
    )


def _amounts(summary: ArmSummary | SeedSummary, footprint: Footprint | None) -> dict[str, Range]:
    """Column name with the place of its end -> amount."""
    if footprint is None:
        return {}
    energies = {"modelled": summary.energy.total_j}
    if summary.measured_j is not None:
        energies["measured"] = as_range((summary.measured_j,))
    found: dict[str, Range | None] = {}
    for kind, energy in energies.items():
        found[f"co2e_{kind}_{{end}}_g"] = footprint.co2e_g(energy)
        found[f"cost_{kind}_{{end}}_{footprint.currency}"] = footprint.cost(energy)
    return {name: amount for name, amount in found.items() if amount is not None}


def _heading(name: str) -> str:
    what, kind = name.split("_")[:2]
    return f"{'CO2e' if what == 'co2e' else what} of\n{kind} energy"


def _unit(name: str) -> str:
    return name.rsplit("_", 1)[-1]


def _text(amount: Range, scale: Scale) -> str:
    ends = f" ({scale.text(amount.low)} - {scale.text(amount.high)})" if amount.low != amount.high else ""
    return f"{scale.text(amount.nominal)}{ends}"


def _ends(numbers: Sequence[float]) -> str:
    return " to ".join(three_digits(number) for number in dict.fromkeys((numbers[0], numbers[-1])))


def footprint_tree(footprint: Footprint) -> dict[str, Any]:
    """What was given, for a file."""
    return {name: value for name, value in vars(footprint).items() if value is not None}
