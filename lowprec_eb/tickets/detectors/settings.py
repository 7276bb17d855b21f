"""When a ticket is drawn and how much it drops, as settings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

from lowprec_eb.tickets.detectors.rules import DETECTORS, RuleName
from lowprec_eb.tickets.score_settings import Grouping, ScoreSettings, StandingScore

Normalisation = Literal["global", "layer"]


@dataclass(frozen=True)
class TicketSettings:
    """When a ticket is drawn and how much it drops.

    ratio: share of channels to drop. also: further ratios whose tickets the same search draws, each at its own time;
    the search then ends when all have appeared. sparsity: s of the gamma penalty s * |gamma| in the training before it.
    threshold, window, rule, normalised, score_momentum: of :class:`EarlyBird`. check_every: the detector looks after
    every so many steps, counted over the whole search, and may end it inside an epoch; None: after each epoch.
    deadline: the epoch by which a ticket is taken in any case. groups, score: of :class:`ScoreSettings`.
    """

    ratio: float = 0.5
    sparsity: float = 1e-4
    threshold: float = 0.1
    window: int = 5
    rule: RuleName = "window"
    deadline: int = 10
    normalised: Normalisation | None = None
    check_every: int | None = None
    score_momentum: float = 0.0
    also: tuple[float, ...] = ()
    groups: Grouping = "batch_norm"
    score: StandingScore = "gamma"

    def __post_init__(self) -> None:
        self._check_kinds()
        for ratio in self.ratios:
            if not 0 < ratio < 1:
                raise ValueError(f"ratio must be between 0 and 1, got {ratio}")
        if len(set(self.ratios)) < len(self.ratios):
            raise ValueError(f"also must name ratios beside ratio ({self.ratio}), each once, got {self.also}")
        if not 0 <= self.sparsity < math.inf:
            raise ValueError(f"sparsity must be 0 or more and finite, got {self.sparsity}")
        self._check_rule()
        if self.deadline < 1:
            raise ValueError(f"deadline must be at least 1 epoch, got {self.deadline}")
        if self.check_every is not None and self.check_every < 1:
            raise ValueError(f"check_every must be at least 1 step, got {self.check_every}")
        if not 0 <= self.score_momentum < 1:
            raise ValueError(f"score_momentum must be in [0, 1), got {self.score_momentum}")

    def _check_kinds(self) -> None:
        numbers: dict[str, Any] = {name: getattr(self, name) for name in ("sparsity", "threshold", "score_momentum")}
        numbers |= {"ratio": self.ratio} | {f"also[{place}]": ratio for place, ratio in enumerate(self.also)}
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f"{name} must be a number, got {value!r}")
        whole: dict[str, Any] = {"window": self.window, "deadline": self.deadline}
        if self.check_every is not None:
            whole["check_every"] = self.check_every
        for name, value in whole.items():
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise TypeError(f"{name} must be a whole number, got {value!r}")

    def _check_rule(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {self.threshold}")
        if self.window < 2:
            raise ValueError(f"window must be at least 2, got {self.window}")
        if self.rule not in DETECTORS:
            raise ValueError(f"unknown rule {self.rule!r}; one of {', '.join(map(repr, DETECTORS))}")
        if self.normalised not in (None, "global", "layer"):
            raise ValueError(f"normalised must be 'global', 'layer' or None, got {self.normalised!r}")
        if self.normalised is not None and not DETECTORS[self.rule].uses_masks:
            raise ValueError(f"normalised is for rules that compare masks; {self.rule!r} compares widths: leave it out")

    def of_detector(self) -> dict[str, Any]:
        """How masks are compared: arguments of :class:`EarlyBird` and :class:`EarlyBirds`."""
        names = ("threshold", "window", "rule", "normalised", "score_momentum")
        return {name: getattr(self, name) for name in names}

    def check_deadline(self, steps_per_epoch: int) -> None:
        """Raise ValueError if the rule cannot fire by the deadline, however settled the masks are."""
        looks = self.looks(self.deadline, steps_per_epoch)
        if looks < self.memory:
            every = "" if self.check_every is None else f" every {self.check_every} of {steps_per_epoch} steps an epoch"
            raise ValueError(
                f"ticket.deadline ({self.deadline} epochs) allows {looks} looks{every}: the {self.rule!r} rule with "
                f"window {self.window} cannot fire before the look {self.memory}"
            )

    @property
    def memory(self) -> int:
        """How many looks the rule needs before it can fire."""
        return DETECTORS[self.rule](self.window).memory

    @property
    def scoring(self) -> ScoreSettings:
        """What the ticket is of."""
        return ScoreSettings(self.groups, self.score)

    @property
    def ratios(self) -> tuple[float, ...]:
        """All that the search draws tickets for."""
        return (self.ratio, *self.also)

    def looks(self, epochs: int, steps_per_epoch: int) -> int:
        """How often the detector has looked after so many whole epochs."""
        return epochs if self.check_every is None else epochs * steps_per_epoch // self.check_every
