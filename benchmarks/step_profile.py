"""Where the time of a training step goes, for `step_overhead.py --profile`."""

from __future__ import annotations

from typing import Any

import torch
from measuring import markdown_table, seconds
from step_contenders import Contender, Setting, build
from step_models import Workload
from torch.profiler import ProfilerActivity, profile

_STEPS = 3
_SHOWN = 15


def profile_table(contender: Contender, workload: Workload, setting: Setting) -> str:
    """Markdown: the operators with the most time of their own (on a GPU: the kernels), of a step after two others."""
    torch.set_num_threads(setting.threads)
    step = build(contender, workload, setting)
    seconds(step, 2, setting.finish)
    whole = 1e3 * seconds(step, _STEPS, setting.finish)
    activity = ProfilerActivity.CUDA if setting.device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        seconds(step, _STEPS, setting.finish)

    def own(event: Any) -> float:  # ms a step
        total: float = event.self_device_time_total if setting.device == "cuda" else event.self_cpu_time_total
        return total / 1e3 / _STEPS

    events = sorted(profiled.key_averages(), key=own, reverse=True)
    total = sum(map(own, events))
    lines = [
        [f"`{event.key[:70]}`", f"{own(event):.3g}", f"{own(event) / total:.0%}", f"{event.count / _STEPS:g}"]
        for event in events[:_SHOWN]
    ]
    rest = sum(map(own, events[_SHOWN:]))
    lines.append(["all others", f"{rest:.3g}", f"{rest / total:.0%}", ""])
    head = f"### {workload.what}: {contender.name}, {setting.name}"
    note = f"{whole:.3g} ms a step; {total:.3g} ms of it in these operators while the profiler watches"
    return "\n\n".join([head, note, markdown_table(["operator", "ms", "share", "calls a step"], lines)])
