"""Grams of CO2e and money for joules, from the carbon intensity and the price that the user gives; no guesses."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from energy_models.energy import Range

_J_PER_KWH = 3.6e6
_NUMBER = r"\d+(?:\.\d+)?"


@dataclass(frozen=True)
class Footprint:
    """What a kilowatt-hour emits and costs, as the user knows it.

    Each quantity is one number, (low, high), or (low, nominal, high); of two the nominal is the mean.

    Args:
        carbon_intensity: g CO2e per kWh of electricity.
        price: of a kWh, in ``currency`` (its code, such as "EUR").
        pue: power usage effectiveness, kWh drawn by the site per kWh of the computer: at least 1. None: not applied.
    """

    carbon_intensity: tuple[float, ...] | None = None
    price: tuple[float, ...] | None = None
    currency: str | None = None
    pue: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in (("carbon_intensity", 0.0), ("price", 0.0), ("pue", 1.0)):
            _check(name, getattr(self, name), least)
        if (self.price is None) != (self.currency is None):
            raise ValueError("price and currency belong together: give both, as in price 0.25 and currency EUR")
        if self.currency is not None and not re.fullmatch(r"\w+", self.currency):
            raise ValueError(f"currency must be a code such as EUR, got {self.currency!r}")
        if self.carbon_intensity is None and self.price is None:
            raise ValueError("give a carbon_intensity or a price: without them nothing follows from the energy")

    def co2e_g(self, energy_j: Range) -> Range | None:
        """Grams of CO2e, the low end at the low intensity and so on; None where no intensity was given."""
        return self._times(energy_j, self.carbon_intensity)

    def cost(self, energy_j: Range) -> Range | None:
        """In ``currency``; None where no price was given."""
        return self._times(energy_j, self.price)

    def _times(self, energy_j: Range, per_kwh: tuple[float, ...] | None) -> Range | None:
        if per_kwh is None:
            return None
        factor, pue = as_range(per_kwh), as_range(self.pue or (1.0,))
        return Range(
            energy_j.low / _J_PER_KWH * factor.low * pue.low,
            energy_j.nominal / _J_PER_KWH * factor.nominal * pue.nominal,
            energy_j.high / _J_PER_KWH * factor.high * pue.high,
        )


def as_range(numbers: tuple[float, ...]) -> Range:
    """One number, (low, high) or (low, nominal, high)."""
    if len(numbers) == 1:
        return Range(*numbers * 3)
    return Range(numbers[0], sum(numbers) / 2, numbers[1]) if len(numbers) == 2 else Range(*numbers)


def parse_numbers(text: str) -> tuple[float, ...]:
    """One to three numbers as they are typed: "400", "300-500" or "300-420-500"."""
    if not re.fullmatch(f"{_NUMBER}(-{_NUMBER}){{0,2}}", text.strip()):
        raise ValueError(f"{text!r} is not a number or a range; write 400, 300-500 or 300-420-500 (low-nominal-high)")
    return tuple(float(part) for part in text.split("-"))


def _check(name: str, numbers: tuple[float, ...] | None, least: float) -> None:
    if numbers is None:
        return
    if not 1 <= len(numbers) <= 3 or not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{name} must be one number, low and high, or low, nominal and high; got {list(numbers)}")
    if list(numbers) != sorted(numbers) or numbers[0] < least:
        raise ValueError(f"{name} must rise from low to high and start at {least:g} or more; got {list(numbers)}")
