"""`lowprec-eb ledger`: show, merge, diff."""

import dataclasses

import pytest
from report_example import row
from typer.testing import CliRunner

from energy_models import Ledger
from lowprec_eb.cli import app


def invoke(*arguments):
    result = CliRunner().invoke(app, ["ledger", *map(str, arguments)])
    return result, " ".join(result.output.split())


def ranked(epoch, rank, **changes):
    one = row("dense", "train", epoch, 2.0, measured_j=5.0)
    return dataclasses.replace(one, key=dataclasses.replace(one.key, rank=rank), **changes)


@pytest.fixture
def ranks(tmp_path):
    for rank in (0, 1):
        Ledger(tmp_path / f"rank{rank}" / "ledger.jsonl").extend([ranked(0, rank), ranked(1, rank, duration_s=2.0)])
    return tmp_path


def test_show_sums_phases_and_ranks(ranks):
    result, said = invoke("show", ranks)
    assert result.exit_code == 0, said
    (train,) = [line for line in result.output.splitlines() if line.strip().startswith("train")]
    cells = train.split()
    assert cells[1:3] == ["4", "4312"]
    assert "8 J (" in train and "20 J" in train and cells[-1] == "2.5"
    assert "1 stages; hardware profile: not named." in said and "2 ranks" in said


def test_merge_writes_each_row_once_and_keeps_what_stands(ranks):
    out = ranks / "all.jsonl"
    result, said = invoke("merge", ranks / "rank0", ranks / "rank0" / "ledger.jsonl", ranks / "rank1", "--out", out)
    assert result.exit_code == 0 and "4 rows in" in said, said
    assert Ledger(out).rows() == [
        ranked(0, 0),
        ranked(0, 1),
        ranked(1, 0, duration_s=2.0),
        ranked(1, 1, duration_s=2.0),
    ]
    before = out.read_bytes()
    result, said = invoke("merge", ranks / "rank0", "--out", out)
    assert result.exit_code == 2 and "is there already" in said and out.read_bytes() == before


def test_conflicts_and_missing_ledgers_are_named(ranks):
    Ledger(ranks / "other.jsonl").append(ranked(0, 0, samples=1))
    result, said = invoke("show", ranks / "rank0", ranks / "other.jsonl")
    assert result.exit_code == 2 and "have different rows" in said and "samples is 1078 and 1" in said
    (ranks / "empty").mkdir()
    result, said = invoke("show", ranks / "empty")
    assert result.exit_code == 2 and "there is no ledger" in said


def test_diff_tells_what_and_by_how_much(ranks):
    Ledger(ranks / "other.jsonl").extend([ranked(0, 0), ranked(1, 0, samples=2000, duration_s=3.0)])
    result, said = invoke("diff", ranks / "rank0", ranks / "other.jsonl", "--ignore", "duration_s")
    assert result.exit_code == 1
    assert "dense, train, 1, 0 samples 1078 2000 922 1.855" in said
    assert "total samples 2156 3078 922 1.428" in said and "duration_s" not in said
    result, said = invoke("diff", ranks / "rank0", ranks / "rank0")
    assert result.exit_code == 0 and "no differences" in said
    result, said = invoke("diff", ranks / "rank0", ranks / "rank1", "--by", "stage,phase,epoch")
    assert result.exit_code == 0, said
    result, said = invoke("diff", ranks / "rank0", ranks / "rank1")
    assert result.exit_code == 1 and "only in a" in said and "only in b" in said and "total" not in said


def test_a_merge_that_fails_leaves_nothing(ranks, monkeypatch):
    def full(descriptor, lines, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("energy_models.ledger.file._write", full)
    result, said = invoke("merge", ranks / "rank0", "--out", ranks / "all.jsonl")
    assert result.exit_code == 2 and "No space" in said
    assert sorted(path.name for path in ranks.iterdir()) == ["rank0", "rank1"]
