"""Checks that the settings of several models share."""

import math


def check_name(name: str, expected: str) -> None:
    """Raises ValueError for the settings of one model under the name of another."""
    if name != expected:
        raise ValueError(f"name must be {expected!r}, got {name!r}")


def check_gamma(gamma_init: float) -> None:
    """Raises ValueError for a scale that no BatchNorm can start with."""
    if not (math.isfinite(gamma_init) and gamma_init > 0):
        raise ValueError(f"gamma_init must be a finite number above 0, got {gamma_init!r}")


def check_width(width: int) -> None:
    """Raises ValueError for a layer without channels."""
    if width < 1:
        raise ValueError(f"width must be a number of channels of 1 or more, got {width!r}")
