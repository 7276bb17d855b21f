"""When a mask has settled: the rules of the literature, each named after its source.

A rule sees numbers alone: how far each mask was from the ones before it, and how many channels it kept of each layer.
It keeps no state of its own, so any rule can be run over any sequence of masks, live or from a saved history.

In every rule a small distance means a settled mask, and ``window`` is the length of what it looks back on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

RuleName = Literal["window", "consecutive", "single", "pairwise", "epi"]


@dataclass(frozen=True)
class Look:
    """What one look at a mask found.

    distances: to the masks of the looks before it, the oldest of them first; at most ``Detector.compared`` of them.
    widths: channels kept by layer; empty where nobody asked for them.
    """

    distances: tuple[float, ...]
    widths: tuple[int, ...] = ()


class Detector(Protocol):
    """A rule; ``window`` is the number of masks or distances that it looks back on."""

    uses_masks: ClassVar[bool]  # it compares masks; otherwise their widths alone

    @property
    def compared(self) -> int:
        """With how many of the masks before it a new one is compared."""

    @property
    def memory(self) -> int:
        """How many looks it needs, the newest included, before it can fire."""

    def distances(self, looks: Sequence[Look]) -> tuple[float, ...]:
        """What it holds against its threshold after ``looks``, the newest last."""

    def fires(self, looks: Sequence[Look], threshold: float) -> bool:
        """Whether the newest mask is a ticket."""


@dataclass(frozen=True)
class Window:
    """The newest of ``window`` masks against each of the others; a ticket when no distance exceeds the threshold.

    Source: the public code of You et al. 2020 (``EarlyBird`` in main.py: five masks, four distances, ``> 0.1``).
    """

    window: int
    uses_masks: ClassVar[bool] = True

    @property
    def compared(self) -> int:
        return self.window - 1

    @property
    def memory(self) -> int:
        return self.window

    def distances(self, looks: Sequence[Look]) -> tuple[float, ...]:
        return looks[-1].distances[-self.compared :]

    def fires(self, looks: Sequence[Look], threshold: float) -> bool:
        distances = self.distances(looks)
        return len(distances) == self.compared and max(distances) <= threshold


@dataclass(frozen=True)
class Consecutive:
    """The last ``window`` distances of neighbouring masks; a ticket when all are below the threshold.

    Source: You et al. 2020, algorithm 1 (a first-in-first-out queue Q of distances, max(Q) < epsilon) and the public
    code's README ("the last five recorded mask distances are all smaller").
    """

    window: int
    uses_masks: ClassVar[bool] = True

    @property
    def compared(self) -> int:
        return 1

    @property
    def memory(self) -> int:
        return self.window + 1

    def distances(self, looks: Sequence[Look]) -> tuple[float, ...]:
        return tuple(look.distances[-1] for look in looks[-self.window :] if look.distances)

    def fires(self, looks: Sequence[Look], threshold: float) -> bool:
        distances = self.distances(looks)
        return len(distances) == self.window and max(distances) < threshold


@dataclass(frozen=True)
class Single:
    """The newest distance of neighbouring masks; a ticket when it is below the threshold. ``window`` has no meaning.

    Source: You et al. 2020, section 3.3, and the README: tickets are drawn "when such distance is smaller than a
    threshold". The five distances of ``consecutive`` come as a precaution in the sentence after it.
    """

    window: int
    uses_masks: ClassVar[bool] = True
    compared: ClassVar[int] = 1
    memory: ClassVar[int] = 2

    def distances(self, looks: Sequence[Look]) -> tuple[float, ...]:
        return looks[-1].distances[-1:]

    def fires(self, looks: Sequence[Look], threshold: float) -> bool:
        distances = self.distances(looks)
        return bool(distances) and distances[0] < threshold


@dataclass(frozen=True)
class Pairwise:
    """All pairs among the last ``window`` masks; a ticket when no distance exceeds the threshold.

    The strictest reading of "a queue of masks and the distances among them": a square block on the diagonal of the
    paper's matrix of distances (You et al. 2020, figure 3) that is settled as a whole. No source states it as a rule.
    """

    window: int
    uses_masks: ClassVar[bool] = True

    @property
    def compared(self) -> int:
        return self.window - 1

    @property
    def memory(self) -> int:
        return self.window

    def distances(self, looks: Sequence[Look]) -> tuple[float, ...]:
        block = looks[-self.window :]
        return tuple(d for place, look in enumerate(block) if place for d in look.distances[-place:])

    def fires(self, looks: Sequence[Look], threshold: float) -> bool:
        distances = self.distances(looks)
        return len(distances) == self.window * self.compared // 2 and max(distances) <= threshold


@dataclass(frozen=True)
class EarlyPruningIndicator:
    """The widths of the newest mask against those of each of the ``window`` masks before it, whichever channels stay.

    Source: Shen et al., "When to Prune? A Policy towards Early Structural Pruning", CVPR 2022, section 3:
    similarity of two structures psi(a, b) = 1 - mean over layers of |a_l - b_l| / (a_l + b_l), with the channels kept
    a_l; EPI_t = mean over j = 1..r of psi(t, t - j); prune when EPI_t is above tau and above the five values before
    it. Here the distance is 1 - EPI, so that its threshold is 1 - tau, and r is ``window``.

    Not known for certain, as only the abstract and others' accounts of the formulas were at hand: r (accounts have 5
    and 20), tau (one account quotes 0.983 for scores by magnitude and 0.944 for scores by gradient), and whether
    "above the five values before" allows equality. It does here: widths that have come to rest have EPI = 1 for good,
    and with a strict comparison they would never be pruned.
    """

    window: int
    uses_masks: ClassVar[bool] = False
    compared: ClassVar[int] = 0
    before: ClassVar[int] = 5  # values that the newest one must not be worse than

    @property
    def memory(self) -> int:
        return self.window + 1 + self.before

    def distances(self, looks: Sequence[Look]) -> tuple[float, ...]:
        earlier = looks[-self.window - 1 : -1]
        if len(earlier) < self.window:
            return ()
        return (sum(_width_distance(looks[-1].widths, look.widths) for look in earlier) / self.window,)

    def fires(self, looks: Sequence[Look], threshold: float) -> bool:
        if len(looks) < self.memory:
            return False
        ends = range(len(looks) - self.before, len(looks) + 1)
        *before, newest = (self.distances(looks[:end])[0] for end in ends)
        return newest < threshold and newest <= min(before)


def _width_distance(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    return sum(abs(i - j) / (i + j) for i, j in zip(a, b, strict=True)) / len(a)


DETECTORS: dict[RuleName, type[Window | Consecutive | Single | Pairwise | EarlyPruningIndicator]] = {
    "window": Window,
    "consecutive": Consecutive,
    "single": Single,
    "pairwise": Pairwise,
    "epi": EarlyPruningIndicator,
}
