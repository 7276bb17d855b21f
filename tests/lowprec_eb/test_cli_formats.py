"""`lowprec-eb formats`: what it prints, writes, draws and refuses."""

import csv
import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from typer.testing import CliRunner

import lowprec_eb as lp
from lowprec_eb.cli import app
from lowprec_eb.format_sheet import positive_values, sqnr_db
from lowprec_eb.formats import NAMED, as_format
from lowprec_eb.report.format_pictures import format_picture, write_format_picture


def invoke(*arguments):
    return CliRunner().invoke(app, ["formats", *map(str, arguments)])


def words(text):
    return " ".join(text.split())


def test_all_named_formats_are_listed():
    result = invoke()
    assert result.exit_code == 0, result.output
    first_words = [line.split()[0] for line in result.output.splitlines() if line.strip()]
    assert [word for word in first_words if word in NAMED] == list(NAMED)


@pytest.mark.parametrize("text", ["fp8_e4m3", "Float(4, 3, specials='nan')"])
def test_one_format_in_full_by_name_or_constructor(text):
    result = invoke(text)
    assert result.exit_code == 0, result.output
    assert "lp.Float(exp=4, man=3, specials='nan')" in result.output
    assert "largest 448, smallest 0.001953125, 107.2 dB" in result.output
    assert "saturates at ±448" in result.output and "1,048,576 bytes, 8 bits an element" in words(result.output)


@pytest.mark.parametrize("text", ["BlockFloat(wl=6, dim=0)", "MX(FP4_E2M1)"])
def test_formats_without_a_name(text):
    result = invoke(text, "--shape", "64x64")
    assert result.exit_code == 0, result.output
    assert repr(as_format(text)) in words(result.output) or as_format(text) == lp.MXFP4
    assert "a tensor of 64 x 64" in result.output


def test_several_names_are_rows_of_a_table_and_of_files(tmp_path):
    table, tree = tmp_path / "new" / "formats.csv", tmp_path / "formats.json"
    result = invoke("int8", "nvfp4", "--csv", table, "--json", tree, "--shape", "32x64")
    assert result.exit_code == 0, result.output
    assert "meaning" not in result.output and "32 x 64" in result.output
    assert f"wrote {table}" in result.output and f"wrote {tree}" in result.output
    rows = list(csv.DictReader(table.open()))
    assert [row["name"] for row in rows] == ["int8", "nvfp4"]
    assert float(rows[1]["bits_per_element"]) == 4.5 + 32 / (32 * 64)
    assert [fmt["name"] for fmt in json.loads(tree.read_text())["formats"]] == ["int8", "nvfp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fp8_e4m"], "did you mean 'fp8_e4m3'?"),
        (["BlockFloat(80)"], "wl must be a whole number from 2 to 16, got 80"),
        (["BlockFloat(8"], "not a number format: 'BlockFloat(8'"),
        (["BlockFloat(8, dim=2)"], "count another shape (--shape 64x16x3x3)"),
        (["int8", "--shape", "3x"], "write it as 64x3x3"),
        (["--plot"], "needs the names of 1 to 7 formats, got 0"),
        ([*list(NAMED)[:8], "--plot"], "needs the names of 1 to 7 formats, got 8"),
        (["int8", "--plot", "--out", "int8.svg"], "pictures are PNG files"),
    ],
)
def test_bad_input_stops_with_a_clear_line(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert message in words(result.output) and "Traceback" not in result.output


def test_plot_writes_a_png_into_a_file_or_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "wrote fp4_e2m1.png" in invoke("fp4_e2m1", "--plot").output
    assert invoke("fp4_e2m1", "int4", "--plot", "--out", tmp_path / "new").exit_code == 0
    assert invoke("BlockFloat(3, dim=0)", "--plot", "--out", tmp_path / "new" / "b.png").exit_code == 0
    written = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert written == ["fp4_e2m1.png", "new/b.png", "new/fp4_e2m1_int4.png"]
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in written)


def test_names_of_files_are_plain(tmp_path):
    path = write_format_picture([lp.BlockFloat(3, dim=0), lp.Int(4)], tmp_path)
    assert path.name == "BlockFloat_wl_3_dim_0_int4.png"


# ---- the pictures ------------------------------------------------------------------------------------------------


def strokes(axes, row):
    """x of the vertical strokes in a row of a number line."""
    segments = [s for c in axes.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    return sorted(segment[0, 0] for segment in segments if abs(segment[:, 1].mean() - row) < 1e-9)


def panels(figure):
    FigureCanvasAgg(figure).draw()
    return {axes.get_label(): axes for axes in figure.axes}


@pytest.fixture(scope="module")
def single():
    return panels(format_picture([lp.FP4_E2M1]))


def test_a_number_line_has_every_value(single):
    values = positive_values(lp.FP4_E2M1)
    assert strokes(single["linear"], 0) == values == strokes(single["log"], 0)
    assert (single["linear"].get_xscale(), single["log"].get_xscale()) == ("linear", "log")
    assert single["linear"].get_xlabel() == "positive values"


def test_several_formats_share_a_number_line_relative_to_their_largest():
    formats = [lp.FP4_E2M1, lp.Int(3), lp.BF16]
    axes = panels(format_picture(formats))
    assert [label.get_text() for label in axes["linear"].get_yticklabels()][:2] == ["fp4_e2m1", "Int(bits=3)"]
    assert strokes(axes["linear"], 1) == pytest.approx([1 / 3, 2 / 3, 1])
    assert strokes(axes["log"], 1) == [1, 2, 3]
    assert strokes(axes["linear"], 2) == []  # a band
    assert "at scale 1 / the largest (a band" in axes["linear"].get_xlabel()
    legend = [text.get_text() for text in axes["noise"].get_legend().get_texts()]
    assert legend == ["fp4_e2m1", "Int(bits=3)", "bf16", "nearest", "stochastic"]


def test_the_rounding_panel_shows_what_quantize_does(single):
    lines = {line.get_label(): line.get_xydata() for line in single["rounding"].lines}
    assert lines["ties, nearest"].tolist() == [[0.25, 0], [0.75, 1], [1.25, 1], [1.75, 2], [2.5, 2], [3.5, 4], [5, 4]]
    assert lines["nearest"][-1].tolist() == [10, 6]
    assert (lines["toward zero"][:, 1] <= lines["toward zero"][:, 0]).all()
    assert set(lines["stochastic, one draw each"][:, 1]) <= {0, *positive_values(lp.FP4_E2M1)}


def test_the_noise_panel_shows_the_ratio(single):
    nearest, stochastic = (line.get_xydata() for line in single["noise"].lines[:2])
    place = list(nearest[:, 0]).index(2.0)
    assert nearest[place, 1] == sqnr_db(lp.FP4_E2M1, [2.0])[0]
    assert stochastic[place, 1] == sqnr_db(lp.FP4_E2M1, [2.0], "stochastic")[0] < nearest[place, 1]
    assert nearest[0, 1] == 0 and np.isnan(stochastic[0, 1])  # all zero; far below the panel's floor
    assert "[dB]" in single["noise"].get_ylabel()


def test_a_curve_of_an_overflowing_format_ends_and_the_axis_says_so():
    noise = format_picture([lp.FP16]).axes[-1]
    curve = noise.lines[0].get_ydata()
    assert np.isnan(curve[-1]) and curve[len(curve) // 2] > 70
    assert "ends where samples overflow" in noise.get_xlabel()
    assert "overflow" not in format_picture([lp.FP4_E2M1]).axes[-1].get_xlabel()


@pytest.mark.parametrize("formats", [[lp.FP8_E4M3], [lp.MX(lp.FP6_E3M2, block_axis=0), lp.FP32, lp.Int(16, axis=0)]])
def test_marks_on_the_axes_do_not_overlap(formats):
    figure = format_picture(formats)
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        extents = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
        assert all(left.x1 <= right.x0 for left, right in pairwise(extents))


def test_importing_the_package_imports_neither_matplotlib_nor_rich():
    code = "import sys, lowprec_eb; print(sorted({'matplotlib', 'rich', 'typer'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
