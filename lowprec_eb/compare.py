"""The main job: run every arm for every seed, and gather what the report needs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energy_models import LedgerRow, load_profile
from lowprec_eb.checkpoints import write_text
from lowprec_eb.config import Config
from lowprec_eb.lab import Lab, PlanningLab, TrainingLab
from lowprec_eb.outcome import Outcome
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.progress import ArmProgress
from lowprec_eb.report import Comparison, MaskHistory
from lowprec_eb.strict_config import to_plain
from lowprec_eb.tasks import make_task
from lowprec_eb.tickets import batch_norms, keep_largest
from lowprec_eb.versions import versions

NOTES = (
    "bfp8: 8-bit block floating point (dim 0), stochastic, on both operands of all three GEMMs of every layer, "
    "the first layer's image and the last layer included; weights, gradients and momentum are kept in 8 bits. "
    "Normalisation parameters, biases, element operations and the results of the GEMMs are float32.",
    "swalp8: the published placement, quantizers behind the outputs of convolutions and linear layers but the last; "
    "the next GEMM reads float32 activations, and is charged so. Its optimizer keeps every parameter in 8 bits.",
    "bf16: GEMM operands in bfloat16, all that is kept in float32. Evaluation rounds to nearest in every recipe.",
)


@dataclass(frozen=True, eq=False)
class SeedResult:
    """What one seed contributes: the outcome of every arm, the ledger rows by stage, the recorded masks."""

    outcomes: tuple[Outcome, ...]
    rows: Mapping[str, tuple[LedgerRow, ...]]
    mask_histories: tuple[MaskHistory, ...]


def run_folder(config: Config, out: Path) -> Path:
    """Where the report of this comparison goes; its stages are in ``out/stages``."""
    return out / config.run_name


def record_run(config: Config, out: Path) -> None:
    """Write the settings and the versions into the run's folder."""
    record = {"config": to_plain(config), "versions": versions()}
    write_text(run_folder(config, out) / "config.json", json.dumps(record, indent=2) + "\n")


def run_seed(config: Config, out: Path, seed: int, progress: ArmProgress) -> SeedResult:
    """Run every arm with one seed; finished stages are read, an unfinished one goes on where it was."""
    torch.set_num_threads(config.threads)
    task = make_task(config.task, seed, config.device)
    profile = load_profile(config.profile)
    lab = TrainingLab(config.lab, task, profile, seed, out / "stages", config.run_name, progress)
    outcomes = []
    for arm in config.pipelines:
        progress.begin(seed, arm)
        outcomes.append(PIPELINES[arm.pipeline](lab, arm))
        progress.end(outcomes[-1])
    rows = {key: result.rows for key, result in lab.finished.items()}
    return SeedResult(tuple(outcomes), rows, tuple(_mask_histories(lab, outcomes, config.ticket.ratio)))


def plan(config: Config) -> Comparison:
    """Predict MACs and modelled energy of every arm for one seed, without training; its accuracies are NaN."""
    task = make_task(config.task, config.seeds[0], config.device)
    lab = PlanningLab(config.lab, task, load_profile(config.profile), config.seeds[0])
    outcomes = tuple(PIPELINES[arm.pipeline](lab, arm) for arm in config.pipelines)
    rows = {key: result.rows for key, result in lab.finished.items()}
    return gather(config, [SeedResult(outcomes, rows, ())])


def gather(config: Config, results: Sequence[SeedResult]) -> Comparison:
    """All seeds together, as the report reads them."""
    profile = load_profile(config.profile)
    rows: dict[str, tuple[LedgerRow, ...]] = {}
    for result in results:
        rows |= result.rows
    return Comparison(
        name=config.name,
        profile=f"{profile.name}: {profile.description}",
        outcomes=tuple(outcome for result in results for outcome in result.outcomes),
        rows=rows,
        mask_histories=tuple(history for result in results for history in result.mask_histories),
        splits=make_task(config.task, 0).samples,
        notes=NOTES,
        margin=config.margin,
    )


def _mask_histories(lab: Lab, outcomes: Sequence[Outcome], ratio: float) -> Iterator[MaskHistory]:
    """The masks after every epoch of the dense runs with the gamma penalty, beside the ticket of the same precision."""
    sizes = [norm.num_features for norm in batch_norms(lab.initial().model).values()]
    tickets = {o.search_precision: o.ticket.epoch for o in outcomes if o.pipeline == "early_bird" and o.ticket}
    for outcome in outcomes:
        if outcome.pipeline == "network_slimming":
            masks = [_mask(scores, sizes, ratio) for scores in lab.finished[outcome.stages[0]].scores]
            yield MaskHistory(outcome.precision, lab.seed, np.stack(masks), tickets.get(outcome.precision))


def _mask(scores: Tensor, sizes: list[int], ratio: float) -> NDArray[np.bool_]:
    by_layer = {str(index): part for index, part in enumerate(scores.split(sizes))}
    return torch.cat(list(keep_largest(by_layer, ratio).values())).numpy()
