"""Record what the sensors show while something runs."""

from __future__ import annotations

import contextlib
import json
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TextIO

from energy_models.meters.replay import TraceHeader, TraceSample, TraceSensor
from energy_models.meters.sensor import Meter, NoReading, Sample, Sensor, Source, Watch
from energy_models.meters.window import Device, as_source


@contextlib.contextmanager
def record(
    path: str | Path, device: Device = None, *, beside: Sequence[Device] = (), every_s: float = 0.1
) -> Iterator[None]:
    """Write what the sensors of ``device`` and ``beside`` show during a ``with`` block to a trace (JSON Lines).

    Sampled in a thread every ``every_s`` seconds and at both ends; ``Replay`` reads it. A device without a sensor
    stands in the header with the reason, and a sensor that vanishes leaves its reason from there on; neither stops the
    block. A line that cannot be written (a full disk) ends the recording with a RuntimeWarning when the block ends.

    Raises:
        ValueError: every_s is not positive, or torch does not know a device.
        OSError: the file cannot be made, or is there already.
    """
    if not every_s > 0:
        raise ValueError(f"record: every_s is {every_s}; it must be above 0")
    sources = [as_source(device), *map(as_source, beside)]
    with contextlib.ExitStack() as cleanup:
        writer = _Writer(cleanup.enter_context(Path(path).open("x", encoding="utf-8")))
        opened = [(source, _opened(source, every_s, writer, cleanup)) for source in sources]
        writer.header(opened, every_s)
        _synchronize_all(sources)
        watches = [(source, watch) for source, watch in opened if isinstance(watch, Watch)]
        for source, watch in watches:
            writer.begin(source)
            writer.write(source, watch.start())
        try:
            yield
        finally:
            with contextlib.suppress(RuntimeError):  # of the block's own work, which hears of it at its next use
                _synchronize_all(sources)
            for source, watch in watches:
                watch.halt()
                if watch.is_mine:
                    writer.write(source, watch.read())
            if writer.failed is not None:
                warnings.warn(f"{path}: the recording stopped early: {writer.failed}", RuntimeWarning, stacklevel=3)


def _synchronize_all(sources: Sequence[Source]) -> None:
    for source in sources:
        source.synchronize()


def _opened(source: Source, every_s: float, writer: _Writer, cleanup: contextlib.ExitStack) -> Watch | str:
    try:
        watch = Watch(source, every_s, partial(writer.write, source))
    except NoReading as error:
        return str(error)
    cleanup.callback(watch.close)
    return watch


def _described(sensor: Sensor, meter: Meter | None, every_s: float) -> TraceSensor:
    if meter is None:  # it could not be opened: its first sample says why, and the sum of its device has no value
        return TraceSensor(sensor.device, "nothing", every_s, every_s, sensor.in_total)
    return TraceSensor(sensor.device, meter.covers, meter.resolution_s, meter.min_window_s, sensor.in_total)


class _Writer:
    """The file, from several threads; what cannot be written ends it."""

    def __init__(self, file: TextIO):
        self.failed: OSError | None = None
        self._file, self._lock = file, threading.Lock()
        self._began_s: dict[int, float] = {}
        self._silent: set[str] = set()

    def header(self, opened: Sequence[tuple[Source, Watch | str]], every_s: float) -> None:
        """Raises OSError: nothing has been recorded yet."""
        sensors, missing = {}, {}
        for source, watch in opened:
            if isinstance(watch, str):
                missing[source.device] = watch
                continue
            for sensor in watch.sensors:
                sensors[sensor.name] = _described(sensor, watch.meters.get(sensor), every_s)
        header = TraceHeader(1, every_s, sensors, missing, datetime.now(UTC).isoformat(timespec="seconds"))
        self._file.write(json.dumps(asdict(header)) + "\n")
        self._file.flush()

    def begin(self, source: Source) -> None:
        """Now is second 0 of the recording."""
        self._began_s[id(source)] = source.clock()

    def write(self, source: Source, samples: Mapping[Sensor, Sample]) -> None:
        """A line each; of a sensor that failed only the first."""
        with self._lock:
            if self.failed is not None:
                return
            try:
                for sensor, sample in samples.items():
                    self._line(sensor.name, sample.time_s - self._began_s[id(source)], sample)
                self._file.flush()
            except OSError as error:
                self.failed = error

    def _line(self, name: str, time_s: float, sample: Sample) -> None:
        if name in self._silent:
            return
        if sample.energy_j is None:
            self._silent.add(name)
        error = sample.reason if sample.energy_j is None else None
        line = TraceSample(time_s, name, energy_j=sample.energy_j, error=error)
        self._file.write(json.dumps({key: value for key, value in asdict(line).items() if value is not None}) + "\n")
