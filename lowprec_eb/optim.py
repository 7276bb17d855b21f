"""A low-precision optimizer: any torch optimizer with rounded gradients, updates, weights and state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lowprec_eb.formats import Format
from lowprec_eb.optimizer_state import STATE_OPERANDS, state_keys_of
from lowprec_eb.precision import OPTIMIZER_OPERANDS, Precision, Rounded
from lowprec_eb.quantize import draw_seeds, operator
from lowprec_eb.quantize.random_bits import derive_seed
from lowprec_eb.recipes import precision as named_precision

GROUP_OPTION = "low_precision"  # of a parameter group; False leaves its parameters as the wrapped optimizer treats them
_SEED_PLACES = ("gradient", "master", "momentum", "second_moment", "update")  # appended to, so that old seeds stay
_STATE_KEY = "low_precision"


class _Place(NamedTuple):
    """A parameter, its place among all (frozen ones too), and how to call it in a message."""

    seed_place: int
    parameter: Tensor
    name: str


class LowPrecisionOptimizer(Optimizer):
    """Around ``optimizer``: round the gradients, step, round the update, the weights and what the optimizer keeps.

    The order is that of SWALP (Yang et al. 2019, algorithm 1) without its average. Weights are put on the grid at
    construction and when a parameter group is added, so the first forward pass reads them there. Frozen parameters,
    parameters without a gradient, and groups with ``"low_precision": False`` are left alone. Stochastic rounding
    takes its seed from (seed, step, parameter, operand); seed and step are part of the state_dict, so a resumed run
    equals the uninterrupted one.

    Args:
        optimizer: the optimizer to wrap, of torch.optim or a subclass; its param_groups are shared, so schedulers
            work on either.
        precision: a recipe's name or a :class:`Precision`; its gradient, update, momentum, second_moment and master
            formats are used. May be set anew in training.
        seed: of stochastic rounding; None draws one from torch's default generator.
        gradient_scale: gradients are multiplied by it before they are rounded: one over the factor by which the loss
            was multiplied. For a factor that adapts, use ``torch.amp.GradScaler``, which divides before it steps.
        state_keys: for an optimizer that torch does not bring: under which keys its state holds ``"momentum"`` and
            ``"second_moment"``.

    Raises:
        ValueError: the optimizer's state is not known and the precision rounds it; gradient_scale is not above 0;
            the optimizer calls its closure repeatedly (LBFGS) or is differentiable.
        TypeError: ``optimizer`` is no torch optimizer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        precision: str | Precision,
        seed: int | None = None,
        *,
        gradient_scale: float = 1.0,
        state_keys: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        _check_wrapped(optimizer)
        if not 0 < gradient_scale < math.inf:
            raise ValueError(f"gradient_scale must be above 0 and finite, got {gradient_scale!r}")
        self.inner = optimizer
        self.gradient_scale = gradient_scale
        self._given_keys = {operand: tuple(keys) for operand, keys in (state_keys or {}).items()}
        self._seed = int(draw_seeds(1)) if seed is None else seed
        self.steps = 0  # taken so far, a part of the seeds; set back where a step is taken back
        self.precision = precision
        self._prepare()
        self.round_weights()

    def _prepare(self) -> None:
        """What ``Optimizer.__init__`` would set up, without its copy of the parameter groups."""
        self.defaults = self.inner.defaults
        super().__setstate__({})

    @property
    def precision(self) -> Precision:
        return self._precision

    @precision.setter
    def precision(self, value: str | Precision) -> None:
        chosen = named_precision(value)
        self._state_keys = state_keys_of(self.inner, chosen, self._given_keys)
        self._precision = chosen
        self._formats = {
            operand: (chosen.parameter_rounded(operand, 1), chosen.parameter_rounded(operand, 2))
            for operand in OPTIMIZER_OPERANDS
        }

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the wrapped optimizer, their weights on the grid."""
        self.inner.add_param_group(param_group)
        added = {id(parameter) for parameter in self.param_groups[-1]["params"]}
        self._round_weights(place for place in self._places() if id(place.parameter) in added)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def parameter_format(self, operand: str, parameter: Tensor) -> Format | None:
        """The format of ``operand`` (of the optimizer's) for this parameter; None is float32.

        Raises:
            ValueError: the parameter is in none of the groups, or ``operand`` none of the optimizer's.
        """
        if not any(parameter is known for group in self.param_groups for known in group["params"]):
            raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is in none of the optimizer's groups")
        if not any(place.parameter is parameter for place in self._places()):
            return None
        return self.precision.parameter_format(operand, parameter.dim())

    def stored_format(self, parameter: Tensor, operand: str) -> Format | None:
        """What a step rounds ``operand`` to: ``"weight"``, ``"gradient"``, ``"update"`` or a key of the state.

        It is what ``energy_models.count_optimizer`` asks for. None: float32, or left as it is.

        Raises:
            ValueError: the parameter is in none of the groups.
        """
        of_state = {key: name for name, keys in self._state_keys.items() for key in keys}
        rounded = {"weight": "master", "gradient": "gradient", "update": "update", **of_state}.get(operand)
        return None if rounded is None else self.parameter_format(rounded, parameter)

    def round_weights(self) -> None:
        """Put the weights on their grid: for weights that were loaded after the optimizer was made."""
        self._round_weights(self._places())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; ``closure``, if given, recomputes the loss first, and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.steps += 1
        touched = self._rounded or self.gradient_scale != 1
        stepped = [place for place in self._places() if place.parameter.grad is not None] if touched else []
        self._seeds = self._draw(stepped, self._rounded)
        for place in stepped:
            self._round_gradient(place)
        before = {place.seed_place: place.parameter.detach().clone() for place in stepped if self._of("update", place)}
        self.inner.step()
        for place in stepped:
            if place.seed_place in before:
                self._round_update(place, before[place.seed_place])
            self._round(place, "master", place.parameter.detach())
            self._round_state(place)
        return loss

    # Rounding ------------------------------------------------------------------------------------------------------

    def _places(self) -> Iterator[_Place]:
        """The parameters that are to be rounded. A parameter's index counts all, so that its seeds stay."""
        index = 0
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names") or [f"{place} of group {number}" for place in range(len(group["params"]))]
            for name, parameter in zip(names, group["params"], strict=True):
                if parameter.requires_grad and group.get(GROUP_OPTION, True):
                    yield _Place(index, parameter, name)
                index += 1

    @property
    def _rounded(self) -> list[str]:
        """The operands that some parameter has in a format."""
        return [operand for operand, formats in self._formats.items() if any(formats)]

    def _of(self, operand: str, place: _Place) -> Rounded | None:
        of_vectors, of_others = self._formats[operand]
        return of_others if place.parameter.dim() >= 2 else of_vectors

    def _draw(self, places: Sequence[_Place], operands: Sequence[str]) -> dict[tuple[int, str, int], Tensor]:
        """The seeds of a step by parameter, operand and part, on the parameters' devices: sent to each at once, since a
        copy for each rounding would make each of them wait for the device."""
        after = derive_seed(self._seed, self.steps)
        seeds: dict[tuple[int, str, int], Tensor] = {}
        by_device: dict[torch.device, list[tuple[int, str, int]]] = {}
        for place in places:
            for operand in operands:
                rounded = self._of(operand, place)
                if rounded is not None and rounded.rounding == "stochastic":
                    keys = by_device.setdefault(place.parameter.device, [])
                    keys += [(place.seed_place, operand, part) for part in range(self._parts(operand))]
        for device, keys in by_device.items():
            indices = [(place, _SEED_PLACES.index(operand), part) for place, operand, part in keys]
            drawn = [derive_seed(*of[: 3 if of[2] else 2], after=after) for of in indices]
            seeds |= zip(keys, torch.tensor(drawn).to(device, non_blocking=True).unbind(), strict=True)
        return seeds

    def _parts(self, operand: str) -> int:
        """How many tensors of an operand the optimizer may keep; each has random bits of its own."""
        return len(self._state_keys[operand]) if operand in STATE_OPERANDS else 1

    def _round(self, place: _Place, operand: str, tensor: Tensor, part: int = 0) -> None:
        """In place. ``part`` tells the tensors of one operand apart: each has its own random bits."""
        rounded = self._of(operand, place)
        if rounded is None:
            return
        if not tensor.is_floating_point():
            raise ValueError(
                f"parameter {place.name}, {operand}: {tensor.dtype} has no low-precision format; give its group "
                f"{GROUP_OPTION!r}: False"
            )
        seed = None
        if rounded.rounding == "stochastic":
            seed = self._seeds[place.seed_place, operand, part].to(tensor.device)
        try:
            # Straight to the operator: the checks of `quantize` take longer than rounding a small tensor.
            how: Any = (rounded.rounding, seed, None, [], None, self.precision.backend)
            operator.round_into(tensor, tensor, rounded.fmt, *how)
        except ValueError as error:
            raise type(error)(f"parameter {place.name}, {operand}: {error}") from error

    @torch.no_grad()
    def _round_weights(self, places: Iterator[_Place]) -> None:
        found = list(places)
        self._seeds = self._draw(found, ["master"])
        for place in found:
            self._round(place, "master", place.parameter.detach())

    def _round_gradient(self, place: _Place) -> None:
        gradient = place.parameter.grad
        assert gradient is not None
        if gradient.layout is not torch.strided and self._of("gradient", place):
            raise ValueError(
                f"parameter {place.name}: its gradient is sparse, and precision {self.precision.name!r} rounds "
                f"gradients; make the layer without sparse=True, or give its group {GROUP_OPTION!r}: False"
            )
        if self.gradient_scale != 1:
            gradient.mul_(self.gradient_scale)
        self._round(place, "gradient", gradient)

    def _round_update(self, place: _Place, before: Tensor) -> None:
        update = place.parameter.detach() - before
        self._round(place, "update", update)
        torch.add(before, update, out=place.parameter.detach())

    def _round_state(self, place: _Place) -> None:
        kept = self.state.get(place.parameter, {})
        for operand in STATE_OPERANDS:
            if self._of(operand, place) is None:
                continue
            for part, key in enumerate(self._state_keys[operand]):
                if isinstance(tensor := kept.get(key), Tensor):
                    self._round(place, operand, tensor, part)

    # State ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's, with seed and step of the rounding: numbers and tensors alone."""
        return super().state_dict() | {_STATE_KEY: {"seed": self._seed, "steps": self.steps}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError for the state_dict of a plain optimizer."""
        if _STATE_KEY not in state_dict:
            raise ValueError("this state_dict is of a plain optimizer: load it into the wrapped one, `.inner`")
        super().load_state_dict(state_dict)
        own = state_dict[_STATE_KEY]
        self._seed, self.steps = own["seed"], own["steps"]

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks, which torch's optimizers do not copy either."""
        kept = ("inner", "gradient_scale", "_given_keys", "_seed", "steps", "_precision", "_formats", "_state_keys")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "inner" not in state:  # from load_state_dict: what the wrapped optimizer keeps
            self.inner.__setstate__(state)
            return
        self.__dict__.update(state)
        self._prepare()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.inner!r}, {self.precision!r})"


def _check_wrapped(optimizer: Optimizer) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    kind = type(optimizer).__name__
    if isinstance(optimizer, LowPrecisionOptimizer):
        raise ValueError("the optimizer is a LowPrecisionOptimizer already: wrap its `.inner`, or set its `.precision`")
    if isinstance(optimizer, LBFGS):
        raise ValueError(f"{kind} evaluates gradients inside its step, where they cannot be rounded: use another one")
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ValueError(f"{kind} with differentiable=True: a rounded step cannot be differentiated; set it to False")
