"""Writes a calibrated profile: the text of an old one with scaled constants, and what there is to know of the fit."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from energy_models.calibration import ARITHMETIC, SECONDS, STATIC, Calibration, Factor
from energy_models.calibration_windows import WindowsHeader

_DIGITS = 4


def calibrated_text(text: str, calibration: Calibration, header: WindowsHeader, *, name: str, when: str) -> str:
    """The YAML of a new profile ``name`` out of the ``text`` of the one that was calibrated, its comments kept.

    Every constant that a factor scales keeps its source and says by what it was multiplied; its range becomes the
    factor's. The key ``calibration`` says where, ``when``, on what and how well.

    Raises:
        ValueError: the text is no profile, a factor may as well be 0, two factors scale the same constant, or no
            constant of the profile belongs to a component.
    """
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    try:
        document = yaml.load(text)
    except YAMLError as error:
        raise ValueError(f"the profile to calibrate is not valid YAML: {error}") from error
    owners: dict[str, str] = {}
    scaled = [(factor, _constants(document, factor)) for factor in calibration.factors]
    for factor, constants in scaled:
        for place in constants:
            if owners.setdefault(place, factor.name) != factor.name:
                raise ValueError(
                    f"factors {owners[place]} and {factor.name} both scale {place}: put their components in one factor"
                )
    for factor, constants in scaled:
        if constants and not factor.low > 0:
            raise ValueError(
                f"factor {factor_text(factor)} may as well be 0, and a profile has no constants of 0: the windows do "
                "not determine it; add windows that differ more, or fit fewer factors"
            )
        for constant in constants.values():
            _scale(constant, factor)
    unused = [factor_text(factor) for factor, constants in scaled if not constants]
    document["name"] = name
    document["description"] = f"{document['description']}; calibrated on {header.device}"
    document["calibration"] = report(calibration, header, when)
    if unused:
        document["calibration"]["not_in_profile"] = f"{'; '.join(unused)}: fitted beside, since it is no whole chip"
    out = io.StringIO()
    yaml.dump(document, out)
    return out.getvalue()


def report(calibration: Calibration, header: WindowsHeader, when: str) -> dict[str, str]:
    """Where a profile was calibrated, when, on what and how well; errors are relative, of whole windows."""
    found = {
        "profile": header.profile,
        "device": header.device,
        "sensor": header.sensor,
        "when": when,
        "windows": f"{len(calibration.windows)} windows of {calibration.groups} kinds of work",
        "factors": "; ".join(map(factor_text, calibration.factors)),
        "error_before": _error_text(calibration.error("before")),
        "error_fitted": _error_text(calibration.error("fitted")),
        "error_held_out": f"{_error_text(calibration.error('held_out'))}, of kinds of work that the fit had not seen",
        "condition": f"{calibration.condition:.3g}",
    }
    found |= {"made": header.made} if header.made else {}
    return found | ({"warnings": "; ".join(calibration.warnings)} if calibration.warnings else {})


def factor_text(factor: Factor) -> str:
    """A factor with its range, for people."""
    unit = " W" if factor.unit == "W" else ""
    return f"{factor.name} {factor.value:.4g}{unit} ({factor.low:.4g} to {factor.high:.4g})"


def _error_text(error: tuple[float, float]) -> str:
    return f"mean {error[0]:.1%}, largest {error[1]:.1%}"


def _constants(document: Any, factor: Factor) -> dict[str, Any]:
    """{place: constant} of everything that the factor's components are priced by; none of a static power that the
    profile does not price."""
    found = {place: c for component in factor.components for place, c in _constants_of(document, component).items()}
    if not found and factor.components != (SECONDS,):
        raise ValueError(f"the profile has no constant of {', '.join(factor.components)} for factor {factor.name}")
    return found


def _constants_of(document: Any, component: str) -> dict[str, Any]:
    if component in (SECONDS, STATIC):
        chip = document.get("chip", {})
        return {f"chip.{key}": constant for key, constant in chip.items() if key == "static_power"}
    if component in ARITHMETIC:
        parts = {f"arithmetic.{key}": constant for key, constant in document.get("arithmetic", {}).items()}
        return parts | {f"units.{key}.energy": unit["energy"] for key, unit in document.get("units", {}).items()}
    levels = [level for level in document.get("memory", []) if level["name"] == component]
    return {f"memory.{component}.energy": level["energy"] for level in levels}


def _scale(constant: Any, factor: Factor) -> None:
    base = 1.0 if factor.components == (SECONDS,) else float(constant["value"])
    ends: Mapping[str, float] = {"value": factor.value, "low": factor.low, "high": factor.high}
    for key, by in ends.items():
        constant[key] = float(f"{base * by:.{_DIGITS}g}")
    what = "fitted" if factor.components == (SECONDS,) else f"times {factor.value:.4g}"
    constant["source"] = f"{constant['source']}; {what} in the calibration below"
