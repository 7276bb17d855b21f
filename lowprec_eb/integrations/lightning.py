"""An energy ledger as a callback of Lightning."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import energy_models as em

try:
    import lightning.pytorch as pl
except ImportError as error:
    raise ImportError('lightning is not installed: pip install "lowprec-eb[lightning]"') from error


class LedgerCallback(pl.Callback):
    """Keeps a ledger of ``trainer.fit``: a row for each epoch's training and one for its validation.

    What ``training_step`` and ``validation_step`` do is counted once for each shape of batch, on a copy of the module
    without values and without its trainer. A step that needs either (numbers of a tensor, manual optimization) cannot
    be counted so: name the submodule that it calls.

    Args:
        path: of the ledger. submodule: name of the module whose calls are counted ("model"), in place of whole steps;
            a loss that the step computes is then left out. options: of :class:`energy_models.LedgerCallback`.
    """

    def __init__(self, path: str | Path, *, submodule: str | None = None, **options: Any) -> None:
        self._path, self._submodule, self._options = path, submodule, options
        self.keeper: em.LedgerCallback | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        options = {"device": pl_module.device} | self._options
        optimizers = [getattr(optimizer, "optimizer", optimizer) for optimizer in trainer.optimizers]
        if self._submodule is not None:
            watched = pl_module.get_submodule(self._submodule)
            self.keeper = em.LedgerCallback(self._path, watched, optimizers, **options)
            return

        def count_of(batch: Any, training: bool) -> em.OpCounts:
            return _count_step(trainer, pl_module, batch, training)

        self.keeper = em.LedgerCallback(self._path, None, optimizers, count_of=count_of, **options)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._kept.begin("train", trainer.current_epoch)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._submodule is None:
            self._kept.step(batch, training=True)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._kept.end(**_metrics(trainer))

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._validates(trainer):
            self._kept.begin("eval", trainer.current_epoch)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._validates(trainer) and self._submodule is None:
            self._kept.step(batch, training=False)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self._validates(trainer):
            self._kept.end(**_metrics(trainer))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.keeper is not None:
            self.keeper.close()
            self.keeper = None

    def _validates(self, trainer: Any) -> bool:
        """In a fit, and not the check before it."""
        return self.keeper is not None and not trainer.sanity_checking

    @property
    def _kept(self) -> em.LedgerCallback:
        if self.keeper is None:
            raise RuntimeError("LedgerCallback keeps the ledger of trainer.fit, which has not begun")
        return self.keeper


class _Step(nn.Module):
    """A module's training or validation step as something to be called."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, batch: Any) -> Any:
        step = getattr(self.module, self.name)
        indices = {"batch_idx": 0, "dataloader_idx": 0}
        taken = inspect.signature(step).parameters
        return step(batch, **{name: place for name, place in indices.items() if name in taken})


def _count_step(trainer: Any, module: Any, batch: Any, training: bool) -> em.OpCounts:
    name = "training_step" if training else "validation_step"
    plugin = trainer.precision_plugin  # whose autocast, if any, is part of the step
    try:
        with plugin.train_step_context() if training else plugin.val_step_context():
            return em.count(_Step(module, name), (batch,), training=training)
    except Exception as error:  # the module's own code: anything
        raise ValueError(
            f"{name} of {type(module).__name__} cannot be counted without values and trainer "
            f'({type(error).__name__}: {error}); name the submodule that it calls, as in submodule="model"'
        ) from error


def _metrics(trainer: Any) -> dict[str, float]:
    logged: Mapping[str, Any] = trainer.callback_metrics
    return {name: float(value) for name, value in logged.items()}
