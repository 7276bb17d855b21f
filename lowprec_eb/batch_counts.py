"""What one batch costs a model: counted once for all models that are alike."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energy_models import OpCounts, Operand, Zeros, count, count_optimizer
from lowprec_eb.layers import LoweredModule
from lowprec_eb.optim import LowPrecisionOptimizer

_PLAIN = (bool, int, float, str, tuple, type(None))


class BatchCounts:
    """Counts of models that were cut from one and lowered.

    Alike are models of the same classes, with tensors of the same shapes and types, the same plain attributes and the
    same precisions: what they do does not depend on the values of their weights.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, OpCounts] = {}
        self._steps: dict[Hashable, Any] = {}

    def of(self, model: nn.Module, images: tuple[int, ...], *, training: bool) -> OpCounts:
        """One batch of ``images`` (N, C, H, W), forward, and backward of the cross-entropy in ``training``."""
        key = images, training, form_of(model, training=training)
        if key not in self._known:
            example = torch.empty(images, device="meta")
            self._known[key] = _at_any_weights(count(model, example, training=training, loss=_cross_entropy))
        return self._known[key]

    def of_step(self, optimizer: LowPrecisionOptimizer, model: nn.Module) -> OpCounts:
        """One step of ``optimizer`` over the parameters of ``model``."""
        return count_optimizer(optimizer, model=model, known=self._steps)


def form_of(model: nn.Module, *, training: bool) -> tuple[Hashable, ...]:
    """What decides how much ``model`` computes, module by module; modes of its parts count in ``training`` alone."""
    return tuple((name, _own_form(module, training)) for name, module in model.named_modules())


def _own_form(module: nn.Module, training: bool) -> Hashable:
    plain = tuple(
        (name, repr(value))
        for name, value in vars(module).items()
        if isinstance(value, _PLAIN) and (training or name != "training")
    )
    tensors = tuple(
        (name, None if tensor is None else (tuple(tensor.shape), tensor.dtype, tensor.requires_grad))
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
    )
    precision = module.lowering.precision if isinstance(module, LoweredModule) else None
    return type(module), plain, tensors, precision


def _at_any_weights(counts: OpCounts) -> OpCounts:
    """Without the zeros that the weights have at this moment: the next step has others, and so has a resumed run."""
    gemms = tuple(replace(g, a=_all_elements(g.a), b=_all_elements(g.b), zeros=Zeros()) for g in counts.gemms)
    return replace(counts, gemms=gemms)


def _all_elements(operand: Operand) -> Operand:
    return operand if operand.is_sparse else replace(operand, nonzeros=None)


def _cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device))
