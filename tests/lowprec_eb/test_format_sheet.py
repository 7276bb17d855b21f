"""The sheet of a format holds what `quantize` does: each text of its semantics is tested on real tensors."""

import csv
import io
import json
import math
import re
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from rich.console import Console

import lowprec_eb as lp
from lowprec_eb.format_sheet import (
    format_sheet,
    parse_shape,
    positive_values,
    sample_shape,
    semantics,
    sheets_csv,
    sheets_json,
    sqnr_db,
)
from lowprec_eb.formats import NAMED, as_format, is_affine
from lowprec_eb.report.format_tables import print_sheets

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
IN_THE_DOCS = [
    *NAMED,
    "FixedPoint(8, 4, clamp=False)",
    "Float(4, 3)",
    "Float(4, 3, ties='away')",
    "ScaledFloat(FP4_E2M1, scale=FP8_E4M3, block=16)",
    "Int(8, symmetric=False, zero_point='minimum')",
]
FORMATS = [
    *IN_THE_DOCS,
    "Float(4, 3, subnormals=False)",
    "Float(5, 2, specials='ieee', overflow='nan')",
    "Float(4, 3, specials='nan', overflow='nan')",
    "FixedPoint(6, 2, symmetric=True)",
    "BlockFloat(5, block=16)",
    "Int(5, axis=0)",
    "Int(3, block=8)",
]
ROUNDINGS = ["nearest", "nearest_away", "toward_zero", "stochastic"]
each_format = pytest.mark.parametrize("name", FORMATS)


def scale_one(fmt):
    """The options that give ``fmt`` the scale 1, where it takes a scale."""
    one, zero = torch.ones(()), torch.zeros(())
    if isinstance(fmt, lp.Int | lp.ScaledFloat):
        return {"scale": (one, zero) if is_affine(fmt) else (one, one) if fmt.tensor_scale_bits else one}
    return {}


def in_unit_blocks(values, fmt):
    """A row a value, next to a number that makes the scale of the row 1 where a format finds its scale itself."""
    neighbour = 2.0**fmt.element.max_exponent if isinstance(fmt, lp.MX | lp.BlockFloat) else 0.0
    return torch.tensor([[value, neighbour] for value in values], dtype=torch.float64)


def at_scale_one(values, fmt, rounding="nearest"):
    return lp.quantize(in_unit_blocks(values, fmt), fmt, rounding, seed=0, **scale_one(fmt))[:, 0]


def encode_at_scale_one(values, fmt):
    return lp.encode(in_unit_blocks(values, fmt), fmt, **scale_one(fmt))


def same(a, b):
    return torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0)) and torch.equal(a.isnan(), b.isnan())


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


# ---- the meaning of each column ----------------------------------------------------------------------------------


def test_the_docs_table_says_the_same():
    """On failure the row that belongs into docs/formats.md is in the message."""
    rows = re.findall(r"^\| `.*\|$", PAGE.read_text().split("## Semantics")[1].split("\n## ")[0], re.MULTILINE)
    for row, name in zip(rows, IN_THE_DOCS, strict=True):
        assert row == f"| {' | '.join([f'`{name}`', *astuple(semantics(as_format(name)))])} |"


@each_format
def test_ties(name):
    fmt, text = as_format(name), semantics(as_format(name)).ties
    if fmt.bits <= 8:
        grid = [0.0, *positive_values(fmt)]  # in the order of the codes: the even ones have even places
    else:
        grid = [1 + place * 2.0**-fmt.mantissa_bits for place in range(9)]
    if not getattr(fmt.element, "subnormals", True):
        del grid[0]  # zero and the smallest number, whose code 2**man is even, are apart by a gap
    half_way = [(low + high) / 2 for low, high in pairwise(grid)]
    even = [grid[place + place % 2] for place in range(len(half_way))]
    assert at_scale_one(half_way, fmt).tolist() == {"to even": even, "away from zero": grid[1:]}[text]
    assert at_scale_one(half_way, fmt, "nearest_away").tolist() == grid[1:]
    assert at_scale_one(half_way, fmt, "toward_zero").tolist() == grid[:-1]


@each_format
def test_beyond_the_range(name):
    fmt, sheet = as_format(name), format_sheet(name)
    top, text = sheet.largest, sheet.semantics.beyond_range
    if isinstance(fmt, lp.MX | lp.BlockFloat):  # less than the next power of two, which would raise the scale
        beyond = top + 0.75 * (2.0 ** (fmt.element.max_exponent + 1) - top)
    else:
        beyond = 4 * top
    bottom = 0.0 if is_affine(fmt) else fmt.element.min
    expected = {"infinity": [math.inf, -math.inf], "NaN": [math.nan] * 2, "passes, rounded": [beyond, -beyond]}
    rounded = at_scale_one([beyond, -beyond], fmt)
    assert same(rounded, torch.tensor(expected.get(text, [top, bottom]), dtype=torch.float64))
    if text.startswith(("saturates at", "clamps to")):
        assert numbers(text)[-1] == top


@pytest.mark.parametrize("name", [name for name in FORMATS if semantics(as_format(name)).beyond_range.startswith("on")])
def test_a_scale_that_is_found_covers_its_block(name):
    """Nothing saturates, so the error is at most half of the largest step."""
    x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fmt = as_format(name)
    largest_step = at_scale_one([1.0], fmt) if isinstance(fmt.element, lp.FixedPoint) else 2.0**-fmt.element.man
    spread = (x.max() - x.min()) / fmt.levels if isinstance(fmt, lp.Int) else x.abs().max()
    assert ((lp.quantize(x, fmt) - x).abs() <= 0.51 * largest_step * spread).all()


@each_format
def test_subnormals(name):
    fmt, text = as_format(name), semantics(as_format(name)).subnormals
    smallest = fmt.element.smallest
    if text == "even grid":
        values = torch.tensor(positive_values(fmt))
        assert torch.equal(values, torch.arange(1, len(values) + 1) * smallest)
    elif text == "yes":
        assert smallest < 2.0**fmt.element.min_exponent
        assert at_scale_one([smallest, -smallest], fmt).tolist() == [smallest, -smallest]
    else:
        assert text == "no" and smallest == 2.0**fmt.element.min_exponent
        assert at_scale_one([0.6 * smallest, 0.4 * smallest, smallest], fmt).tolist() == [smallest, 0, smallest]


@each_format
def test_signed_zero(name):
    fmt, text = as_format(name), semantics(as_format(name)).signed_zero
    if text == "zero may lie off the grid":
        assert lp.quantize(torch.tensor([-0.3, 1.0, 0.0]), fmt)[2] != 0
        return
    for rounding in ROUNDINGS:
        zeros = at_scale_one([-0.0, 0.0, -1e-60], fmt, rounding)
        assert zeros.tolist() == [0, 0, 0]
        assert torch.signbit(zeros).tolist() == {"-0 kept": [True, False, True], "+0 only": [False] * 3}[text]


@each_format
def test_nan(name):
    fmt, text = as_format(name), semantics(as_format(name)).nan
    if text == "error":
        with pytest.raises(ValueError, match="are NaN"):
            at_scale_one([math.nan], fmt)
        return
    assert at_scale_one([math.nan], fmt).isnan().all()
    if text == "kept, no code":
        with pytest.raises(ValueError, match="no code"):
            encode_at_scale_one([math.nan], fmt)
    else:
        assert text == "kept"
        assert lp.decode(*encode_at_scale_one([math.nan], fmt), fmt)[:, 0].isnan().all()


@each_format
def test_infinity(name):
    fmt, sheet = as_format(name), format_sheet(name)
    text, _, given = sheet.semantics.infinity.partition("; ")
    x = torch.tensor([[math.inf, 1.0], [-math.inf, 1.0]])
    found = lp.quantize(x, fmt)[:, 0]
    if text.startswith("kept"):
        assert found.tolist() == [math.inf, -math.inf]
    elif text == "NaN":
        assert found.isnan().all()
    else:
        assert found.tolist() == [fmt.element.max, fmt.element.min]
        assert numbers(text)[-1] == fmt.element.max
    if text == "kept, no code":
        with pytest.raises(ValueError, match="no code"):
            lp.encode(x, fmt)
    else:
        assert same(lp.decode(*lp.encode(x, fmt), fmt)[:, 0], found)
    assert bool(given) == bool(scale_one(fmt))
    if given:
        assert given == "given scale: saturates"
        ends = [sheet.largest, 0.0 if is_affine(fmt) else fmt.element.min]
        assert at_scale_one([math.inf, -math.inf], fmt).tolist() == ends


@each_format
def test_idempotence(name):
    fmt, text = as_format(name), semantics(as_format(name)).idempotent
    x = 3 * torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    for rounding in ["nearest"] if text == "nearest, normal scales" else ROUNDINGS:
        once = lp.quantize(x, fmt, rounding, seed=1)
        options = {"scale": lp.encode(x, fmt, rounding, seed=1)[1]} if text == "given its scales" else {}
        assert torch.equal(lp.quantize(once, fmt, rounding, seed=2, **options), once)
        assert not torch.equal(once, x) or fmt.bits >= 24  # it did round


@pytest.mark.parametrize(("name", "rounding"), [("int8_affine", "nearest"), ("nvfp4", "stochastic")])
def test_what_is_not_called_idempotent_is_not(name, rounding):
    generator = torch.Generator().manual_seed(0)
    moved = 0
    for seed in range(200):
        once = lp.quantize(torch.randn(64, generator=generator) + 1, name, rounding, seed=seed)
        moved += not torch.equal(lp.quantize(once, name, rounding, seed=seed + 1), once)
    assert moved > 0


@each_format
def test_where_the_scale_comes_from(name):
    fmt, text = as_format(name), semantics(as_format(name)).scale
    x = torch.tensor([[3.0, 1.0]])  # the largest is 3 = 1.5 * 2**1; without zero the range is 2 wide
    _, scales = lp.encode(x, fmt)
    if text == "none":
        assert scales is None
        return
    if text.startswith("2^"):
        step = fmt.element.step if isinstance(fmt, lp.BlockFloat) else 1.0
        below = numbers(text.split(",")[0].replace("2^", "").replace("- ", ""))
        assert scales.tolist() == [[2.0 ** (1 - sum(below)) * step]]
        return
    levels = numbers(text)[0]
    found = math.prod(float(part) for part in scales) if fmt.tensor_scale_bits else float(scales[0])
    span = 2.0 if text.startswith("(max - min) ") else 3.0
    rounded = isinstance(fmt, lp.ScaledFloat) and fmt.scale is not None
    assert found == pytest.approx(span / levels, rel=2.0**-4 if rounded else 2.0**-22)
    assert text.endswith("or given")


@each_format
def test_stored_bits(name):
    first, *shared = semantics(as_format(name)).stored_bits.split(" + ")
    expected = 64 * 64 * int(first)
    for part in shared:
        bits, _, per = part.partition(" per ")
        sharing = {"tensor": 64 * 64, "slice of dim 0": 64}.get(per) or int(per.removeprefix("block of "))
        expected += int(bits) * 64 * 64 // sharing
    sheet = format_sheet(name, (64, 64))
    assert (sheet.storage_bits, sheet.bits_per_element) == (expected, expected / 4096)


# ---- values and ranges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FORMATS if as_format(name).bits <= 8])
def test_listed_values_are_all_and_stay(name):
    fmt, sheet = as_format(name), format_sheet(name)
    values = positive_values(fmt)
    assert (values[0], values[-1]) == (sheet.smallest, sheet.largest)
    assert at_scale_one(values, fmt).tolist() == values
    dense = torch.linspace(0, sheet.largest, 20_001, dtype=torch.float64).tolist()
    assert set(at_scale_one(dense, fmt).tolist()) <= {0.0, *values}


def test_values_of_more_than_8_bits_are_not_listed():
    with pytest.raises(ValueError, match="bf16 has 16 bits"):
        positive_values(lp.BF16)


@pytest.mark.parametrize("name", FORMATS)
def test_ranges_are_those_of_the_values(name):
    sheet = format_sheet(name)
    assert sheet.block_range_db == pytest.approx(20 * math.log10(sheet.largest / sheet.smallest))
    overall = 20 * (math.log10(sheet.largest_overall) - math.log10(sheet.smallest_overall))
    assert sheet.dynamic_range_db == pytest.approx(overall)
    huge = float(lp.quantize(torch.tensor([[0.0, 3.3e38]]), as_format(name)).amax())
    if math.isfinite(huge) and sheet.semantics.beyond_range != "passes, rounded":
        assert huge <= sheet.largest_overall * (1 + 2**-20)


def test_sheets_know_published_numbers():
    e4m3, e5m2, nvfp4 = (format_sheet(name) for name in ("fp8_e4m3", "fp8_e5m2", "nvfp4"))
    assert (e4m3.largest, e4m3.smallest) == (448, 2**-9)  # OCP 8-bit Floating Point Specification 1.0, table 1
    assert (e5m2.largest, e5m2.smallest) == (57344, 2**-16)
    assert nvfp4.bits_per_element == pytest.approx(4.5, abs=1e-4)
    assert format_sheet("mxfp4").bits_per_element == 4.25  # 4 bits, and 8 per 32


# ---- noise -------------------------------------------------------------------------------------------------------


def test_noise_of_an_even_grid_is_a_twelfth_of_its_step_squared():
    nearest, stochastic = (sqnr_db(lp.FixedPoint(12, 6), [1.0], rounding)[0] for rounding in ("nearest", "stochastic"))
    assert nearest == pytest.approx(10 * math.log10(12 * 4**6), abs=0.1)
    assert stochastic == pytest.approx(10 * math.log10(6 * 4**6), abs=0.1)  # the mean of f (1 - f) is 1 / 6


def test_a_mantissa_bit_is_worth_6_db():
    three, four = (sqnr_db(lp.Float(6, man), [1.0])[0] for man in (3, 4))
    assert four - three == pytest.approx(20 * math.log10(2), abs=0.2)


def test_noise_far_below_within_and_beyond_the_range():
    below, within, beyond = sqnr_db(lp.FP8_E4M3, [2.0**-20, 1.0, 2.0**20])
    assert below == 0 and within > 30 and 0 < beyond < 0.1  # all zero; 4 significant bits; all clamped
    assert math.isnan(sqnr_db(lp.FP16, [2.0**20])[0])  # overflows to infinity
    assert sqnr_db(lp.Int(8), [2.0**-40, 2.0**40]) == pytest.approx([sqnr_db(lp.Int(8), [1.0])[0]] * 2)


@pytest.mark.parametrize("fmt", [lp.BlockFloat(8, 0), lp.BlockFloat(8, (0, 3)), lp.Int(8, axis=-3), lp.MXFP4])
def test_samples_have_the_dimensions_that_blocks_need(fmt):
    shape = sample_shape(fmt)
    assert math.prod(shape) == pytest.approx(16384, rel=0.6)
    assert fmt.scale_count(shape) >= 1 and sqnr_db(fmt, [1.0])[0] > 10


# ---- text and files ----------------------------------------------------------------------------------------------


def printed(names, width):
    console = Console(width=width, file=io.StringIO(), _environ={})
    print_sheets([format_sheet(name) for name in names], console)
    return console.file.getvalue()


def test_the_table_has_a_line_a_format_at_80_columns():
    lines = printed(NAMED, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[3 : 3 + len(NAMED)]] == list(NAMED)
    assert lines[3 + list(NAMED).index("mxfp8_e4m3")].split()[1:] == ["mx", "8.25", "448", "0.00195", "107", "1636"]
    assert "1024 x 1024" in " ".join(lines)


@each_format
def test_one_format_in_full_fits_80_columns(name):
    text = printed([name], 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text  # nothing is cut
    for value in astuple(semantics(as_format(name))):
        assert value in text


def test_the_codes_of_a_float_are_listed():
    rows = [line.split() for line in printed(["fp8_e4m3"], 80).splitlines() if line.startswith("0x")]
    assert rows[0] == ["0x00", "0", "0.001953125", "0.00390625", "0.005859375"]
    assert rows[-1] == ["0x7c", "384", "416", "448", "nan"]
    assert len(rows) == 32


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("int8", "1, 2, 3, ..., 127 and their negatives, and 0"),
        ("Int(2)", "1 and their negatives, and 0"),
        ("int8_affine", "1, 2, 3, ..., 255 above the zero point"),
        ("fixed8", "0.0625, 0.125, 0.1875, ..., 7.9375 and their negatives, and 0"),
        ("bf16", "not listed: a code has more than 8 bits"),
    ],
)
def test_values_in_words(name, line):
    assert printed([name], 80).rstrip().endswith(f"values at scale 1\n  {line}")


def test_files_hold_every_number_in_full():
    sheets = [format_sheet(name, (8, 32)) for name in FORMATS]
    lines = list(csv.DictReader(io.StringIO(sheets_csv(sheets))))
    trees = json.loads(sheets_json(sheets))["formats"]
    for sheet, line, tree in zip(sheets, lines, trees, strict=True):
        assert line["name"] == tree["name"] == sheet.name and line["shape"] == "8x32" and tree["shape"] == [8, 32]
        assert float(line["dynamic_range_db"]) == tree["dynamic_range_db"] == sheet.dynamic_range_db
        assert line["ties"] == tree["semantics"]["ties"] == sheet.semantics.ties
        assert as_format(tree["constructor"]) == as_format(sheet.name)
        listed = tree["positive_values_at_scale_1"]
        assert listed is None if sheet.bits > 8 else listed == positive_values(as_format(sheet.name))
    assert trees[0]["fields"] == {"exp": 8, "man": 23, "specials": "ieee", "overflow": "infinity", "ties": "even",
                                  "subnormals": True, "nan": "keep"}  # fmt: skip


def test_shapes():
    assert parse_shape("64x3X3") == (64, 3, 3)
    for text in ("", "3x", "0x3", "-1x2", "3 3", "axb"):
        with pytest.raises(ValueError, match="write it as 64x3x3"):
            parse_shape(text)
    with pytest.raises(ValueError, match=r"more than 2 dimensions.*--shape"):
        format_sheet(lp.BlockFloat(8, dim=2))
    with pytest.raises(ValueError, match="at least one element"):
        format_sheet("fp32", (3, 0))
