"""Numbers as people read them: three digits and an SI prefix."""

from __future__ import annotations

import math

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")


def si_text(value: float, unit: str = "") -> str:
    """As "4.09 G" or, with a unit, "4.09 GB"; values below a thousand without prefix, 0 as "0"."""
    if value < 0:
        return "-" + si_text(-value, unit)
    if value == 0:
        return f"0 {unit}".strip()
    rounded = float(f"{value:.3g}")
    step = min(max(0, math.floor(math.log10(rounded) / 3)), len(_PREFIXES) - 1)
    scaled = rounded / 1000**step
    if step == 0 and rounded == int(rounded):
        return f"{rounded:.0f} {unit}".strip()
    digits = max(0, 2 - math.floor(math.log10(scaled)))
    return f"{scaled:.{digits}f} {_PREFIXES[step]}{unit}".strip()


def share_text(part: float, whole: float) -> str:
    """As "12.3 %"; what is there and rounds to nothing is "<0.1 %"."""
    if not whole:
        return ""
    percent = 100 * part / whole
    return "<0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def aligned(rows: list[list[str]]) -> str:
    """Lines of columns, the first one to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
