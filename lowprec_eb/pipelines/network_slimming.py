"""Network slimming (Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017).

Train dense with an L1 penalty on the BatchNorm scales, prune the channels with the smallest, retrain over the whole
schedule with the weights that stayed.
"""

from __future__ import annotations

from lowprec_eb.arms import ArmSettings
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome
from lowprec_eb.retraining import FINE_TUNING


def network_slimming(lab: Lab, arm: ArmSettings) -> Outcome:
    dense = lab.train(lab.initial(), "train", arm.precision, sparsity=lab.tickets.sparsity)
    ticket = lab.draw(dense, arm.precision)
    small = lab.prune(lab.retrained_from(dense, FINE_TUNING), ticket)
    final = lab.train(small, "retrain", arm.precision, retraining=FINE_TUNING)
    return lab.outcome(arm, [dense, final], ticket, retraining=FINE_TUNING)
