"""Network slimming (Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017).

Train dense with an L1 penalty on the BatchNorm scales, prune the channels with the smallest, retrain over the whole
schedule with the weights that stayed.
"""

from __future__ import annotations

from lowprec_eb.lab import ArmSettings, Lab
from lowprec_eb.outcome import Outcome


def network_slimming(lab: Lab, arm: ArmSettings) -> Outcome:
    dense = lab.train(lab.initial(), "train", arm.precision, sparsity=lab.tickets.sparsity)
    ticket = lab.draw(dense, arm.precision)
    small = lab.prune(dense.state.restarted(), ticket)
    final = lab.train(small, "retrain", arm.precision)
    return lab.outcome(arm, [dense, final], ticket)
