"""Channels chosen by a look at some batches, without a search: what it finds, and what it costs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from energy_models import OpCounts, element_ops, measure
from lowprec_eb.batch_counts import BatchCounts
from lowprec_eb.costs import leading_sizes, pass_costs
from lowprec_eb.lowering import lower
from lowprec_eb.precision import Precision
from lowprec_eb.quantize.random_bits import derive_seed
from lowprec_eb.stage_data import Expense
from lowprec_eb.tasks import Task
from lowprec_eb.tickets.members import ChannelGroup, Member
from lowprec_eb.tickets.reconstruction import contributions, kept_channels, rescale, sample_products, scales, select
from lowprec_eb.tickets.scores import Connection, Scores


@dataclass(frozen=True, eq=False)
class Bench:
    """What all looks have in common: the data, the precision that a model computes in, the device and the seed.

    counts: of the models that are looked at, so far.
    """

    task: Task
    recipe: Precision
    device: str
    seed: int
    counts: BatchCounts = field(default_factory=BatchCounts)

    def lowered(self, model: nn.Module) -> nn.Module:
        """A copy that computes as in training."""
        found = copy.deepcopy(model).to(self.device)
        lower(found, self.recipe)
        return found


def sensitivity(model: nn.Module, groups: Sequence[ChannelGroup], batches: int, bench: Bench) -> tuple[Scores, Expense]:
    """Connection sensitivity (SNIP) of each channel on the first ``batches`` of epoch 0, in training mode."""
    scored = bench.lowered(model).train()
    torch.manual_seed(derive_seed(bench.seed, 0))
    with measure(bench.device) as measured:
        for batch in islice(bench.task.batches(0), batches):
            (bench.task.loss(scored, batch) / batches).backward()
        scores = {name: score.cpu() for name, score in Connection(groups)(scored).items()}
    return scores, Expense("search", sensitivity_costs(model, batches, bench), measured)


def sensitivity_costs(model: nn.Module, batches: int, bench: Bench) -> OpCounts:
    """The passes, and |w g| summed over all weights."""
    passes = pass_costs(bench.lowered(model), bench.task, batches, training=True, counts=bench.counts)
    return passes + connection_costs(model)


def connection_costs(model: nn.Module) -> OpCounts:
    """|w g| summed over all weights."""
    weights = sum(p.numel() for p in model.parameters())
    return element_ops("connection_sensitivity", weights, fp_add=1, fp_mul=1, read_bits=64)


@dataclass(frozen=True, eq=False)
class Layer:
    """One step of ThiNet: channels of a group, of which ``kept`` stay; ``number`` counts the steps."""

    group: str
    readers: tuple[Member, ...]
    channels: int
    kept: int
    number: int

    @classmethod
    def of(cls, group: str, readers: tuple[Member, ...], channels: int, rate: float, number: int) -> Layer:
        return cls(group, readers, channels, kept_channels(channels, rate), number)


def reconstruct(
    model: nn.Module, layer: Layer, batches: int, positions: int, bench: Bench
) -> tuple[Tensor, nn.Module, Expense]:
    """The mask of the channels whose absence its readers notice least, and a copy of ``model`` with these rescaled."""
    rescaled = copy.deepcopy(model)
    with measure(bench.device) as measured:
        inputs = _inputs_of(bench.lowered(model), layer.readers, batches, bench)
        generator = torch.Generator().manual_seed(derive_seed(bench.seed, layer.number) % 2**63)
        samples = [
            contributions(rescaled.get_submodule(r.module), inputs[r.module], r, layer.channels, positions, generator)
            for r in layer.readers
        ]
        mask = select(np.concatenate(samples), layer.kept)
        for reader, seen in zip(layer.readers, samples, strict=True):
            rescale(rescaled.get_submodule(reader.module), reader, scales(seen, mask))
    return mask, rescaled, Expense("search", reconstruction_costs(model, layer, batches, positions, bench), measured)


@torch.no_grad()
def _inputs_of(model: nn.Module, readers: Sequence[Member], batches: int, bench: Bench) -> dict[str, Tensor]:
    """What each reader is given in inference on the first ``batches`` of epoch 0."""
    model.eval()
    torch.manual_seed(derive_seed(bench.seed, 0))
    seen: dict[str, list[Tensor]] = {reader.module: [] for reader in readers}
    for name, kept in seen.items():
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, kept=kept: kept.append(cast(Tensor, inputs[0]).cpu())
        )
    for batch in islice(bench.task.batches(0), batches):
        model(batch.inputs)
    return {name: torch.cat(kept) for name, kept in seen.items()}


def reconstruction_costs(model: nn.Module, layer: Layer, batches: int, positions: int, bench: Bench) -> OpCounts:
    """The passes, the samples and what is computed from them, and the rescaled weights."""
    images = sum(size * times for size, times in leading_sizes(bench.task, batches).items())
    reading = [model.get_submodule(reader.module) for reader in layer.readers]
    products = sum(sample_products(module, images * positions, layer.channels, layer.kept) for module in reading)
    weights = sum(p.numel() for module in reading for name, p in module.named_parameters() if name == "weight")
    return (
        pass_costs(bench.lowered(model).eval(), bench.task, batches, training=False, counts=bench.counts)
        + element_ops("reconstruction", products, fp_add=1, fp_mul=1, read_bits=64)
        + element_ops("rescale", weights, fp_mul=1, read_bits=32, write_bits=32)
    )
