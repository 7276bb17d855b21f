"""Reads hardware profiles from YAML files, the shipped ones in `energy_models/profiles/`; it refuses the unknown."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from energy_models.energy import ENDS
from energy_models.mac_energy import MacEnergy
from energy_models.number_formats import UNIT_FORMATS
from energy_models.profiles import Arithmetic, Chip, Constant, HardwareProfile, MemoryLevel, Unit

PER_BIT = ("pJ/64bit", "pJ/bit")
UNITS = ("pJ", *PER_BIT, "KiB", "GB/s", "TMAC/s", "W", "1")
_CONSTANT_KEYS = ("value", "unit", "low", "high", "source")
_KEYS = (
    *("name", "description", "leaves_out", "memory", "operand_reuse"),
    *("sum_reuse", "arithmetic", "units", "chip", "calibration"),
)
_REQUIRED = _KEYS[:5]
_SHIPPED = resources.files("energy_models") / "profiles"


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
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not UTF-8 text: {error}") from error
        return parse_profile(text, str(path))
    if name_or_path not in available_profiles():
        names = ", ".join(available_profiles())
        raise ValueError(f"no hardware profile {name_or_path!r}; available: {names}, or the path of a .yaml file")
    file = f"{name_or_path}.yaml"
    return parse_profile((_SHIPPED / file).read_text(encoding="utf-8"), file)


def parse_profile(text: str, file: str) -> HardwareProfile:
    """The profile that a file's text describes; errors as :func:`load_profile`, with `file` in them."""
    try:
        document = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ValueError(f"{file}: not valid YAML: {error}") from error
    profile = _keyed(document, file, _KEYS, _REQUIRED)
    if ("arithmetic" in profile) == ("units" in profile):
        raise ValueError(
            f"{file}: give arithmetic (MACs of any format from their parts) or units (a chip's own), one of them"
        )
    leaves_out = profile["leaves_out"]
    if not isinstance(leaves_out, list):
        raise ValueError(f"{file}: leaves_out must be a list of what the profile does not price")
    chip = _chip(profile["chip"], f"{file}: chip", "units" in profile) if "chip" in profile else None
    return HardwareProfile(
        name=_text(profile["name"], f"{file}: name"),
        description=_text(profile["description"], f"{file}: description"),
        leaves_out=tuple(_text(item, f"{file}: leaves_out") for item in leaves_out),
        memory=_memory(profile["memory"], f"{file}: memory", timed=chip is not None),
        operand_reuse=_constant(profile["operand_reuse"], f"{file}: operand_reuse", ("1",)),
        sum_reuse=_constant(profile["sum_reuse"], f"{file}: sum_reuse", ("1",)) if "sum_reuse" in profile else None,
        arithmetic=_arithmetic(profile["arithmetic"], f"{file}: arithmetic") if "arithmetic" in profile else None,
        units=_units(profile.get("units", {}), f"{file}: units"),
        chip=chip,
        calibration=_calibration(profile.get("calibration", {}), f"{file}: calibration"),
    )


def _arithmetic(section: Any, where: str) -> Arithmetic:
    keys = tuple(Arithmetic.__dataclass_fields__)
    given = _keyed(section, where, keys, keys)
    parts = Arithmetic(**{key: _constant(given[key], f"{where}.{key}", ("pJ",)) for key in keys})
    for end in ENDS:
        try:
            MacEnergy(parts, end)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return parts


def _units(section: Any, where: str) -> dict[str, Unit]:
    found = {}
    for name, entry in _keyed(section, where, tuple(UNIT_FORMATS), ()).items():
        parts = _keyed(entry, f"{where}.{name}", ("energy", "rate"), ("energy", "rate"))
        energy = _constant(parts["energy"], f"{where}.{name}.energy", ("pJ",))
        found[name] = Unit(energy, _constant(parts["rate"], f"{where}.{name}.rate", ("TMAC/s",)))
    if section and "fp32" not in found:
        raise ValueError(f"{where}: fp32 is missing; element operations are priced by it")
    return found


def _chip(section: Any, where: str, has_units: bool) -> Chip:
    given = _keyed(section, where, ("static_power", "utilisation", "rate"), ("static_power", "utilisation"))
    if ("rate" in given) == has_units:
        raise ValueError(f"{where}.rate: a chip with arithmetic needs its peak rate; units have rates of their own")
    utilisation = _constant(given["utilisation"], f"{where}.utilisation", ("1",))
    if utilisation.high > 1:
        raise ValueError(f"{where}.utilisation: a share of the peak is at most 1, found {utilisation.high}")
    rate = _constant(given["rate"], f"{where}.rate", ("TMAC/s",)) if "rate" in given else None
    return Chip(_constant(given["static_power"], f"{where}.static_power", ("W",)), utilisation, rate)


def _memory(section: Any, where: str, timed: bool) -> tuple[MemoryLevel, ...]:
    if not isinstance(section, list) or not section:
        raise ValueError(f"{where}: expected a list of memory levels, from DRAM inwards")
    levels = []
    for place, entry in enumerate(section):
        here = f"{where}[{place}]"
        given = _keyed(entry, here, ("name", "energy", "capacity", "bandwidth"), ("name", "energy"))
        if ("capacity" in given) == (place == 0):
            raise ValueError(f"{here}: every level but the first, which holds everything, has a capacity")
        if timed and place == 0 and "bandwidth" not in given:
            raise ValueError(f"{here}: 'bandwidth' is missing; a whole chip's time depends on it")
        levels.append(
            MemoryLevel(
                _text(given["name"], f"{here}.name"),
                _constant(given["energy"], f"{here}.energy", PER_BIT),
                _constant(given["capacity"], f"{here}.capacity", ("KiB",)) if "capacity" in given else None,
                _constant(given["bandwidth"], f"{here}.bandwidth", ("GB/s",)) if "bandwidth" in given else None,
            )
        )
    names = [level.name for level in levels]
    if len(set(names)) < len(names) or {"compute", "other", "static"} & set(names):
        raise ValueError(f"{where}: levels need names of their own, other than compute, other and static: {names}")
    return tuple(levels)


def _calibration(section: Any, where: str) -> dict[str, str]:
    return {_text(key, where): _text(str(value), f"{where}.{key}") for key, value in _mapping(section, where).items()}


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


def _keyed(section: Any, where: str, known: tuple[str, ...], required: tuple[str, ...]) -> Mapping[str, Any]:
    given = _mapping(section, where)
    _check_keys(given, known, where)
    for key in required:
        if key not in given:
            raise ValueError(f"{where}: key {key!r} is missing")
    return given


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
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{where}: expected a positive number, found {value!r}")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: expected a text, found {value!r}")
    return value.strip()
