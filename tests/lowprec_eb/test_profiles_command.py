"""`lowprec-eb profiles`: the list, one profile in full, and what it says of wrong names."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from energy_models.profile_files import available_profiles, load_profile
from lowprec_eb.cli import app


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["profiles", *arguments])
    return result.exit_code, " ".join(result.output.split())


def test_the_list_names_all_and_counts_their_constants() -> None:
    code, text = invoke()
    assert code == 0
    for name in available_profiles():
        constants = load_profile(name).constants().values()
        assert f"{name} " in text and f"{len(constants)}, {sum(c.is_secondary for c in constants)}*" in text
    assert "dram > buffer > array > rf" in text and "fp32, tf32, bf16, fp16, fp8, int8" in text
    assert text.count("whole chip") == 4


@pytest.mark.parametrize("name", available_profiles())
def test_one_in_full(name: str) -> None:
    code, text = invoke(name)
    profile = load_profile(name)
    assert code == 0
    for place, constant in profile.constants().items():
        assert f"{place} {constant.value:.6g} {constant.low:.6g} {constant.high:.6g}" in text
    for line in profile.leaves_out:
        assert f"- {line}" in text
    assert ("* secondary source:" in text) and "calibration" not in text


def test_only_secondary_sources_are_marked(tmp_path: Path) -> None:
    _, text = invoke("eyeriss")
    assert "array.capacity 85.3 85.3 85.3 KiB 168 elements" in text
    assert "buffer.capacity 108 108 108 KiB * Chen et al." in text
    path = tmp_path / "mine.yaml"
    path.write_text((Path(__file__).parents[2] / "energy_models/profiles/45nm.yaml").read_text())
    path.write_text(path.read_text() + "calibration: {device: a bench, residual: 3 %}\n")
    code, text = invoke(str(path))
    assert code == 0 and "calibration - device: a bench - residual: 3 %" in text


def test_an_unknown_name_is_explained() -> None:
    code, text = invoke("3nm")
    assert code == 2 and "error: no hardware profile '3nm'; available: 45nm, 7nm" in text
