"""The main job: run every arm for every seed, and report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_models import HardwareProfile, load_profile
from lowprec_eb.checkpoints import write_text
from lowprec_eb.config import Config
from lowprec_eb.lab import Lab, PlanningLab, TrainingLab
from lowprec_eb.outcome import Outcome
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.progress import CompareProgress
from lowprec_eb.report import Comparison, MaskHistory
from lowprec_eb.stage import StageResult
from lowprec_eb.strict_config import to_plain
from lowprec_eb.tasks import VisionTask, make_task
from lowprec_eb.tickets import batch_norms, keep_largest
from lowprec_eb.versions import versions

NOTES = (
    "bfp8: 8-bit block floating point (dim 0), stochastic, on both operands of all three GEMMs of every layer, the first "
    "layer's image and the last layer included; weights, gradients and momentum are kept in 8 bits. Normalisation "
    "parameters, biases, element operations and the results of the GEMMs are float32.",
    "swalp8: the published placement, quantizers behind the outputs of convolutions and linear layers but the last; the next "
    "GEMM reads float32 activations, and is charged so. Its optimizer keeps every parameter in 8 bits.",
    "bf16: GEMM operands in bfloat16, all that is kept in float32. Evaluation rounds to nearest in every recipe.",
)


def compare(config: Config, out: Path, progress: CompareProgress) -> Comparison:
    """Run what is not finished yet and gather the results. Stages are kept in ``out/stages``, the run in its own folder.

    Killed at any moment, the same call goes on where it was.
    """
    torch.set_num_threads(config.threads)
    profile, task = load_profile(config.profile), make_task(config.task, 0, config.device)
    folder = run_folder(config, out)
    write_text(folder / "config.json", json.dumps({"config": to_plain(config), "versions": versions()}, indent=2) + "\n")
    outcomes: list[Outcome] = []
    stages: dict[str, StageResult] = {}
    histories: list[MaskHistory] = []
    for seed in config.seeds:
        of_seed = replace(task, seed=seed)
        lab = TrainingLab(config.lab, of_seed, profile, seed, out / "stages", config.run_name, progress)
        for arm in config.pipelines:
            progress.begin(seed, arm)
            outcomes.append(PIPELINES[arm.pipeline](lab, arm))
            progress.end(outcomes[-1])
        stages |= lab.finished
        histories += _mask_histories(lab, outcomes, config.ticket.ratio)
    return _comparison(config, profile, task, outcomes, stages, tuple(histories))


def plan(config: Config) -> Comparison:
    """Predict MACs and modelled energy of every arm without training; its accuracies are NaN."""
    profile, task = load_profile(config.profile), make_task(config.task, 0, config.device)
    lab = PlanningLab(config.lab, task, profile, config.seeds[0])
    outcomes = [PIPELINES[arm.pipeline](lab, arm) for arm in config.pipelines]
    return _comparison(config, profile, task, outcomes, lab.finished)


def run_folder(config: Config, out: Path) -> Path:
    return out / config.run_name


def _comparison(
    config: Config,
    profile: HardwareProfile,
    task: VisionTask,
    outcomes: list[Outcome],
    stages: dict[str, StageResult],
    histories: tuple[MaskHistory, ...] = (),
) -> Comparison:
    return Comparison(
        name=config.name,
        profile=f"{profile.name}: {profile.description}",
        outcomes=tuple(outcomes),
        rows={key: result.rows for key, result in stages.items()},
        mask_histories=histories,
        splits=task.samples,
        notes=NOTES,
        margin=config.margin,
    )


def _mask_histories(lab: Lab, outcomes: list[Outcome], ratio: float) -> Iterator[MaskHistory]:
    """The masks after every epoch of the dense runs with the gamma penalty, beside the ticket of the same precision."""
    sizes = [norm.num_features for norm in batch_norms(lab.initial().model).values()]
    of_seed = [outcome for outcome in outcomes if outcome.seed == lab.seed]
    tickets = {o.search_precision: o.ticket.epoch for o in of_seed if o.pipeline == "early_bird" and o.ticket}
    for outcome in of_seed:
        if outcome.pipeline == "network_slimming":
            masks = [_mask(scores, sizes, ratio) for scores in lab.finished[outcome.stages[0]].scores]
            yield MaskHistory(outcome.precision, lab.seed, np.stack(masks), tickets.get(outcome.precision))


def _mask(scores: Tensor, sizes: list[int], ratio: float) -> NDArray[np.bool_]:
    by_layer = {str(index): part for index, part in enumerate(scores.split(sizes))}
    return torch.cat(list(keep_largest(by_layer, ratio).values())).numpy()
