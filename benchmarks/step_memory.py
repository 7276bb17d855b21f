"""How much memory of tensors a training step needs at its peak."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(build: Callable[[], Callable[[], Any]], device: str) -> int:
    """Largest sum of bytes in tensors while a step is built and taken twice.

    Parameters, the batch, the optimizer's state and all that is allocated in between are in it. On a CPU it is the sum
    over what torch's allocator gave and took back, as its profiler records it: temporary tensors of kernels are in it,
    memory that a library allocates by itself (oneDNN's scratch, code) is not. On a GPU it is
    ``torch.cuda.max_memory_allocated``.
    """
    gc.collect()
    return _on_gpu(build) if device == "cuda" else _on_cpu(build)


def _take_two(build: Callable[[], Callable[[], Any]]) -> None:
    step = build()
    step()  # makes the optimizer's state
    step()


def _on_gpu(build: Callable[[], Callable[[], Any]]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    _take_two(build)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _on_cpu(build: Callable[[], Callable[[], Any]]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        _take_two(build)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    peak: int = max(accumulate(change for _, change in changes))
    return peak
