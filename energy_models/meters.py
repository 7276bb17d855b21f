"""Measured energy of a piece of code: NVML counts a GPU's joules, RAPL those of the CPU packages.

What was not measured is None with the reason, never 0 and never a guess.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

POWERCAP = Path("/sys/class/powercap")
MIN_NVML_WINDOW_S = 0.1  # NVML samples only part of the time: shorter windows mean nothing (arXiv 2312.02741)
_MAX_PACKAGE_W = 1000.0  # no CPU package draws more: it bounds how soon a RAPL counter can wrap


@dataclass
class MeasuredEnergy:
    """Filled when the ``measure`` block ends, which is why it is not frozen; until then nothing counts as measured."""

    device: str
    energy_j: float | None = None
    duration_s: float = math.nan
    source: str | None = None  # "nvml" | "rapl" | None
    note: str = "the measured block has not ended"  # why energy_j is None, or what it covers


class _NoReading(Exception):
    """A sensor that is absent or gives no value; the message is for the person at the keyboard."""


@contextlib.contextmanager
def measure(device: str | None = None, sysfs: Path = POWERCAP) -> Iterator[MeasuredEnergy]:
    """Measure the energy and the time of a ``with`` block; yields the MeasuredEnergy that is filled at its end.

    ``device`` "cuda" or "cuda:N" measures that GPU through NVML (synchronised at both ends), "cpu" measures all CPU
    packages through RAPL below ``sysfs``; None means the current GPU if torch sees one, else the CPU. Both sensors see
    everything that runs on the device, other processes too. A missing sensor gives ``energy_j=None`` and a note.
    Raises ValueError for a device that torch does not know.
    """
    target = _resolve(device)
    result = MeasuredEnergy(device=str(target))
    with contextlib.ExitStack() as cleanup:
        finish, reason = _start(target, sysfs, cleanup)
        start_s = time.perf_counter()
        yield result
        if target.type == "cuda" and torch.cuda.is_available():
            torch.cuda.synchronize(target)
        result.duration_s = time.perf_counter() - start_s
        result.note = reason
        if finish is not None:
            _finish(result, finish)


def _resolve(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError:
        raise ValueError(f"measure: torch knows no device {device!r}; use 'cpu', 'cuda' or 'cuda:N'") from None
    gpus = torch.cuda.device_count()
    if target.type == "cuda" and target.index is not None and 0 < gpus <= target.index:
        raise ValueError(f"measure: there is no device {device!r}; torch sees cuda:0 to cuda:{gpus - 1}")
    return target


_Finish = Callable[[float], tuple[float, str]]  # window in s -> (energy in J, what it covers)


def _start(target: torch.device, sysfs: Path, cleanup: contextlib.ExitStack) -> tuple[_Finish | None, str]:
    """Begin to measure; either the function that ends it, or the reason why there is none."""
    try:
        if target.type == "cuda":
            return _start_nvml(target, cleanup), ""
        if target.type == "cpu":
            return _start_rapl(sysfs, cleanup), ""
    except _NoReading as error:
        return None, str(error)
    return None, f"no sensor is known for the device {target}; 'cpu' and 'cuda' can be measured"


def _finish(result: MeasuredEnergy, finish: _Finish) -> None:
    try:
        energy_j, covers = finish(result.duration_s)
    except _NoReading as error:
        result.note = str(error)
        return
    if energy_j == 0:
        result.note = f"the energy counter did not move within {result.duration_s:.3g} s: measure a longer window"
        return
    result.energy_j, result.note = energy_j, covers
    result.source = "nvml" if result.device.startswith("cuda") else "rapl"


# ---- GPU ---------------------------------------------------------------------------------------------------------


def _start_nvml(target: torch.device, cleanup: contextlib.ExitStack) -> _Finish:
    if not torch.cuda.is_available():
        raise _NoReading("torch sees no CUDA device, so there is no GPU to measure")
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        raise _NoReading("nvidia-ml-py is not installed: pip install 'lowprec-eb[nvml]'") from None
    # torch numbers the visible devices, NVML all of them: only the UUID names the same GPU in both
    uuid = f"GPU-{torch.cuda.get_device_properties(target).uuid}"
    try:
        nvml.nvmlInit()
        cleanup.callback(nvml.nvmlShutdown)
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        raise _NoReading(f"NVML does not give access to {uuid}: {error}") from error
    torch.cuda.synchronize(target)
    start_mj = _read_nvml_mj(nvml, handle)

    def finish(window_s: float) -> tuple[float, str]:
        if window_s < MIN_NVML_WINDOW_S:
            raise _NoReading(f"the window of {window_s:.3g} s is below {MIN_NVML_WINDOW_S} s, where NVML means nothing")
        return (_read_nvml_mj(nvml, handle) - start_mj) / 1e3, f"the whole GPU {uuid}"

    return finish


def _read_nvml_mj(nvml: ModuleType, handle: object) -> int:
    try:
        return int(nvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except nvml.NVMLError as error:
        raise _NoReading(f"NVML gives no energy counter for this GPU: {error}") from error


# ---- CPU ---------------------------------------------------------------------------------------------------------


def _start_rapl(sysfs: Path, cleanup: contextlib.ExitStack) -> _Finish:
    counters = [_RaplCounter(domain) for domain in _rapl_packages(sysfs)]
    stop = threading.Event()
    failures: list[_NoReading] = []

    def poll() -> None:  # often enough that no counter wraps twice unseen, however long the window
        period_s = min(counter.range_uj for counter in counters) / 1e6 / _MAX_PACKAGE_W / 2
        while not stop.wait(period_s) and not failures:
            try:
                for counter in counters:
                    counter.update()
            except _NoReading as error:
                failures.append(error)

    thread = threading.Thread(target=poll, name="rapl", daemon=True)

    def halt() -> None:
        stop.set()
        thread.join()

    cleanup.callback(halt)
    thread.start()

    def finish(window_s: float) -> tuple[float, str]:
        halt()
        if failures:
            raise failures[0]
        for counter in counters:
            counter.update()
        energy_j = sum(counter.total_uj for counter in counters) / 1e6
        return energy_j, f"{', '.join(counter.name for counter in counters)}: whole CPU packages, without DRAM"

    return finish


def _rapl_packages(sysfs: Path) -> list[Path]:
    """Package domains only: cores (intel-rapl:0:0) are inside a package, and "psys" contains all of them."""
    domains = [path for path in sorted(sysfs.glob("intel-rapl:*")) if re.fullmatch(r"intel-rapl:\d+", path.name)]
    packages = [path for path in domains if _read(path / "name").startswith("package")]
    if not packages:
        raise _NoReading(f"no RAPL sensor: {sysfs} has no intel-rapl package (a virtual machine or another CPU)")
    return packages


class _RaplCounter:
    """The energy of one package since construction, over any number of wraps as long as ``update`` sees each."""

    def __init__(self, domain: Path):
        self._file = domain / "energy_uj"
        self.name = _read(domain / "name")
        self.range_uj = _read_uj(domain / "max_energy_range_uj")
        if self.range_uj == 0:
            raise _NoReading(f"{domain} gives 0 as the range of its counter, so it cannot be read safely")
        self.total_uj = 0
        self._last_uj = _read_uj(self._file)

    def update(self) -> None:
        now_uj = _read_uj(self._file)
        step_uj = now_uj - self._last_uj
        self.total_uj += step_uj if step_uj >= 0 else step_uj + self.range_uj
        self._last_uj = now_uj


def _read_uj(path: Path) -> int:
    text = _read(path)
    if not text.isdecimal():
        raise _NoReading(f"{path} holds {text!r}, not an energy in microjoules")
    return int(text)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError:
        every = path.parent.parent / "intel-rapl:*" / path.name
        raise _NoReading(f"no permission to read {path}: an administrator can run `chmod a+r {every}`") from None
    except OSError as error:
        raise _NoReading(f"{path} cannot be read: {error.strerror}") from error
