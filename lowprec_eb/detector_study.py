"""A study of detectors: dense runs whose scores are recorded, so that every detector can be replayed over them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from energy_models import load_profile
from lowprec_eb.checkpoints import write_text
from lowprec_eb.lab_settings import LabSettings
from lowprec_eb.models import ModelSettings, VGGSettings
from lowprec_eb.stage_data import Progress, StageResult
from lowprec_eb.strict_config import digest
from lowprec_eb.tasks import TaskSettings, make_task
from lowprec_eb.tickets import ScoreHistory, TicketSettings
from lowprec_eb.train import TrainSettings
from lowprec_eb.training_lab import TrainingLab
from lowprec_eb.versions import versions

_SCORES, _RUN = "scores.safetensors", "run.json"


@dataclass(frozen=True)
class StudySettings:
    """The dense runs of a study: one for each of ``precisions``, ``controls`` and ``seeds``, over the whole schedule.

    title: for pictures and tables; the name where it is left out. controls: precisions whose masks are only compared
    with those of the first precision. sparsity: s of the gamma penalty. record_every: scores are kept after every so
    many steps, too. What is replayed over them: ratios, and detectors with one look an epoch and, with check_every (a
    multiple of record_every), with a look every so many steps at a moving average of momentum score_momentum.
    """

    name: str
    title: str = ""
    task: TaskSettings = field(default_factory=TaskSettings)
    model: ModelSettings = field(default_factory=VGGSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    sparsity: float = 1e-4
    record_every: int | None = None
    precisions: tuple[str, ...] = ("fp32", "bfp8")
    controls: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    ratios: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7)
    check_every: int | None = None
    score_momentum: float = 0.9
    profile: str = "45nm"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.name.strip() or "/" in self.name:
            raise ValueError(f"name must be a word that can name a folder, got {self.name!r}")
        if not 0 < self.sparsity < float("inf"):
            raise ValueError(f"sparsity must be above 0: the penalty tells channels apart, got {self.sparsity}")
        if self.check_every is not None and (self.record_every is None or self.check_every % self.record_every):
            raise ValueError(
                f"check_every ({self.check_every}) must be a multiple of record_every ({self.record_every}): looks can "
                "be replayed only where scores were kept"
            )
        for key in ("precisions", "seeds", "ratios"):
            if not getattr(self, key):
                raise ValueError(f"{key} must list at least one")
        for key, given in (("precisions and controls", self.recorded), ("seeds", self.seeds), ("ratios", self.ratios)):
            if len(set(given)) < len(given):
                raise ValueError(f"{key} must list each only once, got {list(given)}")

    @property
    def recorded(self) -> tuple[str, ...]:
        """The precision of every run of a seed."""
        return (*self.precisions, *self.controls)

    @property
    def shown(self) -> str:
        return self.title or self.name

    @property
    def lab(self) -> LabSettings:
        ticket = TicketSettings(sparsity=self.sparsity, check_every=self.record_every)
        return LabSettings(self.task, self.model, self.training, ticket, device=self.device, threads=self.threads)


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """The scores of one dense run, and what else is known of it.

    facts: settings (a hash), test_accuracy, validation_accuracy and loss (lists by epoch), learning_rates (by epoch),
    seconds of training, versions.
    """

    precision: str
    seed: int
    history: ScoreHistory
    facts: dict[str, Any]


def record(settings: StudySettings, precision: str, seed: int, out: Path, progress: Progress | None = None) -> None:
    """Train the dense run of ``precision`` and ``seed`` in ``out`` unless it has been recorded there.

    Killed at any moment it goes on at the last finished epoch. A recorded run is valid as long as the settings are the
    same, whatever becomes of the sources; its file says with which versions it was made.
    """
    folder = _folder(settings, precision, seed, out)
    if (folder / _RUN).exists():
        return
    torch.set_num_threads(settings.threads)
    task = make_task(settings.task, seed, settings.device)
    profile = load_profile(settings.profile)
    lab = TrainingLab(settings.lab, task, profile, seed, out / "stages", settings.name, progress)
    # Of the phase of a search: a replay then has its rounding, and not that of a full training.
    result = lab.train(lab.initial(), "search", precision, sparsity=settings.sparsity)
    assert result.history is not None
    folder.mkdir(parents=True, exist_ok=True)
    result.history.save(folder / _SCORES)
    write_text(folder / _RUN, json.dumps(_facts(settings, result), indent=1) + "\n")


def load_run(settings: StudySettings, precision: str, seed: int, out: Path) -> RecordedRun:
    """What :func:`record` left.

    Raises:
        FileNotFoundError: this run has not been recorded with these settings.
    """
    folder = _folder(settings, precision, seed, out)
    if not (folder / _RUN).exists():
        raise FileNotFoundError(f"{folder}: {precision} with seed {seed} has not been recorded with these settings")
    facts = json.loads((folder / _RUN).read_text())
    return RecordedRun(precision, seed, ScoreHistory.load(folder / _SCORES), facts)


def _folder(settings: StudySettings, precision: str, seed: int, out: Path) -> Path:
    return out / "recorded" / f"{settings.name}-{_settings_hash(settings)}" / f"{precision}-seed{seed}"


def _settings_hash(settings: StudySettings) -> str:
    """Of what decides the scores of one run; where the data lies and which runs there are do not."""
    lab = settings.lab
    task = TaskSettings(**{**settings.task.__dict__, "data_root": None})
    return digest([digest(of) for of in (task, lab.model, lab.training, lab.ticket)] + [lab.device, lab.threads])


def _facts(settings: StudySettings, result: StageResult) -> dict[str, Any]:
    trained = sorted((row for row in result.rows if row.key.phase == "search"), key=lambda row: row.key.epoch)
    return {
        "stage": result.key,
        "test_accuracy": result.test_accuracy,
        "validation_accuracy": [row.metrics["validation_accuracy"] for row in trained],
        "loss": [row.metrics["loss"] for row in trained],
        "learning_rates": [settings.training.learning_rate_at(row.key.epoch) for row in trained],
        "seconds": sum(row.duration_s for row in trained),
        "versions": versions(),
    }
