"""Who takes a training step in `step_overhead.py`: plain float32, each recipe, and others with the same quantizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from measuring import library
from step_models import Workload
from torch import Tensor, nn
from torch.nn import functional as F

import lowprec_eb as lp

PLAIN, LOWERED, REFERENCE, QTORCH = "fp32", "lowprec-eb", "plain torch", "qtorch"
OTHERS = {REFERENCE: ("swalp8", "bfp8"), QTORCH: ("swalp8",)}
_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Setting:
    """What all contenders of a comparison share. batch: at most that many samples; None takes the workload's.

    functional: also lower the products that attention computes by a function.
    """

    device: str = "cpu"
    threads: int = 1
    compiled: bool = False
    functional: bool = False
    batch: int | None = None

    @property
    def where(self) -> str:
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}" if self.device == "cpu" else self.device

    @property
    def name(self) -> str:
        return f"{self.where}, compiled" if self.compiled else self.where

    def finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Contender:
    """A recipe, and by whom it is carried out; the recipe of the plain model is fp32."""

    recipe: str
    by: str

    @property
    def name(self) -> str:
        return self.by if self.by == PLAIN else f"{self.recipe} by {self.by}"


class Step:
    """A whole training step: forward, backward, optimizer, always on the same batch."""

    def __init__(
        self, model: nn.Module, forward: Callable[..., Tensor], optimizer: Any, batch: tuple[Tensor, Tensor]
    ) -> None:
        self.model, self.forward, self.optimizer = model, forward, optimizer
        self.inputs, self.targets = batch
        self.loss = torch.zeros(())

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.forward(self.inputs).flatten(0, -2), self.targets.flatten())
        loss.backward()
        self.optimizer.step()
        self.loss = loss.detach()  # without the graph, and what that may hold


def contenders(recipes: Sequence[str], against: Sequence[str]) -> Iterator[Contender]:
    """The plain model first, the slow ones last."""
    yield Contender("fp32", PLAIN)
    for recipe in recipes:
        yield Contender(recipe, LOWERED)
    for by in against:
        for recipe in OTHERS[by]:
            if recipe in recipes:
                yield Contender(recipe, by)


def build(contender: Contender, workload: Workload, setting: Setting) -> Step:
    """A model of its own, the same for every contender, and its step."""
    torch.manual_seed(0)
    model = workload.build().to(setting.device)
    if workload.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch has no overload for it
    samples = min(workload.batch, setting.batch or workload.batch)
    inputs, targets = workload.example(batch=samples, generator=torch.Generator().manual_seed(0))
    optimizer = _optimizer(contender, model, setting)
    forward = _compiled(model, contender) if setting.compiled else model
    return Step(model, forward, optimizer, (inputs.to(setting.device), targets.to(setting.device)))


def _optimizer(contender: Contender, model: nn.Module, setting: Setting) -> Any:
    """The optimizer of a model that is lowered here, if at all."""
    # Momentum alone: of Adam's state qtorch's optimizer rounds the second moment too, which no recipe does.
    optimizer = torch.optim.SGD(model.parameters(), _LEARNING_RATE, momentum=0.9)
    if contender.by == PLAIN:
        return optimizer
    if contender.by == QTORCH:
        return lowered_by_qtorch(model, optimizer)
    backend = "reference" if contender.by == REFERENCE else "auto"
    precision = lp.precision(contender.recipe, backend=backend)
    lp.lower(model, precision, functional=setting.functional)
    return lp.LowPrecisionOptimizer(optimizer, precision)


def lowered_by_qtorch(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """swalp8's places: what convolutions and linear layers write, the last one's excepted, and the optimizer.

    An embedding stays in float32: qtorch has no layer type for it.
    """
    auto_low, optim, quant = (library(f"qtorch.{name}") for name in ("auto_low", "optim", "quant"))
    number = library("qtorch").BlockFloatingPoint(wl=8, dim=0)
    auto_low.lower(model, layer_types=["conv", "linear"], forward_number=number, backward_number=number)
    *_, last = (module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    del last.forward  # qtorch's, on the instance
    round_: Callable[[Tensor], Tensor] = quant.quantizer(forward_number=number)
    return optim.OptimLP(optimizer, weight_quant=round_, grad_quant=round_, momentum_quant=round_)


def _compiled(model: nn.Module, contender: Contender) -> Callable[..., Tensor]:
    def forward(inputs: Tensor) -> Tensor:
        result: Tensor = model(inputs)
        return result

    # One code object for all contenders would be compiled anew for each, and given up after eight.
    code = forward.__code__.replace(co_name="".join(letter if letter.isalnum() else "_" for letter in contender.name))
    own = FunctionType(code, forward.__globals__, code.co_name, None, forward.__closure__)
    compiled: Callable[..., Tensor] = torch.compile(own, fullgraph=True)
    return compiled
