"""Where a batch first goes bad: a replay under hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lowprec_eb.layers import LoweredModule
from lowprec_eb.quantize.reference import RefusedNaN
from lowprec_eb.rounder import Observation, watching
from lowprec_eb.trace import plain_name, uncompiled


class Place(NamedTuple):
    """A tensor that is not finite; ``parameter`` is its full name if it is one."""

    layer: str
    operand: str
    parameter: str
    value: float


class RandomState:
    """torch's random state on the CPU and the model's devices; neither is read from a device."""

    def __init__(self, model: nn.Module) -> None:
        self.cpu = torch.get_rng_state()
        devices = {p.device for p in model.parameters() if p.is_cuda}
        self.cuda = {device: torch.cuda.get_rng_state(device) for device in devices}

    @contextmanager
    def again(self) -> Iterator[None]:
        """The same random numbers inside; afterwards what was there before."""
        with torch.random.fork_rng(sorted(device.index for device in self.cuda)):
            torch.set_rng_state(self.cpu)
            for device, state in self.cuda.items():
                torch.cuda.set_rng_state(state, device)
            yield


def first_nonfinite(model: nn.Module, closure: Callable[[], Tensor], random: RandomState) -> Place | None:
    """Run ``closure`` once more and name the first tensor in time that is not finite; None: none of what is seen.

    Seen are, of every layer, its parameters, what it reads (``activation``), what it returns (``output``) and the
    gradient w.r.t. that (``error``); inside lowered layers every operand, before and after rounding.
    """
    finder = _Finder(model)
    with ExitStack() as stack:
        for context in (uncompiled(), random.again(), finder.hooked(), watching(finder.watch)):
            stack.enter_context(context)
        with suppress(RefusedNaN):  # what was seen until then tells
            closure()
    return finder.found


class _Finder:
    def __init__(self, model: nn.Module) -> None:
        self.found: Place | None = None
        self.layers = {plain_name(name): module for name, module in model.named_modules() if _is_layer(module)}
        lowered = {n: m.lowering for n, m in model.named_modules() if isinstance(m, LoweredModule)}
        self.scopes = {id(scope): plain_name(name) for name, scope in lowered.items()}

    def see(self, layer: str, operand: str, tensors: Any, parameter: str = "") -> None:
        for tensor in pytree.tree_leaves(tensors):
            if self.found is None and isinstance(tensor, Tensor) and tensor.is_floating_point():
                values = tensor.detach()
                if not values.isfinite().all():
                    value = float("nan") if values.isnan().any() else float("inf")
                    self.found = Place(layer, operand, parameter, value)

    def watch(self, seen: Observation) -> None:
        layer = self.scopes.get(id(seen.scope))
        if layer is not None:  # else another model, in another thread
            self.see(layer, seen.operand, (seen.x, seen.rounded))

    def _before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        for key, parameter in module.named_parameters(recurse=False):
            self.see(name, "weight", parameter, f"{name}.{key}".lstrip("."))
        self.see(name, "activation", (args, kwargs))

    def _after(self, name: str, output: Any) -> None:
        self.see(name, "output", output)
        for tensor in pytree.tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda error: self.see(name, "error", error))

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles: list[Any] = []
        for name, module in self.layers.items():
            before = module.register_forward_pre_hook(
                lambda m, args, kwargs, name=name: self._before(name, m, args, kwargs), with_kwargs=True
            )
            after = module.register_forward_hook(lambda m, args, output, name=name: self._after(name, output))
            handles += [before, after]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _is_layer(module: nn.Module) -> bool:
    return not any(module.children()) or any(True for _ in module.parameters(recurse=False))
