"""A low-precision optimizer: any torch optimizer with rounded gradients, momentum and weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from lowprec_eb.formats import Format
from lowprec_eb.precision import Precision
from lowprec_eb.quantize import draw_seeds, quantize
from lowprec_eb.quantize.random_bits import derive_seed
from lowprec_eb.recipes import precision as named_precision

_KEPT: dict[str, dict[type[Optimizer], str]] = {  # where an optimizer's state has an operand
    "momentum": {SGD: "momentum_buffer", RMSprop: "momentum_buffer", Adam: "exp_avg", AdamW: "exp_avg"},
    "second_moment": {RMSprop: "square_avg", Adam: "exp_avg_sq", AdamW: "exp_avg_sq"},
}
_SEED_PLACES = ("gradient", "master", "momentum", "second_moment")  # appended to, so that old seeds stay
_STATE_KEY = "low_precision"


class LowPrecisionOptimizer(Optimizer):
    """Around ``optimizer``: round the gradients, step, round the weights and what the optimizer keeps.

    The order is that of SWALP (Yang et al. 2019, algorithm 1) without its average. Weights are put on the grid at
    construction, so the first forward pass reads them there. Frozen parameters are left alone. Stochastic rounding
    takes its seed from (seed, step, parameter, operand); seed and step are part of the state_dict, so a resumed run
    equals the uninterrupted one.

    Args:
        optimizer: the optimizer to wrap; its param_groups are shared, so schedulers work on either.
        precision: a recipe's name or a :class:`Precision`; its gradient, momentum, second_moment
            and master formats are used.
        seed: of stochastic rounding; None draws one from torch's default generator.

    Raises:
        ValueError: the precision rounds a momentum or second moment, and such an optimizer keeps none.
    """

    def __init__(self, optimizer: Optimizer, precision: str | Precision, seed: int | None = None) -> None:
        self.precision = named_precision(precision)
        self._state_keys = {operand: _state_key(optimizer, operand, self.precision) for operand in _KEPT}
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
        """The format of ``operand`` (of the optimizer's) for this parameter; None is float32."""
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
        for operand, key in self._state_keys.items():
            self._round_all(operand, lambda p, key=key: self.inner.state.get(p, {}).get(key))  # type: ignore[misc]
        return loss

    def _round_all(self, operand: str, tensor_of: Callable[[Tensor], Tensor | None]) -> None:
        place = _SEED_PLACES.index(operand)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            rounded, tensor = self.precision.parameter_rounded(operand, parameter.dim()), tensor_of(parameter)
            if rounded is None or tensor is None or not parameter.requires_grad:
                continue
            seed = derive_seed(self._seed, self._steps, index, place)
            rounding: Any = rounded.rounding
            tensor.copy_(quantize(tensor, rounded.fmt, rounding, seed=seed, backend=self.precision.backend))

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict() | {_STATE_KEY: {"seed": self._seed, "steps": self._steps}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if _STATE_KEY not in state_dict:
            raise ValueError("this state_dict is of a plain optimizer: load it into the wrapped one, `.inner`")
        own = state_dict[_STATE_KEY]
        self.inner.load_state_dict({key: value for key, value in state_dict.items() if key != _STATE_KEY})
        self._seed, self._steps = own["seed"], own["steps"]


def _state_key(optimizer: Optimizer, operand: str, precision: Precision) -> str | None:
    """The name of ``operand`` in the optimizer's state; None where it keeps none and the precision rounds none."""
    kept = _KEPT[operand]
    key = next((key for kind, key in kept.items() if isinstance(optimizer, kind)), None)
    if key is None and precision.of(operand) is not None:
        raise ValueError(
            f"precision {precision.name!r} rounds the {operand} of an optimizer, and {type(optimizer).__name__} keeps "
            f"none: use {', '.join(kind.__name__ for kind in kept)}, or a precision with {operand}=None"
        )
    return key
