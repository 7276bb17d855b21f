"""What a stage is, begins with, remembers and delivers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from energy_models import LedgerRow, MeasuredEnergy, OpCounts
from lowprec_eb.instability import Instability
from lowprec_eb.models import ModelSettings
from lowprec_eb.retraining import Retraining
from lowprec_eb.strict_config import digest
from lowprec_eb.tasks import TaskSettings
from lowprec_eb.tickets import ScoreHistory, ScoreSettings, Ticket, TicketSettings
from lowprec_eb.train import TrainSettings

StagePhase = Literal["search", "train", "retrain"]
_PAPERS_SCORING = ScoreSettings()
LEDGER_FILE, COUNTS_FOLDER = "ledger.jsonl", "counts"  # in a stage's folder; the ledger refers to the counts


@dataclass(frozen=True)
class Stage:
    """Everything that decides what a stage computes and what its ledger says. Its hash is its name.

    ``start`` names the weights it begins with, ``data`` is a hash of the examples (the folder they came from does not
    count), ``profile`` is the hardware profile with a hash of its content, ``software`` that of this package's sources
    and torch's version, ``raise_to`` the precision that an unstable run goes on in. ``record_every``: a stage without a
    detector records its scores after every so many steps, too. ``scoring``: which scores, of which groups.
    ``keep``: numbers of trained epochs after which a search keeps what was trained, to be rewound to. ``retraining``:
    what a pruned model begins with, said in the ledger.
    """

    task: TaskSettings
    model: ModelSettings
    training: TrainSettings
    seed: int
    phase: StagePhase
    precision: str
    start: str
    first_epoch: int
    sparsity: float
    detector: TicketSettings | None
    profile: str
    device: str
    threads: int
    data: str
    software: str
    raise_to: str | None = None
    record_every: int | None = None
    scoring: ScoreSettings = _PAPERS_SCORING
    keep: tuple[int, ...] = ()
    retraining: Retraining | None = None

    @property
    def key(self) -> str:
        return digest(self, length=12)

    @property
    def epochs(self) -> range:
        """Epochs of the schedule; a detector may stop it earlier."""
        last = self.training.epochs if self.detector is None else min(self.detector.deadline, self.training.epochs)
        return range(self.first_epoch, last)


@dataclass(frozen=True, eq=False)
class Expense:
    """What was done in ``phase`` outside any stage."""

    phase: Literal["search", "prune"]
    costs: OpCounts
    measured: MeasuredEnergy | None = None

    def __add__(self, other: Expense) -> Expense:
        assert self.phase == other.phase
        return Expense(self.phase, self.costs + other.costs, _together(self.measured, other.measured))


@dataclass(frozen=True, eq=False)
class Start:
    """A model to begin with: plain (not lowered), with the momentum it brings and the epoch its schedule is at.

    ``expenses`` are what making it took (pruning, choosing channels), by phase, charged to the stage that begins so.
    """

    key: str
    model: nn.Module
    optimizer_state: Mapping[str, Any] | None = None
    epoch: int = 0
    expenses: Mapping[str, Expense] = field(default_factory=dict)

    def at(self, epoch: int, *, momentum: bool) -> Start:
        """The same weights at that epoch of the schedule, with their momentum or without."""
        if momentum:
            return replace(self, epoch=epoch)
        return replace(self, epoch=epoch, optimizer_state=None, key=f"{self.key}/without momentum")

    def charged(self, *expenses: Expense) -> Start:
        """The same, having cost so much more."""
        found = dict(self.expenses)
        for one in expenses:
            found[one.phase] = found[one.phase] + one if one.phase in found else one
        return replace(self, expenses=found)


def _together(one: MeasuredEnergy | None, other: MeasuredEnergy | None) -> MeasuredEnergy | None:
    """Both, one after the other."""
    if one is None or other is None:
        return one or other
    known = one.energy_j is not None and other.energy_j is not None
    energy_j = (one.energy_j or 0.0) + (other.energy_j or 0.0) if known else None
    return replace(one, energy_j=energy_j, duration_s=one.duration_s + other.duration_s)


@dataclass(frozen=True, eq=False)
class StageResult:
    """A finished stage: the state it ended in, and how the best epoch on validation did on test (None: a search,
    which delivers a ticket and no model). Where weights are averaged, the average is that state, without momentum, and
    what was validated and tested; ``best_epoch`` is the last one that it may hold.

    A search that ended inside an epoch has begun it: ``state.epoch`` is the next one, where a retraining goes on with
    the schedule, and the steps that were not taken are charged to nobody. ``drawn`` has the ticket of each ratio of a
    search with the state that it appeared in; ``ticket`` and ``state`` are those of the first ratio. ``kept`` has what
    was trained after each epoch that :attr:`Stage.keep` names.

    ``history`` is of the scores after every epoch and at every look: an observation for pictures and replays, not
    charged. None: not trained.
    """

    key: str
    state: Start
    ticket: Ticket | None
    best_epoch: int
    validation_accuracy: float
    test_accuracy: float | None
    history: ScoreHistory | None
    rows: tuple[LedgerRow, ...]
    drawn: Mapping[float, tuple[Ticket, Start]] = field(default_factory=dict)
    kept: Mapping[int, Start] = field(default_factory=dict)

    @property
    def scores(self) -> Tensor:
        """The scores after every whole epoch, shape (epochs, channels)."""
        return torch.empty(0) if self.history is None else self.history.epoch_scores


class StageDiverged(FloatingPointError):
    """A stage that could not go on; ``rows`` of its ledger say what was spent on it until then."""

    def __init__(self, message: str, event: Instability, stage: Stage, rows: tuple[LedgerRow, ...]) -> None:
        super().__init__(message)
        self.event, self.stage, self.rows = event, stage, rows


class Progress(Protocol):
    """Where a stage reports to while it runs."""

    def epoch(self, stage: Stage, row: LedgerRow, energy_j: float) -> None:
        """One epoch is in the ledger; ``energy_j`` is the stage's modelled energy so far (nominal)."""


@dataclass(eq=False)
class Position:
    """What changes from epoch to epoch, beside model, optimizer and detector."""

    next_epoch: int
    best_epoch: int = -1
    best_accuracy: float = -1.0
    best_state: dict[str, Tensor] = field(default_factory=dict)
    ticket: Ticket | None = None
    finished: bool = False
    test_accuracy: float | None = None
    diverged: dict[str, Any] | None = None  # the event that ended the stage, and the message

    def to_tree(self) -> dict[str, Any]:
        return {**self.__dict__, "ticket": None if self.ticket is None else self.ticket.to_tree()}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Position:
        ticket = None if tree["ticket"] is None else Ticket.from_tree(tree["ticket"])
        return cls(**{**tree, "ticket": ticket})
