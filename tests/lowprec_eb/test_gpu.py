"""What must hold on a GPU; skipped without one. `benchmarks/on_gpu.sh` runs these."""

import dataclasses
import math
import warnings

import pytest
import torch
from layer_cases import build, results

import lowprec_eb as lp
from energy_models import measure
from lowprec_eb.compare import run_arm
from lowprec_eb.execution import placed
from lowprec_eb.formats import NAMED
from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.recipes import RECIPES
from lowprec_eb.tasks import TaskSettings, make_task
from lowprec_eb.tickets import EarlyBirds
from lowprec_eb.train import Callback, SparsityPenalty, TrainSettings, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "nearest_away", "toward_zero", "stochastic"])
@pytest.mark.parametrize("name", NAMED)
def test_quantizers_give_the_bits_of_the_cpu(name, rounding, dtype):
    x = (torch.randn(65, 33, 3, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    x[0, 0, 0], x[0, 1, 0], x[1, 0, 0] = math.inf, -0.0, torch.finfo(dtype).tiny
    on_gpu = lp.quantize(x.cuda(), name, rounding, seed=5)
    assert torch.equal(on_gpu.cpu(), lp.quantize(x, name, rounding, seed=5))
    x = x.nan_to_num(posinf=1.0)  # some formats have no code for an infinity
    assert torch.equal(lp.encode(x.cuda(), name, rounding, seed=5)[0].cpu(), lp.encode(x, name, rounding, seed=5)[0])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", ["linear on tokens", "conv2d grouped", "conv_transpose2d", "attention", "einsum"])
def test_lowered_layers_compute_what_they_compute_on_the_cpu(case, recipe):
    model, x = build(case)
    lp.lower(model, lp.precision(recipe, overrides=()))
    torch.manual_seed(0)
    expected = results(model, x)
    torch.manual_seed(0)
    found = results(model.cuda(), x.cuda())
    for name, value in expected.items():  # a sum in another order may round an operand of the next GEMM otherwise
        error = (found[name].cpu() - value).norm() / value.norm()
        assert error < 0.02, f"{name}: {error}"


class Silent:
    def begin(self, arm): ...

    def epoch(self, arm, stage, row, energy_j): ...

    def end(self, arm, outcome): ...


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("case", ["linear on tokens", "conv2d grouped", "conv_transpose2d", "attention", "einsum"])
def test_accumulation_in_chunks_is_that_of_the_cpu(case, rounding):
    precision = lp.Precision(accumulator=lp.Float(6, 9), accumulator_chunk=3, rounding=rounding)
    model, x = build(case)
    lp.lower(model, precision)
    torch.manual_seed(0)
    expected = results(model, x)
    torch.manual_seed(0)
    found = results(model.cuda(), x.cuda())
    for name, value in expected.items():  # where a partial sum has another last bit, a neighbouring number may come out
        error = (found[name].cpu() - value).norm() / value.norm()
        assert error < 0.002, f"{name}: {error}"


def test_an_embedding_accumulated_in_chunks_is_that_of_the_cpu():
    model, index = torch.nn.Sequential(torch.nn.Embedding(5, 4)), torch.arange(40).view(2, 20) % 4
    lp.lower(model, lp.Precision(accumulator=lp.Float(6, 3), accumulator_chunk=2))
    expected = results(model, index)
    found = results(model.cuda(), index.cuda())
    assert torch.allclose(found["0.weight"].cpu(), expected["0.weight"])


def test_an_early_bird_runs_and_is_measured_where_nvml_is(tiny, tmp_path):
    config = dataclasses.replace(tiny, device="cuda")
    arm = next(arm for arm in config.pipelines if arm.name == "LL")
    result = run_arm(config, tmp_path, 0, arm, Silent())
    with measure("cuda") as probe:
        torch.randn(2000, 2000, device="cuda").square().sum().item()
    searched = [row for rows in result.rows.values() for row in rows if row.key.phase == "search"]
    assert all((row.measured_j is not None) == (probe.energy_j is not None) for row in searched)
    assert 0 < result.outcome.test_accuracy <= 1


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_monitor_skips_a_step_bit_for_bit_and_waits_for_nothing(name):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.BatchNorm1d(32), torch.nn.Linear(32, 4)).cuda()
        if name == "sgd":
            return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        return model, torch.optim.Adam(model.parameters(), 1e-3, capturable=True)

    def closure_of(model, optimizer, x):
        def closure():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        return closure

    batches = [torch.randn(8, 16, device="cuda", generator=torch.Generator("cuda").manual_seed(i)) for i in range(12)]
    bad = batches[0].clone()
    bad[0, 0] = math.nan
    clean, optimizer = made()
    for x in batches:
        closure_of(clean, optimizer, x)()
        optimizer.step()
    model, other = made()
    monitor = lp.StabilityMonitor(model, other, lp.StabilitySettings(on_unstable="skip"))
    monitor.step(closure_of(model, other, batches[0]))  # makes the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x in [*batches[1:5], bad, *batches[5:]]:
            monitor.step(closure_of(model, other, x))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    monitor.check()
    assert [event.step for event in monitor.events] == [5]
    for key, value in clean.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_a_look_gives_the_masks_of_the_cpu_and_waits_once():
    """Scores of 53 layers with ties, three ratios, a moving average: one tensor is read."""
    generator = torch.Generator().manual_seed(0)
    on_cpu, on_gpu = (EarlyBirds((0.1, 0.5, 0.8), 1e-6, score_momentum=0.7, normalised="layer") for _ in range(2))
    for number in range(8):
        scores = {f"layer{i}": (torch.rand(16 + i, generator=generator) * 50).round() for i in range(53)}
        moved = {name: score.cuda() for name, score in scores.items()}
        on_cpu.observe(scores)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                on_gpu.observe(moved)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert number == 0 or len(waits) == 1, [str(wait.message) for wait in waits]
    for ratio in (0.1, 0.5, 0.8):
        assert on_gpu.distances(ratio) == on_cpu.distances(ratio)
        assert lp.mask_distance(on_gpu.best(ratio).masks, on_cpu.best(ratio).masks) == 0


@pytest.mark.parametrize("recipe", ["fp32", "bfp8"])
def test_no_step_of_the_loop_waits_for_the_gpu(recipe):
    class Guard(Callback):
        """From the end of the first step, which compiles and allocates, to that of the last; the epoch's end waits."""

        steps = 0

        def after_step(self):
            self.steps += 1
            torch.cuda.set_sync_debug_mode("default" if self.steps == len(sizes) else "error")
            return False

    task = make_task(TaskSettings(max_train=400, batch_size=40, augment="crop_flip", crop_padding=1), 0, "cuda")
    sizes = [size for size, times in task.batch_sizes("train").items() for _ in range(times)]
    settings = TrainSettings(epochs=1, learning_rate=0.01, channels_last=True)
    model = placed(build_model(VGGSettings(widths=(8, "M", 16)), (1, 8, 8), 10, 0), "cuda", settings.channels_last)
    lp.lower(model, recipe)
    optimizer, guard = lp.LowPrecisionOptimizer(settings.optimizer(model), recipe, seed=0), Guard()
    callbacks = [SparsityPenalty(model, 1e-4), guard]
    try:
        train(model, optimizer, task, range(1), settings, seed=0, callbacks=callbacks)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert guard.steps == len(sizes) > 2
