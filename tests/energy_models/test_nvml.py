"""NVML on a stand-in for its module: counter, power, the right GPU, and a GPU that is lost."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from fake_sensors import FakeNvml, FakeRapl, InstallGpu, assert_not_measured

from energy_models import measure
from energy_models.meters import nvml as nvml_module


def test_energy_between_two_synchronised_reads(gpu: InstallGpu) -> None:
    nvml = gpu(FakeNvml(5_000))
    with measure(nvml.source()) as result:
        nvml.calls.append("body")
        nvml.run(2, energy_j=7.5)
    assert (result.energy_j, result.duration_s) == (7.5, 2.0)
    assert (result.source, result.device) == ("nvml", "cuda:1")
    assert "whole GPU GPU-beef-1" in result.note
    assert "arXiv 2312.02741" in result.note
    # the first read only asks whether there is a counter
    assert nvml.calls == ["energy", "sync cuda:1", "energy", "body", "sync cuda:1", "energy"]
    assert nvml.started == 0


def test_a_short_window_means_nothing(gpu: InstallGpu) -> None:
    nvml = gpu(FakeNvml(5_000))
    with measure(nvml.source()) as result:
        nvml.run(0.09, energy_j=7.5)
    assert_not_measured(result, "below the 0.1 s that nvml:GPU-beef-1 needs")
    assert result.too_short
    with measure(nvml.source()) as result:
        nvml.run(0.5, energy_j=50)
    assert (result.energy_j, result.too_short) == (50.0, False)
    assert "the window is 5 of the sensor's steps" in result.note


def test_without_a_counter_power_is_integrated_and_the_result_says_so(gpu: InstallGpu) -> None:
    nvml = gpu(FakeNvml(FakeNvml.NVMLError_NotSupported("Not Supported"), power_mw=100_000))
    with measure(nvml.source()) as result:
        nvml.clock.tick(0.5)
        nvml.power_mw = 300_000
        with measure(nvml.source()) as inner:
            nvml.clock.tick(0.5)
    assert result.duration_s == 1.0
    assert result.energy_j is not None
    # read every 20 ms of real time: where in the clock's first jump the power rose is for the thread to see or not
    assert 0.5 * (100 + 300) / 2 + 0.5 * 300 - 60 <= result.energy_j <= 0.5 * 300 + 0.5 * 300
    assert "integrated, since this GPU has no energy counter" in result.note
    assert_not_measured(inner, "below the 1 s")
    assert nvml.started == 0


def test_power_integration_on_demand_is_the_trapezoid_rule(gpu: InstallGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml_module, "POWER_PERIOD_S", 3600)
    monkeypatch.setattr(nvml_module._Power, "poll_s", 3600)
    nvml = gpu(FakeNvml(5_000, power_mw=100_000))
    with measure(nvml.source(method="power")) as result:
        nvml.clock.tick(1.0)
        nvml.power_mw = 200_000
    assert result.energy_j == 150.0
    assert "as was asked for" in result.note
    with measure(nvml.source(method="power")) as result:
        nvml.clock.tick(30)
    assert_not_measured(result, "was not read for 30 s")


@pytest.mark.parametrize(
    ("first", "then", "reason"),
    [
        (FakeNvml.NVMLError("No permission"), None, "gives no energy of GPU-beef-1: No permission"),
        (1, FakeNvml.NVMLError("GPU is lost"), "any more: GPU is lost"),
        (5, 5, "did not move"),
        (5_000, 100, "went back"),
    ],
)
def test_nvml_without_a_value(gpu: InstallGpu, first: Any, then: Any, reason: str) -> None:
    nvml = gpu(FakeNvml(first))
    with measure(nvml.source()) as result:
        nvml.clock.tick(1)
        nvml.energy_mj = then
    assert_not_measured(result, reason)
    assert nvml.started == 0


def test_no_counter_and_no_power(gpu: InstallGpu) -> None:
    missing = FakeNvml.NVMLError_NotSupported("Not Supported")
    nvml = gpu(FakeNvml(missing, missing))
    for method in (None, "counter", "power"):
        with measure(nvml.source(method=method)) as result:
            nvml.clock.tick(5)
        assert_not_measured(result, "Not Supported")
    nvml.power_mw = 100_000
    with measure(nvml.source(method="counter")) as result:  # what was not asked for does not stand in
        nvml.clock.tick(5)
    assert_not_measured(result, "Not Supported")
    assert nvml.started == 0


def test_the_gpu_is_the_one_torch_means(gpu: InstallGpu) -> None:
    gpu(FakeNvml())
    with measure() as result:  # a GPU is there, so None is the GPU: number 0, which this NVML does not know
        pass
    assert result.device == "cuda"
    assert_not_measured(result, "GPU-beef-0: Not Found")
    with pytest.raises(ValueError, match="torch sees cuda:0 to cuda:1"), measure("cuda:2"):
        pass


def test_without_pynvml_the_fix_is_named(gpu: InstallGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = gpu(FakeNvml())
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with measure("cuda") as result:
        pass
    assert_not_measured(result, "pip install 'lowprec-eb[nvml]'")
    assert nvml.calls == ["sync cuda", "sync cuda"]  # the duration is right without a sensor


def test_gpus_that_are_not_there_or_not_known(gpu: InstallGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(FakeNvml())

    def refuse(device: torch.device) -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", refuse)
        with measure("cuda") as result:
            pass
    assert_not_measured(result, "forked subprocess")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with measure("cuda") as result:
        pass
    assert_not_measured(result, "AMD")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with measure("cuda") as result:
        pass
    assert_not_measured(result, "torch sees no CUDA device")


def test_work_that_fails_on_the_gpu_is_heard_and_the_window_is_closed(
    gpu: InstallGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = gpu(FakeNvml(5_000))

    def fail(device: torch.device) -> None:
        raise RuntimeError("device-side assert triggered")

    with pytest.raises(RuntimeError, match="device-side assert"), measure(nvml.source()) as result:
        nvml.run(2, energy_j=3)
        monkeypatch.setattr(torch.cuda, "synchronize", fail)
    assert result.energy_j == 3.0
    assert result.note.startswith("the block ended with RuntimeError; up to there: ")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    with pytest.raises(KeyError), measure(nvml.source()) as result:  # the block's own error is the one that is heard
        monkeypatch.setattr(torch.cuda, "synchronize", fail)
        raise KeyError
    assert nvml.started == 0


def test_a_gpu_beside_the_cpu_is_given_apart(gpu: InstallGpu, rapl: FakeRapl) -> None:
    nvml = gpu(FakeNvml())
    rapl.domain("intel-rapl:0", "package-0")
    with measure(nvml.source(), beside=[rapl.source()]) as result:
        nvml.run(2, energy_j=500)
        rapl.run(2, package_0=100)
    assert (result.device, result.energy_j) == ("cuda:1", 500.0)
    assert {r.device: r.energy_j for r in result.readings} == {"cuda:1": 500.0, "cpu": 100.0}
    with measure(rapl.source(), beside=["cuda:0"]) as result:
        rapl.run(2, package_0=100)
    assert (result.device, result.energy_j) == ("cpu", 100.0)
    assert "GPU-beef-0: Not Found" in result.readings[1].note
