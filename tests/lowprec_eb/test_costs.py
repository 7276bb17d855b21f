"""What an epoch is charged, against hand counts."""

import torch
from torch import nn

import lowprec_eb as lp
from energy_models import OpCounts
from lowprec_eb.costs import average_costs, epoch_costs
from lowprec_eb.models import ModelSettings, build_model
from lowprec_eb.tasks import TaskSettings, make_task
from lowprec_eb.tickets import TicketSettings

TASK = make_task(TaskSettings(max_train=100, max_test=40, batch_size=32), seed=0)


def costs(precision, sparsity=0.0, detector=None):
    model = build_model(ModelSettings(widths=(4, "M", 6)), (1, 8, 8), 10, 0)
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
    parameters = sum(p.numel() for p in build_model(ModelSettings(widths=(4, "M", 6)), (1, 8, 8), 10, 0).parameters())
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


def test_the_statistics_pass_of_an_average_is_a_forward_pass_whose_batch_normalisation_looks_at_the_batch():
    model = build_model(ModelSettings(widths=(4, "M", 6)), (1, 8, 8), 10, 0)
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
