"""NVML: a GPU's energy counter, or its power integrated over time where it has no counter."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import torch

from energy_models.meters.sensor import NoReading

RESOLUTION_S = 0.1
MIN_POWER_WINDOW_S = 1.0  # GA102 and newer average the power over 1 s (NVML API reference, nvmlDeviceGetPowerUsage)
POWER_PERIOD_S = 0.02
_MAX_POWER_GAP_S = 1.0  # beyond it the power in between would be a guess
_MISSES = "NVML samples the power in only part of the time (A100 and H100: 25 %, arXiv 2312.02741)"

Method = Literal["counter", "power"]


@dataclass(frozen=True)
class Nvml:
    """One GPU as torch numbers it. ``method``: its energy counter (Volta or newer), or its power integrated; None takes
    the counter, and integrates (and says so) where the GPU has none."""

    device: str = "cuda"
    method: Method | None = None
    now: Callable[[], float] = time.monotonic
    kind: str = "nvml"

    def clock(self) -> float:
        return self.now()

    def synchronize(self) -> None:
        """Raises what the GPU's work raised. A process that has not begun to use the GPU waits for nothing; one forked
        from such a process could not."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize(torch.device(self.device))

    def sensors(self) -> list[NvmlSensor]:
        if not torch.cuda.is_available():
            raise NoReading("torch sees no CUDA device, so there is no GPU to measure")
        if torch.version.hip is not None:
            raise NoReading("this is an AMD GPU, and only NVIDIA's sensors are known")
        try:
            # torch numbers the visible devices, NVML all of them: only the UUID names the same GPU in both
            uuid = f"GPU-{torch.cuda.get_device_properties(torch.device(self.device)).uuid}"
        except RuntimeError as error:  # CUDA cannot start, as in a forked process
            raise NoReading(f"torch cannot tell which GPU {self.device} is: {error}") from error
        return [NvmlSensor(f"nvml:{uuid}", uuid, self)]


@dataclass(frozen=True)
class NvmlSensor:
    """One GPU, by its UUID."""

    name: str
    uuid: str
    source: Nvml
    in_total: bool = True

    @property
    def device(self) -> str:
        return self.source.device

    def open(self) -> NvmlMeter:
        """Raises NoReading without nvidia-ml-py, without access to the GPU, and where it gives no value."""
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            raise NoReading("nvidia-ml-py is not installed: pip install 'lowprec-eb[nvml]'") from None
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise NoReading(f"NVML cannot start: {error}") from error
        try:
            return self._choose(nvml, nvml.nvmlDeviceGetHandleByUUID(self.uuid))
        except nvml.NVMLError as error:
            _shut_down(nvml)
            raise NoReading(f"NVML gives no energy of {self.uuid}: {error}") from error

    def _choose(self, nvml: ModuleType, handle: Any) -> NvmlMeter:
        if self.source.method == "power":
            return _Power(nvml, handle, self, "as was asked for")
        try:
            nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except nvml.NVMLError_NotSupported:
            if self.source.method == "counter":
                raise
            return _Power(nvml, handle, self, "since this GPU has no energy counter")
        return _Counter(nvml, handle, self)


class NvmlMeter:
    """What the two ways have in common."""

    covers: str
    resolution_s = RESOLUTION_S
    min_window_s: float
    poll_s: float | None

    def __init__(self, nvml: ModuleType, handle: Any, sensor: NvmlSensor):
        self._nvml, self._handle, self._sensor = nvml, handle, sensor

    def read(self) -> float:
        """Raises NoReading where the GPU is lost."""
        try:
            return self._joules()
        except self._nvml.NVMLError as error:
            raise NoReading(f"NVML gives no energy of {self._sensor.uuid} any more: {error}") from error

    def close(self) -> None:
        """NVML counts how often it was started; other windows go on."""
        _shut_down(self._nvml)

    def _joules(self) -> float:
        raise NotImplementedError


class _Counter(NvmlMeter):
    min_window_s = RESOLUTION_S
    poll_s = None

    def __init__(self, nvml: ModuleType, handle: Any, sensor: NvmlSensor):
        super().__init__(nvml, handle, sensor)
        self.covers = f"the energy counter of the whole GPU {sensor.uuid}, whoever uses it; {_MISSES}"

    def _joules(self) -> float:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3


class _Power(NvmlMeter):
    min_window_s = MIN_POWER_WINDOW_S
    poll_s = POWER_PERIOD_S

    def __init__(self, nvml: ModuleType, handle: Any, sensor: NvmlSensor, why: str):
        super().__init__(nvml, handle, sensor)
        self.covers = (
            f"the power of the whole GPU {sensor.uuid}, whoever uses it, read every {POWER_PERIOD_S:g} s and "
            f"integrated, {why}; {_MISSES}"
        )
        self._energy_j = 0.0
        self._last_s, self._last_w = sensor.source.now(), self._watts()

    def _watts(self) -> float:
        return int(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1e3

    def _joules(self) -> float:
        now_s, now_w = self._sensor.source.now(), self._watts()
        gap_s = now_s - self._last_s
        if gap_s > _MAX_POWER_GAP_S:
            raise NoReading(
                f"the power of {self._sensor.uuid} was not read for {gap_s:.3g} s: was the process stopped?"
            )
        self._energy_j += (now_w + self._last_w) / 2 * gap_s
        self._last_s, self._last_w = now_s, now_w
        return self._energy_j


def _shut_down(nvml: ModuleType) -> None:
    with contextlib.suppress(nvml.NVMLError):  # a lost GPU; the readings have said so
        nvml.nvmlShutdown()
