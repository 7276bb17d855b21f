"""Numbers as people read them: three digits, SI prefixes, ratios."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from energy_models.energy import Range
from lowprec_eb.report.summary import Spread

_PREFIXES = {-12: "p", -9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P", 18: "E"}


@dataclass(frozen=True)
class Scale:
    """An SI prefix and the factor it stands for; one scale for a whole column or axis keeps its numbers comparable."""

    prefix: str
    factor: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Scale:
        """The prefix that puts the median of the positive values between 1 and 1000 (none, if there are none)."""
        positive = [value for value in values if value > 0]
        if not positive:
            return cls("", 1.0)
        exponent = 3 * math.floor(math.log10(_rounded(statistics.median(positive))) / 3)
        exponent = min(max(exponent, min(_PREFIXES)), max(_PREFIXES))
        return cls(_PREFIXES[exponent], 10.0**exponent)

    def text(self, value: float) -> str:
        """The scaled number with three digits, without its unit."""
        return three_digits(value / self.factor)


def three_digits(value: float) -> str:
    """Three significant digits, never in exponent notation: 0.0123, 12.3, 1234."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(_rounded(value))))
    return f"{value:.{max(digits, 0)}f}"


def energy_text(energy_j: float) -> str:
    """As "12.3 mJ"."""
    scale = Scale.of([energy_j])
    return f"{scale.text(energy_j)} {scale.prefix}J"


def ratio_text(ratio: Range, *, ends: bool = True) -> str:
    """As "x0.123 (0.110-0.150)"."""
    nominal = f"x{three_digits(ratio.nominal)}"
    return f"{nominal} ({three_digits(ratio.low)}-{three_digits(ratio.high)})" if ends else nominal


def percent_text(spread: Spread) -> str:
    """A fraction as "97.20 ± 0.40", in percent; without a spread for one seed."""
    mean = f"{100 * spread.mean:.2f}"
    return mean if spread.std is None else f"{mean} ± {100 * spread.std:.2f}"


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
