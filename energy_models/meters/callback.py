"""The energy of any training loop's epochs, and of runs of steps within them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from energy_models.meters.measured import MeasuredEnergy
from energy_models.meters.sensor import Source
from energy_models.meters.window import Device, as_source, measure


@dataclass(frozen=True)
class StepWindow:
    """The energy of the steps ``first_step`` to ``first_step + steps - 1`` of an epoch, counted from 0."""

    epoch: int
    first_step: int
    steps: int
    measured: MeasuredEnergy


class EnergyCallback:
    """Call its four methods where a loop begins and ends; ``epochs`` then has the energy of every epoch.

    ``window_s`` also measures runs of whole steps of at least that many seconds, in ``windows``: single steps are too
    short for the sensors, and each end of a window waits for the device. A run that the epoch cuts short is a window
    too. Used as a context manager, what is still open when the loop raises is closed and kept.

    Args: ``device``, ``beside`` and ``idle`` as in ``measure``.
    """

    def __init__(
        self,
        device: Device = None,
        *,
        beside: Sequence[Device] = (),
        idle: float | MeasuredEnergy | None = None,
        window_s: float | None = None,
    ):
        if window_s is not None and not window_s > 0:
            raise ValueError(f"EnergyCallback: window_s is {window_s}; it must be above 0, or None")
        self.epochs: list[MeasuredEnergy] = []
        self.windows: list[StepWindow] = []
        self._source, self._window_s = as_source(device), math.inf if window_s is None else window_s
        self._beside, self._idle = [as_source(other) for other in beside], idle
        self._epoch: _Open | None = None
        self._window: _Open | None = None
        self._step = self._first_step = 0
        self._window_start_s = 0.0

    def begin_epoch(self) -> None:
        """Raises RuntimeError inside an epoch."""
        if self._epoch is not None:
            raise RuntimeError("EnergyCallback: begin_epoch inside an epoch; call end_epoch, or close after an error")
        self._step = 0
        self._epoch = self._open()

    def begin_step(self) -> None:
        """Optional without ``window_s``. Raises RuntimeError outside an epoch."""
        if self._epoch is None:
            raise RuntimeError("EnergyCallback: a step outside an epoch; call begin_epoch before it")
        if self._window_s < math.inf and self._window is None:
            self._first_step, self._window_start_s = self._step, self._source.clock()
            self._window = self._open()

    def end_step(self) -> None:
        """Optional without ``window_s``. Raises RuntimeError outside an epoch."""
        if self._epoch is None:
            raise RuntimeError("EnergyCallback: a step outside an epoch; call begin_epoch before it")
        self._step += 1
        if self._window is not None and self._source.clock() - self._window_start_s >= self._window_s:
            self._end_window()

    def end_epoch(self) -> MeasuredEnergy:
        """The energy of the epoch. Raises RuntimeError outside an epoch."""
        if self._epoch is None:
            raise RuntimeError("EnergyCallback: end_epoch without begin_epoch")
        self._end_window()
        opened, self._epoch = self._epoch, None
        self.epochs.append(opened.end())
        return self.epochs[-1]

    def close(self) -> None:
        """End and keep what is open; nothing otherwise."""
        if self._epoch is not None:
            self.end_epoch()

    def __enter__(self) -> EnergyCallback:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self) -> _Open:
        return _Open(self._source, self._beside, self._idle)

    def _end_window(self) -> None:
        if self._window is None:
            return
        opened, self._window = self._window, None
        steps = self._step - self._first_step
        self.windows.append(StepWindow(len(self.epochs), self._first_step, steps, opened.end()))


class _Open:
    """A window whose ends are two calls."""

    def __init__(self, source: Source, beside: Sequence[Source], idle: float | MeasuredEnergy | None):
        self._stack = contextlib.ExitStack()
        self.measured = self._stack.enter_context(measure(source, beside=beside, idle=idle))

    def end(self) -> MeasuredEnergy:
        self._stack.close()
        return self.measured
