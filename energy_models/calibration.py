"""Calibration: factors on the parts of a modelled energy, fitted to measured windows.

A window brings what it took by a sensor, and what the profile predicts for it by component (compute, a level of the
memory, ...). Two or three factors scale groups of components: non-negative least squares on relative errors, since
windows differ in size by orders of magnitude. The component ``seconds`` is the window's length, so that its factor is a
power in W: the static power. It takes the place of a predicted ``static``, whose time is modelled and not measured.

Windows of one group (the epochs of a stage) do the same work and would vouch for each other: every group weighs the
same, the held-out error leaves out one group at a time, and a factor's range is the 95 % interval of least squares
(Student's t) with the groups as observations. Whether the windows can tell the factors apart is the condition number of
the matrix with columns of length 1, and above 30 they cannot (Belsley, Kuh and Welsch, Regression Diagnostics, 1980,
chapter 3).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

SECONDS = "seconds"
MAX_FACTORS = 3
MAX_CONDITION = 30.0
_KNOWN = 0.5  # a factor whose range reaches farther than this share of it is badly known
_CONFIDENCE = 0.95
ARITHMETIC = ("compute", "other")
STATIC = "static"


@dataclass(frozen=True)
class EnergyWindow:
    """One measured stretch of work. ``predicted_j``: joules by component under the profile that is to be calibrated,
    ``group``: what work it was; windows of the same work have the same."""

    name: str
    measured_j: float
    duration_s: float
    predicted_j: Mapping[str, float]
    group: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.measured_j < math.inf or not 0 < self.duration_s < math.inf:
            raise ValueError(
                f"window {self.name!r}: measured_j is {self.measured_j} and duration_s {self.duration_s}; both must be "
                "above 0 and finite"
            )
        if SECONDS in self.predicted_j:
            raise ValueError(f"window {self.name!r}: {SECONDS!r} is duration_s, not a component of predicted_j")
        for component, joules in self.predicted_j.items():
            if not 0 <= joules < math.inf:
                raise ValueError(f"window {self.name!r}: predicted_j[{component!r}] is {joules}")

    def column(self, component: str) -> float:
        """Joules of a component, or the seconds. Raises ValueError for a component that the window has not."""
        if component == SECONDS:
            return self.duration_s
        if component not in self.predicted_j:
            known = ", ".join((*self.predicted_j, SECONDS))
            raise ValueError(f"window {self.name!r} has no component {component!r}; it has {known}")
        return self.predicted_j[component]


@dataclass(frozen=True)
class Factor:
    """What a group of components is multiplied by; for ``("seconds",)`` the power in W.

    ``low`` and ``high`` are the ends of its 95 % interval, not below 0.
    """

    name: str
    components: tuple[str, ...]
    value: float
    low: float
    high: float

    @property
    def unit(self) -> str:
        """``W`` of seconds, else none."""
        return "W" if self.components == (SECONDS,) else "1"


@dataclass(frozen=True)
class FittedWindow:
    """A window's joules: measured, predicted before, after the fit, and by the fit that had not seen its group."""

    window: EnergyWindow
    before_j: float
    fitted_j: float
    held_out_j: float


@dataclass(frozen=True)
class Calibration:
    """Factors and how well they do. Errors are relative, mean over groups of the mean magnitude, and the largest."""

    factors: tuple[Factor, ...]
    windows: tuple[FittedWindow, ...]
    condition: float

    @property
    def groups(self) -> int:
        """Kinds of work among the windows."""
        return len({_group(fitted.window) for fitted in self.windows})

    @property
    def separable(self) -> bool:
        """Whether the windows can tell the factors apart."""
        return self.condition <= MAX_CONDITION

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What makes the factors less than they seem."""
        found = []
        if not self.separable:
            found.append(
                f"the windows cannot tell the factors apart (condition {self.condition:.3g}, above {MAX_CONDITION:g}): "
                "their sum may be right, each of them is not; add windows with another mix of work, or join factors"
            )
        found += [
            f"factor {factor.name} is 0: the windows show nothing of it, or another factor took its part"
            for factor in self.factors
            if factor.value == 0
        ]
        found += [
            f"factor {factor.name} is badly known, {factor.low:.3g} to {factor.high:.3g}: add windows with more and "
            "with less of it (for static power: work that leaves the chip waiting)"
            for factor in self.factors
            if factor.value and factor.high - factor.value > _KNOWN * factor.value
        ]
        return tuple(found)

    def error(self, which: str) -> tuple[float, float]:
        """(mean, largest) relative error of ``before``, ``fitted`` or ``held_out``."""
        errors: dict[str, list[float]] = {}
        for fitted in self.windows:
            joules: float = getattr(fitted, f"{which}_j")
            errors.setdefault(_group(fitted.window), []).append(abs(joules / fitted.window.measured_j - 1))
        means = [sum(group) / len(group) for group in errors.values()]
        return sum(means) / len(means), max(max(group) for group in errors.values())


def default_factors(components: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Three factors: the arithmetic (compute and other), everything else as memory, and static power."""
    arithmetic = tuple(c for c in components if c in ARITHMETIC)
    memory = tuple(c for c in components if c not in (*ARITHMETIC, STATIC))
    parts = (("compute", arithmetic), ("memory", memory), ("static", (SECONDS,)))
    return {name: components for name, components in parts if components}


def calibrate(windows: Sequence[EnergyWindow], factors: Mapping[str, Sequence[str]]) -> Calibration:
    """Fit ``factors`` ({name: components}) to the windows. Components in no factor stay as predicted.

    Raises ValueError: no or more than three factors, a component in two of them or in no window, windows of no more
    groups than there are factors, or a factor of which no window has anything.
    """
    names = {name: tuple(components) for name, components in factors.items()}
    _check(windows, names)
    problem = _Problem.of(windows, names)
    every = np.ones(len(windows), dtype=bool)
    values = problem.fit(every)
    held_out = np.empty(len(windows))
    for group in dict.fromkeys(problem.groups):
        kept = np.array([other != group for other in problem.groups])
        held_out[~kept] = problem.joules(problem.fit(kept))[~kept]
    margin = problem.margin(values)
    ends = np.stack([values, np.maximum(values - margin, 0), values + margin]).tolist()
    before = [sum(window.predicted_j.values()) for window in windows]
    rows = zip(windows, before, problem.joules(values), held_out, strict=True)
    return Calibration(
        tuple(Factor(*row) for row in zip(names, names.values(), *ends, strict=True)),
        tuple(FittedWindow(window, b, float(f), float(h)) for window, b, f, h in rows),
        problem.condition(),
    )


def _check(windows: Sequence[EnergyWindow], factors: Mapping[str, tuple[str, ...]]) -> None:
    if not 1 <= len(factors) <= MAX_FACTORS:
        raise ValueError(f"calibrate: {len(factors)} factors; windows can tell one to {MAX_FACTORS} apart")
    named = [component for components in factors.values() for component in components]
    if SECONDS in named and STATIC in named:
        raise ValueError(f"calibrate: {SECONDS!r} takes the place of {STATIC!r}; name one of them")
    twice = [c for c, n in Counter(named).items() if n > 1]
    if twice:
        raise ValueError(f"calibrate: component {twice[0]!r} is in two factors")
    for name, components in factors.items():
        if SECONDS in components and len(components) > 1:
            raise ValueError(f"calibrate: factor {name!r}: {SECONDS} is a time and cannot be added to joules")
        if not any(window.column(component) for window in windows for component in components):
            raise ValueError(f"calibrate: no window has anything of factor {name!r} ({', '.join(components)})")
    groups = {_group(window) for window in windows}
    if len(groups) <= len(factors):
        raise ValueError(
            f"calibrate: {len(factors)} factors need windows of at least {len(factors) + 1} kinds of work, and these "
            f"are of {len(groups)}; measure other models, batch sizes or precisions, or fit fewer factors"
        )


def _group(window: EnergyWindow) -> str:
    return window.group or window.name


@dataclass(frozen=True)
class _Problem:
    """matrix: joules by window and factor; fixed: joules of what no factor scales."""

    groups: tuple[str, ...]
    measured_j: NDArray[np.float64]
    matrix: NDArray[np.float64]
    fixed_j: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, windows: Sequence[EnergyWindow], factors: Mapping[str, tuple[str, ...]]) -> _Problem:
        groups = tuple(map(_group, windows))
        sizes = Counter(groups)
        free = {component for components in factors.values() for component in components}
        free |= {STATIC} if SECONDS in free else set()
        measured_j = np.array([window.measured_j for window in windows])
        return cls(
            groups,
            measured_j,
            np.array([[sum(map(window.column, parts)) for parts in factors.values()] for window in windows]),
            np.array([sum(j for c, j in window.predicted_j.items() if c not in free) for window in windows]),
            1 / (measured_j * np.sqrt([sizes[group] for group in groups])),
        )

    def fit(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        from scipy.optimize import nnls  # takes as long to import as all the rest

        weights = self.weights[kept]
        scaled = self.matrix[kept] * weights[:, None]
        lengths = np.linalg.norm(scaled, axis=0)
        lengths[lengths == 0] = 1.0  # the left-out group had all of it: the factor is then 0
        values, _ = nnls(scaled / lengths, (self.measured_j - self.fixed_j)[kept] * weights)
        return np.asarray(values / lengths, dtype=np.float64)

    def joules(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self.matrix @ values + self.fixed_j, dtype=np.float64)

    def margin(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Half the interval of each factor, by the linear theory of least squares."""
        from scipy.stats import t as student  # takes as long to import as all the rest

        scaled = self.matrix * self.weights[:, None]
        residuals = (self.measured_j - self.joules(values)) * self.weights
        freedom = len(set(self.groups)) - len(values)
        spread = np.diag(np.linalg.pinv(scaled.T @ scaled)) * (residuals @ residuals) / freedom
        return np.asarray(student.ppf((1 + _CONFIDENCE) / 2, freedom) * np.sqrt(spread), dtype=np.float64)

    def condition(self) -> float:
        scaled = self.matrix * self.weights[:, None]
        return float(np.linalg.cond(scaled / np.linalg.norm(scaled, axis=0)))
