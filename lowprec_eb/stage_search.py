"""The side of a stage that looks at scores: the detector, and the history that others can be replayed over."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lowprec_eb.instability import Diverged, Instability
from lowprec_eb.lowering import raise_
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.stage_data import Stage, Start
from lowprec_eb.tasks import Task
from lowprec_eb.tickets import EarlyBirds, NaNScores, ScoreHistory, Ticket, scoring
from lowprec_eb.tickets.masks import Layout, flatten


class StageSearch:
    """Looks after each epoch, or every so many steps of the stage; a stage without a detector only records.

    Steps are counted from the stage's first epoch, so when it looks does not depend on where a run was resumed.
    """

    def __init__(self, stage: Stage, model: nn.Module, optimizer: LowPrecisionOptimizer, task: Task) -> None:
        self.stage, self.model, self.optimizer = stage, model, optimizer
        self.steps_per_epoch = sum(task.batch_sizes("train").values())
        self.settings = stage.detector
        groups, self.scorer = scoring(model, stage.scoring, torch.zeros(2, *task.input_shape), stage.seed)
        self.detector = None
        if self.settings is not None:
            self.detector = EarlyBirds.from_settings(self.settings, self.scorer, groups)
        self.every = stage.record_every if self.settings is None else self.settings.check_every
        self.looks = 0  # of the detector, in this epoch
        self._epoch, self._step = stage.first_epoch, 0
        self._steps: list[int] = []
        self._scores: list[Tensor] = []
        self._states: dict[str, Any] = {}  # ratio -> what was trained when its ticket appeared
        self._kept: dict[str, Any] = {}  # epochs trained -> what was trained then

    # Called by the training ----------------------------------------------------------------------------------------

    def begin(self, epoch: int) -> None:
        """The next step is the first of ``epoch``."""
        self._epoch, self.looks = epoch, 0
        self._step = (epoch - self.stage.first_epoch) * self.steps_per_epoch

    def after_step(self) -> bool:
        """Look if it is time; True when the search is over."""
        self._step += 1
        if self.every is None or self._step % self.every:
            return False
        self._record(self._scored() if self.detector is None else self._look(self.detector))
        return self.done

    def after_epoch(self, whole: bool) -> None:
        """Look where there is one look an epoch."""
        if self.detector is not None and self.every is None:
            self._record(self._look(self.detector))
        elif whole and (not self._steps or self._steps[-1] != self._step):
            self._record(self._scored())
        if whole and self._epoch + 1 in self.stage.keep:
            self._kept[str(self._epoch + 1)] = self._trained()
        self._scores = [scores.cpu() for scores in self._scores]

    def _look(self, detector: EarlyBirds) -> Tensor:
        """Let the detector look; the scores that it saw."""
        self.looks += 1
        try:
            drawn = detector.update(self.model, self.optimizer.precision.name, epoch=self._epoch + 1)
        except NaNScores as error:
            step = (self._step - 1) % self.steps_per_epoch
            assert detector.scores is not None
            nan = bool(detector.scores.isnan().any())
            event = Instability(
                self._epoch, step, "", "score", "", "nan" if nan else "inf", math.nan if nan else math.inf, "stop"
            )
            raise Diverged(event, "lower training.learning_rate or raise the precision") from error
        if self.settings is not None and self.settings.also:
            for ratio in drawn:
                self._states[repr(ratio)] = self._trained()
        assert detector.scores is not None
        return detector.scores

    def _scored(self) -> Tensor:
        return flatten(self.scorer(self.model))

    def _trained(self) -> dict[str, Any]:
        """A copy: training goes on for the other ratios."""
        momentum = copy.deepcopy(self.optimizer.inner.state_dict())
        model = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        return {"epoch": self._epoch + 1, "model": model, "optimizer": momentum}

    def _record(self, scores: Tensor) -> None:
        """An observation for pictures and replays, not charged."""
        self._steps.append(self._step)
        self._scores.append(scores.clone())

    # What came of it -----------------------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether every ratio has its ticket."""
        return self.detector is not None and self.detector.done

    @property
    def distance(self) -> float | None:
        """The distance that decides on the ticket of the first ratio, now or when it was drawn."""
        if self.detector is None or self.settings is None:
            return None
        return max(self.detector.distances(self.settings.ratio), default=None)

    def ticket(self, ratio: float) -> Ticket:
        """The ticket of ``ratio``, or the most settled mask where none has appeared."""
        assert self.detector is not None
        if ratio in self.detector.tickets:
            return self.detector.tickets[ratio]
        if (best := self.detector.best(ratio)) is None:
            raise ValueError(
                "the scores of all channels were equal at every look, so there is no ticket to draw: are the BatchNorm "
                "scales trained, and did the detector look at all?"
            )
        return replace(best, on_time=False)

    def drawn(self, end: Start) -> dict[float, tuple[Ticket, Start]]:
        """The tickets of all ratios, each with what had been trained when it appeared; ``end`` is the last state."""
        if self.settings is None:
            return {}
        return {ratio: (self.ticket(ratio), self._start(ratio, end)) for ratio in self.settings.ratios}

    def _start(self, ratio: float, end: Start) -> Start:
        state = self._states.get(repr(ratio))
        return end if state is None else self._restored(f"{end.key}/ratio {ratio}", state)

    def kept(self, end: Start) -> dict[int, Start]:
        """What was trained after each epoch that is kept; ``end`` is the last state."""
        return {int(epoch): self._restored(f"{end.key}/epoch {epoch}", state) for epoch, state in self._kept.items()}

    def _restored(self, key: str, state: Mapping[str, Any]) -> Start:
        model = copy.deepcopy(self.model)
        model.load_state_dict(state["model"])
        return Start(key, raise_(model).cpu(), state["optimizer"], state["epoch"])

    def expects_row(self, epoch: int) -> bool:
        """Whether an epoch that was trained has a row of phase ``detect``."""
        before = epoch - self.stage.first_epoch
        if self.settings is None:
            return False
        return self.settings.looks(before + 1, self.steps_per_epoch) > self.settings.looks(before, self.steps_per_epoch)

    @property
    def history(self) -> ScoreHistory:
        layout = Layout.of(self.scorer(self.model))
        scores = torch.stack(self._scores) if self._scores else torch.empty(0, layout.channels)
        steps, first = tuple(self._steps), self.stage.first_epoch
        return ScoreHistory(layout.names, layout.widths, self.steps_per_epoch, first, steps, scores)

    def state_dict(self) -> dict[str, Any]:
        return {
            "detector": None if self.detector is None else self.detector.state_dict(),
            "steps": self._steps,
            "scores": self._scores,
            "states": self._states,
            "kept": self._kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.detector is not None:
            self.detector.load_state_dict(state["detector"])
        self._steps, self._scores = state["steps"], state["scores"]
        self._states, self._kept = state["states"], state["kept"]
