"""What the energy sensors of a machine can be trusted with: `benchmarks/energy_sensors.py --json OUT.json`.

Idle power, a loop of matrix products of some seconds by the energy counter and by integrated power at once, windows of
many lengths over a steady load, loads that come and go, and windows of work of different kinds for `lowprec-eb
calibrate`. Where there is no sensor it says so, and nothing is made up.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import energy_models as em
from energy_models.calibration import EnergyWindow
from energy_models.calibration_windows import WindowSet, WindowsHeader, components_j, write_windows
from lowprec_eb.versions import versions

LENGTHS_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
PERIODS_S = (0.02, 0.05, 0.1, 0.2)
REPEATS = 5
_CHUNK_S = 0.005


class Load:
    """Matrix products in pieces of a few milliseconds, each waited for."""

    def __init__(self, device: str, size: int):
        self.device = device
        self.a = torch.randn(size, size, device=device)
        self.times = 1
        while self.piece() < _CHUNK_S and self.times < 4096:
            self.times *= 2

    def piece(self) -> float:
        begun_s = time.monotonic()
        for _ in range(self.times):
            torch.mm(self.a, self.a)
        wait(self.device)
        return time.monotonic() - begun_s

    def run(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.piece()


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def plain(measured: em.MeasuredEnergy) -> dict[str, Any]:
    """For the file; a reading that is not there stays null."""
    return asdict(measured) | {"power_w": measured.power_w}


def counter_and_power(device: str, load: Load, seconds: float) -> dict[str, Any]:
    """The same window by both ways of NVML, which need not agree (arXiv 2312.02741)."""
    sources = [em.Nvml(device, "counter"), em.Nvml(device, "power")]
    with em.measure(sources[0], beside=[sources[1]]) as measured:
        load.run(seconds)
    counter, power = (reading.energy_j for reading in measured.readings)
    ratio = None if counter is None or power is None else power / counter
    return {"seconds": seconds, "power_over_counter": ratio, "measured": plain(measured)}


def window_lengths(device: str, load: Load) -> list[dict[str, Any]]:
    """Mean power of windows over a steady load, and how much it scatters."""
    rows = []
    for length_s in LENGTHS_S:
        powers = []
        for _ in range(REPEATS):
            with em.measure(device) as measured:
                load.run(length_s)
            powers.append(measured.power_w)
        known = [power for power in powers if power is not None]
        scatter = statistics.stdev(known) / statistics.mean(known) if len(known) > 1 else None
        rows.append({"length_s": length_s, "powers_w": powers, "relative_scatter": scatter, "note": measured.note})
    return rows


def coming_and_going(device: str, load: Load, seconds: float) -> list[dict[str, Any]]:
    """Mean power of a load that is on half of the time, by its period: a sensor that looks away part of the time may
    see more or less than half."""
    rows = []
    for period_s in PERIODS_S:
        with em.measure(device) as measured:
            end_s = time.monotonic() + seconds
            while time.monotonic() < end_s:
                begun_s = time.monotonic()
                load.run(period_s / 2)
                time.sleep(max(0.0, begun_s + period_s - time.monotonic()))
        rows.append({"period_s": period_s, "power_w": measured.power_w, "note": measured.note})
    return rows


def kinds_of_work(quick: bool) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """From many products a byte to few, and some that leave the chip waiting."""
    n = 256 if quick else 4096
    conv = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
    return {
        f"linear {2 * n}, batch {2 * n}": (nn.Linear(2 * n, 2 * n), (2 * n, 2 * n)),
        f"linear {n}, batch {n // 2}": (nn.Linear(n, n), (n // 2, n)),
        f"linear {n}, batch 64": (nn.Linear(n, n), (64, n)),
        f"linear {n}, batch 8": (nn.Linear(n, n), (8, n)),
        "conv 64, 56x56": (conv, (2 if quick else 64, 64, 56, 56)),
        "batch norm 64, 112x112": (nn.BatchNorm2d(64), (2 if quick else 64, 64, 112, 112)),
        "linear 128, batch 64": (nn.Linear(128, 128), (64, 128)),
        "linear 512, batch 16": (nn.Linear(512, 512), (16, 512)),
    }


def calibration_windows(
    device: str, profile: em.HardwareProfile, seconds: float, quick: bool
) -> tuple[list[EnergyWindow], list[str]]:
    """A window of forward and backward passes for each kind of work; those that were not measured, and why."""
    windows, missing = [], []
    for name, (model, shape) in kinds_of_work(quick).items():
        counts = em.count(model, torch.zeros(shape))
        model.to(device)
        x = torch.randn(shape, device=device)
        step = _step(model, x)
        step()
        with em.measure(device) as measured:
            steps = _repeat(step, device, seconds)
        if measured.energy_j is None:
            missing.append(f"{name}: {measured.note}")
            continue
        predicted = components_j(em.estimate(counts, profile) * steps)
        windows.append(EnergyWindow(name, measured.energy_j, measured.duration_s, predicted))
    return windows, missing


def _step(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad()
        model(x).sum().backward()

    return step


def _repeat(step: Callable[[], None], device: str, seconds: float) -> int:
    steps, end_s = 0, time.monotonic() + seconds
    while time.monotonic() < end_s:
        for _ in range(8):
            step()
        wait(device)
        steps += 8
    return steps


def main(
    json_file: Annotated[Path, typer.Option("--json", help="Results.")],
    windows_file: Annotated[Path | None, typer.Option("--windows", help="Windows for lowprec-eb calibrate.")] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    profile: Annotated[str, typer.Option(help="Hardware profile of the windows' predictions.")] = "45nm",
    seconds: Annotated[float, typer.Option(help="Of a window that is not part of a sweep.")] = 2.0,
    quick: Annotated[bool, typer.Option("--quick", help="Small work: a rehearsal.")] = False,
) -> None:
    """Check the sensors and write what they showed."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # products as they are counted
    load = Load(device, 256 if quick else 4096)
    results: dict[str, Any] = {"device": device, "versions": versions()}
    results["idle_with_context"] = plain(em.measure_idle(device, seconds=seconds))
    with em.measure(device) as measured:
        load.run(seconds)
    results["matmul"] = plain(measured)
    results["idle_after_work"] = plain(em.measure_idle(device, seconds=seconds))
    if measured.energy_j is None:
        results["no_sensor"] = measured.note
        typer.echo(f"no sensor: {measured.note}")
    else:
        if measured.source == "nvml":
            results["counter_and_power"] = counter_and_power(device, load, max(2.0, seconds))
        results["window_lengths"] = window_lengths(device, load)
        results["coming_and_going"] = coming_and_going(device, load, seconds)
        price = em.load_profile(profile)
        windows, results["not_measured"] = calibration_windows(device, price, seconds, quick)
        if windows_file is not None and windows:
            name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
            header = WindowsHeader(1, price.name, name, measured.note)
            windows_file.unlink(missing_ok=True)
            write_windows(windows_file, WindowSet(header, tuple(windows)))
    json_file.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
