"""Sensors for the tests of this folder; none of them needs hardware."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_sensors import FakeRapl, InstallGpu, install_gpu


@pytest.fixture
def rapl(tmp_path: Path) -> FakeRapl:
    return FakeRapl(tmp_path / "powercap")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> InstallGpu:
    return install_gpu(monkeypatch)
