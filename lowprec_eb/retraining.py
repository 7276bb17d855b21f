"""What a ticket is retrained from, in four keys: weights, schedule, optimizer, penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Weights = Literal["inherit", "reinit", "rewind"]
Schedule = Literal["continue", "restart"]
OptimizerState = Literal["keep", "new"]


@dataclass(frozen=True)
class Retraining:
    """How the training of a pruned model begins, with nothing left open.

    weights: ``"inherit"``, those of the training that the ticket was drawn in, at its end; ``"rewind"``, those that it
    had after ``rewind_epoch`` epochs (0: the initial ones); ``"reinit"``, new random ones.
    schedule: ``"continue"``, at the epoch that follows the weights' (with new weights: the end of the training that the
    ticket was drawn in), so that no drop of the learning rate is missed; ``"restart"``, all epochs from the first on.
    optimizer: ``"keep"``, the momentum that belongs to the weights, cut like them; ``"new"``, none.
    penalty: whether the sparsity penalty on the BatchNorm scales goes on.

    Raises:
        ValueError: a combination that cannot be, naming its keys.
    """

    weights: Weights
    schedule: Schedule
    optimizer: OptimizerState
    penalty: bool = False
    rewind_epoch: int = 0

    def __post_init__(self) -> None:
        if self.rewind_epoch < 0:
            raise ValueError(f"rewind_epoch must be 0 or more, got {self.rewind_epoch}")
        if self.rewind_epoch and self.weights != "rewind":
            raise ValueError(f"rewind_epoch is for weights: rewind, not {self.weights!r}")
        if self.optimizer == "keep" and self.weights == "reinit":
            raise ValueError("optimizer: keep cannot go with weights: reinit: the momentum belongs to other weights")
        if self.optimizer == "keep" and self.weights == "rewind" and not self.rewind_epoch:
            raise ValueError(
                "optimizer: keep cannot go with weights: rewind to epoch 0: before the first step there is no momentum"
            )

    @classmethod
    def completed(
        cls,
        weights: Weights,
        schedule: Schedule | None = None,
        optimizer: OptimizerState | None = None,
        penalty: bool | None = None,
        rewind_epoch: int | None = None,
    ) -> Retraining:
        """With what is usual for ``weights`` where a key is None: momentum is kept where there is some, the schedule
        goes on, but for new weights, and the penalty ends."""
        epoch = rewind_epoch or 0
        has_momentum = weights == "inherit" or (weights == "rewind" and epoch > 0)
        return cls(
            weights,
            schedule or ("restart" if weights == "reinit" else "continue"),
            optimizer or ("keep" if has_momentum else "new"),
            bool(penalty),
            epoch,
        )

    def metrics(self) -> dict[str, float | str | None]:
        """The four keys as they stand in a ledger row."""
        origin = f"rewind to epoch {self.rewind_epoch}" if self.weights == "rewind" else self.weights
        return {
            "weights": origin,
            "schedule": self.schedule,
            "optimizer": self.optimizer,
            "penalty": "on" if self.penalty else "off",
        }


FINE_TUNING = Retraining("inherit", "restart", "new")
"""The weights that stayed, with a schedule and an optimizer of their own: train, prune, retrain."""
LOTTERY = Retraining("rewind", "restart", "new")
"""The initial weights, trained as they were before: the lottery ticket's (Frankle and Carbin 2019)."""
