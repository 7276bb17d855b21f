"""The early-bird detector (You et al., "Drawing Early-Bird Tickets", ICLR 2020, algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lowprec_eb.tickets.importance import gamma_scores
from lowprec_eb.tickets.masks import Masks, keep_largest, mask_distance
from lowprec_eb.tickets.ticket import Ticket

Rule = Literal["window", "consecutive"]


@dataclass(frozen=True)
class TicketSettings:
    """When a ticket is drawn and how much it drops.

    ratio: share of channels to drop. sparsity: s of the gamma penalty s * |gamma| in the training before it.
    threshold, window, rule: of :class:`EarlyBird`. deadline: the epoch by which a ticket is taken in any case.
    """

    ratio: float = 0.5
    sparsity: float = 1e-4
    threshold: float = 0.1
    window: int = 5
    rule: Rule = "window"
    deadline: int = 10

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must be between 0 and 1, got {self.ratio}")
        if not 0 <= self.sparsity < math.inf:
            raise ValueError(f"sparsity must be 0 or more and finite, got {self.sparsity}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {self.threshold}")
        if self.window < 2:
            raise ValueError(f"window must be at least 2, got {self.window}")
        if self.deadline < 1:
            raise ValueError(f"deadline must be at least 1 epoch, got {self.deadline}")


class EarlyBird:
    """Watches the channel mask of a model in training and says when it has settled.

    The sources disagree on the rule, so both are here by name:

    - ``"window"`` (the public code): of the last ``window`` masks, compare the newest with each of the others; a ticket
      when no distance exceeds ``threshold``;
    - ``"consecutive"`` (the paper): the last ``window`` distances between the masks of consecutive epochs; a ticket
      when
      all are below ``threshold``.

    Args:
        ratio: share of channels to drop.
        groups: None, one group per BatchNorm as in the paper.
    """

    def __init__(
        self, ratio: float, threshold: float = 0.1, window: int = 5, rule: Rule = "window", groups: None = None
    ) -> None:
        TicketSettings(ratio=ratio, threshold=threshold, window=window)  # the same checks
        if rule not in ("window", "consecutive"):
            raise ValueError(f"unknown rule {rule!r}; 'window' or 'consecutive'")
        if groups is not None:
            raise ValueError("groups other than None (one per BatchNorm) are not supported yet")
        self.ratio, self.threshold, self.window, self.rule = ratio, threshold, window, rule
        self.epoch = 0
        self.masks: list[Masks] = []  # the newest last, at most `window`
        self.consecutive: list[float] = []  # distances of neighbouring epochs, at most `window`
        self.best: Ticket | None = None  # the most settled mask so far

    def update(self, model: nn.Module, precision: str | None = None) -> Ticket | None:
        """Look at the model once an epoch; the ticket if it has appeared. ``precision`` is noted on the ticket."""
        mask = keep_largest(gamma_scores(model), self.ratio)
        self.epoch += 1
        if self.masks:
            self.consecutive = [*self.consecutive, mask_distance(self.masks[-1], mask)][-self.window :]
        self.masks = [*self.masks, mask][-self.window :]
        distances = self.distances()
        candidate = Ticket(mask, self.ratio, self.epoch, tuple(distances), precision=precision)
        if self.best is None or self._is_more_settled(candidate, self.best):
            self.best = candidate
        return candidate if self._fires(distances) else None

    def distances(self) -> list[float]:
        """The mask distances that the rule looks at now."""
        if self.rule == "consecutive":
            return list(self.consecutive)
        return [mask_distance(older, self.masks[-1]) for older in self.masks[:-1]]

    def _fires(self, distances: list[float]) -> bool:
        if self.rule == "consecutive":
            return len(distances) == self.window and max(distances) < self.threshold
        return len(distances) == self.window - 1 and max(distances) <= self.threshold

    @staticmethod
    def _is_more_settled(a: Ticket, b: Ticket) -> bool:
        """A mask that was compared with more others counts as more settled; then the smaller largest distance."""
        return (len(a.distances), -max(a.distances, default=1.0)) >= (len(b.distances), -max(b.distances, default=1.0))

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "masks": [dict(mask) for mask in self.masks],
            "consecutive": list(self.consecutive),
            "best": None if self.best is None else self.best.to_tree(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.masks = state["epoch"], list(state["masks"])
        self.consecutive = list(state["consecutive"])
        self.best = None if state["best"] is None else Ticket.from_tree(state["best"])
