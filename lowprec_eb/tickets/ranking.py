"""The order in which channels are dropped, and the masks after so many of them: protection, least widths, multiples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lowprec_eb.tickets.masks import Masks


@dataclass(frozen=True)
class Widths:
    """The widths that a group may have, ascending; the last one is its present width."""

    allowed: tuple[int, ...]

    @classmethod
    def of(cls, width: int, least: int, multiple: int, *, protected: bool = False) -> Widths:
        """Multiples of ``multiple`` from ``least`` on, and the present ``width``, which always is allowed.

        A group that is narrower than the multiple keeps all: hardware that works in multiples would fill it up again.
        """
        below = () if protected else range(multiple, width, multiple)
        return cls((*(w for w in below if w >= least), width))

    def nearest(self, width: int) -> int:
        """The allowed width that is nearest; of two, the larger."""
        return min(self.allowed, key=lambda allowed: (abs(allowed - width), -allowed))

    def below(self, width: int) -> int | None:
        """The next smaller allowed width."""
        return max((allowed for allowed in self.allowed if allowed < width), default=None)


class Ranking:
    """Channels in the order in which they are dropped, over all groups together.

    The smallest score goes first; of equal ones, those of later groups, then the higher channel numbers. The best
    channels of each group, as many as its least allowed width, never go.
    """

    def __init__(self, scores: Mapping[str, Tensor], widths: Mapping[str, Widths]) -> None:
        self.names, self.widths = list(widths), widths
        flat = torch.cat([scores[name].detach().flatten().double() for name in self.names]).cpu().numpy()
        self.sizes = [scores[name].numel() for name in self.names]
        ends = np.cumsum(self.sizes).tolist()
        self._parts = [slice(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]
        self.scores = [flat[part] for part in self._parts]
        self._best = [np.argsort(-scores, kind="stable") for scores in self.scores]  # channels, the best one first
        stays = np.zeros(len(flat), np.bool_)
        for name, part, best in zip(self.names, self._parts, self._best, strict=True):
            stays[part.start + best[: widths[name].allowed[0]]] = True
        order = np.argsort(-flat, kind="stable")[::-1]
        self._order = order[~stays[order]]

    @property
    def droppable(self) -> int:
        """Channels that may go."""
        return len(self._order)

    def kept(self, dropped: int) -> tuple[int, ...]:
        """Widths by group after so many channels were dropped, each then rounded to the nearest allowed one."""
        stays = np.ones(sum(self.sizes), np.bool_)
        stays[self._order[:dropped]] = False
        left = [int(stays[part].sum()) for part in self._parts]
        return tuple(self.widths[name].nearest(width) for name, width in zip(self.names, left, strict=True))

    def masks(self, kept: tuple[int, ...]) -> Masks:
        """The best channels of each group, as many as ``kept`` says."""
        found = {}
        for name, size, best, width in zip(self.names, self.sizes, self._best, kept, strict=True):
            mask = torch.zeros(size, dtype=torch.bool)
            mask[torch.from_numpy(best[:width].copy())] = True
            found[name] = mask
        return found

    def narrower(self, kept: tuple[int, ...], place: int) -> tuple[int, ...] | None:
        """The widths with the group at ``place`` one step narrower, if it can be."""
        width = self.widths[self.names[place]].below(kept[place])
        return None if width is None else (*kept[:place], width, *kept[place + 1 :])

    def by_loss(self, kept: tuple[int, ...]) -> list[int]:
        """The places of groups that can be narrower; that whose next step loses the least score per channel first."""
        steps = {place: self.narrower(kept, place) for place in range(len(kept))}
        lost = {
            place: float(self.scores[place][self._best[place][step[place] : kept[place]]].mean())
            for place, step in steps.items()
            if step is not None
        }
        return sorted(lost, key=lambda place: lost[place])
