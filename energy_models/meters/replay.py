"""Traces: what sensors showed over time, as JSON Lines, and sensors that show it again.

The first line is the header, ``{"trace": 1, "every_s": 0.1, "sensors": {NAME: {...}}, ...}``; then a line a sample:
``{"time_s": 0.1, "sensor": NAME, "energy_j": 12.5}``, or ``"power_w"``, or ``"error"`` with the reason from where on a
sensor gave nothing. Times are seconds since the recording began and never go back; energies never fall.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from energy_models.meters.sensor import NoReading

_GAP_STEPS = 10  # between two samples that are further apart, nothing is known


@dataclass(frozen=True)
class TraceSensor:
    """What the header says of a sensor; the fields are those of ``Sensor`` and ``Meter``."""

    device: str
    covers: str
    resolution_s: float
    min_window_s: float
    in_total: bool = True


@dataclass(frozen=True)
class TraceHeader:
    """``missing`` is why a device that was to be recorded has no sensor."""

    trace: Literal[1]
    every_s: float
    sensors: dict[str, TraceSensor]
    missing: dict[str, str] = field(default_factory=dict)
    started: str = ""  # UTC; for the reader, nothing is computed with it


@dataclass(frozen=True)
class TraceSample:
    """One of ``energy_j``, ``power_w`` and ``error``."""

    time_s: float
    sensor: str
    energy_j: float | None = None
    power_w: float | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        values = [value for value in (self.energy_j, self.power_w) if value is not None]
        if len(values) + (self.error is not None) != 1:
            raise ValueError("a sample has one of energy_j, power_w and error")
        if not all(0 <= value < math.inf for value in (self.time_s, *values)):
            raise ValueError("times, energies and powers are finite and not negative")


_HEADER, _SAMPLE = TypeAdapter(TraceHeader), TypeAdapter(TraceSample)


@dataclass
class Channel:
    """One sensor's samples as energy since the first of them."""

    times_s: list[float] = field(default_factory=list)
    energies_j: list[float] = field(default_factory=list)
    last_w: float | None = None  # the sensor recorded power
    error: str | None = None

    def add(self, sample: TraceSample) -> None:
        """Raises ValueError where time or energy goes back, and for power among energies."""
        if sample.error is not None:
            self.error = self.error or sample.error
            return
        if self.times_s and sample.time_s < self.times_s[-1]:
            raise ValueError(f"time_s goes back from {self.times_s[-1]} to {sample.time_s}")
        if self.times_s and (sample.power_w is None) != (self.last_w is None):
            raise ValueError("a sensor has either energies or powers")
        energy_j = self._integrated(sample) if sample.energy_j is None else sample.energy_j
        if self.energies_j and energy_j < self.energies_j[-1]:
            raise ValueError(f"energy_j falls from {self.energies_j[-1]} to {energy_j}")
        self.times_s.append(sample.time_s)
        self.energies_j.append(energy_j)
        self.last_w = sample.power_w

    def _integrated(self, sample: TraceSample) -> float:
        assert sample.power_w is not None
        if self.last_w is None:
            return 0.0
        return self.energies_j[-1] + (self.last_w + sample.power_w) / 2 * (sample.time_s - self.times_s[-1])

    def energy_at(self, time_s: float, gap_s: float) -> float:
        """Between two samples on the line through them. Raises NoReading beyond the trace and in a gap of it."""
        if not self.times_s or not self.times_s[0] <= time_s <= self.times_s[-1]:
            reach = f"from {self.times_s[0]:.6g} to {self.times_s[-1]:.6g} s" if self.times_s else "no time at all"
            ended = "" if self.error is None else f", where the recording says: {self.error}"
            raise NoReading(f"the trace covers {reach}, not {time_s:.6g} s{ended}")
        after = bisect_left(self.times_s, time_s)
        if self.times_s[after] == time_s:
            return self.energies_j[after]
        (t0, e0), (t1, e1) = ((self.times_s[i], self.energies_j[i]) for i in (after - 1, after))
        if t1 - t0 > gap_s:
            raise NoReading(f"the trace has no sample between {t0:.6g} and {t1:.6g} s")
        return e0 + (e1 - e0) * (time_s - t0) / (t1 - t0)

    def widest_gap_s(self, from_s: float, until_s: float) -> float:
        """Of a power trace between two moments: between samples nobody knows the power. A counter misses nothing."""
        if self.last_w is None:
            return 0.0
        return max((b - a for a, b in pairwise(self.times_s) if b > from_s and a < until_s), default=0.0)


@dataclass(frozen=True)
class Trace:
    """A recording that was read."""

    path: Path
    header: TraceHeader
    channels: dict[str, Channel]


def read_trace(path: str | Path) -> Trace:
    """Read a trace; a last line without its newline was never written.

    Raises ValueError with file and line for what is no trace, and FileNotFoundError.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")[:-1]
    if not lines:
        raise ValueError(f"{path}: this is no trace; its first line must be the header of one")
    try:
        header = _HEADER.validate_json(lines[0], strict=True, extra="forbid")
    except ValidationError as error:
        raise ValueError(f"{path}:1: not the header of a trace of schema 1: {_first(error)}") from None
    channels = {name: Channel() for name in header.sensors}
    for number, line in enumerate(lines[1:], start=2):
        try:
            sample = _SAMPLE.validate_json(line, strict=True, extra="forbid")
            if sample.sensor not in channels:
                raise ValueError(f"the header has no sensor {sample.sensor!r}")
            channels[sample.sensor].add(sample)
        except ValidationError as error:
            raise ValueError(f"{path}:{number}: not a sample: {_first(error)}") from None
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None
    return Trace(path, header, channels)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg']}"


class Replay:
    """A recorded device in place of a real one: ``measure(Replay("trace.jsonl"))``.

    ``clock`` says at which second of the recording one is; None lets it run from now on. ``device`` picks one of the
    recorded devices; None takes the first. Energy between two samples is taken on the line through them. A window that
    leaves the recording, or falls into a gap of it, has no energy.

    Raises ValueError for a file that is no trace, and for a device that is not in it.
    """

    kind = "replay"

    def __init__(self, path: str | Path, *, device: str | None = None, clock: Callable[[], float] | None = None):
        self.trace = read_trace(path)
        header = self.trace.header
        known = list(dict.fromkeys([*(s.device for s in header.sensors.values()), *header.missing]))
        if not known or (device is not None and device not in known):
            raise ValueError(f"{path}: the trace has no device {device!r}; it has {', '.join(known) or 'none'}")
        self.device = known[0] if device is None else device
        began_s = time.monotonic()
        self._clock = clock or (lambda: time.monotonic() - began_s)

    def clock(self) -> float:
        return self._clock()

    def synchronize(self) -> None:
        """What ran has run."""

    def sensors(self) -> list[ReplayedSensor]:
        """Raises NoReading where the device was recorded without a sensor."""
        found = [name for name, sensor in self.trace.header.sensors.items() if sensor.device == self.device]
        if not found:
            raise NoReading(f"recorded without a sensor: {self.trace.header.missing[self.device]}")
        return [ReplayedSensor(name, self) for name in found]


@dataclass(frozen=True)
class ReplayedSensor:
    """One sensor of a recording."""

    name: str
    source: Replay

    @property
    def recorded(self) -> TraceSensor:
        """What the header says of it."""
        return self.source.trace.header.sensors[self.name]

    @property
    def device(self) -> str:
        return self.recorded.device

    @property
    def in_total(self) -> bool:
        return self.recorded.in_total

    def open(self) -> ReplayedMeter:
        """Never raises: what the recording lacks shows when it is read."""
        return ReplayedMeter(self)


class ReplayedMeter:
    """Joules of the recording at the clock's second."""

    poll_s = None

    def __init__(self, sensor: ReplayedSensor):
        every_s = sensor.source.trace.header.every_s
        self._first_s: float | None = None
        self._channel, self._clock = sensor.source.trace.channels[sensor.name], sensor.source.clock
        self.resolution_s = max(sensor.recorded.resolution_s, every_s)
        self.min_window_s = max(sensor.recorded.min_window_s, every_s)
        self.covers = f"recorded in {sensor.source.trace.path}: {sensor.recorded.covers}"

    def read(self) -> float:
        """Raises NoReading outside the recording and in a gap of it."""
        now_s, gap_s = self._clock(), _GAP_STEPS * self.resolution_s
        self._first_s = now_s if self._first_s is None else self._first_s
        widest_s = self._channel.widest_gap_s(self._first_s, now_s)
        if widest_s > gap_s:
            raise NoReading(f"the recorded power has a gap of {widest_s:.3g} s within the window")
        return self._channel.energy_at(now_s, gap_s)

    def close(self) -> None:
        """The recording was read at once."""
