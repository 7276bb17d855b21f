"""What `quantizers.py` measures apart from tensors of a size: the cost of a call, of an import, of a first use."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

import lowprec_eb as lp

_IMPORT = """
import time, torch
start = time.perf_counter()
import lowprec_eb
print(time.perf_counter() - start)
"""
_FIRST_USE = """
import time, torch
import lowprec_eb as lp
x = torch.ones(16)
start = time.perf_counter()
lp.quantize(x, {name!r}, backend="fast")
print(time.perf_counter() - start)
"""
_KERNELS = ("fixed8", "fp8_e4m3", "int8_affine")  # of each kernel one format


def call_overhead(calls: int) -> dict[str, float]:
    """Microseconds of a call on ten elements."""
    x, trained = torch.randn(10), torch.randn(10, requires_grad=True)
    out = torch.empty(10)
    with torch.no_grad():
        found = {
            "call into out=, us": _microseconds(lambda: lp.quantize(x, lp.FP8_E4M3, out=out), calls),
            "call without gradient, us": _microseconds(lambda: lp.quantize(x, lp.FP8_E4M3), calls),
        }
    found["call with gradient, forward, us"] = _microseconds(lambda: lp.quantize(trained, lp.FP8_E4M3), calls)
    found["call without gradient, stochastic, us"] = _microseconds(
        lambda: lp.quantize(x, lp.FP8_E4M3, "stochastic", seed=1), calls
    )
    return found


def _microseconds(call: Callable[[], Any], calls: int) -> float:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def start_up(times: int) -> dict[str, float]:
    """Seconds of fresh processes, medians: the import on top of torch, first uses with an empty cache and a full."""
    found = {"import on top of torch, s": _median(_IMPORT, times)}
    with tempfile.TemporaryDirectory() as cache:
        for name in _KERNELS:
            use = _FIRST_USE.format(name=name)
            found[f"first use of {name}, cold, s"] = _median(use, 1, LOWPREC_EB_CACHE=cache)
            found[f"first use of {name}, cached, s"] = _median(use, times, LOWPREC_EB_CACHE=cache)
    return found


def _median(script: str, times: int, **environment: str) -> float:
    return statistics.median(_printed(script, environment) for _ in range(times))


def _printed(script: str, environment: dict[str, str]) -> float:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)
