"""What a step changes, kept so that the step can be taken back, on the device too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowprec_eb.layers import LoweredModule
from lowprec_eb.optim import LowPrecisionOptimizer


class _Copies:
    """Copies of tensors in memory that is kept from step to step."""

    def __init__(self) -> None:
        self.live: list[Tensor] = []
        self.saved: list[Tensor] = []

    @torch.no_grad()
    def take(self, tensors: Sequence[Tensor]) -> None:
        self.live = [tensor.detach() for tensor in tensors]
        if [_kind(t) for t in self.live] != [_kind(t) for t in self.saved]:
            self.saved = [torch.empty_like(t) for t in self.live]
        if self.live:
            torch._foreach_copy_(self.saved, self.live)

    @torch.no_grad()
    def put_back(self) -> None:
        if self.live:
            torch._foreach_copy_(self.live, self.saved)

    @torch.no_grad()
    def put_back_where(self, bad: Tensor) -> None:
        for live, saved in zip(self.live, self.saved, strict=True):
            torch.where(bad.to(live.device, non_blocking=True), saved, live, out=live)


def _kind(tensor: Tensor) -> Any:
    return tensor.shape, tensor.dtype, tensor.device


class Snapshot:
    """The state of model and optimizer around one step.

    Buffers and running ranges change in the forward pass and are kept before it; parameters and what the optimizer
    keeps change in the step. Random state is not taken back: a skipped batch had its forward pass.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.buffers, self.values = _Copies(), _Copies()
        self.ranges: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        self.known: dict[Tensor, dict[str, Any]] = {}
        self.seed_steps = 0

    def before_forward(self) -> None:
        scopes = [module.lowering for module in self.model.modules() if isinstance(module, LoweredModule)]
        self.ranges = [(scope.ranges, dict(scope.ranges)) for scope in scopes]
        self.buffers.take(list(self.model.buffers()))

    def before_step(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.known = {p: dict(self.optimizer.state[p]) for p in parameters if p in self.optimizer.state}
        kept = [v for of in self.known.values() for v in of.values() if isinstance(v, Tensor)]
        self.values.take([*parameters, *kept])
        if isinstance(self.optimizer, LowPrecisionOptimizer):
            self.seed_steps = self.optimizer.steps

    def has_new(self) -> bool:
        """Whether the step made state that was not there before, as the first one does."""
        kept = sum(len(self.optimizer.state[p]) for p in self.optimizer.state)
        ranges = any(now.keys() != before.keys() for now, before in self.ranges)
        return ranges or kept != sum(len(of) for of in self.known.values())

    def undo_forward(self) -> None:
        self.buffers.put_back()
        for now, before in self.ranges:
            now.clear()
            now.update(before)

    def undo(self) -> None:
        """Everything as it was, to the last bit."""
        self.undo_forward()
        self.values.put_back()
        for parameter in list(self.optimizer.state):
            if parameter in self.known:
                self.optimizer.state[parameter].clear()
                self.optimizer.state[parameter].update(self.known[parameter])
            else:
                del self.optimizer.state[parameter]
        if isinstance(self.optimizer, LowPrecisionOptimizer):
            self.optimizer.steps = self.seed_steps

    def undo_where(self, bad: Tensor) -> None:
        """The same where the 0-d ``bad`` is true, which the host does not know; nothing new may have been made."""
        self.buffers.put_back_where(bad)
        self.values.put_back_where(bad)
        for now, before in self.ranges:
            for key, value in before.items():
                now[key] = torch.where(bad.to(value.device, non_blocking=True), value, now[key])

    def check_undoable_unseen(self, device: torch.device) -> None:
        """Raises ValueError where the host would have to know whether a step was bad."""
        for of in self.known.values():
            for key, value in of.items():
                if not isinstance(value, Tensor) or value.device.type != device.type:
                    where = "is no tensor" if not isinstance(value, Tensor) else f"is on the {value.device.type}"
                    raise ValueError(
                        f"a step of {type(self.optimizer).__name__} cannot be skipped without waiting for the device: "
                        f"its state {key!r} {where}; make the optimizer with capturable=True, or set check_every: 1"
                    )
