"""Energy of any loop's epochs and of runs of its steps."""

from __future__ import annotations

import pytest
from fake_sensors import FakeRapl

from energy_models import EnergyCallback


@pytest.fixture
def package(rapl: FakeRapl) -> FakeRapl:
    rapl.domain("intel-rapl:0", "package-0")
    return rapl


def test_epochs(package: FakeRapl) -> None:
    meter = EnergyCallback(package.source(), idle=1.0)
    for epoch in range(3):
        meter.begin_epoch()
        package.run(2, package_0=10 * (epoch + 1))
        assert meter.end_epoch() is meter.epochs[-1]
        package.run(1, package_0=5)  # between epochs
    assert [measured.energy_j for measured in meter.epochs] == [10.0, 20.0, 30.0]
    assert [measured.active_j for measured in meter.epochs] == [8.0, 18.0, 28.0]
    assert meter.windows == []


def test_runs_of_steps_are_whole_steps_and_long_enough(package: FakeRapl) -> None:
    meter = EnergyCallback(package.source(), window_s=1.0)
    for _ in range(2):
        meter.begin_epoch()
        for step in range(5):
            meter.begin_step()
            package.run(0.4, package_0=step + 1)
            meter.end_step()
        meter.end_epoch()
    windows = [(w.epoch, w.first_step, w.steps, w.measured.energy_j) for w in meter.windows]
    assert windows == [(0, 0, 3, 6.0), (0, 3, 2, 9.0), (1, 0, 3, 6.0), (1, 3, 2, 9.0)]
    assert [measured.energy_j for measured in meter.epochs] == [15.0, 15.0]


def test_a_loop_that_raises_keeps_what_it_had(package: FakeRapl) -> None:
    with pytest.raises(KeyError), EnergyCallback(package.source(), window_s=60) as meter:
        meter.begin_epoch()
        meter.begin_step()
        package.run(1, package_0=3)
        raise KeyError
    assert [measured.energy_j for measured in meter.epochs] == [3.0]
    assert [(w.steps, w.measured.energy_j) for w in meter.windows] == [(0, 3.0)]
    meter.close()
    assert len(meter.epochs) == 1


def test_calls_in_the_wrong_order(package: FakeRapl) -> None:
    meter = EnergyCallback(package.source())
    for call in (meter.begin_step, meter.end_step, meter.end_epoch):
        with pytest.raises(RuntimeError, match="EnergyCallback"):
            call()
    meter.begin_epoch()
    with pytest.raises(RuntimeError, match="begin_epoch inside an epoch"):
        meter.begin_epoch()
    meter.close()
    with pytest.raises(ValueError, match="window_s"):
        EnergyCallback(package.source(), window_s=0)
    with pytest.raises(ValueError, match="no device 'gpu'"):
        EnergyCallback("gpu")
