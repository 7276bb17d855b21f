"""The search of :func:`lowprec_eb.draw_ticket`: somebody's training loop, and a look after each of its epochs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowprec_eb.lowering import lower, raise_
from lowprec_eb.precision import Precision
from lowprec_eb.tickets import Compaction, EarlyBird, NaNScores, ScoreHistory, Ticket, TicketSettings
from lowprec_eb.tickets.graph import BATCH_NORMS

_PROBED = 2  # epochs by whose end something must have changed: a warm-up may begin with a learning rate of 0


@dataclass(eq=False)
class Search:
    """Trains and looks until there is a ticket, or the epochs are over.

    ``trial`` is a compaction of the model like the one that will follow: the optimizer must fit it.
    """

    model: nn.Module
    loop: Callable[[nn.Module, int], Any]
    settings: TicketSettings
    detector: EarlyBird
    trial: Compaction
    optimizer: Optimizer | None
    max_epochs: int
    _scores: list[Tensor] = field(default_factory=list, init=False)  # of each epoch, on the CPU

    def __post_init__(self) -> None:
        if not isinstance(self.optimizer, Optimizer | None):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or None, got {type(self.optimizer).__name__}")
        if not isinstance(self.max_epochs, int):
            raise TypeError(f"max_epochs must be a whole number, got {self.max_epochs!r}")
        if self.max_epochs < (needed := self.settings.memory):
            raise ValueError(
                f"max_epochs must be at least {needed}: rule {self.settings.rule!r} with window "
                f"{self.settings.window} cannot fire before"
            )

    def run(self) -> tuple[Ticket, ScoreHistory]:
        """The ticket, or the most settled mask with a warning; and the scores of every look."""
        self._check_optimizer()
        before = {name: parameter.detach().cpu().clone() for name, parameter in self.model.named_parameters()}
        ticket = None
        with _penalised(self.model, self.optimizer, self.settings.sparsity):
            while ticket is None and (epoch := len(self._scores)) < self.max_epochs:
                self.loop(self.model, epoch)
                ticket = self._look()
                if epoch == 0:
                    self._check_optimizer()  # now it has a state
                if epoch + 1 == _PROBED:
                    _check_trained(self.model, before)
                    before.clear()
        return ticket or self._most_settled(), self._history

    def _check_optimizer(self) -> None:
        if self.optimizer is not None:
            self.trial.check_optimizer(self.optimizer, self.model)

    def _look(self) -> Ticket | None:
        epochs = len(self._scores) + 1
        try:
            ticket = self.detector.update(self.model, epoch=epochs)
        except NaNScores as error:
            raise NaNScores(f"after {epochs} epochs {error}") from error
        assert self.detector.scores is not None
        self._scores.append(self.detector.scores.cpu().clone())
        return ticket

    def _most_settled(self) -> Ticket:
        if (best := self.detector.best) is None:
            raise ValueError(
                f"the scores of all channels were equal after each of {self.max_epochs} epochs, so there is no ticket "
                "to draw: are the normalisations trained?"
            )
        warnings.warn(
            f"no ticket had settled within max_epochs={self.max_epochs}; the most settled mask, of epoch {best.epoch}, "
            "is taken",
            stacklevel=4,
        )
        return replace(best, on_time=False)

    @property
    def _history(self) -> ScoreHistory:
        layout = self.detector.layout
        assert layout is not None
        steps = tuple(range(1, len(self._scores) + 1))
        return ScoreHistory(layout.names, layout.widths, 1, 0, steps, torch.stack(self._scores))


def _check_trained(model: nn.Module, before: dict[str, Tensor]) -> None:
    """Scores may stand still, since that is what settled means; but not everything from the start."""
    now = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
    if now.keys() == before.keys() and all(
        tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]) for name, tensor in now.items()
    ):
        raise ValueError(
            f"{_PROBED} epochs have not changed a single parameter: does train_one_epoch train the model that it is "
            "given, with an optimizer over its parameters?"
        )


@contextmanager
def lowered(model: nn.Module, precision: Precision | None) -> Iterator[None]:
    if precision is None:
        yield
        return
    lower(model, precision)
    try:
        yield
    finally:
        raise_(model)


@contextmanager
def _penalised(model: nn.Module, optimizer: Optimizer | None, strength: float) -> Iterator[None]:
    """Add ``strength * sign(gamma)`` to the gradient of every BatchNorm scale before each step (Liu et al. 2017)."""
    if not 0 <= strength < torch.inf:
        raise ValueError(f"sparsity must be 0 or more and finite, got {strength}")
    if not strength:
        yield
        return
    gammas = [m.weight for m in model.modules() if isinstance(m, BATCH_NORMS) and m.affine]
    if optimizer is None or not gammas:
        raise ValueError("sparsity is a penalty on BatchNorm scales, added at the optimizer's step: give optimizer=")

    @torch.no_grad()
    def penalise(*_: Any) -> None:
        for gamma in gammas:
            if gamma.grad is not None:
                gamma.grad.add_(gamma.sign(), alpha=strength)

    hook = optimizer.register_step_pre_hook(penalise)
    try:
        yield
    finally:
        hook.remove()
