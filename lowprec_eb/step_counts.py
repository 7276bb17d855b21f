"""One step of a named model, counted in any precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

import energy_models as em
from lowprec_eb.lowering import lower, raise_
from lowprec_eb.named_models import NamedModel
from lowprec_eb.named_optimizers import named_optimizer
from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.precision import Precision


@dataclass(frozen=True)
class Step:
    """What is counted: a training step, or the forward pass alone, on example ``inputs``.

    optimizer: its line (``adamw``), None for none. functional: a precision also holds for products outside layers.
    strict: raise where something has no formula. values: run for real. accumulate: passes of forward and backward in a
    step.
    """

    inputs: Any
    training: bool = True
    optimizer: str | None = None
    functional: bool = False
    strict: bool = False
    values: bool = False
    accumulate: int = 1

    def count(self, named: NamedModel, recipe: Precision | None = None) -> em.OpCounts:
        """The operations of one step in ``recipe`` (None: as the model is); the model comes back as it was.

        Raises:
            ValueError: the model cannot take these inputs, the optimizer is unknown, or it cannot be counted.
        """
        if recipe is None:
            return self._model(named) + self._update(named, None)
        lower(named.module, recipe, functional=self.functional)
        counts = self._model(named) + self._update(named, recipe)
        raise_(named.module)
        return counts

    def _model(self, named: NamedModel) -> em.OpCounts:
        try:
            return em.count(
                named.module,
                self.inputs,
                training=self.training,
                strict=self.strict,
                values=self.values,
                accumulation_steps=self.accumulate,
            )
        except ValueError:
            raise
        except Exception as error:  # the model's own code: anything
            raise ValueError(
                f"{named.name} fails on {inputs_text(self.inputs)} ({type(error).__name__}: {error}); give what it "
                "takes by --input"
            ) from error

    def _update(self, named: NamedModel, recipe: Precision | None) -> em.OpCounts:
        if self.optimizer is None:
            return em.OpCounts()
        optimizer = named_optimizer(self.optimizer, named.module)
        if recipe is not None:
            optimizer = LowPrecisionOptimizer(optimizer, recipe)
        return em.count_optimizer(optimizer, model=named.module)


def inputs_text(inputs: Any) -> str:
    """Shapes and types of a step's inputs."""
    if isinstance(inputs, Mapping):
        return ", ".join(f"{name}: {_tensor_text(value)}" for name, value in inputs.items())
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return "input " + (", ".join(map(_tensor_text, tensors)) or type(inputs).__name__)


def _tensor_text(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{'x'.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}"
