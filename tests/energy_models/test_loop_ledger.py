"""em.LedgerCallback: what a loop does is counted once for each configuration, and every row pays for its own work."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import energy_models as em
import lowprec_eb as lp

PROFILE = em.load_profile("45nm")


def parts():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def train(model, optimizer, sizes=(4, 4, 2)):
    for size in sizes:
        optimizer.zero_grad()
        F.cross_entropy(model(torch.randn(size, 6)), torch.zeros(size, dtype=torch.long)).backward()
        optimizer.step()


def expected(model, optimizer, sizes=(4, 4, 2)):
    return sum((em.count(model, torch.zeros(size, 6)) + em.count_optimizer(optimizer) for size in sizes), em.OpCounts())


def test_rows_pay_for_what_was_done(tmp_path):
    model, optimizer = parts()
    keeper = em.LedgerCallback(tmp_path / "ledger.jsonl", model, optimizer, run="mine", stage="a")
    for _ in range(2):
        with keeper.epoch() as metrics:
            train(model, optimizer)
            metrics["loss"] = 0.5
        with keeper.epoch("eval"), torch.no_grad():
            model(torch.zeros(5, 6))
    rows = em.Ledger(tmp_path / "ledger.jsonl").rows()
    assert [(row.key.run, row.key.stage, row.key.phase, row.key.epoch) for row in rows] == [
        ("mine", "a", phase, epoch) for epoch in (0, 1) for phase in ("train", "eval")
    ]
    whole, passed = expected(model, optimizer), em.count(model, torch.zeros(5, 6), training=False)
    for row in rows:
        counts = whole if row.key.phase == "train" else passed
        assert {gemm: sum(of.values()) for gemm, of in row.macs.items()} == counts.macs
        assert row.modelled.nominal_j == pytest.approx(em.estimate(counts, PROFILE).nominal_j, rel=1e-12)
        assert row.duration_s > 0
    assert [row.samples for row in rows] == [10, 5, 10, 5]
    assert [row.metrics["optimizer_steps"] for row in rows] == [3, 0, 3, 0]
    assert rows[0].metrics["loss"] == 0.5
    assert em.reprice(rows, em.CountStore(tmp_path / "counts"), PROFILE) == rows


def test_each_configuration_is_counted_once(tmp_path, monkeypatch):
    from energy_models import loop_ledger

    calls = []

    def counting(model, inputs, **options):
        calls.append(inputs)
        return em.count(model, inputs, **options)

    monkeypatch.setattr(loop_ledger, "count", counting)
    model, optimizer = parts()
    keeper = em.LedgerCallback(tmp_path / "l.jsonl", model, optimizer)
    for _ in range(3):
        with keeper.epoch():
            train(model, optimizer)
    assert len(calls) == 2  # batches of 4 and of 2
    model[0].requires_grad_(False)
    with keeper.epoch():
        train(model, optimizer, (4,))
    assert len(calls) == 3
    keeper.recount()
    with keeper.epoch():
        train(model, optimizer, (4,))
    assert len(calls) == 4


def test_a_window_inside_another_is_taken_out_of_it_and_written_once(tmp_path):
    model, optimizer = parts()
    keeper = em.LedgerCallback(tmp_path / "l.jsonl", model, optimizer)
    with keeper.epoch():
        for _ in range(2):
            train(model, optimizer, (4,))
            with keeper.epoch("eval", 0), torch.no_grad():
                model(torch.zeros(5, 6))
    trained, evaluated = sorted(em.Ledger(tmp_path / "l.jsonl").rows(), key=lambda row: row.samples)
    assert (trained.key.phase, trained.samples, evaluated.key.phase, evaluated.samples) == ("train", 8, "eval", 10)
    assert trained.macs["output"] == {"32x32": 8 * (6 * 8 + 8 * 3)}


def test_work_outside_of_windows_is_not_counted_and_a_failed_epoch_not_written(tmp_path):
    model, optimizer = parts()
    keeper = em.LedgerCallback(tmp_path / "l.jsonl", model, optimizer)
    train(model, optimizer)
    with pytest.raises(KeyError), keeper.epoch():
        raise KeyError
    with keeper.epoch(epoch=7):
        train(model, optimizer, (4,))
    keeper.close()
    (row,) = em.Ledger(tmp_path / "l.jsonl").rows()
    assert (row.key.epoch, row.samples, row.key.attempt) == (7, 4, 0)
    assert not model._forward_pre_hooks and not optimizer._optimizer_step_post_hooks
    with pytest.raises(RuntimeError, match="end without begin"):
        keeper.end()


def test_a_redone_epoch_is_a_new_attempt(tmp_path):
    for _ in range(2):
        model, optimizer = parts()
        with em.LedgerCallback(tmp_path / "l.jsonl", model, optimizer).epoch(epoch=3):
            train(model, optimizer, (4,))
    ledger = em.Ledger(tmp_path / "l.jsonl")
    assert [row.key.attempt for row in ledger.rows()] == [0, 1] and em.totals(ledger.rows()).samples == 4


def test_low_precision_and_keyword_arguments(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, *, scale):
            return self.layer(x) * scale

    model = Model()
    lp.lower(model, "bfp8")
    optimizer = lp.LowPrecisionOptimizer(torch.optim.SGD(model.parameters(), 0.1), "bfp8")
    keeper = em.LedgerCallback(tmp_path / "l.jsonl", model, optimizer)
    with keeper.epoch():
        model(torch.randn(4, 6), scale=torch.ones(3)).sum().backward()
        optimizer.step()
    (row,) = em.Ledger(tmp_path / "l.jsonl").rows()
    assert row.macs["output"] == {"8x8": 4 * 18} and row.metrics["optimizer_steps"] == 1


def test_a_copy_of_a_watched_model_is_not_watched(tmp_path):
    model, optimizer = parts()
    keeper = em.LedgerCallback(tmp_path / "l.jsonl", model, optimizer)
    with keeper.epoch():
        copy.deepcopy(model)(torch.zeros(4, 6))
    assert em.Ledger(tmp_path / "l.jsonl").rows()[0].samples == 0


def test_each_rank_writes_a_file_of_its_own(tmp_path):
    for rank in (0, 1):
        model, optimizer = parts()
        with em.LedgerCallback(tmp_path / "l.jsonl", model, optimizer, rank=rank).epoch():
            train(model, optimizer, (4,))
    rows = [row for rank in (0, 1) for row in em.Ledger(tmp_path / f"l.rank{rank}.jsonl").rows()]
    assert [row.key.rank for row in rows] == [0, 1] and em.totals(rows).samples == 8


def test_something_must_be_counted(tmp_path):
    with pytest.raises(ValueError, match="give the model"):
        em.LedgerCallback(tmp_path / "l.jsonl")
