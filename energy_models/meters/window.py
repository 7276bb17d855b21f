"""``measure``: the energy and the time of a ``with`` block."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch

from energy_models.meters.measured import MeasuredEnergy, Reading
from energy_models.meters.nvml import Nvml
from energy_models.meters.rapl import Rapl
from energy_models.meters.sensor import NoReading, Sample, Sensor, Source, Watch

Device: TypeAlias = str | torch.device | Source | None
_SURE_STEPS = 10  # a window of fewer of a sensor's steps is known to worse than about 10 %


@contextlib.contextmanager
def measure(
    device: Device = None,
    *,
    beside: Sequence[Device] = (),
    idle: float | MeasuredEnergy | None = None,
) -> Iterator[MeasuredEnergy]:
    """Measure the energy and the time of a ``with`` block; yields the MeasuredEnergy that is filled at its end.

    The devices are synchronised at both ends. A missing sensor, one that vanishes in the block, and a window too short
    for it give ``energy_j=None`` and a note; they never raise. A block that raises is measured up to there. Windows may
    nest and run side by side; every one sees all that runs on the device, other processes too.

    Args:
        device: "cuda" or "cuda:N" is that GPU (NVML), "cpu" all packages of the CPUs (RAPL), None the current GPU if
            torch sees one, else the CPU; or a torch.device, or a source: ``Nvml``, ``Rapl``, ``Replay``. The result's
            ``energy_j`` is its.
        beside: further devices or sources; they stand in the result's ``readings`` and are never added up.
        idle: power of the idle device in W, or a measured idle window (``measure_idle``), for ``idle_j`` and
            ``active_j``; nothing is subtracted from ``energy_j``.

    Raises:
        ValueError: a device that torch does not know, or an idle power that cannot be one of this device.
    """
    main = as_source(device)
    sources = [main, *map(as_source, beside)]
    _check_idle(idle, main.device)
    with contextlib.ExitStack() as cleanup:
        window = _Window(sources, idle, cleanup)
        try:
            yield window.result
            _synchronize(sources)
        except BaseException as error:
            with contextlib.suppress(RuntimeError):  # a GPU that failed fails again; `error` has said so
                _synchronize(sources)
            window.end(f"the block ended with {type(error).__name__}; up to there: ")
            raise
        window.end("")


def measure_idle(device: Device = None, *, seconds: float = 5.0, beside: Sequence[Device] = ()) -> MeasuredEnergy:
    """The energy of doing nothing for a while, to be given to ``measure`` as ``idle``.

    Measure it in the process that will train, with the model on the GPU and nothing else running: a GPU with a context
    idles at more power than one without, and for some seconds after work at more still.
    """
    with measure(device, beside=beside) as idle:
        time.sleep(seconds)
    return idle


def as_source(device: Device) -> Source:
    """The sensors of a device; a source is one already. Raises ValueError for a device that torch does not know."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(device, torch.device):
        device = str(device)
    if not isinstance(device, str):
        return device
    try:
        target = torch.device(device)
    except RuntimeError:
        raise ValueError(f"measure: torch knows no device {device!r}; use 'cpu', 'cuda' or 'cuda:N'") from None
    gpus = torch.cuda.device_count()
    if target.type == "cuda" and target.index is not None and 0 < gpus <= target.index:
        raise ValueError(f"measure: there is no device {device!r}; torch sees cuda:0 to cuda:{gpus - 1}")
    if target.type == "cuda":
        return Nvml(device)
    return Rapl() if target.type == "cpu" else _Unknown(device)


def open_watch(source: Source, cleanup: contextlib.ExitStack) -> Watch | str:
    """The source's sensors, open until ``cleanup``, or why it has none."""
    try:
        watch = Watch(source)
    except NoReading as error:
        return str(error)
    cleanup.callback(watch.close)
    return watch


def _synchronize(sources: Sequence[Source]) -> None:
    for source in sources:
        source.synchronize()


class _Unknown:
    """A device of torch that no sensor is known for."""

    kind = "none"

    def __init__(self, device: str):
        self.device = device

    def clock(self) -> float:
        return time.monotonic()

    def synchronize(self) -> None:
        """Nobody says how."""

    def sensors(self) -> Sequence[Sensor]:
        raise NoReading(f"no sensor is known for the device {self.device}; 'cpu' and 'cuda' can be measured")


class _Window:
    """The sensors of one ``measure`` block."""

    def __init__(self, sources: Sequence[Source], idle: float | MeasuredEnergy | None, cleanup: contextlib.ExitStack):
        self._sources, self._idle = sources, idle
        self.result = MeasuredEnergy(device=sources[0].device)
        self._watches = [open_watch(source, cleanup) for source in sources]
        _synchronize(sources)
        self._starts = [{} if isinstance(watch, str) else watch.start() for watch in self._watches]
        self._start_s = sources[0].clock()

    def end(self, how: str) -> None:
        self.result.duration_s = self._sources[0].clock() - self._start_s
        groups = [
            _readings(*parts, self.result.duration_s)
            for parts in zip(self._sources, self._watches, self._starts, strict=True)
        ]
        _fill(self.result, self._sources[0].kind, groups, self._idle)
        self.result.note = how + self.result.note


# ---- what the samples at the two ends say --------------------------------------------------------------------------


def _readings(source: Source, watch: Watch | str, starts: Mapping[Sensor, Sample], duration_s: float) -> list[Reading]:
    if isinstance(watch, str):
        return [Reading(source.kind, source.device, None, duration_s, None, watch)]
    return [_reading(watch, sensor, starts[sensor], end) for sensor, end in watch.read().items()]


def _reading(watch: Watch, sensor: Sensor, start: Sample, end: Sample) -> Reading:
    meter, window_s = watch.meters.get(sensor), end.time_s - start.time_s
    energy_j, note, too_short = None, start.reason or end.reason, False
    if meter is not None and start.energy_j is not None and end.energy_j is not None:
        energy_j, note = end.energy_j - start.energy_j, meter.covers
        too_short = window_s < meter.min_window_s
        if too_short:
            note = f"the window of {window_s:.3g} s is below the {meter.min_window_s:g} s that {sensor.name} needs"
        elif energy_j == 0:
            note = f"the counter of {sensor.name} did not move within {window_s:.3g} s: measure a longer window"
        elif energy_j < 0:
            note = f"the counter of {sensor.name} went back: its driver was loaded again"
        elif window_s < _SURE_STEPS * meter.resolution_s:
            note += f"; the window is {window_s / meter.resolution_s:.2g} of the sensor's steps, so +-1 of them counts"
        energy_j = None if too_short or energy_j <= 0 else energy_j
    resolution_s = None if meter is None else meter.resolution_s
    return Reading(
        sensor.name, sensor.device, energy_j, window_s, resolution_s, note, sensor.in_total, too_short=too_short
    )


def _fill(result: MeasuredEnergy, kind: str, groups: list[list[Reading]], idle: float | MeasuredEnergy | None) -> None:
    powers = {r.sensor: r.power_w for r in idle.readings} if isinstance(idle, MeasuredEnergy) else {}
    result.readings = tuple(replace(r, idle_w=powers.get(r.sensor)) for group in groups for r in group)
    counted = [r for r in groups[0] if r.in_total]
    energies = [r.energy_j for r in counted if r.energy_j is not None]
    missing = [r.note for r in counted if r.energy_j is None]
    result.too_short = any(r.too_short for r in counted)
    if missing:
        result.note = "; ".join(missing)
        return
    result.energy_j, result.source = math.fsum(energies), kind
    result.note = "; ".join(r.note for r in counted)
    if len(counted) > 1:
        result.note = f"the sum of {len(counted)} sensors of this device: {result.note}"
    _add_idle(result, idle)


def _check_idle(idle: float | MeasuredEnergy | None, device: str) -> None:
    if isinstance(idle, MeasuredEnergy):
        if idle.device != device:
            raise ValueError(f"measure: idle was measured on {idle.device}, and this window is on {device}")
    elif idle is not None and not 0 <= idle < math.inf:
        raise ValueError(f"measure: idle is {idle}; it must be a power in W, or what measure_idle gave")


def _add_idle(result: MeasuredEnergy, idle: float | MeasuredEnergy | None) -> None:
    if idle is None:
        return
    result.idle_w = idle.power_w if isinstance(idle, MeasuredEnergy) else float(idle)
    if result.idle_w is None:
        assert isinstance(idle, MeasuredEnergy)
        result.note += f"; the idle power is not known: {idle.note}"
    elif result.active_j is not None and result.active_j < 0:
        result.note += (
            f"; active_j is negative, so the idle power of {result.idle_w:.4g} W is too high for this window: "
            "measure it with the clocks and the process that the window has"
        )
