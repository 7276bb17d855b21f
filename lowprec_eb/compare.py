"""The main job: run every arm for every seed, and gather what the report needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from energy_models import LedgerRow, load_profile
from lowprec_eb.arms import ArmSettings
from lowprec_eb.checkpoints import write_text
from lowprec_eb.config import Config
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import DivergedOutcome, Outcome
from lowprec_eb.pipelines import PIPELINES
from lowprec_eb.planning_lab import Planned, PlanningLab
from lowprec_eb.progress import ArmObserver, CompareObserver
from lowprec_eb.report import Comparison, MaskHistory
from lowprec_eb.stage_data import StageDiverged, StageResult
from lowprec_eb.strict_config import ConfigError, read_plain, to_plain
from lowprec_eb.tasks import Task, TaskSettings, VisionTask, make_task
from lowprec_eb.tickets import ScoreHistory, keep_largest
from lowprec_eb.training_lab import TrainingLab
from lowprec_eb.versions import versions

CONFIG_FILE = "config.json"
NOTES = (
    "bfp8: 8-bit block floating point (dim 0), stochastic, on both operands of all three GEMMs of every layer, "
    "the first layer's image and the last layer included; weights, gradients and momentum are kept in 8 bits. "
    "Normalisation parameters, biases, element operations and the results of the GEMMs are float32.",
    "swalp8: the published placement, quantizers behind the outputs of convolutions and linear layers but the last; "
    "the next GEMM reads float32 activations, and is charged so. Its optimizer keeps every parameter in 8 bits.",
    "bf16: GEMM operands in bfloat16, all that is kept in float32. Evaluation rounds to nearest in every recipe.",
)


@dataclass(frozen=True, eq=False)
class ArmResult:
    """What one arm contributes for one seed: its outcome, the rows of its stages, and the masks that it recorded."""

    outcome: Outcome | DivergedOutcome
    rows: Mapping[str, tuple[LedgerRow, ...]]
    dense_masks: NDArray[np.bool_] | None  # (epochs, channels) of a dense run with the gamma penalty


def run_folder(config: Config, out: Path) -> Path:
    """Where the report of this comparison goes; its stages are in ``out/stages``."""
    return out / config.run_name


def record_run(config: Config, out: Path) -> None:
    """Write the settings and the versions into the run's folder."""
    record = {"config": to_plain(config), "versions": versions()}
    write_text(run_folder(config, out) / CONFIG_FILE, json.dumps(record, indent=2) + "\n")


def recorded_config(run: Path) -> Config | None:
    """The settings in a run's folder; None: there are none.

    Raises:
        ConfigError: they are not those of this version.
    """
    path = run / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not the settings of a run ({error})"]) from error
    return read_plain(tree.get("config") if isinstance(tree, dict) else tree, Config, str(path))


def run_arm(config: Config, out: Path, seed: int, arm: ArmSettings, observer: CompareObserver) -> ArmResult:
    """Run one arm with one seed; finished stages are read, an unfinished one goes on where it was.

    An arm that diverges ends with a result too: the others go on.
    """
    torch.set_num_threads(config.threads)
    task = replace(load_task(config.task, config.device), seed=seed)
    profile, label = load_profile(config.profile), (seed, arm.name)
    stages, progress = out / "stages", ArmObserver(observer, label)

    def lab_of(arm: ArmSettings) -> Lab:
        shared = (task, profile, seed, stages, config.run_name, progress)
        return TrainingLab(config.lab.of_arm(arm), *shared, others=_others(config, lab_of))

    lab = lab_of(arm)
    observer.begin(label)
    try:
        result = _result(lab, arm)
    except StageDiverged as error:
        result = _diverged(lab, arm, error)
    observer.end(label, result.outcome)
    return result


def plan(config: Config, task: Task | None = None, begins: Callable[[str], None] | None = None) -> Comparison:
    """Predict MACs and modelled energy of every arm for one seed, without training; its accuracies are NaN.

    ``task``: in place of the data of the settings, such as their sizes alone. ``begins``: told the name of each arm
    before it is counted.
    """
    task = load_task(config.task, config.device) if task is None else task
    profile, seed = load_profile(config.profile), config.seeds[0]
    labs: dict[tuple[bool, float | None], Lab] = {}
    planned = Planned()

    def lab_of(arm: ArmSettings) -> Lab:
        key = (arm.averaging, arm.ratio)
        if key not in labs:
            others = _others(config, lab_of)
            labs[key] = PlanningLab(config.lab.of_arm(arm), task, profile, seed, planned, others)
        return labs[key]

    results = []
    for arm in config.pipelines:
        if begins is not None:
            begins(arm.name)
        results.append(_result(lab_of(arm), arm))
    return gather(config, results, task)


def _others(config: Config, lab_of: Callable[[ArmSettings], Lab]) -> Callable[[str], Sequence[StageResult]]:
    """By its name, the finished stages of an arm; what is not finished is run."""

    def stages_of(name: str) -> list[StageResult]:
        arm = next(arm for arm in config.pipelines if arm.name == name)
        lab = lab_of(arm)
        return [lab.finished[key] for key in PIPELINES[arm.pipeline](lab, arm).stages]

    return stages_of


@lru_cache(maxsize=1)
def load_task(settings: TaskSettings, device: str) -> VisionTask:
    """The data, read once a process; the arms differ in the order of the batches alone."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' was asked for, and torch sees no GPU here; use --device cpu")
    return make_task(settings, 0, device)


def _result(lab: Lab, arm: ArmSettings) -> ArmResult:
    outcome = PIPELINES[arm.pipeline](lab, arm)
    stages = [lab.finished[key] for key in outcome.stages]
    history = stages[0].history if arm.pipeline == "network_slimming" else None
    masks = None if history is None else _masks_by_epoch(lab, history)
    return ArmResult(outcome, {stage.key: stage.rows for stage in stages}, masks)


def _diverged(lab: Lab, arm: ArmSettings, error: StageDiverged) -> ArmResult:
    outcome = DivergedOutcome(
        arm=arm.name,
        pipeline=arm.pipeline,
        seed=lab.seed,
        search_precision=arm.search if arm.searches else None,
        precision=arm.precision,
        weights=arm.origin,
        averaging=lab.averaging_kind,
        ratio=lab.ratio_of(arm),
        stages=(*lab.finished, error.stage.key),
        phase=error.stage.phase,
        event=error.event,
        message=str(error),
    )
    rows = {key: stage.rows for key, stage in lab.finished.items()}
    return ArmResult(outcome, rows | {error.stage.key: error.rows}, None)


def gather(
    config: Config,
    results: Sequence[ArmResult],
    task: Task | None = None,
    *,
    missing: Sequence[tuple[str, int]] = (),
) -> Comparison:
    """All arms and seeds together, as the report reads them: arm by arm in the order of the settings, seed by seed.

    Raises:
        FloatingPointError: every arm diverged with every seed, so there is nothing to compare.
    """
    order = {arm.name: place for place, arm in enumerate(config.pipelines)}
    results = sorted(results, key=lambda r: (order[r.outcome.arm], config.seeds.index(r.outcome.seed)))
    profile = load_profile(config.profile)
    rows: dict[str, tuple[LedgerRow, ...]] = {}
    for result in results:
        rows |= result.rows
    finished = tuple(r.outcome for r in results if isinstance(r.outcome, Outcome))
    diverged = tuple(r.outcome for r in results if isinstance(r.outcome, DivergedOutcome))
    if not finished:
        lines = [f"seed {of.seed}, {of.arm}: {of.message}" for of in diverged]
        raise FloatingPointError("\n".join(lines))
    return Comparison(
        name=config.name,
        profile=f"{profile.name}: {profile.description}",
        outcomes=finished,
        diverged=diverged,
        rows=rows,
        mask_histories=tuple(_mask_histories(results)),
        splits=(load_task(config.task, config.device) if task is None else task).samples,
        notes=(*NOTES, *_averaged(config, finished), *_uncounted(rows)),
        margin=config.margin,
        confidence=config.confidence,
        baselines=config.baselines,
        footprint=config.footprint,
        missing=tuple(missing),
    )


def so_far(config: Config, results: Sequence[ArmResult]) -> Comparison:
    """As :func:`gather`, with the arms and seeds that have not ended."""
    ended = {(result.outcome.arm, result.outcome.seed) for result in results}
    every = [(arm.name, seed) for arm in config.pipelines for seed in config.seeds]
    return gather(config, results, missing=[run for run in every if run not in ended])


def results_of(comparison: Comparison) -> list[ArmResult]:
    """What :func:`gather` was given, so that arms that have been run since can join: their stages are not needed."""
    masks = {(of.label, of.seed): of.masks for of in comparison.mask_histories}
    found = []
    everything: tuple[Outcome | DivergedOutcome, ...] = (*comparison.outcomes, *comparison.diverged)
    for outcome in everything:
        own = None
        if isinstance(outcome, Outcome) and outcome.pipeline == "network_slimming":
            label, seed = _mask_label(outcome), outcome.seed
            own = masks.get((f"{outcome.arm}, {label}", seed), masks.get((label, seed)))
        found.append(ArmResult(outcome, {key: comparison.rows[key] for key in outcome.stages}, own))
    return found


def _averaged(config: Config, finished: Sequence[Outcome]) -> list[str]:
    """Which arms deliver an average, and what that means for their numbers, in one line; nothing if none does."""
    arms = list(dict.fromkeys(outcome.arm for outcome in finished if outcome.averaging))
    settings = config.training.averaging
    if settings is None or not arms:
        return []
    every = f"every {settings.interval} {settings.unit}(s) after {settings.start_epoch(config.training.epochs)} epochs"
    return [
        f"Weights averaged ({settings.kind}, {every}): {', '.join(arms)}. Their accuracies are of the average, not of "
        "the epoch that validation selects; curves over epochs show the running weights. The phase `average` has what "
        "it costs."
    ]


def _uncounted(rows: Mapping[str, Sequence[LedgerRow]]) -> list[str]:
    """What was seen in training and has no formula, in one line; nothing if nothing is missing."""
    listed = {str(row.metrics["uncounted"]) for of in rows.values() for row in of if "uncounted" in row.metrics}
    return [f"Not counted, for want of a formula: {'; '.join(sorted(listed))}."] if listed else []


def _mask_histories(results: Sequence[ArmResult]) -> Iterator[MaskHistory]:
    """The recorded masks, each beside the ticket that was drawn with the same precision, ratio and seed."""
    found = [r.outcome for r in results if isinstance(r.outcome, Outcome)]
    drawn = [outcome for outcome in found if outcome.pipeline == "early_bird"]
    tickets = {(o.seed, o.search_precision, o.ratio): o.ticket.epoch for o in drawn if o.ticket is not None}
    recorded = [result for result in results if result.dense_masks is not None]
    arms: dict[str, set[str]] = {}
    for result in recorded:
        arms.setdefault(_mask_label(result.outcome), set()).add(result.outcome.arm)
    for result in recorded:
        assert result.dense_masks is not None
        outcome, label = result.outcome, _mask_label(result.outcome)
        if len(arms[label]) > 1:  # they differ in something else, such as the average
            label = f"{outcome.arm}, {label}"
        ticket = tickets.get((outcome.seed, outcome.precision, outcome.ratio))
        yield MaskHistory(label, outcome.seed, result.dense_masks, ticket)


def _mask_label(outcome: Outcome | DivergedOutcome) -> str:
    return outcome.precision if outcome.ratio is None else f"{outcome.precision}, ratio {outcome.ratio:g}"


def _masks_by_epoch(lab: Lab, history: ScoreHistory) -> NDArray[np.bool_]:
    """The mask that each epoch's scores would give; (epochs, channels)."""
    parts = [dict(zip(history.names, row.split(history.widths), strict=True)) for row in history.epoch_scores]
    masks = [keep_largest(scores, lab.tickets.ratio) for scores in parts]
    return np.stack([torch.cat(list(mask.values())).numpy() for mask in masks])
