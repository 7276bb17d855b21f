"""Several ledgers: ranks, merging, differences, and what pandas sees."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from test_ledger import KEY, filled, modelled, row

from energy_models.ledger import Ledger, LedgerKey, LedgerRow, diff, merge, totals


def of(epoch: int = 0, rank: int = 0, **changes: Any) -> LedgerRow:
    return row(dataclasses.replace(KEY, epoch=epoch, rank=rank), **changes)


# ---- ranks -------------------------------------------------------------------------------------------------------


def test_ranks_add_up_and_wait_for_the_slowest(tmp_path: Path) -> None:
    seconds = {(0, 0): 1.0, (0, 1): 4.0, (1, 0): 2.0, (1, 1): 0.5}
    files = [
        filled(
            tmp_path / f"rank{rank}.jsonl",
            [of(epoch, rank, samples=100, measured_j=3.0, duration_s=seconds[epoch, rank]) for epoch in (0, 1)],
        )
        for rank in (0, 1)
    ]
    total = totals(merge(files))
    assert total.samples == 400
    assert total.modelled.nominal_j == pytest.approx(4 * of().modelled.nominal_j)
    assert total.measured_j == 12.0
    assert total.macs["output"] == 4 * 7
    assert total.duration_s == 4.0 + 2.0
    assert total.by_phase["train"].duration_s == 6.0


def test_one_rank_without_a_sensor_leaves_the_sum_unmeasured() -> None:
    assert totals([of(rank=0, measured_j=1.0), of(rank=1)]).measured_j is None


def test_energies_under_two_profiles_are_not_added() -> None:
    with pytest.raises(ValueError, match=r"different hardware profiles \(45nm, 7nm\), so their energies do not add up"):
        totals([of(0, profile="45nm"), of(1, profile="7nm")])


def test_an_optimizer_that_multiplies_is_in_the_sums(tmp_path: Path) -> None:
    one = of(macs={"output": {"8x8": 3}, "optimizer": {"32x32": 5}})
    assert filled(tmp_path / "ledger.jsonl", [one]).rows() == [one]
    assert totals([one]).macs == {"output": 3, "grad_input": 0, "grad_weight": 0, "optimizer": 5}
    assert (one.total_macs, one.bit_ops) == (8, 3 * 64 + 5 * 1024)


# ---- merge -------------------------------------------------------------------------------------------------------


def test_a_shared_stage_is_merged_once(tmp_path: Path) -> None:
    shared = [of(0), of(1)]
    own = [row(LedgerKey("run", "ticket", "retrain", epoch)) for epoch in (0, 1)]
    a = filled(tmp_path / "a.jsonl", [*shared, own[0]])
    b = filled(tmp_path / "b.jsonl", [own[1], *shared])
    merged = merge([a, str(b.path)])
    assert merged == sorted([*shared, *own], key=lambda one: one.key)
    assert totals(merged).samples == 40
    assert merge([b, a]) == merged == merge([a, b, filled(tmp_path / "all.jsonl", merged)])


def test_attempts_of_both_are_kept_and_the_last_counts(tmp_path: Path) -> None:
    redone = row(dataclasses.replace(KEY, attempt=1), samples=7)
    merged = merge([filled(tmp_path / "a", [of(0)]), filled(tmp_path / "b", [of(0), redone])])
    assert [one.key.attempt for one in merged] == [0, 1]
    assert totals(merged).samples == 7


def test_two_accounts_of_one_work_are_refused_by_name(tmp_path: Path) -> None:
    a, b = filled(tmp_path / "a.jsonl", [of(3)]), filled(tmp_path / "b.jsonl", [of(3, samples=99, duration_s=9.0)])
    with pytest.raises(ValueError) as caught:
        merge([a, b])
    for told in ("a.jsonl", "b.jsonl", "epoch=3", "samples is 10 and 99", "duration_s is 0.25 and 9.0"):
        assert told in str(caught.value)


def test_rows_of_a_diverged_run_are_the_same_as_themselves(tmp_path: Path) -> None:
    lost = of(metrics={"loss": math.nan})
    assert len(merge([filled(tmp_path / "a", [lost]), filled(tmp_path / "b", [lost])])) == 1


# ---- diff --------------------------------------------------------------------------------------------------------


def test_equal_ledgers_do_not_differ(tmp_path: Path) -> None:
    a = filled(tmp_path / "a", [of(0), of(1, metrics={"loss": math.nan})])
    b = filled(tmp_path / "b", [of(1, metrics={"loss": math.nan}), of(0)])
    assert not diff(a, b)
    other_name = [dataclasses.replace(one, key=dataclasses.replace(one.key, run="other")) for one in a.rows()]
    assert not diff(a, other_name)
    assert diff(a, other_name, by=("run", "phase"))


def test_a_difference_has_its_row_its_quantity_and_its_size() -> None:
    changed = of(1, samples=30, modelled=modelled(3.0), metrics={"accuracy": 0.75, "schedule": "static", "loss": None})
    found = diff([of(0), of(1)], [of(0), changed, of(2)])
    assert found.by == ("stage", "phase", "epoch", "rank")
    assert [(group.group, group.only_in) for group in found.groups] == [
        (("dense", "train", 1, 0), None),
        (("dense", "train", 2, 0), "b"),
    ]
    changes = {change.name: change for change in found.groups[0].changes}
    assert (changes["samples"].a, changes["samples"].b, changes["samples"].difference) == (10, 30, 20)
    assert changes["modelled_nominal_j"].ratio == pytest.approx(2.0)
    assert changes["modelled.components_j.dram.high"].difference == pytest.approx(3.0)
    assert changes["metrics.accuracy"].difference == 0.25
    assert "duration_s" not in changes and "bit_ops" not in changes
    in_total = {change.name: change for change in found.totals}
    assert (in_total["rows"].a, in_total["rows"].b, in_total["samples"].difference) == (2, 3, 30)


def test_what_may_differ_is_left_out() -> None:
    assert diff([of(0)], [of(0, duration_s=7.0)])
    assert not diff([of(0)], [of(0, duration_s=7.0)], ignore=("duration_s",))
    measured = {change.name: change for change in diff([of(0)], [of(0, measured_j=1.0)]).totals}["measured_j"]
    assert (measured.a, measured.b, measured.difference, measured.ratio) == (None, 1.0, None, None)


def test_groups_are_summed(tmp_path: Path) -> None:
    (group,) = diff([of(0), of(1)], [of(0), of(1), of(2)], by=("phase",)).groups
    assert group.group == ("train",)
    assert {c.name: c.difference for c in group.changes if c.name in ("samples", "rows")} == {"samples": 10, "rows": 1}
    with pytest.raises(ValueError, match="by has 'energy'; the parts of a key are run, stage, phase"):
        diff([], [], by=("energy",))


# ---- columns -----------------------------------------------------------------------------------------------------


def test_a_line_is_flat_and_says_what_people_ask_for(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [of(2, profile="45nm", counts={"ab": 3})])
    columns = json.loads(ledger.path.read_text())
    nested = {name for name, value in columns.items() if isinstance(value, dict | list)}
    assert nested == {"modelled.corners_j", "counts"}
    assert (columns["phase"], columns["epoch"], columns["profile"]) == ("train", 2, "45nm")
    assert columns["modelled_nominal_j"] == pytest.approx(4.5) and columns["modelled.components_j.dram.low"] == 0.75
    assert (columns["total_macs"], columns["macs.output.8x32"], columns["element_ops.relu"]) == (12, 4, 7)
    assert columns["bit_ops"] == 3 * 64 + 4 * 256 + 5 * 1024
    assert (columns["metrics.accuracy"], columns["measured_j"]) == (0.5, None)


def test_pandas_reads_the_file_in_one_line(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    large = 2**64 * 10
    rows = [of(0, samples=large), of(1, samples=5, metrics={"accuracy": math.nan}, measured_j=2.0)]
    ledger = filled(tmp_path / "ledger.jsonl", rows)
    frame = pandas.read_json(ledger.path, lines=True)
    assert list(frame["epoch"]) == [0, 1]
    assert frame["samples"].astype(float).sum() == pytest.approx(float(large))
    assert frame.groupby("phase")["modelled_nominal_j"].sum()["train"] == pytest.approx(9.0)
    assert frame["measured_j"].isna().tolist() == [True, False]
    exact = ledger.frame()
    assert exact["samples"].tolist() == [large, 5]
    assert exact["modelled_nominal_j"].tolist() == [one.modelled.nominal_j for one in rows]


def test_a_frame_without_pandas_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        Ledger(tmp_path / "ledger.jsonl").frame()
