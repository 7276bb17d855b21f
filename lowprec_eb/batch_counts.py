"""What one batch costs a model: counted once for all models that are alike."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energy_models import OpCounts, count_optimizer
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.recounting import Recounting, form_of


class BatchCounts:
    """Counts of models that were cut from one and lowered.

    Models of the same classes, with tensors of the same shapes and types, the same plain attributes and the same
    precisions are counted once: what they do does not depend on the values of their weights. Of others only the modules
    that differ are counted, see :mod:`lowprec_eb.recounting`.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, OpCounts] = {}
        self._recountings: dict[Hashable, Recounting] = {}
        self._steps: dict[Any, Any] = {}

    def of(self, model: nn.Module, images: tuple[int, ...], *, training: bool) -> OpCounts:
        """One batch of ``images`` (N, C, H, W), forward, and backward of the cross-entropy in ``training``."""
        form = form_of(model, training=training)
        key = images, training, tuple(form.items())
        if key not in self._known:
            structure = images, training, tuple((name, own[1]) for name, own in form.items())
            recounting = self._recountings.setdefault(structure, Recounting(images, training, _cross_entropy))
            self._known[key] = recounting.of(model, form)
        return self._known[key]

    def of_step(self, optimizer: LowPrecisionOptimizer, model: nn.Module) -> OpCounts:
        """One step of ``optimizer`` over the parameters of ``model``."""
        return count_optimizer(optimizer, model=model, known=self._steps)


def _cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device))
