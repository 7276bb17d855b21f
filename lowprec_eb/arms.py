"""The arms of a comparison, as settings: a pipeline, its precisions, and what is its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lowprec_eb.precision import nearest
from lowprec_eb.retraining import LOTTERY, OptimizerState, Retraining, Schedule, Weights

PipelineName = Literal[
    "full",
    "network_slimming",
    "one_shot_ticket",
    "early_bird",
    "random_ticket",
    "final_ticket",
    "iterative_pruning",
    "snip",
    "thinet",
    "dense_matched",
]
Quantity = Literal["flops", "energy"]
SEARCHING: tuple[PipelineName, ...] = ("early_bird", "random_ticket", "final_ticket")
_DENSE: tuple[PipelineName, ...] = ("full", "dense_matched")


@dataclass(frozen=True)
class IterativeSettings:
    """Rounds of pruning and fine-tuning.

    steps: rounds. spacing: of the shares of the original channels that are left, ``"geometric"`` (each round leaves the
    same share of what there is) or ``"linear"`` (each takes away as many). epochs: of fine-tuning in each round; left
    out, the comparison's training.epochs. learning_rate: constant in the rounds; left out, the comparison's schedule,
    scaled to their epochs.
    """

    steps: int = 3
    spacing: Literal["geometric", "linear"] = "geometric"
    epochs: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        _check_count("steps", self.steps)
        _check_fine_tuning(self.epochs, self.learning_rate)

    def shares(self, ratio: float) -> tuple[float, ...]:
        """The share of the original channels that is left after each round; the last is ``1 - ratio``."""
        parts = [step / self.steps for step in range(1, self.steps + 1)]
        if self.spacing == "linear":
            return tuple(1 - ratio * part for part in parts)
        return (*((1 - ratio) ** part for part in parts[:-1]), 1 - ratio)


@dataclass(frozen=True)
class SnipSettings:
    """batches: of the first epoch, on whose mean loss the sensitivity is taken; the paper has one."""

    batches: int = 1

    def __post_init__(self) -> None:
        _check_count("batches", self.batches)


@dataclass(frozen=True)
class ThinetSettings:
    """How channels are selected layer by layer, and trained in between.

    batches: of the first epoch, whose images are looked at. positions: of the next layer's output, sampled in each
    image (the paper has 10). layer_epochs: of fine-tuning after each layer (the paper has 1 or 2); 0 has none, and they
    take the last learning rate of the schedule. epochs, learning_rate: of the fine-tuning at the end, as of
    :class:`IterativeSettings`.
    """

    batches: int = 4
    positions: int = 10
    layer_epochs: int = 1
    epochs: int | None = None
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name in ("batches", "positions"):
            _check_count(name, getattr(self, name))
        if self.layer_epochs < 0:
            raise ValueError(f"layer_epochs must be 0 or more, got {self.layer_epochs}")
        _check_fine_tuning(self.epochs, self.learning_rate)


@dataclass(frozen=True)
class MatchSettings:
    """What a dense run shall cost.

    arm: the arm of this comparison whose cost it is. quantity: ``"flops"``, of training (search, train, retrain), or
    ``"energy"``, modelled (nominal), of everything.
    """

    arm: str
    quantity: Quantity = "flops"


# Keys that not every pipeline has: for which, and what it is when it is left out.
_OWN_KEYS: Mapping[str, tuple[tuple[PipelineName, ...], Any]] = {
    "search_precision": (SEARCHING, None),
    "weights": (SEARCHING, "inherit"),
    "rewind_epoch": (SEARCHING, None),
    "schedule": (SEARCHING, None),
    "optimizer": (SEARCHING, None),
    "penalty": (SEARCHING, None),
    "iterative": (("iterative_pruning",), None),
    "snip": (("snip",), None),
    "thinet": (("thinet",), None),
    "match": (("dense_matched",), None),
}


@dataclass(frozen=True)
class ArmSettings:
    """One row of the comparison: a pipeline and its precisions.

    precision: of training, or of retraining where there is a search; a recipe's name, or one that the comparison
    defines. search_precision: of the search; the same as ``precision`` where it is left out. weights, rewind_epoch,
    schedule, optimizer, penalty: what a ticket is retrained from, see :class:`Retraining`; what is left out is usual
    for the weights. averaging: whether the comparison's ``training.averaging`` holds for this arm, so that arms with
    and without can stand side by side. ratio: share of the channels to drop, in place of the comparison's
    ``ticket.ratio``, so that arms can sweep it. iterative, snip, thinet: of the pipeline of that name (thinet,
    iterative_pruning, snip). match: what a dense_matched run shall cost.
    """

    name: str
    pipeline: PipelineName
    precision: str = "fp32"
    search_precision: str | None = None
    weights: Weights = "inherit"
    averaging: bool = True
    rewind_epoch: int | None = None
    schedule: Schedule | None = None
    optimizer: OptimizerState | None = None
    penalty: bool | None = None
    ratio: float | None = None
    iterative: IterativeSettings | None = None
    snip: SnipSettings | None = None
    thinet: ThinetSettings | None = None
    match: MatchSettings | None = None

    def __post_init__(self) -> None:
        if not self.name.strip():
            raise ValueError("name must not be empty: it labels the arm in tables and pictures")
        for key, (pipelines, usual) in _OWN_KEYS.items():
            if self.pipeline not in pipelines and getattr(self, key) != usual:
                raise ValueError(f"{key} is for {' and '.join(pipelines)}, not {self.pipeline!r}")
        if self.ratio is not None:
            if not self.prunes:
                raise ValueError(f"ratio is for pipelines that drop channels, not {self.pipeline!r}")
            if not 0 < self.ratio < 1:
                raise ValueError(f"ratio must be between 0 and 1: the share of channels to drop, got {self.ratio}")
        if self.pipeline == "dense_matched" and self.match is None:
            raise ValueError("dense_matched needs match: {arm: NAME, quantity: flops or energy}")
        _ = self.retraining

    @property
    def search(self) -> str:
        """The precision of the search."""
        return self.search_precision or self.precision

    @property
    def searches(self) -> bool:
        """Whether a detector watches for the ticket."""
        return self.pipeline in SEARCHING

    @property
    def prunes(self) -> bool:
        return self.pipeline not in _DENSE

    @property
    def origin(self) -> Weights:
        """What an outcome says under ``weights``, finished or not."""
        return LOTTERY.weights if self.pipeline == "one_shot_ticket" else self.weights

    @property
    def retraining(self) -> Retraining:
        """What the ticket of a search is retrained from, with nothing left open."""
        given = (self.weights, self.schedule, self.optimizer, self.penalty)
        return Retraining.completed(*given, rewind_epoch=self.rewind_epoch)


def check_matches(arms: Sequence[ArmSettings], key: str = "pipelines") -> None:
    """Raise ValueError where an arm is matched to one that is not there, or in the end to itself; ``key`` is theirs."""
    by_name = {arm.name: arm for arm in arms}
    for place, arm in enumerate(arms):
        chain = [arm.name]
        while (match := by_name[chain[-1]].match) is not None:
            if match.arm not in by_name:
                hint = nearest(match.arm, by_name) or f"; there are {', '.join(by_name)}"
                raise ValueError(f"{key}.{place}.match.arm: no arm is named {match.arm!r}{hint}")
            if match.arm in chain:
                circle = " -> ".join([*chain, match.arm])
                raise ValueError(f"{key}.{place}.match.arm: arms are matched in a circle: {circle}")
            chain.append(match.arm)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_fine_tuning(epochs: int | None, learning_rate: float | None) -> None:
    if epochs is not None:
        _check_count("epochs", epochs)
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate must be above 0 and finite, got {learning_rate}")
