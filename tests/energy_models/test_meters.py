"""Meters on a recorded sysfs tree and a stand-in for NVML: what was not measured is None with a reason, never 0."""

from __future__ import annotations

import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from energy_models import meters
from energy_models.meters import MeasuredEnergy, measure

RANGE_UJ = 262_143_328_850


def add_domain(sysfs: Path, domain: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    folder = sysfs / domain
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder / "energy_uj"


def set_counter(counter: Path, energy_uj: int) -> None:
    new = counter.with_name("new")
    new.write_text(f"{energy_uj}\n")
    new.replace(counter)  # a reader never sees half a number, as in sysfs


def assert_not_measured(result: MeasuredEnergy, reason: str) -> None:
    assert result.energy_j is None
    assert result.source is None
    assert reason in result.note
    assert result.duration_s >= 0


def test_one_package(tmp_path: Path) -> None:
    counter = add_domain(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    with measure("cpu", sysfs=tmp_path) as result:
        assert result.energy_j is None
        set_counter(counter, 3_500_000)
        time.sleep(0.02)
    assert result.energy_j == 2.5
    assert (result.source, result.device) == ("rapl", "cpu")
    assert 0.02 <= result.duration_s < 5
    assert "package-0" in result.note


def test_packages_add_and_their_parts_do_not(tmp_path: Path) -> None:
    first = add_domain(tmp_path, "intel-rapl:0", "package-0", 0)
    second = add_domain(tmp_path, "intel-rapl:1", "package-1", 10)
    others = [
        add_domain(tmp_path, "intel-rapl:0:0", "core", 0),
        add_domain(tmp_path, "intel-rapl:0:1", "dram", 0),
        add_domain(tmp_path, "intel-rapl:2", "psys", 0),
        add_domain(tmp_path, "intel-rapl-mmio:0", "package-0", 0),
    ]
    with measure("cpu", sysfs=tmp_path) as result:
        set_counter(first, 2_000_000)
        set_counter(second, 4_000_010)
        for other in others:
            set_counter(other, 99_000_000)
    assert result.energy_j == 6.0


def test_a_counter_that_wraps(tmp_path: Path) -> None:
    counter = add_domain(tmp_path, "intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
    with measure("cpu", sysfs=tmp_path) as result:
        set_counter(counter, 500_000)
    assert result.energy_j == 1.5


def test_every_wrap_of_a_long_window_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter of 0.2 J that gains 0.15 J between two reads: only regular reading in between gets the sum right."""
    add_domain(tmp_path, "intel-rapl:0", "package-0", 0)
    reads = 0
    enough = threading.Event()

    def read_uj(path: Path) -> int:
        nonlocal reads
        if path.name == "max_energy_range_uj":
            return 200_000
        reads += 1
        if reads > 10:
            enough.set()
        return reads * 150_000 % 200_000

    monkeypatch.setattr(meters, "_read_uj", read_uj)
    with measure("cpu", sysfs=tmp_path) as result:
        assert enough.wait(timeout=5)
    assert result.energy_j == pytest.approx(0.15 * (reads - 1))


def test_no_sensor(tmp_path: Path) -> None:
    for sysfs in (tmp_path / "absent", tmp_path):
        with measure("cpu", sysfs=sysfs) as result:
            pass
        assert_not_measured(result, "no RAPL sensor")


@pytest.mark.parametrize("denied", ["intel-rapl:0", "intel-rapl:1"])
def test_without_permission_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str) -> None:
    counters = [add_domain(tmp_path, f"intel-rapl:{i}", f"package-{i}", 0) for i in (0, 1)]
    read_text = Path.read_text

    def read(path: Path, *args: Any, **kwargs: Any) -> str:
        if path == tmp_path / denied / "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read)
    with measure("cpu", sysfs=tmp_path) as result:
        for counter in counters:
            set_counter(counter, 1_000_000)
    assert_not_measured(result, f"no permission to read {tmp_path / denied / 'energy_uj'}")
    assert "chmod a+r" in result.note


def test_a_sensor_that_vanishes_or_talks_nonsense(tmp_path: Path) -> None:
    counter = add_domain(tmp_path, "intel-rapl:0", "package-0", 0)
    with measure("cpu", sysfs=tmp_path) as result:
        counter.unlink()
    assert_not_measured(result, "cannot be read")
    counter.write_text("unknown")
    with measure("cpu", sysfs=tmp_path) as result:
        pass
    assert_not_measured(result, "not an energy in microjoules")


def test_a_counter_that_stands_still_measured_nothing(tmp_path: Path) -> None:
    add_domain(tmp_path, "intel-rapl:0", "package-0", 7)
    with measure("cpu", sysfs=tmp_path) as result:
        pass
    assert_not_measured(result, "did not move")


def test_an_error_in_the_block_passes_and_leaves_no_thread(tmp_path: Path) -> None:
    add_domain(tmp_path, "intel-rapl:0", "package-0", 7)
    with pytest.raises(KeyError), measure("cpu", sysfs=tmp_path) as result:
        raise KeyError("training failed")
    assert result.energy_j is None
    assert all(thread.name != "rapl" for thread in threading.enumerate())


def test_unknown_devices(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no device 'gpu'"), measure("gpu"):
        pass
    with measure("meta", sysfs=tmp_path) as result:
        pass
    assert_not_measured(result, "no sensor is known")


# ---- NVML --------------------------------------------------------------------------------------------------------


class FakeNvml(types.ModuleType):
    """Only what meters calls; energies in mJ are handed out in order. An exception among them is raised."""

    class NVMLError(Exception):
        pass

    def __init__(self, *energies_mj: int | Exception):
        super().__init__("pynvml")
        self.calls: list[str] = []
        self._energies_mj = list(energies_mj)

    def nvmlInit(self) -> None:
        self.calls.append("init")

    def nvmlShutdown(self) -> None:
        self.calls.append("shutdown")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-beef-1":
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "GPU-beef-1"
        self.calls.append("read")
        value = self._energies_mj.pop(0)
        if isinstance(value, Exception):
            raise value
        return value


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeNvml], None]:
    """A machine with two GPUs as torch sees it, whose NVML is the given one."""

    def install(nvml: FakeNvml) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: nvml.calls.append(f"sync {device}"))
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid=f"beef-{device.index or 0}")
        )

    return install


def test_gpu_energy_between_two_synchronised_reads(gpu: Callable[[FakeNvml], None]) -> None:
    nvml = FakeNvml(5_000, 12_500)
    gpu(nvml)
    with measure("cuda:1") as result:
        nvml.calls.append("body")
        time.sleep(0.11)
    assert result.energy_j == 7.5
    assert (result.source, result.device) == ("nvml", "cuda:1")
    assert result.duration_s >= 0.11
    assert nvml.calls == ["init", "sync cuda:1", "read", "body", "sync cuda:1", "read", "shutdown"]


def test_a_short_gpu_window_means_nothing(gpu: Callable[[FakeNvml], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "MIN_NVML_WINDOW_S", 60)
    nvml = FakeNvml(5_000, 12_500)
    gpu(nvml)
    with measure("cuda:1") as result:
        pass
    assert_not_measured(result, "below 60 s")
    assert nvml.calls[-1] == "shutdown"


@pytest.mark.parametrize(
    ("energies", "reason"),
    [
        ([FakeNvml.NVMLError("Not Supported")], "no energy counter for this GPU: Not Supported"),
        ([1, FakeNvml.NVMLError("GPU is lost")], "GPU is lost"),
        ([5, 5], "did not move"),
    ],
)
def test_nvml_without_a_value(gpu: Callable[[FakeNvml], None], energies: list[Any], reason: str) -> None:
    nvml = FakeNvml(*energies)
    gpu(nvml)
    with measure("cuda:1") as result:
        time.sleep(0.1)
    assert_not_measured(result, reason)
    assert nvml.calls[-1] == "shutdown"


def test_the_gpu_is_the_one_torch_means(gpu: Callable[[FakeNvml], None]) -> None:
    gpu(FakeNvml(0, 1_000))
    with measure() as result:  # a GPU is there, so None is the GPU: number 0, which this NVML does not know
        pass
    assert result.device == "cuda"
    assert_not_measured(result, "GPU-beef-0: Not Found")
    with pytest.raises(ValueError, match="torch sees cuda:0 to cuda:1"), measure("cuda:2"):
        pass


def test_without_pynvml_the_fix_is_named(gpu: Callable[[FakeNvml], None], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu(FakeNvml())
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with measure("cuda") as result:
        pass
    assert_not_measured(result, "pip install 'lowprec-eb[nvml]'")


def test_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with measure("cuda") as result:
        pass
    assert_not_measured(result, "torch sees no CUDA device")
    counter = add_domain(tmp_path, "intel-rapl:0", "package-0", 0)
    with measure(sysfs=tmp_path) as result:
        set_counter(counter, 1_000_000)
    assert (result.device, result.energy_j) == ("cpu", 1.0)
