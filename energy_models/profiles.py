"""Hardware profiles: the constants that a modelled energy is made of, each with its value, unit, range and source.

Profiles are YAML files, the shipped ones in `energy_models/profiles/`. The loader refuses what it does not know.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

UNITS = ("pJ", "pJ/64bit", "pJ/bit", "KiB", "1")
_CONSTANT_KEYS = ("value", "unit", "low", "high", "source")
_TEXT_KEYS = ("name", "description", "leaves_out")
_SHIPPED = resources.files("energy_models") / "profiles"


@dataclass(frozen=True)
class Constant:
    """One constant of a profile: low <= value <= high (both are the value where the source gives no range)."""

    value: float
    unit: str
    low: float
    high: float
    source: str

    def per_bit(self) -> Constant:
        """The same energy in pJ/bit; only for a constant in pJ/bit or pJ/64bit."""
        if self.unit == "pJ/bit":
            return self
        return Constant(self.value / 64, "pJ/bit", self.low / 64, self.high / 64, self.source)


@dataclass(frozen=True)
class HardwareProfile:
    """What the operations of one chip cost; field names are the keys of the file.

    Arithmetic is energy per operation, `sram` and `dram` are per bit moved, `capacity` is the on-chip buffer,
    `operand_reuse` the products made per operand fetched from that buffer.
    """

    name: str
    description: str
    leaves_out: tuple[str, ...]
    int_add_8: Constant
    int_add_32: Constant
    int_mult_8: Constant
    int_mult_32: Constant
    float_add_16: Constant
    float_add_32: Constant
    float_mult_16: Constant
    float_mult_32: Constant
    sram: Constant
    dram: Constant
    capacity: Constant
    operand_reuse: Constant


_PER_BIT = ("pJ/64bit", "pJ/bit")
_UNITS_OF = {"sram": _PER_BIT, "dram": _PER_BIT, "capacity": ("KiB",), "operand_reuse": ("1",)}
_CONSTANTS = tuple(field.name for field in fields(HardwareProfile) if field.name not in _TEXT_KEYS)


def available_profiles() -> tuple[str, ...]:
    """Names of the shipped profiles."""
    return tuple(
        sorted(entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml"))
    )


def load_profile(name_or_path: str | Path) -> HardwareProfile:
    """A shipped profile by name, or the profile in a .yaml/.yml file.

    Raises ValueError with file and key for an unknown name, an unknown or missing key, an unknown unit, a missing
    source or a value outside its own range.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise ValueError(f"hardware profile {str(path)!r} is not a file")
        return _parse(path.read_text(encoding="utf-8"), str(path))
    if name_or_path not in available_profiles():
        names = ", ".join(available_profiles())
        raise ValueError(f"no hardware profile {name_or_path!r}; available: {names}, or the path of a .yaml file")
    file = f"{name_or_path}.yaml"
    return _parse((_SHIPPED / file).read_text(encoding="utf-8"), file)


def _parse(text: str, file: str) -> HardwareProfile:
    try:
        document = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ValueError(f"{file}: not valid YAML: {error}") from error
    profile = _mapping(document, file)
    _check_keys(profile, (*_TEXT_KEYS, *_CONSTANTS), file)
    for key in (*_TEXT_KEYS, *_CONSTANTS):
        if key not in profile:
            raise ValueError(f"{file}: key {key!r} is missing")
    constants = {key: _constant(profile[key], f"{file}: {key}", _UNITS_OF.get(key, ("pJ",))) for key in _CONSTANTS}
    leaves_out = profile["leaves_out"]
    if not isinstance(leaves_out, list):
        raise ValueError(f"{file}: leaves_out must be a list of what the profile does not price")
    name, description = (_text(profile[key], f"{file}: {key}") for key in ("name", "description"))
    return HardwareProfile(
        name, description, tuple(_text(item, f"{file}: leaves_out") for item in leaves_out), **constants
    )


def _constant(entry: Any, where: str, units: tuple[str, ...]) -> Constant:
    constant = _mapping(entry, where)
    _check_keys(constant, _CONSTANT_KEYS, where)
    for key in ("value", "unit", "source"):
        if key not in constant:
            raise ValueError(f"{where}: {key!r} is missing; every constant has a value, a unit and a source")
    unit = constant["unit"]
    if unit not in UNITS:
        raise ValueError(f"{where}: unknown unit {unit!r}; known: {', '.join(UNITS)}")
    if unit not in units:
        raise ValueError(f"{where}: the unit must be {' or '.join(units)}, not {unit}")
    value = _number(constant["value"], f"{where}.value")
    low = _number(constant.get("low", value), f"{where}.low")
    high = _number(constant.get("high", value), f"{where}.high")
    if not low <= value <= high:
        raise ValueError(f"{where}: low <= value <= high does not hold for {low}, {value}, {high}")
    return Constant(value, unit, low, high, _text(constant["source"], f"{where}.source"))


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected keys and values, found {value!r}")
    return value


def _check_keys(given: Iterable[object], known: tuple[str, ...], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where}: unknown key {key!r}; {hint}")


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{where}: expected a positive number, found {value!r}")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a text, found {value!r}")
    return value.strip()
