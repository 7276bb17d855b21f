"""Calibration: laws of the fit, windows in files and ledgers, and a rehearsal on a synthetic machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_machine import COMPUTE, FULL_SPEED, MEMORY, STATIC_W, WORK, Work, measured_windows

from energy_models import LedgerKey, LedgerRow, count, estimate, load_profile
from energy_models.calibration import Calibration, EnergyWindow, calibrate, default_factors
from energy_models.calibration_windows import (
    WindowsHeader,
    components_j,
    read_windows,
    windows_of_rows,
    write_windows,
)

ROOT = Path(__file__).parents[2]
TRUE = (COMPUTE, MEMORY, STATIC_W)
HEADER = WindowsHeader(1, "45nm", "a chip", "nvml")
FACTORS = {"compute": ["compute"], "memory": ["dram", "buffer"], "static": ["seconds"]}
MIXES = [(8.0, 1.0, 2.0), (1.0, 9.0, 3.0), (2.0, 2.0, 20.0), (5.0, 4.0, 1.0), (0.1, 0.2, 1.5)]


def windows(compute: float, memory: float, static_w: float, error: float = 0.0) -> list[EnergyWindow]:
    """Windows that obey the factors, but for an error of the first."""
    found = []
    for i, (c, m, s) in enumerate(MIXES):
        joules = (compute * c + memory * m + static_w * s) * (1 if i else 1 + error)
        found.append(EnergyWindow(f"w{i}", joules, s, {"compute": c, "dram": 0.75 * m, "buffer": 0.25 * m}))
    return found


factor = st.floats(0.05, 50)


@settings(deadline=None, max_examples=50)
@given(factor, factor, factor)
def test_what_obeys_the_model_is_found_exactly(compute: float, memory: float, static_w: float) -> None:
    found = calibrate(windows(compute, memory, static_w), FACTORS)
    assert [f.value for f in found.factors] == pytest.approx([compute, memory, static_w], rel=1e-6)
    assert [(f.low, f.high) for f in found.factors] == [
        pytest.approx((f.value, f.value), rel=1e-5) for f in found.factors
    ]
    assert found.error("fitted")[1] < 1e-6
    assert found.error("held_out")[1] < 1e-5
    assert [f.unit for f in found.factors] == ["1", "1", "W"]


def test_the_held_out_error_is_that_of_fits_without_the_window() -> None:
    found = calibrate(windows(2, 3, 4, error=0.3), FACTORS)
    without_first = calibrate(windows(2, 3, 4)[1:], FACTORS)
    assert [f.value for f in without_first.factors] == pytest.approx([2, 3, 4])
    assert found.windows[0].held_out_j == pytest.approx(windows(2, 3, 4)[0].measured_j)
    assert found.error("held_out")[1] > found.error("fitted")[1]
    assert all(f.low <= f.value <= f.high and f.low < f.high for f in found.factors)


def test_a_kind_of_work_weighs_the_same_however_often_it_was_measured() -> None:
    once = windows(2, 3, 4, error=0.3)
    often = [replace(window, group=window.name) for window in once for _ in range(7 if window.name == "w0" else 1)]
    a, b = calibrate(once, FACTORS), calibrate(often, FACTORS)
    assert [f.value for f in a.factors] == pytest.approx([f.value for f in b.factors])
    assert a.error("held_out") == pytest.approx(b.error("held_out"))
    assert b.groups == 5


def test_no_factor_is_negative_and_a_zero_is_reported() -> None:
    found = calibrate(windows(2, -0.1, 4), FACTORS)
    assert found.factors[1].value == 0
    assert any("factor memory is 0" in warning for warning in found.warnings)


def test_windows_that_cannot_tell_the_factors_apart() -> None:
    alike = [
        EnergyWindow(f"w{i}", 3.0 * n + 0.1 * i, n, {"compute": n, "dram": n * (1 + 0.001 * i), "buffer": 0.0})
        for i, n in enumerate((1.0, 2.0, 3.0, 5.0))
    ]
    found = calibrate(alike, {"compute": ["compute"], "memory": ["dram"]})
    assert not found.separable
    assert "cannot tell the factors apart" in found.warnings[0]
    assert calibrate(windows(2, 3, 4), FACTORS).warnings == ()


def test_what_no_factor_names_stays_and_measured_seconds_take_the_place_of_modelled_static_energy() -> None:
    made = [
        replace(w, predicted_j={**w.predicted_j, "other": 5.0, "static": 99.0}, measured_j=w.measured_j + 5.0)
        for w in windows(2, 3, 4)
    ]
    found = calibrate(made, FACTORS)
    assert [f.value for f in found.factors] == pytest.approx([2, 3, 4])
    assert found.windows[0].before_j == 8 + 1 + 5 + 99
    assert default_factors(["compute", "other", "dram", "buffer", "static"]) == {
        "compute": ("compute", "other"),
        "memory": ("dram", "buffer"),
        "static": ("seconds",),
    }


@pytest.mark.parametrize(
    ("factors", "reason"),
    [
        ({}, "0 factors"),
        ({str(i): ["compute"] for i in range(4)}, "4 factors"),
        ({"a": ["compute"], "b": ["compute", "dram"]}, "'compute' is in two factors"),
        ({"a": ["gpu"]}, "no component 'gpu'; it has compute, dram, buffer, seconds"),
        ({"a": ["compute", "seconds"]}, "cannot be added to joules"),
        ({"a": ["static"], "b": ["seconds"]}, "takes the place"),
    ],
)
def test_factors_that_make_no_sense(factors: dict[str, list[str]], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        calibrate(windows(2, 3, 4), factors)


def test_windows_that_are_too_few_or_empty_of_a_factor() -> None:
    with pytest.raises(ValueError, match="at least 4 kinds of work, and these are of 3"):
        calibrate(windows(2, 3, 4)[:3], FACTORS)
    without = [replace(w, predicted_j={**w.predicted_j, "dram": 0.0, "buffer": 0.0}) for w in windows(2, 3, 4)]
    with pytest.raises(ValueError, match="no window has anything of factor 'memory'"):
        calibrate(without, FACTORS)
    for wrong in ({"measured_j": 0.0}, {"duration_s": -1.0}, {"predicted_j": {"x": np.nan}}, {"measured_j": np.inf}):
        with pytest.raises(ValueError, match="window 'w0'"):
            replace(windows(2, 3, 4)[0], **wrong)
    with pytest.raises(ValueError, match="is duration_s"):
        EnergyWindow("w", 1.0, 1.0, {"seconds": 1.0})


# ---- where windows come from ---------------------------------------------------------------------------------------


def test_a_file_of_windows_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "windows.jsonl"
    made = measured_windows(tmp_path / "trace.jsonl")
    write_windows(path, made)
    assert read_windows(path) == made
    with pytest.raises(FileExistsError):
        write_windows(path, made)


@pytest.mark.parametrize(
    ("line", "text", "reason"),
    [
        (0, '{"windows": 2, "profile": "x", "device": "", "sensor": ""}', ":1: not the header .*windows"),
        (1, '{"name": "a", "measured_j": 1}', ":2: not a window: duration_s"),
        (1, '{"name": "a", "measured_j": -1, "duration_s": 1, "predicted_j": {}}', ":2: not a window: .*above 0"),
        (1, "", ":2: not a window"),
    ],
)
def test_what_is_no_file_of_windows(tmp_path: Path, line: int, text: str, reason: str) -> None:
    path = tmp_path / "windows.jsonl"
    write_windows(path, measured_windows(tmp_path / "trace.jsonl"))
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=reason):
        read_windows(path)
    path.write_text(lines[0])
    with pytest.raises(ValueError, match="there are no windows in it"):
        read_windows(path)


def row(phase: str, epoch: int, measured_j: float | None, duration_s: float) -> LedgerRow:
    counts = count(torch.nn.Linear(8, 4), torch.zeros(2, 8))
    key = LedgerKey("run", "dense", phase, epoch)  # type: ignore[arg-type]
    return LedgerRow.from_counts(key, counts, estimate(counts, load_profile("45nm")), 2, measured_j, duration_s, {})


def test_measured_rows_of_a_ledger_become_windows() -> None:
    rows = [row("train", 0, 50.0, 2.0), row("average", 0, 0.0, 0.0), row("train", 1, 51.0, 2.1)]
    rows += [row("eval", 0, 9.0, 0.2), row("eval", 1, None, 1.5), row("detect", 0, 0.0, 1.5)]
    rows += [replace(rows[2], key=replace(rows[2].key, attempt=1), measured_j=52.0)]
    found = windows_of_rows(rows, HEADER)
    assert [(w.name, w.measured_j, w.group) for w in found.windows] == [
        ("dense train epoch 0", 50.0, "dense train"),
        ("dense train epoch 1", 52.0, "dense train"),
    ]
    once = components_j(rows[0].modelled)
    assert found.windows[1].predicted_j == once
    # the updates of the average took their energy within the training
    assert found.windows[0].predicted_j == pytest.approx({name: 2 * joules for name, joules in once.items()})
    assert sum(once.values()) == pytest.approx(rows[0].modelled.nominal_j)
    assert sorted(reason.partition(": ")[0] for reason in found.left_out) == [
        "dense detect epoch 0",
        "dense eval epoch 0",
        "dense eval epoch 1",
    ]


# ---- the rehearsal -------------------------------------------------------------------------------------------------


def rehearsal(path: Path, seed: int, work: tuple[Work, ...] = WORK) -> Calibration:
    made = measured_windows(path, work, seed)
    return calibrate(made.windows, default_factors(list(made.windows[0].predicted_j)))


def test_the_synthetic_machine_is_found_out(tmp_path: Path) -> None:
    """Seeds differ in noise and in how far off the model is (4 % a kind of work)."""
    inside = []
    for seed in range(20):
        found = rehearsal(tmp_path / "trace.jsonl", seed)
        assert [f.value for f in found.factors] == pytest.approx(TRUE, rel=0.15)
        assert found.error("before")[0] > 0.3
        assert found.error("fitted")[0] < found.error("held_out")[0] < 0.05
        assert found.warnings == ()
        inside += [f.low <= true <= f.high for f, true in zip(found.factors, TRUE, strict=True)]
    assert sum(inside) >= 0.8 * len(inside)


def test_at_full_speed_alone_static_power_is_badly_known(tmp_path: Path) -> None:
    """A chip that is always busy draws static power in proportion to its work."""
    found = rehearsal(tmp_path / "trace.jsonl", 0, FULL_SPEED)
    assert found.error("held_out")[0] < 0.05
    (warning,) = found.warnings
    assert "factor static is badly known" in warning


def test_the_example_is_what_the_synthetic_machine_gives(tmp_path: Path) -> None:
    kept = read_windows(ROOT / "examples" / "synthetic_windows.jsonl")
    made = measured_windows(tmp_path / "trace.jsonl")
    assert kept.header == made.header
    assert "not measured" in kept.header.made
    for a, b in zip(kept.windows, made.windows, strict=True):
        assert json.loads(json.dumps(a.predicted_j)) == pytest.approx(b.predicted_j)
        assert (a.name, a.measured_j, a.duration_s) == (b.name, pytest.approx(b.measured_j), b.duration_s)


def test_averages_without_their_training_and_a_file_of_bytes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="average epoch 3: the ledger has no training of that epoch"):
        windows_of_rows([row("train", 2, 9.0, 2.0), row("average", 3, None, 0.0)], HEADER)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\n\xfe\n")
    with pytest.raises(ValueError, match=r"bytes\.jsonl: not a file of windows"):
        read_windows(tmp_path / "bytes.jsonl")
