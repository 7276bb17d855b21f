"""Who counts in `counting.py`: each gives the multiply-accumulates of a whole batch, asked as a user would ask."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from typing import Any

import torch
from counting_cases import BACKWARD, Case
from measuring import library
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import energy_models as em

OURS, TORCH = "energy_models", "FlopCounterMode"
MODULES = {
    "fvcore": "fvcore.nn",
    "torchinfo": "torchinfo",
    "ptflops": "ptflops",
    "calflops": "calflops",
    "thop": "thop",
}


def _by_ours(model: nn.Module, inputs: Tensor) -> int:
    return em.count(model, inputs, training=False).total_macs


def _backward_by_ours(model: nn.Module, inputs: Tensor) -> int:
    """Recomputed products included: what a step does beyond a forward pass."""
    return em.count(model, inputs).total_macs - em.count(model, inputs, training=False).total_macs


def _by_torch(model: nn.Module, inputs: Tensor) -> int:
    with torch.set_grad_enabled(model.training), FlopCounterMode(display=False) as flops:
        model(inputs)
    return int(flops.get_total_flops()) // 2


def _backward_by_torch(model: nn.Module, inputs: Tensor) -> int:
    total = model(inputs).sum()
    with FlopCounterMode(display=False) as flops:
        total.backward()
    return int(flops.get_total_flops()) // 2


def _by_fvcore(model: nn.Module, inputs: Tensor) -> int:
    analysis = library("fvcore.nn").FlopCountAnalysis(model, inputs)
    return int(analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total())


def _by_torchinfo(model: nn.Module, inputs: Tensor) -> int:
    return int(library("torchinfo").summary(model, input_data=inputs, verbose=0).total_mult_adds)


def _by_ptflops(model: nn.Module, inputs: Tensor) -> int:
    found = library("ptflops").get_model_complexity_info(
        model,
        tuple(inputs.shape[1:]) or (1,),
        as_strings=False,
        print_per_layer_stat=False,
        input_constructor=lambda _: inputs,
    )[0]
    if found is None:
        raise RuntimeError("ptflops gave up")
    return int(found * len(inputs))  # it divides by the first dimension


def _by_calflops(model: nn.Module, inputs: Tensor) -> int:
    options = {"print_results": False, "print_detailed": False, "output_as_string": False}
    return int(library("calflops").calculate_flops(model, args=[inputs], **options)[1])


def _by_thop(model: nn.Module, inputs: Tensor) -> int:
    return int(library("thop").profile(model, inputs=(inputs,), verbose=False)[0])


FORWARD_COUNTERS: dict[str, Callable[[nn.Module, Tensor], int]] = {
    OURS: _by_ours,
    TORCH: _by_torch,
    "fvcore": _by_fvcore,
    "torchinfo": _by_torchinfo,
    "ptflops": _by_ptflops,
    "calflops": _by_calflops,
    "thop": _by_thop,
}
# The others see no backward pass; the rule that their users apply, and calflops itself, is twice the forward pass.
BACKWARD_COUNTERS = {OURS: _backward_by_ours, TORCH: _backward_by_torch}


def macs(counter: str, case: Case) -> int:
    """What `counter` says of a case; raises what it raises."""
    torch.manual_seed(0)
    model, inputs = case.build(), case.inputs()
    with quiet():
        if case.what == BACKWARD and counter in BACKWARD_COUNTERS:
            return BACKWARD_COUNTERS[counter](model, inputs)
        return FORWARD_COUNTERS[counter](model, inputs) * (2 if case.what == BACKWARD else 1)


@contextlib.contextmanager
def quiet() -> Any:
    """Counters print and log."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
    logging.disable(logging.NOTSET)
