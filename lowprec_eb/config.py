"""The settings of a comparison, as they stand in a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from energy_models.footprint import Footprint
from lowprec_eb import strict_config
from lowprec_eb.arms import ArmSettings, check_matches
from lowprec_eb.averaging import AveragingSettings
from lowprec_eb.lab_settings import LabSettings
from lowprec_eb.models import ModelSettings, VGGSettings
from lowprec_eb.precision import nearest
from lowprec_eb.precision_settings import PrecisionSettings
from lowprec_eb.recipes import RECIPES
from lowprec_eb.tasks import TaskSettings
from lowprec_eb.tickets import TicketSettings
from lowprec_eb.train import TrainSettings


@dataclass(frozen=True)
class Config:
    """One comparison: the arms, and everything that they share.

    profile: name of a hardware profile, or the path of a YAML file. margin: difference in accuracy (a fraction) that
    counts as none. confidence: level of intervals over seeds and of verdicts. baselines: names of the arms that the
    others are tested against; left out, full training and network slimming in fp32. threads: of torch on the CPU; part
    of the run's name, since it may change the last bit of a sum. workers: arms that run side by side, each in a process
    of its own; it changes no result. precisions: names that arms may use beside the recipes'. footprint: what a kWh
    emits and costs, for CO2e and cost in the report; it changes no result.
    """

    name: str
    pipelines: tuple[ArmSettings, ...]
    task: TaskSettings = field(default_factory=TaskSettings)
    model: ModelSettings = field(default_factory=VGGSettings)
    training: TrainSettings = field(default_factory=TrainSettings)
    ticket: TicketSettings = field(default_factory=TicketSettings)
    seeds: tuple[int, ...] = (0, 1, 2)
    profile: str = "45nm"
    margin: float = 0.01
    confidence: float = 0.95
    baselines: tuple[str, ...] = ()
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1
    backend: Literal["auto", "reference", "fast", "triton", "qtorch"] = "auto"
    workers: int = field(default=1, compare=False)
    precisions: Mapping[str, PrecisionSettings] = field(default_factory=dict)
    footprint: Footprint | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.name.strip() or "/" in self.name:
            raise ValueError(f"name must be a word that can name a folder, got {self.name!r}")
        self._check_arms()
        self._check_precisions()
        self._check_schedule()
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must be in [0, 1): a fraction of the images, got {self.margin}")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"confidence must be between 0.5 and 1, such as 0.95, got {self.confidence}")
        for name in ("threads", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def _check_arms(self) -> None:
        if not self.pipelines:
            raise ValueError("pipelines must list at least one arm")
        names = [arm.name for arm in self.pipelines]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"pipelines: two arms are named {doubled[0]!r}; give each its own name")
        if strangers := [name for name in self.baselines if name not in names]:
            hint = nearest(strangers[0], names) or f"; the arms are {', '.join(names)}"
            raise ValueError(f"baselines: no arm is named {strangers[0]!r}{hint}")
        check_matches(self.pipelines)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or not all(0 <= s < 2**31 for s in self.seeds):
            raise ValueError(
                f"seeds must be different whole numbers from 0 to 2**31 - 1, at least one, got {list(self.seeds)}"
            )

    def _check_precisions(self) -> None:
        if taken := sorted({*self.precisions} & {*RECIPES}):
            raise ValueError(f"precisions.{taken[0]}: is the name of a recipe; choose another")
        for key, settings in self.precisions.items():
            if settings.precision(key).name != key:
                raise ValueError(f"precisions.{key}.name: here the key is the name; leave {settings.name!r} out")
        known = (*RECIPES, *self.precisions)
        named = {
            f"pipelines.{place}.{key}": getattr(arm, key)
            for place, arm in enumerate(self.pipelines)
            for key in ("precision", "search_precision")
        }
        if self.training.stability is not None:
            named["training.stability.raise_to"] = self.training.stability.raise_to
        for key, name in named.items():
            if name is not None and name not in known:
                hint = nearest(name, known) or f"; known are {', '.join(known)}"
                raise ValueError(f"{key}: unknown precision {name!r}{hint}")

    def _check_schedule(self) -> None:
        ticket = self.ticket
        if ticket.deadline >= self.training.epochs:
            raise ValueError(
                f"ticket.deadline ({ticket.deadline}) must be below training.epochs ({self.training.epochs}): "
                "the ticket is retrained in the epochs that are left"
            )
        if self.training.averaging is not None:
            self.training.averaging.check(self.training.epochs, ticket.deadline)
            self._check_averaged_rounds(self.training.averaging)
        if ticket.check_every is None:  # else the steps of an epoch decide, which the lab knows
            ticket.check_deadline(1)

    def _check_averaged_rounds(self, averaging: AveragingSettings) -> None:
        for place, arm in enumerate(self.pipelines):
            for key in ("iterative", "thinet"):
                settings = getattr(arm, key)
                if arm.averaging and settings is not None and settings.epochs is not None:
                    try:
                        averaging.check(settings.epochs)
                    except ValueError as error:
                        raise ValueError(f"pipelines.{place}.{key}.epochs: {error}") from error

    @property
    def run_name(self) -> str:
        return f"{self.name}-{strict_config.digest(self)}"

    @property
    def lab(self) -> LabSettings:
        precisions = {name: settings.precision(name) for name, settings in self.precisions.items()}
        shared = (self.task, self.model, self.training, self.ticket, self.device, self.backend, self.threads)
        rewinds = tuple(sorted({arm.rewind_epoch for arm in self.pipelines if arm.rewind_epoch}))
        sweeps = any(arm.ratio is not None for arm in self.pipelines)
        return LabSettings(*shared, precisions=precisions, rewind_epochs=rewinds, sweeps=sweeps)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file; ``overrides`` are ``key=value`` with dots for nesting.

    Raises:
        ConfigError: naming file, key, what was expected and the nearest valid name.
    """
    return strict_config.load(path, Config, overrides)
