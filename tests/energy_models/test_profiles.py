"""The shipped profile's numbers and what the loader refuses."""

import io
import math
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from energy_models.energy import ENDS
from energy_models.mac_energy import MacEnergy
from energy_models.number_formats import FP32, FormatSpec
from energy_models.profile_files import available_profiles, load_profile, parse_profile

SHIPPED = Path(__file__).parents[2] / "energy_models" / "profiles" / "45nm.yaml"


@pytest.mark.parametrize(
    ("key", "value", "unit"),
    [
        ("arithmetic.int_add_8", 0.03, "pJ"),
        ("arithmetic.int_add_32", 0.1, "pJ"),
        ("arithmetic.int_mult_8", 0.2, "pJ"),
        ("arithmetic.int_mult_32", 3.1, "pJ"),
        ("arithmetic.float_add_16", 0.4, "pJ"),
        ("arithmetic.float_add_32", 0.9, "pJ"),
        ("arithmetic.float_mult_16", 1.1, "pJ"),
        ("arithmetic.float_mult_32", 3.7, "pJ"),
        ("memory.buffer.energy", 100, "pJ/64bit"),
        ("memory.dram.energy", 1950, "pJ/64bit"),
        ("memory.buffer.capacity", 1024, "KiB"),
        ("operand_reuse", 16, "1"),
    ],
)
def test_45nm(key: str, value: float, unit: str) -> None:
    constant = load_profile("45nm").constants()[key]
    assert (constant.value, constant.unit) == (value, unit)
    assert constant.source


def test_ranges_of_45nm() -> None:
    profile = load_profile("45nm")
    dram, buffer = (level.energy for level in profile.memory)
    assert (dram.low, dram.high) == (1300, 2600)
    assert (profile.operand_reuse.low, profile.operand_reuse.high) == (1, 128)
    assert profile.operand_reuse.source.startswith("assumption")
    assert buffer.per_bit().value == 100 / 64
    assert buffer.per_bit().per_bit() == buffer.per_bit()
    assert profile.chip is None


@pytest.mark.parametrize("name", available_profiles())
def test_every_shipped_profile_has_a_source_for_every_constant(name: str) -> None:
    profile = load_profile(name)
    assert profile.leaves_out and profile.constants()
    for constant in profile.constants().values():
        assert len(constant.source) > 10 and constant.low <= constant.value <= constant.high


# A constant that is a document's own number, by profile; the others are derived in the file that has them.
PUBLISHED = {
    "7nm": {
        "arithmetic.int_add_8": 0.007,
        "arithmetic.int_add_32": 0.03,
        "arithmetic.int_mult_8": 0.07,
        "arithmetic.int_mult_32": 1.48,
        "arithmetic.float_add_16": 0.16,
        "arithmetic.float_add_32": 0.38,
        "arithmetic.float_mult_16": 0.34,
        "arithmetic.float_mult_32": 1.31,
        "memory.buffer.energy": 14,
        "memory.dram.energy": 350,
    },
    "eyeriss": {"memory.buffer.capacity": 108, "operand_reuse": 1, "sum_reuse": 1},
    "tpu": {"chip.rate": 46, "memory.buffer.capacity": 28 * 1024, "memory.dram.energy": 1300, "operand_reuse": 256},
    "tx2": {"units.fp16.rate": 0.665, "memory.dram.bandwidth": 59.7, "chip.static_power": 2, "memory.l2.capacity": 512},
    "h100": {"units.bf16.rate": 494.7, "units.fp32.rate": 33.5, "memory.dram.bandwidth": 3350},
    "h200": {"units.fp8.rate": 989.45, "memory.dram.bandwidth": 4800, "chip.static_power": 71.8},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_constants(name: str) -> None:
    constants = load_profile(name).constants()
    assert {key: constants[key].value for key in PUBLISHED[name]} == PUBLISHED[name]


def test_eyeriss_has_the_published_relative_costs() -> None:
    """200 : 6 : 2 : 1 of the same 16-bit MAC, which by parts takes what the file says."""
    profile = load_profile("eyeriss")
    costs = [level.energy.value for level in profile.memory]
    assert [cost / costs[-1] for cost in costs] == pytest.approx([200, 6, 2, 1], rel=0.01)
    assert profile.arithmetic is not None
    fixed16 = FormatSpec("fixed_point", 16, 0, 15)
    macs = [MacEnergy(profile.arithmetic, end).mac_pj(fixed16, fixed16, FP32, 256) for end in ENDS]
    assert macs == pytest.approx([1.16, 1.65, 2.0], rel=0.03)


def test_energies_of_the_gpus_follow_from_their_power() -> None:
    """What the heads of the files say: board power less static power and memory, over the rate."""
    memory_tbit, rate = 3.35 * 8, 494.7
    for name in ("h100", "h200"):
        units = load_profile(name).units
        unit = units["bf16"].energy
        expected = ((700 - 71.8 - memory_tbit * 7) / rate, (700 - 82.6 - memory_tbit * 13.11) / rate, 700 / rate)
        assert (unit.value, unit.low, unit.high) == pytest.approx(expected, rel=0.01)
        for other in ("tf32", "fp8", "int8"):
            assert units[other].energy.value * units[other].rate.value == pytest.approx(unit.value * rate, rel=0.01)
    tx2 = load_profile("tx2").units["fp32"].energy
    expected = ((15 - 2 - 0.0597 * 8 * 11) / 0.333, (7.5 - 2 - 0.0584 * 8 * 8) / 0.2176, 15 / 0.333)
    assert (tx2.value, tx2.low, tx2.high) == pytest.approx(expected, rel=0.01)


def test_values_between_two_processes_lie_on_one_line() -> None:
    published = load_profile("45nm"), load_profile("7nm")
    between = load_profile("tpu").constants()
    share = math.log(28 / 7) / math.log(45 / 7)
    for key in (key for key in between if key.startswith("arithmetic.")):
        high, low = (profile.constants()[key].value for profile in published)
        assert (between[key].low, between[key].high) == (low, high)
        assert between[key].value == pytest.approx(low * (high / low) ** share, rel=0.01)


@pytest.mark.parametrize("name", available_profiles())
@pytest.mark.parametrize("part", ["arithmetic", "units", "memory"])
def test_a_file_can_be_rewritten_by_a_calibration(name: str, part: str) -> None:
    """Shared sources are anchors; a part whose sources change must leave those of the others as they are."""
    yaml = YAML()
    document = yaml.load((SHIPPED.parent / f"{name}.yaml").read_text())
    section = document.get(part, {})
    entries = section if part == "memory" else section.values()
    for entry in entries:
        constant = entry if part == "arithmetic" else entry["energy"]
        constant["source"] = f"{constant['source']}; fitted"
    out = io.StringIO()
    yaml.dump(document, out)
    after, before = parse_profile(out.getvalue(), name).constants(), load_profile(name).constants()
    suffix = {"arithmetic": "", "units": ".energy", "memory": ".energy"}[part]
    for key, constant in before.items():
        changed = key.startswith(f"{part}.") and key.endswith(suffix)
        assert after[key].source == constant.source + "; fitted" * changed, key


@pytest.mark.parametrize("name", available_profiles())
def test_what_was_not_seen_itself_is_marked(name: str) -> None:
    """Whatever rests on these was taken from works that quote them."""
    for key, constant in load_profile(name).constants().items():
        if any(author in constant.source for author in ("Horowitz", "Jouppi et al., ISCA 2021", "NVIDIA", "O'Connor")):
            assert constant.is_secondary, key
        assert not re.search(r"\bidx\b|/tmp|/work", constant.source)


def test_a_profile_says_what_it_leaves_out() -> None:
    text = " ".join(load_profile("45nm").leaves_out)
    for topic in ("static power", "control", "network on chip", "clock", "utilisation"):
        assert topic in text


def test_an_unknown_name_lists_the_shipped_profiles() -> None:
    with pytest.raises(
        ValueError, match="no hardware profile '3nm'; available: 45nm, 7nm, eyeriss, h100, h200, tpu, tx2, or"
    ):
        load_profile("3nm")


def test_a_path_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SHIPPED.read_text())
    assert load_profile(path) == load_profile(str(path)) == load_profile("45nm")
    with pytest.raises(ValueError, match=r"missing\.yaml' is not a file"):
        load_profile(tmp_path / "missing.yaml")


SRAM = '{value: 100, unit: pJ/64bit, source: "Horowitz, ISSCC 2014, Computing\'s energy problem (secondary source)"}'
ARITHMETIC = "arithmetic:\n"
BUFFER = r"memory\[1\]"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  int_add_8: {", "  int_add_9: {", r"arithmetic: unknown key 'int_add_9'; did you mean 'int_add_8'\?"),
        (ARITHMETIC, "arithmetics:\n", r"unknown key 'arithmetics'; did you mean 'arithmetic'\?"),
        (ARITHMETIC, "xyzzy:\n", "unknown key 'xyzzy'; known: name"),
        (f"energy: {SRAM}", "energy: {valeu: 100}", rf"{BUFFER}.energy: unknown key 'valeu'; did you mean 'value'\?"),
        (f"    energy: {SRAM}\n", "", rf"{BUFFER}: key 'energy' is missing"),
        (SRAM, "{value: 100, unit: pJ/64bit}", rf"{BUFFER}.energy: 'source' is missing"),
        (SRAM, "{value: 100, unit: pJ/64bit, source: ' '}", rf"{BUFFER}.energy.source: expected a text"),
        (SRAM, "100", rf"{BUFFER}.energy: expected keys and values, found 100"),
        ("value: 100, unit: pJ/64bit", "value: 100, unit: nJ", rf"{BUFFER}.energy: unknown unit 'nJ'; known: pJ"),
        ("value: 100, unit: pJ/64bit", "value: 1, unit: KiB", "the unit must be pJ/64bit or pJ/bit, not KiB"),
        ("value: 100,", "value: true,", rf"{BUFFER}.energy.value: expected a positive number, found True"),
        ("value: 100,", "value: -1,", rf"{BUFFER}.energy.value: expected a positive number, found -1"),
        ("value: 100,", "value: .nan,", rf"{BUFFER}.energy.value: expected a positive number"),
        ("value: 100,", f"value: 1{'0' * 400},", rf"{BUFFER}.energy.value: expected a positive number"),
        ("float_mult_16: {value: 1.1", "float_mult_16: {value: 0.2", r"arithmetic: float_mult_16 \(low\) is 0.2 pJ"),
        (
            "float_mult_32: {value: 3.7",
            "float_mult_32: {low: 1, value: 3.7",
            r"arithmetic: float_mult_32 \(low\) is 1 pJ, and its integer parts alone",
        ),
        ("low: 1300", "low: 2000", r"memory\[0\].energy: low <= value <= high does not hold"),
        ("high: 2600", "high: 1900", r"memory\[0\].energy: low <= value <= high does not hold"),
        ("  - name: buffer", "  - name: dram", "levels need names of their own"),
        ("  - name: buffer", "  - name: static", "levels need names of their own"),
        ("    capacity: {", "    bandwidth: {", rf"{BUFFER}: every level but the first"),
        ("name: 45nm", "name: 45", "name: expected a text"),
        ("name: 45nm", "name: [", "not valid YAML"),
        ("name: 45nm", "name: 45nm\nname: 45nm", "not valid YAML"),
        ("name: 45nm", "name: 45nm\nunits: {}", "give arithmetic .* or units"),
        ("name: 45nm", "name: 45nm\nchip: {}", "chip: key 'static_power' is missing"),
        ("name: 45nm", "name: 45nm\nchip: {static_power: {}, utilisation: {}}", "chip.rate: a chip with arithmetic"),
        ("name: 45nm", "name: 45nm\nsum_reuse: {value: 1, unit: pJ, source: made up}", "sum_reuse: the unit must be 1"),
    ],
)
def test_what_the_loader_refuses(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = SHIPPED.read_text()
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=rf"mine\.yaml: .*{message}"):
        load_profile(path)


def test_leaves_out_must_be_a_list(tmp_path: Path) -> None:
    head, _, tail = SHIPPED.read_text().partition("leaves_out:\n")
    path = tmp_path / "mine.yaml"
    path.write_text(f"{head}leaves_out: nothing\n{tail[tail.index('arithmetic:') :]}")
    with pytest.raises(ValueError, match=r"mine\.yaml: leaves_out must be a list"):
        load_profile(path)


@pytest.mark.parametrize(("text", "message"), [("", "expected keys and values, found None"), ("[]", "expected keys")])
def test_an_empty_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_profile(path)


CHIP = """
name: chip
description: a made-up chip
leaves_out: [everything real]
memory:
  - name: hbm
    energy: {value: 4, unit: pJ/bit, source: made up for a test}
    bandwidth: {value: 1000, unit: GB/s, source: made up for a test}
  - name: cache
    energy: {value: 1, unit: pJ/bit, source: made up for a test}
    capacity: {value: 4096, unit: KiB, source: made up for a test}
operand_reuse: {value: 16, unit: "1", source: made up for a test}
units:
  fp32: {energy: {value: 2, unit: pJ, source: made up for a test}, rate: {value: 10, unit: TMAC/s, source: made up}}
  int8: {energy: {value: 0.5, unit: pJ, source: made up for a test}, rate: {value: 80, unit: TMAC/s, source: made up}}
chip:
  static_power: {value: 50, unit: W, low: 40, high: 60, source: made up for a test}
  utilisation: {value: 0.5, low: 0.25, high: 1, unit: "1", source: made up for a test}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "  utilisation: {",
            "  rate: {value: 1, unit: TMAC/s, source: x}\n  utilisation: {",
            "rate: a chip with arithm",
        ),
        ("  fp32: {", "  fp33: {", r"units: unknown key 'fp33'; did you mean 'fp32'\?"),
        ("  fp32: {", "  fp16: {", "units: fp32 is missing"),
        ("high: 1,", "high: 2,", "a share of the peak is at most 1"),
        ("bandwidth: {", "capacity: {", "every level but the first"),
        ("    bandwidth: {value: 1000, unit: GB/s, source: made up for a test}\n", "", "'bandwidth' is missing"),
        ("TMAC/s", "TFLOP/s", "unknown unit 'TFLOP/s'"),
    ],
)
def test_what_the_loader_refuses_of_a_chip(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "chip.yaml"
    path.write_text(CHIP)
    assert load_profile(path).chip is not None
    path.write_text(CHIP.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_profile(path)


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"# \xe9\n" + SHIPPED.read_bytes())
    with pytest.raises(ValueError, match=r"mine\.yaml: not UTF-8"):
        load_profile(path)
