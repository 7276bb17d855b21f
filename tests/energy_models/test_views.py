"""What people see of counts: rows, tree, summary, CSV, JSON, and the difference of two counts."""

import csv
import io
import json
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch import nn

import energy_models as em
from energy_models.count_tree import in_order
from energy_models.counts import Zeros
from energy_models.number_formats import FormatSpec
from energy_models.units import share_text, si_text
from energy_models.views import COLUMNS, ZEROS, missing_text

INT8 = FormatSpec("integer", bits=8, exponent_bits=0, mantissa_bits=7)


class Int8Weights:
    def operand_format(self, layer, gemm, operand):
        return INT8 if operand == "weight" else None


def model():
    block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), block, nn.Flatten(), nn.Linear(4 * 64, 10))


@pytest.fixture(scope="module")
def counts():
    return em.count(model(), torch.zeros(2, 3, 8, 8))


STEM, BLOCK, HEAD = 2 * 64 * 4 * 27, 2 * 64 * 4 * 36, 2 * 256 * 10


# ---- rows --------------------------------------------------------------------------------------------------------


def test_a_row_for_each_gemm_and_element_operation(counts):
    rows = counts.rows()
    assert len(rows) == len(counts.gemms) + len(counts.element_ops)
    assert all(tuple(row) == COLUMNS for row in rows)
    assert all((row["gemm"] is None) != (row["kind"] is None) for row in rows)
    assert sum(row["macs"] for row in rows) == counts.total_macs
    assert sum(row["bit_ops"] for row in rows) == counts.bit_ops
    assert sum(row["read_bytes"] + row["written_bytes"] for row in rows) == sum(counts.traffic_bytes.values())


def test_a_row_says_shape_operands_and_bytes(counts):
    low = counts.at(Int8Weights())
    [row] = [row for row in low.rows() if (row["layer"], row["gemm"]) == ("3", "output")]
    assert [row[name] for name in ("part", "batch", "m", "n", "k", "times")] == ["forward", 1, 2, 10, 256, 1]
    sides = {row[side]: (row[f"{side}_kind"], row[f"{side}_bits"]) for side in "ab"}
    assert sides == {"activation": ("float", 32), "weight": ("integer", 8)}
    assert (row["macs"], row["bit_ops"], row["accumulator_bits"]) == (HEAD, HEAD * 8 * 32, 32)
    assert (row["read_bytes"], row["written_bytes"]) == (2 * 256 * 4 + 2560, 2 * 10 * 4)


def test_an_element_row_has_no_shape_and_no_macs(counts):
    [row] = [row for row in counts.rows() if row["kind"] == "relu" and row["part"] == "forward"]
    assert (row["layer"], row["elements"], row["macs"], row["m"], row["a"]) == ("1.2", 512, 0, None, None)
    assert row["operations"] == row["fp_add"] + row["fp_mul"] + row["int_add"] > 0


def test_rows_scale_with_steps(counts):
    for one, many in zip(counts.rows(), (counts * 3).rows(), strict=True):
        for name in ("macs", "bit_ops", "operations", "read_bytes", "written_bytes", "fp_add", "times"):
            assert many[name] == 3 * one[name]
        assert many["elements"] == one["elements"]


def test_columns_know_every_sort_of_zero():
    assert Zeros.__slots__ == ZEROS
    gemm = em.count(nn.Linear(4, 2), torch.zeros(3, 4)).gemms[0]
    [row] = em.OpCounts((replace(gemm, zeros=Zeros(element=6, channel=4), times=2),)).rows()
    assert (row["masked_macs"], row["element_zero_macs"], row["channel_zero_macs"]) == (12, 12, 8)


def test_csv_parses_back(counts):
    rows = list(csv.DictReader(io.StringIO(counts.to_csv())))
    assert tuple(rows[0]) == COLUMNS and len(rows) == len(counts.rows())
    assert sum(int(row["macs"]) for row in rows) == counts.total_macs
    assert {row["m"] for row in rows if row["kind"]} == {""}


def test_json_parses_back(counts):
    tree = json.loads(counts.to_json())
    assert set(tree) == {"schema", "totals", "uncounted", "rows"}
    assert tree["rows"] == counts.rows()
    assert tree["totals"]["macs"] == counts.macs and tree["totals"]["bit_ops"] == counts.bit_ops


def test_rows_open_in_pandas(counts):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(counts.rows())
    assert table.groupby("gemm").macs.sum().to_dict() == counts.macs
    assert table.macs.dtype == "int64"


# ---- tree --------------------------------------------------------------------------------------------------------


def test_the_root_has_everything(counts):
    root = counts.tree()
    assert (root.macs, root.bit_ops) == (counts.macs, counts.bit_ops)
    assert root.operations == sum(op.operations for op in counts.element_ops)
    assert root.traffic_bytes == pytest.approx(sum(counts.traffic_bytes.values()))


def test_nodes_are_modules_in_the_models_order(counts):
    root = counts.tree()
    assert [node.path for node in root.walk()] == ["", "0", "1", "1.0", "1.1", "1.2", "3"]
    assert root["1"]["0"] is root["1.0"]
    assert root["1.0"].macs == dict.fromkeys(("output", "grad_input", "grad_weight"), BLOCK)
    assert root["0"].macs == {"output": STEM, "grad_input": 0, "grad_weight": STEM}
    assert root["1"].total_macs == 3 * BLOCK and root["1"].own.total_macs == 0


def test_a_cut_tree_keeps_totals(counts):
    root = counts.tree(depth=1)
    assert [node.path for node in root.walk()] == ["", "0", "1", "3"]
    assert root["1"].total_macs == 3 * BLOCK
    assert counts.tree(0).children == ()
    with pytest.raises(ValueError, match="depth must be 0 or more"):
        counts.tree(-1)


def test_nodes_are_frozen_and_name_what_is_there(counts):
    with pytest.raises(FrozenInstanceError):
        counts.tree().name = "other"
    with pytest.raises(KeyError, match=r"\(model\) has no 'head'; below it: 0, 1, 3"):
        counts.tree()["head"]


def test_the_tree_prints_aligned(counts):
    lines = str(counts.tree()).splitlines()
    assert lines[0].split()[:4] == ["layer", "MACs", "share", "output"]
    assert [line.split()[0] for line in lines[1:]] == ["(model)", "0", "1", "0", "1", "2", "3"]
    assert lines[4].startswith("    0") and lines[4].split()[1] == si_text(3 * BLOCK).split()[0]
    assert len(counts.tree().text(depth=0).splitlines()) == 2


def test_what_a_module_does_beside_its_children_is_a_line():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x) @ x.T

    root = em.count(nn.Sequential(Mixed()), torch.zeros(3, 4), training=False).tree()
    assert root["0"].own.macs["output"] == 3 * 3 * 4
    assert "(itself)" in str(root)


def test_an_optimizer_stands_beside_the_modules(counts):
    step = em.OpCounts(element_ops=(em.ElementOps("optimizer", "0.weight", 108, fp_add=216, part="optimizer"),))
    root = (counts + step).tree()
    assert [child.name for child in root.children] == ["0", "1", "3", "(optimizer)"]
    assert root["(optimizer)"].operations == 216


@pytest.mark.parametrize(
    ("by_gemms", "by_others", "order"),
    [
        (["conv", "layer", "fc"], ["bn", "relu", "layer", "pool", "fc"], ["conv", "bn", "relu", "layer", "pool", "fc"]),
        (["0", "3", "10"], ["1", "2"], ["0", "1", "2", "3", "10"]),
        (["conv"], ["bn", "relu"], ["conv", "bn", "relu"]),
        ([], ["a", "b"], ["a", "b"]),
        (["a", "b", "c"], ["x", "b", "y"], ["a", "x", "b", "c", "y"]),
    ],
)
def test_orders_are_merged(by_gemms, by_others, order):
    assert in_order(by_gemms, by_others) == order


# ---- text --------------------------------------------------------------------------------------------------------


def test_counts_print_as_a_summary(counts):
    text = str(counts.at(Int8Weights()))
    lines = {line[:11].strip(): line for line in text.splitlines()}
    assert list(lines) == ["MACs", "bit-ops", "element ops", "traffic", "not counted"]
    assert si_text(counts.total_macs) in lines["MACs"] and f"output {si_text(counts.macs['output'])}" in lines["MACs"]
    assert "8 x 32 bit" in lines["bit-ops"] and "32 x 32 bit" in lines["bit-ops"]
    assert "batch_norm" in lines["element ops"] and "quantizer" in lines["element ops"]
    assert lines["not counted"].endswith("nothing")


def test_what_is_missing_is_named_by_operator():
    missing = ("a.0: aten.erfinv", "a.1: aten.erfinv", "b: aten.special_i0")
    assert missing_text(missing) == "aten.erfinv in 2 layers, aten.special_i0 in b"
    assert "aten.erfinv in 2 layers" in str(em.OpCounts(uncounted=missing))


def test_masked_macs_are_a_line_of_the_summary():
    gemm = em.count(nn.Linear(4, 2), torch.zeros(3, 4), training=False).gemms[0]
    assert "masked MACs         6   25.0 % read a known zero" in str(
        em.OpCounts((replace(gemm, zeros=Zeros(element=6)),))
    )


def test_repr_is_short(counts):
    assert (
        repr(counts)
        == f"<OpCounts: {si_text(counts.total_macs)}MACs, 8 GEMMs, {len(counts.element_ops)} element operations>"
    )
    assert repr(em.OpCounts(uncounted=("a: b",))).endswith("0 element operations, 1 uncounted>")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.6, "1.00 k"),
        (1000, "1.00 k"),
        (123456, "123 k"),
        (4.089e9, "4.09 G"),
        (999_600_000, "1.00 G"),
        (1.5e27, "1500 Y"),
        (-2048, "-2.05 k"),
        (0.25, "0.250"),
    ],
)
def test_engineering_units(value, text):
    assert si_text(value) == text
    assert si_text(value, "B") == (f"{text}B" if text[-1].isalpha() else f"{text} B")


def test_shares():
    assert [share_text(1, 3), share_text(0, 3), share_text(1, 10**6), share_text(1, 0)] == [
        "33.3 %",
        "0.0 %",
        "<0.1 %",
        "",
    ]


# ---- difference --------------------------------------------------------------------------------------------------


def test_equal_counts_do_not_differ(counts):
    found = em.difference(counts, counts)
    assert found.differing == () and found.total.ratio == 1 and found.total.macs == (counts.total_macs,) * 2


def test_a_difference_by_gemm_and_layer(counts):
    forward = counts.of_part("forward")
    found = em.difference(counts, forward * 3, ("exact", "three times"))
    ratios = {row.gemm: row.ratio for row in found.by_gemm}
    assert ratios == {"output": 3, "grad_input": 0, "grad_weight": 0}
    assert found.total.macs == (counts.total_macs, 3 * forward.total_macs)
    assert found.differing[0].layer == "1.0"
    assert len(found.rows()) == 8 and set(found.rows()[0]) >= {"macs_exact", "macs_three times", "macs_ratio"}
    assert "MACs three times" in str(found) and "x3.00" in str(found)


def test_a_layer_of_one_count_alone_stands_beside_zero(counts):
    other = em.count(nn.Sequential(nn.Linear(3, 4)), torch.zeros(1, 3))
    found = em.difference(em.OpCounts(), other)
    assert next((row.layer, row.macs, row.ratio) for row in found.by_layer) == ("0", (0, 12), None)


def test_precisions_differ_in_bit_ops_alone(counts):
    found = em.difference(counts, counts.at(Int8Weights()), ("fp32", "int8 weights"))
    assert {row.ratio for row in found.differing} == {1.0}
    assert {(row.gemm, row.bit_ops_ratio) for row in found.differing} == {("output", 0.25), ("grad_input", 0.25)}
    assert found.operations[1] > found.operations[0]


@pytest.mark.parametrize("names", [("a", "a"), ("", "b")])
def test_names_of_a_difference_tell_them_apart(counts, names):
    with pytest.raises(ValueError, match="two different texts"):
        em.difference(counts, counts, names)
