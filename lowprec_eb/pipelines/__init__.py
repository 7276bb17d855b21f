"""Pipelines: ways from initial weights to a trained model, each a function of a lab and an arm."""

from __future__ import annotations

from collections.abc import Callable

from lowprec_eb.arms import ArmSettings, PipelineName
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome
from lowprec_eb.pipelines.dense_matched import dense_matched
from lowprec_eb.pipelines.early_bird import early_bird
from lowprec_eb.pipelines.final_ticket import final_ticket
from lowprec_eb.pipelines.full import full
from lowprec_eb.pipelines.iterative_pruning import iterative_pruning
from lowprec_eb.pipelines.network_slimming import network_slimming
from lowprec_eb.pipelines.one_shot_ticket import one_shot_ticket
from lowprec_eb.pipelines.random_ticket import random_ticket
from lowprec_eb.pipelines.snip import snip
from lowprec_eb.pipelines.thinet import thinet

PIPELINES: dict[PipelineName, Callable[[Lab, ArmSettings], Outcome]] = {
    "full": full,
    "network_slimming": network_slimming,
    "one_shot_ticket": one_shot_ticket,
    "early_bird": early_bird,
    "random_ticket": random_ticket,
    "final_ticket": final_ticket,
    "iterative_pruning": iterative_pruning,
    "snip": snip,
    "thinet": thinet,
    "dense_matched": dense_matched,
}

__all__ = [
    "PIPELINES",
    "dense_matched",
    "early_bird",
    "final_ticket",
    "full",
    "iterative_pruning",
    "network_slimming",
    "one_shot_ticket",
    "random_ticket",
    "snip",
    "thinet",
]
