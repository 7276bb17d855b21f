"""What a sensor is, and how open ones are watched over a window of time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol


class NoReading(Exception):
    """A sensor that is absent or gives no value; the message is for the person at the keyboard."""


class Meter(Protocol):
    """An open sensor."""

    covers: str  # what its joules are, and what they miss
    resolution_s: float  # it renews its value that often
    min_window_s: float  # a shorter window means nothing
    poll_s: float | None  # it must be read at least that often; None: at the ends of the window only

    def read(self) -> float:
        """Joules since some moment of its own choice. Raises NoReading."""

    def close(self) -> None:
        """Give back what was opened."""


class Sensor(Protocol):
    """One counter: a GPU, a CPU package, the DRAM of a socket, or one of these recorded."""

    @property
    def name(self) -> str:
        """Unique on a machine."""

    @property
    def device(self) -> str:
        """Whose energy it is."""

    @property
    def in_total(self) -> bool:
        """Whether it is part of the device's energy."""

    def open(self) -> Meter:
        """Raises NoReading where it cannot be read."""


class Source(Protocol):
    """The sensors of one device, on one clock."""

    @property
    def device(self) -> str:
        """As in ``MeasuredEnergy.device``."""

    @property
    def kind(self) -> str:
        """As in ``MeasuredEnergy.source``."""

    def clock(self) -> float:
        """Seconds, never going back; those of the recording where it is one."""

    def sensors(self) -> Sequence[Sensor]:
        """At least one; raises NoReading where there is none."""

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""


@dataclass(frozen=True)
class Sample:
    """A sensor's joules at a moment of its source's clock, or why there are none."""

    time_s: float
    energy_j: float | None
    reason: str = ""


class Watch:
    """The open sensors of one source: read when asked, and in between as often as they need.

    A meter that fails once stays without a value, since what it missed cannot be made good. A process forked from the
    one that opened it reads nothing and closes nothing: the sensors are its parent's.
    """

    def __init__(
        self,
        source: Source,
        period_s: float | None = None,
        on_samples: Callable[[Mapping[Sensor, Sample]], None] | None = None,
    ):
        """Open the sensors. Raises NoReading where the source has none."""
        self._source, self._on_samples = source, on_samples
        self.meters: dict[Sensor, Meter] = {}
        self.sensors = tuple(source.sensors())
        self._failed: dict[Sensor, str] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._pid = os.getpid()
        for sensor in self.sensors:
            try:
                self.meters[sensor] = sensor.open()
            except NoReading as error:
                self._failed[sensor] = str(error)
        polls = [meter.poll_s for meter in self.meters.values() if meter.poll_s is not None]
        self._period_s = min([*polls, *([] if period_s is None else [period_s])], default=None)
        self._thread = threading.Thread(target=self._poll, name="energy-meter", daemon=True)

    def start(self) -> dict[Sensor, Sample]:
        """The first samples; from here on the sensors are read as often as they need."""
        samples = self.read()
        if self._period_s is not None:
            self._thread.start()
        return samples

    def read(self) -> dict[Sensor, Sample]:
        """Read every sensor now."""
        if not self.is_mine:
            reason = "the window was opened by the process that this one was forked from; measure inside this one"
            return {sensor: Sample(self._source.clock(), None, reason) for sensor in self.sensors}
        with self._lock:
            return {sensor: self._sample(sensor) for sensor in self.sensors}

    @property
    def is_mine(self) -> bool:
        """Whether this process opened it."""
        return os.getpid() == self._pid

    def halt(self) -> None:
        """Read no more of itself."""
        if not self.is_mine:  # no thread is there, and it may have held a lock when the process was forked
            return
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def close(self) -> None:
        """Stop reading and close the sensors."""
        self.halt()
        if not self.is_mine:
            return
        with ExitStack() as stack:
            for meter in self.meters.values():
                stack.callback(meter.close)

    def _sample(self, sensor: Sensor) -> Sample:
        now_s = self._source.clock()
        if sensor not in self._failed:
            try:
                return Sample(now_s, self.meters[sensor].read())
            except NoReading as error:
                self._failed[sensor] = str(error)
        return Sample(now_s, None, self._failed[sensor])

    def _poll(self) -> None:
        while not self._stop.wait(self._period_s):
            samples = self.read()
            if self._on_samples is not None:
                self._on_samples(samples)
