"""SNIP (Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019), by channels.

Before training: the sensitivity |w dL/dw| of every weight on a batch, as a share of that of all weights; summed over a
channel's weights it is the channel's. Those with the largest stay, at their initial weights, and only they are trained.
The paper ranks single weights. The pass over the batch is charged, as a search.
"""

from __future__ import annotations

from lowprec_eb.arms import ArmSettings, SnipSettings
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome


def snip(lab: Lab, arm: ArmSettings) -> Outcome:
    how = arm.snip or SnipSettings()
    initial, ticket = lab.draw_sensitive(lab.initial(), arm.precision, how.batches)
    final = lab.train(lab.prune(initial, ticket), "train", arm.precision)
    return lab.outcome(arm, [final], ticket)
