"""RAPL on a tree of powercap files: packages and DRAM, wraps, and everything that can be wrong with the files."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fake_sensors import RANGE_UJ, FakeRapl, assert_not_measured, set_counter
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_models import Rapl, measure
from energy_models.meters import rapl as rapl_module
from energy_models.meters.rapl import RaplDomain, RaplMeter


def test_one_package(rapl: FakeRapl) -> None:
    rapl.domain("intel-rapl:0", "package-0", 1_000_000)
    with measure(rapl.source()) as result:
        assert result.energy_j is None
        rapl.run(0.5, package_0=2.5)
    assert (result.energy_j, result.duration_s, result.power_w) == (2.5, 0.5, 5.0)
    assert (result.source, result.device) == ("rapl", "cpu")
    assert "package-0" in result.note
    assert not result.too_short


def test_packages_add_dram_stands_apart_and_what_is_inside_or_around_does_not_count(rapl: FakeRapl) -> None:
    rapl.domain("intel-rapl:0", "package-0")
    rapl.domain("intel-rapl:1", "package-1", 10)
    rapl.domain("intel-rapl:0:0", "core")
    rapl.domain("intel-rapl:0:1", "dram")
    rapl.domain("intel-rapl:1:0", "dram", 5)
    rapl.domain("intel-rapl:2", "psys")
    rapl.domain("intel-rapl-mmio:0", "package-0-mmio")
    with measure(rapl.source()) as result:
        rapl.run(1, package_0=2, package_1=4, dram=1.5, core=99, psys=99, package_0_mmio=99)
    assert result.energy_j == 6.0
    assert {r.sensor: (r.energy_j, r.in_total) for r in result.readings} == {
        "rapl:package-0": (2.0, True),
        "rapl:package-1": (4.0, True),
        "rapl:dram-0": (1.5, False),
        "rapl:dram-1": (1.5, False),
    }
    assert result.note.startswith("the sum of 2 sensors of this device: rapl:package-0")


def test_a_counter_that_wraps(rapl: FakeRapl) -> None:
    rapl.domain("intel-rapl:0", "package-0", RANGE_UJ - 1_000_000)
    with measure(rapl.source()) as result:
        rapl.run(1, package_0=1.5)
    assert result.energy_j == 1.5


@settings(max_examples=200, deadline=None)
@given(
    range_uj=st.integers(1_000_000, 10**12),
    start=st.floats(0, 1, exclude_max=True),
    steps=st.lists(st.tuples(st.floats(0, 0.999), st.floats(0, 1)), max_size=20),
)
def test_read_in_time_every_wrap_is_undone(range_uj: int, start: float, steps: list[tuple[float, float]]) -> None:
    """Whatever a package draws below the bound, reads that come before it could wrap find all of it."""
    clock_s, counter, true_uj = 0.0, int(start * range_uj), 0

    def read_uj(path: Path) -> int:
        return range_uj if path.name == "max_energy_range_uj" else counter % range_uj

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rapl_module, "_read_uj", read_uj)
        meter = RaplMeter(RaplDomain("rapl:package-0", Path("x"), lambda: clock_s))
        before_j = meter.read()
        for share_of_wrap, share_of_power in steps:
            gap_s = share_of_wrap * range_uj / 1e6 / rapl_module.MAX_PACKAGE_W
            step_uj = int(share_of_power * gap_s * rapl_module.MAX_PACKAGE_W * 1e6)
            clock_s, counter, true_uj = clock_s + gap_s, counter + step_uj, true_uj + step_uj
            assert meter.read() - before_j == pytest.approx(true_uj / 1e6, abs=1e-6)


def test_the_counter_is_read_in_between_so_often_that_no_wrap_can_pass(
    rapl: FakeRapl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A counter of 0.2 J that gains 0.15 J between two reads: only regular reading in between gets the sum right."""
    rapl.domain("intel-rapl:0", "package-0")
    reads = 0
    enough = threading.Event()

    def read_uj(path: Path) -> int:
        nonlocal reads
        if path.name == "max_energy_range_uj":
            return 200_000
        reads += 1
        rapl.clock.tick(0.00015)
        if reads > 10:
            enough.set()
        return reads * 150_000 % 200_000

    monkeypatch.setattr(rapl_module, "_read_uj", read_uj)
    with measure(rapl.source()) as result:
        assert enough.wait(timeout=5)
    assert result.energy_j is not None
    steps = result.energy_j / 0.15
    assert steps == pytest.approx(round(steps))
    assert 9 <= round(steps) <= reads - 2  # one read to open it, one as the window began; some may follow its end


def test_a_wrap_that_may_have_passed_unseen_gives_nothing(rapl: FakeRapl) -> None:
    rapl.domain("intel-rapl:0", "package-0")
    with measure(rapl.source()) as result:
        rapl.run(RANGE_UJ / 1e6 / rapl_module.MAX_PACKAGE_W + 1, package_0=3)
    assert_not_measured(result, "may have wrapped unseen")


def test_a_counter_that_was_reset_is_no_wrap(rapl: FakeRapl) -> None:
    counter = rapl.domain("intel-rapl:0", "package-0", 5_000_000)
    with measure(rapl.source()) as result:
        rapl.clock.tick(2)
        set_counter(counter, 0)
    assert_not_measured(result, "was the counter reset, or the machine asleep?")


def test_no_sensor(tmp_path: Path) -> None:
    for root in (tmp_path / "absent", tmp_path):
        with measure(Rapl(root)) as result:
            pass
        assert_not_measured(result, "no RAPL sensor")
        (reading,) = result.readings
        assert (reading.energy_j, reading.resolution_s) == (None, None)


@pytest.mark.parametrize("denied", ["intel-rapl:0", "intel-rapl:1"])
def test_without_permission_the_sum_is_not_measured_and_the_fix_is_named(
    rapl: FakeRapl, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    for i in (0, 1):
        rapl.domain(f"intel-rapl:{i}", f"package-{i}")
    read_text = Path.read_text

    def read(path: Path, *args: Any, **kwargs: Any) -> str:
        if path == rapl.root / denied / "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", read)
    source = rapl.source()
    with measure(source) as result:
        rapl.clock.tick(1)
        readable = "intel-rapl:1" if denied == "intel-rapl:0" else "intel-rapl:0"
        set_counter(rapl.root / readable / "energy_uj", 1_000_000)
    assert_not_measured(result, f"no permission to read {rapl.root / denied / 'energy_uj'}")
    assert f"`sudo chmod a+r {rapl.root}/intel-rapl:*/energy_uj`" in result.note
    assert sorted(str(r.energy_j) for r in result.readings) == ["1.0", "None"]


def test_a_container_that_hides_the_folder(rapl: FakeRapl, tmp_path: Path) -> None:
    rapl.root.mkdir()
    (rapl.root / "intel-rapl:0").symlink_to(tmp_path / "hidden")
    with measure(rapl.source()) as result:
        pass
    assert_not_measured(result, "containers hide")


def test_a_file_that_vanishes_or_talks_nonsense(rapl: FakeRapl) -> None:
    counter = rapl.domain("intel-rapl:0", "package-0")
    with measure(rapl.source()) as result:
        counter.unlink()
    assert_not_measured(result, "cannot be read")
    counter.write_text("unknown")
    with measure(rapl.source()) as result:
        pass
    assert_not_measured(result, "not an energy in microjoules")
    counter.write_text("5")
    (counter.parent / "max_energy_range_uj").write_text("0")
    with measure(rapl.source()) as result:
        pass
    assert_not_measured(result, "a wrap could not be undone")


def test_dram_that_cannot_be_read_leaves_the_packages_alone(rapl: FakeRapl) -> None:
    rapl.domain("intel-rapl:0", "package-0")
    rapl.domain("intel-rapl:0:0", "dram").unlink()
    with measure(rapl.source()) as result:
        rapl.run(1, package_0=2)
    assert result.energy_j == 2.0
    assert [r.energy_j for r in result.readings] == [2.0, None]
    assert "cannot be read" in result.readings[1].note


def test_a_counter_that_stands_still_measured_nothing(rapl: FakeRapl) -> None:
    rapl.domain("intel-rapl:0", "package-0", 7)
    with measure(rapl.source()) as result:
        rapl.clock.tick(1)
    assert_not_measured(result, "did not move")
    assert not result.too_short
