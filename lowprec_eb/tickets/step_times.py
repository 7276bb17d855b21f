"""The measured time of a training step of two models, side by side."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from energy_models import Range
from lowprec_eb.tickets.calls import Inputs, call

_WARM_UP = 2  # steps of each
_FEWEST, _MOST = 5, 25  # rounds


@dataclass(frozen=True)
class StepTimes:
    """Seconds of forward and backward of two models on one batch, round by round in turn, so that what else the machine
    does meets both alike.
    """

    before_s: tuple[float, ...]
    after_s: tuple[float, ...]
    device: str
    threads: int

    @property
    def median_s(self) -> tuple[float, float]:
        """Of the rounds, before and after."""
        return float(np.median(self.before_s)), float(np.median(self.after_s))

    @property
    def ratio(self) -> Range:
        """After over before: the median of the rounds' ratios, between their quartiles. The span is the noise."""
        ratios = np.divide(self.after_s, self.before_s)
        return Range(*map(float, np.quantile(ratios, (0.25, 0.5, 0.75))))

    def __str__(self) -> str:
        before, after = (1e3 * seconds for seconds in self.median_s)
        where = self.device if self.device != "cpu" else f"cpu, threads: {self.threads}"
        ratio, rounds = self.ratio, len(self.before_s)
        return (
            f"step time measured on {where}: {before:.3g} ms before, {after:.3g} ms after, x{ratio.nominal:.3g} "
            f"(quartiles of {rounds} alternating rounds {ratio.low:.3g}-{ratio.high:.3g})"
        )

    def to_tree(self) -> dict[str, Any]:
        """Plain data, for a JSON file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> StepTimes:
        return cls(tuple(tree["before_s"]), tuple(tree["after_s"]), tree["device"], tree["threads"])


def measure_steps(before: nn.Module, after: nn.Module, example_inputs: Inputs, budget_s: float = 4.0) -> StepTimes:
    """Time forward and backward of both on ``example_inputs``, from 5 to 25 rounds within about ``budget_s`` seconds.

    Copies are run, on the device of ``before``; models, gradients, statistics and torch's random state stay as they
    are. The backward pass starts from the mean square of the outputs; the optimizer's step is not in it. A lowered
    model is timed with the simulation of its low precision, which says nothing about hardware that has it.
    """
    device = next(before.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        copies = [copy.deepcopy(model).train() for model in (before, after)]
        seconds: tuple[list[float], list[float]] = ([], [])
        for model in copies * _WARM_UP:
            _step_s(model, example_inputs, device)
        end = time.perf_counter() + budget_s
        while len(seconds[0]) < _FEWEST or (len(seconds[0]) < _MOST and time.perf_counter() < end):
            for model, of in zip(copies, seconds, strict=True):
                of.append(_step_s(model, example_inputs, device))
    return StepTimes(tuple(seconds[0]), tuple(seconds[1]), _device_name(device), torch.get_num_threads())


def _step_s(model: nn.Module, inputs: Inputs, device: torch.device) -> float:
    model.zero_grad(set_to_none=True)
    _wait(device)
    began = time.perf_counter()
    leaves = [leaf for leaf in tree_leaves(call(model, inputs)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    sum((leaf.float().square().mean() for leaf in leaves), torch.zeros((), device=device)).backward()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
