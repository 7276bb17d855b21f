"""How long counting takes and how much memory: each counter and model in a process of its own.

`python benchmarks/counting_speed.py MODEL COUNTER ROUNDS` is such a process; it prints one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from counting_cases import LLAMA_CONTEXT, llama_7b, torchvision_models
from counting_contenders import FORWARD_COUNTERS, MODULES, OURS, TORCH, quiet
from measuring import library, seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import energy_models as em

_TIMEOUT_S = 300


@dataclass(frozen=True)
class Model:
    """What is counted: one sample. on_meta: it has no weights to compute with."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    bound_s: float
    on_meta: bool = False


def _image() -> Tensor:
    return torch.randn(1, 3, 224, 224)


MODELS = {
    "ResNet-50": Model(lambda: torchvision_models().resnet50(), _image, 1.0),
    "ViT-L/16": Model(lambda: torchvision_models().vit_l_16(), _image, 2.0),
    "Llama-7B": Model(
        *(llama_7b, lambda: torch.zeros(1, LLAMA_CONTEXT, dtype=torch.long, device="meta"), 10.0), on_meta=True
    ),
}
BOUND_GIB = 1.0


@dataclass
class Timing:
    """A counter on a model. peak_mib: by how much the process grew beyond the model; None: not known here.

    passes: what was counted; the others have no backward pass.
    """

    model: str
    counter: str
    passes: str
    first_s: float = 0.0
    median_s: float = 0.0
    peak_mib: float | None = None
    rounds: list[float] = field(default_factory=list, repr=False)


def _step_by_ours(model: nn.Module, inputs: Tensor) -> int:
    return em.count(model, inputs, training=True).total_macs


def _step_by_torch(model: nn.Module, inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as flops:
        model(inputs).sum().backward()
    return int(flops.get_total_flops()) // 2


_STEP_COUNTERS = {OURS: _step_by_ours, TORCH: _step_by_torch}


def passes(counter: str) -> str:
    return "forward, backward" if counter in _STEP_COUNTERS else "forward"


# ---- in a process of its own -------------------------------------------------------------------------------------


def measure_here(name: str, counter: str, rounds: int) -> Timing:
    """The first call and the median of `rounds` more; imports and the model are there before."""
    torch.manual_seed(0)
    model, inputs = MODELS[name].build(), MODELS[name].inputs()
    if counter in MODULES:
        torchvision_models()  # which some of them import
        library(MODULES[counter])
    if counter == TORCH:
        model, inputs = model.to("meta"), inputs.to("meta")  # its quickest way
    count = _STEP_COUNTERS.get(counter, FORWARD_COUNTERS[counter])
    found = Timing(name, counter, passes(counter))
    with quiet():
        before = _resident_mib("VmRSS")
        _forget_peak()
        found.first_s = seconds(lambda: count(model, inputs))
        peak = _resident_mib("VmHWM")
        found.rounds = [seconds(lambda: count(model, inputs)) for _ in range(rounds)]
    found.peak_mib = None if before is None or peak is None else peak - before
    found.median_s = statistics.median(found.rounds)
    return found


def _resident_mib(key: str) -> float | None:
    """A line of Linux's /proc/self/status; getrusage's peak would be that of the process that started this one."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    (kib,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith(key))
    return int(kib) / 1024


def _forget_peak() -> None:
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")


# ---- from outside ------------------------------------------------------------------------------------------------


def measure(name: str, counter: str, rounds: int) -> Timing:
    """`measure_here` in a fresh process.

    Raises:
        RuntimeError: the counter failed, with the last line that it wrote, or took too long.
    """
    command = [sys.executable, "-W", "ignore", __file__, name, counter, str(rounds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took more than {_TIMEOUT_S} s") from None
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    result = measure_here(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(json.dumps(vars(result)))  # noqa: T201
