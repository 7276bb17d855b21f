"""What a window is, whatever the sensor: nested, side by side, forked, raising, too short, with idle power apart."""

from __future__ import annotations

import copy
import math
import os
import pickle
import signal
import threading

import pytest
import torch
from fake_sensors import FakeRapl, assert_not_measured

from energy_models import MeasuredEnergy, measure, measure_idle
from energy_models.meters.sensor import Watch


@pytest.fixture
def package(rapl: FakeRapl) -> FakeRapl:
    rapl.domain("intel-rapl:0", "package-0")
    rapl.domain("intel-rapl:0:0", "dram")
    return rapl


def threads() -> int:
    return sum(thread.name == "energy-meter" for thread in threading.enumerate())


def test_nested_windows_each_have_their_own_energy(package: FakeRapl) -> None:
    with measure(package.source()) as outer:
        package.run(1, package_0=10)
        with measure(package.source()) as inner:
            package.run(1, package_0=5)
        package.run(1, package_0=1)
    assert (inner.energy_j, inner.duration_s) == (5.0, 1.0)
    assert (outer.energy_j, outer.duration_s) == (16.0, 3.0)
    assert threads() == 0


def test_windows_of_several_threads_do_not_meet(package: FakeRapl) -> None:
    results: list[MeasuredEnergy] = []
    begun, done = threading.Barrier(5), threading.Event()

    def window() -> None:
        with measure(package.source()) as result:
            begun.wait(timeout=5)
            done.wait(timeout=5)
        results.append(result)

    workers = [threading.Thread(target=window) for _ in range(4)]
    for worker in workers:
        worker.start()
    begun.wait(timeout=5)
    package.run(1, package_0=8)
    done.set()
    for worker in workers:
        worker.join()
    assert [result.energy_j for result in results] == [8.0] * 4
    assert threads() == 0


def test_an_error_in_the_block_passes_and_what_was_used_until_then_is_measured(package: FakeRapl) -> None:
    with pytest.raises(KeyboardInterrupt), measure(package.source()) as result:
        package.run(1, package_0=3)
        raise KeyboardInterrupt
    assert (result.energy_j, result.duration_s) == (3.0, 1.0)
    assert result.note.startswith("the block ended with KeyboardInterrupt; up to there: rapl:package-0")
    assert threads() == 0


def in_child(body: object) -> int:
    """The exit status of a forked child that runs ``body``; 0 unless an assertion failed there."""
    child = os.fork()
    if child == 0:
        try:
            body()  # type: ignore[operator]
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_measures_and_leaves_its_parents_windows_alone(package: FakeRapl) -> None:
    stack = measure(package.source())
    result = stack.__enter__()

    def child() -> None:
        with measure(package.source()) as own:
            package.run(1, package_0=2)
        assert own.energy_j == 2.0
        stack.__exit__(None, None, None)
        assert_not_measured(result, "forked")

    assert in_child(child) == 0
    package.run(1, package_0=4)
    stack.__exit__(None, None, None)
    assert result.energy_j == 6.0  # the child's 2 J were in the package too


def test_a_child_forked_while_the_sensors_are_read_does_not_wait_for_a_thread_that_is_not_there(
    package: FakeRapl,
) -> None:
    watch = Watch(package.source())
    watch.start()

    def child() -> None:
        signal.alarm(5)
        assert all(sample.energy_j is None for sample in watch.read().values())
        watch.close()

    with watch._lock, watch._stop._cond:
        assert in_child(child) == 0
    watch.close()


def test_a_sensor_that_comes_back_has_missed_something(package: FakeRapl) -> None:
    watch = Watch(package.source())
    first, *_ = watch.start()
    name = package.root / "intel-rapl:0" / "energy_uj"
    name.rename(name.with_name("away"))
    assert watch.read()[first].energy_j is None
    name.with_name("away").rename(name)
    assert "cannot be read" in watch.read()[first].reason
    watch.close()


def test_a_window_shorter_than_the_sensor_can_see_says_so(package: FakeRapl) -> None:
    with measure(package.source()) as result:
        package.run(0.0005, package_0=0.01)
    assert_not_measured(result, "below the 0.001 s that rapl:package-0 needs")
    assert result.too_short
    with measure(package.source()) as result:
        package.run(0.004, package_0=0.01)
    assert result.energy_j == 0.01
    assert "4 of the sensor's steps, so +-1 of them counts" in result.note


def test_idle_energy_stands_apart(package: FakeRapl) -> None:
    with measure(package.source()) as idle:
        package.run(10, package_0=200, dram=30)
    with measure(package.source(), idle=idle) as result:
        package.run(2, package_0=100, dram=10)
    assert (result.energy_j, result.idle_w, result.idle_j, result.active_j) == (100.0, 20.0, 40.0, 60.0)
    assert [(r.energy_j, r.idle_w, r.idle_j) for r in result.readings] == [(100.0, 20.0, 40.0), (10.0, 3.0, 6.0)]
    assert "idle" not in result.note


def test_a_given_idle_power_that_is_too_high_says_so(package: FakeRapl) -> None:
    with measure(package.source(), idle=60) as result:
        package.run(2, package_0=100)
    assert (result.energy_j, result.active_j) == (100.0, -20.0)
    assert "active_j is negative, so the idle power of 60 W is too high" in result.note


def test_an_idle_power_that_was_not_measured_is_not_known(package: FakeRapl) -> None:
    with measure(package.source(), idle=MeasuredEnergy("cpu", note="no sensor then")) as result:
        package.run(2, package_0=100)
    assert (result.energy_j, result.idle_j, result.active_j) == (100.0, None, None)
    assert "the idle power is not known: no sensor then" in result.note


@pytest.mark.parametrize("idle", [-1.0, math.nan, math.inf, MeasuredEnergy("cuda:0", 5.0, 1.0)])
def test_an_idle_power_that_cannot_be(package: FakeRapl, idle: float | MeasuredEnergy) -> None:
    with pytest.raises(ValueError, match="idle"), measure(package.source(), idle=idle):
        pass


def test_measure_idle_waits(package: FakeRapl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energy_models.meters.window.time.sleep", lambda seconds: package.run(seconds, package_0=50))
    idle = measure_idle(package.source(), seconds=5)
    assert (idle.energy_j, idle.power_w) == (50.0, 10.0)


def test_unknown_devices() -> None:
    with pytest.raises(ValueError, match="no device 'gpu'"), measure("gpu"):
        pass
    with measure(torch.device("meta")) as result:
        pass
    assert_not_measured(result, "no sensor is known")


def test_results_can_be_copied_and_sent(package: FakeRapl) -> None:
    with measure(package.source()) as result:
        package.run(1, package_0=3)
    assert copy.deepcopy(result) == result
    assert pickle.loads(pickle.dumps(result)) == result
