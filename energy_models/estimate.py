"""Prices counts under a hardware profile: modelled energy as low, nominal and high, never mixed with measured energy.

`mac_energy` prices a MAC by its formats, `memory_traffic` finds what crosses each memory level. Low, nominal and high
are ends of an *energy*: low takes all that is open in its favour, high against it. They do not bound a *ratio* of two
energies on one chip, since both have the same open constants and the same schedule: `corners_j` has the total under
every combination of schedule (low, nominal, high), memory prices, operand reuse, and arithmetic with static power (low,
high each), and `ModelledEnergy.ratio_to` compares corner by corner.

Not modelled: what the profile's `leaves_out` lists, and `counts.uncounted`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from energy_models.counts import ElementOps, Gemm, OpCounts
from energy_models.energy import ENDS, ModelledEnergy, Range
from energy_models.mac_energy import MAC_RULES, MacEnergy, MacRule
from energy_models.memory_traffic import Traffic
from energy_models.number_formats import UNIT_FORMATS, NumberFormat, holds
from energy_models.profiles import Chip, HardwareProfile, Unit

_EDGES = ("low", "high")
CORNERS = len(ENDS) * len(_EDGES) ** 3
_PJ, _TERA, _GIGABYTE_BITS = 1e-12, 1e12, 8e9


def estimate(counts: OpCounts, profile: HardwareProfile, mac_rule: MacRule = "parts") -> ModelledEnergy:
    """Modelled energy of `counts` on the chip of `profile`, linear in the counts' `times` (static power aside).

    Args:
        mac_rule: "parts", or "bits_product" for the plain rule that energy goes with the product of the bits; its
            error is in `MacEnergy.bits_product_pj`.

    Raises:
        ValueError: an operand has a format that the profile cannot price; it names the layer.
    """
    if mac_rule not in MAC_RULES:
        raise ValueError(f"mac_rule must be one of {', '.join(MAC_RULES)}, got {mac_rule!r}")
    pricing = _Pricing(counts, profile, mac_rule)
    ends = {end: pricing.at(end, end, _opposite(end), end) for end in ENDS}
    components = {name: Range(*(ends[end].joules[name] for end in ENDS)) for name in ends["nominal"].joules}
    corners = (pricing.at(*corner) for corner in product(ENDS, _EDGES, _EDGES, _EDGES))
    levels = {level.name: Range(*(ends[end].bits[i] / 8 for end in ENDS)) for i, level in enumerate(profile.memory)}
    return ModelledEnergy(components, levels, tuple(sum(corner.joules.values()) for corner in corners))


def modelled_time_s(counts: OpCounts, profile: HardwareProfile) -> Range | None:
    """Seconds on a whole chip: the slower of multipliers and DRAM (roofline, Williams et al. 2009); None for others."""
    if profile.chip is None:
        return None
    pricing = _Pricing(counts, profile, "parts")
    return Range(*(pricing.time_s(end, pricing.traffic(end, _opposite(end))[0]) for end in ENDS))


def static_energy(profile: HardwareProfile, time_s: Range) -> ModelledEnergy:
    """What a whole chip draws in a time that is known from elsewhere, in place of the modelled one.

    Raises:
        ValueError: the profile is of bare arithmetic.
    """
    if profile.chip is None:
        raise ValueError(f"profile {profile.name!r} has no chip, so no static power")
    ends = {end: profile.chip.static_power.at(end) * getattr(time_s, end) for end in ENDS}
    corners = tuple(ends[arithmetic] for *_, arithmetic in product(ENDS, _EDGES, _EDGES, _EDGES))
    return ModelledEnergy({"static": Range(*ends.values())}, {}, corners)


def _opposite(end: str) -> str:
    """More reuse and more utilisation cost less."""
    return {"low": "high", "nominal": "nominal", "high": "low"}[end]


@dataclass(frozen=True)
class _Priced:
    joules: dict[str, float]
    bits: list[float]


class _Pricing:
    """Counts under a profile; prices are asked for under one choice of all that is open at a time."""

    def __init__(self, counts: OpCounts, profile: HardwareProfile, mac_rule: MacRule) -> None:
        self.profile, self._traffic = profile, Traffic(counts, profile)
        self._bits: dict[tuple[str, str], list[float]] = {}
        units = _Units(profile)
        arithmetic = {end: _arithmetic(profile, units, end, mac_rule) for end in ENDS}
        self._compute = {end: sum(map(a.gemm_pj, counts.gemms)) * _PJ for end, a in arithmetic.items()}
        self._other = {end: sum(map(a.element_ops_pj, counts.element_ops)) * _PJ for end, a in arithmetic.items()}
        self._peak_s = sum(gemm.macs / (units.rate(gemm) * _TERA) for gemm in counts.gemms if profile.chip)

    def at(self, schedule: str, prices: str, reuse: str, arithmetic: str) -> _Priced:
        """Joules by component, and bits by memory level; each argument is "low", "nominal" or "high"."""
        bits = self.traffic(schedule, reuse)
        joules = {"compute": self._compute[arithmetic], "other": self._other[arithmetic]}
        for level, moved in zip(self.profile.memory, bits, strict=True):
            joules[level.name] = moved * level.energy.per_bit().at(prices) * _PJ
        if self.profile.chip is not None:
            static = self.profile.chip.static_power.at(arithmetic)
            joules["static"] = static * self.time_s(arithmetic, bits[0])
        return _Priced(joules, bits)

    def traffic(self, schedule: str, reuse: str) -> list[float]:
        """Bits by memory level."""
        key = schedule, reuse
        if key not in self._bits:
            self._bits[key] = self._traffic.per_level(schedule, reuse)
        return self._bits[key]

    def time_s(self, end: str, dram_bits: float) -> float:
        """The slower of multipliers and DRAM; much utilisation is the low end."""
        chip, bandwidth = self.profile.chip, self.profile.memory[0].bandwidth
        assert isinstance(chip, Chip) and bandwidth is not None
        return max(
            self._peak_s / chip.utilisation.at(_opposite(end)),
            dram_bits / (bandwidth.at(_opposite(end)) * _GIGABYTE_BITS),
        )


# ---- arithmetic ------------------------------------------------------------------------------------------------------


class _FromParts:
    """MACs and element operations of one end of a profile's `arithmetic`, in pJ."""

    def __init__(self, profile: HardwareProfile, end: str, mac_rule: MacRule) -> None:
        assert profile.arithmetic is not None
        parts = profile.arithmetic
        self._macs, self._rule = MacEnergy(parts, end), mac_rule
        self._add, self._mult = parts.float_add_32.at(end), parts.float_mult_32.at(end)
        self._int_add = parts.int_add_32.at(end)

    def gemm_pj(self, gemm: Gemm) -> float:
        return self._macs.gemm_pj(gemm, self._rule)

    def element_ops_pj(self, op: ElementOps) -> float:
        return (op.fp_add * self._add + op.fp_mul * self._mult + op.int_add * self._int_add) * op.times


class _OnUnits:
    """The same on a chip's own units: each MAC in the cheapest that holds both operands, other operations in fp32."""

    def __init__(self, profile: HardwareProfile, units: _Units, end: str) -> None:
        self._units, self._end = units, end
        self._fp32: float = profile.units["fp32"].energy.at(end)

    def gemm_pj(self, gemm: Gemm) -> float:
        return gemm.macs * self._units.of(gemm).energy.at(self._end)

    def element_ops_pj(self, op: ElementOps) -> float:
        return op.operations * self._fp32


def _arithmetic(profile: HardwareProfile, units: _Units, end: str, mac_rule: MacRule) -> _FromParts | _OnUnits:
    if profile.arithmetic is not None:
        return _FromParts(profile, end, mac_rule)
    if mac_rule != "parts":
        raise ValueError(f"mac_rule {mac_rule!r} needs a profile with arithmetic; {profile.name!r} has units")
    return _OnUnits(profile, units, end)


class _Units:
    """Which of a chip's units each GEMM runs on; found once for each pair of formats."""

    def __init__(self, profile: HardwareProfile) -> None:
        self._profile = profile
        self._found: dict[tuple[NumberFormat, NumberFormat], Unit] = {}

    def of(self, gemm: Gemm) -> Unit:
        formats = gemm.a.format, gemm.b.format
        if formats not in self._found:
            self._found[formats] = self._cheapest(gemm)
        return self._found[formats]

    def rate(self, gemm: Gemm) -> float:
        """Peak TMAC/s of a chip."""
        if self._profile.units:
            return self.of(gemm).rate.value
        assert self._profile.chip is not None and self._profile.chip.rate is not None
        return self._profile.chip.rate.value

    def _cheapest(self, gemm: Gemm) -> Unit:
        a, b, units = gemm.a.format, gemm.b.format, self._profile.units
        fitting = [unit for name, unit in units.items() if _fits(UNIT_FORMATS[name], a, b)]
        if not fitting:
            raise ValueError(
                f"layer {gemm.layer!r}, {gemm.gemm} GEMM: no unit of profile {self._profile.name!r} "
                f"({', '.join(units)}) holds both {a} and {b}"
            )
        return min(fitting, key=lambda unit: unit.energy.value)


def _fits(unit: NumberFormat, a: NumberFormat, b: NumberFormat) -> bool:
    return holds(unit, a) and holds(unit, b)
