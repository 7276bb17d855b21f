"""One stage: what selection, test, penalty and momentum do; what a damaged folder says."""

import json
import shutil

import pytest
import torch
from torch import nn

from energy_models import load_profile
from lowprec_eb.tasks import make_task
from lowprec_eb.training_lab import TrainingLab


class Scripted:
    """A task whose accuracies are given: validation 0.1, 0.7, 0.3, ...; on test the position of the weights tells."""

    def __init__(self, task, validation):
        self.task, self.validation, self.seen = task, iter(validation), []

    def __getattr__(self, name):
        return getattr(self.task, name)

    def evaluate(self, model, split):
        weight = next(model.parameters()).detach().clone()
        if split == "validation":
            self.seen.append(weight)
            return 0.0, next(self.validation)
        return 0.0, [torch.equal(weight, seen) for seen in self.seen].index(True) / 10


@pytest.fixture
def task(tiny):
    return make_task(tiny.task, 0)


def lab(tiny, task, folder):
    return TrainingLab(tiny.lab, task, load_profile("45nm"), 0, folder, "run")


def test_the_epoch_that_validation_selects_is_tested_and_the_last_one_goes_on(tiny, task, tmp_path):
    scripted = Scripted(task, [0.1, 0.7, 0.3, 0.7, 0.2])
    bench = lab(tiny, scripted, tmp_path)
    result = bench.train(bench.initial(), "train", "fp32")
    assert (result.best_epoch, result.validation_accuracy, result.test_accuracy) == (1, 0.7, 0.1)
    assert torch.equal(next(result.state.model.parameters()), scripted.seen[-1])


def gammas(result):
    return torch.cat([m.weight.detach() for m in result.state.model.modules() if isinstance(m, nn.BatchNorm2d)])


def test_the_penalty_of_a_stage_pulls_the_gammas_down(tiny, task, tmp_path):
    bench = lab(tiny, task, tmp_path)
    free = bench.train(bench.initial(), "train", "fp32")
    penalised = bench.train(bench.initial(), "train", "fp32", sparsity=0.05)
    assert gammas(penalised).mean() < gammas(free).mean() - 0.05
    assert torch.equal(penalised.scores[-1], gammas(penalised).abs())


def test_a_ticket_brings_the_momentum_of_its_channels(tiny, task, tmp_path):
    bench = lab(tiny, task, tmp_path)
    search = bench.train(bench.initial(), "search", "fp32", sparsity=1e-4, detect=True)
    small = bench.prune(search.state, search.ticket)
    kept = search.ticket.masks["features.1"].nonzero()[:, 0]
    before = search.state.optimizer_state["state"][0]["momentum_buffer"]
    assert torch.equal(small.optimizer_state["state"][0]["momentum_buffer"], before[kept])
    assert small.epoch == search.state.epoch == search.ticket.epoch
    assert search.test_accuracy is None


def test_a_lost_ledger_row_is_noticed_and_the_advice_works(tiny, task, tmp_path):
    bench = lab(tiny, task, tmp_path)
    first = bench.train(bench.initial(), "train", "fp32")
    ledger = tmp_path / first.key / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[:-3]))
    again = lab(tiny, task, tmp_path)
    with pytest.raises(ValueError, match=r"3 rows are missing, the first of phase .*; delete the folder"):
        again.train(again.initial(), "train", "fp32")
    ledger.unlink()
    with pytest.raises(ValueError, match="rows are missing"):
        again.train(again.initial(), "train", "fp32")
    shutil.rmtree(ledger.parent)
    assert again.train(again.initial(), "train", "fp32").test_accuracy == first.test_accuracy


def test_a_damaged_identity_and_a_foreign_state_are_named(tiny, task, tmp_path):
    bench = lab(tiny, task, tmp_path)
    a = bench.train(bench.initial(), "train", "fp32")
    b = bench.train(bench.initial(), "train", "bf16")
    state = tmp_path / a.key / "state.safetensors"
    state.write_bytes((tmp_path / b.key / "state.safetensors").read_bytes())
    again = lab(tiny, task, tmp_path)
    with pytest.raises(ValueError, match="the state of another stage"):
        again.train(again.initial(), "train", "fp32")
    (tmp_path / b.key / "stage.json").write_text("{")
    with pytest.raises(ValueError, match=r"stage\.json: not the identity of a stage; delete the folder"):
        again.train(again.initial(), "train", "bf16")


def test_the_identity_says_what_the_stage_was(tiny, task, tmp_path):
    bench = lab(tiny, task, tmp_path)
    key = bench.train(bench.initial(), "train", "fp32").key
    identity = json.loads((tmp_path / key / "stage.json").read_text())
    assert identity["run"] == "run" and identity["stage"]["seed"] == 0 and "torch" in identity["versions"]
