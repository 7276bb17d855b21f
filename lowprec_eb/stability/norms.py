"""Norms of everything that a step reads and writes, judged on the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowprec_eb.optim import LowPrecisionOptimizer
from lowprec_eb.optimizer_state import operand_of

JUDGED = ("loss", "gradient", "momentum", "master")  # for explosions; other state must only be finite
_DECAY = 0.99  # of the running mean: about a hundred steps


class Slot(NamedTuple):
    """One number of a step: the norm of ``operand`` of the parameter ``name`` (empty: the loss itself)."""

    operand: str
    name: str


class Judged(NamedTuple):
    """Some numbers of one step, on the device; ``norms`` and ``flags`` (bad or not) have shape (slots,)."""

    slots: Sequence[Slot]
    norms: Tensor
    flags: Tensor
    whole: Tensor  # by judged operand the norm over all layers, shape (4,); 0 where the operand is not among the slots


def trained(model: nn.Module, optimizer: Optimizer) -> dict[str, nn.Parameter]:
    """The optimizer's trainable parameters by their names in the model.

    Raises:
        ValueError: one of them is not the model's.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    chosen = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if missing := sum(id(p) not in names for p in chosen):
        raise ValueError(
            f"{missing} of the optimizer's parameters are none of {type(model).__name__}'s: give the monitor the model "
            "that holds all that is trained"
        )
    return {names[id(p)]: p for p in chosen}


def before_step(loss: Tensor, parameters: dict[str, nn.Parameter]) -> tuple[list[Slot], list[Tensor | None]]:
    """The loss and the gradients."""
    slots = [Slot("loss", ""), *(Slot("gradient", name) for name in parameters)]
    return slots, [loss, *(p.grad for p in parameters.values())]


def after_step(parameters: dict[str, nn.Parameter], optimizer: Optimizer) -> tuple[list[Slot], list[Tensor | None]]:
    """What the optimizer keeps (step counters and other single numbers aside), and the weights that it wrote."""
    inner = optimizer.inner if isinstance(optimizer, LowPrecisionOptimizer) else optimizer
    kept: dict[str, list[tuple[Slot, Tensor]]] = {"momentum": []}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0:
                operand = operand_of(inner, key)
                kept.setdefault(operand, []).append((Slot(operand, name), value))
    found = [item for of_operand in kept.values() for item in of_operand]
    slots = [*(slot for slot, _ in found), *(Slot("master", name) for name in parameters)]
    return slots, [*(value for _, value in found), *parameters.values()]


def norms_of(tensors: Sequence[Tensor | None], device: torch.device) -> Tensor:
    """L2 norms in float32, zero for None; shape (len(tensors),). Nothing waits for the device."""
    found: list[Tensor] = [torch.zeros((), device=device)] * len(tensors)
    alike: dict[Any, list[tuple[int, Tensor]]] = {}
    for place, tensor in enumerate(tensors):
        if tensor is not None:
            values = tensor.detach()
            values = values._values() if values.is_sparse else values
            alike.setdefault((values.dtype, values.device), []).append((place, values))
    for (dtype, _), group in alike.items():
        wide = torch.float32 if dtype.itemsize < 4 else None  # the norm itself could overflow in half precision
        norms = torch._foreach_norm([values for _, values in group], 2, wide)
        for (place, _), norm in zip(group, norms, strict=True):
            found[place] = norm.to(device, torch.float32, non_blocking=True)
    return torch.stack(found)


class Levels:
    """What is usual: for each judged operand the largest running mean so far of its norm over all layers.

    The largest, not the latest: a model that has nearly fitted its data has tiny losses and gradients, and one hard
    batch is no explosion. All layers together: a layer that was silent and wakes up is none either.
    """

    def __init__(self, device: torch.device, factor: float, above: float | None) -> None:
        self.factor, self.above = factor, math.inf if above is None else above
        self.mean, self.highest = torch.zeros(len(JUDGED), device=device), torch.zeros(len(JUDGED), device=device)
        self.steps = torch.zeros((), device=device)

    def judge(self, slots: Sequence[Slot], tensors: Sequence[Tensor | None]) -> Judged:
        """``slots`` of one operand stand side by side."""
        norms = norms_of(tensors[1:] if slots[0].operand == "loss" else tensors, self.mean.device)
        if slots[0].operand == "loss":  # with its sign
            loss = tensors[0]
            assert loss is not None
            norms = torch.cat([loss.detach().to(self.mean.device, torch.float32).reshape(1), norms])
        usual = torch.where(self.highest > 0, self.highest * self.factor, torch.inf).clamp_max(self.above)
        limits, whole = [], []
        operands = [slot.operand for slot in slots]
        for operand in dict.fromkeys(operands):
            judged = operand in JUDGED
            limit = usual[JUDGED.index(operand)] if judged else self.mean.new_full((), math.inf)
            limits.append(limit.expand(operands.count(operand)))
        for operand in JUDGED:
            first, count = (operands.index(operand), operands.count(operand)) if operand in operands else (0, 0)
            whole.append(torch.linalg.vector_norm(norms[first : first + count]))
        flags = (norms.abs() > torch.cat(limits)) | ~norms.isfinite()
        return Judged(slots, norms, flags, torch.stack(whole))

    def follow(self, whole: Tensor, accepted: Tensor) -> None:
        """Take in the norms over all layers of a step, shape (4,), if it was ``accepted`` (0-d bool)."""
        self.steps = self.steps + accepted
        self.mean = torch.where(accepted, _DECAY * self.mean + (1 - _DECAY) * whole, self.mean)
        corrected = self.mean / (1 - _DECAY**self.steps).clamp_min(1 - _DECAY)
        self.highest = torch.where(accepted, torch.maximum(self.highest, corrected), self.highest)

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in ("mean", "highest", "steps")}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name in ("mean", "highest", "steps"):
            setattr(self, name, state[name].to(self.mean.device, copy=True))


def first_bad(slots: Sequence[Slot], norms: Sequence[float], flags: Sequence[bool]) -> tuple[Slot, float]:
    """The slot to blame: in the order in which a step computes, in the backward pass from the last layer to the first.

    What is not finite comes before what explodes; among exploding tensors of an operand it is the largest, since they
    differ in size and not in order.
    """
    bad = [place for place, flag in enumerate(flags) if flag]
    lost = [place for place in bad if not math.isfinite(norms[place])]
    operand = slots[(lost or bad)[0]].operand
    same = [place for place in lost or bad if slots[place].operand == operand]
    if not lost:
        same = [max(same, key=lambda place: abs(norms[place]))]
    place = same[-1] if operand == "gradient" else same[0]
    return slots[place], norms[place]
