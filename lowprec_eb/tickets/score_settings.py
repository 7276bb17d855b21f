"""Which groups a ticket is of, and by which score it is drawn, as settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lowprec_eb.tickets.calls import Inputs
from lowprec_eb.tickets.groups import channel_groups
from lowprec_eb.tickets.importance import gamma_scores
from lowprec_eb.tickets.members import ChannelGroup
from lowprec_eb.tickets.scores import Scorer, scorer

Grouping = Literal["batch_norm", "coupled"]
StandingScore = Literal["gamma", "gamma_per_flop", "l1", "l2", "random"]


@dataclass(frozen=True)
class ScoreSettings:
    """What a ticket is of.

    groups: ``"batch_norm"``, one group per BatchNorm2d as in You et al. 2020, or ``"coupled"``, all channels that can
    only go together. score: of those that weights alone decide, by name.
    """

    groups: Grouping = "batch_norm"
    score: StandingScore = "gamma"

    @property
    def are_the_papers(self) -> bool:
        return self == ScoreSettings()


def scoring(
    model: nn.Module, settings: ScoreSettings, example_inputs: Inputs, seed: int = 0
) -> tuple[Sequence[ChannelGroup] | None, Scorer]:
    """The groups of ``model`` (None: one per BatchNorm2d) and the scorer that ``settings`` ask for.

    Raises:
        ValueError: the model has no group that can be pruned, or none that the score is for.
    """
    if settings.are_the_papers:
        return None, gamma_scores
    coupled = settings.groups == "coupled"
    groups = channel_groups(model, example_inputs, coupled)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no channels that can be pruned:\n{groups}")
    return (groups if coupled else None), scorer(
        settings.score, groups=groups, example_inputs=example_inputs, seed=seed
    )
