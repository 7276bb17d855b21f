"""Pipelines: ways from initial weights to a trained model, each a function of a lab and an arm."""

from __future__ import annotations

from collections.abc import Callable

from lowprec_eb.lab import ArmSettings, Lab, PipelineName
from lowprec_eb.outcome import Outcome
from lowprec_eb.pipelines.early_bird import early_bird
from lowprec_eb.pipelines.full import full
from lowprec_eb.pipelines.network_slimming import network_slimming
from lowprec_eb.pipelines.one_shot_ticket import one_shot_ticket
from lowprec_eb.pipelines.random_ticket import random_ticket

PIPELINES: dict[PipelineName, Callable[[Lab, ArmSettings], Outcome]] = {
    "full": full,
    "network_slimming": network_slimming,
    "one_shot_ticket": one_shot_ticket,
    "early_bird": early_bird,
    "random_ticket": random_ticket,
}

__all__ = ["PIPELINES", "early_bird", "full", "network_slimming", "one_shot_ticket", "random_ticket"]
