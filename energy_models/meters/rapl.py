"""RAPL: the energy counters of CPU packages and their DRAM, in the kernel's powercap files.

The counters renew their value about every millisecond and start again at 0 beyond ``max_energy_range_uj``
(Documentation/power/powercap/powercap.rst of the kernel). They are read in between so often that no wrap passes
unseen while a package draws less than ``MAX_PACKAGE_W``; a window in which that was not so has no energy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from energy_models.meters.sensor import NoReading

POWERCAP = Path("/sys/class/powercap")
RESOLUTION_S = 0.001
MAX_PACKAGE_W = 1000.0  # no package or its DRAM draws more: it bounds how soon a counter can wrap
_SLACK_S = 0.1  # a counter may renew late; what it then gains at once is no error


@dataclass(frozen=True)
class Rapl:
    """The packages of this machine's CPUs (``energy_j`` is their sum), and beside them the DRAM of each where its CPU
    counts it. ``root`` is the folder of the powercap files."""

    root: Path = POWERCAP
    now: Callable[[], float] = time.monotonic
    device: str = "cpu"
    kind: str = "rapl"

    def clock(self) -> float:
        return self.now()

    def synchronize(self) -> None:
        """Nothing runs on behind a CPU's back."""

    def sensors(self) -> list[RaplDomain]:
        """Package and DRAM domains: cores (intel-rapl:0:0) are inside a package, "psys" contains all packages, and
        intel-rapl-mmio is a second way to the same counters."""
        found = sorted(self.root.glob("intel-rapl:*"))
        names = {path: _read(path / "name") for path in found}
        packages = {path.name: path for path in found if names[path].startswith("package")}
        if not packages:
            raise NoReading(
                f"no RAPL sensor: {self.root} has no intel-rapl package (a virtual machine, another CPU, or the kernel "
                "module intel_rapl_msr is not loaded)"
            )
        domains = [RaplDomain(f"rapl:{names[path]}", path, self.now) for path in packages.values()]
        for path in found:
            parent = packages.get(path.name.rpartition(":")[0])
            if names[path] == "dram" and parent is not None:
                socket = names[parent].removeprefix("package-")
                domains.append(RaplDomain(f"rapl:dram-{socket}", path, self.now, in_total=False))
        return domains


@dataclass(frozen=True)
class RaplDomain:
    """One counter: the folder with its files."""

    name: str
    folder: Path
    now: Callable[[], float]
    in_total: bool = True
    device: str = "cpu"

    def open(self) -> RaplMeter:
        """Raises NoReading where a file cannot be read; for want of permission with the command that mends it."""
        return RaplMeter(self)


class RaplMeter:
    """Joules since construction, over any number of wraps."""

    resolution_s = min_window_s = RESOLUTION_S

    def __init__(self, domain: RaplDomain):
        self._file, self._now = domain.folder / "energy_uj", domain.now
        what = "the cores, caches and memory controller of this CPU" if domain.in_total else "the DRAM of this CPU"
        self.covers = f"{domain.name}: {what}, whoever uses them"
        self._range_uj = _read_uj(domain.folder / "max_energy_range_uj")
        if self._range_uj == 0:
            raise NoReading(f"{domain.folder} gives 0 as the range of its counter, so a wrap could not be undone")
        self._wrap_s = self._range_uj / 1e6 / MAX_PACKAGE_W
        self.poll_s: float | None = self._wrap_s / 2
        self._total_uj = 0
        self._last_s, self._last_uj = self._now(), _read_uj(self._file)

    def read(self) -> float:
        """Raises NoReading where a wrap may have passed unseen, or the counter did what no counter does."""
        now_s, now_uj = self._now(), _read_uj(self._file)
        gap_s, step_uj = now_s - self._last_s, now_uj - self._last_uj
        if gap_s >= self._wrap_s:
            raise NoReading(
                f"{self._file} was not read for {gap_s:.3g} s, in which it may have wrapped unseen: was the process "
                "stopped?"
            )
        if step_uj < 0:
            step_uj += self._range_uj
        if not 0 <= step_uj <= MAX_PACKAGE_W * (gap_s + _SLACK_S) * 1e6:
            raise NoReading(
                f"{self._file} went from {self._last_uj} to {now_uj} uJ in {gap_s:.3g} s, which is neither an energy "
                "nor a wrap: was the counter reset, or the machine asleep?"
            )
        self._total_uj += step_uj
        self._last_s, self._last_uj = now_s, now_uj
        return self._total_uj / 1e6

    def close(self) -> None:
        """Files are opened for each read."""


def _read_uj(path: Path) -> int:
    text = _read(path)
    if not text.isdecimal():
        raise NoReading(f"{path} holds {text!r}, not an energy in microjoules")
    return int(text)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except PermissionError:
        every = path.parent.parent / "intel-rapl:*" / path.name
        raise NoReading(
            f"no permission to read {path}: since Linux 5.10 only root may; `sudo chmod a+r {every}` lets everybody "
            "until the next boot (docs/measuring.md has the lasting way)"
        ) from None
    except FileNotFoundError:
        if path.parent.is_symlink() and not path.parent.exists():
            raise NoReading(
                f"{path.parent} is a link to nothing: containers hide /sys/devices/virtual/powercap; measure on the "
                "host, or start the container with that folder shown (docs/measuring.md)"
            ) from None
        raise NoReading(f"{path} cannot be read: it is not there (any more)") from None
    except OSError as error:
        raise NoReading(f"{path} cannot be read: {error.strerror}") from error
