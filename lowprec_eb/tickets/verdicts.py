"""What detectors say over recorded runs, and how good what they drew was: the figures of a study of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lowprec_eb.tickets.detectors import DETECTORS, Normalisation, RuleName
from lowprec_eb.tickets.early_bird import EarlyBird
from lowprec_eb.tickets.history import ScoreHistory, replay
from lowprec_eb.tickets.masks import Layout, chance_distance, flatten, keep_largest

PUBLISHED_WINDOW, PUBLISHED_THRESHOLD = 5, 0.1  # You et al. 2020
# 0.1 is this share of the distance of two random masks at ratio 0.5, where it asks the least.
NORMALISED_THRESHOLD = 0.2
EPI_THRESHOLD = 0.017  # a tau of 0.983
_UNITS: dict[Normalisation | None, str] = {None: "", "layer": " / layer", "global": " / global"}


@dataclass(frozen=True)
class Variant:
    """A detector with everything that decides what it says: see :class:`EarlyBird` and :func:`replay`."""

    rule: RuleName
    normalised: Normalisation | None = None
    threshold: float = PUBLISHED_THRESHOLD
    window: int = PUBLISHED_WINDOW
    every: int | None = None
    score_momentum: float = 0.0

    @property
    def name(self) -> str:
        """Rule and unit; the unit is behind the stroke."""
        return self.rule + _UNITS[self.normalised]

    def detector(self, ratio: float) -> EarlyBird:
        """A new one."""
        return EarlyBird(
            ratio,
            self.threshold,
            self.window,
            self.rule,
            normalised=self.normalised,
            score_momentum=self.score_momentum,
        )


def epoch_variants() -> tuple[Variant, ...]:
    """Every rule with every unit, one look an epoch, at published thresholds and what they are in these units."""
    found = []
    for rule, detector in DETECTORS.items():
        if not detector.uses_masks:
            found.append(Variant(rule, threshold=EPI_THRESHOLD))
            continue
        found.append(Variant(rule))
        found += [Variant(rule, unit, NORMALISED_THRESHOLD) for unit in ("global", "layer")]
    return tuple(found)


def step_variants(every: int, steps_per_epoch: int, score_momentum: float) -> tuple[Variant, ...]:
    """The same with a look every so many steps at a moving average; their windows span the same time."""
    window = max(2, round(PUBLISHED_WINDOW * steps_per_epoch / every))
    return tuple(replace(v, window=window, every=every, score_momentum=score_momentum) for v in epoch_variants())


@dataclass(frozen=True)
class Closeness:
    """Of two masks of one ratio: 0 is equal.

    share: of the channels that differ. by_layer: in units of two random masks that keep as many channels of each layer
    (1: as far as by chance). by_ratio: in units of two random masks of that ratio. widths: share of the kept channels
    that are in the same layers, whichever channels they are.
    """

    share: float
    by_layer: float
    by_ratio: float
    widths: float


def closeness(a: Tensor, b: Tensor, layout: Layout) -> Closeness:
    """Of the masks ``a`` and ``b``, bool (channels,).

    Raises:
        ValueError: they keep different numbers of channels.
    """
    kept = int(a.sum())
    if kept != int(b.sum()):
        raise ValueError(f"masks of one ratio are compared, and these keep {kept} and {int(b.sum())} channels")
    share = int((a != b).sum()) / layout.channels
    of_a, of_b = tuple(layout.count(a).tolist()), tuple(layout.count(b).tolist())
    by_chance = chance_distance(of_a, of_b, layout.widths)
    of_ratio = chance_distance((kept,), (kept,), (layout.channels,))
    return Closeness(
        share,
        share / by_chance if by_chance else 0.0,  # where no channel can differ, none does
        share / of_ratio if of_ratio else 0.0,
        sum(map(min, of_a, of_b)) / kept,
    )


def layout_of(history: ScoreHistory) -> Layout:
    return Layout(history.names, history.widths)


def last_mask(history: ScoreHistory, ratio: float) -> Tensor:
    """The mask after the last whole epoch: bool (channels,)."""
    return flatten(keep_largest(history.named(history.rows()[-1]), ratio)).bool()


def epoch_masks(history: ScoreHistory, ratio: float) -> Tensor:
    """The mask after each whole epoch: bool (epochs, channels)."""
    return torch.stack([flatten(keep_largest(history.named(row), ratio)).bool() for row in history.rows()])


def to_final(history: ScoreHistory, ratio: float) -> list[Closeness]:
    """How close the mask after each epoch is to that after the last one."""
    masks = epoch_masks(history, ratio)
    return [closeness(mask, masks[-1], layout_of(history)) for mask in masks]


def settled_after(history: ScoreHistory, ratio: float, within: float = NORMALISED_THRESHOLD) -> int:
    """In hindsight: the epochs after which no mask was farther from the final one than ``within``, by layer."""
    far = [epoch for epoch, of in enumerate(to_final(history, ratio), start=1) if of.by_layer > within]
    return max(far, default=0) + 1


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a detector said of one run at one ratio; times in epochs trained.

    earliest: when it could have fired at all (None: the run is too short). fired, mask, final: when it fired, the mask
    it drew (channels,) and how close that is to the last one; None where it never did.
    """

    variant: Variant
    ratio: float
    earliest: float | None
    fired: float | None = None
    mask: Tensor | None = None
    final: Closeness | None = None


def verdict(history: ScoreHistory, variant: Variant, ratio: float) -> Verdict:
    """Replay one detector over a recorded run."""
    replayed = replay(history, variant.detector(ratio), variant.every)
    needed = DETECTORS[variant.rule](variant.window).memory
    times = [look.step / history.steps_per_epoch for look in replayed.looks]
    earliest = times[needed - 1] if needed <= len(times) else None
    if (look := replayed.fired) is None:
        return Verdict(variant, ratio, earliest)
    mask = replayed.masks[replayed.looks.index(look)]
    final = closeness(mask, last_mask(history, ratio), layout_of(history))
    return Verdict(variant, ratio, earliest, look.step / history.steps_per_epoch, mask, final)


def verdicts(history: ScoreHistory, variants: Sequence[Variant], ratios: Sequence[float]) -> list[Verdict]:
    """Every detector at every ratio."""
    return [verdict(history, variant, ratio) for variant in variants for ratio in ratios]
