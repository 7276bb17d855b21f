"""Stand-ins for sensors: a tree of powercap files, an NVML module, and a clock that stands still until it is told."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from energy_models import MeasuredEnergy, Nvml, Rapl

RANGE_UJ = 262_143_328_850


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.time_s = 100.0

    def __call__(self) -> float:
        return self.time_s

    def tick(self, seconds: float) -> None:
        self.time_s += seconds


class FakeRapl:
    """The powercap files of a machine."""

    def __init__(self, root: Path) -> None:
        self.root, self.clock = root, Clock()

    def domain(self, folder: str, name: str, energy_uj: int = 0, range_uj: int = RANGE_UJ) -> Path:
        path = self.root / folder
        path.mkdir(parents=True)
        (path / "name").write_text(f"{name}\n")
        (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
        (path / "energy_uj").write_text(f"{energy_uj}\n")
        return path / "energy_uj"

    def source(self) -> Rapl:
        return Rapl(self.root, self.clock)

    def run(self, seconds: float, **energies_j: float) -> None:
        """Let time pass, and counters (``package_0=2.5`` by the domain's name) gain joules and wrap."""
        self.clock.tick(seconds)
        for path in self.root.iterdir():
            name = (path / "name").read_text().strip().replace("-", "_")
            if name in energies_j:
                range_uj = int((path / "max_energy_range_uj").read_text())
                now_uj = int((path / "energy_uj").read_text()) + round(energies_j[name] * 1e6)
                set_counter(path / "energy_uj", now_uj % range_uj)


def set_counter(counter: Path, energy_uj: int) -> None:
    new = counter.with_name("new")
    new.write_text(f"{energy_uj}\n")
    new.replace(counter)  # a reader never sees half a number, as in sysfs


class FakeNvml(types.ModuleType):
    """Only what the meters call, for one GPU with the UUID GPU-beef-1.

    ``energy_mj`` and ``power_mw`` are what it shows; an exception there is raised.
    """

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):
        pass

    def __init__(self, energy_mj: int | Exception = 0, power_mw: int | Exception = 0):
        super().__init__("pynvml")
        self.calls: list[str] = []
        self.energy_mj, self.power_mw = energy_mj, power_mw
        self.started = 0
        self.clock = Clock()

    def nvmlInit(self) -> None:
        self.started += 1

    def nvmlShutdown(self) -> None:
        if not self.started:
            raise self.NVMLError("Uninitialized")
        self.started -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-beef-1":
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self._shown("energy", self.energy_mj)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._shown("power", self.power_mw)

    def source(self, device: str = "cuda:1", **options: Any) -> Nvml:
        return Nvml(device, now=self.clock, **options)

    def run(self, seconds: float, energy_j: float) -> None:
        assert isinstance(self.energy_mj, int)
        self.clock.tick(seconds)
        self.energy_mj += round(energy_j * 1e3)

    def _shown(self, call: str, value: int | Exception) -> int:
        self.calls.append(call)
        if isinstance(value, Exception):
            raise value
        return value


InstallGpu = Callable[[FakeNvml], FakeNvml]


def install_gpu(monkeypatch: pytest.MonkeyPatch) -> InstallGpu:
    """A machine with two GPUs as torch sees it, whose NVML is the given one."""

    def install(nvml: FakeNvml) -> FakeNvml:
        monkeypatch.setitem(__import__("sys").modules, "pynvml", nvml)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: nvml.calls.append(f"sync {device}"))
        monkeypatch.setattr(torch.version, "hip", None)
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid=f"beef-{device.index or 0}")
        )
        return nvml

    return install


def assert_not_measured(result: MeasuredEnergy, reason: str) -> None:
    assert result.energy_j is None
    assert result.source is None
    assert (result.power_w, result.idle_j, result.active_j) == (None, None, None)
    assert reason in result.note
    assert result.duration_s >= 0
