"""One ratio's mask, watched from look to look: compared on the device, judged on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lowprec_eb.tickets.detectors.rules import Detector, Look
from lowprec_eb.tickets.detectors.settings import Normalisation
from lowprec_eb.tickets.masks import Layout, chance_distance, keep_first


@dataclass(frozen=True, eq=False)
class Candidate:
    """A mask that may become a ticket: flat bool (channels,), with the distances that were held against the threshold
    and when it was seen."""

    mask: Tensor
    distances: tuple[float, ...]
    epoch: int
    precision: str | None

    @property
    def _rank(self) -> tuple[int, float]:
        return (len(self.distances), -max(self.distances, default=1.0))

    def is_more_settled(self, earlier: Candidate) -> bool:
        """A mask that was compared with more others counts as more settled; then the smaller largest distance.

        Of two that are equally settled the later one does: more training stands behind it.
        """
        return self._rank >= earlier._rank


class Watch:
    """Draws the mask of one ratio at each look and asks a detector whether it has settled.

    A look has two halves, so that several ratios share one transfer to the host: :meth:`compare` works on the device
    and gives whole numbers, :meth:`judge` takes them as Python's.
    """

    def __init__(
        self, ratio: float, detector: Detector, threshold: float, normalised: Normalisation | None = None
    ) -> None:
        self.ratio, self.detector, self.threshold, self.normalised = ratio, detector, threshold, normalised
        self.masks: Tensor | None = None  # (masks, channels), the newest last: what the next one is compared with
        self.mask: Tensor | None = None  # (channels,) of this look
        self.looks: list[Look] = []  # as many as the detector needs, the newest last
        self.best: Candidate | None = None  # the most settled mask so far

    @property
    def _counts_widths(self) -> bool:
        return self.normalised == "layer" or not self.detector.uses_masks

    def compare(self, order: Tensor, layout: Layout) -> list[Tensor]:
        """Draw the mask from the channels in the order in which they are kept; differing channels to each mask before
        it, the oldest first, and channels kept by layer where they are needed, int64 on the device."""
        mask = keep_first(order, layout.kept(self.ratio), layout)
        numbers = []
        if self.masks is not None and self.detector.compared:
            self.masks = self.masks.to(mask.device)  # a resumed queue may be elsewhere
            numbers.append((self.masks != mask).sum(1))
        if self._counts_widths:
            numbers.append(layout.count(mask))
        self.mask = mask
        return numbers

    def judge(self, numbers: Sequence[int], layout: Layout, epoch: int, precision: str | None) -> Candidate | None:
        """The mask of this look as a candidate, if the detector fires; ``numbers`` are those of :meth:`compare`."""
        assert self.mask is not None
        widths = tuple(numbers[-len(layout.names) :]) if self._counts_widths else ()
        differing = numbers[: len(numbers) - len(widths)]
        self.looks = [*self.looks, Look(self._distances(differing, widths, layout), widths)][-self._memory :]
        if self.detector.compared:
            queue = self.mask[None] if self.masks is None else torch.cat([self.masks, self.mask[None]])
            self.masks = queue[-self.detector.compared :]
        candidate = Candidate(self.mask, self.distances(), epoch, precision)
        if self.best is None or candidate.is_more_settled(self.best):
            self.best = candidate
        return candidate if self.detector.fires(self.looks, self.threshold) else None

    @property
    def _memory(self) -> int:
        return max(self.detector.memory, self.detector.compared + 1)

    def _distances(self, differing: Sequence[int], widths: tuple[int, ...], layout: Layout) -> tuple[float, ...]:
        shares = [count / layout.channels for count in differing]
        if self.normalised is None:
            return tuple(shares)
        if self.normalised == "global":
            kept = (layout.kept(self.ratio),)
            chances = [chance_distance(kept, kept, (layout.channels,))] * len(shares)
        else:
            earlier = self.looks[len(self.looks) - len(shares) :]
            chances = [chance_distance(look.widths, widths, layout.widths) for look in earlier]
        # Where no channel can differ, none does.
        return tuple(share / chance if chance else 0.0 for share, chance in zip(shares, chances, strict=True))

    def distances(self) -> tuple[float, ...]:
        """What the detector holds against its threshold now."""
        return self.detector.distances(self.looks) if self.looks else ()

    def state_dict(self) -> dict[str, Any]:
        return {
            "masks": self.masks,
            "looks": [(look.distances, look.widths) for look in self.looks],
            "best": None if self.best is None else dict(self.best.__dict__),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.masks, self.mask = state["masks"], None
        self.looks = [Look(*look) for look in state["looks"]]
        self.best = None if state["best"] is None else Candidate(**state["best"])
