"""What one step of the planned model does, at either width and in any precision; each is counted once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import energy_models as em
from energy_models.narrowing import narrowed
from lowprec_eb.costs import detector_costs, ranking_costs, sparsity_costs
from lowprec_eb.named_models import NamedModel, example_inputs, load_model
from lowprec_eb.planning.settings import PlanSettings
from lowprec_eb.planning.walk import DENSE, Width
from lowprec_eb.selection import connection_costs
from lowprec_eb.step_counts import Step
from lowprec_eb.tickets import Shrinking, TicketSettings, batch_norms, keep_uniform


class ModelWork:
    """Counts of the units that a plan repeats. A unit of training or evaluation is what one device does at a time."""

    def __init__(self, settings: PlanSettings) -> None:
        self.settings = settings
        self.samples_per_pass = settings.batch // (settings.devices * settings.accumulate)
        self._dense = load_model(settings.model, in_memory=settings.in_memory)
        self.inputs = example_inputs(self._dense, settings.inputs, self.samples_per_pass)
        self._small: dict[Width, NamedModel] = {}
        self._known: dict[tuple[str | Width, ...], em.OpCounts] = {}

    @property
    def name(self) -> str:
        """Of the model, with where it was found."""
        return self._dense.name

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._dense.module.parameters())

    @property
    def items_per_sample(self) -> int:
        """1, or the tokens of a sample where the data are given in tokens.

        Raises:
            ValueError: the model takes no tokens.
        """
        if self.settings.tokens is None:
            return 1
        leaves = [leaf for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor)]
        tokens = next((leaf for leaf in leaves if not leaf.is_floating_point()), None)
        if tokens is None:
            raise ValueError(f"tokens: {self.name} reads no tokens; give samples, or inputs: [tokens:2048]")
        return tokens.numel() // self.samples_per_pass

    def train(self, width: Width, precision: str) -> em.OpCounts:
        """A device's part of one optimizer step."""
        return self._cached("train", width, precision)

    def evaluate(self, width: Width, precision: str) -> em.OpCounts:
        """One forward pass over as many samples as a device takes at a time."""
        return self._cached("evaluate", width, precision)

    def penalty(self, width: Width) -> em.OpCounts:
        """The gamma penalty of one step; of scaled widths that of the dense model, which is more."""
        return self._made(("penalty", width), lambda: sparsity_costs(self._module(width)))

    def sensitivity(self, width: Width, precision: str) -> em.OpCounts:
        """SNIP's pass over a device's part of one batch: forward and backward, and no update."""
        return self._cached("see", width, precision)

    def scoring(self, width: Width) -> em.OpCounts:
        """SNIP's sum of |w g| over all weights."""
        return self._made(("score", width), lambda: connection_costs(self._module(width)))

    def detection(self) -> em.OpCounts:
        """One look of the detector."""
        return self._made(("detection",), lambda: detector_costs(self._dense.module, TicketSettings()))

    def cut(self, before: Width, width: Width) -> em.OpCounts:
        """Ranking all channels that there were before, and copying the weights that stay."""
        return self._made(("cut", before, width), lambda: self._cut(before, width))

    def _cut(self, before: Width, width: Width) -> em.OpCounts:
        channels = sum(norm.num_features for norm in batch_norms(self._dense.module).values())
        kept = sum(op.elements for op in self.train(width, "fp32").element_ops if op.kind == "optimizer")
        ranked = ranking_costs(round(before.left * channels))
        return ranked + em.element_ops("copy", kept, read_bits=32, write_bits=32)

    def _cached(self, kind: str, width: Width, precision: str) -> em.OpCounts:
        return self._made((kind, width, precision), lambda: self._counted(kind, width, precision))

    def _made(self, key: tuple[str | Width, ...], make: Callable[[], em.OpCounts]) -> em.OpCounts:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]

    def _counted(self, kind: str, width: Width, precision: str) -> em.OpCounts:
        if width != DENSE and self._scaled:
            self._check_norms()
            return narrowed(self._cached(kind, DENSE, precision), width.left)
        named = self._dense if width == DENSE else self._compacted(width)
        return self._step(kind).count(named, self.settings.recipe(precision))

    @property
    def _scaled(self) -> bool:
        return self.settings.ticket is not None and self.settings.ticket.widths == "scaled"

    def _module(self, width: Width) -> nn.Module:
        return (self._dense if width == DENSE or self._scaled else self._compacted(width)).module

    def _step(self, kind: str) -> Step:
        settings = self.settings
        if kind == "evaluate":
            return Step(self.inputs, training=False, functional=settings.functional)
        options: Mapping[str, Any] = {"functional": settings.functional, "accumulate": settings.accumulate}
        return Step(self.inputs, optimizer=settings.optimizer if kind == "train" else None, **options)

    def _compacted(self, width: Width) -> NamedModel:
        if width not in self._small:
            self._check_norms()
            module = self._dense.module
            widths = {name: norm.num_features for name, norm in batch_norms(module).items()}
            masks = keep_uniform(widths, 1 - width.left)
            shrinking = Shrinking(module, self._example(), None)  # shapes alone: the model may have no values
            small = shrinking.smaller(masks, shrinking.removed(masks))
            self._small[width] = replace(self._dense, module=small)
        return self._small[width]

    def _example(self) -> Tensor:
        leaves = tree_leaves(self.inputs)
        if len(leaves) != 1 or not isinstance(leaves[0], Tensor):
            raise ValueError(f"{self.name} takes several inputs and cannot be compacted here: ticket.widths=scaled")
        device = next(self._dense.module.parameters()).device  # a function may have made the model with values
        return torch.zeros_like(leaves[0][:2], device=device)

    def _check_norms(self) -> None:
        if not batch_norms(self._dense.module):
            raise ValueError(f"{self.name} has no BatchNorm2d, and tickets are drawn from their scales: plan full arms")
