"""The control for drawing early: the mask of a finished dense run, on the weights that the early-bird ticket has.

An early-bird search and a dense run with the same penalty, both to their ends. The channels are those of the dense run;
weights, momentum and epoch are the search's. So this arm and an early-bird arm with the same keys differ in the mask
alone. All of it is charged: search, dense run and retraining.
"""

from __future__ import annotations

from lowprec_eb.arms import ArmSettings
from lowprec_eb.lab import Lab
from lowprec_eb.outcome import Outcome


def final_ticket(lab: Lab, arm: ArmSettings) -> Outcome:
    search = lab.train(lab.initial(), "search", arm.search, sparsity=lab.tickets.sparsity, detect=True)
    dense = lab.train(lab.initial(), "train", arm.search, sparsity=lab.tickets.sparsity)
    ticket = lab.draw(dense, arm.search)
    small = lab.prune(lab.retrained_from(search, arm.retraining), ticket)
    final = lab.train(small, "retrain", arm.precision, retraining=arm.retraining)
    return lab.outcome(arm, [search, dense, final], ticket, retraining=arm.retraining)
