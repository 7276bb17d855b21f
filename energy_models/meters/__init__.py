"""Measured energy: what a sensor saw of a window of time. What was not measured is None with the reason, never 0 and
never a guess.
"""

from energy_models.meters.callback import EnergyCallback, StepWindow
from energy_models.meters.measured import MeasuredEnergy, Reading
from energy_models.meters.nvml import Nvml
from energy_models.meters.rapl import Rapl
from energy_models.meters.recording import record
from energy_models.meters.replay import Replay
from energy_models.meters.sensor import Meter, NoReading, Sensor, Source
from energy_models.meters.window import measure, measure_idle

__all__ = [
    "EnergyCallback",
    "MeasuredEnergy",
    "Meter",
    "NoReading",
    "Nvml",
    "Rapl",
    "Reading",
    "Replay",
    "Sensor",
    "Source",
    "StepWindow",
    "measure",
    "measure_idle",
    "record",
]
