"""What one pipeline delivered for one seed: plain data that the report reads."""

from __future__ import annotations

from dataclasses import dataclass

from lowprec_eb.instability import Instability


@dataclass(frozen=True)
class TicketSummary:
    """How a ticket was drawn.

    ``epoch`` counts the epochs trained before it; ``on_time`` is False when none had appeared by the deadline and the
    best so far was taken; ``distance`` is the largest mask distance that the detector saw (None: no detector was
    involved).
    """

    epoch: int
    on_time: bool
    distance: float | None


@dataclass(frozen=True)
class MatchSummary:
    """How well a dense run was made to cost what another arm does.

    ``quantity`` is "flops" (of training, two a MAC) or "energy" (modelled, nominal J of everything), ``target`` what
    the other ``arm`` costs, ``cost`` what this one does after ``epochs``, the nearest whole number of them.
    """

    arm: str
    quantity: str
    target: float
    cost: float
    epochs: int

    @property
    def error(self) -> float:
        """How much more this arm costs, as a share of the other's cost."""
        return self.cost / self.target - 1


@dataclass(frozen=True)
class Outcome:
    """One pipeline arm, one seed.

    Accuracies are fractions in [0, 1], test accuracy at the epoch that validation selected, or with ``averaging`` (its
    kind: "swalp", "swa" or "ema"; None: none) both of the averaged model. ``stages`` are the ledger
    stages that this arm is charged for, in order; a stage may be charged to several arms. ``forward_macs`` and
    ``dense_forward_macs`` are of one image. ``weights``, ``schedule``, ``optimizer``, ``penalty`` and ``rewind_epoch``
    say what a ticket was retrained from, see :class:`lowprec_eb.retraining.Retraining`; ``weights`` is "inherit" and
    the others None where nothing was retrained. ``match``: of a dense run that was to cost what another arm does.
    ``ratio`` is the share of channels that the arm was to drop, where the arms of a comparison differ in it: such arms,
    alike in all else, are one sweep (None: no part of a sweep).
    """

    arm: str
    pipeline: str
    seed: int
    search_precision: str | None
    precision: str
    weights: str
    stages: tuple[str, ...]
    test_accuracy: float
    validation_accuracy: float
    best_epoch: int
    ticket: TicketSummary | None
    channels_kept: int
    channels_total: int
    forward_macs: int
    dense_forward_macs: int
    averaging: str | None = None
    ratio: float | None = None
    schedule: str | None = None
    optimizer: str | None = None
    penalty: bool | None = None
    rewind_epoch: int | None = None
    match: MatchSummary | None = None

    @property
    def conditions(self) -> tuple[str | int | bool | None, ...]:
        """What an arm does beside its pipeline, precisions and ratio: equal for two arms that differ in those alone."""
        match = (None, None) if self.match is None else (self.match.arm, self.match.quantity)
        retraining = (self.weights, self.schedule, self.optimizer, self.penalty, self.rewind_epoch)
        return (*retraining, self.averaging, *match)


@dataclass(frozen=True)
class DivergedOutcome:
    """One pipeline arm, one seed, that could not be trained to its end.

    ``stages`` are the ledger stages that were paid for it, the last of them the one that diverged, in ``phase``;
    ``event`` says where, ``message`` is for people. ``averaging`` and ``ratio`` are as of an
    :class:`Outcome`, had there been one.
    """

    arm: str
    pipeline: str
    seed: int
    search_precision: str | None
    precision: str
    weights: str
    stages: tuple[str, ...]
    phase: str
    event: Instability
    message: str
    averaging: str | None = None
    ratio: float | None = None
