"""What a measured window gave: one reading a sensor, and of them the energy of the device that was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """What one sensor saw of a window.

    ``energy_j`` is None where it gave nothing to go by, ``note`` then says why, and otherwise what the joules cover.
    ``window_s`` is the time between the sensor's two reads, ``resolution_s`` how often it renews its value (None where
    there is no sensor): the energy is known to about one such step at each end. ``too_short``: the window is below what
    the sensor can tell anything about. ``in_total``: the reading is part of the device's ``energy_j`` (a package is,
    its DRAM is not).
    """

    sensor: str  # "nvml:GPU-...", "rapl:package-0", "rapl:dram-0"
    device: str
    energy_j: float | None
    window_s: float
    resolution_s: float | None
    note: str
    in_total: bool = True
    too_short: bool = False
    idle_w: float | None = None

    @property
    def power_w(self) -> float | None:
        """Mean power over the window."""
        return None if self.energy_j is None or self.window_s <= 0 else self.energy_j / self.window_s

    @property
    def idle_j(self) -> float | None:
        """What the idle device would have taken in the same time; None where its idle power is not known."""
        return None if self.idle_w is None else self.idle_w * self.window_s


@dataclass
class MeasuredEnergy:
    """Filled when the ``measure`` block ends, which is why it is not frozen; until then nothing counts as measured.

    ``energy_j`` is all that the device took, idle power included: nothing is subtracted. It is that of ``device``
    alone; sensors of other devices, and those of the device's surroundings (DRAM), stand in ``readings`` only.
    """

    device: str
    energy_j: float | None = None
    duration_s: float = math.nan
    source: str | None = None  # "nvml" | "rapl" | "replay" | None
    note: str = "the measured block has not ended"  # why energy_j is None, or what it covers and what it misses
    readings: tuple[Reading, ...] = ()
    idle_w: float | None = None  # of the device, where it was measured before or given
    too_short: bool = False  # the window is below what the sensor can tell anything about; energy_j is None then

    @property
    def power_w(self) -> float | None:
        """Mean power over the window."""
        return None if self.energy_j is None or not self.duration_s > 0 else self.energy_j / self.duration_s

    @property
    def idle_j(self) -> float | None:
        """What the idle device would have taken in the same time: an estimate. None where the idle power is unknown."""
        return None if self.idle_w is None or self.energy_j is None else self.idle_w * self.duration_s

    @property
    def active_j(self) -> float | None:
        """``energy_j - idle_j``. Negative where the idle power was taken too high; ``note`` says so then."""
        idle_j = self.idle_j
        return None if idle_j is None or self.energy_j is None else self.energy_j - idle_j
