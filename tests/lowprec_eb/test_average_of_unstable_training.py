"""Weight averaging together with stability detection: skipped steps, raised precision, divergence, resuming."""

import csv
import io
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

import lowprec_eb as lp
from energy_models import load_profile
from lowprec_eb import stage as stage_module
from lowprec_eb.arms import ArmSettings
from lowprec_eb.averaging import AveragingSettings
from lowprec_eb.compare import gather, plan, run_arm
from lowprec_eb.precision_settings import PrecisionSettings, RoundedSettings
from lowprec_eb.report import summarise, write_report
from lowprec_eb.stability import StabilitySettings
from lowprec_eb.stage_average import StageAverage
from lowprec_eb.stage_data import StageDiverged
from lowprec_eb.tasks import Batch, make_task
from lowprec_eb.training_lab import TrainingLab

EPOCH, STEP, STEPS = 2, 1, 4  # the poisoned step; steps of an epoch, 32 examples in three of them and 24 in the last
EACH = AveragingSettings("swalp", start=0.4, unit="step")  # every step of epochs 2, 3 and 4 of 5
FORWARD = 64 * 9 * 6 + 16 * 9 * 6 * 8 + 8 * 10  # MACs of one image
MATRICES, VECTORS = {54: 6, 432: 8, 80: 10}, 6 + 6 + 8 + 8 + 10  # elements: slices with an exponent each


class Poisoned:
    """A task with one NaN in the images of some batches."""

    def __init__(self, task, places=((EPOCH, STEP),)):
        self.task, self.places = task, places

    def __getattr__(self, name):
        return getattr(self.task, name)

    def batches(self, epoch):
        for step, batch in enumerate(self.task.batches(epoch)):
            if (epoch, step) in self.places:
                batch = Batch(batch.inputs.clone(), batch.targets)
                batch.inputs[0, 0, 4, 4] = math.nan
            yield batch


class Drawing(Poisoned):
    """A task whose evaluation says nothing but which random numbers it finds."""

    def evaluate(self, model, split):
        return 0.0, torch.rand(()).item()


class Silent:
    def begin(self, arm): ...

    def epoch(self, arm, stage, row, energy_j): ...

    def end(self, arm, outcome): ...


@pytest.fixture
def task(tiny):
    return make_task(tiny.task, 0)


def settings(tiny, averaging=EACH, **stability):
    training = replace(tiny.training, averaging=averaging, stability=StabilitySettings(**stability))
    return replace(tiny, training=training)


def trained(config, task, folder, precision="bfp8"):
    bench = TrainingLab(config.lab, task, load_profile("45nm"), 0, folder, "run")
    return bench.train(bench.initial(), "train", precision)


def rows(result, phase):
    return {row.key.epoch: row for row in result.rows if row.key.phase == phase}


def comparable(result):
    """Everything but seconds and attempts."""
    plain = [
        replace(row, duration_s=0.0, key=replace(row.key, attempt=0))
        for row in sorted(result.rows, key=lambda row: row.key)
    ]
    return plain, result.best_epoch, result.validation_accuracy, result.test_accuracy


def same_state(a, b):
    first, second = a.state.model.state_dict(), b.state.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Spy(StageAverage):
    """Keeps what the average is made of, by step."""

    def after_step(self):
        before = self.average.count
        super().after_step()
        if self.average.count > before:
            Spy.visited[self.step - 1] = [p.detach().double().clone() for p in self.trained.parameters()]


@pytest.fixture
def visited(monkeypatch):
    monkeypatch.setattr(Spy, "visited", {}, raising=False)
    monkeypatch.setattr("lowprec_eb.stage_average.StageAverage", Spy)
    return Spy.visited


@pytest.mark.parametrize("every", [1, 3])
def test_a_skipped_step_counts_and_gives_the_weights_from_before_it_once_more(tiny, task, tmp_path, visited, every):
    result = trained(settings(tiny, on_unstable="skip", check_every=every), Poisoned(task), tmp_path)
    assert list(visited) == list(range(EPOCH * STEPS, 5 * STEPS))
    number = EPOCH * STEPS + STEP
    for before, skipped in zip(visited[number - 1], visited[number], strict=True):
        assert torch.equal(before, skipped)
    assert any(not torch.equal(a, b) for a, b in zip(visited[number], visited[number + 1], strict=True))
    for index, parameter in enumerate(result.state.model.parameters()):
        mean = torch.stack([weights[index] for weights in visited.values()]).mean(0)
        torch.testing.assert_close(parameter.detach().double(), mean, rtol=1e-6, atol=1e-7)
    train, average = rows(result, "train"), rows(result, "average")
    assert [row.metrics.get("updates") for row in average.values()] == [STEPS] * 3 + [None]
    assert average[5].metrics["weights_averaged"] == 3 * STEPS and train[EPOCH].metrics["skipped_steps"] == 1
    assert all("stability" in row.element_ops for row in train.values())  # both are charged, each where it belongs
    assert all("average" not in row.element_ops for row in train.values())
    assert average[EPOCH].element_ops == {"average": STEPS * (sum(MATRICES) + VECTORS)}


def stored(weight_bits):
    """Bytes of one update: the average is read and written in float32, the weights are read as they are stored."""
    return (2 * 32 * (sum(MATRICES) + VECTORS) + weight_bits + 32 * VECTORS) / 8


@pytest.mark.parametrize(("kind", "reads"), [("swalp", 32), ("swa", 16)])
@pytest.mark.parametrize("every", [1, 3])
def test_from_the_raised_step_on_the_average_is_of_the_precision_in_force(tiny, task, tmp_path, kind, reads, every):
    config = settings(tiny, replace(EACH, kind=kind), on_unstable="raise_precision", raise_to="bf16", check_every=every)
    result = trained(config, Poisoned(task), tmp_path)
    average, held_out = rows(result, "average"), task.samples["validation"]
    old, new = (stored(bits) for bits in (sum(8 * n + 8 * s for n, s in MATRICES.items()), 32 * sum(MATRICES)))
    before = 1 if every == 1 else 2  # updates: the one after the step that raises has the raised weights
    assert rows(result, "train")[EPOCH].metrics["raised_after_steps"] == before + 1
    expected = {2: before * old + (STEPS - before) * new, 3: STEPS * new, 4: STEPS * new}
    assert {e: average[e].modelled.traffic_bytes.nominal for e in expected} == pytest.approx(expected)
    assert average[5].macs["output"] == {f"16x{reads}": FORWARD * (task.samples["train"] + held_out)}
    assert rows(result, "eval")[5].macs["output"] == {f"16x{reads}": FORWARD * task.samples["test"]}


def test_the_average_computes_in_the_raised_precision(tiny, task, tmp_path, monkeypatch):
    seen = {}
    evaluate = type(task).evaluate

    def watched(self, model, split):
        seen[split] = model.features[0].lowering.precision
        return evaluate(self, model, split)

    monkeypatch.setattr(type(task), "evaluate", watched)
    trained(settings(tiny, on_unstable="raise_precision", raise_to="bf16"), Poisoned(task), tmp_path)
    assert seen["test"] == lp.precision("bf16", weight=None)  # `swalp` reads the mean itself
    assert seen["validation"] == seen["test"]


class Killed(BaseException):
    pass


def killed_and_resumed(monkeypatch, run, write, kills):
    """What ``run`` gives after it was killed after so many writes, again and again."""
    target = {"row": (stage_module.Ledger, "append"), "checkpoint": (stage_module.checkpoints, "save")}[write]
    real = getattr(*target)
    for survive in kills:
        left = survive

        def mortal(*args, **kwargs):
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return real(*args, **kwargs)

        monkeypatch.setattr(*target, mortal)
        torch.manual_seed(survive)  # a new process has another one
        with pytest.raises(Killed):
            run()
        monkeypatch.setattr(*target, real)
    torch.manual_seed(99)
    return run()


@pytest.mark.parametrize(
    ("averaging", "stability", "write", "kills"),
    [
        (EACH, {"raise_to": "bf16"}, "checkpoint", (1, 1, 1, 1, 1)),
        (replace(EACH, kind="swa", interval=3), {"raise_to": "turned"}, "row", (4, 4, 3)),
        (replace(EACH, format="block8"), {"raise_to": "turned", "check_every": 3}, "checkpoint", (2, 1, 1, 1)),
        (AveragingSettings("ema", start=0.2, decay=0.9), {"raise_to": "fp32"}, "row", (5, 3, 3, 1)),
        (EACH, {"on_unstable": "skip"}, "row", (4, 4, 3)),
    ],
)
def test_killed_and_resumed_it_is_what_the_uninterrupted_stage_is(
    tiny, task, tmp_path, monkeypatch, averaging, stability, write, kills
):
    turned = PrecisionSettings("bfp8", hadamard=16, normalization=RoundedSettings("fp8_e4m3", rounding="stochastic"))
    config = settings(
        replace(tiny, precisions={"turned": turned}), averaging, **{"on_unstable": "raise_precision", **stability}
    )
    poisoned = Poisoned(task, ((EPOCH, STEP), (4, 3)))
    whole = trained(config, poisoned, tmp_path / "whole")
    resumed = killed_and_resumed(monkeypatch, lambda: trained(config, poisoned, tmp_path / "killed"), write, kills)
    assert comparable(resumed) == comparable(whole) and same_state(resumed, whole)
    read = trained(config, poisoned, tmp_path / "killed")  # finished: nothing is run
    assert comparable(read) == comparable(whole) and same_state(read, whole)


@pytest.mark.parametrize("averaging", [None, EACH])
def test_the_last_looks_find_the_same_random_numbers_after_a_kill(tiny, task, tmp_path, monkeypatch, averaging):
    config, drawing = settings(tiny, averaging), Drawing(task, places=())
    whole = trained(config, drawing, tmp_path / "whole")
    resumed = killed_and_resumed(
        monkeypatch, lambda: trained(config, drawing, tmp_path / "killed"), "checkpoint", (5, 0)
    )
    assert comparable(resumed) == comparable(whole)


@pytest.mark.parametrize("every", [1, 3])
def test_a_diverged_stage_delivers_no_average_and_has_paid_for_it(tiny, task, tmp_path, every):
    """The average's own format refuses NaN, and yet the first bad step is the one that is named."""
    averaging = replace(EACH, format="Float(4, 3, nan='error')")
    config = settings(tiny, averaging, check_every=every)
    with pytest.raises(StageDiverged) as found:
        trained(config, Poisoned(task, ((3, STEP),)), tmp_path, "fp32")
    event = found.value.event
    assert (event.epoch, event.step, event.kind) == (3, STEP, "nan")
    average = rows(found.value, "average")
    assert {epoch: row.metrics["updates"] for epoch, row in average.items()} == {2: STEPS, 3: STEP}
    assert rows(found.value, "train")[3].samples == 64 and "eval" in {row.key.phase for row in found.value.rows}
    with pytest.raises(StageDiverged, match="step 1"):  # it is not trained again, and delivers nothing still
        trained(config, task, tmp_path, "fp32")


def test_a_diverged_arm_is_marked_and_in_no_note_on_averages(tiny, tmp_path):
    broken = PrecisionSettings(gradient=RoundedSettings("FixedPoint(8, 0)", rounding="stochastic"))
    arms = tuple(ArmSettings(name, "full", precision=p) for name, p in (("good", "fp32"), ("lost", "broken")))
    config = replace(settings(tiny, explode_above=9.0), pipelines=arms, seeds=(0,), precisions={"broken": broken})
    config = replace(config, training=replace(config.training, learning_rate=1.0, milestones=()))
    comparison = gather(config, [run_arm(config, tmp_path, 0, arm, Silent()) for arm in arms])
    (lost,) = comparison.diverged
    assert (lost.arm, lost.averaging) == ("lost", "swalp")
    (note,) = [note for note in comparison.notes if note.startswith("Weights averaged")]
    assert "good" in note and "lost" not in note
    files = {path.name: path for path in write_report(comparison, tmp_path / "report")}
    lines = {line["arm"]: line for line in csv.DictReader(io.StringIO(files["summary.csv"].read_text()))}
    assert (lines["lost"]["averaging"], lines["lost"]["diverged_seeds"]) == ("swalp", "0")


def test_a_plan_charges_watching_and_averaging(tiny, tmp_path):
    arms = (ArmSettings("averaged", "full", precision="bfp8"), ArmSettings("plain", "full", averaging=False))
    config = replace(settings(tiny, on_unstable="skip"), pipelines=arms)
    predicted = summarise(plan(config))
    charged = summarise(gather(config, [run_arm(config, tmp_path, 0, arm, Silent()) for arm in arms]))
    for one, other in zip(predicted, charged, strict=True):
        phases = [{phase: of.nominal_j for phase, of in arm.energy_by_phase.items()} for arm in (one, other)]
        assert phases[0] == pytest.approx(phases[1])


def test_in_a_loop_of_ones_own_the_average_goes_along():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    lp.lower(model, "bfp8")
    optimizer = lp.LowPrecisionOptimizer(torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), "bfp8")
    average = lp.WeightAverage(model)
    settings = lp.StabilitySettings("raise_precision", raise_to="int8")
    monitor = lp.StabilityMonitor(
        model,
        optimizer,
        settings,
        lower=lambda model, precision: [lp.lower(m, precision) for m in (model, average.model)],
    )
    for step in range(6):
        images, labels = torch.rand(16, 8), torch.randint(2, (16,))
        if step == 2:
            images[0, 0] = math.inf

        def closure(images=images, labels=labels):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            return loss

        monitor.step(closure)
        average.update(model)
    assert monitor.raised
    ranges = lp.precision_state(average.model)
    assert ranges and ranges.keys() == lp.precision_state(model).keys()  # int8 has running ranges, bfp8 none
    assert all(torch.isfinite(p).all() for p in average.model.parameters())
