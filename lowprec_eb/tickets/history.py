"""A saved score history, and detectors run over it: the same verdicts as live, without training again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lowprec_eb import checkpoints
from lowprec_eb.tickets.detectors import Normalisation, RuleName
from lowprec_eb.tickets.early_bird import EarlyBird
from lowprec_eb.tickets.masks import Layout
from lowprec_eb.tickets.scores import Scores
from lowprec_eb.tickets.ticket import Ticket

_KIND = "score history"


@dataclass(frozen=True, eq=False)
class ScoreHistory:
    """The scores of one training run, as they were before any moving average.

    Args:
        names, widths: of the layers or groups, in the order of the scores.
        steps_per_epoch: of the training.
        first_epoch: the epoch that the run began with.
        steps: of each row, how many steps the run had taken, rising.
        scores: (rows, channels), on the CPU.
    """

    names: tuple[str, ...]
    widths: tuple[int, ...]
    steps_per_epoch: int
    first_epoch: int
    steps: tuple[int, ...]
    scores: Tensor

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.steps), sum(self.widths)):
            wanted = (len(self.steps), sum(self.widths))
            raise ValueError(f"scores must be (rows, channels) = {wanted}, not {tuple(self.scores.shape)}")
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps must rise from row to row")

    def epoch(self, step: int) -> int:
        """How many epochs of the schedule had begun after ``step`` steps."""
        return self.first_epoch - (-step // self.steps_per_epoch)

    def rows(self, every: int | None = None) -> list[int]:
        """The rows of looks after every so many steps; None: after each whole epoch.

        Raises:
            ValueError: the history was recorded less often.
        """
        stride = self.steps_per_epoch if every is None else every
        found = {step: row for row, step in enumerate(self.steps)}
        wanted = range(stride, (self.steps[-1] if self.steps else 0) + 1, stride)
        if missing := [step for step in wanted if step not in found]:
            raise ValueError(
                f"no scores were recorded after step {missing[0]}, so looks every {stride} steps cannot be replayed; "
                "record with ticket.check_every at that number or a divisor of it"
            )
        return [found[step] for step in wanted]

    @property
    def epoch_scores(self) -> Tensor:
        """The scores after each whole epoch: (epochs, channels)."""
        return self.scores[self.rows()]

    def named(self, row: int) -> Scores:
        """One row's scores by layer."""
        return Layout(self.names, self.widths).split(self.scores[row])

    def save(self, path: str | Path) -> None:
        """One safetensors file; everything but the scores is in its JSON header."""
        meta = {
            "kind": _KIND,
            "names": list(self.names),
            "widths": list(self.widths),
            "steps_per_epoch": self.steps_per_epoch,
            "first_epoch": self.first_epoch,
            "steps": list(self.steps),
        }
        checkpoints.save(path, {"scores": self.scores}, meta)

    @classmethod
    def load(cls, path: str | Path) -> ScoreHistory:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged or holds something else.
        """
        tensors, meta = checkpoints.load(path)
        if meta.get("kind") != _KIND:
            raise ValueError(f"{path}: not a score history")
        names, widths, steps = (tuple(meta[key]) for key in ("names", "widths", "steps"))
        return cls(names, widths, meta["steps_per_epoch"], meta["first_epoch"], steps, tensors["scores"])


@dataclass(frozen=True)
class ReplayedLook:
    """One look: steps taken, epochs begun, what the rule held against its threshold, and whether it fired."""

    step: int
    epoch: int
    distances: tuple[float, ...]
    fired: bool

    @property
    def largest(self) -> float | None:
        """The distance that decides; None while the rule has nothing to compare."""
        return max(self.distances, default=None)


@dataclass(frozen=True, eq=False)
class Replay:
    """What a detector said over a whole history; it goes on looking after its first ticket.

    ``ticket`` is the first one (None: it never fired), ``best`` the most settled mask, which a search takes at its
    deadline, ``masks`` bool (looks, channels).
    """

    rule: RuleName
    ratio: float
    threshold: float
    normalised: Normalisation | None
    steps_per_epoch: int
    looks: tuple[ReplayedLook, ...]
    masks: Tensor
    ticket: Ticket | None
    best: Ticket | None

    @property
    def fired(self) -> ReplayedLook | None:
        """The look of the ticket."""
        return next((look for look in self.looks if look.fired), None)


def replay(history: ScoreHistory, detector: EarlyBird, every: int | None = None, deadline: int | None = None) -> Replay:
    """Run a new ``detector`` over saved scores, looking after ``every`` so many steps (None: after each epoch) until
    the end of epoch ``deadline`` (None: until the end of the history).

    It sees what it would have seen in training and so says the same: masks, distances and ticket are equal, bit for
    bit, to those of a live search over this run.

    Raises:
        ValueError: the detector has looked at something before; the history was recorded less often.
    """
    if detector.looked:
        raise ValueError("replay needs a new detector, and this one has looked at scores before")
    looks, masks, ticket = [], [], None
    for row in history.rows(every):
        step = history.steps[row]
        epoch = history.epoch(step)
        if deadline is not None and epoch > deadline:
            break
        found = detector.observe(history.named(row), epoch=epoch)
        ticket = ticket or found
        looks.append(ReplayedLook(step, epoch, tuple(detector.distances()), found is not None))
        masks.append(detector.mask)
    return Replay(
        rule=detector.rule,
        ratio=detector.ratio,
        threshold=detector.threshold,
        normalised=detector.normalised,
        steps_per_epoch=history.steps_per_epoch,
        looks=tuple(looks),
        masks=_stacked(masks, history),
        ticket=ticket,
        best=detector.best,
    )


def _stacked(masks: Sequence[Tensor | None], history: ScoreHistory) -> Tensor:
    """A look that found nothing to rank kept nothing."""
    none = torch.zeros(sum(history.widths), dtype=torch.bool)
    return torch.stack([none if mask is None else mask for mask in masks]) if masks else none[None][:0]
