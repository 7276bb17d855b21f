"""An energy ledger as a callback of Hugging Face's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import energy_models as em

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError('transformers is not installed: pip install "lowprec-eb[transformers]"') from error


class LedgerCallback(TrainerCallback):
    """Keeps a ledger of ``trainer.train``: a row for each epoch's training and one for its evaluation.

    The model's calls are watched, so each kind of batch is counted once. Evaluation between the steps of an epoch is
    taken out of the epoch's training.

    Args:
        path: of the ledger. options: of :class:`energy_models.LedgerCallback`.
    """

    def __init__(self, path: str | Path, **options: Any) -> None:
        self._path, self._options = path, options
        self.keeper: em.LedgerCallback | None = None
        self._evaluates, self._epoch = False, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        own = getattr(optimizer, "optimizer", optimizer)  # behind accelerate's wrapper
        self.keeper = em.LedgerCallback(self._path, model, own, **({"device": args.device} | self._options))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._epoch = int(state.epoch)
        self._kept.begin("train", self._epoch)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin_evaluation(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._kept.end()
        self._begin_evaluation(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._evaluates:
            metrics = kwargs.get("metrics") or {}
            self._kept.end(**{name: float(value) for name, value in metrics.items() if isinstance(value, int | float)})
            self._evaluates = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._kept.close()
        self.keeper = None

    def _begin_evaluation(self, control: Any) -> None:
        """Evaluation follows when the Trainer's own callback, which comes first, has asked for it."""
        if control.should_evaluate and not self._evaluates:
            self._evaluates = True
            self._kept.begin("eval", self._epoch)

    @property
    def _kept(self) -> em.LedgerCallback:
        if self.keeper is None:
            raise RuntimeError("LedgerCallback keeps the ledger of trainer.train, which has not begun")
        return self.keeper
