"""What an epoch of a stage costs, counted once per stage and charged to every epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from energy_models import (
    FP32,
    ElementOps,
    MeasuredEnergy,
    OpCounts,
    element_ops,
    optimizer_state,
)
from energy_models.counts import quantizer_ops
from lowprec_eb.averaging import StatisticsPass, WeightAverage
from lowprec_eb.batch_counts import BatchCounts
from lowprec_eb.formats import Format
from lowprec_eb.optim import GROUP_OPTION, LowPrecisionOptimizer
from lowprec_eb.stability import StabilitySettings
from lowprec_eb.tasks import Task
from lowprec_eb.tickets import DETECTORS, TicketSettings, batch_norms, scoring

Work = Sequence[tuple[OpCounts, int]]  # what was done, and how often


@dataclass(frozen=True)
class AverageCosts:
    """Operations of one update of a weight average, of the pass that takes the averaged model's batch statistics, and
    of its passes over the held-out splits."""

    update: OpCounts
    statistics: OpCounts
    validate: OpCounts
    test: OpCounts


@dataclass(frozen=True)
class EpochCosts:
    """Operations of one epoch's training, of one look of the detector, and of one pass over the held-out splits;
    ``average``: of what a weight average takes besides, None without one.

    ``train_batch`` is of one training step by the number of its examples; ``train`` is their sum over an epoch.
    """

    train: OpCounts
    train_batch: Mapping[int, OpCounts]
    detect: OpCounts
    validate: OpCounts
    test: OpCounts
    average: AverageCosts | None = None

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Operations with arithmetic that no formula covers."""
        average = () if self.average is None else self.average.statistics.uncounted
        return tuple(sorted({*self.train.uncounted, *self.validate.uncounted, *average}))


def epoch_costs(
    model: nn.Module,
    optimizer: LowPrecisionOptimizer,
    task: Task,
    *,
    sparsity: float,
    detector: TicketSettings | None,
    average: WeightAverage | None = None,
    stability: StabilitySettings | None = None,
    device: str = "cpu",
    counts: BatchCounts | None = None,
) -> EpochCosts:
    """Count the operations of ``model`` as it stands: its widths, its lowering, its frozen parameters.

    ``counts``: of models like this one, with the same optimizer; what is known there is not counted again.
    """
    counts = counts or BatchCounts()
    step = optimizer_costs(model, optimizer, counts)
    if sparsity:
        step = step + sparsity_costs(model)
    if stability is not None:
        step = step + stability_costs(model, optimizer, stability, device)
    train = _batch_costs(model, task, task.batch_sizes("train"), step, counts)
    return EpochCosts(
        train=summed(train, task.batch_sizes("train")),
        train_batch=train,
        detect=detector_costs(model, detector, torch.zeros(2, *task.input_shape))
        if detector is not None
        else OpCounts(),
        **_evaluation_costs(model, task, counts),
        average=None if average is None else average_costs(average, model, optimizer, task, counts),
    )


def average_costs(
    average: WeightAverage,
    model: nn.Module,
    optimizer: LowPrecisionOptimizer,
    task: Task,
    counts: BatchCounts | None = None,
) -> AverageCosts:
    """What averaging the weights of ``model`` takes, the averaged model at its own precision."""
    passed, sizes, counts = StatisticsPass(average.model), task.batch_sizes("train"), counts or BatchCounts()
    return AverageCosts(
        update=average_update_costs(average, model, optimizer),
        statistics=summed(_batch_costs(passed, task, sizes, None, counts), sizes)
        if average.has_statistics
        else OpCounts(),
        **_evaluation_costs(average.model, task, counts),
    )


def average_update_costs(average: WeightAverage, model: nn.Module, optimizer: LowPrecisionOptimizer) -> OpCounts:
    """One update over the trainable parameters: average += (weight - average) * share, 2 additions and 1 multiplication
    per element. It reads the average and the weight and writes the average, each at the bits it is stored with; a
    format of the average's own adds a quantizer's pass. The first update, a copy, is charged as the others."""
    rows = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        elements, shape, own = parameter.numel(), parameter.shape, average.parameter_format(parameter)
        kept, weight = _stored_bits(shape, own), _stored_bits(shape, optimizer.parameter_format("master", parameter))
        rows.append(ElementOps("average", name, elements, 2 * elements, elements, 0, kept + weight, kept))
        if own is not None:
            rows.append(quantizer_ops(name, elements, kept))
    return OpCounts(element_ops=tuple(rows))


def _stored_bits(shape: torch.Size, fmt: Format | None) -> int:
    return FP32.bits * math.prod(shape) if fmt is None else fmt.storage_bits(shape)


def _evaluation_costs(model: nn.Module, task: Task, counts: BatchCounts) -> dict[str, OpCounts]:
    """One pass over each held-out split, in inference; most of their batches are of the same size."""
    validate, test = task.batch_sizes("validation"), task.batch_sizes("test")
    of_batch = _batch_costs(model, task, {*validate, *test}, None, counts)
    return {"validate": summed(of_batch, validate), "test": summed(of_batch, test)}


def summed(of_batch: Mapping[int, OpCounts], times: Mapping[int, int]) -> OpCounts:
    """So many batches of each size."""
    return sum((of_batch[size] * number for size, number in times.items()), OpCounts())


def pass_costs(
    model: nn.Module, task: Task, batches: int, *, training: bool, counts: BatchCounts | None = None
) -> OpCounts:
    """The first ``batches`` of a training epoch, forward, and backward in ``training``, without an optimizer's step."""
    sizes = leading_sizes(task, batches)
    of_batch = _batch_costs(model, task, sizes, OpCounts() if training else None, counts or BatchCounts())
    return summed(of_batch, sizes)


def leading_sizes(task: Task, batches: int) -> dict[int, int]:
    """Size -> number of such batches, of the first ``batches`` of a training epoch.

    Raises:
        ValueError: an epoch has fewer.
    """
    left, found = batches, {}
    for size, times in task.batch_sizes("train").items():  # full ones come first
        if taken := min(left, times):
            found[size] = taken
            left -= taken
    if left:
        raise ValueError(f"batches ({batches}) must be at most those of an epoch: {batches - left}")
    return found


def _batch_costs(
    model: nn.Module, task: Task, sizes: Iterable[int], step: OpCounts | None, counts: BatchCounts
) -> dict[int, OpCounts]:
    """One batch of each size; with the costs of an optimizer ``step`` it is a training step."""
    found = {}
    for size in sizes:
        of_batch = counts.of(model, (size, *task.input_shape), training=step is not None)
        found[size] = of_batch if step is None else of_batch + step
    return found


def optimizer_costs(model: nn.Module, optimizer: LowPrecisionOptimizer, counts: BatchCounts | None = None) -> OpCounts:
    """One step over the trainable parameters, with the quantizers of gradient, update, state and master copy."""
    step = (counts or BatchCounts()).of_step(optimizer, model)
    if optimizer.gradient_scale == 1:
        return step
    rounded = [p for group in optimizer.param_groups if group.get(GROUP_OPTION, True) for p in group["params"]]
    scaled = sum(p.numel() for p in rounded if p.requires_grad)
    return step + element_ops("gradient_scale", scaled, fp_mul=1, part="optimizer")  # as it is rounded: no traffic


def sparsity_costs(model: nn.Module) -> OpCounts:
    """The gamma penalty: a sign and an addition for every BatchNorm scale; it reads gamma and rewrites its gradient."""
    gammas = sum(norm.num_features for norm in batch_norms(model).values())
    return element_ops("sparsity_penalty", gammas, fp_add=1, int_add=1, read_bits=64, write_bits=32)


def stability_costs(
    model: nn.Module, optimizer: LowPrecisionOptimizer, settings: StabilitySettings, device: str
) -> OpCounts:
    """Watching one step: the norms of gradients, optimizer state and weights, and the copies that undo it.

    Charged as for 32-bit tensors, whatever the precision. A step that is undone is charged like any other, and so is
    the batch; replays are not, as they serve the message alone.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    of_state = (shape for kept in optimizer_state(optimizer, model=model).values() for shape in kept.values())
    kept = trained + sum(math.prod(shape) for shape in of_state)
    costs = element_ops("stability", trained + kept, fp_add=1, fp_mul=1, read_bits=32)
    if settings.undoes:
        elements = kept + sum(buffer.numel() for buffer in model.buffers())
        costs = costs + element_ops("stability", elements, read_bits=32, write_bits=32)
        if settings.period(torch.device(device)) > 1:  # old or new is then chosen element by element, in each step
            costs = costs + element_ops("stability", elements, read_bits=64, write_bits=32)
    return costs


def within(training: MeasuredEnergy) -> MeasuredEnergy:
    """For work that the sensor saw as part of the training, whose row has its joules and seconds."""
    return replace(training, energy_j=None if training.energy_j is None else 0.0, duration_s=0.0)


def ranking_costs(channels: int) -> OpCounts:
    """Sorting the scores of all channels: channels * log2(channels) comparisons."""
    comparisons = max(1, math.ceil(math.log2(channels)))
    return element_ops("ranking", channels, int_add=comparisons, read_bits=32, write_bits=1)


def copy_costs(model: nn.Module) -> OpCounts:
    """Moving the weights that stay: one read and one write of 32 bits each, no arithmetic."""
    return element_ops("copy", sum(p.numel() for p in model.parameters()), read_bits=32, write_bits=32)


def detector_costs(model: nn.Module, settings: TicketSettings, example_inputs: Tensor | None = None) -> OpCounts:
    """One look of the early-bird detector: the scores, their moving average, one ranking, and for each ratio its mask
    against the masks that its rule keeps, or its widths where the rule asks for them.

    Reading ``|gamma|`` is charged with the ranking. ``example_inputs`` are needed for other scores than the paper's.
    """
    channels, costs = _scored(model, settings, example_inputs)
    costs = costs + ranking_costs(channels)
    detector, ratios = DETECTORS[settings.rule](settings.window), len(settings.ratios)
    if settings.score_momentum:
        costs = costs + element_ops("score_average", channels, fp_mul=2, fp_add=1, read_bits=64, write_bits=32)
    if compared := channels * detector.compared * ratios:
        costs = costs + element_ops("mask_distance", compared, int_add=2, read_bits=2, write_bits=0)
    if settings.normalised == "layer" or not detector.uses_masks:
        costs = costs + element_ops("mask_widths", channels * ratios, int_add=1, read_bits=1, write_bits=0)
    return costs


def _scored(model: nn.Module, settings: TicketSettings, example_inputs: Tensor | None) -> tuple[int, OpCounts]:
    """How many channels have a score, and what the scores take beside being read."""
    if settings.scoring.are_the_papers:
        return sum(norm.num_features for norm in batch_norms(model).values()), OpCounts()
    assert example_inputs is not None
    _, scorer = scoring(model, settings.scoring, example_inputs)
    channels = sum(scores.numel() for scores in scorer(model).values())
    if settings.score not in ("l1", "l2"):
        return channels, OpCounts()
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    return channels, element_ops("score", weights, fp_add=1, fp_mul=int(settings.score == "l2"), read_bits=32)
