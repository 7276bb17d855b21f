"""A machine that does not exist, for rehearsals: a roofline, three energies, a sensor with noise. NOT a measurement.

Its power is static power, plus MACs and memory traffic at a fixed multiple of what the 45 nm profile says, plus a
deviation of its own for each kind of work, as no model is right. It is recorded as a power sensor would see it, every
0.1 s, in whole milliwatts, and measured by replaying that recording.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from energy_models import Replay, measure
from energy_models.calibration import EnergyWindow
from energy_models.calibration_windows import WindowSet, WindowsHeader, write_windows

COMPUTE, MEMORY, STATIC_W = 5.0, 0.6, 4.0  # what a calibration must find
MAC_PJ, DRAM_PJ_BIT, BUFFER_PJ_BIT, BUFFER_PASSES = 4.6, 1950 / 64, 100 / 64, 3  # fp32, 45 nm
_MACS_PER_S, _BYTES_PER_S, _IDLE_W = 0.6e12, 60e9, 2.5
_STEP_S = 0.1
MADE = "synthetic: made by tests/energy_models/synthetic_machine.py, not measured"


@dataclass(frozen=True)
class Work:
    """A kind of work: so many MACs a byte of DRAM traffic, at a share of the speed that the slower of the two allows
    (small kernels leave a chip waiting for the next)."""

    macs_per_byte: float
    seconds: float
    speed: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.macs_per_byte:g} MAC/byte at {self.speed:.0%}, {self.seconds:g} s"

    @property
    def macs(self) -> float:
        return self.seconds * self.speed * min(_MACS_PER_S, self.macs_per_byte * _BYTES_PER_S)

    @property
    def traffic_bytes(self) -> float:
        return self.macs / self.macs_per_byte

    @property
    def predicted_j(self) -> dict[str, float]:
        bits = self.traffic_bytes * 8
        return {
            "compute": self.macs * MAC_PJ * 1e-12,
            "dram": bits * DRAM_PJ_BIT * 1e-12,
            "buffer": bits * BUFFER_PJ_BIT * BUFFER_PASSES * 1e-12,
        }

    def power_w(self, chance: random.Random) -> float:
        """Static, compute and memory; the last two off by some percent, as no model is right."""
        predicted = self.predicted_j
        compute, memory = predicted["compute"], predicted["dram"] + predicted["buffer"]
        off = [1 + chance.gauss(0, 0.04) for _ in range(2)]
        return STATIC_W + (COMPUTE * compute * off[0] + MEMORY * memory * off[1]) / self.seconds


WORK = (
    *(Work(400, 20), Work(150, 12), Work(60, 8), Work(12, 10), Work(4, 15), Work(1, 8)),
    *(Work(100, 20, 0.1), Work(20, 10, 0.25), Work(2, 12, 0.1)),
)
FULL_SPEED = tuple(part for part in WORK if part.speed == 1)


def record_trace(path: Path, work: tuple[Work, ...] = WORK, seed: int = 0) -> dict[str, tuple[float, float]]:
    """Write the recording; returns when each work began and ended, in the recording's seconds."""
    chance = random.Random(seed)
    sensor = {"device": "cuda", "covers": "a synthetic power sensor", "resolution_s": 0.1, "min_window_s": 0.1}
    header = {"trace": 1, "every_s": _STEP_S, "sensors": {"synthetic": sensor}, "started": MADE}
    lines, ends, step = [header], {}, 0

    def run(seconds: float, power_w: float) -> None:
        nonlocal step
        for _ in range(round(seconds / _STEP_S)):
            shown_w = round(power_w * (1 + chance.gauss(0, 0.03)), 3)
            lines.append({"time_s": round(step * _STEP_S, 3), "sensor": "synthetic", "power_w": shown_w})
            step += 1

    for part in work:
        run(2, _IDLE_W)
        begin_s = step * _STEP_S
        run(part.seconds, part.power_w(chance))
        ends[part.name] = (begin_s, step * _STEP_S)
    run(2, _IDLE_W)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ends


def measured_windows(path: Path, work: tuple[Work, ...] = WORK, seed: int = 0) -> WindowSet:
    """Record the machine into ``path`` and measure each work in a replay of that."""
    ends = record_trace(path, work, seed)
    now_s = 0.0
    replay = Replay(path, clock=lambda: now_s)
    windows = []
    for part in work:
        now_s, end_s = ends[part.name]
        with measure(replay) as measured:
            now_s = end_s
        assert measured.energy_j is not None
        joules = {name: float(f"{value:.6g}") for name, value in part.predicted_j.items()}
        windows.append(
            EnergyWindow(part.name, float(f"{measured.energy_j:.6g}"), round(measured.duration_s, 3), joules)
        )
    header = WindowsHeader(1, "45nm", "a machine that does not exist", "a synthetic power sensor", MADE)
    return WindowSet(header, tuple(windows))


if __name__ == "__main__":  # PYTHONPATH=. python tests/energy_models/synthetic_machine.py TRACE WINDOWS
    write_windows(sys.argv[2], measured_windows(Path(sys.argv[1])))
