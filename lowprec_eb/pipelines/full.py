"""Full training: the dense model, the whole schedule."""

from __future__ import annotations

from lowprec_eb.arms import ArmSettings
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome


def full(lab: Lab, arm: ArmSettings) -> Outcome:
    dense = lab.train(lab.initial(), "train", arm.precision)
    return lab.outcome(arm, [dense])
