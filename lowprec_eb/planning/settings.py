"""The settings of a plan, as they stand in a YAML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from energy_models.footprint import Footprint, as_range
from lowprec_eb import strict_config
from lowprec_eb.arms import (
    ArmSettings,
    IterativeSettings,
    MatchSettings,
    PipelineName,
    SnipSettings,
    check_matches,
)
from lowprec_eb.precision import Precision, nearest
from lowprec_eb.precision_settings import PrecisionSettings
from lowprec_eb.recipes import RECIPES, precision
from lowprec_eb.retraining import Weights


@dataclass(frozen=True)
class Segment:
    """So many epochs of a schedule in one precision."""

    precision: str
    epochs: int

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")


@dataclass(frozen=True)
class PlanArm:
    """One way to train: a pipeline of ``lowprec-eb compare`` and its precisions.

    search_precision, weights, rewind_epoch, penalty, ratio, iterative, snip, match: as of a comparison's arm. schedule:
    precisions by epoch in place of ``precision``, over all of the plan's epochs; a search keeps its own, and what is
    retrained at epoch e goes on with that of epoch e. rate: as the plan's, for this arm.

    Raises:
        ValueError: what cannot be, and a pipeline or a match whose cost does not follow from even widths and epochs.
    """

    name: str
    pipeline: PipelineName = "full"
    precision: str = "fp32"
    search_precision: str | None = None
    weights: Weights = "inherit"
    schedule: tuple[Segment, ...] = ()
    rate: tuple[float, ...] | None = None
    ratio: float | None = None
    rewind_epoch: int | None = None
    penalty: bool | None = None
    iterative: IterativeSettings | None = None
    snip: SnipSettings | None = None
    match: MatchSettings | None = None

    def __post_init__(self) -> None:
        _ = self.arm
        self._check_foreseeable()
        _check_numbers("rate", self.rate)
        if self.schedule and self.precision != "fp32":
            raise ValueError("give a precision or a schedule, not both")
        if self.schedule and self.searches and self.search_precision is None:
            raise ValueError("search_precision is needed beside a schedule: the schedule is that of the retraining")

    def _check_foreseeable(self) -> None:
        if self.pipeline == "thinet":
            raise ValueError(
                "pipeline: thinet prunes layer by layer, and a plan has networks of even width alone; plan it in a "
                "file of a comparison, with the key pipelines"
            )
        if self.match is not None and self.match.quantity == "energy":
            raise ValueError(
                "match.quantity: equal energy is another length under each profile; give flops, or plan it in a file "
                "of a comparison, with the key pipelines"
            )
        if self.schedule and self.pipeline in ("iterative_pruning", "dense_matched"):
            raise ValueError(f"schedule: {self.pipeline} has epochs of its own; give a precision")

    @property
    def arm(self) -> ArmSettings:
        """As a pipeline takes it."""
        return ArmSettings(
            self.name,
            self.pipeline,
            self.precision,
            self.search_precision,
            self.weights,
            rewind_epoch=self.rewind_epoch,
            penalty=self.penalty,
            ratio=self.ratio,
            iterative=self.iterative,
            snip=self.snip,
            match=self.match,
        )

    @property
    def searches(self) -> bool:
        return self.arm.searches

    @property
    def precisions(self) -> list[str]:
        """All that it names."""
        search = [] if self.search_precision is None else [self.search_precision]
        return [*search, *([segment.precision for segment in self.schedule] or [self.precision])]

    def by_epoch(self, epochs: int) -> list[str]:
        """The precision of each epoch outside the search."""
        planned = [segment.precision for segment in self.schedule for _ in range(segment.epochs)]
        return planned or [self.precision] * epochs


@dataclass(frozen=True)
class PlanTicket:
    """The ticket that is expected.

    ratio: share of channels that it drops. emergence: epochs of the search before it appears, one number, low and high,
    or low, nominal and high. widths: how the small network is counted. ``compacted`` cuts every layer with a BatchNorm
    by the ratio and counts what is left; ``scaled`` computes the counts of narrower convolutions from those of the
    model (energy_models.narrowing), for models that cannot be cut.
    """

    ratio: float
    emergence: tuple[int, ...]
    widths: Literal["compacted", "scaled"] = "compacted"

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"ratio must be between 0 and 1, got {self.ratio}")
        _check_numbers("emergence", self.emergence)

    @property
    def epochs(self) -> tuple[int, ...]:
        """Low, nominal and high; one number alone."""
        emerged = as_range(self.emergence)
        return (
            (round(emerged.low), round(emerged.nominal), round(emerged.high))
            if len(self.emergence) > 1
            else (self.emergence)
        )


@dataclass(frozen=True)
class Evaluation:
    """Passes over ``samples`` held-out samples (tokens, where the data are given in tokens) after every epoch."""

    samples: float = 0.0
    per_epoch: float = 1.0

    def __post_init__(self) -> None:
        for name in ("samples", "per_epoch"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class PlanSettings:
    """A plan: the arms, and what they share.

    model, inputs, functional, in_memory: as of ``lowprec-eb count``. samples, tokens: of an epoch's data, one of them;
    a sample of a model that reads tokens has as many as ``inputs`` says. batch: samples of an optimizer step, over all
    ``devices`` and their ``accumulate`` passes. devices: of data parallelism; each holds the whole model. rate:
    training samples (or tokens) that one device takes a second with the dense model, one number, (low, high) or (low,
    nominal, high). optimizer: as ``--optimizer`` of ``lowprec-eb count``. profiles: names or files. precisions: names
    that arms may use beside the recipes'.
    """

    name: str
    model: str
    arms: tuple[PlanArm, ...]
    samples: float | None = None
    tokens: float | None = None
    epochs: int = 1
    batch: int = 1
    devices: int = 1
    accumulate: int = 1
    inputs: tuple[str, ...] = ()
    functional: bool = False
    in_memory: bool = False
    optimizer: str = "sgd"
    evaluation: Evaluation = field(default_factory=Evaluation)
    ticket: PlanTicket | None = None
    profiles: tuple[str, ...] = ("45nm",)
    rate: tuple[float, ...] | None = None
    footprint: Footprint | None = None
    precisions: Mapping[str, PrecisionSettings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "devices", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        self._check_data()
        if not self.profiles or len(set(self.profiles)) < len(self.profiles):
            raise ValueError("profiles must name at least one hardware profile, each once")
        _check_numbers("rate", self.rate)
        self._check_arms()
        self._check_precisions()

    def _check_data(self) -> None:
        data = [name for name in ("samples", "tokens") if getattr(self, name) is not None]
        if len(data) != 1:
            raise ValueError("give samples or tokens, one of them: the size of an epoch's data")
        if not 0 < getattr(self, data[0]) < math.inf:
            raise ValueError(f"{data[0]} must be above 0, got {getattr(self, data[0])}")
        if self.batch % (self.devices * self.accumulate):
            raise ValueError(
                f"batch ({self.batch}) must be a multiple of devices x accumulate ({self.devices * self.accumulate}): "
                "it counts the samples of an optimizer step, over all of them"
            )

    def _check_arms(self) -> None:
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) < len(names):
            raise ValueError("arms must list at least one arm, each with a name of its own")
        for place, arm in enumerate(self.arms):
            if arm.schedule and sum(segment.epochs for segment in arm.schedule) != self.epochs:
                planned = sum(segment.epochs for segment in arm.schedule)
                raise ValueError(f"arms.{place}.schedule: its epochs sum to {planned}, and the plan has {self.epochs}")
            if arm.arm.prunes and self.ticket is None:
                raise ValueError(f"arms.{place}: {arm.pipeline} needs a ticket: give ticket.ratio and ticket.emergence")
            if self.ticket is not None and (arm.rewind_epoch or 0) > min(self.ticket.emergence):
                raise ValueError(
                    f"arms.{place}.rewind_epoch ({arm.rewind_epoch}) must be at most ticket.emergence "
                    f"({min(self.ticket.emergence)}): a search that has ended has no later state"
                )
        check_matches([arm.arm for arm in self.arms], "arms")
        if self.ticket is not None and max(self.ticket.emergence) >= self.epochs:
            raise ValueError(
                f"ticket.emergence ({max(self.ticket.emergence)}) must be below epochs ({self.epochs}): the ticket is "
                "retrained in the epochs that are left"
            )

    def _check_precisions(self) -> None:
        if taken := sorted({*self.precisions} & {*RECIPES}):
            raise ValueError(f"precisions.{taken[0]}: is the name of a recipe; choose another")
        known = (*RECIPES, *self.precisions)
        for place, arm in enumerate(self.arms):
            for name in arm.precisions:
                if name not in known:
                    hint = nearest(name, known) or f"; known are {', '.join(known)}"
                    raise ValueError(f"arms.{place}: unknown precision {name!r}{hint}")

    def recipe(self, name: str) -> Precision:
        """The precision of that name."""
        own = self.precisions.get(name)
        return precision(name) if own is None else own.precision(name)


def _check_numbers(name: str, numbers: Sequence[float] | None) -> None:
    if numbers is None:
        return
    rising = list(numbers) == sorted(numbers) and 1 <= len(numbers) <= 3
    if not rising or not numbers[0] > 0 or not numbers[-1] < math.inf:
        raise ValueError(
            f"{name} must be one number, low and high, or low, nominal and high, above 0; got {list(numbers)}"
        )


def load_plan(path: str | Path, overrides: Sequence[str] = ()) -> PlanSettings:
    """Read a YAML file; ``overrides`` are ``key=value`` with dots for nesting.

    Raises:
        ConfigError: naming file, key, what was expected and the nearest valid name.
    """
    return strict_config.load(path, PlanSettings, overrides)
