"""Recording sensors and replaying what was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_sensors import Clock, FakeNvml, FakeRapl, InstallGpu, assert_not_measured
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_models import Replay, measure, record
from energy_models.meters.replay import Channel, TraceSample, read_trace

HEADER = {
    "trace": 1,
    "every_s": 0.1,
    "sensors": {
        "wall": {"device": "cuda", "covers": "a watt meter", "resolution_s": 0.1, "min_window_s": 0.1},
        "rapl:package-0": {"device": "cpu", "covers": "x", "resolution_s": 0.001, "min_window_s": 0.001},
        "rapl:dram-0": {
            "device": "cpu",
            "covers": "x",
            "resolution_s": 0.001,
            "min_window_s": 0.001,
            "in_total": False,
        },
    },
    "missing": {"cuda:7": "GPU is lost"},
}


def write_trace(path: Path, *samples: dict[str, Any], header: Any = HEADER) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in (header, *samples)))
    return path


def trace(path: Path) -> Path:
    """Ten seconds of a watt meter at 100 W and then 300 W, of a package at 20 W and its DRAM at 5 W."""
    samples: list[dict[str, Any]] = []
    for i in range(101):
        time_s = i / 10
        samples += [
            {"time_s": time_s, "sensor": "wall", "power_w": 100 if time_s <= 5 else 300},
            {"time_s": time_s, "sensor": "rapl:package-0", "energy_j": 7 + 20 * time_s},
            {"time_s": time_s, "sensor": "rapl:dram-0", "energy_j": 5 * time_s},
        ]
    return write_trace(path, *samples)


def test_a_window_of_a_recording(tmp_path: Path) -> None:
    clock = Clock()
    clock.time_s = 1.0
    gpu, cpu = (Replay(trace(tmp_path / "trace.jsonl"), device=device, clock=clock) for device in (None, "cpu"))
    with measure(gpu, beside=[cpu]) as result:
        clock.tick(3.25)
    assert (result.device, result.source, result.duration_s) == ("cuda", "replay", 3.25)
    assert result.energy_j == pytest.approx(325)
    assert {r.sensor: r.energy_j for r in result.readings} == pytest.approx(
        {"wall": 325, "rapl:package-0": 65, "rapl:dram-0": 16.25}
    )
    assert f"recorded in {tmp_path / 'trace.jsonl'}: a watt meter" in result.note
    clock.time_s = 6.0
    with measure(cpu, idle=10) as result:
        clock.tick(2)
    assert (result.energy_j, result.active_j) == (pytest.approx(40), pytest.approx(20))


def test_a_window_that_the_recording_does_not_cover(tmp_path: Path) -> None:
    clock = Clock()
    replay = Replay(trace(tmp_path / "trace.jsonl"), clock=clock)
    clock.time_s = 9.0
    with measure(replay) as result:
        clock.tick(2)
    assert_not_measured(result, "the trace covers from 0 to 10 s, not 11 s")
    clock.time_s = 5.0
    with measure(replay) as result:
        clock.tick(0.05)
    assert_not_measured(result, "below the 0.1 s")
    with measure(Replay(tmp_path / "trace.jsonl", device="cuda:7")) as result:
        pass
    assert_not_measured(result, "recorded without a sensor: GPU is lost")


def test_a_recording_with_a_gap_and_one_that_breaks_off(tmp_path: Path) -> None:
    clock = Clock()
    path = write_trace(
        tmp_path / "trace.jsonl",
        *({"time_s": t, "sensor": "wall", "power_w": 100} for t in (0, 1, 3, 4)),
        *({"time_s": t, "sensor": "rapl:package-0", "energy_j": t} for t in (0, 1, 3, 4)),
        {"time_s": 4.1, "sensor": "rapl:package-0", "error": "the file is gone"},
        *({"time_s": t, "sensor": "rapl:dram-0", "energy_j": t} for t in (0, 1, 3, 4)),
    )
    wall, package = Replay(path, clock=clock), Replay(path, device="cpu", clock=clock)

    def window(source: Replay, start_s: float, end_s: float) -> Any:
        clock.time_s = start_s
        with measure(source) as result:
            clock.time_s = end_s
        return result

    assert window(wall, 0, 1).energy_j == 100
    assert window(wall, 3, 4).energy_j == 100
    assert_not_measured(window(wall, 0, 4), "a gap of 2 s")
    assert window(package, 0, 4).energy_j == 4  # a counter misses nothing
    assert_not_measured(window(package, 0, 2), "no sample between 1 and 3 s")
    assert_not_measured(window(package, 0, 4.5), "where the recording says: the file is gone")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 500)), min_size=2, max_size=30), st.data())
def test_windows_that_follow_each_other_add_up(steps: list[tuple[float, float]], data: st.DataObject) -> None:
    channel, time_s = Channel(), 0.0
    for step_s, power_w in steps:
        channel.add(TraceSample(time_s, "x", power_w=power_w))
        time_s += step_s
    end_s = channel.times_s[-1]
    a, b, c = sorted(data.draw(st.floats(0, end_s)) for _ in range(3))
    parts = [channel.energy_at(t, gap_s=2) for t in (a, b, c)]
    assert parts == sorted(parts)
    assert 0 <= parts[-1] <= end_s * max(power for _, power in steps) * (1 + 1e-9)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        ([{"time_s": 1, "sensor": "wall", "power_w": 1}, {"time_s": 0, "sensor": "wall", "power_w": 1}], ":3: time_s"),
        (
            [{"time_s": t, "sensor": "rapl:dram-0", "energy_j": e} for t, e in ((0, 2), (1, 1))],
            ":3: energy_j falls from 2.0 to 1.0",
        ),
        ([{"time_s": 0, "sensor": "wall", "energy_j": 1, "power_w": 1}], ":2: not a sample: .*one of energy_j"),
        ([{"time_s": 0, "sensor": "wall", "power_w": -1}], ":2: not a sample: .*not negative"),
        ([{"time_s": 0, "sensor": "clock", "power_w": 1}], ":2: the header has no sensor 'clock'"),
        ([{"time_s": 0, "sensor": "wall", "watts": 1}], ":2: not a sample: watts"),
        (
            [{"time_s": 0, "sensor": "wall", "power_w": 1}, {"time_s": 1, "sensor": "wall", "energy_j": 1}],
            ":3: a sensor has either energies or powers",
        ),
    ],
)
def test_what_is_no_sample(tmp_path: Path, samples: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_trace(write_trace(tmp_path / "trace.jsonl", *samples))


def test_what_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    for header in ({**HEADER, "trace": 2}, {"schema": 1}, []):
        with pytest.raises(ValueError, match=r"trace\.jsonl:1: not the header of a trace of schema 1"):
            read_trace(write_trace(path, header=header))
    path.write_text("")
    with pytest.raises(ValueError, match="this is no trace"):
        read_trace(path)
    with pytest.raises(ValueError, match=r"no device 'cuda:3'; it has cuda, cpu, cuda:7"):
        Replay(write_trace(path), device="cuda:3")


def test_what_was_recorded_is_replayed(rapl: FakeRapl, gpu: InstallGpu, tmp_path: Path) -> None:
    nvml = gpu(FakeNvml(5_000))
    rapl.domain("intel-rapl:0", "package-0")
    rapl.domain("intel-rapl:0:0", "dram")
    path = tmp_path / "trace.jsonl"
    recorded = record(path, nvml.source(), beside=[rapl.source(), "meta"], every_s=3600)
    with recorded, measure(nvml.source(), beside=[rapl.source()]) as measured:
        nvml.run(2, energy_j=500)
        rapl.run(2, package_0=100, dram=7)
    clock = Clock()
    clock.time_s = 0.0
    gpu_again, cpu_again = (Replay(path, device=device, clock=clock) for device in ("cuda:1", "cpu"))
    with measure(gpu_again, beside=[cpu_again]) as replayed:
        clock.tick(2)
    assert_not_measured(replayed, "below the 3600 s")  # it was sampled at its ends only
    ends = {name: channel.energies_j[-1] - channel.energies_j[0] for name, channel in gpu_again.trace.channels.items()}
    assert ends == {r.sensor: r.energy_j for r in measured.readings}
    assert gpu_again.trace.header.missing == {
        "meta": "no sensor is known for the device meta; 'cpu' and 'cuda' can be measured"
    }
    with pytest.raises(FileExistsError), record(path, rapl.source()):
        pass


def test_a_thread_samples_while_the_block_runs(rapl: FakeRapl, tmp_path: Path) -> None:
    counter = rapl.domain("intel-rapl:0", "package-0")
    path = tmp_path / "trace.jsonl"
    with record(path, rapl.source(), every_s=0.001):
        for _ in range(5):
            rapl.run(1, package_0=10)
            lines = path.read_text().count("\n")
            while path.read_text().count("\n") == lines:  # until the thread has written once more
                pass
        counter.unlink()
        rapl.clock.tick(1)
    channel = read_trace(path).channels["rapl:package-0"]
    assert len(channel.times_s) >= 6
    assert (channel.energies_j[0], channel.energies_j[-1]) == (0.0, 50.0)
    assert channel.error is not None
    assert "cannot be read" in channel.error
    assert path.read_text().count('"error"') == 1


def test_a_full_disk_ends_the_recording_and_not_the_training(rapl: FakeRapl, tmp_path: Path) -> None:
    rapl.domain("intel-rapl:0", "package-0")
    path = tmp_path / "trace.jsonl"
    warned = pytest.warns(RuntimeWarning, match="stopped early: .*No space left")
    with pytest.MonkeyPatch.context() as patch, warned, record(path, rapl.source(), every_s=3600):
        patch.setattr("energy_models.meters.recording._Writer._line", refuse)
        rapl.run(1, package_0=1)
    assert read_trace(path).channels["rapl:package-0"].times_s == [0.0]


def refuse(*_: Any) -> None:
    raise OSError(28, "No space left on device")
