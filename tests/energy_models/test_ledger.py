"""Ledger laws: rows come back equal, a killed write loses at most its own row, and redone work is paid for once."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energy_models.energy import ModelledEnergy, Range
from energy_models.estimate import CORNERS
from energy_models.ledger import (
    GEMMS,
    PHASES,
    SCHEMA,
    Ledger,
    LedgerKey,
    LedgerRow,
    PhaseTotals,
    merge,
    settled,
    totals,
)
from energy_models.ledger import file as file_module

KEY = LedgerKey("run", "dense", "train", 0)


def modelled(joules: float) -> ModelledEnergy:
    part = Range(joules / 2, joules, joules * 2)
    return ModelledEnergy({"compute": part, "dram": part, "other": part}, {"dram": part}, (joules,) * CORNERS)


def row(key: LedgerKey = KEY, samples: int = 10, **changes: Any) -> LedgerRow:
    values: dict[str, Any] = {
        "macs": {"output": {"8x8": 3, "8x32": 4}, "grad_input": {}, "grad_weight": {"32x32": 5}},
        "element_ops": {"relu": 7},
        "modelled": modelled(1.5),
        "measured_j": None,
        "duration_s": 0.25,
        "metrics": {"accuracy": 0.5, "schedule": "static", "loss": None},
    }
    return LedgerRow(key=key, samples=samples, **(values | changes))


keys = st.builds(
    LedgerKey,
    run=st.sampled_from(["a", "b"]),
    stage=st.sampled_from(["dense", "ticket é"]),
    phase=st.sampled_from(PHASES),
    epoch=st.integers(0, 3),
    rank=st.integers(0, 1),
    attempt=st.integers(0, 2),
)
joules = st.floats(0, 1e12)
counts = st.integers(0, 2**80)
rows = st.builds(
    LedgerRow,
    key=keys,
    samples=counts,
    macs=st.fixed_dictionaries({gemm: st.dictionaries(st.sampled_from(["8x8", "8x32"]), counts) for gemm in GEMMS}),
    element_ops=st.dictionaries(st.text(max_size=3), counts, max_size=2),
    modelled=st.builds(modelled, joules),
    measured_j=st.none() | joules,
    duration_s=joules,
    metrics=st.dictionaries(st.text(max_size=3), st.none() | st.text() | st.floats(allow_nan=False), max_size=3),
    counts=st.none() | st.dictionaries(st.text("0123456789abcdef", min_size=1), st.integers(0, 9), max_size=2),
)
ledgers = st.lists(rows, max_size=5, unique_by=lambda one: one.key)


def filled(path: Path, contents: Iterable[LedgerRow]) -> Ledger:
    ledger = Ledger(path)
    for one in contents:
        ledger.append(one)
    return ledger


# ---- the file ----------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(ledgers.filter(bool))
def test_what_was_appended_is_read_back(tmp_path_factory: pytest.TempPathFactory, written: list[LedgerRow]) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    assert filled(path, written).rows() == written
    assert all(json.loads(line)["schema"] == SCHEMA for line in path.read_text().splitlines())


def test_appending_never_changes_what_stands(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "new folder" / "ledger.jsonl")
    before = b""
    for epoch in range(3):
        ledger.append(row(dataclasses.replace(KEY, epoch=epoch)))
        after = ledger.path.read_bytes()
        assert after.startswith(before) and after.count(b"\n") == epoch + 1
        before = after


def test_a_nan_metric_survives(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row(metrics={"loss": math.nan})])
    loss = ledger.rows()[0].metrics["loss"]
    assert isinstance(loss, float) and math.isnan(loss)
    assert len(settled([*ledger.rows(), *ledger.rows()])) == 1


def test_a_write_killed_at_any_byte_loses_only_its_own_row(tmp_path: Path) -> None:
    first, second = row(), row(dataclasses.replace(KEY, epoch=1))
    ledger = filled(tmp_path / "ledger.jsonl", [first])
    start = ledger.path.stat().st_size
    ledger.append(second)
    whole = ledger.path.read_bytes()
    for size in range(start, len(whole)):
        ledger.path.write_bytes(whole[:size])
        assert ledger.rows() == [first]
        assert ledger.next_attempt(second.key) == 0
        ledger.append(second)
        assert ledger.path.read_bytes() == whole


def test_a_first_row_killed_at_any_byte_is_written_again(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row()])
    whole = ledger.path.read_bytes()
    for size in range(len(whole)):
        ledger.path.write_bytes(whole[:size])
        assert ledger.rows() == []
        ledger.append(row())
        assert ledger.path.read_bytes() == whole


def test_a_torn_row_is_told_when_read_and_when_removed(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row()])
    with ledger.path.open("ab") as file:
        file.write(b'{"schema": 2, "run"')
    with pytest.warns(RuntimeWarning, match=r"ledger\.jsonl: the last 19 bytes are a row that was cut short"):
        assert ledger.rows() == [row()]
    with pytest.warns(RuntimeWarning, match="19 bytes .* are removed; all rows before it are there"):
        ledger.append(row(dataclasses.replace(KEY, epoch=1)))


_APPEND_FOR_EVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_ledger import KEY, row
import dataclasses
from energy_models.ledger import Ledger
ledger, epoch = Ledger(sys.argv[1]), 0
while True:
    ledger.append(row(dataclasses.replace(KEY, epoch=epoch)))
    print(epoch, flush=True)
    epoch += 1
"""


def test_a_process_killed_while_it_appends_loses_no_row_that_it_had_written(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    command = [sys.executable, "-W", "ignore", "-c", _APPEND_FOR_EVER, str(path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout if line.endswith("\n")]
    found = [one.key.epoch for one in Ledger(path).rows()]
    assert found == list(range(len(found))) and len(found) >= len(told)
    Ledger(path).append(row(dataclasses.replace(KEY, epoch=len(found))))


@pytest.mark.parametrize("on_disk", [0, 1, 40])
def test_a_full_disk_names_the_file_and_keeps_the_earlier_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: int
) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row()])
    whole = ledger.path.read_bytes()
    write, room = os.write, [on_disk]

    def full(descriptor: int, line: bytes) -> int:
        if not any(room):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, line[: room.pop()])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(
        OSError, match="No space left on device: the row could not be written, the rows before"
    ) as caught:
        ledger.append(row(dataclasses.replace(KEY, epoch=1)))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(ledger.path))
    assert ledger.path.read_bytes() == whole
    monkeypatch.undo()
    ledger.append(row(dataclasses.replace(KEY, epoch=1)))
    assert len(ledger.rows()) == 2


def test_a_write_that_the_system_ends_early_is_undone(tmp_path: Path) -> None:
    """A real limit of the system, in the middle of the second row."""
    ledger = filled(tmp_path / "ledger.jsonl", [row()])
    whole = ledger.path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large: the row could not be written"):
            ledger.append(row(dataclasses.replace(KEY, epoch=1)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ledger.path.read_bytes() == whole
    ledger.append(row(dataclasses.replace(KEY, epoch=1)))
    assert len(ledger.rows()) == 2


def test_several_rows_are_written_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row()])
    new = [row(dataclasses.replace(KEY, epoch=epoch)) for epoch in (1, 2)]
    with pytest.raises(ValueError, match="already has a row"):
        ledger.extend([*new, row()])
    with pytest.raises(ValueError, match="two of the rows to write have the key"):
        ledger.extend([*new, new[0]])
    assert ledger.rows() == [row()]
    ledger.extend(new)
    assert ledger.rows() == [row(), *new]


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_an_error_of_the_disk_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row()])
    whole = ledger.path.read_bytes()

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output error") as caught:
        ledger.append(row(dataclasses.replace(KEY, epoch=1)))
    assert caught.value.filename == str(ledger.path)
    assert ledger.path.read_bytes() == whole


def test_each_append_reaches_the_disk_as_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row()])
    calls: list[str] = []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda *args: (calls.append("write"), write(*args))[1])
    monkeypatch.setattr(os, "fsync", lambda *args: (calls.append("fsync"), fsync(*args))[1])
    ledger.append(row(dataclasses.replace(KEY, epoch=1)))
    assert calls == ["write", "fsync"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"samples": 10', b'"samples": "10"'),
        (b'"samples": 10', b'"samples": 10, "extra": 1'),
        (b'"phase": "train"', b'"phase": "sleep"'),
        (b'"measured_j": null, ', b""),
        (b'{"schema"', b'\xff{"schema"'),
        (b'{"schema"', b'\n{"schema"'),
        (b'{"schema": 2, ', b"{"),
        (b'"counts": null}', b""),
        (b'"modelled.components_j.compute.low": 0.75, ', b""),
        (b'"samples"', b'"modelled.components_j.compute.low.x": 1, "samples"'),
        (b'"counts"', b'"modelled.components_j.compute.low.x": 1, "counts"'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, old: bytes, new: bytes) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row(), row(dataclasses.replace(KEY, epoch=1))])
    first, rest = ledger.path.read_bytes().split(b"\n", 1)
    assert old in rest
    ledger.path.write_bytes(first + b"\n" + rest.replace(old, new, 1))
    os.utime(ledger.path, (1, 1))  # the clock of files may be too coarse to see that it was changed
    with pytest.raises(ValueError, match=r"ledger\.jsonl:2: not a ledger row"):
        ledger.rows()
    with pytest.raises(ValueError, match=r"ledger\.jsonl:2"):
        ledger.append(row(dataclasses.replace(KEY, epoch=2)))


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    for text in ('{"schema": 3}\n', '{"schema": 3, "run": "a"}\n'):
        path.write_text(text)
        with pytest.raises(
            ValueError, match=r"ledger\.jsonl:1: the ledger has schema 3, .* up to 2: update lowprec-eb"
        ):
            Ledger(path).rows()
        with pytest.raises(ValueError, match="schema 3"):
            Ledger(path).append(row())
        assert path.read_text() == text
    path.unlink()
    ledger = filled(path, [row()])
    with path.open("a") as file:
        file.write('{"schema": 3}\n')
    with pytest.raises(ValueError, match=r"ledger\.jsonl:2: the ledger has schema 3"):
        ledger.rows()


def as_schema_1(one: LedgerRow) -> str:
    """The row as the first version of the ledger wrote it."""
    tree, energy = dataclasses.asdict(one), one.modelled
    del tree["profile"], tree["counts"]
    parts = {name: dataclasses.asdict(getattr(energy, name)) for name in ("compute_j", "memory_j", "other_j")}
    parts["traffic_bytes"] = dataclasses.asdict(energy.traffic_bytes)
    tree["modelled"] = parts | {"corners_j": energy.corners_j[:12]}
    return json.dumps(tree | {"bit_ops": one.bit_ops}) + "\n"


def test_the_first_schema_is_read_and_not_written(tmp_path: Path) -> None:
    path, rows = tmp_path / "old.jsonl", [row(), row(dataclasses.replace(KEY, epoch=1), measured_j=3.0)]
    path.write_text('{"schema": 1}\n' + "".join(map(as_schema_1, rows)))
    read = Ledger(path).rows()
    for old, new in zip(rows, read, strict=True):
        for name in ("compute_j", "memory_j", "other_j", "traffic_bytes", "total_j"):
            assert getattr(new.modelled, name) == getattr(old.modelled, name)
        assert len(new.modelled.corners_j) == 12
        assert dataclasses.replace(new, modelled=old.modelled) == old
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"old schema 1, which is read but not written; copy it with `.* merge .*old"):
        Ledger(path).append(row(dataclasses.replace(KEY, epoch=2)))
    assert path.read_bytes() == before
    assert filled(tmp_path / "new.jsonl", merge([path])).rows() == read


@pytest.mark.parametrize("text", ["notes", "notes\n", "[]\n", '{"schema": true}\n', '{"schema": 0}\n', '{"schema": 2'])
def test_another_file_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    if text == '{"schema": 2':  # the beginning of a row: a ledger killed at birth
        assert Ledger(path).rows() == []
        return
    with pytest.raises(ValueError, match="not a ledger"):
        Ledger(path).append(row())
    assert path.read_text() == text


def test_appending_does_not_read_the_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row()])

    def refuse(_: Path) -> bytes:
        raise AssertionError("the ledger was read")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    for epoch in range(1, 5):
        key = dataclasses.replace(KEY, epoch=epoch)
        ledger.append(row(dataclasses.replace(key, attempt=ledger.next_attempt(key))))


def test_what_another_writes_in_between_is_seen(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "ledger.jsonl"), Ledger(tmp_path / "ledger.jsonl")
    one.append(row())
    other.append(row(dataclasses.replace(KEY, epoch=1)))
    with pytest.raises(ValueError, match="already has a row"):
        one.append(row(dataclasses.replace(KEY, epoch=1)))
    assert one.next_attempt(dataclasses.replace(KEY, epoch=1)) == 1


def _append_many(path: Path, rank: int) -> None:
    ledger = Ledger(path)
    for epoch in range(20):
        ledger.append(row(dataclasses.replace(KEY, epoch=epoch, rank=rank)))


def test_processes_append_in_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_append_many, args=(tmp_path / "ledger.jsonl", rank)) for rank in range(3)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert sorted((one.key.rank, one.key.epoch) for one in Ledger(tmp_path / "ledger.jsonl").rows()) == [
        (rank, epoch) for rank in range(3) for epoch in range(20)
    ]


def test_a_file_that_another_keeps_locked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row()])
    monkeypatch.setattr(file_module, "_PATIENCE_S", 0.0)
    with file_module._locked(ledger.path), pytest.raises(OSError, match="another process has kept it locked"):
        Ledger(ledger.path).append(row(dataclasses.replace(KEY, epoch=1)))
    assert ledger.rows() == [row()]


def test_a_missing_ledger_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        Ledger(tmp_path / "absent").rows()
    assert Ledger(tmp_path / "absent").next_attempt(KEY) == 0


# ---- attempts ----------------------------------------------------------------------------------------------------


def test_a_redone_epoch_is_paid_once_and_the_last_attempt_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for epoch, samples in [(0, 1), (1, 10), (1, 100), (0, 1000)]:
        key = dataclasses.replace(KEY, epoch=epoch)
        ledger.append(row(dataclasses.replace(key, attempt=ledger.next_attempt(key)), samples))
    assert [(one.key.epoch, one.key.attempt, one.samples) for one in ledger.settled()] == [(0, 1, 1000), (1, 1, 100)]
    assert totals(ledger.rows()).samples == 1100
    assert ledger.next_attempt(dataclasses.replace(KEY, epoch=1, attempt=9)) == 2
    assert ledger.next_attempt(dataclasses.replace(KEY, epoch=2)) == 0


def test_a_key_cannot_be_written_twice(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger.jsonl", [row()])
    with pytest.raises(ValueError, match=r"already has a row for .* use attempt=1"):
        ledger.append(row(samples=11))
    assert ledger.rows() == [row()]


def test_two_accounts_of_the_same_work_are_an_error() -> None:
    with pytest.raises(ValueError, match="two different ledger rows have the key"):
        totals([row(samples=1), row(samples=2)])


@settings(max_examples=30, deadline=None)
@given(ledgers)
def test_settling_keeps_each_work_once_with_its_highest_attempt(given_rows: list[LedgerRow]) -> None:
    highest: dict[Any, int] = {}
    for one in given_rows:
        highest[one.key.work] = max(highest.get(one.key.work, 0), one.key.attempt)
    kept = settled(given_rows)
    assert {one.key.work: one.key.attempt for one in kept} == highest
    assert len(kept) == len(highest)
    assert all(one in given_rows for one in kept)
    assert settled(kept) == kept


# ---- totals ------------------------------------------------------------------------------------------------------


def assert_close(one: ModelledEnergy, other: ModelledEnergy) -> None:
    for name in ("compute_j", "memory_j", "other_j", "traffic_bytes"):
        for bound in ("low", "nominal", "high"):
            a, b = (getattr(getattr(energy, name), bound) for energy in (one, other))
            assert math.isclose(a, b, rel_tol=1e-12), (name, bound)
    assert one.corners_j == pytest.approx(other.corners_j, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(ledgers)
def test_total_is_the_sum_of_its_phases(given_rows: list[LedgerRow]) -> None:
    total = totals(given_rows)
    parts: list[PhaseTotals] = list(total.by_phase.values())
    assert set(total.by_phase) == {one.key.phase for one in settled(given_rows)}
    assert total.samples == sum(part.samples for part in parts)
    assert total.bit_ops == sum(part.bit_ops for part in parts)
    assert total.macs == {gemm: sum(part.macs[gemm] for part in parts) for gemm in GEMMS}
    assert math.isclose(total.duration_s, math.fsum(part.duration_s for part in parts), rel_tol=1e-12)
    assert_close(total.modelled, sum((part.modelled for part in parts), start=ModelledEnergy.zero()))
    measured = [part.measured_j for part in parts if part.measured_j is not None]
    if total.measured_j is None:
        assert len(measured) < len(parts) or not parts
    else:
        assert math.isclose(total.measured_j, math.fsum(measured), rel_tol=1e-12)


@settings(max_examples=30, deadline=None)
@given(ledgers.flatmap(lambda one: st.tuples(st.just(one), st.permutations(one), st.permutations(one))))
def test_neither_order_nor_repetition_matters(case: tuple[list[LedgerRow], list[LedgerRow], list[LedgerRow]]) -> None:
    given_rows, shuffled, again = case
    assert totals(shuffled + again) == totals(given_rows)


@settings(max_examples=30, deadline=None)
@given(rows)
def test_totals_of_one_row_are_its_own_numbers(one: LedgerRow) -> None:
    total = totals([one])
    assert (total.samples, total.bit_ops, total.duration_s) == (one.samples, one.bit_ops, one.duration_s)
    assert total.measured_j == one.measured_j
    assert total.macs == {gemm: sum(by_bits.values()) for gemm, by_bits in one.macs.items()}
    assert_close(total.modelled, one.modelled)


def test_one_unmeasured_row_leaves_the_total_unmeasured() -> None:
    measured = row(measured_j=2.0)
    search = row(LedgerKey("run", "search", "search", 0), measured_j=None)
    total = totals([measured, search])
    assert total.measured_j is None
    assert total.by_phase["train"].measured_j == 2.0
    assert total.by_phase["search"].measured_j is None
    later = row(dataclasses.replace(KEY, epoch=1), measured_j=0.5)
    assert totals([measured, later]).measured_j == 2.5


def test_totals_of_nothing_measured_nothing() -> None:
    total = totals([])
    assert (total.samples, total.measured_j, total.by_phase) == (0, None, {})
    assert total.macs == dict.fromkeys(GEMMS, 0)


# ---- rows --------------------------------------------------------------------------------------------------------


def test_a_row_from_counts() -> None:
    macs_by_bits = {("output", 8, 32): 12, ("output", 8, 8): 3, ("grad_weight", 32, 32): 5}
    counted: Any = SimpleNamespace(macs_by_bits=macs_by_bits, element_ops_by_kind={"relu": 7})
    made = LedgerRow.from_counts(KEY, counted, modelled(1.0), 64, 2.0, 0.5, {"accuracy": 0.9})
    assert made.macs == {"output": {"8x32": 12, "8x8": 3}, "grad_input": {}, "grad_weight": {"32x32": 5}}
    assert (made.key, made.element_ops, made.samples) == (KEY, {"relu": 7}, 64)
    assert (made.total_macs, made.bit_ops) == (20, 12 * 256 + 3 * 64 + 5 * 1024)
    assert (made.modelled, made.measured_j, made.duration_s) == (modelled(1.0), 2.0, 0.5)
    assert made.metrics == {"accuracy": 0.9}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phase": "sleep"}, "phase is 'sleep'"),
        ({"run": ""}, "both need a name"),
        ({"stage": ""}, "both need a name"),
        ({"epoch": -1}, "epoch is -1"),
        ({"rank": -1}, "rank is -1"),
        ({"attempt": -1}, "attempt is -1"),
    ],
)
def test_bad_keys(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(KEY, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": -1}, "samples is -1"),
        ({"duration_s": math.nan}, "duration_s is nan"),
        ({"measured_j": math.inf}, "measured_j is inf"),
        ({"measured_j": -0.5}, "measured_j is -0.5"),
        ({"macs": {"backward": {}}}, "backward"),
        ({"macs": {"output": {"8": 1}}}, "bits as '8x8'"),
        ({"metrics": {"mask": [1]}}, "metric 'mask' is a list"),
    ],
)
def test_bad_rows(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row(**changes)
