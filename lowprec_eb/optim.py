"""A low-precision optimizer: any torch optimizer with rounded gradients, momentum and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowprec_eb.formats import Format
from lowprec_eb.precision import Precision
from lowprec_eb.precision import precision as named_precision
from lowprec_eb.quantize import draw_seeds, quantize
from lowprec_eb.quantize.random_bits import derive_seed

_MOMENTUM = "momentum_buffer"
_STATE_KEY = "low_precision"


class LowPrecisionOptimizer(Optimizer):
    """Around ``optimizer``: round the gradients, step, round the weights and the momentum.

    The order is that of SWALP (Yang et al. 2019, algorithm 1) without its average. Weights are put on the grid at
    construction, so the first forward pass reads them there. Frozen parameters are left alone. Stochastic rounding
    takes its seed from (seed, step, parameter, operand); seed and step are part of the state_dict, so a resumed run
    equals the uninterrupted one.

    Args:
        optimizer: the optimizer to wrap; its param_groups are shared, so schedulers work on either.
        precision: a recipe's name or a :class:`Precision`; its gradient, momentum and master formats are used.
        seed: of stochastic rounding; None draws one from torch's default generator.

    Raises:
        ValueError: a momentum format is asked for and the optimizer's state is not SGD's.
    """

    def __init__(self, optimizer: Optimizer, precision: str | Precision, seed: int | None = None) -> None:
        self.precision = named_precision(precision)
        if self.precision.momentum is not None and not isinstance(optimizer, torch.optim.SGD):
            raise ValueError(
                f"precision {self.precision.name!r} rounds the momentum of torch.optim.SGD; "
                f"{type(optimizer).__name__} keeps other state: use SGD, or a precision with momentum=None"
            )
        self.inner = optimizer
        self.defaults = optimizer.defaults
        self._seed, self._steps = int(draw_seeds(1)) if seed is None else seed, 0
        self._hooks()
        self._round_all("master", lambda p: p.data)

    def _hooks(self) -> None:
        """What ``Optimizer.__init__`` would set up, without its copy of the parameter groups."""
        self._optimizer_step_pre_hooks = self.inner._optimizer_step_pre_hooks
        self._optimizer_step_post_hooks = self.inner._optimizer_step_post_hooks

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.inner.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def parameter_format(self, operand: str, parameter: Tensor) -> Format | None:
        """The format of ``operand`` (gradient, momentum, master) for this parameter; None is float32."""
        return self.precision.parameter_format(operand, parameter.dim()) if parameter.requires_grad else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure``, if given, recomputes the loss first, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._steps += 1
        self._round_all("gradient", lambda p: p.grad)
        self.inner.step()
        self._round_all("master", lambda p: p.data if p.grad is not None else None)
        self._round_all("momentum", lambda p: self.inner.state.get(p, {}).get(_MOMENTUM))
        return loss

    def _round_all(self, operand: str, tensor_of: Callable[[Tensor], Tensor | None]) -> None:
        place = ("gradient", "master", "momentum").index(operand)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            fmt, tensor = self.parameter_format(operand, parameter), tensor_of(parameter)
            if fmt is None or tensor is None:
                continue
            seed = derive_seed(self._seed, self._steps, index, place)
            rounding, backend = self.precision.rounding, self.precision.backend
            tensor.copy_(quantize(tensor, fmt, rounding, seed=seed, backend=backend))  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict() | {_STATE_KEY: {"seed": self._seed, "steps": self._steps}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if _STATE_KEY not in state_dict:
            raise ValueError("this state_dict is of a plain optimizer: load it into the wrapped one, `.inner`")
        own = state_dict[_STATE_KEY]
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != _STATE_KEY})
        self._seed, self._steps = own["seed"], own["steps"]
