"""Compacting, and whether the smaller model computes what the masked one does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lowprec_eb.lowering import raise_
from lowprec_eb.tickets.calls import (
    InFloat64,
    Inputs,
    Undropped,
    call,
    random_inputs,
    take_training_branches,
    traced_copy,
)
from lowprec_eb.tickets.compaction import Compaction, plan_compaction
from lowprec_eb.tickets.graph import BATCH_NORMS
from lowprec_eb.tickets.ticket import Ticket

_TRIES = 8  # a last ReLU may be closed
_MISREAD = "its channels are coupled in a way that the dependency graph does not see"


def compact(model: nn.Module, ticket: Ticket, example_inputs: Inputs) -> nn.Module:
    """A smaller plain model whose outputs equal those of ``model`` after ``ticket.apply(model)``.

    Weights, biases and BatchNorm statistics of the surviving channels move along, and so does the low precision of a
    lowered model (:func:`lowprec_eb.raise_` takes it off). ``example_inputs``: one batch, or the model's positional or
    keyword arguments. :func:`plan_compaction` says what was not removed, and moves an optimizer.

    Raises:
        ValueError: see :func:`plan_compaction`; or see :func:`check_compaction`: the dependency graph has misread how
            this model couples its channels.
    """
    plan = plan_compaction(model, ticket, example_inputs)
    try:
        check_compaction(plan, model, example_inputs)
    except ValueError as error:
        raise ValueError(
            f"{error}; lp.channel_groups(model, example_inputs) finds groups without such channels"
        ) from error
    return plan.apply(model)


@torch.no_grad()
def check_compaction(plan: Compaction, model: nn.Module, example_inputs: Inputs) -> None:
    """Compare the compacted with the masked model on random inputs.

    In float64, so that a difference is a wrong channel and not a rounding; in eval mode, with batch statistics, and
    with the layers that only training runs. Values that are zero or no numbers, as of new layers or after a divergence,
    are drawn: they would hide what a channel changes.

    Raises:
        ValueError: they differ, the compacted model does not run, or the outputs cannot tell.
    """
    masked = traced_copy(model, example_inputs)
    branches = masked.training
    _draw_missing(masked)
    small = raise_(plan.apply(masked)).double()
    plan.ticket.apply(masked.double())
    for training in (False, True):
        for seed in range(_TRIES):
            inputs = random_inputs(example_inputs, torch.Generator().manual_seed(seed), torch.float64)
            wanted = _outputs(masked, inputs, training, training and branches)
            try:
                got = _outputs(small, inputs, training, training and branches)
            except Exception as error:  # whatever somebody's forward raises when a width is another
                raise ValueError(f"the compacted model does not run: {_first_line(error)}; {_MISREAD}") from error
            if _agree(wanted, got):
                break
        else:
            raise ValueError(
                f"nothing to compare: on {_TRIES} random inputs no output of the masked model was a number but zero"
            )


def _outputs(of: nn.Module, inputs: Any, batch_statistics: bool, branches: bool) -> list[Tensor]:
    for module in of.modules():
        module.training = batch_statistics and isinstance(module, BATCH_NORMS)
    if branches:
        take_training_branches(of)
    with Undropped(), InFloat64():
        leaves = tree_leaves(call(of, inputs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def _draw_missing(model: nn.Module) -> None:
    """Small random numbers where a parameter or a running mean is zero, infinite or no number."""
    generator = torch.Generator().manual_seed(0)
    means = [module.running_mean for module in model.modules() if isinstance(module, BATCH_NORMS)]
    for tensor in (*model.parameters(), *(mean for mean in means if mean is not None)):
        fan_in = tensor[0].numel() if tensor.dim() > 1 else 1
        drawn = torch.randn(tensor.shape, generator=generator) / max(4, fan_in) ** 0.5
        tensor.copy_(torch.where((tensor == 0) | ~tensor.isfinite(), drawn.to(tensor), tensor))


def _agree(wanted: list[Tensor], got: list[Tensor]) -> bool:
    """Whether there was anything to compare; a difference is an error."""
    telling = False
    for one, other in zip(wanted, got, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"the compacted model's output is {_shape(other)}, not {_shape(one)}; {_MISREAD}")
        finite = one.isfinite()
        one, other = one.where(finite, 0), other.where(finite, 0)
        error, scale = float((one - other).abs().max()), float(one.abs().max())
        if not error <= 1e-6 * scale:
            raise ValueError(
                f"the compacted model differs from the masked one by {error:.3g} of {scale:.3g}; {_MISREAD}"
            )
        telling = telling or scale > 0
    return telling


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
