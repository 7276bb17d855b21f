"""The shipped profile's numbers and what the loader refuses."""

from pathlib import Path

import pytest

from energy_models.profiles import available_profiles, load_profile

SHIPPED = Path(__file__).parents[2] / "energy_models" / "profiles" / "45nm.yaml"


@pytest.mark.parametrize(
    ("key", "value", "unit"),
    [
        ("int_add_8", 0.03, "pJ"),
        ("int_add_32", 0.1, "pJ"),
        ("int_mult_8", 0.2, "pJ"),
        ("int_mult_32", 3.1, "pJ"),
        ("float_add_16", 0.4, "pJ"),
        ("float_add_32", 0.9, "pJ"),
        ("float_mult_16", 1.1, "pJ"),
        ("float_mult_32", 3.7, "pJ"),
        ("sram", 100, "pJ/64bit"),
        ("dram", 1950, "pJ/64bit"),
        ("capacity", 1024, "KiB"),
        ("operand_reuse", 16, "1"),
    ],
)
def test_45nm(key: str, value: float, unit: str) -> None:
    constant = getattr(load_profile("45nm"), key)
    assert (constant.value, constant.unit) == (value, unit)
    assert constant.source


def test_ranges_of_45nm() -> None:
    profile = load_profile("45nm")
    assert (profile.dram.low, profile.dram.high) == (1300, 2600)
    assert (profile.operand_reuse.low, profile.operand_reuse.high) == (1, 128)
    assert (profile.int_mult_8.low, profile.int_mult_8.high) == (0.2, 0.2)
    assert profile.operand_reuse.source.startswith("assumption")
    assert profile.sram.per_bit().value == 100 / 64
    assert profile.sram.per_bit().per_bit() == profile.sram.per_bit()


def test_a_profile_says_what_it_leaves_out() -> None:
    text = " ".join(load_profile("45nm").leaves_out)
    for topic in ("static power", "control", "network on chip", "clock", "utilisation"):
        assert topic in text


def test_an_unknown_name_lists_the_shipped_profiles() -> None:
    assert available_profiles() == ("45nm",)
    with pytest.raises(ValueError, match="no hardware profile '7nm'; available: 45nm"):
        load_profile("7nm")


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SHIPPED.read_text())
    assert load_profile(path) == load_profile(str(path)) == load_profile("45nm")
    with pytest.raises(ValueError, match=r"missing\.yaml' is not a file"):
        load_profile(tmp_path / "missing.yaml")


SRAM = '{value: 100, unit: pJ/64bit, source: "Horowitz, ISSCC 2014, Computing\'s energy problem (secondary source)"}'


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sram: {", "sramm: {", r"unknown key 'sramm'; did you mean 'sram'\?"),
        ("sram: {", "xyzzy: {", "unknown key 'xyzzy'; known: name"),
        ("sram: {value", "sram: {valeu", r"sram: unknown key 'valeu'; did you mean 'value'\?"),
        (f"sram: {SRAM}\n", "", "key 'sram' is missing"),
        (f"sram: {SRAM}", "sram: {value: 100, unit: pJ/64bit}", "sram: 'source' is missing"),
        (f"sram: {SRAM}", "sram: {value: 100, unit: pJ/64bit, source: ' '}", "sram.source: expected a text"),
        (f"sram: {SRAM}", "sram: 100", "sram: expected keys and values, found 100"),
        ("value: 100, unit: pJ/64bit", "value: 100, unit: nJ", "sram: unknown unit 'nJ'; known: pJ"),
        ("value: 100, unit: pJ/64bit", "value: 100, unit: KiB", "sram: the unit must be pJ/64bit or pJ/bit, not KiB"),
        ("value: 100,", "value: true,", "sram.value: expected a positive number, found True"),
        ("value: 100,", "value: -1,", "sram.value: expected a positive number, found -1"),
        ("value: 100,", "value: .nan,", "sram.value: expected a positive number"),
        ("low: 1300", "low: 2000", "dram: low <= value <= high does not hold"),
        ("high: 2600", "high: 1900", "dram: low <= value <= high does not hold"),
        ("name: 45nm", "name: 45", "name: expected a text"),
        ("leaves_out:\n", "leaves_out: nothing\nx:\n", "unknown key 'x'"),
        ("name: 45nm", "name: [", "not valid YAML"),
        ("name: 45nm", "name: 45nm\nname: 45nm", "not valid YAML"),
    ],
)
def test_what_the_loader_refuses(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = SHIPPED.read_text()
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=rf"mine\.yaml: {message}"):
        load_profile(path)


def test_leaves_out_must_be_a_list(tmp_path: Path) -> None:
    head, _, tail = SHIPPED.read_text().partition("leaves_out:\n")
    path = tmp_path / "mine.yaml"
    path.write_text(f"{head}leaves_out: nothing\n{tail.partition('int_add_8')[2].join(['int_add_8', ''])}")
    with pytest.raises(ValueError, match=r"mine\.yaml: leaves_out must be a list"):
        load_profile(path)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("")
    with pytest.raises(ValueError, match="expected keys and values, found None"):
        load_profile(path)
