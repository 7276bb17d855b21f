"""CO2e and cost: what was given times the energy, end by end; what was not given is not there."""

from __future__ import annotations

from typing import Any

import pytest

from energy_models import Footprint, Range
from energy_models.footprint import parse_numbers

KWH = Range(3.6e6, 7.2e6, 14.4e6)  # 1, 2 and 4 kWh


def test_ends_go_with_ends() -> None:
    footprint = Footprint(carbon_intensity=(300.0, 500.0), price=(0.1, 0.2, 0.5), currency="EUR")
    assert footprint.co2e_g(KWH) == Range(300.0, 800.0, 2000.0)
    assert footprint.cost(KWH) == Range(0.1, 0.4, 2.0)


def test_the_site_is_charged_only_when_its_factor_is_given() -> None:
    assert Footprint(carbon_intensity=(400.0,)).co2e_g(KWH) == Range(400.0, 800.0, 1600.0)
    assert Footprint(carbon_intensity=(400.0,), pue=(1.0, 1.5)).co2e_g(KWH) == Range(400.0, 1000.0, 2400.0)


def test_what_was_not_given_is_none_and_never_zero() -> None:
    assert Footprint(carbon_intensity=(400.0,)).cost(KWH) is None
    assert Footprint(price=(0.25,), currency="EUR").co2e_g(KWH) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give a carbon_intensity or a price"),
        ({"pue": (1.1,)}, "give a carbon_intensity or a price"),
        ({"price": (0.25,)}, "price and currency belong together"),
        ({"carbon_intensity": (400.0,), "currency": "EUR"}, "price and currency belong together"),
        ({"price": (0.25,), "currency": "a/b"}, "currency must be a code"),
        ({"carbon_intensity": (500.0, 300.0)}, "must rise from low to high"),
        ({"carbon_intensity": (-1.0,)}, "start at 0 or more"),
        ({"carbon_intensity": (400.0,), "pue": (0.9,)}, "pue must rise from low to high and start at 1"),
        ({"carbon_intensity": ()}, "must be one number"),
        ({"carbon_intensity": (1.0, 2.0, 3.0, 4.0)}, "must be one number"),
        ({"carbon_intensity": (float("nan"),)}, "must be one number"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Footprint(**given)


def test_numbers_as_typed() -> None:
    assert parse_numbers("400") == (400.0,)
    assert parse_numbers("0.2-0.35") == (0.2, 0.35)
    assert parse_numbers("300-420-500") == (300.0, 420.0, 500.0)
    for text in ("", "cheap", "-3", "1-2-3-4", "300 to 500"):
        with pytest.raises(ValueError, match="is not a number or a range; write 400"):
            parse_numbers(text)
