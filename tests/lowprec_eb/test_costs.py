"""What an epoch is charged, against hand counts."""

import pytest
import torch
from torch import nn

import lowprec_eb as lp
import lowprec_eb.costs
from energy_models import OpCounts
from lowprec_eb.costs import average_costs, epoch_costs, optimizer_costs, stability_costs
from lowprec_eb.models import VGGSettings, build_model
from lowprec_eb.quantize import operator
from lowprec_eb.tasks import TaskSettings, make_task
from lowprec_eb.tickets import TicketSettings

TASK = make_task(TaskSettings(max_train=100, max_test=40, batch_size=32), seed=0)


def costs(precision, sparsity=0.0, detector=None):
    model = build_model(VGGSettings(widths=(4, "M", 6)), (1, 8, 8), 10, 0)
    lp.lower(model, precision)
    optimizer = lp.LowPrecisionOptimizer(
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4), precision
    )
    return epoch_costs(model, optimizer, TASK, sparsity=sparsity, detector=detector)


CONV1, CONV2, LINEAR = 64 * 9 * 1 * 4, 16 * 9 * 4 * 6, 6 * 10  # forward MACs of one image


def test_macs_of_an_epoch_by_hand():
    images = TASK.samples["train"]
    forward = images * (CONV1 + CONV2 + LINEAR)
    macs = costs("fp32").train.macs
    assert macs == {"output": forward, "grad_input": forward - images * CONV1, "grad_weight": forward}


def test_evaluation_is_forward_only_and_counts_every_image():
    of = costs("fp32")
    assert of.validate.macs["output"] == TASK.samples["validation"] * (CONV1 + CONV2 + LINEAR)
    assert of.test.macs["output"] == TASK.samples["test"] * (CONV1 + CONV2 + LINEAR)
    assert of.validate.macs["grad_weight"] == of.test.macs["grad_input"] == 0


def test_each_configuration_is_counted_once(monkeypatch):
    seen = []
    monkeypatch.setattr(
        lowprec_eb.recounting, "count", lambda m, x, training, loss: seen.append((training, len(x))) or OpCounts()
    )
    costs("fp32")
    assert len(seen) == len(set(seen)) == 2 + 3  # a full batch of either kind, and the last ones


def test_bfp8_reads_8_by_8_everywhere():
    assert {(a, b) for _, a, b in costs("bfp8").train.macs_by_bits} == {(8, 8)}


def test_swalp8_reads_8_by_32_in_two_gemms_of_three():
    images, by_bits = TASK.samples["train"], costs("swalp8").train.macs_by_bits
    body, last = images * (CONV1 + CONV2), images * LINEAR
    assert by_bits == {
        ("output", 8, 32): body + last,
        ("grad_input", 8, 8): images * CONV2,
        ("grad_input", 8, 32): last,
        ("grad_weight", 8, 32): body,
        ("grad_weight", 32, 32): last,
    }


def test_optimizer_and_quantizers_are_charged():
    parameters = sum(p.numel() for p in build_model(VGGSettings(widths=(4, "M", 6)), (1, 8, 8), 10, 0).parameters())
    steps = sum(TASK.batch_sizes("train").values())
    plain, low = costs("fp32").train.element_ops_by_kind, costs("bfp8").train.element_ops_by_kind
    assert plain["optimizer"] == low["optimizer"] == parameters * steps
    assert "quantizer" not in plain
    matrices = sum(m.weight.numel() for m in (nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3), nn.Linear(6, 10)))
    images = TASK.samples["train"]
    activations, errors = images * (64 + 16 * 4 + 6), images * (64 * 4 + 16 * 6 + 10)
    assert low["quantizer"] == activations + errors + steps * matrices * 4  # weight at the GEMM; three in the optimizer


def test_penalty_and_detector_are_charged():
    settings = TicketSettings()
    with_search = costs("fp32", sparsity=1e-4, detector=settings)
    assert with_search.train.element_ops_by_kind["sparsity_penalty"] == 10 * sum(TASK.batch_sizes("train").values())
    assert with_search.detect.element_ops_by_kind == {"ranking": 10, "mask_distance": 10 * (settings.window - 1)}
    assert costs("fp32").detect == OpCounts()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rule": "consecutive"}, {"mask_distance": 10}),
        ({"rule": "single"}, {"mask_distance": 10}),
        ({"rule": "pairwise", "window": 3}, {"mask_distance": 20}),  # the other pair is known from the look before
        ({"rule": "epi"}, {"mask_widths": 10}),
        ({"normalised": "layer"}, {"mask_distance": 40, "mask_widths": 10}),
        ({"normalised": "global"}, {"mask_distance": 40}),
        ({"score_momentum": 0.9}, {"mask_distance": 40, "score_average": 10}),
        ({"also": (0.2, 0.7)}, {"mask_distance": 120}),  # one ranking for all ratios
    ],
)
def test_each_detector_is_charged_what_it_compares(options, expected):
    look = costs("fp32", detector=TicketSettings(**options)).detect
    assert look.element_ops_by_kind == {"ranking": 10, **expected}


def test_the_statistics_pass_of_an_average_is_a_forward_pass_whose_batch_normalisation_looks_at_the_batch():
    model = build_model(VGGSettings(widths=(4, "M", 6)), (1, 8, 8), 10, 0)
    optimizer = lp.LowPrecisionOptimizer(torch.optim.SGD(model.parameters(), 0.1), "fp32")
    of = average_costs(lp.WeightAverage(model), model, optimizer, TASK)
    images, batches = TASK.samples["train"], sum(TASK.batch_sizes("train").values())
    assert of.statistics.macs == {"output": images * (CONV1 + CONV2 + LINEAR), "grad_input": 0, "grad_weight": 0}
    assert of.validate == costs("fp32").validate and of.test == costs("fp32").test
    seen, channels = images * (64 * 4 + 16 * 6), batches * (4 + 6)
    adds = sum(op.fp_add * op.times for op in of.statistics.element_ops if op.kind == "batch_norm")
    assert adds == 5 * seen + 3 * channels  # mean, variance twice, centre, shift; of a channel eps and running averages


def test_an_average_without_batch_normalisation_needs_no_statistics_pass():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = lp.LowPrecisionOptimizer(torch.optim.SGD(model.parameters(), 0.1), "fp32")
    of = average_costs(lp.WeightAverage(model), model, optimizer, TASK)
    assert of.statistics == OpCounts() and of.update.element_ops_by_kind == {"average": 650}


def test_nothing_is_left_uncounted():
    for precision in ("fp32", "bf16", "bfp8", "swalp8"):
        assert costs(precision).uncounted == ()


OPTIMIZERS = {
    "SGD": lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, nesterov=True),
    "Muon": lambda ps: torch.optim.Muon([p for p in ps if p.dim() == 2]),
    "Adam": lambda ps: torch.optim.Adam(ps, amsgrad=True),
    "RMSprop": lambda ps: torch.optim.RMSprop(ps, momentum=0.9),
    "NAdam": torch.optim.NAdam,
    **{name: getattr(torch.optim, name) for name in ("AdamW", "RAdam", "Adamax", "Adagrad", "Adadelta", "Adafactor")},
    **{name: getattr(torch.optim, name) for name in ("ASGD", "Rprop")},
}


def stepped(kind, precision, **options):
    """A model after a step, its optimizer and what the next one may be asked to do."""
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3, bias=False))
    low = lp.LowPrecisionOptimizer(OPTIMIZERS[kind](list(model.parameters())), precision, 0, **options)
    for p in model.parameters():
        p.grad = torch.rand_like(p)
    low.step()
    return model, low


FIXED = {"gradient": 8, "update": 9, "momentum": 10, "second_moment": 11, "master": 12}
EVERYTHING = lp.Precision(**{operand: lp.FixedPoint(bits, bits - 2) for operand, bits in FIXED.items()})


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_quantizers_that_are_charged_are_those_that_a_step_runs(kind, monkeypatch):
    model, low = stepped(kind, EVERYTHING)
    ran = []

    def noted(out, x, fmt, *how):
        ran.append((x.numel(), fmt.storage_bits(x.shape)))
        return round_into(out, x, fmt, *how)

    round_into = operator.round_into
    monkeypatch.setattr(operator, "round_into", noted)
    low.step()
    costs = optimizer_costs(model, low)
    charged = [(op.elements, op.write_bits) for op in costs.element_ops if op.kind == "quantizer"]
    assert sorted(charged) == sorted(ran) and len(ran) >= 3
    assert costs.uncounted == () and {op.part for op in costs.element_ops} == {"optimizer"}


def test_state_is_read_and_written_at_the_bits_that_it_is_kept_in():
    model, low = stepped("Adam", EVERYTHING)  # two second moments
    row = next(op for op in optimizer_costs(model, low).element_ops if op.kind == "optimizer" and op.elements == 24)
    kept = FIXED["momentum"] + 2 * FIXED["second_moment"] + FIXED["master"]
    assert (row.read_bits, row.write_bits) == (24 * (kept + FIXED["gradient"] + FIXED["update"]), 24 * kept)


def test_groups_that_are_left_alone_and_vectors_are_charged_in_float32():
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "low_precision": False}]
    low = lp.LowPrecisionOptimizer(torch.optim.SGD(groups, 0.1, momentum=0.9), "bfp8", gradient_scale=0.5)
    costs = optimizer_costs(model, low)
    assert {op.layer for op in costs.element_ops if op.kind == "quantizer"} == {"0.weight"}
    reads = {op.layer: op.read_bits / op.elements for op in costs.element_ops if op.kind == "optimizer"}
    assert reads["0.bias"] == reads["1.weight"] == reads["1.bias"] == 3 * 32
    assert costs.element_ops_by_kind["gradient_scale"] == 24 + 4


def test_sparse_adam_is_not_charged_as_if_it_were_dense():
    model = nn.Embedding(5, 3, sparse=True)
    with pytest.raises(ValueError, match="SparseAdam"):
        optimizer_costs(model, lp.LowPrecisionOptimizer(torch.optim.SparseAdam(model.parameters()), "fp32"))


@pytest.mark.parametrize(("kind", "states"), [("SGD", 1), ("AdamW", 2), ("Adam", 3)])
def test_watching_a_step_looks_at_all_that_the_optimizer_keeps(kind, states):
    model, low = stepped(kind, "fp32")
    watch = stability_costs(model, low, lp.StabilitySettings(on_unstable="skip", check_every=1), "cpu")
    looked, copied = watch.element_ops
    weights = 24 + 4 + 12
    assert looked.elements == weights * (2 + states)  # gradients, weights
    assert copied.elements == weights * (1 + states)


def test_counts_of_a_stage_do_not_depend_on_which_weights_are_zero_now(tiny):
    task = make_task(tiny.task, 0)
    models = [build_model(tiny.model, task.input_shape, task.classes, seed=0) for _ in range(2)]
    with torch.no_grad():
        next(m for m in models[1].modules() if isinstance(m, nn.Conv2d)).weight[:2] = 0
    one, other = (
        epoch_costs(
            model,
            lp.LowPrecisionOptimizer(torch.optim.SGD(model.parameters(), 0.1), lp.precision("fp32")),
            task,
            sparsity=0.0,
            detector=None,
        )
        for model in models
    )
    assert one.train == other.train and one.validate == other.validate
