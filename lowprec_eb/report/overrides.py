"""A finished comparison under another margin, confidence or choice of baselines."""

from __future__ import annotations

from dataclasses import replace

from lowprec_eb.precision import nearest
from lowprec_eb.report.findings import baseline_arms
from lowprec_eb.report.statistics_sentences import percent, points_text
from lowprec_eb.report.summary import Comparison, summarise


def with_statistics(
    comparison: Comparison,
    margin: float | None = None,
    confidence: float | None = None,
    baselines: tuple[str, ...] | None = None,
) -> Comparison:
    """The same outcomes, tested otherwise; a note says what differs from the settings of the run.

    Args:
        margin: difference in accuracy (a fraction) that counts as none. confidence: level of intervals and verdicts.
            baselines: names of the arms that the others are tested against. None: as it is.

    Raises:
        ValueError: a margin outside [0, 1), a confidence outside (0.5, 1), or a baseline that is no arm.
    """
    known = list(dict.fromkeys([o.arm for o in comparison.outcomes] + [o.arm for o in comparison.diverged]))
    for name in baselines or ():
        if name not in known:
            raise ValueError(f"baseline: no arm is named {name!r}{nearest(name, known) or f'; there are {known}'}")
    found = replace(
        comparison,
        margin=comparison.margin if margin is None else margin,
        confidence=comparison.confidence if confidence is None else confidence,
        baselines=comparison.baselines if baselines is None else tuple(dict.fromkeys(baselines)),
    )
    pairs = zip(_told(found).items(), _told(comparison).values(), strict=True)
    changed = [f"{name} {new} (the run: {old})" for (name, new), old in pairs if new != old]
    if not changed:
        return found
    note = f"Tested afterwards with other settings than the run's: {'; '.join(changed)}. Nothing was trained again."
    return replace(found, notes=(note, *comparison.notes))


def _told(comparison: Comparison) -> dict[str, str]:
    usual = tuple(arm.arm for arm in baseline_arms(comparison, summarise(comparison)))
    return {
        "margin": points_text(comparison.margin),
        "confidence": percent(comparison.confidence),
        "baselines": ", ".join(comparison.baselines or usual) or "none",
    }
