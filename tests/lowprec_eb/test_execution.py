"""How a model is run: the settings do what they say, decide the stage's name, and leave counts and results alone."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from energy_models import load_profile
from lowprec_eb import execution
from lowprec_eb.models import PreResNetSettings
from lowprec_eb.tasks import make_task
from lowprec_eb.training_lab import TrainingLab


@pytest.fixture
def task(tiny):
    return make_task(tiny.task, 0)


def lab(tiny, task, folder, **how):
    chosen = replace(tiny, model=PreResNetSettings(depth=8, width=4), training=replace(tiny.training, epochs=4, **how))
    return TrainingLab(chosen.lab, task, load_profile("45nm"), 0, folder, "run")


def trained(bench, recipe="fp32"):
    return bench.train(bench.initial(), "train", recipe)


def weights(result):
    return torch.cat([p.detach().flatten() for p in result.state.model.parameters()])


def energies(result):
    return [(row.key.phase, row.key.epoch, row.modelled) for row in result.rows]


def lies_in_channels_last(weight):
    return weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


@pytest.mark.parametrize("recipe", ["fp32", "bfp8"])
def test_channels_last_is_another_layout_of_the_same_training(tiny, task, tmp_path, recipe):
    usual, other = (trained(lab(tiny, task, tmp_path, channels_last=choice), recipe) for choice in (False, True))
    assert usual.key != other.key
    assert any(lies_in_channels_last(p) for p in other.state.model.parameters())
    assert not any(lies_in_channels_last(p) for p in usual.state.model.parameters())
    assert energies(usual) == energies(other)
    if recipe == "fp32":  # sums in another order; in 8 bits a last bit may round a number otherwise
        assert torch.allclose(weights(usual), weights(other), atol=1e-3)


def test_a_stage_in_channels_last_resumes_to_the_same_bits(tiny, task, tmp_path):
    whole = trained(lab(tiny, task, tmp_path / "whole", channels_last=True), "bfp8")

    class Killed(Exception):
        pass

    class Kill:
        def epoch(self, stage, row, energy_j):
            if row.key.epoch == 1:
                raise Killed

    first = lab(tiny, task, tmp_path / "killed", channels_last=True)
    first.progress = Kill()
    with pytest.raises(Killed):
        trained(first, "bfp8")
    resumed = trained(lab(tiny, task, tmp_path / "killed", channels_last=True), "bfp8")
    assert torch.equal(weights(resumed), weights(whole))


def test_compile_runs_the_steps_through_the_compiler_and_nothing_else(tiny, task, tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(torch.is_grad_enabled())
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    usual = trained(lab(tiny, task, tmp_path))
    assert not graphs
    compiled = trained(lab(tiny, task, tmp_path, compile=True))
    assert graphs and all(graphs)
    assert usual.key != compiled.key
    assert energies(usual) == energies(compiled)
    assert torch.equal(weights(usual), weights(compiled))


@pytest.mark.parametrize("choice", [True, False, None])
def test_tf32_holds_while_a_stage_runs(tiny, task, tmp_path, choice):
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before, seen = [flag.allow_tf32 for flag in flags], []

    class Watch:
        def epoch(self, stage, row, energy_j):
            seen.append([flag.allow_tf32 for flag in flags])

    bench = lab(tiny, task, tmp_path, tf32=choice)
    bench.progress = Watch()
    trained(bench)
    assert seen == [before if choice is None else [choice, choice]] * 4
    assert [flag.allow_tf32 for flag in flags] == before


def test_flags_come_back_after_an_error():
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(ZeroDivisionError), execution.float32_products(not before):
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 == before
